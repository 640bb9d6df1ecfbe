"""The folders depend on each other one way, and no module or function grows past its measure."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# Each folder may import those before it. Files that lie in faiss_qama itself stand by their own names.
ORDER = (
    *("arrays", "progress", "threads", "growing", "formats", "vectors", "corpus", "index_spec", "reference"),
    *("kernels", "topk", "quantizer", "hamming", "rescore", "storage", "evaluation", "training", "index"),
    *("comparison", "pipeline", "report", "texts", "integrations", "cli", "__main__"),
)
MODULES = sorted([*(ROOT / "faiss_qama").rglob("*.py"), *(ROOT / "training").rglob("*.py")])
FACE = ROOT / "faiss_qama" / "index" / "qama_index.py"
# A drop-in has the parameters of what it stands in for.
DROP_INS = {"semantic_search_faiss"}


def place(module: str) -> str:
    """Return the folder of a module, ``faiss_qama.NAME`` or below."""
    return module.split(".")[1] if "." in module else "faiss_qama"


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(("faiss_qama", *parts) if parts[0] == "training" else parts)


def imported(path: Path) -> set[str]:
    """Return the modules that a file imports anywhere, in functions and for types too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {module for module in found if module.startswith("faiss_qama.")}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_folders_import_only_folders_before_them(path):
    own = place(name_of(path))
    if own in ("__init__", "_version"):
        return
    allowed = {*ORDER[: ORDER.index(own) + 1], "__version__", "_version"}
    assert {place(module) for module in imported(path)} <= allowed


@pytest.mark.parametrize("path", [path for path in MODULES if place(name_of(path)) == "integrations"], ids=name_of)
def test_clients_use_only_what_is_public(path):
    """A private attribute belongs to a class of the module that names it."""
    own, used = set(), set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            own.add(node.name)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            own.add(node.target.id)
        elif isinstance(node, ast.Attribute) and re.match("_[^_]", node.attr):
            mine = isinstance(node.value, ast.Name) and node.value.id == "self" and isinstance(node.ctx, ast.Store)
            (own if mine else used).add(node.attr)
    assert used <= own


def test_every_folder_is_in_the_order():
    assert {place(name_of(path)) for path in MODULES} - {"__init__", "_version"} == set(ORDER)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_modules_are_short_and_functions_take_few_parameters(path):
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= (449 if path == FACE else 400)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name not in DROP_INS:
            arguments = node.args
            taken = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
            taken = [a.arg for a in taken if a.arg not in ("self", "cls")]
            is_command = any("click" in ast.unparse(d) or "command" in ast.unparse(d) for d in node.decorator_list)
            assert is_command or len(taken) <= 8, f"{node.name} takes {len(taken)}: {', '.join(taken)}"


def test_importing_the_package_loads_neither_torch_nor_the_compiler():
    loaded = (
        "import sys, faiss_qama, faiss_qama.cli; print([m for m in ('torch', 'numba', 'llvmlite') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_arrays_that_faiss_reads_by_address_have_names(path):
    """``swig_ptr`` keeps no reference, so the memory of ``swig_ptr(x[rows])`` is free before FAISS reads it."""
    named = ast.Name | ast.Attribute
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "swig_ptr":
            assert isinstance(node.args[0], named), f"line {node.lineno}: {ast.unparse(node)}"
        if isinstance(node, ast.ListComp) and ".swig_ptr(" in ast.unparse(node.elt):
            over = node.generators[0].iter
            arrays = over.elts if isinstance(over, ast.Tuple) else []
            assert arrays, f"line {node.lineno}: {ast.unparse(node)}"
            assert all(isinstance(array, named) for array in arrays), f"line {node.lineno}: {ast.unparse(node)}"


def test_the_order_of_folders_is_the_one_that_is_described():
    told = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").split("in this order:")[1].split(".")[0]
    assert re.findall(r"`(\w+)`", told) == [name for name in ORDER if name != "__main__"]
