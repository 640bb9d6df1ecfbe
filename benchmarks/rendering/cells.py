"""The form of all tables, and cells that many of them have."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate


def markdown(header: list[str], rows: list[list[str]]) -> str:
    """Return a table in GitHub's form."""
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)


def bytes_text(row: dict[str, Any]) -> str:
    """Return bytes of codes and of what is kept: ``48 + 768``."""
    return " + ".join(str(part) for part in row["bytes"] if part)


def percent(row: dict[str, Any], exact: dict[str, Any]) -> str:
    """Return the nDCG in % of that of exact floats."""
    return f"{100 * row['ndcg'] / exact['ndcg']:.1f}"
