"""The quantizer: a frozen value that turns vectors into codes and codes back into vectors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import faiss
import numpy as np
from numpy.typing import ArrayLike, NDArray

from faiss_qama.arrays import Codes, Floats, scale_to_norm
from faiss_qama.quantizer import bit_packing
from faiss_qama.quantizer.calibration import Calibration
from faiss_qama.quantizer.decoder import BitDecoder, Decoder
from faiss_qama.quantizer.fit_record import FitRecord
from faiss_qama.quantizer.layout import CodeLayout
from faiss_qama.quantizer.transform import Linear, Transform, from_arrays
from faiss_qama.threads import parallel_map
from faiss_qama.vectors import as_vectors

ENCODE_CHUNK = 4096  # vectors whose columns stay in cache until they are packed
METRICS = {"inner product": faiss.METRIC_INNER_PRODUCT, "L2": faiss.METRIC_L2}


@dataclass(frozen=True, eq=False, repr=False)
class Quantizer:
    """Transform, layout, thresholds and decoder, fitted by :func:`faiss_qama.training.fit`.

    Parameters
    ----------
    transform : from R^d to the columns of the layout
    layout : how many levels each component gets
    thresholds : (columns, max_levels - 1) float32, ascending, +inf where a column has fewer
    decoder : from levels back to R^d
    metric : ``faiss.METRIC_INNER_PRODUCT`` or ``faiss.METRIC_L2``, of the float vectors
    normalized : whether the vectors that it was fitted on had length 1; decoded vectors are then normalised
    rms_norm : root mean square length of the corpus' vectors
    query_transform : what a query goes through before it is cut, which gives queries a centre, a spread and, if it was
        trained, directions of their own; without any of that it is ``transform``
    query_adapter : from R^d to R^d, what a float query goes through before it is scored against decoded codes; None
        where it is scored as it is
    residual : the quantizer of what codes leave over, x less what its code decodes to, or None: a second code that is
        added to the first (Chen et al., "Approximate Nearest Neighbor Search by Residual Vector Quantization", 2010)
    fit_record : how it was fitted
    calibration : how much oversampling which recall needs, or None if it was not measured
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
    fit_record: FitRecord = field(default_factory=FitRecord)
    calibration: Calibration | None = None

    def __post_init__(self) -> None:
        columns, cuts = self.layout.columns, self.layout.max_levels - 1
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
        if self.layout.residual != (self.residual and self.residual.layout):
            raise ValueError(f"layout {self.layout} has the residual {self.layout.residual}; got {self.residual}")
        if self.metric not in METRICS.values():
            raise ValueError(f"metric must be METRIC_INNER_PRODUCT or METRIC_L2; got {self.metric}")

    def __repr__(self) -> str:
        return f"Quantizer({self.layout}, {self.d}-d, {self.metric_name})"

    @property
    def d(self) -> int:
        """Dimension of the float vectors."""
        return self.transform.shape[1]

    @property
    def code_size(self) -> int:
        """Bytes of a code."""
        return self.layout.code_size

    @property
    def metric_name(self) -> str:
        """``inner product`` or ``L2``."""
        return next(name for name, metric in METRICS.items() if metric == self.metric)

    def encode(self, x: ArrayLike) -> Codes:
        """Return the codes, (n, code_size) uint8, of documents ``x`` (n, d)."""
        return self._encode(as_vectors(x, self.d), self.transform)

    def encode_queries(self, xq: ArrayLike) -> Codes:
        """Return the codes of queries ``xq`` (n, d), cut as queries are.

        Under the inner product a query's length does not change the ranking, so it is brought to the corpus' scale.
        """
        return self.encode_queries_unchecked(as_vectors(xq, self.d, "queries"))

    def encode_queries_unchecked(self, x: Floats) -> Codes:
        """Return :meth:`encode_queries` of what :func:`~faiss_qama.vectors.as_vectors` returned."""
        if self.metric == faiss.METRIC_INNER_PRODUCT:
            x = scale_to_norm(x, self.rms_norm)
        return self._encode(x, self.query_transform)

    def adapt_queries(self, xq: Floats) -> Floats:
        """Return queries ``xq`` (n, d) as they are scored against decoded codes."""
        return xq if self.query_adapter is None else self.query_adapter(xq)

    def residual_of(self, x: Floats, code: Codes) -> Floats:
        """Return the residuals, (n, d) float32: documents ``x`` less what their ``code`` (n, code_size) decodes to."""
        return x - self.decode_unnormalized(code)

    def encode_residual(self, x: Floats, code: Codes) -> Codes:
        """Return the residual codes, (n, residual.code_size) uint8, of documents ``x`` (n, d) with their ``code``."""
        assert self.residual is not None
        return self.residual.encode(self.residual_of(x, code))

    def decode(self, code: Codes, residual: Codes | None = None) -> Floats:
        """Return the vectors, (n, d) float32, that ``code`` (n, code_size) stands for, with codes of its residual."""
        x = self.decode_unnormalized(code)
        if residual is not None and self.residual is not None:
            x += self.residual.decode_unnormalized(residual)
        return scale_to_norm(x, 1.0) if self.normalized else x

    def encode_decode(self, x: ArrayLike) -> Floats:
        """Return documents ``x`` (n, d) encoded and decoded, by all codes that there are."""
        x = as_vectors(x, self.d)
        code = self.encode(x)
        return self.decode(code, None if self.residual is None else self.encode_residual(x, code))

    def decode_unnormalized(self, code: Codes) -> Floats:
        """Return :meth:`decode` of ``code`` before it is normalised."""
        if code.ndim != 2 or code.dtype != np.uint8 or code.shape[1] != self.code_size:
            raise ValueError(f"codes must be (n, {self.code_size}) uint8; got {code.shape} {code.dtype}")
        x = np.empty((len(code), self.d), dtype=np.float32)
        for start in range(0, len(code), ENCODE_CHUNK):
            bits = bit_packing.unpack(code[start : start + ENCODE_CHUNK], self.layout).astype(np.float32)
            x[start : start + ENCODE_CHUNK] = self.bit_decoder.vectors(bits)
        return x

    def truncate(self, components: int) -> Quantizer:
        """Return the quantizer of the first ``components``: its codes are the first bits of this one's.

        It has no residual.
        The smaller quantizer is as good as one fitted at that size only where rotations stayed inside the slices
        (``FitConfig(matryoshka_dims=...)``), and only there its calibration is known.
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
            query_transform=self.query_transform.truncate(columns),
            residual=None,
            calibration=self.calibration.prefixes.get(components) if self.calibration else None,
        )

    def is_compatible_with(self, other: Quantizer) -> bool:
        """Return whether the codes of ``other`` mean the same, and so do stored vectors."""
        (a, settings), (b, others) = self.to_state(), other.to_state()
        named = [name for name in a if not name.startswith(("calibration.", "query_"))]
        same = [settings[key] == others[key] for key in ("d", "layout", "metric", "normalized", "rms_norm")]
        return all(same) and all(name in b and np.array_equal(a[name], b[name]) for name in named)

    def to_state(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        """Return the arrays, C-contiguous and by name, and everything else as JSON can hold it."""
        arrays: dict[str, NDArray[Any]] = {
            "thresholds": self.thresholds,
            "decoder.values": self.decoder.values,
            "decoder.matrix": self.decoder.matrix,
            "decoder.offset": self.decoder.offset,
        }
        for name, transform in self._transforms().items():
            arrays |= {f"{name}.{part}": array for part, array in transform.arrays().items()}
        if self.calibration is not None:
            named = {f"calibration.{prefix}": c for prefix, c in self.calibration.prefixes.items()}
            for name, calibration in {"calibration": self.calibration, **named}.items():
                arrays |= {f"{name}.n": np.array([calibration.n])}
                arrays |= {f"{name}.floats": calibration.floats, f"{name}.codes": calibration.codes}
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

        Raises
        ------
        KeyError, TypeError, ValueError
            For parts that are missing, unknown or of a wrong shape.
        """
        calibrations = {}
        for name in (n.removesuffix(".n") for n in arrays if n.startswith("calibration") and n.endswith(".n")):
            curves = arrays[f"{name}.floats"], arrays[f"{name}.codes"]
            calibrations[name] = Calibration(int(arrays[f"{name}.n"][0]), *curves)
        calibration = calibrations.pop("calibration", None)
        if calibration is not None:
            prefixes = {int(name.removeprefix("calibration.")): c for name, c in calibrations.items()}
            calibration = replace(calibration, prefixes=prefixes)
        residual = None
        if "residual" in settings:
            own = {n.removeprefix("residual."): array for n, array in arrays.items() if n.startswith("residual.")}
            residual = cls.from_state(own, settings["residual"])
        return cls(
            transform=from_arrays(arrays, "transform"),
            layout=CodeLayout.parse(settings["layout"]),
            thresholds=arrays["thresholds"],
            decoder=Decoder(arrays["decoder.values"], arrays["decoder.matrix"], arrays["decoder.offset"]),
            metric=METRICS[settings["metric"]],
            normalized=settings["normalized"],
            rms_norm=settings["rms_norm"],
            query_transform=from_arrays(arrays, "query_transform"),
            query_adapter=Linear(arrays["query_adapter.matrix"], arrays["query_adapter.bias"])
            if "query_adapter.matrix" in arrays
            else None,
            residual=residual,
            fit_record=FitRecord.from_dict(settings["fit_record"]),
            calibration=calibration,
        )

    @cached_property
    def bit_decoder(self) -> BitDecoder:
        """The decoder as a function of the bits."""
        return self.decoder.of_bits(self.layout)

    def _transforms(self) -> dict[str, Transform]:
        named: dict[str, Transform] = {"transform": self.transform, "query_transform": self.query_transform}
        if self.query_adapter is not None:
            named["query_adapter"] = self.query_adapter
        return named

    def _encode(self, x: Floats, transform: Transform) -> Codes:
        out = np.empty((len(x), self.code_size), dtype=np.uint8)

        def encode(chunk: slice) -> None:
            out[chunk] = bit_packing.encode(transform(x[chunk]), self.thresholds, self.layout)

        parallel_map(encode, [slice(start, start + ENCODE_CHUNK) for start in range(0, len(x), ENCODE_CHUNK)])
        return out
