"""The kernel distance (KID, where the features are Inception's): a squared maximum mean discrepancy, without bias."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Rows = NDArray[np.floating[Any]]

SUBSETS = 100  # the field's protocol, with at most 1,000 rows each
SUBSET_ROWS = 1000
BLOCK_ROWS = 1024  # a block of kernel values takes 8 MB


@dataclass(frozen=True)
class KernelDistance:
    """Attributes:
    value: of all rows; may be negative, as estimates without bias are.
    std: standard deviation over the subsets. One subset's, not that of `value`, which has more rows and less noise;
        and 0 where both sets are whole in each subset (1,000 rows or fewer, and equally many).
    subset_mean: mean over the subsets: what other programs call KID.
    """

    value: float
    std: float
    subset_mean: float


def kernel_distance(real: Rows, fake: Rows, seed: int) -> KernelDistance:
    """mean k(x, x') + mean k(y, y') - 2 mean k(x, y) over pairs of different rows, with k(x, y) = (x.y / D + 1)^3.

    `value` takes all rows at once and no random numbers. Each of 100 subsets has min(1000, N, M) rows of either set,
    drawn without replacement. All are sums of the same kernel values with weights 0 and 1, so one pass makes them;
    it takes N^2 D + M^2 D + 2 N M D operations in float64, and little memory for any N.

    Args:
        real: [N, D], N >= 2.
        fake: [M, D], M >= 2.
        seed: of the subsets; the same seed and numbers of rows give the same subsets.
    Raises:
        ValueError: shapes do not fit, a number is not finite, or a set has one row or none.
    Source: Binkowski et al. 2018; Gretton et al. 2012, lemma 6 (the estimate).
    """
    if real.ndim != 2 or fake.ndim != 2 or real.shape[1] != fake.shape[1] or min(len(real), len(fake)) < 2:
        raise ValueError(f"rows {real.shape} and {fake.shape} do not fit, or a set has fewer than two")
    if not np.isfinite([real.min(), real.max(), fake.min(), fake.max()]).all():  # these two pass NaN on
        raise ValueError("features are not finite")
    generator, size = np.random.Generator(np.random.PCG64(seed)), min(SUBSET_ROWS, len(real), len(fake))
    of_real, of_fake = (_weights(generator, len(rows), size) for rows in (real, fake))
    n, m = of_real.sum(1), of_fake.sum(1)
    within = _sums(real, of_real) / (n * (n - 1)) + _sums(fake, of_fake) / (m * (m - 1))
    distances = within - 2 * _cross_sums(real, fake, of_real, of_fake) / (n * m)
    return KernelDistance(float(distances[0]), float(distances[1:].std()), float(distances[1:].mean()))


def _weights(generator: np.random.Generator, rows: int, size: int) -> Array:
    """[1 + SUBSETS, rows]: all ones, then ones where a subset has its rows."""
    weights = np.zeros((1 + SUBSETS, rows))
    weights[0] = 1
    for subset in weights[1:]:
        subset[generator.choice(rows, size, replace=False)] = 1
    return weights


def _sums(x: Rows, weights: Array) -> Array:
    """Per set of weights w, [K]: the sum over i != j of w_i w_j k(x_i, x_j)."""
    total = np.zeros(len(weights))
    for start in range(0, len(x), BLOCK_ROWS):
        here = slice(start, start + BLOCK_ROWS)
        kernel = _kernel(x[here], x[here])
        np.fill_diagonal(kernel, 0.0)
        total += ((weights[:, here] @ kernel) * weights[:, here]).sum(1)
        # The kernel is symmetric: what lies below the diagonal counts above it.
        total += 2 * _cross_sums(x[here], x[here.stop :], weights[:, here], weights[:, here.stop :])
    return total


def _cross_sums(x: Rows, y: Rows, of_x: Array, of_y: Array) -> Array:
    """Per set of weights v, w, [K]: the sum over i, j of v_i w_j k(x_i, y_j)."""
    total = np.zeros(len(of_x))
    for i in range(0, len(x), BLOCK_ROWS):
        for j in range(0, len(y), BLOCK_ROWS):
            here, there = slice(i, i + BLOCK_ROWS), slice(j, j + BLOCK_ROWS)
            total += ((of_x[:, here] @ _kernel(x[here], y[there])) * of_y[:, there]).sum(1)
    return total


def _kernel(x: Rows, y: Rows) -> Array:
    """[N, M]. In float64: products in float32 take half the time, but move a distance by 1e-6 of it, and with threads."""
    inner: Array = x.astype(np.float64) @ y.astype(np.float64).T / x.shape[1] + 1
    return inner * inner * inner
