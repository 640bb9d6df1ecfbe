"""Tables of how near codes come to what is possible, from docs/results/{near-limit,equal-bytes-*}.json."""

from __future__ import annotations

from typing import Any

from common import SETS, WIDE_SETS

from rendering.cells import markdown

Data = dict[str, Any]
LIMIT, LEVELS = (0.25, 0.0625, 0.0156, 0.0039), (0.3634, 0.1175, 0.0345, 0.0095)  # 4 ** -bits; Max, 1960, table I


def errors_table(data: Data) -> str:
    """Return errors of a trellis beside those of levels, and the limit."""
    rows = [
        [str(row["bits"]), f"{levels:.4f}", f"{row['trellis']:.4f}", f"{limit:.4f}"]
        for row, levels, limit in zip(data["near-limit"]["errors"], LEVELS, LIMIT, strict=True)
    ]
    return markdown(["bits per component", "levels (Lloyd and Max)", "trellis", "limit of any code"], rows)


def seeds_table(data: Data) -> str:
    """Return what `--bytes` finds by codes alone, the mean and range of seeds, beside the best peer."""
    rows = []
    for name in (*SETS, *WIDE_SETS):
        found = data.get(f"equal-bytes-{name}", {"rows": []})["rows"]
        for own in [row for row in found if "seeds" in row]:
            peers = [row for row in found if row["size"] == own["size"] and row["family"] != "ours"]
            best = max(peers, key=lambda row: row["recall"][0])
            recalls = [seed["recall"] for seed in own["seeds"]]
            layouts = dict.fromkeys(f"`{seed['name'].split()[0]}`" for seed in own["seeds"])
            cells = [name, str(own["size"]), f"{own['recall'][0]:.3f} ({min(recalls):.3f} to {max(recalls):.3f})"]
            cells += [f"{best['recall'][0]:.3f}, {best['family']}, + {best['shared']:.0f} shared", ", ".join(layouts)]
            rows.append(cells)
    return markdown(["", "bytes", "ours", "best peer", "layouts"], rows)


def spread_table(data: Data) -> str:
    """Return what spreading decoded points is worth."""
    rows = [
        [row["set"], str(row["size"]), *(f"{recall:.3f}" for recall in row["means, spread"])]
        for row in data["near-limit"]["spread"]
    ]
    return markdown(["", "bytes", "points at the means", "spread"], rows)


def rounding_table(data: Data) -> str:
    """Return what levels are worth that are chosen together."""
    rows = [
        [
            row["set"],
            f"`{row['layout']}`",
            row["levels"],
            *(f"{row['recall'][how]:.3f}" for how in ("codes", "hamming")),
        ]
        for row in data["near-limit"]["rounding"]
    ]
    return markdown(["", "layout", "levels are chosen", "codes alone", "Hamming alone"], rows)


def hamming_table(data: Data) -> str:
    """Return what Hamming distances lose, step by step."""
    columns = [column for column in data["near-limit"]["hamming"][0] if column != "set"]
    rows = [[row["set"], *(f"{row[column]:.3f}" for column in columns)] for row in data["near-limit"]["hamming"]]
    return markdown(["", *columns], rows)


def trellis_speed_table(data: Data) -> str:
    """Return the time of trellises beside that of levels, with one thread."""
    speed = data["near-limit"]["speed"]
    rows = [
        [name, f"`{layout}`", f"{encoded:,.0f}", f"{scored / 1e6:.1f} million"]
        for (name, layout), encoded, scored in zip(
            speed["layouts"].items(), speed["encoded_per_second"], speed["scored_per_second"], strict=True
        )
    ]
    return markdown(["", "layout", "vectors encoded a second", "candidates scored a second"], rows)


def trellis_searches_table(data: Data) -> str:
    """Return whole searches of one recall, by codes alone."""
    speed = data["near-limit"]["speed"]
    rows = []
    for i, first in enumerate(speed["searches, 1 threads"]):
        both = [speed[f"searches, {threads} threads"][i]["per_second"] for threads in (1, 2)]
        layout = speed["layouts"][first["name"].replace("most", "48 bytes")]
        row = [first["name"], f"`{layout}`", f"{first['oversample']:g}"]
        rows.append([*row, f"{first['recall']:.3f}", *(f"{per_second:,.0f}" for per_second in both)])
    return markdown(["", "layout", "oversample", "recall@10", "queries/s, one thread", "two"], rows)
