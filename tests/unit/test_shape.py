"""The base grid of any size, and the sizes that have none."""

import pytest

from ganops.shape import base_grid, height_width, nominal_resolution, size_at, size_name


@pytest.mark.parametrize(
    ("size", "grid", "nominal"),
    [
        ((256, 192), (4, 3), 256),
        ((640, 1024), (5, 8), 512),
        ((8, 8), (4, 4), 8),
        ((1024, 1024), (4, 4), 1024),
        ((96, 96), (3, 3), 128),
        ((28, 28), (7, 7), 16),
        ((1024, 1920), (8, 15), 512),
        ((64, 1024), (4, 64), 64),
        ((6, 6), (3, 3), 8),
        ((16, 12), (4, 3), 16),
    ],
)
def test_known_grids(size: tuple[int, int], grid: tuple[int, int], nominal: int) -> None:
    assert base_grid(*size) == grid
    assert nominal_resolution(*size) == nominal
    assert size_at(nominal, grid) == size


def test_every_size_is_a_doubled_grid_or_refused() -> None:
    """Against the definition: some k >= 1 with sides h 2^k, w 2^k; the largest k whose grid is not below 3."""
    for height in range(1, 100):
        for width in range(1, 100):
            grids = [(height >> k, width >> k) for k in range(1, 7) if not (height % 2**k or width % 2**k)]
            fitting = [grid for grid in grids if min(grid) >= 3]
            if not fitting or min(fitting[-1]) > 15:
                with pytest.raises(ValueError, match=f"^{height}x{width} px"):
                    base_grid(height, width)
                continue
            assert base_grid(height, width) == fitting[-1]


@pytest.mark.parametrize(
    ("size", "near"),
    [
        ((250, 250), "256x256 or 240x240"),
        ((1080, 1920), "1024x1920 or 1152x1920"),
        ((7, 9), "8x8 or 8x10"),
        ((1, 1), "6x6 or 8x8"),
        ((34, 34), "32x32 or 36x36"),
    ],
)
def test_the_nearest_sizes_are_named(size: tuple[int, int], near: str) -> None:
    with pytest.raises(ValueError, match=f"The nearest that can: {near}\\.$"):
        base_grid(*size)
    for text in near.split(" or "):
        assert base_grid(*map(int, text.split("x")))


def test_ways_to_write_a_size() -> None:
    assert height_width(256) == (256, 256)
    assert height_width([256, 192]) == (256, 192)
    assert (size_name(256, 256), size_name(256, 192)) == (256, "256x192")
