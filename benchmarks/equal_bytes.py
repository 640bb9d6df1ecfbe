"""Ours and others' codes at equal bytes, no floats kept: python benchmarks/equal_bytes.py DATA.

Ours is what ``faiss-qama fit --bytes N --rescore codes`` gives, its layout chosen on the corpus alone. Each peer is
tried at every variant that fits into the bytes, on large sets at those that were best on smaller ones; the table shows
the one of best recall on the test queries themselves, which flatters peers of many variants. Writes
docs/results/equal-bytes-SET.json, and remakes the tables.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import faiss
import numpy as np
from cells import RESULTS, SETS
from equal_peers import OPQ_ROUNDS, QUERY_BITS, RESCORED, RESIDUAL_SAMPLE, SAMPLE, K, Variant, variants
from results import METRIC, write
from tables import remake
from threadpoolctl import threadpool_limits

from faiss_qama import QamaIndex
from faiss_qama.arrays import Floats
from faiss_qama.evaluation.bootstrap import bootstrap_interval
from faiss_qama.evaluation.datasets import Dataset
from faiss_qama.evaluation.ranking_metrics import PerQuery
from faiss_qama.evaluation.recall import exact, ranking_values
from faiss_qama.evaluation.results import mean_interval
from faiss_qama.training import fit

BUDGETS = (24, 48, 96)  # bytes a vector
QUERIES = 1000
OVERSAMPLE = 100  # of ours: beyond it rescoring from codes finds no more
LARGE = 20_000  # vectors, from which on only the best variants of smaller sets are tried
BEST = 3  # of a family, on each of those
IN_FULL = ("OPQ",)  # families whose order changes with the set: tried in full but for what is slow
SLOW, MOST = r"PRQ|OPQ\d+,PQ\d+np", 48  # bytes of them on large sets: more train for minutes, and were behind
SETTINGS = {
    "queries": QUERIES,
    "oversample": OVERSAMPLE,
    "product quantizers": {
        "k-means iterations": faiss.ClusteringParameters().niter,
        "vectors a centroid, at most": faiss.ClusteringParameters().max_points_per_centroid,
    },
    "OPQ": {"sample": SAMPLE, "rounds": OPQ_ROUNDS},
    "residual quantizers": {"sample": RESIDUAL_SAMPLE, "codebooks": "refined"},
    "RaBitQ": {"query bits": QUERY_BITS},
    "sentence-transformers": {"rescore_multiplier": RESCORED},
    "on large sets": f"the {BEST} best on each smaller set, of {', '.join(IN_FULL)} all; "
    f"residual quantizers, and OPQ before a PQ of 256 centroids, up to {MOST} bytes",
}
Rows = list[dict[str, Any]]


def of_ours(x: Floats, size: int) -> Variant:
    """Return what a user gets who asks for this many bytes."""
    quantizer = fit(x, bytes=size, metric=METRIC, rescore="codes")
    index = QamaIndex(quantizer, "codes", base="Flat")
    index.add(x)
    shared = sum(array.nbytes for array in quantizer.to_state()[0].values()) / len(x)
    name = f"{quantizer.layout} {quantizer.fit_record.rotation}"
    built = shared, lambda xq: index.search(xq, K, oversample=OVERSAMPLE)[1]
    return Variant("ours", name, sum(index.bytes_per_vector), lambda: built)


def tried(x: Floats, size: int, smaller: list[Rows]) -> Iterator[Variant]:
    """Yield ours, then the variants that are worth trying."""
    yield of_ours(x, size)
    best = set()
    for rows in smaller if len(x) >= LARGE else []:
        for family in {row["family"] for row in rows}:
            rivals = [row for row in rows if (row["size"], row["family"]) == (size, family)]
            best |= {row["name"] for row in sorted(rivals, key=lambda row: -row["recall"][0])[:BEST]}
    for variant in variants(x, size):
        if len(x) >= LARGE and size > MOST and re.search(SLOW, variant.name):
            continue
        if not best or variant.name in best or variant.family in IN_FULL:
            yield variant


def measure(dataset: Dataset, size: int, smaller: list[Rows]) -> Iterator[dict[str, Any]]:
    """Yield a row for every variant of ``size`` bytes, ours first."""
    dataset = replace(
        dataset,
        queries=np.ascontiguousarray(dataset.queries[:QUERIES]),
        qrels=None if dataset.qrels is None else dataset.qrels[dataset.qrels[:, 0] < QUERIES],
    )
    x = dataset.corpus.read()
    truth = exact(dataset, K, METRIC)
    floats = truth.measured.mean.values
    ours: dict[str, PerQuery] = {}
    for variant in tried(x, size, smaller):
        start = time.perf_counter()
        with threadpool_limits(1, "blas"):
            shared, search = variant.build()
        values = ranking_values(search(dataset.queries), truth, dataset)
        ours = ours or values
        about = {"family": variant.family, "name": variant.name, "size": size, "bytes": variant.bytes}
        row = about | {"shared": shared} | figures(values, ours, floats)
        seconds = time.perf_counter() - start
        click.echo(f"{size} {variant.family} {variant.name}: {row['recall'][0]:.3f}, {seconds:.1f} s")
        yield row


def figures(values: dict[str, PerQuery], ours: dict[str, PerQuery], floats: Any) -> dict[str, Any]:
    """Return figures with their 95 % intervals, [figure, low, high], and what is paired with ours: theirs less ours."""

    def share(rows: Any, of: dict[str, PerQuery]) -> float:
        return 100 * float(of["ndcg"][rows].mean() / floats["ndcg"][rows].mean())

    every, n = slice(None), len(values["ndcg"])
    recalls, less = values["recall"], values["recall"] - ours["recall"]
    return {
        "recall": [float(recalls.mean()), *mean_interval(recalls)],
        "recall_less_ours": [float(less.mean()), *mean_interval(less)],
        "ndcg": [share(every, values), *bootstrap_interval(lambda r: share(r, values), n)],
        "ndcg_less_ours": [
            share(every, values) - share(every, ours),
            *bootstrap_interval(lambda r: share(r, values) - share(r, ours), n),
        ],
    }


def rows_of(folder: Path, size: int, smaller: list[Rows]) -> Rows:
    """Measure a row for every variant of ``size`` bytes; ``smaller``: the rows of smaller sets."""
    return list(measure(Dataset.load(folder), size, smaller))


def keep(name: str, parts: Iterable[Rows]) -> Rows:
    """Write the rows of a set, and return them."""
    rows = [row for part in parts for row in part]
    write(f"equal-bytes-{name}", {"settings": SETTINGS, "rows": rows})
    return rows


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--set", "sets", type=click.Choice(SETS), multiple=True, help="Only this data set.")
def main(data: Path, sets: tuple[str, ...]) -> None:
    """Measure on the data set folders in DATA, and remake the tables."""
    for name in sets or SETS:
        known = [RESULTS / f"equal-bytes-{other}.json" for other in SETS if other != name]
        smaller = [json.loads(path.read_text())["rows"] for path in known if path.exists()]
        keep(name, (rows_of(data / name, size, smaller) for size in BUDGETS))
    remake()


if __name__ == "__main__":
    main()
