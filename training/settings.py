"""Settings from YAML and from callers: known by name, and checked against the types of their dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any, TypeVar

Settings = TypeVar("Settings")

_TYPES: dict[str, tuple[type, ...]] = {
    "bool": (bool,),
    "int": (int,),
    "float": (int, float),
    "str": (str,),
    "None": (type(None),),
}


def from_mapping(kind: type[Settings], settings: object, where: str = "") -> Settings:
    """Return ``kind(**settings)``.

    Parameters
    ----------
    kind : callable
        A dataclass.
    settings : object
        A mapping of the fields of ``kind``, as YAML gives it.
    where : str
        What messages call the mapping.

    Returns
    -------
    object
        The dataclass.

    Raises
    ------
    TypeError, ValueError
        For what is no mapping, for a setting that ``kind`` does not have, and whatever ``kind`` raises.
    """
    where = f"{where}: " if where else ""
    if not isinstance(settings, Mapping):
        raise TypeError(f"{where}a mapping of settings is needed; got {settings!r}")
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for name in settings:
        if name not in known:
            raise ValueError(f"{where}unknown setting {name!r}; there are {', '.join(known)}")
    return kind(**settings)


def check_types(settings: Any, where: str = "") -> None:
    """Check the fields of a frozen dataclass that hold one value; turn numbers that YAML read as text into numbers.

    Parameters
    ----------
    settings : object
        Its annotations are text, of the names in ``_TYPES`` alone for a field to be checked: ``float | None``.
    where : str
        What messages put before the name of a field.

    Raises
    ------
    TypeError
        For a value of another type, naming the field.
    """
    for f in fields(settings):
        names = f.type.split(" | ")
        if not set(names) <= set(_TYPES):
            continue
        value = getattr(settings, f.name)
        if "float" in names:
            value = as_number(value)
            object.__setattr__(settings, f.name, value)
        types = tuple(t for name in names for t in _TYPES[name])
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            raise TypeError(f"{where}{f.name} must be {' or '.join(names)}; got {value!r}")


def as_number(value: Any) -> Any:
    """Return the number that a text spells, because YAML reads 1e-4 as text; anything else as it is."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value
