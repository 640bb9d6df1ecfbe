"""Whatever format vectors have: the same index, the same ids, and one line on what is wrong."""

from __future__ import annotations

import gzip
import pickle
import re
import shutil
import subprocess
import sys
import warnings
import zipfile

import faiss
import numpy as np
import pytest
from click.testing import CliRunner
from conftest import make_vectors

from faiss_qama import QamaIndex
from faiss_qama.cli.app import cli
from faiss_qama.corpus import Corpus, load_vectors
from faiss_qama.formats import faiss_vectors
from faiss_qama.index.build import build_index
from faiss_qama.training import fit
from faiss_qama.training.pairs import read_pairs
from faiss_qama.vectors import as_vectors

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
feather = pytest.importorskip("pyarrow.feather")
h5py = pytest.importorskip("h5py")
safetensors = pytest.importorskip("safetensors.numpy")

X = make_vectors(700)
N, D = X.shape
BITS = X.view(np.uint32)
BFLOAT16 = (BITS >> 16).astype(np.uint16)  # cut, not rounded: a bfloat16 is the upper half of a float32
# The numbers that each stored type holds, as float32.
VALUES = {
    "float32": X,
    "float16": X.astype(np.float16).astype(np.float32),
    "float64": X,
    "bfloat16": (BITS >> 16 << 16).view(np.float32),
    "int8": np.clip(np.rint(X * 400), -128, 127) + np.float32(0),  # no -0, which int8 lacks
    "uint8": np.clip(np.rint(X * 400) + 128, 0, 255),
}


def stored(kind):
    """The array of a type, as its users hold it."""
    return BFLOAT16.view("V2") if kind == "bfloat16" else VALUES[kind].astype(kind)


def lists(x, nulls=()):
    """A column of lists, null in some rows."""
    offsets = np.arange(0, x.size + 1, x.shape[1])
    mask = np.isin(np.arange(len(x)), nulls)
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(x.ravel()), mask=pa.array(mask))


def fixed(x, nulls=()):
    mask = np.isin(np.arange(len(x)), nulls)
    return pa.FixedSizeListArray.from_arrays(pa.array(x.ravel()), x.shape[1], mask=pa.array(mask))


def table(column, **more):
    return pa.table({"title": [f"text {i}" for i in range(len(column))], "embedding": column, **more})


def save_stream(path, data, **options):
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_stream(file, data.schema, **options) as out:
        out.write_table(data, max_chunksize=150)


def save_hdf5(path, **sets):
    with h5py.File(path, "w") as file:
        for name, x in sets.items():
            file.create_dataset(name, data=x, compression="gzip" if name == "train" else None)
        file.attrs["distance"] = "dot"


def save_vecs(path, x, dtype):
    rows = np.empty(len(x), [("d", "<i4"), ("x", dtype, (x.shape[1],))])
    rows["d"], rows["x"] = x.shape[1], x
    rows.tofile(path)


def save_bin(path, x):
    path.write_bytes(np.array(x.shape, "<u4").tobytes() + x.tobytes())


def save_index(path, x, factory, metric=faiss.METRIC_INNER_PRODUCT, ids=None):
    index = faiss.index_factory(x.shape[1], factory, metric)
    index.train(x)
    index.add(x) if ids is None else index.add_with_ids(x, ids)
    faiss.write_index(index, str(path))


def save_torch(path, x):
    torch = pytest.importorskip("torch")
    save_file = pytest.importorskip("safetensors.torch").save_file
    save_file({"x": torch.tensor(x).bfloat16(), "weights": torch.zeros(3)}, path)


# Name of the file, type of its values, and what writes it.
FORMATS = {
    **{f"npy {kind}": ("x.npy", kind, lambda path, x: np.save(path, x)) for kind in VALUES},
    "npy fortran": ("x.npy", "float32", lambda path, x: np.save(path, np.asfortranarray(x))),
    "npy big-endian": ("x.npy", "float32", lambda path, x: np.save(path, x.astype(">f4"))),
    "npz": ("x.npz", "float32", lambda path, x: np.savez(path, x=x)),
    "npz compressed": ("x.npz", "float16", lambda path, x: np.savez_compressed(path, x=x, ids=np.arange(N))),
    "npz by name": ("x.npz:x", "int8", lambda path, x: np.savez(path, x=x, other=x[:3])),
    "npz fortran": ("x.npz", "float32", lambda path, x: np.savez(path, np.asfortranarray(x))),
    "safetensors": ("x.safetensors", "float32", lambda path, x: safetensors.save_file({"x": x}, path)),
    "safetensors by name": (
        "x.safetensors:b",
        "float16",
        lambda path, x: safetensors.save_file({"a": x[:3], "b": x}, path),
    ),
    "safetensors bfloat16": ("x.safetensors", "bfloat16", lambda path, x: save_torch(path, VALUES["bfloat16"])),
    "parquet": ("x.parquet", "float32", lambda path, x: pq.write_table(table(lists(x)), path, row_group_size=150)),
    "parquet float16": ("x.parquet", "float16", lambda path, x: pq.write_table(table(lists(x)), path)),
    "parquet float64": ("x.parquet", "float64", lambda path, x: pq.write_table(pa.table({"e": X.tolist()}), path)),
    "parquet int8": ("x.pq", "int8", lambda path, x: pq.write_table(table(fixed(x)), path)),
    "parquet uint8": ("x.parquet", "uint8", lambda path, x: pq.write_table(table(lists(x)), path)),
    "parquet by name": (
        "x.parquet:embedding",
        "float32",
        lambda path, x: pq.write_table(table(fixed(x), tokens=lists(x[:, :2])), path, compression="zstd"),
    ),
    "feather": ("x.feather", "float32", lambda path, x: feather.write_feather(table(fixed(x)), path, chunksize=150)),
    "feather large": (
        "x.feather",
        "float32",
        lambda path, x: feather.write_feather(table(lists(x).cast(pa.large_list(pa.float32()))), path),
    ),
    "feather plain": (
        "x.feather",
        "float16",
        lambda path, x: feather.write_feather(table(lists(x)), path, "uncompressed"),
    ),
    "arrow stream": ("x.arrow", "float32", lambda path, x: save_stream(path, table(lists(x)))),
    "arrow tensors": (
        "x.arrow",
        "float32",
        lambda path, x: save_stream(path, table(pa.FixedShapeTensorArray.from_numpy_ndarray(x))),
    ),
    "hdf5": ("x.hdf5", "float32", lambda path, x: save_hdf5(path, train=x, test=x[:9], distances=x[:9, :5])),
    "hdf5 by name": ("x.h5:group/x", "float16", lambda path, x: save_hdf5(path, **{"group/x": x, "y": x[:2]})),
    "fvecs": ("x.fvecs", "float32", lambda path, x: save_vecs(path, x, "<f4")),
    "bvecs": ("x.bvecs", "uint8", lambda path, x: save_vecs(path, x, np.uint8)),
    "ivecs": ("x.ivecs", "int8", lambda path, x: save_vecs(path, x, "<i4")),
    "fbin": ("x.fbin", "float32", save_bin),
    "u8bin": ("x.u8bin", "uint8", save_bin),
    "i8bin": ("x.i8bin", "int8", save_bin),
    "raw": ("x.f32", "float32", lambda path, x: x.tofile(path)),
    "faiss": ("x.faiss", "float32", lambda path, x: save_index(path, x, "Flat")),
    "faiss HNSW": ("x.index", "float32", lambda path, x: save_index(path, x, "HNSW8")),
    "faiss IVF": ("x.faiss", "float32", lambda path, x: save_index(path, x, "IVF4,Flat")),
}


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(
        "faiss_qama.corpus.CHUNK_BYTES", 4 * D * 110
    )  # several chunks, which do not end where batches do


def indexed(source, folder, **options):
    """The bytes of every file of an index of ``source``."""
    corpus = Corpus(source, D, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        build_index(folder, fit(corpus), corpus)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def from_npy(tmp_path_factory):
    """What indexes hold that are made of .npy files, by the type of the values."""
    made = {}

    def of(kind):
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            np.save(folder / "x.npy", VALUES[kind])
            made[kind] = indexed(folder / "x.npy", folder / "index")
        return made[kind]

    return of


@pytest.mark.parametrize("name", FORMATS)
def test_an_index_of_each_format_is_that_of_the_npy(name, tmp_path, from_npy):
    file, kind, save = FORMATS[name]
    save(tmp_path / file.partition(":")[0], stored(kind))
    source = f"{tmp_path}/{file}"
    assert indexed(source, tmp_path / "index") == from_npy(kind)
    corpus = Corpus(source, D)
    assert corpus.dtype == {"ivecs": "float32", "npy big-endian": ">f4"}.get(name, kind)
    assert len(list(corpus.chunks())) == corpus.n_chunks == 7
    rows = np.random.default_rng(0).integers(0, N, 60)
    np.testing.assert_array_equal(corpus.take(rows), VALUES[kind][rows])
    np.testing.assert_array_equal(load_vectors(f"{source}:test" if name == "hdf5" else source, D)[:9], VALUES[kind][:9])


def test_bfloat16_arrays_are_vectors():
    np.testing.assert_array_equal(as_vectors(stored("bfloat16")), VALUES["bfloat16"])
    ml_dtypes = pytest.importorskip("ml_dtypes")
    np.testing.assert_array_equal(as_vectors(VALUES["bfloat16"].astype(ml_dtypes.bfloat16)), VALUES["bfloat16"])


@pytest.mark.parametrize("source", ["shards", "shards/*.{}", "shards/", "list"])
@pytest.mark.parametrize("suffix", ["npy", "parquet", "fvecs"])
def test_shards_are_read_in_the_order_of_their_numbers(tmp_path, from_npy, source, suffix):
    """Twelve shards, one of them without rows, are one corpus, down to the bytes of its index."""
    (tmp_path / "shards").mkdir()
    save = {
        "npy": np.save,
        "parquet": lambda path, x: pq.write_table(pa.table({"e": x.tolist()}), path),
        "fvecs": lambda path, x: save_vecs(path, x, "<f4"),
    }[suffix]
    paths = [tmp_path / "shards" / f"part-{i}.{suffix}" for i in range(13)]
    for i, path in enumerate(paths):
        save(path, X[max(0, 60 * (i - 1)) : 60 * i] if i < 12 else X[660:])
    (tmp_path / "shards" / "_SUCCESS").write_bytes(b"")
    given = paths if source == "list" else f"{tmp_path}/{source.format(suffix)}"
    assert indexed(given, tmp_path / "index") == from_npy("float32")
    assert Corpus(given).paths == paths


def test_folders_of_something_else_are_refused(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    with pytest.raises(FileNotFoundError, match="no file of vectors in this folder"):
        Corpus(folder)
    with pytest.raises(FileNotFoundError, match=r"\*.npy: no file matches"):
        Corpus(folder / "*.npy")
    np.save(folder / "corpus.npy", X)
    np.save(folder / "queries.npy", X[:9])
    with pytest.raises(ValueError, match="corpus.npy and queries.npy are not shards of one corpus; name files"):
        Corpus(folder)
    index = QamaIndex(fit(X))
    index.add(X)
    index.save(tmp_path / "index.qama")
    with pytest.raises(ValueError, match=r"index.qama: this is an index; name a file"):
        Corpus(tmp_path / "index.qama")
    np.save(tmp_path / "empty.npy", X[:0])
    with pytest.raises(ValueError, match=r"empty.npy: no vectors, shape \(0, 36\)"):
        Corpus([tmp_path / "empty.npy"])


def run(*arguments, check=0):
    done = CliRunner().invoke(cli, [str(a) for a in arguments])
    if check:
        assert done.exception is not None
        return str(done.exception)
    if done.exception is not None:
        raise done.exception
    return done.output


BAD = [5, 17, 90]
GOOD = np.delete(np.arange(N), BAD)


def bad_column(how, type_=None):
    """A column whose BAD rows are no vectors: null, empty, or with a null inside."""
    bad = {"null": lambda row: None, "empty": lambda row: [], "a null inside": lambda row: [None, *row[1:]]}[how]
    rows = [bad(row) if i in BAD else row for i, row in enumerate(X.tolist())]
    return pa.array(rows, type_ or pa.list_(pa.float32()))


IDS = np.arange(N) * 3
HOLED = X.copy()
HOLED[BAD, 3] = np.nan
BAD_FILES = {
    **{
        f"{suffix} {how}": (
            suffix,
            lambda path, save=save, how=how: save(path, pa.table({"e": bad_column(how), "id": IDS})),
        )
        for how in ("null", "empty", "a null inside")
        for suffix, save in {
            "parquet": lambda path, data: pq.write_table(data, path, row_group_size=60),
            "feather": lambda path, data: feather.write_feather(data, path, chunksize=60),
            "arrow": save_stream,
        }.items()
    },
    **{
        f"parquet fixed size, {how}": (
            "parquet",
            lambda path, how=how: pq.write_table(
                pa.table({"e": bad_column(how, pa.list_(pa.float32(), D)), "id": IDS}), path
            ),
        )
        for how in ("null", "a null inside")
    },
    "npy": ("npy", lambda path: np.save(path, HOLED)),
    "npz": ("npz", lambda path: np.savez(path, x=HOLED, id=IDS)),
    "hdf5": ("hdf5", lambda path: save_hdf5(path, x=HOLED, id=IDS)),
    "safetensors": ("safetensors", lambda path: safetensors.save_file({"x": HOLED, "id": IDS}, path)),
    "fvecs": ("fvecs", lambda path: save_vecs(path, HOLED, "<f4")),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_rows_are_counted_and_what_is_left_keeps_its_ids(tmp_path, name):
    suffix, save = BAD_FILES[name]
    path = tmp_path / f"x.{suffix}"
    save(path)
    null = "null, " if suffix in ("parquet", "feather", "arrow") else ""
    found = f"3 rows of 700 hold {null}NaN or infinity \\(as float32\\): 5, 17, 90"
    for read in (lambda c: list(c.chunks()), lambda c: c.take(np.array([0, 5, 95]))):
        with pytest.raises(ValueError, match=f"{path.name}: {found}; --drop-bad-rows"):
            read(Corpus(path))
    with pytest.warns(UserWarning, match=f"left out of .*: {found}$"):
        corpus = Corpus(path, drop_bad_rows=True)
    assert (corpus.shape, corpus.n_stored) == ((N - 3, D), N)
    np.testing.assert_array_equal(corpus.ids, GOOD)
    np.testing.assert_array_equal(corpus.read(), X[GOOD])
    np.testing.assert_array_equal(corpus.take(np.array([696, 5, 6])), X[GOOD][[696, 5, 6]])
    np.testing.assert_array_equal(corpus.rows_of(np.array([4, 5, 6, 699, 700])), [[0, 2, 3], [4, 5, 696]])
    if suffix not in ("npy", "fvecs"):
        with pytest.warns(UserWarning, match="left out"):
            np.testing.assert_array_equal(Corpus(path, ids="id", drop_bad_rows=True).ids, IDS[GOOD])


def test_bad_rows_of_shards_are_told_by_their_rows_in_the_file_and_left_out_by_those_of_all(tmp_path):
    paths = [tmp_path / "x.npy", tmp_path / "y.npy"]
    np.save(paths[0], HOLED[:6])
    np.save(paths[1], HOLED[6:])
    with pytest.raises(ValueError, match="x.npy: row 5 holds NaN"):
        Corpus(paths).read()
    with pytest.raises(ValueError, match="y.npy: 2 rows of 694 hold NaN.*: 11, 84; --drop-bad-rows"):
        Corpus(paths).take(np.array([0, 17]))
    with pytest.warns(UserWarning, match="left out of 2 files: 3 rows of 700 hold .*: 5, 17, 90$"):
        corpus = Corpus(paths, drop_bad_rows=True)
    np.testing.assert_array_equal(corpus.ids, GOOD)
    np.testing.assert_array_equal(corpus.read(), X[GOOD])


def test_a_corpus_without_a_good_row_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.full((3, 4), np.nan))
    with pytest.raises(ValueError, match=r"x.npy: no vectors, as 3 rows of 3 hold NaN"):
        Corpus(tmp_path / "x.npy", drop_bad_rows=True)
    np.save(tmp_path / "good.npy", X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        corpus = Corpus(tmp_path / "good.npy", drop_bad_rows=True)
    assert corpus.ids is None


@pytest.fixture
def nulls(tmp_path, monkeypatch):
    """A table with three null rows and ids of its own, queries with one, and the vectors alone."""
    monkeypatch.chdir(tmp_path)
    pq.write_table(table(fixed(X, BAD), id=np.arange(N) * 7 + 2), "corpus.parquet")
    pq.write_table(pa.table({"q": fixed(X[:40], [3])}), "queries.parquet")
    np.save("whole.npy", X)
    np.save("queries.npy", X[:40])
    warnings.simplefilter("ignore")


@pytest.mark.parametrize("options", [[], ["--ids", "id"]])
def test_commands_leave_bad_rows_out_and_keep_ids(nulls, options):
    """Every hit has the id that the row has in the file: row numbers, or the column."""
    ids = np.arange(N) * 7 + 2 if options else np.arange(N)
    assert "3 rows of 700 hold null" in run("fit", "corpus.parquet", *options, check=2)
    output = run("fit", "corpus.parquet", *options, "--drop-bad-rows", "--rescore", "fp32")
    assert "corpus      697 x 36 float32" in output
    assert "exact floats" in output
    recall = float(re.search(r"fp32 re-ranking .* ([01]\.\d+) ", output)[1])
    assert recall > 0.9  # of the rows: its hits are told by ids
    index = QamaIndex.load("corpus.qama")
    np.testing.assert_array_equal(index.ids, ids[GOOD])
    np.testing.assert_array_equal(index.reconstruct_batch(index.ids), X[GOOD])
    D, I = index.search(X[:40], 1)
    np.testing.assert_array_equal(I[GOOD[:38], 0], ids[GOOD[:38]])

    run("build", "corpus.qama", "corpus.parquet", *options, "--drop-bad-rows", "-o", "built.qama")
    np.testing.assert_array_equal(QamaIndex.load("built.qama").ids, ids[GOOD])

    lines = run("search", "corpus.qama", "queries.parquet", "-k", 1, "--drop-bad-rows").splitlines()[1:]
    found = [list(map(int, line.split("\t")[:3])) for line in lines]
    expected = [[q, 1, I[q, 0]] for q in range(40) if q != 3]
    assert found == expected
    run("search", "corpus.qama", "queries.parquet", "-k", 2, "--drop-bad-rows", "-o", "hits")
    with np.load("hits.npz") as file:
        hits = dict(file)
    np.testing.assert_array_equal(np.delete(hits["I"], 3, 0), np.delete(index.search(X[:40], 2)[1], 3, 0))
    assert hits["I"][3].tolist() == [-1, -1]
    assert (hits["D"][3] == np.finfo(np.float32).min).all()


@pytest.mark.parametrize("options", [[], ["--ids", "id"]])
def test_labels_name_documents_by_their_ids(nulls, options, tmp_path):
    """Each query is relevant to itself: nDCG is 1 if labels and hits are told by the same ids."""
    ids = np.arange(N) * 7 + 2 if options else np.arange(N)
    (tmp_path / "qrels.tsv").write_text("".join(f"{q}\t{ids[q]}\t1\n" for q in range(40)))
    run("fit", "corpus.parquet", *options, "--drop-bad-rows", "--rescore", "fp32")
    command = ["eval", "corpus.qama", "queries.parquet", "--drop-bad-rows", "--qrels", "qrels.tsv"]
    with pytest.warns(UserWarning, match=r"qrels.tsv: [34] of 40 pairs name what is not there"):
        output = run(*command)
    line = next(line for line in output.splitlines()[4:] if line.startswith("corpus.qama"))
    assert "1.000" in line
    assert run(*command, "--corpus", "corpus.parquet:embedding").splitlines()[-1].split()[1] == line.split()[1]
    (tmp_path / "set").mkdir()
    x = X.copy()
    x[BAD] = np.nan
    np.save("set/corpus.npy", x)
    shutil.copy("queries.npy", "set/queries.npy")
    (tmp_path / "set" / "qrels.tsv").write_text("".join(f"{q}\t{q}\t1\n" for q in range(40)))
    output = run("eval", "set", "--drop-bad-rows", "--method", "2x18+fp32")
    assert re.findall(r"2x18\+fp32 +1\.000", output.split("MRR")[1])


def test_fit_takes_files_of_every_kind(tmp_path, monkeypatch):
    """The names of the parts, the metric of the file, and the name of the index."""
    monkeypatch.chdir(tmp_path)
    save_index("ids.faiss", X, "IDMap,Flat", faiss.METRIC_L2, np.arange(N) * 5 + 1)
    with h5py.File("angular.hdf5", "w") as file:
        file["train"], file["test"] = X, make_vectors(30, seed=1)
        file.attrs["distance"] = "angular"
    X.tofile("x.bin")
    (tmp_path / "shards").mkdir()
    for i in (2, 10):
        np.save(f"shards/{i}.npy", X[:350] if i == 2 else X[350:])

    assert "metric L2" in run("fit", "ids.faiss", "--rescore", "fp32")
    index = QamaIndex.load("ids.qama")
    np.testing.assert_array_equal(index.ids, np.arange(N) * 5 + 1)
    np.testing.assert_array_equal(index.reconstruct_batch(index.ids), X)
    assert "metric inner product" in run("fit", "ids.faiss", "--metric", "ip", "-o", "ip.qama")

    assert "metric cosine" in run("fit", "angular.hdf5", "--queries", "angular.hdf5")
    assert QamaIndex.load("angular.qama").quantizer.cosine
    assert QamaIndex.load("angular.qama").quantizer.fit_record.real_queries
    assert len(run("search", "angular.qama", "angular.hdf5", "-k", 1).splitlines()) == 31

    save_index("l1.faiss", X, "Flat", faiss.METRIC_L1)
    with h5py.File("words.hdf5", "w") as file:
        file["train"] = X
        file.attrs["distance"] = "words"
    assert "compared by FAISS's metric 2; --metric fits them for another: ip, l2, cosine" in run(
        "fit", "l1.faiss", check=2
    )
    assert "compared by words; --metric fits them for another" in run("fit", "words.hdf5", check=2)
    assert "metric L2" in run("fit", "words.hdf5", "--metric", "l2")

    assert "needs --dim" in run("fit", "x.bin", check=2)
    assert "700 x 36 float32" in run("fit", "x.bin", "--dim", D)
    assert "100,800 bytes are no whole rows of 37 float32" in run("fit", "x.bin", "--dim", 37, check=2)
    assert "dimension 36, but 37 is needed" in run("fit", "shards", "--dim", 37, check=2)
    run("search", "x.qama", "x.bin")

    assert "wrote shards.qama" in run("fit", "shards")
    with pytest.warns(UserWarning, match=r"shards.10.npy is read before shards.2.npy, as given"):
        run("fit", "shards/10.npy", "shards/2.npy", "-o", "given.qama")
    np.testing.assert_array_equal(
        QamaIndex.load("shards.qama").search(X[:1], 1)[1] + 350, QamaIndex.load("given.qama").search(X[:1], 1)[1]
    )


def write(path, data):
    path.write_bytes(data)


SMALL = X[:6, :4]
WRONG = {
    "npy of int64": ("x.npy", lambda p: np.save(p, SMALL.astype(int)), r"got int64; x.astype\(np.float32\)"),
    "npy of objects": ("x.npy", lambda p: np.save(p, np.array([[1.0], [2.0, 3.0]], object)), r"np.stack\(list\(x\)\)"),
    "npy of text": ("x.npy", lambda p: np.save(p, SMALL.astype(str)), "float32 is needed .*got <U"),
    "npz of two": (
        "x.npz",
        lambda p: np.savez(p, a=SMALL, b=SMALL),
        r"2 arrays of vectors: it holds a \(6x4 ",
    ),
    "npz by a wrong name": ("x.npz:c", lambda p: np.savez(p, a=SMALL), r"no array 'c'; it holds a \(6x4 float32\)"),
    "npz of objects": ("x.npz:a", lambda p: np.savez(p, a=np.array([[1.0], [2.0, 3.0]], object)), "Python objects"),
    "npz of none": ("x.npz", lambda p: np.savez(p, ids=np.arange(3)), r"no array of vectors: it holds ids \(3 int64\)"),
    "text": ("x.npy", lambda p: write(p, b"0.1 0.2\n"), "x.npy: not a whole .npy file, but text"),
    "text of unknown name": ("x.csv", lambda p: write(p, b"0.1,0.2\n"), "but text; vectors are read from .*parquet"),
    "hdf5 that lies": (
        "x.npy",
        lambda p: save_hdf5(p, x=SMALL),
        "this is a HDF5 file; let its name end in .hdf5",
    ),
    "parquet that lies": ("x.arrow", lambda p: pq.write_table(table(lists(SMALL)), p), "this is a Parquet file"),
    "npy that lies": ("x.fvecs", lambda p: save_npy(p, SMALL), "this is a .npy file"),
    "gzip": ("x.npy", lambda p: write(p, gzip.compress(b"x" * 99)), "compressed with gzip: unpack it"),
    "pickle": ("x.npy", lambda p: write(p, pickle.dumps(SMALL)), "a pickle: np.save"),
    "lfs": ("x.parquet", lambda p: write(p, b"version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "nothing": ("x.parquet", lambda p: write(p, b""), "not a whole Parquet file, but an empty file"),
    "cut parquet": ("x.parquet", lambda p: write(p, b"PAR1" + bytes(99)), "not a whole Parquet file"),
    "cut arrow": ("x.arrow", lambda p: write(p, b"ARROW1" + bytes(99)), "not a whole Arrow file"),
    "cut hdf5": ("x.h5", lambda p: write(p, b"\x89HDF\r\n\x1a\n" + bytes(99)), "not a whole HDF5 file"),
    "cut safetensors": (
        "x.safetensors",
        lambda p: write(p, (9).to_bytes(8, "little") + b"{" + bytes(99)),
        "not a whole .safetensors file",
    ),
    "cut faiss": ("x.faiss", lambda p: write(p, b"IxFI" + bytes(4)), "x.faiss: .*read error"),
    "binary faiss": (
        "x.faiss",
        lambda p: faiss.write_index_binary(faiss.IndexBinaryFlat(64), str(p)),
        "x.faiss: .*not recognized",
    ),
    "table of text": (
        "x.parquet",
        lambda p: pq.write_table(pa.table({"title": ["a"], "id": [1]}), p),
        r"no column of vectors: it holds title \(text\), id \(int64\)",
    ),
    "two columns": (
        "x.parquet",
        lambda p: pq.write_table(table(lists(SMALL), other=lists(SMALL)), p),
        r"2 columns of vectors: .*; name one, as in .*x.parquet:embedding",
    ),
    "a column of text": (
        "x.parquet:title",
        lambda p: pq.write_table(table(lists(SMALL)), p),
        "column 'title' holds text; lists of floats, int8 or uint8 are needed",
    ),
    "a column of int64": (
        "x.parquet:tokens",
        lambda p: pq.write_table(table(lists(SMALL), tokens=lists(SMALL.astype(int))), p),
        "column 'tokens' holds list<.*int64>; lists of floats",
    ),
    "lists of many lengths": (
        "x.parquet",
        lambda p: pq.write_table(pa.table({"e": [[1.0, 2.0], [1.0, 2.0], [3.0]]}), p),
        "row 2 has 1 values, the first vector has 2",
    ),
    "fvecs of two lengths": (
        "x.fvecs",
        lambda p: write(p, b"".join(np.int32(d).tobytes() + bytes(12) for d in (3, 2))),
        "row 1 has 2 values, row 0 has 3",
    ),
    "cut fvecs": ("x.fvecs", lambda p: write(p, np.int32(3).tobytes() + bytes(11)), "15 bytes are no rows of 3 values"),
    "cut fbin": (
        "x.fbin",
        lambda p: write(p, np.array([9, 3], "<u4").tobytes()),
        r"8 bytes; 9 x 3 .* take 116",
    ),
    "neighbours": ("x.ivecs", lambda p: save_vecs(p, np.full((2, 3), 1 << 25), "<i4"), "ids of neighbours"),
    "a part of a .npy": (
        "x.npy:a",
        lambda p: np.save(p, SMALL),
        "has no columns or arrays .*; got 'a'",
    ),
    "a PyTorch file": (
        "x.bin",
        lambda p: zip_of(p, "x/data.pkl"),
        "a zip archive .* of a PyTorch file np.save the tensor",
    ),
    "an index with negative ids": (
        "x.faiss",
        lambda p: save_index(p, SMALL, "IDMap,Flat", ids=np.arange(6) - 3),
        "got -3",
    ),
    "missing": ("none.parquet:embedding", lambda p: None, "No such file or directory: .*none.parquet"),
}


def zip_of(path, name):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(name, b"")


def save_npy(path, x):
    with path.open("wb") as file:
        np.save(file, x)


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_file_is_told_in_one_line(name, tmp_path):
    file, save, message = WRONG[name]
    save(tmp_path / file.partition(":")[0])
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message) as caught:
        list(Corpus(f"{tmp_path}/{file}").chunks())
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("how", ["cut", "damaged"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_file_damaged_in_its_data_is_told_in_one_line(name, how, tmp_path):
    """Other bytes in the middle may be vectors as good as any, where a format has no checksum."""
    file, kind, save = FORMATS[name]
    path = tmp_path / file.partition(":")[0]
    save(path, stored(kind))
    data = np.frombuffer(path.read_bytes(), np.uint8).copy()
    if how == "cut":
        data = data[: len(data) * 5 // 8]
    else:
        data[len(data) // 2 :][:999] ^= 0x55
    data.tofile(path)
    try:
        read = Corpus(f"{tmp_path}/{file}", D).read()
    except ValueError as error:
        assert str(path) in str(error)  # noqa: PT017
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert (how, read.shape) == ("damaged", X.shape) or (name == "raw" and len(read) < N)


@pytest.mark.parametrize("suffix", ["fbin", "u8bin", "i8bin", "fvecs", "f32"])
def test_values_that_look_like_the_start_of_another_format_are_values(suffix, tmp_path):
    """Bytes 6 to 10 of these files are those of a .safetensors file."""
    dtype = {"u8bin": np.uint8, "i8bin": np.int8}.get(suffix, np.float32)
    x = np.zeros((6, 8), dtype)
    places = {"fvecs": 4, "f32": 8}.get(suffix, 0)  # of bytes in the rows
    x.view(np.uint8).reshape(-1)[places : places + 2] = list(b'{"')
    save = {"fvecs": lambda p: save_vecs(p, x, "<f4"), "f32": x.tofile}.get(suffix, lambda p: save_bin(p, x))
    save(tmp_path / f"x.{suffix}")
    assert (tmp_path / f"x.{suffix}").read_bytes()[6:10] == b'\0\0{"'
    np.testing.assert_array_equal(Corpus(tmp_path / f"x.{suffix}", 8).read(), x)


@pytest.mark.parametrize(
    ("ids", "error", "message"),
    [
        (pa.array(["a1", "b2", "c3"]), TypeError, "got text such as 'a1'; without --ids, ids are row numbers"),
        (pa.array([0.5, 1.0, 2.0]), TypeError, "int64 is needed; got float64"),
        (pa.array([1, None, 2]), ValueError, "1 of 3 are null"),
        (pa.array([1, 2, 2**63], pa.uint64()), ValueError, "0 to 2\\^63 - 1 is needed.*got 9223372036854775808"),
        (pa.array([1, -2, 3]), ValueError, "got -2"),
        (None, ValueError, "no column 'id'; it holds title"),
    ],
)
def test_ids_that_are_no_int64_are_told_before_anything_is_fitted(ids, error, message, tmp_path):
    more = {} if ids is None else {"id": ids}
    pq.write_table(table(lists(SMALL[:3]), **more), tmp_path / "x.parquet")
    with pytest.raises(error, match=message):
        Corpus(tmp_path / "x.parquet", ids="id")
    with pytest.raises(ValueError, match="ids names a column or an array beside the vectors in a file"):
        Corpus(SMALL, ids="id")
    np.save(tmp_path / "x.npy", SMALL)
    with pytest.raises(ValueError, match="no columns or arrays with names; got 'id'"):
        Corpus(tmp_path / "x.npy", ids="id")


@pytest.mark.parametrize("suffix", ["npz", "hdf5", "safetensors"])
def test_ids_are_read_from_an_array_beside_the_vectors(suffix, tmp_path):
    ids = np.arange(6) * 11
    save = {"npz": np.savez, "hdf5": save_hdf5, "safetensors": lambda p, **x: safetensors.save_file(x, p)}[suffix]
    save(tmp_path / f"x.{suffix}", x=SMALL, id=ids)
    np.testing.assert_array_equal(Corpus(tmp_path / f"x.{suffix}", ids="id").ids, ids)
    with pytest.raises(ValueError, match="no .* 'other'"):
        Corpus(tmp_path / f"x.{suffix}", ids="other")


@pytest.mark.parametrize(("file", "module", "extra"), [("x.parquet", "pyarrow", "parquet"), ("x.h5", "h5py", "hdf5")])
def test_a_missing_library_is_told_with_its_extra(file, module, extra, tmp_path, monkeypatch):
    if extra == "parquet":
        pq.write_table(table(lists(SMALL)), tmp_path / file)
    else:
        save_hdf5(tmp_path / file, x=SMALL)
    for name in [name for name in sys.modules if name.split(".")[0] == module]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"{file}: this needs {module}: pip install '.\[{extra}\]' in the clone"):
        Corpus(tmp_path / file)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of resident memory is read from /proc")
@pytest.mark.parametrize("suffix", ["parquet", "feather", "arrow", "hdf5", "npz", "fvecs"])
def test_memory_does_not_grow_with_the_file(suffix, tmp_path):
    """Reading 98 MB peaks no more than 24 MB above reading 16 MB: batches are held, not files."""
    save = {
        "parquet": lambda x, p: pq.write_table(pa.table({"e": fixed(x)}), p, use_dictionary=False),  # one row group
        "feather": lambda x, p: feather.write_feather(pa.table({"e": fixed(x)}), p, chunksize=2000),
        "arrow": lambda x, p: feather.write_feather(pa.table({"e": lists(x)}), p, "uncompressed", chunksize=10**9),
        "hdf5": lambda x, p: save_hdf5(p, x=x),
        "npz": lambda x, p: np.savez(p, x=x),
        "fvecs": lambda x, p: save_vecs(p, x, "<f4"),
    }[suffix]
    sizes = (16_000, 96_000)
    for n in sizes:
        x = np.random.default_rng(0).standard_normal((n, 256), dtype=np.float32)  # nothing to compress
        save(x, tmp_path / f"{n}.{suffix}")
    code = (
        "import sys; from faiss_qama import corpus; corpus.CHUNK_BYTES = 1 << 22\n"
        "for path in sys.argv[1:]:\n"
        "    n = sum(len(x) for x in corpus.Corpus(path, 256).chunks())\n"
        "    print(n, open('/proc/self/status').read().split('VmHWM:')[1].split()[0])"
    )
    command = [sys.executable, "-c", code, *(f"{tmp_path}/{n}.{suffix}" for n in sizes)]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert lines[::2] == [str(n) for n in sizes]
    assert int(lines[3]) - int(lines[1]) < 24_000


def test_vectors_that_share_an_id_are_found_by_row_and_labelled_together(tmp_path, monkeypatch):
    """As the passages of one document: the recall of the fit is that of its vectors, whatever their ids."""
    monkeypatch.chdir(tmp_path)
    ids = np.arange(N) // 4
    pq.write_table(table(fixed(X), doc=ids), "x.parquet")
    recalls = [re.findall(r"\d\.\d{3}", run("fit", "x.parquet", *options)) for options in ([], ["--ids", "doc"])]
    assert recalls[0] == recalls[1]
    assert len(recalls[0]) == 3
    index = QamaIndex.load("x.qama")
    np.testing.assert_array_equal(index.ids, ids)
    corpus = Corpus("x.parquet", ids="doc")
    places, rows = corpus.rows_of(np.array([3, 500, 0]))
    np.testing.assert_array_equal(places, [0] * 4 + [2] * 4)
    np.testing.assert_array_equal(rows, [12, 13, 14, 15, 0, 1, 2, 3])


def test_queries_of_an_index_are_told_by_their_rows(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", X)
    save_index("queries.faiss", X[:20], "IDMap,Flat", ids=np.arange(20) + 900)
    run("fit", "x.npy")
    lines = run("search", "x.qama", "queries.faiss", "-k", 1).splitlines()[1:]
    assert [line.split("\t")[0] for line in lines] == [str(q) for q in range(20)]
    np.savez("queries.npz", a=X[:20], b=X[:3])
    before = (tmp_path / "queries.npz").read_bytes()
    assert "queries.npz" in run("eval", "x.qama", "queries.npz:a", "--json", "queries.npz", check=2)
    assert "queries.npz" in run("search", "x.qama", "queries.npz:a", "-o", "queries", check=2)
    assert (tmp_path / "queries.npz").read_bytes() == before


def test_a_shard_without_any_vector_is_bad_rows(tmp_path):
    for i, column in enumerate(([X[0].tolist()], [None, None], [X[1].tolist()])):
        pq.write_table(pa.table({"e": pa.array(column, pa.list_(pa.float32()))}), tmp_path / f"{i}.parquet")
    with pytest.raises(ValueError, match="1.parquet: 2 rows of 2 hold null.*: 0, 1; --drop-bad-rows"):
        Corpus(tmp_path).read()
    with pytest.warns(UserWarning, match="left out of 3 files: 2 rows of 4 hold null, NaN or infinity .*: 1, 2$"):
        corpus = Corpus(tmp_path, drop_bad_rows=True)
    np.testing.assert_array_equal(corpus.read(), X[:2])
    np.testing.assert_array_equal(corpus.ids, [0, 3])
    with pytest.raises(ValueError, match=r"1.parquet: no vectors, shape \(2, 0\)"):
        Corpus(tmp_path / "1.parquet")


def test_ids_of_inverted_lists_are_those_of_their_vectors(tmp_path):
    ids = np.random.default_rng(0).permutation(N) * 3
    save_index(tmp_path / "x.faiss", X, "IVF8,Flat", ids=ids)
    corpus = Corpus(tmp_path / "x.faiss")
    np.testing.assert_array_equal(np.sort(corpus.ids), np.sort(ids))
    np.testing.assert_array_equal(corpus.read(), X[np.argsort(ids)][np.argsort(np.argsort(corpus.ids))])


def test_pairs_name_documents_and_queries_by_their_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pq.write_table(table(fixed(X, BAD), doc=np.arange(N) // 2), "x.parquet")
    np.save("q.npy", HOLED[:20])
    (tmp_path / "qrels.tsv").write_text("4\t1\t1\n5\t1\t1\n6\t2\t3\n7\t9999\t1\n8\t0\t0\n")
    with pytest.warns(UserWarning, match="left out"):
        corpus = Corpus("x.parquet", ids="doc", drop_bad_rows=True)
    with pytest.warns(UserWarning, match="left out"):
        queries = Corpus("q.npy", queries=True, drop_bad_rows=True)
    with pytest.warns(UserWarning, match="qrels.tsv: 2 of 5 pairs name what is not there; they are left out"):
        pairs = read_pairs(queries, "qrels.tsv", corpus)
    np.testing.assert_array_equal(corpus.ids[pairs.qrels[:, 1]], [1, 1, 2])
    np.testing.assert_array_equal(corpus.take(pairs.qrels[:, 1]), X[[2, 3, 4]])
    np.testing.assert_array_equal(queries.take(pairs.qrels[:, 0]), X[[4, 4, 6]])
    np.testing.assert_array_equal(pairs.qrels[:, 2], [1, 1, 3])
    with pytest.warns(UserWarning, match="qrels: 1 of 2 pairs"):
        assert read_pairs(queries, [(5, 2, 1), (6, 2, 1)], corpus).qrels.tolist() == [[5, 4, 1]]


def test_small_faiss_files_are_read_and_large_ones_mapped_and_measured(tmp_path, monkeypatch):
    """FAISS checks what it reads, but not all that it maps."""
    index, path, flags = faiss.IndexFlatL2(36), tmp_path / "x.faiss", []
    index.add(X)
    faiss.write_index(index, str(path))
    read = faiss.read_index
    monkeypatch.setattr(faiss, "read_index", lambda name, flag: (flags.append(flag), read(name, flag))[1])
    np.testing.assert_array_equal(load_vectors(path), X)
    monkeypatch.setattr(faiss_vectors, "MAPPED", 100)
    np.testing.assert_array_equal(load_vectors(path), X)
    assert flags == [0, faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY]
    monkeypatch.setattr(faiss, "read_index", lambda name, flag: index)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="x.faiss: 2,000 bytes are too few for 700 vectors"):
        load_vectors(path)
