"""Examples in docstrings run, the entry points have one, and types stand where numpydoc has them."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import itertools
import re
from pathlib import Path

import pytest

from faiss_qama import QamaIndex, Quantizer, index_factory
from faiss_qama.index.build import build_index
from faiss_qama.index.export import to_faiss
from faiss_qama.training import FitConfig, fit

ROOT = Path(__file__).parents[1]
PATHS = sorted([*(ROOT / "faiss_qama").rglob("*.py"), *(ROOT / "training").rglob("*.py")])
WITH_EXAMPLES = [path for path in PATHS if ">>> " in path.read_text(encoding="utf-8")]
ENTRY_POINTS = (QamaIndex, QamaIndex.search, QamaIndex.wrap, QamaIndex.load, index_factory, build_index, to_faiss)
ENTRY_POINTS += (fit, FitConfig, Quantizer)
# First words of types that are no classes. Classes begin with a capital letter, or with their module and a dot.
TYPES = "array bool bytes callable dict dtype float int iterable iterator list mapping module ndarray object path range"
TYPES = {*TYPES.split(), "sequence", "set", "slice", "str", "tuple"}
FIELD = re.compile(r"(?P<names>\*{0,2}\w+(?:, \*{0,2}\w+)*) : (?P<type>.+)")


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("faiss_qama", *parts) if parts[0] == "training" else parts)


def fields(path: Path) -> list[tuple[str, str]]:
    """Return the names and types of the parameters, attributes and results in a module's docstrings."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        section = ""
        for line, after in itertools.pairwise([*(ast.get_docstring(node) or "").splitlines(), ""]):
            section = line if set(after) == {"-"} else section
            match = FIELD.fullmatch(line) if section in ("Parameters", "Attributes", "Returns", "Yields") else None
            if match:
                found.append((match["names"], match["type"]))
    return found


def is_type(text: str) -> bool:
    """Return whether ``text`` begins with a type."""
    first = re.split(r"[ ,]", text)[0]
    return first in TYPES or first[0].isupper() or "." in first.rstrip(".")


@pytest.mark.parametrize("path", WITH_EXAMPLES, ids=name_of)
def test_examples_run(path):
    failed, tried = doctest.testmod(importlib.import_module(name_of(path)))
    assert tried > 0
    assert failed == 0


@pytest.mark.parametrize("thing", ENTRY_POINTS, ids=lambda thing: thing.__qualname__)
def test_entry_points_have_an_example(thing):
    methods = [one for one in vars(thing).values() if inspect.isroutine(one)] if inspect.isclass(thing) else []
    assert any(">>> " in (inspect.getdoc(one) or "") for one in [thing, *methods])


def test_types_stand_in_the_type_slot():
    every = [(name_of(path), name, kind) for path in PATHS for name, kind in fields(path)]
    assert len(every) > 100
    assert [field for field in every if not is_type(field[2])] == []
