"""Charts as inline SVG: matplotlib draws them narrow, and the page's style sheet colours them (extra ``report``)."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from textwrap import fill
from typing import Any
from xml.etree import ElementTree

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from faiss_qama.arrays import Floats

WIDTH = 4.5  # inches, 324 units of the SVG: a phone shows it unscaled
# Stand-ins that no chart uses otherwise; the style sheet gives each variable a value for light and one for dark.
INK, MUTED, GRID, SURFACE = "#010203", "#010204", "#010205", "#010206"
FIRST, SECOND, THIRD, FOURTH = "#010207", "#010208", "#010209", "#01020a"
_VARIABLES = {INK: "ink", MUTED: "muted", GRID: "grid", SURFACE: "surface"}
_VARIABLES |= {FIRST: "first", SECOND: "second", THIRD: "third", FOURTH: "fourth"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 10.5,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "legend.frameon": False,
    "legend.fontsize": 10,
    "legend.labelcolor": INK,
    "lines.linewidth": 2,
    "figure.facecolor": "none",
    "figure.constrained_layout.use": True,
}
DEAR = 0.9  # recall, above which an alternative takes a byte a component or more
_NUMBER = FuncFormatter(lambda value, _: f"{value:,.4g}" if value < 1000 else f"{value:,.0f}")
_SVG = "{http://www.w3.org/2000/svg}"


@dataclass(frozen=True)
class Chart:
    """A chart of the page.

    Parameters
    ----------
    title : str
        What the chart shows.
    caption : str
        How to read it.
    svg : str
        The drawing.
    header, rows : sequence
        Its data as a table.
    key : sequence of tuple of str
        Name and value of the most important figures.
    """

    title: str
    caption: str
    svg: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]] = field(default_factory=list)
    key: Sequence[tuple[str, str]] = field(default_factory=list)

    @property
    def image(self) -> Markup:
        """The drawing as an image, with title, caption and key figures as its text alternative."""
        figures = self.key or [(row[0], " ".join(row[1:])) for row in self.rows]
        text = f"{self.title}. {self.caption} {'; '.join(f'{name}: {value}' for name, value in figures)}."
        return Markup(self.svg.replace("<svg", '<svg role="img" aria-label="{}"', 1)).format(text)  # noqa: S704


def recall_by_bytes(
    ours: Sequence[tuple[int, float]], others: Sequence[tuple[str, int, float]], chosen: tuple[int, float], label: str
) -> str:
    """Draw recall against bytes, of ``ours`` (bytes, recall) and of ``others`` (name, bytes, recall)."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure((WIDTH, 3.7))
        axes = figure.add_subplot()
        best = np.array(sorted({size: recall for size, recall in sorted(ours)}.items()))
        best = best[best[:, 1] >= np.maximum.accumulate(best[:, 1])]  # what no smaller code beats
        axes.plot(*best.T, color=FIRST, linewidth=1.5)
        axes.scatter(
            [size for size, _ in ours], [r for _, r in ours], s=26, color=FIRST, zorder=3, label="layouts tried"
        )
        axes.scatter([size for _, size, _ in others], [r for *_, r in others], s=36, marker="D", color=SECOND, zorder=3)
        low = min([recall for _, recall in ours] + [recall for *_, recall in others])
        text: dict[str, Any] = {"fontsize": 9.5, "color": SECOND, "va": "center"}
        for name, size, recall in others:
            if recall > DEAR:  # such as floats, at the right edge: their names go to the left
                axes.annotate(name, (size, recall), (0.86 * size, recall), ha="right", **text)
        named = sorted((other for other in others if other[2] <= DEAR), key=lambda other: -other[2])
        gap, heights = 0.075 * (1.09 - low), np.array([recall for *_, recall in named])
        for i in range(1, len(heights)):  # names do not lie on each other
            heights[i] = min(heights[i], heights[i - 1] - gap)
        heights += np.mean([recall for *_, recall in named] - heights) if named else 0.0
        edge = 1.35 * max((size for _, size, _ in named), default=1)
        line = {"arrowstyle": "-", "color": SECOND, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 4}
        for (name, size, recall), height in zip(named, heights, strict=True):
            axes.annotate(name, (size, recall), (edge, height), ha="left", arrowprops=line, **text)
        axes.scatter(
            *chosen,
            s=220,
            marker="*",
            color=THIRD,
            edgecolor=SURFACE,
            linewidth=0.6,
            zorder=5,
            label=f"chosen: {label}",
        )
        axes.scatter([], [], s=36, marker="D", color=SECOND, label="alternatives")
        _log(axes, "bytes per vector, log scale")
        axes.set(ylabel="recall@10", ylim=(max(0.0, low - 0.06), 1.03))
        _legend_above(figure, axes, 2)
        return _inline(figure)


def recall_by_candidates(
    sizes: Sequence[float], curves: dict[str, NDArray[np.float64]], marks: Sequence[tuple[float, float]]
) -> str:
    """Draw ``curves``, recall against candidates, with ``marks``: candidates of a search, and the recall aimed at."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure((WIDTH, 3.2))
        axes = figure.add_subplot()
        for (label, curve), colour, dash in zip(curves.items(), (FIRST, SECOND), ("-", "--"), strict=False):
            axes.plot(sizes, curve, dash, color=colour, label=label)
        for size, recall in marks:
            axes.axhline(recall, color=MUTED, linewidth=1, linestyle=":")
            axes.axvline(size, color=THIRD, linewidth=1, linestyle=":")
            axes.plot(
                size, recall, "*", color=THIRD, markersize=15, markeredgecolor=SURFACE, label="default of a search"
            )
        _log(axes, "candidates re-ranked, log scale")
        axes.set(ylabel="recall@10", ylim=(None, 1.03))
        _legend_above(figure, axes, 2)
        return _inline(figure)


def bars(groups: Sequence[tuple[str, Sequence[tuple[str, str, Sequence[float]]]]], parts: Sequence[str]) -> str:
    """Draw horizontal bars: ``groups`` of (title, bars of (name, text, values that are stacked))."""
    with matplotlib.rc_context(_STYLE | {"axes.grid": False, "axes.spines.bottom": False, "axes.spines.left": False}):
        figure = Figure((WIDTH, 3.4))
        for axes, (title, rows) in zip(figure.subplots(len(groups), 1), groups, strict=True):
            most = max(sum(values) for _, _, values in rows)
            for place, (_, text, values) in enumerate(rows):
                start = 0.0
                for value, colour in zip(values, (FIRST, FOURTH), strict=False):
                    axes.barh(place, value, 0.62, start, color=colour)
                    start += value
                axes.text(start + 0.02 * most, place, text, va="center", fontsize=10)
            axes.set(title=title, xlim=(0, 1.42 * most), xticks=[])
            axes.set_yticks(range(len(rows)), [fill(name, 14) for name, _, _ in rows])
            axes.tick_params(length=0, labelcolor=INK)
            axes.invert_yaxis()
        for part, colour in zip(parts, (FIRST, FOURTH), strict=False):
            axes.bar(0, 0, color=colour, label=part)
        if len(parts) > 1:
            figure.legend(loc="outside lower right", ncols=2)
        return _inline(figure)


def variance_and_bits(codes: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]) -> str:
    """Draw each component's share of the variance, and its bits, for one code or two: by name, (d,) each."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure((WIDTH, 3.7))
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
        least, most = np.inf, 0.0
        for (name, (shares, bits)), colour, dash in zip(codes.items(), (FIRST, SECOND), ("-", "--"), strict=False):
            places = np.arange(1, len(shares) + 1)
            top.plot(places, 100 * shares, dash, color=colour, label=name)
            bottom.fill_between(places, bits, step="mid", color=colour, alpha=0.3, linewidth=0)
            bottom.step(places, bits, dash, where="mid", color=colour, linewidth=1.5)
            least, most = min(least, 100 * shares.min()), max(most, 100 * shares.max())
        top.set_yscale("log" if most > 0 else "linear")
        top.set_ylim(max(least, 1e-4 * most) * 0.7)
        top.yaxis.set_major_formatter(_NUMBER)
        top.yaxis.set_minor_formatter(NullFormatter())
        top.set_title("% of the variance, log scale")
        bottom.set(title="bits", xlabel="component", ylim=(0, 2.3), yticks=(0, 1, 2), xlim=(0, len(shares) + 1))
        if len(codes) > 1:
            _legend_above(figure, top, 2)
        return _inline(figure)


def histograms(columns: Sequence[tuple[int, Floats, Floats]]) -> str:
    """Draw the values of ``columns``, (number, values, cuts), each level in a colour of its own."""
    with matplotlib.rc_context(_STYLE | {"axes.grid": False, "axes.spines.left": False}):
        figure = Figure((WIDTH, 3.7))
        grid = figure.subplots(-(-len(columns) // 2), min(2, len(columns)), squeeze=False).ravel()
        for axes, (number, values, cuts) in zip(grid, columns, strict=False):
            counts, edges = np.histogram(values, 40)
            level = np.searchsorted(cuts, (edges[1:] + edges[:-1]) / 2, side="right")
            colours = np.array([FIRST, FOURTH, SECOND, THIRD])[level]
            axes.bar(edges[:-1], counts, np.diff(edges), align="edge", color=colours.tolist())
            for cut in cuts:
                axes.axvline(cut, color=INK, linewidth=1.2, linestyle="--")
            axes.set(title=f"column {number}", yticks=[])
            axes.locator_params(axis="x", nbins=4)
        for axes in grid[len(columns) :]:
            axes.set_axis_off()
        return _inline(figure)


def training(losses: Sequence[float], gains: Sequence[float]) -> str:
    """Draw an epoch's loss, and its gain over the closed form in percent."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure((WIDTH, 3.4))
        epochs = np.arange(1, len(losses) + 1)
        for axes, title, values, colour in zip(
            figure.subplots(2, 1, sharex=True),
            ("loss", "gain on held-out queries, %"),
            (losses, gains),
            (FIRST, THIRD),
            strict=True,
        ):
            axes.plot(epochs, values, "o-", color=colour, markersize=4)
            axes.set_title(title)
        axes.axhline(0, color=MUTED, linewidth=1)
        axes.set_xlabel("epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        return _inline(figure)


def _log(axes: Axes, label: str) -> None:
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    axes.xaxis.set_minor_locator(LogLocator(subs=()))
    low, high = axes.get_xlim()
    if high / low > 200:  # so many labels would touch
        axes.xaxis.set_major_locator(LogLocator(numticks=20))
    axes.xaxis.set_major_formatter(_NUMBER)
    axes.set_xlabel(label)


def _legend_above(figure: Figure, axes: Axes, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=columns, columnspacing=1, handletextpad=0.4)


def _inline(figure: Figure) -> str:
    """Return the SVG without what a page has no use for: ids that others have too, metadata, a size of its own."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    ElementTree.register_namespace("", _SVG[1:-1])
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(buffer.getvalue())
    for group in root.iter(f"{_SVG}g"):
        group.attrib.pop("id", None)
    for parent in list(root.iter()):
        for child in [c for c in parent if c.tag in (f"{_SVG}metadata", f"{_SVG}style")]:
            parent.remove(child)
    for name in ("width", "height", "version"):
        root.attrib.pop(name, None)
    text: str = ElementTree.tostring(root, encoding="unicode")
    return re.sub("|".join(_VARIABLES), lambda match: f"var(--{_VARIABLES[match[0]]})", text)
