"""The bundle on disk: a folder whose ``manifest.json`` names the files of one generation. Only this file writes one.

A save writes the files of the next generation, syncs them, and then replaces the manifest in one atomic step: a crash
leaves the old index or the new one. The manifest holds the SHA-256 of every file and of itself.
Format version 6; version 5 has no residual, version 4 centroids that are codes, version 3 no lists, version 2 no
codes-G.npy, and version 1 a gain and a shift in place of the queries' transform::

    manifest.json                quantizer's settings, and name, size, SHA-256 of the files
    quantizer-G.safetensors      its arrays
    codes-G.faissindex           the faiss.IndexBinary of the codes; for hash tables, which are made anew, a flat one
    codes-G.npy                  instead, of the base Flat: (groups, words, 16) uint32, see hamming.bit_planes
    rows-G.npy, places-G.npy     of the base IVF, whose groups lie in the order of its lists: (groups, 16) int32,
                                 the rows of codes, -1 where there is none; (n,) int32, where each row's code lies
    sizes-G.npy, centroids-G.npy (nlist,) int64, codes in each list; (nlist, units) uint8, what lists lie around, in
                                 64ths of a level
    store-G.npy                  what rescores, a row a code, where it is kept: float16, float32, or int8 (sq8)
    residual-G.npy               instead, codes of a residual, where codes rescore: (groups, words, 16) uint32
    norms-G.npy                of the sums of both: (n,) float16 of unit vectors, float32 under L2
    ids-G.npy                    (n,) int64, the user's own ids, where there are any
    alive-G.npy                  (n,) bool, false where a row is removed, where there are any
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faiss
import filelock
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from faiss_qama._version import __version__
from faiss_qama.arrays import LANES
from faiss_qama.hamming.bit_planes import n_words
from faiss_qama.hamming.code_index import CodeIndex
from faiss_qama.hamming.faiss_binary import FaissCodeIndex
from faiss_qama.hamming.flat import FlatCodeIndex
from faiss_qama.hamming.ivf import STEPS, IVFCodeIndex
from faiss_qama.quantizer.bit_packing import levels
from faiss_qama.quantizer.layout import CodeLayout
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.rescore.rescorer import DTYPES, StoredVectors
from faiss_qama.rescore.residual import ResidualRescorer
from faiss_qama.storage import atomic_files
from faiss_qama.vectors import PathLike, open_npy

FORMAT, VERSION, OLDEST = "faiss-qama", 6, 1
NEEDED: dict[str, type] = {"generation": int, "ntotal": int, "rescore": str, "written_by": str}
NEEDED |= {"quantizer": dict, "files": dict}
MANIFEST, LOCK = "manifest.json", ".lock"
ARRAYS = ("store", "residual", "norms", "ids", "alive")
PARTS: dict[type[CodeIndex], tuple[str, ...]] = {
    FlatCodeIndex: ("codes",),
    IVFCodeIndex: ("codes", "rows", "places", "sizes", "centroids"),
}
MAPPED = ("store", "residual", "norms", "rows", "places")
_OURS = re.compile(
    r"(quantizer-\d+\.safetensors|codes-\d+\.faissindex|manifest\.json\.new"
    r"|(codes|rows|places|sizes|centroids|store|residual|norms|ids|alive)-\d+\.npy)"
)


@dataclass(frozen=True, eq=False)
class Bundle:
    """What is written and read.

    Parameters
    ----------
    quantizer, rescore : what the index was made with
    base : the codes; it may be filled while the store's chunks are consumed
    arrays : by name, of ``ARRAYS``, an array or, for writing, a Stream
    """

    quantizer: Quantizer
    rescore: str
    base: CodeIndex
    arrays: dict[str, Any] = field(default_factory=dict)


def check_writable(path: PathLike, sources: Iterable[Path] = ()) -> None:
    """Raise unless ``path`` is free, an empty folder, or a bundle to replace that holds no source. Changes nothing."""
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
    """Write ``bundle``, replacing the one at ``path`` if there is one.

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
        with atomic_files.naming(folder), filelock.FileLock(folder / LOCK, timeout=0):
            try:
                previous = _parse(folder) if (folder / MANIFEST).exists() else {"generation": 0}
                _write_generation(folder, previous["generation"] + 1, bundle)
            finally:
                if not (folder / MANIFEST).exists():  # nothing was written, so nothing stays
                    with suppress(OSError):
                        (folder / LOCK).unlink()
                        folder.rmdir()
    except filelock.Timeout:
        raise OSError(f"{folder}: another process is writing this index") from None


def read(path: PathLike, *, mmap: bool = False) -> Bundle:
    """Return the bundle at ``path``.

    With ``mmap`` flat codes and the store are mapped read-only, and only their sizes are checked against the manifest.
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
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder / MANIFEST}: not the manifest of an index ({error!r})") from None


def verify(path: PathLike) -> dict[str, Any]:
    """Check every file of the bundle at ``path`` against its checksum; return the manifest."""
    manifest = _parse(Path(path))
    try:
        for entry in manifest["files"].values():
            _verify(Path(path) / entry["name"], entry, hash_it=True)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{Path(path) / MANIFEST}: not the manifest of an index ({error!r})") from None
    return manifest


def fingerprint(path: PathLike) -> str:
    """Return what tells one saved state of the bundle at ``path`` from every other."""
    return str(_parse(Path(path))["sha256"])


def _write_generation(folder: Path, generation: int, bundle: Bundle) -> None:
    names = {"quantizer": f"quantizer-{generation}.safetensors", "codes": f"codes-{generation}.faissindex"}
    roles = [*PARTS.get(type(bundle.base), ()), *(name for name in ARRAYS if name in bundle.arrays)]
    names |= {role: f"{role}-{generation}.npy" for role in roles}
    try:
        for name, array in bundle.arrays.items():
            stream = (
                array
                if isinstance(array, atomic_files.Stream)
                else atomic_files.Stream(array.shape, array.dtype, [array])
            )
            atomic_files.write_stream(folder / names[name], stream)
            rows = -(-len(bundle.base) // LANES) if name == "residual" else len(bundle.base)
            if stream.shape[0] != rows:
                raise ValueError(f"{folder}: {stream.shape[0]} rows of {name}, not {rows}; not saved")
        arrays, settings = bundle.quantizer.to_state()
        (folder / names["quantizer"]).write_bytes(safetensors.numpy.save(arrays))
        _write_codes({role: folder / name for role, name in names.items()}, bundle.base)
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
            "files": {role: _file_entry(folder / name) for role, name in names.items()},
        }
        manifest["sha256"] = _digest(manifest)
        new = folder / (MANIFEST + ".new")
        new.write_bytes(_dump(manifest))
        atomic_files.sync(new)
        atomic_files.sync(folder)
        os.replace(new, folder / MANIFEST)
        atomic_files.sync(folder)
    finally:
        # Whatever the manifest does not name is an older generation, or what an interrupted save left.
        current = _parse(folder)["files"].values() if (folder / MANIFEST).exists() else ()
        kept = {entry["name"] for entry in current}
        for entry in folder.iterdir():
            if _OURS.fullmatch(entry.name) and entry.name not in kept:
                with suppress(OSError):  # Windows keeps what a process has mapped; the next save removes it
                    entry.unlink()


def _write_codes(paths: Mapping[str, Path], base: CodeIndex) -> None:
    if isinstance(base, FlatCodeIndex):
        for role, array in base.arrays().items():
            atomic_files.write_stream(paths[role], atomic_files.Stream(array.shape, array.dtype, [array]))
        return
    assert isinstance(base, FaissCodeIndex)
    path = paths["codes"]
    binary = base.storable
    atomic_files.faiss_writes(faiss.write_index_binary, binary, path)
    if path.stat().st_size < binary.ntotal * binary.code_size:  # faiss does not see that a flush failed
        raise OSError(f"{path}: could not be written in full: {path.stat().st_size} bytes; is the disk full?")


def _read_generation(folder: Path, manifest: dict[str, Any], mmap: bool) -> Bundle:
    named, ntotal, rescore = manifest["files"], manifest["ntotal"], manifest["rescore"]
    kind = manifest.get("base", "BFlat")
    for role, entry in named.items():
        mapped = mmap and (role in MAPPED or role == "codes" and kind.startswith(("BFlat", "Flat")))
        _verify(folder / entry["name"], entry, hash_it=not mapped)
    quantizer = _read_quantizer(folder / named["quantizer"]["name"], manifest["quantizer"])
    paths = {role: folder / entry["name"] for role, entry in named.items()}
    base = _read_base(paths, quantizer.layout, kind, ntotal, mmap, manifest["version"])
    base.set(manifest.get("base_settings", {}))
    if len(base) != ntotal:
        raise ValueError(f"{folder / named['codes']['name']}: {len(base)} codes; the manifest says {ntotal}")
    wanted: dict[str, tuple[tuple[int, ...], np.dtype[Any]]] = {
        "ids": ((ntotal,), np.dtype(np.int64)),
        "alive": ((ntotal,), np.dtype(bool)),
    }
    if rescore in DTYPES:
        wanted["store"] = (ntotal, StoredVectors(quantizer, rescore).width), DTYPES[rescore]
    elif rescore == "codes" and quantizer.residual is not None:
        wanted |= ResidualRescorer.shapes(quantizer, ntotal)
    for name in wanted:
        if name not in named and name not in ("ids", "alive"):
            raise ValueError(f"{folder / MANIFEST}: rescore is {rescore}, but no {name} is named")
    arrays = {
        name: _read_array(folder / named[name]["name"], *wanted[name], mmap=mmap and name in MAPPED)
        for name in ARRAYS
        if name in named
    }
    norms = arrays.get("norms", np.empty(0))
    if not mmap and not (np.isfinite(norms) & (norms >= 0)).all():
        raise ValueError(f"{folder / named['lengths']['name']}: a norm is not finite, or below 0")
    return Bundle(quantizer, rescore, base, arrays)


def _read_base(
    paths: Mapping[str, Path], layout: CodeLayout, kind: str, ntotal: int, mmap: bool, version: int
) -> CodeIndex:
    if kind == "Flat":
        shape = -(-ntotal // LANES), n_words(layout), LANES
        return FlatCodeIndex(layout, _read_array(paths["codes"], shape, np.dtype("<u4"), mmap), ntotal)
    if kind.startswith("IVF"):
        return _read_lists(paths, layout, int(kind.removeprefix("IVF")), ntotal, mmap, version)
    path = paths["codes"]
    try:
        binary = faiss.read_index_binary(str(path), faiss.IO_FLAG_MMAP_IFC if mmap else 0)
    except RuntimeError as error:
        if not path.exists():  # a save has replaced the generation
            raise FileNotFoundError(f"{path}: missing; the manifest names it") from None
        raise ValueError(f"{path}: not a FAISS binary index ({str(error).splitlines()[-1].strip()})") from None
    if binary.code_size != layout.code_size:
        raise ValueError(f"{path}: codes of {binary.code_size} bytes; the manifest says {layout.code_size}")
    base = FaissCodeIndex(binary, layout, filled=True)
    if str(base) == kind:
        return base
    made_anew = FaissCodeIndex(kind, layout)
    made_anew.append(base.codes)
    return made_anew


def _read_lists(
    paths: Mapping[str, Path], layout: CodeLayout, nlist: int, ntotal: int, mmap: bool, version: int
) -> IVFCodeIndex:
    sizes = _read_array(paths["sizes"], (nlist,), np.dtype("<i8"), mmap=False)
    if sizes.min() < 0 or sizes.max() > ntotal or sizes.sum() != ntotal:
        raise ValueError(f"{paths['sizes']}: lists of {sizes.sum()} codes; the manifest says {ntotal}")
    groups = int((-(-sizes // LANES)).sum())
    wanted: dict[str, tuple[tuple[int, ...], str]] = {
        "codes": ((groups, n_words(layout), LANES), "<u4"),
        "rows": ((groups, LANES), "<i4"),
        "places": ((ntotal,), "<i4"),
        "centroids": ((nlist, layout.code_size if version == 4 else layout.units), "|u1"),
    }
    parts = {role: _read_array(paths[role], shape, np.dtype(dtype), mmap) for role, (shape, dtype) in wanted.items()}
    for role, least, most in (("rows", -1, ntotal), ("places", 0, groups * LANES)):
        array = parts[role]
        if not mmap and array.size and not least <= array.min() <= array.max() < most:  # the loops would read elsewhere
            raise ValueError(f"{paths[role]}: {array.min()} to {array.max()}; {least} to {most - 1} are possible")
    if version == 4:
        parts["centroids"] = np.uint8(STEPS) * levels(parts["centroids"], layout)
    return IVFCodeIndex.from_arrays(layout, nlist, parts | {"sizes": sizes})


def _read_array(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], mmap: bool) -> NDArray[Any]:
    array: NDArray[Any] = open_npy(path, mmap)
    if array.shape != shape or array.dtype != dtype or not array.flags.c_contiguous:
        raise ValueError(f"{path}: {array.shape} {array.dtype}; the manifest says {shape} {dtype}")
    return array


def _only_leftovers(folder: Path) -> bool:
    """Return whether all there is was left by a first save that was killed: its lock, and files named like ours."""
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
    if found[0] != FORMAT or found[1] not in range(OLDEST, VERSION + 1):
        raise ValueError(
            f"{path}: format {found[0]} version {found[1]}; this release reads {FORMAT} versions {OLDEST} to {VERSION}"
        )
    if raw != _dump(manifest) or manifest.get("sha256") != _digest(manifest):
        raise ValueError(f"{path}: damaged: its checksum does not match")
    for key, kind in NEEDED.items():
        if not isinstance(manifest.get(key), kind):
            raise ValueError(f"{path}: not the manifest of an index ({key} is {manifest.get(key)!r})")
    return dict(manifest)


def _dump(manifest: dict[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=2) + "\n").encode()


def _digest(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(_dump({k: v for k, v in manifest.items() if k != "sha256"})).hexdigest()


def _file_entry(path: Path) -> dict[str, Any]:
    atomic_files.sync(path)
    return {"name": path.name, "bytes": path.stat().st_size, "sha256": atomic_files.sha256(path)}


def _verify(path: Path, entry: dict[str, Any], hash_it: bool) -> None:
    if not path.exists():
        raise FileNotFoundError(f"{path}: missing; the manifest names it")
    if path.stat().st_size != entry["bytes"]:
        raise ValueError(f"{path}: damaged: {path.stat().st_size} bytes; the manifest says {entry['bytes']}")
    if hash_it and atomic_files.sha256(path) != entry["sha256"]:
        raise ValueError(f"{path}: damaged: its checksum does not match the manifest")
