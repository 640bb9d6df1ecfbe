"""The methods we compare with, by name, each built on a data set's corpus.

Names are: those in ``METHODS``; any layout such as ``2x192``, ``2x96,1x192`` or ``2x128+2x224``; and
``faiss:FACTORY``, with search parameters after a semicolon
(``faiss:IVF256,PQ48x4fs,Refine(SQfp16);nprobe=16,k_factor_rf=10``). A suffix ``+none``, ``+codes``, ``+sq8``, ``+fp16``
or ``+fp32`` to a method that :func:`~faiss_qama.training.fit` fits says what rescores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from faiss_qama.arrays import Floats
from faiss_qama.evaluation.recall import TIMED_RUNS, Dataset, MethodResult, Searchable, Truth, evaluate
from faiss_qama.hamming.factory import DEFAULT, code_bytes
from faiss_qama.index.qama_index import QamaIndex
from faiss_qama.quantizer import bit_packing
from faiss_qama.quantizer.layout import CodeLayout
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.rescore.factory import RESCORE_KINDS
from faiss_qama.vectors import Corpus

_RAW = {"projection": "none", "rotation": "none"}
_SVD = {"projection": "pca", "rotation": "none", "center": False}

# Settings of a fit, and what rescores. The binary and ternary ones rank by Hamming distance, as
# published; ours use what they have, the codes.
METHODS: dict[str, tuple[dict[str, Any], str]] = {
    "binary": ({**_RAW, "layout": "binary", "center": False, "thresholds": "zero"}, "none"),
    "mean-binary": ({**_RAW, "layout": "binary", "thresholds": "mean"}, "none"),
    "median-binary": ({**_RAW, "layout": "binary", "thresholds": "median"}, "none"),
    "ternary": ({**_RAW, "layout": "ternary", "thresholds": "quantile"}, "none"),
    "rotated-binary": ({**_SVD, "layout": "binary", "thresholds": "zero"}, "none"),
    "rotated-ternary": ({**_SVD, "layout": "ternary", "thresholds": "quantile"}, "none"),
    "hybrid": ({"layout": "hybrid"}, "codes"),
    "half-bit": ({"layout": "half-bit"}, "codes"),
}
SCALAR = ("scalar", "rotated-scalar")


def measure(
    name: str,
    dataset: Dataset,
    truth: Truth,
    *,
    train_queries: bool = False,
    seeds: int = 1,
    runs: int = TIMED_RUNS,
    **search_options: Any,
) -> MethodResult:
    """Build the method ``name`` once a seed and measure each, its speed as the median of ``runs``.

    ``search_options`` go to indexes of ours that rescore.
    """
    results = []
    for seed in range(seeds):
        built = build(name, dataset, truth.metric, train_queries=train_queries, seed=seed)
        rescores = isinstance(built.index, QamaIndex) and built.index.rescore != "none"
        results.append(evaluate(built.index, dataset, truth, runs=runs, **search_options if rescores else {}))
    return MethodResult(name, built.bytes, results, built.config)


@dataclass(frozen=True, eq=False)
class Built:
    """A filled index, its bytes a vector (codes, and what rescoring keeps besides), and its settings."""

    index: Searchable
    bytes: tuple[int, int]
    config: dict[str, Any]


def build(name: str, dataset: Dataset, metric: int, *, train_queries: bool = False, seed: int = 0) -> Built:
    """Build the method ``name`` on the corpus of ``dataset``, held in memory.

    With ``train_queries`` the fit is given the data set's unlabelled queries. Raises ValueError for an unknown name.
    """
    if _is_of_faiss(name):
        x = dataset.corpus.read()
        index, config = _trained(name, x, metric)
        index.add(x)
        if isinstance(index, faiss.IndexRefine):
            return Built(index, (_code_size(index.base_index), _code_size(index.refine_index)), config)
        return Built(index, (_code_size(index), 0), config)
    if train_queries and dataset.train_queries is None:
        raise ValueError("the data set has no train_queries.npy")
    queries = dataset.train_queries if train_queries else None
    quantizer, rescore = _fitted(name, dataset.corpus, metric, queries, seed)
    index = QamaIndex(quantizer, rescore)
    for chunk in dataset.corpus.chunks():
        index.add(chunk)
    return Built(index, index.bytes_per_vector, dict(quantizer.config))


@dataclass(frozen=True, eq=False)
class Codec:
    """What a method makes of vectors: ``features(x)`` (n, m) float32, and the bytes a vector that hold them.

    Decoded vectors; or of methods that rank by Hamming distance their bits as -1 and 1 over the root of their number,
    whose inner products are 1 - 2 * distance / bits and whose lengths are 1, as embeddings' are.
    """

    features: Callable[[Floats], Floats]
    bytes: int
    config: dict[str, Any]


def codec(name: str, corpus: Corpus, *, seed: int = 0) -> Codec:
    """Fit the method ``name`` to ``corpus``. Raises ValueError for an unknown name, and for one that keeps floats."""
    metric = faiss.METRIC_L2  # under which both sides are cut alike, and which every FAISS index knows
    if _is_of_faiss(name):
        index, config = _trained(name, corpus.read(), metric)
        try:
            size = int(index.sa_code_size())
        except RuntimeError:
            raise ValueError(f"{name}: only codes are measured here, and this index has none of its own") from None
        return Codec(lambda x: _recoded(index, x), size, config)
    quantizer, rescore = _fitted(name, corpus, metric, None, seed)
    if rescore not in ("none", "codes"):
        raise ValueError(f"method {name!r}: only codes are measured here, +none or +codes; got +{rescore}")

    def signs(x: Floats) -> Floats:
        bits = bit_packing.unpack(quantizer.encode(x), quantizer.layout)
        out: Floats = (bits * np.float32(2) - 1) / np.float32(np.sqrt(bits.shape[1]))
        return out

    size, residual = code_bytes(DEFAULT, quantizer.layout), quantizer.layout.residual
    if rescore == "none":
        return Codec(signs, size, dict(quantizer.config))
    size += 0 if residual is None else code_bytes(DEFAULT, residual)
    return Codec(quantizer.encode_decode, size, dict(quantizer.config))


def _fitted(name: str, corpus: Corpus, metric: int, queries: Corpus | None, seed: int) -> tuple[Quantizer, str]:
    """Return the quantizer of a method that ``fit`` fits, and what rescores."""
    from faiss_qama.training import FitConfig, fit  # here, because run time does not depend on training

    method, _, rescore = name.rpartition("+")
    if rescore not in RESCORE_KINDS:  # then it belongs to a layout with a residual
        method, rescore = name, ""
    if method in METHODS:
        settings, default = METHODS[method]
        config = FitConfig(**settings, seed=seed)
    else:
        try:
            config, default = FitConfig(layout=str(CodeLayout.parse(method)), seed=seed), "codes"
        except ValueError:
            known = ", ".join([*METHODS, *SCALAR])
            raise ValueError(
                f"unknown method {name!r}; there are {known}, layouts such as 2x192, and faiss:FACTORY; "
                f"what rescores is one of +{', +'.join(RESCORE_KINDS)}"
            ) from None
    return fit(corpus, config=config, metric=metric, queries=queries), rescore or default


def _is_of_faiss(name: str) -> bool:
    return name.startswith("faiss:") or name in SCALAR


def _trained(name: str, x: Floats, metric: int) -> tuple[faiss.Index, dict[str, Any]]:
    """Return a FAISS index trained on ``x``, and its settings."""
    if name in SCALAR:
        index = _scalar(x, metric, rotated=name == "rotated-scalar")
        index.train(x)
        return index, {"rotated": name == "rotated-scalar"}
    factory, _, parameters = name.removeprefix("faiss:").partition(";")
    try:
        index = faiss.index_factory(x.shape[1], factory, metric)
        index.train(x)
        if parameters:
            faiss.ParameterSpace().set_index_parameters(index, parameters)
    except RuntimeError as error:
        raise ValueError(f"{name}: {str(error).splitlines()[-1].strip()}") from None
    return index, {"factory": factory, "parameters": parameters}


def _recoded(index: faiss.Index, x: Floats) -> Floats:
    """Return what ``index`` keeps of ``x``."""
    try:
        out: Floats = index.sa_decode(index.sa_encode(x))
    except RuntimeError:  # fast scans encode only what they hold
        index.reset()
        index.add(x)
        out = index.reconstruct_n(0, len(x))
    return out


def _code_size(index: faiss.Index) -> int:
    """Return bytes a vector: the code's, or a share of the whole index where there is no such thing (graphs)."""
    try:
        return int(index.sa_code_size())
    except RuntimeError:
        return int(len(faiss.serialize_index(index)) / index.ntotal)


def _scalar(x: Floats, metric: int, *, rotated: bool) -> faiss.Index:
    """8 bits between each component's smallest and largest value, as sentence-transformers' int8; after SVD or not."""
    d = x.shape[1]
    index = faiss.IndexScalarQuantizer(d, faiss.ScalarQuantizer.QT_8bit, metric)
    if rotated:
        rotation = faiss.LinearTransform(d, d, False)  # orthogonal and not centred, so it changes no inner product
        directions = np.linalg.eigh(x.T.astype(np.float64) @ x)[1].T.astype(np.float32)
        faiss.copy_array_to_vector(directions.ravel(), rotation.A)
        rotation.is_trained = rotation.is_orthonormal = True
        index = faiss.IndexPreTransform(rotation, index)
    return index
