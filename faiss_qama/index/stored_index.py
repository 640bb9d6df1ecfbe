"""An index and its folder: save, load, open for writing, commit, refresh, compact."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from numpy.typing import ArrayLike

from faiss_qama.index import health, saving
from faiss_qama.index.health import Health
from faiss_qama.index.lock import ReadWriteLock
from faiss_qama.index.norms import SAMPLE, Watch
from faiss_qama.index.state import IndexState
from faiss_qama.index.two_stage import TwoStageIndex
from faiss_qama.storage.manifest import read_manifest
from faiss_qama.storage.writer import Writer
from faiss_qama.vectors import PathLike

if TYPE_CHECKING:
    from typing_extensions import Self

    from faiss_qama.training import FitConfig

STALE = 1 / 4  # share of removed rows, and of codes beside the lists of IVF, from which on "auto" compacts


class StoredIndex(IndexState):
    """The part of a QamaIndex that reads and writes its folder."""

    __slots__ = ()

    def save(self, path: PathLike) -> None:
        """Write the index to the folder ``path``, replacing an index there in one atomic step.

        Vectors that you keep are written too. Raises OSError if the index cannot be written, and leaves an index at
        ``path`` as it was. :meth:`load` has an example.
        """
        with self._lock.read():
            self._check_trained()
            saving.write(path, self._fitted)

    @classmethod
    def load(cls, path: PathLike, *, mmap: bool = False) -> Self:
        """Read an index that :meth:`save` or the command ``fit`` wrote.

        Parameters
        ----------
        path : str or path
            The folder.
        mmap : bool
            Map the files, read-only and shared among processes, and check only their sizes, not their checksums.
            :meth:`refresh` goes on to later commits.

        Returns
        -------
        QamaIndex
            The index.

        Raises
        ------
        FileNotFoundError, ValueError
            Naming the file and the fault.

        Examples
        --------
        >>> import numpy as np, tempfile
        >>> from faiss_qama import QamaIndex, training
        >>> index = QamaIndex(training.fit(np.random.default_rng(0).standard_normal((500, 32))))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     index.save(f"{folder}/index")
        ...     QamaIndex.load(f"{folder}/index").ntotal
        0
        """
        index = cls.__new__(cls)._set(saving.read(path, mmap=mmap), ReadWriteLock(), mmap)
        index._place = Path(path).absolute()
        return index

    @classmethod
    def open(cls, path: PathLike) -> Self:
        """Open the index in the folder ``path`` for writing: changes go to its files, and :meth:`commit` keeps them.

        Codes and vectors are mapped; their sizes are checked, not their checksums. Until :meth:`close`, or the end of
        this process, no other index writes to the folder; any number of processes read it meanwhile.

        Parameters
        ----------
        path : str or path
            The folder, as :meth:`save` or the command ``fit`` wrote it.

        Returns
        -------
        QamaIndex
            The index as of the last commit.

        Raises
        ------
        FileNotFoundError, ValueError
            Naming the file and the fault.
        OSError
            If the folder is open for writing already, or cannot be written to.

        Examples
        --------
        >>> import numpy as np, tempfile
        >>> from faiss_qama import QamaIndex, training
        >>> x = np.random.default_rng(0).standard_normal((500, 32))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     QamaIndex(training.fit(x)).save(f"{folder}/index")
        ...     with QamaIndex.open(f"{folder}/index") as index:
        ...         index.add_with_ids(x, np.arange(500))
        ...         index.upsert(x[:2], [7, 8])
        ...         index.commit()
        ...     QamaIndex.load(f"{folder}/index", mmap=True).ntotal
        500
        """
        writer = Writer(path)
        try:
            index = cls.__new__(cls)._set(writer.read(saving.make), ReadWriteLock())
        except BaseException:
            writer.close()
            raise
        index._place = writer
        return index

    def commit(self, *, compact: str | None = None) -> None:
        """Make all changes durable: once this returns, a crash does not undo them. Readers see them all, or none.

        Parameters
        ----------
        compact : str, optional
            ``auto``: :meth:`compact` after that, once a quarter of the rows is removed or, with ``IVF``, lies beside
            the lists.

        Raises
        ------
        OSError
            If writing fails, or another process has written to the folder. The last commit stays. A later commit may
            succeed, unless the disk failed under rows that were added: then the index is closed.
        ValueError
            For an index that is not open for writing, another ``compact``, and a file that is damaged.
        """
        if compact not in (None, "auto"):
            raise ValueError(f"compact must be 'auto' or None; got {compact!r}")
        writer = self._writer("commit")
        with self._lock.prepare():
            core = self._fitted
            saving.commit(writer, core)
            stale = core.id_map.removed + writer.logged > STALE * core.id_map.n
        if compact == "auto" and stale:
            self.compact()

    def compact(self) -> None:
        """Drop what :meth:`remove_ids` only marked, and build the base index anew.

        Of an index that is open for writing, everything is written to new files and committed. Searches go on
        meanwhile, in other processes too. If it is interrupted once it is committed, the index is closed: open it
        again.
        """
        if not isinstance(self._place, Writer):
            with self._lock.write():
                self._check_writable()
                self._fitted.compact()
            return
        writer = self._place

        def build(core: TwoStageIndex) -> TwoStageIndex:
            saving.compact(writer, core)
            return writer.read(saving.make)

        self._replace(build)

    def health(self, queries: ArrayLike | None = None) -> Health:
        """Return whether the vectors that the index keeps are like those of the fit, and what to do if not.

        Up to 20,000 of them are looked at, in some seconds. ``queries`` (nq, d) are unlabelled queries to measure with,
        in place of documents. Raises ValueError for an index that keeps no vectors, and for too few to measure on.
        """
        with self._lock.read():
            return health.measured(self._fitted, queries)

    def recalibrate(self, queries: ArrayLike | None = None) -> None:
        """Measure anew how many candidates a recall needs, on vectors that the index keeps. No code changes.

        ``queries`` and errors are those of :meth:`health`.
        """
        with self._lock.prepare() as alone:
            self._check_writable()
            core = self._fitted
            asked = health.real_queries(core.quantizer, queries)
            quantizer = health.recalibrated(core.quantizer, health.sample(core, SAMPLE), asked)
            alone()
            core.quantizer = quantizer
            core.watch = Watch(core.quantizer, core.quantizer)

    def refit(self, *, config: FitConfig | None = None, queries: ArrayLike | None = None) -> None:
        """Fit a new quantizer to the vectors that the index keeps, and encode them all anew.

        The new index is built beside the old one, which searches go on with, and takes its place in one step. Of an
        index that is open for writing it is committed, as by :meth:`compact`. A training is not repeated, unless
        ``config`` says so.

        Parameters
        ----------
        config : FitConfig, optional
            Settings of the fit; by default those of the quantizer.
        queries : array of shape (nq, d), optional
            Unlabelled queries for the fit.

        Raises
        ------
        ValueError
            For an index that keeps no vectors, or is read-only.
        """

        def build(core: TwoStageIndex) -> TwoStageIndex:
            quantizer = health.refitted(core, config, queries)
            base, rescorer, rows = health.rebuilt(core, quantizer)
            if isinstance(self._place, Writer):
                saving.rewrite(self._place, core, quantizer, base, saving.stream(rescorer, len(core.id_map), rows))
                return self._place.read(saving.make)
            for some in rows:
                rescorer.append(some)
            return TwoStageIndex(quantizer, base, core.id_map.live(), rescorer)

        self._replace(build)

    def _replace(self, build: Callable[[TwoStageIndex], TwoStageIndex]) -> None:
        """Put what ``build`` makes of the index in its place."""
        with self._lock.prepare() as alone:
            self._check_writable()
            old, writer = self._fitted, self._place
            before = writer.generation if isinstance(writer, Writer) else 0
            try:
                core = build(old)
                core.id_map.version = old.version + 1
                alone()
                self._core = core
            finally:
                if self._core is old and isinstance(writer, Writer) and writer.generation != before:
                    writer.close()  # the files of this index are gone, and the new ones are committed

    def refresh(self) -> bool:
        """Go on to the last commit of the index's folder, and return whether there was a new one.

        For an index from ``load(mmap=True)``; others raise ValueError. Its ``nprobe`` or ``efSearch`` stays. Indexes
        from :meth:`truncate` stay on their commit; those from :meth:`with_rescore` must be made again.
        """
        path = self._place
        if not self._mapped or path is None or isinstance(path, Writer):
            raise ValueError("refresh is for an index from load(path, mmap=True)")
        while read_manifest(Path(path))["sha256"] != (before := self._fitted).manifest_sha256:
            core = saving.read(path, mmap=True)
            if str(core.base) == str(before.base):
                core.base.set(before.base.settings)
            with self._lock.write():
                if self._core is before:  # else another thread was first, perhaps with a later commit
                    self._core = core
                    return True
        return False

    def close(self) -> None:
        """Let others write to the folder. What was not committed is lost; what is mapped can still be searched."""
        writer = self._writer("close")
        with self._lock.write():
            writer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _writer(self, what: str) -> Writer:
        if not isinstance(self._place, Writer):
            raise ValueError(f"{what} is for an index from QamaIndex.open(path)")
        return self._place
