"""Mean, PCA and rotations: everything that makes a linear transform."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from faiss_qama.arrays import Floats
from faiss_qama.progress import progress
from faiss_qama.threads import one_blas_thread

ITQ_VECTORS, ITQ_BATCH = 20_000, 5_000  # that ITQ sees, and those of an iteration, about
# Iterations of m components take time m^2 or more and gain less: 12 for 256, 5 for 600 and more.
ITQ_ITERATIONS, ITQ_MIN, ITQ_COMPONENTS = 12, 5, 256
STEP, MOMENTUM = 2.0, 0.5
DAMPING = 0.1  # of the mean of S_ii: it keeps the moves of components without variance finite


def scatter_matrix(x: Floats, center: Floats) -> NDArray[np.float64]:
    """Return the sum of (x - center)' (x - center), (d, d) float64, of vectors ``x`` (n, d)."""
    out = np.zeros((x.shape[1], x.shape[1]))
    for start in range(0, len(x), 8192):  # float32 products, summed in float64
        block = x[start : start + 8192] - center
        out += block.T @ block
    return out


def pca(scatter: NDArray[np.float64], components: int) -> tuple[Floats, NDArray[np.float64]]:
    """Return the (components, d) leading eigenvectors of a scatter matrix, and all eigenvalues (d,), largest first.

    About the mean these are the principal directions, else the right singular vectors. The sign of each is set so that
    its largest entry is positive, because an eigenvector's own sign means nothing.
    """
    values, vectors = np.linalg.eigh(scatter)
    rows = vectors[:, ::-1][:, :components].T
    largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1, keepdims=True), axis=1)
    return np.ascontiguousarray(rows * np.sign(largest), dtype=np.float32), np.maximum(values[::-1], 0)


def random_rotation(m: int, rng: np.random.Generator) -> Floats:
    """Return an (m, m) orthogonal matrix, uniform over all of them (Mezzadri, arXiv math-ph/0609050, section 5)."""
    q, r = np.linalg.qr(rng.standard_normal((m, m)))
    return np.ascontiguousarray(q * np.sign(np.diag(r)), dtype=np.float32)


def itq(z: Floats, centroids: Floats, rng: np.random.Generator) -> Floats:
    """Return the (m, m) rotation R for which quantizing z @ R.T loses least.

    Iterative quantization (Gong and Lazebnik, "Iterative Quantization", CVPR 2011, section 2.2), for any number of
    levels: the nearest levels of the rotated vectors, then the rotation that brings the vectors next to them (the
    orthogonal Procrustes problem), in turn. To the first order the rotation R becomes R (I + W) that makes S (I - W)
    symmetric, S being R' (levels' z). Of principal components S is nearly diagonal, and then
    W_ij = (S_ij - S_ji) / (S_ii + S_jj), which takes products alone. Each iteration moves by ``STEP`` times W, plus
    ``MOMENTUM`` times the last move. The Cayley transform makes a rotation of that (Wen and Yin, "A feasible method for
    optimization with orthogonality constraints", 2013, section 2).

    Parameters
    ----------
    z : ndarray of shape (n, m), float32
        Principal components to rotate, in random order: each iteration takes the next few.
    centroids : ndarray of shape (levels,), float32
        The levels of a component of standard deviation 1, ascending.
    rng : Generator
        Draws the first rotation.

    Returns
    -------
    ndarray of shape (m, m), float32
    """
    m = z.shape[1]
    rotation, turn, one = random_rotation(m, rng), np.zeros((m, m), np.float32), np.eye(m, dtype=np.float32)
    batches = np.array_split(z, max(1, round(len(z) / ITQ_BATCH)))
    largest = max(z.max(), -z.min()) or np.float32(1)  # sums of squares of what is divided by it do not overflow
    cuts = (centroids[1:] + centroids[:-1]) / 2
    iterations = int(np.clip(ITQ_ITERATIONS * ITQ_COMPONENTS // m, ITQ_MIN, ITQ_ITERATIONS))
    with one_blas_thread:
        for i in progress(range(iterations), "rotation"):
            batch = batches[i % len(batches)] / largest
            u = batch @ rotation.T
            scale = u.std(axis=0)
            nearest = np.zeros(u.shape, np.uint8)
            for cut in cuts:
                nearest += u >= cut * scale
            s = rotation.T @ ((centroids[nearest] * scale).T @ batch)
            own = np.maximum(np.diag(s), 0)
            own = own + DAMPING * own.mean() + np.finfo(np.float32).tiny
            turn = MOMENTUM * turn + STEP * (s - s.T) / (own[:, None] + own)
            rotation = rotation @ np.linalg.solve(one - turn / 2, one + turn / 2)
    return rotation
