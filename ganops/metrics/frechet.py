"""The Fréchet distance between two Gaussians."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

EPS = float(np.finfo(np.float64).eps)
ROUNDING = 8  # units in the last place of the largest eigenvalue that the others may be wrong by
# Of the trace, for the bound below; the errors were measured to be 50 times smaller, or more (bench/frechet.py: 3e-10 of
# a distance). A tighter one takes the slower way for full rank too.
TOLERANCE = 1e-7


def frechet_distance(mu1: Array, sigma1: Array, mu2: Array, sigma2: Array) -> float:
    """|mu1 - mu2|^2 + tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^(1/2)).

    With sigma = A A^T, the trace of the root is the sum of the roots of the eigenvalues of A2^T sigma1 A2: symmetric
    problems only, so real by construction and several times faster than a general matrix root. Eigenvalues that are
    rounding noise are left out of A. Where the product is close to singular as well (few samples on both sides),
    the roots of its smallest eigenvalues would be noise of 1e-8 each; then the same sum is taken as that of the
    singular values of A1^T A2, which need no root and take twice the time.

    Args:
        mu1: [D] float64.
        sigma1: [D, D] float64, symmetric, positive semi-definite; may be singular.
        mu2: [D] float64.
        sigma2: [D, D] float64, likewise.
    Returns:
        The distance, >= 0; symmetric in its two sides up to rounding.
    Raises:
        ValueError: shapes do not fit, or a number is not finite.
    Source: Dowson and Landau 1982; Heusel et al. 2017.
    """
    dim = len(mu1)
    if mu1.shape != (dim,) or mu2.shape != (dim,) or sigma1.shape != (dim, dim) or sigma2.shape != (dim, dim):
        raise ValueError(f"shapes {mu1.shape}, {sigma1.shape}, {mu2.shape}, {sigma2.shape} do not fit")
    if not all(np.isfinite(array).all() for array in (mu1, sigma1, mu2, sigma2)):
        raise ValueError("means or covariances are not finite")
    distance = ((mu1 - mu2) ** 2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2.0 * _trace_of_root(sigma1, sigma2)
    return max(0.0, float(distance))


def _trace_of_root(sigma1: Array, sigma2: Array) -> float:
    """tr (sigma1 sigma2)^(1/2)."""
    root2 = _root(sigma2)
    if not root2.size:
        return 0.0
    values = np.linalg.eigvalsh(root2.T @ sigma1 @ root2)
    # Where a value v has an error d, its root has d / (2 sqrt(v)), and sqrt(d) at most.
    error, roots = ROUNDING * EPS * max(0.0, float(values[-1])), np.sqrt(np.maximum(values, 0.0))
    if error and (error / np.maximum(2 * roots, np.sqrt(error))).sum() <= TOLERANCE * roots.sum():
        return float(roots.sum())
    return float(np.linalg.svd(_root(sigma1).T @ root2, compute_uv=False).sum())


def _root(sigma: Array) -> Array:
    """A [D, r] with A A^T = sigma, where r is the numerical rank."""
    values, vectors = np.linalg.eigh(sigma)
    kept = values > _noise(values)
    root: Array = vectors[:, kept] * np.sqrt(values[kept])
    return root


def _noise(values: NDArray[np.floating[Any]]) -> float:
    """The size of rounding errors in eigenvalues that were computed together, in ascending order."""
    return max(0.0, float(values[-1])) * len(values) * EPS
