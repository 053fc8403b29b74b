"""Between images of 8 or 16 bits and the networks' [-1, 1], and pictures for people.

The rule is the field's: 0 is -1, the highest level is 1, and back with rounding to the nearest level. Real and generated
images pass through the same two functions, so `quantize(to_float(images), bits) == images` for every level.

On disk and in numpy images of 16 bits are uint16. In torch they are the same bits as int16 (65535 is -1), since torch has
hardly an operation for uint16: such tensors are copied, gathered and concatenated as they are, on any device.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ganops.files import atomic_path
from ganops.images.shard_index import Levels

WITH_ALPHA = (2, 4)  # channels, of which the last is alpha


def as_tensor(images: Levels) -> Tensor:
    """uint8, or uint16 as int16 of the same bits; shares the memory."""
    return torch.from_numpy(images.view(np.int16) if images.dtype == np.uint16 else images)


def as_array(images: Tensor) -> Levels:
    """The reverse of `as_tensor`, for a tensor on the CPU."""
    array: Levels = images.numpy()
    return array.view(np.uint16) if images.dtype == torch.int16 else array


def _levels_of_16_bits(images: Tensor) -> Tensor:
    """int16 bit patterns to levels 0..65535, int32."""
    return images.to(torch.int32) & 0xFFFF


def to_float(images: Tensor) -> Tensor:
    """Images as the networks see them.

    Args:
        images: [N, C, H, W] uint8, or int16 as `as_tensor` gives it.
    Returns:
        [N, C, H, W] float32 in [-1, 1], x / 127.5 - 1 or x / 32767.5 - 1, on the same device.
    Raises:
        ValueError: `images` is neither.
    """
    if images.dtype == torch.int16:
        return _levels_of_16_bits(images).to(torch.float32) / 32767.5 - 1
    if images.dtype != torch.uint8:
        raise ValueError(f"expected uint8 images, or int16 as the bits of uint16, got {images.dtype}")
    return images.to(torch.float32) / 127.5 - 1


def to_8_bits(images: Tensor) -> Tensor:
    """uint8 as it is; 16 bits (int16) to uint8, round(x / 257), on the same device."""
    if images.dtype == torch.uint8:
        return images
    return ((_levels_of_16_bits(images) + 128) // 257).to(torch.uint8)


def quantize(img: Tensor, bits: Literal[8, 16]) -> Tensor:
    """`to_uint8` or `to_uint16`."""
    return to_uint8(img) if bits == 8 else to_uint16(img)


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


def to_uint16(img: Tensor) -> Tensor:
    """`to_uint8` for 16 bits: floor(32767.5 x + 32768) clamped to 0..65535, as int16 of the same bits."""
    if not img.is_floating_point():
        raise ValueError(f"expected float images, got {img.dtype}")
    levels = (img.detach().to(torch.float32) * 32767.5 + 32768).clamp(0, 65535).to(torch.int32)
    return torch.where(levels > 32767, levels - 65536, levels).to(torch.int16)


def to_rgb(images: Tensor, background: Sequence[int]) -> Tensor:
    """What a network of RGB images sees of images with other channels.

    Args:
        images: [N, C, H, W] uint8. 1: grey, three times. 2 (grey and alpha) and 4 (RGBA): laid on `background`. 5 and
            more: the first three.
        background: RGB, 0-255.
    Returns:
        [N, 3, H, W] uint8.
    """
    channels = images.shape[1]
    colour = images[:, :1].expand(-1, 3, -1, -1) if channels < 3 else images[:, :3]
    if channels not in WITH_ALPHA:
        return colour
    alpha = images[:, -1:].to(torch.int32)
    ground = torch.tensor([*background], dtype=torch.int32, device=images.device)[:, None, None]
    return ((colour.to(torch.int32) * alpha + ground * (255 - alpha) + 127) // 255).to(torch.uint8)


def describe_rgb(channels: int, background: Sequence[int]) -> str:
    """What `to_rgb` does with so many channels, for protocols."""
    if channels in WITH_ALPHA:
        return f"{'grey' if channels == 2 else 'RGB'} on background {' '.join(map(str, background))}"
    return {1: "grey, three times", 3: "RGB"}.get(channels, f"the first three of {channels}")


def for_eyes(images: Levels) -> NDArray[np.uint8]:
    """Images as a PNG can show them: 8 bits (round(x / 257) of 16), and the first three of more than 4 channels.

    Args:
        images: [N, C, H, W] uint8 or uint16.
    Returns:
        [N, C', H, W] uint8: 1 channel grey, 3 RGB, 4 RGBA; grey with alpha is RGBA too.
    """
    shown: NDArray[np.uint8] = (
        to_8_bits(as_tensor(images)).numpy() if images.dtype == np.uint16 else images.astype(np.uint8, copy=False)
    )
    if images.shape[1] == 2:
        return shown[:, [0, 0, 0, 1]]
    return shown[:, :3] if images.shape[1] > 4 else shown


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
    """Small images for the eye: pixels repeated by a whole factor until the longer side is about `at_least` px.

    Args:
        images: [N, C, H, W] uint8.
        at_least: px; images from this size on come back as they are.
    """
    factor = max(at_least // max(images.shape[2:]), 1)
    return images.repeat(factor, axis=2).repeat(factor, axis=3)


def save_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Writes a PNG; the same pixels give the same bytes.

    Args:
        path: replaced as a whole; missing folders are made.
        image: [H, W] or [H, W, 3 or 4] uint8.
    """
    with atomic_path(path) as temporary:
        Image.fromarray(np.ascontiguousarray(image)).save(temporary, format="PNG")
