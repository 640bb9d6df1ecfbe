"""The command ``faiss-qama fit``."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path

import click

from faiss_qama.arrays import row_norms
from faiss_qama.cli.options import (
    METRIC_CHOICES,
    PATH,
    base_option,
    drop_none,
    ef_search_option,
    metric_option,
    nprobe_option,
)
from faiss_qama.index_spec import IndexSpec
from faiss_qama.pipeline import fit_index
from faiss_qama.report.tables import fit_summary
from faiss_qama.rescore.factory import RESCORE_KINDS
from faiss_qama.storage import atomic_files
from faiss_qama.vectors import Corpus


@click.command()
@click.argument("corpus", nargs=-1, required=True, type=PATH)
@click.option("-o", "--output", type=PATH, help="Folder to write; an index there is replaced.  [default: CORPUS.qama]")
@click.option("--config", "config_path", type=PATH, help="Settings of the fit, YAML (see configs/).")
@click.option("--layout", help="Layout of the code, such as 2x192 or 2x96,1x192, or a name: binary, ternary, ...")
@click.option("--bytes", "size", type=int, help="Bytes per vector: the best layout is chosen by measuring.")
@click.option("--queries", "queries_path", type=PATH, help="Unlabelled queries like those to come, .npy.")
@click.option(
    "--pairs",
    type=(PATH, PATH),
    metavar="QUERIES QRELS",
    help="Train on queries, .npy, and relevant documents, .tsv: query row, corpus row, grade.",
)
@click.option(
    "--rescore",
    type=click.Choice(RESCORE_KINDS),
    help="How candidates are re-ranked.  [default: fp16; codes with --pairs or a residual layout]",
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
@click.option("--report", "page", type=PATH, help="HTML page to write: recall and speed by bytes per vector.")
def fit(
    corpus: tuple[Path, ...],
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
    """Fit a quantizer to CORPUS (one .npy file or several shards), write an index of it, and measure it."""
    from faiss_qama.training import FitConfig  # here, because the other commands do not need it
    from faiss_qama.training.fit import default_rescore
    from faiss_qama.training.pairs import read_pairs

    config = FitConfig() if config_path is None else FitConfig.from_yaml(config_path)
    if layout is not None or size is not None:
        config = replace(config, layout=layout, bytes=size)
    if pairs is not None:
        config = config.for_pairs()
    vectors = Corpus(list(corpus))
    queries = None if queries_path is None else Corpus(queries_path, vectors.shape[1])
    output = output or corpus[0].with_suffix(".qama")
    spec = IndexSpec(
        base=base,
        rescore=rescore or default_rescore(config, pairs=pairs is not None),
        settings=drop_none(nprobe=nprobe, efSearch=ef_search),
        recall=recall,
        memory=memory,
    )
    labelled = None if pairs is None else read_pairs(*pairs, vectors)
    if page is not None:
        from faiss_qama.report.page import write_page  # here, because it says what to install before anything is fitted

        others = [*vectors.paths, output, config_path, queries_path, *(pairs or ())]
        atomic_files.check_writable(page, [path for path in others if path is not None])
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
    if metric == "ip" and not result.index.quantizer.normalized:
        norms = row_norms(result.split.train)
        click.echo(
            f"note: vectors have norm {norms.min():.3g} to {norms.max():.3g}, and inner products rank by it; "
            "--metric cosine does not",
            err=True,
        )
    if queries_path is not None:
        result = replace(result, next_queries=str(queries_path))
    click.echo(fit_summary(result))
    if page is not None:
        write_page(result, page, shlex.join(["faiss-qama", *sys.argv[1:]]))
        click.echo(f"wrote {page}")
