"""Texts to vectors with a sentence-transformer (extra ``embed``)."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faiss_qama.arrays import Floats
from faiss_qama.vectors import PathLike, as_vectors

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def read_texts(path: Path, field: str = "text") -> list[str]:
    """Read the texts of a file.

    Parameters
    ----------
    path : Path
        A file with one text per line, or, if its name ends in ``.jsonl``, one JSON object per line.
    field : str
        The field of a JSON object that holds the text.

    Returns
    -------
    list of str
        The texts, in order.

    Raises
    ------
    ValueError
        If the file is empty, not UTF-8, or a line has no such field. The message names the line.
    """
    if path.suffix == ".jsonl":
        return [record[field] for record in json_lines(path, field)]
    return list(read_lines(path))


def json_lines(path: Path, *needed: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of a file of JSON lines.

    Parameters
    ----------
    path : Path
        The file.
    *needed : str
        Fields that every object must have, as texts. A whole number is one for ``_id``.

    Yields
    ------
    dict
        One object per line.

    Raises
    ------
    ValueError
        If a line is malformed. The message names the line.
    """
    for number, line in enumerate(read_lines(path), start=1):
        try:
            record = json.loads(line)
            values = {field: record[field] for field in needed}
        except (ValueError, KeyError, TypeError, RecursionError):
            fields = " and ".join(map(repr, needed))
            raise ValueError(f"{path}: line {number}: not a JSON object with the field {fields}") from None
        if type(values.get("_id")) is int:
            record["_id"] = values["_id"] = str(values["_id"])
        for field, value in values.items():
            if not isinstance(value, str):
                raise ValueError(f"{path}: line {number}: {field!r} is no text")
        yield record


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file, without their ends.

    Parameters
    ----------
    path : Path
        The file; gzip, if its name ends in ``.gz``.

    Yields
    ------
    str
        One line.

    Raises
    ------
    ValueError
        If the file is empty, not UTF-8, or damaged.
    """
    empty = True
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            for line in file:  # str.splitlines would also split at form feeds
                empty = False
                yield line.rstrip("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: not a whole gzip file ({error})") from None
    if empty:
        raise ValueError(f"{path}: no lines")


def load_model(model: PathLike) -> SentenceTransformer:
    """Load a sentence-transformer.

    Parameters
    ----------
    model : str or os.PathLike
        Its name or its path.

    Returns
    -------
    SentenceTransformer
        The model.

    Raises
    ------
    ImportError
        If sentence-transformers is not installed. The message has the command that installs it.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ImportError("embedding needs sentence-transformers: pip install '.[embed]' in the clone") from None
    from transformers.utils import logging

    logging.disable_progress_bar()  # loading takes less than two seconds
    return SentenceTransformer(str(model))


def embed_texts(texts: Sequence[str], model: PathLike) -> Floats:
    """Embed texts.

    Parameters
    ----------
    texts : sequence of str
        The texts.
    model : str or os.PathLike
        The name or the path of a sentence-transformer.

    Returns
    -------
    ndarray of shape (n, d), float32
        The embeddings, in order.
    """
    return vectors_by(load_model(model).encode, texts)


def vectors_by(encode: Callable[..., Any], texts: Sequence[str]) -> Floats:
    """Embed texts with a method of a loaded sentence-transformer.

    Parameters
    ----------
    encode : callable
        ``encode``, ``encode_query`` or ``encode_document`` of the model.
    texts : sequence of str
        The texts.

    Returns
    -------
    ndarray of shape (n, d), float32
        The embeddings, in order.
    """
    return as_vectors(encode(list(texts), batch_size=64, convert_to_numpy=True, show_progress_bar=None))
