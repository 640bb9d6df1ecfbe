"""Recall and nDCG of the main job and of the methods by name, into docs/results/SET.json."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import click
from common import METRIC, K, write

from faiss_qama.comparison import methods
from faiss_qama.evaluation.datasets import Dataset
from faiss_qama.evaluation.recall import Truth, evaluate, exact
from faiss_qama.evaluation.results import MethodResult

SEEDS = 3

LAYOUTS = {384: ("2x192",), 768: ("2x192", "2x384", "2x768")}  # of the rows of MAIN, by dimension
# Name of the row, kind of re-ranking and search options, for the same fits, without and with train queries.
MAIN: list[tuple[str, str, dict[str, float]]] = [
    ("codes only", "codes", {}),
    ("Hamming only", "none", {}),
    ("fp16, recall=0.95", "fp16", {"recall": 0.95}),
]
NAMES = [
    "binary",
    "mean-binary",
    "median-binary",
    "ternary",
    "rotated-binary",
    "rotated-ternary",
    "half-bit",
    "0.5orx384",
    "hybrid",
    "1x192",
    "1x384",
    "1.5x288",
    "1.5x384",
    "2x384",
    "scalar",
    "rotated-scalar",
    "faiss:RR384,RaBitQ",
    "faiss:PQ48np",  # without the annealing that polysemous search needs, which takes minutes
    "faiss:PQ96x4fs",
    "faiss:PCAR192,PQ96x4fs",
]


def main_job(folder: Path, names: Sequence[str] = NAMES) -> None:
    """Measure the rows that the main job promises, and methods by name."""
    dataset = Dataset.load(folder)
    rows = []
    for row in _rows(dataset, exact(dataset, K, METRIC), names):
        click.echo(f"{folder.name}: {row.name}: recall {row.mean.recall:.3f}")
        rows.append(row.to_dict())
    write(folder.name, {"corpus": list(dataset.corpus.shape), "results": rows})


def _rows(dataset: Dataset, truth: Truth, names: Sequence[str]) -> Iterator[MethodResult]:
    """Yield exact search, the rows of ``MAIN`` without and with train queries, and those of ``names``."""
    yield truth.measured
    for queries, layout in product((False, True), LAYOUTS[dataset.corpus.shape[1]]):
        fits = [
            methods.build(f"{layout}+fp16", dataset, METRIC, train_queries=queries, seed=seed).index
            for seed in range(SEEDS)
        ]
        for label, rescore, options in MAIN:
            indexes = [index if rescore == "fp16" else index.with_rescore(rescore) for index in fits]
            results = [evaluate(index, dataset, truth, runs=1, **options) for index in indexes]
            name, settings = f"{layout}, {label}" + ", queries=" * queries, fits[0].quantizer.fit_record.to_dict()
            yield MethodResult(name, indexes[0].bytes_per_vector, results, settings)
    for name in names:
        yield methods.measure(name, dataset, truth, runs=1)
