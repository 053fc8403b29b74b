"""Bias, activation, gain and clamp in one step."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

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


def bias_act(
    x: Tensor,
    bias: Tensor | None,
    dim: int = 1,
    activation: Activation = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
) -> Tensor:
    """clamp(gain * activation(x + bias)).

    Args:
        x: any shape and floating dtype; the result keeps shape, dtype and memory format.
        bias: [x.shape[dim]] of x's dtype, or None.
        dim: the axis of x that `bias` runs along.
        activation: name of the function.
        alpha: slope of `lrelu` below zero; None = 0.2. Other activations have none.
        gain: factor after the activation; None = the activation's own (`ACTIVATION_GAINS`).
        clamp: the result is limited to [-clamp, clamp], after the gain; None = no limit.
    Returns:
        Tensor like x. Differentiable any number of times, in x and bias.
    Source: Karras et al. 2020; conv_clamp from Karras et al. 2020, "Training GANs with limited data".
    """
    gain = ACTIVATION_GAINS[activation] if gain is None else gain
    if activation in ("linear", "relu", "lrelu") and gain > 0:
        # These commute with a positive factor, so it goes into the addition: one pass over x fewer.
        if bias is not None:
            bias = _along(bias, dim, x.ndim)
            x = x + bias if gain == 1 else torch.add(bias * gain, x, alpha=gain)
        elif gain != 1:
            x = x * gain
        x = _activate(x, activation, alpha)
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
) -> Tensor:
    """The definition of `bias_act`, step by step: the same arguments, result and gradients."""
    if bias is not None:
        x = x + _along(bias, dim, x.ndim)
    x = _activate(x, activation, alpha)
    x = x * (ACTIVATION_GAINS[activation] if gain is None else gain)
    return x if clamp is None else x.clamp(-clamp, clamp)


def _along(bias: Tensor, dim: int, ndim: int) -> Tensor:
    """A view of `bias` that broadcasts along axis `dim` of a tensor with `ndim` axes."""
    return bias.reshape([-1 if axis == dim else 1 for axis in range(ndim)])


def _activate(x: Tensor, activation: Activation, alpha: float | None) -> Tensor:
    match activation:
        case "linear":
            return x
        case "relu":
            return F.relu(x)
        case "lrelu":
            return F.leaky_relu(x, LRELU_SLOPE if alpha is None else alpha)
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
