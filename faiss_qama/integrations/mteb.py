"""Quantized embeddings as a model that mteb can evaluate (``pip install '.[mteb]' in the clone``)."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from mteb.models import SentenceTransformerEncoderWrapper
from mteb.types import PromptType

from faiss_qama._version import __version__
from faiss_qama.arrays import Floats
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.vectors import as_vectors

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models import EncoderProtocol
    from mteb.models.model_meta import ModelMeta
    from sentence_transformers import SentenceTransformer


class QamaEncoder:
    """A model with decoded codes in place of its embeddings, for ``mteb.evaluate``.

    Every text is embedded, encoded and decoded. Only mteb's queries stay floats: an index with ``rescore="codes"``
    scores documents alike. Tasks without queries, such as STS and classification, have every text compressed.
    Similarities are those of ``model``.

    Parameters
    ----------
    model : SentenceTransformer or EncoderProtocol
        The model, or an encoder of mteb.
    quantizer : Quantizer, str or None
        A fitted quantizer. Or the layout of a quantizer that :func:`faiss_qama.training.fit` fits per task and subset,
        to the first texts that are no queries: the first 50,000 documents of a retrieval task, the training samples of
        a classification. None is the default layout.
    symmetric : bool
        Whether to compress queries too. That needs a fitted quantizer, as mteb embeds queries before documents.

    Raises
    ------
    ValueError
        For ``symmetric`` without a fitted quantizer.
    """

    def __init__(
        self,
        model: SentenceTransformer | EncoderProtocol,
        quantizer: Quantizer | str | None = None,
        *,
        symmetric: bool = False,
    ) -> None:
        if symmetric and not isinstance(quantizer, Quantizer):
            raise ValueError("symmetric needs a fitted Quantizer, as queries come before what one would be fitted to")
        self.model = model if hasattr(model, "mteb_model_meta") else SentenceTransformerEncoderWrapper(model)
        self.quantizer, self.symmetric = quantizer, symmetric
        self._fitted: tuple[tuple[str, str], Quantizer] | None = None  # task and subset, and their quantizer

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """The model's metadata, and the quantizer as a setting: mteb keeps results apart by it."""
        meta = self.model.mteb_model_meta
        settings = dict(meta.experiment_kwargs or {}) | {
            "faiss_qama": f"{__version__} {_named(self.quantizer)}",
            "queries": "codes" if self.symmetric else "floats",
        }
        return meta.model_copy(update={"experiment_kwargs": settings})

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **options: Any,
    ) -> Floats:
        """Return embeddings (n, d) float32, encoded and decoded; the parameters are mteb's ``EncoderProtocol``'s."""
        task = {"task_metadata": task_metadata, "hf_split": hf_split, "hf_subset": hf_subset}
        embedded = self.model.encode(inputs, prompt_type=prompt_type, **task, **options)
        x = as_vectors(embedded.float().cpu().numpy() if hasattr(embedded, "cpu") else embedded, what="embeddings")
        if prompt_type == PromptType.query and not self.symmetric:
            return self.quantizer.adapt_queries(x) if isinstance(self.quantizer, Quantizer) else x
        return self._quantizer_of((task_metadata.name, hf_subset), x).encode_decode(x)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the similarities (n1, n2) of all pairs, larger for nearer ones."""
        return self.model.similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the similarities (n,) of pairs of rows, larger for nearer ones."""
        return self.model.similarity_pairwise(embeddings1, embeddings2)

    def _quantizer_of(self, task: tuple[str, str], x: Floats) -> Quantizer:
        if isinstance(self.quantizer, Quantizer):
            return self.quantizer
        if self._fitted is None or self._fitted[0] != task:
            from faiss_qama.training import FitConfig, fit  # here, because run time does not depend on training

            self._fitted = task, fit(x, config=FitConfig(layout=self.quantizer))
        return self._fitted[1]


def _named(quantizer: Quantizer | str | None) -> str:
    """Return a short name that tells quantizers apart."""
    if not isinstance(quantizer, Quantizer):
        return f"{quantizer or 'default layout'} fitted to each task"
    arrays, settings = quantizer.to_state()
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, array in sorted(arrays.items()):
        digest.update(name.encode() + array.tobytes())
    return f"{quantizer.layout} {digest.hexdigest()[:12]}"
