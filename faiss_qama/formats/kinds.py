"""Which format a file has, by its first bytes and by its name."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from faiss_qama.formats import faiss_vectors, numpy_files, plain_files, tables, tensor_files
from faiss_qama.formats.reader import Reader, Want


@dataclass(frozen=True)
class Kind:
    """A format.

    Parameters
    ----------
    what : str
        What a file of it is called.
    suffixes : tuple of str
        How its name ends.
    read : callable
        Its reader, of a path and what to read. Whatever it raises for a damaged file becomes a ValueError.
    begins : bytes
        A pattern of its first bytes; empty for a format that cannot be known by them.
    has_names : bool
        Whether it holds parts with names.
    holds : callable or None
        Whether a file that begins so is one, where others may begin so too.
    """

    what: str
    suffixes: tuple[str, ...]
    read: Callable[[Path, Want], Reader]
    begins: bytes = b""
    has_names: bool = False
    holds: Callable[[Path], bool] | None = None


MOST_HEADER = 100_000_000  # bytes that a .safetensors file allows


def _holds_npy(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(member.endswith(".npy") for member in archive.namelist())
    except zipfile.BadZipFile:
        return False


def _holds_header(path: Path) -> bool:
    """Return whether the first 8 bytes of a file are the length of a JSON object after them, as in .safetensors."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return size <= min(path.stat().st_size - 8, MOST_HEADER) and file.read(size).rstrip().endswith(b"}")


KINDS = (
    Kind(".npy file", (".npy",), numpy_files.read_npy, rb"\x93NUMPY"),
    Kind(".npz file", (".npz",), numpy_files.read_npz, rb"PK\x03\x04", True, _holds_npy),
    Kind(".safetensors file", (".safetensors",), tensor_files.read_safetensors, rb'.{6}\0\0\{"', True, _holds_header),
    Kind("Parquet file", (".parquet", ".pq"), tables.read_parquet, rb"PAR1", True),
    Kind("Arrow file", (".arrow", ".feather", ".ipc"), tables.read_arrow, rb"ARROW1|\xff{4}", True),
    Kind("HDF5 file", (".hdf5", ".h5"), tensor_files.read_hdf5, rb"\x89HDF", True),
    # Four letters, then the dimension, which is below 2^24.
    Kind("FAISS index", (".faiss", ".faissindex", ".index"), faiss_vectors.read_faiss, rb"I\w{3}.{3}\0"),
    Kind("file of TEXMEX vectors", tuple(plain_files.VECS), plain_files.read_vecs),
    Kind("file of big-ann vectors", tuple(plain_files.BINS), plain_files.read_bin),
    Kind("file of float32 alone", plain_files.RAW, plain_files.read_raw),
)
BY_SUFFIX = {suffix: kind for kind in KINDS for suffix in kind.suffixes}
OTHERS = {
    rb"\x1f\x8b": "data compressed with gzip: unpack it",
    rb"\x28\xb5\x2f\xfd": "data compressed with zstd: unpack it",
    rb"FEA1": "Feather of version 1, which pyarrow.feather.read_table reads",
    rb"version https://git-lfs": "a pointer of Git LFS: git lfs pull brings the file itself",
    rb"SQLite format 3": "an SQLite database",
    rb"\x80[\x02-\x05]": "a pickle: np.save the array in it",
    rb"PK\x03\x04": "a zip archive without .npy files; of a PyTorch file np.save the tensor as an array",
}


def read_vectors(path: Path, want: Want) -> Reader:
    """Return a reader of the vectors in a file.

    Parameters
    ----------
    path : Path
        The file.
    want : Want
        What to read of it.

    Returns
    -------
    Reader
        Its shape and its type are as in the file, not checked.

    Raises
    ------
    OSError
        If it cannot be opened.
    ImportError
        If the library that reads it is not installed.
    TypeError, ValueError
        For a file of no known format, one that is named after another format, a damaged one, and one that does not
        hold what is wanted. The message names the file, what it is, and the remedy.
    """
    with path.open("rb") as file:
        head = file.read(128)
    named = BY_SUFFIX.get(path.suffix.lower())
    kind = next((kind for kind in KINDS if kind.begins and re.match(kind.begins, head, re.S)), None)
    if kind is not None and kind.holds is not None and not kind.holds(path):
        kind = None
    if kind is None and (named is None or named.begins or _is_text(head) or head.startswith(b"PK\x03\x04")):
        known = "" if named else f"; vectors are read from files whose names end in {', '.join(BY_SUFFIX)}"
        raise ValueError(f"{path}: not a whole {named.what if named else '.npy file'}, but {_other(head)}{known}")
    if kind is not None and named is not None and kind is not named and named.suffixes != plain_files.RAW:
        raise ValueError(f"{path}: this is a {kind.what}; let its name end in {kind.suffixes[0]}")
    kind = kind or named
    assert kind is not None
    if not kind.has_names and (want.name or want.ids):
        raise ValueError(f"{path}: a {kind.what} has no columns or arrays with names; got {want.name or want.ids!r}")
    with _errors_name_the_file(path, kind):
        reader = kind.read(path, want)

    def windows(step: int) -> Iterator[NDArray[Any]]:
        with _errors_name_the_file(path, kind):
            yield from reader.windows(step)

    return replace(reader, windows=windows)


@contextmanager
def _errors_name_the_file(path: Path, kind: Kind) -> Iterator[None]:
    """Raise ValueError that names the file for whatever a library makes of a damaged one."""
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        if str(path) in str(error) or getattr(error, "filename", None) is not None:
            raise
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise ValueError(f"{path}: not a whole {kind.what} ({reason})") from error


def _other(head: bytes) -> str:
    """Return what a file is that holds no vectors, by its first bytes."""
    known = (what for begins, what in OTHERS.items() if re.match(begins, head))
    return next(known, "text" if _is_text(head) else "something else" if head else "an empty file")


def _is_text(head: bytes) -> bool:
    try:
        text = head.decode()
    except UnicodeDecodeError as error:
        if error.start < len(head) - 3:  # else a letter was cut in two
            return False
        text = head[: error.start].decode()
    return text != "" and all(letter.isprintable() or letter.isspace() for letter in text)
