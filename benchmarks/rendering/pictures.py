"""The pictures docs/results/peers-*.svg, from the JSON files of that name."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from common import RESULTS, read

FLOOR = 0.8  # recall, below which nothing is drawn
LABELLED = 6  # indexes of others, the fastest at .95, that are named


def speed_at(row: dict[str, Any], recall: float) -> float:
    """Return the queries per second of the fastest point that reaches ``recall``, or 0."""
    return max((p["per_second"] for p in row["points"] if p["recall"] >= recall), default=0.0)


def draw(name: str) -> None:
    """Draw recall against queries per second. Marks grow with the bytes in memory."""
    plt.rcParams["svg.hashsalt"] = "peers"  # the same picture from the same numbers
    peers = read(name)
    rows = sorted(peers["arrangements"], key=lambda row: -speed_at(row, 0.95))
    labelled = [r["name"] for r in rows if not r["ours"]][:LABELLED] + [r["name"] for r in rows if r["ours"]][:3]
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    colours = iter(plt.cm.tab10.colors)
    for row in reversed(rows):
        points = [p for p in row["points"] if p["recall"] >= FLOOR]
        if not points:
            continue
        named = row["name"] in labelled
        style: dict[str, Any] = {"color": next(colours) if named else "0.8", "zorder": 3 if named else 1}
        style |= {"linewidth": 2.5 if row["ours"] else 1, "linestyle": "-" if row["ours"] else "--"}
        label = f"{row['name']} ({row['ram']:.0f} B)" if named else None
        recalls, speeds = ([p[key] for p in points] for key in ("recall", "per_second"))
        axes.plot(recalls, speeds, label=label, marker="o", markersize=2 * np.log2(row["ram"]) - 6, alpha=0.85, **style)
    axes.set(yscale="log", xlabel="recall@10", ylabel="queries a second, one thread", xlim=(FLOOR, 1.002))
    axes.set_title(f"{peers['n']:,} vectors of 384 components; marks grow with the bytes a vector in memory")
    axes.grid(True, which="both", alpha=0.25)
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], fontsize=8, loc="lower left", title="solid: ours; dashed: others")
    figure.savefig(RESULTS / f"{name}.svg")
    plt.close(figure)
