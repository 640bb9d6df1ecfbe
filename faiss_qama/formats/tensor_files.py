"""Vectors in .safetensors and .hdf5 files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from numpy.typing import NDArray

from faiss_qama.formats.reader import BFLOAT16, Reader, Want, as_file_ids, chosen, is_readable, library, mapped

# Types of safetensors that numpy can hold; the others are told by their names.
DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "i1", "U8": "u1"}
DTYPES |= {"U16": "<u2", "U32": "<u4", "U64": "<u8"}
METRICS = {"euclidean": "l2", "angular": "cosine", "ip": "ip", "dot": "ip", "inner_product": "ip"}  # of ann-benchmarks


def read_safetensors(path: Path, want: Want) -> Reader:
    """Return a reader of one tensor in a .safetensors file, mapped.

    The library checks the file. It does not read the tensor: into numpy it reads no bfloat16.

    Parameters
    ----------
    path : Path
        The file.
    want : Want
        The tensor, by default the only one of vectors, and that of ids.

    Returns
    -------
    Reader
        Its windows are memory maps.

    Raises
    ------
    ValueError
        If there is no such tensor or no single one.
    """
    with safetensors.safe_open(path, "numpy"):
        pass
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    header.pop("__metadata__", None)
    held = {key: f"{'x'.join(map(str, tensor['shape']))} {tensor['dtype']}" for key, tensor in header.items()}

    def tensor(key: str) -> NDArray[Any]:
        about = header[key]
        if about["dtype"] != "BF16" and about["dtype"] not in DTYPES:
            raise ValueError(f"{path}:{key}: floats, int8 or uint8 are needed; got {about['dtype']}")
        dtype = BFLOAT16 if about["dtype"] == "BF16" else np.dtype(DTYPES[about["dtype"]])
        if 0 in about["shape"]:
            return np.empty(about["shape"], dtype)
        return np.memmap(path, dtype, "r", 8 + size + about["data_offsets"][0], tuple(about["shape"]))

    good = [key for key, about in header.items() if len(about["shape"]) == 2 and about["dtype"] in _VECTORS]
    key = chosen(path, want.name, held, [key for key in good if key != want.ids], "tensor")
    ids = None
    if want.ids is not None:
        ids = as_file_ids(tensor(chosen(path, want.ids, held, [], "tensor")), path, want.ids)
    return mapped(lambda: tensor(key), ids=ids)


_VECTORS = ("BF16", *(name for name, dtype in DTYPES.items() if is_readable(np.dtype(dtype))))


def read_hdf5(path: Path, want: Want) -> Reader:
    """Return a reader of one dataset in an HDF5 file.

    Parameters
    ----------
    path : Path
        The file.
    want : Want
        The dataset, and that of ids. By default it is the only one of vectors, and in a file of ann-benchmarks
        ``train``, or ``test`` for queries.

    Returns
    -------
    Reader
        Its metric is the attribute ``distance``, if there is one.

    Raises
    ------
    ValueError
        If there is no such dataset or no single one.
    ImportError
        If h5py is not installed.
    """
    h5py = library("h5py", path, "hdf5")
    with h5py.File(path) as file:
        sets: dict[str, Any] = {}
        file.visititems(lambda key, item: sets.update({key: item} if isinstance(item, h5py.Dataset) else {}))
        held = {key: f"{'x'.join(map(str, item.shape or ()))} {item.dtype}" for key, item in sets.items()}
        good = [k for k, item in sets.items() if len(item.shape or ()) == 2 and is_readable(item.dtype)]
        usual = ["test" if want.queries else "train"] if {"train", "test"} <= set(good) else good
        key = chosen(path, want.name, held, [k for k in usual if k != want.ids], "dataset")
        shape, dtype, ids = sets[key].shape, sets[key].dtype, None
        if want.ids is not None:
            ids = as_file_ids(np.asarray(sets[chosen(path, want.ids, held, [], "dataset")]), path, want.ids)
        distance = file.attrs.get("distance")
    distance = distance.decode() if isinstance(distance, bytes) else distance

    def windows(step: int) -> Iterator[NDArray[Any]]:
        with h5py.File(path) as file:
            for start in range(0, shape[0], step):
                yield file[key][start : start + step]

    return Reader(
        shape=shape,
        dtype=dtype,
        windows=windows,
        ids=ids,
        metric=None if distance is None else METRICS.get(str(distance), str(distance)),
    )
