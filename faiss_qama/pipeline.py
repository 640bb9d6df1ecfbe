"""The main job: fit a quantizer to a corpus, index the corpus, and measure what that was worth."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from faiss_qama.evaluation.recall import Dataset, MethodResult, evaluate, exact
from faiss_qama.hamming.factory import AUTO, DEFAULT, make_base
from faiss_qama.index.build import build_index
from faiss_qama.index.qama_index import QamaIndex
from faiss_qama.index.tuning import MIN_VECTORS, check_memory
from faiss_qama.index_spec import IndexSpec
from faiss_qama.quantizer.calibration import KS
from faiss_qama.quantizer.layout import CodeLayout
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.report import tables
from faiss_qama.storage import bundle
from faiss_qama.vectors import Corpus

if TYPE_CHECKING:
    from faiss_qama.training import FitConfig
    from faiss_qama.training.layout_choice import LayoutChoice
    from faiss_qama.training.pairs import Pairs
    from faiss_qama.training.split import Split

K = 10  # the report's recall@k


@dataclass(frozen=True, eq=False)
class FitResult:
    """What the main job made.

    Parameters
    ----------
    index : memory-mapped
    path : its folder
    corpus : what it was made from
    split : the sample that was fitted on, and the queries held out
    choice : the layouts that were tried, or None where the layout was given
    fit_seconds : reading the sample, choosing, fitting and calibrating
    queries : what it was measured on, in words
    measured : exact floats, codes alone, and codes with rescoring, on queries held out of the fit; empty if the corpus
        is too small to hold any out
    next_queries : what the next command to type is to search for
    """

    index: QamaIndex
    path: Path
    corpus: Corpus
    split: Split
    choice: LayoutChoice | None
    fit_seconds: float
    queries: str
    measured: list[MethodResult]
    next_queries: str = "queries.npy"

    def __str__(self) -> str:
        n, d = self.corpus.shape
        quantizer = self.index.quantizer
        what = f"{n:,} x {d} {self.corpus.dtype}, {tables.size_text(self.corpus.nbytes)}"
        how = tables.quantizer_text(quantizer)
        width = max(len(what), len(how)) + 4
        head = [
            ("corpus", f"{what:<{width}}metric {quantizer.metric_name}"),
            ("quantizer", f"{how:<{width}}fitted in {self.fit_seconds:.1f} s"),
        ]
        if self.choice is not None:
            head.append(("chosen", f"{self.choice.chosen.layout}: {self.choice.reason}"))
        if self.index.base_trials:
            chosen, *others = self.index.base_trials
            why = "the fastest of" if others else f"as no other fits, or is tried below {MIN_VECTORS:,} vectors"
            head.append(("base", f"{chosen}, {why}"))
            head += [("", str(tried)) for tried in others]
        if "training" in quantizer.config:
            head += tables.training_facts(quantizer.config["training"])
        codes, kept = (n * part for part in self.index.bytes_per_vector)
        what_is_kept = "residual codes" if self.index.rescore == "codes" else "vectors"
        sizes = tables.size_text(codes) + (f" + {tables.size_text(kept)} {what_is_kept}" if kept else "")
        table = "(too few vectors to hold any out, so nothing was measured)"
        if self.measured:
            table = tables.results_table(self.measured, K, f"on {self.queries}")
        end = f"wrote {self.path} ({sizes})      next: faiss-qama search {self.path} {self.next_queries} -k 10"
        return "\n".join([tables.facts(head), table, end])


def fit_index(
    corpus: Corpus,
    path: Path,
    config: FitConfig,
    metric: int,
    rescore: str,
    *,
    queries: Corpus | None = None,
    base: str = DEFAULT,
    settings: Mapping[str, int] | None = None,
    pairs: Pairs | None = None,
    recall: float | None = None,
    memory: float | None = None,
    compare: bool = False,
) -> FitResult:
    """Fit a quantizer to ``corpus``, write an index of it to ``path``, and measure it on what the fit has not seen.

    Where ``config`` says how many bytes, or ``recall`` is given and no layout, the layout is chosen by measuring;
    ``compare`` measures others beside one that is given, too.

    A training keeps its checkpoint, until the index is written, and its log in the folder ``path``.training.
    """
    from faiss_qama.training.split import split_corpus  # here, because run time does not depend on training

    bundle.check_writable(path, corpus.paths)
    if base == AUTO and settings:
        raise ValueError(f"base auto finds out {', '.join(settings)} by itself")
    job = _Fit(config, metric, rescore, base, None if config.layout else recall, memory, corpus.shape, compare)
    make_base(DEFAULT if base == AUTO else base, job.layout).set(settings or {})  # refused before anything is read
    work = path.with_name(path.name + ".training")
    start = time.perf_counter()
    split = split_corpus(corpus, queries, config.sample, config.seed, pairs)
    quantizer, choice = job.run(split, work)
    seconds = time.perf_counter() - start
    asked = split.validation if len(split.validation) else None
    spec = IndexSpec(base=base, rescore=rescore, settings=settings or {}, recall=recall, memory=memory)
    index = build_index(path, quantizer, corpus, spec, asked)
    _discard(config, work)
    if len(split.test) == 0:
        return FitResult(index, path, corpus, split, choice, seconds, "nothing", [])

    itself = np.stack([np.arange(len(split.test)), split.test_rows], axis=1)
    dataset = Dataset(
        corpus,
        split.test,
        qrels=split.test_qrels if len(split.test_qrels) else None,
        exclude=itself if split.train_queries is None else None,
    )
    truth = exact(dataset, K, metric)
    stages = {"codes only": index if rescore == "codes" else index.with_rescore("codes")}
    if rescore == "none":
        stages = {"codes, Hamming": index}
    elif rescore != "codes":
        stages[f"codes + {rescore} rescoring"] = index
    # The last first, as inverted lists keep a second copy of the codes once they were rescored from.
    results = {name: evaluate(stage, dataset, truth) for name, stage in reversed(stages.items())}
    measured = [truth.measured]
    measured += [MethodResult(name, stage.bytes_per_vector, [results[name]]) for name, stage in stages.items()]
    what = f"{len(split.test)} held-out {'documents' if split.train_queries is None else 'queries'}"
    return FitResult(index, path, corpus, split, choice, seconds, what, measured)


class _Fit:
    """What is to be fitted: refused, where it cannot be, before anything is read."""

    def __init__(
        self,
        config: FitConfig,
        metric: int,
        rescore: str,
        base: str,
        recall: float | None,
        memory: float | None,
        shape: tuple[int, int],
        compare: bool,
    ) -> None:
        from faiss_qama.training.candidate_layouts import (
            default_layout,  # here, because run time does not depend on training
        )

        self._metric, self._rescore, self._base, self._recall, self._n = metric, rescore, base, recall, shape[0]
        if recall is not None and not 0 < recall < 1:
            raise ValueError(f"recall must be above 0 and below 1; got {recall}")
        chosen = config.bytes is not None or recall is not None
        check_memory(CodeLayout.parse("1x1") if chosen else config.layout_in(shape[1]), memory)
        if chosen and memory is not None:
            config = replace(config, bytes=int(min(memory, config.bytes or memory)))
        if config.residual is None:
            config = replace(config, residual=rescore == "codes")
        self._config, self._compare, self._chosen = config, compare, chosen
        if config.bytes is not None:
            self.layout = CodeLayout.parse(default_layout(config.bytes, shape[1], base))
        else:
            self.layout = CodeLayout.parse("1x1") if chosen else config.layout_in(shape[1])
        if self.layout.residual is not None and rescore != "codes":
            raise ValueError(f"layout {self.layout}: its second code is read by rescore codes alone, not {rescore}")

    def run(self, split: Split, work: Path) -> tuple[Quantizer, LayoutChoice | None]:
        """Return a quantizer fitted to what was split, and what its layout was chosen from, if it was."""
        from faiss_qama.training.fit import fit_draw
        from faiss_qama.training.layout_choice import choose

        config, recall, choice = self._config, self._recall, None
        # Without held-out queries so many bytes get a layout by rule, but for a recall something has to be measured.
        if recall is not None or (len(split.validation) and (self._chosen or self._compare)):
            options: dict[str, Any] = {"base": self._base, "rescore": self._rescore, "recall": recall}
            choice = choose(split, config, self._metric, self._n, **options, compare=self._compare)
            config = choice.applied_to(config)
        elif config.bytes is not None:
            config = replace(config, layout=str(self.layout), bytes=None)
        quantizer = fit_draw(split, config, self._metric, work)
        while choice is not None and recall is not None and self._rescore == "codes":
            assert quantizer.calibration is not None
            reached = float(quantizer.calibration.codes[KS.index(K)].max())
            if reached >= recall:
                break
            choice = choice.larger(recall, reached, self._config.bytes)
            config = choice.applied_to(config)
            _discard(config, work)
            quantizer = fit_draw(split, config, self._metric, work)
        return quantizer, choice


def _discard(config: FitConfig, work: Path) -> None:
    """Remove the checkpoint of a training, if there was one to be."""
    if config.train is not None:
        from faiss_qama.training.checkpoint import discard

        discard(work)
