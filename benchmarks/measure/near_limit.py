"""How near codes come to what is possible, into docs/results/near-limit.json.

Errors of a trellis; what spreading its decoded points is worth; levels that are chosen together, without a trellis;
what Hamming distances lose, and at which step; and the time that a trellis takes beside levels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import faiss
import numpy as np
from common import METRIC, SETS, K, in_turns, read, write
from threadpoolctl import threadpool_limits

from faiss_qama import QamaIndex
from faiss_qama.arrays import Codes, Floats, Ids, scale_to_norm
from faiss_qama.evaluation.datasets import Dataset
from faiss_qama.evaluation.exhaustive_search import search_hamming
from faiss_qama.quantizer import bit_packing
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.training import FitConfig, fit, trellis_points

SEEDS, SIZES, QUERIES = (0, 1, 2), (24, 48, 96), 1000
PLAIN = "2x192"  # of 48 bytes
FACTORS = np.linspace(0.7, 1.4, 29, dtype=np.float32)  # of vectors, before they are rounded
CANDIDATES, SCORED = (40, 100, 400), 100
# Rounding towards Hamming distances: queries that stand in, those of each document that count, noise, sweeps, and how
# much each bit counts beside them.
STAND_INS, NEAREST, RANDOM, NOISE, SWEEPS, STAY = 3000, 200, 200, 0.8, 4, 5.0
BLOCK = 64
RECALL, OVERSAMPLES = 0.8, (1.5, 2, 2.5, 3, 4, 5, 6, 8, 10, 14, 20, 28, 40)
SAME = 0.005  # of recall: what more candidates would add


class Searched:
    """A data set's vectors, queries and exact neighbours."""

    def __init__(self, folder: Path) -> None:
        dataset = Dataset.load(folder)
        self.x, self.xq = dataset.corpus.read(), np.ascontiguousarray(dataset.queries[:QUERIES])
        self.near = faiss.knn(self.xq, self.x, K, metric=METRIC)[1]

    def recall(self, found: Ids) -> float:
        """Return recall@10 of ids (nq, k)."""
        return float(np.mean((self.near[:, :, None] == found[:, None]).any(axis=2)))

    def by_scores(self, x: Floats, xq: Floats | None = None) -> float:
        """Return recall@10 of an exhaustive search of ``x`` (n, d)."""
        return self.recall(faiss.knn(self.xq if xq is None else xq, x, K, metric=METRIC)[1])

    def by_hamming(self, quantizer: Quantizer, code: Codes, k: int = K) -> float:
        """Return the share of the 10 neighbours that are among the k nearest codes."""
        return self.recall(search_hamming(quantizer, code, self.xq, k)[1])


def near_limit(data: Path, parts: tuple[str, ...]) -> None:
    """Measure ``parts``; the other parts stay as they were measured."""
    known = read("near-limit")
    write("near-limit", {part: known[part] for part in PARTS if part in known} | {p: PARTS[p](data) for p in parts})


def errors(_: Path) -> list[dict[str, float]]:
    """Return mean squared errors of a normal distribution of variance 1, of points at their means."""
    return [
        {"bits": bits, "trellis": trellis_points.train(bits, trellis_points.normal_points(bits), rounds=1)[1]}
        for bits in sorted(trellis_points.NORMAL_POINTS)
    ]


def spread(data: Path) -> list[dict[str, Any]]:
    """Measure codes whose points decode to means, beside those that are spread, the means of ``SEEDS``."""
    rows = []
    for name in SETS:
        searched = Searched(data / name)
        for size in SIZES:
            recalls = []
            for seed in SEEDS:
                quantizer = fit(searched.x, config=FitConfig(bytes=size, seed=seed), rescore="codes")
                if quantizer.trellis is None:
                    continue
                codes = quantizer.encode_both(searched.x)
                means = replace(quantizer, trellis=replace(quantizer.trellis, values=quantizer.trellis.targets))
                recalls.append([searched.by_scores(own.decode(*codes)) for own in (means, quantizer)])
            rows.append({"set": name, "size": size, "means, spread": np.mean(recalls, axis=0).tolist()})
            click.echo(str(rows[-1]))
    return rows


def rounding(data: Path) -> list[dict[str, Any]]:
    """Measure levels of documents that are chosen together: for the cosine, and for Hamming distances."""
    rows = []
    for name in SETS[:2]:
        searched = Searched(data / name)
        for layout in ("1x384", PLAIN):
            quantizer = fit(searched.x, config=FitConfig(layout=layout), rescore="codes")
            code = quantizer.encode(searched.x)
            tried = {"each alone": code, "for the cosine": for_cosine(quantizer, searched.x)}
            if layout == "1x384":
                tried["for Hamming distances"] = for_hamming(quantizer, searched.x, code)
            for how, own in tried.items():
                recalls = {"codes": searched.by_scores(quantizer.decode(own))}
                recalls |= {"hamming": searched.by_hamming(quantizer, own)}
                rows.append({"set": name, "layout": layout, "levels": how, "recall": recalls})
                click.echo(str(rows[-1]))
    return rows


def for_cosine(quantizer: Quantizer, x: Floats) -> Codes:
    """Return the codes whose decoded vectors have the greatest cosine with ``x`` (n, d).

    The best levels for a direction are those of the columns times some factor, each rounded to the nearest value.
    """
    best, cosines, counts = None, np.zeros(len(x)), np.isfinite(quantizer.thresholds).sum(axis=1) + 1
    values = np.where(np.arange(quantizer.decoder.values.shape[1]) < counts[:, None], quantizer.decoder.values, np.inf)
    cuts = np.where(np.isfinite(quantizer.thresholds), (values[:, 1:] + values[:, :-1]) / 2, np.inf)
    z = quantizer.transform(x)
    for factor in FACTORS:
        code = bit_packing.encode(factor * z, cuts.astype(np.float32), quantizer.layout)
        own = np.einsum("nd,nd->n", x, scale_to_norm(quantizer.decode(code), 1.0))
        best = code if best is None else np.where((own > cosines)[:, None], code, best)
        cosines = np.maximum(own, cosines)
    assert best is not None
    return best


def for_hamming(quantizer: Quantizer, x: Floats, code: Codes) -> Codes:
    """Return codes of one bit per component whose Hamming distances to queries follow the inner products.

    Bits of each document are turned, one after the other, while that lowers the squared difference from what is wanted
    of the queries near it and of random ones. Documents with noise stand in for queries.
    """
    rng, bits = np.random.default_rng(0), quantizer.layout.n_bits
    stand_ins = x[rng.choice(len(x), min(STAND_INS, len(x)), replace=False)]
    noise = rng.standard_normal(stand_ins.shape, np.float32) / np.float32(np.sqrt(x.shape[1]))
    xq = scale_to_norm(stand_ins + np.float32(NOISE * quantizer.rms_norm) * noise, 1.0)
    of_queries, own = _signs(quantizer.encode_queries(xq), bits), _signs(code, bits)
    # Wanted agreements: products on the scale of agreements, both less the means of each query.
    agreements, products = of_queries @ own.T, xq @ x.T
    means = agreements.mean(axis=1, keepdims=True)
    products -= products.mean(axis=1, keepdims=True)
    wanted = (
        products * (np.vdot(agreements - means, agreements - means) / np.vdot(agreements - means, products)) + means
    )
    out = own.copy()
    for start in range(0, len(x), BLOCK):
        block = np.arange(start, min(start + BLOCK, len(x)))
        near = np.argpartition(-products[:, block], NEAREST, axis=0)[:NEAREST].T
        rows = np.concatenate([near, rng.integers(0, len(xq), (len(block), RANDOM))], axis=1)
        h = of_queries[rows]
        gram = np.matmul(h.transpose(0, 2, 1), h) / rows.shape[1]
        target = np.matmul(h.transpose(0, 2, 1), wanted[rows, block[:, None]][:, :, None])[:, :, 0] / rows.shape[1]
        b = out[block]
        slope = np.matmul(gram, b[:, :, None])[:, :, 0]
        for j in [*range(bits)] * SWEEPS:
            change = b[:, j] * (target[:, j] + STAY * own[block, j] - slope[:, j]) + gram[:, j, j]
            turned = np.where(change < 0, -2 * b[:, j], 0)
            b[:, j] += turned
            slope += turned[:, None] * gram[:, :, j]
        out[block] = b
    return np.packbits(out > 0, axis=1, bitorder="little")


def hamming(data: Path) -> list[dict[str, Any]]:
    """Measure what is lost by coding documents, by coding queries too, and by counting bits in place of products."""
    rows = []
    for name in SETS:
        searched = Searched(data / name)
        quantizer = fit(searched.x, config=FitConfig(layout=PLAIN), rescore="codes")
        code = quantizer.encode(searched.x)
        decoded = quantizer.decode(code)
        of_queries = quantizer.decode(quantizer.encode_queries(searched.xq))
        row: dict[str, Any] = {"set": name, "float queries": searched.by_scores(decoded)}
        row |= {"coded queries": searched.by_scores(decoded, of_queries)}
        row |= {"Hamming": searched.by_hamming(quantizer, code)}
        row |= {f"in {k}": searched.by_hamming(quantizer, code, k) for k in CANDIDATES}
        rows.append(row)
        click.echo(str(row))
    return rows


def speed(data: Path) -> dict[str, Any]:
    """Time encoding, re-ranking from codes, and whole searches of the recall ``RECALL``, on quora."""
    searched = Searched(data / SETS[-1])
    layouts = {"levels": PLAIN, "levels, 96 bytes": "2x128+2x224,1x32", "trellis": f"t{PLAIN}"}
    rows = {row["size"]: row for row in read(f"equal-bytes-{SETS[-1]}")["rows"] if row["family"] == "ours"}
    layouts |= {f"trellis, {size} bytes": rows[size]["name"].split()[0] for size in (48, 96)}
    indexes = {}
    for name, layout in layouts.items():
        quantizer = fit(searched.x, config=FitConfig(layout=layout), rescore="codes")
        indexes[name] = QamaIndex(quantizer, "codes")
        indexes[name].add(searched.x)
    found = np.random.default_rng(0).integers(0, len(searched.x), (len(searched.xq), SCORED))
    some = searched.x[:20_000]
    record: dict[str, Any] = {"layouts": layouts, "scored": SCORED}
    with threadpool_limits(1):
        encode = [lambda _, i=index: i.quantizer.encode_both(some) for index in indexes.values()]
        score = [lambda _, i=index: i.rescorer.scores(searched.xq, found) for index in indexes.values()]
        record["encoded_per_second"] = [len(some) / s for s in in_turns([None] * 3, *encode)]
        record["scored_per_second"] = [found.size / s for s in in_turns([None] * 7, *score)]
    found_by = {name: _recalls(searched, indexes[name]) for name in ("levels", "trellis, 48 bytes")}
    searches = {name: _search(indexes[name], recalls, RECALL) for name, recalls in found_by.items()}
    most = found_by["trellis, 48 bytes"]
    searches["trellis, most"] = _search(indexes["trellis, 48 bytes"], most, max(most.values()) - SAME)
    for threads in (1, 2):
        with threadpool_limits(threads):
            seconds = in_turns([searched.xq] * 7, *(search for _, _, search in searches.values()))
        own = [
            {"name": name, "oversample": oversample, "recall": recall, "per_second": len(searched.xq) / taken}
            for (name, (oversample, recall, _)), taken in zip(searches.items(), seconds, strict=True)
        ]
        record[f"searches, {threads} threads"] = own
    click.echo(str(record))
    return record


def _recalls(searched: Searched, index: QamaIndex) -> dict[float, float]:
    """Return recall@10 by oversample."""
    return {o: searched.recall(index.search(searched.xq, K, oversample=o)[1]) for o in OVERSAMPLES}


def _search(index: QamaIndex, recalls: dict[float, float], recall: float) -> tuple[float, float, Callable[..., Any]]:
    """Return the least oversample that reaches a recall, its recall, and that search."""
    oversample = next(o for o, found in recalls.items() if found >= recall)
    return oversample, recalls[oversample], lambda xq: index.search(xq, K, oversample=oversample)


def _signs(code: Codes, bits: int) -> Floats:
    """Return the bits (n, bits) of codes as 1 and -1."""
    return np.unpackbits(code, axis=1, count=bits, bitorder="little").astype(np.float32) * 2 - 1


PARTS: dict[str, Callable[[Path], Any]] = {
    "errors": errors,
    "spread": spread,
    "rounding": rounding,
    "hamming": hamming,
    "speed": speed,
}
