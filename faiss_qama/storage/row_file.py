"""A .npy file that grows by rows, for one writer and for readers that count fewer rows than there may be.

The header, which holds the number of rows of the first save, never changes, nor do rows that a manifest counts. The
last row may be a group of codes with free lanes, which later codes fill; what is in its other lanes stays. So a reader
that knows how many rows and lanes count can read while others are written.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from faiss_qama.storage import atomic_files

BLOCK = 1 << 22  # bytes that have a checksum of their own


class RowFile:
    """The rows of a .npy file.

    Parameters
    ----------
    path : Path
        The file.
    writable : bool
        Whether :meth:`write` is called.

    Raises
    ------
    OSError, ValueError
        For a file that cannot be read, or is no .npy file of rows.
    """

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        self.path = path.absolute()  # it is mapped again after it has grown
        try:
            with path.open("rb") as file:
                npy_format.read_magic(file)
                shape, fortran, dtype = npy_format.read_array_header_1_0(file)
                self.start = file.tell()  # where the rows begin
        except OSError:
            raise
        except Exception as error:  # a damaged header makes numpy raise almost anything
            raise ValueError(f"{path}: not a whole .npy file ({error})") from None
        if dtype.hasobject or not shape or fortran:
            raise ValueError(f"{path}: not rows of numbers")
        self.rows, self.shape, self.dtype = shape[0], shape[1:], dtype
        self.width = int(np.prod(self.shape)) * dtype.itemsize  # bytes of a row
        self._hashed: tuple[int, Any] = 0, None  # bytes up to which checksums are known, and the state of the last one
        self._file = path.open("r+b", buffering=0) if writable else None
        if self._file is not None:
            weakref.finalize(self, self._file.close)

    def read(self, n: int) -> NDArray[Any]:
        """Return the first ``n`` rows (n, ...), mapped read-only."""
        if not n:
            return np.empty((0, *self.shape), self.dtype)
        return np.memmap(self.path, self.dtype, "r", self.start, (n, *self.shape))

    def load(self, n: int, room: int) -> NDArray[Any]:
        """Return the first ``n`` rows (n + room, ...) in memory, with ``room`` for more behind them.

        Raises ValueError for a file that ends before.
        """
        array = np.empty((n + room, *self.shape), self.dtype)
        left = _bytes(array[:n])
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.start)
            while left:
                read = file.readinto(left)
                if not read:
                    raise ValueError(f"{self.path}: it ends too early")
                left = left[read:]
        return array

    def write(self, at: int, rows: NDArray[Any]) -> None:
        """Write ``rows`` (m, ...) from row ``at`` on. Raises OSError if there is no room."""
        assert self._file is not None
        left = _bytes(np.ascontiguousarray(rows, self.dtype))
        self._file.seek(self.start + at * self.width)
        while left:
            left = left[self._file.write(left) :]

    def entry(self, n: int, lanes: int = 0, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Wait until the first ``n`` rows are on the disk, and return the manifest's entry of them.

        Parameters
        ----------
        n : int
            Rows that count.
        lanes : int
            Entries of the last row that count, along its last axis; 0 for all.
        known : mapping, optional
            An entry of fewer rows, whose checksums stay.

        Returns
        -------
        dict
            Name, bytes, rows, lanes and checksums.

        Raises
        ------
        OSError
            If they may not be on the disk.
        ValueError
            If rows of ``known`` are not as they were.
        """
        atomic_files.sync(self.path)
        same = [] if known is None or known["name"] != self.path.name or "rows" not in known else known["sha256"]
        whole = 0 if known is None or not same else self._whole(known["rows"], known["lanes"]) // BLOCK
        if known is not None and same[whole:] and self._hashed[1] is None:  # what is hashed with new rows must be whole
            if [*self.checksums(known["rows"], known["lanes"], whole)] != same[whole:]:
                raise ValueError(f"{self.path}: damaged: its checksum does not match the manifest")
        sums = [*same[:whole], *self.checksums(n, lanes, whole)]
        size = self.start + n * self.width
        return {"name": self.path.name, "bytes": size, "rows": n, "lanes": lanes, "sha256": sums}

    def checksums(self, n: int, lanes: int, first: int = 0) -> Iterator[str]:
        """Yield the SHA-256 of each ``BLOCK`` up to the last whole row of ``n`` from the ``first`` on.

        Then of the last row's first ``lanes``, unless all count.
        """
        end = self._whole(n, lanes)
        with self.path.open("rb") as file:
            for start in range(first * BLOCK, end, BLOCK):
                stop = min(start + BLOCK, end)
                known, digest = self._hashed
                known, digest = (known, digest.copy()) if start < known <= stop else (start, hashlib.sha256())
                file.seek(known)
                digest.update(file.read(stop - known))
                self._hashed = stop, digest
                yield digest.hexdigest()
        if lanes:
            yield hashlib.sha256(np.ascontiguousarray(self.read(n)[-1][..., :lanes]).tobytes()).hexdigest()

    def _whole(self, n: int, lanes: int) -> int:
        """Return the bytes up to the last whole row of ``n``."""
        return self.start + (n - (lanes > 0)) * self.width


def _bytes(rows: NDArray[Any]) -> memoryview:
    return rows.reshape(-1).view(np.uint8).data if rows.size else memoryview(b"")
