"""Metrics of neighbours against brute force over exact differences; copies, ties, and sizes of blocks."""

from typing import Any

import numpy as np
import pytest
import threadpoolctl
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits

from ganops.metrics import neighbours as module
from ganops.metrics.neighbours import density_coverage, memorised_share, nearest, precision_recall

Array = NDArray[np.floating[Any]]


def rows(seed: int, count: int, dim: int = 6, scale: float = 1.0, mean: float = 0.0) -> NDArray[np.float32]:
    return (np.random.default_rng(seed).standard_normal((count, dim)) * scale + mean).astype(np.float32)


def distances(one: Array, two: Array) -> NDArray[np.float64]:
    """[N, M], by scipy: differences in float64."""
    result: NDArray[np.float64] = cdist(one.astype(np.float64), two.astype(np.float64))
    return result


def radii(x: Array, k: int) -> NDArray[np.float64]:
    return np.sort(distances(x, x), axis=1)[:, k]


def integers(seed: int, count: int) -> NDArray[np.float32]:
    """Points of a small grid: full of copies and of equal distances."""
    return np.random.default_rng(seed).integers(0, 3, (count, 3)).astype(np.float32)


SETS = {
    "plain": (rows(0, 90), rows(1, 70, scale=0.8, mean=0.3)),
    "far from zero": (rows(0, 90, scale=0.01, mean=1000), rows(1, 70, scale=0.01, mean=1000)),
    "ties": (integers(0, 90), integers(1, 70)),
    "identical": (rows(0, 50), rows(0, 50)),
    "apart": (rows(0, 40), rows(1, 40, mean=100)),
    "an outlier": (np.vstack([rows(0, 40), rows(9, 1, mean=1e6)]), rows(1, 40)),
    "one image": (rows(0, 40), np.repeat(rows(1, 1), 30, axis=0)),
}
sets = pytest.mark.parametrize("name", SETS)
blocks = pytest.mark.parametrize("block", [5, 32, 1024])


@sets
@blocks
def test_precision_and_recall_equal_brute_force(monkeypatch: pytest.MonkeyPatch, name: str, block: int) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", block)
    real, fake = SETS[name]
    for k in (1, 3, 10):
        across = distances(real, fake)
        precision = (across <= radii(real, k)[:, None]).any(0).mean()
        recall = (across <= radii(fake, k)).any(1).mean()
        assert precision_recall(real, fake, k) == (precision, recall)


@sets
@blocks
def test_density_and_coverage_equal_brute_force(monkeypatch: pytest.MonkeyPatch, name: str, block: int) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", block)
    real, fake = SETS[name]
    for k in (1, 5):
        inside = distances(real, fake) <= radii(real, k)[:, None]
        assert density_coverage(real, fake, k) == (inside.sum() / (k * len(fake)), inside.any(1).mean())


@sets
@blocks
def test_nearest_equal_brute_force(monkeypatch: pytest.MonkeyPatch, name: str, block: int) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", block)
    real, fake = SETS[name]
    for k in (1, 4, len(real)):
        expected = distances(fake, real)
        order = np.argsort(expected, axis=1, kind="stable")[:, :k]  # of equal ones, the first
        found, indices = nearest(fake, real, k)
        assert (indices == order).all()
        # Sums of squares in another order than scipy's.
        assert found == pytest.approx(np.take_along_axis(expected, order, axis=1), rel=1e-14)
        assert found.dtype == np.float64
        assert indices.dtype == np.int64


def test_known_values() -> None:
    assert precision_recall(*SETS["identical"], 3) == (1.0, 1.0)
    assert precision_recall(*SETS["apart"], 3) == (0.0, 0.0)
    assert density_coverage(*SETS["apart"], 5) == (0.0, 0.0)
    assert density_coverage(*SETS["identical"], 5)[1] == 1.0
    real = np.arange(4.0)[:, None]  # at 0, 1, 2, 3: balls of radius 1
    assert precision_recall(real, np.array([[-1.0], [4.5], [9.0]]), 1) == (1 / 3, 1.0)
    assert density_coverage(real, np.array([[-1.0], [1.5], [9.0]]), 1) == (1.0, 3 / 4)


def test_copies_are_at_zero_exactly() -> None:
    """Also far from zero, where the product form is wrong by 1e-3 and more."""
    real = rows(0, 60, dim=300, mean=1e4)
    found, indices = nearest(real[::-1].copy(), real, 1)
    assert (found == 0).all()
    assert (indices[:, 0] == np.arange(60)[::-1]).all()
    doubled = np.vstack([real, real])
    assert precision_recall(doubled, real, 1) == (1.0, 1.0)  # balls of radius 0, and the samples on them
    assert precision_recall(doubled, real + np.float32(0.01), 1)[0] == 0.0


def test_blocks_and_threads_do_not_reach_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = rows(0, 700, dim=40), rows(1, 600, dim=40, mean=0.2)
    results = []
    for block, threads in ((1024, 1), (1024, 2), (333, 1), (64, 2)):
        monkeypatch.setattr(module, "BLOCK_ROWS", block)
        with threadpoolctl.threadpool_limits(threads):
            numbers = *precision_recall(real, fake, 3), *density_coverage(real, fake, 5), memorised_share(real, fake)
            results.append((*numbers, *(part.tobytes() for part in nearest(fake, real, 9))))
    assert len(set(results)) == 1


def test_memorised_share_of_held_out_images_is_one_percent() -> None:
    """Of real images: a model as good as more data. Over 30 divisions 0.9 % +- 0.5 %, of one up to 2.2 %."""
    digits = load_digits().data.astype(np.float32)
    shares = []
    for seed in range(8):
        order = np.random.default_rng(seed).permutation(len(digits))
        shares.append(memorised_share(digits[order[:898]], digits[order[898:]]))
    assert 0.004 < np.mean(shares) < 0.016


@pytest.mark.parametrize("dim", [2, 50])
def test_memorised_share_of_an_honest_model_is_one_percent(dim: int) -> None:
    """In any dimension. Of one set 1 % +- 0.6 %, so the mean of twenty is known to 0.13 %."""
    shares = [memorised_share(rows(seed, 1000, dim), rows(seed + 100, 1000, dim)) for seed in range(20)]
    assert np.mean(shares) == pytest.approx(0.01, abs=0.004)


def test_memorised_share_counts_copies() -> None:
    real, fake = rows(0, 500, 20), rows(1, 500, 20)
    others = memorised_share(real, fake[200:])
    fake[:200] = real[:200]
    fake[100:200] += rows(2, 100, 20, scale=0.01)  # nearly copies
    assert memorised_share(real, fake) == pytest.approx(0.4 + 0.6 * others, rel=1e-12)
    assert others < 0.1


def test_memorised_share_with_copies_among_real_images() -> None:
    """Each real image three times: the same share as of each once."""
    real, fake = rows(0, 300, 20), rows(1, 300, 20)
    fake[:50] = real[:50]
    once = memorised_share(real, fake)
    assert once >= 50 / 300
    assert memorised_share(np.vstack([real, real[::-1], real]), fake) == once


def test_refuses_too_few() -> None:
    real, fake = rows(0, 5), rows(1, 9)
    with pytest.raises(ValueError, match="5 real images are too few for k=5"):
        precision_recall(real, fake, 5)
    with pytest.raises(ValueError, match="5 samples are too few for k=7"):
        precision_recall(fake, real, 7)
    with pytest.raises(ValueError, match="5 real images are too few for k=5"):
        density_coverage(real, fake, 5)
    with pytest.raises(ValueError, match="1 different real images are too few"):
        memorised_share(np.repeat(real[:1], 5, axis=0), fake)
    for k in (0, 6):
        with pytest.raises(ValueError, match=r"not in 1\.\.5"):
            nearest(fake, real, k)


def test_refuses_nonsense() -> None:
    real = rows(0, 9)
    bad = real.copy()
    bad[3, 2] = np.nan
    for function in (lambda x: precision_recall(real, x, 3), lambda x: memorised_share(x, real)):
        with pytest.raises(ValueError, match="not finite"):
            function(bad)
    for wrong in (rows(0, 9, dim=5), rows(0, 9)[0], rows(0, 0)):
        with pytest.raises(ValueError, match="do not fit"):
            nearest(wrong, real, 1)
