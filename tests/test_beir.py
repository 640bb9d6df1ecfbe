"""BEIR folders become data set folders whose rows can be traced back to ids."""

from __future__ import annotations

import gzip
import hashlib
import json

import faiss
import ir_measures
import numpy as np
import pytest
from conftest import make_vectors

from faiss_qama.cli import app
from faiss_qama.evaluation.datasets import Dataset
from faiss_qama.evaluation.ranking_metrics import ndcg, ranking_metrics
from faiss_qama.evaluation.recall import exact
from faiss_qama.texts import beir

N, NQ = 90, 40
DOCUMENTS = {f"d{i}": {"title": f"title {i}" if i % 3 else "", "text": f" body {i} "} for i in range(N - 1)} | {
    "q7": {"text": "the question seven"}  # a query that is itself a document
}
QUERIES = {f"q{i}": f"question {i}" for i in range(NQ)}
SPLITS = {"test": range(0, 20), "train": range(20, 33), "dev": range(33, 38)}


class Encoder:
    """Embeds a text at the place that its hash picks; queries and documents differ, as with prompts."""

    def __init__(self):
        self.calls = []

    def _vectors(self, texts, prompt):
        seeds = [int(hashlib.sha256((prompt + text).encode()).hexdigest()[:8], 16) for text in texts]
        return np.concatenate([make_vectors(1, seed=seed) for seed in seeds])

    def encode_query(self, texts, **_):
        self.calls.append(("query", len(texts)))
        return self._vectors(texts, "query: ")

    def encode_document(self, texts, **_):
        self.calls.append(("document", len(texts)))
        return self._vectors(texts, "document: ")


def grades(split):
    """Some graded pairs of a split's queries, by ids; the later queries first."""
    rng = np.random.default_rng(len(split))
    pairs = {
        (f"q{q}", list(DOCUMENTS)[d]): int(rng.integers(0, 3)) for q in SPLITS[split] for d in rng.integers(0, N, 4)
    }
    return dict(reversed(pairs.items()))


def write_qrels(folder, split, rows, header="query-id\tcorpus-id\tscore\n"):
    (folder / "qrels").mkdir(exist_ok=True)
    (folder / "qrels" / f"{split}.tsv").write_text(header + "".join(f"{q}\t{d}\t{g}\n" for (q, d), g in rows.items()))


def write_lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "tiny"
    path.mkdir()
    write_lines(path / "corpus.jsonl", ({"_id": i, **fields, "metadata": {}} for i, fields in DOCUMENTS.items()))
    write_lines(path / "queries.jsonl", ({"_id": i, "text": text} for i, text in QUERIES.items()))
    for split in SPLITS:
        write_qrels(path, split, grades(split))
    return path


@pytest.fixture
def encoder(monkeypatch):
    encoder = Encoder()
    monkeypatch.setattr(beir, "load_model", lambda model: encoder)
    return encoder


def embed(folder, *options):
    app.cli(["embed", str(folder), *map(str, options)], standalone_mode=False)


def ids(path):
    return path.read_text().splitlines()


def test_rows_traced_back_by_ids_are_what_the_texts_embed_to(folder, encoder, tmp_path):
    embed(folder, "-o", tmp_path / "made" / "tiny")
    made = tmp_path / "made" / "tiny"
    names = ids(made / "corpus_ids.txt")
    assert names == list(DOCUMENTS)
    texts = [f"{fields.get('title', '')} {fields['text']}".strip() for fields in DOCUMENTS.values()]
    assert texts[0] == "body 0"
    assert texts[1] == "title 1  body 1"
    np.testing.assert_array_equal(np.load(made / "corpus.npy"), encoder.encode_document(texts))
    for prefix, split in (("", "test"), ("train_", "train"), ("dev_", "dev")):
        asked = ids(made / f"{prefix}queries_ids.txt")
        assert asked == [f"q{i}" for i in SPLITS[split]]
        want = encoder.encode_query([QUERIES[i] for i in asked])
        np.testing.assert_array_equal(np.load(made / f"{prefix}queries.npy"), want)
        lines = ids(made / f"{prefix}qrels.tsv")[1:]
        rows = [[int(cell) for cell in line.split("\t")] for line in lines]
        assert {(asked[q], names[d]): g for q, d, g in rows} == grades(split)
    assert ids(made / "exclude.tsv")[1:] == [f"7\t{N - 1}"]
    assert not (made / "embedding.part").exists()


def test_ndcg_by_rows_is_that_of_ir_measures_by_ids(folder, encoder):
    embed(folder)
    dataset = Dataset.load(folder)
    truth = exact(dataset, 10, faiss.METRIC_INNER_PRODUCT)
    documents, asked = ids(folder / "corpus_ids.txt"), ids(folder / "queries_ids.txt")
    scores = dataset.queries @ np.load(folder / "corpus.npy").T
    run = [
        ir_measures.ScoredDoc(query, document, float(score))
        for query, row in zip(asked, scores, strict=True)
        for document, score in zip(documents, row, strict=True)
        if document != query  # as BEIR does
    ]
    graded = grades("test")
    relevant = {q for (q, _), g in graded.items() if g > 0}
    qrels = [ir_measures.Qrel(q, d, g) for (q, d), g in graded.items()]
    values = [m.value for m in ir_measures.iter_calc([ir_measures.nDCG @ 10], qrels, run) if m.query_id in relevant]
    assert 0 < np.mean(values) < 1
    assert ndcg(truth.I, dataset.qrels, 10) == pytest.approx(np.mean(values), abs=1e-6)
    embed(folder)
    app.cli(["eval", str(folder), "--method", "faiss:Flat"], standalone_mode=False)


def test_what_is_embedded_already_is_kept(folder, encoder, capsys):
    embed(folder)
    assert encoder.calls == [("document", N), ("query", 20), ("query", 13), ("query", 5)]
    assert f"corpus      {N} x 36 float32, embedded in" in capsys.readouterr().out
    x = np.load(folder / "corpus.npy")
    encoder.calls.clear()
    embed(folder)
    assert encoder.calls == []
    assert capsys.readouterr().out.count("kept, as model and files are the same") == 4
    noted = json.loads((folder / "corpus.json").read_text())
    digest = hashlib.sha256((folder / "corpus.jsonl").read_bytes()).hexdigest()
    assert noted == {"model": "all-MiniLM-L6-v2", "sha256": {"corpus.jsonl": digest}}

    embed(folder, "--model", "other")
    assert len(encoder.calls) == 4
    encoder.calls.clear()
    write_qrels(folder, "test", grades("test") | {("q39", "d3"): 1})
    embed(folder, "--model", "other")
    assert encoder.calls == [("query", 21)]
    assert ids(folder / "queries_ids.txt")[-1] == "q39"
    encoder.calls.clear()
    (folder / "queries.npy").write_bytes(b"damaged")
    np.save(folder / "corpus.npy", x[:-1])
    embed(folder, "--model", "other")
    assert encoder.calls == [("document", N), ("query", 21)]
    np.testing.assert_array_equal(np.load(folder / "corpus.npy"), x)


@pytest.mark.parametrize("block", [16, 45, 1000])
def test_an_interrupted_run_goes_on(folder, encoder, monkeypatch, block):
    embed(folder)
    want = {path.name: path.read_bytes() for path in folder.glob("*.npy")}
    monkeypatch.setattr(beir, "BLOCK", block)
    encoder.calls.clear()

    class Stopped(Encoder):
        def encode_document(self, texts, **_):
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().encode_document(texts)

        def encode_query(self, texts, **_):
            raise KeyboardInterrupt

    monkeypatch.setattr(beir, "load_model", lambda model: Stopped())
    with pytest.raises(KeyboardInterrupt):
        beir.embed_folder(folder, folder, "other")
    assert {path.name: path.read_bytes() for path in folder.glob("*.npy")} == want  # the old data set is there still
    monkeypatch.setattr(beir, "load_model", lambda model: encoder)
    beir.embed_folder(folder, folder, "other")
    done = min(2 * block, N)
    assert sum(n for kind, n in encoder.calls if kind == "document") == N - done
    assert {path.name: path.read_bytes() for path in folder.glob("*.npy")} == want
    assert json.loads((folder / "corpus.json").read_text())["model"] == "other"


def test_splits_and_twins_that_are_no_more_go(folder, encoder):
    np.save(folder / "dev_queries.npy", np.ones((2, 2), np.float32))
    (folder / "qrels" / "dev.tsv").unlink()
    embed(folder)
    assert np.load(folder / "dev_queries.npy").shape == (2, 2)  # not written by us, so not ours to drop
    (folder / "qrels" / "train.tsv").unlink()
    write_lines(folder / "queries.jsonl", ({"_id": i, "text": t} for i, t in QUERIES.items() if i != "q7"))
    write_qrels(folder, "test", {pair: g for pair, g in grades("test").items() if pair[0] != "q7"})
    embed(folder)
    assert not list(folder.glob("train_*"))
    assert not (folder / "exclude.tsv").exists()
    assert Dataset.load(folder).exclude is None


def test_qrels_without_a_header_and_the_last_of_a_pair_count(folder, encoder):
    write_qrels(folder, "test", {("q3", "d1"): 2, ("q1", "d5"): 1}, header="q3\td1\t1\n")
    embed(folder)
    assert ids(folder / "queries_ids.txt") == ["q1", "q3"]
    assert ids(folder / "qrels.tsv") == ["query\tdocument\tgrade", "1\t1\t2", "0\t5\t1"]


def judged_by_ir_measures(graded, run):
    """Return nDCG@10 and recall@10 of queries with a relevant document, from ids."""
    qrels = [ir_measures.Qrel(q, d, g) for (q, d), g in graded.items()]
    relevant = {q for (q, _), g in graded.items() if g > 0}
    values = {measure: [] for measure in (ir_measures.nDCG @ 10, ir_measures.R @ 10)}
    for m in ir_measures.iter_calc(values, qrels, run):
        if m.query_id in relevant:
            values[m.measure].append(m.value)
    return [np.mean(v) for v in values.values()]


def test_documents_and_queries_that_are_not_there_count_as_in_trec_eval(folder, encoder):
    """As ArguAna has them: BEIR keeps such grades, and no search finds the documents."""
    graded = grades("test") | {("q3", "gone"): 2, ("q3", "lost"): 1, ("q5", "gone"): 1}
    write_qrels(folder, "test", graded | {("nobody", "d1"): 1})
    write_qrels(folder, "train", grades("train") | {("q25", "gone"): 1})
    with pytest.warns(UserWarning, match="not there") as told:
        embed(folder)
    notes = " ".join(str(warning.message) for warning in told)
    assert "test.tsv: 3 grades of documents that are not there, such as 'gone', count as missed" in notes
    assert "test.tsv: 1 grades of queries that are not there, such as 'nobody', are left out" in notes
    assert "train.tsv: 1 grades of documents that are not there, such as 'gone', are left out" in notes
    assert ids(folder / "qrels.tsv").count("3\t-1\t2") == 1
    assert not any("-1" in line for line in ids(folder / "train_qrels.tsv"))
    dataset = Dataset.load(folder)
    truth = exact(dataset, 10, faiss.METRIC_INNER_PRODUCT)
    documents, asked = ids(folder / "corpus_ids.txt"), ids(folder / "queries_ids.txt")
    # Few hits, so that missing ones, whose id is -1 too, are among them.
    run = [
        ir_measures.ScoredDoc(query, documents[d], -r)
        for query, row in zip(asked, truth.I[:, :7], strict=True)
        for r, d in enumerate(row)
        if documents[d] != query
    ]
    padded = np.pad(truth.I[:, :7], ((0, 0), (0, 3)), constant_values=-1)
    got = ranking_metrics(padded, dataset.qrels, 10)
    want = judged_by_ir_measures(graded, run)
    np.testing.assert_allclose([got["ndcg"].mean(), got["relevant_recall"].mean()], want, atol=1e-6)
    app.cli(["eval", str(folder), "--method", "faiss:Flat"], standalone_mode=False)


def as_trec(folder):
    lines = [f"{q} 0 {d}  {g}" for (q, d), g in grades("test").items()]
    (folder / "qrels" / "test.tsv").unlink()
    (folder / "qrels" / "test.txt").write_text("\n".join(lines) + "\n\n")


def as_floats(folder):
    write_qrels(folder, "test", {pair: f"{grade}.0" for pair, grade in grades("test").items()})


def as_gzip(folder):
    for path in (folder / "corpus.jsonl", folder / "queries.jsonl", folder / "qrels" / "test.tsv"):
        path.with_name(path.name + ".gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()


@pytest.mark.parametrize("published", [as_trec, as_floats, as_gzip])
def test_a_folder_as_it_is_published_is_the_same_data_set(folder, encoder, tmp_path, published):
    embed(folder, "-o", tmp_path / "plain")
    published(folder)
    embed(folder, "-o", tmp_path / "other")
    for path in (tmp_path / "plain").iterdir():
        if path.suffix != ".json":
            assert (tmp_path / "other" / path.name).read_bytes() == path.read_bytes()


def test_ids_may_be_whole_numbers(folder, encoder):
    write_lines(folder / "corpus.jsonl", ({"_id": i, "text": f"body {i}"} for i in range(N)))
    write_lines(folder / "queries.jsonl", ({"_id": 1000 + i, "text": f"question {i}"} for i in range(NQ)))
    for split in SPLITS:
        write_qrels(folder, split, {(1000 + q, q): 1 for q in SPLITS[split]})
    embed(folder)
    assert ids(folder / "corpus_ids.txt") == [str(i) for i in range(N)]
    assert ids(folder / "qrels.tsv")[1:] == [f"{q}\t{q}\t1" for q in SPLITS["test"]]


def change(name, line, text):
    """Replace line ``line`` of a file, counted from 1, by ``text``."""

    def apply(folder):
        lines = (folder / name).read_text().splitlines(keepends=True)
        lines[line - 1] = text
        (folder / name).write_text("".join(lines))

    return apply


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (change("corpus.jsonl", 3, '{"_id": "d2"\n'), r"corpus.jsonl: line 3: not a JSON object with the field '_id'"),
        (change("corpus.jsonl", 3, '{"_id": "d2"}\n'), r"corpus.jsonl: line 3: not a JSON .* '_id' and 'text'"),
        (change("corpus.jsonl", 3, '{"_id": 2.5, "text": ""}\n'), "corpus.jsonl: line 3: '_id' is no text"),
        (change("corpus.jsonl", 3, '{"_id": true, "text": ""}\n'), "corpus.jsonl: line 3: '_id' is no text"),
        (change("corpus.jsonl", 3, '{"_id": "2", "text": "", "title": 3}\n'), "line 3: 'title' is no text"),
        (change("corpus.jsonl", 3, '{"_id": "d0", "text": ""}\n'), "line 3: the _id 'd0' is line 1's too; rename"),
        (
            change("corpus.jsonl", 3, '{"_id": "a\\tb", "text": ""}\n'),
            "line 3: an _id is one line of text without tabs",
        ),
        (
            change("corpus.jsonl", 3, '{"_id": "", "text": ""}\n'),
            "line 3: an _id is one line of text without tabs; got ''",
        ),
        (change("queries.jsonl", 2, "[]\n"), "queries.jsonl: line 2: not a JSON object"),
        (change("queries.jsonl", 2, '{"_id": "q0", "text": ""}\n'), "queries.jsonl: line 2: the _id 'q0' is line 1's"),
        (change("qrels/test.tsv", 2, "q1\td1\n"), "test.tsv: line 2: query-id, corpus-id and score, tab-separated"),
        (
            change("qrels/test.tsv", 2, "q1\td1\t1.5\n"),
            "test.tsv: line 2: a score is a whole number of up to 9 digits; got '1.5'",
        ),
        (
            lambda folder: write_qrels(folder, "test", {("qq", "d1"): 1, ("q1", "dd"): 1}),
            "test.tsv: none of 2 grades is of a query and a document that are there",
        ),
        (lambda folder: write_qrels(folder, "test", {}), "test.tsv: none of 0 grades is of"),
        (
            lambda folder: (folder / "corpus.jsonl").rename(folder / "corpus.jsonl.gz"),
            "corpus.jsonl.gz: not a whole gzip file",
        ),
        (lambda folder: (folder / "qrels" / "test.tsv").write_text(""), "test.tsv: no lines"),
        (lambda folder: (folder / "corpus.jsonl").write_bytes(b"\xff"), "corpus.jsonl: not UTF-8"),
        (lambda folder: (folder / "queries.jsonl").unlink(), "queries.jsonl: no such file; a BEIR folder holds"),
        (lambda folder: (folder / "qrels" / "test.tsv").unlink(), "test.tsv: no such file; a BEIR folder holds"),
    ],
)
def test_a_damaged_folder_is_refused_before_anything_is_written(folder, encoder, damage, message):
    damage(folder)
    before = sorted(path.name for path in folder.rglob("*"))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        embed(folder)
    assert encoder.calls == []
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_fields_of_a_folder_are_fixed(folder, encoder):
    with pytest.raises(ValueError, match="--field is for JSON lines"):
        embed(folder, "--field", "body")


@pytest.mark.slow
def test_a_real_sentence_transformer_embeds_both_sides_by_their_prompts(folder, sentence_model, tmp_path):
    sentence_model.save(str(tmp_path / "model"))
    write_lines(folder / "corpus.jsonl", ({"_id": i, "text": f"w{n} w{n + 5}"} for n, i in enumerate(DOCUMENTS)))
    write_lines(folder / "queries.jsonl", ({"_id": i, "text": f"w{n}"} for n, i in enumerate(QUERIES)))
    embed(folder, "--model", tmp_path / "model")
    dataset = Dataset.load(folder)
    want = sentence_model.encode([f"document about w{n} w{n + 5}" for n in range(N)])
    np.testing.assert_allclose(dataset.corpus.take(np.arange(N)), want, atol=1e-6)
    want = sentence_model.encode([f"query about w{n}" for n in SPLITS["test"]])
    np.testing.assert_allclose(dataset.queries, want, atol=1e-6)
    texts = tmp_path / "texts.jsonl"
    write_lines(texts, [{"t": "w1"}, {"t": "w2"}])
    embed(texts, "--field", "t", "--model", tmp_path / "model")
    np.testing.assert_allclose(np.load(tmp_path / "texts.npy"), sentence_model.encode(["w1", "w2"]), atol=1e-6)
