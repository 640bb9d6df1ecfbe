"""Tables of time and memory, from docs/results/{speed,scale,peers-*,equal-bytes-*}.json."""

from __future__ import annotations

import itertools
import re
import textwrap
from typing import Any

import numpy as np
from common import SETS

from rendering.cells import markdown

OTHERS = ("SVS ", "ScaNN ", "usearch ", "RaBitQ ", "semantic_search_faiss")  # how names of other libraries' begin
FIRST_TARGET, FIRST_BOUND, FIRST_SIZE = 0.95, 80, 48  # recall@10, and bytes per vector in memory and of a code


def first_table(data: dict[str, Any]) -> str:
    """Return the README's table: exact search, FAISS, ours with and without floats, and a graph."""
    peers = data["peers-quora"]
    turns = [row for row in peers["in_turns"] if (row["threads"], row["target"]) == (1, FIRST_TARGET)]
    small = [row for row in turns if row["ram"] <= FIRST_BOUND]
    exact = next(row for row in peers["arrangements"] if row["name"] == "Flat")
    faiss = max((row for row in small if not row["ours"] and not row["name"].startswith(OTHERS)), key=_speed)
    lists = max((row for row in small if row["ours"]), key=_speed)
    graph = max((row for row in turns if row["name"].startswith(OTHERS)), key=_speed)
    codes = _codes_only(data)
    rows = [
        _first_row("exact search, `IndexFlat`", exact | exact["points"][0]),
        _first_row(f"FAISS, `{faiss['name']}`", faiss),
        _first_row(f"faiss-qama, `{_factory(lists['name'])}`", lists),
        _first_row(f"faiss-qama, `Qama({codes['layout']}),Flat,Refine(codes)`", codes),
        _first_row(f"a graph, {graph['name']}", graph),
    ]
    rows[3][1] += f" ({FIRST_SIZE} of code)"
    header = ["", "bytes/vector in memory", "on disk", "recall@10", "queries/s"]
    return f"{markdown(header, rows)}\n\n{_first_note(data, lists, graph)}"


def _codes_only(data: dict[str, Any]) -> dict[str, Any]:
    """Return the search of codes alone that finds as much as any, with the fewest candidates."""
    speed = data["near-limit"]["speed"]
    row = next(row for row in speed["searches, 1 threads"] if row["name"] == "trellis, most")
    ram = FIRST_SIZE + _of_first_size(data, "quora", "ours")["shared"]
    return row | {"ram": ram, "disk": 0, "layout": speed["layouts"][f"trellis, {FIRST_SIZE} bytes"]}


def _of_first_size(data: dict[str, Any], name: str, family: str) -> dict[str, Any]:
    """Return the variant of a family that finds most on a data set, of those compared at equal bytes."""
    rows = data[f"equal-bytes-{name}"]["rows"]
    rivals = [row for row in rows if (row["size"], row["family"]) == (FIRST_SIZE, family)]
    return max(rivals, key=lambda row: float(row["recall"][0]))


def _first_row(name: str, row: dict[str, Any]) -> list[str]:
    sizes = [f"{row['ram']:,.0f}", f"{row['disk']:,.0f}"]
    return [name, *sizes, f"{row['recall']:.3f}", f"{_speed(row):,.0f}"]


def _first_note(data: dict[str, Any], lists: dict[str, Any], graph: dict[str, Any]) -> str:
    """Return what was measured, and where others win."""
    less = [_of_first_size(data, name, "residual quantizers")["recall_less_ours"][0] for name in SETS]
    names = ("SciFact", "NFCorpus", "Quora")
    apart = {
        word: " and ".join(
            f"{name} ({value:+.3f})" for name, value in zip(names, less, strict=True) if value * sign > 0
        )
        for word, sign in (("more", 1), ("less", -1))
    }
    finds = ", ".join(f"{word} than ours on {where}" for word, where in apart.items() if where)
    memory, speed = graph["ram"] / lists["ram"], _speed(graph) / _speed(lists)
    text = (
        f"Quora, {data['peers-quora']['n']:,} vectors of 384 dimensions, one thread. "
        "Memory counts codes, ids, lists, links and the matrices that all vectors share. "
        "Vectors for re-ranking count as disk; in these runs they were in memory. "
        "The first row and the fourth were timed in runs of their own, the other three took turns in one run. "
        f"The graph needs {memory:.0f} times the memory of our lists, at {speed:.2f} times their speed. "
        f"At {FIRST_SIZE} bytes without floats, FAISS's residual quantizer finds {finds}."
    )
    return textwrap.fill(text, 118)


def _factory(name: str) -> str:
    """Return ``Qama(2x192),...`` as it is written: brackets are for layouts with commas."""
    return re.sub(r"Qama\(([^,()]+)\)", r"Qama\1", name)


def reads_table(data: dict[str, Any]) -> str:
    """Return what searches read and find that stop early, beside those that read all of their candidates."""
    rows = []
    for whole, stopping in zip(data["reads"]["rows"][::2], data["reads"]["rows"][1::2], strict=True):
        cells = [whole["set"], f"{whole['asked']:g}"]
        for row in (whole, stopping):
            cells += [f"{row['read']:.0f}", f"{row['recall']:.3f}", f"{100 * row['low']:.1f} %"]
        rows.append(cells)
    header = ["", "recall asked", "all: read per query", "recall@10", "queries below .9"]
    return markdown([*header, "stopping: read per query", "recall@10", "queries below .9"], rows)


def cold_table(data: dict[str, Any]) -> str:
    """Return searches of vectors that are read from the disk."""
    rows = [
        [f"{row['asked']:g}", "yes" if row["stops"] else "no", f"{row['milliseconds']:.1f}", f"{row['recall']:.3f}"]
        for row in data["reads"]["cold"]
    ]
    return markdown(["recall asked", "stops early", "milliseconds per query", "recall@10"], rows)


def scans_table(data: dict[str, Any]) -> str:
    """Return scans beside FAISS's."""
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
    header = ["", "bytes per code, `Flat` and `IndexBinaryFlat`"]
    header += [f"{threads} thread{'s' * (threads > 1)}, {batch} at a time" for threads, batch in cells]
    return markdown(header, rows)


def stages_table(data: dict[str, Any]) -> str:
    """Return what encoding, re-ranking, one query and loading take."""
    speed = data["speed"]
    rows = []
    for row in speed["stages"]["threads"]:
        cells = [f"{row['scoring_milliseconds']:.3f} ms", f"{row['encoded_per_second']:,.0f}"]
        rows.append([str(row["threads"]), *cells, f"{row['times_the_product']:.2f}"])
    header = ["threads", f"scoring {speed['stages']['candidates']} candidates from their codes, per query"]
    header += ["vectors encoded per second", "time of encoding, that of its matrix product being 1"]
    loading = ", ".join(f"`{base}` {1000 * took['seconds']:.0f} ms" for base, took in speed["loading"].items())
    numba = 1000 * max(took["numba_seconds"] for took in speed["loading"].values())
    loading += f". Numba takes {numba:.0f} ms more to start in a process, whatever the index"
    one = speed["stages"]["one_query_milliseconds"]
    alone = "One query after the other, 100 candidates, 1 thread: "
    alone += f"{one['search']:.3f} ms, of it the scan {one['scan']:.3f} ms."
    return (
        markdown(header, rows)
        + f"\n\n{alone}\n\nFrom a million vectors on disk to the first answer, mapped: {loading}."
    )


def asymmetric_table(data: dict[str, Any]) -> str:
    """Return ways to rank codes by the float query."""
    rows = [
        [row["name"], str(row["threads"]), f"{row['recall']:.3f}", f"{row['per_second']:,.0f}"]
        for row in data["speed"]["asymmetric"]
    ]
    return markdown(["", "threads", "recall@10", "queries/s"], rows)


def growing_table(data: dict[str, Any]) -> str:
    """Return how time grows with the number of codes."""
    kinds: dict[str, dict[int, dict[str, Any]]] = {}
    for row in data["speed"]["growth"]:
        kinds.setdefault(re.sub(r"IVF\d+", "IVF", row["base"]), {})[row["n"]] = row
    sizes = sorted(kinds["Flat"])
    rows = []
    for kind, cells in kinds.items():
        times = [1000 * cells[n]["milliseconds"] if n in cells else None for n in sizes]
        known = [n for n in sizes if n in cells]
        slope = np.polyfit(np.log(known), np.log([cells[n]["milliseconds"] for n in known]), 1)[0]
        rows.append([f"`{kind}`", *("" if t is None else f"{t:,.0f}" for t in times), f"n^{slope:.2f}"])
    return markdown(["microseconds per query", *(f"{n:,}" for n in sizes), "grows as"], rows)


def dimensions_table(data: dict[str, Any]) -> str:
    """Return what fits take by dimension, beside FAISS's training and beside busy processes, and a million vectors."""
    rows, known = [], {(r["d"], r["what"], r["threads"], r["busy"]): r for r in data["dimensions"]["rows"]}
    busy = max(row["busy"] for row in data["dimensions"]["rows"])
    for d in sorted({row["d"] for row in data["dimensions"]["rows"]}):
        fit, opq = (known[d, what, 1, 0]["processor"] for what in ("fit", "faiss"))
        quiet, beside = (known[d, "fit", None, others]["wall"] for others in (0, busy))
        stopped = "over " * (opq >= data["dimensions"]["limit"])
        rows.append([f"{d:,}", f"{fit:.1f}", f"{stopped}{opq:.0f}", f"{quiet:.1f}", f"{beside:.1f}"])
    header = ["d", "fit, one thread", "FAISS `OPQ48,PQ48`, one thread", "fit", "fit, beside two busy processes"]
    many = []
    for row in data["dimensions"]["many"]:
        cells = [f"{row[part]:.0f} s" for part in ("fit", "index", "product")]
        cells += [f"{row['peak'] / 1e9:.2f} GB", f"{row['disk'] / 1e9:.2f} GB"]
        many.append([f"`--rescore {row['rescore']}`", *cells])
    header_of_many = ["", "fit", "encode and index", "product of encoding", "peak memory", "index on disk"]
    load = data["dimensions"]["load"]
    opened = f"A saved index of {load['d']:,} dimensions and {load['components']} components opens in "
    opened += f"{1000 * load['seconds']:.0f} ms from files."
    return f"{markdown(header, rows)}\n\n{opened}\n\n{markdown(header_of_many, many)}"


def side_by_side_table(data: dict[str, Any]) -> str:
    """Return times of two checkouts, and their ratio."""
    rows = []
    for row in data["side-by-side"]["rows"]:
        sides = [f"{row['seconds'][side]:.1f} s ({row['commits'][side][:7]})" for side in ("this", "other")]
        low, high = row["quartiles"]
        name = f"`{row['name']}`, {row['threads']} threads"
        rows.append([name, *sides, f"{row['ratio']:.2f} ({low:.2f} to {high:.2f})"])
    return markdown(["", "one commit", "an earlier one", "ratio (quartiles)"], rows)


def changes_table(data: dict[str, Any]) -> str:
    """Return what changes of an index on disk cost."""
    changes = data["changes"]
    commit, remove, upserts = (changes[part] for part in ("commit", "remove", "upserts"))
    saved = commit["save"]["other"]
    rows = [
        ["a commit of 1,000 vectors", f"{1000 * commit['seconds']:.0f} ms; all saved, before: {saved:.2f} s"],
        ["bytes written for them", f"{commit['written'] / commit['theirs']:.2f} times their own"],
        ["removing one by its id, in files", f"{1e6 * remove['opened']:.0f} microseconds"],
        ["the same in memory", f"{1e6 * remove['memory']:.0f} microseconds; before: {remove['other']:.2f} s"],
        [
            "vectors replaced one by one, a commit each 1,000, a reader beside",
            f"{upserts['per_second']:,.0f} per second; lost: {upserts['lost']}; the reader refreshed "
            f"{upserts['refreshes']} times",
        ],
    ]
    for row in changes["commits"]:
        hits = "the same hits" if row["same"] else "other hits"
        rows.append(
            [
                f"`{row['base']}`: a search after {row['commits']} commits, one being 1",
                f"{row['many'] / row['one']:.2f}; {hits}",
            ]
        )
    if "ten million" not in changes:
        return markdown(["", ""], rows)
    ten = changes["ten million"]
    rows.append(
        ["10,000,000 vectors of 384 dimensions fitted and indexed, codes alone", f"{ten['seconds'] / 60:.1f} min"]
    )
    rows.append(["peak memory then, less the codes", f"{(ten['peak'] - ten['codes']) / 1e9:.2f} GB"])
    rows.append(["opening them, to the first answer, in a new process, which loads numba", f"{ten['opened']:.2f} s"])
    rows.append(["the same in a process that has searched before", f"{ten['opened again']:.2f} s"])
    return markdown(["", ""], rows)


def scale_table(data: dict[str, Any]) -> str:
    """Return what the command takes, the rate of encoding, and what measuring took."""
    scale, (minutes, seconds) = data["scale"], divmod(round(data["results"]["seconds"]), 60)
    rows = []
    for part in scale["commands"]:
        sizes = [f"{part[key] / 1e9:.2f} GB" for key in ("peak_bytes", "index_bytes")]
        rows.append([f"`{part['command']}`", f"{part['vectors']:,}", f"{part['seconds']:.0f} s", *sizes])
    header = ["", "vectors", "fit, index and what was measured", "peak memory, index included", "index"]
    return (
        markdown(header, rows)
        + f"\n\nEncoding 2x192 from 384 floats: {scale['encoding_per_second']:,.0f} vectors per second, "
        + f"{scale['threads']} threads. `make results`: {minutes} min {seconds} s, {data['results']['cores']} cores."
    )


def fastest_table(peers: dict[str, Any]) -> str:
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
    return markdown(["recall@10", "bytes in memory", "threads", "ours, queries/s", "FAISS, queries/s", "times"], rows)


def peers_table(peers: dict[str, Any]) -> str:
    """Return whole searches at a recall, ours and others'."""
    both: dict[tuple[str, float], dict[int, dict[str, Any]]] = {}
    for row in peers["in_turns"]:
        both.setdefault((row["name"], row["target"]), {})[row["threads"]] = row
    rows = []
    for (_, target), row in sorted(both.items(), key=lambda item: (item[0][1], -_speed(item[1][1]))):
        one = row[1]
        cells = [f"{one['ram']:.0f} + {one['disk']:.0f}", f"{one['recall']:.3f}"]
        rows.append([f"{target}", f"`{_named(one)}`", *cells, f"{_speed(one):,.0f}", f"{_speed(row[2]):,.0f}"])
    return markdown(["at", "", "bytes + on disk", "recall@10", "queries/s, 1 thread", "2 threads"], rows)


def _named(row: dict[str, Any]) -> str:
    settings = "".join(f", {name} {value}" for name, value in row["settings"].items())
    return row["name"] + settings


def _speed(row: dict[str, Any]) -> float:
    return float(row["per_second"])
