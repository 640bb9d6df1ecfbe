"""The main job: what it measures of the index that it writes."""

from __future__ import annotations

import faiss
import numpy as np
import pytest
from conftest import make_vectors

from faiss_qama import QamaIndex
from faiss_qama.index_spec import IndexSpec
from faiss_qama.pipeline import fit_index
from faiss_qama.training import FitConfig
from faiss_qama.vectors import Corpus

INNER_PRODUCT = faiss.METRIC_INNER_PRODUCT


def made(folder, x, metric=INNER_PRODUCT, layout="2x18", **spec):
    np.save(folder / "corpus.npy", x)
    return fit_index(
        Corpus(folder / "corpus.npy"), folder / "i.qama", FitConfig(layout=layout), metric, IndexSpec(**spec)
    )


@pytest.mark.parametrize("metric", [INNER_PRODUCT, faiss.METRIC_L2])
@pytest.mark.parametrize("rescore", ["codes", "none"])
def test_copies_of_held_out_documents_are_not_searched(tmp_path, metric, rescore):
    """Twenty copies of each text; the other route removes them by their number and searches an index of the others."""
    texts = make_vectors(400)
    number = np.random.default_rng(0).permutation(np.repeat(np.arange(400), 20))
    x = texts[number]
    outcome = made(tmp_path, x, metric, rescore=rescore)
    rows = outcome.split.test_rows[: int(outcome.queries.split()[0])]
    left = ~np.isin(number, number[rows])
    assert 100 < len(rows) < 300  # as many as leave half of the corpus
    assert left.mean() >= 0.5
    index = QamaIndex(outcome.index.quantizer, rescore)
    index.add(x[left])
    exact = faiss.IndexFlat(x.shape[1], metric)
    exact.add(x[left])
    D, _ = exact.search(x[rows], 10)
    found = index.search(x[rows], 10)[1]
    scores = np.einsum("qkd,qd->qk", x[left][found], x[rows])
    if metric == faiss.METRIC_L2:
        scores, D = -np.square(x[left][found] - x[rows][:, None]).sum(axis=2), -D
    by_hand = np.mean(scores >= D[:, -1:] - 1e-4)
    assert outcome.measured[1].mean.recall == pytest.approx(by_hand, abs=0.001 if rescore == "codes" else 0.02)
    assert by_hand < 0.99


def test_texts_that_are_all_alike_are_measured_too(tmp_path):
    outcome = made(tmp_path, np.repeat(make_vectors(3), 100, axis=0), layout="1x2")
    assert outcome.queries == "30 held-out documents"
    assert outcome.measured[-1].mean.recall == 1


def test_what_is_held_out_is_not_a_hit(tmp_path):
    """Without copies: each held-out document among those that are not held out."""
    x = make_vectors(600)
    outcome = made(tmp_path, x, rescore="codes")
    left = np.setdiff1d(np.arange(600), outcome.split.test_rows)
    index = QamaIndex(outcome.index.quantizer, "codes")
    index.add(x[left])
    truth = np.argsort(-x[outcome.split.test_rows] @ x[left].T, axis=1)[:, :10]
    found = index.search(x[outcome.split.test_rows], 10)[1]
    by_hand = np.mean([np.isin(a, b).mean() for a, b in zip(found, truth, strict=True)])
    assert outcome.measured[1].mean.recall == pytest.approx(by_hand, abs=0.002)
