"""The bundle on disk: a folder whose ``manifest.json`` names the files of one generation. Only this file writes one.

A save writes the files of the next generation, syncs them, and then replaces the manifest in one atomic step: a crash
leaves the old index or the new one. The manifest holds the SHA-256 of every file and of itself.
Format version 1::

    manifest.json                quantizer's settings, and name, size, SHA-256 of the files
    quantizer-G.safetensors      its arrays
    codes-G.faissindex           the faiss.IndexBinary of the codes
    store-G.npy                  the vectors, (ntotal, d) float16 or float32, where they are kept
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import faiss
import filelock
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from faiss_qama._version import __version__
from faiss_qama.quantizer import Quantizer
from faiss_qama.rescore import DTYPES
from faiss_qama.vectors import PathLike

FORMAT, VERSION = "faiss-qama", 1
MANIFEST, LOCK = "manifest.json", ".lock"
_OURS = re.compile(r"(quantizer-\d+\.safetensors|codes-\d+\.faissindex|store-\d+\.npy|manifest\.json\.new)")


def check_writable(path: PathLike) -> None:
    """Raise unless ``path`` is free, an empty folder, or a bundle to replace. Changes nothing."""
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


def write(
    path: PathLike,
    quantizer: Quantizer,
    rescore: str,
    binary: Any,
    rows: Iterable[NDArray[np.floating]] | None = None,
    shape: tuple[int, int] | None = None,
) -> None:
    """Write a bundle, replacing the one at ``path`` if there is one.

    Parameters
    ----------
    path : the folder
    quantizer, rescore : what the index was made with
    binary : the faiss.IndexBinary of the codes; it may be filled while ``rows`` is consumed
    rows : the vectors to keep, as one array or, with their total ``shape``, chunk by chunk
    shape : (n, d) of all the rows

    Raises
    ------
    FileExistsError
        if something other than a bundle is at ``path``
    OSError
        if writing fails, with what was there before untouched
    """
    folder = Path(path)
    check_writable(folder)
    folder.mkdir(exist_ok=True)
    try:
        with filelock.FileLock(folder / LOCK, timeout=0):
            try:
                previous = _parse(folder) if (folder / MANIFEST).exists() else {"generation": 0}
                _write_generation(folder, previous["generation"] + 1, quantizer, rescore, binary, rows, shape)
            finally:
                if not (folder / MANIFEST).exists():  # nothing was written, so nothing stays
                    with suppress(OSError):
                        (folder / LOCK).unlink()
                        folder.rmdir()
    except filelock.Timeout:
        raise OSError(f"{folder}: another process is writing this index") from None
    except OSError as error:
        error.filename = error.filename or str(folder)  # a full disk names no file
        raise


def read(path: PathLike, *, mmap: bool = False) -> tuple[Quantizer, str, Any, NDArray[np.floating] | None]:
    """Return quantizer, rescore, binary index and stored rows of the bundle at ``path``.

    With ``mmap`` codes and rows are mapped read-only, and only their sizes are checked against the manifest.
    Raises FileNotFoundError, or ValueError naming the file and the fault.
    """
    folder = Path(path)
    while True:
        manifest = _parse(folder)
        try:
            return _read_generation(folder, manifest, mmap)
        except FileNotFoundError:
            if _parse(folder) == manifest:  # else a save has replaced the generation meanwhile
                raise


def verify(path: PathLike) -> dict[str, Any]:
    """Check every file of the bundle at ``path`` against its checksum; return the manifest."""
    manifest = _parse(Path(path))
    for entry in manifest["files"].values():
        _verify(Path(path) / entry["name"], entry, hash_it=True)
    return manifest


def write_npy(path: PathLike, x: NDArray[np.floating]) -> None:
    """Write ``x`` to ``path``, replacing a file there in one atomic step."""
    final = Path(path)
    part = final.with_name(final.name + ".part")
    try:
        with part.open("wb") as file:
            np.save(file, x)
        _sync(part)
        os.replace(part, final)
    finally:
        part.unlink(missing_ok=True)


def _write_generation(
    folder: Path,
    generation: int,
    quantizer: Quantizer,
    rescore: str,
    binary: Any,
    rows: Iterable[NDArray[np.floating]] | None,
    shape: tuple[int, int] | None,
) -> None:
    names = {
        "quantizer": f"quantizer-{generation}.safetensors",
        "codes": f"codes-{generation}.faissindex",
        "store": f"store-{generation}.npy",
    }
    try:
        if rows is None:
            del names["store"]
        else:
            _write_rows(folder / names["store"], rows, shape, DTYPES[rescore])
        arrays, settings = quantizer.to_state()
        (folder / names["quantizer"]).write_bytes(safetensors.numpy.save(arrays))
        _write_binary(folder / names["codes"], binary)
        manifest: dict[str, Any] = {
            "format": FORMAT,
            "version": VERSION,
            "written_by": f"faiss-qama {__version__}",
            "generation": generation,
            "ntotal": int(binary.ntotal),
            "rescore": rescore,
            "quantizer": settings,
            "files": {role: _file_entry(folder / name) for role, name in names.items()},
        }
        manifest["sha256"] = _digest(manifest)
        new = folder / (MANIFEST + ".new")
        new.write_bytes(_dump(manifest))
        _sync(new)
        _sync(folder)
        os.replace(new, folder / MANIFEST)
        _sync(folder)
    finally:
        # Whatever the manifest does not name is an older generation, or what an interrupted save left.
        current = _parse(folder)["files"].values() if (folder / MANIFEST).exists() else ()
        kept = {entry["name"] for entry in current}
        for entry in folder.iterdir():
            if _OURS.fullmatch(entry.name) and entry.name not in kept:
                with suppress(OSError):  # Windows keeps what a process has mapped; the next save removes it
                    entry.unlink()


def _write_rows(
    path: Path, rows: Iterable[NDArray[np.floating]], shape: tuple[int, int] | None, dtype: np.dtype[Any]
) -> None:
    if isinstance(rows, np.ndarray):
        shape = rows.shape
        rows = [rows]
    with path.open("wb") as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for chunk in rows:
            file.write(np.ascontiguousarray(chunk, dtype).data)


def _write_binary(path: Path, binary: Any) -> None:
    try:
        faiss.write_index_binary(binary, str(path))
    except RuntimeError as error:
        raise OSError(f"{path}: could not be written ({str(error).splitlines()[-1].strip()})") from None
    if path.stat().st_size < binary.ntotal * binary.code_size:  # faiss does not see that a flush failed
        raise OSError(f"{path}: could not be written in full: {path.stat().st_size} bytes; is the disk full?")


def _read_generation(
    folder: Path, manifest: dict[str, Any], mmap: bool
) -> tuple[Quantizer, str, Any, NDArray[np.floating] | None]:
    files, ntotal, rescore = manifest["files"], manifest["ntotal"], manifest["rescore"]
    for role, entry in files.items():
        _verify(folder / entry["name"], entry, hash_it=not mmap or role == "quantizer")
    quantizer = _read_quantizer(folder / files["quantizer"]["name"], manifest["quantizer"])

    codes = folder / files["codes"]["name"]
    try:
        binary = faiss.read_index_binary(str(codes), faiss.IO_FLAG_MMAP_IFC if mmap else 0)
    except RuntimeError as error:
        if not codes.exists():  # a save has replaced the generation
            raise FileNotFoundError(f"{codes}: missing; the manifest names it") from None
        raise ValueError(f"{codes}: not a FAISS binary index ({str(error).splitlines()[-1].strip()})") from None
    if (binary.ntotal, binary.code_size) != (ntotal, quantizer.code_size):
        raise ValueError(
            f"{codes}: {binary.ntotal} codes of {binary.code_size} bytes; "
            f"the manifest says {ntotal} of {quantizer.code_size}"
        )
    if "store" not in files:
        return quantizer, rescore, binary, None

    store = folder / files["store"]["name"]
    try:
        rows = np.load(store, mmap_mode="r" if mmap else None, allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{store}: not a whole .npy file ({error})") from None
    if rows.shape != (ntotal, quantizer.d) or rows.dtype != DTYPES[rescore]:
        raise ValueError(
            f"{store}: {rows.shape} {rows.dtype}; the manifest says {(ntotal, quantizer.d)} {DTYPES[rescore]}"
        )
    return quantizer, rescore, binary, rows


def _only_leftovers(folder: Path) -> bool:
    """Return whether all there is was left by a first save that was killed: its lock, and files named like ours."""
    names = {entry.name for entry in folder.iterdir()}
    return LOCK in names and all(_OURS.fullmatch(name) for name in names - {LOCK})


def _read_quantizer(path: Path, settings: dict[str, Any]) -> Quantizer:
    try:
        return Quantizer.from_state(safetensors.numpy.load(path.read_bytes()), settings)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
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
    if found != (FORMAT, VERSION):
        raise ValueError(f"{path}: format {found[0]} version {found[1]}; this release reads {FORMAT} version {VERSION}")
    if raw != _dump(manifest) or manifest.get("sha256") != _digest(manifest):
        raise ValueError(f"{path}: damaged: its checksum does not match")
    return dict(manifest)


def _dump(manifest: dict[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=2) + "\n").encode()


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(_dump({k: v for k, v in manifest.items() if k != "sha256"})).hexdigest()


def _file_entry(path: Path) -> dict[str, Any]:
    _sync(path)
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": _sha256(path)}


def _verify(path: Path, entry: dict[str, Any], hash_it: bool) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path}: missing; the manifest names it")
    if path.stat().st_size != entry["bytes"]:
        raise ValueError(f"{path}: damaged: {path.stat().st_size} bytes; the manifest says {entry['bytes']}")
    if hash_it and _sha256(path) != entry["sha256"]:
        raise ValueError(f"{path}: damaged: its checksum does not match the manifest")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open a folder
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
