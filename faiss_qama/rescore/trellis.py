"""Re-ranking from trellis-coded vectors: asymmetric scores by the points of their components."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from faiss_qama import topk
from faiss_qama.arrays import Codes, Floats, Ids
from faiss_qama.hamming import bit_planes
from faiss_qama.hamming.code_index import CodeIndex
from faiss_qama.kernels import kernel
from faiss_qama.quantizer.layout import CodeLayout
from faiss_qama.quantizer.quantizer import Quantizer
from faiss_qama.quantizer.trellis import bits, checks
from faiss_qama.rescore.codes import CodeRescorer
from faiss_qama.rescore.residual import ResidualRescorer, center
from faiss_qama.threads import even_slices, parallel_map


class TrellisRescorer(CodeRescorer):
    """Scores from trellis-coded first codes alone."""

    def __init__(self, quantizer: Quantizer, base: CodeIndex) -> None:
        super().__init__(quantizer, base)
        self._about = center(quantizer)
        self._points = PointSums(quantizer, self._about)

    def _sums(self, xq: Floats, rows: Ids) -> tuple[Floats, Floats | None]:
        return self._points.of(self._base, None, xq, rows)


class RefinedTrellisRescorer(ResidualRescorer):
    """Scores from trellis-coded first codes, and from their residual codes, which it keeps."""

    def __init__(self, quantizer: Quantizer, base: CodeIndex) -> None:
        super().__init__(quantizer, base)
        self._points = PointSums(quantizer, self._about)

    def encode_both(self, x: Floats, first: int = 0) -> tuple[Codes, NDArray[Any]]:  # noqa: ARG002
        code, finer = self.quantizer.encode_both(x)
        assert finer is not None
        return code, finer

    def _sums(self, xq: Floats, rows: Ids) -> tuple[Floats, Floats | None]:
        return self._points.of(self._base, self._codes, xq, rows)


class PointSums:
    """Inner products with decoded vectors less ``about``, and the squared norms of these.

    Parameters
    ----------
    quantizer : Quantizer
        A trellis-coded one.
    about : ndarray of shape (d,), float32
        0, or the offset of the decoder.
    """

    def __init__(self, quantizer: Quantizer, about: Floats) -> None:
        assert quantizer.trellis is not None
        layout, values = quantizer.layout, quantizer.trellis.values
        self._layout, self._trellis, self._product = layout, quantizer.trellis, quantizer.bit_decoder.product
        self._decoder = replace(quantizer.decoder, offset=quantizer.decoder.offset - about)
        self._are_sums = quantizer.decoder.is_orthogonal
        # For the compiled loop, with columns that add nothing up to a multiple of eight.
        self._more = -layout.columns % 8
        energies = self._decoder.energies(values.T).T
        self._values = np.pad(np.stack([values, energies]), ((0, 0), (0, self._more), (0, 0)))
        self._held = np.pad(bits(layout).sum(axis=1), (0, self._more)).reshape(-1, 2).max(axis=1)
        self._pieces = pieces(layout)
        self._words = sum(bit_planes.n_words(part) for part in (layout, layout.residual) if part is not None)

    def of(self, base: CodeIndex, rest: CodeIndex | None, xq: Floats, rows: Ids) -> tuple[Floats, Floats | None]:
        """Return the sums of candidates.

        Parameters
        ----------
        base : CodeIndex
            The first codes.
        rest : CodeIndex, optional
            The residual codes.
        xq : ndarray of shape (nq, d), float32
            Queries, adapted, less ``about``.
        rows : ndarray of shape (nq, k), int64
            Candidates of each query.

        Returns
        -------
        products : ndarray of shape (nq, k), float32
            Inner products.
        energies : ndarray of shape (nq, k), float32, or None
            Squared norms, if they are sums over components.
        """
        products, offset = self._product.products(xq), self._decoder.offset
        sums = np.empty((*rows.shape, 2), np.float32)
        compiled = kernel("points")
        if compiled is None:
            self._plain(base, rest, products, rows, sums)
        else:
            products = np.pad(products, ((0, 0), (0, self._more)))

            def summed(part: slice) -> None:
                for block in topk.blocks(rows[part], self._words):
                    of = rows[part][block]
                    first = base.words(of.ravel()).reshape(*of.shape, -1)
                    second = np.empty((*of.shape, 0), np.uint32)
                    if rest is not None:
                        second = rest.words(of.ravel()).reshape(*of.shape, -1)
                    own = products[part][block], sums[part][block]
                    compiled.sums(first, second, self._pieces, self._held, checks(), self._values, *own)

            parallel_map(summed, even_slices(len(rows)))
        own = sums[:, :, 0] + (xq @ offset)[:, None]
        return own, sums[:, :, 1] + offset @ offset if self._are_sums else None

    def _plain(self, base: CodeIndex, rest: CodeIndex | None, products: Floats, rows: Ids, sums: Floats) -> None:
        """Fill ``sums`` (nq, k, 2), of products and of energies, without numba."""
        for block in topk.blocks(rows, 8 * self._layout.columns):
            of = rows[block].ravel()
            more = None if rest is None else rest.take(of)
            z = self._trellis.decode(base.take(of), self._layout, more).reshape(*rows[block].shape, -1)
            sums[block, :, 0] = np.matmul(z, products[block, :, None])[:, :, 0]
            sums[block, :, 1] = self._decoder.energies(z).sum(axis=2)


def pieces(layout: CodeLayout) -> NDArray[np.int64]:
    """Return where the words of bit planes have the bits of components.

    Parameters
    ----------
    layout : CodeLayout
        A trellis-coded layout.

    Returns
    -------
    ndarray of shape (p, 7), int64
        Per piece of 32 components or fewer: 1 if its bits are in the residual code; their word; their first bit there;
        how many; 1 if the next word tells a second bit; how many stored bits of these components are lower; and the
        first component.
    """
    rows, rest = [], bits(layout)[:, 1]
    for source, part in enumerate((layout, layout.residual)):
        if part is None:
            continue
        column = 0
        for segment, (_, units, fours, place) in zip(part.segments, bit_planes.segments(part), strict=True):
            at = place
            while segment.n_bits and at < place + units:
                to = column + at - place
                lower = 0 if source else rest[to]
                most = min(bit_planes.WORD - at % bit_planes.WORD, place + units - at)
                count = next((i for i in range(1, most) if not source and rest[to + i] != lower), most)
                word = (2 if fours else 1) * (at // bit_planes.WORD)
                rows.append((source, word, at % bit_planes.WORD, count, fours, lower, to))
                at += count
            column += segment.units
    return np.array(rows, np.int64)
