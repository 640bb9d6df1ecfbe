"""The quantizer as torch trains it: the same transform, thresholds and decoder, with gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import faiss
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from faiss_qama.arrays import Floats, row_norms
from faiss_qama.quantizer.decoder import Decoder
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.quantizer.transform import Linear
from faiss_qama.training.gradient.adapter import Adapter, to_numpy
from faiss_qama.training.gradient.gradient_estimators import ESTIMATORS
from faiss_qama.training.published.pruning import Pruning
from faiss_qama.training.train_config import TrainConfig


@dataclass(frozen=True, eq=False)
class Coded:
    """Columns (n, columns), their distances from the thresholds (n, columns, thresholds), and bits (n, n_bits)."""

    z: Tensor
    u: Tensor
    bits: Tensor


class Model(nn.Module):
    """A quantizer in training.

    Vectors are divided by ``deviation``, their root mean square distance from their mean, because learning rates and
    temperatures depend on the unit of length. Scores are inner products or -|q - x|^2 / 2; larger means nearer.

    Parameters
    ----------
    start : Quantizer
        A quantizer without training, whose transforms are linear.
    x : ndarray of shape (n, d), float32
        Documents, for the spread of the columns.
    config : TrainConfig
        Settings of the training.
    ends : list of int
        Component counts of the prefixes to optimise, ascending; the last is all components.
    """

    shift: Tensor
    spread: Tensor
    matrix: Tensor
    offset: Tensor
    used: Tensor
    below: Tensor
    bit_shares: Tensor
    same_unit: Tensor

    def __init__(self, start: Quantizer, x: Floats, config: TrainConfig, ends: list[int]) -> None:
        super().__init__()
        assert isinstance(start.transform, Linear)
        assert isinstance(start.query_transform, Linear)
        self.deviation = float(np.sqrt(np.mean(row_norms(x - x.mean(axis=0)) ** 2))) or 1.0
        self.start, self.config, layout = start, config, start.layout
        of_document, of_query = (t.rescaled(1 / self.deviation) for t in (start.transform, start.query_transform))
        prefixes = [layout.truncate(end) for end in ends]
        self.column_ends, self.bit_ends = [p.columns for p in prefixes], [p.n_bits for p in prefixes]
        weights = torch.tensor([(p.components / layout.components) ** config.matryoshka_power for p in prefixes])
        self.slice_weights = (weights / weights.sum()).tolist()

        documents = config.adapter != "none"
        self.adapter = Adapter(of_document, config.adapter, round(config.expansion * start.d))
        self.gain = start.fit_record.query_gain
        shift = of_query.bias - np.float32(self.gain) * of_document.bias
        self.register_buffer("shift", torch.from_numpy(shift))
        # A query side that no loss reaches would stay behind while the documents' side moves.
        stages = {name.split(".")[0] for name in config.losses}
        own = config.query_side and bool(stages & {"float", "hamming"})
        self.query_adapter = Adapter(of_query, "linear") if own else None
        own = config.query_side and "adc" in stages
        self.query_matrix = nn.Parameter(torch.eye(start.d)) if own else None

        z = start.transform(x) / np.float32(self.deviation)
        self.register_buffer("spread", torch.from_numpy(np.maximum(z.std(axis=0), 1e-9)))
        cuts = torch.from_numpy(start.thresholds / np.float32(self.deviation))
        self.register_buffer("used", cuts.isfinite())
        self.thresholds = nn.Parameter(cuts.masked_fill(~self.used, 0.0), documents and config.thresholds == "learned")
        below = np.stack([np.mean(z < cut, axis=0, dtype=np.float32) for cut in cuts.numpy().T], axis=1)
        self.register_buffer("below", torch.from_numpy(below))

        self.values = nn.Parameter(torch.from_numpy(start.decoder.values / np.float32(self.deviation)), documents)
        # The decoder's map stays: what queries learn does the same, and with orthogonal rows norms are cheap to find.
        self.register_buffer("matrix", torch.from_numpy(start.decoder.matrix.copy()))
        self.register_buffer("offset", torch.from_numpy(start.decoder.offset / np.float32(self.deviation)))
        # Similarities of columns and of bits are brought to the scale of the teacher's: a factor and a shift a slice.
        self.scales = nn.Parameter(torch.zeros(2, len(ends), 2))
        # For code losses: the share of documents that each bit should be set in, and which bits belong to one unit.
        shares: list[float] = []
        units: list[int] = []
        for segment, _, _ in layout.slices():
            shares += [1 - (cut + 1) / segment.levels for cut in range(segment.levels - 1)] * segment.units
            units += np.repeat(len(units) + np.arange(segment.units), segment.levels - 1).tolist()
        self.register_buffer("bit_shares", torch.tensor(shares))
        self.register_buffer("same_unit", torch.tensor(units)[:, None] == torch.tensor(units))
        self.pruning = None if config.pruning is None else Pruning(layout.columns, config.pruning)

    @property
    def scale(self) -> float:
        """Root mean square norm of the vectors."""
        return self.start.rms_norm / self.deviation

    def code_documents(self, x: Tensor, temperature: float) -> Coded:
        """Code documents (n, d)."""
        return self._code(self.adapter(x), temperature)

    def code_queries(self, xq: Tensor, temperature: float) -> Coded:
        """Code queries (nq, d)."""
        if self.start.metric == faiss.METRIC_INNER_PRODUCT:
            xq = normalize(xq) * self.scale
        if self.query_adapter is not None:
            return self._code(self.query_adapter(xq), temperature)
        return self._code(self.gain * self.adapter(xq) + self.shift, temperature)

    def teacher(self, xq: Tensor, x: Tensor) -> Tensor:
        """Return the scores (nq, n) of the floats."""
        if self.start.metric == faiss.METRIC_INNER_PRODUCT:
            return normalize(xq) * self.scale @ x.T
        return -torch.cdist(xq, x).square() / 2

    def float_scores(self, queries: Coded, documents: Coded) -> list[Tensor]:
        """Return the cosines of the columns on the teacher's scale, a (nq, n) tensor per prefix."""
        return _scaled(
            self.scales[0],
            [normalize(queries.z[:, :end]) @ normalize(documents.z[:, :end]).T for end in self.column_ends],
        )

    def adc_scores(self, xq: Tensor, decoded: list[Tensor]) -> list[Tensor]:
        """Return the scores of float queries against decoded documents, a (nq, n) tensor per prefix."""
        if self.start.metric == faiss.METRIC_INNER_PRODUCT:
            xq = normalize(xq) * self.scale
        if self.query_matrix is not None:
            xq = xq @ self.query_matrix.T
        if self.start.metric == faiss.METRIC_INNER_PRODUCT:
            return [xq @ x.T for x in decoded]
        return [-torch.cdist(xq, x).square() / 2 for x in decoded]

    def hamming_scores(self, queries: Coded, documents: Coded) -> list[Tensor]:
        """Return the Hamming similarities on the teacher's scale, a (nq, n) tensor per prefix."""
        a, b = 2 * queries.bits - 1, 2 * documents.bits - 1
        return _scaled(self.scales[1], [a[:, :end] @ b[:, :end].T / end for end in self.bit_ends])

    @torch.no_grad()
    def match(self, xq: Tensor, x: Tensor, teacher: Tensor) -> None:
        """Bring similarities of columns and bits to the scale of the ``teacher``, by least squares on a batch."""
        temperature, seen = self.config.temperature[0], teacher.isfinite()
        if seen.sum() < 2:  # every document is the query
            return
        queries, documents = self.code_queries(xq, temperature), self.code_documents(x, temperature)
        self.scales.zero_()
        for rows, score in zip(self.scales, (self.float_scores, self.hamming_scores), strict=True):
            for row, scores in zip(rows, score(queries, documents), strict=True):
                s, t = scores[seen], teacher[seen]
                slope = ((s - s.mean()) * (t - t.mean())).mean() / s.var().clamp(min=1e-12)
                row[0] = slope.clamp(min=1e-3).log()
                row[1] = t.mean() - row[0].exp() * s.mean()

    def decode(self, bits: Tensor) -> list[Tensor]:
        """Return the decoded documents, a (n, d) tensor per prefix."""
        # What each bit adds, and what the lowest levels add up to.
        steps = self.values.diff(dim=1)[:, :, None] * self.matrix[:, None, :]
        lowest = self.values[:, :1] * self.matrix
        parts = []
        for segment, columns, _ in self.start.layout.slices():
            own = steps[columns, : segment.levels - 1].unflatten(0, (segment.units, -1)).sum(dim=1)
            parts.append(own.flatten(0, 1))
        per_bit = torch.cat(parts)
        decoded, bit, column = [], 0, 0
        x: Tensor = self.offset
        for bit_end, column_end in zip(self.bit_ends, self.column_ends, strict=True):
            x = x + lowest[column:column_end].sum(dim=0) + bits[:, bit:bit_end] @ per_bit[bit:bit_end]
            decoded.append(normalize(x) * self.scale if self.start.normalized else x)
            bit, column = bit_end, column_end
        return decoded

    @torch.no_grad()
    def follow(self, draw: Callable[[], Floats]) -> None:
        """Update what follows the data, not the gradient, after a step.

        Moving thresholds go to where the share of columns below them is what it was at the start, among the random
        documents (n, d) that ``draw`` returns.
        """
        if self.pruning is not None:
            self.pruning.observe()
        if self.config.thresholds != "moving" or self.config.adapter == "none":
            return
        x = torch.from_numpy(draw()).to(self.spread.device) / self.deviation
        ordered = self.adapter(x).sort(dim=0).values
        place = (self.below * (len(x) - 1)).round().long()  # (columns, cuts)
        own = ordered.T.gather(1, place)
        self.thresholds.lerp_(torch.where(self.used, own, self.thresholds), 1 - self.config.momentum)

    def prune(self, averaged: Model, done: float) -> dict[str, float]:
        """Prune this model and its moving average when ``done`` of the training is over; return the statistics."""
        if self.pruning is None or averaged.pruning is None:
            return {}
        statistics = self.pruning.prune(done)
        averaged.pruning.mask.copy_(self.pruning.mask)
        return statistics

    def frozen(self) -> Quantizer:
        """Return the quantizer as it is now."""
        transform = self.adapter.frozen()
        if self.query_adapter is not None:
            query_transform = self.query_adapter.frozen()
        else:
            query_transform = transform.then(self.gain, to_numpy(self.shift))
        query_adapter = None
        if self.query_matrix is not None:
            query_adapter = Linear(to_numpy(self.query_matrix), np.zeros(self.start.d, np.float32))
        deviation = np.float32(self.deviation)
        quantizer = replace(
            self.start,
            transform=transform.rescaled(self.deviation),
            thresholds=to_numpy(self._ordered_thresholds()) * deviation,
            decoder=Decoder(
                to_numpy(self.values) * deviation, to_numpy(self.matrix), to_numpy(self.offset) * deviation
            ),
            query_transform=query_transform.rescaled(self.deviation),
            query_adapter=query_adapter,
        )
        return quantizer if self.pruning is None else self.pruning.applied(quantizer)

    def _ordered_thresholds(self) -> Tensor:
        return self.thresholds.masked_fill(~self.used, float("inf")).sort(dim=1).values

    def _code(self, z: Tensor, temperature: float) -> Coded:
        cuts = self._ordered_thresholds()
        if self.pruning is not None:
            z, cuts = self.pruning(z, cuts)
        u = (z[:, :, None] - cuts) / self.spread[:, None]
        relaxed = ESTIMATORS[self.config.quantizer](u, temperature)
        parts = []
        for segment, columns, _ in self.start.layout.slices():
            bits = relaxed[:, columns, : segment.levels - 1]
            if segment.bits == "0.5or":
                bits = 1 - (1 - bits[:, 0::2]) * (1 - bits[:, 1::2])
            parts.append(bits.flatten(1))
        return Coded(z, u, torch.cat(parts, dim=1))


def _scaled(scales: Tensor, scores: list[Tensor]) -> list[Tensor]:
    return [factor.exp() * s + shift for s, (factor, shift) in zip(scores, scales, strict=True)]
