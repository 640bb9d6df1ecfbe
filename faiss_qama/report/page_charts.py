"""The charts of the report page: what each shows, its caption, its key figures and its table (extra ``report``)."""

from __future__ import annotations

from collections import Counter

import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Floats
from faiss_qama.comparison.methods import measure_alternatives, shared_bytes
from faiss_qama.corpus import Corpus
from faiss_qama.evaluation.datasets import Dataset
from faiss_qama.pipeline import FitResult
from faiss_qama.quantizer.calibration import DEFAULT_AIM, KS, OVERSAMPLES, RECALL, K
from faiss_qama.quantizer.layout import CodeLayout, Segment
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.report import charts
from faiss_qama.report.charts import Chart
from faiss_qama.report.tables import bytes_text, kept_text, size_text
from faiss_qama.training.layout_choice import TRIAL_DOCUMENTS, LayoutTrial

SHOWN = 4  # columns whose thresholds are drawn
SLOWER = 0.9  # a speed below this share of another is slower; a smaller difference may be noise
_READABLE = {"binary": "sign bits", "binary+codes": "sign bits, float query", "scalar": "int8"}


def page_charts(result: FitResult) -> list[Chart]:
    """Return the charts for which something was measured.

    Parameters
    ----------
    result : FitResult
        What :func:`faiss_qama.pipeline.fit_index` returned.

    Returns
    -------
    list of Chart
        In the order of the page.
    """
    quantizer, sample = result.index.quantizer, result.split.train[:: -(-len(result.split.train) // TRIAL_DOCUMENTS)]
    out = [] if result.choice is None else [_recall_by_bytes(result, sample)]
    if quantizer.calibration is not None:
        out.append(_recall_by_candidates(result))
    if result.measured:
        out.append(_against_exact_search(result))
    out += [_variance_and_bits(result, sample), _thresholds(result, sample)]
    return out + ([_training(result)] if quantizer.fit_record.training is not None else [])


def _recall_by_bytes(result: FitResult, sample: Floats) -> Chart:
    choice = result.choice
    assert choice is not None
    chosen, rescore = choice.chosen, "none" if result.index.rescore == "none" else "codes"
    # Documents that stand in for queries are not in the sample, so none is to be excluded.
    dataset = Dataset(Corpus(sample), result.split.validation)
    others = [
        (_readable(method.name), method.bytes[0], method.mean.recall)
        for method in measure_alternatives(dataset, K, result.index.metric_type)
    ]
    others.append(("float32", 4 * sample.shape[1], 1.0))

    def candidates(trial: LayoutTrial) -> str:
        return f"{trial.candidates():,.0f}" if np.isfinite(trial.candidates()) else "-"

    rows = [
        [
            f"{trial.layout} {trial.rotation}{' (chosen)' if trial is chosen else ''}",
            str(trial.bytes),
            f"{trial.recall(rescore):.3f}",
            candidates(trial),
        ]
        for trial in choice.trials
    ] + [[name, str(size), f"{recall:.3f}", "-"] for name, size, recall in others]
    key = [
        ("chosen", f"{chosen.layout}, rotation {chosen.rotation}, {chosen.bytes} bytes"),
        (f"recall@{K} of its codes", f"{chosen.recall(rescore):.3f}"),
    ]
    if result.index.rescore not in ("none", "codes"):
        key.append((f"candidates to re-rank for recall {RECALL}", candidates(chosen)))
    key += [("measured on", f"a sample of {len(sample):,} vectors"), ("queries", _validation_queries(result))]
    if result.measured:
        on_all = result.measured[1].mean.recall
        key.append((f"recall@{K} of its codes on all {len(result.corpus):,} vectors", f"{on_all:.3f}"))
    return Chart(
        "Recall by bytes per vector",
        "Recall of the codes alone on a sample, without re-ranking; the higher and the farther left, the better.",
        charts.recall_by_bytes(
            [(trial.bytes, trial.recall(rescore)) for trial in choice.trials],
            others,
            (chosen.bytes, chosen.recall(rescore)),
            str(chosen.layout),
        ),
        ["method", "bytes", f"recall@{K}", f"candidates for recall {RECALL}"],
        rows,
        key,
    )


def _recall_by_candidates(result: FitResult) -> Chart:
    index, calibration = result.index, result.index.quantizer.calibration
    assert calibration is not None
    row, n = KS.index(K), len(result.corpus)
    sizes = [K * oversample for oversample in OVERSAMPLES if K * oversample <= 2 * calibration.n]
    curves = {"re-ranked by floats": calibration.floats[row], "re-ranked by codes": calibration.codes[row]}
    curves = {name: curve[: len(sizes)] for name, curve in curves.items()}
    marks, key = [], []
    if index.rescore != "none":
        stage = "codes" if index.rescore == "codes" else "floats"
        aim = DEFAULT_AIM[stage] * (1.0 if stage == "floats" else calibration.codes[row].max())
        marks = [(K * calibration.oversample(K, n, stage), aim)]
        asked = f"{RECALL}" if stage == "floats" else f"{DEFAULT_AIM[stage]:.0%} of the highest, {aim:.3f}"
        key = [("recall by default", asked), ("candidates for it", f"{marks[0][0]:,.0f}")]
        if stage == "floats":
            key.append(("recall with them here", f"{aim:.3f} or more: half of the misses are kept for harder queries"))
    key += [("measured on", f"{calibration.n:,} vectors"), ("queries", _validation_queries(result))]
    rows = [[f"{size:,.0f}", *(f"{curve[i]:.3f}" for curve in curves.values())] for i, size in enumerate(sizes)]
    return Chart(
        "Recall by number of candidates",
        "The codes give candidates by Hamming distance, and re-ranking more of them finds more of the true neighbours.",
        charts.recall_by_candidates(sizes, curves, marks),
        ["candidates", *curves],
        rows,
        key,
    )


def _against_exact_search(result: FitResult) -> Chart:
    measured, rescore = result.measured, result.index.rescore
    speeds = [method.mean.queries_per_second for method in measured]
    speed = [(method.name, f"{s:,.0f}", [s]) for method, s in zip(measured, speeds, strict=True)]
    size = [(method.name, bytes_text(method.bytes), list(method.bytes)) for method in measured]
    second = "in memory, residual code" if rescore == "codes" else "on disk, to re-rank"
    parts = ["in memory", second] if any(method.bytes[1] for method in measured) else ["in memory"]
    rows = [
        [method.name, bytes_text(method.bytes), f"{method.mean.recall:.3f}", f"{s:,.0f}"]
        for method, s in zip(measured, speeds, strict=True)
    ]
    shared = size_text(shared_bytes(result.index.quantizer))
    note = "Speed and size of exact search and of the index, on the whole corpus."
    if len(measured) == 3 and speeds[1] < SLOWER * speeds[2]:
        note += f" {_why_codes_are_slower(result)}"
    return Chart(
        "Compared with exact search",
        note,
        charts.bars([("queries per second", speed), ("bytes per vector", size)], parts),
        ["method", "bytes", f"recall@{K}", "queries/s"],
        rows,
        [
            ("queries", result.queries),
            ("speed, measured in turns with exact search", f"{result.speedup:.1f} times as fast"),
            ("quantizer, shared by all vectors", f"{shared}, not in the chart"),
        ],
    )


def _why_codes_are_slower(result: FitResult) -> str:
    """Return why re-ranking from the codes takes longer than from floats."""
    calibration, n = result.index.quantizer.calibration, len(result.corpus)
    why = "Re-ranking from codes is slower here: the score of a candidate sums a weight for every bit of its code."
    if calibration is None:
        return why
    codes, floats = (K * calibration.oversample(K, n, stage) for stage in ("codes", "floats"))
    if codes <= floats:
        return why
    return (
        f"Re-ranking from codes is slower here: by default it takes {codes:,.0f} candidates, from floats {floats:,.0f}."
    )


def _variance_and_bits(result: FitResult, sample: Floats) -> Chart:
    quantizer = result.index.quantizer
    variance = _variance(sample, quantizer)
    whole = variance.sum() or 1
    shares, bits = variance / whole, _bits(quantizer.layout, len(variance))
    coded = quantizer.layout.components
    curves = {"the corpus": (shares, bits)}
    key = [
        ("code", _segments_text(quantizer.layout)),
        ("variance of the components in the code", f"{100 * shares[:coded].sum():.1f} %"),
    ]
    if quantizer.residual is not None:
        layout = quantizer.residual.layout
        left = _variance(quantizer.residual_of(sample, quantizer.encode(sample)), quantizer) / whole
        curves["the residual"] = left, _bits(layout, len(left))
        key += [("residual code", _segments_text(layout)), ("variance of the residual", f"{100 * left.sum():.1f} %")]
    elif len(shares) > coded:
        key.append(("components without bits", f"{len(shares) - coded}"))
    header = ["component", "% of variance", "bits", "% of variance, residual", "bits, residual"][: 1 + 2 * len(curves)]
    rows = [
        [str(i + 1)] + [cell for share, bit in curves.values() for cell in (f"{100 * share[i]:.3f}", f"{bit[i]:g}")]
        for i in range(len(shares))
    ]
    return Chart(
        "Bits by component",
        "The variance of each component, and the bits that the code gives it.",
        charts.variance_and_bits(curves),
        header,
        rows,
        key,
    )


def _variance(x: Floats, quantizer: Quantizer) -> NDArray[np.float64]:
    """Return the variance (d,) of ``x`` by component, before any rotation: principal, or the embedding's own."""
    if quantizer.fit_record.projection != "pca":
        return np.asarray(x.var(axis=0, dtype=np.float64))
    principal = np.linalg.eigvalsh(np.atleast_2d(np.cov(x.T.astype(np.float64))))[::-1]
    return np.maximum(principal, 0)


def _bits(layout: CodeLayout, d: int) -> NDArray[np.float64]:
    """Return the bits (d,) of each component, 0 for components that are not in the code; of a trellis in both codes."""
    if layout.trellis:
        given = np.array(layout.bits_of_components, np.float64).sum(axis=1)
        return np.pad(given, (0, d - len(given)))
    given = np.repeat([_bit(segment) for segment in layout.segments], [s.components for s in layout.segments])
    return np.pad(given, (0, d - len(given)))


def _bit(segment: Segment) -> float:
    """Return the bits per component of a segment."""
    return float(segment.bits.removesuffix("or"))


def _segments_text(layout: CodeLayout) -> str:
    """Return the segments of a layout in words."""
    if layout.trellis:
        counts = Counter(map(sum, layout.bits_of_components))
        listed = ", ".join(f"{counts[bits]} at {bits} bit{'s' * (bits > 1)}" for bits in sorted(counts, reverse=True))
        return f"components, trellis-coded: {listed}"
    return ", ".join(
        f"{s.components} components of {s.levels} levels{' per pair' if s.group == 2 else ''} "
        f"({_bit(s):g} bit{'' if _bit(s) == 1 else 's'})"
        for s in layout.segments
    )


def _thresholds(result: FitResult, sample: Floats) -> Chart:
    quantizer = result.index.quantizer
    z = quantizer.transform(sample)
    shown = np.unique(np.linspace(0, z.shape[1] - 1, SHOWN).astype(int))
    columns = [(int(i) + 1, z[:, i], quantizer.thresholds[i][np.isfinite(quantizer.thresholds[i])]) for i in shown]
    rows = []
    for number, values, thresholds in columns:
        levels = np.searchsorted(thresholds, values, side="right")
        shares = [100 * np.mean(levels == level) for level in range(len(thresholds) + 1)]
        cells = ", ".join(f"{threshold:.2g}" for threshold in thresholds), " ".join(f"{s:.0f}" for s in shares)
        rows.append([str(number), *cells])
    return Chart(
        "Thresholds",
        "Values of a few columns after the rotation; dashed lines are the thresholds between levels.",
        charts.histograms(columns),
        ["column", "thresholds", "% per level"],
        rows,
    )


def _training(result: FitResult) -> Chart:
    record = result.index.quantizer.fit_record.training
    assert record is not None
    losses = [sum(line["losses"].values()) for line in record.log]
    gains = [100 * line["gain"] for line in record.log]
    rows = [
        [str(i + 1), f"{loss:.4g}", f"{gain:+.2f}"] for i, (loss, gain) in enumerate(zip(losses, gains, strict=True))
    ]
    return Chart(
        "Training",
        "The loss, and the gain on held-out queries over the quantizer without training, after each epoch.",
        charts.training(losses, gains),
        ["epoch", "loss", "gain, %"],
        rows,
        [
            ("kept", kept_text(record)),
            ("gain is in", f"{record.measure}, the mean of re-ranked codes and of Hamming distances"),
            ("largest gain", f"{max(gains):+.1f} %"),
            ("loss, first and last epoch", f"{losses[0]:.3g}, {losses[-1]:.3g}"),
        ],
    )


def _validation_queries(result: FitResult) -> str:
    """Return in words what layouts and candidates were measured with."""
    n = len(result.split.validation)
    if result.split.train_queries is not None:
        return f"{n} held-out queries"
    return f"{n} held-out documents with noise added"


def _readable(method: str) -> str:
    """Return what a reader calls a method of :mod:`faiss_qama.comparison.methods`."""
    factory = method.removeprefix("faiss:")
    return _READABLE.get(method, factory.partition(",")[2] or factory)
