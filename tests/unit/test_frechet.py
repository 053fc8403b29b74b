"""The Fréchet distance against closed forms, scipy, and the nuclear norm, also for singular covariances."""

import numpy as np
import pytest
import scipy.linalg
from numpy.typing import NDArray

from ganops.metrics.frechet import distance_to, frechet_distance, frechet_distance_of_rows, make_reference

Array = NDArray[np.float64]


def gaussian(seed: int, dim: int, rows: int) -> tuple[Array, Array, Array]:
    """Mean, covariance and centred, scaled rows of a sample: covariance = rows^T rows."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, dim)) @ rng.standard_normal((dim, dim)) / dim**0.5 + rng.standard_normal(dim)
    centred = (x - x.mean(0)) / (rows - 1) ** 0.5
    return x.mean(0), centred.T @ centred, centred


def by_nuclear_norm(one: tuple[Array, Array, Array], two: tuple[Array, Array, Array]) -> float:
    """tr (S1 S2)^(1/2) is the nuclear norm of X1 X2^T for S = X^T X."""
    norm = scipy.linalg.svdvals(one[2] @ two[2].T).sum()
    return float(((one[0] - two[0]) ** 2).sum() + np.trace(one[1]) + np.trace(two[1]) - 2 * norm)


@pytest.mark.parametrize(("rows1", "rows2"), [(300, 400), (20, 400), (20, 30), (400, 5), (64, 64)])
def test_equals_the_nuclear_norm_also_for_singular_covariances(rows1: int, rows2: int) -> None:
    one, two = gaussian(1, 64, rows1), gaussian(2, 64, rows2)
    # 1e-8: the faster way is taken while its error is known to be below 1e-7 of the trace (measured: 1e-9 here).
    assert frechet_distance(*one[:2], *two[:2]) == pytest.approx(by_nuclear_norm(one, two), rel=1e-8)


def test_equals_scipys_root() -> None:
    one, two = gaussian(1, 64, 500), gaussian(2, 64, 500)
    root = scipy.linalg.sqrtm(one[1] @ two[1]).real
    expected = ((one[0] - two[0]) ** 2).sum() + np.trace(one[1] + two[1] - 2 * root)
    assert frechet_distance(*one[:2], *two[:2]) == pytest.approx(expected, rel=1e-10)


def test_commuting_covariances_have_a_closed_form() -> None:
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.standard_normal((32, 32)))
    a, b = rng.random(32), rng.random(32)
    mu1, mu2 = rng.standard_normal((2, 32))
    value = frechet_distance(mu1, basis @ np.diag(a) @ basis.T, mu2, basis @ np.diag(b) @ basis.T)
    assert value == pytest.approx(((mu1 - mu2) ** 2).sum() + ((a**0.5 - b**0.5) ** 2).sum(), rel=1e-11)


def test_one_dimension() -> None:
    value = frechet_distance(np.array([1.0]), np.array([[4.0]]), np.array([3.0]), np.array([[9.0]]))
    assert value == pytest.approx(4 + (2 - 3) ** 2)


def test_identical_sets_are_at_zero() -> None:
    mu, sigma, _ = gaussian(3, 64, 20)
    assert abs(frechet_distance(mu, sigma, mu, sigma)) < 1e-10 * np.trace(sigma)


def test_is_symmetric() -> None:
    one, two = gaussian(4, 32, 10), gaussian(5, 32, 100)
    assert frechet_distance(*one[:2], *two[:2]) == pytest.approx(frechet_distance(*two[:2], *one[:2]), rel=1e-11)


def test_covariances_without_a_common_direction() -> None:
    """The product is zero: nothing is subtracted, and nothing divides by it."""
    one, two, zero = np.diag([1.0, 2.0, 0, 0]), np.diag([0, 0, 3.0, 4.0]), np.zeros(4)
    assert frechet_distance(zero, one, zero, two) == pytest.approx(10.0, rel=1e-14)


@pytest.mark.parametrize("steep", [10, 20, 60])
def test_wide_spectra(steep: int) -> None:
    """Eigenvalues of the product over up to fifty decades; the smallest of them are below rounding."""
    rng = np.random.default_rng(0)
    scale = np.exp(-np.arange(64) / 64 * steep)
    sets = []
    for factor in (1.0, 1.2):
        x = rng.standard_normal((300, 64)) * scale * factor
        centred = (x - x.mean(0)) / 299**0.5
        sets.append((x.mean(0), centred.T @ centred, centred))
    assert frechet_distance(*sets[0][:2], *sets[1][:2]) == pytest.approx(by_nuclear_norm(*sets), rel=1e-10)


def test_point_masses() -> None:
    zero = np.zeros((3, 3))
    assert frechet_distance(np.zeros(3), zero, np.ones(3), zero) == 3.0


@pytest.mark.parametrize("bad", [np.full(3, np.nan), np.zeros(4)])
def test_refuses_nonsense(bad: Array) -> None:
    with pytest.raises(ValueError, match=r"not finite|do not fit"):
        frechet_distance(bad, np.eye(3), np.zeros(3), np.eye(3))


def test_one_reference_for_many() -> None:
    reference = make_reference(*gaussian(1, 32, 20)[:2])
    for seed, rows in ((2, 100), (3, 12), (4, 32)):
        other = gaussian(seed, 32, rows)
        expected = frechet_distance(*other[:2], reference.mu, reference.sigma)
        assert distance_to(reference, *other[:2]) == expected
        assert expected == pytest.approx(by_nuclear_norm(gaussian(1, 32, 20), other), rel=1e-8)
    assert reference.root.shape == (32, 19)  # twenty samples


def test_reference_refuses_nonsense() -> None:
    reference = make_reference(np.zeros(3), np.eye(3))
    with pytest.raises(ValueError, match="do not fit 3 features"):
        distance_to(reference, np.zeros(4), np.eye(4))
    with pytest.raises(ValueError, match="not finite"):
        distance_to(reference, np.zeros(3), np.full((3, 3), np.inf))


@pytest.mark.parametrize(("rows1", "rows2"), [(300, 400), (20, 400), (400, 20), (20, 30), (2, 5), (64, 65), (1, 9)])
@pytest.mark.parametrize("ddof", [0, 1])
def test_rows_equal_moments(rows1: int, rows2: int, ddof: int) -> None:
    ddof = min(ddof, rows1 - 1)
    rng = np.random.default_rng(0)
    x, y = (rng.standard_normal((rows, 64)).astype(np.float32) + 3 for rows in (rows1, rows2))
    moments = [f for z in (x, y) for f in (z.mean(0, dtype=np.float64), np.cov(z.T.astype(np.float64), ddof=ddof))]
    # The fast way through moments is right to 1e-8 (above).
    assert frechet_distance_of_rows(x, y, ddof) == pytest.approx(frechet_distance(*moments), rel=1e-8)


def test_rows_are_exact_where_moments_are_not() -> None:
    """Two images each: a closed form, of rank one. In directions u and v: |u|^2 + |v|^2 - 2 |u.v|."""
    rng = np.random.default_rng(0)
    u, v, middle, step = rng.standard_normal((4, 500))
    value = frechet_distance_of_rows(np.stack([middle + u, middle - u]), np.stack([step + v, step - v]), ddof=0)
    assert value == pytest.approx(((middle - step) ** 2).sum() + u @ u + v @ v - 2 * abs(u @ v), rel=1e-13)


def test_rows_refuse_nonsense() -> None:
    rows = np.ones((5, 3))
    for bad in (np.ones((5, 4)), np.ones((1, 3)), np.ones(3)):
        with pytest.raises(ValueError, match="do not fit, or are too few"):
            frechet_distance_of_rows(rows, bad, 1)
    with pytest.raises(ValueError, match="not finite"):
        frechet_distance_of_rows(rows, rows * np.nan, 1)
