"""Measure what training is worth: python benchmarks/training.py DATA writes docs/results/training*.json, and tables.

Quantizers are trained on a data set's corpus, its train queries or its train pairs, and measured on its test queries by
exhaustive scans: ``adc`` scores decoded codes with the float query, ``hamming`` compares codes.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import click
import faiss
import numpy as np
import yaml
from results import METRIC, write
from tables import ROOT, SETS, render

from faiss_qama.codes import Floats
from faiss_qama.evaluation import Dataset, Truth, exact, ndcg, recall
from faiss_qama.quantizer import Quantizer
from faiss_qama.training import FitConfig, fit

# Preset, layout instead of its own or None, and what is given besides the corpus.
TRAININGS: list[tuple[str, str | None, str]] = [
    ("pairs", "2x192", "pairs"),
    ("distill", "2x192", "queries"),
    ("distill", "1x384", "queries"),
    ("matryoshka", "2x384", "queries"),
    ("matryoshka", "2x192", "queries"),
    ("adaptive-pruning", None, "queries"),
]
SEEDS = 1
PREFIX = {"2x384": 192, "2x192": 96}  # of Matryoshka codes

# One loss at a time beside what QAMA's adapter is trained with first: similarities of the columns before they are cut.
BASE = {"float.mse": 1.0, "float.kl": 0.1}
ABLATION: list[tuple[str, dict[str, float] | None]] = [
    ("thresholds only", None),
    ("+ adapter (float.mse, float.kl)", BASE),
    ("+ float.rank", BASE | {"float.rank": 1.0}),
    ("+ float.contrastive", BASE | {"float.contrastive": 0.1}),
    ("+ quantization", BASE | {"quantization": 0.01}),
    ("+ orthogonality", BASE | {"orthogonality": 0.1}),
    ("+ information_bottleneck", BASE | {"information_bottleneck": 0.01}),
    ("+ variance", BASE | {"variance": 0.01}),
    ("+ balance", BASE | {"balance": 0.1}),
    ("+ decorrelation", BASE | {"decorrelation": 0.1}),
    ("+ reconstruction", BASE | {"reconstruction": 1.0}),
    ("+ adc.mse", BASE | {"adc.mse": 1.0}),
    ("+ adc.distillation", BASE | {"adc.distillation": 1.0}),
    ("+ hamming.distillation", BASE | {"hamming.distillation": 1.0}),
    ("+ adc.correlation", BASE | {"adc.correlation": 1.0}),
    ("+ hamming.correlation", BASE | {"hamming.correlation": 1.0}),
    ("adc.correlation, hamming.correlation alone", {"adc.correlation": 1.0, "hamming.correlation": 1.0}),
]
QUANTIZERS = ("straight-through", "sigmoid", "tanh", "stochastic")


class Bench:
    """A data set, its exact answers, and what trains on it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.dataset = folder, Dataset.load(folder)
        self.x: Floats = np.concatenate(list(self.dataset.corpus.chunks()))
        self.truth: Truth = exact(self.dataset, 10, METRIC)

    def fit(self, config: FitConfig, given: str) -> tuple[Quantizer, float]:
        """Return a quantizer fitted to the corpus and to what is ``given`` besides, and the seconds that took."""
        queries = str(self.folder / "train_queries.npy")
        options: dict[str, Any] = {
            "corpus": {},
            "queries": {"queries": queries},
            "pairs": {"pairs": (queries, str(self.folder / "train_qrels.tsv"))},
        }[given]
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="fitted on")
            return fit(self.x, config=config, metric=METRIC, **options), time.perf_counter() - start

    def measure(self, quantizer: Quantizer) -> dict[str, Any]:
        """Return nDCG@10, % of what exact floats reach, and recall@10, by stage."""
        code = quantizer.encode(self.x)
        queries = self.dataset.queries
        _, by_adc = faiss.knn(quantizer.adapt_queries(queries), quantizer.decode(code), 10, metric=METRIC)
        binary = faiss.IndexBinaryFlat(8 * quantizer.code_size)
        binary.add(code)
        _, by_hamming = binary.search(quantizer.encode_queries(queries), 10)
        floats = self.truth.measured.mean.ndcg
        assert floats is not None
        return {
            stage: {
                "ndcg": 100 * (ndcg(found, self.dataset.qrels, 10) or 0.0) / floats,
                "recall": recall(found, self.truth, self.dataset),
            }
            for stage, found in (("adc", by_adc), ("hamming", by_hamming))
        }


def preset(name: str, layout: str | None, seed: int, **settings: Any) -> FitConfig:
    """Return the configuration of ``configs/NAME.yaml``, at ``layout``."""
    values = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    if layout is not None:
        values |= {"layout": layout}
    if layout in PREFIX and "slices" in values:
        values |= {"slices": [PREFIX[layout]]}
    return FitConfig(**values | settings, seed=seed)


def trainings(bench: Bench, seeds: int) -> list[dict[str, Any]]:
    """Measure each of ``TRAININGS`` beside its closed form."""
    rows = []
    for name, layout, given in TRAININGS:
        for seed in range(seeds):
            config = preset(name, layout, seed)
            unlabelled = "queries" if given == "pairs" else given  # pairs are always trained on
            closed, closed_seconds = bench.fit(preset(name, layout, seed, train=None), unlabelled)
            trained, seconds = bench.fit(config, given)
            record = trained.config["training"]
            row: dict[str, Any] = {"config": name, "asked": str(closed.layout), "layout": str(trained.layout)}
            row |= {"given": given, "seed": seed}
            row |= {
                "seconds": seconds,
                "closed_seconds": closed_seconds,
                "kept": record["kept"],
                "gain": record["gain"],
            }
            row |= {"closed": bench.measure(closed), "trained": bench.measure(trained)}
            if name == "matryoshka":
                end = PREFIX[str(layout)]
                row |= {"prefix_components": end}
                row |= {
                    "prefix": bench.measure(trained.truncate(end)),
                    "closed_prefix": bench.measure(closed.truncate(end)),
                }
            rows.append(row)
            click.echo(f"{bench.folder.name}: {row}")
    return rows


def ablation(bench: Bench) -> list[dict[str, Any]]:
    """Measure each of ``ABLATION`` at all, half and a quarter of the components, linear and feed-forward."""
    rows = []
    for adapter in ("linear", "feedforward"):
        for label, losses in ABLATION:
            if losses is None and adapter != "linear":
                continue
            rows.append(_ablated(bench, label, adapter, losses, "straight-through"))
    for quantizer in QUANTIZERS[1:]:
        label, losses = ABLATION[-1]
        rows.append(_ablated(bench, f"{label}, {quantizer}", "linear", losses, quantizer))
    return rows


def _ablated(bench: Bench, label: str, adapter: str, losses: dict[str, float] | None, quantizer: str) -> dict[str, Any]:
    train = None
    if losses is not None:
        train = preset("distill", None, 0).train
        assert train is not None
        settings = {"adapter": adapter, "losses": losses, "quantizer": quantizer, "epochs": 2, "expansion": 2.0}
        settings |= {"learning_rate": 2e-4}
        if quantizer in ("sigmoid", "tanh"):
            settings |= {"temperature": (1.0, 0.1)}
        train = type(train)(**{**vars(train), **settings})
    config = FitConfig(layout="2x192", slices=(48, 96), train=train)
    fitted, seconds = bench.fit(config, "queries")
    kept = fitted.config["training"]["kept"] if train is not None else "closed form"
    parts = {end: bench.measure(fitted.truncate(end)) for end in (192, 96, 48)}
    click.echo(f"{bench.folder.name}: {adapter} {label}: {kept} {seconds:.0f} s {parts}")
    return {"label": label, "adapter": adapter, "seconds": seconds, "kept": kept, "components": parts}


@click.command()
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--part", "parts", type=click.Choice(["trainings", "ablation"]), multiple=True, help="Only this one.")
@click.option("--set", "sets", type=click.Choice(SETS), multiple=True, help="Only this data set.")
def main(data: Path, parts: tuple[str, ...], sets: tuple[str, ...]) -> None:
    """Measure on the data set folders in DATA, and remake the tables."""
    for name in sets or SETS:
        bench = Bench(data / name)
        if not parts or "trainings" in parts:
            write(f"training-{name}", {"rows": trainings(bench, SEEDS)})
        if name == "nfcorpus" and (not parts or "ablation" in parts):
            write("training-ablation", {"set": name, "rows": ablation(bench)})
    for path, text in render().items():
        path.write_text(text)


if __name__ == "__main__":
    main()
