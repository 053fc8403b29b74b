"""Bilinear sampling at any places, with its exact adjoint: differentiable any number of times, and repeatable on CUDA.

torch's own backward pass adds with CUDA's atomics, in any order, and refuses to run under deterministic algorithms.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def grid_sample(x: Tensor, grid: Tensor) -> Tensor:
    """Samples images bilinearly; what lies outside of them is zero.

    Args:
        x: [N, C, H, W], floating.
        grid: [N, h, w, 2] of x's dtype: where each pixel of the result comes from, as (x, y); -1 is the left (upper) edge
            of the image, 1 the right (lower) edge, pixels being squares.
    Returns:
        [N, C, h, w]. Differentiable in x any number of times, not in grid: its derivative is `grid_sample_adjoint`,
        whose derivative is this again. The same bits again and again under torch's deterministic algorithms.
    """
    y: Tensor = torch.ops.ganops.grid_sample(x, grid)
    return y


def grid_sample_adjoint(gradient: Tensor, grid: Tensor, height: int, width: int) -> Tensor:
    """The adjoint of `grid_sample`: each pixel is added to the four pixels that it came from, with the same weights.

    Args:
        gradient: [N, C, h, w], floating.
        grid: [N, h, w, 2], as for `grid_sample`.
        height: H of the images that were sampled.
        width: W of them.
    Returns:
        [N, C, H, W]. Differentiable in `gradient` any number of times, not in grid.
    """
    x: Tensor = torch.ops.ganops.grid_sample_adjoint(gradient, grid, height, width)
    return x


def ordered_adjoint(gradient: Tensor, grid: Tensor, height: int, width: int) -> Tensor:
    """`grid_sample_adjoint` by indices, which CUDA sorts and adds in order under torch's deterministic algorithms."""
    N, C = gradient.shape[:2]
    x, y = ((grid[..., axis] + 1) * (size / 2) - 0.5 for axis, size in ((0, width), (1, height)))
    left, top = x.floor(), y.floor()
    right_weight, lower_weight = x - left, y - top
    rows = gradient.permute(0, 2, 3, 1)
    image = torch.arange(N, device=grid.device)[:, None, None] * (height * width)
    found = gradient.new_zeros([N * height * width, C])
    for row, row_weight in ((top, 1 - lower_weight), (top + 1, lower_weight)):
        for column, column_weight in ((left, 1 - right_weight), (left + 1, right_weight)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            weight = torch.where(inside, row_weight * column_weight, 0)
            index = image + row.clamp(0, height - 1).long() * width + column.clamp(0, width - 1).long()
            found.index_add_(0, index.flatten(), (rows * weight[..., None]).reshape(-1, C))
    return found.reshape(N, height, width, C).permute(0, 3, 1, 2).contiguous()


# Registration. Both ops are linear in their first tensor, and each is the other's derivative.

torch.library.define("ganops::grid_sample", "(Tensor x, Tensor grid) -> Tensor")
torch.library.define(
    "ganops::grid_sample_adjoint", "(Tensor gradient, Tensor grid, SymInt height, SymInt width) -> Tensor"
)


def _grid_sample(x: Tensor, grid: Tensor) -> Tensor:
    y = F.grid_sample(x, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return y.contiguous()


def _grid_sample_fake(x: Tensor, grid: Tensor) -> Tensor:
    return x.new_empty([*x.shape[:2], *grid.shape[1:3]])


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, grid = inputs
    ctx.size = x.shape[2:]
    ctx.save_for_backward(grid)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
    (grid,) = ctx.saved_tensors
    return torch.ops.ganops.grid_sample_adjoint(gradient, grid, *ctx.size), None


def _adjoint(gradient: Tensor, grid: Tensor, height: int, width: int) -> Tensor:
    if gradient.is_cuda and torch.are_deterministic_algorithms_enabled():
        return ordered_adjoint(gradient, grid, height, width)
    # Of the images only the shape is looked at, as the gradient by the grid is not wanted.
    x = gradient.new_zeros([1]).expand(*gradient.shape[:2], height, width)
    bilinear, zeros = 0, 0
    found: tuple[Tensor, Tensor] = torch.ops.aten.grid_sampler_2d_backward.default(
        gradient.contiguous(), x, grid, bilinear, zeros, False, [True, False]
    )
    return found[0].contiguous()


def _adjoint_fake(gradient: Tensor, grid: Tensor, height: int, width: int) -> Tensor:
    return gradient.new_empty([*gradient.shape[:2], height, width])


def _save_adjoint(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _backward_adjoint(ctx: Any, incoming: Tensor) -> tuple[Tensor, None, None, None]:
    (grid,) = ctx.saved_tensors
    return torch.ops.ganops.grid_sample(incoming, grid), None, None, None


torch.library.impl("ganops::grid_sample", "default", _grid_sample)
torch.library.register_fake("ganops::grid_sample", _grid_sample_fake)
torch.library.register_autograd("ganops::grid_sample", _backward, setup_context=_save)
torch.library.impl("ganops::grid_sample_adjoint", "default", _adjoint)
torch.library.register_fake("ganops::grid_sample_adjoint", _adjoint_fake)
torch.library.register_autograd("ganops::grid_sample_adjoint", _backward_adjoint, setup_context=_save_adjoint)
