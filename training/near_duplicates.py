"""Documents that are the query itself, as collections of questions have them.

Without a label they are no answers: they are neither trained on nor counted.
"""

from __future__ import annotations

import faiss
import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Floats, row_norms, scale_to_norm
from faiss_qama.threads import parallel_map, slices

SAME_DISTANCE = 1e-3  # squared distance, as a share of the corpus' variance, of what one text was embedded to twice
BLOCK = 4096  # documents that are centred at a time
SAME_DIMENSIONS = 384  # that share holds from here on; rounding adds up over dimensions, so fewer have less of it


def drop_one(own: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return a mask of k - 1 of each row's k hits: all but the first that is the query's ``own``, or else the last."""
    k = own.shape[1]
    dropped = np.where(own.any(axis=1), own.argmax(axis=1), k - 1)
    kept: NDArray[np.bool_] = np.arange(k) != dropped[:, None]
    return kept


class NearDuplicates:
    """Tells which documents are the query, by their distance relative to the spread of documents ``x`` (n, d).

    Under the inner product the norm of a query means nothing, so queries are scaled to the norm of the documents.
    """

    def __init__(self, x: Floats, metric: int) -> None:
        self._center = x.mean(axis=0)
        sample = x[:: -(-len(x) // 10_000)]
        share = SAME_DISTANCE * min(1.0, x.shape[1] / SAME_DIMENSIONS)
        self._most = share * float(np.mean(row_norms(sample - self._center) ** 2))
        inner_product = metric == faiss.METRIC_INNER_PRODUCT
        self._norm = float(np.sqrt(np.mean(row_norms(sample) ** 2))) if inner_product else None

    def among(self, queries: Floats, documents: Floats) -> NDArray[np.bool_]:
        """Return (nq, k), true where one of a query's own ``documents`` (nq, k, d) is it."""
        distances = np.square(documents - self._of(queries)[:, None]).sum(axis=2)
        found: NDArray[np.bool_] = distances <= self._most
        return found

    def between(self, queries: Floats, documents: Floats) -> NDArray[np.bool_]:
        """Return (nq, n), true where one of all ``documents`` (n, d) is the query."""
        # Centred, because distances are found from products, which round by the norms.
        queries, found = self._of(queries) - self._center, np.empty((len(queries), len(documents)), bool)

        def compare(part: slice) -> None:
            found[:, part] = faiss.pairwise_distances(queries, documents[part] - self._center) <= self._most

        parallel_map(compare, slices(len(documents), BLOCK))
        return found

    def _of(self, queries: Floats) -> Floats:
        return queries if self._norm is None else scale_to_norm(queries, self._norm)
