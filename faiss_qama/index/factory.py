"""Factory strings: ``Qama2x192,BHNSW32,Refine(SQfp16)``.

A string has up to three parts:

1. ``Qama`` and a layout, in brackets if it has commas, or the name of a layout in brackets: ``Qama(hybrid)``.
2. The base index: ``Flat``, ``IVFn``, ``auto`` or a string of ``faiss.index_binary_factory``. The default is ``Flat``.
3. The second stage: ``Refine(codes)``, ``Refine(SQ8)``, ``Refine(SQfp16)``, ``Refine(Flat)`` or ``RFlat``. The default
   is none, so that searches return Hamming distances.
"""

from __future__ import annotations

import operator
import re

import faiss

from faiss_qama.hamming.factory import DEFAULT
from faiss_qama.index.qama_index import QamaIndex
from faiss_qama.index.state import Unfitted
from faiss_qama.quantizer.quantizer import COSINE, METRICS

_FORM = re.compile(
    r"Qama(?:\((?P<brackets>[^()]+)\)|(?P<layout>[^,()]+))(?:,(?P<base>IDMap2?,[^,()]+|(?!Refine|RFlat)[^,()]+))?(?:,(?P<refine>Refine\(\w+\)|RFlat))?"
)
_STAGES = {"codes": "codes", "SQ8": "sq8", "SQfp16": "fp16", "Flat": "fp32", "RFlat": "fp32"}


def index_factory(d: int, description: str, metric: int | str = faiss.METRIC_L2) -> QamaIndex:
    """Return an index whose :meth:`~faiss_qama.QamaIndex.train` fits the quantizer.

    Parameters
    ----------
    d : int
        Dimension of the vectors.
    description : str
        A factory string, such as ``Qama2x192,Flat,Refine(SQfp16)``: ``Qama`` and a layout or ``Qama(NAME)``, the base
        index, and the second stage.
    metric : int or str
        ``faiss.METRIC_L2``, the default as in ``faiss.index_factory``, ``faiss.METRIC_INNER_PRODUCT``, or ``cosine``,
        for which vectors and queries are scaled to norm 1.

    Returns
    -------
    QamaIndex
        An empty index. Call ``train``, then ``add``.

    Raises
    ------
    TypeError
        For a dimension that is no int.
    ValueError
        For a string of another form, with the possible ones, and for another metric.

    Examples
    --------
    >>> import numpy as np
    >>> from faiss_qama import index_factory
    >>> x = np.random.default_rng(0).standard_normal((500, 32), dtype=np.float32)
    >>> index = index_factory(32, "Qama2x16,Flat,Refine(SQfp16)")
    >>> index.train(x)
    >>> index.add(x)
    >>> index.search(x[:3], 1)[1].ravel()
    array([0, 1, 2])
    """
    from faiss_qama.training import FitConfig  # here, because run time does not depend on training

    if metric not in (COSINE, *METRICS.values()):
        raise ValueError(f"metric must be METRIC_L2, METRIC_INNER_PRODUCT or '{COSINE}'; got {metric!r}")
    form = _FORM.match(description)
    rest = description[form.end() :] if form else description
    if form is None or rest:
        raise ValueError(
            f"{description!r} is not Qama2x192 or Qama(LAYOUT or NAME)[,BASE][,Refine({'|'.join(_STAGES)})]: "
            f"{rest!r} is not understood"
        )
    stage = (form["refine"] or "").removeprefix("Refine(").removesuffix(")")
    if stage and stage not in _STAGES:
        raise ValueError(f"{description!r}: Refine takes {', '.join(_STAGES)}; got {stage}")
    config = FitConfig(layout=form["brackets"] or form["layout"])
    unfitted = Unfitted(operator.index(d), metric, config)
    return QamaIndex(unfitted, _STAGES[stage] if stage else "none", base=form["base"] or DEFAULT)
