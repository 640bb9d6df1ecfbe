"""What the command line prints: tables and sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tabulate import tabulate

from faiss_qama.evaluation import Result
from faiss_qama.quantizer import Quantizer

_ROTATIONS = {"itq": "ITQ rotation", "random": "random rotation"}
_THRESHOLDS = {"lloyd": "Lloyd-Max", "normal": "Gaussian-optimal"}


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a plain table: first column to the left, the others to the right."""
    align = ["left"] + ["right"] * (len(header) - 1)
    return tabulate(rows, header, tablefmt="plain", colalign=align, disable_numparse=True, headersglobalalign="right")


def results_table(rows: Iterable[tuple[str, tuple[int, int], Result]], k: int, exact: Result) -> str:
    """Return the table of methods: bytes, recall and, where there are grades, nDCG, and queries a second."""
    header = ["", "bytes/vector", f"recall@{k}"]
    if exact.ndcg is not None:
        header += [f"nDCG@{k}", "% of float"]
    body = []
    for name, size, result in rows:
        row = [name, bytes_text(size), f"{result.recall:.3f}"]
        if exact.ndcg is not None and result.ndcg is not None:
            share = f"{100 * result.ndcg / exact.ndcg:.1f}" if exact.ndcg else "-"
            row += [f"{result.ndcg:.4f}", share]
        body.append([*row, f"{result.queries_per_second:,.0f}"])
    return table([*header, "queries/s"], body)


def bytes_text(size: tuple[int, int]) -> str:
    """Return bytes of codes and of what is kept to rescore with: ``72 + 768``."""
    return " + ".join(str(part) for part in size if part) or "0"


def size_text(size: int) -> str:
    """Return a size in decimal units: ``97.2 MB``."""
    value = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"


def quantizer_text(quantizer: Quantizer) -> str:
    """Return layout, transform and thresholds in words: ``2x192, PCA + ITQ rotation, Lloyd-Max``."""
    config = quantizer.config
    steps = [
        {True: "PCA", False: "SVD"}[config["center"]] if config["projection"] == "pca" else "",
        _ROTATIONS.get(config["rotation"], ""),
    ]
    transform = " + ".join(step for step in steps if step) or "no rotation"
    if config["slices"]:
        transform += f" inside slices {'/'.join(map(str, config['slices']))}"
    thresholds = config["thresholds"]
    return f"{quantizer.layout}, {transform}, {_THRESHOLDS.get(thresholds, thresholds + ' thresholds')}"


def facts(rows: Iterable[tuple[str, Any]]) -> str:
    """Return name and value, a line each."""
    return "\n".join(f"{name:<12}{value}" for name, value in rows)
