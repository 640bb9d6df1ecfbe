"""An index beside its exports to stock FAISS, and its index types, into docs/results/stock.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from common import METRIC, K, seconds_of, write
from threadpoolctl import threadpool_limits

from faiss_qama import QamaIndex
from faiss_qama.evaluation.datasets import Dataset
from faiss_qama.evaluation.recall import evaluate, exact
from faiss_qama.index.export import K_FACTOR
from faiss_qama.training import FitConfig, fit

RESCORED, EXPORTS = ("codes", "sq8", "fp16", "fp32"), ("hamming", "fastscan")
BASES: list[tuple[str, dict[str, int]]] = [
    ("BFlat", {}),
    ("Flat", {}),
    ("BHNSW32", {}),
    ("BIVF256", {"nprobe": 16}),
    ("BIVF256", {"nprobe": 64}),
]


def stock(folder: Path) -> None:
    """Compare an index with its stock FAISS exports, and time the second stage, on one thread."""
    dataset = Dataset.load(folder)
    truth = exact(dataset, K, METRIC)
    fitted = fit(dataset.corpus, config=FitConfig(layout="2x192"), queries=dataset.train_queries)
    queries = dataset.queries[:1000]
    rows = np.random.default_rng(0).integers(0, len(dataset.corpus), (len(queries), 400))
    record: dict[str, Any] = {"recall": {}, "milliseconds": {}}
    for rescore in RESCORED:
        index = QamaIndex(fitted, rescore)
        for chunk in dataset.corpus.chunks():
            index.add(chunk)
        recalls = {"QamaIndex": evaluate(index, dataset, truth, runs=1, oversample=K_FACTOR).recall}
        recalls |= {kind: evaluate(index.to_faiss(kind), dataset, truth, runs=1).recall for kind in EXPORTS}
        record["recall"][rescore] = recalls
        if rescore == "codes":
            ours, theirs = (i.search(queries, 100) for i in (index.with_rescore("none"), index.to_faiss("hamming")))
            record["same"] = [float((mine == stocks).mean()) for mine, stocks in zip(ours, theirs, strict=True)]
        with threadpool_limits(1):
            seconds = [seconds_of(index.rescorer.scores, queries, rows) for _ in range(5)]
        record["milliseconds"][rescore] = 1000 * float(np.median(seconds)) / len(queries)
    record["bases"] = []
    for base, settings in BASES:
        index = QamaIndex(fitted, "fp16", base=base)
        x = dataset.corpus.read()
        index.train(x)
        index.add(x)
        result = evaluate(index, dataset, truth, recall=0.95, **settings)
        row = {"base": base, "settings": settings, "bytes": index.bytes_per_vector}
        record["bases"].append(row | result.to_dict())
    write("stock", record)
