"""The backend for txtai: what its own backends are tested for, and the neighbours that its numpy backend finds."""

from __future__ import annotations

import pytest

pytest.importorskip("txtai", reason="a client that no extra installs")

import faiss
import numpy as np
from conftest import make_vectors
from txtai import Embeddings
from txtai.ann import ANNFactory

BACKEND = "faiss_qama.integrations.txtai.Qama"
X = make_vectors(1200)


def made(n: int, **settings):
    ann = ANNFactory.create({"backend": BACKEND, "dimensions": X.shape[1], BACKEND: settings})
    ann.index(X[:n])
    return ann


@pytest.mark.parametrize("n", [1, 2, 50, 1200])
def test_add_search_delete_save(tmp_path, n):
    ours, new, queries = made(n), make_vectors(5, seed=1), make_vectors(7, seed=2)
    ours.append(new)
    ours.delete([0, n + 1, 10**6])
    assert ours.count() == n + 3
    assert ours.config["offset"] == n + 5
    exact = faiss.IndexIDMap(faiss.IndexFlatIP(X.shape[1]))
    exact.add_with_ids(np.concatenate([X[:n], new]), np.arange(n + 5))
    exact.remove_ids(np.array([0, n + 1]))
    D, I = exact.search(queries, 3)
    ours.save(str(tmp_path / "ann"))
    for mmap in (False, True):
        loaded = ANNFactory.create({"backend": BACKEND, BACKEND: {"mmap": mmap}})
        loaded.load(str(tmp_path / "ann"))
        for ann in (ours, loaded):
            found = ann.search(queries, 3)
            np.testing.assert_array_equal([[i for i, _ in hits] for hits in found], I)
            np.testing.assert_allclose([[score for _, score in hits] for hits in found], D, atol=1e-3)


def test_settings_are_heeded():
    ann = made(1200, rescore="codes", oversample=2)
    assert ann.backend.index.rescore == "codes"
    assert ann.search(X[:1], 5) == [
        [
            (int(i), float(s))
            for s, i in zip(*(row[0] for row in ann.backend.index.search(X[:1], 5, oversample=2)), strict=True)
        ]
    ]


@pytest.mark.slow
def test_an_index_of_few_is_fitted_anew_when_there_are_many():
    x = make_vectors(10_500, seed=3)
    ann = made(5)
    first = ann.backend.index.quantizer
    ann.append(x[:9_000])
    assert ann.backend.index.quantizer is first
    ann.append(x[9_000:])
    assert ann.backend.index.quantizer.fit_record.fitted_on > 9_000
    assert [ann.search(x[i : i + 1], 1)[0][0][0] for i in (0, 9_000, 10_499)] == [5, 9_005, 10_504]
    assert ann.count() == 10_505


def embed(texts):
    return np.array([np.bincount([ord(c) % 16 for c in text], minlength=16) for text in texts], np.float32)


def test_txtai_embeddings(tmp_path, monkeypatch):
    monkeypatch.setenv("ALLOW_RESOLVE_TRANSFORM", "True")
    texts = ["one", "two words", "three words here", "something else", "yet another text"]
    settings = {"method": "external", "transform": f"{__name__}.embed"}
    ours, theirs = Embeddings(**settings, backend=BACKEND), Embeddings(**settings, backend="numpy")
    for embeddings in (ours, theirs):
        embeddings.index([(i, text, None) for i, text in enumerate(texts)])
        embeddings.upsert([(1, "new words", None), (9, "nine", None)])
        embeddings.delete([0])
    for path in ("index", "again"):
        ours.save(str(tmp_path / path))
        loaded = Embeddings()
        loaded.load(str(tmp_path / path))
        for query in ("two words", "nine", "text"):
            wanted = theirs.search(query, 4)
            for embeddings in (ours, loaded):
                found = embeddings.search(query, 4)
                np.testing.assert_allclose([s for _, s in found], [s for _, s in wanted], atol=1e-3)
                assert found[0][0] == wanted[0][0]
