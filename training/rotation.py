"""Mean, PCA and rotations: everything that makes a linear transform."""

from __future__ import annotations

import numpy as np
from threadpoolctl import threadpool_limits

from faiss_qama.arrays import Floats
from faiss_qama.progress import progress

ITQ_VECTORS = 10_000  # enough to find a rotation; thresholds are set on the whole sample
ITQ_ITERATIONS = 25


def pca(x: Floats, components: int) -> Floats:
    """Return the (components, d) leading eigenvectors of x'x, largest first.

    For centred ``x`` (n, d) these are the principal directions, else the right singular vectors. The sign of each is
    set so that its largest entry is positive, because an eigenvector's own sign means nothing.
    """
    second_moment = np.zeros((x.shape[1], x.shape[1]))
    for start in range(0, len(x), 8192):  # float32 products, summed in float64
        block = x[start : start + 8192]
        second_moment += block.T @ block
    _, vectors = np.linalg.eigh(second_moment)
    rows = vectors[:, ::-1][:, :components].T
    largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1, keepdims=True), axis=1)
    return np.ascontiguousarray(rows * np.sign(largest), dtype=np.float32)


def random_rotation(m: int, rng: np.random.Generator) -> Floats:
    """Return an (m, m) orthogonal matrix, uniform over all of them (Mezzadri, arXiv math-ph/0609050, section 5)."""
    q, r = np.linalg.qr(rng.standard_normal((m, m)))
    return np.ascontiguousarray(q * np.sign(np.diag(r)), dtype=np.float32)


def itq(z: Floats, centroids: Floats, rng: np.random.Generator) -> Floats:
    """Return the (m, m) rotation R for which quantizing z @ R.T loses least.

    Iterative quantization (Gong and Lazebnik, "Iterative Quantization", CVPR 2011, section 2.2), for any number of
    levels: the nearest levels of the rotated vectors, then the rotation that brings the vectors next to them (the
    orthogonal Procrustes problem), in turn.

    Parameters
    ----------
    z : ndarray of shape (n, m), float32
        Vectors to rotate.
    centroids : ndarray of shape (levels,), float32
        The levels of a component of standard deviation 1, ascending.
    rng : Generator
        Draws the first rotation, and the vectors to work on.

    Returns
    -------
    ndarray of shape (m, m), float32
    """
    rotation = random_rotation(z.shape[1], rng)
    if len(z) > ITQ_VECTORS:
        z = z[rng.choice(len(z), ITQ_VECTORS, replace=False)]
    cuts, steps = (centroids[1:] + centroids[:-1]) / 2, np.diff(centroids)
    with threadpool_limits(1, "blas"):  # more threads wait busily for each other in small decompositions
        for _ in progress(range(ITQ_ITERATIONS), "rotation"):
            u = z @ rotation.T
            scale = u.std(axis=0)
            nearest = np.full_like(u, centroids[0])
            for cut, step in zip(cuts, steps, strict=True):
                nearest += (u >= cut * scale) * step
            left, _, right = np.linalg.svd((nearest * scale).T @ z)
            rotation = np.ascontiguousarray(left @ right, dtype=np.float32)
    return rotation
