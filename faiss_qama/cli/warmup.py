"""The command ``faiss-qama warmup``."""

from __future__ import annotations

import tempfile
import time
import warnings
from pathlib import Path

import click
import numpy as np

from faiss_qama.index.qama_index import QamaIndex
from faiss_qama.kernels import kernel
from faiss_qama.quantizer.layout import CodeLayout
from faiss_qama.quantizer.quantizer import METRICS
from faiss_qama.rescore.factory import RESCORE_KINDS
from faiss_qama.training import FitConfig, fit

USUAL = ("2x192", "2x384", "2x512", "2x768")  # the defaults of 384, 768, 1,024 and 1,536 dimensions


@click.command(short_help="Compile the loops of searches ahead of time.")
@click.argument("layouts", metavar="[LAYOUT]...", nargs=-1)
def warmup(layouts: tuple[str, ...]) -> None:
    """Compile the loops of searches into numba's cache, as for the image of a container.

    Without it, the first search of a LAYOUT compiles them, which takes seconds. By default it compiles those of 2x192,
    2x384, 2x512 and 2x768, which a fit to 384, 768, 1,024 and 1,536 dimensions takes. The environment variable
    NUMBA_CACHE_DIR names the folder of the cache.
    """
    parsed, kernels = [CodeLayout.parse(text) for text in layouts or USUAL], kernel("encoding")
    if kernels is None:
        raise ImportError("it is numba that compiles loops: pip install numba")
    from faiss_qama.kernels.compiling import keeps  # here, because numba may be missing

    folder = kernels.encode.stats.cache_path
    if not keeps(kernels.encode):
        raise OSError(f"{folder} cannot be written: set NUMBA_CACHE_DIR to a folder that can")
    for layout in parsed:
        start = time.perf_counter()
        _search_with(layout)
        click.echo(f"{layout}: {time.perf_counter() - start:.0f} s")
    click.echo(f"wrote {folder}")


def _search_with(layout: CodeLayout) -> None:
    """Search indexes of each kind with small made-up corpora, as built and as mapped."""
    d = max(layout.components, layout.residual.components if layout.residual else 0)
    x = np.random.default_rng(0).standard_normal((300, d), dtype=np.float32)
    for metric in METRICS.values():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fitted on")  # few vectors, whose neighbours do not matter
            quantizer = fit(x, config=FitConfig(layout=str(layout), rotation="random"), metric=metric)
        for base in ("Flat", "IVF4"):
            for rescore in RESCORE_KINDS:
                index = QamaIndex(quantizer, rescore, base=base)
                index.train(x)
                index.add(x)
                with tempfile.TemporaryDirectory() as folder:
                    index.save(Path(folder) / "index")
                    for each in (index, QamaIndex.load(Path(folder) / "index", mmap=True)):
                        D, _ = each.search(x[:2], 2)
                        each.range_search(x[:2], float(D[0, 0]))
