"""Convolution whose weights are scaled by a style, per sample."""

import torch
from torch import Tensor

from ganops.ops.bias_act import Activation, bias_act, bias_act_reference
from ganops.ops.conv2d_resample import conv2d_resample, conv2d_resample_reference

EPSILON = 1e-8
"""Under the root of the demodulation."""


def modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int = 0,
    resample_filter: Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    gain: float = 1.0,
    bias: Tensor | None = None,
    activation: Activation = "linear",
    clamp: float | None = None,
) -> Tensor:
    """activation(gain * conv(x, weight * styles / norm) + noise + bias), with the norm of each sample's scaled kernels.

    Args:
        x: [N, I, H, W] in the dtype to compute in.
        weight: [O, I, k, k], float32 or float64; cast to x's dtype here, after the norms are taken.
        styles: [N, I], of weight's dtype.
        noise: broadcasts to the result, x's dtype; not scaled. None = no noise.
        up: factor of the enlargement.
        down: factor of the shrinking.
        padding: of the convolution.
        resample_filter: as `conv2d_resample`.
        demodulate: divide by the norm; without it the kernels are weight * styles.
        flip_weight: True = correlation, False = convolution.
        gain: factor of the convolution, free of charge (it goes into the norm or the styles).
        bias: [O], x's dtype; not scaled. None = no bias.
        activation: of the sum; without a gain of its own.
        clamp: the result is limited to [-clamp, clamp]; None = no limit.
    Returns:
        [N, O, H', W'], x's dtype. Differentiable any number of times in all tensors.
    Source: Karras et al. 2020, section 2.2, equations 1-3. Activations are scaled instead of weights, conv(x, W s d) =
        d conv(s x, W): one convolution for the whole batch, and no weights per sample in path length regularisation.
    """
    k = weight.shape[2]
    if demodulate and x.dtype == torch.float16:
        # Keeps products inside float16's range. The norm divides it out again.
        scale = weight.detach().abs().amax(dim=[1, 2, 3], keepdim=True) * (weight.shape[1] * k * k) ** 0.5
        weight = weight / scale
        styles = styles / styles.detach().abs().amax(dim=1, keepdim=True)
    norms = _inverse_norms(weight, styles) * gain if demodulate else None  # [N, O]

    if k == 1 and up == 1 and down == 1 and padding == 0:
        # A product of matrices per sample: no scaled copy of x.
        matrices = weight.flatten(1) * (styles if norms is not None else styles * gain)[:, None, :]
        if norms is not None:
            matrices = matrices * norms[:, :, None]
        N, _, H, W = x.shape
        if x.is_contiguous():
            y = torch.bmm(matrices.to(x.dtype), x.flatten(2)).reshape(N, -1, H, W)
        else:  # keeps channels_last, in the gradients too
            y = torch.bmm(x.permute(0, 2, 3, 1).flatten(1, 2), matrices.to(x.dtype).transpose(1, 2))
            y = y.reshape(N, H, W, -1).permute(0, 3, 1, 2)
        return bias_act(y, bias, activation=activation, gain=1.0, clamp=clamp, noise=noise)

    if norms is None and gain != 1:
        styles = styles * gain
    x = x * styles.to(x.dtype)[:, :, None, None]
    weight = weight.to(x.dtype)
    y = conv2d_resample(x, weight, resample_filter, up, down, padding, flip_weight=flip_weight)
    scale = None if norms is None else norms.to(x.dtype)
    return bias_act(y, bias, activation=activation, gain=1.0, clamp=clamp, scale=scale, noise=noise)


def modulated_conv2d_reference(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int = 0,
    resample_filter: Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    gain: float = 1.0,
    bias: Tensor | None = None,
    activation: Activation = "linear",
    clamp: float | None = None,
) -> Tensor:
    """The definition of `modulated_conv2d`, one sample at a time: the same arguments, result and gradients."""
    images = []
    for image, style in zip(x, styles, strict=True):
        kernel = weight * style[None, :, None, None]
        if demodulate:
            kernel = kernel / (kernel.square().sum(dim=[1, 2, 3], keepdim=True) + EPSILON).sqrt()
        kernel = (kernel * gain).to(x.dtype)
        image = image[None]
        images.append(
            conv2d_resample_reference(image, kernel, resample_filter, up, down, padding, flip_weight=flip_weight)
        )
    return bias_act_reference(torch.cat(images), bias, 1, activation, None, 1.0, clamp, None, noise)


def _inverse_norms(weight: Tensor, styles: Tensor) -> Tensor:
    """[N, O]: 1 / norm of weight * styles over its inputs and taps."""
    squares = weight.square().sum(dim=[2, 3])  # [O, I]
    return (styles.square() @ squares.t() + EPSILON).rsqrt()
