"""The quantizer: a frozen value that turns vectors into codes and codes back into vectors."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import faiss
import numpy as np
from numpy.typing import ArrayLike, NDArray

from faiss_qama.arrays import Codes, Floats, row_norms, scale_to_norm
from faiss_qama.quantizer import bit_packing
from faiss_qama.quantizer.bit_packing import ENCODE_CHUNK
from faiss_qama.quantizer.calibration import Calibration
from faiss_qama.quantizer.decoder import BitDecoder, Decoder
from faiss_qama.quantizer.fit_record import FitRecord
from faiss_qama.quantizer.layout import CodeLayout
from faiss_qama.quantizer.transform import Linear, Transform, from_arrays, linear
from faiss_qama.quantizer.trellis import Trellis
from faiss_qama.threads import one_blas_thread, parallel_map, slices
from faiss_qama.vectors import as_vectors

# If every level of a query is the lowest or the highest, the L1 distance is a constant minus an inner product with the
# signs of the query, whatever the norms of the documents. A query that spreads so many times as far nearly is so.
LINEAR_GAIN = 16.0
SHARED = ("decoder.matrix", "query_transform.matrix")  # left out of a state if they are transform.matrix
METRICS = {"inner product": faiss.METRIC_INNER_PRODUCT, "L2": faiss.METRIC_L2}
COSINE = "cosine"  # inner products of vectors that are scaled to norm 1 first, on both sides


@dataclass(frozen=True, eq=False, repr=False)
class Quantizer:
    """Transform, layout, thresholds and decoder, fitted by :func:`faiss_qama.training.fit`.

    Parameters
    ----------
    transform : Linear or FeedForward
        Map from R^d to the columns of the layout.
    layout : CodeLayout
        Levels of each component.
    thresholds : ndarray of shape (columns, max_levels - 1), float32
        Ascending per column; +inf where a column has fewer.
    decoder : Decoder
        Map from levels back to R^d.
    metric : int
        ``faiss.METRIC_INNER_PRODUCT`` or ``faiss.METRIC_L2``, of the float vectors.
    normalized : bool
        Whether the vectors that it was fitted on have norm 1. Decoded vectors are then normalized.
    rms_norm : float
        Root mean square norm of the corpus.
    query_transform : Linear or FeedForward
        Map of queries to columns. It gives queries a centre, a spread and, if it was trained, directions of their own;
        otherwise it is ``transform``.
    query_adapter : Linear, optional
        Map from R^d to R^d of float queries before they are scored against decoded codes.
    residual : Quantizer, optional
        The quantizer of the residual code, which codes x minus the decoded first code (Chen et al., "Approximate
        Nearest Neighbor Search by Residual Vector Quantization", 2010).
    trellis : Trellis, optional
        The points of a trellis-coded layout. Thresholds are then for queries alone, and the decoder for first codes
        without their residual code.
    fit_record : FitRecord
        How it was fitted.
    calibration : Calibration, optional
        The oversampling that each recall needs, if it was measured.
    cosine : bool
        Whether vectors are scaled to norm 1 before anything else. The metric is the inner product then.

    Examples
    --------
    >>> import numpy as np
    >>> from faiss_qama.training import FitConfig, fit
    >>> x = np.random.default_rng(0).standard_normal((500, 32))
    >>> quantizer = fit(x, config=FitConfig(layout="2x16"))
    >>> code = quantizer.encode(x)
    >>> code.shape, code.dtype, quantizer.decode(code).shape
    ((500, 6), dtype('uint8'), (500, 32))

    Raises
    ------
    ValueError
        For arrays of a wrong shape, and for another metric.
    """

    transform: Transform
    layout: CodeLayout
    thresholds: Floats
    decoder: Decoder
    metric: int
    normalized: bool
    rms_norm: float
    query_transform: Transform
    query_adapter: Linear | None = None
    residual: Quantizer | None = None
    trellis: Trellis | None = None
    fit_record: FitRecord = field(default_factory=FitRecord)
    calibration: Calibration | None = None
    cosine: bool = False

    def __post_init__(self) -> None:
        columns, cuts = self.layout.columns, self.layout.max_levels - 1
        self._check_second_codes()
        wanted = {
            "thresholds": (self.thresholds, (columns, cuts)),
            "decoder.values": (self.decoder.values, (columns, cuts + 1)),
            "decoder.matrix": (self.decoder.matrix, (columns, self.d)),
            "decoder.offset": (self.decoder.offset, (self.d,)),
        }
        for name, transform in self._transforms().items():
            rows = self.d if name == "query_adapter" else columns
            own, shapes = transform.arrays(), transform.shapes(rows, self.d)
            wanted |= {f"{name}.{part}": (own[part], shapes[part]) for part in own}
        for name, (array, shape) in wanted.items():
            if array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}; layout {self.layout} in {self.d}-d needs {shape}")
        if self.metric not in METRICS.values():
            raise ValueError(f"metric must be METRIC_INNER_PRODUCT or METRIC_L2; got {self.metric}")
        if self.cosine and self.metric == faiss.METRIC_L2:
            raise ValueError("cosine is an inner product; got METRIC_L2")
        # One matrix is held once, however many parts have it.
        matrix = self.transform.matrix
        if np.array_equal(self.decoder.matrix, matrix):
            object.__setattr__(self, "decoder", replace(self.decoder, matrix=matrix))
        if np.array_equal(self.query_transform.matrix, matrix):
            object.__setattr__(self, "query_transform", self.query_transform.with_matrix(matrix))

    def _check_second_codes(self) -> None:
        """Raise ValueError unless a trellis or a residual quantizer is there just if the layout has one."""
        layout = self.layout
        if layout.trellis != (self.trellis is not None):
            raise ValueError(f"layout {layout} {'needs' if layout.trellis else 'has no'} trellis.values")
        if (None if layout.trellis else layout.residual) != (self.residual and self.residual.layout):
            raise ValueError(f"layout {layout} has the residual {layout.residual}; got {self.residual}")
        if self.trellis is not None:
            self.trellis.check(layout)

    def __reduce__(self) -> tuple[Any, ...]:
        return Quantizer.from_state, self.to_state()

    def __repr__(self) -> str:
        return f"Quantizer({self.layout}, {self.d}-d, {self.metric_name})"

    @property
    def d(self) -> int:
        """Dimension of the float vectors."""
        return self.transform.shape[1]

    @property
    def code_size(self) -> int:
        """Bytes per code, without the residual code."""
        return self.layout.code_size

    @property
    def metric_name(self) -> str:
        """``inner product``, ``L2`` or ``cosine``."""
        return COSINE if self.cosine else next(name for name, metric in METRICS.items() if metric == self.metric)

    def encode(self, x: ArrayLike) -> Codes:
        """Return the codes, (n, code_size) uint8, of documents ``x`` (n, d).

        Raises TypeError or ValueError unless they are finite floats of dimension d.
        """
        x = self.checked(x)
        if self.trellis is not None:
            return self.trellis.codes(x, self.transform, self.layout)[0]
        return bit_packing.codes(x, self.transform, self.thresholds, self.layout)

    def checked(self, x: ArrayLike, what: str = "vectors") -> Floats:
        """Return ``x`` (n, d) as float32, scaled to norm 1 if ``cosine``. Raises errors that call it ``what``."""
        x = as_vectors(x, self.d, what)
        return scale_to_norm(x, 1.0) if self.cosine else x

    def encode_queries(self, xq: ArrayLike) -> Codes:
        """Return the codes, (n, code_size) uint8, of queries ``xq`` (n, d).

        Under the inner product the norm of a query does not change the ranking, so queries are scaled to ``rms_norm``.
        Raises ValueError unless they are finite.
        """
        return self.encode_queries_unchecked(as_vectors(xq, self.d, "queries"))

    def encode_queries_unchecked(self, x: Floats) -> Codes:
        """Return :meth:`encode_queries` of queries (n, d) float32 that are checked already."""
        if self.metric == faiss.METRIC_INNER_PRODUCT:
            x = scale_to_norm(x, self.rms_norm)
        return bit_packing.codes(x, self.query_transform, self.thresholds, self.layout)

    def adapt_queries(self, xq: Floats) -> Floats:
        """Return queries ``xq`` (n, d) as they are scored against decoded codes, (n, d) float32."""
        return xq if self.query_adapter is None else self.query_adapter(xq)

    def residual_of(self, x: Floats, code: Codes) -> Floats:
        """Return the residuals, (n, d) float32: documents ``x`` less what their ``code`` (n, code_size) decodes to."""
        return x - self.decode_unnormalized(code)

    def encode_residual(self, x: Floats, code: Codes) -> Codes:
        """Return the residual codes, (n, residual.code_size) uint8, of documents ``x`` (n, d) with their ``code``.

        Raises ValueError for a layout without residual code.
        """
        if self.layout.residual is None:
            raise ValueError(f"layout {self.layout} has no residual code; fit one such as {self.layout}+1x8")
        x = self.checked(x)
        bit_packing.check_codes(code, self.layout, len(x))
        if self.trellis is not None:
            finer = self.trellis.codes(x, self.transform, self.layout, code)[1]
            assert finer is not None
            return finer
        assert self.residual is not None
        return self.residual.encode(self.residual_of(x, code))

    def encode_both(self, x: Floats) -> tuple[Codes, Codes | None]:
        """Return the codes (n, code_size) uint8 of documents ``x`` (n, d), and residual codes if there are any."""
        if self.trellis is not None:
            return self.trellis.codes(self.checked(x), self.transform, self.layout)
        code = self.encode(x)
        return code, None if self.layout.residual is None else self.encode_residual(x, code)

    def decode(self, code: Codes, residual: Codes | None = None) -> Floats:
        """Return the vectors, (n, d) float32, of ``code`` (n, code_size) and, if given, residual codes (n, size)."""
        return self._decode(code, residual, self.normalized)

    def distortion(self, x: ArrayLike) -> float:
        """Return the mean squared error of decoded ``x`` (n, d), their mean squared distance from the mean being 1."""
        x = self.checked(x)
        spread = float(np.mean(row_norms(x - x.mean(axis=0)) ** 2)) or 1.0
        return float(np.mean(row_norms(x - self.encode_decode(x)) ** 2)) / spread

    def encode_decode(self, x: ArrayLike) -> Floats:
        """Return documents ``x`` (n, d) encoded and decoded, (n, d) float32, with the residual code if there is one."""
        x = self.checked(x)
        return self.decode(*self.encode_both(x))

    def decode_unnormalized(self, code: Codes, residual: Codes | None = None) -> Floats:
        """Return :meth:`decode` of the same, not normalized. Raises ValueError for codes of another shape."""
        return self._decode(code, residual, False)

    def _decode(self, code: Codes, residual: Codes | None, normalized: bool) -> Floats:
        bit_packing.check_codes(code, self.layout)
        if residual is not None and self.layout.residual is not None:
            bit_packing.check_codes(residual, self.layout.residual, len(code), "residual codes")
        x = np.empty((len(code), self.d), dtype=np.float32)
        # Without its residual code, the first code of a trellis does not tell the parities.
        points = self.trellis if self.layout.residual is None or residual is not None else None

        def decode(chunk: slice) -> None:
            more = None if residual is None else residual[chunk]
            if points is not None:
                own = self.decoder.of_columns(points.decode(code[chunk], self.layout, more))
            else:
                own = self.decoder.vectors(code[chunk], self.layout)
                if more is not None and self.residual is not None:
                    own += self.residual.decoder.vectors(more, self.residual.layout)
            x[chunk] = scale_to_norm(own, 1.0) if normalized else own

        with one_blas_thread if len(code) > ENCODE_CHUNK else nullcontext():
            parallel_map(decode, slices(len(code), ENCODE_CHUNK))
        return x

    def truncate(self, components: int) -> Quantizer:
        """Return the quantizer of the first components, for the first bits of this one's codes.

        It is as good as one fitted at that size, and calibrated, only at the Matryoshka dimensions of the fit
        (``FitConfig(matryoshka_dims=...)``). It has no residual code.

        Parameters
        ----------
        components : int
            How many components to keep.

        Returns
        -------
        Quantizer

        Raises
        ------
        ValueError
            For fewer than 1 or more than there are, if a pair of components would be split, and if none has a bit.
        """
        layout = self.layout.truncate(components)
        if layout == self.layout:
            return self
        columns = layout.columns
        return replace(
            self,
            transform=self.transform.truncate(columns),
            layout=layout,
            thresholds=self.thresholds[:columns, : layout.max_levels - 1],
            decoder=self.decoder.truncate(columns, layout.max_levels),
            trellis=None if self.trellis is None or not layout.trellis else self.trellis.truncate(columns, layout),
            query_transform=self.query_transform.truncate(columns),
            residual=None,
            calibration=self.calibration.prefixes.get(components) if self.calibration else None,
        )

    def of_any_norm(self) -> Quantizer:
        """Return the quantizer with queries encoded for documents of any norm: the codes of documents stay.

        For the inner product only. A query side that was trained stays as it is.
        """
        if self.metric == faiss.METRIC_L2 or self.fit_record.trained or not isinstance(self.transform, Linear):
            return self
        far = self.transform.then(LINEAR_GAIN, -LINEAR_GAIN * self.transform.bias)
        return replace(self, query_transform=far, fit_record=replace(self.fit_record, query_gain=LINEAR_GAIN))

    @property
    def is_of_any_norm(self) -> bool:
        """Whether queries are encoded for documents of any norm, as :meth:`of_any_norm` does."""
        return self.fit_record.query_gain == LINEAR_GAIN

    def recalibrated(self, calibration: Calibration, *, real_queries: bool = False) -> Quantizer:
        """Return the quantizer with another calibration, which real queries or documents have measured."""
        record = replace(self.fit_record, real_queries=real_queries)
        return replace(self, calibration=calibration, fit_record=record)

    def is_compatible_with(self, other: Quantizer) -> bool:
        """Return whether codes and stored vectors of ``other`` mean the same as those of this quantizer."""
        (a, settings), (b, others) = self.to_state(), other.to_state()
        named = {name for name in a.keys() | b.keys() if not name.startswith(("calibration.", "query_"))}
        same = [settings[key] == others[key] for key in ("d", "layout", "metric", "normalized", "rms_norm")]
        return all(same) and named <= a.keys() & b.keys() and all(np.array_equal(a[name], b[name]) for name in named)

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return the arrays, C-contiguous and by name, and everything else as JSON can hold it.

        Of ``SHARED`` those are left out that are ``transform.matrix``.
        """
        arrays: dict[str, NDArray[Any]] = {
            "thresholds": self.thresholds,
            "decoder.values": self.decoder.values,
            "decoder.matrix": self.decoder.matrix,
            "decoder.offset": self.decoder.offset,
        }
        if self.trellis is not None:
            arrays |= {"trellis.values": self.trellis.values, "trellis.targets": self.trellis.targets}
        for name, transform in self._transforms().items():
            arrays |= {f"{name}.{part}": array for part, array in transform.arrays().items()}
        for name in SHARED:
            if arrays[name] is self.transform.matrix:
                del arrays[name]
        if self.calibration is not None:
            arrays |= self.calibration.arrays()
        settings = {
            "d": self.d,
            "layout": str(self.layout),
            "metric": self.metric_name,
            "normalized": self.normalized,
            "rms_norm": self.rms_norm,
            "fit_record": self.fit_record.to_dict(),
        }
        if self.residual is not None:
            own, settings["residual"] = self.residual.to_state()
            arrays |= {f"residual.{name}": array for name, array in own.items()}
        return {name: np.ascontiguousarray(array) for name, array in arrays.items()}, settings

    @classmethod
    def from_state(cls, arrays: Mapping[str, NDArray[Any]], settings: Mapping[str, Any]) -> Quantizer:
        """Return the quantizer of :meth:`to_state`.

        Raises KeyError, TypeError or ValueError for parts that are missing, unknown or of a wrong shape.
        """
        norm, normalized = settings["rms_norm"], settings["normalized"]
        if not (isinstance(norm, float | int) and 0 < norm < float("inf") and isinstance(normalized, bool)):
            raise ValueError(f"rms_norm is a number above 0 and normalized a bool; got {norm!r} and {normalized!r}")
        arrays = dict.fromkeys(SHARED, arrays["transform.matrix"]) | dict(arrays)
        residual = None
        if "residual" in settings:
            own = {n.removeprefix("residual."): array for n, array in arrays.items() if n.startswith("residual.")}
            residual = cls.from_state(own, settings["residual"])
        return cls(
            transform=from_arrays(arrays, "transform"),
            layout=CodeLayout.parse(settings["layout"]),
            thresholds=arrays["thresholds"],
            decoder=Decoder(arrays["decoder.values"], arrays["decoder.matrix"], arrays["decoder.offset"]),
            metric=METRICS["inner product" if settings["metric"] == COSINE else settings["metric"]],
            cosine=settings["metric"] == COSINE,
            normalized=normalized,
            rms_norm=norm,
            query_transform=from_arrays(arrays, "query_transform"),
            query_adapter=linear(arrays, "query_adapter") if "query_adapter.matrix" in arrays else None,
            residual=residual,
            trellis=Trellis.from_arrays(arrays),
            fit_record=FitRecord.from_dict(settings["fit_record"]),
            calibration=Calibration.from_arrays(arrays),
        )

    @cached_property
    def bit_decoder(self) -> BitDecoder:
        """What each bit adds to scores and to squared norms."""
        return self.decoder.of_bits(self.layout)

    def _transforms(self) -> dict[str, Transform]:
        named: dict[str, Transform] = {"transform": self.transform, "query_transform": self.query_transform}
        if self.query_adapter is not None:
            named["query_adapter"] = self.query_adapter
        return named
