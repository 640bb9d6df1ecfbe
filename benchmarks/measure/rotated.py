"""The table of the study of rotated ternary codes, measured on these vectors, into docs/results/rotated-study.json."""

from __future__ import annotations

from pathlib import Path

from common import write

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
TASKS = ("stsb", "banking77")


def rotated_study(data: Path) -> None:
    """Measure the methods of the study and ours on semantic similarity and classification."""
    record = {}
    for name in TASKS:
        task = tasks.load_task(data / name)
        assert task is not None
        measured = tasks.measure(task, [*PUBLISHED, *OURS])
        record[name] = {"measure": task.measure, "results": [one.to_dict() for one in measured]}
    write("rotated-study", {"published": PUBLISHED, **record})
