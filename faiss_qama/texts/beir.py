"""Embed a BEIR folder of texts and grades into a data set folder.

The format is that of Thakur et al., "BEIR: A heterogeneous benchmark for zero-shot evaluation of information retrieval
models", 2021. As there, the text of a document is its title, a space and its text, and a document with the id of the
query is excluded from its hits.
"""

from __future__ import annotations

import json
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from faiss_qama.corpus import Corpus
from faiss_qama.formats.numpy_files import open_npy
from faiss_qama.progress import progress
from faiss_qama.storage import atomic_files
from faiss_qama.texts.embedding import json_lines, load_model, read_lines, vectors_by

BLOCK = 4096  # texts embedded at a time; an interruption loses at most these
SPLITS = {"": "test", "train_": "train", "dev_": "dev"}  # by the prefix of their files in the data set folder

Record: TypeAlias = dict[str, Any]
Qrels: TypeAlias = list[tuple[str, str, int]]  # query id, corpus id, grade


@dataclass(frozen=True, eq=False)
class Side:
    """The corpus, or the queries of one split: the texts that become one .npy file.

    Parameters
    ----------
    name : str
        The name of the .npy file, without suffix.
    sources : tuple of Path
        The files that determine the texts.
    rows : dict of str to int
        The row of each id.
    texts : callable
        Returns the texts, in the order of ``rows``.
    encode : str
        The method of a sentence-transformer that embeds them.
    qrels : list of tuple
        Query id, corpus id and grade, of these queries.
    """

    name: str
    sources: tuple[Path, ...]
    rows: dict[str, int]
    texts: Callable[[], Iterable[str]]
    encode: str
    qrels: Qrels = field(default_factory=list)

    def record(self, model: str) -> Record:
        """Return a record of texts and model, which is equal only for equal texts and the same model.

        Parameters
        ----------
        model : str
            The name or the path of the model.

        Returns
        -------
        dict
            What JSON can hold.
        """
        return {"model": model, "sha256": {path.name: atomic_files.sha256(path) for path in self.sources}}


def embed_folder(source: Path, output: Path, model: str) -> list[tuple[str, str]]:
    """Embed a BEIR folder into a data set folder.

    Embeddings of the same files by the same model are kept, and an interrupted run continues where it stopped.

    Parameters
    ----------
    source : Path
        The BEIR folder: ``corpus.jsonl``, ``queries.jsonl`` and ``qrels/test.tsv``, optionally other splits; each may
        end in ``.gz``.
    output : Path
        The data set folder, which may be the same one.
    model : str
        The name or the path of a sentence-transformer.

    Returns
    -------
    list of tuple of str
        The name of each part, and what was done in words.

    Raises
    ------
    FileNotFoundError
        If a file is missing, before anything is written.
    ValueError
        If a file is malformed, before anything is written. The message names the file and the line.
    """
    model = str(Path(model).resolve()) if Path(model).exists() else model
    corpus, *queries = sides = _sides(source)
    records = {side.name: side.record(model) for side in sides}
    missing = [side for side in sides if not _is_there(output, side, records[side.name])]
    encoder = load_model(model) if missing else None
    work, done = output / "embedding.part", {}
    work.mkdir(parents=True, exist_ok=True)
    seconds = {}
    for side in missing:
        start = time.perf_counter()
        encode = getattr(encoder, side.encode)
        done[side.name] = _embed(side, records[side.name], work / side.name, encode)
        seconds[side.name] = f"embedded in {time.perf_counter() - start:.1f} s"
    # Existing files are replaced only now, the records last, so that a record never describes other vectors.
    for name, x in done.items():
        (output / f"{name}.json").unlink(missing_ok=True)
        atomic_files.write_npy(output / f"{name}.npy", atomic_files.Stream(x.shape, np.dtype(np.float32), x.chunks()))
    _write_labels(output, corpus, queries)
    for side in sides:
        atomic_files.write_text(output / f"{side.name}.json", json.dumps(records[side.name], indent=2) + "\n")
    shutil.rmtree(work)
    return [_fact(output, side, seconds.get(side.name, "kept, as model and files are the same")) for side in sides]


def documents(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the documents of a corpus.jsonl.

    Parameters
    ----------
    path : Path
        The file.

    Yields
    ------
    identifier, text : str
        The id, and the title and the text to embed.

    Raises
    ------
    ValueError
        If a line is malformed. The message names the line.
    """
    for number, record in enumerate(json_lines(path, "_id", "text"), start=1):
        title = record.get("title") or ""
        if not isinstance(title, str):
            raise ValueError(f"{path}: line {number}: 'title' is no text")
        yield record["_id"], f"{title} {record['text']}".strip()


def read_qrels(path: Path, queries: Mapping[str, int], corpus: Mapping[str, int], *, missing: bool) -> Qrels:
    """Read a file of query id, corpus id and grade, separated by tabs, or of TREC's four columns.

    A first line whose grade has no digit is a header. Where a pair stands on several lines, the last one counts. Grades
    of unknown queries are left out, and a warning counts them, as it counts those of unknown documents.

    Parameters
    ----------
    path : Path
        The file.
    queries : mapping of str to int
        The row of each query id.
    corpus : mapping of str to int
        The row of each document id.
    missing : bool
        Whether grades of unknown documents are kept. No search finds these, and trec_eval counts them as missed.

    Returns
    -------
    list of tuple
        Query id, corpus id and grade.

    Raises
    ------
    ValueError
        If a line is malformed, or no grade is of a query and a document that are there. The message names the line.
    """
    grades = _graded(path)
    known = {pair: grade for pair, grade in grades.items() if pair[0] in queries}
    found = {pair: grade for pair, grade in known.items() if pair[1] in corpus}
    if not found:
        raise ValueError(
            f"{path}: none of {len(grades)} grades is of a query and a document that are there; without grades embed "
            "corpus.jsonl and queries.jsonl alone"
        )
    if lost := [query for query, _ in grades if query not in queries]:
        warnings.warn(
            f"{path}: {len(lost)} grades of queries that are not there, such as {lost[0]!r}, are left out", stacklevel=2
        )
    if lost := [document for _, document in known if document not in corpus]:
        counted = "count as missed, as in trec_eval" if missing else "are left out"
        warnings.warn(
            f"{path}: {len(lost)} grades of documents that are not there, such as {lost[0]!r}, {counted}", stacklevel=2
        )
    return [(query, document, grade) for (query, document), grade in (known if missing else found).items()]


def _graded(path: Path) -> dict[tuple[str, str], int]:
    """Return the grade of each pair of query id and corpus id in a file."""
    grades: dict[tuple[str, str], int] = {}
    for number, line in enumerate(read_lines(path), start=1):
        cells = line.split("\t")
        if len(cells) != 3:
            cells = line.split()
            if not cells:
                continue
            if len(cells) == 4:  # TREC has a column of zeros in second place
                del cells[1]
        if len(cells) != 3:
            raise ValueError(
                f"{path}: line {number}: query-id, corpus-id and score, tab-separated, are needed, or the four columns "
                f"of TREC; got {line!r}"
            )
        query, document, score = cells
        if not re.fullmatch(r"\s*[+-]?\d{1,9}(\.0*)?\s*", score):
            if number == 1 and not any(letter.isdigit() for letter in score):
                continue
            raise ValueError(f"{path}: line {number}: a score is a whole number of up to 9 digits; got {score!r}")
        grades[query, document] = int(float(score))
    return grades


def _sides(source: Path) -> list[Side]:
    """Return the corpus, and the queries of each split in the folder, all checked."""
    corpus_path, queries_path = _there(source / "corpus.jsonl"), _there(source / "queries.jsonl")
    qrels_paths = {
        prefix: _there(source / "qrels" / f"{split}.tsv", source / "qrels" / f"{split}.txt")
        for prefix, split in SPLITS.items()
    }
    for path in (corpus_path, queries_path, qrels_paths[""]):
        if not path.exists():
            raise FileNotFoundError(
                f"{path}: no such file; a BEIR folder holds corpus.jsonl, queries.jsonl and qrels/test.tsv"
            )
    corpus = _rows(corpus_path, (identifier for identifier, _ in documents(corpus_path)))
    asked = [(record["_id"], record["text"]) for record in json_lines(queries_path, "_id", "text")]
    queries = _rows(queries_path, (identifier for identifier, _ in asked))
    sides = [
        Side("corpus", (corpus_path,), corpus, lambda: (text for _, text in documents(corpus_path)), "encode_document")
    ]
    for prefix, path in qrels_paths.items():
        if path.exists():
            qrels = read_qrels(path, queries, corpus, missing=not prefix)  # what is trained on has vectors
            judged = {query for query, _, _ in qrels}
            texts = {identifier: text for identifier, text in asked if identifier in judged}
            rows = {identifier: row for row, identifier in enumerate(texts)}
            sides.append(Side(f"{prefix}queries", (queries_path, path), rows, texts.values, "encode_query", qrels))
    return sides


def _there(*paths: Path) -> Path:
    """Return the first of ``paths`` that is there, as it is or with ``.gz``; the first if none is."""
    named = [candidate for path in paths for candidate in (path, path.with_name(path.name + ".gz"))]
    return next((path for path in named if path.exists()), paths[0])


def _rows(path: Path, ids: Iterable[str]) -> dict[str, int]:
    """Return the row of each id. Raises ValueError for an id that stands twice, or is not a single line."""
    rows: dict[str, int] = {}
    for row, identifier in enumerate(ids):
        if identifier in rows:
            raise ValueError(
                f"{path}: line {row + 1}: the _id {identifier!r} is line {rows[identifier] + 1}'s too; rename one"
            )
        if len(identifier.splitlines()) != 1 or "\t" in identifier or not _is_utf8(identifier):
            raise ValueError(f"{path}: line {row + 1}: an _id is one line of text without tabs; got {identifier!r}")
        rows[identifier] = row
    return rows


def _is_utf8(text: str) -> bool:
    """Return whether ``text`` can be written: JSON may hold half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_there(output: Path, side: Side, record: Record) -> bool:
    """Return whether ``output`` holds all embeddings of ``side``."""
    try:
        noted = _noted(output / f"{side.name}.json")
        return bool(noted == record and len(open_npy(output / f"{side.name}.npy")) == len(side.rows))
    except (OSError, ValueError):
        return False


def _noted(path: Path) -> Any:
    """Return the record at ``path``; None if it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _embed(side: Side, record: Record, work: Path, encode: Callable[..., Any]) -> Corpus:
    """Embed the texts of ``side`` block by block into the folder ``work``, except for blocks that are there."""
    note = work / "source.json"
    if _noted(note) != record:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        atomic_files.write_text(note, json.dumps(record))
    texts, blocks = iter(side.texts()), []
    for start in progress(range(0, len(side.rows), BLOCK), f"embedding {side.name}"):
        block = list(islice(texts, BLOCK))
        path = work / f"{start}-{start + len(block)}.npy"
        if not path.exists():
            atomic_files.write_npy(path, vectors_by(encode, block))
        blocks.append(path)
    return Corpus(blocks)


def _write_labels(output: Path, corpus: Side, queries: list[Side]) -> None:
    """Write ids, one per line, and graded and excluded pairs as rows; remove splits that no longer exist."""
    for part in (corpus, *queries):
        atomic_files.write_text(output / f"{part.name}_ids.txt", "".join(f"{identifier}\n" for identifier in part.rows))
    named = {side.name: side for side in queries}
    for prefix in SPLITS:
        if (side := named.get(f"{prefix}queries")) is not None:
            rows = [(side.rows[query], corpus.rows.get(document, -1), grade) for query, document, grade in side.qrels]
            _write_tsv(output / f"{prefix}qrels.tsv", ("query", "document", "grade"), rows)
        elif (output / f"{prefix}queries.json").exists():
            for name in ("queries.json", "queries.npy", "queries_ids.txt", "qrels.tsv"):
                (output / f"{prefix}{name}").unlink(missing_ok=True)
    asked = named["queries"].rows
    itself = [(row, corpus.rows[identifier]) for identifier, row in asked.items() if identifier in corpus.rows]
    if itself:
        _write_tsv(output / "exclude.tsv", ("query", "document"), itself)
    else:
        (output / "exclude.tsv").unlink(missing_ok=True)


def _write_tsv(path: Path, header: tuple[str, ...], rows: Iterable[tuple[int, ...]]) -> None:
    atomic_files.write_text(path, "".join("\t".join(map(str, row)) + "\n" for row in (header, *rows)))


def _fact(output: Path, side: Side, how: str) -> tuple[str, str]:
    n, d = open_npy(output / f"{side.name}.npy").shape
    judged = f"{len(side.qrels):,} grades, " if side.qrels else ""
    return side.name.removesuffix("_queries"), f"{n:,} x {d} float32, {judged}{how}"
