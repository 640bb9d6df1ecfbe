"""Fits the residual code: a second quantizer, of the difference between a vector and its decoded code."""

from __future__ import annotations

from dataclasses import replace

import faiss

from faiss_qama.quantizer.layout import CodeLayout
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.training.closed_form import closed_form
from faiss_qama.training.config import FitConfig
from faiss_qama.training.split import Split


def with_residual(quantizer: Quantizer, layout: CodeLayout | None, split: Split, config: FitConfig) -> Quantizer:
    """Return ``quantizer`` with a residual code of ``layout``, fitted without training.

    It is as it is if that is None, and where a trellis has the bits of both codes.

    Residuals have principal components of their own. Those that the first layout has no room for are among them, so
    bits go where most is still to be gained.
    """
    if layout is None or quantizer.trellis is not None:
        return quantizer
    x = split.train
    left = replace(split, train=quantizer.residual_of(x, quantizer.encode(x)), train_queries=None)
    own = replace(config.at(layout), matryoshka_dims=(), query_gain=1.0, train=None)
    residual = closed_form(left, own, faiss.METRIC_INNER_PRODUCT)
    return replace(quantizer, layout=replace(quantizer.layout, residual=layout), residual=residual)
