"""The command ``faiss-qama fit``."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from faiss_qama.arrays import row_norms
from faiss_qama.cli.options import (
    METRIC_CHOICES,
    PATH,
    base_option,
    dim_option,
    drop_bad_rows_option,
    drop_none,
    ef_search_option,
    ids_option,
    metric_option,
    nprobe_option,
    open_corpus,
)
from faiss_qama.corpus import Corpus
from faiss_qama.index_spec import IndexSpec
from faiss_qama.pipeline import FitResult, fit_index
from faiss_qama.report.tables import fit_summary
from faiss_qama.rescore.factory import RESCORE_KINDS
from faiss_qama.storage import atomic_files

if TYPE_CHECKING:
    from faiss_qama.training import FitConfig


@click.command(short_help="Fit a quantizer, write an index, and measure it.")
@click.argument("corpus", nargs=-1, required=True, type=PATH)
@dim_option
@ids_option
@drop_bad_rows_option
@click.option("-o", "--output", type=PATH, help="Folder to write; an index there is replaced.  [default: CORPUS.qama]")
@click.option("--config", "config_path", type=PATH, help="Settings of the fit, YAML (see configs/).")
@click.option("--layout", help="Layout of the code, such as 2x192 or 2x96,1x192, or a name: binary, ternary, ...")
@click.option("--bytes", "size", type=int, help="Bytes per vector: the best layout is chosen by measuring.")
@click.option("--queries", "queries_path", type=PATH, help="Unlabelled queries like those to come.")
@click.option(
    "--pairs",
    type=(PATH, PATH),
    metavar="QUERIES QRELS",
    help="Train on queries, and relevant documents, .tsv: query row, corpus row (or id), grade.",
)
@click.option(
    "--rescore",
    type=click.Choice(RESCORE_KINDS),
    help="How candidates are re-ranked.  [default: fp16; codes with --pairs, a residual layout or a trellis]",
)
@base_option
@click.option(
    "--recall",
    type=click.FloatRange(0, 1, True, True),
    help="Recall@10 to reach, with the fewest bytes and, for --base auto, with the fastest index.",
)
@click.option("--memory", type=click.FloatRange(0, min_open=True), help="Bytes per vector that --base auto may hold.")
@nprobe_option
@ef_search_option
@metric_option
@click.option(
    "--report", "page", type=PATH, help="HTML page to write: recall and speed by bytes per vector (extra report)."
)
def fit(
    corpus: tuple[Path, ...],
    dim: int | None,
    ids: str | None,
    drop_bad_rows: bool,
    output: Path | None,
    config_path: Path | None,
    layout: str | None,
    size: int | None,
    queries_path: Path | None,
    pairs: tuple[Path, Path] | None,
    rescore: str | None,
    base: str,
    recall: float | None,
    memory: float | None,
    nprobe: int | None,
    ef_search: int | None,
    metric: str,
    page: Path | None,
) -> None:
    """Fit a quantizer to CORPUS, write an index of it, and measure it.

    CORPUS is a file of vectors, several shards, a folder of them or a quoted glob: .npy, .npz, .safetensors, .parquet,
    .arrow, .feather, .hdf5, .fvecs, .bvecs, .fbin, .u8bin, .i8bin, .faiss, or float32 without a header. CORPUS:NAME
    names a column or an array.
    """
    from faiss_qama.training.fit import default_rescore  # here, because the other commands do not need it
    from faiss_qama.training.pairs import read_pairs

    config = _config(config_path, layout, size, pairs=pairs is not None)
    vectors = open_corpus(corpus, dim, ids, drop_bad_rows)
    read_queries = partial(Corpus, d=vectors.shape[1], queries=True, d_of=vectors.name, drop_bad_rows=drop_bad_rows)
    queries = None if queries_path is None else read_queries(queries_path)
    output = output or _default_output(corpus[0], vectors)
    spec = IndexSpec(
        base=base,
        rescore=rescore or default_rescore(config, pairs=pairs is not None),
        settings=drop_none(nprobe=nprobe, efSearch=ef_search),
        recall=recall,
        memory=memory,
    )
    labelled = None if pairs is None else read_pairs(read_queries(pairs[0]), pairs[1], vectors)
    if page is not None:
        given = [vectors, *([queries] if queries else []), *([labelled.queries] if labelled else [])]
        others = [output, config_path, pairs and pairs[1]]
        _check_page(page, [*(path for part in given for path in part.paths), *filter(None, others)])
    metric = _metric_of(vectors, metric)
    result = fit_index(
        vectors,
        output,
        config,
        METRIC_CHOICES[metric],
        spec,
        queries=queries,
        pairs=labelled,
        compare=page is not None,
    )
    if metric == "ip":
        _note_norms(result)
    if queries_path is not None:
        result = replace(result, next_queries=str(queries_path))
    click.echo(fit_summary(result))
    if page is not None:
        from faiss_qama.report.page import write_page

        write_page(result, page, shlex.join(["faiss-qama", *sys.argv[1:]]))
        click.echo(f"wrote {page}")


def _config(path: Path | None, layout: str | None, size: int | None, *, pairs: bool) -> FitConfig:
    """Return the settings of the fit: those of the file, except what options say."""
    from faiss_qama.training import FitConfig

    config = FitConfig() if path is None else FitConfig.from_yaml(path)
    if layout is not None or size is not None:
        config = replace(config, layout=layout, bytes=size)
    return config.for_pairs() if pairs else config


def _check_page(page: Path, others: list[Path]) -> None:
    """Raise ImportError or OSError if the report cannot be drawn or written, before anything is fitted."""
    import faiss_qama.report.page  # noqa: F401  # says what to install

    atomic_files.check_writable(page, others)


def _note_norms(result: FitResult) -> None:
    """Say on standard error that norms decide inner products, if they vary."""
    if not result.index.quantizer.normalized:
        norms = row_norms(result.split.train)
        click.echo(
            f"note: vectors have norm {norms.min():.3g} to {norms.max():.3g}, and inner products rank by it; "
            "--metric cosine does not",
            err=True,
        )


def _default_output(source: Path, corpus: Corpus) -> Path:
    """Return where the index goes: beside the folder of shards, or beside the first file."""
    return (
        source.with_name(f"{source.resolve().name}.qama") if source.is_dir() else corpus.paths[0].with_suffix(".qama")
    )


def _metric_of(corpus: Corpus, metric: str) -> str:
    """Return the metric to fit for: that of the command line, or what the file of the corpus says."""
    asked = click.get_current_context().get_parameter_source("metric") is ParameterSource.COMMANDLINE
    if asked or corpus.metric is None:
        return metric
    if corpus.metric not in METRIC_CHOICES:
        raise ValueError(
            f"{corpus.name} says that its vectors are compared by {corpus.metric}; "
            f"--metric fits them for another: {', '.join(METRIC_CHOICES)}"
        )
    return corpus.metric
