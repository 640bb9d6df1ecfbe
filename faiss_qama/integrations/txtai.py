"""txtai's approximate nearest neighbours on a QamaIndex, on txtai alone.

Name the class as the backend: ``txtai.Embeddings(path=model, backend="faiss_qama.integrations.txtai.Qama")``.
"""

from __future__ import annotations

import faiss
import numpy as np
from txtai.ann import ANN

from faiss_qama.arrays import Floats
from faiss_qama.index.qama_index import QamaIndex
from faiss_qama.integrations.self_fitting import SelfFittingIndex


class Qama(ANN):  # type: ignore[misc]  # txtai has no types
    """A backend that fits itself to the first embeddings it indexes.

    Scores are inner products, larger is better; txtai normalizes embeddings, so they are cosines. The settings
    ``rescore``, ``recall``, ``oversample`` and ``mmap`` stand in the configuration under the name of the backend.
    """

    def index(self, embeddings: Floats) -> None:
        """Index ``embeddings`` (n, d), with ids from 0."""
        self.backend = SelfFittingIndex(faiss.METRIC_INNER_PRODUCT, self.setting("rescore", "fp16"))
        self.config["offset"] = 0
        self.metadata({"rescore": self.setting("rescore", "fp16")})
        self.append(embeddings)

    def append(self, embeddings: Floats) -> None:
        """Append ``embeddings`` (n, d), with the ids that follow."""
        first = self.config["offset"]
        self.backend.add(np.asarray(embeddings, np.float32), np.arange(first, first + len(embeddings)))
        self.config["offset"] = first + len(embeddings)
        self.metadata()

    def delete(self, ids: list[int]) -> None:
        """Remove the embeddings of ``ids``."""
        self.backend.remove(np.array(ids, np.int64))

    def search(self, queries: Floats, limit: int) -> list[list[tuple[int, float]]]:
        """Return for each query of (nq, d) at most ``limit`` pairs of id and score, best first."""
        options = {name: self.setting(name) for name in ("recall", "oversample") if self.setting(name) is not None}
        D, I = self.backend.search(np.asarray(queries, np.float32), limit, **options)
        return [
            [(int(i), float(score)) for i, score in zip(ids, scores, strict=True) if i >= 0]
            for ids, scores in zip(I, D, strict=True)
        ]

    def count(self) -> int:
        """Return the number of embeddings."""
        return len(self.backend)

    def save(self, path: str) -> None:
        """Write the index to the folder ``path``. Raises ValueError if nothing was indexed yet."""
        if self.backend.index is None:
            raise ValueError("there are no embeddings to save: index some first")
        self.backend.index.save(path)

    def load(self, path: str) -> None:
        """Load the index from the folder ``path``, memory-mapped and read-only with the setting ``mmap``."""
        index = QamaIndex.load(path, mmap=bool(self.setting("mmap")))
        self.backend = SelfFittingIndex(index.metric_type, index.rescore, index)
