"""All that `make results` measures: what is timed runs alone, the rest in as many processes as there are cores."""

from __future__ import annotations

import os
import time
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from common import SETS, write

from measure.choices import choices
from measure.equal_bytes import BUDGETS, keep, rows_of
from measure.main_job import main_job
from measure.qama import qama_table
from measure.rotated import rotated_study
from measure.scale import scale
from measure.stock import stock


def results(data: Path) -> None:
    """Measure everything on the data set folders in ``data``."""
    start = time.perf_counter()
    stock(data / "quora")
    scale(data / "quora")
    os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
    *small, large = SETS
    with ProcessPoolExecutor(os.cpu_count(), get_context("spawn")) as pool:
        # First what takes longest: peers, on small sets, then on the large one at the variants that were best there.
        equal = {name: [pool.submit(rows_of, data / name, size, []) for size in BUDGETS] for name in small}
        jobs: list[Future[Any]] = [pool.submit(choices, data / large)]
        best = [keep(name, (part.result() for part in parts)) for name, parts in equal.items()]
        equal = {large: [pool.submit(rows_of, data / large, size, best) for size in BUDGETS]}
        jobs.append(pool.submit(main_job, data / large))
        jobs.append(pool.submit(qama_table, data))
        jobs += [pool.submit(choices, data / name) for name in small]
        jobs += [pool.submit(main_job, data / name) for name in small]
        jobs.append(pool.submit(rotated_study, data))
        for job in as_completed(jobs):
            job.result()
        keep(large, (part.result() for part in equal[large]))
    write("results", {"seconds": time.perf_counter() - start, "cores": os.cpu_count()})
