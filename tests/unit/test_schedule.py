"""What happens when, as functions of nimg."""

import pytest

from ganops.config import load_params
from ganops.training.schedule import (
    adam_values,
    comes_due,
    ema_beta,
    end_nimg,
    intervals_passed,
    lr_factor,
    phase_is_due,
)


def test_ema_half_life() -> None:
    """Karras et al. 2020: 10 kimg at batch 32 is a decay of 0.99778."""
    assert ema_beta(10**6, 32, 10.0, None) == pytest.approx(0.99778, abs=5e-6)
    assert ema_beta(10**6, 32, 10.0, None) ** (10_000 / 32) == pytest.approx(0.5, rel=1e-12)


def test_ema_ramp() -> None:
    assert ema_beta(64, 64, 500.0, 0.05) == pytest.approx(0.5 ** (64 / 3.2))
    assert ema_beta(0, 64, 500.0, 0.05) == 0.0
    assert ema_beta(10**8, 64, 500.0, 0.05) == ema_beta(10**8, 64, 500.0, None)


def test_adam_of_config_f() -> None:
    """The figures that the paper's settings come to: G .0016, .99199; D .0018824, .99059."""
    params = load_params_for_f()
    G = adam_values(params, 0.002, True, 4)
    D = adam_values(params, 0.002, True, 16)
    assert pytest.approx((0.0016, 0.0, 0.99199), abs=1e-5) == (G.lr, G.beta1, G.beta2)
    assert pytest.approx((0.0018824, 0.0, 0.99059), abs=1e-5) == (D.lr, D.beta1, D.beta2)
    assert adam_values(params, 0.002, False, 4).lr == 0.002


def load_params_for_f():  # type: ignore[no-untyped-def]
    from pathlib import Path

    return load_params(Path(__file__).parents[2] / "params.yaml").train


def test_intervals() -> None:
    assert intervals_passed(2999, 3) == 0
    assert intervals_passed(3000, 3) == 1
    assert intervals_passed(10**9, 0) == 0
    steps = [nimg for nimg in range(32, 9100, 32) if comes_due(nimg, 32, 3)]
    assert steps == [3008, 6016, 9024]
    assert not comes_due(3008, 32, 0)


def test_the_end_is_a_whole_batch() -> None:
    assert end_nimg(1, 32) == 1024
    assert end_nimg(60, 32) == 60_000


def test_regularisers_run_in_the_first_step() -> None:
    due = [step for step in range(33) if phase_is_due(step * 32, 32, 16)]
    assert due == [0, 16, 32]


def test_warm_up() -> None:
    assert lr_factor(0, 0) == 1.0
    assert lr_factor(499, 1) == pytest.approx(0.5)
    assert lr_factor(5000, 1) == 1.0
