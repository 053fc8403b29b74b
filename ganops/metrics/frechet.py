"""The Fréchet distance between two Gaussians: of moments, of moments and a reference, and of rows of features."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

EPS = float(np.finfo(np.float64).eps)
ROUNDING = 8  # units in the last place of the largest eigenvalue that the others may be wrong by
# Of the trace, for the bound below; the errors were measured to be 50 times smaller, or more (bench/frechet.py: 3e-10 of
# a distance). A tighter one takes the slower way for full rank too.
TOLERANCE = 1e-7


@dataclass(frozen=True)
class Reference:
    """One side of a distance, prepared for many others: the root of its covariance takes longest.

    Attributes:
        mu: [D] float64.
        sigma: [D, D] float64.
        root: A [D, r] float64 with A A^T = sigma, where r is the numerical rank.
    """

    mu: Array
    sigma: Array
    root: Array


def frechet_distance(mu1: Array, sigma1: Array, mu2: Array, sigma2: Array) -> float:
    """|mu1 - mu2|^2 + tr(sigma1 + sigma2 - 2 (sigma1 sigma2)^(1/2)).

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
    return distance_to(make_reference(mu2, sigma2), mu1, sigma1)


def make_reference(mu: Array, sigma: Array) -> Reference:
    """Takes the root of sigma [D, D]; mu is [D]. Raises ValueError: shapes do not fit, or a number is not finite."""
    _check(mu, sigma, len(mu))
    return Reference(mu, sigma, _root(sigma))


def distance_to(reference: Reference, mu: Array, sigma: Array) -> float:
    """`frechet_distance` to the reference, in half the time.

    With the reference's sigma = A A^T, the trace of the root is the sum of the roots of the eigenvalues of A^T sigma A:
    symmetric problems only, so real by construction and several times faster than a general matrix root. Eigenvalues
    that are rounding noise are left out of A. Where the product is close to singular as well (few samples on both
    sides), the roots of its smallest eigenvalues would be noise of 1e-8 each; then the same sum is taken as that of the
    singular values of B^T A, sigma = B B^T, which need no root and take twice the time.

    Args:
        reference: of `make_reference`.
        mu: [D] float64.
        sigma: [D, D] float64, symmetric, positive semi-definite; may be singular.
    Returns:
        The distance, >= 0.
    Raises:
        ValueError: shapes do not fit, or a number is not finite.
    """
    _check(mu, sigma, len(reference.mu))
    traces = np.trace(sigma) + np.trace(reference.sigma)
    distance = ((mu - reference.mu) ** 2).sum() + traces - 2.0 * _trace_of_root(sigma, reference.root)
    return max(0.0, float(distance))


def frechet_distance_of_rows(one: NDArray[np.floating[Any]], two: NDArray[np.floating[Any]], ddof: int) -> float:
    """The same distance between two sets of features; exact, and fast, for fewer rows than features.

    The covariances are X^T X and Y^T Y of centred and scaled rows; the trace of the root of their product is the sum
    of the singular values of X Y^T, [N, M]. No root of a rounding error comes in, and with N rows against M >= N the
    price is N M D + N^2 M rather than D^3. Where both sides have more rows than features, triangular factors
    (X = Q R) take the rows' places.

    Args:
        one: [N, D].
        two: [M, D].
        ddof: covariances are over N - ddof and M - ddof.
    Returns:
        The distance, >= 0.
    Raises:
        ValueError: shapes do not fit, a number is not finite, or a set has not more than `ddof` rows.
    """
    if one.ndim != 2 or two.ndim != 2 or one.shape[1] != two.shape[1] or min(len(one), len(two)) <= max(ddof, 0):
        raise ValueError(f"rows {one.shape} and {two.shape} do not fit, or are too few for ddof={ddof}")
    if not np.isfinite(one).all() or not np.isfinite(two).all():
        raise ValueError("features are not finite")
    mu1, mu2 = one.mean(0, dtype=np.float64), two.mean(0, dtype=np.float64)
    x, y = (one - mu1) / (len(one) - ddof) ** 0.5, (two - mu2) / (len(two) - ddof) ** 0.5
    traces = (x**2).sum() + (y**2).sum()
    if min(len(x), len(y)) > len(mu1):
        x, y = np.linalg.qr(x, mode="r"), np.linalg.qr(y, mode="r")
    roots = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return max(0.0, float(((mu1 - mu2) ** 2).sum() + traces - 2.0 * roots))


def _check(mu: Array, sigma: Array, dim: int) -> None:
    if mu.shape != (dim,) or sigma.shape != (dim, dim):
        raise ValueError(f"shapes {mu.shape}, {sigma.shape} do not fit {dim} features")
    if not np.isfinite(mu).all() or not np.isfinite(sigma).all():
        raise ValueError("means or covariances are not finite")


def _trace_of_root(sigma: Array, root: Array) -> float:
    """tr (sigma root root^T)^(1/2)."""
    if not root.size:
        return 0.0
    values = np.linalg.eigvalsh(root.T @ sigma @ root)
    # Where a value v has an error d, its root has d / (2 sqrt(v)), and sqrt(d) at most.
    error, roots = ROUNDING * EPS * max(0.0, float(values[-1])), np.sqrt(np.maximum(values, 0.0))
    if error and (error / np.maximum(2 * roots, np.sqrt(error))).sum() <= TOLERANCE * roots.sum():
        return float(roots.sum())
    return float(np.linalg.svd(_root(sigma).T @ root, compute_uv=False).sum())


def _root(sigma: Array) -> Array:
    """A [D, r] with A A^T = sigma, where r is the numerical rank."""
    values, vectors = np.linalg.eigh(sigma)
    kept = values > _noise(values)
    root: Array = vectors[:, kept] * np.sqrt(values[kept])
    return root


def _noise(values: NDArray[np.floating[Any]]) -> float:
    """The size of rounding errors in eigenvalues that were computed together, in ascending order."""
    return max(0.0, float(values[-1])) * len(values) * EPS
