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
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
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
from faiss_qama.vectors import PathLike

T = TypeVar("T")

FORMAT, VERSION = "faiss-qama bundle", 1
BEFORE_RELEASE = "faiss-qama"  # the format of bundles that were written before the first release
NEEDED: dict[str, type] = {"generation": int, "ntotal": int, "base": str, "rescore": str, "written_by": str}
NEEDED |= {"base_settings": dict, "quantizer": dict, "files": dict}
MANIFEST, LOCK = "manifest.json", ".lock"
_OURS = re.compile(
    r"(quantizer-\d+\.safetensors|codes-\d+\.faissindex|manifest\.json\.new"
    r"|(codes|rows|places|sizes|centroids|vectors|residual|norms|ids|alive)-\d+\.npy)"
)


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
    parts : mapping of str to ndarray or Stream
        The arrays of the rescorer and of the ids, by name.
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
        For a damaged manifest, and for a source inside the folder.
    """
    folder = Path(path)
    if not folder.exists():
        if not folder.absolute().parent.is_dir():
            raise FileNotFoundError(f"{folder}: the folder {folder.absolute().parent} does not exist")
    elif not folder.is_dir():
        raise FileExistsError(f"{folder}: a file is in the way; an index is written as a folder")
    elif (folder / MANIFEST).exists():
        _parse(folder)
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
                previous = _parse(folder) if (folder / MANIFEST).exists() else {"generation": 0}
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
        manifest = _parse(folder)
        try:
            reader, ntotal = Parts(folder, manifest["files"], mmap), manifest["ntotal"]
            quantizer = _read_quantizer(reader.path("quantizer"), manifest["quantizer"])
            base = read_base(manifest["base"], quantizer.layout, ntotal, reader)
            base.set(manifest["base_settings"])
            return make(quantizer, manifest["rescore"], base, reader)
        except FileNotFoundError:
            if _parse(folder) == manifest:  # else a save has replaced the generation meanwhile
                raise
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / MANIFEST}: not the manifest of an index ({error!r})") from None


def verify(path: PathLike) -> dict[str, Any]:
    """Check every file of the bundle at ``path`` against its checksum; return the manifest.

    Raises FileNotFoundError or ValueError, naming the file and the fault.
    """
    manifest = _parse(Path(path))
    try:
        for entry in manifest["files"].values():
            _verify(Path(path) / entry["name"], entry, hash_it=True)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{Path(path) / MANIFEST}: not the manifest of an index ({error!r})") from None
    return manifest


def fingerprint(path: PathLike) -> str:
    """Return a str that tells the saved state of the bundle at ``path`` from every other: its manifest's checksum."""
    return str(_parse(Path(path))["sha256"])


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
            raise ValueError(f"{self._folder / MANIFEST}: no {name} is named")
        entry = self._files[name]
        path: Path = self._folder / entry["name"]
        _verify(path, entry, hash_it=not mapped)
        return path

    def array(self, name: str, shape: tuple[int, ...], dtype: DTypeLike, *, mapped: bool = True) -> NDArray[Any]:
        """Return an array, memory-mapped if ``mmap`` and ``mapped``. Raises ValueError for another shape or dtype."""
        mapped = mapped and self._mmap
        array: NDArray[Any] = open_npy(self.path(name, mapped=mapped), mapped)
        if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
            raise self.invalid(name, f"{array.shape} {array.dtype}; the manifest says {shape} {np.dtype(dtype)}")
        return array

    def binary(self, name: str, *, mapped: bool = False) -> faiss.IndexBinary:
        """Return a FAISS binary index. Raises ValueError, naming the file, if FAISS cannot read it."""
        path = self.path(name, mapped=mapped and self._mmap)
        try:
            return faiss.read_index_binary(str(path), faiss.IO_FLAG_MMAP_IFC if self._mmap else 0)
        except RuntimeError as error:
            if not path.exists():  # a save has replaced the generation
                raise FileNotFoundError(f"{path}: missing; the manifest names it") from None
            raise self.invalid(name, f"not a FAISS binary index ({str(error).splitlines()[-1].strip()})") from None

    def invalid(self, name: str, reason: str) -> ValueError:
        """Return the error for a part with impossible values."""
        return ValueError(f"{self._folder / self._files[name]['name']}: {reason}")


def _write_generation(folder: Path, generation: int, bundle: Bundle) -> None:
    files: dict[str, Path] = {}

    def write_part(name: str, part: Any) -> None:
        if isinstance(part, faiss.IndexBinary):
            path = files[name] = folder / f"{name}-{generation}.faissindex"
            atomic_files.write_faiss(path, part)
            if path.stat().st_size < part.ntotal * part.code_size:  # FAISS ignores a failed flush
                raise OSError(f"{path}: could not be written in full: {path.stat().st_size} bytes; is the disk full?")
            return
        files[name] = folder / f"{name}-{generation}.npy"
        atomic_files.write_stream(files[name], part)

    try:
        for name, part in bundle.parts.items():  # streams fill the base
            write_part(name, part)
        for name, part in bundle.base.parts().items():
            write_part(name, part)
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
        # Files that the manifest does not name are an older generation's, or left by an interrupted save.
        current = _parse(folder)["files"].values() if (folder / MANIFEST).exists() else ()
        kept = {entry["name"] for entry in current}
        for entry in folder.iterdir():
            if _OURS.fullmatch(entry.name) and entry.name not in kept:
                with suppress(OSError):  # Windows keeps mapped files; the next save removes them
                    entry.unlink()


def file_entry(path: Path) -> dict[str, Any]:
    """Return the manifest's entry of a file, once it is on the disk: name, size and checksum."""
    atomic_files.sync(path)
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": atomic_files.sha256(path)}


def sign(manifest: Mapping[str, Any]) -> bytes:
    """Return the bytes of ``manifest.json``, with the checksum of the manifest itself."""
    unsigned = {key: value for key, value in manifest.items() if key != "sha256"}
    return _dump(unsigned | {"sha256": hashlib.sha256(_dump(unsigned)).hexdigest()})


def _only_leftovers(folder: Path) -> bool:
    """Return whether a killed first save left all files of ``folder``: its lock, and files with our names."""
    names = {entry.name for entry in folder.iterdir()}
    return LOCK in names and all(_OURS.fullmatch(name) for name in names - {LOCK})


def _read_quantizer(path: Path, settings: dict[str, Any]) -> Quantizer:
    try:
        return Quantizer.from_state(safetensors.numpy.load(path.read_bytes()), settings)
    except (SafetensorError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not the quantizer that the manifest describes ({error})") from None


def _parse(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not folder.is_dir() or not path.exists():
        raise FileNotFoundError(f"{folder}: no index here ({MANIFEST} is missing)")
    raw = path.read_bytes()
    try:
        manifest = json.loads(raw)
        found = manifest["format"], manifest["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the manifest of an index ({error})") from None
    if found[0] == BEFORE_RELEASE:
        raise ValueError(f"{path}: written before the first release, in a format that is no longer read: fit again")
    if found != (FORMAT, VERSION):
        raise ValueError(f"{path}: format {found[0]} version {found[1]}; this release reads {FORMAT} version {VERSION}")
    if raw != sign(manifest):
        raise ValueError(f"{path}: damaged: its checksum does not match")
    for key, kind in NEEDED.items():
        if not isinstance(manifest.get(key), kind):
            raise ValueError(f"{path}: not the manifest of an index ({key} is {manifest.get(key)!r})")
    return dict(manifest)


def _dump(manifest: dict[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=2) + "\n").encode()


def _verify(path: Path, entry: Mapping[str, Any], hash_it: bool) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path}: missing; the manifest names it")
    if path.stat().st_size != entry["bytes"]:
        raise ValueError(f"{path}: damaged: {path.stat().st_size} bytes; the manifest says {entry['bytes']}")
    if hash_it and atomic_files.sha256(path) != entry["sha256"]:
        raise ValueError(f"{path}: damaged: its checksum does not match the manifest")
