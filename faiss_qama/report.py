"""What the command line prints: tables and sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tabulate import tabulate

from faiss_qama.evaluation import Measured
from faiss_qama.quantizer import Quantizer

_ROTATIONS = {"itq": "ITQ rotation", "random": "random rotation"}
_THRESHOLDS = {"lloyd": "Lloyd-Max", "normal": "Gaussian-optimal"}


def results_table(measured: Sequence[Measured], k: int, what: str = "") -> str:
    """Return the table of methods, exact floats first: bytes, recall, nDCG where there are grades, queries a second.

    ``what`` heads the column of names.
    """
    exact = measured[0].mean
    header = [what, "bytes/vector", f"recall@{k}"]
    if exact.ndcg is not None:
        header += [f"nDCG@{k}", "% of float"]
    rows = []
    for method in measured:
        mean = method.mean
        row = [method.name, bytes_text(method.bytes), f"{mean.recall:.3f}"]
        if exact.ndcg is not None and mean.ndcg is not None:
            row += [f"{mean.ndcg:.4f}", f"{100 * mean.ndcg / exact.ndcg:.1f}" if exact.ndcg else "-"]
        rows.append([*row, f"{mean.queries_per_second:,.0f}"])
    align = ["left"] + ["right"] * len(header)
    return tabulate(rows, [*header, "queries/s"], tablefmt="plain", colalign=align, disable_numparse=True)


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
        slices = config["slices"]
        transform += f" inside slices {slices if isinstance(slices, str) else '/'.join(map(str, slices))}"
    thresholds = config["thresholds"]
    text = f"{quantizer.layout}, {transform}, {_THRESHOLDS.get(thresholds, thresholds + ' thresholds')}"
    trained = config.get("training", {}).get("kept") == "trained"
    return f"{text}, {config['train']['adapter']} adapter trained" if trained else text


def training_facts(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return what a training was worth on the held-out queries, which quantizer was kept, and its curves."""
    log, measure = record["log"], record["measure"]
    values = [
        f"{what} {record['trained'][stage][measure]:.3f} (closed form {record['closed form'][stage][measure]:.3f})"
        for stage, what in (("adc", measure), ("hamming", "Hamming"))
    ]
    kept = f"kept the trained quantizer, {100 * record['gain']:.1f} % better"
    if record["kept"] != "trained":
        kept = "no better, so kept the closed form"
    losses, gains = [sum(line["losses"].values()) for line in log], [100 * line["gain"] for line in log]
    curves = f"loss {sparkline(losses)} {losses[0]:.3g} to {losses[-1]:.3g}, "
    curves += f"held-out gain {sparkline(gains)} {max(gains):+.1f} %"
    return [
        ("training", f"{len(log)} epochs in {record['seconds']:.0f} s; {kept}"),
        ("", f"on the held-out queries that chose the epoch: {', '.join(values)}"),
        ("", curves),
    ]


def sparkline(values: Sequence[float]) -> str:
    """Return a character a value, from the lowest to the highest."""
    low, high = min(values), max(values)
    return "".join("▁▂▃▄▅▆▇█"[int(7.999 * (v - low) / (high - low or 1))] for v in values)


def facts(rows: Iterable[tuple[str, Any]]) -> str:
    """Return name and value, a line each."""
    return "\n".join(f"{name:<12}{value}" for name, value in rows)
