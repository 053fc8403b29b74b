"""Metrics against other programs' public functions, and error bars against simulated repetitions.

torch-fidelity is not among the requirements; its tests run where it is installed.
"""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ganops.metrics import kernel
from ganops.metrics.frechet import frechet_distance, frechet_distance_of_rows
from ganops.metrics.kernel import kernel_distance
from ganops.metrics.neighbours import precision_recall
from ganops.metrics.score import inception_score
from ganops.metrics.uncertainty import distance_at_infinity, measure_uncertainty

Array = NDArray[np.float64]
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::RuntimeWarning"
)


def features(seed: int, rows: int, dim: int = 48) -> NDArray[np.float32]:
    """Not negative, as pooled features after a ReLU are."""
    normal = np.random.default_rng(seed).standard_normal((rows, dim))
    return np.maximum(normal * (1 + 0.1 * seed) + 0.3, 0).astype(np.float32)


def test_kernel_distance_equals_cleanfids() -> None:
    """Of whole sets: one subset of all rows."""
    from cleanfid import fid

    one, two = features(0, 700), features(1, 700)
    theirs = fid.kernel_distance(one.astype(float), two.astype(float), num_subsets=1, max_subset_size=700)
    assert kernel_distance(one, two, seed=0).value == pytest.approx(theirs, rel=1e-10)


def test_kernel_distance_of_subsets_equals_cleanfids(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other subsets: equal within the noise of two means over 100, and the same noise for any number of rows."""
    from cleanfid import fid

    monkeypatch.setattr(kernel, "SUBSET_ROWS", 200)
    np.random.seed(0)  # clean-fid draws from numpy's global generator
    one, two = features(0, 3000), features(1, 2500)
    theirs = fid.kernel_distance(one.astype(float), two.astype(float), max_subset_size=200)
    ours = kernel_distance(one, two, seed=0)
    assert ours.subset_mean == pytest.approx(theirs, abs=4 * ours.std / 10)
    assert ours.value == pytest.approx(theirs, abs=4 * ours.std / 10)


def test_distance_of_rows_equals_cleanfids() -> None:
    from cleanfid import fid

    one, two = features(0, 700), features(1, 500)
    theirs = fid.fid_from_feats(one.astype(float), two.astype(float))
    assert frechet_distance_of_rows(one, two, ddof=1) == pytest.approx(theirs, rel=1e-6)


def test_equal_torch_fidelitys() -> None:
    pytest.importorskip("torch_fidelity")
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    real, fake = features(0, 700), features(1, 600)
    moments = [fid_features_to_statistics(torch.from_numpy(rows.astype(np.float64))) for rows in (real, fake)]
    theirs: dict[str, Any] = fid_statistics_to_metric(*moments, verbose=False)
    ours = frechet_distance(moments[0]["mu"], moments[0]["sigma"], moments[1]["mu"], moments[1]["sigma"])
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-9)
    assert frechet_distance_of_rows(real, fake, 1) == pytest.approx(theirs["frechet_inception_distance"], rel=1e-9)

    doubles = [torch.from_numpy(rows[:600].astype(np.float64)) for rows in (real, fake)]
    theirs = kid_features_to_metric(*doubles, kid_subsets=1, kid_subset_size=600, verbose=False)
    value = kernel_distance(real[:600], fake, seed=0).value
    assert value == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-10)

    logits = features(2, 530, 20) * 3
    theirs = isc_features_to_metric(torch.from_numpy(logits), splits=10, shuffle=False)
    assert inception_score(logits) == pytest.approx(
        (theirs["inception_score_mean"], theirs["inception_score_std"]), rel=1e-10
    )

    theirs = prc_features_to_metric(
        torch.from_numpy(fake), torch.from_numpy(real), prc_neighborhood=3, verbose=False, save_cpu_ram=False
    )
    assert precision_recall(real, fake, 3) == (pytest.approx(theirs["precision"]), pytest.approx(theirs["recall"]))


def test_error_bars_hold_in_repetitions() -> None:
    """400 sets of 400 samples of 16 features, whose distance without noise and bias is known.

    The standard deviation over 400 sets is itself known to 3.5 %.
    """
    rng = np.random.default_rng(0)
    dim, count, repetitions = 16, 400, 400
    root, mean = rng.standard_normal((dim, dim)) / dim**0.5, 0.1 * rng.standard_normal(dim)
    mu, sigma = np.zeros(dim), 0.7 * np.eye(dim)
    truth = frechet_distance(mu, sigma, mean, root @ root.T)
    values, errors, corrected, jackknifes, infinities = [], [], [], [], []
    for _ in range(repetitions):
        fake = rng.standard_normal((count, dim)) @ root.T + mean
        measured = measure_uncertainty(mu, sigma, fake, ddof=1)
        values.append(frechet_distance(mu, sigma, fake.mean(0), np.cov(fake.T)))
        errors.append(measured.standard_error)
        corrected.append(measured.corrected)
        jackknifes.append(measured.jackknife_error)
        infinities.append(distance_at_infinity(mu, sigma, fake, ddof=1))
    spread = np.std(values, ddof=1)
    assert np.mean(errors) == pytest.approx(spread, rel=0.15)
    assert np.mean(jackknifes) == pytest.approx(spread, rel=0.15)
    # What is reported: value +- ci95 around the value's own mean, and the corrected one around the truth.
    inside = np.abs(np.array(values) - np.mean(values)) <= 1.96 * np.array(errors)
    inside_corrected = np.abs(np.array(corrected) - truth) <= 1.96 * np.array(errors)
    assert 0.92 <= inside.mean() <= 0.98
    assert 0.92 <= inside_corrected.mean() <= 0.98
    # The bias is ten times the noise of a mean over all sets; the corrected ones have none left.
    noise = spread / repetitions**0.5
    assert np.mean(values) - truth > 8 * noise
    assert abs(np.mean(corrected) - truth) < 3 * noise
    assert abs(np.mean(infinities) - truth) < 4 * noise
