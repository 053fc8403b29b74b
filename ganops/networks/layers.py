"""Layers of the StyleGAN2 family: equalised learning rate, gain after the activation, precision by argument.

Weights are drawn from N(0, 1) and scaled where they are used, by 1 / sqrt(fan_in), so that Adam moves all layers at
the same relative speed (Karras et al. 2018, section 4.1). Linear and leaky-ReLU activations commute with a positive
gain, so the gain is multiplied into weights and biases, which are smaller than activations.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganops.ops.bias_act import ACTIVATION_GAINS, bias_act
from ganops.ops.conv2d_resample import conv2d_resample
from ganops.ops.modulated_conv2d import modulated_conv2d
from ganops.ops.upfirdn2d import setup_filter

RESAMPLE_TAPS = (1, 3, 3, 1)
"""Of all resampling in config-b to f (Karras et al. 2020, appendix B)."""

Precision = Literal["float32", "bfloat16", "float16"]
NoiseMode = Literal["random", "const", "none"]
NoiseSource = torch.Generator | list[torch.Generator] | None
"""Of random noise: one generator for the batch, or one per image, so that an image does not depend on its batch."""
Architecture = Literal["skip", "resnet", "orig"]


def draw_normal(*shape: int, rng: torch.Generator | None) -> Tensor:
    """N(0, 1) float32 from `rng` (on CPU), or zeros without one: for weights that are loaded, or on the meta device."""
    return torch.zeros(shape) if rng is None else torch.randn(shape, generator=rng)


def draw_noise(count: int, size: tuple[int, int], device: torch.device, rng: NoiseSource) -> Tensor:
    """[count, 1, *size] N(0, 1), float32 whatever the network computes in: the same for all precisions."""
    if isinstance(rng, list):
        return torch.cat([draw_noise(1, size, device, image_rng) for image_rng in rng])
    return torch.randn([count, 1, *size], generator=rng, device=device, dtype=torch.float32)


def layer_noise(noise_const: Tensor, count: int, mode: NoiseMode, rng: NoiseSource) -> Tensor | None:
    """Noise of one layer for `count` images.

    Args:
        noise_const: [H, W], what mode "const" gives to all images; its size and device are those of any noise.
        count: of images.
        mode: "random", "const" or "none".
        rng: for "random": one generator for the batch, or one per image.
    Returns:
        [count, 1, H, W] float32 ("random"), [H, W] ("const") or None.
    """
    if mode == "random":
        height, width = noise_const.shape
        return draw_noise(count, (height, width), noise_const.device, rng)
    return noise_const if mode == "const" else None


def block_dtype(precision: Precision, resolution: int, top: int, low_precision_resolutions: int) -> torch.dtype | None:
    """The low precision that a block computes in, or None where it computes in the dtype of the weights.

    Args:
        precision: of the low-precision blocks.
        resolution: of the block, nominal: 4 for the base grid.
        top: of the network's images, likewise.
        low_precision_resolutions: how many resolutions, from the top down; the base grid is never one of them.
    """
    low = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
    return low if resolution * 2**low_precision_resolutions > top and resolution >= 8 else None


def fast_format(x: Tensor) -> Tensor:
    """[N, C, H, W] in the memory format that convolutions are fastest in.

    channels_last on CPU (measured: 15 % of a step at 16x16, nothing lost above) and for tensor cores in low precision;
    float32 on CUDA stays as it is.
    """
    if x.device.type == "cpu" or x.element_size() < 4:
        return x.contiguous(memory_format=torch.channels_last)
    return x


class Dense(nn.Module):
    """Fully connected layer.

    Args:
        in_features: width of the input.
        out_features: width of the output.
        activation: "linear" or "lrelu".
        lr_multiplier: relative learning rate: weights are stored divided by it and used multiplied by it.
        bias_init: initial value of all biases.
        rng: for the initial weights; None = zeros.
    """

    def __init__(
        self,
        *,
        in_features: int,
        out_features: int,
        activation: Literal["linear", "lrelu"],
        lr_multiplier: float,
        bias_init: float,
        rng: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.activation: Literal["linear", "lrelu"] = activation
        self.weight = nn.Parameter(draw_normal(out_features, in_features, rng=rng) / lr_multiplier)
        self.bias = nn.Parameter(torch.full([out_features], float(bias_init)))
        gain = ACTIVATION_GAINS[activation]
        self.weight_gain = gain * lr_multiplier / in_features**0.5
        self.bias_gain = gain * lr_multiplier

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """[N, in_features] -> [N, out_features], times `gain`."""
        bias = self.bias if self.bias_gain * gain == 1 else self.bias * (self.bias_gain * gain)
        x = F.linear(x, self.weight * (self.weight_gain * gain), bias)
        return bias_act(x, None, activation=self.activation, gain=1.0)


class Conv(nn.Module):
    """Convolution, optionally to half the resolution or twice it, with bias and activation.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        kernel_size: 1 or 3.
        bias: have a bias; without one the activation must be "linear".
        activation: "linear" or "lrelu".
        up: 1 or 2.
        down: 1 or 2.
        clamp: limits the activations to +-clamp, scaled by the layer's gain; None = no limit.
        rng: for the initial weights; None = zeros.
    """

    resample_filter: Tensor

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        bias: bool,
        activation: Literal["linear", "lrelu"],
        up: int,
        down: int,
        clamp: float | None,
        rng: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.activation: Literal["linear", "lrelu"] = activation
        self.up = up
        self.down = down
        self.clamp = clamp
        self.weight = nn.Parameter(draw_normal(out_channels, in_channels, kernel_size, kernel_size, rng=rng))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.activation_gain = ACTIVATION_GAINS[activation]
        self.weight_gain = self.activation_gain / (in_channels * kernel_size**2) ** 0.5
        self.register_buffer("resample_filter", setup_filter(RESAMPLE_TAPS, separable=True), persistent=False)

    def forward(self, x: Tensor, gain: float = 1.0) -> Tensor:
        """[N, in_channels, H, W] -> [N, out_channels, H * up / down, W * up / down], times `gain`; x's dtype."""
        weight = (self.weight * (self.weight_gain * gain)).to(x.dtype)
        padding = weight.shape[2] // 2
        # Enlarging convolutions are true convolutions, the others correlations: as the published weights are stored.
        flip_weight = self.up == 1
        x = conv2d_resample(x, weight, self.resample_filter, self.up, self.down, padding, flip_weight=flip_weight)
        bias = None if self.bias is None else (self.bias * (self.activation_gain * gain)).to(x.dtype)
        clamp = None if self.clamp is None else self.clamp * gain
        return bias_act(x, bias, activation=self.activation, gain=1.0, clamp=clamp)


class SynthesisLayer(nn.Module):
    """Style-modulated 3x3 convolution, optionally to twice the resolution, with noise, bias and leaky ReLU.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        w_dim: width of w.
        size: height and width of the output.
        up: 1 or 2.
        clamp: as in `Conv`.
        rng: for the initial weights; None = zeros.
    """

    noise_const: Tensor
    resample_filter: Tensor

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        size: tuple[int, int],
        up: int,
        clamp: float | None,
        rng: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.up = up
        self.clamp = clamp
        self.affine = style_affine(w_dim, in_channels, rng)
        self.weight = nn.Parameter(draw_normal(out_channels, in_channels, 3, 3, rng=rng))
        self.noise_strength = nn.Parameter(torch.zeros([]))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.register_buffer("noise_const", draw_normal(*size, rng=rng))
        self.register_buffer("resample_filter", setup_filter(RESAMPLE_TAPS, separable=True), persistent=False)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None, gain: float = 1.0) -> Tensor:
        """[N, in_channels, H, W], [N, w_dim] -> [N, out_channels, H * up, W * up], times `gain`; x's dtype.

        `noise` as from `layer_noise`.
        """
        total_gain = ACTIVATION_GAINS["lrelu"] * gain
        if noise is not None:
            noise = (noise * (self.noise_strength * total_gain)).to(x.dtype)
        return modulated_conv2d(
            x,
            self.weight,
            self.affine(w),
            noise=noise,
            up=self.up,
            padding=1,
            resample_filter=self.resample_filter,
            flip_weight=self.up == 1,
            gain=total_gain,
            bias=(self.bias * total_gain).to(x.dtype),
            activation="lrelu",
            clamp=None if self.clamp is None else self.clamp * gain,
        )


class ToRGB(nn.Module):
    """Style-modulated 1x1 convolution to image channels, not demodulated.

    Args:
        in_channels: channels of the input.
        img_channels: channels of the image.
        w_dim: width of w.
        clamp: limits the image to +-clamp; None = no limit.
        rng: for the initial weights; None = zeros.
    """

    def __init__(
        self, *, in_channels: int, img_channels: int, w_dim: int, clamp: float | None, rng: torch.Generator | None
    ) -> None:
        super().__init__()
        self.clamp = clamp
        self.affine = style_affine(w_dim, in_channels, rng)
        self.weight = nn.Parameter(draw_normal(img_channels, in_channels, 1, 1, rng=rng))
        self.bias = nn.Parameter(torch.zeros(img_channels))
        self.weight_gain = in_channels**-0.5

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """[N, in_channels, H, W], [N, w_dim] -> [N, img_channels, H, W], x's dtype."""
        # The gain belongs to the styles, so float16 sees numbers of the right size.
        styles = self.affine(w, gain=self.weight_gain)
        return modulated_conv2d(x, self.weight, styles, demodulate=False, bias=self.bias.to(x.dtype), clamp=self.clamp)


def style_affine(w_dim: int, channels: int, rng: torch.Generator | None) -> Dense:
    """w -> styles; at the start the styles are about 1."""
    return Dense(
        in_features=w_dim, out_features=channels, activation="linear", lr_multiplier=1.0, bias_init=1.0, rng=rng
    )


class MinibatchStd(nn.Module):
    """Appends the standard deviation over groups of the batch as constant feature maps.

    Args:
        group_size: images per group, or the whole batch if that is smaller.
        num_channels: appended maps; each measures its share of the input's channels. 0 = none.
    Source: Karras et al. 2018, section 3. Members of a group are N / group apart, as published.
    """

    def __init__(self, *, group_size: int, num_channels: int) -> None:
        super().__init__()
        self.group_size = group_size
        self.num_channels = num_channels

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C + num_channels, H, W].

        Raises:
            ValueError: N is not a multiple of the group size.
        """
        if not self.num_channels:
            return x
        N, C, H, W = x.shape
        group = min(self.group_size, N)
        if N % group:
            raise ValueError(f"A batch of {N} images cannot be split into groups of {group} for minibatch std.")
        F_ = self.num_channels
        y = x.reshape(group, N // group, F_, C // F_, H, W)
        # Tensor.var over this axis is several times slower on CPU.
        y = (y - y.mean(dim=0)).square().mean(dim=0)
        y = (y + 1e-8).sqrt()  # [N / group, F, C / F, H, W]
        y = y.mean(dim=[2, 3, 4]).repeat(group, 1)  # [N, F]
        return torch.cat([x, y[:, :, None, None].expand(N, F_, H, W)], dim=1)
