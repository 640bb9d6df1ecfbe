"""The report as a page: what each byte buys on a corpus, what was chosen, and why (extra ``report``)."""

from __future__ import annotations

import math
import os
import platform
import warnings
from datetime import datetime
from importlib.metadata import version

import faiss
import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Floats
from faiss_qama.comparison.methods import measure
from faiss_qama.evaluation.recall import Dataset, MethodResult, exact
from faiss_qama.pipeline import FitResult, K
from faiss_qama.quantizer.calibration import DEFAULT_AIM, KS, OVERSAMPLES, RECALL
from faiss_qama.quantizer.layout import CodeLayout, Segment
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.report.tables import bytes_text
from faiss_qama.storage import atomic_files
from faiss_qama.training.layout_choice import SAMPLE, LayoutTrial
from faiss_qama.vectors import Corpus, PathLike

try:
    import jinja2

    from faiss_qama.report import charts
    from faiss_qama.report.charts import Chart
except ModuleNotFoundError as error:
    if error.name not in ("jinja2", "matplotlib"):
        raise
    raise ImportError("a report needs jinja2 and matplotlib: pip install 'faiss-qama[report]'") from None

PQ_NEEDS = 1000  # vectors to train 16 centroids on; 256, at as many bytes, take FAISS minutes
SHOWN = 4  # components whose cuts are split


def write_page(outcome: FitResult, path: PathLike, command: str) -> None:
    """Write what ``outcome`` is worth to ``path``: one HTML file that loads nothing.

    ``command`` is what remakes it. Takes some seconds more: the alternatives are measured on a sample of the corpus.
    """
    environment = jinja2.Environment(loader=jinja2.PackageLoader("faiss_qama", "report"), autoescape=True)
    page = environment.get_template("page.html.jinja").render(
        name=", ".join(source.name for source in outcome.corpus.paths) or "a corpus",
        date=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        summary=summary(outcome),
        tiles=_tiles(outcome),
        charts=page_charts(outcome),
        described=charts.described,
        printed=str(outcome),
        command=command,
        versions=_versions(),
    )
    atomic_files.write_text(path, page)


def summary(outcome: FitResult) -> str:
    """Return in a sentence what was gained and what it costs."""
    n, d = outcome.corpus.shape
    size, _ = _bytes(outcome)
    text = f"{n:,} vectors of {d} dimensions take {size:,} bytes each instead of {4 * d:,} (1/{4 * d / size:.0f}); "
    if not outcome.measured:
        return text + "they are too few to hold any out, so nothing was measured."
    mean, rescore = outcome.measured[-1].mean, outcome.index.rescore
    how = {"none": "by Hamming distance alone", "codes": "by the codes alone"}
    found = math.floor(1000 * mean.recall + 1e-6) / 10  # never more than was measured
    return (
        f"{text}{how.get(rescore, f'with {rescore} rescoring from disk')} a search finds {found} % of "
        f"the true {K} nearest, at {_speedup(outcome):.1f} times the speed of exact search."
    )


def page_charts(outcome: FitResult) -> list[Chart]:
    """Return the charts that there is something to show for."""
    quantizer, sample = outcome.index.quantizer, outcome.split.train[:: -(-len(outcome.split.train) // SAMPLE)]
    out = [] if outcome.choice is None else [_frontier(outcome, sample)]
    if quantizer.calibration is not None:
        out.append(_candidates(outcome))
    if outcome.measured:
        out.append(_bars(outcome))
    out += [_spectrum(outcome, sample), _histograms(outcome, sample)]
    return out + ([_training(outcome)] if "training" in quantizer.config else [])


def alternatives(outcome: FitResult, sample: Floats) -> list[MethodResult]:
    """Return what other codes are worth, on the vectors and the queries that the layouts were tried on."""
    n, d = sample.shape
    names = ["binary", "binary+codes", "scalar", f"faiss:RR{d},RaBitQ"]
    if d % 4 == 0 and n >= PQ_NEEDS:
        names.append(f"faiss:PQ{d // 4}x4np")  # np: without what polysemous search alone needs
    # Documents that stand in for queries are not in the sample: none is to be excluded.
    dataset = Dataset(Corpus(sample), outcome.split.validation)
    truth = exact(dataset, K, outcome.index.quantizer.metric)
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)  # a PQ's trainings are so small that threads would mostly wait for each other
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fitted on")  # that was said of the corpus
            return [measure(name, dataset, truth) for name in names]
    finally:
        faiss.omp_set_num_threads(threads)


def _frontier(outcome: FitResult, sample: Floats) -> Chart:
    choice = outcome.choice
    assert choice is not None
    rescore = "none" if outcome.index.rescore == "none" else "codes"
    others = [(_name(m.name), m.bytes[0], m.mean.recall) for m in alternatives(outcome, sample)] + [
        ("float32", 4 * sample.shape[1], 1.0)
    ]
    ours = [(trial.bytes, trial.recall(rescore)) for trial in choice.trials]
    chosen = choice.chosen

    def worth(trial: LayoutTrial) -> str:
        if outcome.index.rescore in ("none", "codes"):
            return f"recall {trial.recall(rescore):.3f}"
        return f"recall {trial.recall():.3f}, and {RECALL} by scoring {trial.candidates():,.0f} candidates again"

    rows = [
        [
            f"{t.layout} {t.rotation}{' (chosen)' if t is chosen else ''}",
            str(t.bytes),
            f"{t.recall(rescore):.3f}",
            f"{t.candidates():,.0f}" if np.isfinite(t.candidates()) else "-",
        ]
        for t in choice.trials
    ] + [[name, str(size), f"{recall:.3f}", "-"] for name, size, recall in others]
    note = (
        f"The codes alone, before any rescoring, on a sample of {len(sample):,} vectors and "
        f"{len(outcome.split.validation)} {_asked(outcome)}. Taken: {chosen.layout} with rotation {chosen.rotation}, "
        f"{chosen.bytes} bytes, {worth(chosen)}."
    )
    rivals = [
        f"{t.layout} {t.rotation} {worth(t)}" for t in choice.trials if t.bytes == chosen.bytes and t is not chosen
    ]
    note += f" Of the same size: {'; '.join(rivals)}." if rivals else ""
    svg = charts.frontier(ours, others, (chosen.bytes, chosen.recall(rescore)), chosen.layout)
    header = ["method", "bytes", f"recall@{K}", "candidates for .95 rescored"]
    return Chart("How much quality each byte buys", note, svg, header, rows)


def _candidates(outcome: FitResult) -> Chart:
    index, calibration = outcome.index, outcome.index.quantizer.calibration
    assert calibration is not None
    row, n = KS.index(K), len(outcome.corpus)
    sizes = [K * oversample for oversample in OVERSAMPLES if K * oversample <= 2 * calibration.n]
    curves = {"rescored by floats": calibration.floats[row], "by the codes": calibration.codes[row]}
    curves = {name: curve[: len(sizes)] for name, curve in curves.items()}
    marks = []
    note = "By Hamming distance candidates are found, then scored again."
    if index.rescore != "none":
        stage = "codes" if index.rescore == "codes" else "floats"
        aim = DEFAULT_AIM[stage] * (1.0 if stage == "floats" else calibration.codes[row].max())
        marks = [(K * calibration.oversample(K, n, stage), aim)]
        note += (
            f" A search that names neither recall nor oversample aims at {aim:.3f} and scores {marks[0][0]:,.0f} "
            f"again: what the aim takes here, and a margin for {n:,} vectors."
        )
    note += f" MethodResult on {calibration.n:,} vectors with {len(outcome.split.validation)} {_asked(outcome)}."
    rows = [[f"{size:,.0f}", *(f"{curve[i]:.3f}" for curve in curves.values())] for i, size in enumerate(sizes)]
    svg = charts.candidates(sizes, curves, marks)
    return Chart("How far a search has to look", note, svg, ["candidates", *curves], rows)


def _bars(outcome: FitResult) -> Chart:
    measured = outcome.measured
    names = [_name(m.name).replace(" rescoring", "") for m in measured]
    speeds = [m.mean.queries_per_second for m in measured]
    speed = [(name, f"{s:,.0f}", [s]) for name, s in zip(names, speeds, strict=True)]
    size = [(name, bytes_text(m.bytes), list(m.bytes)) for name, m in zip(names, measured, strict=True)]
    second = "second code" if outcome.index.rescore == "codes" else "on disk, to rescore"
    parts = ["in memory", second] if any(m.bytes[1] for m in measured) else ["in memory"]
    each = "; ".join(
        f"{m.name}: {s:,.0f} queries/s, {bytes_text(m.bytes)} bytes" for m, s in zip(measured, speeds, strict=True)
    )
    rows = [
        [m.name, bytes_text(m.bytes), f"{m.mean.recall:.3f}", f"{m.mean.queries_per_second:,.0f}"] for m in measured
    ]
    svg = charts.bars([("queries a second", speed), ("bytes a vector", size)], parts)
    note = f"The whole corpus, on {outcome.queries}. {each}."
    return Chart("Against exact search", note, svg, ["", "bytes", f"recall@{K}", "queries/s"], rows)


def _spectrum(outcome: FitResult, sample: Floats) -> Chart:
    quantizer = outcome.index.quantizer
    variance = _variance(sample, quantizer)
    whole = variance.sum() or 1
    shares, bits = variance / whole, _bits(quantizer.layout, len(variance))
    kept = quantizer.layout.components
    curves = {"the corpus": (shares, bits)}
    note = (
        f"The first {kept} of {len(shares)} components hold {100 * shares[:kept].sum():.1f} % of the variance of a "
        f"sample; the code has {_levels(quantizer.layout)}."
    )
    if quantizer.residual is not None:
        layout = quantizer.residual.layout
        left = _variance(sample - quantizer.decode_unnormalized(quantizer.encode(sample)), quantizer) / whole
        curves["left over"] = left, _bits(layout, len(left))
        note += (
            f" That leaves {100 * left.sum():.1f} % over, whose own components have a second code, of "
            f"{_levels(layout)}."
        )
    elif len(shares) > kept:
        note += f" The other {len(shares) - kept} get none."
    header = ["component", "% of variance", "bits", "% left over", "bits of the second code"][: 1 + 2 * len(curves)]
    rows = [
        [str(i + 1)] + [cell for share, bit in curves.values() for cell in (f"{100 * share[i]:.3f}", f"{bit[i]:g}")]
        for i in range(len(shares))
    ]
    return Chart("Where the bits went", note, charts.spectrum(curves), header, rows)


def _variance(x: Floats, quantizer: Quantizer) -> NDArray[np.float64]:
    """Return the variance (d,) of ``x`` along what ``quantizer`` takes components from, before any rotation.

    That is principal components, or the embedding's own.
    """
    if quantizer.config.get("projection") != "pca":
        return np.asarray(x.var(axis=0, dtype=np.float64))
    principal = np.linalg.eigvalsh(np.atleast_2d(np.cov(x.T.astype(np.float64))))[::-1]
    return np.maximum(principal, 0)


def _bits(layout: CodeLayout, d: int) -> NDArray[np.float64]:
    """Return the bits (d,) of each component, 0 of those that the code does not have."""
    given = np.repeat([_bit(segment) for segment in layout.segments], [s.components for s in layout.segments])
    return np.pad(given, (0, d - len(given)))


def _bit(segment: Segment) -> float:
    """Return the bits a component of a segment."""
    return float(segment.bits.removesuffix("or"))


def _levels(layout: CodeLayout) -> str:
    """Return in words what a code has."""
    return ", ".join(
        f"{s.components} components of {s.levels} levels{' a pair' if s.group == 2 else ''} "
        f"({_bit(s):g} bit{'' if _bit(s) == 1 else 's'})"
        for s in layout.segments
    )


def _histograms(outcome: FitResult, sample: Floats) -> Chart:
    quantizer = outcome.index.quantizer
    z = quantizer.transform(sample)
    shown = np.unique(np.linspace(0, z.shape[1] - 1, SHOWN).astype(int))
    columns = [(int(i) + 1, z[:, i], quantizer.thresholds[i][np.isfinite(quantizer.thresholds[i])]) for i in shown]
    rows = [
        [
            str(number),
            ", ".join(f"{cut:.2g}" for cut in cuts),
            " ".join(
                f"{100 * np.mean(np.searchsorted(cuts, values, side='right') == i):.0f}" for i in range(len(cuts) + 1)
            ),
        ]
        for number, values, cuts in columns
    ]
    note = "Values of a sample after the rotation, and the cuts between levels (dashed). " + "; ".join(
        f"column {number}: cuts at {row[1]}" for (number, _, _), row in zip(columns, rows, strict=True)
    )
    return Chart(
        "Where components are cut", note + ".", charts.histograms(columns), ["column", "cuts", "% a level"], rows
    )


def _training(outcome: FitResult) -> Chart:
    record = outcome.index.quantizer.config["training"]
    losses = [sum(line["losses"].values()) for line in record["log"]]
    gains = [100 * line["gain"] for line in record["log"]]
    note = (
        f"{len(losses)} epochs: the loss went from {losses[0]:.3g} to {losses[-1]:.3g}, and {record['measure']} on "
        f"held-out queries changed by at most {max(gains):+.1f} % from the closed form's. "
        f"Kept: the {record['kept']} quantizer."
    )
    rows = [
        [str(i + 1), f"{loss:.4g}", f"{gain:+.2f}"] for i, (loss, gain) in enumerate(zip(losses, gains, strict=True))
    ]
    return Chart("How the training went", note, charts.training(losses, gains), ["epoch", "loss", "gain, %"], rows)


def _tiles(outcome: FitResult) -> list[dict[str, str]]:
    d, (size, kept) = outcome.corpus.shape[1], _bytes(outcome)
    tiles = [
        {
            "name": "bytes a vector",
            "value": f"{size:,}",
            "note": f"instead of {4 * d:,}" + (f"; {kept:,} more on disk" if kept else ""),
        },
        {
            "name": "layout",
            "value": str(outcome.index.quantizer.layout),
            "note": f"fitted in {outcome.fit_seconds:.0f} s",
        },
    ]
    for m in outcome.measured[1:]:
        tiles.append(
            {"name": f"recall@{K}, {m.name}", "value": f"{m.mean.recall:.3f}", "note": f"on {outcome.queries}"}
        )
    if outcome.measured:
        speed = outcome.measured[-1].mean.queries_per_second
        tiles.append(
            {
                "name": "queries a second",
                "value": f"{speed:,.0f}",
                "note": f"{_speedup(outcome):.1f} times exact search",
            }
        )
    return tiles


def _bytes(outcome: FitResult) -> tuple[int, int]:
    """Return bytes a vector in memory, and on disk, where vectors may stay, but no second code."""
    codes, kept = outcome.index.bytes_per_vector
    return (codes + kept, 0) if outcome.index.rescore == "codes" else (codes, kept)


def _speedup(outcome: FitResult) -> float:
    ours, floats = outcome.measured[-1].mean, outcome.measured[0].mean
    return ours.queries_per_second / floats.queries_per_second


def _asked(outcome: FitResult) -> str:
    return (
        "held-out queries"
        if outcome.split.train_queries is not None
        else "held-out documents, moved away by noise as queries are"
    )


def _name(method: str) -> str:
    """Return what a reader calls ``method``."""
    known = {"binary": "sign bits", "binary+codes": "sign bits, float query", "scalar": "int8"}
    return known.get(method, method.removeprefix("faiss:").partition(",")[2] or method.removeprefix("faiss:"))


def _versions() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("faiss-qama", "faiss-cpu", "numpy"))
    machine = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    return f"{packages}, {machine}, {faiss.omp_get_max_threads()} of {os.cpu_count()} threads"
