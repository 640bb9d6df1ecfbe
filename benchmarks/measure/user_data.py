"""What a calibrated recall is worth where texts repeat and where norms are not those fitted, into user-data.json.

Texts: each vector of a corpus 1, 10 and 20 times, in random order, fitted on all of them. Norms: a quantizer fitted on
unit vectors takes vectors whose norms vary, as people add them who forget to normalize. Real queries search.
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from common import METRIC, SETS, K, write

from faiss_qama import QamaIndex
from faiss_qama.arrays import Floats
from faiss_qama.corpus import Corpus
from faiss_qama.evaluation.datasets import Dataset
from faiss_qama.evaluation.recall import evaluate, exact
from faiss_qama.training import FitConfig, fit

COPIES = (1, 10, 20)
SPREADS = (0.0, 0.1, 0.3)  # standard deviations of norms
QUERIES, RECALL = 500, 0.95
CONFIG = FitConfig(layout="2x192")


def user_data(data: Path) -> None:
    """Measure the data sets in ``data``."""
    record: dict[str, Any] = {"asked": RECALL, "copies": [], "norms": []}
    for name in SETS:
        dataset = Dataset.load(data / name)
        dataset = replace(dataset, queries=dataset.queries[:QUERIES], qrels=None)
        x = dataset.corpus.read()
        for copies in COPIES:
            repeated = np.random.default_rng(0).permutation(np.repeat(x, copies, axis=0))
            row = {"set": name, "copies": copies} | _searched(repeated, repeated, dataset)
            record["copies"].append(row)
            click.echo(str(row))
        for spread in SPREADS:
            norms = 1 + spread * np.random.default_rng(0).standard_normal((len(x), 1), np.float32)
            row = {"set": name, "spread": spread} | _searched(x, norms * x, dataset)
            record["norms"].append(row)
            click.echo(str(row))
    write("user-data", record)


def _searched(fitted: Floats, added: Floats, dataset: Dataset) -> dict[str, Any]:
    """Return recall of ``added`` (n, d) at a calibrated number of candidates, with ties, and how often `add` warned."""
    index = QamaIndex(fit(fitted, config=CONFIG, metric=METRIC), "fp16")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        index.add(added)
    searched = replace(dataset, corpus=Corpus(added))
    truth = exact(searched, K, METRIC)
    recall = evaluate(index, searched, truth, runs=1, recall=RECALL).recall
    return {"recall": recall, "warnings": sum("vectors of norm" in str(w.message) for w in told)}
