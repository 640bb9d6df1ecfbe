"""Quantized embeddings as a model that mteb can evaluate (``pip install 'faiss-qama[mteb]'``)."""

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
    """A model whose embeddings are what their codes hold, for ``mteb.evaluate``.

    Every text is embedded, encoded and decoded, but for what mteb calls a query, which stays in floats: documents are
    scored as an index does that rescores from its codes. Tasks without queries, such as STS and classification, have
    every text compressed. Similarities are those of ``model``.

    Parameters
    ----------
    model : a SentenceTransformer, or an encoder of mteb
    quantizer : what encodes and decodes. Or the layout of one that is fitted for each task and subset, as
        :func:`faiss_qama.training.fit` does, to the texts that come first and are no queries: of a retrieval task the
        first 50,000 documents, of a classification the training samples. None is the default layout
    symmetric : compress queries too; a quantizer is needed then, as mteb embeds queries before documents
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
        self._fitted: tuple[tuple[str, str], Quantizer] | None = None  # the task and subset that it is for

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """The model's, with what is done to its embeddings: mteb keeps results apart by that."""
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
        """Return embeddings (n, d) float32, as mteb's ``EncoderProtocol`` describes, after encoding and decoding."""
        task = {"task_metadata": task_metadata, "hf_split": hf_split, "hf_subset": hf_subset}
        embedded = self.model.encode(inputs, prompt_type=prompt_type, **task, **options)
        x = as_vectors(embedded.float().cpu().numpy() if hasattr(embedded, "cpu") else embedded, what="embeddings")
        if prompt_type == PromptType.query and not self.symmetric:
            return self.quantizer.adapt_queries(x) if isinstance(self.quantizer, Quantizer) else x
        return self._quantizer_of((task_metadata.name, hf_subset), x).encode_decode(x)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the similarities of all pairs, (n1, n2), larger for nearer ones."""
        return self.model.similarity(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Any:
        """Return the similarity of each pair of rows, (n,), larger for nearer ones."""
        return self.model.similarity_pairwise(embeddings1, embeddings2)

    def _quantizer_of(self, task: tuple[str, str], x: Floats) -> Quantizer:
        if isinstance(self.quantizer, Quantizer):
            return self.quantizer
        if self._fitted is None or self._fitted[0] != task:
            from faiss_qama.training import FitConfig, fit  # here, because run time does not depend on training

            self._fitted = task, fit(x, config=FitConfig(layout=self.quantizer))
        return self._fitted[1]


def _named(quantizer: Quantizer | str | None) -> str:
    """Return a short name, other for quantizers that differ."""
    if not isinstance(quantizer, Quantizer):
        return f"{quantizer or 'default layout'} fitted to each task"
    arrays, settings = quantizer.to_state()
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, array in sorted(arrays.items()):
        digest.update(name.encode() + array.tobytes())
    return f"{quantizer.layout} {digest.hexdigest()[:12]}"
