"""Noise and bias of the distance against explicit loops over samples and subsets (simulated: tests/parity)."""

import numpy as np
import pytest
import threadpoolctl
from numpy.typing import NDArray

from ganops.metrics.frechet import frechet_distance, make_reference
from ganops.metrics.uncertainty import _influence, _project, distance_at_infinity, measure_uncertainty

Array = NDArray[np.float64]
DIM = 24
# Fewer samples than features, as many, a few more (fewer without a block), many; and what no block divides.
COUNTS = [3, 5, 20, 24, 25, 26, 103, 400]


def reference(rank: int = DIM) -> tuple[Array, Array]:
    rng = np.random.default_rng(1)
    root = rng.standard_normal((DIM, rank))
    return rng.standard_normal(DIM), root @ root.T / DIM


def samples(count: int) -> NDArray[np.float32]:
    rng = np.random.default_rng(2)
    return (rng.standard_normal((count, DIM)) @ rng.standard_normal((DIM, DIM)) / DIM**0.5 + 1).astype(np.float32)


def distance(mu: Array, sigma: Array, rows: NDArray[np.float32], ddof: int) -> float:
    x = rows.astype(np.float64)
    return frechet_distance(mu, sigma, x.mean(0), np.atleast_2d(np.cov(x.T, ddof=ddof)))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("rank", [DIM, 7])
@pytest.mark.parametrize("ddof", [0, 1])
def test_jackknife_equals_an_explicit_one(count: int, rank: int, ddof: int) -> None:
    mu, sigma = reference(rank)
    fake = samples(count)
    blocks = np.array_split(np.arange(count), min(7, count))
    whole = distance(mu, sigma, fake, ddof)
    without = [distance(mu, sigma, np.delete(fake, block, axis=0), ddof) for block in blocks]
    sizes = np.array([len(block) for block in blocks])
    # Busing et al. 1999, equations as printed there.
    corrected = len(blocks) * whole - ((1 - sizes / count) * without).sum()
    h = count / sizes
    variance = ((h * whole - (h - 1) * without - corrected) ** 2 / (h - 1)).sum() / len(blocks)
    measured = measure_uncertainty(mu, sigma, fake, ddof, blocks=7)
    # 1e-6: differences, times the blocks, of distances that are right to 1e-8.
    assert measured.corrected == pytest.approx(corrected, rel=1e-6, abs=1e-6 * whole)
    assert measured.jackknife_error == pytest.approx(variance**0.5, rel=1e-5)


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("rank", [DIM, 7])
def test_infinity_equals_an_explicit_line(count: int, rank: int) -> None:
    mu, sigma = reference(rank)
    fake = samples(count)
    sizes = sorted({round(size) for size in np.linspace(max(2, count // 4), count, 10)})
    distances = [distance(mu, sigma, fake[:size], 1) for size in sizes]
    expected = np.polyfit(1 / np.array(sizes), distances, 1)[1]
    assert distance_at_infinity(mu, sigma, fake, 1) == pytest.approx(expected, rel=1e-6, abs=1e-6 * distances[-1])


@pytest.mark.parametrize(("count", "rank", "varied"), [(100, DIM, DIM), (100, 7, DIM), (15, DIM, DIM), (100, DIM, 5)])
def test_influence_is_the_derivative_by_a_samples_weight(count: int, rank: int, varied: int) -> None:
    """By central differences of the distance of weighted samples; some of which vary in five directions only."""
    mu, sigma = reference(rank)
    fake = samples(count)
    fake[:, varied:] = 0.3
    x = fake.astype(np.float64)

    def weighted(sample: int, step: float) -> float:
        weights = np.full(count, (1 - step) / count)
        weights[sample] += step
        mean = weights @ x
        return frechet_distance(mu, sigma, mean, ((x - mean).T * weights) @ (x - mean))

    influence = _influence(_project(make_reference(mu, sigma), fake, ddof=0))
    numeric = [(weighted(sample, 1e-4) - weighted(sample, -1e-4)) / 2e-4 for sample in range(count)]
    # The step squared, times a third derivative; measured up to 3e-6.
    assert influence - influence.mean() == pytest.approx(np.array(numeric), rel=1e-4, abs=1e-4 * influence.std())
    measured = measure_uncertainty(mu, sigma, fake, ddof=0)
    assert measured.standard_error == pytest.approx(np.std(numeric, ddof=1) / count**0.5, rel=1e-4)
    assert measured.ci95 == 1.96 * measured.standard_error


def test_one_dimension_has_closed_forms() -> None:
    """(m - 1)^2 + (s - 2)^2: the distance moves with a sample by 2 (m - 1)(x - m) + ((x - m)^2 - s^2)(1 - 2 / s)."""
    x = np.random.default_rng(0).standard_normal((200, 1)).astype(np.float32)
    m, s = float(x.mean(dtype=np.float64)), float(x.std(dtype=np.float64))
    influence = 2 * (m - 1) * (x.astype(np.float64) - m) + (x.astype(np.float64) - m) ** 2 * (1 - 2 / s)
    measured = measure_uncertainty(np.array([1.0]), np.array([[4.0]]), x, ddof=0)
    assert measured.standard_error == pytest.approx(influence.std(ddof=1) / 200**0.5, rel=1e-12)


@pytest.mark.parametrize("count", [3, 30, 300])
def test_collapsed_samples(count: int) -> None:
    """One image over and over: nothing varies, and nothing is divided by zero."""
    mu, sigma = reference()
    fake = np.repeat(samples(3)[:1], count, axis=0)
    measured = measure_uncertainty(mu, sigma, fake, 1)
    whole = ((mu - fake[0].astype(np.float64)) ** 2).sum() + np.trace(sigma)
    assert measured.standard_error < 1e-6 * whole
    assert measured.jackknife_error < 1e-6 * whole
    assert measured.corrected == pytest.approx(whole, rel=1e-6)
    assert distance_at_infinity(mu, sigma, fake, 1) == pytest.approx(whole, rel=1e-6)


def test_reference_without_variance() -> None:
    """The distance is |m - mu|^2 + tr S."""
    fake = samples(50)
    measured = measure_uncertainty(np.zeros(DIM), np.zeros((DIM, DIM)), fake, 1)
    x = fake.astype(np.float64)
    influence = 2 * (x - x.mean(0)) @ x.mean(0) + ((x - x.mean(0)) ** 2).sum(1)
    assert measured.standard_error == pytest.approx(influence.std(ddof=1) / 50**0.5, rel=1e-12)


def test_threads_do_not_reach_the_numbers() -> None:
    mu, sigma = reference()
    fake = samples(3000)
    results = []
    for threads in (1, 2):
        with threadpoolctl.threadpool_limits(threads):
            one = measure_uncertainty(mu, sigma, fake, 1)
            results.append(
                [one.standard_error, one.corrected, one.jackknife_error, distance_at_infinity(mu, sigma, fake, 1)]
            )
    assert results[0] == pytest.approx(results[1], rel=1e-12)


def test_refuses_nonsense() -> None:
    mu, sigma = reference()
    for function in (measure_uncertainty, distance_at_infinity):
        for bad in (samples(2), samples(9)[:, :5], samples(9)[0]):
            with pytest.raises(ValueError, match="expected \\[N, 24\\], N >= 3"):
                function(mu, sigma, bad, 1)
        with pytest.raises(ValueError, match="not finite"):
            function(mu, sigma, samples(9) * np.nan, 1)
    with pytest.raises(ValueError, match="blocks=2"):
        measure_uncertainty(mu, sigma, samples(9), 1, blocks=2)
