"""mteb itself, as installed, on small tasks made here: its scores are those of our own evaluation."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import faiss
import numpy as np
import pytest
from conftest import D, fit_quietly
from scipy.stats import spearmanr

from faiss_qama import QamaIndex
from faiss_qama.corpus import Corpus
from faiss_qama.evaluation.datasets import Dataset
from faiss_qama.evaluation.ranking_metrics import ndcg
from faiss_qama.evaluation.recall import exact
from faiss_qama.quantizer.transform import Linear

mteb = pytest.importorskip("mteb")

pytestmark = [
    pytest.mark.slow,
    # mteb calls what it and sentence-transformers have deprecated
    pytest.mark.filterwarnings("ignore:The fill_missing parameter is deprecated:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The `get_sentence_embedding_dimension` method:FutureWarning"),
]

RNG = np.random.default_rng(3)
DOCUMENTS = [" ".join(f"w{w}" for w in RNG.integers(0, 400, 6)) for _ in range(300)]
QUERIES = [" ".join(f"w{w}" for w in RNG.integers(0, 400, 3)) for _ in range(40)]
PAIRS = [(" ".join(row[:5]), " ".join(row[2:7])) for row in (text.split() * 2 for text in DOCUMENTS[:120])]
MADE_UP = {
    "description": "made up",
    "dataset": {"path": "none", "revision": "none"},
    "category": "t2t",
    "modalities": ["text"],
    "eval_splits": ["test"],
    "eval_langs": ["eng-Latn"],
}


@pytest.fixture(scope="module")
def embeddings(sentence_model):
    """Documents and queries by the model alone."""
    return sentence_model.encode_document(DOCUMENTS), sentence_model.encode_query(QUERIES)


@pytest.fixture(scope="module")
def qrels(embeddings):
    """Two graded documents a query, split from its 15 nearest."""
    x, xq = embeddings
    near = np.argsort(-(xq @ x.T), axis=1)[:, :15]
    rng = np.random.default_rng(4)
    return np.array([(q, d, g) for q, row in enumerate(near) for g, d in enumerate(rng.choice(row, 2, False), start=1)])


@pytest.fixture(scope="module")
def retrieval(qrels):
    datasets = pytest.importorskip("datasets")

    class Task(mteb.abstasks.AbsTaskRetrieval):
        metadata = mteb.TaskMetadata(name="MadeUpRetrieval", type="Retrieval", main_score="ndcg_at_10", **MADE_UP)

        def load_data(self, **_):
            corpus = [{"id": f"d{i}", "title": "", "text": text} for i, text in enumerate(DOCUMENTS)]
            queries = [{"id": f"q{i}", "text": text} for i, text in enumerate(QUERIES)]
            graded = {f"q{q}": {} for q in range(len(QUERIES))}
            for q, d, g in qrels.tolist():
                graded[f"q{q}"][f"d{d}"] = g
            made = {"relevant_docs": graded, "top_ranked": None}
            made |= {
                name: datasets.Dataset.from_list(rows) for name, rows in (("corpus", corpus), ("queries", queries))
            }
            self.dataset, self.data_loaded = {"default": {"test": made}}, True

    return Task()


@pytest.fixture(scope="module")
def similarity():
    datasets = pytest.importorskip("datasets")

    class Task(mteb.abstasks.AbsTaskSTS):
        metadata = mteb.TaskMetadata(name="MadeUpSTS", type="STS", main_score="cosine_spearman", **MADE_UP)
        scores = np.random.default_rng(5).random(len(PAIRS)) * 5

        def load_data(self, **_):
            one, two = zip(*PAIRS, strict=True)
            rows = datasets.Dataset.from_dict({"sentence1": one, "sentence2": two, "score": self.scores.tolist()})
            self.dataset, self.data_loaded = datasets.DatasetDict({"test": rows}), True

    return Task()


def score(model, task, cache=None):
    result = mteb.evaluate(model, task, cache=cache, show_progress_bar=False, co2_tracker=False)
    return result.task_results[0].get_score()


def encoder(*arguments, **options):
    from faiss_qama.integrations.mteb import QamaEncoder

    return QamaEncoder(*arguments, **options)


def test_floats_are_scored_alike(sentence_model, retrieval, embeddings, qrels):
    x, xq = embeddings
    truth = exact(Dataset(Corpus(x), xq, qrels), 10, faiss.METRIC_INNER_PRODUCT)
    assert 0.2 < truth.measured.mean.ndcg < 0.95
    assert score(sentence_model, retrieval) == pytest.approx(truth.measured.mean.ndcg, abs=1e-5)


@pytest.mark.parametrize("layout", ["2x18", "1x36", "2x9,0.5x8"])
@pytest.mark.parametrize("adapted", [False, True])
def test_retrieval_is_scored_as_an_index_that_rescores_from_codes(
    sentence_model, retrieval, embeddings, qrels, layout, adapted
):
    x, xq = embeddings
    quantizer = fit_quietly(x, layout=layout, seed=1)
    assert len(np.unique(quantizer.encode(x), axis=0)) == len(x)  # trec_eval breaks ties by id
    if adapted:
        turn = np.random.default_rng(6).standard_normal((D, D)).astype(np.float32) / 20
        quantizer = replace(quantizer, query_adapter=Linear(np.eye(D, dtype=np.float32) + turn, turn[0]))
    index = QamaIndex(quantizer, "codes")
    index.add(x)
    want = ndcg(index.search(xq, 10, oversample=100)[1], qrels, 10)
    floats = exact(Dataset(Corpus(x), xq, qrels), 10, faiss.METRIC_INNER_PRODUCT).measured.mean.ndcg
    assert abs(want - floats) > 1e-3
    assert score(encoder(sentence_model, quantizer), retrieval) == pytest.approx(want, abs=1e-5)


def test_symmetric_compresses_both_sides(sentence_model, retrieval, embeddings, qrels):
    x, xq = embeddings
    quantizer = fit_quietly(x, layout="1x36")
    held, asked = (quantizer.decode(quantizer.encode(v)) for v in (x, xq))
    want = exact(Dataset(Corpus(held), asked, qrels), 10, faiss.METRIC_INNER_PRODUCT).measured.mean.ndcg
    got = score(encoder(sentence_model, quantizer, symmetric=True), retrieval)
    assert got == pytest.approx(want, abs=1e-5)
    assert got != score(encoder(sentence_model, quantizer), retrieval)
    with pytest.raises(ValueError, match="symmetric needs a fitted Quantizer"):
        encoder(sentence_model, "1x36", symmetric=True)


@pytest.mark.filterwarnings("ignore:fitted on")
def test_a_layout_is_fitted_to_each_task(sentence_model, retrieval, similarity, embeddings, qrels):
    x, xq = embeddings
    index = QamaIndex(fit_quietly(x, layout="2x18"), "codes")
    index.add(x)
    want = ndcg(index.search(xq, 10, oversample=100)[1], qrels, 10)
    one, two = (sentence_model.encode(list(texts)) for texts in zip(*PAIRS, strict=True))
    quantizer = fit_quietly(one, layout="2x18")
    cosines = np.einsum("nd,nd->n", *(quantizer.decode(quantizer.encode(v)) for v in (one, two)))
    model = encoder(sentence_model, "2x18")
    for _ in range(2):  # each task anew
        assert score(model, retrieval) == pytest.approx(want, abs=1e-5)
        assert score(model, similarity) == pytest.approx(spearmanr(cosines, similarity.scores)[0], abs=1e-3)


@pytest.mark.filterwarnings("ignore:fitted on")
def test_the_default_layout_on_an_encoder_of_mteb(sentence_model, similarity):
    from mteb.models import SentenceTransformerEncoderWrapper

    wrapped = SentenceTransformerEncoderWrapper(sentence_model)
    one, two = (sentence_model.encode(list(texts)) for texts in zip(*PAIRS, strict=True))
    quantizer = fit_quietly(one)
    cosines = np.einsum("nd,nd->n", *(quantizer.decode(quantizer.encode(v)) for v in (one, two)))
    want = spearmanr(cosines, similarity.scores)[0]
    assert score(encoder(wrapped), similarity) == pytest.approx(want, abs=1e-3)


def test_results_are_kept_apart_by_mteb(sentence_model, retrieval, embeddings, tmp_path):
    x, _ = embeddings
    small, large = (fit_quietly(x, layout=layout) for layout in ("1x8", "2x36"))
    other = fit_quietly(x, layout="1x8", seed=1)
    models = [sentence_model, *(encoder(sentence_model, q) for q in (small, large, other))]
    models.append(encoder(sentence_model, small, symmetric=True))
    cache = mteb.ResultCache(tmp_path)
    first = [score(model, retrieval, cache) for model in models]
    assert len(set(first)) == len(models)
    assert [score(model, retrieval, cache) for model in models] == first  # from the cache
    names = [encoder(sentence_model, q).mteb_model_meta.experiment_name for q in (small, large, None, "1x8")]
    assert len(set(names)) == 4


def test_importing_the_package_imports_neither_mteb_nor_torch():
    program = "import sys, faiss_qama, faiss_qama.cli.app; assert not {'mteb', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
