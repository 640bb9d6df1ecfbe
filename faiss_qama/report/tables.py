"""What the command line prints: tables, sizes, and the summary of a fit."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tabulate import tabulate

from faiss_qama.comparison.methods import shared_bytes
from faiss_qama.comparison.tasks import TaskResult
from faiss_qama.evaluation.bootstrap import bootstrap_interval, percent
from faiss_qama.evaluation.ranking_metrics import PerQuery
from faiss_qama.evaluation.results import MethodResult
from faiss_qama.hamming.factory import AUTO
from faiss_qama.index.tuning import MIN_VECTORS, BaseTrial
from faiss_qama.pipeline import FitResult
from faiss_qama.quantizer.calibration import K
from faiss_qama.quantizer.fit_record import MAY_LOSE, TrainingRecord, quality_ratios
from faiss_qama.quantizer.quantizer import Quantizer

COLUMNS, INDENT = 80, 12  # of a terminal; of the names of facts
_ROTATIONS = {"itq": "ITQ rotation", "random": "random rotation"}
_THRESHOLDS = {"lloyd": "Lloyd-Max", "normal": "Gaussian-optimal"}


def fit_summary(result: FitResult) -> str:
    """Return what a fit made, what it chose and why, and the table of what was measured.

    Parameters
    ----------
    result : FitResult
        What :func:`faiss_qama.pipeline.fit_index` returned.

    Returns
    -------
    str
        Several lines. The last ones say where the index is and what to type next.
    """
    (n, d), index, quantizer = result.corpus.shape, result.index, result.index.quantizer
    size = size_text(result.corpus.nbytes)
    rows = [
        ("corpus", f"{n:,} x {d} {result.corpus.dtype}, {size}, metric {quantizer.metric_name}"),
        ("quantizer", f"{quantizer_text(quantizer)}, fitted in {result.fit_seconds:.1f} s"),
    ]
    if result.choice is not None:
        rows.append(("chosen", f"{result.choice.chosen.layout}, on a sample: {result.choice.reason}"))
    if result.asked_bytes not in (None, result.taken_bytes):
        why = f"layouts come in steps of 8 components, up to all {d}, and codes of Flat and IVF in steps of 4 bytes"
        rows.append(("bytes", f"{result.taken_bytes} per vector, not {result.asked_bytes}: {why}"))
    rows += base_facts(index.base_trials, n, auto=result.spec.base == AUTO)
    if result.flat_speed is not None:
        rows += _flat_facts(result, result.flat_speed)
    if quantizer.fit_record.of_matryoshka_model:
        half, own, components = quantizer.fit_record.explained_variance[-1]
        held = f"the first {half} of {d} dimensions hold {own:.0%} of the variance"
        rows.append(("note", f"{held}, as in a Matryoshka model; as many principal components hold {components:.0%}"))
    if quantizer.fit_record.training is not None:
        rows += training_facts(quantizer.fit_record.training)
    table = "(too few vectors to hold any out, so nothing was measured)"
    if result.measured:
        exact, *others = result.measured
        methods = [exact, *([] if result.untrained is None else [result.untrained]), *others]
        table = results_table(methods, K, f"on {result.queries}") + seen_table(methods, result.split.test_seen)
    shared = size_text(shared_bytes(quantizer))
    on_disk = f", {size_text(result.on_disk)} on disk" if result.on_disk else ""
    end = [f"wrote {result.path}: {size_text(result.memory)} of memory ({shared} the quantizer){on_disk}"]
    if result.stand_ins:
        end.append("Documents with noise stood in for queries. Yours may need fewer candidates, and")
        end.append("find more or less: fit with --queries to calibrate and measure with them.")
    return "\n".join([facts(rows), table, *end, *(f"next: {command}" for command in result.next_commands)])


def _flat_facts(result: FitResult, flat_speed: float) -> list[tuple[str, str]]:
    """Return a line if the base is no faster than ``Flat``; speeds are those of whole searches."""
    speed = result.measured[-1].mean.queries_per_second
    if speed > flat_speed:
        return []
    text = f"{result.spec.base} is no faster than Flat here: {speed:,.0f} queries/s, with --base Flat {flat_speed:,.0f}"
    return [("note", text)]


def base_facts(trials: Sequence[BaseTrial], n: int, *, auto: bool) -> list[tuple[str, str]]:
    """Return how the base of an index was chosen or tuned.

    Parameters
    ----------
    trials : sequence of BaseTrial
        The base that was taken, then the others.
    n : int
        Vectors in the index.
    auto : bool
        Whether the base was to be chosen.

    Returns
    -------
    list of tuple of str
        Name and value of each line, for :func:`facts`.
    """
    if not trials:
        return []
    chosen, *others = trials
    reason = ""
    if auto and n < MIN_VECTORS:
        reason = f"; below {MIN_VECTORS:,} vectors nothing else is tried"
    elif auto:
        reason = "; the fastest of" if others else "; no other base keeps the recall in that memory"
    return [("base", f"{chosen}{reason}"), *(("", str(trial)) for trial in others)]


def results_table(measured: Sequence[MethodResult], k: int, what: str = "") -> str:
    """Return the table of methods: bytes, recall and speed, and a table of ranking metrics if there are grades.

    Parameters
    ----------
    measured : sequence of MethodResult
        The methods, exact floats first.
    k : int
        The number of hits that was measured.
    what : str
        The header of the column of names.

    Returns
    -------
    str
        A header, and one line per method; after an empty line the same for the ranking metrics.
    """
    exact = measured[0].mean
    rows = []
    for method in measured:
        size, mean = bytes_text(method.bytes), method.mean
        rows.append([method.name, size, f"{mean.recall:.3f}", f"{mean.queries_per_second:,.0f}"])
    table = _plain([what, "bytes/vector", f"recall@{k}", "queries/s"], rows)
    if exact.ndcg is None:
        return table
    rows = []
    for method in measured:
        values = method.mean.values
        cells = [f"{values[measure].mean():.4f}" for measure in ("ndcg", "relevant_recall", "mrr")]
        rows.append([method.name, *cells, *_percent_of_floats(values["ndcg"], exact.values["ndcg"])])
    header = [what, f"nDCG@{k}", f"relevant@{k}", f"MRR@{k}", "% of float", "95 % interval"]
    return f"{table}\n\n{_plain(header, rows)}"


def seen_table(measured: Sequence[MethodResult], seen: NDArray[np.bool_]) -> str:
    """Return the table that keeps apart queries about documents that were trained on, and queries about others.

    Parameters
    ----------
    measured : sequence of MethodResult
        The methods, with ranking metrics.
    seen : ndarray of shape (nq,), bool
        Whether the pairs that were trained on name a document that is relevant to the query.

    Returns
    -------
    str
        An empty line, a header, and one line per method; nothing if all queries are of one kind.
    """
    if not seen.any() or seen.all():
        return ""
    kinds = {"trained on": seen, "others": ~seen}
    header = [f"nDCG@{K}, relevant documents are"] + [f"{kind} ({part.sum()})" for kind, part in kinds.items()]
    rows = [
        [method.name, *(f"{method.mean.values['ndcg'][part].mean():.4f}" for part in kinds.values())]
        for method in measured
    ]
    return f"\n\n{_plain(header, rows)}"


def task_table(measured: Sequence[TaskResult]) -> str:
    """Return the table of methods on a task: bytes, score, percent of float and its 95 % interval.

    Parameters
    ----------
    measured : sequence of TaskResult
        The methods, exact floats first.

    Returns
    -------
    str
        A header, and one line per method.
    """
    rows = []
    for method in measured:
        share, (low, high) = method.retained
        cells = [f"{method.score:.4f}", f"{share:.1f}", f"{low:.1f} to {high:.1f}"]
        rows.append([method.name, str(method.bytes), *cells])
    return _plain(["", "bytes/vector", measured[0].task.measure, "% of float", "95 % interval"], rows)


def percent_interval(values: PerQuery, floats: PerQuery) -> tuple[float, float]:
    """Return the 95 % interval of a mean in percent of the floats' mean.

    Parameters
    ----------
    values : ndarray of shape (nq,), float64
        One value per query.
    floats : ndarray of shape (nq,), float64
        Those of the floats, of the same queries.

    Returns
    -------
    low, high : float
        The bounds of the interval.
    """
    return bootstrap_interval(lambda rows: percent(values[rows].mean(), floats[rows].mean()), len(values))


def _percent_of_floats(values: PerQuery, floats: PerQuery) -> tuple[str, str]:
    """Return a mean in percent of the floats' mean, and its interval, both over the same queries."""
    if not floats.any():
        return "-", "-"
    low, high = percent_interval(values, floats)
    return f"{100 * values.mean() / floats.mean():.1f}", f"{low:.1f} to {high:.1f}"


def _plain(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    align = ["left"] + ["right"] * (len(header) - 1)
    return tabulate([header, *rows], tablefmt="plain", colalign=align, disable_numparse=True)


def bytes_text(size: tuple[int, int]) -> str:
    """Return bytes per vector in words: of the codes, plus those of the data kept to re-rank with.

    Parameters
    ----------
    size : tuple of int
        Bytes of the codes, and of the data kept to re-rank with.

    Returns
    -------
    str
        Such as ``72 + 768``.
    """
    return " + ".join(str(part) for part in size if part) or "0"


def size_text(size: int) -> str:
    """Return a size in decimal units.

    Parameters
    ----------
    size : int
        Bytes.

    Returns
    -------
    str
        Such as ``97.2 MB``.
    """
    value = float(size)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            break
        value /= 1000
    return f"{value:,.0f} {unit}" if unit == "bytes" else f"{value:,.1f} {unit}"


def quantizer_text(quantizer: Quantizer) -> str:
    """Return the layout, the transform and the thresholds of a quantizer in words.

    Parameters
    ----------
    quantizer : Quantizer
        The quantizer, from :func:`faiss_qama.training.fit`.

    Returns
    -------
    str
        Such as ``2x192, PCA + ITQ rotation, Lloyd-Max``.
    """
    record = quantizer.fit_record
    steps = [
        {True: "PCA", False: "SVD"}[record.center] if record.projection == "pca" else "",
        _ROTATIONS.get(record.rotation, ""),
    ]
    transform = " + ".join(step for step in steps if step) or "no rotation"
    if record.matryoshka_dims:
        dims = record.matryoshka_dims
        transform += f" inside dimensions {dims if isinstance(dims, str) else '/'.join(map(str, dims))}"
    thresholds = record.thresholds
    cut = "trellis" if quantizer.layout.trellis else _THRESHOLDS.get(thresholds, thresholds + " thresholds")
    text = f"{quantizer.layout}, {transform}, {cut}"
    training = record.training
    return text if training is None or not training.kept else f"{text}, {training.adapter} adapter trained"


def training_facts(record: TrainingRecord) -> list[tuple[str, str]]:
    """Return the result of a training on held-out queries, which quantizer was kept, and the curves.

    Parameters
    ----------
    record : TrainingRecord
        ``quantizer.fit_record.training``.

    Returns
    -------
    list of tuple of str
        Name and value of each line, for :func:`facts`.
    """
    log, measure = record.log, record.measure
    values = [
        f"{what} {record.trained[stage][measure]:.3f} (untrained {record.untrained[stage][measure]:.3f})"
        for stage, what in (("adc", "codes"), ("hamming", "Hamming"))
    ]
    losses, gains = [sum(line["losses"].values()) for line in log], [100 * line["gain"] for line in log]
    curves = f"loss {sparkline(losses)} {losses[0]:.3g} to {losses[-1]:.3g}, "
    curves += f"held-out gain {sparkline(gains)} {max(gains):+.1f} %"
    return [
        ("training", f"{len(log)} epochs in {record.seconds:.0f} s; kept {kept_text(record)}"),
        ("", f"on the held-out queries that chose the epoch: {', '.join(values)}"),
        ("", curves),
    ]


def kept_text(record: TrainingRecord) -> str:
    """Return which quantizer was kept after a training, and why.

    Parameters
    ----------
    record : TrainingRecord
        ``quantizer.fit_record.training``.

    Returns
    -------
    str
        Such as ``the trained quantizer: nDCG@10 +9.0 % in the mean of the stages``.
    """
    measure = record.measure
    text = f"{measure} {100 * record.gain:+.1f} % in the mean of the stages"
    if record.kept:
        return f"the trained quantizer: {text}"
    worst = min(quality_ratios(record.trained, record.untrained, measure)) - 1
    return (
        f"the untrained quantizer: {text} and {100 * worst:+.1f} % in the worst; "
        f"more than 0 % and at least {-100 * MAY_LOSE:g} % are needed"
    )


def sparkline(values: Sequence[float]) -> str:
    """Return a curve as text.

    Parameters
    ----------
    values : sequence of float
        The values.

    Returns
    -------
    str
        One block character per value, from the lowest to the highest.
    """
    low, high = min(values), max(values)
    return "".join("▁▂▃▄▅▆▇█"[int(7.999 * (v - low) / (high - low or 1))] for v in values)


def facts(rows: Iterable[tuple[str, Any]]) -> str:
    """Return names and values, one pair per line.

    Parameters
    ----------
    rows : iterable of tuple
        Name and value. An empty name continues the line above.

    Returns
    -------
    str
        Lines of 80 columns or fewer, with the values aligned.
    """
    lines = []
    for name, value in rows:
        first, *others = textwrap.wrap(
            str(value), COLUMNS - INDENT, break_long_words=False, break_on_hyphens=False
        ) or [""]
        lines += [f"{name:<{INDENT}}{first}", *(" " * INDENT + line for line in others)]
    return "\n".join(lines)
