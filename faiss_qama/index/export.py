"""Stock FAISS indexes of the same codes: ``faiss.write_index`` and ``read_index`` them with no faiss_qama installed.

Kinds:

- ``hamming``: ``IndexPreTransform(LinearTransform, IndexLSH)``, the Hamming stage, within an ``IndexRefine`` if the
  index keeps vectors. IndexLSH cuts columns at 0, so the transform has a row and a threshold per bit.
- ``fastscan``: an ``IndexPQFastScan`` whose centroids are the levels: asymmetric distances at FastScan speed (André et
  al., "Quicker ADC", 2019), refined if the index keeps vectors.
- ``binary``: the bare binary index; encode queries with ``Quantizer.encode_queries``.

The first two take float queries and encode them as queries. They encode vectors that are added later as queries too.
That is right only if the quantizer cuts both sides alike: fitted without real queries or a trained query side.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Codes, Floats, Ids
from faiss_qama.hamming.code_index import CodeIndex
from faiss_qama.hamming.faiss_binary import FaissCodeIndex
from faiss_qama.hamming.flat import FlatCodeIndex
from faiss_qama.index.two_stage import TwoStageIndex
from faiss_qama.quantizer import bit_packing
from faiss_qama.quantizer.layout import CodeLayout
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.quantizer.transform import Linear
from faiss_qama.rescore.stored_vectors import StoredVectors
from faiss_qama.rescore.user_vectors import UserVectors

KINDS = ("hamming", "fastscan", "binary")
K_FACTOR = 20  # most candidates of IndexRefine per neighbour; it takes no recall, so set your own
# Under the inner product IndexRefine ranks missing candidates first, so it must not ask for more than the index holds.
SAFE_K = 100


def to_faiss(core: TwoStageIndex, kind: str) -> Any:
    """Return a stock FAISS index of the same codes.

    Parameters
    ----------
    core : TwoStageIndex
        Codes, ids and vectors.
    kind : str
        One of ``KINDS``.

    Returns
    -------
    faiss.Index or faiss.IndexBinary
        Codes without removed rows, refined from the vectors if the index keeps them. Ids stay the same.

    Raises
    ------
    ValueError
        For another kind, and for a layout or a transform that this kind cannot express.

    Examples
    --------
    >>> import numpy as np
    >>> from faiss_qama import QamaIndex
    >>> from faiss_qama.training import fit
    >>> x = np.random.default_rng(0).standard_normal((500, 32), dtype=np.float32)
    >>> index = QamaIndex(fit(x))
    >>> index.add(x)
    >>> stock = index.to_faiss()  # faiss.write_index(stock, path) saves it
    >>> type(stock).__name__, stock.search(x[:3], 1)[1].ravel()
    ('IndexRefine', array([0, 1, 2]))
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    live = core.id_map.live_rows
    ids = None if core.id_map.ids is None else core.id_map.ids_of(live)
    if kind == "binary":
        return _binary(core.base, live, ids)
    quantizer, code = core.quantizer, np.ascontiguousarray(core.base.take(live))
    index = _hamming(quantizer, code) if kind == "hamming" else _fastscan(quantizer, code)
    if isinstance(core.rescorer, StoredVectors | UserVectors):
        index = _refined(index, core, live)
    if ids is None:
        return index
    return _with_ids(index, ids, faiss.IndexIDMap2(faiss.IndexFlat(quantizer.d, quantizer.metric)))


def _binary(base: CodeIndex, rows: Ids, ids: Ids | None) -> Any:
    if isinstance(base, FlatCodeIndex):
        flat = FaissCodeIndex("BFlat", base.layout)
        flat.append(base.take(rows))
        index = flat.index
    elif len(rows) == len(base) and not str(base).startswith("BHash"):
        index = faiss.clone_binary_index(base.index)
    else:  # some codes are removed, or it is a hash table, which cannot be cloned
        index = base.copy(rows).index
    return index if ids is None else _with_ids(index, ids, faiss.IndexBinaryIDMap2(faiss.IndexBinaryFlat(index.d)))


def _with_ids(index: Any, ids: Ids, mapped: Any) -> Any:
    """Return ``mapped``, an empty map of ids, around ``index``. Its constructor would refuse a filled index."""
    mapped.index = index
    faiss.copy_array_to_vector(ids, mapped.id_map)
    mapped.construct_rev_map()
    mapped.ntotal = index.ntotal
    return _owning(mapped, index)


def _hamming(quantizer: Quantizer, code: Codes) -> Any:
    layout, d = quantizer.layout, quantizer.d
    # Bit by bit: its column and its threshold. A pair of the rule "or" is no cut of a linear map.
    columns, cuts = [], []
    for segment, where, _ in layout.slices():
        if segment.bits == "0.5or":
            raise ValueError("a layout with 0.5or is no linear map; kinds 'fastscan' and 'binary' are possible")
        for column in range(where.start, where.stop):
            columns += [column] * (segment.levels - 1)
            cuts += quantizer.thresholds[column, : segment.levels - 1].tolist()
    if not isinstance(quantizer.query_transform, Linear):
        raise ValueError(
            "kind 'hamming' needs a linear transform of queries, and this one is a network; "
            "kinds 'fastscan' and 'binary' are possible"
        )
    matrix = quantizer.query_transform.scaled_matrix[columns]
    bias = quantizer.query_transform.bias[columns] - np.array(cuts, np.float32)
    padded = 8 * layout.code_size  # IndexLSH rounds up to whole bytes anyway; padding bits are 0: -1 is under the cut
    matrix = np.concatenate([matrix, np.zeros((padded - len(matrix), d), np.float32)])
    bias = np.concatenate([bias, np.full(padded - len(bias), -1, np.float32)])
    lsh = faiss.IndexLSH(padded, padded, False, False)
    faiss.copy_array_to_vector(code.ravel(), lsh.codes)
    lsh.ntotal = len(code)
    return _behind(_query_transforms(quantizer, matrix, bias), lsh)


def _fastscan(quantizer: Quantizer, code: Codes) -> Any:
    """Return a product quantizer over groups of columns; its 16 centroids are the products of their levels."""
    layout, decoder = quantizer.layout, quantizer.decoder
    group = 4 if layout.max_levels == 2 else 2
    columns, values, levels = _padded_columns(layout, decoder.values, bit_packing.levels(code, layout), group)
    matrix = np.where(columns[:, None] >= 0, decoder.matrix[columns], 0)
    m = len(columns) // group
    # A column of L levels counts as a digit of base 16 ** (1 / group).
    base = 4 if group == 2 else 2
    digits = np.stack(np.meshgrid(*[np.arange(base)] * group, indexing="ij"), axis=-1).reshape(16, group)
    padded = np.zeros((len(columns), base), dtype=np.float32)
    padded[:, : values.shape[1]] = values
    padded[:, values.shape[1] :] = values[:, -1:]
    centroids = padded.reshape(m, group, base)[:, np.arange(group), digits]  # (m, 16, group)
    numbers = levels.reshape(len(code), m, group) @ base ** np.arange(group)[::-1]
    pq = faiss.IndexPQ(len(columns), m, 4, quantizer.metric)
    faiss.copy_array_to_vector(np.ascontiguousarray(centroids, np.float32).ravel(), pq.pq.centroids)
    pq.is_trained = True
    numbers = np.pad(numbers.astype(np.uint8), ((0, 0), (0, m % 2)))
    faiss.copy_array_to_vector((numbers[:, 0::2] | numbers[:, 1::2] << 4).ravel(), pq.codes)
    pq.ntotal = len(code)
    fast = faiss.IndexPQFastScan(pq)
    # Distances are those from the offset; it adds the same to all inner products with a query.
    bias = np.zeros(len(columns), np.float32)
    if quantizer.metric == faiss.METRIC_L2:
        bias = -matrix @ decoder.offset
    if quantizer.query_adapter is not None:
        bias += matrix @ quantizer.query_adapter.bias
        matrix = matrix @ quantizer.query_adapter.scaled_matrix
    return _behind([_linear(matrix.astype(np.float32), bias)], fast)


def _padded_columns(
    layout: CodeLayout, values: Floats, levels: NDArray[np.uint8], group: int
) -> tuple[Ids, Floats, NDArray[np.uint8]]:
    """Return columns (c,), values (c, levels) and levels (n, c); columns -1 of value 0 fill each segment to groups."""
    parts: list[tuple[Ids, NDArray[np.uint8]]] = []
    unit = 0
    for segment, where, _ in layout.slices():
        per_unit = segment.columns // segment.units
        own = np.repeat(levels[:, unit : unit + segment.units], per_unit, axis=1)
        spare = -segment.columns % group
        parts.append(
            (
                np.pad(np.arange(where.start, where.stop), (0, spare), constant_values=-1),
                np.pad(own, ((0, 0), (0, spare))),
            )
        )
        unit += segment.units
    columns = np.concatenate([c for c, _ in parts])
    return columns, np.where(columns[:, None] >= 0, values[columns], 0), np.concatenate([p for _, p in parts], axis=1)


def _refined(index: Any, core: TwoStageIndex, live: Ids) -> Any:
    """Return ``index`` within an IndexRefine over the vectors of ``core``."""
    quantizer = core.quantizer
    kinds = {"fp16": faiss.ScalarQuantizer.QT_fp16, "sq8": faiss.ScalarQuantizer.QT_8bit}
    x = core.take(live)
    if len(x) and core.rescore in kinds and (core.rescore != "fp16" or np.abs(x).max(initial=0) < 65504):
        store = faiss.IndexScalarQuantizer(quantizer.d, kinds[core.rescore], quantizer.metric)
        store.train(x)
    else:
        store = faiss.IndexFlat(quantizer.d, quantizer.metric)
    store.add(x)
    index.metric_type = quantizer.metric  # IndexRefine needs the same metric twice; Hamming distances stay as they are
    refined = faiss.IndexRefine(index, store)
    refined.k_factor = max(1, min(K_FACTOR, len(live) // SAFE_K))
    return _owning(_owning(refined, store, "own_refine_index"), index)


def _query_transforms(quantizer: Quantizer, matrix: Floats, bias: Floats) -> list[Any]:
    """Return the transforms of a query: under the inner product to the corpus' norm, then the linear map."""
    if quantizer.metric == faiss.METRIC_L2:
        return [_linear(matrix, bias)]
    return [faiss.NormalizationTransform(quantizer.d, 2.0), _linear(matrix * np.float32(quantizer.rms_norm), bias)]


def _linear(matrix: Floats, bias: Floats) -> Any:
    transform = faiss.LinearTransform(matrix.shape[1], len(matrix), True)
    faiss.copy_array_to_vector(np.ascontiguousarray(matrix, np.float32).ravel(), transform.A)
    faiss.copy_array_to_vector(bias.astype(np.float32), transform.b)
    transform.is_trained = True
    return transform


def _behind(transforms: list[Any], index: Any) -> Any:
    """Return ``index`` behind ``transforms``, which are applied in their order."""
    for transform in reversed(transforms):
        if isinstance(index, faiss.IndexPreTransform):
            index.prepend_transform(transform)
        else:
            index = _owning(faiss.IndexPreTransform(transform, index), index)
        transform.this.disown()
    return index


def _owning(outer: Any, inner: Any, name: str = "own_fields") -> Any:
    """Return ``outer`` as the owner of ``inner``, which it frees."""
    setattr(outer, name, True)
    inner.this.disown()
    return outer
