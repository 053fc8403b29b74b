"""What progressively growing networks share: levels, the fade between two of them, images at a lower resolution.

A network of nominal resolution R has a block per level: level 0 is the base grid, each further one twice as high and wide.
How far it has grown is one number, `lod` ("level of detail", the levels still missing): 0 = fully grown, log2(R / 4) =
only level 0. Images have the size of level floor(lod) from the top, R >> floor(lod) nominally. Where lod is not whole, the
topmost level in use is faded in: the fraction is the share that the level below it still has. All of it is a Python float:
nothing here waits for a GPU.

Source: Karras et al. 2018, section 2 and figure 2.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganops.networks.layers import NoiseMode, NoiseSource
from ganops.networks.mapping import truncate_w
from ganops.shape import size_at

LOWEST = 4
"""Nominal resolution of level 0."""

Grid = tuple[int, int]
"""Height and width."""


def level_resolutions(resolution: int) -> list[int]:
    """Nominal resolutions of all levels, from 4 up to `resolution`.

    Raises:
        ValueError: `resolution` is not a power of two from 4 up.
    """
    if resolution < LOWEST or resolution & (resolution - 1):
        raise ValueError(f"resolution={resolution} is not a power of two from {LOWEST} up")
    return [LOWEST << level for level in range(resolution.bit_length() - LOWEST.bit_length() + 1)]


def grid_name(grid: Grid) -> str:
    """ "{height}x{width}", as blocks are named."""
    return f"{grid[0]}x{grid[1]}"


def level_channels(nominal: int, channel_base: int, channel_max: int) -> int:
    """Channels of one level: min(channel_base / nominal, channel_max), at least 1."""
    return max(min(channel_base // nominal, channel_max), 1)


def check_lod(lod: float, resolution: int) -> float:
    """`lod` as a float.

    Raises:
        ValueError: it is below 0, or above log2(resolution / 4), where nothing is left.
    """
    highest = len(level_resolutions(resolution)) - 1
    if not 0 <= lod <= highest:
        raise ValueError(f"lod={lod} is not in [0, {highest}], which resolution={resolution} allows")
    return float(lod)


def split_lod(lod: float) -> tuple[int, float]:
    """(levels missing, share that the level below the topmost one still has, in [0, 1))."""
    missing = math.floor(lod)
    return missing, lod - missing


def upscale(x: Tensor, factor: int) -> Tensor:
    """[N, C, H, W] -> [N, C, H * factor, W * factor], each pixel a square of equal ones; x's dtype and memory format."""
    return x if factor == 1 else F.interpolate(x, scale_factor=factor, mode="nearest")


def average(x: Tensor, factor: int) -> Tensor:
    """[N, C, H, W] -> [N, C, H / factor, W / factor], means of squares of pixels; x's dtype and memory format."""
    assert x.shape[2] % factor == 0, (x.shape, factor)
    assert x.shape[3] % factor == 0, (x.shape, factor)
    return x if factor == 1 else F.avg_pool2d(x, factor)


def fade_reals(img: Tensor, lod: float) -> Tensor:
    """Real images as the networks see them at `lod`.

    Args:
        img: [N, C, H, W] of full size, floating; height and width multiples of 2^ceil(lod).
        lod: as of the networks.
    Returns:
        [N, C, H >> floor(lod), W >> floor(lod)], x's dtype: averages of squares of pixels, faded into what the next lower
        level would show, as generated images are. Differentiable.
    Source: Karras et al. 2018, section 2: otherwise D would tell reals by details that G cannot have yet.
    """
    missing, fade = split_lod(lod)
    img = average(img, 2**missing)
    return torch.lerp(img, upscale(average(img, 2), 2), fade) if fade else img


class SynthesisByLevels(nn.Module):
    """From ws to images of the present level; layers and `forward` are each family's.

    Args:
        resolution: nominal, of the fully grown network.
        lod: how far it has grown.
        num_ws: how many w it takes.
    """

    def __init__(self, *, resolution: int, lod: float, num_ws: int) -> None:
        super().__init__()
        self.lod = check_lod(lod, resolution)
        self.num_ws = num_ws
        self.blocks = nn.ModuleDict()


class GeneratorByLevels(nn.Module):
    """What growing generators share: how they grow, and the way from z to an image.

    Args:
        arguments: of the family's constructor but for `lod` and `rng`, as JSON values.
        w_dim: width of w.
        mapping: z [N, z_dim] and c [N, c_dim] -> w [N, w_dim].
        synthesis: ws [N, num_ws, w_dim] -> images of the present level.
        ws_per_level: how many of the ws a level adds.
    """

    w_avg: Tensor

    def __init__(
        self,
        *,
        arguments: dict[str, Any],
        w_dim: int,
        mapping: nn.Module,
        synthesis: SynthesisByLevels,
        ws_per_level: int,
    ) -> None:
        super().__init__()
        self._arguments = arguments
        self.z_dim: int = arguments["z_dim"]
        self.c_dim: int = arguments["c_dim"]
        self.w_dim = w_dim
        self.resolution: int = arguments["resolution"]
        self.base_grid: Grid = arguments["base_grid"]
        self.size = size_at(self.resolution, self.base_grid)
        self.img_channels: int = arguments["img_channels"]
        self.mapping = mapping
        self.synthesis = synthesis
        self.num_ws = synthesis.num_ws
        self.ws_per_level = ws_per_level
        # The running mean of w, moved by the training loop.
        self.register_buffer("w_avg", torch.zeros(w_dim))

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments as JSON values, without rng; `lod` is the present one."""
        return {**self._arguments, "lod": self.lod}

    @property
    def lod(self) -> float:
        """How far the network has grown; 0 = fully."""
        return self.synthesis.lod

    def set_lod(self, lod: float) -> None:
        """Grows (or shrinks) the network to `lod`; ValueError where there is no such level."""
        self.synthesis.lod = check_lod(lod, self.resolution)

    @property
    def active_ws(self) -> int:
        """How many of `num_ws`, from the coarse end, matter at the present lod."""
        return self.num_ws - self.ws_per_level * split_lod(self.lod)[0]

    def truncate(self, w: Tensor, psi: float, cutoff: int | None) -> Tensor:
        """[N, w_dim] -> ws [N, num_ws, w_dim], see `truncate_w`."""
        return truncate_w(w, self.w_avg, self.num_ws, psi, cutoff)

    def forward(
        self,
        z: Tensor,
        c: Tensor,
        truncation_psi: float,
        truncation_cutoff: int | None,
        noise_mode: NoiseMode,
        rng: NoiseSource,
    ) -> Tensor:
        """[N, z_dim], [N, c_dim] -> images of full size, those of the present level in squares of equal pixels."""
        ws = self.truncate(self.mapping(z, c), truncation_psi, truncation_cutoff)
        return upscale(self.synthesis(ws, noise_mode, rng), 2 ** split_lod(self.lod)[0])
