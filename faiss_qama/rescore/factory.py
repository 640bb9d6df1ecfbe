"""A rescorer from the name of its kind: the one place that knows the names."""

from __future__ import annotations

from typing import Any

from faiss_qama.hamming.code_index import CodeIndex, PartReader
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.rescore.codes import CodeRescorer
from faiss_qama.rescore.rescorer import Rescorer
from faiss_qama.rescore.residual import ResidualRescorer
from faiss_qama.rescore.stored_vectors import DTYPES, StoredVectors, row_width
from faiss_qama.rescore.trellis import RefinedTrellisRescorer, TrellisRescorer
from faiss_qama.rescore.user_vectors import UserVectors

RESCORE_KINDS = ("none", "codes", *DTYPES)


def check_rescore(rescore: Any) -> None:
    """Raise ValueError for a string that is not in ``RESCORE_KINDS``; other objects may be vectors."""
    if isinstance(rescore, str) and rescore not in RESCORE_KINDS:
        raise ValueError(f"rescore must be one of {', '.join(RESCORE_KINDS)}, or vectors; got {rescore!r}")


def make_rescorer(rescore: Any, quantizer: Quantizer, base: CodeIndex) -> Rescorer | None:
    """Return an empty rescorer, or None for ``none``.

    Parameters
    ----------
    rescore : str, ndarray of shape (n, d), faiss.Index or FaissVectors
        One of ``RESCORE_KINDS``, or vectors that the user keeps.
    quantizer : Quantizer
        The quantizer of the codes.
    base : CodeIndex
        The codes.

    Returns
    -------
    Rescorer or None
        The rescorer.

    Raises
    ------
    TypeError, ValueError
        For another string, and for vectors of another dimension or type.
    """
    check_rescore(rescore)
    if not isinstance(rescore, str):
        return UserVectors(quantizer, rescore)
    if rescore in DTYPES:
        return StoredVectors(quantizer, rescore)
    if rescore == "none":
        return None
    return _of_codes(quantizer)(quantizer, base)


def read_rescorer(rescore: str, quantizer: Quantizer, base: CodeIndex, reader: PartReader) -> Rescorer | None:
    """Return the saved rescorer of the codes in ``base``. Raises ValueError for damaged parts."""
    if rescore in DTYPES:
        shape = (len(base), row_width(rescore, quantizer.d))
        return StoredVectors(quantizer, rescore, reader.growing("vectors", shape, DTYPES[rescore]))
    if rescore == "codes":
        return _of_codes(quantizer).from_parts(quantizer, base, reader)
    return make_rescorer(rescore, quantizer, base)


def of_first_codes(quantizer: Quantizer, base: CodeIndex) -> CodeRescorer:
    """Return a rescorer by the codes in ``base`` alone, without their residual codes."""
    quantizer = quantizer.truncate(quantizer.layout.components)
    return _of_codes(quantizer)(quantizer, base)


def _of_codes(quantizer: Quantizer) -> type[CodeRescorer]:
    """Return the class of rescorers by the codes of ``quantizer``."""
    if quantizer.layout.residual is None:
        return CodeRescorer if quantizer.trellis is None else TrellisRescorer
    return ResidualRescorer if quantizer.trellis is None else RefinedTrellisRescorer
