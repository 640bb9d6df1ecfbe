"""The tables of docs/results/README.md and of the README, made from the JSON files that results.py writes."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from evidence_tables import equal_bytes_table
from tabulate import tabulate

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
OTHERS = ("SVS ", "ScaNN ", "usearch ", "RaBitQ ", "semantic_search_faiss")  # how names of other libraries' begin
SETS = ("scifact", "nfcorpus", "quora")


def render() -> dict[Path, str]:
    """Return the files that hold tables, with the tables made anew from the JSON files."""
    data = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
    labels = [row["method"] for row in data[SETS[0]]["results"]][1:]
    data["rows"] = {
        "main": [label for label in labels if ", " in label],
        "methods": [label for label in labels if ", " not in label],
    }
    tables = {
        "main": _main_table(data),
        "methods": _methods_table(data),
        "fit": _choices_table(data, "fit"),
        "bytes": _choices_table(data, "bytes"),
        "query side": _choices_table(data, "query side"),
        "growth": _growth_table(data),
        "lengths": _lengths_table(data),
        "stock": _stock_table(data),
        "bases": _bases_table(data),
        "scale": _scale_table(data),
        "scans": _scans_table(data),
        "stages": _stages_table(data),
        "asymmetric": _asymmetric_table(data),
        "growing codes": _growing_table(data),
    }
    for size in ("quora", "million"):
        if f"peers-{size}" in data:
            peers = data[f"peers-{size}"]
            tables |= {f"fastest {size}": _fastest_table(peers), f"peers {size}": _peers_table(peers)}
    # Training takes longer to measure than all the rest, so its files may not be there.
    if all(f"training-{name}" in data for name in SETS):
        tables |= {"training": _training_table(data), "prefixes": _prefixes_table(data)}
    if "rotated-study" in data:
        tables["rotated study"] = _rotated_table(data["rotated-study"])
    if "equal-bytes" in data:
        tables["equal bytes"] = equal_bytes_table(data["equal-bytes"], SETS)
    if "qama-table" in data:
        tables["qama"] = _qama_table(data)
    if "training-ablation" in data:
        tables["ablation"] = _ablation_table(data)
    files = {}
    for path in (RESULTS / "README.md", ROOT / "README.md"):
        text = path.read_text()
        for name, table in tables.items():
            marker = re.escape(f"<!-- table: {name} -->")
            text = re.sub(rf"({marker}\n).*?(<!-- end -->)", lambda m, t=table: f"{m[1]}{t}\n{m[2]}", text, flags=re.S)
        files[path] = text
    return files


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)


def _grouped(rows: list[dict[str, Any]]) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """Return the seeds of each configuration, layout and source of queries."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["config"], row["asked"], row["given"]), []).append(row)
    return groups


def _mean(rows: list[dict[str, Any]], which: str, stage: str, measure: str) -> float:
    return float(np.mean([row[which][stage][measure] for row in rows]))


def _training_table(data: dict[str, Any]) -> str:
    rows = []
    for name in SETS:
        for (config, layout, given), seeds in _grouped(data[f"training-{name}"]["rows"]).items():
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
    return _markdown([*header, "trained one kept", "seconds"], rows)


def _prefixes_table(data: dict[str, Any]) -> str:
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
    sides = ("closed form", "trained")
    header = ["", "components", "data", "prefix as floats"]
    header += [f"{side}: {what}" for side in sides for what in ("all", "prefix", "share %")]
    return _markdown(header, rows)


def _ablation_table(data: dict[str, Any]) -> str:
    rows = []
    for row in data["training-ablation"]["rows"]:
        cells = []
        for parts in row["components"].values():
            cells += [f"{parts[s]['ndcg']:.1f} / {parts[s]['recall']:.3f}" for s in ("adc", "hamming")]
        rows.append([row["adapter"], row["label"], *cells, f"{100 * row['gain']:+.1f}"])
    header = ["adapter", "losses"] + [f"{end}, {stage}" for end in (192, 96, 48) for stage in ("codes", "Hamming")]
    return _markdown([*header, "held-out gain, %"], rows)


def _percent(row: dict[str, Any], exact: dict[str, Any]) -> str:
    return f"{100 * row['ndcg'] / exact['ndcg']:.1f}"


def _spread(row: dict[str, Any], exact: dict[str, Any]) -> str:
    shares = [100 * each["ndcg"] / exact["ndcg"] for each in row["each"]]
    return f"{np.mean(shares):.1f} ({min(shares):.1f} to {max(shares):.1f})"


def _main_table(data: dict[str, Any]) -> str:
    rows = []
    for label in data["rows"]["main"]:
        row = [label]
        for name in SETS:
            results = {r["method"]: r for r in data[name]["results"]}
            found = results[label]
            row += [f"{found['recall']:.3f}", _spread(found, results["exact floats"])]
        rows.append([row[0], _bytes(results[label]), *row[1:]])
    header = ["", "bytes/vector"] + [f"{name} {what}" for name in SETS for what in ("recall@10", "nDCG@10, % of float")]
    return _markdown(header, rows)


def _methods_table(data: dict[str, Any]) -> str:
    rows = []
    for method in data["rows"]["methods"]:
        row = [f"`{method}`"]
        for name in SETS:
            results = {r["method"]: r for r in data[name]["results"]}
            row += [f"{results[method]['recall']:.3f}", _percent(results[method], results["exact floats"])]
        rows.append([row[0], _bytes(results[method]), *row[1:]])
    header = ["", "bytes/vector"] + [f"{name} {what}" for name in SETS for what in ("recall@10", "nDCG %")]
    return _markdown(header, rows)


def _choices_table(data: dict[str, Any], part: str) -> str:
    rows = []
    for i, first in enumerate(data[f"{SETS[0]}-choices"][part]):
        row = [first["codes"]["method"], _bytes(first["codes"])]
        for name in SETS:
            choice = data[f"{name}-choices"]
            codes, hamming = choice[part][i]["codes"], choice[part][i]["none"]
            row += [
                f"{codes['recall']:.3f} / {_percent(codes, choice['exact'])}",
                f"{hamming['recall']:.3f} / {_percent(hamming, choice['exact'])}",
            ]
        rows.append(row)
    return _markdown(["", "bytes"] + [f"{name}, {stage}" for name in SETS for stage in ("codes", "Hamming")], rows)


def _growth_table(data: dict[str, Any]) -> str:
    rows = []
    for name in SETS:
        counts = [f"{r['candidates']} of {r['n']:,}" for r in reversed(data[f"{name}-choices"]["growth"])]
        rows.append([name, ", ".join(counts)])
    return _markdown(["", "candidates that hold 95 % of the exact 10 nearest"], rows)


def _lengths_table(data: dict[str, Any]) -> str:
    rows = []
    for i in range(0, len(data[f"{SETS[0]}-choices"]["lengths"]), 2):
        row = [f"{data[f'{SETS[0]}-choices']['lengths'][i]['spread']:g}"]
        for name in SETS:
            plain, best = data[f"{name}-choices"]["lengths"][i : i + 2]
            row += [f"{plain['recall']:.3f}", f"{best['recall']:.3f} (gain {best['gain']:g})"]
        rows.append(row)
    header = ["spread of lengths"] + [f"{name}, {side}" for name in SETS for side in ("gain 1", "measured")]
    return _markdown(header, rows)


def _stock_table(data: dict[str, Any]) -> str:
    stock = data["stock"]
    rows = []
    for store, recall in stock["recall"].items():
        ours = [f"{recall[kind]:.3f}" for kind in ("QamaIndex", "hamming", "fastscan")]
        rows.append([f"`{store}`", *ours, f"{stock['milliseconds'][store]:.2f} ms"])
    header = [
        "kept",
        "QamaIndex, oversample 20",
        "`hamming`",
        "`fastscan`",
        "second stage of QamaIndex, 400 candidates",
    ]
    same = min(stock["same"])
    return (
        _markdown(header, rows) + f"\n\nHits of the Hamming stage and its stock export that are the same: {same:.2%}."
    )


def _bases_table(data: dict[str, Any]) -> str:
    rows = []
    flat = data["stock"]["bases"][0]["queries_per_second"]
    for row in data["stock"]["bases"]:
        name = f"`{row['base']}`" + "".join(f", {key} {value}" for key, value in row["settings"].items())
        rows.append([name, _bytes(row), f"{row['recall']:.3f}", f"{row['queries_per_second'] / flat:.1f}"])
    return _markdown(["base", "bytes/vector", "recall@10 for `recall=0.95`", "queries/s, `BFlat` being 1"], rows)


def _scans_table(data: dict[str, Any]) -> str:
    groups: dict[str, dict[tuple[int, int], dict[str, Any]]] = {}
    for row in data["speed"]["scans"]:
        groups.setdefault(row["layout"], {})[row["threads"], row["batch"]] = row
    rows = []
    for layout, cells in groups.items():
        sizes = next(iter(cells.values()))["bytes"]
        row = [f"`{layout}`", f"{sizes[0]} and {sizes[1]}"]
        for cell in cells.values():
            ours, flat = cell["milliseconds"]
            row.append(f"{cell['times']:.1f} x ({ours:.2f} and {flat:.2f} ms)")
        rows.append(row)
    header = ["", "bytes a code, `Scan` and `IndexBinaryFlat`"]
    header += [f"{threads} thread{'s' * (threads > 1)}, {batch} at a time" for threads, batch in cells]
    return _markdown(header, rows)


def _stages_table(data: dict[str, Any]) -> str:
    speed = data["speed"]
    rows = []
    for row in speed["stages"]["threads"]:
        cells = [f"{row['scoring_milliseconds']:.3f} ms", f"{row['encoded_per_second']:,.0f}"]
        rows.append([str(row["threads"]), *cells, f"{row['times_the_product']:.2f}"])
    header = ["threads", f"scoring {speed['stages']['candidates']} candidates from their codes, a query"]
    header += ["vectors encoded a second", "time of encoding, that of its matrix product being 1"]
    loading = ", ".join(f"`{base}` {1000 * took['seconds']:.0f} ms" for base, took in speed["loading"].items())
    numba = 1000 * max(took["numba_seconds"] for took in speed["loading"].values())
    loading += f". Numba takes {numba:.0f} ms more to start in a process, whatever the index"
    one = speed["stages"]["one_query_milliseconds"]
    alone = "One query after the other, 100 candidates, 1 thread: "
    alone += f"{one['search']:.3f} ms, of it the scan {one['scan']:.3f} ms."
    return (
        _markdown(header, rows)
        + f"\n\n{alone}\n\nFrom a million vectors on disk to the first answer, mapped: {loading}."
    )


def _asymmetric_table(data: dict[str, Any]) -> str:
    rows = [
        [row["name"], str(row["threads"]), f"{row['recall']:.3f}", f"{row['per_second']:,.0f}"]
        for row in data["speed"]["asymmetric"]
    ]
    return _markdown(["", "threads", "recall@10", "queries/s"], rows)


def _growing_table(data: dict[str, Any]) -> str:
    kinds: dict[str, dict[int, dict[str, Any]]] = {}
    for row in data["speed"]["growth"]:
        kinds.setdefault(re.sub(r"IVF\d+", "IVF", row["base"]), {})[row["n"]] = row
    sizes = sorted(kinds["Scan"])
    rows = []
    for kind, cells in kinds.items():
        times = [1000 * cells[n]["milliseconds"] if n in cells else None for n in sizes]
        known = [n for n in sizes if n in cells]
        slope = np.polyfit(np.log(known), np.log([cells[n]["milliseconds"] for n in known]), 1)[0]
        rows.append([f"`{kind}`", *("" if t is None else f"{t:,.0f}" for t in times), f"n^{slope:.2f}"])
    return _markdown(["microseconds a query", *(f"{n:,}" for n in sizes), "grows as"], rows)


def _fastest_table(peers: dict[str, Any]) -> str:
    """Return the fastest of ours and of FAISS's within as much memory, side by side."""
    rows = []
    turns = [row for row in peers["in_turns"] if not row["name"].startswith(OTHERS)]
    for target, threads, bound in itertools.product((0.95, 0.99), (1, 2), (80, 256)):
        fits = [r for r in turns if (r["target"], r["threads"]) == (target, threads) and r["ram"] <= bound]
        ours, theirs = (max((r for r in fits if r["ours"] == own), key=_speed, default=None) for own in (True, False))
        if ours is None or theirs is None:
            continue
        cells = [f"`{_named(row)}`, {row['ram']:.0f} bytes: {row['per_second']:,.0f}" for row in (ours, theirs)]
        rows.append([f"{target}", f"{bound}", str(threads), *cells, f"{_speed(ours) / _speed(theirs):.2f}"])
    return _markdown(["recall@10", "bytes in memory", "threads", "ours, queries/s", "FAISS, queries/s", "times"], rows)


def _peers_table(peers: dict[str, Any]) -> str:
    both: dict[tuple[str, float], dict[int, dict[str, Any]]] = {}
    for row in peers["in_turns"]:
        both.setdefault((row["name"], row["target"]), {})[row["threads"]] = row
    rows = []
    for (_, target), row in sorted(both.items(), key=lambda item: (item[0][1], -_speed(item[1][1]))):
        one = row[1]
        cells = [f"{one['ram']:.0f} + {one['disk']:.0f}", f"{one['recall']:.3f}"]
        rows.append([f"{target}", f"`{_named(one)}`", *cells, f"{_speed(one):,.0f}", f"{_speed(row[2]):,.0f}"])
    return _markdown(["at", "", "bytes + on disk", "recall@10", "queries/s, 1 thread", "2 threads"], rows)


def _named(row: dict[str, Any]) -> str:
    settings = "".join(f", {name} {value}" for name, value in row["settings"].items())
    return row["name"] + settings


def _speed(row: dict[str, Any]) -> float:
    return float(row["per_second"])


def _scale_table(data: dict[str, Any]) -> str:
    scale = data["scale"]
    rows = []
    for name, text in (("quora", "63,271 x 384"), ("million", "1,000,000 x 384")):
        part = scale[name]
        sizes = [f"{part[key] / 1e9:.2f} GB" for key in ("peak_bytes", "index_bytes")]
        rows.append([text, f"{part['seconds']:.0f} s", *sizes])
    rate = f"{scale['encoding_per_second']:,.0f}"
    return (
        _markdown(["`faiss-qama fit`", "fit, index and report", "peak memory, index included", "index"], rows)
        + f"\n\nEncoding 2x192 from 384 floats: {rate} vectors a second, {scale['threads']} threads."
    )


def _rotated_table(study: dict[str, Any]) -> str:
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
    return _markdown([*header, "published, mean of both"], rows)


def _qama_table(data: dict[str, Any]) -> str:
    """Return QAMA's layouts as measured and as published, in % of floats."""
    table = data["qama-table"]
    published, first = table["published"], table["rows"][0]
    names = [name for name in SETS if name in first]
    whole = published["trained"][str(first["components"])][published["columns"].index("floats")]
    rows = []
    for row in table["rows"]:
        size = f"{row['thermometer']:g}" + (f" / {row['scan']}" if "scan" in row else "")
        cells = [row["bits"], str(row["components"]), size]
        for name in names:
            cells += [f"{row[name][how]:.1f}" if how in row[name] else "" for how in ("thresholds", "hamming", "codes")]
            trained = [
                seed["trained"]
                for seed in data.get(f"training-{name}", {"rows": []})["rows"]
                if seed["config"].startswith("qama") and seed["layout"] == row.get("layout")
            ]
            cells.append(" / ".join(f"{each[how]['ndcg']:.1f}" for each in trained for how in ("hamming", "adc")))
        for how in ("thresholds", "trained"):
            figures = published[how].get(str(row["components"]))
            column = published["columns"].index(row["bits"])
            cells.append(f"{100 * figures[column] / whole:.1f}" if figures else "")
        rows.append(cells)
    header = ["bits", "components", "bytes: thermometer / `Scan`"]
    ways = ("thresholds alone", "Hamming", "codes", "trained")
    header += [f"{name}: {way}" for name in names for way in ways]
    return _markdown([*header, "published: thresholds alone", "published: trained"], rows)


def _bytes(row: dict[str, Any]) -> str:
    return " + ".join(str(part) for part in row["bytes"] if part)
