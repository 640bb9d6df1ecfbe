"""Intel's SVS: Vamana graphs."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import click
import faiss
import numpy as np
import svs
from common import K

from faiss_qama.arrays import Floats, Ids
from peers.peer import Index, Peer, Settings, file_sizes, grid, sample

WINDOWS = (10, 16, 24, 32, 48, 64, 96, 128, 192)


def whole_searches(x: Floats, folder: Path) -> Iterator[Peer]:
    """Yield graphs over LVQ codes, which end the process on other processors than Intel's; there over plain numbers."""
    if "GenuineIntel" in Path("/proc/cpuinfo").read_text():
        for primary, residual in ((8, 0), (4, 8)):
            name = f"LVQ{primary}" + (f"x{residual}" if residual else "")
            yield Peer("SVS", f"SVS Vamana64,{name}", partial(_lvq, x, primary, residual, folder))
        return
    click.echo("svs: LVQ needs a processor of Intel's; vectors are kept as int8 and float16 instead", err=True)
    scale = 127 / np.quantile(np.abs(sample(x)), 0.9999)

    def rounded(x: Floats) -> Any:
        return np.clip(np.rint(x * scale), -127, 127).astype(np.int8)

    yield Peer("SVS", "SVS Vamana64,int8", lambda: _graph(len(x), rounded(x), rounded, folder))
    yield Peer("SVS", "SVS Vamana64,float16", lambda: _graph(len(x), x.astype(np.float16), np.asarray, folder))


def _lvq(x: Floats, primary: int, residual: int, folder: Path) -> Index:
    with tempfile.TemporaryDirectory(dir=folder) as name:
        file = f"{name}/x.fvecs"
        svs.write_vecs(x, file)
        loader = svs.VectorDataLoader(file, svs.DataType.float32, dims=x.shape[1])
        data = svs.LVQLoader(loader, primary=primary, residual=residual, padding=32)
        return _graph(len(x), data, np.asarray, folder)


def _graph(n: int, data: Any, encode: Callable[[Floats], Any], folder: Path) -> Index:
    parameters = svs.VamanaBuildParameters(alpha=0.95, graph_max_degree=64, window_size=128)
    index = svs.Vamana.build(parameters, data, svs.MIP, num_threads=faiss.omp_get_max_threads())

    def search(xq: Floats, settings: Settings) -> Ids:
        index.num_threads = faiss.omp_get_max_threads()
        index.search_window_size = settings["window"]
        return np.asarray(index.search(encode(xq), K)[0], dtype=np.int64)

    # All it saves: vectors, and 64 links and their number for each, of 4 bytes each, which it holds alike.
    memory = sum(file_sizes(folder, index.save, "config", "graph", "data").values()) / n
    return Index(search, memory, settings=grid(window=WINDOWS))
