"""What is compared: ways to search the same vectors, each with its bytes in full and the settings it can be run at."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np

from faiss_qama import QamaIndex
from faiss_qama.arrays import Floats, Ids
from faiss_qama.training import FitConfig, fit

K = 10
SAMPLE = 100_000  # vectors that peers are trained on
OPQ_ROUNDS, OPQ_SAMPLE = 15, 20_000  # its own 50 rounds of 65,536 vectors take more than ten minutes
NPROBE = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384)
CANDIDATES = (2, 3, 4, 5, 6, 8, 10, 12, 16, 24)
EF = (10, 16, 24, 32, 48, 64, 96, 128, 192, 256)


@dataclass(frozen=True)
class Arrangement:
    """A filled index.

    Parameters
    ----------
    name : what makes it
    ram : bytes a vector that must lie in memory: codes, ids, links, lists, what is shared by all vectors
    disk : bytes a vector of what only rescores, a memory map of which would do
    settings : to try
    search : the ids (nq, K) found for queries with one of them
    ours : whether it is one of ours
    """

    name: str
    ram: float
    disk: float
    settings: list[dict[str, Any]]
    search: Callable[[Floats, dict[str, Any]], Ids]
    ours: bool = False


def sample(x: Floats) -> Floats:
    """Return what a peer is trained on."""
    return x[np.random.default_rng(0).choice(len(x), min(len(x), SAMPLE), replace=False)]


def grid(**values: Any) -> list[dict[str, Any]]:
    """Return every combination of settings, by name, those of the first name from small to large."""
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def of_faiss(x: Floats, factory: str, refine: str | None) -> Arrangement:
    """Return a FAISS index; ``refine``, ``Flat`` or ``SQfp16``, is what its candidates are scored with again.

    On vectors of unit length L2 distances rank as inner products do, and survive the centring of a PCA.
    """
    index = faiss.index_factory(x.shape[1], factory + (f",Refine({refine})" if refine else ""), faiss.METRIC_L2)
    if factory.startswith("OPQ"):
        rotation = faiss.downcast_VectorTransform(faiss.downcast_index(index.base_index).chain.at(0))
        rotation.niter, rotation.max_train_points = OPQ_ROUNDS, OPQ_SAMPLE
    index.train(sample(x))
    index.add(x)
    base = faiss.downcast_index(index.base_index) if refine else index
    inner, wrapped = base, isinstance(base, faiss.IndexPreTransform)
    if wrapped:
        inner = faiss.downcast_index(base.index)
    values: dict[str, Any] = {}
    if hasattr(inner, "nprobe"):
        values["nprobe"] = tuple(n for n in NPROBE if n <= inner.nlist)
    if hasattr(inner, "hnsw"):
        values["efSearch"] = EF
    if refine:
        values["k_factor"] = CANDIDATES

    def search(xq: Floats, settings: dict[str, Any]) -> Ids:
        return np.asarray(index.search(xq, K, params=_parameters(settings, wrapped))[1])

    held = faiss.serialize_index(base).nbytes / len(x)
    return Arrangement(
        factory + (f",Refine({refine})" if refine else ""),
        held,
        {"Flat": 4.0, "SQfp16": 2.0, None: 0.0}[refine] * x.shape[1],
        grid(**values) or [{}],
        search,
    )


def _parameters(settings: dict[str, Any], wrapped: bool) -> Any:
    """Return FAISS's search parameters; ``wrapped`` is whether the lists or the graph lie behind a transform."""
    parameters = None
    if "nprobe" in settings:
        parameters = faiss.SearchParametersIVF(nprobe=settings["nprobe"])
    if "efSearch" in settings:
        parameters = faiss.SearchParametersHNSW(efSearch=settings["efSearch"])
    if parameters is not None and wrapped:
        parameters = faiss.SearchParametersPreTransform(index_params=parameters)
    if "k_factor" not in settings:
        return parameters
    refined = {} if parameters is None else {"base_index_params": parameters}
    return faiss.IndexRefineSearchParameters(k_factor=settings["k_factor"], **refined)


def of_ours(x: Floats, layout: str, base: str, rescore: str = "fp16") -> Arrangement:
    """Return an index of ours."""
    quantizer = fit(x, config=FitConfig(layout=layout), metric=faiss.METRIC_INNER_PRODUCT)
    index = QamaIndex(quantizer, rescore, base=base)
    if not index.is_trained:
        index.train(sample(x))
    index.add(x)
    lists = base.rpartition("IVF")[2]
    values: dict[str, Any] = {"nprobe": tuple(n for n in NPROBE if n <= int(lists))} if lists.isdigit() else {}
    values["oversample"] = CANDIDATES

    def search(xq: Floats, settings: dict[str, Any]) -> Ids:
        return index.search(xq, K, **settings)[1]

    codes, kept = index.bytes_per_vector
    shared = sum(array.nbytes for array in quantizer.to_state()[0].values()) / len(x)
    return Arrangement(f"{index.factory_string}", codes + shared, kept, grid(**values), search, ours=True)
