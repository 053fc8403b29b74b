"""What happens when: everything here is a pure function of nimg, the number of real images shown so far."""

import math
from dataclasses import dataclass

from ganops.config_train import TrainParams


def kimg_to_nimg(kimg: float) -> int:
    """Images in `kimg` thousands of images (1 kimg = exactly 1000)."""
    return round(kimg * 1000)


def end_nimg(total_kimg: float, batch_size: int) -> int:
    """Where training ends: the first whole batch at or after `total_kimg`."""
    return math.ceil(kimg_to_nimg(total_kimg) / batch_size) * batch_size


def intervals_passed(nimg: int, kimg: float) -> int:
    """How often an event with interval `kimg` has come due by `nimg`; 0 for an interval of 0 (never)."""
    return nimg // kimg_to_nimg(kimg) if kimg else 0


def comes_due(nimg: int, batch_size: int, kimg: float) -> bool:
    """Whether an event with interval `kimg` comes due in the step that ends at `nimg`."""
    return intervals_passed(nimg, kimg) > intervals_passed(nimg - batch_size, kimg)


def ema_beta(nimg: int, batch_size: int, ema_kimg: float, ema_rampup: float | None) -> float:
    """Decay of G_ema in one step: a half-life of `ema_kimg`, at most `ema_rampup` of what was shown so far.

    Source: Karras et al. 2018 (progressive growing), section 4, as a half-life; the ramp from Karras et al. 2020 (ADA).
    """
    half_life = ema_kimg * 1000.0
    if ema_rampup is not None:
        half_life = min(half_life, nimg * ema_rampup)
    return float(0.5 ** (batch_size / max(half_life, 1e-8)))


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


def adam_values(params: TrainParams, lr: float, regularised: bool, interval: int) -> AdamValues:
    """Lazy regularisation every k steps adds one step to k: lr c, beta^c with c = k / (k + 1).

    Source: Karras et al. 2020 (StyleGAN2), section 3.1 and appendix B.
    """
    c = interval / (interval + 1) if regularised else 1.0
    return AdamValues(lr * c, params.beta1**c, params.beta2**c, params.eps)


def phase_is_due(nimg: int, batch_size: int, interval: int) -> bool:
    """Whether a regularisation phase runs in the step that starts at `nimg`: every `interval` steps, from the first."""
    return nimg // batch_size % interval == 0
