"""The pages run, their links lead somewhere, and tables are what the result files say."""

from __future__ import annotations

import doctest
import importlib.util
import itertools
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import make_vectors, slow_except
from sybil import Region, Sybil
from sybil.parsers.markdown import CodeBlockParser, PythonCodeBlockParser, SkipParser
from sybil.parsers.markdown.lexers import RawFencedCodeBlockLexer

from faiss_qama.cli.app import cli
from faiss_qama.training.gradient import train as training

ROOT = Path(__file__).parents[1]
DOCS = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs").rglob("*.md"))]
PAGES = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", *DOCS]


def run_shell(example):
    """Run the lines that begin with faiss-qama; what follows a line with $ is what it prints, but for numbers."""
    lines = example.parsed.replace("\\\n", " ").splitlines()
    for number, line in enumerate(lines):
        command = re.sub(r"\s#.*", "", line.removeprefix("$ "))
        if not command.startswith("faiss-qama "):
            continue
        done = CliRunner().invoke(cli, shlex.split(command)[1:])
        assert done.exit_code == 0, f"{example.path}:{example.line}: {command}: {done.output}{done.exception!r}"
        shown = list(itertools.takewhile(lambda text: not text.startswith("$ "), lines[number + 1 :]))
        if line.startswith("$ ") and shown:
            wanted, got = (
                re.sub(r"[\d,.]*\d( (bytes|kB|MB|GB))?", "#", text) for text in ("\n".join(shown), done.output)
            )
            options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
            assert doctest.OutputChecker().check_output(wanted + "\n", got, options), f"{command} prints\n{done.output}"


BLOCKS = Sybil(
    [
        PythonCodeBlockParser(),
        CodeBlockParser("shell", run_shell),
        lambda page: (Region(r.start, r.end, r.lexemes["source"], run_shell) for r in RawFencedCodeBlockLexer()(page)),
        SkipParser(),  # <!-- skip: next "needs a model" -->
    ]
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files that the pages speak of; trainings are short in it."""
    x, xq = make_vectors(1000, d=384), make_vectors(80, d=384, seed=1)
    np.save(tmp_path / "corpus.npy", x.astype(np.float16))
    np.save(tmp_path / "queries.npy", xq)
    (tmp_path / "qrels.tsv").write_text("".join(f"{q}\t{d}\t1\n" for q, d in enumerate((xq @ x.T).argmax(axis=1))))
    (tmp_path / "dataset").mkdir()
    for name in ("corpus.npy", "queries.npy", "qrels.tsv"):
        (tmp_path / "dataset" / name).symlink_to(tmp_path / name)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    steps = training.train

    def short(start, split, config, *rest):
        return steps(start, split, replace(config, epochs=1, steps_per_epoch=1), *rest)

    monkeypatch.setattr(training, "train", short)
    monkeypatch.chdir(tmp_path)


@pytest.mark.filterwarnings("ignore:fitted on")  # few vectors, of as many components as the pages speak of
@pytest.mark.parametrize("page", slow_except(["README.md"], PAGES))
def test_blocks_run(page, folder):
    document = BLOCKS.parse(ROOT / page)
    for example in document:
        example.evaluate()
    if page == "README.md":
        assert document.namespace["I"].shape == (80, 10)
        assert document.namespace["index"].ntotal == 1000


def test_the_snippet_is_short():
    block = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)[0]
    assert len(block.splitlines()) <= 15


def test_tables_come_from_the_result_files(request, monkeypatch):
    monkeypatch.syspath_prepend(request.config.rootpath / "benchmarks")
    spec = importlib.util.spec_from_file_location("tables", request.config.rootpath / "benchmarks" / "tables.py")
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    rendered = tables.render()
    assert len(rendered) == 5
    for path, text in rendered.items():
        assert path.read_text() == text
        assert text.count("<!-- table:") == text.count("|\n<!-- end -->") + len(
            re.findall(r"[^|\n]\n<!-- end -->", text)
        )


def test_the_page_of_the_command_line_says_what_the_commands_say():
    spec = importlib.util.spec_from_file_location("cli_page", ROOT / "docs" / "cli_page.py")
    cli_page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cli_page)
    assert cli_page.PAGE.read_text() == cli_page.page(), "python docs/cli_page.py writes it anew"


def anchors(path):
    """Return what the headings of a page are called in links, as code hosts do."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    path = ROOT / page
    for target, anchor in re.findall(r"\]\(([^)#:]*)#?([^):]*)\)", path.read_text()):
        found = path.parent / target if target else path
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), f"{target}#{anchor}"


def test_every_module_of_the_map_exists_and_every_module_is_on_it(request):
    root = request.config.rootpath
    parts, listed = [], set()
    for line in (root / "docs" / "architecture.md").read_text().split("```")[3].splitlines():
        indent, name = len(line) - len(line.lstrip()), line.split()[0] if line.split() else ""
        if name.endswith("/"):
            parts = [*parts[: indent // 2], name.rstrip("/")]
        elif name.endswith(".py") and "/" not in name:
            listed.add("/".join([*parts[: indent // 2], name]))
    modules = {
        path.relative_to(root).as_posix()
        for folder in ("faiss_qama", "training")
        for path in (root / folder).rglob("*.py")
        if path.name not in ("__init__.py", "_version.py") and path.parent.name != "integrations"
    }
    assert modules == listed, modules ^ listed
