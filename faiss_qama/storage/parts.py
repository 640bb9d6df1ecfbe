"""The files of a generation of a bundle, read on request and checked against the manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import faiss
import numpy as np
from numpy.typing import DTypeLike, NDArray

from faiss_qama.formats.numpy_files import open_npy
from faiss_qama.growing import GrowingArray
from faiss_qama.storage import atomic_files
from faiss_qama.storage.manifest import MANIFEST, BundleError
from faiss_qama.storage.row_file import RowFile

ROOM = 8  # an array in memory has room for one more row in so many


class Parts:
    """The files of one generation, read on request (a :class:`~faiss_qama.hamming.code_index.PartReader`).

    Parameters
    ----------
    folder : Path
        The bundle.
    manifest : mapping
        The manifest.
    mmap : bool
        Whether arrays are memory-mapped. Only their sizes are checked, not their checksums.
    writable : bool
        Whether rows that are appended go to the files.
    """

    def __init__(self, folder: Path, manifest: Mapping[str, Any], mmap: bool, *, writable: bool = False) -> None:
        self._folder, self._files, self._mmap, self.writable = folder, manifest["files"], mmap, writable
        self.manifest_sha256: str = manifest["sha256"]  # which tells it from any other

    def has(self, name: str) -> bool:
        """Return whether the manifest names a part ``name``."""
        return name in self._files

    def path(self, name: str, *, mapped: bool = False) -> Path:
        """Return the file of a part, checked against its size, and against its checksum unless it is ``mapped``."""
        if name not in self._files:
            raise BundleError(f"{self._folder / MANIFEST}: no {name} is named")
        entry = self._files[name]
        path: Path = self._folder / entry["name"]
        if mapped:
            _check_size(path, entry)
        else:
            check(path, entry)
        return path

    def array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike, *, mapped: bool = True) -> NDArray[Any]:
        """Return an array, mapped if ``mmap`` and ``mapped``. Raises ValueError for another shape or dtype."""
        mapped = mapped and self._mmap
        try:
            array: NDArray[Any] = open_npy(self.path(name, mapped=mapped), mapped)
        except ValueError as error:  # it names the file
            raise BundleError(error) from None
        if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
            raise self.invalid(name, f"{array.shape} {array.dtype}; the manifest says {shape} {np.dtype(dtype)}")
        return array

    def growing(self, name: str, shape: tuple[int | None, ...], dtype: DTypeLike) -> GrowingArray:
        """Return the rows of a part, mapped, or in memory with room for more; a writer's go on in their file.

        Raises ValueError for another shape or dtype.
        """
        path, entry = self.path(name, mapped=True), self._files[name]
        n = entry.get("rows", shape[0])
        try:
            file = RowFile(path, writable=self.writable)
        except ValueError as error:  # it names the file
            raise BundleError(error) from None
        whole = file.start + n * file.width == entry["bytes"]
        if not whole or (n, *file.shape) != (shape[0] or n, *shape[1:]) or file.dtype != dtype:
            raise self.invalid(name, f"{(n, *file.shape)} {file.dtype}; the manifest says {shape} {np.dtype(dtype)}")
        if self.writable:
            return GrowingArray(file.read(n), file)
        if self._mmap:
            return GrowingArray(file.read(n))
        check(path, entry)
        grown = GrowingArray(file.load(n, n // ROOM))
        grown.shrink(n)
        return grown

    def binary(self, name: str, *, mapped: bool = False) -> faiss.IndexBinary:
        """Return a FAISS binary index. Raises ValueError, naming the file, if FAISS cannot read it."""
        path = self.path(name, mapped=mapped and self._mmap and not self.writable)
        try:
            with path.open("rb") as file:
                if self._mmap and not self.writable and _in_utf8(path):
                    return faiss.read_index_binary(str(path), faiss.IO_FLAG_MMAP_IFC)
                return faiss.read_index_binary(faiss.PyCallbackIOReader(file.read))
        except RuntimeError as error:
            if not path.exists():  # a save has removed it meanwhile
                raise FileNotFoundError(f"{path}: missing; the manifest names it") from None
            raise self.invalid(name, f"not a FAISS binary index ({str(error).splitlines()[-1].strip()})") from None

    def invalid(self, name: str, reason: str) -> BundleError:
        """Return the error for a part with impossible values."""
        return BundleError(f"{self._folder / self._files[name]['name']}: {reason}")


def file_entry(path: Path) -> dict[str, Any]:
    """Return the manifest's entry of a file, once it is on the disk: name, size and checksum."""
    atomic_files.sync(path)
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": atomic_files.sha256(path)}


def check(path: Path, entry: Mapping[str, Any]) -> None:
    """Raise FileNotFoundError or BundleError unless a file is as its entry says."""
    _check_size(path, entry)
    try:
        if isinstance(entry.get("sha256"), list):
            same = list(RowFile(path).checksums(entry["rows"], entry["lanes"])) == entry["sha256"]
        else:
            same = atomic_files.sha256(path) == entry.get("sha256")
    except ValueError as error:  # it names the file
        raise BundleError(error) from None
    if not same:
        raise BundleError(f"{path}: damaged: its checksum does not match the manifest")


def _check_size(path: Path, entry: Mapping[str, Any]) -> None:
    """Raise FileNotFoundError or BundleError unless a file has the size of its entry; one that grows may have more."""
    if not path.exists():
        raise FileNotFoundError(f"{path}: missing; the manifest names it")
    size, needed = path.stat().st_size, entry.get("bytes")
    if not isinstance(needed, int) or size < needed or (size > needed and "rows" not in entry):
        raise BundleError(f"{path}: damaged: {size} bytes; the manifest says {needed}")


def _in_utf8(path: Path) -> bool:
    """Return whether FAISS can open a file by this name."""
    try:
        return bool(str(path).encode())
    except UnicodeEncodeError:
        return False
