"""The bundle on disk: a folder whose ``manifest.json`` names the files of one generation. Only this module writes it.

A save writes the files of the next generation, syncs them, and then replaces the manifest in one atomic step: a crash
leaves the old index or the new one. The manifest holds the SHA-256 of every file and of itself. Format version 1::

    manifest.json                quantizer's settings, and name, size, SHA-256 of the files
    quantizer-G.safetensors      its arrays
    codes-G.npy                  codes of the bases Flat and IVF: (groups, words, 16) uint32, see hamming.bit_planes
    rows-G.npy, places-G.npy     of IVF, whose groups lie in the order of its lists: (groups, 16) int32, the rows of
                                 the codes, -1 for none; (n,) int32, the place of each row's code
    sizes-G.npy, centroids-G.npy of IVF: (nlist,) int64, codes per list; (nlist, units) uint8, the centroids of the
                                 lists in 64ths of a level
    codes-G.faissindex           codes of FAISS's bases: the faiss.IndexBinary; for hash tables, which a load rebuilds,
                                 a flat one
    vectors-G.npy                vectors to re-rank with, one row per code: float16, float32, or int8 (sq8)
    residual-G.npy               residual codes to re-rank with: (groups, words, 16) uint32
    norms-G.npy                  norms of the decoded sums: (n,) float16 of unit vectors, float32 under L2
    ids-G.npy                    (n,) int64, the user's own ids
    alive-G.npy                  (n,) bool, false for a removed row
    documents-G.json             documents of the store of a framework
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import faiss
import filelock
import numpy as np
import safetensors.numpy
from numpy.typing import DTypeLike, NDArray
from safetensors import SafetensorError

from faiss_qama._version import __version__
from faiss_qama.formats.numpy_files import open_npy
from faiss_qama.hamming.code_index import CodeIndex
from faiss_qama.hamming.factory import read_base
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.storage import atomic_files
from faiss_qama.storage.manifest import (
    FORMAT,
    MANIFEST,
    VERSION,
    BundleError,
    generation_of,
    invalid_manifest,
    read_manifest,
    sign,
)
from faiss_qama.vectors import PathLike

T = TypeVar("T")

LOCK = ".lock"
_FAULTS = (LookupError, TypeError, AttributeError, ValueError, ArithmeticError, RuntimeError)  # of impossible values


@dataclass(frozen=True, eq=False)
class Bundle:
    """An index to write.

    Parameters
    ----------
    quantizer : Quantizer
        The quantizer.
    rescore : str
        The kind of its rescorer.
    base : CodeIndex
        The codes. It may be filled while the chunks of a stream are consumed.
    parts : mapping of str to ndarray, Stream or str
        The arrays of the rescorer and of the ids, and the text of the documents, by name.
    """

    quantizer: Quantizer
    rescore: str
    base: CodeIndex
    parts: Mapping[str, Any]


def check_writable(path: PathLike, sources: Iterable[Path] = ()) -> None:
    """Check that ``path`` is free, an empty folder, or a bundle to replace, and change nothing.

    Parameters
    ----------
    path : str or path
        The folder.
    sources : iterable of Path
        Files that must not lie in the folder.

    Raises
    ------
    OSError
        For a file at ``path``, a folder of other files, and a missing parent folder.
    ValueError
        For a manifest that cannot be read, and for a source inside the folder.
    """
    folder = Path(path)
    if not os.path.lexists(folder):
        if not folder.absolute().parent.is_dir():
            raise FileNotFoundError(f"{folder}: the folder {folder.absolute().parent} does not exist")
    elif not folder.is_dir():
        raise FileExistsError(f"{folder}: a file is in the way; an index is written as a folder")
    elif (folder / MANIFEST).exists():
        try:
            read_manifest(folder)
        except BundleError as error:
            raise BundleError(f"{error}; delete the folder {folder}, or name another") from None
    elif any(folder.iterdir()) and not _only_leftovers(folder):
        raise FileExistsError(f"{folder}: this folder is not empty and holds no {MANIFEST}; nothing was written")
    for source in sources:
        if folder.resolve() in source.resolve().parents:
            raise ValueError(f"{source}: the corpus lies inside {folder}, which would be replaced")


def write(path: PathLike, bundle: Bundle) -> None:
    """Write a bundle to a folder, replacing a bundle there in one atomic step.

    Parameters
    ----------
    path : str or path
        The folder.
    bundle : Bundle
        The index.

    Raises
    ------
    FileExistsError
        For a file, or a folder of other files, at ``path``.
    OSError
        If writing fails. A bundle at ``path`` stays as it was.
    """
    folder = Path(path)
    check_writable(folder)
    folder.mkdir(exist_ok=True)
    try:
        with atomic_files.naming(folder), filelock.FileLock(folder / LOCK, timeout=0):
            try:
                previous = read_manifest(folder) if (folder / MANIFEST).exists() else {"generation": 0}
                _write_generation(folder, previous["generation"] + 1, bundle)
            finally:
                if not (folder / MANIFEST).exists():  # nothing was written, so remove the folder
                    with suppress(OSError):
                        (folder / LOCK).unlink()
                        folder.rmdir()
    except filelock.Timeout:
        raise OSError(f"{folder}: another process is writing this index") from None


def read(path: PathLike, make: Callable[[Quantizer, str, CodeIndex, Parts], T], *, mmap: bool = False) -> T:
    """Read the bundle at ``path``.

    Parameters
    ----------
    path : str or path
        The folder.
    make : callable
        Takes the quantizer, the kind of the rescorer, the codes, and a reader of all other parts. It is called again
        if a save replaces the generation meanwhile.
    mmap : bool
        Whether arrays are memory-mapped, read-only. Only their sizes are checked, not their checksums.

    Returns
    -------
    object
        The result of ``make``.

    Raises
    ------
    FileNotFoundError, ValueError
        Naming the file and the fault.
    """
    folder = Path(path)
    while True:
        manifest = read_manifest(folder)
        try:
            reader, ntotal = Parts(folder, manifest["files"], mmap), manifest["ntotal"]
            quantizer = _read_quantizer(reader.path("quantizer"), manifest["quantizer"])
            base = read_base(manifest["base"], quantizer.layout, ntotal, reader)
            base.set(manifest["base_settings"])
            return make(quantizer, manifest["rescore"], base, reader)
        except FileNotFoundError:
            if read_manifest(folder) == manifest:  # else a save has replaced the generation meanwhile
                raise
        except BundleError:
            raise
        except _FAULTS as error:
            raise invalid_manifest(folder / MANIFEST, f"{type(error).__name__}: {error}") from None


def verify(path: PathLike) -> dict[str, Any]:
    """Check every file of the bundle at ``path`` against its checksum; return the manifest.

    Raises FileNotFoundError or ValueError, naming the file and the fault.
    """
    manifest = read_manifest(Path(path))
    for entry in manifest["files"].values():
        _verify(Path(path) / entry["name"], entry, hash_it=True)
    return manifest


class Parts:
    """The files of one generation, read on request (a :class:`~faiss_qama.hamming.code_index.PartReader`).

    Parameters
    ----------
    folder : Path
        The bundle.
    files : mapping of str to mapping
        The manifest's entries by name.
    mmap : bool
        Whether arrays are memory-mapped. Only their sizes are checked, not their checksums.
    """

    def __init__(self, folder: Path, files: Mapping[str, Mapping[str, Any]], mmap: bool) -> None:
        self._folder, self._files, self._mmap = folder, files, mmap

    def has(self, name: str) -> bool:
        """Return whether the manifest names a part ``name``."""
        return name in self._files

    def path(self, name: str, *, mapped: bool = False) -> Path:
        """Return the file of a part, checked against its size, and against its checksum unless it is ``mapped``."""
        if name not in self._files:
            raise BundleError(f"{self._folder / MANIFEST}: no {name} is named")
        entry = self._files[name]
        path: Path = self._folder / entry["name"]
        _verify(path, entry, hash_it=not mapped)
        return path

    def array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike, *, mapped: bool = True) -> NDArray[Any]:
        """Return an array, memory-mapped if ``mmap`` and ``mapped``. Raises ValueError for another shape or dtype."""
        mapped = mapped and self._mmap
        try:
            array: NDArray[Any] = open_npy(self.path(name, mapped=mapped), mapped)
        except ValueError as error:  # it names the file
            raise BundleError(error) from None
        if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
            raise self.invalid(name, f"{array.shape} {array.dtype}; the manifest says {shape} {np.dtype(dtype)}")
        return array

    def binary(self, name: str, *, mapped: bool = False) -> faiss.IndexBinary:
        """Return a FAISS binary index. Raises ValueError, naming the file, if FAISS cannot read it."""
        path = self.path(name, mapped=mapped and self._mmap)
        try:
            with path.open("rb") as file:
                if self._mmap and _in_utf8(path):
                    return faiss.read_index_binary(str(path), faiss.IO_FLAG_MMAP_IFC)
                return faiss.read_index_binary(faiss.PyCallbackIOReader(file.read))
        except RuntimeError as error:
            if not path.exists():  # a save has removed it meanwhile
                raise FileNotFoundError(f"{path}: missing; the manifest names it") from None
            raise self.invalid(name, f"not a FAISS binary index ({str(error).splitlines()[-1].strip()})") from None

    def invalid(self, name: str, reason: str) -> BundleError:
        """Return the error for a part with impossible values."""
        return BundleError(f"{self._folder / self._files[name]['name']}: {reason}")


def _write_generation(folder: Path, generation: int, bundle: Bundle) -> None:
    """Write all parts, then the manifest that names them, and remove what it does not name."""
    try:
        files = _write_parts(folder, generation, bundle)
        arrays, settings = bundle.quantizer.to_state()
        files["quantizer"] = folder / f"quantizer-{generation}.safetensors"
        files["quantizer"].write_bytes(safetensors.numpy.save(arrays))
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "written_by": f"faiss-qama {__version__}",
            "generation": generation,
            "ntotal": len(bundle.base),
            "base": str(bundle.base),
            "base_settings": bundle.base.settings,
            "rescore": bundle.rescore,
            "quantizer": settings,
            "files": {name: file_entry(path) for name, path in files.items()},
        }
        new = folder / (MANIFEST + ".new")
        new.write_bytes(sign(manifest))
        atomic_files.sync(new)
        atomic_files.sync(folder)
        os.replace(new, folder / MANIFEST)
        atomic_files.sync(folder)
    finally:
        _remove_unnamed(folder, generation)


def _write_parts(folder: Path, generation: int, bundle: Bundle) -> dict[str, Path]:
    """Write the arrays, texts and FAISS indexes of a bundle; return their files by name."""
    files: dict[str, Path] = {}
    for name, part in _parts_of(bundle):
        kind = "faissindex" if isinstance(part, faiss.IndexBinary) else "json" if isinstance(part, str) else "npy"
        path = files[name] = folder / f"{name}-{generation}.{kind}"
        if isinstance(part, faiss.IndexBinary):
            atomic_files.write_faiss(path, part)
        elif isinstance(part, str):
            path.write_text(part, encoding="utf-8", newline="\n")
        else:
            atomic_files.write_stream(path, part)
    return files


def _parts_of(bundle: Bundle) -> Iterator[tuple[str, Any]]:
    yield from bundle.parts.items()  # streams, which fill the base
    yield from bundle.base.parts().items()


def _remove_unnamed(folder: Path, generation: int) -> None:
    """Remove files up to ``generation`` that the manifest does not name: an older one's, or an interrupted save's."""
    current = read_manifest(folder)["files"].values() if (folder / MANIFEST).exists() else ()
    kept = {entry["name"] for entry in current}
    for entry in folder.iterdir():
        if generation_of(entry.name) <= generation and entry.name not in kept:
            with suppress(OSError):  # Windows keeps mapped files; the next save removes them
                entry.unlink()


def file_entry(path: Path) -> dict[str, Any]:
    """Return the manifest's entry of a file, once it is on the disk: name, size and checksum."""
    atomic_files.sync(path)
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": atomic_files.sha256(path)}


def _only_leftovers(folder: Path) -> bool:
    """Return whether a killed first save left all files of ``folder``: its lock, and files of generation 1."""
    names = {entry.name for entry in folder.iterdir()}
    return LOCK in names and all(generation_of(name) <= 1 for name in names - {LOCK})


def _in_utf8(path: Path) -> bool:
    """Return whether FAISS can open a file by this name."""
    try:
        return bool(str(path).encode())
    except UnicodeEncodeError:
        return False


def _read_quantizer(path: Path, settings: dict[str, Any]) -> Quantizer:
    try:
        quantizer = Quantizer.from_state(safetensors.numpy.load(path.read_bytes()), settings)
        if quantizer.d != settings["d"]:
            raise ValueError(f"its dimension is {quantizer.d}, not {settings['d']}")
        return quantizer
    except (SafetensorError, *_FAULTS) as error:
        raise BundleError(f"{path}: not the quantizer that the manifest describes ({error})") from None


def _verify(path: Path, entry: Mapping[str, Any], hash_it: bool) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path}: missing; the manifest names it")
    if path.stat().st_size != entry.get("bytes"):
        raise BundleError(f"{path}: damaged: {path.stat().st_size} bytes; the manifest says {entry.get('bytes')}")
    if hash_it and atomic_files.sha256(path) != entry.get("sha256"):
        raise BundleError(f"{path}: damaged: its checksum does not match the manifest")
