"""fit(corpus) -> Quantizer: the one way from vectors to a quantizer."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import faiss

from faiss_qama.corpus import Corpus, Source
from faiss_qama.index_spec import IndexSpec
from faiss_qama.quantizer.calibration import KS, K
from faiss_qama.quantizer.quantizer import COSINE, Quantizer
from faiss_qama.threads import one_thread
from faiss_qama.training.calibrate import calibrate
from faiss_qama.training.closed_form import closed_form
from faiss_qama.training.config import FitConfig
from faiss_qama.training.layout_choice import LayoutChoice, byte_budget, choose_layout, planned_layout
from faiss_qama.training.pairs import Pairs, Qrels, read_pairs
from faiss_qama.training.residual import with_residual
from faiss_qama.training.split import Split, split_corpus
from faiss_qama.training.train_config import TrainConfig

DISTORTION = 2000  # vectors that tell it
ONE_THREAD = 20_000  # vectors up to which more threads gain little, and wait busily beside other processes


def fit(
    corpus: Source | Corpus,
    *,
    config: FitConfig | None = None,
    metric: int | str = faiss.METRIC_INNER_PRODUCT,
    queries: Source | Corpus | None = None,
    pairs: tuple[Source | Corpus, Qrels] | None = None,
    bytes: int | None = None,
    recall: float | None = None,
    rescore: str | None = None,
) -> Quantizer:
    """Fit a quantizer to a corpus.

    For 100,000 vectors of 384 dimensions this takes some ten seconds on two cores, and for 10,000 of 1,536 five.
    Choosing the layout (``bytes``, ``recall``) takes as long again or more, and a training one to ten minutes. At most
    ``config.sample`` vectors are read, and held in memory a few times over.

    Parameters
    ----------
    corpus : array of shape (n, d), str, Path, list of these, or Corpus
        Vectors of any float type: an array, a memory map, a file (``docs/formats.md``), or several (shards of
        one corpus).
    config : FitConfig, optional
        Settings. By default 2 bits for half of the components, without training.
    metric : int or str
        ``faiss.METRIC_INNER_PRODUCT``, ``faiss.METRIC_L2``, or ``cosine``: inner products of vectors that are scaled to
        norm 1, here and by every index of the quantizer.
    queries : array of shape (nq, d), str, Path or Corpus, optional
        At least 20 unlabelled queries. Queries are then centred on their own mean, and calibrate the quantizer.
    pairs : tuple, optional
        Queries of shape (nq, d), and the documents relevant to them: a tab-separated file, or rows (query row, corpus
        row, grade). At least 60 queries need a relevant document. The quantizer is trained on them, with
        ``TrainConfig()`` unless ``config.train`` says otherwise.
    bytes : int, optional
        Bytes per vector, instead of the layout in ``config``: the best layout of that size is chosen by measuring.
    recall : float, optional
        Recall@10 to reach, above 0 and below 1, with the fewest bytes: the layout is chosen by measuring. With
        ``rescore="codes"`` larger layouts are fitted until the codes alone reach it.
    rescore : str, optional
        The second stage that the layout is chosen for: ``none``, ``codes``, ``sq8``, ``fp16`` or ``fp32``. By default
        ``codes`` with pairs or a residual layout, else ``fp16``, as for the command line.

    Returns
    -------
    Quantizer
        Calibrated on held-out queries if there are enough of them: 60 queries, or without queries 200 documents.

    Raises
    ------
    TypeError, ValueError
        For vectors that are not finite (n, d) floats, for a layout that the dimension cannot have, for settings that
        contradict each other, for pairs that do not exist, and for a recall that no layout reaches.
    ImportError
        If a training is asked for and torch is missing.
    OSError
        If a file cannot be read, or another process trains in the same checkpoint folder.

    Examples
    --------
    >>> import numpy as np
    >>> from faiss_qama.training import fit
    >>> x = np.random.default_rng(0).standard_normal((2000, 64)).astype(np.float32)
    >>> quantizer = fit(x)
    >>> quantizer
    Quantizer(2x32, 64-d, inner product)
    >>> quantizer.encode(x).shape
    (2000, 12)
    """
    config = FitConfig() if config is None else config
    if not isinstance(config, FitConfig):
        raise TypeError(f"config is a FitConfig, such as FitConfig(layout='2x192'); got {type(config).__name__}")
    if bytes is not None:
        config = replace(config, layout=None, bytes=bytes)
    if pairs is not None:
        config = config.for_pairs()
    source = corpus if isinstance(corpus, Corpus) else Corpus(corpus)
    if queries is not None and not isinstance(queries, Corpus):
        queries = Corpus(queries, source.shape[1], "queries", queries=True)
    if queries is not None and queries.shape[1] != source.shape[1]:
        raise ValueError(f"queries: dimension {queries.shape[1]}, but {source.shape[1]} is needed")
    spec = IndexSpec(rescore=rescore or default_rescore(config, pairs=pairs is not None), recall=recall)
    planned_layout(config, spec, source.shape[1])  # refused before anything is read
    checked = None if pairs is None else read_pairs(*pairs, source)
    if metric == COSINE:
        source, queries, checked = normalized(source, queries, checked)
    split = split_corpus(source, queries, config.sample_in(source.shape[1]), config.seed, checked)
    return fit_split(split, config, metric, len(source), spec)[0]


def normalized(
    corpus: Corpus, queries: Corpus | None, pairs: Pairs | None
) -> tuple[Corpus, Corpus | None, Pairs | None]:
    """Return what is fitted on with vectors of norm 1."""
    return (
        corpus.normalized(),
        None if queries is None else queries.normalized(),
        None if pairs is None else replace(pairs, queries=pairs.queries.normalized()),
    )


def default_rescore(config: FitConfig, *, pairs: bool) -> str:
    """Return the second stage where none is named.

    After a training on pairs floats would rank as they did before it, and only codes read a residual code or parities.
    """
    return "codes" if pairs or config.has_residual or config.has_trellis else "fp16"


def fit_split(
    split: Split, config: FitConfig, metric: int | str, n: int, spec: IndexSpec, *, compare: bool = False
) -> tuple[Quantizer, LayoutChoice | None]:
    """Choose a layout and fit a quantizer of it, or a larger one if its codes alone miss the recall in ``spec``.

    Parameters
    ----------
    split : Split
        The sample to fit on, and the queries that are held out.
    config : FitConfig
        Settings of the fit.
    metric : int or str
        ``faiss.METRIC_INNER_PRODUCT``, ``faiss.METRIC_L2``, or ``cosine`` for vectors of norm 1.
    n : int
        Vectors of the corpus.
    spec : IndexSpec
        The index to build.
    compare : bool
        Measure other layouts too.

    Returns
    -------
    quantizer : Quantizer
        Fitted, trained if ``config.train`` says so, and calibrated.
    choice : LayoutChoice or None
        What its layout was chosen from; None if nothing was measured.

    Raises
    ------
    ValueError
        As :func:`~faiss_qama.training.layout_choice.choose_layout`, and if too few queries are held out to train.
    ImportError
        If torch is missing for a training.
    """
    if metric == COSINE:
        quantizer, choice = fit_split(split, config, faiss.METRIC_INNER_PRODUCT, n, spec, compare=compare)
        return replace(quantizer, cosine=True), choice
    if not isinstance(metric, int):
        raise ValueError(f"metric must be '{COSINE}', METRIC_INNER_PRODUCT or METRIC_L2; got {metric!r}")
    if config.train is not None:
        _check_trainable(split)
    choice = choose_layout(split, config, metric, n, spec, compare=compare)
    if choice is None:
        return _fitted(split, config.at(planned_layout(config, spec, split.train.shape[1])), metric), None
    quantizer = _fitted(split, choice.applied_to(config), metric)
    if spec.rescore != "codes" or spec.recall is None or config.layout is not None:
        return quantizer, choice
    while True:
        assert quantizer.calibration is not None
        reached = float(quantizer.calibration.codes[KS.index(K)].max())
        if reached >= spec.recall:
            break
        choice = choice.larger(spec.recall, reached, byte_budget(config, spec))
        discard_checkpoint(config)
        quantizer = _fitted(split, choice.applied_to(config), metric)
    return quantizer, choice


def discard_checkpoint(config: FitConfig) -> None:
    """Remove the files of a training that is over, if there are any; the quantizer has its log."""
    if config.train is not None and config.train.checkpoint is not None:
        from faiss_qama.training.gradient.checkpoint import discard  # here, because it needs torch

        discard(Path(config.train.checkpoint))


def _fitted(split: Split, config: FitConfig, metric: int) -> Quantizer:
    """Fit the layout of ``config``: without training, then trained, with a residual code, and calibrated."""
    threads = one_thread if len(split.train) <= ONE_THREAD else nullcontext
    with threads():
        quantizer = closed_form(split, config, metric)
    if config.train is not None:
        quantizer = _trained(quantizer, split, config, config.train)
    layout = config.layout_in(quantizer.d)
    whole = quantizer.layout.components == layout.components  # not pruned
    borders = config.rotation_borders(layout)[:-1] if whole else []
    prefixes = [end for end in borders if end > layout.empty_start]
    with threads():
        quantizer = calibrate(with_residual(quantizer, layout.residual, split, config), split, prefixes)
        some = split.train[:: -(-len(split.train) // DISTORTION)]
        record = replace(quantizer.fit_record, distortion=quantizer.distortion(some))
    return replace(quantizer, fit_record=record)


def _check_trainable(split: Split) -> None:
    """Raise ValueError or ImportError if a training is impossible, before anything is fitted."""
    if not len(split.validation):
        queries = "no" if split.train_queries is None else str(len(split.train_queries) + 2 * len(split.test))
        raise ValueError(
            "training holds queries out to be judged by, so it needs 60 of them, or without queries 200 documents; "
            f"got {queries} queries and {len(split.train) + len(split.test_rows[split.test_rows >= 0])} documents"
        )
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise ImportError(f"training needs torch: pip install '.[train]' in the clone ({error})") from None


def _trained(start: Quantizer, split: Split, config: FitConfig, settings: TrainConfig) -> Quantizer:
    """Return ``start`` after training, or as it is if that is better on the validation queries."""
    from faiss_qama.training.gradient.checkpoint import locked  # here, because a fit without training needs no torch
    from faiss_qama.training.gradient.train import train

    ends = sorted({*config.dims_in(start.layout), start.layout.components})
    with locked(None if settings.checkpoint is None else Path(settings.checkpoint)):
        trained = train(start, split, settings, ends, config.seed)
    return trained if trained.fit_record.trained else replace(start, fit_record=trained.fit_record)
