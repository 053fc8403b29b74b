"""From a file's bytes to the pixels that are trained on: decoded, brought to the number of channels, cropped, resized.

`decode` says what becomes of the modes that Pillow reads. Then:

- Transparency (alpha, palette or key colour): with 1 or 3 channels the image is laid on `background` before it is
  resized; with 2 or 4 it is resized premultiplied, so what is invisible does not bleed into edges.
- Colour to grey: ITU-R 601 luma. Grey to colour: three times the same.
- `.npy` arrays must have exactly the channels that are asked for; with 2 and 4, the last one is alpha.
- 8 bits: everything in Pillow's 8-bit arithmetic, channel by channel. uint16 arrays become round(v / 257) first.
- 16 bits: grey files and `.npy` arrays only. Files of 8 bits become v * 257, so 255 is 65535; those of 16 bits are not
  cut. Resized in float32, which holds every level exactly, and rounded to the nearest level once, at the end (bicubic
  and lanczos overshoot: cut to 0..65535). An image that has the right size already keeps every level.
"""

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from ganops.images.decode import MAX_PIXELS, decode_image, is_array, read_array, reason, to_8_bits
from ganops.images.listing import BadImageError
from ganops.images.shard_index import Levels

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
WITH_ALPHA = (2, 4)  # channels, of which the last is alpha; as in `pixels`, which imports torch
PREMULTIPLIED = {"LA": "La", "RGBA": "RGBa"}
OPAQUE = 65535


@dataclass(frozen=True)
class Conversion:
    """What is made of every image.

    Attributes:
        height: px; 0 = height and width as they are.
        width: px.
        channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA; or any other number, of arrays.
        bits: 8 or 16 per channel.
        crop: none (must have the ratio of height and width), center (the largest centred part of that ratio) or pad (to
            that ratio, with background).
        resize_filter: Pillow's name for it.
        background: RGB, 0-255.
    """

    height: int
    width: int
    channels: int
    bits: Literal[8, 16]
    crop: Literal["none", "center", "pad"]
    resize_filter: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
    background: tuple[int, int, int]


@dataclass(frozen=True)
class Converted:
    """An image as it is trained on, and what was noticed on the way.

    Attributes:
        pixels: [C, H, W] uint8, or uint16 for 16 bits.
        enlarged: what was resized was smaller than the result.
        several_frames: the file holds more frames than the first.
        warnings: Pillow's.
    """

    pixels: Levels
    enlarged: bool
    several_frames: bool
    warnings: tuple[str, ...]


def convert_image(content: bytes, conversion: Conversion) -> Converted:
    """All steps for one file.

    Args:
        content: the file's bytes.
        conversion: what to make of it.
    Raises:
        BadImageError: it cannot be decoded, or not be converted as asked.
    """
    if not content:
        raise BadImageError("the file is empty")
    several_frames = False
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            if is_array(content):
                image = _of_array(read_array(content), conversion)
            else:
                decoded, several_frames = decode_image(content, conversion.bits)
                image = _of_file(decoded, conversion)
            pixels, enlarged = _fit(image, conversion)
        except (BadImageError, MemoryError):
            raise
        except Image.DecompressionBombError:
            raise BadImageError(f"has more than {MAX_PIXELS} pixels (a decompression bomb?)") from None
        except UnidentifiedImageError:
            raise BadImageError("cannot decode (no image format that Pillow reads)") from None
        except Exception as error:  # Pillow's decoders raise almost anything for damaged files
            raise BadImageError(f"cannot decode ({reason(error)})") from None
    return Converted(
        pixels=np.ascontiguousarray(pixels.transpose(2, 0, 1)),
        enlarged=enlarged,
        several_frames=several_frames,
        warnings=tuple(" ".join(str(warning.message).split()) for warning in caught),
    )


def _of_array(levels: Levels, conversion: Conversion) -> Image.Image | Levels:
    """An image in 8 bits of 1 to 4 channels, which takes the way of all files; else levels [H, W, C]."""
    height, width, channels = levels.shape
    if channels != conversion.channels:
        raise BadImageError(
            f"is an array of {width}x{height} pixels with {channels} channels, but prepare.channels={conversion.channels}; "
            "arrays must have exactly as many"
        )
    if conversion.bits == 16:
        return levels.astype(np.uint16) * 257 if levels.dtype == np.uint8 else levels
    levels = to_8_bits(levels) if levels.dtype == np.uint16 else levels
    return Image.fromarray(np.squeeze(levels, axis=2) if channels == 1 else levels) if channels in MODES else levels


def _of_file(decoded: Image.Image | NDArray[np.uint16], conversion: Conversion) -> Image.Image | Levels:
    """With the channels of the result, on the background if there is no place for transparency."""
    channels = conversion.channels
    if channels not in MODES or (conversion.bits == 16 and channels != 1):
        asked = f"prepare.channels={channels}, prepare.bits={conversion.bits}"
        raise BadImageError(f"cannot give {asked}: only .npy arrays hold such images (16 bits also grey files)")
    if not isinstance(decoded, Image.Image):
        return _flatten_levels(decoded, conversion)
    if decoded.mode == "RGBA" and channels not in WITH_ALPHA:
        ground = Image.new("RGBA", decoded.size, (*conversion.background, 255))
        decoded = Image.alpha_composite(ground, decoded).convert("RGB")
    image = decoded.convert(MODES[channels])
    return np.asarray(image)[:, :, None].astype(np.uint16) * 257 if conversion.bits == 16 else image


def _flatten_levels(levels: NDArray[np.uint16], conversion: Conversion) -> NDArray[np.uint16]:
    """16-bit grey [H, W] or [H, W, 2], whose transparent pixels become background, to [H, W, 1]."""
    if levels.ndim == 2:
        return levels[:, :, None]
    ground = _background(1, conversion)[0]
    return np.where(levels[:, :, 1:] == OPAQUE, levels[:, :, :1], ground).astype(np.uint16)


def _background(channels: int, conversion: Conversion) -> list[int]:
    """What stands beside padded images: the background, opaque; 0 in channels that are not colours."""
    colour = Image.new("RGB", (1, 1), conversion.background).convert(MODES.get(channels, "RGB")).getpixel((0, 0))
    levels = list(colour) if isinstance(colour, tuple) else [colour or 0]
    levels += [0] * (channels - len(levels))
    return [int(level) * (257 if conversion.bits == 16 else 1) for level in levels]


def _window(width: int, height: int, conversion: Conversion) -> tuple[int, int, int, int]:
    """Left, top, width and height of what is resized; with `pad` it reaches beyond the image."""
    wide, high = width * conversion.height, height * conversion.width
    if wide == high or not conversion.height:
        return 0, 0, width, height
    if conversion.crop == "none":
        square = conversion.width == conversion.height
        asked = "square" if square else f"of the ratio {conversion.width}:{conversion.height} (width:height)"
        raise BadImageError(
            f"is {width}x{height}, not {asked}, and prepare.crop=none; center or pad make it {'square' if square else 'so'}"
        )
    new_width, new_height = width, height
    if (wide > high) == (conversion.crop == "center"):  # the height decides: less is kept of the width, or more added
        new_width = _scaled(height, conversion.width, conversion.height, conversion.crop)
    else:
        new_height = _scaled(width, conversion.height, conversion.width, conversion.crop)
    if new_width * new_height > MAX_PIXELS:
        raise BadImageError(f"is {width}x{height}; padded it has more than {MAX_PIXELS} pixels")
    if conversion.crop == "pad":
        return -((new_width - width) // 2), -((new_height - height) // 2), new_width, new_height
    return (width - new_width) // 2, (height - new_height) // 2, new_width, new_height


def _scaled(side: int, numerator: int, denominator: int, crop: str) -> int:
    """The other side: rounded to the nearest px for a part of the image, up for what must hold all of it."""
    product = side * numerator
    return -(-product // denominator) if crop == "pad" else max((2 * product + denominator) // (2 * denominator), 1)


def _fit(image: Image.Image | Levels, conversion: Conversion) -> tuple[Levels, bool]:
    """Cropped or padded, then resized: [H, W, C]; and whether it was enlarged."""
    width, height = image.size if isinstance(image, Image.Image) else image.shape[1::-1]
    window = _window(width, height, conversion)
    enlarged = window[2] < conversion.width or window[3] < conversion.height
    size = (conversion.width, conversion.height) if conversion.height else window[2:]
    resample = Image.Resampling[conversion.resize_filter.upper()]
    if not isinstance(image, Image.Image):
        return _resize_levels(_cut_levels(image, window, conversion), size, resample), enlarged
    pixels = np.asarray(_resize(_cut(image, window, conversion), size, resample))
    return (pixels[:, :, None] if pixels.ndim == 2 else pixels), enlarged


def _cut(image: Image.Image, window: tuple[int, int, int, int], conversion: Conversion) -> Image.Image:
    left, top, width, height = window
    if (left, top) == (0, 0) and image.size == (width, height):
        return image
    if conversion.crop == "center":
        return image.crop((left, top, left + width, top + height))
    ground = Image.new("RGB", (width, height), conversion.background).convert(image.mode)
    ground.paste(image, (-left, -top))
    return ground


def _resize(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """No step for images of the right size; no `reducing_gap`, which trades exactness for speed."""
    if image.size == size:
        return image
    if image.mode in PREMULTIPLIED and resample != Image.Resampling.NEAREST:
        return image.convert(PREMULTIPLIED[image.mode]).resize(size, resample).convert(image.mode)
    return image.resize(size, resample)


def _cut_levels(levels: Levels, window: tuple[int, int, int, int], conversion: Conversion) -> Levels:
    """`_cut` for arrays [H, W, C]."""
    left, top, width, height = window
    if conversion.crop != "pad":
        return levels[top : top + height, left : left + width]
    channels = levels.shape[2]
    ground = np.empty((height, width, channels), levels.dtype)
    ground[:] = _background(channels, conversion)
    ground[-top : levels.shape[0] - top, -left : levels.shape[1] - left] = levels
    return ground


def _resize_levels(levels: Levels, size: tuple[int, int], resample: Image.Resampling) -> Levels:
    """`_resize` for arrays [H, W, C]: uint8 as Pillow's L, uint16 as floats."""
    if levels.shape[1::-1] == size:
        return levels
    if levels.dtype == np.uint8:  # more than 4 channels: none of them is alpha
        return np.stack([np.asarray(Image.fromarray(band).resize(size, resample)) for band in _bands(levels)], axis=2)
    values = levels.astype(np.float32)
    premultiplied = values.shape[2] in WITH_ALPHA and resample != Image.Resampling.NEAREST
    if premultiplied:
        values[:, :, :-1] *= values[:, :, -1:] / OPAQUE
    values = np.stack([np.asarray(Image.fromarray(band).resize(size, resample)) for band in _bands(values)], axis=2)
    if premultiplied:  # where alpha rounds to 0, colour means nothing
        values[:, :, :-1] /= np.maximum(values[:, :, -1:], 0.5) / OPAQUE
    rounded: NDArray[np.uint16] = np.clip(np.floor(values + 0.5), 0, OPAQUE).astype(np.uint16)
    return rounded


def _bands(values: NDArray[Any]) -> list[NDArray[Any]]:
    """Channel by channel [H, W], contiguous."""
    return [np.ascontiguousarray(values[:, :, channel]) for channel in range(values.shape[2])]
