"""The methods we compare with, by name, each built on a data set's corpus.

Names are: those in ``METHODS``; any layout such as ``2x192`` or ``2x96,1x192``; and ``faiss:FACTORY``, with search
parameters after a semicolon (``faiss:IVF256,PQ48x4fs,Refine(SQfp16);nprobe=16,k_factor_rf=10``). A suffix ``+none``,
``+codes``, ``+sq8``, ``+fp16`` or ``+fp32`` to a method that :func:`~faiss_qama.training.fit` fits says what rescores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from faiss_qama.codes import Floats
from faiss_qama.evaluation import Dataset, Measured, Searchable, Truth, evaluate
from faiss_qama.index import QamaIndex
from faiss_qama.layout import CodeLayout
from faiss_qama.rescore import STORES

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
    **search_options: float,
) -> Measured:
    """Build the method ``name`` once a seed and measure each; ``search_options`` go to indexes of ours that rescore."""
    results = []
    for seed in range(seeds):
        built = build(name, dataset, truth.metric, train_queries=train_queries, seed=seed)
        rescores = isinstance(built.index, QamaIndex) and built.index.rescore != "none"
        results.append(evaluate(built.index, dataset, truth, **search_options if rescores else {}))
    return Measured(name, built.bytes, results, built.config)


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
    if name.startswith("faiss:"):
        return _build_faiss(name.removeprefix("faiss:"), dataset, metric)
    if name in SCALAR:
        return _build_scalar(dataset, metric, rotated=name == "rotated-scalar")
    from faiss_qama.training import FitConfig, fit  # here, because run time does not depend on training

    method, _, rescore = name.partition("+")
    if method in METHODS:
        settings, default = METHODS[method]
        config = FitConfig(**settings, seed=seed)
    else:
        try:
            config, default = FitConfig(layout=str(CodeLayout.parse(method)), seed=seed), "codes"
        except ValueError:
            known = ", ".join([*METHODS, *SCALAR])
            raise ValueError(
                f"unknown method {name!r}; there are {known}, layouts such as 2x192, and faiss:FACTORY"
            ) from None
    if rescore and rescore not in STORES:
        raise ValueError(f"method {name!r}: rescoring is one of {', '.join(STORES)}; got {rescore!r}")
    if train_queries and dataset.train_queries is None:
        raise ValueError("the data set has no train_queries.npy")
    quantizer = fit(
        dataset.corpus, config=config, metric=metric, queries=dataset.train_queries if train_queries else None
    )
    index = QamaIndex(quantizer, rescore or default)
    for chunk in dataset.corpus.chunks():
        index.add(chunk)
    return Built(index, index.bytes_per_vector, dict(quantizer.config))


def _build_faiss(text: str, dataset: Dataset, metric: int) -> Built:
    factory, _, parameters = text.partition(";")
    x = _whole(dataset)
    try:
        index = faiss.index_factory(x.shape[1], factory, metric)
        index.train(x)
        index.add(x)
        if parameters:
            faiss.ParameterSpace().set_index_parameters(index, parameters)
    except RuntimeError as error:
        raise ValueError(f"faiss:{text}: {str(error).splitlines()[-1].strip()}") from None
    if isinstance(index, faiss.IndexRefine):
        size = _code_size(index.base_index), _code_size(index.refine_index)
    else:
        size = _code_size(index), 0
    return Built(index, size, {"factory": factory, "parameters": parameters})


def _code_size(index: faiss.Index) -> int:
    """Return bytes a vector: the code's, or a share of the whole index where there is no such thing (graphs)."""
    try:
        return int(index.sa_code_size())
    except RuntimeError:
        return int(len(faiss.serialize_index(index)) / index.ntotal)


def _build_scalar(dataset: Dataset, metric: int, *, rotated: bool) -> Built:
    """8 bits between each component's smallest and largest value, as sentence-transformers' int8; after SVD or not."""
    x = _whole(dataset)
    d = x.shape[1]
    index = faiss.IndexScalarQuantizer(d, faiss.ScalarQuantizer.QT_8bit, metric)
    if rotated:
        rotation = faiss.LinearTransform(d, d, False)  # orthogonal and not centred, so it changes no inner product
        directions = np.linalg.eigh(x.T.astype(np.float64) @ x)[1].T.astype(np.float32)
        faiss.copy_array_to_vector(directions.ravel(), rotation.A)
        rotation.is_trained = True
        index = faiss.IndexPreTransform(rotation, index)
    index.train(x)
    index.add(x)
    return Built(index, (d, 0), {"rotated": rotated})


def _whole(dataset: Dataset) -> Floats:
    return np.concatenate(list(dataset.corpus.chunks()))
