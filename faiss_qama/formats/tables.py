"""Vectors in a column of lists: Parquet, Arrow and Feather."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faiss_qama.formats.reader import Reader, Want, as_file_ids, chosen, is_readable, library

BATCH_BYTES = 4 << 20  # of float32 that are decoded at a time
ARROW_FILE = b"ARROW1"  # what a file begins with that is no stream


def read_parquet(path: Path, want: Want) -> Reader:
    """Return a reader of a column of a Parquet file; parameters and errors are those of :func:`_read`."""
    parquet = library("pyarrow.parquet", path, "parquet")

    def batches(column: str, rows: int) -> Iterator[Any]:
        # Only both options together keep the library from reading a row group at once, which may be the whole file.
        with parquet.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as file:
            for batch in file.iter_batches(rows, columns=[column], use_threads=False):
                yield batch.column(column)

    def facts() -> tuple[Any, int]:
        with parquet.ParquetFile(path) as file:
            return file.schema_arrow, file.metadata.num_rows

    return _read(path, want, facts, batches)


def read_arrow(path: Path, want: Want) -> Reader:
    """Return a reader of a column of an Arrow or Feather file, or of an Arrow stream, as :func:`read_parquet`."""
    pa, ipc = library("pyarrow", path, "parquet"), library("pyarrow.ipc", path, "parquet")

    def opened(file: Any) -> tuple[Any, Iterator[Any]]:
        """Return the schema and the batches, which are views of the file where that is not compressed."""
        is_file = file[: len(ARROW_FILE)] == ARROW_FILE
        reader = (ipc.open_file if is_file else ipc.open_stream)(pa.py_buffer(file))
        return reader.schema, map(reader.get_batch, range(reader.num_record_batches)) if is_file else iter(reader)

    def batches(column: str, rows: int) -> Iterator[Any]:
        file = _map(path)
        for batch in opened(file)[1]:
            for start in range(0, len(batch), rows):
                yield batch.column(column).slice(start, rows)
                if hasattr(mmap, "MADV_DONTNEED"):
                    file.madvise(mmap.MADV_DONTNEED)  # what was read does not pile up in resident memory

    def facts() -> tuple[Any, int]:
        schema = opened(_map(path))[0]
        return schema, sum(map(len, batches(schema.names[0], 1 << 16))) if schema.names else 0

    return _read(path, want, facts, batches)


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _read(
    path: Path,
    want: Want,
    facts: Callable[[], tuple[Any, int]],
    batches: Callable[[str, int], Iterator[Any]],
) -> Reader:
    """Return a reader of a column of lists.

    Parameters
    ----------
    path : Path
        The file.
    want : Want
        The column, by default the only one of lists of floats, int8 or uint8, and that of ids.
    facts : callable
        Returns schema and number of rows.
    batches : callable
        Takes the name of a column and a number of rows, and yields the column in arrays of at most so many rows.

    Returns
    -------
    Reader
        Rows without a vector are NaN: null, an empty list, and a list that holds a null.

    Raises
    ------
    TypeError, ValueError
        If there is no such column or no single one, for ids that are no int64, and when it is read for lists of various
        lengths.
    ImportError
        If pyarrow is not installed.
    """
    pa = library("pyarrow", path, "parquet")
    schema, n = facts()
    held = {field.name: _in_words(pa, field.type) for field in schema}
    good = [field.name for field in schema if _dtype(pa, field.type) is not None]
    if not n:
        return Reader.of(np.empty((0, 0), np.float32))
    key = chosen(path, want.name, held, good, "column")
    dtype = _dtype(pa, schema.field(key).type)
    if dtype is None:
        raise TypeError(f"{path}: column {key!r} holds {held[key]}; lists of floats, int8 or uint8 are needed")
    d = _dimension(schema.field(key).type, batches(key, 256))

    def windows(step: int) -> Iterator[NDArray[Any]]:
        first = 0
        for column in batches(key, min(step, max(1, BATCH_BYTES // (4 * max(d, 1))))):
            yield _matrix(column, d, path, first)
            first += len(column)

    ids = None
    if want.ids is not None:
        chosen(path, want.ids, held, [], "column")
        column = list(batches(want.ids, 1 << 16))
        nulls = sum(part.null_count for part in column)
        if nulls:
            raise ValueError(f"{path}: ids in {want.ids!r}: {nulls:,} of {n:,} are null; each row needs one")
        ids = as_file_ids(np.concatenate([part.to_numpy(zero_copy_only=False) for part in column]), path, want.ids)
    return Reader(shape=(n, d), dtype=dtype, windows=windows, ids=ids, null="null, ")


def _matrix(column: Any, d: int, path: Path, first: int) -> NDArray[Any]:
    """Return a column of lists (m, d), NaN where there is no vector; its first row is the row ``first`` of the file."""
    column = getattr(column, "storage", column)  # of an extension type
    there = column.is_valid().to_numpy(zero_copy_only=False)
    lists = column.drop_null()  # flatten() leaves nulls out and does not say where
    values = lists.flatten().to_numpy(zero_copy_only=False)
    if hasattr(lists, "value_lengths"):
        lengths = np.zeros(len(column), np.int64)
        lengths[there] = lists.value_lengths().to_numpy(zero_copy_only=False)
        other = np.flatnonzero(there & (lengths != 0) & (lengths != d))
        if len(other):
            raise ValueError(f"{path}: row {first + other[0]} has {lengths[other[0]]} values, the first vector has {d}")
        there &= lengths == d
    if there.all():
        return values.reshape(len(column), d)  # type: ignore[no-any-return]
    out = np.full((len(column), d), np.nan, np.promote_types(values.dtype, np.float16))
    out[there] = values.reshape(-1, d)
    return out


def _dimension(type_: Any, columns: Iterator[Any]) -> int:
    """Return the dimension of the first vector in a column; 0 if there is none."""
    size = getattr(getattr(type_, "storage_type", type_), "list_size", None)
    if size is not None:
        return int(size)
    for column in columns:
        lengths = getattr(column, "storage", column).value_lengths().drop_null().to_numpy()
        if lengths.any():
            return int(lengths[lengths > 0][0])
    return 0


def _dtype(pa: Any, type_: Any) -> np.dtype[Any] | None:
    """Return the type of the values of a column of lists; None for what holds no vectors."""
    type_ = getattr(type_, "storage_type", type_)
    if not hasattr(type_, "value_type") or not _is_list(pa, type_) or not pa.types.is_primitive(type_.value_type):
        return None
    dtype = np.dtype(type_.value_type.to_pandas_dtype())
    return dtype if is_readable(dtype) else None


def _is_list(pa: Any, type_: Any) -> bool:
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    views = (pa.types.is_list_view, pa.types.is_large_list_view) if hasattr(pa.types, "is_list_view") else ()
    return any(is_kind(type_) for is_kind in (*kinds, *views))


def _in_words(pa: Any, type_: Any) -> str:
    return "text" if pa.types.is_string(type_) or pa.types.is_large_string(type_) else str(type_)
