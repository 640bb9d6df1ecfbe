"""The client itself, as installed: sentence-transformers."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import make_vectors

pytestmark = pytest.mark.slow

POOL = make_vectors(600, seed=31)


class TestSentenceTransformers:
    @pytest.mark.parametrize("precision", ["float32", "uint8", "ubinary"])
    @pytest.mark.parametrize("exact", [True, False])
    def test_hits_are_theirs(self, precision, exact):
        from faiss_qama.integrations.sentence_transformers import semantic_search_faiss

        queries = make_vectors(9, seed=41)
        hits, seconds, index = semantic_search_faiss(
            queries, POOL, corpus_precision=precision, top_k=10, exact=exact, output_index=True
        )
        assert seconds > 0
        assert index.rescore == {"float32": "fp32", "uint8": "sq8", "ubinary": "codes"}[precision]
        truth = np.argsort(-(queries @ POOL.T), axis=1)[:, :10]
        found = [[hit["corpus_id"] for hit in row] for row in hits]
        overlap = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, truth.tolist(), strict=True)])
        assert overlap > (0.6 if precision == "ubinary" else 0.9)
        assert all(row == sorted(row, key=lambda hit: -hit["score"]) for row in hits)
        if precision == "float32":
            for query, row in zip(queries, hits, strict=True):
                for hit in row:
                    assert hit["score"] == pytest.approx(float(query @ POOL[hit["corpus_id"]]), abs=1e-5)
        again, _ = semantic_search_faiss(queries, corpus_index=index, corpus_precision=precision, top_k=10)
        assert again == hits

    def test_beside_the_original(self):
        original = pytest.importorskip("sentence_transformers.util.quantization")
        import inspect

        from faiss_qama.integrations.sentence_transformers import semantic_search_faiss

        ours, theirs = (
            list(inspect.signature(f).parameters) for f in (semantic_search_faiss, original.semantic_search_faiss)
        )
        assert ours == theirs
        queries = make_vectors(9, seed=41)
        want, _ = original.semantic_search_faiss(queries, POOL, rescore=False, top_k=5)
        got, _ = semantic_search_faiss(queries, POOL, top_k=5, rescore_multiplier=100)
        for a, b in zip(got, want, strict=True):
            assert [hit["corpus_id"] for hit in a] == [hit["corpus_id"] for hit in b]
            assert [hit["score"] for hit in a] == pytest.approx([hit["score"] for hit in b], abs=1e-5)

    def test_without_rescoring_and_wrong_arguments(self):
        from faiss_qama.integrations.sentence_transformers import semantic_search_faiss

        hits, _ = semantic_search_faiss(POOL[:3], POOL, top_k=4, rescore=False)
        assert [row[0]["corpus_id"] for row in hits] == [0, 1, 2]
        assert hits[0][0]["score"] == 0
        with pytest.raises(ValueError, match="pass corpus_embeddings or corpus_index, one of them"):
            semantic_search_faiss(POOL[:3])
        with pytest.raises(ValueError, match="corpus_precision must be one of float32, uint8, ubinary; got 'int8'"):
            semantic_search_faiss(POOL[:3], POOL, corpus_precision="int8")
        with pytest.raises(TypeError, match="float32 is needed"):
            semantic_search_faiss(POOL[:3], (POOL > 0).astype(np.uint8))
