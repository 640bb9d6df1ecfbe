"""Ours and FAISS's codes at equal bytes, no floats kept: python benchmarks/equal_bytes.py DATA.

Each family is tried at every variant that fits into the bytes; the table shows the one of best recall on the test
queries themselves, which flatters families of many variants. On unit vectors L2 distances rank as inner products do,
and survive the centring of a PCA. Writes docs/results/equal-bytes.json, and remakes the tables.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import faiss
import numpy as np
from results import METRIC, write
from tables import SETS, render

from faiss_qama import QamaIndex
from faiss_qama.codes import Floats
from faiss_qama.evaluation import Dataset, Truth, exact, mean_interval, ranking_values
from faiss_qama.intervals import interval
from faiss_qama.judgements import Values
from faiss_qama.labels import Ids
from faiss_qama.training import FitConfig, fit

BUDGETS = (24, 48, 96)  # bytes a vector
QUERIES = 1000
PQ_SAMPLE = 10_000  # vectors that product quantizers and OPQ are trained on
OPQ_ROUNDS = 6  # its own 50 take many minutes
OVERSAMPLE = 100  # of ours: beyond it rescoring from codes finds no more


def layout_of(size: int, d: int) -> list[str]:
    """Return the layouts of ours that ``size`` bytes hold, the first the one a user would get."""
    return [f"2x{min(d, 4 * size)}", f"1x{min(d, 8 * size)}"]


def factories(size: int, d: int) -> dict[str, list[str]]:
    """Return FAISS's factory strings by family, about as large as ``size`` bytes allow."""

    def of_bits(name: str, bits: tuple[int, ...], extra: dict[int, int]) -> list[str]:
        widths = {b: min(d, 8 * (size - extra.get(b, extra.get(0, 0))) // b // 8 * 8) for b in bits}
        return [f"PCAR{width},{name.format(b)}" for b, width in widths.items() if width > 0]

    narrow = [width for width in (d // 4, d // 2, d) if width >= size and width % size == 0]
    halves = [width for width in (d // 4, d // 2, d) if width >= 2 * size and width % (2 * size) == 0]
    nbits = 8 * size
    return {
        "PQ": [f"PQ{size}", f"PQ{2 * size}x4"]
        + [f"PCAR{w},PQ{size}" for w in narrow if w < d]
        + [f"PCAR{w},PQ{2 * size}x4" for w in halves if w < d],
        "OPQ": [f"OPQ{2 * size}_{w},PQ{2 * size}x4" for w in halves],
        "RaBitQ": of_bits("RaBitQ{}", (1, 2, 3, 4), {0: 16, 1: 8}),
        "EDEN": of_bits("EDEN{}", (1, 2, 3, 4), {0: 8}),
        "TurboQuant": of_bits("SQtqmse{}", (1, 2, 3, 4), {})
        + [f.replace(",", ",L2norm,") for f in of_bits("SQtqmse{}", (1, 2, 3, 4), {})],
        "SQ": of_bits("SQ{}", (4, 6, 8), {}),
        "LSH, ITQ": [f"ITQ{min(d, nbits)},LSHt", f"PCAR{min(d, nbits)},LSHt", f"RR{min(d, nbits)},LSHt"],
    }


def peers(x: Floats, size: int) -> Iterator[tuple[str, str, faiss.Index]]:
    """Yield family, name and filled index of what fits into ``size`` bytes."""
    for family, names in factories(size, x.shape[1]).items():
        for name in dict.fromkeys(names):
            try:
                index = faiss.index_factory(x.shape[1], name, faiss.METRIC_L2)
                code = int(index.sa_code_size())
            except RuntimeError as error:
                click.echo(f"{name} is left out: {str(error).splitlines()[-1]}", err=True)
                continue
            if code > size:
                continue
            if name.startswith("OPQ"):
                rotation = faiss.downcast_VectorTransform(index.chain.at(0))
                rotation.niter, rotation.max_train_points = OPQ_ROUNDS, PQ_SAMPLE
            drawn = np.random.default_rng(0).permutation(len(x))[: PQ_SAMPLE if "PQ" in name else len(x)]
            index.train(x[drawn])
            inner = faiss.downcast_index(index.index) if isinstance(index, faiss.IndexPreTransform) else index
            if isinstance(inner, faiss.IndexRaBitQ):
                inner.qb = 0  # the float query
            index.add(x)
            yield family, name, index


def measure(dataset: Dataset) -> list[dict[str, Any]]:
    """Return a row for every variant of every family at every budget."""
    dataset = replace(
        dataset,
        queries=np.ascontiguousarray(dataset.queries[:QUERIES]),
        qrels=None if dataset.qrels is None else dataset.qrels[dataset.qrels[:, 0] < QUERIES],
    )
    x = np.concatenate(list(dataset.corpus.chunks()))
    truth = exact(dataset, 10, METRIC)
    floats = truth.measured.mean.values
    rows = []
    for size in BUDGETS:
        ours: dict[str, Values] = {}
        for layout in layout_of(size, x.shape[1]):
            quantizer = fit(x, config=FitConfig(layout=layout), metric=METRIC)
            index = QamaIndex(quantizer, "codes", base="Scan")
            index.add(x)
            I = index.search(dataset.queries, 10, oversample=OVERSAMPLE)[1]
            shared = sum(array.nbytes for array in quantizer.to_state()[0].values()) / len(x)
            values = ranking_values(I, truth, dataset)
            ours = ours or values
            rows.append(row("ours", layout, size, index.bytes_per_vector[0], shared, values, ours, floats))
        for family, name, peer in peers(x, size):
            start = time.perf_counter()
            values = ranking_values(_found(peer, dataset, truth), truth, dataset)
            code = int(peer.sa_code_size())
            shared = faiss.serialize_index(peer).nbytes / len(x) - code
            rows.append(row(family, name, size, code, shared, values, ours, floats))
            click.echo(f"{size} {name}: {rows[-1]['recall'][0]:.3f}, {time.perf_counter() - start:.1f} s")
    return rows


def _found(index: faiss.Index, dataset: Dataset, truth: Truth) -> Ids:
    return np.asarray(index.search(dataset.queries, truth.k)[1])


def row(
    family: str,
    name: str,
    size: int,
    code: int,
    shared: float,
    values: dict[str, Values],
    ours: dict[str, Values],
    floats: Any,
) -> dict[str, Any]:
    """Return figures with their 95 % intervals, [figure, low, high], and what is paired with ours, theirs less ours."""
    about = {"family": family, "name": name, "size": size, "bytes": code, "shared": shared}

    def share(rows: Any, of: dict[str, Values]) -> float:
        return 100 * float(of["ndcg"][rows].mean() / floats["ndcg"][rows].mean())

    every, n = slice(None), len(values["ndcg"])
    recalls, less = values["recall"], values["recall"] - ours["recall"]
    return about | {
        "recall": [float(recalls.mean()), *mean_interval(recalls)],
        "recall_less_ours": [float(less.mean()), *mean_interval(less)],
        "ndcg": [share(every, values), *interval(lambda r: share(r, values), n)],
        "ndcg_less_ours": [
            share(every, values) - share(every, ours),
            *interval(lambda r: share(r, values) - share(r, ours), n),
        ],
    }


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--set", "sets", type=click.Choice(SETS), multiple=True, help="Only this data set.")
def main(data: Path, sets: tuple[str, ...]) -> None:
    """Measure on the data set folders in DATA, and remake the tables."""
    settings = {"queries": QUERIES, "pq_sample": PQ_SAMPLE, "opq_rounds": OPQ_ROUNDS, "oversample": OVERSAMPLE}
    write("equal-bytes", {"settings": settings} | {name: measure(Dataset.load(data / name)) for name in sets or SETS})
    for path, text in render().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
