"""The drop-in for sentence-transformers: learned codes of floats, and the answers of the original for all else."""

from __future__ import annotations

import inspect

import faiss
import numpy as np
import pytest
from conftest import D, fit_quietly, make_vectors

from faiss_qama import QamaIndex
from faiss_qama.integrations.sentence_transformers import semantic_search_faiss

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:fitted on:UserWarning")]

POOL = make_vectors(600, seed=31)
QUERIES = make_vectors(9, seed=41)
RANGES = np.stack([POOL.min(axis=0), POOL.max(axis=0)])
PRECISIONS = ("float32", "uint8", "ubinary")


def quantize(x, precision):
    """Return what quantize_embeddings makes, with the ranges of the pool."""
    if precision == "uint8":
        return np.clip(np.floor((x - RANGES[0]) / (np.diff(RANGES, axis=0)[0] / 255)), 0, 255).astype(np.uint8)
    return np.packbits(x > 0, axis=1) if precision == "ubinary" else x


def original():
    return pytest.importorskip("sentence_transformers.util.quantization")


def ids(hits):
    return [[hit["corpus_id"] for hit in row] for row in hits]


def scores(hits):
    return np.array([[hit["score"] for hit in row] for row in hits])


def exact_ids(k):
    return np.argsort(-(QUERIES @ POOL.T), axis=1)[:, :k].tolist()


@pytest.mark.parametrize("precision", ["uint8", "ubinary"])
@pytest.mark.parametrize("exact", [True, False])
def test_floats_get_learned_codes(precision, exact):
    hits, seconds, index = semantic_search_faiss(
        QUERIES, POOL, corpus_precision=precision, top_k=10, exact=exact, output_index=True
    )
    assert seconds > 0
    assert isinstance(index, QamaIndex)
    assert index.rescore == {"uint8": "sq8", "ubinary": "codes"}[precision]
    overlap = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(ids(hits), exact_ids(10), strict=True)])
    assert overlap > (0.6 if precision == "ubinary" else 0.9)
    assert all(row == sorted(row, key=lambda hit: -hit["score"]) for row in hits)
    again, _ = semantic_search_faiss(QUERIES, corpus_index=index, corpus_precision=precision, top_k=10)
    assert again == hits
    whole = np.rint(QUERIES * 100)
    of_floats, _ = semantic_search_faiss(whole, corpus_index=index, corpus_precision=precision)
    of_integers, _ = semantic_search_faiss(whole.astype(np.int32), corpus_index=index, corpus_precision=precision)
    assert of_integers == of_floats


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("rescore", [True, False])
def test_float32_is_exact_whatever_rescore_is(exact, rescore):
    hits, seconds, index = semantic_search_faiss(QUERIES, POOL, rescore=rescore, exact=exact, output_index=True)
    assert seconds > 0
    assert isinstance(index, faiss.IndexFlatIP if exact else faiss.IndexHNSWFlat)
    assert ids(hits) == exact_ids(10)
    np.testing.assert_allclose(scores(hits), -np.sort(-(QUERIES @ POOL.T), axis=1)[:, :10], atol=1e-6)
    again, _ = semantic_search_faiss(QUERIES, corpus_index=index, rescore=rescore)
    assert again == hits


@pytest.mark.parametrize("precision", ["uint8", "ubinary"])
@pytest.mark.parametrize("given", ["embeddings", "index"])
def test_a_quantized_corpus_is_ranked_by_its_quantized_values(precision, given):
    """Without re-ranking by products of levels or by differing bits, with it by the float query's products."""
    corpus, coded = quantize(POOL, precision), quantize(QUERIES, precision)
    if precision == "uint8":
        index = faiss.IndexFlatIP(D)
        values = corpus * np.diff(RANGES, axis=0) / 255 + RANGES[0]
        first = coded.astype(np.int64) @ corpus.T.astype(np.int64)
    else:
        index = faiss.IndexBinaryFlat(8 * corpus.shape[1])
        values = (POOL > 0).astype(np.float64)
        first = ((QUERIES > 0)[:, None] != (POOL > 0)).sum(axis=2)
    index.add(corpus)
    source = {"corpus_embeddings": corpus} if given == "embeddings" else {"corpus_index": index}
    options = {**source, "corpus_precision": precision, "ranges": RANGES}
    plain, _ = semantic_search_faiss(QUERIES, **options, top_k=5, rescore=False)
    larger = np.sort(first, axis=1)[:, ::-1] if precision == "uint8" else np.sort(first, axis=1)
    assert scores(plain).tolist() == larger[:, :5].tolist()
    assert np.take_along_axis(first, np.array(ids(plain)), axis=1).tolist() == larger[:, :5].tolist()
    of_coded, _ = semantic_search_faiss(coded, **options, top_k=5)  # quantized queries cannot re-rank
    assert of_coded == plain
    products = QUERIES @ values.T
    best, _ = semantic_search_faiss(QUERIES, **options, top_k=5, rescore_multiplier=120)
    np.testing.assert_allclose(scores(best), -np.sort(-products, axis=1)[:, :5], rtol=1e-6)
    few, _ = semantic_search_faiss(QUERIES, **options, top_k=5)
    candidates, _ = semantic_search_faiss(QUERIES, **options, top_k=10, rescore=False)
    for row, among, product in zip(few, ids(candidates), products, strict=True):
        np.testing.assert_allclose([hit["score"] for hit in row], -np.sort(-product[among])[:5], rtol=1e-6)


@pytest.mark.parametrize("n", [0, 1, 2, 3])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("exact", [True, False])
def test_fewer_documents_than_hits_are_each_found_once(n, precision, quantized, exact):
    corpus = quantize(POOL[:n], precision) if quantized else POOL[:n]
    for rescore in (True, False):
        hits, _, index = semantic_search_faiss(
            QUERIES,
            corpus,
            corpus_precision=precision,
            top_k=5,
            ranges=RANGES,
            rescore=rescore,
            exact=exact,
            output_index=True,
        )
        assert [sorted(row) for row in ids(hits)] == [list(range(n))] * len(QUERIES)
        assert index.ntotal == n
        assert np.isfinite(scores(hits)).all()


def test_calibration_vectors_fit_the_quantizer_of_few_documents():
    _, _, index = semantic_search_faiss(
        QUERIES, POOL[:1], corpus_precision="ubinary", calibration_embeddings=POOL, output_index=True
    )
    want = fit_quietly(POOL)
    assert np.array_equal(index.quantizer.transform.matrix, want.transform.matrix)
    assert np.array_equal(index.quantizer.thresholds, want.thresholds)


def test_ranges_come_from_calibration_vectors_or_queries():
    corpus = quantize(POOL, "uint8")

    def search(queries=QUERIES, **options):
        return semantic_search_faiss(queries, corpus, corpus_precision="uint8", top_k=5, **options)[0]

    assert search(ranges=RANGES) == search(calibration_embeddings=POOL)
    own = np.stack([QUERIES.min(axis=0), QUERIES.max(axis=0)])
    assert search() == search(ranges=own) != search(ranges=RANGES)
    with pytest.raises(ValueError, match="one query has no ranges: pass ranges or calibration_embeddings"):
        search(QUERIES[:1])
    with pytest.raises(ValueError, match=rf"ranges: shape \(2, {D}\) is needed, as queries have; got \(2, 3\)"):
        search(ranges=RANGES[:, :3])


@pytest.mark.parametrize("metric", [faiss.METRIC_INNER_PRODUCT, faiss.METRIC_L2])
@pytest.mark.parametrize("rescore", ["fp32", "codes", "none"])
def test_scores_of_a_learned_index_are_larger_for_better_hits(metric, rescore):
    index = QamaIndex(fit_quietly(POOL, metric=metric), rescore)
    index.add(POOL)
    want, want_ids = index.search(QUERIES, 5)
    hits, _ = semantic_search_faiss(QUERIES, corpus_index=index, top_k=5)
    assert ids(hits) == want_ids.tolist()
    smaller = rescore == "none" or metric == faiss.METRIC_L2
    assert scores(hits).tolist() == (-want if smaller else want).tolist()
    if rescore != "none":
        assert semantic_search_faiss(QUERIES, corpus_index=index, top_k=5, rescore=False)[0] == hits  # as at float32
    by_codes, _ = semantic_search_faiss(
        QUERIES, corpus_index=index, corpus_precision="ubinary", top_k=5, rescore=False, rescore_multiplier=3
    )
    hamming, _ = index.with_rescore("none").search(QUERIES, 5)
    assert scores(by_codes).tolist() == (-hamming).tolist()


def test_wrong_arguments():
    with pytest.raises(ValueError, match="pass corpus_embeddings or corpus_index, one of them"):
        semantic_search_faiss(POOL[:3])
    with pytest.raises(ValueError, match="corpus_precision must be one of float32, uint8, ubinary; got 'int8'"):
        semantic_search_faiss(POOL[:3], POOL, corpus_precision="int8")
    with pytest.raises(TypeError, match="float32 is needed"):
        semantic_search_faiss(POOL[:3], (POOL > 0).astype(np.uint8))
    with pytest.raises(TypeError, match="corpus_embeddings: float32 is needed .* got int8"):
        semantic_search_faiss(QUERIES, POOL.astype(np.int8), corpus_precision="uint8")
    with pytest.raises(TypeError, match="a QamaIndex or an index of FAISS is needed; got dict"):
        semantic_search_faiss(QUERIES, corpus_index={})
    with pytest.raises(ValueError, match="IndexBinaryFlat does not hold corpus_precision='float32'"):
        semantic_search_faiss(QUERIES, corpus_index=faiss.IndexBinaryFlat(40))
    with pytest.raises(ValueError, match="IndexFlatIP does not hold corpus_precision='ubinary'"):
        semantic_search_faiss(QUERIES, corpus_index=faiss.IndexFlatIP(D), corpus_precision="ubinary")
    with pytest.raises(ValueError, match=rf"queries of 5 bytes are needed; got shape \({len(QUERIES)}, 1\)"):
        semantic_search_faiss(QUERIES[:, :8], quantize(POOL, "ubinary"), corpus_precision="ubinary")
    with pytest.raises(ValueError, match=rf"queries of {D} dimensions are needed; got shape \({len(QUERIES)}, 8\)"):
        semantic_search_faiss(QUERIES[:, :8], POOL)
    with pytest.raises(ValueError, match=rf"shape \(n, d\) is needed; got shape \({D},\)"):
        semantic_search_faiss(QUERIES, POOL[0])
    with pytest.raises(ValueError, match="query_embeddings: row 0 holds NaN"):
        semantic_search_faiss(np.full((1, D), np.nan), quantize(POOL, "ubinary"), corpus_precision="ubinary")
    with pytest.raises(ValueError, match="corpus_embeddings: row 0 holds NaN"):
        semantic_search_faiss(QUERIES, np.full((1, D), np.nan))


class TestBesideTheOriginal:
    """The original, as installed, is the second route."""

    def test_the_arguments_are_the_same(self):
        ours, theirs = (
            list(inspect.signature(f).parameters) for f in (semantic_search_faiss, original().semantic_search_faiss)
        )
        assert ours == theirs

    @pytest.mark.parametrize("precision", PRECISIONS)
    @pytest.mark.parametrize("exact", [True, False])
    @pytest.mark.parametrize("given", ["floats", "integers", "quantized"])
    def test_the_hits_are_the_same(self, precision, exact, given):
        theirs = original()
        if precision == "uint8" and not hasattr(theirs, "_dequantize_embeddings"):
            pytest.skip("before 6.2 it re-ranks by levels, without their ranges")
        corpus = theirs.quantize_embeddings(POOL, precision, calibration_embeddings=POOL)
        queries = QUERIES if given == "floats" else (QUERIES * 100).astype(np.int32)
        if given == "quantized":
            queries = theirs.quantize_embeddings(QUERIES, precision, calibration_embeddings=POOL)
        for rescore in (True, False):
            options = {
                "corpus_precision": precision,
                "calibration_embeddings": POOL,
                "rescore": rescore,
                "rescore_multiplier": 3,
                "exact": exact,
                "output_index": True,
            }
            want, _, their_index = theirs.semantic_search_faiss(queries, corpus, **options)
            got, _, our_index = semantic_search_faiss(queries, corpus, **options)
            assert got == want
            assert type(our_index) is type(their_index)
            del options["exact"], options["output_index"]
            assert semantic_search_faiss(queries, corpus_index=their_index, **options)[0] == want
            assert theirs.semantic_search_faiss(queries, corpus_index=our_index, **options)[0] == want

    def test_an_index_with_ids_of_its_own(self):
        index = faiss.IndexIDMap2(faiss.IndexFlatIP(D))
        index.add_with_ids(POOL, np.arange(600) + 1000)
        want, _ = original().semantic_search_faiss(QUERIES, corpus_index=index, rescore=False)
        assert semantic_search_faiss(QUERIES, corpus_index=index)[0] == want
        assert ids(want) == [[i + 1000 for i in row] for row in exact_ids(10)]
