"""Networks that are not square: base grids 4x3, 5x8 and 3x7, against closed forms and explicit sums."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from ganops.networks.layers import Architecture
from ganops.networks.stylegan2_discriminator import Discriminator
from ganops.networks.stylegan2_generator import Generator
from ganops.networks.table import format_table, layer_table
from ganops.shape import size_at
from ganops.training.losses import path_lengths, r1_penalty
from ganops.training.state import build_networks, initial_state
from ganops.training.step import train_step
from tests.tolerances import assert_close
from tests.unit.test_networks import ARCHITECTURES, seeded
from tests.unit.tiny import CLASS_COUNTS, tiny_batch, tiny_params, tiny_state

GRIDS = [(4, 3), (5, 8), (3, 7)]
Z, W, C, BASE, MAX = 6, 8, 2, 64, 12


def networks(
    grid: tuple[int, int], resolution: int = 16, channels: int = 3, c_dim: int = C, architecture: Architecture = "skip"
) -> tuple[Generator, Discriminator]:
    common = {
        "c_dim": c_dim, "resolution": resolution, "base_grid": grid, "img_channels": channels, "mapping_layers": 2,
        "mapping_lr_multiplier": 0.01, "channel_base": BASE, "channel_max": MAX, "precision": "float32",
        "low_precision_resolutions": 0, "conv_clamp": None, "architecture": architecture,
    }  # fmt: skip
    G = Generator(**common, z_dim=Z, w_dim=W, rng=seeded())
    D = Discriminator(**common, mbstd_group_size=4, mbstd_num_channels=1, rng=seeded(1))
    return G, D


def inputs(G: Generator, n: int = 4) -> tuple[Tensor, Tensor]:
    c = torch.rand(n, G.c_dim, generator=seeded(2))
    return torch.randn(n, G.z_dim, generator=seeded(1)), c


def widths(resolution: int) -> list[int]:
    """Channels per level, from the base grid up."""
    return [min(BASE // (4 * 2**k), MAX) for k in range((resolution // 4).bit_length())]


def G_parameters(grid: tuple[int, int], resolution: int, channels: int, c_dim: int) -> int:
    """Of "skip", summed by hand: the grid is in the constant alone."""

    def layer(before: int, after: int) -> int:
        return after * before * 9 + before * W + before + after + 1  # weight, affine, bias, noise strength

    def to_rgb(before: int) -> int:
        return channels * before + before * W + before + channels

    w = widths(resolution)
    mapping = c_dim * W + W + (Z + W) * W + W + W * W + W
    total = mapping + w[0] * grid[0] * grid[1] + layer(w[0], w[0]) + to_rgb(w[0])
    return total + sum(layer(a, b) + layer(b, b) + to_rgb(b) for a, b in pairwise(w))


def D_parameters(grid: tuple[int, int], resolution: int, channels: int, c_dim: int) -> int:
    """Of "skip": the grid is in the first dense layer alone."""
    w = widths(resolution)
    total = sum(channels * a + a for a in w)
    total += sum(a * a * 9 + a + b * a * 9 + b for b, a in pairwise(w))
    total += (w[0] + 1) * w[0] * 9 + w[0] + w[0] * grid[0] * grid[1] * w[0] + w[0]
    mapping = c_dim * w[0] + w[0] + 2 * (w[0] * w[0] + w[0])
    return total + mapping + w[0] * w[0] + w[0]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("channels", [1, 2, 5])
@pytest.mark.parametrize("grid", GRIDS)
def test_shapes_names_and_gradients(grid: tuple[int, int], channels: int, architecture: Architecture) -> None:
    G, D = networks(grid, channels=channels, architecture=architecture)
    height, width = grid
    assert G.size == D.size == (4 * height, 4 * width)
    names = [f"{height * s}x{width * s}" for s in (1, 2, 4)]
    assert list(G.synthesis.blocks) == names
    assert list(D.blocks) == names[:0:-1]
    z, c = inputs(G)
    img = G(z, c, 1.0, None, "random", seeded(3))
    assert img.shape == (4, channels, *G.size)
    logits = D(img, c)
    assert logits.shape == (4, 1)
    logits.sum().backward()
    for network in (G, D):
        assert [name for name, parameter in network.named_parameters() if parameter.grad is None] == []
    noises = [G.get_submodule(f"synthesis.blocks.{name}") for name in names]
    assert [tuple(block.convolutions()[-1].noise_const.shape) for block in noises] == [
        size_at(r, grid) for r in (4, 8, 16)
    ]


@pytest.mark.parametrize("resolution", [8, 16, 64])
@pytest.mark.parametrize("channels", [1, 5])
@pytest.mark.parametrize("c_dim", [3])
@pytest.mark.parametrize("grid", [*GRIDS, (4, 4)])
def test_parameters_by_closed_form(grid: tuple[int, int], c_dim: int, channels: int, resolution: int) -> None:
    G, D = networks(grid, resolution, channels, c_dim)
    for network, expected in (
        (G, G_parameters(grid, resolution, channels, c_dim)),
        (D, D_parameters(grid, resolution, channels, c_dim)),
    ):
        assert sum(parameter.numel() for parameter in network.parameters()) == expected
        rows = layer_table(network)
        assert sum(row.num_parameters for row in rows) == expected
        assert f"{grid[0]}x{grid[1]}." in format_table(rows)


def test_the_table_says_the_size() -> None:
    G, D = networks((5, 8))
    rows = {row.name: row.output_shape for network in (G, D) for row in layer_table(network)}
    assert rows["synthesis.5x8.const"] == (12, 5, 8)
    assert rows["synthesis.20x32.conv1"] == (4, 20, 32)
    assert rows["20x32.conv0"] == (4, 20, 32)
    assert rows["5x8.conv"] == (12, 5, 8)


@pytest.mark.parametrize("grid", GRIDS)
def test_a_flipped_network_is_the_network_of_the_flipped_grid(grid: tuple[int, int]) -> None:
    """Transposing every weight, constant and noise transposes the image, and keeps the logit: no side is mistaken."""
    G, D = (network.double() for network in networks(grid, architecture="skip"))
    T_G, T_D = (network.double() for network in networks(grid[::-1], architecture="skip"))
    with torch.no_grad():
        for network, flipped in ((G, T_G), (D, T_D)):
            targets = dict(flipped.state_dict())
            for (name, value), target in zip(network.state_dict().items(), targets.values(), strict=True):
                if name.endswith("dense0.weight"):
                    cells = value.reshape(len(value), -1, *grid).mT
                    target.copy_(cells.reshape(len(value), -1))
                else:
                    target.copy_(value.mT if value.ndim == 4 or "const" in name else value)
    z, c = (x.double() for x in inputs(G))
    img = G(z, c, 1.0, None, "const", None)
    assert_close(T_G(z, c, 1.0, None, "const", None), img.mT, "twin_float64")
    assert_close(T_D(img.mT, c), D(img, c), "twin_float64")


@pytest.mark.parametrize("grid", [(4, 3), (3, 5)])
def test_gradients_of_both_orders(grid: tuple[int, int]) -> None:
    """Against differences, through all ops at sides that differ, of ws, images and a weight of each network."""
    G, D = (network.double().requires_grad_(False) for network in networks(grid, 8, 1, 0))
    ws = torch.randn(4, G.num_ws, W, generator=seeded(1)).double().requires_grad_()
    name, layer = f"{2 * grid[0]}x{2 * grid[1]}", (0, 0)
    up, down = G.synthesis.blocks[name].conv0_up.weight, D.blocks[name].conv1_down.weight
    weights = [weight[layer].clone().requires_grad_() for weight in (up, down)]

    def project(ws: Tensor, *kernels: Tensor) -> Tensor:
        replaced = []
        for weight, kernel in zip((up, down), kernels, strict=True):
            whole = weight.detach().clone()
            whole[layer] = 0
            place = torch.zeros_like(whole)
            place[layer] = 1
            replaced.append(whole + place * kernel)
        img = torch.func.functional_call(
            G.synthesis, {f"blocks.{name}.conv0_up.weight": replaced[0]}, (ws, "const", None)
        )
        return torch.func.functional_call(
            D, {f"blocks.{name}.conv1_down.weight": replaced[1]}, (img, img.new_zeros(len(img), 0))
        )

    assert torch.autograd.gradcheck(project, (ws, *weights), eps=1e-6, atol=1e-6, rtol=1e-4, fast_mode=True)
    assert torch.autograd.gradgradcheck(project, (ws, *weights), eps=1e-6, atol=1e-5, rtol=1e-4, fast_mode=True)


def test_r1_and_path_lengths_are_explicit_sums() -> None:
    G, D = (network.double() for network in networks((4, 3), 8, 2))
    z, c = (x.double() for x in inputs(G))
    real = torch.randn(4, 2, 8, 6, generator=seeded(5)).double().requires_grad_()
    penalty = r1_penalty(real, D(real, c))
    step = 1e-5
    with torch.no_grad():
        for image in range(2):  # of one image, pixel by pixel; through minibatch std all logits move
            total = 0.0
            for channel, row, column in np.ndindex(2, 8, 6):
                values = []
                for sign in (1, -1):
                    moved = real.detach().clone()
                    moved[image, channel, row, column] += sign * step
                    values.append(float(D(moved, c).sum()))
                total += ((values[0] - values[1]) / (2 * step)) ** 2
            assert_close(penalty[image], total, "central_difference")
    ws = G.truncate(G.mapping(z, c), 1.0, None).detach().contiguous().requires_grad_()
    direction = torch.randn(4, 2, 8, 6, generator=seeded(6)).double()
    lengths = path_lengths(G.synthesis(ws, "const", None), ws, direction)
    with torch.no_grad():
        squares = torch.zeros(G.num_ws)
        for place, w in np.ndindex(G.num_ws, W):
            values = []
            for sign in (1, -1):
                moved = ws.detach().clone()
                moved[1, place, w] += sign * step
                values.append(float((G.synthesis(moved, "const", None)[1] * direction[1]).sum() / np.sqrt(8 * 6)))
            squares[place] += ((values[0] - values[1]) / (2 * step)) ** 2
        assert_close(lengths[1], float(squares.mean().sqrt()), "central_difference")


def test_squares_are_what_they_were() -> None:
    """A size as one number and as two give the same weights, and the names of the first version."""
    params = tiny_params()
    states = [initial_state(params, size, 1, len(CLASS_COUNTS), torch.device("cpu")) for size in (8, (8, 8), [8, 8])]
    first = states[0].G.state_dict() | {f"D.{name}": value for name, value in states[0].D.state_dict().items()}
    assert {"synthesis.blocks.4x4.const", "synthesis.blocks.8x8.conv0_up.weight", "D.blocks.8x8.conv0.weight"} <= set(
        first
    )
    for state in states[1:]:
        other = state.G.state_dict() | {f"D.{name}": value for name, value in state.D.state_dict().items()}
        assert all(torch.equal(first[name], other[name]) for name in first)
    assert tiny_state(params).G.arguments["base_grid"] == (4, 4)


def test_channels_go_by_the_nominal_resolution() -> None:
    params = tiny_params(channel_base=64, channel_max=64)
    for size, nominal, grid in (((16, 12), 16, (4, 3)), ((10, 16), 8, (5, 8)), (28, 16, (7, 7))):
        G, D = build_networks(params, size, 1, 0)
        assert (G.resolution, G.arguments["base_grid"]) == (nominal, grid)
        widths_found = [block.convolutions()[-1].weight.shape[0] for block in G.synthesis.blocks.values()]
        assert widths_found == [64 // r for r in (4, 8, 16) if r <= nominal]
        assert D.size == G.size == ((size, size) if isinstance(size, int) else size)
    with pytest.raises(ValueError, match="cannot be reached by doubling"):
        build_networks(params, (9, 12), 1, 0)


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_steps_of_all_phases(precision: str) -> None:
    low = {"precision": precision, "low_precision_resolutions": 1 if precision == "bfloat16" else 0}
    params = tiny_params(**low, batch_size=8, batch_gpu=8)
    state = initial_state(params, (16, 12), 2, 3, torch.device("cpu"))
    before = {name: value.clone() for name, value in state.G.state_dict().items()}
    for _ in range(4):
        batch = tiny_batch(params, state.nimg)
        images = batch.images.repeat(1, 2, 2, 2)[:, :, :, :12]
        train_step(state, params, type(batch)(images, batch.labels), CLASS_COUNTS)
    assert int(state.nonfinite_steps) == 0
    changed = [name for name, value in state.G.state_dict().items() if not torch.equal(value, before[name])]
    assert "synthesis.blocks.4x3.const" in changed
    assert state.pl_mean > 0
