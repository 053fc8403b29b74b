"""Convolutions for losses that hold gradients: all of their derivatives are convolutions of the network's own size.

For a loss that holds a gradient (R1, path lengths) torch differentiates a convolution's gradient by way of convolutions
whose kernel is a whole image: at 64x64 a 3x3 convolution has one with weights [N, C, 64, 64] (found: all 20 of this kind
in phase Dr1, 14 in Gpl). cuDNN is made for small kernels: for such it is slow, or has no algorithm. The same derivative is
also the plain gradient by the weights, of other tensors, as the ops of this module take it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ganops.ops.kernels import memory_format

DEVICES = ("cuda",)
"""Where it pays. On a CPU phases Dr1 and Gpl took 13 to 28 % longer with it: torch's own stays there, bit for bit."""

_twice = False  # whether what is computed now will be differentiated twice


@contextmanager
def differentiated_twice() -> Iterator[None]:
    """Within, `conv2d` and `conv_transpose2d` on CUDA are ops whose derivatives are convolutions with small kernels again.

    For the forward pass of a network whose gradient enters a loss: torch's own second derivatives have kernels as large
    as the image, which is slow. Backward passes may run within or after it, for the result itself knows its derivatives.
    Numbers are the same up to rounding. May be nested; one flag for the process, so not for several threads at once.
    """
    global _twice
    before, _twice = _twice, True
    try:
        yield
    finally:
        _twice = before


def conv2d(x: Tensor, weight: Tensor, stride: int = 1, padding: int | tuple[int, int] = 0, groups: int = 1) -> Tensor:
    """As `torch.nn.functional.conv2d`, see `differentiated_twice`.

    Args:
        x: [N, C, H, W], floating.
        weight: [O, C / groups, kh, kw] of x's dtype.
        stride: of both axes.
        padding: zeros on each side, or (vertical, horizontal).
        groups: groups of channels.
    Returns:
        [N, O, (H + 2 * padding - kh) // stride + 1, (W + 2 * padding - kw) // stride + 1], x's dtype. Differentiable any
        number of times in x and weight.
    """
    if _twice and x.device.type in DEVICES:
        y: Tensor = torch.ops.ganops.conv2d(x, weight, [stride, stride], _pair(padding), [0, 0], False, groups)
        return y
    return F.conv2d(x, weight, stride=stride, padding=padding, groups=groups)


def conv_transpose2d(
    x: Tensor,
    weight: Tensor,
    stride: int = 1,
    padding: int | tuple[int, int] = 0,
    output_padding: int | tuple[int, int] = 0,
    groups: int = 1,
) -> Tensor:
    """As `torch.nn.functional.conv_transpose2d`, see `differentiated_twice`.

    Args:
        x: [N, C, H, W], floating.
        weight: [C, O / groups, kh, kw] of x's dtype.
        stride: of both axes.
        padding: rows and columns cut off on each side, or (vertical, horizontal).
        output_padding: added at the bottom and on the right; below `stride`.
        groups: groups of channels.
    Returns:
        [N, O, (H - 1) * stride - 2 * padding + kh + output_padding, the same of W], x's dtype. Differentiable any
        number of times in x and weight.
    """
    if _twice and x.device.type in DEVICES:
        extra = _pair(output_padding)
        y: Tensor = torch.ops.ganops.conv2d(x, weight, [stride, stride], _pair(padding), extra, True, groups)
        return y
    return F.conv_transpose2d(x, weight, stride=stride, padding=padding, output_padding=output_padding, groups=groups)


def _pair(number: int | tuple[int, int]) -> list[int]:
    return [number, number] if isinstance(number, int) else list(number)


# Registration. ganops::conv2d is aten::convolution without bias and dilation; ganops::conv2d_weight_gradient the gradient
# by the weight of the one that is not transposed, which serves both: a transposed convolution has its two tensors
# exchanged, and so has no output padding there, with which torch's gradient of 1x1 weights on a CPU writes outside of its
# memory (float32, channels_last; torch 2.11 and 2.15). Both ops are linear in both tensors, and each derivative is one of
# them again. Fake tensors take torch's forms as well, so that they agree about strides.

torch.library.define(
    "ganops::conv2d",
    "(Tensor x, Tensor weight, SymInt[] stride, SymInt[] padding, SymInt[] output_padding, bool transposed, "
    "SymInt groups) -> Tensor",
)
torch.library.define(
    "ganops::conv2d_weight_gradient",
    "(Tensor gradient, Tensor x, SymInt[] shape, SymInt[] stride, SymInt[] padding, SymInt groups) -> Tensor",
)


def _conv2d(
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    output_padding: list[int],
    transposed: bool,
    groups: int,
) -> Tensor:
    y: Tensor = torch.ops.aten.convolution.default(
        x, weight, None, stride, padding, [1, 1], transposed, output_padding, groups
    )
    return y


def _conv2d_weight_gradient(
    gradient: Tensor, x: Tensor, shape: list[int], stride: list[int], padding: list[int], groups: int
) -> Tensor:
    weight = x.new_empty([1]).expand(shape)  # only its shape is looked at
    found: tuple[Tensor, ...] = torch.ops.aten.convolution_backward.default(
        gradient, x, weight, None, stride, padding, [1, 1], False, [0, 0], groups, [False, True, False]
    )
    return found[1]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, ctx.stride, ctx.padding, _, ctx.transposed, ctx.groups = inputs
    ctx.save_for_backward(x, weight)
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, gradient: Tensor | None) -> tuple[Tensor | None, ...]:
    if gradient is None:  # of a linear network's second derivative there is nothing to pass on, as with torch's own
        return (None,) * 7
    x, weight = ctx.saved_tensors
    gradient = gradient.contiguous(memory_format=memory_format(x))  # so that both results have x's, as torch's own have
    dx = dweight = None
    if ctx.needs_input_grad[0]:
        dx = _gradient_by_x(gradient, weight, x, ctx.stride, ctx.padding, ctx.transposed, ctx.groups)
    if ctx.needs_input_grad[1]:
        small, large = (x, gradient) if ctx.transposed else (gradient, x)
        dweight = torch.ops.ganops.conv2d_weight_gradient(
            small, large, weight.shape, ctx.stride, ctx.padding, ctx.groups
        )
    return dx, dweight, None, None, None, None, None


def _save_weight_gradient(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gradient, x, _, ctx.stride, ctx.padding, ctx.groups = inputs
    ctx.save_for_backward(gradient, x)
    ctx.set_materialize_grads(False)


def _backward_weight_gradient(ctx: Any, incoming: Tensor | None) -> tuple[Tensor | None, ...]:
    if incoming is None:
        return (None,) * 6
    gradient, x = ctx.saved_tensors
    dgradient = dx = None
    # <incoming, weight gradient> = <gradient, convolution of x by incoming>.
    if ctx.needs_input_grad[0]:
        dgradient = torch.ops.ganops.conv2d(x, incoming, ctx.stride, ctx.padding, [0, 0], False, ctx.groups)
    if ctx.needs_input_grad[1]:
        dx = _gradient_by_x(gradient, incoming, x, ctx.stride, ctx.padding, False, ctx.groups)
    return dgradient, dx, None, None, None, None


def _gradient_by_x(
    gradient: Tensor,
    weight: Tensor,
    x: Tensor,
    stride: list[int],
    padding: list[int],
    transposed: bool,
    groups: int,
) -> Tensor:
    """The opposite convolution, with the same weight. A stride does not tell the size that it came from: x does."""
    rest = [0, 0]
    if not transposed:
        rest = [
            x.shape[axis + 2]
            - ((gradient.shape[axis + 2] - 1) * stride[axis] - 2 * padding[axis] + weight.shape[axis + 2])
            for axis in (0, 1)
        ]
    dx: Tensor = torch.ops.ganops.conv2d(gradient, weight, stride, padding, rest, not transposed, groups)
    return dx


torch.library.impl("ganops::conv2d", "default", _conv2d)
torch.library.register_fake("ganops::conv2d", _conv2d)
torch.library.register_autograd("ganops::conv2d", _backward, setup_context=_save)
torch.library.impl("ganops::conv2d_weight_gradient", "default", _conv2d_weight_gradient)
torch.library.register_fake("ganops::conv2d_weight_gradient", _conv2d_weight_gradient)
torch.library.register_autograd(
    "ganops::conv2d_weight_gradient", _backward_weight_gradient, setup_context=_save_weight_gradient
)
