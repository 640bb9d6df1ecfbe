from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import faiss
import filelock
import numpy as np
import pytest
from conftest import D, fit_quietly

from faiss_qama import QamaIndex
from faiss_qama.corpus import Corpus
from faiss_qama.index import with_documents
from faiss_qama.index.build import build_index
from faiss_qama.index_spec import IndexSpec
from faiss_qama.storage import bundle
from faiss_qama.training import FitConfig, fit

RESCORE_KINDS = ("none", "codes", "fp16", "fp32")


@pytest.fixture(scope="module")
def small(corpus):
    return fit(corpus, config=FitConfig(layout="2x18"))


def make(quantizer, store, x, base="Flat"):
    index = QamaIndex(quantizer, store, base=base)
    index.add(x)
    return index


def files(path):
    return {entry.name for entry in path.iterdir()} - {".lock"}


@pytest.mark.parametrize("store", RESCORE_KINDS)
@pytest.mark.parametrize("mmap", [False, True])
def test_loaded_index_answers_bit_for_bit(quantizer, corpus, queries, tmp_path, store, mmap):
    index = make(quantizer, store, corpus)
    index.save(tmp_path / "i.qama")
    loaded = QamaIndex.load(tmp_path / "i.qama", mmap=mmap)
    for k in (1, 10, 2000):
        for a, b in zip(index.search(queries, k), loaded.search(queries, k), strict=True):
            np.testing.assert_array_equal(a, b)
    assert (loaded.rescore, loaded.ntotal, loaded.metric_type) == (store, len(corpus), index.metric_type)
    assert loaded.quantizer.fit_record == index.quantizer.fit_record
    code = quantizer.encode(corpus)
    np.testing.assert_array_equal(loaded.quantizer.decode(code), quantizer.decode(code))


@pytest.mark.parametrize("mmap", [False, True])
def test_an_index_and_its_documents_are_of_one_save(small, corpus, queries, tmp_path, mmap):
    index, path = make(small, "fp16", corpus), tmp_path / "i.qama"
    for text in ("[]", '{"päper": 1}'):
        with_documents.save(path, index, text)
        loaded, documents = with_documents.load(path, mmap=mmap)
        assert documents == text
        assert loaded.read_only == mmap
        for a, b, c in zip(*(i.search(queries, 5) for i in (index, loaded, QamaIndex.load(path))), strict=True):
            np.testing.assert_array_equal(a, b)
            np.testing.assert_array_equal(a, c)
    index.save(path)
    assert with_documents.load(path, mmap=mmap)[1] is None


@pytest.mark.parametrize("store", RESCORE_KINDS)
def test_built_straight_to_disk_is_the_same_bundle(small, corpus, tmp_path, store):
    make(small, store, corpus).save(tmp_path / "a.qama")
    index = build_index(tmp_path / "b.qama", small, Corpus(corpus), IndexSpec(rescore=store))
    assert index.ntotal == len(corpus)
    for name in files(tmp_path / "a.qama"):
        assert (tmp_path / "a.qama" / name).read_bytes() == (tmp_path / "b.qama" / name).read_bytes()


def test_an_index_loaded_whole_can_grow_and_a_mapped_one_says_why_not(small, corpus, tmp_path):
    make(small, "fp16", corpus[:500]).save(tmp_path / "i.qama")
    index = QamaIndex.load(tmp_path / "i.qama")
    index.add(corpus[500:])
    whole = make(small, "fp16", corpus)
    for a, b in zip(index.search(corpus[:20], 5), whole.search(corpus[:20], 5), strict=True):
        np.testing.assert_array_equal(a, b)
    mapped = QamaIndex.load(tmp_path / "i.qama", mmap=True)
    with pytest.raises(ValueError, match="mmap=False"):
        mapped.add(corpus[:1])
    assert mapped.ntotal == 500


def test_saving_again_replaces_and_leaves_nothing_behind(small, corpus, tmp_path):
    path = tmp_path / "i.qama"
    make(small, "fp32", corpus[:300]).save(path)
    reader = QamaIndex.load(path, mmap=True)
    before = reader.search(corpus[:5], 3)
    (path / "vectors-2.npy").write_bytes(b"left by a save that was killed")
    make(small, "none", corpus[:200]).save(path)
    if os.name != "nt":  # Windows keeps what the reader has mapped
        assert files(path) == {"manifest.json", "quantizer-2.safetensors", "codes-2.npy"}
    assert QamaIndex.load(path).ntotal == 200
    for a, b in zip(before, reader.search(corpus[:5], 3), strict=True):  # still on the generation that it mapped
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("role", ["codes", "vectors"])
def test_a_damaged_header_of_a_mapped_file_is_noticed(corpus, tmp_path, role):
    """Mapped, it has no checksum to fail."""
    index = QamaIndex(fit_quietly(corpus, layout="2x18"), "fp16", base="Flat")
    index.add(corpus)
    index.save(tmp_path / "i.qama")
    path = tmp_path / "i.qama" / f"{role}-1.npy"
    whole = path.read_bytes()
    for old, new in ((b"descr", b"drcse"), (b"{'", b"(("), (b": False", b": True ")):
        path.write_bytes(whole.replace(old, new, 1))
        with pytest.raises(ValueError, match=f"{role}-1.npy"):
            QamaIndex.load(tmp_path / "i.qama", mmap=True)


def test_a_damaged_byte_anywhere_is_noticed(small, corpus, tmp_path):
    make(small, "fp16", corpus[:32]).save(tmp_path / "i.qama")  # whole groups: nothing reads free lanes
    rng = np.random.default_rng(0)
    for name in sorted(files(tmp_path / "i.qama")):
        data = (tmp_path / "i.qama" / name).read_bytes()
        places = range(len(data)) if name == "manifest.json" else [0, len(data) - 1, *rng.integers(0, len(data), 40)]
        for place in places:
            damaged = bytearray(data)
            damaged[place] ^= 1 << int(rng.integers(8))
            (tmp_path / "i.qama" / name).write_bytes(damaged)
            with pytest.raises((ValueError, FileNotFoundError), match=name):
                QamaIndex.load(tmp_path / "i.qama")
        (tmp_path / "i.qama" / name).write_bytes(data)
    assert QamaIndex.load(tmp_path / "i.qama").ntotal == 32


@pytest.mark.parametrize("mmap", [False, True])
def test_missing_shortened_and_foreign_files_are_named(small, corpus, tmp_path, mmap):
    path = tmp_path / "i.qama"
    make(small, "fp16", corpus[:20]).save(path)
    for name in sorted(files(path)):
        data = (path / name).read_bytes()
        longer = [] if name.endswith(".npy") else [data + b"x"]  # more rows may be on their way into these
        for content in (None, b"", data[:-1], *longer, b"something else"):
            (path / name).unlink()
            if content is not None:
                (path / name).write_bytes(content)
            with pytest.raises((ValueError, FileNotFoundError), match=name):
                QamaIndex.load(path, mmap=mmap)
            (path / name).write_bytes(data)
    with pytest.raises(FileNotFoundError, match="no index here"):
        QamaIndex.load(tmp_path / "none.qama", mmap=mmap)


def test_another_version_is_refused_with_both_numbers(small, corpus, tmp_path):
    make(small, "none", corpus[:20]).save(tmp_path / "i.qama")
    manifest = tmp_path / "i.qama" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 1', '"version": 2'))
    with pytest.raises(ValueError, match="version 2; this release reads faiss-qama bundle version 1"):
        QamaIndex.load(tmp_path / "i.qama")


def test_what_is_no_bundle_is_never_touched(small, corpus, tmp_path):
    index = make(small, "none", corpus[:20])
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("mine")
    with pytest.raises(FileExistsError, match="a file is in the way"):
        index.save(tmp_path / "file")
    with pytest.raises(FileExistsError, match="holds no manifest.json; nothing was written"):
        index.save(tmp_path / "folder")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        index.save(tmp_path / "none" / "i.qama")
    assert files(tmp_path / "folder") == {"thesis.tex"}
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "step", ["atomic_files.write_stream", "safetensors.numpy.save", "file_entry", "atomic_files.sync"]
)
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_save_leaves_the_old_index_and_no_litter(small, corpus, tmp_path, monkeypatch, step, error):
    path = tmp_path / "i.qama"
    make(small, "fp16", corpus[:300]).save(path)
    before = {name: (path / name).read_bytes() for name in files(path)}

    def fail(*_):
        raise error

    monkeypatch.setattr(f"faiss_qama.storage.bundle.{step}", fail)
    for target in (path, tmp_path / "new.qama"):
        with pytest.raises(type(error)):
            make(small, "fp16", corpus).save(target)
    assert {name: (path / name).read_bytes() for name in files(path)} == before
    assert not (tmp_path / "new.qama").exists()


@pytest.mark.filterwarnings("ignore:vectors of norm")
def test_a_streamed_build_names_the_row_of_the_corpus_that_float16_cannot_hold(small, corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("faiss_qama.corpus.CHUNK_BYTES", 4 * corpus.shape[1] * 100)
    x = corpus.copy()
    x[731, 3] = 1e9
    with pytest.raises(ValueError, match="row 731 holds 1e\\+09"):
        build_index(tmp_path / "i.qama", small, Corpus(x))
    assert not (tmp_path / "i.qama").exists()


@pytest.mark.slow
def test_a_killed_save_leaves_the_old_index(corpus, tmp_path):
    """SIGKILL at many moments: what can be loaded afterwards is one index or the other, never a mixture."""
    path = tmp_path / "i.qama"
    program = (
        "import sys, numpy as np\n"
        "from conftest import make_vectors, fit_quietly\n"
        "from faiss_qama import QamaIndex\n"
        "q = fit_quietly(make_vectors(300), layout='2x18')\n"
        "print('ready', flush=True)\n"
        "n = 0\n"
        "while True:\n"
        "    n = n % 5 + 1\n"
        "    index = QamaIndex(q, 'fp32'); index.add(make_vectors(100 * n)); index.save(sys.argv[1])\n"
    )
    make(fit_quietly(corpus, layout="2x18"), "fp32", corpus[:100]).save(path)
    for delay in (0.0, 0.003, 0.01, 0.02, 0.04):
        process = subprocess.Popen(
            [sys.executable, "-c", program, str(path)],
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.path.dirname(__file__)},
        )
        assert process.stdout.readline() == b"ready\n"
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert QamaIndex.load(path).ntotal in range(100, 501, 100)
    make(fit_quietly(corpus, layout="2x18"), "fp32", corpus[:7]).save(path)
    assert len(files(path)) == 4


def test_two_writers_do_not_mix(small, corpus, tmp_path):
    path = tmp_path / "i.qama"
    make(small, "none", corpus[:10]).save(path)
    with filelock.FileLock(path / ".lock"), pytest.raises(OSError, match="in this or another process"):
        make(small, "none", corpus[:20]).save(path)
    assert QamaIndex.load(path).ntotal == 10


def test_a_writer_that_loses_leaves_the_winner_alone(small, corpus, tmp_path):
    path = tmp_path / "new.qama"
    path.mkdir()
    with filelock.FileLock(path / ".lock"):
        with pytest.raises(OSError, match="in this or another process"):
            make(small, "none", corpus[:20]).save(path)
        assert (path / ".lock").exists()
    make(small, "none", corpus[:20]).save(path)
    assert QamaIndex.load(path).ntotal == 20


def test_a_reader_overtaken_by_a_save_reads_the_new_generation(small, corpus, tmp_path, monkeypatch):
    path = tmp_path / "i.qama"
    make(small, "fp16", corpus[:10]).save(path)
    read_quantizer = bundle._read_quantizer
    newer = [make(small, "fp16", corpus[:20])]

    def overtaken(*arguments):
        if newer:
            newer.pop().save(path)
        return read_quantizer(*arguments) if (path / "quantizer-2.safetensors") == arguments[0] else small

    monkeypatch.setattr(bundle, "_read_quantizer", overtaken)
    assert QamaIndex.load(path).ntotal == 20


def test_a_mapped_reader_overtaken_before_faiss_opens_the_codes_reads_the_new_generation(
    small, corpus, tmp_path, monkeypatch
):
    path = tmp_path / "i.qama"
    make(small, "fp16", corpus[:10], "BHNSW4").save(path)
    read, newer = faiss.read_index_binary, [make(small, "fp16", corpus[:20], "BHNSW4")]

    def overtaken(*arguments):
        if newer:
            newer.pop().save(path)
        return read(*arguments)

    monkeypatch.setattr(faiss, "read_index_binary", overtaken)
    assert QamaIndex.load(path, mmap=True).ntotal == 20


def test_a_foreign_manifest_is_seen_before_anything_is_written(small, corpus, tmp_path):
    path = tmp_path / "site"
    path.mkdir()
    (path / "manifest.json").write_text('{"name": "a web app"}')
    with pytest.raises(ValueError, match="not the manifest of an index"):
        bundle.check_writable(path)
    with pytest.raises(ValueError, match="not the manifest of an index"):
        make(small, "none", corpus[:20]).save(path)
    assert files(path) | {".lock"} == {"manifest.json", ".lock"}
    assert not (path / ".lock").exists()


def test_what_cannot_be_replaced_is_refused_with_the_remedy(small, corpus, tmp_path):
    remedy = "; delete the folder .*i.qama, or name another"
    path = tmp_path / "i.qama" / "manifest.json"
    make(small, "none", corpus[:20]).save(path.parent)
    whole = path.read_text()
    for content, message in (
        (whole + "x", r"damaged, or not the manifest of an index \(Extra data: line \d+"),
        (whole.replace('"ntotal": 20', '"ntotal": 21'), "damaged: its checksum does not match"),
        ('{"name": "a web app"}', "not the manifest of an index; another program wrote it"),
        ("[1]", "not the manifest of an index; another program wrote it"),
        ("[" * 100_000, "damaged, or not the manifest of an index"),
    ):
        path.write_text(content)
        for use in (bundle.check_writable, make(small, "none", corpus[:20]).save):
            with pytest.raises(ValueError, match=f"manifest.json: {message}.*{remedy}"):
                use(path.parent)
        with pytest.raises(ValueError, match=f"manifest.json: {message}"):
            QamaIndex.load(path.parent)
        assert path.read_text() == content


def test_a_save_removes_the_files_of_its_own_generations_alone(small, corpus, tmp_path):
    path = tmp_path / "i.qama"
    make(small, "none", corpus[:20]).save(path)
    np.save(path / "vectors-77.npy", corpus)
    (path / "ids-٢.npy").write_bytes(b"mine")
    before = {name: (path / name).read_bytes() for name in ("vectors-77.npy", "ids-٢.npy")}
    for _ in range(3):
        make(small, "none", corpus[:20]).save(path)
    assert {name: (path / name).read_bytes() for name in before} == before
    assert files(path) - set(before) == {"manifest.json", "quantizer-4.safetensors", "codes-4.npy"}


def test_files_of_later_generations_are_not_left_by_a_first_save(small, corpus, tmp_path):
    path = tmp_path / "i.qama"
    path.mkdir()
    for name in (".lock", "ids-1.npy", "ids-3.npy"):
        (path / name).touch()
    with pytest.raises(FileExistsError, match="holds no manifest.json; nothing was written"):
        make(small, "none", corpus[:20]).save(path)
    assert files(path) == {"ids-1.npy", "ids-3.npy"}
    (path / "ids-3.npy").unlink()
    make(small, "none", corpus[:20]).save(path)
    assert files(path) == {"manifest.json", "quantizer-1.safetensors", "codes-1.npy"}


def test_a_link_to_nowhere_is_in_the_way_before_anything_is_computed(small, corpus, tmp_path):
    (tmp_path / "i.qama").symlink_to(tmp_path / "none")
    with pytest.raises(FileExistsError, match="a file is in the way"):
        bundle.check_writable(tmp_path / "i.qama")


@pytest.mark.parametrize("base", ["Flat", "BFlat", "BIVF4"])
@pytest.mark.parametrize("mmap", [False, True])
def test_a_name_that_is_not_utf8(small, corpus, tmp_path, base, mmap):
    path = tmp_path / os.fsdecode(b"e\xff.qama")
    try:
        path.mkdir()
    except OSError:
        pytest.skip("this file system has no such names")
    index = QamaIndex(small, "none", base=base)
    index.train(corpus)
    index.add(corpus[:50])
    index.save(path)
    np.testing.assert_array_equal(
        QamaIndex.load(path, mmap=mmap).search(corpus[:5], 3)[1], index.search(corpus[:5], 3)[1]
    )


def test_no_pickle_and_a_manifest_that_people_can_read(small, corpus, tmp_path):
    make(small, "fp16", corpus).save(tmp_path / "i.qama")
    manifest = json.loads((tmp_path / "i.qama" / "manifest.json").read_text())
    assert (manifest["format"], manifest["version"], manifest["ntotal"]) == ("faiss-qama bundle", 1, len(corpus))
    assert manifest["quantizer"]["layout"] == "2x18"
    stored = np.load(tmp_path / "i.qama" / manifest["files"]["vectors"]["name"], allow_pickle=False)
    np.testing.assert_array_equal(stored, corpus.astype(np.float16))


@pytest.mark.parametrize("key", ["generation", "ntotal", "rescore", "written_by", "quantizer", "files"])
@pytest.mark.parametrize("value", [None, []])
def test_a_manifest_without_what_is_needed_is_refused(small, corpus, tmp_path, key, value):
    make(small, "fp16", corpus[:20]).save(tmp_path / "i.qama")
    path = tmp_path / "i.qama" / "manifest.json"
    manifest = json.loads(path.read_text()) | {key: value}
    path.write_bytes(bundle.sign(manifest))
    for use in (QamaIndex.load, bundle.verify, bundle.check_writable):
        with pytest.raises(ValueError, match=f"manifest.json: not the manifest of an index .*{key}"):
            use(tmp_path / "i.qama")


WRONG = (None, -1, "x", [], {}, 10**30, 1.5)


def edits(manifest):
    """Yield ``manifest`` with one value of another kind, by the place of the value."""

    def changed(*place, value):
        copy = json.loads(json.dumps(manifest))
        part = copy
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] = value
        return place, value, copy

    places = [(key,) for key in manifest if key not in ("sha256", "written_by")]
    places += [("quantizer", key) for key in ("d", "layout", "metric", "normalized", "rms_norm", "fit_record")]
    places += [("files", name, key) for name in manifest["files"] for key in ("name", "bytes", "sha256")]
    for place in places:
        yield from (changed(*place, value=value) for value in WRONG)
    for path in ("/etc/passwd", "../../etc/passwd", "sub/codes-1.npy", "codes-2.npy", "..", "", "manifest.json"):
        yield changed("files", "codes", "name", value=path)
    for value in (0, -1.0, float("nan"), float("inf")):
        yield changed("quantizer", "rms_norm", value=value)
    for base in (
        "Flat",
        "IVF8",
        "IVF999999999999",
        "BFlat",
        "BIVF8",
        "BHNSW8",
        "BHash8",
        "BHash2x4",
        "BHash999",
        "auto",
    ):
        if not {base, manifest["base"]} <= {"BFlat", "BHash8", "BHash2x4"}:  # one file serves them
            yield changed("base", value=base)
    yield changed("base_settings", "foo", value=3)


@pytest.mark.parametrize(
    ("base", "rescore"), [("Flat", "fp16"), ("IVF4", "sq8"), ("BFlat", "fp32"), ("BIVF4", "none"), ("BHNSW8", "codes")]
)
def test_a_manifest_edited_by_hand_is_refused_by_name(small, corpus, tmp_path, base, rescore):
    """With a checksum that matches."""
    folder, path = tmp_path / "i.qama", tmp_path / "i.qama" / "manifest.json"
    index = QamaIndex(small, rescore, base=base)
    index.train(corpus)
    index.add(corpus[:300])
    index.save(folder)
    manifest = json.loads(path.read_text())
    for place, value, edited in edits(manifest):
        if edited == manifest or (value in (1.5, 10**30) and "rms_norm" in place) or place == ("base_settings",):
            continue  # another scale is no fault, and settings have defaults
        if place == ("generation",) and value == 10**30:
            continue  # files may be of earlier generations
        path.write_bytes(bundle.sign(edited))
        for mmap in (False, True):
            if not (mmap and place[-1] == "sha256"):  # what is mapped is not read
                with pytest.raises((ValueError, FileNotFoundError), match=str(folder)) as error:
                    pytest.fail(f"{place} {value}: {QamaIndex.load(folder, mmap=mmap)}")
                assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("base", "setting", "least", "most"),
    [
        ("IVF4", "nprobe", 1, 10**30),
        ("BIVF4", "nprobe", 1, 2**31 - 1),
        ("BHNSW8", "efSearch", 1, 2**31 - 1),
        ("BHash6", "nflip", 0, 6),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(small, corpus, tmp_path, base, setting, least, most):
    index = QamaIndex(small, "none", base=base)
    index.train(corpus)
    index.add(corpus[:300])
    index.save(tmp_path / "i.qama")
    path = tmp_path / "i.qama" / "manifest.json"
    manifest = json.loads(path.read_text())
    for value in (least, most):
        path.write_bytes(bundle.sign(manifest | {"base_settings": {setting: value}}))
        assert QamaIndex.load(tmp_path / "i.qama").ntotal == 300
    beyond = [] if base == "IVF4" else [most + 1]  # more lists than there are, are all lists
    for value in (least - 1, *beyond, None, "x", [], {}, 1.5, True):
        path.write_bytes(bundle.sign(manifest | {"base_settings": {setting: value}}))
        with pytest.raises(ValueError, match=f"manifest.json: not the manifest of an index .*{setting}"):
            QamaIndex.load(tmp_path / "i.qama")


def forge(folder, name, place, value):
    """Write ``value`` into a file, and checksums that match."""
    path, manifest = folder / f"{name}-1.npy", json.loads((folder / "manifest.json").read_text())
    array = np.load(path)
    array.flat[place] = value
    np.save(path, array)
    manifest["files"][name] = bundle.file_entry(path)
    (folder / "manifest.json").write_bytes(bundle.sign(manifest))


@pytest.mark.parametrize("value", [-1, np.nan, np.inf])
def test_norms_that_cannot_be_are_refused(corpus, tmp_path, value):
    make(fit_quietly(corpus, layout="2x9+1x9"), "codes", corpus).save(tmp_path / "i.qama")
    forge(tmp_path / "i.qama", "norms", 3, value)
    with pytest.raises(ValueError, match="norms-1.npy: a norm is not finite, or below 0"):
        QamaIndex.load(tmp_path / "i.qama")


@pytest.mark.parametrize(
    ("role", "value"), [("rows", 70), ("rows", -2), ("places", -1), ("places", 10**6), ("sizes", 99)]
)
def test_lists_that_lead_elsewhere_are_refused(small, corpus, tmp_path, role, value):
    """Whoever writes checksums that match could otherwise let the compiled loops read what is not theirs."""
    index = QamaIndex(small, "none", base="IVF4")
    index.train(corpus)
    index.add(corpus[:70])
    index.save(tmp_path / "i.qama")
    forge(tmp_path / "i.qama", role, 0, value)
    with pytest.raises(ValueError, match=f"{role}-1.npy: "):
        QamaIndex.load(tmp_path / "i.qama")


def test_bundles_from_before_the_release_are_refused_with_the_remedy(small, corpus, tmp_path):
    make(small, "none", corpus[:20]).save(tmp_path / "i.qama")
    path = tmp_path / "i.qama" / "manifest.json"
    path.write_bytes(bundle.sign(json.loads(path.read_text()) | {"format": "faiss-qama", "version": 6}))
    for use in (QamaIndex.load, bundle.verify, bundle.check_writable):
        with pytest.raises(ValueError, match="manifest.json: written before the first release.*fit again"):
            use(tmp_path / "i.qama")


@pytest.mark.parametrize("name", ["v1-flat", "v1-ivf", "v1-graph", "v1-cosine"])
def test_a_bundle_of_each_version_loads_for_ever(request, tmp_path, name):
    """Written when the format was new (tests/data/make_v1.py); its answers are stored with it."""
    folder = request.config.rootpath / "tests" / "data"
    shutil.copytree(folder / f"{name}.qama", tmp_path / "i.qama")
    index = QamaIndex.load(tmp_path / "i.qama")
    answers = np.load(folder / f"{name}-answers.npz")
    scores, ids = index.search(answers["queries"], 5, oversample=4)
    np.testing.assert_array_equal(ids, answers["I"])
    np.testing.assert_allclose(scores, answers["D"], rtol=1e-5)
    assert index.d == D
    np.testing.assert_array_equal(index.quantizer.calibration.floats, answers["floats"])
