"""The shape of images: height and width, and the base grid that networks start from.

Networks double (G) and halve (D) both sides block by block. What they start from is derived, there is no key for it: the
smallest grid that halving both sides evenly leads to, with no side below 3. So 256x192 starts from 4x3, 640x1024 from
5x8, and squares of powers of two from 4x4, as published. Sizes are height x width throughout.

Channel counts of layers go by the nominal resolution 4 * 2^k of k doublings, whatever the grid.
"""

from collections.abc import Sequence

LEAST_SIDE = 3  # of the base grid: below, a 3x3 convolution sees mostly its own padding
# Of the base grid's shorter side: what is larger has hardly a factor of two. From 1080x1920 the networks would start at
# 135x240, with one weight per cell in D's dense layer, and see nothing coarser than that.
MOST_SIDE = 15

Resolution = int | Sequence[int]
"""px: one number for squares, else (height, width); as in prepare.resolution."""


def height_width(resolution: Resolution) -> tuple[int, int]:
    """Both sides in px."""
    if isinstance(resolution, int):
        return resolution, resolution
    height, width = resolution
    return height, width


def size_name(height: int, width: int) -> int | str:
    """256 for a square, else "256x192" (height x width): how files and protocols write a size."""
    return height if height == width else f"{height}x{width}"


def base_grid(height: int, width: int) -> tuple[int, int]:
    """What networks of these images start from: (height, width) of the grid.

    Raises:
        ValueError: no such networks; names the nearest sizes that have some. In a user's words.
    """
    grid = _halve(height, width)
    if grid is None:
        near = " or ".join(f"{h}x{w}" for h, w in _nearest_sizes(height, width))
        raise ValueError(
            f"{height}x{width} px (height x width) cannot be reached by doubling: both sides must be a small number (the "
            f"shorter one from {LEAST_SIDE} to {MOST_SIDE}) times the same power of two. The nearest that can: {near}."
        )
    return grid


def nominal_resolution(height: int, width: int) -> int:
    """4 * 2^k for networks of k doublings, which `channel_base / r` goes by: 256 for 256x256, 256x192 and 320x512.

    Raises:
        ValueError: as `base_grid`.
    """
    return 4 * height // base_grid(height, width)[0]


def size_at(nominal: int, grid: Sequence[int]) -> tuple[int, int]:
    """(height, width) of images and features at a nominal resolution: `grid` at 4, twice as much at 8, and so on."""
    return grid[0] * nominal // 4, grid[1] * nominal // 4


def _halve(height: int, width: int) -> tuple[int, int] | None:
    """The base grid; None if there is none, or no doubling from it."""
    h, w = height, width
    while not (h % 2 or w % 2) and min(h, w) >= 2 * LEAST_SIDE:
        h, w = h // 2, w // 2
    return (h, w) if h < height and LEAST_SIDE <= min(h, w) <= MOST_SIDE else None


def _nearest_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """The two sizes with a base grid that differ least, in parts of the sides; squares for a square."""
    found = set()
    for k in range(1, max(height, width).bit_length() + 1):
        lower = [max(side // 2**k, LEAST_SIDE) for side in (height, width)]
        sizes = {((lower[0] + i) * 2**k, (lower[1] + j) * 2**k) for i in (0, 1) for j in (0, 1)}
        found |= {size for size in sizes if _halve(*size) and (height != width or size[0] == size[1])}
    return sorted(found, key=lambda size: (abs(size[0] / height - 1) + abs(size[1] / width - 1), size))[:2]
