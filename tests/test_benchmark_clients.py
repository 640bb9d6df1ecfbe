"""The module for ann-benchmarks and the client for VectorDBBench, against the exact answer.

They run on the real base classes where those are installed, else on stand-ins.
"""

from __future__ import annotations

import fnmatch
import inspect
import itertools
import multiprocessing
import pickle
import sys
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module, util
from pathlib import Path
from types import SimpleNamespace

import benchmark_stand_ins as stand_ins
import faiss
import numpy as np
import pytest
import yaml
from ann_benchmarks.algorithms.base.module import BaseANN
from conftest import make_vectors
from vectordb_bench.backend.clients import api
from vectordb_bench.backend.clients.api import MetricType
from vectordb_bench.backend.filter import FilterOp, IntFilter, LabelFilter, NonFilter

from faiss_qama import __version__

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
ANN, K, N = "ann_benchmarks.algorithms.faiss_qama.module", 10, 3000


def load(name, path):
    """Import the file ``path``, or the package that it is the ``__init__`` of, as the module ``name``."""
    found = [str(path.parent)] if path.name == "__init__.py" else None
    spec = util.spec_from_file_location(name, path, submodule_search_locations=found)
    sys.modules[name] = util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


FaissQamaANN = load(ANN, BENCHMARKS / "ann_benchmarks" / "module.py").FaissQama
load("qama_client", BENCHMARKS / "vectordbbench" / "__init__.py")
FaissQama = import_module("qama_client.client").FaissQama
config = import_module("qama_client.config")


def combinations(values):
    """Return what ann-benchmarks makes of a list, or of a mapping, of lists of choices."""
    if isinstance(values, dict):
        chosen = combinations(list(values.values()))
        return [dict(zip(values, choice, strict=True)) for choice in chosen]
    return [list(choice) for choice in itertools.product(*(v if isinstance(v, list) else [v] for v in values))]


(ALGORITHM,) = yaml.safe_load((BENCHMARKS / "ann_benchmarks" / "config.yml").read_text())["float"]["any"]
GROUPS = ALGORITHM["run_groups"].values()


def exact(x, xq, metric):
    index = faiss.IndexFlat(
        x.shape[1], faiss.METRIC_L2 if metric in ("euclidean", "L2") else faiss.METRIC_INNER_PRODUCT
    )
    index.add(x)
    return index.search(xq, K)[1]


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def recall(found, truth):
    return np.mean([len(set(a) & set(b)) / K for a, b in zip(found, truth.tolist(), strict=True)])


def asked_of(function):
    """Return name, kind and default of each parameter: what a caller may pass."""
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


BASES = [
    (stand_ins.BaseANN, BaseANN, FaissQamaANN),
    (stand_ins.VectorDB, api.VectorDB, FaissQama),
    (stand_ins.DBConfig, api.DBConfig, config.FaissQamaConfig),
    (stand_ins.DBCaseConfig, api.DBCaseConfig, config.FaissQamaIndexConfig),
]


@pytest.mark.parametrize(("stand_in", "base", "ours"), BASES, ids=[each[0].__name__ for each in BASES])
def test_ours_takes_what_the_base_class_declares(stand_in, base, ours):
    """The base class is the real one where that is installed, and then the stand-in declares the same."""
    assert issubclass(ours, base)
    assert getattr(stand_in, "__abstractmethods__", None) == getattr(base, "__abstractmethods__", None)
    assert not inspect.isabstract(ours)
    for name in (name for name, value in vars(stand_in).items() if inspect.isfunction(value)):
        asked = asked_of(getattr(stand_in, name))
        assert asked == asked_of(getattr(base, name))
        named = {parameter: None for parameter, kind, _ in asked if kind is not inspect.Parameter.VAR_KEYWORD}
        inspect.signature(getattr(ours, name)).bind(**named)


@pytest.fixture(scope="module", params=["unit", "any"])
def data(request):
    return [make_vectors(n, seed=seed, unit=request.param == "unit") for n, seed in ((N, 0), (40, 1))]


def test_every_argument_of_the_configuration_constructs():
    assert ALGORITHM["module"] + ".module" == ANN
    assert ALGORITHM["constructor"] == FaissQamaANN.__name__
    seen = set()
    for group in GROUPS:
        for options in itertools.chain.from_iterable(combinations(o) for o in group["arg_groups"]):
            assert options.keys() == {"base", "rescore", "bytes"}
            for arguments in combinations(group["query_args"]):
                algorithm = FaissQamaANN("angular", options)
                algorithm.set_query_arguments(*arguments)
                seen.add(str(algorithm))
                assert ("nprobe=" in str(algorithm)) == options["base"].startswith("IVF")
    counted = (
        np.prod([len(choices) for o in g["arg_groups"] for choices in o.values() if isinstance(choices, list)])
        * np.prod([len(choices) for choices in g["query_args"]])
        for g in GROUPS
    )
    assert len(seen) == sum(counted)  # results are stored and plotted under this name


def test_the_docker_image_installs_the_wheel_that_the_module_says_to_build():
    """The build's context is the root of ann-benchmarks."""
    lines = (BENCHMARKS / "ann_benchmarks" / "Dockerfile").read_text().splitlines()
    (copied,) = [line.split()[1:] for line in lines if line.startswith("COPY")]
    (installed,) = [line.split()[3:] for line in lines if line.startswith("RUN pip3 install")]
    (command,) = [line.split() for line in sys.modules[ANN].__doc__.splitlines() if "pip wheel" in line]
    folder, wheel = command[command.index("-w") + 1], f"faiss_qama-{__version__}-py3-none-any.whl"
    assert folder == ANN.rpartition(".")[0].replace(".", "/")
    assert fnmatch.fnmatch(f"{folder}/{wheel}", copied[0])
    assert fnmatch.fnmatch(f"{copied[1]}{wheel}", *installed)  # and nothing from PyPI by name


@pytest.mark.parametrize("metric", ["angular", "euclidean"])
@pytest.mark.parametrize("options", [{"base": "Flat", "bytes": 8}, {"base": "IVF16"}], ids=["Flat", "IVF16"])
def test_ann_benchmarks_module_finds_the_exact_neighbours(data, metric, options):
    x, xq = data
    truth = exact(unit(x), unit(xq), metric) if metric == "angular" else exact(x, xq, metric)
    algorithm, given = FaissQamaANN(metric, options | {"rescore": "fp16"}), (x.copy(), xq.copy())
    algorithm.fit(x)
    every = {"nprobe": 16} if "IVF" in options["base"] else {}
    algorithm.set_query_arguments(N // K, **every)
    algorithm.batch_query(xq, K)
    batch = algorithm.get_batch_results()
    assert recall(batch, truth) >= 0.99  # fp16 alone decides
    for one, many in zip([algorithm.query(q, K) for q in xq], batch, strict=True):
        np.testing.assert_array_equal(one, many)
    algorithm.set_query_arguments(1, **{name: 1 for name in every})
    algorithm.batch_query(xq, K)
    assert recall(algorithm.get_batch_results(), truth) < 0.95  # the arguments are heeded
    np.testing.assert_array_equal(x, given[0])  # the runner measures distances with these
    np.testing.assert_array_equal(xq, given[1])
    algorithm.done()


def test_ann_benchmarks_module_returns_no_missing_hits():
    algorithm = FaissQamaANN("euclidean", {"base": "Flat", "rescore": "codes"})
    algorithm.fit(make_vectors(N))
    assert sorted(algorithm.query(make_vectors(1, seed=1)[0], N + 5)) == list(range(N))


def client_of(path, x, **settings):
    """Return a client, and the shuffled ids from 1000 on of its rows; every fifth id is of ``label_20p``."""
    where, how = config.FaissQamaConfig(path=str(path)).to_dict(), config.FaissQamaIndexConfig(**settings)
    client = FaissQama(dim=x.shape[1], db_config=where, db_case_config=how, drop_old=True, with_scalar_labels=True)
    ids = np.random.default_rng(0).permutation(len(x)) + 1000
    with client.init():
        for rows in np.array_split(np.arange(len(x)), 7):
            labels = ["label_80p" if i % 5 else "label_20p" for i in ids[rows]]
            assert client.insert_embeddings(x[rows].tolist(), ids[rows].tolist(), labels) == (len(rows), None)
    with client.init():
        client.optimize(data_size=len(x))
    return client, ids


def answers(pickled, xq, filters=None):
    """Return what a copy of the client finds, asked as the runners of VectorDBBench ask."""
    client = pickle.loads(pickled)
    with client.init():
        client.prepare_filter(filters or NonFilter())
        return [client.search_embedding(q.tolist(), K) for q in xq]


@pytest.mark.parametrize("metric", ["COSINE", "L2"])
@pytest.mark.parametrize("base", ["Flat", "IVF16"])
def test_vectordbbench_client_finds_the_exact_neighbours(tmp_path, data, metric, base):
    x, xq = data
    settings = {"nprobe": 16} if base == "IVF16" else {}
    truth = exact(unit(x), unit(xq), metric) if metric == "COSINE" else exact(x, xq, metric)
    assert not FaissQama.need_normalize_cosine(None)  # so VectorDBBench gives vectors of any norm
    client, ids = client_of(tmp_path / "new", x, metric_type=MetricType(metric), base=base, oversample=300, **settings)
    assert recall(answers(pickle.dumps(client), xq), ids[truth]) >= 0.99
    client.config.oversample = 1  # another run on the same folder, which is not loaded again
    assert recall(answers(pickle.dumps(client), xq), ids[truth]) < 0.95


def test_vectordbbench_client_filters(tmp_path):
    x, xq = make_vectors(N), make_vectors(20, seed=1)
    client, ids = client_of(tmp_path, x, oversample=300)
    for filters, passed in (
        (IntFilter(int_value=1000 + N // 2, filter_rate=0.5), ids >= 1000 + N // 2),
        (LabelFilter(label_percentage=0.2), ids % 5 == 0),
    ):
        assert client.filter_supported(filters)
        truth = ids[passed][exact(x[passed], xq, "COSINE")]
        assert recall(answers(pickle.dumps(client), xq, filters), truth) >= 0.99


def test_vectordbbench_client_keeps_labels_whole_or_refuses_them(tmp_path):
    x, whole = make_vectors(200), ["l" * 31, "l" * 32, "ä" * 16, ""]
    where, how = config.FaissQamaConfig(path=str(tmp_path)).to_dict(), config.FaissQamaIndexConfig(oversample=200)
    client = FaissQama(dim=x.shape[1], db_config=where, db_case_config=how)
    for label in ("l" * 33, "ä" * 17):
        with pytest.raises(ValueError, match=f"labels of at most 32 bytes are kept; '{label}' has 3[34]"):
            client.insert_embeddings(x.tolist(), list(range(200)), [*whole, label] * 40)
    client.insert_embeddings(x.tolist(), list(range(200)), whole * 50)
    client.optimize()
    for i, label in enumerate(whole):
        with client.init():
            client.prepare_filter(SimpleNamespace(type=FilterOp.StrEqual, label_value=label))
            assert set(client.search_embedding(x[0].tolist(), 50)) == set(range(i, 200, 4))


def test_vectordbbench_client_drops_what_was_there(tmp_path):
    x, xq = make_vectors(N), make_vectors(5, seed=1)
    client_of(tmp_path, x[: N // 2])
    (tmp_path / "other.txt").write_text("kept")
    client, ids = client_of(tmp_path, x, oversample=300)
    assert recall(answers(pickle.dumps(client), xq), ids[exact(x, xq, "COSINE")]) >= 0.99
    assert (tmp_path / "other.txt").exists()


@pytest.mark.slow
def test_spawned_processes_answer_the_same_from_one_bundle(tmp_path):
    x, xq = make_vectors(N), make_vectors(20, seed=1)
    client, _ = client_of(tmp_path, x)
    pickled = pickle.dumps(client)
    with client.init():
        client.prepare_filter(LabelFilter(label_percentage=0.2))
        assert pickle.dumps(client) == pickled  # open or not, the object is its path and its settings
        assert isinstance(client._rows, np.memmap)
        with pytest.raises(ValueError, match="mmap=False"):  # the index is mapped
            client._index.add(x)
    assert len(pickled) < 2000
    assert answers(pickled, xq) == answers(pickle.dumps(pickle.loads(pickled)), xq)
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = list(pool.map(answers, [pickled] * 2, [xq] * 2))
    assert found[0] == found[1] == answers(pickled, xq)
