"""What training is worth, into docs/results/training*.json.

Quantizers are trained on a data set's corpus, its train queries or its train pairs, and measured on its test queries by
exhaustive search: ``adc`` scores decoded codes with the float query, ``hamming`` compares codes. The closed form is the
quantizer that a training starts from.
"""

from __future__ import annotations

import time
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import click
import faiss
import numpy as np
import yaml
from common import METRIC, ROOT, K, write

from faiss_qama.arrays import Floats, Ids, scale_to_norm
from faiss_qama.corpus import Corpus
from faiss_qama.evaluation.datasets import Dataset
from faiss_qama.evaluation.exhaustive_search import search_decoded, search_hamming
from faiss_qama.evaluation.recall import Truth, exact, ranking_values, recall
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.training import FitConfig
from faiss_qama.training.closed_form import closed_form
from faiss_qama.training.gradient.train import train
from faiss_qama.training.pairs import read_pairs
from faiss_qama.training.split import split_corpus
from measure.qama import LAYOUT, QAMA_SETS

# Preset, layout instead of its own or None, what is given besides the corpus, and seeds.
PAIRS: list[tuple[str, str | None, str, int]] = [("pairs", None, "pairs", 2)]
TRAININGS: list[tuple[str, str | None, str, int]] = [
    ("distill", None, "queries", 2),
    ("distill", None, "corpus", 1),
    ("distill", "binary", "queries", 1),
    ("distill", "ternary", "queries", 1),
    ("adaptive-pruning", None, "queries", 1),
    ("matryoshka", "2x384", "queries", 1),
    ("matryoshka", "2x192", "queries", 1),
    ("qama", None, "queries", 1),
    ("qama", "2-bit", "queries", 1),
]
WIDE = 10_000  # documents, at most, for presets with QAMA's network of 32 d hidden units: it takes ten minutes a fit
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
EPOCHS = 6  # of 50 steps, where losses are compared
PARTS = ("pairs", "trainings", "qama", "ablation")
QUANTIZERS = ("straight-through", "sigmoid", "tanh", "stochastic")


class Bench:
    """A data set and its exact answers; trains on it, and measures what was trained.

    Parameters
    ----------
    folder : Path
        A data set folder with train queries.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.dataset = folder, Dataset.load(folder)
        self.x: Floats = self.dataset.corpus.read()
        self.truth: Truth = exact(self.dataset, K, METRIC)
        pairs = read_pairs(folder / "train_queries.npy", folder / "train_qrels.tsv", self.dataset.corpus)
        relevant = self.dataset.qrels[self.dataset.qrels[:, 2] > 0]
        asked, query = np.unique(relevant[:, 0], return_inverse=True)
        self.seen = np.bincount(query, np.isin(relevant[:, 1], pairs.qrels[:, 1]), len(asked)) > 0

    def train(self, config: FitConfig, given: str) -> tuple[Quantizer, Quantizer | None, dict[str, float]]:
        """Fit, and train if the configuration says so.

        Parameters
        ----------
        config : FitConfig
            Settings of the fit and of the training.
        given : str
            ``corpus``, ``queries`` or ``pairs``: what the fit learns from besides the corpus.

        Returns
        -------
        closed : Quantizer
            The closed form.
        trained : Quantizer or None
            What was trained from it.
        seconds : dict of float
            Seconds from the start until each of them was there.
        """
        queries, pairs = Corpus(self.folder / "train_queries.npy"), None
        if given == "pairs":
            pairs = read_pairs(queries, self.folder / "train_qrels.tsv", self.dataset.corpus)
        start = time.perf_counter()
        split = split_corpus(
            self.dataset.corpus,
            queries if given == "queries" else None,
            config.sample_in(self.x.shape[1]),
            config.seed,
            pairs,
        )
        closed = closed_form(split, config, METRIC)
        seconds = {"closed": time.perf_counter() - start}
        if config.train is None:
            return closed, None, seconds
        ends = sorted({*config.dims_in(closed.layout), closed.layout.components})
        trained = train(closed, split, config.train, ends, config.seed)
        return closed, trained, seconds | {"trained": time.perf_counter() - start}

    def measure(self, quantizer: Quantizer) -> dict[str, Any]:
        """Return nDCG@10, in % of that of exact floats, and recall@10, by stage.

        ``seen`` is the nDCG of queries to which a document of the train pairs is relevant, ``others`` of the rest.
        """
        code = quantizer.encode(self.x)
        queries = self.dataset.queries
        return {
            "adc": self._quality(search_decoded(quantizer, code, queries, K)[1]),
            "hamming": self._quality(search_hamming(quantizer, code, queries, K)[1]),
        }

    def floats(self, quantizer: Quantizer) -> dict[str, float]:
        """Return the same of the columns of a closed form as floats: what codes would reach if nothing were rounded."""
        x = scale_to_norm(quantizer.transform(self.x) @ quantizer.decoder.matrix + quantizer.decoder.offset, 1.0)
        return self._quality(faiss.knn(self.dataset.queries, x, K, metric=METRIC)[1])

    def _quality(self, found: Ids) -> dict[str, float]:
        floats = self.truth.measured.mean.values["ndcg"]
        values = ranking_values(found, self.truth, self.dataset)["ndcg"]
        kinds = {"ndcg": slice(None), "seen": self.seen, "others": ~self.seen}
        shares = {
            name: 100 * values[part].mean() / floats[part].mean() for name, part in kinds.items() if values[part].size
        }
        return {**shares, "recall": recall(found, self.truth, self.dataset)}


def gain(trained: Quantizer) -> float:
    """Return how much better a trained quantizer is than the one that it was trained from, as a share."""
    assert trained.fit_record.training is not None
    return trained.fit_record.training.gain


def preset(name: str, layout: str | None, seed: int = 0) -> FitConfig:
    """Return the configuration of ``configs/NAME.yaml``, at ``layout``."""
    values = yaml.safe_load((ROOT / "configs" / f"{name}.yaml").read_text())
    if layout is not None:
        values |= {"layout": layout}
    if layout in PREFIX and "matryoshka_dims" in values:
        values |= {"matryoshka_dims": [PREFIX[layout]]}
    return FitConfig(**values, seed=seed)


def trainings(bench: Bench, wanted: list[tuple[str, str | None, str, int]]) -> list[dict[str, Any]]:
    """Measure each of ``wanted`` beside its closed form, and say which of the two a fit would keep."""
    rows = []
    for name, layout, given, seeds in wanted:
        for seed in range(seeds):
            config = preset(name, layout, seed)
            assert config.train is not None
            if config.train.expansion > 4 and len(bench.x) > WIDE:
                continue
            closed, trained, seconds = bench.train(config, given)
            assert trained is not None
            row: dict[str, Any] = {
                "config": name,
                "given": given,
                "seed": seed,
                "asked": str(closed.layout),
                "layout": str(trained.layout),
                "seconds": seconds,
                "kept": "trained" if trained.fit_record.trained else "closed form",
                "gain": gain(trained),
                "closed": bench.measure(closed),
                "trained": bench.measure(trained),
            }
            if name == "matryoshka":
                end = PREFIX[str(layout)]
                row |= {
                    "prefix_components": end,
                    "prefix": bench.measure(trained.truncate(end)),
                    "closed_prefix": bench.measure(closed.truncate(end)),
                    "prefix_floats": bench.floats(closed.truncate(end)),
                }
            rows.append(row)
            click.echo(f"{bench.folder.name}: {row}")
    return rows


def nested(bench: Bench) -> list[dict[str, Any]]:
    """Measure QAMA's recipe at each of its bits, trained once and truncated to each of its parts of the dimension."""
    rows = []
    for bits, kind in LAYOUT.items():
        closed, trained, seconds = bench.train(preset("qama", kind), "queries")
        assert trained is not None
        ends = preset("qama", kind).dims_in(closed.layout)
        parts = {end: bench.measure(trained.truncate(end)) for end in [*ends, closed.layout.components]}
        rows.append({"bits": bits, "seconds": seconds, "gain": gain(trained), "components": parts})
        click.echo(f"{bench.folder.name}: {rows[-1]}")
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
    config = replace(preset("distill", "2x192"), matryoshka_dims=(48, 96))
    assert config.train is not None
    train = None
    if losses is not None:
        temperature = (1.0, 0.1) if quantizer in ("sigmoid", "tanh") else (1.0, 1.0)
        own = {"adapter": adapter, "losses": losses, "quantizer": quantizer, "temperature": temperature}
        train = replace(config.train, **own, epochs=EPOCHS)
    closed, trained, seconds = bench.train(replace(config, train=train), "queries")
    fitted = closed if trained is None else trained
    parts = {end: bench.measure(fitted.truncate(end)) for end in (192, 96, 48)}
    click.echo(f"{bench.folder.name}: {adapter} {label}: {seconds} {parts}")
    row = {"label": label, "adapter": adapter, "seconds": seconds, "components": parts}
    return row | {"gain": 0.0 if trained is None else gain(trained)}


def training(data: Path, name: str, parts: tuple[str, ...] = PARTS) -> None:
    """Measure ``parts`` on a data set: QAMA's recipe where its table is measured, the losses on nfcorpus alone."""
    bench = Bench(data / name)
    if "pairs" in parts:
        kinds = {"seen": int(bench.seen.sum()), "others": int((~bench.seen).sum())}
        write(f"training-pairs-{name}", {"queries": kinds, "rows": trainings(bench, PAIRS)})
    if "trainings" in parts:
        write(f"training-{name}", {"rows": trainings(bench, TRAININGS)})
    if name in chain(*QAMA_SETS.values()) and "qama" in parts:
        write(f"training-qama-{name}", {"rows": nested(bench)})
    if name == "nfcorpus" and "ablation" in parts:
        write("training-ablation", {"set": name, "rows": ablation(bench)})
