"""Recall of codes that this checkout fits, beside those of an OTHER one, by seed, into docs/results/fits.json."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path

import click
from common import SETS, WIDE_SETS, write

LAYOUT, SEEDS = "2x192", 5
# Both checkouts understand this. Arguments: a data set folder, a layout and a number of seeds.
RECALLS = """
import json, sys
import faiss
import numpy as np
from faiss_qama import QamaIndex
from faiss_qama.training import FitConfig, fit
metric = faiss.METRIC_INNER_PRODUCT
x, xq = (np.load(f"{sys.argv[1]}/{name}.npy").astype(np.float32) for name in ("corpus", "queries"))
truth, found = faiss.knn(xq, x, 10, metric=metric)[1], []
for seed in range(int(sys.argv[3])):
    quantizer = fit(x, config=FitConfig(layout=sys.argv[2], seed=seed), metric=metric)
    index = QamaIndex(quantizer, "codes")
    index.add(x)
    hits = index.search(xq, 10, oversample=40)[1]
    found.append(float((truth[:, :, None] == hits[:, None]).any(axis=2).mean()))
print(json.dumps(found))
"""


def fits(python: str, data: Path) -> None:
    """Measure recall@10 of ``LAYOUT``, ranked by codes alone, by set and seed, with both Pythons."""
    rows = []
    for name in SETS + WIDE_SETS:
        both = {}
        for side, interpreter in (("this", sys.executable), ("other", python)):
            command = [interpreter, "-W", "ignore", "-c", RECALLS, str(data / name), LAYOUT, str(SEEDS)]
            done = subprocess.run(command, cwd="/", check=True, capture_output=True, text=True)
            both[side] = json.loads(done.stdout.splitlines()[-1])
        gains = [new - old for new, old in zip(both["this"], both["other"], strict=True)]
        rows.append({"set": name, "recall": both, "gain": statistics.mean(gains)})
        click.echo(str(rows[-1]))
    write("fits", {"layout": LAYOUT, "rows": rows})
