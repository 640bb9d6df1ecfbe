"""Wrote the bundles of format version 1 in this folder, which must load for ever. Kept to show what they hold."""

from __future__ import annotations

import warnings
from pathlib import Path

import faiss
import numpy as np
from conftest import make_vectors

from faiss_qama import QamaIndex
from faiss_qama.training import FitConfig, TrainConfig, fit

HERE = Path(__file__).parent
X, XQ = make_vectors(300), make_vectors(300, seed=1)


def keep(name: str, index: QamaIndex) -> None:
    index.save(HERE / f"{name}.qama")
    (HERE / f"{name}.qama" / ".lock").unlink(missing_ok=True)
    D, I = index.search(XQ[:20], 5, oversample=4)
    np.savez_compressed(
        HERE / f"{name}-answers.npz", queries=XQ[:20], D=D, I=I, floats=index.quantizer.calibration.floats
    )


def main() -> None:
    """Fit, fill and write four indexes: every kind of file is in one of them."""
    warnings.simplefilter("ignore")
    flat = QamaIndex(
        fit(X, config=FitConfig(layout="2x9,1.5x9,1x9,0.5x8+1x18"), metric=faiss.METRIC_L2), "codes", base="Flat"
    )
    flat.add(X)
    keep("v1-flat", flat)

    config = FitConfig(layout="2x18", matryoshka_dims=(9,))
    lists = QamaIndex(fit(X, config=config, queries=XQ), "fp16", base="IVF4")
    lists.train(X)
    lists.add(X)
    lists.nprobe = 2
    keep("v1-ivf", lists)

    settings = {"epochs": 12, "steps_per_epoch": 30, "batch_size": 128, "random_negatives": 128, "learning_rate": 3e-3}
    training = TrainConfig(adapter="residual", expansion=0.5, **settings)
    trained = fit(X, config=FitConfig(layout="1x8", train=training), queries=XQ)
    assert trained.fit_record.trained
    graph = QamaIndex(trained, "sq8", base="BHNSW8")
    graph.add_with_ids(X, np.arange(300) + 1000)
    graph.remove_ids(np.arange(1000, 1050))
    keep("v1-graph", graph)

    cosine = QamaIndex(fit(5 * X, config=FitConfig(layout="1x36"), metric="cosine", queries=XQ), "sq8")
    cosine.add(np.arange(1, 301, dtype=np.float32)[:, None] * X)
    keep("v1-cosine", cosine)


if __name__ == "__main__":
    main()
