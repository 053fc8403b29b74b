"""Layers of PGGAN and StyleGAN1: as those of `ganops.networks.layers`, with the activation's gain in the weights.

There the gain sqrt(2) of leaky ReLU comes after the activation and so applies to biases too; here it is part of the weights'
gain, and biases enter as they are stored. At initialisation, where biases are 0, both are the same function.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganops.networks.growing import average, upscale
from ganops.networks.layers import draw_normal
from ganops.ops.bias_act import ACTIVATION_GAINS, bias_act
from ganops.ops.conv2d_resample import conv2d_resample
from ganops.ops.convolution import conv2d, conv_transpose2d
from ganops.ops.upfirdn2d import filter2d, setup_filter

BLUR_TAPS = (1, 2, 1)
"""Of StyleGAN1's blur around changes of resolution (Karras et al. 2019, section 2, config B)."""
SHIFTS = ((0, 0), (0, 1), (1, 0), (1, 1))
"""Of the four pixels of a square, as (rows, columns)."""

FUSED_FROM = 128
"""Nominal resolution from which StyleGAN1 fuses convolutions with changes of resolution (the released code)."""
LRELU_GAIN = ACTIVATION_GAINS["lrelu"]


class EarlyDense(nn.Module):
    """Fully connected layer.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        activation: "linear" or "lrelu".
        gain: of the weights; sqrt(2) before a leaky ReLU.
        lr_multiplier: relative learning rate: weights are stored divided by it; weights and biases are used times it.
        rng: for the initial weights; None = zeros.
    """

    def __init__(
        self,
        *,
        in_features: int,
        out_features: int,
        activation: Literal["linear", "lrelu"],
        gain: float,
        lr_multiplier: float,
        rng: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.activation: Literal["linear", "lrelu"] = activation
        self.lr_multiplier = lr_multiplier
        self.weight = nn.Parameter(draw_normal(out_features, in_features, rng=rng) / lr_multiplier)
        self.bias = nn.Parameter(torch.zeros(out_features))
        self.weight_gain = gain * lr_multiplier / in_features**0.5

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_features] -> [N, out_features]."""
        bias = self.bias if self.lr_multiplier == 1 else self.bias * self.lr_multiplier
        return bias_act(F.linear(x, self.weight * self.weight_gain, bias), None, activation=self.activation, gain=1.0)


class EarlyConv(nn.Module):
    """Convolution with a change of resolution by squares of pixels, a blur, bias and activation; a correlation always.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: 1 or 3; 3 where the resolution changes.
        bias: have a bias.
        activation: "linear" or "lrelu".
        gain: of the weights; sqrt(2) before a leaky ReLU.
        up: 2 = every pixel becomes a square of four before the convolution.
        down: 2 = squares of four pixels are averaged after the convolution, before bias and activation.
        fused: compute convolution and change of resolution as one convolution with a stride and a 4x4 kernel, the sum of the
            3x3 kernel at four shifts: the same function with less work for a GPU.
        blur: filter with [1, 2, 1]: behind an enlarging convolution, before a shrinking one.
        clamp: limits the activations to +-clamp; None = no limit.
        rng: for the initial weights; None = zeros.
    Source: Karras et al. 2018, appendix A (layers); Karras et al. 2019, section 2 (blur). The released code convolves where
        it enlarges in fused form and correlates elsewhere; its fused kernels would have to be turned around to be used here.
    """

    blur_filter: Tensor

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool,
        activation: Literal["linear", "lrelu"],
        gain: float,
        up: int,
        down: int,
        fused: bool,
        blur: bool,
        clamp: float | None,
        rng: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.activation: Literal["linear", "lrelu"] = activation
        self.up = up
        self.down = down
        self.fused = fused
        self.blur = blur
        self.clamp = clamp
        self.weight = nn.Parameter(draw_normal(out_channels, in_channels, kernel_size, kernel_size, rng=rng))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.weight_gain = gain / (in_channels * kernel_size**2) ** 0.5
        self.register_buffer("blur_filter", setup_filter(BLUR_TAPS, separable=True), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, out_channels, H * up / down, W * up / down], x's dtype."""
        weight = (self.weight * self.weight_gain).to(x.dtype)
        if self.up == 2:
            x = _convolve_up(x, weight, self.fused)
            x = filter2d(x, self.blur_filter) if self.blur else x
        elif self.down == 2:
            x = filter2d(x, self.blur_filter) if self.blur else x
            x = _convolve_down(x, weight, self.fused)
        else:
            x = conv2d_resample(x, weight, None, padding=weight.shape[2] // 2)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return bias_act(x, bias, activation=self.activation, gain=1.0, clamp=self.clamp)


def pixel_norm(x: Tensor) -> Tensor:
    """[N, C, H, W] scaled to mean square 1 per pixel; x's dtype.

    Source: Karras et al. 2018, section 4.2. The mean square is taken in float32 at least: 256^2 is beyond float16, whose
        factors are kept small by a larger epsilon.
    """
    epsilon = 1e-4 if x.dtype == torch.float16 else 1e-8
    squares = (x.float() if x.element_size() < 4 else x).square().mean(dim=1, keepdim=True)
    return x * (squares + epsilon).rsqrt().to(x.dtype)


def instance_norm(x: Tensor) -> Tensor:
    """[N, C, H, W] with mean 0 and variance 1 per image and channel; x's dtype. Computed in float32 at least."""
    y = x.float() if x.element_size() < 4 else x
    y = y - y.mean(dim=[2, 3], keepdim=True)
    return (y * (y.square().mean(dim=[2, 3], keepdim=True) + 1e-8).rsqrt()).to(x.dtype)


def _convolve_up(x: Tensor, weight: Tensor, fused: bool) -> Tensor:
    if not fused:
        return conv2d(upscale(x, 2), weight, padding=1)
    # A transposed convolution turns kernels around.
    return conv_transpose2d(x, _sum_of_shifts(weight.flip([2, 3])).transpose(0, 1), stride=2, padding=1)


def _convolve_down(x: Tensor, weight: Tensor, fused: bool) -> Tensor:
    if not fused:
        return average(conv2d(x, weight, padding=1), 2)
    return conv2d(x, _sum_of_shifts(weight) * 0.25, stride=2, padding=1)


def _sum_of_shifts(weight: Tensor) -> Tensor:
    """[O, I, k, k] -> [O, I, k + 1, k + 1]: acts on single pixels as the given kernel does on squares of four."""
    k = weight.shape[2] + 1
    padded = F.pad(weight, [1, 1, 1, 1])
    parts = [padded[:, :, row : row + k, column : column + k] for row, column in SHIFTS]
    return parts[0] + parts[1] + parts[2] + parts[3]
