"""Fréchet distance at D = 2,048: symmetric eigenvalues against the matrix root that clean-fid and others take.

Then, on one core, what a distance with its uncertainty costs. `python -m bench.frechet`, about five minutes. The truth is
the nuclear norm of the centred features' product.
"""

import os
import time
import warnings
from collections.abc import Callable

import numpy as np
import scipy.linalg
import threadpoolctl
from cleanfid.fid import frechet_distance as cleanfid_distance
from numpy.typing import NDArray

from bench.report import report
from ganops.metrics.frechet import distance_to, frechet_distance, make_reference
from ganops.metrics.uncertainty import distance_at_infinity, measure_uncertainty

Array = NDArray[np.float64]
DIM = 2048
ROUNDS = 1  # a matrix root takes ten seconds and more


def features(seed: int, rows: int) -> Array:
    """Rows whose covariance has eigenvalues over six decades."""
    spectrum = np.exp(-np.arange(DIM) / 300)
    return np.random.default_rng(seed).standard_normal((rows, DIM)) * spectrum + 0.01 * seed


def timed(function: Callable[..., float], arguments: list[Array]) -> tuple[float, float]:
    """Value and best time in seconds."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        value = float(function(*arguments))
        times.append(time.perf_counter() - start)
    return value, min(times)


def truth(one: Array, two: Array, arguments: list[Array]) -> float:
    mu1, sigma1, mu2, sigma2 = arguments
    norm = scipy.linalg.svdvals((one - mu1) @ (two - mu2).T).sum() / ((len(one) - 1) * (len(two) - 1)) ** 0.5
    return float(((mu1 - mu2) ** 2).sum() + np.trace(sigma1) + np.trace(sigma2) - 2 * norm)


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def of_uncertainty() -> list[str]:
    """Seconds on one core, against a reference of 10,000 rows."""
    real = features(0, 10000)
    mu, sigma = real.mean(0), np.cov(real, rowvar=False)
    reference = make_reference(mu, sigma)
    lines = [f"one core; a reference's root: {seconds(lambda: make_reference(mu, sigma)):.1f} s"]
    for rows in (1000, 5000):
        fake = features(1, rows).astype(np.float32)
        moments = fake.mean(0, dtype=np.float64), np.cov(fake, rowvar=False, dtype=np.float64)
        lines.append(
            f"{rows} samples: distance to a reference {seconds(lambda m=moments: distance_to(reference, *m)):.1f} s, "
            f"uncertainty with 20 blocks {seconds(lambda f=fake: measure_uncertainty(mu, sigma, f, 1)):.1f} s, "
            f"distance at infinity {seconds(lambda f=fake: distance_at_infinity(mu, sigma, f, 1)):.1f} s"
        )
    return lines


def main() -> None:
    """Full rank, fewer samples than features on one side, and on both; then uncertainties."""
    lines = [f"load average at the start: {os.getloadavg()[0]:.1f}", f"D = {DIM}, best of {ROUNDS}"]
    for rows1, rows2 in ((8000, 8000), (8000, 1000), (1000, 1000)):
        one, two = features(0, rows1), features(1, rows2)
        arguments = [one.mean(0), np.cov(one, rowvar=False), two.mean(0), np.cov(two, rowvar=False)]
        ours, ours_sec = timed(frechet_distance, arguments)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy's: singular matrices, `disp`
            theirs, theirs_sec = timed(cleanfid_distance, arguments)
        exact = truth(one, two, arguments)
        lines.append(
            f"{rows1} against {rows2} samples: ours {ours_sec:.2f} s, clean-fid's {theirs_sec:.2f} s, "
            f"ratio {theirs_sec / ours_sec:.1f}; relative error ours {abs(ours / exact - 1):.0e}, "
            f"clean-fid's {abs(theirs / exact - 1):.0e}"
        )
    with threadpoolctl.threadpool_limits(1):
        lines += of_uncertainty()
    report("frechet", lines)


if __name__ == "__main__":
    main()
