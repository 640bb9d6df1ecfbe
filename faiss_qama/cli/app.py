"""The command line: faiss-qama fit | build | search | eval | inspect | export | embed | demo."""

from __future__ import annotations

import shlex
import sys
import traceback
import warnings
from pathlib import Path

import click
import numpy as np

from faiss_qama._version import __version__
from faiss_qama.cli.evaluate import (
    METRIC_CHOICES,
    drop_none,
    ef_search_option,
    eval_command,
    k_option,
    nprobe_option,
    oversample_option,
    recall_option,
)
from faiss_qama.evaluation.recall import search_in_blocks
from faiss_qama.hamming.factory import AUTO, DEFAULT
from faiss_qama.index import export
from faiss_qama.index.build import build_index
from faiss_qama.index.qama_index import QamaIndex
from faiss_qama.index_spec import IndexSpec
from faiss_qama.pipeline import fit_index
from faiss_qama.quantizer.calibration import KS
from faiss_qama.report import tables
from faiss_qama.rescore.factory import RESCORE_KINDS
from faiss_qama.storage import atomic_files, bundle
from faiss_qama.vectors import Corpus, load_vectors

_metric = click.option(
    "--metric",
    type=click.Choice(list(METRIC_CHOICES)),
    default="ip",
    show_default=True,
    help="Inner product or L2 distance.",
)
_rescore = click.option(
    "--rescore",
    type=click.Choice(RESCORE_KINDS),
    default="fp16",
    show_default=True,
    help="How candidates are re-ranked.",
)
_rescore_of_fit = click.option(
    "--rescore",
    type=click.Choice(RESCORE_KINDS),
    help="How candidates are re-ranked.  [default: fp16; codes with --pairs or a residual layout]",
)
_base = click.option(
    "--base",
    default=DEFAULT,
    show_default=True,
    help="Index type: auto, Flat, IVF1024, BFlat, BHNSW32, ...",
)


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit status 2."""
    warnings.showwarning = lambda message, *_: click.echo(f"note: {message}", err=True)
    options: dict[str, bool] = {}
    try:
        sys.exit(cli(standalone_mode=False, obj=options) or 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        click.echo(f"error: {error.format_message()}", err=True)
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        sys.stderr.close()
        sys.exit(0)
    except _MISTAKES as error:
        click.echo(traceback.format_exc() if options.get("debug") else f"error: {_in_one_line(error)}", err=True)
        sys.exit(2)


_MISTAKES = (OSError, LookupError, ValueError, TypeError, ArithmeticError, RuntimeError, ImportError, MemoryError)


def _in_one_line(error: Exception) -> str:
    if isinstance(error, OSError):
        return (f"{error.filename}: " if error.filename else "") + (error.strerror or str(error))
    if isinstance(error, LookupError):  # what is mapped is not checked against its checksum
        return f"{error}; is the index damaged? faiss-qama inspect verifies it"
    return str(error) or "out of memory"


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.option("--debug", is_flag=True, envvar="FAISS_QAMA_DEBUG", help="Show the traceback of an error.")
@click.pass_context
def cli(context: click.Context, debug: bool) -> None:
    """Compress text embeddings to learned codes, and search them as FAISS does."""
    context.ensure_object(dict)["debug"] = debug


cli.add_command(eval_command)


@cli.command()
@click.argument("corpus", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="Folder to write; an index there is replaced.  [default: CORPUS.qama]",
)
@click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path),
    help="YAML file with settings of the fit; configs/ has examples.",
)
@click.option("--layout", help="Layout of the codes, such as 2x192 or 2x96,1x192.")
@click.option("--bytes", "size", type=int, help="Bytes per vector; the fit then chooses the layout by measuring.")
@click.option("--queries", "queries_path", type=click.Path(path_type=Path), help="Unlabelled queries, .npy.")
@click.option(
    "--pairs",
    type=(click.Path(path_type=Path), click.Path(path_type=Path)),
    metavar="QUERIES QRELS",
    help="Train on labelled queries: a .npy of queries, and a .tsv of query row, corpus row and grade.",
)
@_rescore_of_fit
@_base
@click.option(
    "--recall",
    type=click.FloatRange(0, 1, True, True),
    help="Recall@10 to reach, with the fewest bytes and, for --base auto, with the fastest index.",
)
@click.option(
    "--memory", type=click.FloatRange(0, min_open=True), help="Most bytes per vector that --base auto may use."
)
@nprobe_option
@ef_search_option
@_metric
@click.option(
    "--report", "page", type=click.Path(path_type=Path), help="HTML page to write, with charts of the result."
)
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
    from faiss_qama.training import FitConfig
    from faiss_qama.training.pairs import read_pairs

    settings = FitConfig.from_yaml(config_path).to_dict() if config_path is not None else {}
    if layout is not None or size is not None:
        settings |= {"layout": layout, "bytes": size}
    config = FitConfig(**settings) if pairs is None else FitConfig(**settings).for_pairs()
    vectors = Corpus(list(corpus))
    queries = None if queries_path is None else Corpus(queries_path, vectors.shape[1])
    output = output or corpus[0].with_suffix(".qama")
    searched = drop_none(nprobe=nprobe, efSearch=ef_search)
    # After a training on pairs floats would rank as they did before; and codes of a residual are read with codes alone.
    rescore = rescore or ("fp16" if pairs is None and "+" not in (config.layout or "") else "codes")
    labelled = None if pairs is None else read_pairs(*pairs, vectors)
    chosen_by = drop_none(recall=recall, memory=memory)
    if base != AUTO and memory is not None:
        raise ValueError(f"--memory is for --base auto; the base is {base}")
    if base != AUTO and recall is not None and config.layout is not None:
        raise ValueError(f"--recall chooses the layout, or --base auto; the layout is {config.layout}, the base {base}")
    if page is not None:
        from faiss_qama.report.page import write_page  # here, because it says what to install before anything is fitted

        others = [*vectors.paths, output, config_path, queries_path, *(pairs or ())]
        atomic_files.check_writable(page, [path for path in others if path is not None])
    metric_type, compare = METRIC_CHOICES[metric], page is not None
    outcome = fit_index(
        vectors,
        output,
        config,
        metric_type,
        rescore,
        queries=queries,
        base=base,
        settings=searched,
        pairs=labelled,
        **chosen_by,
        compare=compare,
    )
    click.echo(outcome)
    if page is not None:
        write_page(outcome, page, shlex.join(["faiss-qama", *sys.argv[1:]]))
        click.echo(f"wrote {page}")


@cli.command()
@click.argument("index_path", metavar="INDEX", type=click.Path(path_type=Path))
@click.argument("corpus", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@_rescore
@_base
@nprobe_option
@ef_search_option
def build(
    index_path: Path,
    corpus: tuple[Path, ...],
    output: Path,
    rescore: str,
    base: str,
    nprobe: int | None,
    ef_search: int | None,
) -> None:
    """Write an index of CORPUS with the quantizer of INDEX, without a new fit."""
    quantizer = QamaIndex.load(index_path, mmap=True).quantizer
    searched = drop_none(nprobe=nprobe, efSearch=ef_search)
    spec = IndexSpec(base=base, rescore=rescore, settings=searched)
    index = build_index(output, quantizer, Corpus(list(corpus), quantizer.d), spec)
    size = tables.bytes_text(index.bytes_per_vector)
    click.echo(f"wrote {output}: {index.ntotal:,} x {index.d}, {size} bytes a vector")


@cli.command("export")
@click.argument("index_path", metavar="INDEX", type=click.Path(path_type=Path))
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--kind", type=click.Choice(export.KINDS), default=export.KINDS[0], show_default=True, help="Kind of FAISS index."
)
def export_command(index_path: Path, output: Path, kind: str) -> None:
    """Write INDEX to OUTPUT as a stock FAISS index, which FAISS reads without this package."""
    atomic_files.check_writable(output, index_path.glob("*"))
    with atomic_files.replacing(output) as part:
        atomic_files.write_faiss(part, QamaIndex.load(index_path, mmap=True).to_faiss(kind))
    reader = "read_index_binary" if kind == "binary" else "read_index"
    click.echo(f"wrote {output}      next, in Python: faiss.{reader}({str(output)!r})")


@cli.command()
@click.argument("index_path", metavar="INDEX", type=click.Path(path_type=Path))
@click.argument("queries_path", metavar="QUERIES", type=click.Path(path_type=Path))
@k_option
@recall_option
@oversample_option
@nprobe_option
@ef_search_option
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), help="Write D and I to this .npz file instead of printing."
)
def search(
    index_path: Path,
    queries_path: Path,
    k: int,
    recall: float | None,
    oversample: float | None,
    nprobe: int | None,
    ef_search: int | None,
    output: Path | None,
) -> None:
    """Search INDEX for the rows of QUERIES (.npy), and print query, rank, id and score, tab-separated."""
    index = QamaIndex.load(index_path, mmap=True)
    if output is None:
        k = min(k, max(index.ntotal, 1))  # what is missing is not printed
    else:
        output = output if output.suffix == ".npz" else output.with_name(output.name + ".npz")
        atomic_files.check_writable(output, [queries_path, *index_path.glob("*")])
    options = {"recall": recall, "oversample": oversample, **drop_none(nprobe=nprobe, efSearch=ef_search)}
    D, I = search_in_blocks(index, load_vectors(queries_path, index.d), k, **options)
    if output is not None:
        with atomic_files.replacing(output) as part, part.open("wb") as file:
            np.savez(file, D=D, I=I)
        click.echo(f"wrote {output}: D {D.shape} {D.dtype}, I {I.shape} {I.dtype}")
        return
    click.echo("query\trank\tid\tscore")
    for query, (scores, ids) in enumerate(zip(D, I, strict=True)):
        for rank, (score, i) in enumerate(zip(scores, ids, strict=True), start=1):
            if i >= 0:
                click.echo(f"{query}\t{rank}\t{i}\t{score:.6g}")


@cli.command()
@click.argument("index_path", metavar="INDEX", type=click.Path(path_type=Path))
def inspect(index_path: Path) -> None:
    """Describe INDEX, and verify all its checksums."""
    manifest = bundle.verify(index_path)
    index = QamaIndex.load(index_path, mmap=True)
    quantizer, calibration = index.quantizer, index.quantizer.calibration
    rows = [
        ("index", f"{index.ntotal:,} x {index.d}, metric {quantizer.metric_name}, rescore {index.rescore}"),
        ("made by", f"index_factory({index.d}, {index.factory_string!r})"),
        *((name, value) for name, value in manifest.get("base_settings", {}).items()),
        ("bytes", f"{tables.bytes_text(index.bytes_per_vector)} a vector"),
    ]
    if calibration is not None:
        source = "real queries" if quantizer.config.get("real_queries") else "held-out documents made harder"
        rows.append(("calibrated", f"on {source} against {calibration.n:,} vectors; oversample for recall@10:"))
        needs = []
        for recall in (0.9, 0.95, 0.99):
            try:
                needs.append(f"{recall}: {calibration.oversample(KS[1], index.ntotal, 'floats', recall):.1f}")
            except ValueError:
                needs.append(f"{recall}: out of reach")
        rows.append(("", ", ".join(needs) + " (rescoring from floats)"))
    config = dict(quantizer.config)
    training = config.pop("training", None)
    rows.append(("settings", ", ".join(f"{name} {value}" for name, value in config.items() if value not in (None, []))))
    if training is not None:
        rows += tables.training_facts(training)
    rows.append(("written by", f"{manifest['written_by']}, generation {manifest['generation']}"))
    rows += [("", f"{f['name']}  {tables.size_text(f['bytes'])}  checksum ok") for f in manifest["files"].values()]
    click.echo(tables.facts(rows))


@cli.command()
@click.argument("texts", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    help="File or folder to write.  [default: TEXTS.npy, or the folder TEXTS]",
)
@click.option("--model", default="all-MiniLM-L6-v2", show_default=True, help="Name or path of a sentence-transformer.")
@click.option("--field", help="Field of a JSON line that holds the text.  [default: text]")
def embed(texts: Path, output: Path | None, model: str, field: str | None) -> None:
    """Embed TEXTS, one text per line (JSON lines if named .jsonl), into a .npy file of float32.

    If TEXTS is a BEIR folder (corpus.jsonl, queries.jsonl, qrels/test.tsv), write a data set folder for faiss-qama
    eval. Unchanged vectors that it holds already are kept.
    """
    from faiss_qama.texts.embedding import embed_texts, read_texts

    if texts.is_dir():
        from faiss_qama.texts.beir import embed_folder

        if field is not None:
            raise ValueError(f"--field is for JSON lines; those of the folder {texts} have the fields title and text")
        output = output or texts
        click.echo(tables.facts(embed_folder(texts, output, model)))
        click.echo(f"wrote {output}      next: faiss-qama eval {output}")
        return
    output = output or texts.with_suffix(".npy")
    atomic_files.check_writable(output, [texts])
    x = embed_texts(read_texts(texts, field or "text"), model)
    atomic_files.write_npy(output, x)
    click.echo(f"wrote {output}: {len(x):,} x {x.shape[1]} float32      next: faiss-qama fit {output}")


@cli.command()
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), default=Path("demo"), show_default=True, help="Folder to write."
)
def demo(output: Path) -> None:
    """Fit and search the documentation of Python's standard library, embedded with all-MiniLM-L6-v2."""
    from faiss_qama.texts.demo import run

    run(output)
