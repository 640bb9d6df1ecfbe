"""The manifest of a bundle: what it must hold, its checksum, and the names of the files of its generation."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMAT, VERSION = "faiss-qama bundle", 1
BEFORE_RELEASE = "faiss-qama"  # the format of bundles that were written before the first release
NEEDED: dict[str, type] = {"generation": int, "ntotal": int, "base": str, "rescore": str, "written_by": str}
NEEDED |= {"base_settings": dict, "quantizer": dict, "files": dict}
MANIFEST = "manifest.json"
ENDINGS = ("npy", "safetensors", "faissindex", "json")
_OURS = re.compile(
    r"(?:quantizer|codes|rows|places|sizes|centroids|newcodes|newlists|vectors|residual|norms|ids|removed|alive|documents)"
    r"-([0-9]+)\."
    rf"(?:{'|'.join(ENDINGS)})"
)


class BundleError(ValueError):
    """A file of a bundle that cannot be read; the message names it."""


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of the bundle in ``folder``. Raises FileNotFoundError, or BundleError naming the fault."""
    path = folder / MANIFEST
    if not folder.is_dir() or not path.exists():
        raise FileNotFoundError(f"{folder}: no index here ({MANIFEST} is missing)")
    raw = path.read_bytes()
    try:
        manifest = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: damaged, or not the manifest of an index ({error})") from None
    if not isinstance(manifest, dict) or not {"format", "version"} <= manifest.keys():
        raise BundleError(f"{path}: not the manifest of an index; another program wrote it")
    found = manifest["format"], manifest["version"]
    if found[0] == BEFORE_RELEASE:
        raise BundleError(f"{path}: written before the first release, in a format that is no longer read: fit again")
    if found != (FORMAT, VERSION):
        release = f"this release reads {FORMAT} version {VERSION}"
        raise BundleError(f"{path}: format {found[0]} version {found[1]}; {release}")
    if raw != sign(manifest):
        raise BundleError(f"{path}: damaged: its checksum does not match")
    _check_values(manifest, path)
    return manifest


def sign(manifest: Mapping[str, Any]) -> bytes:
    """Return the bytes of ``manifest.json``, with the checksum of the manifest itself."""
    unsigned = {key: value for key, value in manifest.items() if key != "sha256"}
    return _dump(unsigned | {"sha256": hashlib.sha256(_dump(unsigned)).hexdigest()})


def generation_of(name: str) -> float:
    """Return the generation of a file with such a name, infinity if it is none of ours."""
    match = _OURS.fullmatch(name)
    return int(match[1]) if match else 0 if name == MANIFEST + ".new" else math.inf


def invalid_manifest(path: Path, reason: str) -> BundleError:
    """Return the error for a manifest with impossible values."""
    return BundleError(f"{path}: not the manifest of an index ({reason})")


def _dump(manifest: dict[str, Any]) -> bytes:
    return (json.dumps(manifest, indent=2) + "\n").encode()


def _check_values(manifest: dict[str, Any], path: Path) -> None:
    """Raise BundleError unless everything needed is there, and every file lies in the folder."""
    for key, kind in NEEDED.items():
        if type(manifest.get(key)) is not kind:
            raise invalid_manifest(path, f"{key} is {manifest.get(key)!r}")
    for name, value in manifest["base_settings"].items():
        if type(value) is not int:
            raise invalid_manifest(path, f"{name} is {value!r}")
    for name, entry in manifest["files"].items():  # a name leads nowhere else
        file = str(entry.get("name")) if isinstance(entry, dict) else ""
        if not file.startswith(f"{name}-") or not generation_of(file) <= manifest["generation"]:
            raise invalid_manifest(path, f"the file of {name} is {entry!r}")
