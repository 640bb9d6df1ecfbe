"""Tables of what is measured against peers at equal bytes, from docs/results/equal-bytes.json."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate


def equal_bytes_table(data: dict[str, Any], sets: tuple[str, ...]) -> str:
    """Return, for each number of bytes and family, its best variant on each data set, and how far it is from ours."""
    sets = tuple(name for name in sets if name in data)
    best: dict[tuple[int, str], dict[str, dict[str, Any]]] = {}
    for name in sets:
        for row in data[name]:
            rivals = best.setdefault((row["size"], row["family"]), {})
            if name not in rivals or row["recall"][0] > rivals[name]["recall"][0]:
                rivals[name] = row

    def order(cell: tuple[tuple[int, str], dict[str, dict[str, Any]]]) -> tuple[int, bool, float]:
        (size, family), found = cell
        return size, family != "ours", -sum(row["recall"][0] for row in found.values()) / len(found)

    rows = []
    for (size, family), found in sorted(best.items(), key=order):
        cells = [cell for name in sets for cell in (_cells(found[name]) if name in found else ["", "", ""])]
        rows.append([str(size), family, *cells])
    header = ["bytes", ""]
    for name in sets:
        header += [f"{name}: best variant", "recall@10 (less ours)", "nDCG % (less ours)"]
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)


def _cells(row: dict[str, Any]) -> list[str]:
    """Return a variant and its two figures, each with its interval, or that of the difference to ours if there is one.

    A difference in whose interval zero lies is marked by a tilde; one in favour of the peer is bold.
    """
    cells = [f"`{row['name']}`"]
    for measure, form in (("recall", ".3f"), ("ndcg", ".1f")):
        value, low, high = row[measure]
        text = f"{value:{form}} ({low:{form}} to {high:{form}})"
        if row["family"] != "ours":
            less, below, above = row[f"{measure}_less_ours"]
            difference = f"{less:+{form}}, {below:+{form}} to {above:+{form}}"
            difference = f"**{difference}**" if below > 0 else f"~ {difference}" if above >= 0 else difference
            text = f"{text}; {difference}"
        cells.append(text)
    return cells
