"""The tables of the QAMA paper, measured on these vectors, into docs/results/qama-table-D.json, D being the dimension.

What its training adds is measured by ``measure.training``.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import faiss
from common import METRIC, K, write
from sklearn.preprocessing import normalize

from faiss_qama.comparison import methods
from faiss_qama.corpus import Corpus
from faiss_qama.evaluation.datasets import Dataset
from faiss_qama.evaluation.recall import Searchable, Truth, evaluate, exact
from faiss_qama.hamming.factory import code_bytes
from faiss_qama.quantizer.layout import CodeLayout
from faiss_qama.training.config import LAYOUTS, NESTED
from measure.choices import filled

QAMA_SETS = {384: ("scifact", "nfcorpus"), 768: ("nfcorpus-mpnet",)}
LAYOUT = {"1": "binary", "1.5": "ternary", "hybrid": "hybrid", "2": "2-bit"}
# nDCG@10 by components, in the order of LAYOUT and then of floats, of all-MiniLM-L12-v2 (384) and of ModernBERT (768).
# "thresholds" is the first row of the paper's ablations.
SOURCE = (
    "QAMA (doi 10.1145/3746252.3761077), as in sigconf_paper/results.tex of "
    "https://github.com/faizanahemad/embedding-binary-quantisation"
)
PUBLISHED: dict[int, dict[str, Any]] = {
    384: {
        "trained": {
            "384": [0.3839, 0.4101, 0.4160, 0.4185, 0.4286],
            "192": [0.3724, 0.3923, 0.4017, 0.4109, 0.4219],
            "128": [0.3571, 0.3814, 0.3865, 0.3917, 0.3963],
            "96": [0.3417, 0.3649, 0.3695, 0.3712, 0.3792],
            "48": [0.2687, 0.2871, 0.2919, 0.2897, 0.3014],
        },
        "thresholds": {
            "192": [0.2947, 0.3205, 0.3260, 0.3324, 0.3398],
            "96": [0.2050, 0.2330, 0.2375, 0.2428, 0.2483],
        },
    },
    768: {
        "trained": {
            "768": [0.4381, 0.4536, 0.4680, 0.4687, 0.4720],
            "384": [0.4167, 0.4429, 0.4509, 0.4593, 0.4695],
            "256": [0.3691, 0.4228, 0.4465, 0.4513, 0.4680],
            "192": [0.3285, 0.3901, 0.4245, 0.4327, 0.4512],
            "96": [0.2908, 0.3455, 0.3850, 0.3919, 0.4247],
        },
        "thresholds": {
            "384": [0.3900, 0.4250, 0.4358, 0.4370, 0.4395],
            "192": [0.2900, 0.3550, 0.3755, 0.3850, 0.3880],
        },
    },
}
# What the paper's ablations begin with: the first components of the embedding, at equally frequent levels.
UNTRANSFORMED = {"projection": "none", "rotation": "none", "thresholds": "quantile"}


def qama_table(data: Path, d: int) -> None:
    """Measure the paper's layouts on its parts of ``d`` dimensions: thresholds alone, and ours without training."""
    rows: dict[tuple[int, str], dict[str, Any]] = {}
    for name in QAMA_SETS[d]:
        dataset = Dataset.load(data / name)
        truth = exact(dataset, K, METRIC)
        for components in (d, *(d // part for part in reversed(NESTED))):
            for bits, kind in LAYOUT.items():
                layout = CodeLayout.parse(LAYOUTS[kind](components))
                row = {"bits": bits, "components": components, "layout": str(layout)}
                row |= {"thermometer": layout.n_bits / 8, "scan": code_bytes("Flat", layout)}
                rows.setdefault((components, bits), row)[name] = _codes(dataset, truth, str(layout))
            row = {"bits": "floats", "components": components, "thermometer": 4 * components}
            rows.setdefault((components, "floats"), row)[name] = _floats(dataset, truth, components)
        click.echo(f"{name}: QAMA's table")
    published = {"source": SOURCE, "columns": [*LAYOUT, "floats"], **PUBLISHED[d]}
    write(f"qama-table-{d}", {"published": published, "sets": QAMA_SETS[d], "rows": list(rows.values())})


def _codes(dataset: Dataset, truth: Truth, layout: str) -> dict[str, float]:
    """Return the nDCG@10 of thresholds alone and of our quantizer without training."""
    index, untransformed = (
        filled(dataset, "codes", layout=layout),
        filled(dataset, "none", layout=layout, **UNTRANSFORMED),
    )
    return {
        "thresholds": _share(untransformed, dataset, truth),
        "hamming": _share(index.with_rescore("none"), dataset, truth),
        "codes": _share(index, dataset, truth),
    }


def _floats(dataset: Dataset, truth: Truth, components: int) -> dict[str, float]:
    """Return the nDCG@10 of components as floats: the first ones at unit norm, and the principal ones."""
    sides = [dataset.corpus.read(), dataset.queries]
    documents, queries = (normalize(x[:, :components]) for x in sides)
    first = exact(replace(dataset, corpus=Corpus(documents), queries=queries), truth.k, truth.metric).measured
    principal = methods.build(f"faiss:PCA{components},Flat", dataset, faiss.METRIC_L2).index
    return {
        "thresholds": 100 * float(first.mean.ndcg) / float(truth.measured.mean.ndcg),
        "codes": _share(principal, dataset, truth),
    }


def _share(index: Searchable, dataset: Dataset, truth: Truth) -> float:
    """Return the nDCG@10 of ``index``, in % of that of exact floats."""
    return 100 * evaluate(index, dataset, truth, runs=1).ndcg / truth.measured.mean.ndcg
