"""Files written in one atomic step: a crash leaves the old one or the new one."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from faiss_qama.vectors import PathLike


@dataclass(frozen=True)
class Stream:
    """An array that is written chunk by chunk.

    Parameters
    ----------
    shape : tuple of int
        Shape of the array.
    dtype : dtype
        Type of the array.
    chunks : iterable of ndarray
        Runs of its rows, in order.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: Iterable[NDArray[Any]]


def check_writable(path: PathLike, others: Iterable[Path] = ()) -> None:
    """Check that a file can be written at ``path``, and change nothing.

    Parameters
    ----------
    path : str or path
        The file.
    others : iterable of Path
        Files that it must not replace.

    Raises
    ------
    OSError
        For what is there and is no regular file, and for a parent folder that is missing or may not be written to.
    ValueError
        If ``path`` is one of ``others``.
    """
    final, target = Path(path), _target(path)
    folder = target.parent
    if final.is_dir():
        raise IsADirectoryError(f"{final}: a folder is in the way")
    if (os.path.lexists(target) or final.exists()) and not final.is_file():
        raise FileExistsError(f"{final}: a device, a pipe or the like is in the way; name a file")
    if not folder.is_dir():
        raise FileNotFoundError(f"{final}: the folder {folder} does not exist")
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{final}: the folder {folder} may not be written to")
    if any(target == _target(other) for other in others):
        raise ValueError(f"{final}: the same command reads or writes this already, and it would be replaced")


@contextmanager
def replacing(path: PathLike) -> Iterator[Path]:
    """Yield a path to write to; at the end its file replaces ``path`` in one atomic step, unless an error is raised.

    A link stays, and the file that it leads to is replaced. Raises the errors of :func:`check_writable`, and OSError
    naming ``path`` if writing fails.
    """
    check_writable(path)
    target = _target(path)
    part = target.with_name(target.name + ".part")
    try:
        with naming(path, part):
            yield part
            sync(part)
            os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def _target(path: PathLike) -> Path:
    return Path(os.path.realpath(path))  # unlike Path.resolve it raises nothing for a link to itself


@contextmanager
def naming(path: PathLike, part: Path | None = None) -> Iterator[None]:
    """Name ``path`` in an OSError without a file name, such as that of a full disk, or with the name of ``part``."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename in (None, str(part)):
            error.filename = str(path)
        raise


def write_text(path: PathLike, text: str) -> None:
    """Write ``text`` to ``path`` in UTF-8, replacing a file there in one atomic step."""
    with replacing(path) as part:
        part.write_text(text, encoding="utf-8", newline="\n")


def write_npy(path: PathLike, x: NDArray[Any] | Stream) -> None:
    """Write ``x`` to the .npy file ``path``, replacing a file there in one atomic step."""
    with replacing(path) as part:
        write_stream(part, x)


def write_stream(path: Path, x: NDArray[Any] | Stream) -> None:
    """Write ``x`` as a .npy file. Raises ValueError for a stream whose chunks do not make its number of rows."""
    stream, rows = x if isinstance(x, Stream) else Stream(x.shape, x.dtype, [x]), 0
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(stream.dtype), "fortran_order": False, "shape": stream.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in stream.chunks:
            rows += len(chunk)
            file.write(np.ascontiguousarray(chunk, stream.dtype).data)
    if rows != stream.shape[0]:
        raise ValueError(f"{path}: {rows} rows, not {stream.shape[0]}; not saved")


def write_faiss(path: Path, index: Any) -> None:
    """Write a faiss.Index or faiss.IndexBinary. Raises OSError if it is not written in full."""
    write = faiss.write_index_binary if isinstance(index, faiss.IndexBinary) else faiss.write_index
    with path.open("wb") as file:  # FAISS ignores that a file it has written to cannot be closed, as on a full disk
        write(index, faiss.PyCallbackIOWriter(file.write))


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk."""
    if path.is_dir() and os.name == "nt":  # Windows opens no folder
        return
    handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)  # Windows syncs only files open for writing
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
