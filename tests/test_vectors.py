from __future__ import annotations

import numpy as np
import pytest

from faiss_qama.corpus import Corpus, load_vectors
from faiss_qama.vectors import as_vectors

X = np.random.default_rng(0).standard_normal((100, 6)).astype(np.float32)


def with_value(value, row):
    x = X.copy()
    x[row, 3] = value
    return x


@pytest.mark.parametrize(
    ("bad", "error", "message"),
    [
        (X[:, :5], ValueError, "dimension 5, but 6 is needed"),
        (X[0], ValueError, r"got 1 dimensions, shape \(6,\); for one vector use x.reshape"),
        (X[None], ValueError, "got 3 dimensions"),
        (X[:0], ValueError, r"no vectors, shape \(0, 6\)"),
        (X.astype(int), TypeError, "got int64"),
        (X.astype(str), TypeError, "float32 is needed"),
        (X.astype(object), TypeError, "got object"),
        (X.astype(complex), TypeError, "got complex128"),
        (with_value(np.nan, 41), ValueError, "row 41 holds NaN or infinity"),
        (with_value(-np.inf, 99), ValueError, "row 99 holds NaN or infinity"),
        (X.astype(np.float64) * 1e300, ValueError, "100 rows of 100 hold NaN or infinity .*: 0, 1, 2, ..."),
    ],
)
def test_what_is_refused(bad, error, message):
    with pytest.raises(error, match=message):
        as_vectors(bad, 6)
    with pytest.raises(error, match=message):
        list(Corpus(bad, 6).chunks())


@pytest.mark.parametrize("cast", [np.float16, np.float32, np.float64, np.longdouble])
def test_what_is_cast(cast):
    for x in (X.astype(cast), np.asfortranarray(X.astype(cast)), X.astype(cast)[::-1, ::-1]):
        out = as_vectors(x)
        assert out.dtype == np.float32
        assert out.flags.c_contiguous
        np.testing.assert_array_equal(out, x.astype(np.float32))
    np.testing.assert_array_equal(as_vectors(X.tolist()), X)


def test_large_finite_values_pass():
    as_vectors(np.full((2, 6), 3e38, np.float32))


@pytest.mark.parametrize("chunk_bytes", [1, 24 * 7, 1 << 20])
def test_chunks_and_rows_of_any_source(tmp_path, monkeypatch, chunk_bytes):
    monkeypatch.setattr("faiss_qama.corpus.CHUNK_BYTES", chunk_bytes)
    np.save(tmp_path / "a.npy", X[:37].astype(np.float64))
    np.save(tmp_path / "b.npy", np.asfortranarray(X[37:]))
    rows = np.random.default_rng(1).integers(0, 100, 60)
    for source in (X, [tmp_path / "a.npy", str(tmp_path / "b.npy")]):
        corpus = Corpus(source)
        assert corpus.shape == (100, 6)
        chunks = list(corpus.chunks())
        assert len(chunks) == corpus.n_chunks
        np.testing.assert_array_equal(np.concatenate(chunks), X)
        np.testing.assert_array_equal(corpus.take(rows), X[rows])
    with pytest.raises(IndexError, match="from 0 to 99"):
        corpus.take(np.array([3, 100]))


def test_row_numbers_are_those_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("faiss_qama.corpus.CHUNK_BYTES", 24 * 7)
    np.save(tmp_path / "a.npy", X)
    np.save(tmp_path / "b.npy", with_value(np.nan, 41))
    corpus = Corpus([tmp_path / "a.npy", tmp_path / "b.npy"])
    with pytest.raises(ValueError, match="b.npy: row 41 holds"):
        list(corpus.chunks())
    with pytest.raises(ValueError, match="b.npy: row 41 holds"):
        corpus.take(np.array([3, 199, 141, 101]))


def test_bad_files_are_refused_by_name(tmp_path):
    def write(name, data):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    np.save(tmp_path / "good.npy", X)
    np.savez(tmp_path / "z.npz", X, X)
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(tmp_path / "narrow.npy", X[:, :4])
    good = (tmp_path / "good.npy").read_bytes()
    for path in (
        write("text.npy", b"1.0 2.0\n"),
        write("empty.npy", b""),
        write("header.npy", good[:10] + b"{'descr': (" + good[21:]),
        write("cut.npy", good[:-100]),
        tmp_path / "z.npz",
        tmp_path / "pickle.npy",
    ):
        with pytest.raises(ValueError, match=f"{path.name}: "):
            load_vectors(path)
        with pytest.raises(ValueError, match=f"{path.name}: "):
            Corpus(path)
    with pytest.raises(ValueError, match="narrow.npy: dimension 4, but 6"):
        Corpus([tmp_path / "good.npy", tmp_path / "narrow.npy"])
    with pytest.raises(FileNotFoundError):
        Corpus(tmp_path / "none.npy")


def test_vectors_can_be_left_out_and_the_others_keep_their_ids(tmp_path):
    np.save(tmp_path / "x.npy", with_value(np.nan, 3))
    kept = np.arange(99) % 3 > 0
    with pytest.warns(UserWarning, match="left out of"):
        corpus = Corpus(tmp_path / "x.npy", drop_bad_rows=True)
    some = corpus.where(kept)
    stored = np.delete(np.arange(100), 3)[kept]
    np.testing.assert_array_equal(some.ids, stored)
    np.testing.assert_array_equal(some.read(), X[stored])
    np.testing.assert_array_equal(some.take(np.array([5, 0])), X[stored[[5, 0]]])
    assert len(corpus) == 99
