"""fit(corpus) -> Quantizer: the front door of training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import faiss

from faiss_qama.quantizer.fit_record import TrainingRecord
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.training.calibrate import calibrate
from faiss_qama.training.closed_form import closed_form
from faiss_qama.training.config import FitConfig
from faiss_qama.training.layout_choice import choose
from faiss_qama.training.pairs import Qrels, read_pairs
from faiss_qama.training.residual import with_residual
from faiss_qama.training.split import Split, split_corpus
from faiss_qama.vectors import Corpus, PathLike, Source


def fit(
    corpus: Source | Corpus,
    *,
    config: FitConfig | None = None,
    metric: int = faiss.METRIC_INNER_PRODUCT,
    queries: Source | Corpus | None = None,
    pairs: tuple[Source | Corpus, Qrels] | None = None,
    checkpoint: PathLike | None = None,
) -> Quantizer:
    """Fit a quantizer to a corpus, in closed form, or trained where ``config.train`` says so.

    Parameters
    ----------
    corpus : (n, d) vectors of any float type: an array, a memory map, the path of a .npy file, or a list of such paths
        (several corpora, or shards of one)
    config : settings; the default is 2 bits for half of the components, PCA, ITQ and Lloyd-Max
    metric : ``faiss.METRIC_INNER_PRODUCT`` or ``faiss.METRIC_L2``
    queries : unlabelled (nq, d) queries, at least 20: they give the query side its own centre, and calibrate
    pairs : (nq, d) queries, and which documents are relevant to them: the path of a tab-separated file, or rows
        (query row, corpus row, grade); at least 60 queries with a relevant document. They are trained on, by
        ``TrainConfig()`` unless ``config.train`` says how
    checkpoint : a folder for the checkpoint and the log of a training, from which it goes on if it was interrupted

    Raises
    ------
    TypeError, ValueError
        for vectors that are no finite (n, d) floats, for a layout that the dimension cannot hold, and for pairs that
        do not exist
    ImportError
        if a training is asked for and torch is missing
    """
    config = config or FitConfig()
    if pairs is not None:
        config = config.for_pairs()
    source = corpus if isinstance(corpus, Corpus) else Corpus(corpus)
    if queries is not None and not isinstance(queries, Corpus):
        queries = Corpus(queries, source.shape[1], "queries")
    if queries is not None and queries.shape[1] != source.shape[1]:
        raise ValueError(f"queries: dimension {queries.shape[1]}, but {source.shape[1]} is needed")
    config.layout_in(source.shape[1])  # refused before anything is read
    checked = None if pairs is None else read_pairs(*pairs, source)
    split = split_corpus(source, queries, config.sample, config.seed, checked)
    return fit_draw(split, config, metric, None if checkpoint is None else Path(checkpoint))


def fit_draw(split: Split, config: FitConfig, metric: int, checkpoint: Path | None = None) -> Quantizer:
    """Fit a quantizer to what was split from a corpus."""
    if config.train is not None:
        _check_trainable(split)
    if config.bytes is not None and len(split.validation):
        config = choose(split, config, metric, len(split.train)).applied_to(config)
    quantizer = closed_form(split, config, metric)
    if config.train is not None:
        quantizer = _trained(quantizer, split, config, checkpoint)
    asked = config.layout_in(quantizer.d)
    ends = config.rotation_borders(asked)[:-1] if quantizer.layout == replace(asked, residual=None) else []
    return calibrate(with_residual(quantizer, asked.residual, split, config), split, ends)


def _check_trainable(split: Split) -> None:
    """Raise ValueError or ImportError where a training cannot be, before anything is fitted."""
    if not len(split.validation):
        queries = "no" if split.train_queries is None else str(len(split.train_queries) + 2 * len(split.test))
        raise ValueError(
            "training holds queries out to be judged by, so it needs 60 of them, or without queries 200 documents; "
            f"got {queries} queries and {len(split.train) + len(split.test_rows[split.test_rows >= 0])} documents"
        )
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise ImportError(f"training needs torch: pip install 'faiss-qama[train]' ({error})") from None


def _trained(start: Quantizer, split: Split, config: FitConfig, checkpoint: Path | None) -> Quantizer:
    """Return ``start`` after training, or as it is where that is better on the held-out queries."""
    from faiss_qama.training.checkpoint import locked  # here, because the closed form needs no torch
    from faiss_qama.training.train import train

    assert config.train is not None
    ends = sorted({*config.dims_in(start.layout), start.layout.components})
    with locked(checkpoint):
        training = train(start, split, config.train, ends, config.seed, checkpoint)
    kept = training.quantizer if training.better else start
    record = TrainingRecord(
        kept=training.better,
        adapter=config.train.adapter,
        measure=training.measure,
        untrained=training.closed_form,
        trained=training.trained,
        gain=training.gain,
        seconds=sum(line["seconds"] for line in training.log),
        log=training.log,
    )
    return replace(kept, fit_record=replace(kept.fit_record, training=record))
