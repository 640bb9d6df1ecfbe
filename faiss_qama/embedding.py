"""Texts to vectors with a sentence-transformer (extra ``embed``)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from faiss_qama.codes import Floats
from faiss_qama.vectors import PathLike, as_vectors

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


def read_texts(path: Path, field: str = "text") -> list[str]:
    """Return the texts of ``path``: a line each, or a field of each JSON line if the name ends in ``.jsonl``.

    Raises ValueError naming the line.
    """
    try:
        with path.open(encoding="utf-8") as file:
            lines = [line.rstrip("\n") for line in file]  # str.splitlines would also split at form feeds
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from None
    if not lines:
        raise ValueError(f"{path}: no texts")
    if path.suffix != ".jsonl":
        return lines
    texts = []
    for number, line in enumerate(lines, start=1):
        try:
            text = json.loads(line)[field]
        except (json.JSONDecodeError, KeyError, TypeError):
            raise ValueError(f"{path}: line {number}: not a JSON object with the field {field!r}") from None
        if not isinstance(text, str):
            raise ValueError(f"{path}: line {number}: {field!r} is no text")
        texts.append(text)
    return texts


def load_model(model: PathLike) -> SentenceTransformer:
    """Return the sentence-transformer of that name or path. Raises ImportError with the command that installs it."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        raise ImportError("embedding needs sentence-transformers: pip install 'faiss-qama[embed]'") from None
    from transformers.utils import logging

    logging.disable_progress_bar()  # loading takes no two seconds
    return SentenceTransformer(str(model))


def embed_texts(texts: Sequence[str], model: PathLike) -> Floats:
    """Return the embeddings (n, d) float32 of ``texts``, in order."""
    encoder = load_model(model)
    return as_vectors(encoder.encode(list(texts), batch_size=64, convert_to_numpy=True, show_progress_bar=None))
