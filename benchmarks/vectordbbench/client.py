"""The client: rows are appended to files, ``optimize`` indexes them, and every process maps the same index."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from vectordb_bench.backend.clients.api import MetricType, VectorDB
from vectordb_bench.backend.filter import Filter, FilterOp

from faiss_qama import QamaIndex
from faiss_qama.corpus import Corpus
from faiss_qama.index.build import build_index
from faiss_qama.index_spec import IndexSpec
from faiss_qama.training import FitConfig, fit

from .config import FaissQamaIndexConfig

INDEX, VECTORS, ROWS = "index.qama", "vectors.f32", "rows.bin"
METRICS = {  # the index normalises for the cosine, so VectorDBBench need not
    MetricType.COSINE: "cosine",
    MetricType.IP: faiss.METRIC_INNER_PRODUCT,
    MetricType.DP: faiss.METRIC_INNER_PRODUCT,
    MetricType.L2: faiss.METRIC_L2,
}
ROW = np.dtype([("id", np.int64), ("label", "S32")])


class FaissQama(VectorDB):  # type: ignore[misc]
    """A folder with the inserted rows, and a bundle of them. Between ``init`` calls the object holds only its path.

    Parameters
    ----------
    dim : int
        Dimension of the vectors.
    db_config : dict
        ``path``, a folder.
    db_case_config : FaissQamaIndexConfig
        How the index is built and searched.
    drop_old : bool
        Remove what an earlier run left in the folder.
    **kwargs
        What means nothing here: a name of the collection, and whether rows have labels.
    """

    name = "faiss-qama"
    thread_safe = False  # each insertion appends to two files
    supported_filter_types = [FilterOp.NonFilter, FilterOp.NumGE, FilterOp.StrEqual]
    _index: Any = None
    _rows: Any = None
    _selector: Any = None

    def __init__(
        self,
        dim: int,
        db_config: dict[str, Any],
        db_case_config: FaissQamaIndexConfig,
        drop_old: bool = False,
        **kwargs: Any,
    ) -> None:
        self.dim, self.path, self.config = dim, Path(db_config["path"]), db_case_config
        self.path.mkdir(parents=True, exist_ok=True)
        if drop_old:
            shutil.rmtree(self.path / INDEX, ignore_errors=True)
            for name in (VECTORS, ROWS):
                (self.path / name).unlink(missing_ok=True)

    def __getstate__(self) -> dict[str, Any]:
        return {"dim": self.dim, "path": self.path, "config": self.config}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        with self.init():  # in a new process this takes seconds, and later on the clock of the runners ticks
            pass

    @contextmanager
    def init(self) -> Iterator[None]:
        """Map the index, if it is built, to search it with one thread: the processes share the cores."""
        if (self.path / INDEX).exists():
            faiss.omp_set_num_threads(1)
            self._index = QamaIndex.load(self.path / INDEX, mmap=True)
            self._rows = np.memmap(self.path / ROWS, ROW, "r")
            self.search_embedding([0.0] * self.dim)  # loads the kernels, which is not to be timed
        try:
            yield
        finally:
            self._index = self._rows = self._selector = None

    def insert_embeddings(
        self, embeddings: Sequence[Any], metadata: list[int], labels_data: list[str] | None = None, **kwargs: Any
    ) -> tuple[int, Exception | None]:
        """Append vectors (n, d), their ids and labels; return n and no error.

        Raises ValueError for a label longer than 32 bytes. Nothing is appended then.
        """
        labels = [label.encode() for label in labels_data or [""] * len(metadata)]
        longest = max(labels, key=len, default=b"")
        if len(longest) > ROW["label"].itemsize:
            raise ValueError(
                f"labels of at most {ROW['label'].itemsize} bytes are kept; {longest.decode()!r} has {len(longest)}"
            )
        rows = np.empty(len(metadata), ROW)
        rows["id"], rows["label"] = metadata, labels
        for name, values in ((VECTORS, np.asarray(embeddings, dtype=np.float32)), (ROWS, rows)):
            with open(self.path / name, "ab") as file:
                file.write(values.tobytes())
        return len(metadata), None

    def optimize(self, data_size: int | None = None) -> None:
        """Fit codes to the vectors, and write the index."""
        x = np.memmap(self.path / VECTORS, np.float32, "r").reshape(-1, self.dim)
        settings, spec = self.config, IndexSpec(base=self.config.base, rescore=self.config.rescore)
        quantizer = fit(x, config=FitConfig(bytes=settings.bytes), metric=METRICS[settings.metric_type])
        build_index(self.path / INDEX, quantizer, Corpus(x), spec)

    def prepare_filter(self, filters: Filter) -> None:
        """Let searches find only rows of at least an id, or of a label."""
        if filters.type == FilterOp.NonFilter:
            self._selector = None
            return
        if filters.type == FilterOp.NumGE:
            passed = self._rows["id"] >= filters.int_value
        else:
            passed = self._rows["label"] == filters.label_value.encode()
        self._selector = faiss.IDSelectorBatch(np.flatnonzero(passed))

    def search_embedding(self, query: list[float], k: int = 100, **kwargs: Any) -> list[int]:
        """Return the ids of the ``k`` nearest rows, best first."""
        xq = np.asarray([query], dtype=np.float32)
        rows = self._index.search(xq, k, sel=self._selector, **self.config.search_param())[1][0]
        return self._rows["id"][rows[rows >= 0]].tolist()
