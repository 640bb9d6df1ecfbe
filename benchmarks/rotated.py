"""The table of the study of rotated ternary codes, remade on these vectors: python benchmarks/rotated.py DATA.

Writes docs/results/rotated-study.json, and remakes the tables.
"""

from __future__ import annotations

from pathlib import Path

import click
from results import write
from tables import remake

from faiss_qama.comparison import tasks

# M. Nemlaghi, "Squeezing embeddings: a journey from classic to rotated ternary quantization" (2024), % of float: the
# mean over STS-B and Banking77 of four embeddings of Amazon's and Cohere's, whose packed bytes it compares as numbers.
PUBLISHED = {
    "scalar": 100.986,
    "rotated-scalar": 100.919,
    "ternary": 99.2325,
    "rotated-ternary": 99.6287,
    "binary": 89.8238,
    "rotated-binary": 90.6025,
}
OURS = ["1.5x384", "2x192", "2x384", "1.5x384+none", "2x192+none"]
SETS = ("stsb", "banking77")


def rotated_study(data: Path) -> None:
    """Measure its methods and ours on semantic similarity and classification."""
    record = {}
    for name in SETS:
        task = tasks.load_task(data / name)
        assert task is not None
        measured = tasks.measure(task, [*PUBLISHED, *OURS])
        record[name] = {"measure": task.measure, "results": [one.to_dict() for one in measured]}
    write("rotated-study", {"published": PUBLISHED, **record})


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
def main(data: Path) -> None:
    """Measure on the data set folders in DATA, and remake the tables."""
    rotated_study(data)
    remake()


if __name__ == "__main__":
    main()
