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

import faiss_qama
from faiss_qama import QamaIndex, topk
from faiss_qama.arrays import WORST
from faiss_qama.hamming import bit_planes, flat
from faiss_qama.hamming.flat import FlatCodeIndex
from faiss_qama.quantizer import bit_packing
from faiss_qama.quantizer.layout import CodeLayout

MIXTURES = ("2x192", "2x7", "1.5x5", "1x9", "0.5x6", "0.5orx4", "2x33,1.5x7,1x3,0.5x4", "2x3,1x3,2x40")


def random_codes(layout: CodeLayout, n: int, seed: int) -> np.ndarray:
    """Codes of columns that lie around a few centres, so that distances differ and some are equal."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).standard_normal((5, layout.columns))
    z = centres[rng.integers(0, 5, n)] + 0.5 * rng.standard_normal((n, layout.columns))
    thresholds = np.full((layout.columns, layout.max_levels - 1), np.inf, np.float32)
    for segment, columns, _ in layout.slices():
        thresholds[columns, : segment.levels - 1] = np.linspace(-0.7, 0.7, segment.levels - 1)
    return bit_packing.encode(z.astype(np.float32), thresholds, layout)


def by_numpy(code, queries, k, rows):
    """The k nearest of ``rows``, of equal distances the first."""
    distances = bit_packing.hamming(queries[:, None], code[None])[:, rows]
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(distances, order, axis=1), rows[order]


@pytest.fixture(params=["numba", "faiss"])
def kernels(request, monkeypatch):
    """Both ways to scan."""
    assert flat.kernel("scanning") is not None
    if request.param == "faiss":
        for module in (flat, topk):
            monkeypatch.setattr(module, "kernel", lambda name: None)
        monkeypatch.setattr(flat, "CHUNK", 300)
    return request.param


@pytest.fixture(params=[1, 2])
def threads(request, monkeypatch):
    """One thread, or two and work for both."""
    monkeypatch.setattr(flat, "WORK", 1000)
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(request.param)
    yield request.param
    faiss.omp_set_num_threads(before)


@pytest.mark.parametrize("text", [*MIXTURES, "2x30,1x3,2x5,1.5x31,1x7,2x64"])
@pytest.mark.parametrize("n", [1, 7, 255, 1025])
def test_words_hold_what_codes_do(text, n):
    layout = CodeLayout.parse(text)
    code = random_codes(layout, n, 1)
    words = bit_planes.pack(code, layout)
    np.testing.assert_array_equal(bit_planes.packed(code, layout), words)
    assert words.dtype == np.uint32
    np.testing.assert_array_equal(bit_planes.unpack(words, layout), code)


@pytest.mark.parametrize("text", MIXTURES)
@pytest.mark.parametrize("n", [1, 7, 255, 1025])
@pytest.mark.parametrize("nq", [1, 3, 35, 70])
def test_scan_is_numpys(kernels, threads, text, n, nq):
    layout = CodeLayout.parse(text)
    code, queries = random_codes(layout, n, 1), random_codes(layout, nq, 2)
    base = FlatCodeIndex(layout)
    for part in np.array_split(code, 3):
        base.append(part)
    assert len(base) == n
    np.testing.assert_array_equal(base.codes, code)
    some = np.random.default_rng(3).random(n) < 0.3
    for k in (1, 10, n, n + 3):
        for rows in (None, some, np.zeros(n, bool)):
            D, I = base.search(queries, k, rows, {})
            allowed = np.arange(n) if rows is None else np.flatnonzero(rows)
            want_d, want_i = by_numpy(code, queries, k, allowed)
            found = want_i.shape[1]
            assert D.shape == I.shape == (nq, k)
            np.testing.assert_array_equal(D[:, :found], want_d)
            np.testing.assert_array_equal(I[:, :found], want_i)
            assert (D[:, found:] == WORST).all()
            assert (I[:, found:] == -1).all()


@pytest.mark.parametrize("text", MIXTURES)
@pytest.mark.parametrize("nq", [1, 5])
def test_sums_are_those_of_the_bits(kernels, threads, text, nq):
    layout, rng = CodeLayout.parse(text), np.random.default_rng(4)
    base = FlatCodeIndex(layout)
    base.append(random_codes(layout, 1025, 1))
    rows = rng.integers(0, 1025, (nq, 77))
    weights = rng.standard_normal((nq, layout.n_bits)).astype(np.float32)
    bits = bit_packing.unpack(base.codes, layout).astype(np.float64)[rows]
    for shared in [*rng.standard_normal((2, layout.n_bits)).astype(np.float32), None]:
        own, common = base.weighted_sums(rows, weights, shared)
        np.testing.assert_allclose(own, np.einsum("qkb,qb->qk", bits, weights), atol=1e-4)
        np.testing.assert_allclose(common, 0 if shared is None else bits @ shared, atol=1e-4)
    if kernels == "numba":
        for row in (-1, 1025):
            with pytest.raises(IndexError, match=f"rows must be from 0 to 1024; got .*{row}"):
                base.weighted_sums(np.array([[3, row]]), weights[:1], None)


@pytest.mark.parametrize("text", MIXTURES)
def test_distances_are_those_of_faiss(kernels, text):
    layout = CodeLayout.parse(text)
    code, queries = random_codes(layout, 5000, 1), random_codes(layout, 3, 2)
    base, flat = FlatCodeIndex(layout), faiss.IndexBinaryFlat(8 * layout.code_size)
    base.append(code)
    flat.add(code)
    np.testing.assert_array_equal(base.search(queries, 100, None, {})[0], flat.search(queries, 100)[0])


def test_equal_codes_are_found_in_order(kernels, threads):
    layout = CodeLayout.parse("2x9")
    base = FlatCodeIndex(layout)
    base.append(np.zeros((5000, layout.code_size), np.uint8))
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
    base, rng = FlatCodeIndex(layout), np.random.default_rng(seed)
    code = np.empty((0, layout.code_size), np.uint8)
    for i, size in enumerate(sizes):
        more = random_codes(layout, size, seed + i)
        base.append(more)
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
    ours, flat = (QamaIndex(quantizer, "codes", base=base) for base in ("Flat", "BFlat"))
    for index in (ours, flat):
        index.add(x)
    assert ours.bytes_per_vector == (8, 0)
    assert flat.bytes_per_vector == (12, 0)
    ours.save(tmp_path / "i.qama")
    assert sum(f.stat().st_size for f in (tmp_path / "i.qama").glob("codes-*")) < 8 * 3064 + 200
    for index in (ours, QamaIndex.load(tmp_path / "i.qama"), QamaIndex.load(tmp_path / "i.qama", mmap=True)):
        for oversample in (4, 600):
            np.testing.assert_allclose(
                index.search(xq, 5, oversample=oversample)[0], flat.search(xq, 5, oversample=oversample)[0], rtol=1e-5
            )
        hamming = (i.with_rescore("none").search(xq, 50)[0] for i in (index, flat))
        np.testing.assert_array_equal(*hamming)
    with pytest.raises(ValueError, match=r"base Flat is no faiss.IndexBinary; to_faiss\('binary'\) makes one"):
        _ = ours.base_index


@pytest.mark.parametrize("text", MIXTURES)
def test_prefixes_are_cut_from_the_words(text):
    layout = CodeLayout.parse(text)
    base = FlatCodeIndex(layout)
    base.append(random_codes(layout, 77, 1))
    for components in range(1, layout.components + 1):
        try:
            prefix = layout.truncate(components)
        except ValueError:  # half a pair
            continue
        np.testing.assert_array_equal(base.truncate(prefix).codes, bit_packing.truncate(base.codes, prefix))


def test_without_numba_the_remedy_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "faiss_qama.kernels.scanning", raising=False)
    monkeypatch.delattr(faiss_qama.kernels, "scanning", raising=False)
    flat.kernel.cache_clear()
    with pytest.warns(UserWarning, match=r"pip install numba"):
        assert flat.kernel("scanning") is None
    flat.kernel.cache_clear()


@pytest.mark.slow
def test_what_is_compiled_needs_no_folder_for_its_cache(tmp_path):
    """As in a container whose file system cannot be written."""
    program = (
        "import numba.core.caching as caching\n"
        "caching.CacheImpl._locator_classes = []\n"
        "import numpy as np\nfrom faiss_qama.quantizer.layout import CodeLayout\n"
        "from faiss_qama.hamming.flat import FlatCodeIndex\n"
        "base = FlatCodeIndex(CodeLayout.parse('1x64'))\nbase.append(np.arange(80, dtype=np.uint8).reshape(-1, 8))\n"
        "print(base.search(base.codes[3:4], 1, None, {})[1])\n"
    )
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=100)
    assert done.stdout == "[[3]]\n", done.stderr


def in_a_child(program: str) -> None:
    """Run a program that forks."""
    if not hasattr(os, "fork"):
        pytest.skip("no fork here")
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], check=True, timeout=60)


@pytest.mark.slow
def test_a_child_process_can_change_what_its_parent_searches():
    program = (
        "import os, threading, numpy as np\nfrom faiss_qama import QamaIndex\nfrom faiss_qama.training import fit\n"
        "x = np.random.default_rng(0).standard_normal((500, 16)).astype('f4')\n"
        "index = QamaIndex(fit(x), 'none', base='Flat'); index.add(x)\n"
        "with index._lock.read():\n    pid = os.fork()\n    if pid == 0:\n"
        "        index.add(x[:1])\n        os._exit(index.ntotal - 501)\n"
        "    assert os.waitpid(pid, 0)[1] == 0\n"
    )
    in_a_child(program)


@pytest.mark.slow
def test_a_child_process_scans_too():
    program = (
        "import os, faiss, numpy as np\nfrom faiss_qama.hamming import flat\n"
        "from faiss_qama.quantizer.layout import CodeLayout\n"
        "assert flat.kernel('scanning') is not None\nflat.WORK = 10\n"
        "faiss.omp_set_num_threads(2)\nlayout = CodeLayout.parse('1x64'); base = flat.FlatCodeIndex(layout)\n"
        "base.append(np.arange(8000, dtype=np.uint8).reshape(-1, 8)); q = base.take(np.array([5]))\n"
        "assert base.search(q, 1, None, {})[0][0, 0] == 0\npid = os.fork()\n"
        "if pid == 0:\n    os._exit(int(base.search(q, 1, None, {})[0][0, 0]))\n"
        "assert os.waitpid(pid, 0)[1] == 0\n"
    )
    in_a_child(program)
