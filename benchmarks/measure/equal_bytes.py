"""Ours and others' codes at equal bytes, no floats kept, into docs/results/equal-bytes-SET.json.

Ours is what ``faiss-qama fit --bytes N --rescore codes`` gives, its layout chosen on the corpus alone, the mean of
three seeds. Each peer is tried at every variant that fits into the bytes, on large sets at those that were best on
smaller ones; the table shows the one of best recall on the test queries themselves, which flatters peers of many
variants.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import faiss
import numpy as np
from common import METRIC, SETS, WIDE_SETS, K, read, write
from peers import faiss as faiss_codes
from peers import ours
from peers.peer import RESCORED, Peer, importable
from threadpoolctl import threadpool_limits

from faiss_qama.arrays import Floats
from faiss_qama.evaluation.bootstrap import bootstrap_interval
from faiss_qama.evaluation.datasets import Dataset
from faiss_qama.evaluation.ranking_metrics import PerQuery
from faiss_qama.evaluation.recall import exact, ranking_values
from faiss_qama.evaluation.results import mean_interval

BUDGETS, WIDE_BUDGETS = (24, 48, 96, 144), (24, 48, 96, 192)  # bytes per vector, of sets of 384 and of 768 dimensions
SEEDS = (0, 1, 2)  # of ours, whose mean counts
QUERIES = 1000
LIBRARIES = ("scann", "usearch", "turbovec", "remex", "rabitq", "sentence_transformers")
LARGE = 20_000  # vectors, from which on only the best variants of smaller sets are tried
BEST = 3  # of a family, on each of those
IN_FULL = ("OPQ",)  # families whose order changes with the set: tried in full, except for what is slow
SLOW, MOST = r"PRQ|OPQ\d+,PQ\d+np", 48  # bytes of them on large sets: more train for minutes, and were behind
SETTINGS = {
    "queries": QUERIES,
    "oversample": ours.OVERSAMPLE,
    "seeds of ours": SEEDS,
    "product quantizers": {
        "k-means iterations": faiss.ClusteringParameters().niter,
        "vectors a centroid, at most": faiss.ClusteringParameters().max_points_per_centroid,
    },
    "OPQ": faiss_codes.OPQ,
    "residual quantizers": {"sample": faiss_codes.RESIDUAL_SAMPLE, "codebooks": "refined"},
    "RaBitQ": {"query bits": faiss_codes.QUERY_BITS},
    "sentence-transformers": {"rescore_multiplier": RESCORED},
    "on large sets": f"the {BEST} best on each smaller set, of {', '.join(IN_FULL)} all; "
    f"residual quantizers, and OPQ before a PQ of 256 centroids, up to {MOST} bytes",
}
Rows = list[dict[str, Any]]


def equal_bytes(data: Path, name: str) -> None:
    """Measure on a data set, with what is known of the other sets."""
    sets, budgets = (WIDE_SETS, WIDE_BUDGETS) if name in WIDE_SETS else (SETS, BUDGETS)
    smaller = [known["rows"] for other in sets if other != name and (known := read(f"equal-bytes-{other}"))]
    keep(name, (rows_of(data / name, size, smaller) for size in budgets))


def rows_of(folder: Path, size: int, smaller: list[Rows]) -> Rows:
    """Measure a row for every variant of ``size`` bytes; ``smaller`` are the rows of smaller sets."""
    return list(measure(Dataset.load(folder), size, smaller))


def keep(name: str, parts: Iterable[Rows]) -> Rows:
    """Write the rows of a set, and return them."""
    rows = [row for part in parts for row in part]
    write(f"equal-bytes-{name}", {"settings": SETTINGS, "rows": rows})
    return rows


def measure(dataset: Dataset, size: int, smaller: list[Rows]) -> Iterator[dict[str, Any]]:
    """Yield a row for every variant of ``size`` bytes, ours first."""
    dataset = replace(
        dataset,
        queries=np.ascontiguousarray(dataset.queries[:QUERIES]),
        qrels=None if dataset.qrels is None else dataset.qrels[dataset.qrels[:, 0] < QUERIES],
    )
    truth = exact(dataset, K, METRIC)
    floats = truth.measured.mean.values

    def tried(peer: Peer) -> tuple[dict[str, Any], dict[str, PerQuery]]:
        start = time.perf_counter()
        with threadpool_limits(1, "blas"):
            index = peer.build()
        values = ranking_values(index.search(dataset.queries, index.settings[0]), truth, dataset)
        seconds = time.perf_counter() - start
        click.echo(f"{size} {peer.family} {peer.name}: {values['recall'].mean():.3f}, {seconds:.1f} s")
        row = {"family": peer.family, "name": peer.name, "size": size, "bytes": index.memory, "shared": index.shared}
        return row, values

    x = dataset.corpus.read()
    own, of_seeds = zip(*(tried(ours.equal_bytes(x, size, seed)) for seed in SEEDS), strict=True)
    our_values = {measure: np.mean([values[measure] for values in of_seeds], axis=0) for measure in of_seeds[0]}
    seeds = [
        {"name": row["name"], "recall": float(values["recall"].mean())}
        for row, values in zip(own, of_seeds, strict=True)
    ]
    yield own[0] | {"seeds": seeds} | figures(our_values, our_values, floats)
    for peer in variants(x, size, smaller):
        row, values = tried(peer)
        yield row | figures(values, our_values, floats)


def variants(x: Floats, size: int, smaller: list[Rows]) -> Iterator[Peer]:
    """Yield the peers that are worth trying."""
    best = best_of(smaller, size) if len(x) >= LARGE else set()
    for peer in all_variants(x, size):
        if len(x) >= LARGE and size > MOST and re.search(SLOW, peer.name):
            continue
        if not best or peer.name in best or peer.family in IN_FULL:
            yield peer


def all_variants(x: Floats, size: int) -> Iterator[Peer]:
    """Yield all peers that fit into ``size`` bytes, of FAISS and of the libraries that are installed."""
    yield from faiss_codes.equal_bytes(x, size)
    for library in importable(LIBRARIES):
        yield from library.equal_bytes(x, size)


def best_of(smaller: list[Rows], size: int) -> set[str]:
    """Return the names of the best of each family on each smaller set."""
    best = set()
    for rows in smaller:
        for family in {row["family"] for row in rows}:
            rivals = [row for row in rows if (row["size"], row["family"]) == (size, family)]
            best |= {row["name"] for row in sorted(rivals, key=lambda row: -row["recall"][0])[:BEST]}
    return best


def figures(values: dict[str, PerQuery], our_values: dict[str, PerQuery], floats: Any) -> dict[str, Any]:
    """Return figures with their 95 % intervals, [figure, low, high], and their differences: theirs less ours.

    Parameters
    ----------
    values, our_values : dict of ndarray
        Recall and nDCG of each query.
    floats : dict of ndarray
        The same of exact search, of which nDCG is given in %.
    """

    def share(rows: Any, of: dict[str, PerQuery]) -> float:
        return 100 * float(of["ndcg"][rows].mean() / floats["ndcg"][rows].mean())

    every, n = slice(None), len(values["ndcg"])
    recalls, less = values["recall"], values["recall"] - our_values["recall"]
    return {
        "recall": [float(recalls.mean()), *mean_interval(recalls)],
        "recall_less_ours": [float(less.mean()), *mean_interval(less)],
        "ndcg": [share(every, values), *bootstrap_interval(lambda r: share(r, values), n)],
        "ndcg_less_ours": [
            share(every, values) - share(every, our_values),
            *bootstrap_interval(lambda r: share(r, values) - share(r, our_values), n),
        ],
    }
