"""uint8 to [-1, 1] and back, and pictures."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ganops.images.pixels import (
    as_array,
    as_tensor,
    for_eyes,
    magnify,
    make_grid,
    quantize,
    save_png,
    to_8_bits,
    to_float,
    to_rgb,
    to_uint8,
    to_uint16,
)

LEVELS = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)


def test_to_float_is_affine_with_the_ends_at_one() -> None:
    img = to_float(LEVELS)
    assert img.dtype == torch.float32
    assert np.array_equal(img.numpy().ravel(), np.arange(256, dtype=np.float32) / np.float32(127.5) - np.float32(1))
    assert img.min() == -1
    assert img.max() == 1


def test_every_level_survives_the_round_trip() -> None:
    assert torch.equal(to_uint8(to_float(LEVELS)), LEVELS)


def test_every_level_of_16_bits_survives_the_round_trip() -> None:
    levels = np.arange(65536, dtype=np.uint16).reshape(1, 1, 256, 256)
    images = as_tensor(levels)
    assert images.dtype == torch.int16
    assert np.array_equal(as_array(images), levels)
    img = to_float(images)
    assert img.dtype == torch.float32
    assert np.array_equal(img.numpy(), levels.astype(np.float32) / np.float32(32767.5) - np.float32(1))
    assert (img.min(), img.max()) == (-1, 1)
    assert np.array_equal(as_array(quantize(img, 16)), levels)
    assert np.array_equal(to_8_bits(images).numpy(), np.floor(levels / 257 + 0.5))
    assert torch.equal(to_8_bits(LEVELS), LEVELS)
    assert torch.equal(quantize(to_float(LEVELS), 8), LEVELS)
    with pytest.raises(ValueError, match="int32"):
        to_float(images.int())


def test_to_uint16_follows_the_rule_exactly() -> None:
    values = [-5.0, -1.0, -0.99999, -0.5, -3.05e-5, -1.5e-5, 0.0, 0.25, 0.5, 0.99, 0.99999, 1.0, 7.0, float("inf")]
    tops = [min(max(value, -2), 2) for value in values]
    expected = [max(0, min(65535, (Fraction(value) * Fraction(65535, 2) + 32768).__floor__())) for value in tops]
    found = to_uint16(torch.tensor(values).reshape(1, 1, 1, -1))
    assert as_array(found).ravel().tolist() == expected
    with pytest.raises(ValueError, match="float images"):
        to_uint16(LEVELS)


def test_pictures_of_any_channels_and_bits() -> None:
    rng = np.random.default_rng(0)
    for channels, shown in ((1, 1), (2, 4), (3, 3), (4, 4), (5, 3), (9, 3)):
        images = rng.integers(0, 256, (3, channels, 6, 4), dtype=np.uint8)
        seen = for_eyes(images)
        assert seen.shape == (3, shown, 6, 4)
        if channels == 2:
            assert np.array_equal(seen, images[:, [0, 0, 0, 1]])
        else:
            assert np.array_equal(seen, images[:, :shown])
        assert np.array_equal(for_eyes(images * np.uint16(257)), seen)
        assert make_grid(seen, 2).shape[:2] == (2 * 6 + 2, 2 * 4 + 2)
    assert magnify(images[:, :3]).shape == (3, 3, 48, 32)


def test_alpha_is_laid_on_the_background() -> None:
    images = torch.randint(0, 256, [2, 4, 16, 16], dtype=torch.uint8)
    alpha, ground = images[:, 3:].double() / 255, torch.tensor([3.0, 250.0, 77.0]).double()[:, None, None]
    expected = (images[:, :3] * alpha + ground * (1 - alpha)).round()
    assert torch.equal(to_rgb(images, [3, 250, 77]), expected.to(torch.uint8))


def test_to_uint8_follows_the_rule_exactly() -> None:
    values = [-5.0, -1.0, -0.9999, -0.996, -0.5, -0.004, -0.0039, 0.0, 0.25, 0.5, 0.99, 0.9999, 1.0, 7.0]
    expected = [max(0, min(255, (Fraction(value) * Fraction(255, 2) + 128).__floor__())) for value in values]
    assert to_uint8(torch.tensor(values).reshape(1, 1, 1, -1)).ravel().tolist() == expected


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_to_uint8_computes_in_float32(dtype: torch.dtype) -> None:
    img = torch.linspace(-1.1, 1.1, 1001).reshape(1, 1, 1, -1).to(dtype)
    assert torch.equal(to_uint8(img), to_uint8(img.float()))


def test_infinities_are_clamped_and_gradients_stop() -> None:
    img = torch.tensor([[[[float("inf"), -float("inf")]]]], requires_grad=True)
    images = to_uint8(img)
    assert images.ravel().tolist() == [255, 0]
    assert not images.requires_grad


def test_wrong_types_are_refused() -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        to_float(torch.zeros(1, 1, 2, 2))
    with pytest.raises(ValueError, match="expected float"):
        to_uint8(LEVELS)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_grid_is_row_major_with_gaps(channels: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, channels, 3, 4), dtype=np.uint8)
    grid = make_grid(images, columns=3, gap=1, background=9)
    assert grid.shape == ((7, 14) if channels == 1 else (7, 14, channels))
    cube = grid.reshape(7, 14, channels)
    seen = np.zeros((7, 14), bool)
    for i, (top, left) in enumerate([(0, 0), (0, 5), (0, 10), (4, 0), (4, 5)]):
        assert np.array_equal(cube[top : top + 3, left : left + 4].transpose(2, 0, 1), images[i])
        seen[top : top + 3, left : left + 4] = True
    assert (cube[~seen] == 9).all()


def test_grid_refuses_nothing() -> None:
    with pytest.raises(ValueError, match=r"\(0, 1, 2, 2\)"):
        make_grid(np.zeros((0, 1, 2, 2), np.uint8), 3)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (5, 7, 4)])
def test_png_holds_the_pixels_and_the_same_bytes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(1).integers(0, 256, shape, dtype=np.uint8)
    for name in ("a.png", "deeper/b.png"):
        save_png(tmp_path / name, image)
    with Image.open(tmp_path / "a.png") as file:
        assert np.array_equal(np.asarray(file), image)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "deeper" / "b.png").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "deeper"]


def test_magnify_repeats_pixels() -> None:
    images = np.arange(2 * 3 * 16 * 16, dtype=np.int64).astype(np.uint8).reshape(2, 3, 16, 16)
    large = magnify(images)
    assert large.shape == (2, 3, 48, 48)
    assert np.array_equal(large[:, :, 1::3, 2::3], images)
    assert magnify(np.zeros((1, 1, 64, 64), np.uint8)).shape == (1, 1, 64, 64)
