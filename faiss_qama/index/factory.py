"""Factory strings: ``Qama2x192,BHNSW32,Refine(SQfp16)``.

That is ``Qama`` and a layout, in brackets if it has commas, or the name of a layout in brackets (``Qama(hybrid)``);
then the base index, ``Flat``, ``IVFn`` or a string of ``faiss.index_binary_factory`` (``Flat`` if left out); then
what rescores, nothing if left out: ``Refine(codes)``, ``Refine(SQ8)``, ``Refine(SQfp16)``, ``Refine(Flat)`` or
``RFlat``.
"""

from __future__ import annotations

import re

import faiss

from faiss_qama.hamming.factory import DEFAULT
from faiss_qama.index.qama_index import QamaIndex
from faiss_qama.index.state import Unfitted

_FORM = re.compile(
    r"Qama(?:\((?P<brackets>[^()]+)\)|(?P<layout>[^,()]+))(?:,(?P<base>Flat|IVF\d+|auto|B.*?|IDMap2?,B.*?))?(?:,(?P<refine>Refine\(\w+\)|RFlat))?"
)
_STAGES = {"codes": "codes", "SQ8": "sq8", "SQfp16": "fp16", "Flat": "fp32", "RFlat": "fp32"}


def index_factory(d: int, description: str, metric: int = faiss.METRIC_L2) -> QamaIndex:
    """Return an index whose ``train`` fits the quantizer; as in ``faiss.index_factory`` the default metric is L2.

    Raises ValueError for a string of another form, with what is possible.
    """
    from faiss_qama.training import FitConfig  # here, because run time does not depend on training

    form = _FORM.fullmatch(description)
    if form is None:
        raise ValueError(
            f"{description!r} is not Qama2x192 or Qama(LAYOUT or NAME)[,BASE][,Refine({'|'.join(_STAGES)})]"
        )
    stage = (form["refine"] or "").removeprefix("Refine(").removesuffix(")")
    if stage and stage not in _STAGES:
        raise ValueError(f"{description!r}: Refine takes {', '.join(_STAGES)}; got {stage}")
    config = FitConfig(layout=form["brackets"] or form["layout"])
    return QamaIndex(Unfitted(d, metric, config), _STAGES[stage] if stage else "none", base=form["base"] or DEFAULT)
