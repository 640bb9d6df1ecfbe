"""The one writer of a bundle, which changes it by commits that cost what changed."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import filelock

from faiss_qama.growing import GrowingArray
from faiss_qama.hamming.code_index import CodeIndex
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.storage import atomic_files, bundle
from faiss_qama.storage.bundle import Bundle, Make
from faiss_qama.storage.manifest import MANIFEST, read_manifest
from faiss_qama.storage.parts import Parts
from faiss_qama.storage.row_file import RowFile
from faiss_qama.threads import defer_interrupt
from faiss_qama.vectors import PathLike

T = TypeVar("T")

CARRIED = {"documents"}  # which no change of the index changes
LISTS = {"codes", "rows", "places", "sizes", "centroids"}  # of inverted lists, beside which a log grows


class Writer:
    """A bundle open for writing. It holds the lock of the folder until :meth:`close`, or until its process ends.

    What an interrupted writer left behind is removed.

    Parameters
    ----------
    path : str or path
        The folder.

    Raises
    ------
    FileNotFoundError, ValueError
        Naming the file and the fault.
    OSError
        If another process, or another index of this one, writes to the folder.
    """

    def __init__(self, path: PathLike) -> None:
        self.folder, self._process = Path(path).absolute(), os.getpid()
        self._manifest = read_manifest(self.folder)
        self._lock = filelock.FileLock(self.folder / bundle.LOCK, timeout=0, thread_local=False)
        try:
            with atomic_files.naming(self.folder):
                self._lock.acquire()
        except filelock.Timeout:
            raise bundle.being_written(self.folder) from None
        self._quantizer: Quantizer | None = None  # as it is on the disk
        try:
            self._note()
            bundle.remove_leftovers(self.folder, self._manifest)
        except BaseException:
            self._lock.release()
            raise

    @property
    def generation(self) -> int:
        """The generation that is on the disk."""
        return int(read_manifest(self.folder)["generation"])

    @property
    def logged(self) -> int:
        """Codes that were added since the lists of the bundle were written."""
        return int(self._manifest["files"].get("newcodes", {}).get("rows", 0))

    def check(self) -> None:
        """Raise ValueError in a process that was forked since, and after :meth:`close`; OSError without the lock."""
        if os.getpid() != self._process:
            raise ValueError(f"this index was opened for writing before a fork: open {self.folder} again in the child")
        if not self._lock.is_locked:
            raise ValueError(f"this index is closed: open {self.folder} again")
        with suppress(FileNotFoundError):
            if self._stamp() == self._stamped:
                return
        raise OSError(
            f"{self.folder}: another process has written to this index, or removed its lock; "
            "what was not committed is lost: open it again"
        )

    def read(self, make: Make[T]) -> T:
        """Return what ``make`` makes of the last commit, as :func:`~faiss_qama.storage.bundle.read`."""

        def noted(quantizer: Quantizer, rescore: str, base: CodeIndex, parts: Parts) -> T:
            self._quantizer = quantizer
            return make(quantizer, rescore, base, parts)

        return bundle.read(self.folder, noted, writable=True)

    def commit(self, index: Bundle, growing: Mapping[str, GrowingArray]) -> None:
        """Make the index durable: rows that were appended, arrays that are new, and a manifest that names them.

        Parameters
        ----------
        index : Bundle
            The index. Those of its parts that are not in ``growing``, and not on the disk, are written anew.
        growing : mapping of str to GrowingArray
            Its parts that grow.

        Raises
        ------
        OSError
            If writing fails, or another process has written to the folder. The last commit stays. If rows that were
            appended may not be on the disk, the writer is closed, as to sync them again would not show it.
        ValueError
            As :meth:`check`, and for a file that is damaged.
        """
        self.check()
        known, grown = self._manifest["files"], index.base.growing()
        new, kept = {}, self._carried()
        if index.quantizer is self._quantizer:
            kept["quantizer"] = known["quantizer"]
        if grown is not None:
            kept |= {name: known[name] for name in LISTS & known.keys()}
        with atomic_files.naming(self.folder), defer_interrupt():
            for name, rows in growing.items():
                if isinstance(rows.file, RowFile):
                    try:
                        kept[name] = rows.file.entry(len(rows), bundle.lanes(name, index.base), known.get(name))
                    except OSError:
                        self.close()
                        raise
                else:
                    new[name] = rows
            if not new and kept == known and index.base.settings == self._manifest["base_settings"]:
                return  # nothing has changed
            parts = {name: rows.array for name, rows in new.items()}
            self._write(replace(index, parts=parts), kept, base=grown is None)
        for name, rows in new.items():
            rows.move_to(RowFile(self.folder / self._manifest["files"][name]["name"], writable=True))
        if grown is None:
            index.base.written()

    def rewrite(self, index: Bundle) -> None:
        """Write all parts of an index anew, as a commit.

        Raises the errors of :meth:`commit`, and ValueError if a file that they may be copied from is damaged.
        """
        self.check()
        bundle.verify(self.folder)
        with atomic_files.naming(self.folder):
            self._write(index, self._carried(), base=True)

    def close(self) -> None:
        """Give the lock of the folder back. What was not committed is lost."""
        if os.getpid() == self._process:
            self._lock.release()

    def _carried(self) -> dict[str, Any]:
        """Return the entries of files that every commit keeps."""
        return {name: entry for name, entry in self._manifest["files"].items() if name in CARRIED}

    def _write(self, index: Bundle, kept: Mapping[str, Any], *, base: bool) -> None:
        self.check()
        try:
            bundle.write_generation(self.folder, self._manifest["generation"] + 1, index, kept, base=base)
        finally:
            self._note()  # of this commit, or after an error perhaps of the last one
        self._quantizer = index.quantizer

    def _note(self) -> None:
        self._stamped, self._manifest = self._stamp(), read_manifest(self.folder)

    def _stamp(self) -> tuple[int, int, int]:
        """Return what changes if another process writes, or takes the lock."""
        manifest, lock = ((self.folder / name).stat() for name in (MANIFEST, bundle.LOCK))
        return manifest.st_ino, manifest.st_mtime_ns, lock.st_ino
