"""The distributions hold what the source tree holds."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest
import yaml

from faiss_qama import __version__

ROOT = Path(__file__).parents[1]
FOLDERS = {"faiss_qama": "faiss_qama", "training": "faiss_qama/training"}  # in the tree and in a wheel
KEPT = ("benchmarks", "configs", "docs", "tests")  # only in the source distribution


def files(folder):
    """The paths of the files below a folder of the tree, relative to it, without what Python leaves there."""
    found = (path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*") if path.is_file())
    return {path.as_posix() for path in found if "__pycache__" not in path.parts}


def test_every_package_is_declared():
    tomllib = pytest.importorskip("tomllib")  # Python 3.11 and later
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    found = {
        "/".join([FOLDERS[folder], *Path(name).parent.parts]).replace("/", ".")
        for folder in FOLDERS
        for name in files(folder)
        if name.endswith(".py")
    }
    assert set(declared) == found


def test_the_citation_names_the_version():
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__


@pytest.mark.slow
def test_distributions_hold_every_file(tmp_path):
    pytest.importorskip("build")
    pytest.importorskip("setuptools", minversion="77")
    tree = tmp_path / "tree"  # a copy: building leaves files behind
    tree.mkdir()
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, tree)
        elif path.name in (*FOLDERS, *KEPT, ".ci"):
            shutil.copytree(path, tree / path.name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(tree)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,), (source,) = (tmp_path / "dist").glob("*.whl"), (tmp_path / "dist").glob("*.tar.gz")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert held == {f"{place}/{name}" for folder, place in FOLDERS.items() for name in files(folder)}
    with tarfile.open(source) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {f"{folder}/{name}" for folder in (*FOLDERS, *KEPT) for name in files(folder)}
    wanted |= {".ci/run", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "Makefile", "README.md"}
    assert wanted | {"constraints.txt"} <= held
