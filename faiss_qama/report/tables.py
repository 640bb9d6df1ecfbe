"""What the command line prints: tables and sizes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from tabulate import tabulate

from faiss_qama.comparison.tasks import TaskResult
from faiss_qama.evaluation.bootstrap import bootstrap_interval, percent
from faiss_qama.evaluation.ranking_metrics import PerQuery
from faiss_qama.evaluation.recall import MethodResult
from faiss_qama.quantizer.fit_record import TrainingRecord
from faiss_qama.quantizer.quantizer import Quantizer

_ROTATIONS = {"itq": "ITQ rotation", "random": "random rotation"}
_THRESHOLDS = {"lloyd": "Lloyd-Max", "normal": "Gaussian-optimal"}


def results_table(measured: Sequence[MethodResult], k: int, what: str = "") -> str:
    """Return the table of methods, exact floats first: bytes, recall, what grades say where there are any, speed.

    ``what`` heads the column of names.
    """
    exact = measured[0].mean
    header = [what, "bytes/vector", f"recall@{k}"]
    if exact.ndcg is not None:
        header += [f"nDCG@{k}", "% of float", "95 % interval", f"relevant@{k}", f"MRR@{k}"]
    rows = []
    for method in measured:
        mean = method.mean
        row = [method.name, bytes_text(method.bytes), f"{mean.recall:.3f}"]
        if exact.ndcg is not None and mean.ndcg is not None:
            row += [f"{mean.ndcg:.4f}", *_share(mean.values["ndcg"], exact.values["ndcg"])]
            row += [f"{mean.values[measure].mean():.4f}" for measure in ("relevant_recall", "mrr")]
        rows.append([*row, f"{mean.queries_per_second:,.0f}"])
    return _plain([*header, "queries/s"], rows)


def task_table(measured: Sequence[TaskResult]) -> str:
    """Return the table of methods on a task, exact floats first: bytes, score, % of float and its 95 % interval."""
    rows = []
    for method in measured:
        share, (low, high) = method.retained
        cells = [f"{method.score:.4f}", f"{share:.1f}", f"{low:.1f} to {high:.1f}"]
        rows.append([method.name, str(method.bytes), *cells])
    return _plain(["", "bytes/vector", measured[0].task.measure, "% of float", "95 % interval"], rows)


def _share(values: PerQuery, floats: PerQuery) -> tuple[str, str]:
    """Return a mean in % of the floats', and its interval, both over the same queries."""
    if not floats.any():
        return "-", "-"
    low, high = bootstrap_interval(lambda rows: percent(values[rows].mean(), floats[rows].mean()), len(values))
    return f"{100 * values.mean() / floats.mean():.1f}", f"{low:.1f} to {high:.1f}"


def _plain(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = ["left"] + ["right"] * (len(header) - 1)
    return tabulate(rows, header, tablefmt="plain", colalign=align, disable_numparse=True)


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
    record = quantizer.fit_record
    steps = [
        {True: "PCA", False: "SVD"}[record.center] if record.projection == "pca" else "",
        _ROTATIONS.get(record.rotation, ""),
    ]
    transform = " + ".join(step for step in steps if step) or "no rotation"
    if record.matryoshka_dims:
        slices = record.matryoshka_dims
        transform += f" inside slices {slices if isinstance(slices, str) else '/'.join(map(str, slices))}"
    thresholds = record.thresholds
    text = f"{quantizer.layout}, {transform}, {_THRESHOLDS.get(thresholds, thresholds + ' thresholds')}"
    training = record.training
    return text if training is None or not training.kept else f"{text}, {training.adapter} adapter trained"


def training_facts(record: TrainingRecord) -> list[tuple[str, str]]:
    """Return what a training was worth on the held-out queries, which quantizer was kept, and its curves."""
    log, measure = record.log, record.measure
    values = [
        f"{what} {record.trained[stage][measure]:.3f} (untrained {record.untrained[stage][measure]:.3f})"
        for stage, what in (("adc", measure), ("hamming", "Hamming"))
    ]
    kept = f"kept the trained quantizer, {100 * record.gain:.1f} % better"
    if not record.kept:
        kept = "no better, so kept the untrained quantizer"
    losses, gains = [sum(line["losses"].values()) for line in log], [100 * line["gain"] for line in log]
    curves = f"loss {sparkline(losses)} {losses[0]:.3g} to {losses[-1]:.3g}, "
    curves += f"held-out gain {sparkline(gains)} {max(gains):+.1f} %"
    return [
        ("training", f"{len(log)} epochs in {record.seconds:.0f} s; {kept}"),
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
