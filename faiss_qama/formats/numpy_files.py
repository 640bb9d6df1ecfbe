"""Vectors in .npy and .npz files."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from faiss_qama.arrays import Ids
from faiss_qama.formats.reader import Reader, Want, as_file_ids, chosen, is_readable, mapped, slices

OBJECTS = "it holds Python objects; np.save(path, np.stack(list(x)).astype(np.float32)) saves their numbers"


def open_npy(path: Path, mmap: bool = True) -> NDArray[Any]:
    """Return the array in a .npy file, mapped read-only or read.

    Raises OSError, or ValueError naming the file and the fault.
    """
    try:
        array = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except OSError:
        raise
    except Exception as error:  # a damaged header makes numpy raise almost anything
        reason = OBJECTS if "Object arrays" in str(error) or "Python objects" in str(error) else str(error)
        raise ValueError(f"{path}: not a whole .npy file ({reason})") from None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{path}: one array in a .npy file is needed; this is an archive")
    return array


def read_ids(path: Path) -> Ids:
    """Return the ids (n,) int64 in a .npy file. Raises OSError, TypeError or ValueError naming it."""
    return as_file_ids(open_npy(path, mmap=False), path, "the file")


def read_npy(path: Path, want: Want) -> Reader:
    """Return a reader of a .npy file."""
    return mapped(lambda: open_npy(path))


def read_npz(path: Path, want: Want) -> Reader:
    """Return a reader of one array in a .npz file, compressed or not.

    Parameters
    ----------
    path : Path
        The file.
    want : Want
        The array, by default the only one of vectors, and that of ids.

    Returns
    -------
    Reader
        Its array is read in a stream; one in Fortran order is read whole.

    Raises
    ------
    ValueError
        If there is no such array or no single one.
    """
    with zipfile.ZipFile(path) as archive:
        headers = {m.removesuffix(".npy"): _header(archive, m) for m in archive.namelist() if m.endswith(".npy")}
    held = {key: f"{'x'.join(map(str, shape)) or 'a number'} {dtype}" for key, (shape, _, dtype) in headers.items()}
    good = [key for key, (shape, _, dtype) in headers.items() if len(shape) == 2 and is_readable(dtype)]
    key = chosen(path, want.name, held, [key for key in good if key != want.ids], "array")
    shape, fortran, dtype = headers[key]
    if dtype.hasobject:
        raise ValueError(f"{path}:{key}: {OBJECTS}")

    def windows(step: int) -> Iterator[NDArray[Any]]:
        if fortran:
            with np.load(path, allow_pickle=False) as archive:
                yield from slices(archive[key], step)
            return
        with zipfile.ZipFile(path) as archive, archive.open(f"{key}.npy") as file:
            _read_header(file)
            for start in range(0, shape[0], step):
                rows = min(step, shape[0] - start)
                yield np.frombuffer(file.read(rows * shape[1] * dtype.itemsize), dtype).reshape(rows, shape[1])

    ids = None
    if want.ids is not None:
        chosen(path, want.ids, held, [], "array")
        with np.load(path, allow_pickle=False) as archive:
            ids = as_file_ids(archive[want.ids], path, want.ids)
    return Reader(shape=shape, dtype=dtype, windows=windows, ids=ids)


def _header(archive: zipfile.ZipFile, member: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    with archive.open(member) as file:
        return _read_header(file)


def _read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return shape, whether in Fortran order, and dtype of the .npy that ``file`` begins with."""
    version = npy_format.read_magic(file)
    read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return shape, fortran and len(shape) > 1, dtype
