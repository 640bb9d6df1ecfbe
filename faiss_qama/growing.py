"""Arrays that grow by rows, in memory or in a file."""

from __future__ import annotations

import ctypes
import mmap
import os
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

_MAP_FIXED = 0x10  # of Linux, macOS and BSD; the module mmap lacks it


class Rows(Protocol):
    """A file of rows."""

    def read(self, n: int) -> NDArray[Any]:
        """Return the first ``n`` rows (n, ...), mapped read-only."""

    def write(self, at: int, rows: NDArray[Any]) -> None:
        """Write ``rows`` (m, ...) from row ``at`` on. Raises OSError if there is no room."""


class GrowingArray:
    """An array with room at its end, so that appending row after row costs no more than appending them at once.

    Parameters
    ----------
    array : ndarray of shape (n, ...)
        The first rows. A memory map stays one until rows are appended.
    file : Rows, optional
        A file that holds these rows. Rows that are appended go there, and are read from there.
    """

    def __init__(self, array: NDArray[Any], file: Rows | None = None) -> None:
        self._buffer, self._n, self.file = array, len(array), file

    def __len__(self) -> int:
        return self._n

    @property
    def array(self) -> NDArray[Any]:
        """The rows (n, ...), as a view."""
        buffer = self._buffer
        if len(buffer) < self._n and self.file is not None:
            buffer = self._buffer = self.file.read(self._n)
        return buffer[: self._n]

    def append(self, rows: NDArray[Any]) -> None:
        """Append ``rows`` (m, ...). Raises OSError if their file has no room."""
        self.write(self._n, rows)

    def write(self, at: int, rows: NDArray[Any]) -> None:
        """Write ``rows`` (m, ...) from row ``at`` on, over those that are there and then at the end."""
        end = at + len(rows)
        if self.file is not None:
            self.file.write(at, rows)
        else:
            if end > len(self._buffer):
                room = max(end, len(self._buffer) * 3 // 2)
                grown = np.empty((room, *self._buffer.shape[1:]), self._buffer.dtype)
                grown[: self._n] = self.array
                self._buffer = grown
            self._buffer[at:end] = rows
        self._n = max(self._n, end)

    def move_to(self, file: Rows) -> None:
        """Go on in a file that holds the rows."""
        self._buffer, self.file = file.read(self._n), file

    def shrink(self, n: int) -> None:
        """Drop the rows from ``n`` on."""
        self._n = min(n, self._n)

    def clear(self) -> None:
        """Drop every row. What is appended then is in memory."""
        self._buffer, self._n, self.file = np.empty((0, *self._buffer.shape[1:]), self._buffer.dtype), 0, None


def with_room(array: NDArray[Any]) -> GrowingArray:
    """Return a copy of ``array`` (n, ...), of a memory map with room for n rows more.

    A page of a map is copied once it is written to (on Windows, all are at once). The file stays as it is.
    """
    if not isinstance(array, np.memmap) or not array.size:
        return GrowingArray(array)
    if os.name == "nt":
        return GrowingArray(np.array(array))
    held = array.offset + array.nbytes
    memory = mmap.mmap(-1, held + array.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    room = np.frombuffer(memory, array.dtype, 2 * array.size, array.offset).reshape(-1, *array.shape[1:])
    system = ctypes.CDLL(None, use_errno=True)
    system.mmap.restype, system.mmap.argtypes = (
        ctypes.c_void_p,
        (*[ctypes.c_size_t] * 2, *[ctypes.c_int] * 3, ctypes.c_long),
    )
    with open(str(array.filename), "rb") as file:  # over the first part of that memory
        modes = mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | _MAP_FIXED, file.fileno(), 0
        if system.mmap(room.ctypes.data - array.offset, held, *modes) != room.ctypes.data - array.offset:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(array.filename))
    grown = GrowingArray(room)
    grown.shrink(len(array))
    return grown


def exceeds_memory(array: NDArray[Any]) -> bool:
    """Return whether ``array`` is a memory map, or a view of one, that is larger than the machine's memory."""
    return (isinstance(array, np.memmap) or isinstance(array.base, np.memmap)) and array.nbytes > _memory()


def expect_random_reads(array: NDArray[Any]) -> None:
    """Have the system read no more of ``array`` than is asked for, where it is mapped and exceeds memory.

    Else each read from the disk brings its neighbours, up to megabytes, which nobody asks for before they are dropped.
    """
    if exceeds_memory(array) and hasattr(mmap, "MADV_RANDOM"):
        mapped = array if isinstance(array, np.memmap) else array.base
        mapped._mmap.madvise(mmap.MADV_RANDOM)  # type: ignore[union-attr]


@cache
def _memory() -> float:
    """Return the bytes of the machine's memory, infinity if the system does not tell."""
    try:
        return float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return float("inf")
