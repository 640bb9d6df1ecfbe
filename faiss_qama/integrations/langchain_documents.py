"""Documents of LangChain: made of texts, kept as JSON, and filtered as the FAISS store of langchain-community does."""

from __future__ import annotations

import operator
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from langchain_core.documents import Document

from faiss_qama.integrations.metadata_json import dump, load

Metadatas: TypeAlias = Iterable[dict[str, Any]] | None
Names: TypeAlias = Sequence[str | None] | None
Pairs: TypeAlias = Iterable[tuple[str, Sequence[float]]]  # text, embedding

OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "$eq": operator.eq,
    "$neq": operator.ne,
    "$gt": lambda value, bound: value is not None and value > bound,
    "$gte": lambda value, bound: value is not None and value >= bound,
    "$lt": lambda value, bound: value is not None and value < bound,
    "$lte": lambda value, bound: value is not None and value <= bound,
    "$in": lambda value, several: value in several,
    "$nin": lambda value, several: value not in several,
}


def make_documents(texts: Iterable[str], metadatas: Metadatas, ids: Names) -> dict[str, Document]:
    """Return a document per text, by id, with metadata as they are after :func:`dump` and :func:`load`.

    Raises TypeError for metadata that cannot be kept, and ValueError for other numbers of metadata or ids than texts,
    and for an id that is there twice.
    """
    texts = list(texts)
    metadatas, ids = list(metadatas or ({} for _ in texts)), [None] * len(texts) if ids is None else list(ids)
    if not len(texts) == len(metadatas) == len(ids):
        raise ValueError(f"{len(texts)} texts need as many metadata and ids; got {len(metadatas)} and {len(ids)}")
    documents: dict[str, Document] = {}
    for i, (text, metadata, name) in enumerate(zip(texts, metadatas, ids, strict=True)):
        try:
            kept = load(dump(metadata))
        except (TypeError, ValueError) as error:
            raise TypeError(f"metadata of text {i}: {error}; JSON, dates, times and numpy's numbers are kept") from None
        document = Document(id=name or str(uuid.uuid4()), page_content=text, metadata=kept)
        if document.id in documents:
            raise ValueError(f"text {i}: the id {document.id!r} is there twice; each text needs one of its own")
        documents[str(document.id)] = document
    return documents


def make_filter(filter: Any) -> Callable[[dict[str, Any]], bool]:
    """Return a function that tells whether metadata pass ``filter``, a dict or such a function.

    Raises ValueError for another type, and for an unknown operator.
    """
    if callable(filter):
        passes: Callable[[dict[str, Any]], bool] = filter
        return passes
    if not isinstance(filter, Mapping):
        raise ValueError(f"a filter is a dict or a function of the metadata; got {type(filter).__name__}")
    conditions = [_condition(key, wanted) for key, wanted in filter.items()]
    return lambda metadata: all(condition(metadata) for condition in conditions)


def _condition(key: str, wanted: Any) -> Callable[[dict[str, Any]], bool]:
    if key == "$not":
        part = make_filter(wanted)
        return lambda metadata: not part(metadata)
    if key in ("$and", "$or"):
        joined, parts = (all if key == "$and" else any), [make_filter(part) for part in wanted]
        return lambda metadata: joined(part(metadata) for part in parts)
    if not isinstance(wanted, dict):
        wanted = {"$in" if isinstance(wanted, list) else "$eq": wanted}
    if key.startswith("$") or not wanted.keys() <= OPERATORS.keys():
        raise ValueError(f"unknown operator in the filter {{{key!r}: {wanted}}}; there are {', '.join(OPERATORS)}")
    return lambda metadata: all(OPERATORS[name](metadata.get(key), value) for name, value in wanted.items())
