"""What happens when, as functions of nimg."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ganops.config import load_params
from ganops.config_train import TrainParams
from ganops.training.schedule import (
    adam_values,
    came_due,
    ema_beta,
    end_nimg,
    intervals_passed,
    lod_at,
    lr_factor,
    moment,
    phase_is_due,
    previous_step,
    stages,
    state_is_due,
    ticks_passed,
)

PARAMS = load_params(Path(__file__).parents[2] / "params.yaml")
# Configs a to d of StyleGAN2 and PGGAN's preset for 8 GPUs: Karras et al. 2020 and 2018, released code.
CONFIG_A = {
    "lod_initial_resolution": 8, "lod_training_kimg": 600.0, "lod_transition_kimg": 600.0, "batch_size": 32, "batch_gpu": 4,
    "batch_size_by_resolution": {8: 256, 16: 128, 32: 64, 64: 32}, "batch_gpu_by_resolution": {8: 32, 16: 16, 32: 8, 64: 4},
    "G_lr": 0.001, "D_lr": 0.001, "lr_by_resolution": {128: 0.0015, 256: 0.002, 512: 0.003, 1024: 0.003},
}  # fmt: skip
PGGAN = {
    **CONFIG_A, "lod_initial_resolution": 4, "batch_size_by_resolution": {4: 512, 8: 256, 16: 128, 32: 64, 64: 32},
    "batch_gpu_by_resolution": {4: 64, 8: 32, 16: 16, 32: 8, 64: 4},
    "tick_kimg_by_resolution": {4: 160.0, 8: 140.0, 16: 120.0, 32: 100.0, 64: 80.0, 128: 60.0, 256: 40.0},
}  # fmt: skip


def with_values(**changes: Any) -> TrainParams:
    """Section train with some values, not checked: for functions that look at a few of them."""
    return PARAMS.train.model_copy(update=changes)


def published_lod(kimg: float, resolution: int, initial: int, train: float, fade: float) -> float:
    """The schedule as its authors state it, phase by phase, walked through: another route than a formula."""
    lod, reached = math.log2(resolution / initial), 0.0
    while lod > 0:
        reached += train
        if kimg < reached or (fade and kimg == reached):
            return lod
        if kimg < reached + fade:
            return lod - (kimg - reached) / fade
        reached += fade
        lod -= 1
    return 0.0


def steps_of(values: dict[str, Any], resolution: int, until: int) -> list[int]:
    """Starts of all steps, walked through by the published schedule."""
    starts, initial = [0], values["lod_initial_resolution"]
    while starts[-1] < until:
        kimg = starts[-1] / 1000
        lod = published_lod(kimg, resolution, initial, values["lod_training_kimg"], values["lod_transition_kimg"])
        present = resolution >> math.floor(lod)
        starts.append(starts[-1] + values["batch_size_by_resolution"].get(present, values["batch_size"]))
    return starts


def test_ema_half_life() -> None:
    """Karras et al. 2020: 10 kimg at batch 32 is a decay of 0.99778."""
    params = with_values(batch_size=32, ema_kimg=10.0, ema_rampup=None)
    assert ema_beta(10**6, params) == pytest.approx(0.99778, abs=5e-6)
    assert ema_beta(10**6, params) ** (10_000 / 32) == pytest.approx(0.5, rel=1e-12)


def test_ema_ramp() -> None:
    params = with_values(batch_size=64, ema_kimg=500.0, ema_rampup=0.05)
    assert ema_beta(64, params) == pytest.approx(0.5 ** (64 / 3.2))
    assert ema_beta(0, params) == 0.0
    assert ema_beta(10**8, params) == ema_beta(10**8, with_values(batch_size=64, ema_kimg=500.0, ema_rampup=None))


def test_ema_per_step() -> None:
    assert ema_beta(10, with_values(batch_size=512, ema_beta=0.999)) == 0.999


def test_adam_of_config_f() -> None:
    """The figures that the paper's settings come to: G .0016, .99199; D .0018824, .99059."""
    params = PARAMS.train
    G = adam_values(params, 0.002, 2.0, 4)
    D = adam_values(params, 0.002, 10.0, 16)
    assert pytest.approx((0.0016, 0.0, 0.99199), abs=1e-5) == (G.lr, G.beta1, G.beta2)
    assert pytest.approx((0.0018824, 0.0, 0.99059), abs=1e-5) == (D.lr, D.beta1, D.beta2)
    assert adam_values(params, 0.002, 0.0, 4).lr == 0.002
    assert adam_values(params, 0.002, 10.0, 1).lr == 0.002  # not lazy: part of the main loss


def test_intervals() -> None:
    assert intervals_passed(2999, 3) == 0
    assert intervals_passed(3000, 3) == 1
    assert intervals_passed(10**9, 0) == 0
    steps = [nimg for nimg in range(32, 9100, 32) if came_due(nimg - 32, nimg, 3)]
    assert steps == [3008, 6016, 9024]
    assert not came_due(2976, 3008, 0)


def test_states_are_due_every_so_many_images() -> None:
    params = PARAMS.model_copy(update={"run": PARAMS.run.model_copy(update={"state_kimg": 3.0})})
    assert [nimg for nimg in range(32, 9100, 32) if state_is_due(params, nimg)] == [3008, 6016, 9024]


def test_the_end_is_a_whole_batch() -> None:
    assert end_nimg(with_values(total_kimg=1), 16) == 1024
    assert end_nimg(with_values(total_kimg=60), 16) == 60_000


def test_regularisers_run_in_the_first_step() -> None:
    assert [step for step in range(33) if phase_is_due(step, 16)] == [0, 16, 32]


def test_warm_up() -> None:
    assert lr_factor(0, 0) == 1.0
    assert lr_factor(499, 1) == pytest.approx(0.5)
    assert lr_factor(5000, 1) == 1.0


def test_without_growing_there_is_one_stage() -> None:
    params = PARAMS.train
    assert stages(params, 16) == stages(params, 1024)[:0] + stages(params, 16)
    (only,) = stages(params, 1024)
    assert (only.start, only.step, only.resolution, only.params) == (0, 0, 1024, params)
    now = moment(params, 1024, 320)
    assert (now.step, now.lod, now.new_lod, now.params) == (10, 0.0, False, params)


@pytest.mark.parametrize(("resolution", "initial"), [(1024, 8), (1024, 4), (64, 8), (16, 16)])
@pytest.mark.parametrize(("train", "fade"), [(600.0, 600.0), (800.0, 800.0), (100.0, 0.0), (0.0, 50.0)])
def test_lod_is_the_published_schedule(resolution: int, initial: int, train: float, fade: float) -> None:
    """Also the trap of copied listings: without `lod -= phase` it would never pass the second resolution."""
    params = with_values(lod_initial_resolution=initial, lod_training_kimg=train, lod_transition_kimg=fade)
    for nimg in range(0, 12_000_000, 7_777):
        expected = published_lod(nimg / 1000, resolution, initial, train, fade)
        if fade or (nimg / 1000) % train:  # at the very moment of a jump both are right
            assert lod_at(params, resolution, nimg) == pytest.approx(expected, abs=1e-9), nimg
    assert lod_at(params, resolution, 13_000_000) == 0.0
    assert moment(params, resolution, 0).lod == math.log2(resolution / initial)


def test_stages_of_config_a() -> None:
    params = with_values(**CONFIG_A)
    found = stages(params, 1024)
    assert [stage.resolution for stage in found] == [8, 16, 32, 64, 128, 256, 512, 1024]
    assert [stage.params.batch_size for stage in found] == [256, 128, 64, 32, 32, 32, 32, 32]
    assert [stage.params.batch_gpu for stage in found] == [32, 16, 8, 4, 4, 4, 4, 4]
    assert [stage.params.G_lr for stage in found] == [0.001, 0.001, 0.001, 0.001, 0.0015, 0.002, 0.003, 0.003]
    # Each begins with the first step within its fade: 600 kimg, then every 1,200.
    assert [stage.start // 1000 for stage in found] == [0, 600, 1800, 3000, 4200, 5400, 6600, 7800]


@pytest.mark.parametrize(
    ("values", "resolution"),
    [(CONFIG_A, 64), (PGGAN, 32), ({**CONFIG_A, "lod_transition_kimg": 0.0}, 64), ({**PGGAN, "lod_training_kimg": 0.0}, 32),
     ({**CONFIG_A, "lod_training_kimg": 0.3, "lod_transition_kimg": 0.1}, 256)],
)  # fmt: skip
def test_stages_are_what_walking_through_the_steps_finds(values: dict[str, Any], resolution: int) -> None:
    params = with_values(**values)
    starts = steps_of(values, resolution, stages(params, resolution)[-1].start + 100_000)
    resolutions = [resolution >> math.floor(lod_at(params, resolution, nimg)) for nimg in starts]
    assert resolutions[-1] == resolution
    changes = [0] + [i for i in range(1, len(starts)) if resolutions[i] != resolutions[i - 1]]
    assert [stage.start for stage in stages(params, resolution)] == [starts[i] for i in changes]
    assert [stage.step for stage in stages(params, resolution)] == changes
    for i in range(1, len(starts), 997):
        now, before = moment(params, resolution, starts[i]), moment(params, resolution, starts[i - 1])
        assert (now.step, previous_step(params, resolution, starts[i])) == (i, starts[i - 1])
        assert now.new_lod == (
            math.floor(now.lod) != math.floor(before.lod) or math.ceil(now.lod) != math.ceil(before.lod)
        )


def test_adam_starts_anew_when_a_fade_begins_and_when_it_ends() -> None:
    params = with_values(**CONFIG_A)
    starts = steps_of(CONFIG_A, 32, 4_000_000)
    near = [nimg for nimg in starts if nimg % 600_000 < 1000]
    found = [nimg for nimg in near if moment(params, 32, nimg).new_lod]
    assert [nimg // 1000 for nimg in found] == [600, 1200, 1800, 2400]


def test_the_end_of_a_growing_run_is_a_whole_batch_of_its_last_resolution() -> None:
    params = with_values(**CONFIG_A)
    for total in (0.1, 599.0, 601.0, 2000.0, 25000.0):
        params = with_values(**CONFIG_A, total_kimg=total)
        end = end_nimg(params, 1024)
        starts = steps_of(CONFIG_A, 1024, round(total * 1000)) if total < 3000 else [end]
        assert end == next(nimg for nimg in starts if nimg >= total * 1000)


def test_ticks_follow_the_resolution() -> None:
    params = with_values(**PGGAN)
    starts = steps_of(PGGAN, 32, 4_200_000)
    starts = [nimg for nimg in starts if nimg % 20_000 < 1600]
    ticks = [ticks_passed(params, 32, nimg) for nimg in starts]
    assert ticks == sorted(ticks)
    assert max(b - a for a, b in pairwise(ticks)) == 1
    at = [starts[i] / 1000 for i in range(1, len(ticks)) if ticks[i] > ticks[i - 1]]
    rounded = [round(kimg) for kimg in at]
    assert rounded[:5] == [160, 320, 480, 600, 740]  # 4 px: every 160, and at the end of the stage
    assert [kimg for kimg in rounded if 600 < kimg <= 1800] == [740, 880, 1020, 1160, 1300, 1440, 1580, 1720, 1800]
    gaps = [b - a for a, b in pairwise(at) if a > 4010]
    assert all(abs(gap - 100) < 0.3 for gap in gaps)


def test_ticks_without_growing_are_multiples() -> None:
    params = with_values(tick_kimg=3.0)
    assert [ticks_passed(params, 16, nimg) for nimg in (0, 2999, 3000, 5999, 6016)] == [0, 0, 1, 1, 2]
