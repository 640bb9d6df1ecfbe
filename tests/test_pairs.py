"""Input checks of pairs: what is wrong with a file is said by its line, before anything is trained or written."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import make_vectors

from faiss_qama.corpus import Corpus
from faiss_qama.training.pairs import read_pairs
from faiss_qama.training.split import HELD_OUT_PAIRS, split_corpus

N, NQ = 500, 150
CORPUS = Corpus(make_vectors(N))
QUERIES = make_vectors(NQ, seed=1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("query\tdocument\tgrade\n0\t1\t1\n150\t1\t1\n", "line 3: query row 150, but there are 150"),
        ("0\t500\t1\n", "line 1: corpus row 500, but there are 500"),
        ("0\t-1\t1\n", "line 1: corpus row -1, but there are 500"),
        ("q\td\tg\n0\t1\n", "line 2: 3 tab-separated columns are needed; got 2"),
        ("q\td\tg\n0\tone\t1\n", "line 2: whole numbers are needed; got '0\\\\tone\\\\t1'"),
        ("q\td\tg\n0\t1\t0.5\n", "line 2: whole numbers are needed"),
        ("q\td\tg\n0\t1\t0\n3\t4\t-1\n", "no relevant pair: none of 2 grades is above 0"),
        ("q\td\tg\n", "no rows"),
        ("", "no rows"),
    ],
)
def test_wrong_files_are_refused_by_line(tmp_path, text, message):
    path = tmp_path / "qrels.tsv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_pairs(QUERIES, path, CORPUS)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        ([(0, 1, 1), (150, 1, 1)], ValueError, "row 1: query row 150, but there are 150"),
        ([(0, 500, 1)], ValueError, "row 0: corpus row 500, but there are 500"),
        ([(0, 1)], ValueError, r"\(query row, corpus row, grade\) are needed; got shape \(1, 2\)"),
        ([(0, 1, 0.5)], TypeError, "whole numbers are needed; got float64"),
        ([("a", "b", "c")], TypeError, "whole numbers are needed"),
        ([(0, 1, 0)], ValueError, "no relevant pair: none of 1 grades"),
    ],
)
def test_wrong_rows_are_refused(rows, error, message):
    with pytest.raises(error, match=message):
        read_pairs(QUERIES, rows, CORPUS)


def test_queries_of_another_dimension_are_refused():
    with pytest.raises(ValueError, match="dimension 10, but 36 is needed"):
        read_pairs(QUERIES[:, :10], [(0, 1, 1)], CORPUS)


def test_a_file_and_rows_are_the_same_pairs(tmp_path):
    rows = [(0, 1, 2), (3, 4, 0), (5, 6, 1)]
    (tmp_path / "q.tsv").write_text("query\tdocument\tgrade\n" + "".join(f"{a}\t{b}\t{c}\n" for a, b, c in rows))
    np.save(tmp_path / "q.npy", QUERIES)
    pairs = read_pairs(tmp_path / "q.npy", tmp_path / "q.tsv", CORPUS)
    np.testing.assert_array_equal(pairs.qrels, [(0, 1, 2), (5, 6, 1)])
    np.testing.assert_array_equal(pairs.qrels, read_pairs(QUERIES, rows, CORPUS).qrels)


@pytest.mark.parametrize("sample", [10_000, 60])
def test_pairs_are_drawn_apart_and_point_at_what_they_pointed_at(sample):
    rng = np.random.default_rng(0)
    qrels = np.stack(
        [np.repeat(np.arange(NQ - 10), 3), rng.integers(0, N, 3 * NQ - 30), np.tile([1, 2, 3], NQ - 10)], 1
    )
    x = np.concatenate(list(CORPUS.chunks()))
    split = split_corpus(CORPUS, None, sample, 0, read_pairs(QUERIES, qrels, CORPUS))
    known = {(QUERIES[q].tobytes(), x[d].tobytes(), g) for q, d, g in qrels.tolist()}
    parts = [
        (split.train_queries, split.train_qrels, split.train),
        (split.validation, split.validation_qrels, split.train),
        (split.test, split.test_qrels, x),
    ]
    found = set()
    for queries, rows, documents in parts:
        assert set(rows[:, 0]) == set(range(len(queries)))
        found |= {(queries[q].tobytes(), documents[d].tobytes(), g) for q, d, g in rows.tolist()}
    assert found <= known
    asked = min(sample, NQ - 10)
    held = min(HELD_OUT_PAIRS, max(20, asked // 6))
    assert [len(queries) for queries, _, _ in parts[1:]] == [held, held]
    assert asked - 2 * held - 5 <= len(split.train_queries) <= asked - 2 * held
    everything = np.concatenate([queries for queries, _, _ in parts])
    assert len(np.unique(everything, axis=0)) == len(everything)
    if sample == 10_000:
        assert found == known


def test_half_of_what_is_held_out_shares_no_document_with_what_is_trained_on():
    """Chains of five queries, each sharing a document with the next."""
    qrels = [(q, d, 1) for q in range(NQ) for d in (q, q + 1 if q % 5 < 4 else q)]
    split = split_corpus(CORPUS, None, 10_000, 0, read_pairs(QUERIES, qrels, CORPUS))
    train, validation, test = (
        [int(np.flatnonzero((QUERIES == query).all(axis=1))[0]) for query in part]
        for part in (split.train_queries, split.validation, split.test)
    )
    assert len(split.train_queries) >= NQ - 50 - 4
    assert len(validation) == len(test) == 25
    chains = {q // 5 for q in train}
    for part in (validation, test):
        assert 12 <= sum(q // 5 not in chains for q in part) <= 13
    learned = {d for q, d, _ in qrels if q in train}
    seen = [any(d in learned for asked, d, _ in qrels if asked == q) for q in test]
    np.testing.assert_array_equal(split.test_seen, seen)
    assert 6 < sum(seen) < 13  # a neighbour in the chain may be held out too


def test_where_no_documents_are_shared_all_that_is_held_out_is_new():
    split = split_corpus(CORPUS, None, 10_000, 0, read_pairs(QUERIES, [(q, q, 1) for q in range(NQ)], CORPUS))
    assert not split.test_seen.any()
    assert len(split.test_seen) == len(split.test) == 25


def test_unlabelled_queries_beside_pairs_are_for_training():
    qrels = [(q, q, 1) for q in range(NQ)]
    more = make_vectors(30, seed=9)
    split = split_corpus(CORPUS, Corpus(more), 10_000, 0, read_pairs(QUERIES, qrels, CORPUS))
    assert len(split.train_queries) == NQ - 50 + 30
    assert split.train_qrels[:, 0].max() < NQ - 50
    with pytest.raises(ValueError, match="at least 20 queries with a relevant document are needed; got 19"):
        split_corpus(CORPUS, None, 10_000, 0, read_pairs(QUERIES, qrels[:19], CORPUS))
