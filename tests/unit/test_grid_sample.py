"""Bilinear sampling and its adjoint: against a loop, torch's own, and each other."""

import itertools
from math import floor

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck

from ganops.ops.grid_sample import grid_sample, grid_sample_adjoint, ordered_adjoint
from tests.tolerances import assert_close
from tests.unit.test_registration import ALL, CHEAP, LAYOUTS, normal

SIZES = [(5, 5, 5, 5), (4, 7, 6, 3), (1, 2, 3, 3)]  # H, W, h, w


def random_grid(N: int, h: int, w: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Places within images and well outside of them."""
    rng = torch.Generator().manual_seed(3)
    return (torch.rand([N, h, w, 2], generator=rng, dtype=torch.float64) * 3.2 - 1.6).to(dtype)


def sampled(x: NDArray[np.float64], grid: NDArray[np.float64]) -> NDArray[np.float64]:
    """The definition: pixel by pixel, four neighbours each."""
    N, C, H, W = x.shape
    y = np.zeros([N, C, *grid.shape[1:3]])
    for n, i, j in np.ndindex(*grid.shape[:3]):
        column, row = ((grid[n, i, j, axis] + 1) / 2 * size - 0.5 for axis, size in ((0, W), (1, H)))
        for r, c in itertools.product((floor(row), floor(row) + 1), (floor(column), floor(column) + 1)):
            if 0 <= r < H and 0 <= c < W:
                y[n, :, i, j] += x[n, :, r, c] * (1 - abs(row - r)) * (1 - abs(column - c))
    return y


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sampling_is_its_definition(size: tuple[int, int, int, int]) -> None:
    H, W, h, w = size
    for layout in LAYOUTS:
        x, grid = normal(2, 3, H, W, seed=1, grad=False, layout=layout), random_grid(2, h, w)
        expected = sampled(x.numpy(), grid.numpy())
        assert (expected == 0).any(), "nothing lies outside"
        assert_close(grid_sample(x, grid), expected, "loop_float64")


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_adjoints(size: tuple[int, int, int, int]) -> None:
    """<A x, y> = <x, A' y>; both forms of A' are torch's own gradient, also of gradients with any strides."""
    H, W, h, w = size
    grid = random_grid(2, h, w)
    x = normal(2, 3, H, W, seed=1)
    for layout in LAYOUTS:
        y = normal(2, 3, h, w, seed=2, grad=False, layout=layout)
        (expected,) = torch.autograd.grad(F.grid_sample(x, grid, align_corners=False), x, y)
        (ours,) = torch.autograd.grad(grid_sample(x, grid), x, y)
        assert_close(ours, expected, "twin_float64")
        assert_close(grid_sample_adjoint(y, grid, H, W), expected, "twin_float64")
        assert_close(ordered_adjoint(y, grid, H, W), expected, "twin_float64")
        products = (grid_sample(x.detach(), grid) * y).sum(), (x.detach() * ordered_adjoint(y, grid, H, W)).sum()
        assert_close(products[0], products[1], "twin_float64")
    (ours,) = torch.autograd.grad(grid_sample(x, grid).sum(), x)
    assert_close(ours, ordered_adjoint(torch.ones(2, 3, h, w, dtype=x.dtype), grid, H, W), "twin_float64")


def test_float32() -> None:
    x, grid = normal(2, 3, 9, 8, seed=1, grad=False), random_grid(2, 7, 9)
    assert_close(grid_sample(x.float(), grid.float()), grid_sample(x, grid), "twin_float32")
    y = normal(2, 3, 7, 9, seed=2, grad=False)
    for adjoint in (grid_sample_adjoint, ordered_adjoint):
        assert_close(adjoint(y.float(), grid.float(), 9, 8), grid_sample_adjoint(y, grid, 9, 8), "twin_float32")


def test_gradients_against_differences() -> None:
    grid = random_grid(2, 3, 4)
    x, y = normal(2, 2, 3, 4, seed=1), normal(2, 2, 3, 4, seed=2)
    assert gradcheck(lambda x: grid_sample(x, grid), [x])
    assert gradgradcheck(lambda x: grid_sample(x, grid).square(), [x])
    assert gradcheck(lambda y: grid_sample_adjoint(y, grid, 3, 4), [y])
    assert gradgradcheck(lambda y: grid_sample_adjoint(y, grid, 3, 4).square(), [y])


# torch looks at the gradients of copies that it makes itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_ops_pass_the_checks_of_torch() -> None:
    grid = random_grid(2, 4, 6)
    for layout, parts in zip(LAYOUTS, (ALL, CHEAP), strict=True):
        x, y = normal(2, 3, 5, 4, seed=1, layout=layout), normal(2, 3, 4, 6, seed=2, layout=layout)
        opcheck(torch.ops.ganops.grid_sample.default, (x, grid), test_utils=parts)
        opcheck(torch.ops.ganops.grid_sample_adjoint.default, (y, grid, 5, 4), test_utils=parts)
