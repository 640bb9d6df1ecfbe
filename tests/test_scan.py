"""The scan: the same distances and rows as numpy's and FAISS's, whatever ran, in how many parts, of whatever layout."""

from __future__ import annotations

import os
import subprocess
import sys

import faiss
import numpy as np
import pytest
from conftest import fit_quietly, make_vectors
from hypothesis import given, settings
from hypothesis import strategies as st

from faiss_qama import QamaIndex, codes, planes, scan
from faiss_qama.base import WORST
from faiss_qama.layout import CodeLayout
from faiss_qama.scan import Scan

MIXTURES = ("2x192", "2x7", "1.5x5", "1x9", "0.5x6", "0.5orx4", "2x33,1.5x7,1x3,0.5x4", "2x3,1x3,2x40")


def random_codes(layout: CodeLayout, n: int, seed: int) -> np.ndarray:
    """Codes of columns that lie around a few centres, so that distances differ and some are equal."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((5, layout.columns))
    z = centres[rng.integers(0, 5, n)] + 0.5 * rng.standard_normal((n, layout.columns))
    thresholds = np.full((layout.columns, layout.max_levels - 1), np.inf, np.float32)
    for segment, columns, _ in layout.slices():
        thresholds[columns, : segment.levels - 1] = np.linspace(-0.7, 0.7, segment.levels - 1)
    return codes.encode(z.astype(np.float32), thresholds, layout)


def by_numpy(code, queries, k, rows):
    """The k nearest of ``rows``, of equal distances the first."""
    distances = codes.hamming(queries[:, None], code[None])[:, rows]
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, axis=1), rows[order]


@pytest.fixture(params=["numba", "faiss"])
def kernels(request, monkeypatch):
    """Both ways to scan."""
    scan._kernels.cache_clear()
    if request.param == "faiss":
        monkeypatch.setitem(sys.modules, "faiss_qama.kernels", None)
        monkeypatch.setattr(scan, "CHUNK", 300)
    yield request.param
    scan._kernels.cache_clear()


@pytest.fixture(params=[1, 2])
def threads(request, monkeypatch):
    """One thread, or two and work for both."""
    monkeypatch.setattr(scan, "WORK", 1000)
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(request.param)
    yield request.param
    faiss.omp_set_num_threads(before)


@pytest.mark.parametrize("text", [*MIXTURES, "2x30,1x3,2x5,1.5x31,1x7,2x64"])
@pytest.mark.parametrize("n", [1, 7, 255, 1025])
def test_words_hold_what_codes_do(kernels, text, n):
    layout = CodeLayout.parse(text)
    code = random_codes(layout, n, 1)
    words = planes.pack(code, layout)
    np.testing.assert_array_equal(Scan(layout)._pack(code), words)
    assert words.dtype == np.uint32
    np.testing.assert_array_equal(planes.unpack(words, layout), code)


@pytest.mark.parametrize("text", MIXTURES)
@pytest.mark.parametrize("n", [1, 7, 255, 1025])
def test_scan_is_numpys(kernels, threads, text, n):
    layout = CodeLayout.parse(text)
    code, queries = random_codes(layout, n, 1), random_codes(layout, 35, 2)
    base = Scan(layout)
    for part in np.array_split(code, 3):
        base.add(part)
    assert len(base) == n
    np.testing.assert_array_equal(base.codes, code)
    some = np.random.default_rng(3).random(n) < 0.3
    for k in (1, 10, n, n + 3):
        for rows in (None, some, np.zeros(n, bool)):
            D, I = base.search(queries, k, rows, {})
            allowed = np.arange(n) if rows is None else np.flatnonzero(rows)
            want_d, want_i = by_numpy(code, queries, k, allowed)
            found = want_i.shape[1]
            assert D.shape == I.shape == (35, k)
            np.testing.assert_array_equal(D[:, :found], want_d)
            np.testing.assert_array_equal(I[:, :found], want_i)
            assert (D[:, found:] == WORST).all()
            assert (I[:, found:] == -1).all()


@pytest.mark.parametrize("text", MIXTURES)
@pytest.mark.parametrize("nq", [1, 5])
def test_sums_are_those_of_the_bits(kernels, threads, text, nq):
    layout, rng = CodeLayout.parse(text), np.random.default_rng(4)
    base = Scan(layout)
    base.add(random_codes(layout, 1025, 1))
    rows = rng.integers(0, 1025, (nq, 77))
    weights = rng.standard_normal((nq, layout.n_bits)).astype(np.float32)
    shared = rng.standard_normal(layout.n_bits).astype(np.float32)
    bits = codes.unpack(base.codes, layout).astype(np.float64)[rows]
    own, common = base.sums(rows, weights, shared)
    np.testing.assert_allclose(own, np.einsum("qkb,qb->qk", bits, weights), atol=1e-4)
    np.testing.assert_allclose(common, bits @ shared, atol=1e-4)


@pytest.mark.parametrize("text", MIXTURES)
def test_distances_are_those_of_faiss(kernels, text):
    layout = CodeLayout.parse(text)
    code, queries = random_codes(layout, 5000, 1), random_codes(layout, 3, 2)
    base, flat = Scan(layout), faiss.IndexBinaryFlat(8 * layout.code_size)
    base.add(code)
    flat.add(code)
    np.testing.assert_array_equal(base.search(queries, 100, None, {})[0], flat.search(queries, 100)[0])


def test_equal_codes_are_found_in_order(kernels, threads):
    layout = CodeLayout.parse("2x9")
    base = Scan(layout)
    base.add(np.zeros((5000, layout.code_size), np.uint8))
    D, I = base.search(np.zeros((2, layout.code_size), np.uint8), 600, None, {})
    np.testing.assert_array_equal(I, np.tile(np.arange(600), (2, 1)))
    assert not D.any()


@settings(deadline=None)  # the first call compiles
@given(
    sizes=st.lists(st.integers(0, 150), min_size=1, max_size=6),
    seed=st.integers(0, 99),
    share=st.floats(0, 1),
)
def test_codes_come_and_go(sizes, seed, share):
    layout = CodeLayout.parse("2x5,1x3")
    base, rng = Scan(layout), np.random.default_rng(seed)
    code = np.empty((0, layout.code_size), np.uint8)
    for i, size in enumerate(sizes):
        more = random_codes(layout, size, seed + i)
        base.add(more)
        code = np.concatenate([code, more])
        kept = rng.random(len(code)) < share
        base.keep(kept)
        code = code[kept]
        np.testing.assert_array_equal(base.codes, code)
    if len(code):
        query = random_codes(layout, 1, 7)
        D, I = base.search(query, 5, None, {})
        want = by_numpy(code, query, 5, np.arange(len(code)))
        np.testing.assert_array_equal(I[:, : want[1].shape[1]], want[1])


def test_an_index_holds_two_bits_a_component_and_finds_what_the_flat_one_does(tmp_path):
    x, xq = make_vectors(3000), make_vectors(20, seed=1)
    quantizer = fit_quietly(x, layout="2x32")
    ours, flat = (QamaIndex(quantizer, "codes", base=base) for base in ("Scan", "BFlat"))
    for index in (ours, flat):
        index.add(x)
    assert ours.bytes_per_vector == (8, 0)
    assert flat.bytes_per_vector == (12, 0)
    ours.save(tmp_path / "i.qama")
    assert sum(f.stat().st_size for f in (tmp_path / "i.qama").glob("codes-*")) < 8 * 3064 + 200
    for index in (ours, QamaIndex.load(tmp_path / "i.qama"), QamaIndex.load(tmp_path / "i.qama", mmap=True)):
        np.testing.assert_array_equal(index.search(xq, 5, oversample=600)[1], flat.search(xq, 5, oversample=600)[1])
    with pytest.raises(ValueError, match=r"base Scan is no faiss.IndexBinary; to_faiss\('binary'\) makes one"):
        _ = ours.binary


def test_a_child_process_scans_too():
    program = (
        "import os, faiss, numpy as np\nfrom faiss_qama import scan\nfrom faiss_qama.layout import CodeLayout\n"
        "scan.WORK = 10; faiss.omp_set_num_threads(2)\nlayout = CodeLayout.parse('1x64'); base = scan.Scan(layout)\n"
        "base.add(np.arange(8000, dtype=np.uint8).reshape(-1, 8)); q = base.take(np.array([5]))\n"
        "assert base.search(q, 1, None, {})[0][0, 0] == 0\npid = os.fork()\n"
        "if pid == 0:\n    os._exit(int(base.search(q, 1, None, {})[0][0, 0]))\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
    )
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=60)
