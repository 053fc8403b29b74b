"""The image-space filter of ADA: four octaves of frequencies, each amplified or damped, as one FIR filter per image.

Source: Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data", section 2.3 and appendix B.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ganops.ops.convolution import conv2d
from ganops.training.augment_pixels import reflect_pad
from ganops.training.batches import to_device

SYM2 = (-0.12940952255092145, 0.22414386804185735, 0.836516303737469, 0.48296291314469025)
"""The low-pass decomposition filter H of Daubechies' wavelet "sym2": |H(z)|^2 + |H(-z)|^2 = 2."""
BANDS = 4
EXPECTED_POWER = (10 / 13, 1 / 13, 1 / 13, 1 / 13)
"""Of natural images in the four bands, the lowest first: their spectrum falls as 1 / f."""


def filter_bank() -> Tensor:
    """Zero-phase FIR filters of the bands [0, pi/8], [pi/8, pi/4], [pi/4, pi/2] and [pi/2, pi]; they add up to 1.

    With low-pass L(z) = H(z) H(1/z) / 2 and high-pass U(z) = H(-z) H(-1/z) / 2 = 1 - L(z), one step of a wavelet
    transform splits the lowest band B(z) = L(z) L(z^2) ... once more: B(z) = B(z) L(z^k) + B(z) U(z^k).

    Returns:
        [4, 43] float64, symmetric about its middle.
    """
    low = np.convolve(SYM2, SYM2[::-1]) / 2
    high = np.eye(1, len(low), len(low) // 2)[0] - low
    lowest = np.ones(1)
    bands: list[NDArray[np.float64]] = []
    for step in range(BANDS - 1):
        spread_low, spread_high = np.zeros([2, (len(low) - 1) * 2**step + 1])
        spread_low[:: 2**step], spread_high[:: 2**step] = low, high
        bands.insert(0, np.convolve(lowest, spread_high))
        lowest = np.convolve(lowest, spread_low)
    bands.insert(0, lowest)
    return torch.from_numpy(np.stack([np.pad(band, (len(lowest) - len(band)) // 2) for band in bands]))


BANK = filter_bank()


def filter_taps(factors: Tensor) -> Tensor:
    """One filter per image.

    Args:
        factors: [N, 4] float64, the amplification drawn for each band, lowest first; 1 = none. Each is followed by a
            normalisation of all bands, which keeps the power of natural images, before the next one.
    Returns:
        [N, 43] float64, for both axes. All factors 1: the identity up to rounding.
    """
    power = torch.tensor(EXPECTED_POWER, dtype=factors.dtype)
    gains = torch.ones_like(factors)
    for band in range(BANDS):
        own = torch.ones_like(factors)
        own[:, band] = factors[:, band]
        gains = gains * own / (own.square() @ power).sqrt()[:, None]
    return gains @ BANK


def apply_filter(img: Tensor, taps: Tensor) -> Tensor:
    """Filters images along both axes; they are continued by reflection.

    Args:
        img: [N, C, H, W], H and W at least 2.
        taps: [N, 43] on the CPU, symmetric, from `filter_taps`.
    Returns:
        [N, C, H, W]. Differentiable any number of times; within `differentiated_twice` all derivatives on CUDA are
        convolutions with these filters.
    """
    N, C, H, W = img.shape
    length = taps.shape[1]
    half = length // 2
    x = reflect_pad(img, half, half, half, half).reshape(1, N * C, H + 2 * half, W + 2 * half)
    weight = to_device(taps.to(img.dtype).repeat_interleave(C, dim=0), img.device)
    x = conv2d(x, weight.reshape(N * C, 1, 1, length), groups=N * C)
    x = conv2d(x, weight.reshape(N * C, 1, length, 1), groups=N * C)
    return x.reshape(N, C, H, W)
