"""A corpus straight to an index on disk, without holding its vectors in memory."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from faiss_qama.arrays import Codes
from faiss_qama.corpus import Corpus
from faiss_qama.growing import GrowingArray
from faiss_qama.hamming.code_index import CodeIndex
from faiss_qama.hamming.factory import AUTO, check_lists, make_base
from faiss_qama.index import norms, saving
from faiss_qama.index.id_map import IdMap
from faiss_qama.index.qama_index import QamaIndex
from faiss_qama.index.tuning import MIN_DOCUMENTS, BaseTrial, fastest, trial_queries, tune
from faiss_qama.index.two_stage import TwoStageIndex, encode
from faiss_qama.index_spec import IndexSpec
from faiss_qama.progress import progress
from faiss_qama.quantizer.calibration import RECALL, K
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.rescore.factory import make_rescorer, of_first_codes
from faiss_qama.rescore.stored_vectors import StoredVectors
from faiss_qama.storage import bundle
from faiss_qama.storage.atomic_files import Stream
from faiss_qama.vectors import PathLike

SAMPLE, PER_LIST = 50_000, 4  # vectors that a base index is trained on: at least in all, and per list
NORMS = 5000  # vectors whose norms are compared with those of the fit


def build_index(
    path: PathLike,
    quantizer: Quantizer,
    corpus: Corpus,
    spec: IndexSpec | None = None,
    queries: ArrayLike | None = None,
) -> QamaIndex:
    """Index ``corpus`` straight to the folder ``path``, and load it memory-mapped.

    Parameters
    ----------
    path : str or path
        A folder; an index there is replaced in one atomic step.
    quantizer : Quantizer
        From :func:`faiss_qama.training.fit`.
    corpus : Corpus
        Vectors, read once, in chunks; the index gets its ids.
    spec : IndexSpec, optional
        The stages, and the recall that base ``auto`` must reach. The default is ``Flat`` and ``fp16``.
    queries : array of shape (nq, d), optional
        Unlabelled queries, to choose base ``auto`` with, or ``nprobe`` or ``efSearch`` where ``spec`` sets none.

    Returns
    -------
    QamaIndex
        Memory-mapped and read-only. Its ``base_trials`` say how the base was chosen or tuned.

    Raises
    ------
    ValueError
        For a corpus of another dimension, vectors that cannot be stored, and a base that does not exist. An index at
        ``path`` stays as it was.

    Examples
    --------
    >>> import numpy as np, tempfile
    >>> from faiss_qama.index.build import build_index
    >>> from faiss_qama.training import fit
    >>> from faiss_qama.corpus import Corpus
    >>> x = np.random.default_rng(0).standard_normal((500, 32))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     index = build_index(f"{folder}/index", fit(x), Corpus(x))
    ...     I = index.search(x[:3], 1)[1]
    ...     del index  # Windows removes no mapped files
    >>> I.ravel()
    array([0, 1, 2])
    """
    spec, corpus = spec or IndexSpec(), corpus.normalized() if quantizer.cosine else corpus
    bundle.check_writable(path, corpus.paths)
    some = _sample(corpus, NORMS)
    message = norms.other_norms(quantizer, some, spec.rescore)
    if message is not None:
        warnings.warn(message, stacklevel=2)
        quantizer = norms.adapted(quantizer, some) or quantizer
    base, codes, trials = _base(quantizer, corpus, spec, queries)
    rescorer = make_rescorer(spec.rescore, quantizer, base)

    def encoded() -> Iterator[NDArray[Any]]:
        """Yield rows for the rescorer; the codes go to the base on the way."""
        first = 0
        for x in progress(corpus.chunks(), "storing" if codes is not None else "encoding", corpus.n_chunks):
            try:
                if codes is None:
                    code, rows = encode(quantizer, rescorer, x, first)
                    base.append(code)
                else:
                    rows = x if rescorer is None else rescorer.encode(x, codes[first : first + len(x)], first)
            except ValueError as error:  # a row that cannot be stored
                raise ValueError(f"{corpus.name}: {str(error).removeprefix('vectors: ')}") from None
            yield rows
            first += len(x)
        if codes is None and base.settings and not spec.settings:
            trials.extend(_tuned(quantizer, base, corpus, spec, queries))

    vectors = None
    if isinstance(rescorer, StoredVectors):
        vectors = Stream((len(corpus), rescorer.width), rescorer.dtype, encoded())
    else:
        for rows in encoded():
            if rescorer is not None:
                rescorer.append(rows)
    ids = None if corpus.ids is None else GrowingArray(corpus.ids)
    saving.write(path, TwoStageIndex(quantizer, base, IdMap(len(corpus), ids), rescorer), vectors)
    index = QamaIndex.load(path, mmap=True)
    index.base_trials = trials
    return index


def _base(
    quantizer: Quantizer, corpus: Corpus, spec: IndexSpec, queries: ArrayLike | None
) -> tuple[CodeIndex, Codes | None, list[BaseTrial]]:
    """Return a trained, empty base; for base ``auto`` the fastest one, filled, its codes, and the trials."""
    if spec.base == AUTO:
        chunks = progress(corpus.chunks(), "encoding", corpus.n_chunks)
        codes = np.concatenate([quantizer.encode(x) for x in chunks])
        xq = trial_queries(codes[:0] if queries is not None else _sample(corpus), queries, quantizer.d)
        base, trials = fastest(quantizer, codes, xq, spec.recall or RECALL, spec.memory)
        return base, codes, trials
    base = make_base(spec.base, quantizer.layout)
    base.set(spec.settings)
    if not base.is_trained:
        check_lists(base, len(corpus))
        base.train(quantizer.encode(_sample(corpus, max(SAMPLE, PER_LIST * getattr(base, "nlist", 0)))))
    return base, None, []


def _tuned(
    quantizer: Quantizer, base: CodeIndex, corpus: Corpus, spec: IndexSpec, queries: ArrayLike | None
) -> list[BaseTrial]:
    """Set ``nprobe`` or ``efSearch`` of a filled base for the recall in ``spec``, re-ranking from codes."""
    if queries is None and len(corpus) < MIN_DOCUMENTS:
        return []
    xq, recall = trial_queries(_sample(corpus), queries, quantizer.d), spec.recall or RECALL
    trial = tune(TwoStageIndex(quantizer, base, IdMap(len(base)), of_first_codes(quantizer, base)), xq, K, recall)
    if trial is None:
        warnings.warn(f"no setting of {base} keeps recall {recall}; it stays at {base.settings}", stacklevel=4)
        return []
    return [trial]


def _sample(corpus: Corpus, n: int = SAMPLE) -> NDArray[np.float32]:
    return corpus.take(np.unique(np.linspace(0, len(corpus) - 1, n, dtype=np.int64)))
