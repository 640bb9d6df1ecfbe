"""All that `make results` and `make wide` measure: what is timed runs alone, the rest in a process per core."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from common import SETS, WIDE_SETS, write

from measure.choices import choices
from measure.equal_bytes import BUDGETS, WIDE_BUDGETS, keep, rows_of
from measure.main_job import main_job
from measure.qama import qama_table
from measure.rotated import rotated_study
from measure.scale import scale
from measure.stock import stock

Job = tuple[Callable[..., Any], ...]  # a function and its arguments


def results(data: Path) -> None:
    """Measure everything of 384 dimensions on the data set folders in ``data``."""
    start = time.perf_counter()
    stock(data / "quora")
    scale(data / "quora")
    *small, large = (data / name for name in SETS)
    others: list[Job] = [(choices, large), (main_job, large), (qama_table, data, 384)]
    others += [(measure, folder) for measure in (choices, main_job) for folder in small]
    _in_processes(data, SETS, BUDGETS, [*others, (rotated_study, data)])
    write("results", {"seconds": time.perf_counter() - start, "cores": os.cpu_count()})


def wide_results(data: Path) -> None:
    """Measure everything of 768 dimensions on the data set folders in ``data``."""
    others: list[Job] = [(main_job, data / name, ()) for name in reversed(WIDE_SETS)]
    _in_processes(data, WIDE_SETS, WIDE_BUDGETS, [*others, (qama_table, data, 768)])


def _in_processes(data: Path, sets: tuple[str, ...], budgets: tuple[int, ...], others: list[Job]) -> None:
    """Compare codes at equal bytes on ``sets``, of which the last is the largest, and run ``others``."""
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    *small, large = sets
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        # First what takes longest: peers, on small sets, then on the large one at the variants that were best there.
        parts = {name: [pool.submit(rows_of, data / name, size, []) for size in budgets] for name in small}
        jobs = [pool.submit(*others[0])]
        best = [keep(name, (part.result() for part in of_set)) for name, of_set in parts.items()]
        last = [pool.submit(rows_of, data / large, size, best) for size in budgets]
        jobs += [pool.submit(*job) for job in others[1:]]
        for done in as_completed(jobs):
            done.result()
        keep(large, (part.result() for part in last))
