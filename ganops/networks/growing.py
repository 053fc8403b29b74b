"""What progressively growing networks share: levels, the fade between two of them, images at a lower resolution.

A network of nominal resolution R has a block per level: level 0 is the base grid, each further one twice as high and wide.
How far it has grown is one number, `lod` ("level of detail", the levels still missing): 0 = fully grown, log2(R / 4) =
only level 0. Images have the size of level floor(lod) from the top, R >> floor(lod) nominally. Where lod is not whole, the
topmost level in use is faded in: the fraction is the share that the level below it still has. All of it is a Python float:
nothing here waits for a GPU.

Source: Karras et al. 2018, section 2 and figure 2.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ganops.networks.layers import NoiseMode, NoiseSource

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


def level_grid(base_grid: Grid, nominal: int) -> Grid:
    """Height and width of the images of one level, given by its nominal resolution."""
    return base_grid[0] * nominal // LOWEST, base_grid[1] * nominal // LOWEST


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


def truncate_w(w: Tensor, w_avg: Tensor, num_ws: int, psi: float, cutoff: int | None) -> Tensor:
    """One w per layer, the first `cutoff` of them pulled towards the mean.

    Args:
        w: [N, w_dim].
        w_avg: [w_dim].
        num_ws: layers.
        psi: 1 = not at all, 0 = all the way.
        cutoff: number of layers from the coarse end; None = all.
    Returns:
        [N, num_ws, w_dim].
    """
    ws = w[:, None].expand(-1, num_ws, -1)
    if psi == 1:
        return ws
    truncated = torch.lerp(w_avg, w, psi)[:, None].expand(-1, num_ws, -1)
    return truncated if cutoff is None else torch.cat([truncated[:, :cutoff], ws[:, cutoff:]], dim=1)


def draw_grid_noise(noise_const: Tensor, count: int, mode: NoiseMode, rng: NoiseSource) -> Tensor | None:
    """Noise of one layer for `count` images.

    Args:
        noise_const: [H, W], what mode "const" gives to all images; its size and device are those of any noise.
        count: of images.
        mode: "random", "const" or "none".
        rng: for "random": one generator for the batch, or one per image.
    Returns:
        [count, 1, H, W] float32 ("random"), [H, W] ("const") or None.
    """
    if mode != "random":
        return noise_const if mode == "const" else None
    shape, device = noise_const.shape, noise_const.device
    if isinstance(rng, list):
        each = [torch.randn([1, 1, *shape], generator=one, device=device, dtype=torch.float32) for one in rng]
        return torch.cat(each)
    return torch.randn([count, 1, *shape], generator=rng, device=device, dtype=torch.float32)
