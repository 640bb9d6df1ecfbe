"""What the defaults were chosen from, into docs/results/SET-choices.json."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import faiss
import numpy as np
from common import METRIC, K, write

from faiss_qama import QamaIndex
from faiss_qama.corpus import Corpus
from faiss_qama.evaluation.datasets import Dataset
from faiss_qama.evaluation.recall import Truth, evaluate, exact
from faiss_qama.evaluation.results import MethodResult
from faiss_qama.training import FitConfig, fit

# What else could have been the default: name, settings of the fit.
CHOICES: list[tuple[str, dict[str, Any]]] = [
    ("default", {}),
    ("rotation: random", {"rotation": "random"}),
    ("rotation: none", {"rotation": "none"}),
    ("decoder: least-squares", {"decoder": "least-squares"}),
    ("thresholds: normal", {"thresholds": "normal"}),
    ("thresholds: uniform", {"thresholds": "uniform"}),
    ("thresholds: quantile", {"thresholds": "quantile"}),
    ("thresholds: log", {"thresholds": "log"}),
    ("matryoshka_dims: 48, 96, 192", {"matryoshka_dims": (48, 96, 192)}),
    ("sample: 2500", {"sample": 2500}),
]
# At 24, 48, 72 and 96 bytes, as base Flat holds them, or a little less with a residual code.
BYTES = (
    "1x192 2x32,1x128 2x64,1x64 2x96 1x384 2x128,1x128 2x192 2x64+1x224 2x192,1x192 2x288 2x96+2x160,1x32 "
    "2x384 2x192+1x352 2x128+2x224,1x32"
).split()
QUERY_SIDE = [(0.0, 1.0), (0.5, 1.0), (0.5, 1.25), (0.75, 1.25), (1.0, 1.0)]  # query_center, query_gain
SPREADS = (0.0, 0.2)  # standard deviations of the logarithm of documents' norms
FEWEST, MOST = 900, 2000  # vectors in the smallest part of a corpus, and candidates that are looked at


def choices(folder: Path) -> None:
    """Measure what the defaults were chosen from."""
    dataset = Dataset.load(folder)
    truth = exact(dataset, K, METRIC)
    record = {
        "fit": [_choice(label, dataset, truth, **settings) for label, settings in CHOICES],
        "bytes": [_choice(layout, dataset, truth, layout=layout) for layout in BYTES],
        "query side": [
            _choice(f"query_center {c}, query_gain {g}", dataset, truth, query_center=c, query_gain=g)
            for c, g in QUERY_SIDE
        ],
        "growth": growth(dataset),
        "lengths": norms(dataset),
    }
    write(f"{folder.name}-choices", {"exact": truth.measured.to_dict(), **record})


def _choice(label: str, dataset: Dataset, truth: Truth, **settings: Any) -> dict[str, Any]:
    """Measure a fit, ranked by codes and by Hamming distance. Settings of the query side go with train queries."""
    queries = dataset.train_queries if "query_center" in settings else None
    index = filled(dataset, "codes", queries, **settings)
    results = {
        "codes": evaluate(index, dataset, truth, runs=1, oversample=40),
        "none": evaluate(index.with_rescore("none"), dataset, truth, runs=1),
    }
    click.echo(f"{dataset.corpus.shape[0]:,} vectors: {label}")
    return {stage: MethodResult(label, index.bytes_per_vector, [r]).to_dict() for stage, r in results.items()}


def filled(dataset: Dataset, rescore: str, queries: Corpus | None = None, **settings: Any) -> QamaIndex:
    """Return an index of the corpus of ``dataset``.

    Parameters
    ----------
    dataset : Dataset
        What is indexed.
    rescore : str
        What re-ranks.
    queries : Corpus, optional
        Queries that the fit is given.
    **settings : Any
        Settings of the fit; ``layout`` is ``2x192`` unless they have one.
    """
    config = FitConfig(**{"layout": "2x192", **settings})
    index = QamaIndex(fit(dataset.corpus, config=config, queries=queries), rescore)
    for chunk in dataset.corpus.chunks():
        index.add(chunk)
    return index


def growth(dataset: Dataset) -> list[dict[str, float]]:
    """Measure how many Hamming candidates hold 95 % of the exact 10 nearest, as the corpus grows fourfold."""
    x = dataset.corpus.read()
    order = np.random.default_rng(0).permutation(len(x))
    quantizer = fit(x, config=FitConfig(layout="2x192"))
    queries = dataset.queries[:1000]
    rows = []
    n = len(x)
    while n >= FEWEST:
        part = x[order[:n]]
        _, near = faiss.knn(queries, part, K, metric=METRIC)
        index = QamaIndex(quantizer, "none")
        index.add(part)
        _, found = index.search(queries, min(n, MOST))
        places = [
            int(np.append(np.flatnonzero(row == i), n)[0]) for row, ids in zip(found, near, strict=True) for i in ids
        ]
        places.sort()
        rows.append({"n": n, "candidates": int(places[int(np.ceil(0.95 * len(places))) - 1]) + 1})
        n //= 4
    return rows


def norms(dataset: Dataset) -> list[dict[str, float]]:
    """Measure recall@10 of 80 candidates by how much documents' norms vary and how far queries are spread."""
    x = dataset.corpus.read()
    rows = []
    for spread in SPREADS:
        norm = np.exp(spread * np.random.default_rng(0).standard_normal((len(x), 1)))
        scaled = replace(dataset, corpus=Corpus(x * norm.astype(np.float32)))
        truth = exact(scaled, K, METRIC)
        for gain in (1.0, None):
            index = filled(scaled, "fp32", query_gain=gain)
            recall = evaluate(index, scaled, truth, runs=1, oversample=8).recall
            taken = index.quantizer.fit_record.query_gain
            rows.append({"spread": spread, "asked": gain, "gain": taken, "recall": recall})
    return rows
