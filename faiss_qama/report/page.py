"""The report of a fit as an HTML page: what each byte buys on a corpus, what was chosen, and why (extra ``report``)."""

from __future__ import annotations

import math
import os
import platform
from datetime import datetime
from importlib.metadata import version

import faiss

from faiss_qama.comparison.methods import shared_bytes
from faiss_qama.evaluation.results import mean_interval
from faiss_qama.pipeline import FitResult
from faiss_qama.quantizer.calibration import K
from faiss_qama.report.tables import fit_summary, percent_interval, size_text
from faiss_qama.storage import atomic_files
from faiss_qama.vectors import PathLike

try:
    import jinja2

    from faiss_qama.report.page_charts import page_charts
except ModuleNotFoundError as error:
    if error.name not in ("jinja2", "matplotlib"):
        raise
    raise ImportError("a report needs jinja2, matplotlib: pip install '.[report]' in the clone") from None


def write_page(result: FitResult, path: PathLike, command: str) -> None:
    """Write the report of a fit as one HTML file that loads nothing.

    This takes some seconds, because other codes are measured on a sample of the corpus.

    Parameters
    ----------
    result : FitResult
        What :func:`faiss_qama.pipeline.fit_index` returned.
    path : str or os.PathLike
        The file to write. A file that is there is replaced.
    command : str
        The command that makes the page again.
    """
    headline, note = summary(result)
    environment = jinja2.Environment(loader=jinja2.PackageLoader("faiss_qama", "report"), autoescape=True)
    page = environment.get_template("page.html.jinja").render(
        name=", ".join("/".join(source.resolve().parts[-2:]) for source in result.corpus.paths) or "a corpus",
        date=f"{datetime.now().astimezone():%Y-%m-%d %H:%M %Z}",
        headline=headline,
        note=note,
        tiles=_tiles(result),
        charts=page_charts(result),
        printed=fit_summary(result),
        next=result.next_commands,
        command=command,
        versions=_versions(),
    )
    atomic_files.write_text(path, page)


def summary(result: FitResult) -> tuple[str, str]:
    """Return what was gained and what it costs, and how that was measured.

    Parameters
    ----------
    result : FitResult
        What :func:`faiss_qama.pipeline.fit_index` returned.

    Returns
    -------
    headline, note : str
        One or two sentences each.
    """
    n, d = result.corpus.shape
    own, shared = _bytes(result)
    headline = (
        f"{n:,} vectors of {d} dimensions take {size_text(result.memory)} of memory: {own:,} bytes each, and {shared} "
        f"for the quantizer that they share. As float32 they take {size_text(4 * n * d)}."
    )
    if not result.measured:
        return headline, "The corpus is too small to hold any vectors out, so nothing was measured."
    rescore = result.index.rescore
    how = {"none": "By Hamming distance alone", "codes": "From the codes alone"}
    stage = how.get(rescore, f"With {rescore} re-ranking from disk")
    headline += f" {stage}, a search {_quality(result)}, at {result.speedup:.1f} times the speed of exact search."
    if result.split.train_queries is None:
        return headline, (
            f"Documents stood in for queries: recall was measured with {result.queries}. "
            "Yours may need fewer candidates, and find more or less: fit with --queries to calibrate with them."
        )
    return headline, f"It was measured with {result.queries}, which the fit did not use. {_by_kind(result)}".strip()


def _quality(result: FitResult) -> str:
    """Return what a search is worth, by relevance if there are grades, and its 95 % interval."""
    exact, index = result.measured[0].mean.values, result.measured[-1].mean.values
    if "ndcg" in index and exact["ndcg"].any():
        share = 100 * index["ndcg"].mean() / exact["ndcg"].mean()
        low, high = percent_interval(index["ndcg"], exact["ndcg"])
        return f"reaches {share:.1f} % ({low:.1f} to {high:.1f}) of the nDCG@{K} of exact search"
    found = math.floor(1000 * index["recall"].mean() + 1e-6) / 10  # never more than was measured
    low, high = (100 * bound for bound in mean_interval(index["recall"]))
    return f"finds {found} % ({low:.1f} to {high:.1f}) of the true {K} nearest"


def _by_kind(result: FitResult) -> str:
    """Return what the training was worth to the codes alone, for documents that it saw, and for others."""
    seen, untrained = result.split.test_seen, result.untrained
    if untrained is None or not seen.any() or seen.all():
        return ""
    before, after = (method.mean.values["ndcg"] for method in (untrained, result.measured[1]))
    gains = [100 * (after[part].mean() / max(before[part].mean(), 1e-9) - 1) for part in (seen, ~seen)]
    return (
        f"The training changed nDCG@{K} of the codes alone by {gains[0]:+.1f} % for queries about documents that it "
        f"saw, and by {gains[1]:+.1f} % for the others."
    )


def _tiles(result: FitResult) -> list[dict[str, str]]:
    """Return the figures under the headline."""
    n, d = result.corpus.shape
    on_disk = f"; {size_text(result.on_disk)} of vectors on disk" if result.on_disk else ""
    tiles = [
        {
            "name": "memory",
            "value": size_text(result.memory),
            "note": f"float32: {size_text(4 * n * d)}{on_disk}",
        },
        {
            "name": "layout",
            "value": str(result.index.quantizer.layout),
            "note": f"fitted in {result.fit_seconds:.0f} s",
        },
    ]
    for method in result.measured[1:]:
        measure, value = ("recall", method.mean.recall) if method.mean.ndcg is None else ("nDCG", method.mean.ndcg)
        tiles.append(
            {"name": f"{measure}@{K}, {method.name}", "value": f"{value:.3f}", "note": f"with {result.queries}"}
        )
    if result.measured:
        speed = result.measured[-1].mean.queries_per_second
        note = f"{result.speedup:.1f} times exact search, measured in turns"
        tiles.append({"name": "queries per second", "value": f"{speed:,.0f}", "note": note})
    return tiles


def _bytes(result: FitResult) -> tuple[int, str]:
    """Return the bytes of one vector in memory, and those of the quantizer in words."""
    shared = shared_bytes(result.index.quantizer)
    return (result.memory - shared) // len(result.corpus), size_text(shared)


def _versions() -> str:
    packages = ", ".join(f"{name} {version(name)}" for name in ("faiss-qama", "faiss-cpu", "numpy"))
    machine = f"Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    return f"{packages}, {machine}, {faiss.omp_get_max_threads()} of {os.cpu_count()} threads"
