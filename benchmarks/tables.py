"""The tables of docs/results, of the README and of the FAQ, made from the JSON files that results.py writes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import RESULTS, ROOT, SETS, WIDE_SETS
from rendering.evidence_tables import equal_bytes_table, qama_table, rotated_table
from rendering.limit_tables import (
    errors_table,
    hamming_table,
    rounding_table,
    seeds_table,
    spread_table,
    trellis_searches_table,
    trellis_speed_table,
)
from rendering.recall_tables import (
    bases_table,
    choices_table,
    fits_table,
    growth_table,
    lengths_table,
    main_table,
    methods_table,
    rabitq_table,
    stock_table,
    user_data_table,
)
from rendering.speed_tables import (
    asymmetric_table,
    changes_table,
    cold_table,
    dimensions_table,
    fastest_table,
    first_table,
    growing_table,
    peers_table,
    reads_table,
    scale_table,
    scans_table,
    side_by_side_table,
    stages_table,
)
from rendering.training_tables import ablation_table, pairs_table, prefixes_table, training_table

# Tables of files that may not be there.
BY_FILE: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "changes": ("changes", changes_table),
    "dimensions": ("dimensions", dimensions_table),
    "fits": ("fits", fits_table),
    "side-by-side": ("side by side", side_by_side_table),
    "rotated-study": ("rotated study", lambda data: rotated_table(data["rotated-study"])),
    f"equal-bytes-{SETS[0]}": ("equal bytes", equal_bytes_table),
    f"equal-bytes-{SETS[1]}": ("seeds", seeds_table),
    "reads": ("reads", reads_table),
    WIDE_SETS[0]: ("main, wide", lambda data: main_table(data, WIDE_SETS)),
    f"equal-bytes-{WIDE_SETS[0]}": ("equal bytes, wide", lambda data: equal_bytes_table(data, WIDE_SETS)),
    "qama-table-384": ("qama", lambda data: qama_table(data, 384)),
    "qama-table-768": ("qama, 768", lambda data: qama_table(data, 768)),
    "user-data": ("user data", user_data_table),
    "training-ablation": ("ablation", ablation_table),
}
# Tables of parts of near-limit.json.
NEAR_LIMIT: tuple[tuple[str, str, Callable[[dict[str, Any]], str]], ...] = (
    ("errors", "errors", errors_table),
    ("spread", "spread", spread_table),
    ("rounding", "rounding", rounding_table),
    ("hamming", "hamming", hamming_table),
    ("speed", "trellis speed", trellis_speed_table),
    ("speed", "trellis searches", trellis_searches_table),
)


def remake() -> None:
    """Write the files that hold tables anew."""
    for path, text in render().items():
        path.write_text(text)


def render() -> dict[Path, str]:
    """Return the files that hold tables, with the tables made anew from the JSON files."""
    data = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
    tables = {
        "first": first_table(data),
        "main": main_table(data),
        "methods": methods_table(data),
        "rabitq": rabitq_table(data),
        "fit": choices_table(data, "fit"),
        "bytes": choices_table(data, "bytes"),
        "query side": choices_table(data, "query side"),
        "growth": growth_table(data),
        "lengths": lengths_table(data),
        "stock": stock_table(data),
        "bases": bases_table(data),
        "scale": scale_table(data),
        "scans": scans_table(data),
        "stages": stages_table(data),
        "asymmetric": asymmetric_table(data),
        "growing codes": growing_table(data),
    }
    for size in ("quora", "million", "quora-mpnet"):
        if f"peers-{size}" in data:
            peers = data[f"peers-{size}"]
            tables |= {f"fastest {size}": fastest_table(peers), f"peers {size}": peers_table(peers)}
    # Training takes longer to measure than all the rest, so its files may not be there.
    if all(f"training{part}-{name}" in data for part in ("", "-pairs") for name in SETS):
        tables |= {"training": training_table(data), "prefixes": prefixes_table(data)}
        tables |= {"pairs": pairs_table(data)}
    measured = data.get("near-limit", {})
    tables |= {name: table(data) for part, name, table in NEAR_LIMIT if part in measured}
    tables["reads from disk"] = cold_table(data)
    for file, (name, table) in BY_FILE.items():
        if file in data:
            tables[name] = table(data)
    files = {}
    for path in (*RESULTS.glob("*.md"), ROOT / "README.md", ROOT / "docs" / "faq.md"):
        text = path.read_text()
        for name, table in tables.items():
            marker = re.escape(f"<!-- table: {name} -->")
            text = re.sub(rf"({marker}\n).*?(<!-- end -->)", lambda m, t=table: f"{m[1]}{t}\n{m[2]}", text, flags=re.S)
        files[path] = text
    return files
