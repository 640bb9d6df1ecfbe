"""Seeded data with few intrinsic dimensions, and one small fitted quantizer a layout."""

from __future__ import annotations

import collections
import signal
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor

import faiss
import numpy as np
import pytest
import tabulate

from faiss_qama.evaluation import recall
from faiss_qama.growing import GrowingArray
from faiss_qama.training import FitConfig, fit

D = 36  # no multiple of 8
LAYOUTS = ("2x18", "1x36", "1.5x35", "0.5x36", "0.5orx36", "2x9,1.5x9,1x9,0.5x8", "2x5,0.5orx10,1x3", "1x1", "2x36")


@pytest.fixture(scope="session", autouse=True)
def speeds_are_measured_briefly():
    """No test looks at a speed, and a fit would measure its own for a second."""
    recall.MIN_SECONDS = 0.0


def slow_except(quick, values):
    """Return the parameters ``values``; ``make quick`` runs only those that are in ``quick``."""
    assert set(quick) <= set(values), f"{quick} are not all in {values}"
    return [value if value in quick else pytest.param(value, marks=pytest.mark.slow) for value in values]


def make_vectors(n: int, d: int = D, seed: int = 0, unit: bool = True) -> np.ndarray:
    """Vectors near an 8-dimensional surface with a decaying spectrum and a mean that is not 0."""
    rng = np.random.default_rng(seed)
    world = np.random.default_rng(7)
    latent = rng.standard_normal((n, 8)) * 0.8 ** np.arange(8)
    x = np.tanh(latent @ world.standard_normal((8, d))) + 0.3 * world.standard_normal(d)
    x += 0.1 * rng.standard_normal((n, d))
    if unit:
        x /= np.linalg.norm(x, axis=1, keepdims=True)
    else:
        x *= np.exp(0.5 * rng.standard_normal((n, 1))) * 100
    return x.astype(np.float32)


@pytest.fixture(scope="session")
def corpus() -> np.ndarray:
    return make_vectors(1003)


@pytest.fixture(scope="session")
def queries() -> np.ndarray:
    return make_vectors(57, seed=1)


@pytest.fixture(scope="session", params=LAYOUTS)
def quantizer(request, corpus):
    return fit(corpus, config=FitConfig(layout=request.param))


@pytest.fixture(scope="session", params=["unit ip", "unit l2", "any ip", "any l2"])
def case(request):
    """Corpus, queries and metric: unit vectors and vectors of any length, both metrics."""
    norm, metric = request.param.split()
    unit = norm == "unit"
    x, xq = make_vectors(1003, unit=unit), make_vectors(57, seed=1, unit=unit)
    return x, xq, faiss.METRIC_INNER_PRODUCT if metric == "ip" else faiss.METRIC_L2


class PartsInMemory:
    """A PartReader of arrays in memory."""

    def __init__(self, parts):
        self._parts = parts

    writable = False

    def array(self, name, shape, dtype, *, mapped=True):
        array = self._parts[name]
        assert (array.shape, array.dtype) == (shape, np.dtype(dtype)), name
        return array

    def growing(self, name, shape, dtype):
        return GrowingArray(self.array(name, shape, dtype))

    def has(self, name):
        return name in self._parts

    def invalid(self, name, reason):
        return ValueError(f"{name}: {reason}")


def fit_quietly(x, **settings):
    """Fit without the note that a small corpus gets."""
    metric = settings.pop("metric", faiss.METRIC_INNER_PRODUCT)
    queries = settings.pop("queries", None)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="fitted on")
        return fit(x, config=FitConfig(**settings), metric=metric, queries=queries)


def in_threads(work, parts=8):
    """Call ``work(part)`` for every part at once, with threads switched each microsecond; raise the first error."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(parts) as pool:
            list(pool.map(work, range(parts)))
    finally:
        sys.setswitchinterval(before)


@pytest.fixture(scope="session")
def sentence_model():
    """A sentence-transformer without a network: the mean of a vector a word, with prompts; other words are ignored."""
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    tokenizers = pytest.importorskip("tokenizers")
    words = ["?", "query", "document", "about", *(f"w{i}" for i in range(400))]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="?")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    embedding = modules.StaticEmbedding(tokenizer, embedding_weights=make_vectors(len(words), seed=5))
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(modules=[embedding, modules.Normalize()], device="cpu")
    model.prompts = {"query": "query about ", "document": "document about "}
    return model


def pytest_terminal_summary(terminalreporter):
    """Print the table of the contract suite: how many rescorers times metrics passed, by operation and base."""
    properties = [prop for report in terminalreporter.getreports("passed") for prop in report.user_properties]
    passed = collections.Counter(tuple(value) for name, value in properties if name == "combination")
    if not passed:
        return
    names, bases = (sorted(set(part)) for part in zip(*passed, strict=True))
    rows = [[name, *(passed[name, base] for base in bases)] for name in names]
    terminalreporter.write_line("\nrescorers x metrics that passed, by operation and base index")
    terminalreporter.write_line(tabulate.tabulate(rows, ["", *bases], tablefmt="plain"))


@pytest.fixture
def ctrl_c():
    """Call it to interrupt."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    yield lambda: signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGINT, before)
