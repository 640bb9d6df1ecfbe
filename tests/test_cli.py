"""The command line as a user meets it: a process of its own, its output, its exit status."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import warnings

import faiss
import numpy as np
import pytest
from conftest import make_vectors

from faiss_qama import QamaIndex, index_factory
from faiss_qama.cli import app
from faiss_qama.texts import embedding

pytestmark = pytest.mark.slow


BRIEFLY = (  # the command line, which would measure speeds for a second
    "from faiss_qama.evaluation import recall; recall.MIN_SECONDS = 0.0; from faiss_qama.cli import main; main()"
)


def run(*arguments, cwd, check=0, **options):
    command = [sys.executable, "-c", BRIEFLY, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False, **options)
    assert "Traceback" not in done.stderr
    assert done.returncode == check, done.stderr
    return done


# A shell's background jobs ignore Ctrl-C, and so do their children.
INTERRUPTIBLE = (  # numba is there by then: an interrupt in the midst of its import is held back
    sys.executable,
    "-c",
    "import signal, faiss_qama.cli.app as c; from faiss_qama.kernels import kernel; "
    "[kernel(name) for name in ('scanning', 'scoring', 'encoding')]; "
    "signal.signal(signal.SIGINT, signal.default_int_handler); "
    "print('ready', flush=True); c.main()",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("cli")
    np.save(path / "corpus.npy", make_vectors(1200).astype(np.float16))
    np.save(path / "queries.npy", make_vectors(30, seed=1))
    np.save(path / "train_queries.npy", make_vectors(100, seed=2))
    np.save(path / "narrow.npy", make_vectors(30, d=12))
    (path / "qrels.tsv").write_text("query\tdocument\tgrade\n" + "".join(f"{q}\t{q * 7}\t1\n" for q in range(30)))
    run("fit", "corpus.npy", cwd=path)
    return path


def test_fit_prints_the_table_and_nothing_else(folder):
    done = run("fit", "corpus.npy", "-o", "again.qama", cwd=folder)
    lines = done.stdout.splitlines()
    assert lines[0] == "corpus      1,200 x 36 float16, 86.4 kB, metric inner product"
    assert lines[1].startswith("quantizer   2x18, PCA + ITQ rotation, Lloyd-Max, fitted in ")
    assert lines[1].endswith(" s")
    assert lines[2].split() == ["on", "120", "held-out", "documents", "bytes/vector", "recall@10", "queries/s"]
    assert lines[3].startswith("exact floats")
    assert lines[3].split()[2:4] == ["144", "1.000"]
    assert lines[4].startswith("codes only")
    assert lines[4].split()[2] == "8"
    assert lines[5].startswith("codes + fp16 re-ranking")
    assert lines[5].split()[4:7] == ["8", "+", "72"]
    assert float(lines[5].split()[7]) > float(lines[4].split()[3]) > 0.5
    shared = sum(array.nbytes for array in QamaIndex.load(folder / "again.qama").quantizer.to_state()[0].values())
    assert lines[6:] == [
        f"wrote again.qama: {(9600 + shared) / 1000:.1f} kB of memory ({shared / 1000:.1f} kB the quantizer), "
        "86.4 kB on disk",
        "Documents with noise stood in for queries. Yours may need fewer candidates, and",
        "find more or less: fit with --queries to calibrate and measure with them.",
        "next: faiss-qama eval again.qama queries.npy",
        "next: faiss-qama search again.qama queries.npy -k 10",
    ]
    assert done.stderr == ""


def test_no_line_is_wider_than_a_terminal(folder):
    commands = [
        ["fit", "corpus.npy", "-o", "wide.qama", "--bytes", 8, "--base", "auto"],
        ["eval", ".", "--method", "rotated-ternary", "--method", "faiss:RaBitQ"],
        ["eval", "corpus.qama", "queries.npy", "--qrels", "qrels.tsv"],
        ["inspect", "corpus.qama"],
        [],
    ]
    for command in commands:
        assert max(map(len, run(*command, cwd=folder).stdout.splitlines())) <= 80


@pytest.mark.parametrize("base", ["IVF20", "BIVF20", "BHNSW8"])
def test_fit_sets_what_a_base_needs_for_the_recall(folder, base):
    """The Hamming stage of lists or of a graph keeps what ``tune`` promises, without a word from the user."""
    output = folder / f"{base}.qama"
    done = run("fit", "corpus.npy", "-o", output, "--base", base, cwd=folder)
    index, flat = QamaIndex.load(output), QamaIndex.load(folder / "corpus.qama")
    name = "efSearch" if base == "BHNSW8" else "nprobe"
    value = getattr(index, name)
    assert f"{base} {name} {value}" in done.stdout
    xq = np.load(folder / "queries.npy")
    found, exhaustive = index.search(xq, 10)[1], flat.search(xq, 10)[1]
    assert np.mean([np.isin(a, b).mean() for a, b in zip(found, exhaustive, strict=True)]) > 0.9
    few = run("fit", "corpus.npy", "-o", output, "--base", base, f"--{name.lower()}", 2, cwd=folder)
    assert "base  " not in few.stdout
    assert getattr(QamaIndex.load(output), name) == 2


def test_search_prints_and_writes_what_the_index_answers(folder):
    index = QamaIndex.load(folder / "corpus.qama")
    scores, ids = index.search(np.load(folder / "queries.npy"), 3)
    lines = run("search", "corpus.qama", "queries.npy", "-k", 3, cwd=folder).stdout.splitlines()
    assert lines[0] == "query\trank\tid\tscore"
    assert lines[1].split("\t")[:3] == ["0", "1", str(ids[0, 0])]
    assert float(lines[90].split("\t")[3]) == pytest.approx(scores[29, 2], rel=1e-5)
    assert len(lines) == 91
    run("search", "corpus.qama", "queries.npy", "-k", 3, "-o", "hits.npz", cwd=folder)
    with np.load(folder / "hits.npz") as file:
        hits = dict(file)
    np.testing.assert_array_equal(hits["I"], ids)
    np.testing.assert_array_equal(hits["D"], scores)


def test_search_reaches_a_recall_or_says_so(folder):
    for option in (["--recall", 0.9], ["--oversample", 4]):
        run("search", "corpus.qama", "queries.npy", *option, cwd=folder)
    done = run("search", "corpus.qama", "queries.npy", "--recall", 2, cwd=folder, check=2)
    assert done.stderr == "error: recall must be between 0 and 1; got 2.0\n"


@pytest.mark.parametrize("rescore", ["none", "codes", "fp32"])
def test_fit_with_every_second_stage(folder, rescore):
    done = run("fit", "corpus.npy", "-o", f"{rescore}.qama", "--rescore", rescore, "--metric", "l2", cwd=folder)
    assert "metric L2" in done.stdout
    assert QamaIndex.load(folder / f"{rescore}.qama").metric_type == faiss.METRIC_L2
    assert run("inspect", f"{rescore}.qama", cwd=folder).stdout.count("checksum ok") == (3 if rescore == "fp32" else 2)


def test_fit_from_shards_config_queries_and_bytes(folder, tmp_path):
    x = np.load(folder / "corpus.npy")
    np.save(tmp_path / "a.npy", x[:500])
    np.save(tmp_path / "b.npy", x[500:])
    (tmp_path / "c.yaml").write_text("rotation: random\nthresholds: normal\nbytes: 8\n")
    arguments = ["fit", "a.npy", "b.npy", "--config", "c.yaml", "--queries", folder / "train_queries.npy"]
    done = run(*arguments, cwd=tmp_path)
    tried = re.search(
        r"chosen +(\S+), on a sample: (\d+) candidates \((.*)\)", done.stdout.replace("\n            ", " ")
    )
    others = {name: int(count) for name, count in re.findall(r"(\S+) random: (\d+) candidates", tried[3])}
    assert {tried[1], *others} == {"2x32", "1x36"}
    assert int(tried[2]) <= min(others.values())
    assert re.search(rf"quantizer +{tried[1]}, PCA \+ (random|ITQ) rotation, Gaussian-optimal", done.stdout)
    index = QamaIndex.load(tmp_path / "a.qama")
    assert index.ntotal == 1200
    assert index.quantizer.fit_record.real_queries
    assert np.abs(index.quantizer.query_transform.bias - index.quantizer.transform.bias).max() > 0
    assert "2x6" in run(*arguments, "--layout", "2x6", cwd=tmp_path).stdout


def test_eval_of_a_folder_and_of_an_index(folder):
    methods = ["--method", "binary", "--method", "2x18", "--method", "faiss:SQ8"]
    done = run("eval", ".", *methods, "--train-queries", "--json", "r.json", cwd=folder)
    lines = done.stdout.splitlines()
    assert lines[1].split() == ["bytes/vector", "recall@10", "queries/s"]
    assert lines[7].split() == "nDCG@10 relevant@10 MRR@10 % of float 95 % interval".split()
    for table in (lines[2:6], lines[8:]):
        assert [line.split()[0] for line in table] == ["exact", "binary", "2x18", "faiss:SQ8"]
    record = json.loads((folder / "r.json").read_text())
    assert [r["method"] for r in record["results"]] == ["exact floats", "binary", "2x18", "faiss:SQ8"]
    assert record["results"][2]["config"]["real_queries"]
    assert record["results"][0]["recall"] == 1.0

    done = run("eval", "corpus.qama", "queries.npy", "--qrels", "qrels.tsv", "--recall", 0.95, cwd=folder)
    assert done.stdout.splitlines()[3].startswith("corpus.qama")
    assert float(done.stdout.splitlines()[3].split()[4]) >= 0.95


def test_eval_of_an_index_without_vectors_asks_for_them(folder):
    run("fit", "corpus.npy", "-o", "bare.qama", "--rescore", "codes", cwd=folder)
    done = run("eval", "bare.qama", "queries.npy", cwd=folder, check=2)
    assert "pass --corpus" in done.stderr
    run("eval", "bare.qama", "queries.npy", "--corpus", "corpus.npy", cwd=folder)
    done = run("eval", "bare.qama", "queries.npy", "--corpus", "queries.npy", cwd=folder, check=2)
    assert "queries.npy has 30 vectors; bare.qama has 1200" in done.stderr


def test_inspect_says_what_there_is_and_notices_damage(folder):
    done = run("inspect", "corpus.qama", cwd=folder)
    assert "1,200 x 36, metric inner product, rescore fp16" in done.stdout
    assert done.stdout.count("checksum ok") == 3
    run("fit", "corpus.npy", "-o", "damaged.qama", cwd=folder)
    store = folder / "damaged.qama" / "vectors-1.npy"
    data = bytearray(store.read_bytes())
    data[-1] ^= 1
    store.write_bytes(data)
    assert "vectors-1.npy: damaged" in run("inspect", "damaged.qama", cwd=folder, check=2).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("fit none.npy", "none.npy: No such file"),
        ("fit qrels.tsv", "qrels.tsv: not a whole .npy file"),
        ("fit corpus.npy -o qrels.tsv", "a file is in the way"),
        ("fit corpus.npy --layout 9x9", "is not BITSxCOMPONENTS"),
        ("fit corpus.npy --layout 2x99", "has 99 components; the vectors have 36"),
        ("fit corpus.npy --layout 2x9 --bytes 4", "not both"),
        ("fit corpus.npy --bytes 0", "at least 1; got 0"),
        ("fit corpus.npy --config none.yaml", "none.yaml: No such file"),
        ("fit corpus.npy --config qrels.tsv", "qrels.tsv"),
        ("fit corpus.npy --queries narrow.npy", "narrow.npy: dimension 12, but 36 is needed"),
        ("fit corpus.npy narrow.npy", "narrow.npy: dimension 12, but 36 is needed"),
        ("fit nan.npy", "nan.npy: row 3 holds NaN or infinity"),
        ("fit one.npy", "at least 2 vectors; got 1"),
        ("search missing.qama queries.npy", "no index here"),
        ("search corpus.qama narrow.npy", "dimension 12, but 36"),
        ("search corpus.qama queries.npy -k 0", "0 is not in the range"),
        ("eval none", "none: no such data set folder"),
        ("eval . --method nonsense", "unknown method 'nonsense'"),
        ("eval . --method faiss:Nonsense", "faiss:Nonsense"),
        ("eval . --qrels qrels.tsv", "a data set folder has its own"),
        ("eval corpus.qama queries.npy --seeds 3", "are for a data set folder"),
        ("inspect .", "no index here"),
        ("embed none.txt", "none.txt: No such file"),
        ("nonsense", "No such command"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(folder, arguments, message):
    if not (folder / "nan.npy").exists():
        x = make_vectors(40)
        x[3, 5] = np.inf
        np.save(folder / "nan.npy", x)
        np.save(folder / "one.npy", x[:1])
    done = run(*arguments.split(), cwd=folder, check=2)
    assert message in done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def test_too_few_to_measure_still_makes_an_index(tmp_path):
    np.save(tmp_path / "few.npy", make_vectors(8))
    done = run("fit", "few.npy", "--layout", "1x8", cwd=tmp_path)
    assert "too few vectors to hold any out" in done.stdout
    assert done.stderr.startswith("note: fitted on 8 vectors")
    assert QamaIndex.load(tmp_path / "few.qama").ntotal == 8


@pytest.mark.parametrize(
    "command",
    [
        "search again.qama queries.npy -o again.qama/vectors-1.npy.npz",
        "export again.qama again.qama/manifest.json",
        "eval again.qama queries.npy --json again.qama/manifest.json",
        "eval again.qama queries.npy --json queries.npy",
        "eval . --json corpus.npy",
        "embed queries.npy -o queries.npy",
    ],
)
def test_what_is_read_is_not_replaced(folder, command):
    run("fit", "corpus.npy", "-o", "again.qama", cwd=folder)
    (folder / "again.qama" / "vectors-1.npy.npz").touch()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert "the same command reads or writes this already" in run(*command.split(), cwd=folder, check=2).stderr
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_more_hits_than_there_are_are_not_looked_for(folder):
    done = run("search", "corpus.qama", "queries.npy", "-k", "100000000", cwd=folder)
    assert len(done.stdout.splitlines()) == 1 + 30 * 1200


def test_damage_that_mapping_does_not_see_is_one_line(folder):
    run("fit", "corpus.npy", "-o", "lists.qama", "--base", "IVF8", "--nprobe", "8", cwd=folder)
    rows = np.load(folder / "lists.qama" / "rows-1.npy")
    np.save(folder / "lists.qama" / "rows-1.npy", np.where(rows < 0, rows, rows + np.int32(10**6)))
    done = run("search", "lists.qama", "queries.npy", cwd=folder, check=2)
    assert done.stderr.endswith("is the index damaged? faiss-qama inspect verifies it\n")


def test_interrupting_leaves_the_old_index(folder):
    run("fit", "corpus.npy", "-o", "kept.qama", "--rescore", "none", cwd=folder)
    before = {f.name: f.read_bytes() for f in (folder / "kept.qama").iterdir()}
    process = subprocess.Popen(
        [*INTERRUPTIBLE, "fit", "corpus.npy", "-o", "kept.qama"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip() == "interrupted"
    assert {f.name: f.read_bytes() for f in (folder / "kept.qama").iterdir()} == before


@pytest.mark.parametrize(
    ("limit", "rescore", "layout"),
    [(60_000, "fp16", "2x18"), (15_000, "none", "2x36"), (5_000, "none", "2x18")],
    ids=["vectors", "codes", "quantizer"],
)
def test_a_full_disk_is_one_line_and_nothing_lost(folder, limit, rescore, layout):
    """A limit on the size of files stands in for a full disk: what writes past it fails."""
    run("fit", "corpus.npy", "-o", "full.qama", "--rescore", "none", cwd=folder)
    before = {f.name: f.read_bytes() for f in (folder / "full.qama").iterdir()}
    program = (
        "import resource, signal, faiss_qama.cli.app as c\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "c.main()\n"
    )
    arguments = ["fit", "corpus.npy", "-o", "full.qama", "--rescore", rescore, "--layout", layout]
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1
    assert {f.name: f.read_bytes() for f in (folder / "full.qama").iterdir()} == before


def test_a_reader_that_stops_is_no_error(folder):
    command = f"{sys.executable} -m faiss_qama search corpus.qama queries.npy | head -1"
    done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout == "query\trank\tid\tscore\n"
    assert done.stderr == ""


def test_texts_are_read_by_line_and_by_field(tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n", encoding="utf-8")
    assert embedding.read_texts(tmp_path / "a.txt") == ["one", "two"]
    (tmp_path / "a.jsonl").write_text('{"text": "one", "t": "uno"}\n{"text": "two", "t": "due"}\n')
    assert embedding.read_texts(tmp_path / "a.jsonl", "t") == ["uno", "due"]
    for content, message in [
        ('{"t": 1}\n', "line 1: not a JSON object with the field 'text'"),
        ('{"text": "a"}\n{"text"', "line 2: not a JSON"),
        ('{"text": 3}\n', "line 1: 'text' is no text"),
        ("[1]\n", "line 1: not a JSON object"),
        ("", "no lines"),
    ]:
        (tmp_path / "b.jsonl").write_text(content)
        with pytest.raises(ValueError, match=message):
            embedding.read_texts(tmp_path / "b.jsonl")
    (tmp_path / "c.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        embedding.read_texts(tmp_path / "c.txt")


def test_embed_writes_what_the_model_says(tmp_path, monkeypatch, capsys):
    class Encoder:
        def encode(self, texts, **_):
            return np.array([[len(t), ord(t[0])] for t in texts], dtype=np.float32)

    monkeypatch.setattr(embedding, "load_model", lambda model: Encoder())
    (tmp_path / "a.txt").write_text("one\nthree\n")
    app.cli(["embed", str(tmp_path / "a.txt")], standalone_mode=False)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), [[3, ord("o")], [5, ord("t")]])
    assert "2 x 2 float32" in capsys.readouterr().out


def test_a_missing_extra_is_named_with_its_install(tmp_path):
    (tmp_path / "a.txt").write_text("one\n")
    (tmp_path / "sentence_transformers.py").write_text("raise ImportError\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    done = run("embed", "a.txt", cwd=tmp_path, check=2, env=environment)
    assert done.stderr == "error: embedding needs sentence-transformers: pip install '.[embed]' in the clone\n"


def test_a_source_is_never_taken_for_a_leftover(folder, tmp_path):
    x = np.load(folder / "corpus.npy")
    (tmp_path / "shards").mkdir()
    for i in range(2):
        np.save(tmp_path / "shards" / f"vectors-{i}.npy", x[i::2])
    shards = ["shards/vectors-0.npy", "shards/vectors-1.npy"]
    done = run("fit", *shards, "-o", "shards", cwd=tmp_path, check=2)
    assert "holds no manifest.json; nothing was written" in done.stderr
    run("fit", *shards, "-o", "g.qama", cwd=tmp_path)
    done = run("fit", "g.qama/vectors-1.npy", "-o", "g.qama", "--rescore", "codes", cwd=tmp_path, check=2)
    assert "the corpus lies inside g.qama" in done.stderr
    assert QamaIndex.load(tmp_path / "g.qama").ntotal == 1200
    assert sorted(f.name for f in (tmp_path / "shards").iterdir()) == ["vectors-0.npy", "vectors-1.npy"]


def test_names_of_outputs_are_the_true_ones(folder):
    assert "wrote hits2.npz" in run("search", "corpus.qama", "queries.npy", "-o", "hits2", cwd=folder).stdout
    assert (folder / "hits2.npz").exists()


def test_every_command_explains_itself(tmp_path):
    for command in ("fit", "search", "eval", "inspect", "embed", "demo", "warmup"):
        assert "Usage" in run(command, "--help", cwd=tmp_path).stdout
    assert "0.1.0" in run("--version", cwd=tmp_path).stdout


@pytest.mark.parametrize(("asked", "value"), [(["--debug"], "0"), ([], "1"), ([], "0")])
def test_debug_shows_where_an_error_comes_from(tmp_path, monkeypatch, capsys, asked, value):
    np.save(tmp_path / "flat.npy", np.zeros(3, dtype=np.float32))
    monkeypatch.setattr(sys, "argv", ["faiss-qama", *asked, "fit", str(tmp_path / "flat.npy")])
    monkeypatch.setenv("FAISS_QAMA_DEBUG", value)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)  # which main replaces
    with pytest.raises(SystemExit, match="2"):
        app.main()
    *above, message = capsys.readouterr().err.strip().splitlines()
    if asked or value == "1":
        assert above[0] == "Traceback (most recent call last):"
        assert message.startswith("ValueError: ")
    else:
        assert above == []
        assert message.startswith("error: ")
    assert "flat.npy" in message


def test_build_indexes_other_vectors_with_the_same_quantizer(folder):
    np.save(folder / "other.npy", make_vectors(321, seed=8))
    arguments = ["corpus.qama", "other.npy", "-o", "other.qama", "--base", "BHNSW8", "--rescore", "sq8"]
    assert "321 x 36" in run("build", *arguments, cwd=folder).stdout
    built, fitted = (QamaIndex.load(folder / name) for name in ("other.qama", "corpus.qama"))
    assert built.factory_string == f"Qama({fitted.quantizer.layout}),BHNSW8,Refine(SQ8)"
    np.testing.assert_array_equal(
        built.reconstruct_n(0, 3), QamaIndex.load(folder / "other.qama", mmap=True).reconstruct_n(0, 3)
    )
    x = np.load(folder / "other.npy")
    assert fitted.quantizer.is_compatible_with(built.quantizer)
    assert (built.search(x, 1)[1][:, 0] == np.arange(321)).mean() > 0.99


def test_base_auto_says_what_it_took_and_holds_no_more_than_it_may(folder):
    arguments = ["corpus.npy", "-o", "auto.qama", "--base", "auto"]
    done = run("fit", *arguments, "--recall", "0.9", "--memory", "200", cwd=folder)
    assert "base        Flat: " in done.stdout
    assert "below 10,000 vectors nothing else is tried" in " ".join(done.stdout.split())
    assert ",Flat," in QamaIndex.load(folder / "auto.qama").factory_string
    run("fit", *arguments, "--recall", "0.9", "--memory", "6", cwd=folder)
    assert QamaIndex.load(folder / "auto.qama").bytes_per_vector[0] == 4
    done = run("fit", *arguments, "--memory", "0.5", cwd=folder, check=2)
    assert "memory: 0.5 bytes per vector, and codes of" in done.stderr
    assert run("fit", *arguments, "--memory", "nan", cwd=folder, check=2).stderr.startswith("error: memory: nan bytes")
    done = run("fit", "corpus.npy", "--memory", "60", cwd=folder, check=2)
    assert done.stderr == "error: memory is for base auto; the base is Flat\n"


def test_few_vectors_get_a_layout_by_rule_but_no_recall(tmp_path):
    np.save(tmp_path / "few.npy", make_vectors(50))
    done = run("fit", "few.npy", "--bytes", "8", cwd=tmp_path)
    assert "quantizer   2x32, " in done.stdout
    assert "chosen" not in done.stdout
    done = run("fit", "few.npy", "--recall", "0.9", "-o", "no.qama", cwd=tmp_path, check=2)
    assert "error: a layout is chosen by measuring, on 200 documents or 60 queries; got 45" in done.stderr
    assert not (tmp_path / "no.qama").exists()


def test_search_parameters_are_set_and_kept(folder):
    run("fit", "corpus.npy", "-o", "ivf.qama", "--base", "BIVF16", "--nprobe", "16", cwd=folder)
    assert QamaIndex.load(folder / "ivf.qama").nprobe == 16
    all_lists = run("search", "ivf.qama", "queries.npy", "--recall", "0.9", cwd=folder).stdout
    one_list = run("search", "ivf.qama", "queries.npy", "--nprobe", "1", "--oversample", "5", cwd=folder).stdout
    assert all_lists != one_list
    done = run("search", "corpus.qama", "queries.npy", "--nprobe", "4", cwd=folder, check=2)
    assert done.stderr == "error: nprobe means nothing to Flat; it takes no search parameters\n"
    done = run("fit", "corpus.npy", "-o", "no.qama", "--efsearch", "9", cwd=folder, check=2)
    assert done.stderr == "error: efSearch means nothing to Flat; it has no settings\n"
    assert not (folder / "no.qama").exists()


def test_eval_of_an_index_with_ids_of_its_own(folder):
    index, plain = QamaIndex.load(folder / "corpus.qama"), run("eval", "corpus.qama", "queries.npy", cwd=folder).stdout
    ids = np.random.default_rng(0).permutation(10**6 + np.arange(index.ntotal))
    own = QamaIndex(index.quantizer)
    own.add_with_ids(np.load(folder / "corpus.npy"), ids)
    own.save(folder / "own.qama")
    renamed = run("eval", "own.qama", "queries.npy", cwd=folder).stdout
    assert renamed.split("own.qama")[-1].split()[3] == plain.split("corpus.qama")[-1].split()[3]
    done = run("eval", "corpus.qama", cwd=folder, check=2)
    assert done.stderr == "error: corpus.qama is an index: pass QUERIES (.npy) too\n"


@pytest.mark.parametrize("kind", ["hamming", "fastscan", "binary"])
def test_export_is_read_by_faiss_alone(folder, kind):
    run("export", "corpus.qama", "stock.faiss", "--kind", kind, cwd=folder)
    reader = "read_index_binary" if kind == "binary" else "read_index"
    program = f"import sys, faiss; n = faiss.{reader}('stock.faiss').ntotal; print(n, 'faiss_qama' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=True).stdout
    assert out.split() == ["1200", "False"]
    assert not list(folder.glob("*.part"))


@pytest.mark.parametrize("base", ["IVF5000", "BIVF5000"])
@pytest.mark.parametrize("command", [["fit"], ["build", "corpus.qama"]])
def test_more_lists_than_the_corpus_has_vectors_are_refused_with_both_numbers(folder, base, command):
    done = run(*command, "corpus.npy", "-o", "many.qama", "--base", base, cwd=folder, check=2)
    assert done.stderr == f"error: {base} needs at least 5,000 vectors to train; the corpus has 1,200\n"
    assert not (folder / "many.qama").exists()


@pytest.mark.parametrize("metric", ["ip", "l2", "cosine"])
def test_what_inspect_prints_makes_such_an_index(folder, metric):
    run("fit", "corpus.npy", "-o", f"{metric}.qama", "--metric", metric, "--base", "IVF10", cwd=folder)
    printed = " ".join(run("inspect", f"{metric}.qama", cwd=folder).stdout.split())
    made = eval(
        re.search(r"made by (index_factory\(.*?'?\)) nprobe", printed)[1],
        {"faiss": faiss, "index_factory": index_factory},
    )
    there = QamaIndex.load(folder / f"{metric}.qama")
    assert repr(made) == repr(there).replace("1200 x", "0 x")


def test_labels_of_nothing_that_is_there_are_an_error(folder):
    run("fit", "corpus.npy", "-o", "ids.qama", cwd=folder)
    index = QamaIndex.load(folder / "ids.qama")
    moved = QamaIndex(index.quantizer)
    moved.add_with_ids(np.load(folder / "corpus.npy"), np.arange(1200) + 5000)
    moved.save(folder / "ids.qama")
    done = run("eval", "ids.qama", "queries.npy", "--qrels", "qrels.tsv", cwd=folder, check=2)
    assert (
        done.stderr == "error: qrels.tsv: none of 30 pairs names what is there; they are of ids, and --ids says which\n"
    )
