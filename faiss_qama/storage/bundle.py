"""The bundle on disk: a folder whose ``manifest.json`` names the files of one generation (``docs/file-format.md``).

A save writes the files of the next generation, syncs them, and then replaces the manifest in one atomic step: a crash
leaves the old index or the new one. The manifest holds the SHA-256 of every file and of itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import faiss
import filelock
import safetensors.numpy
from safetensors import SafetensorError

from faiss_qama._version import __version__
from faiss_qama.arrays import LANES
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
from faiss_qama.storage.parts import Parts, check, file_entry
from faiss_qama.storage.row_file import RowFile
from faiss_qama.vectors import PathLike

T = TypeVar("T")
Make: TypeAlias = Callable[[Quantizer, str, CodeIndex, Parts], T]

LOCK = ".lock"
GROW = {"vectors", "residual", "norms", "ids", "removed"}  # parts that grow, beside those of the base index
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


def write(path: PathLike, index: Bundle) -> None:
    """Write a bundle to a folder, replacing a bundle there in one atomic step.

    Parameters
    ----------
    path : str or path
        The folder.
    index : Bundle
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
                atomic_files.sync(folder.absolute().parent)
                previous = read_manifest(folder) if (folder / MANIFEST).exists() else {"generation": 0}
                write_generation(folder, previous["generation"] + 1, index, {}, base=True)
            finally:
                if not (folder / MANIFEST).exists():  # nothing was written, so remove the folder
                    with suppress(OSError):
                        (folder / LOCK).unlink()
                        folder.rmdir()
    except filelock.Timeout:
        raise being_written(folder) from None


def being_written(folder: Path) -> OSError:
    """Return the error for a folder whose lock is held."""
    return OSError(f"{folder}: being written or open for writing already, in this or another process")


def read(path: PathLike, make: Make[T], *, mmap: bool = False, writable: bool = False) -> T:
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
    writable : bool
        Whether they are mapped, and rows that are appended go to their files.

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
            return read_parts(manifest, Parts(folder, manifest, mmap or writable, writable=writable), make)
        except FileNotFoundError:
            if read_manifest(folder) == manifest:  # else a save has replaced the generation meanwhile
                raise
        except BundleError:
            raise
        except _FAULTS as error:
            raise invalid_manifest(folder / MANIFEST, f"{type(error).__name__}: {error}") from None


def read_parts(manifest: Mapping[str, Any], reader: Parts, make: Make[T]) -> T:
    """Return what ``make`` makes of the parts of a generation, as :func:`read`."""
    quantizer = _read_quantizer(reader.path("quantizer"), manifest["quantizer"])
    base = read_base(manifest["base"], quantizer.layout, manifest["ntotal"], reader)
    base.set(manifest["base_settings"])
    return make(quantizer, manifest["rescore"], base, reader)


def verify(path: PathLike) -> dict[str, Any]:
    """Check every file of the bundle at ``path`` against its checksum; return the manifest.

    Raises FileNotFoundError or ValueError, naming the file and the fault.
    """
    manifest = read_manifest(Path(path))
    for entry in manifest["files"].values():
        check(Path(path) / entry["name"], entry)
    return manifest


def write_generation(
    folder: Path, generation: int, index: Bundle, kept: Mapping[str, Mapping[str, Any]], *, base: bool
) -> None:
    """Write the parts of a bundle, then the manifest that names them, and remove what it does not name.

    Parameters
    ----------
    folder : Path
        The folder, whose lock is held.
    generation : int
        The number of this generation.
    index : Bundle
        What to write.
    kept : mapping
        Entries of files that stay.
    base : bool
        Whether to write the codes; else ``kept`` has the entries of their files.

    Raises
    ------
    OSError
        If writing fails.
    """
    try:
        paths = dict(_write_parts(folder, generation, index, base))
        arrays, settings = index.quantizer.to_state()
        if "quantizer" not in kept:
            paths["quantizer"] = folder / f"quantizer-{generation}.safetensors"
            paths["quantizer"].write_bytes(safetensors.numpy.save(arrays))
        grow = GROW | (index.base.growing() or {}).keys()
        files = {
            name: _entry_of_rows(path, lanes(name, index.base)) if name in grow else file_entry(path)
            for name, path in paths.items()
        }
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "written_by": f"faiss-qama {__version__}",
            "generation": generation,
            "ntotal": len(index.base),
            "base": str(index.base),
            "base_settings": index.base.settings,
            "rescore": index.rescore,
            "quantizer": settings,
            "files": {**kept, **files},
        }
        new = folder / (MANIFEST + ".new")
        new.write_bytes(sign(manifest))
        atomic_files.sync(new)
        atomic_files.sync(folder)
        os.replace(new, folder / MANIFEST)
        atomic_files.sync(folder)
    finally:
        remove_unnamed(folder, generation)


def _entry_of_rows(path: Path, lanes: int) -> dict[str, Any]:
    file = RowFile(path)
    return file.entry(file.rows, lanes)


def lanes(name: str, base: CodeIndex) -> int:
    """Return the codes in the last group of a part that is groups of codes in the order of rows; 0 if it is full."""
    grouped = name == "residual" or (name == "codes" and "codes" in (base.growing() or {}))
    return len(base) % LANES if grouped else 0


def _write_parts(folder: Path, generation: int, index: Bundle, base: bool) -> Iterator[tuple[str, Path]]:
    """Write the arrays, texts and FAISS indexes of a bundle, and its base; yield names and files."""
    for name, part in _parts_of(index, base):
        kind = "faissindex" if isinstance(part, faiss.IndexBinary) else "json" if isinstance(part, str) else "npy"
        path = folder / f"{name}-{generation}.{kind}"
        if isinstance(part, faiss.IndexBinary):
            atomic_files.write_faiss(path, part)
        elif isinstance(part, str):
            path.write_text(part, encoding="utf-8", newline="\n")
        else:
            atomic_files.write_stream(path, part)
        yield name, path


def _parts_of(index: Bundle, base: bool) -> Iterator[tuple[str, Any]]:
    yield from index.parts.items()  # streams, which fill the base
    if base:
        yield from index.base.parts().items()


def remove_unnamed(folder: Path, generation: int) -> None:
    """Remove files up to ``generation`` that the manifest does not name: an older one's, or an interrupted save's."""
    current = read_manifest(folder)["files"].values() if (folder / MANIFEST).exists() else ()
    kept = {entry["name"] for entry in current}
    for entry in folder.iterdir():
        if generation_of(entry.name) <= generation and entry.name not in kept:
            with suppress(OSError):  # Windows keeps mapped files; the next save removes them
                entry.unlink()


def remove_leftovers(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Remove what an interrupted writer left: files, and rows that were not committed."""
    remove_unnamed(folder, manifest["generation"] + 1)
    for entry in manifest["files"].values():
        path = folder / entry["name"]
        if "rows" in entry and path.exists() and path.stat().st_size > entry["bytes"]:
            with suppress(OSError):  # Windows keeps files that a reader maps
                os.truncate(path, entry["bytes"])


def _only_leftovers(folder: Path) -> bool:
    """Return whether a killed first save left all files of ``folder``: its lock, and files of generation 1."""
    names = {entry.name for entry in folder.iterdir()}
    return LOCK in names and all(generation_of(name) <= 1 for name in names - {LOCK})


def _read_quantizer(path: Path, settings: dict[str, Any]) -> Quantizer:
    try:
        quantizer = Quantizer.from_state(safetensors.numpy.load(path.read_bytes()), settings)
        if quantizer.d != settings["d"]:
            raise ValueError(f"its dimension is {quantizer.d}, not {settings['d']}")
        return quantizer
    except (SafetensorError, *_FAULTS) as error:
        raise BundleError(f"{path}: not the quantizer that the manifest describes ({error})") from None
