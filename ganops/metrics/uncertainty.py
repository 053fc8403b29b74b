"""How far a Fréchet distance may be off because the samples are finitely many: its noise, and its bias.

Throughout, the reference is held fixed (its own finite number adds a further, common error to all distances to it), and
the samples are taken to be independent draws in any order: sets sorted by class must be shuffled first.

With the reference's covariance A A^T and Y = (samples - their mean) A, [N, r], the distance's only costly term is the
sum of Y's singular values. So each row is projected once, and each subset of the rows is a problem of r x r, or of N x N
where the rows are fewer. Memory: Y in float64, and three such matrices. Squaring Y costs digits that noise does not
leave anyway: with covariances over six decades, another number of threads moves corrected distances by up to 1e-7 of
them (standard errors by 1e-9), and less than 1e-12 where they are well conditioned.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ganops.metrics.frechet import Array, Reference, make_reference

Rows = NDArray[np.floating[Any]]

FEWEST = 3  # samples: without one of them, two are left to have a covariance
SIZES = 10  # of the nested prefixes
BLOCK_ROWS = 4096  # rows in float64 at a time


@dataclass(frozen=True)
class Uncertainty:
    """Of one distance.

    Attributes:
        standard_error: standard deviation of the distance over sets of samples, by the delta method.
        ci95: half the width of a 95 % interval around the distance: 1.96 standard errors.
        corrected: the distance less the jackknife's estimate of its bias; may be negative. Over-corrects where the
            samples are not several times as many as the features.
        jackknife_error: a second standard error, by the jackknife; itself noisy, to 1 / sqrt(2 blocks).
    """

    standard_error: float
    ci95: float
    corrected: float
    jackknife_error: float


def measure_uncertainty(real_mu: Array, real_sigma: Array, fake: Rows, ddof: int, blocks: int = 20) -> Uncertainty:
    """Noise and bias of the Fréchet distance between a fixed reference and samples.

    Noise by the delta method: the distance's change with the weight of one sample x is
    psi(x) = 2 (m - m_real)'(x - m) + |x - m|^2 - (x - m)' T (x - m) less its mean, where T = A (A' S A)^(-1/2) A' is
    the optimal transport map from the samples' Gaussian (m, S) to the reference's, A A'; its variance over the samples,
    over N, is that of the distance. Bias by the jackknife over contiguous blocks of samples, each left out once.

    Args:
        real_mu: [D] float64.
        real_sigma: [D, D] float64, may be singular.
        fake: [N, D], N >= 3; fewer than D are possible, but then both estimates are rough.
        ddof: covariances are over N - ddof; 0 or 1.
        blocks: of the jackknife, 3 or more; N, where samples are fewer.
    Returns:
        All finite.
    Raises:
        ValueError: shapes do not fit, numbers are not finite, or N or `blocks` is too small.
    Source: van der Vaart 1998, chapter 20 (delta method); Busing et al. 1999 (jackknife with unequal blocks).
    """
    if blocks < FEWEST:
        raise ValueError(f"blocks={blocks}: expected {FEWEST} or more")
    projection = _project(make_reference(real_mu, real_sigma), fake, ddof)
    error = float(_influence(projection).std(ddof=1)) / len(fake) ** 0.5
    corrected, jackknife_error = _jackknife(projection, min(blocks, len(fake)))
    return Uncertainty(error, 1.96 * error, corrected, jackknife_error)


def distance_at_infinity(real_mu: Array, real_sigma: Array, fake: Rows, ddof: int) -> float:
    """The distance that infinitely many samples would have: a straight line in 1/N, at 1/N = 0.

    Fitted by least squares to the distances of the first N/4, ..., N samples, ten sizes evenly spaced. Holds where the
    bias is a multiple of 1/N: for N/4 above D. May be negative. From N/10 on, the intercept was measured to be four
    times further off at N = 5 D, and as noisy; so it was with sizes evenly spaced in 1/N.

    Args:
        real_mu: [D] float64.
        real_sigma: [D, D] float64, may be singular.
        fake: [N, D], N >= 3, in random order.
        ddof: covariances are over N - ddof; 0 or 1.
    Raises:
        ValueError: shapes do not fit, numbers are not finite, or N < 3.
    Source: Chong and Forsyth 2020; nested subsets rather than separate ones, so that equal samples give equal numbers.
    """
    projection = _project(make_reference(real_mu, real_sigma), fake, ddof)
    first = max(2, len(fake) // 4)
    sizes = np.unique(np.linspace(first, len(fake), SIZES).round().astype(np.int64))
    distances, start, products = [], 0, np.zeros_like(projection.products)
    for size in sizes.tolist():
        if projection.few:
            products = projection.products[:size, :size]
        else:
            part = projection.rows[start:size]
            products = products + part.T @ part
        offset = fake[:size].mean(0, dtype=np.float64) - projection.mean
        distances.append(_distance(projection, size, offset, projection.squares[:size].sum(), products))
        start = size
    return float(np.polynomial.polynomial.polyfit(1.0 / sizes, distances, 1)[0])


@dataclass(frozen=True)
class _Projection:
    """Samples in the reference's coordinates.

    Attributes:
        reference: the fixed side.
        fake: [N, D], as given.
        mean: [D], of `fake`.
        ddof: of covariances.
        rows: Y [N, r] = (fake - mean) A.
        squares: [N], |fake - mean|^2.
        few: whether N < r.
        products: Y Y^T [N, N] if few, or Y^T Y [r, r].
    """

    reference: Reference
    fake: Rows
    mean: Array
    ddof: int
    rows: Array
    squares: Array
    few: bool
    products: Array


def _project(reference: Reference, fake: Rows, ddof: int) -> _Projection:
    dim, rank = reference.root.shape
    if fake.ndim != 2 or fake.shape[1] != dim or len(fake) < FEWEST or ddof not in (0, 1):
        raise ValueError(f"samples {fake.shape}, ddof={ddof}: expected [N, {dim}], N >= {FEWEST}, and ddof 0 or 1")
    if not np.isfinite(fake).all():
        raise ValueError("features are not finite")
    mean = fake.mean(0, dtype=np.float64)
    rows, squares = np.empty((len(fake), rank)), np.empty(len(fake))
    for start in range(0, len(fake), BLOCK_ROWS):
        here = slice(start, start + BLOCK_ROWS)
        centred = fake[here] - mean
        rows[here], squares[here] = centred @ reference.root, (centred**2).sum(1)
    few = len(fake) < rank
    return _Projection(reference, fake, mean, ddof, rows, squares, few, rows @ rows.T if few else rows.T @ rows)


def _distance(projection: _Projection, count: int, offset: Array, squares: float, products: Array) -> float:
    """Of some of the samples.

    Args:
        projection: of all samples.
        count: of those meant.
        offset: [D], their mean less that of all.
        squares: the sum of theirs.
        products: theirs, about the mean of all: [count, count] if few, or [r, r].
    """
    if projection.few:
        centred = products - products.mean(0) - products.mean(1)[:, None] + products.mean()
    else:
        along = offset @ projection.reference.root
        centred = products - count * np.outer(along, along)
    # Centred rows have rank count - 1 at most: what is beyond is rounding noise, whose root would be 1e-8.
    rank = min(count - 1, projection.rows.shape[1])
    values = np.linalg.eigvalsh(centred)[len(centred) - rank :]
    roots = np.sqrt(np.maximum(values, 0.0)).sum()
    gap = projection.mean + offset - projection.reference.mu
    traces = np.trace(projection.reference.sigma) + (squares - count * (offset @ offset)) / (count - projection.ddof)
    return float(gap @ gap + traces - 2.0 * roots / (count - projection.ddof) ** 0.5)


def _jackknife(projection: _Projection, blocks: int) -> tuple[float, float]:
    """The corrected distance and its standard error."""
    count, squares = len(projection.fake), projection.squares
    whole = _distance(projection, count, np.zeros_like(projection.mean), squares.sum(), projection.products)
    parts = np.array_split(np.arange(count), blocks)
    without = []
    for part in parts:
        block, left = slice(part[0], part[-1] + 1), count - len(part)
        offset = (projection.mean - projection.fake[block].mean(0, dtype=np.float64)) * (len(part) / left)
        if projection.few:
            kept = np.delete(np.arange(count), block)
            products = projection.products[np.ix_(kept, kept)]
        else:
            products = projection.products - projection.rows[block].T @ projection.rows[block]
        without.append(_distance(projection, left, offset, squares.sum() - squares[block].sum(), products))
    ratios = count / np.array([len(part) for part in parts])
    pseudo = ratios * whole - (ratios - 1) * np.array(without)
    corrected = float((pseudo / ratios).sum())
    return corrected, float(((pseudo - corrected) ** 2 / (ratios - 1)).mean()) ** 0.5


def _influence(projection: _Projection) -> Array:
    """psi of each sample, [N], up to a constant."""
    values, vectors = np.linalg.eigh(projection.products)
    roots = np.sqrt(np.maximum(values, 0.0))
    if projection.few:
        carried = (vectors**2) @ roots
    else:
        # Where a value is zero, so are the rows along its vector; a root of noise is left out with them.
        inverse = np.where(roots > roots.max(initial=0.0) * 1e-7, 1 / np.maximum(roots, np.finfo(np.float64).tiny), 0.0)
        carried = ((projection.rows @ vectors) ** 2) @ inverse
    gap = projection.mean - projection.reference.mu
    along = projection.fake @ gap - projection.mean @ gap
    influence: Array = 2 * along + projection.squares - carried * (len(carried) - projection.ddof) ** 0.5
    return influence
