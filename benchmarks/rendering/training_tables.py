"""Tables of what is trained, from docs/results/training*.json."""

from __future__ import annotations

from typing import Any

import numpy as np
from common import SETS

from rendering.cells import markdown


def training_table(data: dict[str, Any]) -> str:
    """Return what each preset is worth beside the untrained quantizer."""
    rows = []
    for name in SETS:
        measured = data[f"training-pairs-{name}"]["rows"] + data[f"training-{name}"]["rows"]
        for (config, layout, given), seeds in _grouped(measured).items():
            row = [f"`{config}`", layout, given, name]
            for stage in ("adc", "hamming"):
                for measure, form in (("ndcg", ".1f"), ("recall", ".3f")):
                    row.append(" to ".join(f"{_mean(seeds, w, stage, measure):{form}}" for w in ("closed", "trained")))
            kept = sum(seed["kept"] == "trained" for seed in seeds)
            seconds = np.mean([seed["seconds"]["trained"] for seed in seeds])
            rows.append([*row, f"{kept} of {len(seeds)}", f"{seconds:.0f}"])
    order = list(dict.fromkeys(tuple(row[:3]) for row in rows))
    rows.sort(key=lambda row: order.index(tuple(row[:3])))
    header = ["preset", "layout", "given", "data", "codes: nDCG %", "recall@10", "Hamming: nDCG %", "recall@10"]
    return markdown([*header, "trained one kept", "seconds"], rows)


def pairs_table(data: dict[str, Any]) -> str:
    """Return what pairs are worth for queries about documents of the train pairs, and for others."""
    rows = []
    for name in SETS:
        measured = data[f"training-pairs-{name}"]
        for kind, what in (("seen", "in the train pairs"), ("others", "others")):
            if measured["queries"][kind]:
                sides = [f"{_mean(measured['rows'], side, 'adc', kind):.1f}" for side in ("closed", "trained")]
                rows.append([name, what, str(measured["queries"][kind]), "100.0", *sides])
    header = ["data", "relevant documents", "test queries", "floats: nDCG %", "codes, untrained", "codes, trained"]
    return markdown(header, rows)


def prefixes_table(data: dict[str, Any]) -> str:
    """Return what prefixes keep of whole codes."""
    rows = []
    for name in SETS:
        for (config, layout, _), seeds in _grouped(data[f"training-{name}"]["rows"]).items():
            if "prefix" not in seeds[0]:
                continue
            floats = np.mean([seed["prefix_floats"]["ndcg"] for seed in seeds])
            row = [f"`{config}`", f"{seeds[0]['prefix_components']} of {layout}", name, f"{floats:.1f}"]
            for full, prefix in (("closed", "closed_prefix"), ("trained", "prefix")):
                whole, part = (_mean(seeds, which, "hamming", "ndcg") for which in (full, prefix))
                row += [f"{whole:.1f}", f"{part:.1f}", f"{100 * part / whole:.1f}"]
            rows.append(row)
    sides = ("untrained", "trained")
    header = ["", "components", "data", "prefix as floats"]
    header += [f"{side}: {what}" for side in sides for what in ("all", "prefix", "share %")]
    return markdown(header, rows)


def ablation_table(data: dict[str, Any]) -> str:
    """Return what each loss and adapter is worth."""
    rows = []
    for row in data["training-ablation"]["rows"]:
        cells = []
        for parts in row["components"].values():
            cells += [f"{parts[s]['ndcg']:.1f} / {parts[s]['recall']:.3f}" for s in ("adc", "hamming")]
        rows.append([row["adapter"], row["label"], *cells, f"{100 * row['gain']:+.1f}"])
    header = ["adapter", "losses"] + [f"{end}, {stage}" for end in (192, 96, 48) for stage in ("codes", "Hamming")]
    return markdown([*header, "held-out gain, %"], rows)


def _grouped(rows: list[dict[str, Any]]) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """Return the seeds of each configuration, layout and source of queries."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["config"], row["asked"], row["given"]), []).append(row)
    return groups


def _mean(rows: list[dict[str, Any]], which: str, stage: str, measure: str) -> float:
    return float(np.mean([row[which][stage][measure] for row in rows]))
