"""Settings of the client."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from vectordb_bench.backend.clients.api import DBCaseConfig, DBConfig, MetricType


class FaissQamaConfig(DBConfig):  # type: ignore[misc]
    """Where the index lies.

    Parameters
    ----------
    path : str
        A folder, which is made.
    """

    path: str

    def to_dict(self) -> dict[str, Any]:
        """Return what the client takes as ``db_config``."""
        return {"path": self.path}


class FaissQamaIndexConfig(BaseModel, DBCaseConfig):  # type: ignore[misc]
    """How the index is built and searched.

    Parameters
    ----------
    metric_type : MetricType
        ``COSINE``, ``IP``, ``DP`` or ``L2``; VectorDBBench sets that of the data set.
    base, rescore : str
        Stages, as in :class:`faiss_qama.QamaIndex`.
    bytes : int, optional
        Bytes per vector of the codes.
    oversample : float, optional
        Candidates per neighbour; by default as many as recall 0.95 needs.
    nprobe : int, optional
        Lists to search; by default as many as the build measured to be needed.
    """

    metric_type: MetricType = MetricType.COSINE
    base: str = "Flat"
    rescore: str = "fp16"
    bytes: int | None = None
    oversample: float | None = None
    nprobe: int | None = None

    def index_param(self) -> dict[str, Any]:
        """Return the settings of a build."""
        return {"base": self.base, "rescore": self.rescore, "bytes": self.bytes}

    def search_param(self) -> dict[str, Any]:
        """Return the options of a search."""
        given = {"oversample": self.oversample, "nprobe": self.nprobe}
        return {name: value for name, value in given.items() if value is not None}
