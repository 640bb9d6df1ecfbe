"""The metric ``cosine``: the inner product of vectors that are scaled to norm 1, on both sides and everywhere."""

from __future__ import annotations

import json
import warnings

import faiss
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import fit_quietly, make_vectors

from faiss_qama import QamaIndex, index_factory
from faiss_qama.arrays import scale_to_norm
from faiss_qama.cli.app import cli
from faiss_qama.reference import ReferenceQuantizer
from faiss_qama.training import fit

X, XQ = make_vectors(1200, unit=False), make_vectors(150, seed=1, unit=False)  # norms of 40 to 500
UNIT, UNIT_Q = scale_to_norm(X, 1.0), scale_to_norm(XQ, 1.0)
STAGES = {
    "none": lambda x: "none",
    "codes": lambda x: "codes",
    "sq8": lambda x: "sq8",
    "fp16": lambda x: "fp16",
    "fp32": lambda x: "fp32",
    "array": lambda x: x,
    "strided": lambda x: np.asfortranarray(x),
    "faiss": lambda x: filled(faiss.IndexFlatIP(x.shape[1]), x),
}


def filled(index, x):
    index.add(x)
    return index


def both(stage, x=X, unit=UNIT, **options):
    """The index of raw vectors by cosine, and that of scaled ones by the inner product."""
    pair = []
    for metric, vectors in (("cosine", x), (faiss.METRIC_INNER_PRODUCT, unit)):
        quantizer = fit_quietly(vectors, layout="2x18+1x18" if stage == "codes" else "2x18", metric=metric, **options)
        index = QamaIndex(quantizer, STAGES[stage](vectors))
        index.add(vectors)
        pair.append(index)
    return pair


@pytest.mark.parametrize("stage", STAGES)
def test_cosine_of_raw_vectors_is_the_inner_product_of_scaled_ones(stage, tmp_path):
    cosine, inner = both(stage)
    assert (str(cosine.quantizer.metric_name), cosine.metric_type) == ("cosine", faiss.METRIC_INNER_PRODUCT)
    assert "cosine" in repr(cosine)
    assert np.mean((cosine.sa_encode(X) == inner.sa_encode(UNIT)).all(axis=1)) > 0.99  # scaled twice, and rounded
    D, I = cosine.search(XQ, 10)
    D_want, I_want = inner.search(UNIT_Q, 10)
    assert np.mean(I == I_want) > 0.99  # rounding
    np.testing.assert_allclose(D, D_want, rtol=1e-5, atol=1e-6)
    if stage in ("fp32", "array", "strided", "faiss"):
        np.testing.assert_allclose(np.take_along_axis(UNIT_Q @ UNIT.T, I, axis=1), D, atol=1e-5)
    radius = 60 if stage == "none" else 0.9
    hits = [index.range_search(xq, radius)[0] for index, xq in ((cosine, XQ), (inner, UNIT_Q))]
    np.testing.assert_allclose(*hits, atol=2)
    np.testing.assert_allclose(cosine.reconstruct_n(0, 50), inner.reconstruct_n(0, 50), atol=1e-5)
    cosine.save(tmp_path / "i")
    loaded = QamaIndex.load(tmp_path / "i")
    assert loaded.quantizer.cosine
    np.testing.assert_array_equal(loaded.search(XQ, 10)[1], I)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of norms
        if stage not in ("array", "strided", "faiss"):
            cosine.add(7 * X[:30])
            found = [index.search(scale * X[:30], 1)[0] for index, scale in ((cosine, 1), (cosine, 100))]
            np.testing.assert_allclose(*found, rtol=1e-6)


def test_other_ways_in(tmp_path):
    """The factory, an index that is trained later, queries for the fit, ids of one's own, and both merge rules."""
    index = index_factory(X.shape[1], "Qama2x18,IVF8,Refine(Flat)", "cosine")
    assert "cosine" in repr(index)
    index.train(X, queries=XQ)
    index.add_with_ids(X, np.arange(len(X)) + 5000)
    index.nprobe = 8
    D, I = index.search(3 * XQ, 10, oversample=50)
    flat = filled(faiss.IndexFlatIP(X.shape[1]), UNIT)
    np.testing.assert_array_equal(I - 5000, flat.search(UNIT_Q, 10)[1])
    R = index.search_and_reconstruct(XQ, 3)[2]
    np.testing.assert_allclose(np.linalg.norm(R, axis=2), 1, atol=1e-5)
    plain = QamaIndex(fit_quietly(UNIT, layout="2x18"), "fp32")
    with pytest.raises(ValueError, match="different quantizers"):
        QamaIndex(index.quantizer, "fp32").merge_from(plain)
    assert (D[:, 0] <= 1 + 1e-5).all()
    with pytest.raises(ValueError, match="metric must be 'cosine', METRIC_INNER_PRODUCT or METRIC_L2; got 'dot'"):
        fit(X, metric="dot")


def test_the_reference_agrees():
    quantizer = fit_quietly(X, layout="2x18", metric="cosine")
    ours, plain = quantizer.encode(X), ReferenceQuantizer(*quantizer.to_state())
    assert np.mean((ours == plain.encode(X)).all(axis=1)) > 0.99
    index = QamaIndex(quantizer, "fp32")
    index.add(X)
    D, I = index.search(XQ, 5, oversample=40)
    D_want, I_want = plain.search(XQ, X, 5, "fp32", 40)
    assert np.mean(I == I_want) > 0.98
    np.testing.assert_allclose(D, D_want, atol=1e-4)


def test_the_calibration_is_that_of_scaled_vectors():
    cosine, inner = (
        fit_quietly(x, layout="2x18", metric=m, queries=q) for x, m, q in ((X, "cosine", XQ), (UNIT, 0, UNIT_Q))
    )
    assert cosine.normalized
    np.testing.assert_allclose(cosine.calibration.floats, inner.calibration.floats, atol=0.03)


def run(*arguments):
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.slow
def test_the_command_line_scales_on_both_sides_and_remembers(tmp_path):
    for name, x in (("x", X), ("xq", XQ), ("u", UNIT), ("uq", UNIT_Q)):
        np.save(tmp_path / f"{name}.npy", x)
    raw, unit = tmp_path / "x.npy", tmp_path / "u.npy"
    said = run("fit", raw, "--metric", "cosine", "--layout", "2x18", "--queries", tmp_path / "xq.npy").output
    assert "metric cosine" in said
    assert "note: vectors have norm" not in said
    run("fit", unit, "--metric", "ip", "--layout", "2x18", "--queries", tmp_path / "uq.npy")
    D, I = QamaIndex.load(tmp_path / "x.qama").search(XQ, 10)
    D_want, I_want = QamaIndex.load(tmp_path / "u.qama").search(UNIT_Q, 10)
    assert np.mean(I == I_want) > 0.99
    np.testing.assert_allclose(D, D_want, atol=1e-3)
    run("build", tmp_path / "x.qama", raw, "-o", tmp_path / "b.qama", "--rescore", "fp32")
    np.testing.assert_allclose(np.linalg.norm(QamaIndex.load(tmp_path / "b.qama").vectors.read(), axis=1), 1, atol=1e-5)
    assert "cosine" in run("inspect", tmp_path / "b.qama").output
    options = ["--oversample", "30", "--json", tmp_path / "r.json"]
    run("eval", tmp_path / "b.qama", tmp_path / "xq.npy", "--corpus", raw, *options)
    record = json.loads((tmp_path / "r.json").read_text())
    assert record["metric"] == "cosine"
    assert record["results"][1]["recall"] > 0.99
    (tmp_path / "set").mkdir()
    np.save(tmp_path / "set" / "corpus.npy", X)
    np.save(tmp_path / "set" / "queries.npy", XQ)
    run("eval", tmp_path / "set", "--method", "faiss:Flat", "--metric", "cosine", "--json", tmp_path / "r.json")
    assert json.loads((tmp_path / "r.json").read_text())["results"][1]["recall"] == 1.0


@pytest.mark.slow
def test_fit_notes_norms_that_are_not_one_under_the_inner_product(tmp_path):
    """As of Matryoshka embeddings that were cut off and not scaled again."""
    np.save(tmp_path / "x.npy", UNIT[:, :24])
    said = run("fit", tmp_path / "x.npy", "--layout", "2x12").output
    assert said.count("note: vectors have norm 0.") == 1
    assert "--metric cosine does not" in said
    assert "note: vectors" not in run("fit", tmp_path / "x.npy", "--layout", "2x12", "--metric", "l2").output
