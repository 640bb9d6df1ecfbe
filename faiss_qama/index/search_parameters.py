"""The options of one search, checked once."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import faiss

_HEEDED = {
    faiss.SearchParametersIVF: "nprobe",
    faiss.SearchParametersHNSW: "efSearch",
    faiss.IndexRefineSearchParameters: "k_factor",
}


@dataclass(frozen=True, kw_only=True)
class SearchParameters:
    """The options of a search.

    Parameters
    ----------
    oversample : float or None
        Candidates per neighbour that are re-ranked.
    recall : float or None
        Share of the true neighbours to find; the calibration gives the candidates for it.
    truncate_dim : int or None
        Components that are scanned first; whole codes rank only the hits of that scan.
    sel : faiss.IDSelector, array of ids, or None
        Ids that may be found.
    settings : mapping of str to int
        ``nprobe`` or ``efSearch``.
    early_stop : bool or None
        Whether vectors are read in the order of their codes' scores, until no other is likely to be among the nearest.
        None: where they lie on disk and do not fit into memory.

    Raises
    ------
    ValueError
        For options that exclude each other.
    """

    oversample: float | None = None
    recall: float | None = None
    truncate_dim: int | None = None
    sel: Any = None
    settings: Mapping[str, int] = field(default_factory=dict)
    early_stop: bool | None = None

    def __post_init__(self) -> None:
        if self.oversample is not None and self.recall is not None:
            raise ValueError("pass oversample= or recall=, not both")
        if self.truncate_dim is not None and self.settings:
            names = ", ".join(self.settings)
            raise ValueError(f"truncate_dim= scans codes without the base index, so {names} mean nothing to it")

    @classmethod
    def of(cls, params: Any, sel: Any, settings: Mapping[str, int], **options: Any) -> SearchParameters:
        """Return the options of a search, from FAISS's ``params`` or from ``sel`` and ``settings``.

        Parameters
        ----------
        params : faiss.SearchParameters or None
            FAISS's own options.
        sel : faiss.IDSelector, array of ids, or None
            Ids that may be found.
        settings : mapping of str to int
            ``nprobe`` or ``efSearch``.
        **options : float, int, bool or None
            ``oversample``, ``recall``, ``truncate_dim`` and ``early_stop``.

        Returns
        -------
        SearchParameters
            The options.

        Raises
        ------
        ValueError
            For both, for a kind of ``params`` that means nothing here, and for a field of it that is set in vain.
        """
        if params is None:
            return cls(sel=sel, settings=settings, **options)
        if sel is not None or settings:
            raise ValueError("pass params=, or sel=, nprobe= and efSearch=, not both")
        kind, name = type(params), next((name for known, name in _HEEDED.items() if isinstance(params, known)), None)
        if name is None and kind is not faiss.SearchParameters:
            raise ValueError(f"params must be SearchParameters, -IVF, -HNSW or IndexRefine-; got {kind.__name__}")
        fields = (field for field, _ in inspect.getmembers(kind, lambda member: isinstance(member, property)))
        default = kind()
        for unheeded in sorted(set(fields) - {name, "sel", "thisown"}):
            if getattr(params, unheeded) != getattr(default, unheeded):
                heeded = f"sel and {name} do" if name else "sel does"
                raise ValueError(f"{unheeded} of {kind.__name__} means nothing here, only {heeded}")
        if name == "k_factor":
            if options.get("oversample") is not None:
                raise ValueError("pass k_factor or oversample=, not both")
            options["oversample"] = params.k_factor
        elif name is not None:
            settings = {name: getattr(params, name)}
        return cls(sel=params.sel, settings=settings, **options)
