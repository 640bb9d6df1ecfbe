"""The main job: fit a quantizer to a corpus, index the corpus, and measure what that was worth."""

from __future__ import annotations

import shlex
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from faiss_qama.comparison.methods import shared_bytes
from faiss_qama.corpus import Corpus
from faiss_qama.evaluation.datasets import Dataset
from faiss_qama.evaluation.recall import evaluate, exact, speeds
from faiss_qama.evaluation.results import MethodResult
from faiss_qama.hamming.factory import AUTO, DEFAULT, check_lists, code_bytes, make_base
from faiss_qama.index.build import build_index
from faiss_qama.index.by_row import by_row, over_flat
from faiss_qama.index.qama_index import QamaIndex
from faiss_qama.index_spec import IndexSpec
from faiss_qama.quantizer.calibration import K
from faiss_qama.quantizer.quantizer import COSINE, Quantizer
from faiss_qama.storage import bundle

if TYPE_CHECKING:
    from faiss_qama.training import FitConfig
    from faiss_qama.training.layout_choice import LayoutChoice
    from faiss_qama.training.pairs import Pairs
    from faiss_qama.training.split import Split


@dataclass(frozen=True, eq=False)
class FitResult:
    """What the main job made.

    Parameters
    ----------
    index : QamaIndex
        Memory-mapped.
    path : Path
        Its folder.
    corpus : Corpus
        What it was made from.
    spec : IndexSpec
        The stages that were asked for.
    split : Split
        The sample that was fitted on, and the queries that were held out.
    choice : LayoutChoice or None
        The layouts that were tried; None if none was.
    fit_seconds : float
        Reading the sample, choosing, fitting and calibrating.
    measured : list of MethodResult
        Exact floats, codes alone, and codes re-ranked, on held-out queries; empty if the corpus is too small to hold
        any out. All speeds were measured in turns.
    untrained : MethodResult or None
        The codes alone without the training, likewise; None if no training was kept.
    asked_bytes : int or None
        The bytes per vector that were asked for, if there is no recall to reach with fewer.
    flat_speed : float or None
        Queries per second over base ``Flat``, measured in the same turns; None if that is the base, or was tried by
        base ``auto``.
    next_queries : str
        The file of queries in the next commands to type.
    """

    index: QamaIndex
    path: Path
    corpus: Corpus
    spec: IndexSpec
    split: Split
    choice: LayoutChoice | None
    fit_seconds: float
    measured: list[MethodResult]
    untrained: MethodResult | None
    asked_bytes: int | None = None
    flat_speed: float | None = None
    next_queries: str = "queries.npy"

    @property
    def taken_bytes(self) -> int:
        """Bytes per vector of the codes that were chosen."""
        if self.choice is not None:
            return self.choice.chosen.bytes
        return code_bytes(self.spec.base, self.index.quantizer.layout)

    @property
    def queries(self) -> str:
        """The queries that were measured with, in words."""
        if not self.measured:
            return "nothing"
        kind = "documents" if self.split.train_queries is None else "queries"
        return f"{len(self.measured[0].mean.values['recall'])} held-out {kind}"

    @property
    def speedup(self) -> float:
        """How many times as fast as exact search the index is."""
        return self.measured[-1].mean.queries_per_second / self.measured[0].mean.queries_per_second

    @property
    def memory(self) -> int:
        """Bytes that the index takes in memory, those of the quantizer included; its vectors are on disk."""
        codes, kept = self.index.bytes_per_vector
        own = codes + kept if self.index.rescore == "codes" else codes
        return len(self.corpus) * own + shared_bytes(self.index.quantizer)

    @property
    def on_disk(self) -> int:
        """Bytes of the vectors that are read from disk to re-rank."""
        return 0 if self.index.rescore == "codes" else len(self.corpus) * self.index.bytes_per_vector[1]

    @property
    def stand_ins(self) -> bool:
        """Whether documents stood in for the queries that were measured with."""
        return self.split.train_queries is None and bool(self.measured)

    @property
    def next_commands(self) -> list[str]:
        """The commands to type next, quoted for a shell."""
        evaluate = ["faiss-qama", "eval", str(self.path), self.next_queries]
        if self.index.vectors is None:
            evaluate += ["--corpus", str(self.corpus.paths[0]) if len(self.corpus.paths) == 1 else "CORPUS"]
        search = ["faiss-qama", "search", str(self.path), self.next_queries, "-k", str(K)]
        return [shlex.join(command) for command in ([evaluate, search] if self.stand_ins else [search])]


def fit_index(
    corpus: Corpus,
    path: Path,
    config: FitConfig,
    metric: int | str,
    spec: IndexSpec,
    *,
    queries: Corpus | None = None,
    pairs: Pairs | None = None,
    compare: bool = False,
) -> FitResult:
    """Fit a quantizer to a corpus, write an index of it, and measure it on queries that the fit has not seen.

    Until the index is written, a training keeps its log and its checkpoint in the folder ``path``.training, unless
    ``config.train.checkpoint`` names another.

    Parameters
    ----------
    corpus : Corpus
        The vectors.
    path : Path
        Folder to write. An index that is there is replaced when the new one is complete.
    config : FitConfig
        Settings of the fit. If they give bytes, or ``spec`` a recall and they no layout, the layout is chosen by
        measuring.
    metric : int or str
        ``faiss.METRIC_INNER_PRODUCT``, ``faiss.METRIC_L2`` or ``cosine``.
    spec : IndexSpec
        The index to build.
    queries : Corpus, optional
        Unlabelled queries.
    pairs : Pairs, optional
        Labelled pairs to train on.
    compare : bool
        Measure other layouts too, for a report.

    Returns
    -------
    FitResult
        The index, memory-mapped, and what was measured.

    Raises
    ------
    ValueError, TypeError
        As :func:`faiss_qama.training.fit`; before anything is read if the settings alone show it.
    OSError
        If ``path`` cannot be written.
    """
    # Imported here, because run time does not depend on training.
    from faiss_qama.training.fit import discard_checkpoint, fit_split, normalized
    from faiss_qama.training.layout_choice import planned_layout
    from faiss_qama.training.split import split_corpus

    bundle.check_writable(path, corpus.paths)
    layout = planned_layout(config, spec, corpus.shape[1])
    base = make_base(DEFAULT if spec.base == AUTO else spec.base, layout)  # refused before anything is read
    base.set(spec.settings)
    check_lists(base, len(corpus))
    if config.train is not None and config.train.checkpoint is None:
        config = replace(config, train=replace(config.train, checkpoint=path.with_name(path.name + ".training")))
    if metric == COSINE:
        corpus, queries, pairs = normalized(corpus, queries, pairs)
    start = time.perf_counter()
    split = split_corpus(corpus, queries, config.sample_in(corpus.shape[1]), config.seed, pairs)
    quantizer, choice = fit_split(split, config, metric, len(corpus), spec, compare=compare)
    seconds = time.perf_counter() - start
    index = build_index(path, quantizer, corpus, spec, split.validation if len(split.validation) else None)
    discard_checkpoint(config)
    asked_bytes = config.bytes if spec.recall is None else None
    result = FitResult(index, path, corpus, spec, split, choice, seconds, [], None, asked_bytes)
    if not len(split.test):
        return result
    stages = _stages(index)
    if quantizer.fit_record.trained:
        chosen = config.at(layout) if choice is None else choice.applied_to(config)
        as_it_was, _ = fit_split(split, replace(chosen, train=None), metric, len(corpus), IndexSpec())
        stages[f"{next(iter(stages))}, untrained"] = _untrained(as_it_was, index, corpus)
    measured, flat_speed = _measured(stages, None if spec.base in (DEFAULT, AUTO) else over_flat(index), corpus, split)
    untrained = measured.pop() if quantizer.fit_record.trained else None
    return replace(result, measured=measured, untrained=untrained, flat_speed=flat_speed)


def _untrained(quantizer: Quantizer, trained: QamaIndex, corpus: Corpus) -> QamaIndex:
    """Return an index of the codes of ``quantizer`` alone, of as many components as were trained and kept."""
    if trained.quantizer.layout.components < quantizer.layout.components:
        quantizer = quantizer.truncate(trained.quantizer.layout.components)
    index = QamaIndex(quantizer, "none" if trained.rescore == "none" else "codes")
    for x in corpus.chunks():
        index.add(x)
    return index


def _measured(
    stages: dict[str, QamaIndex], flat: QamaIndex | None, corpus: Corpus, split: Split
) -> tuple[list[MethodResult], float | None]:
    """Measure exact floats and ``stages`` on the test queries, and the speed of ``flat``."""
    n, searched = split.test_set(corpus)
    dataset = Dataset(corpus.where(searched), split.test[:n], split.test_qrels if len(split.test_qrels) else None)
    metric = next(iter(stages.values())).metric_type
    truth = exact(dataset, K, metric)
    qualities = [evaluate(by_row(stage, searched), dataset, truth, runs=1) for stage in stages.values()]
    timed = [*stages.values(), *([] if flat is None else [flat])]
    exact_speed, *others = speeds(timed, Dataset(corpus, dataset.queries), truth)
    measured = [replace(truth.measured, results=[replace(truth.measured.mean, queries_per_second=exact_speed)])]
    for (name, stage), quality, speed in zip(stages.items(), qualities, others, strict=False):
        measured.append(MethodResult(name, stage.bytes_per_vector, [replace(quality, queries_per_second=speed)]))
    return measured, None if flat is None else others[-1]


def _stages(index: QamaIndex) -> dict[str, QamaIndex]:
    """Return the index, and before it its codes alone, by name."""
    if index.rescore == "none":
        return {"codes, Hamming": index}
    if index.rescore == "codes":
        return {"codes only": index}
    return {"codes only": index.with_rescore("codes"), f"codes + {index.rescore} re-ranking": index}
