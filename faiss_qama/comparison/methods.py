"""Methods by name: fitted, filled with the corpus of a data set, and measured.

A name is one of these:

- a key of ``METHODS``, or ``scalar`` or ``rotated-scalar``;
- a layout such as ``2x192``, ``2x96,1x192`` or ``2x128+2x224``;
- ``faiss:FACTORY``, with search parameters after a semicolon, such as
  ``faiss:IVF256,PQ48x4fs,Refine(SQfp16);nprobe=16,k_factor_rf=10``.

A method that :func:`~faiss_qama.training.fit` fits takes a suffix for the second stage: ``+none``, ``+codes``,
``+sq8``, ``+fp16`` or ``+fp32``.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from faiss_qama.arrays import Floats
from faiss_qama.corpus import Corpus
from faiss_qama.evaluation.datasets import Dataset
from faiss_qama.evaluation.recall import TIMED_RUNS, Searchable, Truth, evaluate, exact
from faiss_qama.evaluation.results import MethodResult
from faiss_qama.formats.faiss_vectors import parts_of
from faiss_qama.hamming.factory import DEFAULT, code_bytes
from faiss_qama.index.qama_index import QamaIndex
from faiss_qama.quantizer import bit_packing
from faiss_qama.quantizer.layout import CodeLayout
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.rescore.factory import RESCORE_KINDS

_PARAMETER = re.compile(r"\w+=\d+|k_factor\w*=\d+\.\d+", re.ASCII)  # FAISS takes 16x for 16
_RAW = {"projection": "none", "rotation": "none"}
_SVD = {"projection": "pca", "rotation": "none", "center": False}

# Settings of the fit, and the second stage. The binary and ternary methods rank by Hamming distance, as published; the
# methods of this package re-rank from their codes.
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
QUERY_BITS = 8  # of RaBitQ: as good as the float query and many times as fast; FAISS's default of 4 finds less
MIN_TO_TRAIN_PQ = 1000  # vectors for 16 centroids; FAISS takes minutes to train 256 of the same total size


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
    """Fit and measure a method.

    Parameters
    ----------
    name : str
        The method, see :mod:`faiss_qama.comparison.methods`.
    dataset : Dataset
        The documents it is fitted to and filled with, and the queries.
    truth : Truth
        The exact neighbours of the queries.
    train_queries : bool
        Whether the fit is given the unlabelled queries of the data set.
    seeds : int
        Fits to average over, with the seeds 0, 1, ...
    runs : int
        Searches to time; their median is the speed.
    **search_options : Any
        Passed to the search of a :class:`~faiss_qama.QamaIndex` that re-ranks.

    Returns
    -------
    MethodResult
        One result per fit.

    Raises
    ------
    ValueError
        If the name is unknown, or ``train_queries`` is set and the data set has none.
    """
    results = []
    for seed in range(seeds):
        built = build(name, dataset, truth.metric, train_queries=train_queries, seed=seed)
        rescores = isinstance(built.index, QamaIndex) and built.index.rescore != "none"
        results.append(evaluate(built.index, dataset, truth, runs=runs, **search_options if rescores else {}))
    return MethodResult(name, built.bytes, results, built.config)


def measure_alternatives(dataset: Dataset, k: int, metric: int) -> list[MethodResult]:
    """Measure codes that a user might take instead: sign bits, int8, RaBitQ and a product quantizer.

    Parameters
    ----------
    dataset : Dataset
        The documents and the queries.
    k : int
        Neighbours per query.
    metric : int
        ``faiss.METRIC_INNER_PRODUCT`` or ``faiss.METRIC_L2``.

    Returns
    -------
    list of MethodResult
        One for each method. Small corpora have no product quantizer.
    """
    n, d = dataset.corpus.shape
    names = ["binary", "binary+codes", "scalar", f"faiss:RR{d},RaBitQ"]
    if d % 4 == 0 and n >= MIN_TO_TRAIN_PQ:
        names.append(f"faiss:PQ{d // 4}x4np")  # np: without the tables that only polysemous search needs
    truth = exact(dataset, k, metric)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # the trainings of a PQ are so small that threads would mostly wait for each other
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fitted on")  # the fit of the corpus has said so already
            return [measure(name, dataset, truth, runs=1) for name in names]
    finally:
        faiss.omp_set_num_threads(threads)


def shared_bytes(quantizer: Quantizer) -> int:
    """Return the bytes of a quantizer, which all vectors of an index share.

    Parameters
    ----------
    quantizer : Quantizer
        The quantizer.

    Returns
    -------
    int
        The bytes of its arrays: matrices, thresholds, decoder and calibration.
    """
    return sum(array.nbytes for array in quantizer.to_state()[0].values())


@dataclass(frozen=True, eq=False)
class Built:
    """A filled index.

    Parameters
    ----------
    index : Searchable
        The index; ids are rows of the corpus.
    bytes : tuple of int
        Bytes per vector of the codes, and of the data kept to re-rank with.
    config : dict
        The settings of the method.
    """

    index: Searchable
    bytes: tuple[int, int]
    config: dict[str, Any]


def build(name: str, dataset: Dataset, metric: int, *, train_queries: bool = False, seed: int = 0) -> Built:
    """Fit a method to the corpus of a data set and fill an index with it, in memory.

    Parameters
    ----------
    name : str
        The method, see :mod:`faiss_qama.comparison.methods`.
    dataset : Dataset
        The documents.
    metric : int
        ``faiss.METRIC_INNER_PRODUCT`` or ``faiss.METRIC_L2``.
    train_queries : bool
        Whether the fit is given the unlabelled queries of the data set.
    seed : int
        The seed of the fit. Methods of FAISS have their own.

    Returns
    -------
    Built
        The index, its bytes and its settings.

    Raises
    ------
    ValueError
        If the name is unknown, or ``train_queries`` is set and the data set has none.
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
    return Built(index, index.bytes_per_vector, quantizer.fit_record.to_dict())


@dataclass(frozen=True, eq=False)
class Codec:
    """A fitted method without an index: vectors in, the vectors that its codes stand for out.

    Parameters
    ----------
    features : callable
        Takes vectors (n, d) float32 and returns (n, m) float32: decoded vectors, or the bits of methods that rank by
        Hamming distance. Bits are -1 and 1 over the root of their number, so that their norm is 1 and their inner
        products are 1 - 2 * distance / bits.
    bytes : int
        Bytes per vector of the codes.
    config : dict
        The settings of the method.
    """

    features: Callable[[Floats], Floats]
    bytes: int
    config: dict[str, Any]


def codec(name: str, corpus: Corpus, *, seed: int = 0) -> Codec:
    """Fit a method to a corpus, to encode and decode vectors with.

    Parameters
    ----------
    name : str
        The method, see :mod:`faiss_qama.comparison.methods`.
    corpus : Corpus
        The vectors to fit to.
    seed : int
        The seed of the fit. Methods of FAISS have their own.

    Returns
    -------
    Codec
        The fitted method.

    Raises
    ------
    ValueError
        If the name is unknown, the method keeps floats, or FAISS decodes less than it encodes.
    """
    metric = faiss.METRIC_L2  # documents and queries get the same thresholds, and every FAISS index supports it
    if _is_of_faiss(name):
        index, config = _trained(name, corpus.read(), metric)
        bits = max(part.rabitq.nb_bits if hasattr(part, "rabitq") else 1 for part in parts_of(index))
        if bits > 1:
            raise ValueError(f"{name}: FAISS decodes 1 of its {bits} bits per component, so only RaBitQ has a codec")
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
        return Codec(signs, size, quantizer.fit_record.to_dict())
    size += 0 if residual is None else code_bytes(DEFAULT, residual)
    return Codec(quantizer.encode_decode, size, quantizer.fit_record.to_dict())


def _fitted(name: str, corpus: Corpus, metric: int, queries: Corpus | None, seed: int) -> tuple[Quantizer, str]:
    """Return the quantizer of a method that ``fit`` fits, and its second stage."""
    from faiss_qama.training import FitConfig, fit  # here, because searching must not import training

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
                f"the second stage is one of +{', +'.join(RESCORE_KINDS)}"
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
    factory, semicolon, parameters = name.removeprefix("faiss:").partition(";")
    if "" in factory.split(","):  # FAISS takes HNSW16, for HNSW16
        raise ValueError(f"{name}: a part of the factory string is empty")
    for part in parameters.split(",") if semicolon else ():
        if not _PARAMETER.fullmatch(part):
            raise ValueError(f"{name}: {part!r} is not NAME=NUMBER; numbers are whole, except for k_factor")
    try:
        index = faiss.index_factory(x.shape[1], factory, metric)
        index.train(x)
        for part in parts_of(index):
            if hasattr(part, "qb"):
                part.qb = QUERY_BITS
        if parameters:
            faiss.ParameterSpace().set_index_parameters(index, parameters)
    except RuntimeError as error:
        raise ValueError(f"{name}: {str(error).splitlines()[-1].strip()}") from None
    if index.metric_type != metric:  # HNSW16_PQ48 is of L2 whatever was asked for
        raise ValueError(f"{name}: FAISS makes it for another metric than the one asked for")
    return index, {"factory": factory, "parameters": parameters}


def _recoded(index: faiss.Index, x: Floats) -> Floats:
    """Return the vectors that ``index`` stores for ``x``."""
    try:
        out: Floats = index.sa_decode(index.sa_encode(x))
    except RuntimeError:  # fast scans encode only what they hold
        index.reset()
        index.add(x)
        out = index.reconstruct_n(0, len(x))
    return out


def _code_size(index: faiss.Index) -> int:
    """Return bytes per vector: of the code, or a share of the whole index where it has no code of its own (graphs)."""
    try:
        return int(index.sa_code_size())
    except RuntimeError:
        return int(len(faiss.serialize_index(index)) / index.ntotal)


def _scalar(x: Floats, metric: int, *, rotated: bool) -> faiss.Index:
    """Return an index of 8 bits between the smallest and the largest value of each component, after SVD or not.

    Without rotation it is the int8 of sentence-transformers.
    """
    d = x.shape[1]
    index = faiss.IndexScalarQuantizer(d, faiss.ScalarQuantizer.QT_8bit, metric)
    if rotated:
        rotation = faiss.LinearTransform(d, d, False)  # orthogonal and not centred: inner products stay
        directions = np.linalg.eigh(x.T.astype(np.float64) @ x)[1].T.astype(np.float32)
        faiss.copy_array_to_vector(directions.ravel(), rotation.A)
        rotation.is_trained = rotation.is_orthonormal = True
        index = faiss.IndexPreTransform(rotation, index)
    return index
