"""Metadata as JSON: dates, times and numpy's numbers too."""

from __future__ import annotations

import json
from datetime import date, datetime, time
from typing import Any

import numpy as np

TIMES = {f"datetime.{kind.__name__}": kind for kind in (datetime, date, time)}  # their tags in JSON; a subclass first


def dump(value: Any) -> str:
    """Return ``value`` as JSON, with tags on dates and times. Raises TypeError or ValueError if JSON cannot hold it."""
    return json.dumps(value, default=_encoded)


def load(text: str) -> Any:
    """Return the value of :func:`dump`."""
    return json.loads(text, object_hook=_decoded)


def _encoded(value: Any) -> Any:
    if isinstance(value, np.datetime64):
        return value.astype("datetime64[us]").item()
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    for tag, kind in TIMES.items():
        if isinstance(value, kind):
            return {tag: value.isoformat()}
    raise TypeError(f"{value!r} is a {type(value).__name__}")


def _decoded(fields: dict[str, Any]) -> Any:
    tag = next(iter(fields), "")
    return TIMES[tag].fromisoformat(fields[tag]) if len(fields) == 1 and tag in TIMES else fields
