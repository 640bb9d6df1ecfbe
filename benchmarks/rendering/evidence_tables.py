"""Tables of evidence for others, from docs/results/{equal-bytes-*,rotated-study,qama-table-*}.json."""

from __future__ import annotations

from typing import Any

from common import SETS

from rendering.cells import markdown


def equal_bytes_table(data: dict[str, Any], sets: tuple[str, ...] = SETS) -> str:
    """Return, for each number of bytes and family, its best variant on each data set, and how far it is from ours."""
    sets = tuple(name for name in sets if f"equal-bytes-{name}" in data)
    best: dict[tuple[int, str], dict[str, dict[str, Any]]] = {}
    for name in sets:
        for row in data[f"equal-bytes-{name}"]["rows"]:
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
        header += [f"{name}: best variant, + shared bytes per vector", "recall@10 (less ours)", "nDCG % (less ours)"]
    return markdown(header, rows)


def rotated_table(study: dict[str, Any]) -> str:
    """Return what each method keeps of the floats on both tasks, beside what was published."""
    names = ("stsb", "banking77")
    rows = []
    for i, first in enumerate(study[names[0]]["results"]):
        row = [f"`{first['method']}`" if i else first["method"], str(first["bytes"])]
        for name in names:
            found = study[name]["results"][i]
            low, high = found["retained_interval"]
            row += [f"{found['score']:.4f}", f"{found['retained']:.1f} ({low:.1f} to {high:.1f})"]
        published = study["published"].get(first["method"])
        rows.append([*row, "" if published is None else f"{published:.1f}"])
    header = ["", "bytes/vector"]
    header += [f"{name} {what}" for name in names for what in (study[name]["measure"], "% of float (95 % interval)")]
    return markdown([*header, "published, mean of both"], rows)


def qama_table(data: dict[str, Any], d: int) -> str:
    """Return QAMA's layouts on ``d`` dimensions as measured and as published, in % of floats."""
    table = data[f"qama-table-{d}"]
    published, first, names = table["published"], table["rows"][0], table["sets"]
    whole = published["trained"][str(first["components"])][published["columns"].index("floats")]
    rows = []
    trainings = [f"training-qama-{name}" in data for name in names]
    for row in table["rows"]:
        size = f"{row['thermometer']:g}" + (f" / {row['scan']}" if "scan" in row else "")
        cells = [row["bits"], str(row["components"]), size]
        for name, was_trained in zip(names, trainings, strict=True):
            cells += [f"{row[name][how]:.1f}" if how in row[name] else "" for how in ("thresholds", "hamming", "codes")]
            trained = _trained(data, name, row)
            if was_trained:
                cells.append(" / ".join(f"{trained[how]['ndcg']:.1f}" for how in ("hamming", "adc")) if trained else "")
        for how in ("thresholds", "trained"):
            figures = published[how].get(str(row["components"]))
            column = published["columns"].index(row["bits"])
            cells.append(f"{100 * figures[column] / whole:.1f}" if figures else "")
        rows.append(cells)
    header = ["bits", "components", "bytes: thermometer / `Flat`"]
    ways = ("thresholds alone", "Hamming", "codes", "trained")
    header += [
        f"{name}: {way}" for name, was_trained in zip(names, trainings, strict=True) for way in ways[: 3 + was_trained]
    ]
    return markdown([*header, "published: thresholds alone", "published: trained"], rows)


def _trained(data: dict[str, Any], name: str, row: dict[str, Any]) -> dict[str, Any] | None:
    """Return what QAMA's recipe is worth at a row's bits and components, if it was trained."""
    rows = data.get(f"training-qama-{name}", {"rows": []})["rows"]
    return next((each["components"][str(row["components"])] for each in rows if each["bits"] == row["bits"]), None)


def _cells(row: dict[str, Any]) -> list[str]:
    """Return a variant and what its vectors share, and two figures, each with its interval and how far it is from ours.

    A difference in whose interval zero lies is marked by a tilde; one in favour of the peer is bold.
    """
    cells = [f"`{row['name']}` + {row['shared']:.0f}"]
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
