"""The commands that take an index: ``faiss-qama build | search | inspect | export``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np

from faiss_qama.cli.options import (
    PATH,
    base_option,
    drop_bad_rows_option,
    drop_none,
    ef_search_option,
    ids_option,
    k_option,
    nprobe_option,
    open_corpus,
    oversample_option,
    recall_option,
    rescore_option,
)
from faiss_qama.corpus import Corpus
from faiss_qama.evaluation.recall import search_in_blocks
from faiss_qama.formats.kinds import BY_SUFFIX
from faiss_qama.index import export
from faiss_qama.index.build import build_index
from faiss_qama.index.qama_index import QamaIndex
from faiss_qama.index_spec import IndexSpec
from faiss_qama.quantizer.calibration import KS, K
from faiss_qama.report import tables
from faiss_qama.rescore.stored_vectors import StoredVectors
from faiss_qama.storage import atomic_files, bundle


@click.command(short_help="Index other vectors with the quantizer of an index.")
@click.argument("index_path", metavar="INDEX", type=PATH)
@click.argument("corpus", nargs=-1, required=True, type=PATH)
@ids_option
@drop_bad_rows_option
@click.option("-o", "--output", type=PATH, required=True, help="Folder to write.")
@rescore_option
@base_option
@nprobe_option
@ef_search_option
def build(
    index_path: Path,
    corpus: tuple[Path, ...],
    ids: str | None,
    drop_bad_rows: bool,
    output: Path,
    rescore: str,
    base: str,
    nprobe: int | None,
    ef_search: int | None,
) -> None:
    """Write an index of CORPUS with the quantizer of INDEX, without fitting another."""
    quantizer = QamaIndex.load(index_path, mmap=True).quantizer
    spec = IndexSpec(base=base, rescore=rescore, settings=drop_none(nprobe=nprobe, efSearch=ef_search))
    index = build_index(output, quantizer, open_corpus(corpus, quantizer.d, ids, drop_bad_rows, str(index_path)), spec)
    size = tables.bytes_text(index.bytes_per_vector)
    click.echo(f"wrote {output}: {index.ntotal:,} x {index.d}, {size} bytes per vector")


@click.command("export", short_help="Write an index as a stock FAISS index.")
@click.argument("index_path", metavar="INDEX", type=PATH)
@click.argument("output", type=PATH)
@click.option(
    "--kind", type=click.Choice(export.KINDS), default=export.KINDS[0], show_default=True, help="Type of the index."
)
def export_command(index_path: Path, output: Path, kind: str) -> None:
    """Write INDEX to OUTPUT as a stock FAISS index, which FAISS reads without this package."""
    atomic_files.check_writable(output, index_path.glob("*"))
    named = BY_SUFFIX.get(output.suffix.lower())
    if named is not None and ".faiss" not in named.suffixes:
        raise ValueError(f"{output}: a FAISS index is written, not a {named.what}: let its name end in .faiss")
    stock = QamaIndex.load(index_path, mmap=True).to_faiss(kind)
    with atomic_files.replacing(output) as part:
        atomic_files.write_faiss(part, stock)
    size, n = output.stat().st_size, stock.ntotal
    each = f", {size / n:,.0f} bytes per vector" if n else ""
    click.echo(f"wrote {output}: {type(stock).__name__} of {n:,} vectors, {tables.size_text(size)}{each}")
    reader = "read_index_binary" if kind == "binary" else "read_index"
    click.echo(f"next, in Python: faiss.{reader}({str(output)!r})")


@click.command(short_help="Search an index, and print the hits.")
@click.argument("index_path", metavar="INDEX", type=PATH)
@click.argument("queries_path", metavar="QUERIES", type=PATH)
@k_option
@recall_option
@oversample_option
@nprobe_option
@ef_search_option
@drop_bad_rows_option
@click.option("-o", "--output", type=PATH, help="Write scores D and ids I to this .npz instead.")
def search(
    index_path: Path,
    queries_path: Path,
    k: int,
    recall: float | None,
    oversample: float | None,
    nprobe: int | None,
    ef_search: int | None,
    drop_bad_rows: bool,
    output: Path | None,
) -> None:
    """Search INDEX for the rows of QUERIES, and print query, rank, id and score, tab-separated."""
    index = QamaIndex.load(index_path, mmap=True)
    queries = Corpus(queries_path, index.d, queries=True, d_of=str(index_path), drop_bad_rows=drop_bad_rows)
    if output is None:
        k = min(k, max(index.ntotal, 1))  # what is missing is not printed
    else:
        if output.suffix != ".npz" and output.name not in ("", ".."):  # folders, which are refused below
            output = output.with_name(output.name + ".npz")
        atomic_files.check_writable(output, [*queries.paths, *index_path.glob("*")])
    options = {"recall": recall, "oversample": oversample, **drop_none(nprobe=nprobe, efSearch=ef_search)}
    xq = queries.read()
    D, I = search_in_blocks(index, xq, k, **options)
    if queries.ids is not None:  # what was left out has no hits
        places = np.searchsorted(queries.ids, np.setdiff1d(np.arange(queries.n_stored), queries.ids))
        missing_D, missing_I = index.search(xq[:1], k, sel=[])
        D, I = np.insert(D, places, missing_D, axis=0), np.insert(I, places, missing_I, axis=0)
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


@click.command(short_help="Describe an index, and verify its checksums.")
@click.argument("index_path", metavar="INDEX", type=PATH)
def inspect(index_path: Path) -> None:
    """Print what INDEX holds, and verify every checksum."""
    manifest = bundle.verify(index_path)
    index = QamaIndex.load(index_path, mmap=True)
    quantizer, calibration = index.quantizer, index.quantizer.calibration
    metric = {"inner product": "faiss.METRIC_INNER_PRODUCT", "L2": "faiss.METRIC_L2"}.get(
        quantizer.metric_name, repr(quantizer.metric_name)
    )
    rows = [
        ("index", f"{index.ntotal:,} x {index.d}, metric {quantizer.metric_name}, rescore {index.rescore}"),
        ("made by", f"index_factory({index.d}, {index.factory_string!r}, {metric})"),
        *((name, value) for name, value in manifest.get("base_settings", {}).items()),
        ("bytes", f"{tables.bytes_text(index.bytes_per_vector)} per vector"),
    ]
    if calibration is not None:
        source = "real queries" if quantizer.fit_record.real_queries else "held-out documents with noise added"
        rows.append(("calibrated", f"on {source} against {calibration.n:,} vectors; oversample for recall@10:"))
        stage = "floats" if index.rescorer is None else index.rescorer.stage
        needs = []
        for recall in (0.9, 0.95, 0.99):
            try:
                needs.append(f"{recall}: {calibration.oversample(K, index.ntotal, stage, recall):.1f}")
            except ValueError:
                needs.append(f"{recall}: out of reach")
        most = getattr(calibration, stage)[KS.index(K)].max()
        rows.append(("", ", ".join(needs) + f" (re-ranking from {stage}; {most:.3f} was found at most)"))
    record = quantizer.fit_record
    rows.append(("quantizer", f"{tables.quantizer_text(quantizer)}, fitted on {record.fitted_on:,} vectors"))
    rows.append(("settings", _settings(record.config) or "those that a fit has by default"))
    if record.training is not None:
        rows += tables.training_facts(record.training)
    if isinstance(index.rescorer, StoredVectors) and index.ntotal >= 200:
        rows.append(("health", str(index.health())))
    rows.append(("written by", f"{manifest['written_by']}, generation {manifest['generation']}"))
    rows += [("", f"{f['name']}  {tables.size_text(f['bytes'])}  checksum ok") for f in manifest["files"].values()]
    click.echo(tables.facts(rows))


def _settings(config: Mapping[str, Any]) -> str:
    """Return the settings of a fit, and of its training, that are not the default ones."""
    from faiss_qama.training import FitConfig, TrainConfig  # here, because the other commands do not need it

    train = config.get("train") or {}
    defaults = json.loads(json.dumps([FitConfig().to_dict(), TrainConfig().to_dict()]))  # as the config was stored
    return ", ".join(
        f"{prefix}{name} {value}"
        for settings, default, prefix in zip((config, train), defaults, ("", "train."), strict=True)
        for name, value in settings.items()
        if name not in ("layout", "train") and value != default.get(name)
    )
