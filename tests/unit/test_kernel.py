"""The kernel distance against explicit loops, and what must not reach it. clean-fid: tests/parity/test_metrics.py."""

from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
import threadpoolctl
from numpy.typing import NDArray

from ganops.metrics import kernel as module
from ganops.metrics.kernel import kernel_distance

Array = NDArray[np.floating[Any]]


def rows(seed: int, count: int, dim: int = 12) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal((count, dim)) * (1 + seed / 10) + 0.5).astype(np.float32)


def by_loops(x: Array, y: Array) -> float:
    def k(a: Array, b: Array) -> float:
        return (sum(float(s) * float(t) for s, t in zip(a, b, strict=True)) / len(a) + 1) ** 3

    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    within = sum(mean([k(a, b) for a, b in permutations(z, 2)]) for z in (x, y))
    return within - 2 * mean([k(a, b) for a, b in product(x, y)])


@pytest.mark.parametrize(("n", "m"), [(2, 2), (9, 14), (23, 5)])
@pytest.mark.parametrize("block", [1, 4, 1024])
def test_equals_loops_over_pairs(monkeypatch: pytest.MonkeyPatch, n: int, m: int, block: int) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", block)
    x, y = rows(0, n), rows(3, m)
    # Two terms of size 1 to 10, in another order; their difference is about 0.5.
    assert kernel_distance(x, y, seed=0).value == pytest.approx(by_loops(x, y), rel=1e-12)


def test_subsets_are_what_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 pairs of subsets, without replacement, drawn by a named generator: the numbers can be had again elsewhere."""
    monkeypatch.setattr(module, "SUBSET_ROWS", 10)
    x, y = rows(0, 17), rows(3, 30)
    generator = np.random.Generator(np.random.PCG64(5))
    subsets = [[z[generator.choice(len(z), 10, replace=False)] for _ in range(100)] for z in (x, y)]
    expected = [by_loops(a, b) for a, b in zip(*subsets, strict=True)]
    measured = kernel_distance(x, y, seed=5)
    assert measured.std == pytest.approx(np.std(expected), rel=1e-12)
    assert measured.subset_mean == pytest.approx(np.mean(expected), rel=1e-12)


def test_seed_reaches_subsets_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SUBSET_ROWS", 50)
    x, y = rows(0, 200), rows(3, 200)
    one, again, other = (kernel_distance(x, y, seed) for seed in (1, 1, 2))
    assert one == again
    assert one.value == other.value
    assert one.std != other.std
    assert one.subset_mean == pytest.approx(one.value, abs=3 * one.std / 10)


def test_whole_sets_in_each_subset_do_not_vary() -> None:
    measured = kernel_distance(rows(0, 30), rows(3, 30), seed=0)
    assert measured.std <= 1e-14
    assert measured.subset_mean == pytest.approx(measured.value, rel=1e-12)


def test_is_zero_on_average_for_one_distribution() -> None:
    """Without bias: over 50 pairs of sets its mean is within three of its own standard errors of 0."""
    rng = np.random.default_rng(0)
    values = [kernel_distance(*rng.standard_normal((2, 20, 4)), seed=0).value for _ in range(50)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 50**0.5


def test_blocks_and_threads_do_not_reach_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = rows(0, 2100, 64), rows(1, 1500, 64)
    results = []
    for block, threads in ((1024, 1), (1024, 2), (700, 1), (5000, 2)):
        monkeypatch.setattr(module, "BLOCK_ROWS", block)
        with threadpoolctl.threadpool_limits(threads):
            measured = kernel_distance(x, y, seed=0)
            results.append([measured.value, measured.std, measured.subset_mean])
    for other in results[1:]:
        assert other == pytest.approx(results[0], rel=1e-11)  # a difference of sums that are 100 times larger


@pytest.mark.parametrize("bad", [np.ones((5, 3)), np.ones((1, 12)), np.ones(12)])
def test_refuses_what_does_not_fit(bad: Array) -> None:
    with pytest.raises(ValueError, match="do not fit, or a set has fewer than two"):
        kernel_distance(rows(0, 5), bad, seed=0)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_refuses_what_is_not_finite(value: float) -> None:
    bad = rows(0, 5)
    bad[2, 3] = value
    with pytest.raises(ValueError, match="not finite"):
        kernel_distance(rows(0, 5), bad, seed=0)
