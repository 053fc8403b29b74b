"""The two resizes in front of feature networks, as products with two matrices: one for rows, one for columns.

Both filters are separable and linear, and their weights depend on the two sizes alone. On a CPU most of a matrix is zero,
so it is taken in bands: a few outputs with the inputs that reach them (bench/features.py has the speeds).
"""

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

CPU = torch.device("cpu")
RESIZER_IDS = {"clean": "pil-bicubic-antialias", "legacy": "tf1-bilinear"}
CUBIC = -0.5  # Pillow's parameter of the cubic kernel (Keys 1981)
# Outputs per band. A wide one multiplies more zeros, a narrow one makes more calls; measured best from 32 to 1024 px.
BAND_LARGER, BAND_SMALLER = 24, 16

Band = tuple[slice, slice, Tensor, Tensor]  # outputs, the inputs that reach them, weights [in, out] and [out, in]


def resizer_id(resize: str, size: int) -> str:
    """What a protocol calls a resize to `size` px: pil-bicubic-antialias-299, tf1-bilinear-299, or none."""
    return "none" if resize == "none" else f"{RESIZER_IDS[resize]}-{size}"


def resize_images(images: Tensor, size: int, resize: str) -> Tensor:
    """Resizes in floating point, without rounding to whole grey levels.

    Args:
        images: uint8 [N, C, H, W], any H and W.
        size: px.
        resize: "clean": Pillow's bicubic filter of 32-bit images, which widens where it makes smaller, cut to 0..255.
            "legacy": the bilinear one of TensorFlow 1, which does not: output i lies at input i * in / out.
    Returns:
        float32 [N, C, size, size] in 0..255, on the device of `images`. An image's result does not depend on the others.
        Within 1e-4 grey levels of Pillow's (2e-4 where a thousand pixels become a few); on CUDA only while
        TensorFloat-32 is off, which is the caller's.
    Source: Parmar et al. 2022 (clean); Heusel et al. 2017 (legacy), whose network file resizes so.
    """
    height, width = images.shape[2:]
    if images.is_cuda:
        rows, columns = weights(height, size, resize, images.device), weights(width, size, resize, images.device)
        return (rows.T @ (images.float() @ columns)).clamp_(0, 255)
    resized = torch.empty([*images.shape[:2], size, size])
    for image, out in zip(images, resized, strict=True):  # one at a time stays in the cache
        _resize_banded(image, out, bands(height, size, resize), bands(width, size, resize))
    return resized


def _resize_banded(image: Tensor, out: Tensor, rows: tuple[Band, ...], columns: tuple[Band, ...]) -> None:
    """uint8 [C, H, W] to float32 `out` [C, size, size]. Between the two, an image row holds all channels: [H, C, W]."""
    channels, height, width = image.shape
    size = out.shape[2]
    img = torch.empty([height, channels, width]).copy_(image.transpose(0, 1)).view(-1, width)
    narrow, square = torch.empty([height * channels, size]), torch.empty([size, channels * size])
    for outputs, inputs, weight, _ in columns:
        torch.mm(img[:, inputs], weight, out=narrow[:, outputs])
    narrow = narrow.view(height, -1)
    for outputs, inputs, _, weight in rows:
        torch.mm(weight, narrow[inputs], out=square[outputs])
    torch.clamp(square.view(size, channels, size).transpose(0, 1), 0, 255, out=out)


@functools.lru_cache(maxsize=64)
def weights(inputs: int, outputs: int, resize: str, device: torch.device = CPU) -> Tensor:
    """float32 [inputs, outputs]: one axis of a resize; columns sum to 1."""
    table = _bicubic(inputs, outputs) if resize == "clean" else _bilinear(inputs, outputs)
    return torch.from_numpy(table.astype(np.float32)).to(device)


@functools.lru_cache(maxsize=64)
def bands(inputs: int, outputs: int, resize: str) -> tuple[Band, ...]:
    """`weights` without most of its zeros."""
    table, width = weights(inputs, outputs, resize), BAND_LARGER if inputs < outputs else BAND_SMALLER
    found = []
    for start in range(0, outputs, width):
        part = table[:, start : start + width]
        used = part.any(1).nonzero()[:, 0]
        reach = slice(int(used[0]), int(used[-1]) + 1)
        block = part[reach]
        found.append((slice(start, start + width), reach, block.contiguous(), block.T.contiguous()))
    return tuple(found)


def _bicubic(inputs: int, outputs: int) -> NDArray[np.float64]:
    """Pillow's: output i sees the inputs within 2 widths of the cubic kernel of its centre, weighted to a sum of 1."""
    scale = inputs / outputs
    width = max(scale, 1.0)
    centre = (np.arange(outputs) + 0.5) * scale
    first, end = (centre - 2 * width + 0.5).astype(int), (centre + 2 * width + 0.5).astype(int)
    place = np.arange(inputs)[:, None]
    x = np.abs((place - centre + 0.5) / width)
    near = ((CUBIC + 2) * x - (CUBIC + 3)) * x**2 + 1
    far = CUBIC * (((x - 5) * x + 8) * x - 4)
    table = np.where(x < 1, near, np.where(x < 2, far, 0.0)) * ((place >= first) & (place < end))
    normalised: NDArray[np.float64] = table / table.sum(0)
    return normalised


def _bilinear(inputs: int, outputs: int) -> NDArray[np.float64]:
    """TensorFlow 1's, with neither half-pixel centres nor aligned corners; the last input is repeated."""
    place = np.arange(outputs)
    lower, upper_share = place * inputs // outputs, place * inputs % outputs / outputs
    table = np.zeros([inputs, outputs])
    table[lower, place] = 1 - upper_share
    table[np.minimum(lower + 1, inputs - 1), place] += upper_share
    return table
