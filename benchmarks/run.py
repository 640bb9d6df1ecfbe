"""Measure what docs/results and the README state.

Usage: python benchmarks/run.py COMMAND DATA, where DATA holds data set folders (scifact, nfcorpus, quora,
nfcorpus-mpnet, quora-mpnet, stsb, banking77). Each command writes JSON files to docs/results, and then remakes the
tables of docs/results and of the README from all of these files.
"""

from __future__ import annotations

from pathlib import Path

import click
from common import SETS, WIDE_SETS
from measure import changes, speed, training
from measure.dimensions import PARTS as DIMENSIONS_PARTS
from measure.dimensions import dimensions
from measure.equal_bytes import equal_bytes
from measure.fits import fits
from measure.near_limit import PARTS as NEAR_LIMIT
from measure.near_limit import near_limit
from measure.qama import QAMA_SETS, qama_table
from measure.reads import reads
from measure.results import results, wide_results
from measure.rotated import rotated_study
from measure.side_by_side import side_by_side
from measure.user_data import user_data
from measure.whole_searches import SIZES, whole_searches
from rendering.pictures import draw
from tables import remake

FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
DATA = click.argument("data", type=FOLDER)
ONLY_SETS = click.option(
    "--set", "sets", type=click.Choice(SETS + WIDE_SETS), multiple=True, default=SETS, help="Only this one."
)


@click.group()
def main() -> None:
    """Measure, write docs/results, and remake the tables."""


@main.result_callback()
def remake_tables(_: None) -> None:
    """Remake the tables after every command."""
    remake()


@main.command("results")
@DATA
def run_results(data: Path) -> None:
    """Measure what no other command measures, and equal-bytes, qama and rotated, on sets of 384 dimensions."""
    results(data)


@main.command("wide")
@DATA
def run_wide(data: Path) -> None:
    """Measure the main job, equal-bytes and qama on sets of 768 dimensions."""
    wide_results(data)


@main.command("equal-bytes")
@DATA
@ONLY_SETS
def run_equal_bytes(data: Path, sets: tuple[str, ...]) -> None:
    """Compare codes of as many bytes, ours and others'."""
    for name in sets:
        equal_bytes(data, name)


@main.command("qama")
@DATA
def run_qama(data: Path) -> None:
    """Measure the tables of the QAMA paper."""
    for d in QAMA_SETS:
        qama_table(data, d)


@main.command("rotated")
@DATA
def run_rotated(data: Path) -> None:
    """Measure the table of the study of rotated ternary codes."""
    rotated_study(data)


@main.command("speed")
@DATA
@click.option("--part", "parts", type=click.Choice(list(speed.PARTS)), multiple=True, default=speed.PARTS)
def run_speed(data: Path, parts: tuple[str, ...]) -> None:
    """Time scans, encoding, loading and growth. Parts left out stay as they were measured."""
    speed.speed(data, parts)


@main.command("peers")
@DATA
@click.option("--size", "sizes", type=click.Choice(list(SIZES)), multiple=True, default=SIZES)
def run_peers(data: Path, sizes: tuple[str, ...]) -> None:
    """Time whole searches of ours, of FAISS and of other libraries, and draw them."""
    for size in sizes:
        whole_searches(data, size)
        draw(f"peers-{size}")


@main.command("training")
@DATA
@ONLY_SETS
@click.option("--part", "parts", type=click.Choice(training.PARTS), multiple=True, default=training.PARTS)
def run_training(data: Path, sets: tuple[str, ...], parts: tuple[str, ...]) -> None:
    """Measure what training is worth: two hours and more on two cores."""
    for name in sets:
        training.training(data, name, parts)


@main.command("compare")
@click.argument("other", type=FOLDER)
@DATA
@click.option("--python", help="Of the other checkout, where that is not OTHER/.venv/bin/python.")
@click.option("--part", "parts", multiple=True, help="Only timings whose names begin like this.")
def run_compare(other: Path, data: Path, python: str | None, parts: tuple[str, ...]) -> None:
    """Time this checkout and an OTHER one of this project, side by side, in processes that take turns."""
    side_by_side(other.resolve(), python or str(other.resolve() / ".venv/bin/python"), data.resolve(), parts)


@main.command("dimensions")
@DATA
@click.option("--part", "parts", type=click.Choice(DIMENSIONS_PARTS), multiple=True, default=DIMENSIONS_PARTS)
def run_dimensions(data: Path, parts: tuple[str, ...]) -> None:
    """Time fits of 768 to 3,072 dimensions, beside FAISS's training of a rotation, and a million vectors."""
    dimensions(data, parts)


@main.command("changes")
@click.argument("other", type=FOLDER)
@DATA
@click.option("--python", help="Of the other checkout, where that is not OTHER/.venv/bin/python.")
@click.option("--part", "parts", type=click.Choice(changes.PARTS), multiple=True, default=changes.PARTS)
def run_changes(other: Path, data: Path, python: str | None, parts: tuple[str, ...]) -> None:
    """Measure what changes of an index on disk cost, beside an OTHER checkout that saves all of it."""
    changes.changes(python or str(other.resolve() / ".venv/bin/python"), data, parts)


@main.command("fits")
@click.argument("other", type=FOLDER)
@DATA
@click.option("--python", help="Of the other checkout, where that is not OTHER/.venv/bin/python.")
def run_fits(other: Path, data: Path, python: str | None) -> None:
    """Measure the recall of codes that this checkout and an OTHER one fit, with five seeds."""
    fits(python or str(other.resolve() / ".venv/bin/python"), data.resolve())


@main.command("near-limit")
@DATA
@click.option("--part", "parts", type=click.Choice(list(NEAR_LIMIT)), multiple=True, default=NEAR_LIMIT)
def run_near_limit(data: Path, parts: tuple[str, ...]) -> None:
    """Measure how near codes come to what is possible, and what a trellis takes."""
    near_limit(data, parts)


@main.command("reads")
@DATA
def run_reads(data: Path) -> None:
    """Measure what searches that stop early read and find."""
    reads(data)


@main.command("user-data")
@DATA
def run_user_data(data: Path) -> None:
    """Measure a calibrated recall where texts repeat and where norms are not those fitted."""
    user_data(data)


@main.command("render")
def run_render() -> None:
    """Remake the tables alone."""


if __name__ == "__main__":
    main()
