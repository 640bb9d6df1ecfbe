"""The command line: faiss-qama fit | search | eval | inspect | embed | demo."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import click
import faiss
import numpy as np

from faiss_qama import baselines, persistence, report
from faiss_qama._version import __version__
from faiss_qama.calibration import KS
from faiss_qama.evaluation import Dataset, Measured, evaluate, exact, read_rows, search_in_blocks
from faiss_qama.index import QamaIndex
from faiss_qama.pipeline import fit_index
from faiss_qama.quantizer import METRICS
from faiss_qama.rescore import STORES
from faiss_qama.vectors import Corpus, load_vectors

_METRICS = {"ip": METRICS["inner product"], "l2": METRICS["L2"]}
_metric = click.option("--metric", type=click.Choice(list(_METRICS)), default="ip", show_default=True)
_k = click.option("-k", type=click.IntRange(min=1), default=10, show_default=True, help="Neighbours.")
_recall = click.option("--recall", type=float, help="Share of the true neighbours to find, from the calibration.")
_oversample = click.option("--oversample", type=float, help="Instead: k times this many candidates are scored again.")


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit status 2."""
    warnings.showwarning = lambda message, *_: click.echo(f"note: {message}", err=True)
    try:
        sys.exit(cli(standalone_mode=False) or 0)
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
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"error: {where}{error.strerror or error}", err=True)
        sys.exit(2)
    except (ValueError, TypeError, ArithmeticError, RuntimeError, ImportError, MemoryError) as error:
        click.echo(f"error: {str(error) or 'out of memory'}", err=True)
        sys.exit(2)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Learned codes for text embeddings: 1/20 to 1/60 of the bytes, searched by FAISS."""


@cli.command()
@click.argument("corpus", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write  [default: CORPUS.qama]")
@click.option("--config", "config_path", type=click.Path(path_type=Path), help="YAML settings of the fit.")
@click.option("--layout", help="Such as 2x192 or 2x96,1x192.")
@click.option("--bytes", "size", type=int, help="Instead: bytes a vector of the codes.")
@click.option("--queries", "queries_path", type=click.Path(path_type=Path), help="Unlabelled queries, .npy.")
@click.option("--rescore", type=click.Choice(STORES), default="fp16", show_default=True, help="Second stage.")
@_metric
def fit(
    corpus: tuple[Path, ...],
    output: Path | None,
    config_path: Path | None,
    layout: str | None,
    size: int | None,
    queries_path: Path | None,
    rescore: str,
    metric: str,
) -> None:
    """Fit a quantizer to CORPUS (one .npy file or several shards) and write an index of it."""
    from faiss_qama.training import FitConfig

    settings = FitConfig.from_yaml(config_path).to_dict() if config_path is not None else {}
    if layout is not None or size is not None:
        settings |= {"layout": layout, "bytes": size}
    config = FitConfig(**settings)
    vectors = Corpus(list(corpus))
    queries = None if queries_path is None else Corpus(queries_path, vectors.shape[1])
    output = output or corpus[0].with_suffix(".qama")
    click.echo(fit_index(vectors, output, config, _METRICS[metric], rescore, queries))


@cli.command()
@click.argument("index_path", metavar="INDEX", type=click.Path(path_type=Path))
@click.argument("queries_path", metavar="QUERIES", type=click.Path(path_type=Path))
@_k
@_recall
@_oversample
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write D and I to this .npz instead.")
def search(
    index_path: Path,
    queries_path: Path,
    k: int,
    recall: float | None,
    oversample: float | None,
    output: Path | None,
) -> None:
    """Search INDEX for the rows of QUERIES (.npy); print query, rank, id and score, tab-separated."""
    index = QamaIndex.load(index_path, mmap=True)
    D, I = search_in_blocks(index, load_vectors(queries_path, index.d), k, recall=recall, oversample=oversample)
    if output is not None:
        output = output if output.suffix == ".npz" else output.with_name(output.name + ".npz")
        np.savez(output, D=D, I=I)
        click.echo(f"wrote {output}: D {D.shape} {D.dtype}, I {I.shape} {I.dtype}")
        return
    click.echo("query\trank\tid\tscore")
    for query, (scores, ids) in enumerate(zip(D, I, strict=True)):
        for rank, (score, i) in enumerate(zip(scores, ids, strict=True), start=1):
            if i >= 0:
                click.echo(f"{query}\t{rank}\t{i}\t{score:.6g}")


@cli.command("eval")
@click.argument("target", type=click.Path(path_type=Path))
@click.argument("queries_path", metavar="[QUERIES]", required=False, type=click.Path(path_type=Path))
@click.option("--method", "methods", multiple=True, help="What to measure, repeatable  [default: 2 bits, half of d]")
@click.option("--qrels", type=click.Path(path_type=Path), help="Grades for QUERIES.")
@click.option("--corpus", "corpus_path", type=click.Path(path_type=Path), help="The floats, if INDEX keeps none.")
@click.option("--train-queries", is_flag=True, help="Give the fit the folder's train_queries.npy, unlabelled.")
@_k
@_recall
@_oversample
@click.option("--metric", type=click.Choice(list(_METRICS)), default="ip", show_default=True, help="Of a folder.")
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Fits to average over.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the results here as well.")
def eval_command(
    target: Path,
    queries_path: Path | None,
    methods: tuple[str, ...],
    qrels: Path | None,
    corpus_path: Path | None,
    train_queries: bool,
    k: int,
    recall: float | None,
    oversample: float | None,
    metric: str,
    seeds: int,
    json_path: Path | None,
) -> None:
    """Measure methods on a data set folder, or an index (TARGET) on QUERIES (.npy).

    A data set folder holds corpus.npy, queries.npy, and optionally qrels.tsv, train_queries.npy and exclude.tsv.
    Methods: binary, mean-binary, median-binary, ternary, rotated-binary, rotated-ternary, scalar, rotated-scalar,
    hybrid, half-bit; layouts such as 2x192; faiss:FACTORY. A suffix +none, +codes, +fp16 or +fp32 says what rescores.
    """
    options = {name: value for name, value in (("recall", recall), ("oversample", oversample)) if value is not None}
    if queries_path is not None:
        if methods or train_queries or seeds > 1:
            raise ValueError("--method, --train-queries and --seeds are for a data set folder; an index is as it is")
        index = QamaIndex.load(target, mmap=True)
        dataset = _dataset_of(index, target, queries_path, qrels, corpus_path)
        truth = exact(dataset, k, index.metric_type)
        results = [evaluate(index, dataset, truth, **options)]
        measured = [Measured(target.name, index.bytes_per_vector, results, index.quantizer.config)]
    else:
        if qrels or corpus_path:
            raise ValueError("--qrels and --corpus are for an index and QUERIES; a data set folder has its own")
        if not target.is_dir():
            raise FileNotFoundError(f"{target}: no such data set folder")
        dataset = Dataset.load(target)
        truth = exact(dataset, k, _METRICS[metric])
        measured = [
            baselines.measure(method, dataset, truth, train_queries=train_queries, seeds=seeds, **options)
            for method in methods or (f"2x{max(1, dataset.corpus.shape[1] // 2)}",)
        ]
    n, d = dataset.corpus.shape
    name = target.resolve().name
    click.echo(f"{name}: {n:,} x {d}, {len(dataset.queries):,} queries, {faiss.omp_get_max_threads()} threads")
    click.echo(report.results_table([truth.measured, *measured], k))
    if json_path is not None:
        record = {
            "dataset": name,
            "corpus": [n, d],
            "queries": len(dataset.queries),
            "settings": {"train_queries": train_queries, "k": k, "seeds": seeds, **options},
            "metric": next(name for name, metric_type in _METRICS.items() if metric_type == truth.metric),
            "threads": faiss.omp_get_max_threads(),
            "versions": {"faiss-qama": __version__, "faiss": faiss.__version__},
            "results": [m.to_dict() for m in (truth.measured, *measured)],
        }
        json_path.write_text(json.dumps(record, indent=2) + "\n")


def _dataset_of(
    index: QamaIndex, path: Path, queries_path: Path, qrels: Path | None, corpus_path: Path | None
) -> Dataset:
    """Return the data set that an index and some queries make."""
    queries = load_vectors(queries_path, index.d)
    if corpus_path is not None:
        corpus = Corpus(corpus_path, index.d)
    elif index.vectors is not None:
        corpus = index.vectors
    else:
        raise ValueError(f"{path} keeps no vectors to compare with; pass --corpus with the .npy it was made from")
    if len(corpus) != index.ntotal:
        raise ValueError(f"{corpus_path} has {len(corpus)} vectors; {path} has {index.ntotal}")
    return Dataset(corpus, queries, None if qrels is None else read_rows(qrels, 3, (len(queries), len(corpus))))


@cli.command()
@click.argument("index_path", metavar="INDEX", type=click.Path(path_type=Path))
def inspect(index_path: Path) -> None:
    """Say what INDEX holds, and verify every checksum."""
    manifest = persistence.verify(index_path)
    index = QamaIndex.load(index_path, mmap=True)
    quantizer, calibration = index.quantizer, index.quantizer.calibration
    rows = [
        ("index", f"{index.ntotal:,} x {index.d}, metric {quantizer.metric_name}, rescore {index.rescore}"),
        ("quantizer", str(quantizer.layout)),
        ("bytes", f"{report.bytes_text(index.bytes_per_vector)} a vector"),
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
    rows.append(("settings", ", ".join(f"{name} {value}" for name, value in quantizer.config.items())))
    rows.append(("written by", f"{manifest['written_by']}, generation {manifest['generation']}"))
    rows += [("", f"{f['name']}  {report.size_text(f['bytes'])}  checksum ok") for f in manifest["files"].values()]
    click.echo(report.facts(rows))


@cli.command()
@click.argument("texts", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="File to write  [default: TEXTS.npy]")
@click.option("--model", default="all-MiniLM-L6-v2", show_default=True, help="A sentence-transformer: name or path.")
@click.option("--field", default="text", show_default=True, help="The field of a JSON line that holds the text.")
def embed(texts: Path, output: Path | None, model: str, field: str) -> None:
    """Embed TEXTS, a text a line (or JSON lines, if named .jsonl), into a .npy of float32."""
    from faiss_qama.embedding import embed_texts, read_texts

    output = output or texts.with_suffix(".npy")
    x = embed_texts(read_texts(texts, field), model)
    persistence.write_npy(output, x)
    click.echo(f"wrote {output}: {len(x):,} x {x.shape[1]} float32      next: faiss-qama fit {output}")


@cli.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), default=Path("demo"), show_default=True)
def demo(output: Path) -> None:
    """Fit and search the documentation of Python's standard library, embedded with all-MiniLM-L6-v2."""
    from faiss_qama.demo import run

    run(output)


if __name__ == "__main__":
    main()
