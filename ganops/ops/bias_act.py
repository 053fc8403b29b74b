"""Scale, noise, bias, activation, gain and clamp in one step."""

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ganops.ops.kernels import memory_format, use_kernels

Activation = Literal["linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus", "swish"]

ACTIVATION_GAINS: dict[Activation, float] = {
    # sqrt(2) keeps the second moment through a rectifier (He et al. 2015); after the activation, not in the weights.
    "linear": 1.0,
    "relu": math.sqrt(2),
    "lrelu": math.sqrt(2),
    "tanh": 1.0,
    "sigmoid": 1.0,
    "elu": 1.0,
    "selu": 1.0,
    "softplus": 1.0,
    "swish": math.sqrt(2),
}

LRELU_SLOPE = 0.2
RECTIFIERS = ("linear", "relu", "lrelu")
"""Their slope can be told from the sign of the result, and they commute with a positive factor."""
CODES = {name: code for code, name in enumerate(ACTIVATION_GAINS)}
"""As in csrc/bias_act.cuh."""


def bias_act(
    x: Tensor,
    bias: Tensor | None,
    dim: int = 1,
    activation: Activation = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    scale: Tensor | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """clamp(gain * activation(x * scale + noise + bias)).

    Args:
        x: any shape and floating dtype; the result keeps shape, dtype and memory format.
        bias: [x.shape[dim]] of x's dtype, or None.
        dim: the axis of x that `bias` runs along.
        activation: name of the function.
        alpha: slope of `lrelu` below zero; None = 0.2. Other activations have none.
        gain: factor after the activation; None = the activation's own (`ACTIVATION_GAINS`).
        clamp: the result is limited to [-clamp, clamp], after the gain; None = no limit. At the limit itself the gradient
            may be 0 or 1.
        scale: [N, C] of x's dtype, for x [N, C, H, W]; None = 1.
        noise: [H, W], [1, 1, H, W] or [N, 1, H, W] of x's dtype, for x [N, C, H, W]; None = 0.
    Returns:
        Tensor like x; x itself where nothing is to be done. Differentiable any number of times, in all tensors.
    Source: Karras et al. 2020; conv_clamp from Karras et al. 2020, "Training GANs with limited data".
    """
    gain = ACTIVATION_GAINS[activation] if gain is None else gain
    alpha = _below_zero(activation, alpha)
    if activation == "linear" and gain == 1 and bias is None and clamp is None and scale is None and noise is None:
        return x  # not a kernel that copies
    if use_kernels(x) and (activation not in RECTIFIERS or (gain > 0 and alpha >= 0)):
        if activation not in RECTIFIERS and not (scale is None and noise is None):
            x, scale, noise = _scale_and_add(x, scale, noise), None, None
        result: Tensor = torch.ops.ganops.bias_act(
            x, bias, scale, noise, dim, CODES[activation], alpha, gain, -1.0 if clamp is None else clamp
        )
        return result
    # Plain torch operations. What is made here may be changed in place, which is one allocation fewer.
    ours = not (scale is None and noise is None)
    x = _scale_and_add(x, scale, noise)
    if activation in RECTIFIERS and gain > 0:
        # The factor goes into the addition: one pass over x fewer.
        if bias is not None:
            bias = _along(bias, dim, x.ndim)
            x = x + bias if gain == 1 else torch.add(bias * gain, x, alpha=gain)
        elif gain != 1:
            x = x * gain
        ours = ours or bias is not None or gain != 1
        x = F.leaky_relu_(x, alpha) if ours and activation == "lrelu" and alpha > 0 else _activate(x, activation, alpha)
    else:
        x = _activate(x if bias is None else x + _along(bias, dim, x.ndim), activation, alpha)
        x = x if gain == 1 else x * gain
    return x if clamp is None else x.clamp(-clamp, clamp)


def bias_act_reference(
    x: Tensor,
    bias: Tensor | None,
    dim: int = 1,
    activation: Activation = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    scale: Tensor | None = None,
    noise: Tensor | None = None,
) -> Tensor:
    """The definition of `bias_act`, step by step: the same arguments, result and gradients."""
    if scale is not None:
        x = x * scale[:, :, None, None]
    if noise is not None:
        x = x + noise
    if bias is not None:
        x = x + _along(bias, dim, x.ndim)
    x = _activate(x, activation, _below_zero(activation, alpha))
    x = x * (ACTIVATION_GAINS[activation] if gain is None else gain)
    return x if clamp is None else x.clamp(-clamp, clamp)


def _below_zero(activation: Activation, alpha: float | None) -> float:
    """The slope of a rectifier below zero; 0 for other functions, which have no such number."""
    return {"linear": 1.0, "relu": 0.0, "lrelu": LRELU_SLOPE if alpha is None else alpha}.get(activation, 0.0)


def _scale_and_add(x: Tensor, scale: Tensor | None, noise: Tensor | None) -> Tensor:
    if scale is not None and noise is not None:
        return torch.addcmul(noise, x, scale[:, :, None, None])
    if scale is not None:
        return x * scale[:, :, None, None]
    return x if noise is None else x + noise


def _along(bias: Tensor, dim: int, ndim: int) -> Tensor:
    """A view of `bias` that broadcasts along axis `dim` of a tensor with `ndim` axes."""
    return bias.reshape([-1 if axis == dim else 1 for axis in range(ndim)])


def _activate(x: Tensor, activation: Activation, alpha: float) -> Tensor:
    match activation:
        case "linear":
            return x
        case "relu":
            return F.relu(x)
        case "lrelu":
            return F.leaky_relu(x, alpha)
        case "tanh":
            return torch.tanh(x)
        case "sigmoid":
            return torch.sigmoid(x)
        case "elu":
            return F.elu(x)
        case "selu":
            return F.selu(x)
        case "softplus":
            return F.softplus(x)
        case "swish":
            return torch.sigmoid(x) * x


# Registration. ganops::bias_act is the fused step, ganops::bias_act_slope multiplies a gradient with the slope that the
# activation had there, or with its second derivative. Both have a CUDA kernel (csrc/bias_act.cu, loaded by
# ganops.ops.kernels) and a plain form for all devices; gradients are written in these two ops and torch's own, so they
# are differentiable again. A clamp below zero means none.

SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805  # Klambauer et al. 2017

torch.library.define(
    "ganops::bias_act",
    "(Tensor x, Tensor? bias, Tensor? scale, Tensor? noise, int dim, int activation, float alpha, float gain, "
    "float clamp) -> Tensor",
)
torch.library.define(
    "ganops::bias_act_slope",
    "(Tensor gradient, Tensor x, Tensor? bias, int dim, int activation, int order, float alpha, float gain, "
    "float clamp) -> Tensor",
)


def _bias_act(
    x: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    noise: Tensor | None,
    dim: int,
    activation: int,
    alpha: float,
    gain: float,
    clamp: float,
) -> Tensor:
    name = list(CODES)[activation]
    y = bias_act_reference(x, bias, dim, name, alpha, gain, None if clamp < 0 else clamp, scale, noise)
    return torch.empty_like(x, memory_format=memory_format(x)).copy_(y)


def _bias_act_slope(
    gradient: Tensor,
    x: Tensor,
    bias: Tensor | None,
    dim: int,
    activation: int,
    order: int,
    alpha: float,
    gain: float,
    clamp: float,
) -> Tensor:
    name = list(CODES)[activation]
    if name in RECTIFIERS:  # x is the result: positive where the argument was, at the limit where it was cut
        slope, value = torch.full_like(x, alpha).masked_fill_(x > 0, 1.0), x
    else:
        u = x if bias is None else x + _along(bias, dim, x.ndim)
        slope, value = _derivative(u, name, order), gain * _activate(u, name, 0.0)
    product = gradient * slope * gain
    if clamp >= 0:
        limit = torch.full([], clamp, dtype=x.dtype, device=x.device)  # rounded, as the result was
        product = torch.where(value.abs() < limit, product, 0.0)
    return torch.empty_like(x, memory_format=memory_format(x)).copy_(product)


def _derivative(u: Tensor, activation: Activation, order: int) -> Tensor:
    """The activation's derivative of order 1, 2 or 3 at u, differentiable."""
    match activation:
        case "tanh":
            t = torch.tanh(u)
            slope = 1 - t.square()
            return (slope, -2 * t * slope, slope * (6 * t.square() - 2))[order - 1]
        case "elu":
            return torch.where(u > 0, 1.0 if order == 1 else 0.0, u.clamp(max=0).exp())
        case "selu":
            below = SELU_SCALE * SELU_ALPHA * u.clamp(max=0).exp()
            return torch.where(u > 0, SELU_SCALE if order == 1 else 0.0, below)
    s = torch.sigmoid(u)
    # The derivatives of the sigmoid.
    first = s * (1 - s)
    second = first * (1 - 2 * s)
    third = first * (1 - 6 * s + 6 * s.square())
    if activation == "sigmoid":
        return (first, second, third)[order - 1]
    if activation == "softplus":
        return (s, first, second)[order - 1]
    return (s + u * first, 2 * first + u * second, 3 * second + u * third)[order - 1]  # swish


def _bias_act_fake(
    x: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    noise: Tensor | None,
    dim: int,
    activation: int,
    alpha: float,
    gain: float,
    clamp: float,
) -> Tensor:
    return torch.empty_like(x, memory_format=memory_format(x))


def _bias_act_slope_fake(
    gradient: Tensor,
    x: Tensor,
    bias: Tensor | None,
    dim: int,
    activation: int,
    order: int,
    alpha: float,
    gain: float,
    clamp: float,
) -> Tensor:
    return torch.empty_like(x, memory_format=memory_format(x))


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, bias, scale, noise, ctx.dim, ctx.activation, ctx.alpha, ctx.gain, ctx.clamp = inputs
    ctx.rectifier = list(CODES)[ctx.activation] in RECTIFIERS
    assert ctx.rectifier or (scale is None and noise is None), "bias_act adds them before a smooth activation"
    ctx.has_bias = bias is not None
    ctx.noise_shape = None if noise is None else noise.shape
    # The rectifiers' slope is in the result; x is only needed for the gradient of the scale.
    ctx.save_for_backward(
        output if ctx.rectifier else x, None if ctx.rectifier else bias, scale, x if scale is not None else None
    )


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    saved, bias, scale, x = ctx.saved_tensors
    needs_x, needs_bias, needs_scale, needs_noise = ctx.needs_input_grad[:4]
    if ctx.activation == CODES["linear"] and ctx.clamp < 0:
        gradient = gradient if ctx.gain == 1 else gradient * ctx.gain
    else:
        gradient = torch.ops.ganops.bias_act_slope(
            gradient, saved, bias, ctx.dim, ctx.activation, 1, ctx.alpha, ctx.gain, ctx.clamp
        )
    dx = dbias = dscale = dnoise = None
    if needs_x:
        dx = gradient if scale is None else gradient * scale[:, :, None, None]
    if needs_bias and ctx.has_bias:
        dbias = _sum_to_bias(gradient, ctx.dim)
    if needs_scale and scale is not None:
        dscale = (gradient * x).sum(dim=[2, 3])
    if needs_noise and ctx.noise_shape is not None:
        dnoise = gradient.sum_to_size(ctx.noise_shape)
    return dx, dbias, dscale, dnoise, None, None, None, None, None


def _sum_to_bias(gradient: Tensor, dim: int) -> Tensor:
    others = [axis for axis in range(gradient.ndim) if axis != dim]
    return gradient.sum(dim=others) if others else gradient


def _save_slope(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gradient, x, bias, ctx.dim, ctx.activation, ctx.order, ctx.alpha, ctx.gain, ctx.clamp = inputs
    ctx.rectifier = list(CODES)[ctx.activation] in RECTIFIERS
    ctx.save_for_backward(None if ctx.rectifier else gradient, x, bias)


def _backward_slope(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
    gradient, x, bias = ctx.saved_tensors
    rest = (ctx.alpha, ctx.gain, ctx.clamp)
    dgradient = dx = dbias = None
    if ctx.needs_input_grad[0]:
        dgradient = torch.ops.ganops.bias_act_slope(incoming, x, bias, ctx.dim, ctx.activation, ctx.order, *rest)
    # The slope of a rectifier is constant, so that nothing flows to where it was taken.
    if not ctx.rectifier and (ctx.needs_input_grad[1] or ctx.needs_input_grad[2]):
        product = incoming * gradient
        if ctx.order == 1:
            dx = torch.ops.ganops.bias_act_slope(product, x, bias, ctx.dim, ctx.activation, 2, *rest)
        else:
            name = list(CODES)[ctx.activation]
            u = x if bias is None else x + _along(bias, ctx.dim, x.ndim)
            dx = product * _derivative(u, name, 3) * ctx.gain
            if ctx.clamp >= 0:
                dx = torch.where((ctx.gain * _activate(u, name, 0.0)).abs() < ctx.clamp, dx, 0.0)
        if bias is not None and ctx.needs_input_grad[2]:
            dbias = _sum_to_bias(dx, ctx.dim)
    return dgradient, dx, dbias, None, None, None, None, None, None


torch.library.impl("ganops::bias_act", "default", _bias_act)
torch.library.impl("ganops::bias_act_slope", "default", _bias_act_slope)
torch.library.register_fake("ganops::bias_act", _bias_act_fake)
torch.library.register_fake("ganops::bias_act_slope", _bias_act_slope_fake)
torch.library.register_autograd("ganops::bias_act", _backward, setup_context=_save)
torch.library.register_autograd("ganops::bias_act_slope", _backward_slope, setup_context=_save_slope)
