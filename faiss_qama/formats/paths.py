"""The files that a source names: a file, one part of it, a folder of shards, or a glob."""

from __future__ import annotations

import glob
import os
import re
from pathlib import Path

from faiss_qama.formats.kinds import BY_SUFFIX

# Files beside the shards of a corpus that are no shards of it.
BESIDE = re.compile(r"(^|[_.-])(quer(y|ies)|test|dev|learn|groundtruth|ground_truth|labels|ids)($|[_.-])")


def files_of(source: str | os.PathLike[str]) -> list[tuple[Path, str | None]]:
    """Return the files that a source names, shard-2 before shard-10, each with the name of the part to read.

    Parameters
    ----------
    source : str or os.PathLike
        A file, a folder, or a glob; ``:name`` at the end names a part of each file.

    Returns
    -------
    list of (Path, str or None)
        The files. A file that does not exist is among them if it is named itself.

    Raises
    ------
    FileNotFoundError
        For a folder or a glob without files of vectors.
    ValueError
        For a folder that holds something else beside the shards of one corpus.
    """
    text, name = os.fspath(source), None
    for colon in (match.start() for match in re.finditer(":", text)):
        if not os.path.exists(text) and _found(text[:colon]):
            text, name = text[:colon], text[colon + 1 :]
            break
    path = Path(text)
    if path.is_dir():
        files = _shards(path)
    elif not path.exists() and _is_glob(text):
        files = _found(text)
        if not files:
            raise FileNotFoundError(f"{text}: no file matches")
    else:
        files = [path]
    return [(file, name) for file in files]


def natural(path: Path) -> list[tuple[int, int | str]]:
    """Return a key that sorts paths as people count: numbers in them by their values."""
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in re.split(r"(\d+)", str(path)) if part]


def _is_glob(text: str) -> bool:
    return any(letter in text for letter in "*?[")


def _found(text: str) -> list[Path]:
    """Return the files and folders at ``text``, which may be a glob, in natural order."""
    if os.path.exists(text):
        return [Path(text)]
    return sorted((Path(found) for found in glob.glob(text, recursive=True) if os.path.isfile(found)), key=natural)


def _shards(folder: Path) -> list[Path]:
    """Return the files of vectors in a folder, in natural order."""
    if (folder / "manifest.json").exists() and any(folder.glob("quantizer-*.safetensors")):
        raise ValueError(f"{folder}: this is an index; name a file of vectors, or a folder of them")
    files = [path for path in folder.iterdir() if path.is_file() and path.name[0] not in "._"]
    files = sorted((path for path in files if path.suffix.lower() in BY_SUFFIX), key=natural)
    if not files:
        raise FileNotFoundError(f"{folder}: no file of vectors in this folder; read are {', '.join(BY_SUFFIX)}")
    first = files[0]
    for path in files[1:]:
        if path.suffix != first.suffix or bool(BESIDE.search(path.stem)) != bool(BESIDE.search(first.stem)):
            raise ValueError(
                f"{folder}: {first.name} and {path.name} are not shards of one corpus; name files, or a glob"
            )
    return files
