"""What the command line says: one line per mistake, that names the file; a next command that a shell can read."""

from __future__ import annotations

import os
import shlex
import sys
import warnings
from dataclasses import replace

import faiss
import numpy as np
import pytest
from conftest import fit_quietly, make_vectors

from faiss_qama import QamaIndex
from faiss_qama.cli import app
from faiss_qama.training import FitConfig, TrainConfig

X = make_vectors(400)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    np.save(tmp_path / "x.npy", X)
    np.save(tmp_path / "one.npy", X[:1])
    np.save(tmp_path / "narrow.npy", X[:30, :12])
    (tmp_path / "qrels.tsv").write_text("400\t0\t1\n")
    np.save(tmp_path / "huge.npy", np.where(np.arange(len(X))[:, None] == 7, X * 1e6, X))
    index = QamaIndex(fit_quietly(X, layout="2x18"), "none")
    index.add(X)
    index.save(tmp_path / "i.qama")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run(monkeypatch, capfd):
    """A function that runs a command and returns its status, output and errors."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["faiss-qama", *arguments])
        monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # which main replaces
        with pytest.raises(SystemExit) as stop:
            app.main()
        return stop.value.code, *capfd.readouterr()

    return run


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["search", "i.qama", "x.npy", "-o", ""], "Invalid value for '-o' / '--output': the path is empty"),
        (["export", "i.qama", ""], "Invalid value for 'OUTPUT': the path is empty"),
        (["export", "i.qama", "x.npy"], "x.npy: a FAISS index is written, not a .npy file: let its name end in .faiss"),
        (["fit", ""], "Invalid value for 'CORPUS...': the path is empty"),
        (["search", "i.qama", "x.npy", "-o", "."], ".: a folder is in the way"),
        (["search", "i.qama", "x.npy", "-o", ".."], "..: a folder is in the way"),
        (["fit", "one.npy"], "one.npy: fitting needs at least 2 vectors; got 1"),
        (
            ["fit", "x.npy", "--config", "twice.yaml"],
            'twice.yaml: not YAML (seed is there twice in "twice.yaml", line 3, ',
        ),
        (["fit", "x.npy", "--config", "inner.yaml"], "inner.yaml: not YAML (epochs is there twice in "),
        (["inspect", "a\nb"], "a b: no index here"),
        (["search", "i.qama", "narrow.npy"], "narrow.npy: dimension 12, but 36 is needed, as in i.qama\n"),
        (["eval", "i.qama", "narrow.npy"], "narrow.npy: dimension 12, but 36 is needed, as in i.qama\n"),
        (["build", "i.qama", "narrow.npy", "-o", "o"], "narrow.npy: dimension 12, but 36 is needed, as in i.qama\n"),
        (["fit", "x.npy", "narrow.npy"], "narrow.npy: dimension 12, but 36 is needed, as in x.npy\n"),
        (["fit", "x.npy", "--queries", "narrow.npy"], "narrow.npy: dimension 12, but 36 is needed, as in x.npy\n"),
        (
            ["eval", "i.qama", "x.npy", "--corpus", "x.npy", "--qrels", "qrels.tsv"],
            "qrels.tsv: line 1: query row 400, but there are 400; rows are counted from 0\n",
        ),
    ],
)
def test_a_mistake_is_one_line(folder, run, command, message):
    (folder / "twice.yaml").write_text("seed: 1\nsample: 300\nseed: 2\n")
    (folder / "inner.yaml").write_text("train:\n  epochs: 1\n  epochs: 1\n")
    status, out, errors = run(*command)
    assert (status, out) == (2, "")
    assert errors.startswith(f"error: {message}")
    assert len(errors.splitlines()) == 1


@pytest.mark.filterwarnings("ignore:vectors of norm")
def test_what_cannot_be_stored_is_named_with_its_file_and_the_option(folder, run):
    for corpus, name in ((["huge.npy"], "huge.npy: row 7"), (["x.npy", "huge.npy"], "2 files: row 407")):
        status, out, errors = run("build", "i.qama", *corpus, "-o", "no.qama")
        assert (status, out) == (2, "")
        assert errors.splitlines()[-1].startswith(f"error: {name} holds ")
        assert errors.endswith("; use --rescore fp32\n")
        assert not (folder / "no.qama").exists()


def test_the_next_command_is_one_that_a_shell_reads(folder, run):
    name = "it's a $HOME.qama"
    _, out, _ = run("fit", "x.npy", "-o", name)
    line = out.splitlines()[-1]
    assert line.startswith("next: faiss-qama search ")
    command = shlex.split(line.removeprefix("next: "))
    assert command == ["faiss-qama", "search", name, "queries.npy", "-k", "10"]
    np.save(folder / "queries.npy", X[:2])
    assert run(*command[1:])[0] == 0


@pytest.mark.parametrize("rescore", ["none", "codes"])
@pytest.mark.filterwarnings("ignore:left out of")
def test_queries_that_are_left_out_have_no_hits(folder, run, rescore):
    bad, good = [0, 5, 6, 29], np.setdiff1d(np.arange(30), [0, 5, 6, 29])
    xq = X[:30].copy()
    xq[bad] = np.nan
    np.save(folder / "some.npy", xq)
    index = QamaIndex(QamaIndex.load("i.qama").quantizer, rescore)
    index.add(X)
    index.save(folder / "j.qama")
    assert run("search", "j.qama", "some.npy", "-k", "3", "--drop-bad-rows", "-o", "hits.npz")[0] == 0
    with np.load(folder / "hits.npz") as file:
        hits = dict(file)
    D, I = index.search(X[good], 3)
    np.testing.assert_array_equal(hits["I"][good], I)
    np.testing.assert_array_equal(hits["D"][good], D)
    assert hits["D"].dtype == D.dtype
    assert (hits["I"][bad] == -1).all()
    assert (hits["D"][bad] == index.search(X[:1], 1, sel=[])[0]).all()


@pytest.mark.parametrize(("kind", "name"), [("hamming", "IndexPreTransform"), ("binary", "IndexBinaryFlat")])
def test_export_says_what_it_wrote(folder, run, kind, name):
    _, out, _ = run("export", "i.qama", "stock.faiss", "--kind", kind)
    size = (folder / "stock.faiss").stat().st_size
    each = f"{size / 1000:,.1f} kB, {size / 400:,.0f} bytes per vector"
    assert out.splitlines()[0] == f"wrote stock.faiss: {name} of 400 vectors, {each}"


def test_inspect_prints_the_settings_that_are_not_default(folder, run):
    train = {"epochs": 3, "losses": {"adc.contrastive": 1}}
    for config, printed in (
        (FitConfig(layout="2x18"), "those that a fit has by default"),
        (FitConfig(layout="2x18", seed=3, train=TrainConfig(**train)), "seed 3, train.losses {'adc.contrastive': "),
    ):
        quantizer = fit_quietly(X, layout="2x18")
        record = replace(quantizer.fit_record, config=config.to_dict())
        QamaIndex(replace(quantizer, fit_record=record), "none").save(folder / "settings.qama")
        _, out, _ = run("inspect", "settings.qama")
        text = " ".join(out.split())
        assert ", Lloyd-Max, fitted on 360 vectors settings " in text
        assert f"settings {printed}" in text
        assert ("train.epochs 3" in text) == (config.train is not None)
        assert "learning_rate" not in text


def test_bytes_that_are_not_taken_are_said(folder, run):
    text = " ".join(run("fit", "x.npy", "-o", "b.qama", "--bytes", "7")[1].split())
    why = "layouts come in steps of 8 components, up to all 36, and codes of Flat and IVF in steps of 4 bytes"
    assert f" bytes 4 per vector, not 7: {why} on " in text
    assert "\nbytes  " not in run("fit", "x.npy", "-o", "b.qama", "--bytes", "8")[1]


@pytest.mark.filterwarnings("default:fitted on")
def test_few_vectors_for_a_fit_are_said_with_the_remedy(folder, run):
    np.save(folder / "few.npy", X[:50])
    _, _, errors = run("fit", "few.npy")
    assert errors == (
        "note: fitted on 45 vectors; 18 components need 72 or more: fit on more, or name a layout of fewer, such as "
        "2x11\n"
    )


def test_faiss_does_not_warn_of_lists_of_few_vectors(folder, run):
    status, _, errors = run("fit", "x.npy", "-o", "lists.qama", "--base", "BIVF16")
    assert (status, errors) == (0, "")


@pytest.mark.parametrize("kind", ["hamming", "binary"])
def test_names_that_are_no_text(folder, run, kind):
    name = os.fsdecode(b"e\xff.faiss")
    try:
        (folder / name).touch()
    except OSError:
        pytest.skip("this file system has no such names")
    status, out, errors = run("export", "i.qama", name, "--kind", kind)
    assert (status, errors) == (0, "")
    assert out.startswith("wrote e")
    read = faiss.read_index_binary if kind == "binary" else faiss.read_index
    with open(name, "rb") as file:
        assert read(faiss.PyCallbackIOReader(file.read)).ntotal == len(X)


def test_add_remove_and_compact_change_an_index_in_place(folder, run):
    index = QamaIndex(fit_quietly(X, layout="2x18"), "fp16")
    index.add_with_ids(X[:200], np.arange(200))
    index.save("grows.qama")
    np.save("more.npy", X[200:300])
    np.save("ids.npy", np.arange(1000, 1100))
    np.save("gone.npy", np.array([1000, 1001, 5]))
    (folder / "gone.txt").write_text("7\n8\n9\n10000\n")
    assert run("add", "grows.qama", "more.npy", "--ids", "ids.npy")[:2] == (0, "added 100: grows.qama holds 300 x 36\n")
    assert run("add", "grows.qama", "more.npy", "--ids", "ids.npy", "--replace")[1] == (
        "added 100: grows.qama holds 300 x 36\n"
    )
    assert run("remove", "grows.qama", "--ids", "gone.npy")[1] == "removed 3 of 3: grows.qama holds 297 x 36\n"
    assert run("remove", "grows.qama", "--ids", "gone.txt")[1] == "removed 3 of 4: grows.qama holds 294 x 36\n"
    status, said, _ = run("compact", "grows.qama")
    assert status == 0
    assert said.startswith("grows.qama: 0.")
    left = QamaIndex.load("grows.qama")
    assert set(left.ids.tolist()) == (set(range(200)) | set(range(1000, 1100))) - {1000, 1001, 5, 7, 8, 9}
    np.testing.assert_allclose(left.reconstruct(1050), X[250], atol=1e-3)
    assert "keep the quantizer" in run("inspect", "grows.qama")[1]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["add", "grows.qama", "x.npy"], "grows.qama has ids of its own and needs --ids: a column or array"),
        (["add", "i.qama", "x.npy", "--replace"], "--replace needs --ids: a column or array of the corpus"),
        (["add", "grows.qama", "x.npy", "--ids", "few.npy"], "one id per vector is needed; got 3 ids and 400 vectors"),
        (["add", "grows.qama", "narrow.npy", "--ids", "few.npy"], "narrow.npy: dimension 12, but 36 is needed"),
        (["add", "grows.qama", "x.npy", "--ids", "no.npy"], "no.npy: No such file or directory"),
        (["add", "none.qama", "x.npy"], "none.qama: no index here"),
        (["remove", "grows.qama", "--ids", "x.npy"], "x.npy: ids in 'the file': one number per row is needed"),
        (
            ["remove", "grows.qama", "--ids", "words.txt"],
            "words.txt: whole numbers are needed, one per line, or a .npy",
        ),
        (["compact", "x.npy"], "x.npy: no index here"),
        (["add", "grows.qama", "bad.npy", "--ids", "many.npy"], "bad.npy"),
    ],
)
def test_a_change_that_cannot_be_is_one_line_and_changes_nothing(folder, run, command, message):
    index = QamaIndex(fit_quietly(X, layout="2x18"), "fp16")
    index.add_with_ids(X, np.arange(len(X)))
    index.save("grows.qama")
    np.save("few.npy", np.arange(3))
    np.save("many.npy", np.arange(1000, 1400))
    bad = X.copy()
    bad[-1, 0] = np.nan
    np.save("bad.npy", bad)
    (folder / "words.txt").write_text("one two")
    status, _, said = run(*command)
    assert (status, len(said.splitlines())) == (2, 1)
    assert message in said
    assert QamaIndex.load("grows.qama").ntotal == len(X)


def test_ids_come_from_a_file_and_one_per_vector_is_needed(folder, run):
    ids = np.arange(400) + 1000
    np.save("ids.npy", ids)
    np.save("few.npy", ids[:399])
    np.savez("short.npz", x=X, ids=ids[:399])
    np.savez("long.npz", x=X, ids=np.append(ids, 7))
    assert run("fit", "x.npy", "--ids", "ids.npy", "-o", "j.qama")[0] == 0
    np.testing.assert_array_equal(QamaIndex.load("j.qama").ids, ids)
    before = (folder / "j.qama" / "manifest.json").read_bytes()
    for options in ([], ["--drop-bad-rows"]):
        for command in (["fit"], ["build", "j.qama"]):
            for source, name, found in (
                ("short.npz:x", "ids", 399),
                ("long.npz:x", "ids", 401),
                ("x.npy", "few.npy", 399),
            ):
                code, _, errors = run(*command, source, "--ids", name, "-o", "j.qama", *options)
                assert code == 2
                assert f"got {found} ids and 400 vectors" in errors
    assert (folder / "j.qama" / "manifest.json").read_bytes() == before
    np.savez("longer.npz", x=X, ids=np.append(ids, 7))
    code, _, errors = run("fit", "longer.npz:x", "short.npz:x", "--ids", "ids", "-o", "k.qama")
    assert code == 2
    assert "longer.npz: one id per vector is needed; got 401 ids and 400 vectors" in errors


def test_ids_that_are_there_twice_or_move_are_said(folder, run):
    np.save("ids.npy", np.arange(395, 405))
    np.save("some.npy", X[:10])
    assert "395 is taken" in run("add", "i.qama", "some.npy", "--ids", "ids.npy")[2]
    (folder / "gone.txt").write_text("5\n")
    code, out, _ = run("remove", "i.qama", "--ids", "gone.txt")
    assert code == 0
    assert "ids are row numbers: those after a removed vector have moved" in out
    np.save("new.npy", np.arange(1000, 1010))
    assert "were there already" not in run("add", "i.qama", "some.npy", "--ids", "new.npy")[1]
    code, out, _ = run("add", "i.qama", "some.npy", "--ids", "new.npy")
    assert code == 0
    assert "10 of these ids were there already" in out
    out = run("add", "i.qama", "some.npy", "--ids", "new.npy", "--replace")[1]
    assert "were there already" not in out
    assert QamaIndex.load("i.qama").ntotal == 409
    assert "row numbers" not in run("remove", "i.qama", "--ids", "gone.txt")[1]


@pytest.mark.filterwarnings("ignore:left out of some.npy")
def test_bad_rows_that_are_left_out_of_an_add_give_no_ids(folder, run):
    x = np.where(np.arange(10)[:, None] == 3, np.nan, X[:10]).astype(np.float32)
    np.save("some.npy", x)
    np.save("ids.npy", np.arange(1000, 1010))
    for options, left in (([], 409), (["--ids", "ids.npy"], 418)):
        assert run("add", "i.qama", "some.npy", "--drop-bad-rows", *options)[0] == 0
        assert QamaIndex.load("i.qama").ntotal == left
    assert set(range(1000, 1010)) - set(QamaIndex.load("i.qama").ids.tolist()) == {1003}
    for options in ([], ["--replace"]):
        code, _, errors = run("add", "i.qama", "some.npy", "--drop-bad-rows", *options)
        assert code == 2
        assert "needs --ids" in errors


def test_a_file_of_one_number_is_no_corpus(folder, run):
    np.save("number.npy", np.float32(3))
    for command in (["fit", "number.npy"], ["fit", "x.npy", "--queries", "number.npy"]):
        code, _, errors = run(*command, "-o", "n.qama")
        assert code == 2
        assert "number.npy: " in errors
        assert "()" in errors
