"""The stages of an index: settings that fitting, building and choosing share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class IndexSpec:
    """The stages of an index, and the recall and the size that they must keep to.

    Parameters
    ----------
    base : str
        First stage: ``Flat``, ``IVF1024``, a string of ``faiss.index_binary_factory``, or ``auto``.
    rescore : str
        Second stage: ``none``, ``codes``, ``sq8``, ``fp16`` or ``fp32``.
    settings : mapping of str to int
        Search parameters to set, ``nprobe`` or ``efSearch``.
    recall : float or None
        Recall@10, above 0 and below 1, that the layout or base ``auto`` is chosen for.
    memory : float or None
        Bytes per vector that base ``auto`` may hold in codes, lists and links.
    """

    base: str = "Flat"
    rescore: str = "fp16"
    settings: Mapping[str, int] = field(default_factory=dict)
    recall: float | None = None
    memory: float | None = None
