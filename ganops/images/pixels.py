"""Between uint8 images and the networks' [-1, 1], and pictures for people.

The rule is the field's: 0 is -1, 255 is 1, and back with rounding to the nearest level. Real and generated images
pass through the same two functions, so `to_uint8(to_float(images)) == images` for every level.
"""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ganops.files import atomic_path


def to_float(images: Tensor) -> Tensor:
    """Images as the networks see them.

    Args:
        images: [N, C, H, W] uint8.
    Returns:
        [N, C, H, W] float32 in [-1, 1], x / 127.5 - 1, on the same device.
    Raises:
        ValueError: `images` is not uint8.
    """
    if images.dtype != torch.uint8:
        raise ValueError(f"expected uint8 images, got {images.dtype}")
    return images.to(torch.float32) / 127.5 - 1


def to_uint8(img: Tensor) -> Tensor:
    """Generated images as they are stored and measured. Not differentiable.

    Args:
        img: [N, C, H, W], any float dtype; values outside [-1, 1] are clamped, NaN gives any level.
    Returns:
        [N, C, H, W] uint8, floor(127.5 x + 128) clamped to 0..255, computed in float32, on the same device.
    Raises:
        ValueError: `img` is not floating point.
    """
    if not img.is_floating_point():
        raise ValueError(f"expected float images, got {img.dtype}")
    # The cast cuts off, which for what is not negative is floor.
    return (img.detach().to(torch.float32) * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def make_grid(images: NDArray[np.uint8], columns: int, gap: int = 2, background: int = 255) -> NDArray[np.uint8]:
    """One picture of many, row by row from the top left.

    Args:
        images: [N, C, H, W] uint8, C in 1, 3, 4.
        columns: images per row; the last row may be shorter.
        gap: px between images; none at the rim.
        background: level of gaps and empty places, all channels.
    Returns:
        [H', W'] uint8 if C = 1, else [H', W', C].
    Raises:
        ValueError: there is no image, or a number is out of range.
    """
    if images.ndim != 4 or images.dtype != np.uint8 or not len(images) or columns < 1 or gap < 0:
        raise ValueError(f"images {images.dtype} {images.shape}, columns={columns}, gap={gap}")
    count, channels, height, width = images.shape
    rows = -(-count // columns)
    shape = (rows * (height + gap) - gap, columns * (width + gap) - gap, channels)
    grid = np.full(shape, background, np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        grid[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    return grid[:, :, 0] if channels == 1 else grid


def magnify(images: NDArray[np.uint8], at_least: int = 48) -> NDArray[np.uint8]:
    """Small images for the eye: pixels repeated by a whole factor until they are about `at_least` px wide.

    Args:
        images: [N, C, H, W] uint8.
        at_least: px; images from this width on come back as they are.
    """
    factor = max(at_least // images.shape[3], 1)
    return images.repeat(factor, axis=2).repeat(factor, axis=3)


def save_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Writes a PNG; the same pixels give the same bytes.

    Args:
        path: replaced as a whole; missing folders are made.
        image: [H, W] or [H, W, 3 or 4] uint8.
    """
    with atomic_path(path) as temporary:
        Image.fromarray(np.ascontiguousarray(image)).save(temporary, format="PNG")
