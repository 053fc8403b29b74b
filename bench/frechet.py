"""Fréchet distance at D = 2,048: symmetric eigenvalues against the matrix root that clean-fid and others take.

`python -m bench.frechet`, about two minutes. The truth is the nuclear norm of the centred features' product.
"""

import os
import time
import warnings
from collections.abc import Callable

import numpy as np
import scipy.linalg
from cleanfid.fid import frechet_distance as cleanfid_distance
from numpy.typing import NDArray

from bench.report import report
from ganops.metrics.frechet import frechet_distance

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


def main() -> None:
    """Full rank, fewer samples than features on one side, and on both."""
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
    report("frechet", lines)


if __name__ == "__main__":
    main()
