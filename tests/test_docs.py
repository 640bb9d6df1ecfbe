"""The README runs, and its tables and those of docs/results are what the result files say."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import make_vectors


def test_the_snippet_runs(request, tmp_path):
    blocks = re.findall(r"```python\n(.*?)```", (request.config.rootpath / "README.md").read_text(), flags=re.S)
    assert len(blocks) == 1
    assert len(blocks[0].splitlines()) <= 15
    np.save(tmp_path / "corpus.npy", make_vectors(500))
    np.save(tmp_path / "queries.npy", make_vectors(9, seed=1))
    program = blocks[0] + "assert I.shape == (9, 10) and index.ntotal == 500\n"
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True)


def test_tables_come_from_the_result_files(request):
    spec = importlib.util.spec_from_file_location("tables", request.config.rootpath / "benchmarks" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    rendered = tables.render()
    assert len(rendered) == 2
    for path, text in rendered.items():
        assert path.read_text() == text
        assert text.count("<!-- table:") == text.count("|\n<!-- end -->") + len(
            re.findall(r"[^|\n]\n<!-- end -->", text)
        )


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "CHANGELOG.md",
        *(f"docs/{n}.md" for n in ("architecture", "choosing-bytes", "evaluation", "operations", "training")),
    ],
)
def test_links_lead_somewhere(request, page):
    path = request.config.rootpath / page
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        assert (path.parent / target).exists(), target


def test_every_module_of_the_map_exists_and_every_module_is_on_it(request):
    root = request.config.rootpath
    text = (root / "docs" / "architecture.md").read_text()
    for folder in ("faiss_qama", "training"):
        modules = {p.name for p in (root / folder).glob("*.py")} - {"__init__.py", "_version.py"}
        listed = set(re.findall(r"^  (\w+\.py)", re.split(r"\n\w|\n```", text.split(f"{folder}/  ")[1])[0], flags=re.M))
        assert modules == listed - {"__init__.py"}, modules ^ listed
