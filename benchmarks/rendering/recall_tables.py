"""Tables of what is found, from docs/results/{scifact,nfcorpus,quora,*-mpnet}*.json and stock.json."""

from __future__ import annotations

from typing import Any

import numpy as np
from common import SETS

from rendering.cells import bytes_text, markdown, percent


def main_table(data: dict[str, Any], sets: tuple[str, ...] = SETS) -> str:
    """Return the table of the main job."""
    rows = []
    for label in [row["method"] for row in data[sets[0]]["results"] if ", " in row["method"]]:
        row = [label]
        for name in sets:
            results = {r["method"]: r for r in data[name]["results"]}
            found = results[label]
            row += [f"{found['recall']:.3f}", _spread(found, results["exact floats"])]
        rows.append([row[0], bytes_text(results[label]), *row[1:]])
    header = ["", "bytes/vector"] + [f"{name} {what}" for name in sets for what in ("recall@10", "nDCG@10, % of float")]
    return markdown(header, rows)


def methods_table(data: dict[str, Any]) -> str:
    """Return methods by name."""
    rows = []
    for method in [row["method"] for row in data[SETS[0]]["results"][1:] if ", " not in row["method"]]:
        row = [f"`{method}`"]
        for name in SETS:
            results = {r["method"]: r for r in data[name]["results"]}
            row += [f"{results[method]['recall']:.3f}", percent(results[method], results["exact floats"])]
        rows.append([row[0], bytes_text(results[method]), *row[1:]])
    header = ["", "bytes/vector"] + [f"{name} {what}" for name in SETS for what in ("recall@10", "nDCG %")]
    return markdown(header, rows)


def rabitq_table(data: dict[str, Any]) -> str:
    """Return our codes beside FAISS's RaBitQ of one bit, for the FAQ: recall@10 / nDCG in % of float."""
    rows = []
    for method in ("faiss:RR384,RaBitQ", "1x384", "2x192, codes only"):
        row = [f"`{method.removesuffix(', codes only')}`"]
        for name in SETS:
            results = {r["method"]: r for r in data[name]["results"]}
            row.append(f"{results[method]['recall']:.3f} / {percent(results[method], results['exact floats'])}")
        rows.append([row[0], bytes_text(results[method]), *row[1:]])
    return markdown(["recall@10 / nDCG %", "bytes/vector", *SETS], rows)


def choices_table(data: dict[str, Any], part: str) -> str:
    """Return what the choices of one kind are worth."""
    rows = []
    for i, first in enumerate(data[f"{SETS[0]}-choices"][part]):
        row = [first["codes"]["method"], bytes_text(first["codes"])]
        for name in SETS:
            choice = data[f"{name}-choices"]
            codes, hamming = choice[part][i]["codes"], choice[part][i]["none"]
            row += [
                f"{codes['recall']:.3f} / {percent(codes, choice['exact'])}",
                f"{hamming['recall']:.3f} / {percent(hamming, choice['exact'])}",
            ]
        rows.append(row)
    return markdown(["", "bytes"] + [f"{name}, {stage}" for name in SETS for stage in ("codes", "Hamming")], rows)


def growth_table(data: dict[str, Any]) -> str:
    """Return how many candidates more vectors take."""
    rows = []
    for name in SETS:
        counts = [f"{r['candidates']} of {r['n']:,}" for r in reversed(data[f"{name}-choices"]["growth"])]
        rows.append([name, ", ".join(counts)])
    return markdown(["", "candidates that hold 95 % of the exact 10 nearest"], rows)


def lengths_table(data: dict[str, Any]) -> str:
    """Return what spreading queries is worth where lengths vary."""
    rows = []
    for i in range(0, len(data[f"{SETS[0]}-choices"]["lengths"]), 2):
        row = [f"{data[f'{SETS[0]}-choices']['lengths'][i]['spread']:g}"]
        for name in SETS:
            plain, best = data[f"{name}-choices"]["lengths"][i : i + 2]
            row += [f"{plain['recall']:.3f}", f"{best['recall']:.3f} (gain {best['gain']:g})"]
        rows.append(row)
    header = ["spread of norms"] + [f"{name}, {side}" for name in SETS for side in ("gain 1", "measured")]
    return markdown(header, rows)


def user_data_table(data: dict[str, Any]) -> str:
    """Return what a calibrated recall is worth where texts repeat and where norms are not those fitted."""
    rows = []
    for part, label in (("copies", "each text {}x"), ("norms", "norms that vary by {:.0%}")):
        by: dict[float, dict[str, dict[str, Any]]] = {}
        for row in data["user-data"][part]:
            by.setdefault(row["copies" if part == "copies" else "spread"], {})[row["set"]] = row
        for value, found in by.items():
            told = sum(row["warnings"] for row in found.values())
            cells = [f"{found[name]['recall']:.3f}" for name in SETS]
            rows.append([label.format(value), *cells, f"{told} of {len(found)}"])
    return markdown(["", *SETS, "indexes that warned"], rows)


def fits_table(data: dict[str, Any]) -> str:
    """Return the recall of fits beside those of another checkout, as means over seeds."""
    rows = []
    for row in data["fits"]["rows"]:
        this, other = (row["recall"][side] for side in ("this", "other"))
        cells = [f"{np.mean(side):.3f} ({min(side):.3f} to {max(side):.3f})" for side in (this, other)]
        rows.append([row["set"], *cells, f"{row['gain']:+.4f}"])
    return markdown(["", "recall@10", "before", "difference of the means"], rows)


def stock_table(data: dict[str, Any]) -> str:
    """Return stock FAISS exports beside the index."""
    stock = data["stock"]
    rows = []
    for store, recall in stock["recall"].items():
        ours = [f"{recall[kind]:.3f}" for kind in ("QamaIndex", "hamming", "fastscan")]
        rows.append([f"`{store}`", *ours, f"{stock['milliseconds'][store]:.2f} ms"])
    header = [
        "kept",
        "QamaIndex, oversample 20",
        "`hamming`",
        "`fastscan`",
        "second stage of QamaIndex, 400 candidates",
    ]
    same = min(stock["same"])
    return markdown(header, rows) + f"\n\nHits of the Hamming stage and its stock export that are the same: {same:.2%}."


def bases_table(data: dict[str, Any]) -> str:
    """Return base indexes beside each other."""
    rows = []
    flat = data["stock"]["bases"][0]["queries_per_second"]
    for row in data["stock"]["bases"]:
        name = f"`{row['base']}`" + "".join(f", {key} {value}" for key, value in row["settings"].items())
        rows.append([name, bytes_text(row), f"{row['recall']:.3f}", f"{row['queries_per_second'] / flat:.1f}"])
    return markdown(["base", "bytes/vector", "recall@10 for `recall=0.95`", "queries/s, `BFlat` being 1"], rows)


def _spread(row: dict[str, Any], exact: dict[str, Any]) -> str:
    shares = [100 * each["ndcg"] / exact["ndcg"] for each in row["each"]]
    return f"{np.mean(shares):.1f} ({min(shares):.1f} to {max(shares):.1f})"
