"""What happens when: everything here is a pure function of params and nimg, the number of real images shown so far.

Progressive growing (Karras et al. 2018, section 2 and appendix A) cuts training into stages of one resolution each, in which
batch size, learning rates and ticks may differ. Without growing there is one stage.
"""

import math
from dataclasses import dataclass

from ganops.config import Params
from ganops.config_train import TrainParams


def kimg_to_nimg(kimg: float) -> int:
    """Images in `kimg` thousands of images (1 kimg = exactly 1000)."""
    return round(kimg * 1000)


@dataclass(frozen=True)
class Stage:
    """A part of training at one resolution.

    Attributes:
        start: nimg at which its first step starts.
        step: steps before it.
        resolution: nominal size of the images that D sees, px.
        params: section `train` with the values of this resolution: batch_size, batch_gpu, G_lr, D_lr, tick_kimg.
    """

    start: int
    step: int
    resolution: int
    params: TrainParams


@dataclass(frozen=True)
class Moment:
    """What holds for the step that starts at some nimg.

    Attributes:
        step: steps before it.
        lod: 0 at the full resolution, 1 at half of it; a fraction while a new resolution fades in.
        new_lod: the step before had another floor(lod) or ceil(lod): a fade begins or ended.
        params: see `Stage`.
    """

    step: int
    lod: float
    new_lod: bool
    params: TrainParams


def lod_at(params: TrainParams, resolution: int, nimg: int) -> float:
    """Level of detail at `nimg`: log2 of the full `resolution` over the present one, a fraction while fading.

    Each resolution is trained for lod_training_kimg, then the next one fades in over lod_transition_kimg.
    Source: Karras et al. 2018, appendix A; without the `- phase` that a much copied listing omits, nothing would grow
    beyond the second resolution.
    """
    if params.lod_initial_resolution is None:
        return 0.0
    train, fade = kimg_to_nimg(params.lod_training_kimg), kimg_to_nimg(params.lod_transition_kimg)
    phase, within = divmod(nimg, train + fade)
    lod = math.log2(resolution / params.lod_initial_resolution) - phase
    if fade:
        lod -= max(within - train, 0) / fade
    return max(lod, 0.0)


def stages(params: TrainParams, resolution: int) -> tuple[Stage, ...]:
    """The stages of training in order; each begins with the first step in which its resolution fades in.

    Args:
        params: section `train`.
        resolution: nominal size of the training images, px.
    """
    found: list[Stage] = []
    start = step = 0
    while True:
        present = resolution >> math.floor(lod_at(params, resolution, start))
        found.append(Stage(start, step, present, _at_resolution(params, present)))
        if present == resolution:
            return tuple(found)
        count = _steps_until(params, resolution, start, found[-1].params.batch_size)
        start, step = start + count * found[-1].params.batch_size, step + count


def _steps_until(params: TrainParams, resolution: int, start: int, batch_size: int) -> int:
    """Steps from `start` to the first one with a smaller floor(lod)."""
    train, fade = kimg_to_nimg(params.lod_training_kimg), kimg_to_nimg(params.lod_transition_kimg)
    # From here on: after `train` images of a phase, when fading begins, or without a fade at the end of the phase.
    level = math.floor(lod_at(params, resolution, start))
    phase = math.log2(resolution / (params.lod_initial_resolution or resolution)) - level
    change = round(phase) * (train + fade) + train
    count = max(-(-(change - start) // batch_size), 1)
    while math.floor(lod_at(params, resolution, start + count * batch_size)) == level:
        count += 1  # the step that starts exactly where the fade begins is of the old resolution
    return count


def _at_resolution(params: TrainParams, resolution: int) -> TrainParams:
    changes = {
        "batch_size": params.batch_size_by_resolution.get(resolution, params.batch_size),
        "batch_gpu": params.batch_gpu_by_resolution.get(resolution, params.batch_gpu),
        "G_lr": params.lr_by_resolution.get(resolution, params.G_lr),
        "D_lr": params.lr_by_resolution.get(resolution, params.D_lr),
        "tick_kimg": params.tick_kimg_by_resolution.get(resolution, params.tick_kimg),
    }
    return params.model_copy(update=changes)


def stage_at(params: TrainParams, resolution: int, nimg: int) -> Stage:
    """The stage of the step that starts at `nimg`."""
    return next(stage for stage in reversed(stages(params, resolution)) if stage.start <= nimg)


def previous_step(params: TrainParams, resolution: int, nimg: int) -> int:
    """Where the step started that ended at `nimg` > 0."""
    return nimg - stage_at(params, resolution, nimg - 1).params.batch_size


def moment(params: TrainParams, resolution: int, nimg: int) -> Moment:
    """What holds for the step that starts at `nimg`, a multiple of batches from the start.

    Args:
        params: section `train`.
        resolution: nominal size of the training images, px.
        nimg: images shown so far.
    """
    stage = stage_at(params, resolution, nimg)
    lod, new_lod = lod_at(params, resolution, nimg), False
    if nimg and params.lod_initial_resolution is not None:
        before = lod_at(params, resolution, previous_step(params, resolution, nimg))
        new_lod = math.floor(lod) != math.floor(before) or math.ceil(lod) != math.ceil(before)
    step = stage.step + (nimg - stage.start) // stage.params.batch_size
    return Moment(step, lod, new_lod, stage.params)


def end_nimg(params: TrainParams, resolution: int) -> int:
    """Where training ends: the first whole batch at or after `total_kimg`."""
    total = kimg_to_nimg(params.total_kimg)
    stage = stage_at(params, resolution, total - 1)
    batch_size = stage.params.batch_size
    return stage.start + -(-(total - stage.start) // batch_size) * batch_size


def ticks_passed(params: TrainParams, resolution: int, nimg: int) -> int:
    """Ticks by `nimg`: one every tick_kimg, and where tick_kimg changes with the resolution one at the end of a stage."""
    if not params.tick_kimg_by_resolution:
        return intervals_passed(nimg, params.tick_kimg)
    count, following = 0, [*stages(params, resolution)[1:], None]
    for stage, after in zip(stages(params, resolution), following, strict=True):
        tick = kimg_to_nimg(stage.params.tick_kimg)
        if after is None or nimg < after.start:
            return count + (nimg - stage.start) // tick
        count += -(-(after.start - stage.start) // tick)
    raise AssertionError


def intervals_passed(nimg: int, kimg: float) -> int:
    """How often an event with interval `kimg` has come due by `nimg`; 0 for an interval of 0 (never)."""
    return nimg // kimg_to_nimg(kimg) if kimg else 0


def came_due(since: int, nimg: int, kimg: float) -> bool:
    """Whether an event with interval `kimg` came due after `since` and by `nimg`."""
    return intervals_passed(nimg, kimg) > intervals_passed(since, kimg)


def state_is_due(params: Params, nimg: int) -> bool:
    """Whether a state is saved at `nimg` > 0, where a step has ended."""
    return came_due(previous_step(params.train, params.prepare.nominal, nimg), nimg, params.run.state_kimg)


def ema_beta(nimg: int, params: TrainParams) -> float:
    """Decay of G_ema in the step that starts at `nimg`: a half-life of `ema_kimg`, at most `ema_rampup` of nimg.

    Args:
        nimg: images shown before the step.
        params: section `train` at this moment; with ema_beta set, that is the decay, whatever the batch (PGGAN).
    Source: Karras et al. 2018 (progressive growing), section 4; as a half-life in Karras et al. 2020, the ramp there (ADA).
    """
    if params.ema_beta is not None:
        return params.ema_beta
    half_life = params.ema_kimg * 1000.0
    if params.ema_rampup is not None:
        half_life = min(half_life, nimg * params.ema_rampup)
    return float(0.5 ** (params.batch_size / max(half_life, 1e-8)))


def lr_factor(nimg: int, rampup_kimg: float) -> float:
    """Linear warm-up from 0 to 1 over `rampup_kimg`, for the step that starts at `nimg`; 1 without warm-up."""
    return min((nimg + 1) / kimg_to_nimg(rampup_kimg), 1.0) if rampup_kimg else 1.0


@dataclass(frozen=True)
class AdamValues:
    """Adam's values after the correction for lazy regularisation."""

    lr: float
    beta1: float
    beta2: float
    eps: float


def adam_values(params: TrainParams, lr: float, weight: float, interval: int) -> AdamValues:
    """Lazy regularisation every k > 1 steps adds one step to k: lr c, beta^c with c = k / (k + 1).

    With k = 1 the penalty is part of the main loss, and there is nothing to correct.

    Args:
        params: section `train`.
        lr: learning rate.
        weight: of the penalty; 0 = none.
        interval: k.
    Source: Karras et al. 2020 (StyleGAN2), section 3.1 and appendix B.
    """
    c = interval / (interval + 1) if weight > 0 and interval > 1 else 1.0
    return AdamValues(lr * c, params.beta1**c, params.beta2**c, params.eps)


def phase_is_due(step: int, interval: int) -> bool:
    """Whether something runs in this step: every `interval` steps, from the first (step 0)."""
    return step % interval == 0
