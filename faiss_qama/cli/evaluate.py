"""The command ``faiss-qama eval``: methods on a data set folder, or an index on queries."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click
import faiss
import numpy as np
from click.core import ParameterSource

from faiss_qama._version import __version__
from faiss_qama.cli.options import (
    METRIC_CHOICES,
    PATH,
    drop_bad_rows_option,
    drop_none,
    ef_search_option,
    k_option,
    metric_option,
    nprobe_option,
    oversample_option,
    recall_option,
)
from faiss_qama.comparison import tasks
from faiss_qama.comparison.methods import measure
from faiss_qama.comparison.tasks import Task, TaskResult, load_task
from faiss_qama.corpus import Corpus
from faiss_qama.evaluation.datasets import Dataset, read_labels
from faiss_qama.evaluation.recall import evaluate, exact
from faiss_qama.evaluation.results import MethodResult
from faiss_qama.formats.paths import files_of
from faiss_qama.index.by_row import by_row
from faiss_qama.index.qama_index import QamaIndex
from faiss_qama.quantizer.quantizer import COSINE, METRICS
from faiss_qama.report import tables
from faiss_qama.storage import atomic_files
from faiss_qama.storage.manifest import MANIFEST


@click.command("eval", short_help="Measure an index, or methods by name.")
@click.argument("target", type=PATH)
@click.argument("queries_path", metavar="[QUERIES]", required=False, type=PATH)
@click.option("--method", "methods", multiple=True, help="Method to measure, repeatable.  [default: 2 bits, half of d]")
@click.option("--qrels", type=PATH, help="Grades of documents for QUERIES, .tsv.")
@click.option("--corpus", "corpus_path", type=PATH, help="The vectors, if INDEX keeps none.")
@click.option("--train-queries", is_flag=True, help="Fit with the folder's train_queries.npy, unlabelled.")
@drop_bad_rows_option
@k_option
@recall_option
@oversample_option
@nprobe_option
@ef_search_option
@metric_option
@click.option(
    "--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Number of fits to average over."
)
@click.option(
    "--json",
    "json_path",
    type=PATH,
    help="File to write the results to as well; null stands for a missing figure.",
)
def eval_command(
    target: Path,
    queries_path: Path | None,
    methods: tuple[str, ...],
    qrels: Path | None,
    corpus_path: Path | None,
    train_queries: bool,
    drop_bad_rows: bool,
    k: int,
    recall: float | None,
    oversample: float | None,
    nprobe: int | None,
    ef_search: int | None,
    metric: str,
    seeds: int,
    json_path: Path | None,
) -> None:
    """Measure methods on the data set folder TARGET, or the index TARGET on QUERIES.

    A data set folder holds corpus.npy and queries.npy, and optionally qrels.tsv, train_queries.npy and exclude.tsv.
    A folder for semantic similarity holds {train,test}_{a,b}.npy and test_scores.npy. A folder for classification
    holds {train,test}.npy and {train,test}_labels.npy.

    Methods are layouts such as 2x192, a faiss:FACTORY, and binary, mean-binary, median-binary, ternary, rotated-binary,
    rotated-ternary, scalar, rotated-scalar, hybrid and half-bit. A suffix +none, +codes, +sq8, +fp16 or +fp32 chooses
    how candidates are re-ranked.
    """
    if json_path is not None:
        _check_json(json_path, target, [path for path in (queries_path, corpus_path) if path is not None], qrels)
    options, settings = drop_none(recall=recall, oversample=oversample), drop_none(nprobe=nprobe, efSearch=ef_search)
    if queries_path is not None:
        if methods or train_queries or seeds > 1:
            raise ValueError("--method, --train-queries and --seeds are for a data set folder; an index is as it is")
        index = QamaIndex.load(target, mmap=True)
        kind = COSINE if index.quantizer.cosine else index.metric_type
        metric = next(name for name, choice in METRIC_CHOICES.items() if choice == kind)
        opened = partial(Corpus, d=index.d, d_of=str(target), drop_bad_rows=drop_bad_rows)
        corpus = None if corpus_path is None else opened(corpus_path)
        dataset = _dataset_of(index, target, opened(queries_path, queries=True), qrels, corpus)
        measured = _measure_index(index, target.name, dataset, k, **options, **settings)
    else:
        _check_folder(target, for_an_index=bool(qrels or corpus_path or settings))
        task = load_task(target)
        if task is not None:
            _eval_task(task, target, methods, seeds, json_path)
            return
        dataset = Dataset.load(target, drop_bad_rows=drop_bad_rows)
        dataset = dataset.normalized() if metric == COSINE else dataset
        measure_one = partial(measure, train_queries=train_queries, seeds=seeds, **options)
        measured = _measure_methods(methods, dataset, k, metric, measure_one)
    given = {"train_queries": train_queries, "k": k, "seeds": seeds, **options, **settings}
    _report(dataset, measured, target, {"settings": given, "metric": metric}, json_path)


def _check_folder(target: Path, *, for_an_index: bool) -> None:
    """Raise ValueError or FileNotFoundError unless ``target`` and the options are those of a data set folder."""
    if (target / MANIFEST).exists():
        raise ValueError(f"{target} is an index: pass QUERIES (.npy) too")
    if for_an_index:
        raise ValueError("--qrels, --corpus, --nprobe, --efsearch are for an index; a data set folder has its own")
    if not target.is_dir():
        raise FileNotFoundError(f"{target}: no such data set folder")


def _check_json(path: Path, target: Path, vectors: list[Path], qrels: Path | None) -> None:
    """Raise OSError if the results cannot be written, or would replace what is read, before anything is measured."""
    read = [*(file for source in vectors for file, _ in files_of(source)), *target.glob("*")]
    atomic_files.check_writable(path, read if qrels is None else [*read, qrels])


def _measure_index(index: QamaIndex, name: str, dataset: Dataset, k: int, **options: Any) -> list[MethodResult]:
    """Measure exact floats and an index."""
    truth = exact(dataset, k, index.metric_type)
    results = [evaluate(by_row(index), dataset, truth, **options)]
    return [
        truth.measured,
        MethodResult(name, index.bytes_per_vector, results, index.quantizer.fit_record.to_dict()),
    ]


def _measure_methods(
    methods: Sequence[str], dataset: Dataset, k: int, metric: str, measure_one: Callable[..., MethodResult]
) -> list[MethodResult]:
    """Measure exact floats and methods by name."""
    truth = exact(dataset, k, METRICS["L2" if metric == "l2" else "inner product"])
    names = methods or (f"2x{max(1, dataset.corpus.shape[1] // 2)}",)
    return [truth.measured, *(measure_one(name, dataset, truth) for name in names)]


def _report(
    dataset: Dataset, measured: list[MethodResult], target: Path, about: dict[str, Any], json_path: Path | None
) -> None:
    """Print what was measured with the queries of a data set, and write it as JSON."""
    (n, d), nq, threads = dataset.corpus.shape, len(dataset.queries), faiss.omp_get_max_threads()
    click.echo(f"{target.resolve().name}: {n:,} x {d}, {nq:,} queries, threads: {threads}")
    click.echo(tables.results_table(measured, about["settings"]["k"]))
    _write(json_path, target, {"corpus": [n, d], "queries": nq, **about, "threads": threads}, measured)


def _eval_task(task: Task, target: Path, methods: tuple[str, ...], seeds: int, json_path: Path | None) -> None:
    """Measure methods on a similarity or classification folder."""
    context = click.get_current_context()
    for name in ("train_queries", "drop_bad_rows", "k", "recall", "oversample", "metric"):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            flag = "-k" if name == "k" else f"--{name.replace('_', '-')}"
            raise ValueError(f"{flag} is for retrieval; {target} holds a {type(task).__name__.lower()} task")
    measured = tasks.measure(task, list(methods) or [f"2x{max(1, task.train.shape[1] // 2)}"], seeds=seeds)
    kind, (n, d), items = type(task).__name__.lower(), task.train.shape, len(measured[0].floats)
    click.echo(f"{target.resolve().name}: {kind}, {n:,} x {d} to fit on, {items:,} to test")
    click.echo(tables.task_table(measured))
    _write(json_path, target, {"task": kind, "measure": task.measure, "settings": {"seeds": seeds}}, measured)


def _write(
    path: Path | None, target: Path, about: dict[str, Any], measured: Sequence[MethodResult] | Sequence[TaskResult]
) -> None:
    """Write what was measured as JSON, if there is a path to write it to."""
    if path is not None:
        versions = {"faiss-qama": __version__, "faiss": faiss.__version__}
        record = {"dataset": target.resolve().name, **about, "versions": versions}
        record["results"] = [m.to_dict() for m in measured]
        record = json.loads(json.dumps(record), parse_constant=lambda _: None)  # JSON has no NaN
        atomic_files.write_text(path, json.dumps(record, indent=2) + "\n")


def _dataset_of(index: QamaIndex, path: Path, queries: Corpus, qrels: Path | None, corpus: Corpus | None) -> Dataset:
    """Return the data set that an index and some queries make; ``qrels`` names documents by their ids in the index."""
    corpus = corpus or index.vectors
    if corpus is None:
        raise ValueError(f"{path} keeps no vectors to compare with; pass --corpus with the file it was made from")
    if len(corpus) != index.ntotal:
        raise ValueError(
            f"{corpus.paths[0]} has {len(corpus)} vectors; {path} has {index.ntotal}: pass a folder of all that it "
            "holds, in the order in which they were added"
        )
    if index.quantizer.cosine:
        corpus = corpus.normalized()
    corpus.ids = None if np.array_equal(index.ids, np.arange(index.ntotal)) else index.ids
    return Dataset(corpus, queries.read(), None if qrels is None else read_labels(qrels, 3, queries, corpus))
