"""What a peer is, and what several of them need: settings to try, sign bits, projections, sizes of files."""

from __future__ import annotations

import importlib
import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import faiss
import numpy as np
from common import K

from faiss_qama.arrays import Codes, Floats, Ids

Settings = dict[str, Any]

TRAINING = 100_000  # vectors that indexes for whole searches are trained on
NPROBE = (2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384)
CANDIDATES = (2, 3, 4, 5, 6, 8, 10, 12, 16, 24)  # times K
RESCORED = 30  # times K: sign bits that sentence-transformers scores with the float query at equal bytes
LISTS = 2  # of other libraries and of binary indexes, times the square root of the number of vectors
DEGREE, EF_CONSTRUCTION = 16, 128  # of graphs over sign bits
BEAMS = (0.5, 1, 2, 4)  # what the search of such a graph keeps, times the candidates


@dataclass(frozen=True)
class Index:
    """A filled index.

    Parameters
    ----------
    search : callable
        Takes queries, float32 of shape (nq, d), and one of ``settings``. Returns the ids of the K nearest vectors,
        int64 of shape (nq, K), the nearest first.
    memory : float
        Bytes per vector that must lie in memory: codes, ids, links and lists.
    shared : float
        Bytes of what all vectors share, such as a rotation, divided by their number, unless ``memory`` counts them.
    disk : float
        Bytes per vector of what only re-ranks, for which a memory map would do.
    settings : list of dict
        What can be tried, the values of the first name from small to large.
    """

    search: Callable[[Floats, Settings], Ids]
    memory: float
    shared: float = 0.0
    disk: float = 0.0
    settings: list[Settings] = field(default_factory=lambda: [{}])


@dataclass(frozen=True)
class Peer:
    """A way to search vectors.

    Parameters
    ----------
    family : str
        The library or the kind of code; ``ours`` is what this project makes.
    name : str
        What tells it from others of its family.
    build : callable
        Returns the filled index.
    """

    family: str
    name: str
    build: Callable[[], Index]


@dataclass(frozen=True)
class Projection:
    """Vectors of fewer or of rotated components.

    Parameters
    ----------
    documents : ndarray of shape (n, width), float32
        The documents.
    queries : callable
        Takes queries of shape (nq, d), and returns them with shape (nq, width).
    shared : float
        Bytes of the matrix, divided by the number of documents.
    """

    documents: Floats
    queries: Callable[[Floats], Floats]
    shared: float


def importable(names: tuple[str, ...]) -> Iterator[ModuleType]:
    """Yield the modules of this folder whose libraries are installed, and say which are left out."""
    for name in names:
        try:
            yield importlib.import_module(f"peers.{name}")
        except ImportError as error:
            click.echo(f"{name} is left out: {error}", err=True)


def sample(x: Floats) -> Floats:
    """Return what an index for whole searches is trained on."""
    return x[np.random.default_rng(0).choice(len(x), min(len(x), TRAINING), replace=False)]


def grid(**values: Any) -> list[Settings]:
    """Return every combination of settings, by name, those of the first name from small to large."""
    return [dict(zip(values, chosen, strict=True)) for chosen in itertools.product(*values.values())]


def probes(lists: int) -> tuple[int, ...]:
    """Return the numbers of lists to visit that can be tried."""
    return tuple(n for n in NPROBE if n <= lists)


def file_sizes(folder: Path, save: Callable[..., Any], *parts: str) -> dict[str, int]:
    """Return the bytes of each file that ``save`` writes, given the paths of these parts of a new folder."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        save(*(f"{name}/{part}" for part in parts))
        files = [path for path in Path(name).rglob("*") if path.is_file()]
        return {str(path.relative_to(name)): path.stat().st_size for path in files}


def signs(x: Floats) -> Codes:
    """Return the sign bits of vectors, uint8 of shape (n, d / 8)."""
    return np.packbits(x > 0, axis=1)


def reranked(x: Floats, xq: Floats, found: Ids) -> Ids:
    """Return the K best of the candidates ``found`` (nq, n) by exact inner products; -1 is none."""
    found = np.ascontiguousarray(found, dtype=np.int64)
    scores = np.empty(found.shape, dtype=np.float32)
    pointers = [faiss.swig_ptr(array) for array in (scores, xq, x, found)]
    faiss.fvec_inner_products_by_idx(*pointers, x.shape[1], *found.shape)
    return np.take_along_axis(found, np.argsort(-scores, axis=1)[:, :K], axis=1)


def projections(x: Floats, width: int) -> dict[str, Callable[[], Projection]]:
    """Return ways to have ``width`` components, by the prefix of a name: a PCA, and nothing at full width."""
    ways = {f"PCAR{width},": partial(rotated, x, width)}
    return ways | ({"": partial(unchanged, x)} if width == x.shape[1] else {})


def rotated(x: Floats, width: int) -> Projection:
    """Center documents, and rotate them into their first ``width`` principal components.

    A query that is not centered ranks by <q, x - mean> as by <q, x>, and loses nothing with the components dropped.
    """
    pca = faiss.PCAMatrix(x.shape[1], width, 0, True)
    pca.train(x)
    mean = x.mean(axis=0)
    documents = np.ascontiguousarray(pca.apply(x))
    return Projection(documents, lambda xq: pca.apply(xq + mean), 4.0 * width * (x.shape[1] + 1) / len(x))


def unchanged(x: Floats) -> Projection:
    """Leave vectors as they are."""
    return Projection(np.ascontiguousarray(x), lambda xq: xq, 0.0)
