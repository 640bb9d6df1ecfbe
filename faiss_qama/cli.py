"""The command line: faiss-qama fit | search | eval | inspect | embed | demo."""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import click
import faiss
import numpy as np

from faiss_qama import baselines, persistence, report
from faiss_qama._version import __version__
from faiss_qama.calibration import KS
from faiss_qama.evaluation import Dataset, Result, evaluate, exact, read_rows
from faiss_qama.index import QamaIndex
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
        error.show()
        sys.exit(2)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; nothing that was there before has changed", err=True)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        click.echo(f"error: {where}{error.strerror or error}", err=True)
        sys.exit(2)
    except (ValueError, TypeError, ImportError, MemoryError) as error:
        click.echo(f"error: {str(error) or 'out of memory'}", err=True)
        sys.exit(2)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def cli() -> None:
    """Learned codes for text embeddings: 1/20 to 1/60 of the bytes, searched by FAISS."""


@cli.command()
@click.argument("corpus", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder to write  [default: CORPUS.qama]")
@click.option("--config", "config_path", type=click.Path(), help="YAML settings of the fit.")
@click.option("--layout", help="Such as 2x192 or 2x96,1x192.")
@click.option("--bytes", "size", type=int, help="Instead: bytes a vector; as many components as fit.")
@click.option("--queries", "queries_path", type=click.Path(path_type=Path), help="Unlabelled queries, .npy.")
@click.option("--rescore", type=click.Choice(STORES), default="fp16", show_default=True, help="Second stage.")
@_metric
def fit(
    corpus: tuple[Path, ...],
    output: Path | None,
    config_path: str | None,
    layout: str | None,
    size: int | None,
    queries_path: Path | None,
    rescore: str,
    metric: str,
) -> None:
    """Fit a quantizer to CORPUS (one .npy file or several shards) and write an index of it."""
    from faiss_qama.training import FitConfig

    settings = FitConfig.from_yaml(config_path).to_dict() if config_path else {}
    if layout is not None or size is not None:
        settings |= {"layout": layout, "bytes": size}
    config = FitConfig(**settings)
    vectors = Corpus(list(corpus))
    queries = None if queries_path is None else Corpus(queries_path, vectors.shape[1])
    fit_and_report(vectors, output or corpus[0].with_suffix(".qama"), config, _METRICS[metric], rescore, queries)


def fit_and_report(
    corpus: Corpus, output: Path, config: Any, metric: int, rescore: str, queries: Corpus | None = None
) -> QamaIndex:
    """Fit, index and measure; print what came of it; return the index, memory-mapped."""
    from faiss_qama.training.data import draw
    from faiss_qama.training.fit import fit_draw

    persistence.check_writable(output)
    config.layout_in(corpus.shape[1])
    n, d = corpus.shape
    start = time.perf_counter()
    drawn = draw(corpus, queries, config.sample, config.seed)
    quantizer = fit_draw(drawn, config, metric)
    seconds = time.perf_counter() - start
    metric_text = f"metric {quantizer.metric_name}"
    what = f"{n:,} x {d} {corpus.dtype}, {report.size_text(corpus.nbytes)}"
    how = report.quantizer_text(quantizer)
    width = max(len(what), len(how)) + 4
    rows = [("corpus", f"{what:<{width}}{metric_text}"), ("quantizer", f"{how:<{width}}fitted in {seconds:.1f} s")]
    click.echo(report.facts(rows))

    index = QamaIndex.build(output, quantizer, corpus, rescore)
    if len(drawn.held_out):
        own = np.stack([np.arange(len(drawn.held_out)), drawn.held_out_rows], axis=1)
        dataset = Dataset(corpus, drawn.held_out, exclude=own if queries is None else None)
        truth = exact(dataset, 10, metric)
        lines = [("exact floats", (4 * d, 0), truth.result)]
        if rescore != "none":
            codes = index if rescore == "codes" else index.with_rescore("codes")
            lines.append(("codes only", codes.bytes_per_vector, evaluate(codes, dataset, truth)))
        if rescore != "codes":
            name = "codes, Hamming" if rescore == "none" else f"codes + {rescore} rescoring"
            lines.append((name, index.bytes_per_vector, evaluate(index, dataset, truth)))
        click.echo(report.results_table(lines, 10, truth.result))
    else:
        click.echo(f"note: {n} vectors are too few to hold any out, so nothing was measured", err=True)
    code_bytes, kept = (n * part for part in index.bytes_per_vector)
    sizes = report.size_text(code_bytes) + (f" + {report.size_text(kept)} vectors" if kept else "")
    click.echo(f"wrote {output} ({sizes})      next: faiss-qama search {output} queries.npy -k 10")
    return index


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
    D, I = index.search(load_vectors(queries_path, index.d), k, recall=recall, oversample=oversample)
    if output is not None:
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
@_metric
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
        index = QamaIndex.load(target, mmap=True)
        dataset = _dataset_of(index, target, queries_path, qrels, corpus_path)
        truth = exact(dataset, k, index.metric_type)
        rows = [(target.name, index.bytes_per_vector, evaluate(index, dataset, truth, **options))]
        records = [_record(target.name, rows[0][1], [rows[0][2]], dict(index.quantizer.config))]
    else:
        if not target.is_dir():
            raise FileNotFoundError(f"{target}: no such data set folder")
        dataset = Dataset.load(target)
        truth = exact(dataset, k, _METRICS[metric])
        rows, records = [], []
        for method in methods or (f"2x{max(1, dataset.corpus.shape[1] // 2)}",):
            results = []
            for seed in range(seeds):
                built = baselines.build(method, dataset, truth.metric, train_queries=train_queries, seed=seed)
                used = options if isinstance(built.index, QamaIndex) and built.index.rescore != "none" else {}
                results.append(evaluate(built.index, dataset, truth, **used))
            records.append(_record(method, built.bytes, results, built.config))
            rows.append((method, built.bytes, _mean(results)))
    n, d = dataset.corpus.shape
    click.echo(f"{target.name}: {n:,} x {d}, {len(dataset.queries):,} queries, {faiss.omp_get_max_threads()} threads")
    lines = [("exact floats", (4 * d, 0), truth.result), *rows]
    click.echo(report.results_table(lines, k, truth.result))
    if json_path is not None:
        settings = {"train_queries": train_queries, "k": k, "seeds": seeds, "metric": metric, **options}
        head = {"dataset": target.name, "corpus": [n, d], "queries": len(dataset.queries), "settings": settings}
        head |= {"threads": faiss.omp_get_max_threads(), "version": __version__, "faiss": faiss.__version__}
        exact_record = _record("exact floats", (4 * d, 0), [truth.result], {})
        json_path.write_text(json.dumps(head | {"results": [exact_record, *records]}, indent=2) + "\n")


def _dataset_of(
    index: QamaIndex, path: Path, queries_path: Path, qrels: Path | None, corpus_path: Path | None
) -> Dataset:
    """Return the data set that an index and some queries make."""
    queries = load_vectors(queries_path, index.d)
    if corpus_path is not None:
        corpus = Corpus(corpus_path, index.d)
    elif index.stored_vectors is not None:
        corpus = Corpus(index.stored_vectors, index.d, str(path))
    else:
        raise ValueError(f"{path} keeps no vectors to compare with; pass --corpus with the .npy it was made from")
    if len(corpus) != index.ntotal:
        raise ValueError(f"{corpus_path} has {len(corpus)} vectors; {path} has {index.ntotal}")
    return Dataset(corpus, queries, None if qrels is None else read_rows(qrels, 3, (len(queries), len(corpus))))


def _mean(results: list[Result]) -> Result:
    """Return the mean over fits."""
    ndcgs = [r.ndcg for r in results if r.ndcg is not None]
    return Result(
        float(np.mean([r.recall for r in results])),
        float(np.mean(ndcgs)) if ndcgs else None,
        float(np.mean([r.queries_per_second for r in results])),
    )


def _record(name: str, size: tuple[int, int], results: list[Result], config: dict[str, Any]) -> dict[str, Any]:
    """Return the JSON record of a method: the mean over fits, and each fit's own where there are several."""
    mean = _mean(results)
    record = {
        "method": name,
        "bytes": list(size),
        "recall": mean.recall,
        "ndcg": mean.ndcg,
        "queries_per_second": mean.queries_per_second,
        "config": config,
    }
    if len(results) > 1:
        record["each"] = [{"recall": r.recall, "ndcg": r.ndcg} for r in results]
    return record


@cli.command()
@click.argument("index_path", metavar="INDEX", type=click.Path(path_type=Path))
def inspect(index_path: Path) -> None:
    """Say what INDEX holds, and verify every checksum."""
    manifest = persistence.verify(index_path)
    index = QamaIndex.load(index_path, mmap=True)
    quantizer, calibration = index.quantizer, index.quantizer.calibration
    rows = [
        ("index", f"{index.ntotal:,} x {index.d}, metric {quantizer.metric_name}, rescore {index.rescore}"),
        ("quantizer", report.quantizer_text(quantizer)),
        ("bytes", f"{report.bytes_text(index.bytes_per_vector)} a vector"),
        ("fitted on", f"{quantizer.config['fitted_on']:,} vectors, seed {quantizer.config['seed']}"),
    ]
    if calibration is not None:
        source = "real queries" if quantizer.config["real_queries"] else "held-out documents made harder"
        rows.append(("calibrated", f"on {source} against {calibration.n:,} vectors; oversample for recall@10:"))
        needs = []
        for recall in (0.9, 0.95, 0.99):
            try:
                needs.append(f"{recall}: {calibration.oversample(KS[1], index.ntotal, 'floats', recall):.1f}")
            except ValueError:
                needs.append(f"{recall}: out of reach")
        rows.append(("", ", ".join(needs) + " (rescoring from floats)"))
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
