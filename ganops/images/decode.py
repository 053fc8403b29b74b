"""From a file's bytes to upright pixels, before anything is cropped, resized or laid on a background.

What Pillow reads becomes L, RGB or, if anything may be transparent, RGBA, in this order:

- 1 bit: 0 and 255. Palettes, YCbCr, HSV, CMYK (plain formula) and LAB (to sRGB) become RGB. Embedded colour profiles
  are not applied, as everywhere in the field.
- 16-bit grey: for prepare.bits=8 round(v / 257), so 65535 is 255; for 16 it stays as it is, an array of uint16. Integer
  grey of 32 bits is taken as 16-bit (PGM is, in Pillow) and refused outside 0..65535; float grey is taken as 0..1 and
  refused outside: their range would be a guess. 16-bit colour, and grey with alpha, is cut to its high byte by Pillow
  itself.
- Of several frames the first counts; EXIF orientation is applied.

`.npy` files hold an array [H, W] or [H, W, C] of uint8 or uint16, and are taken as they are. What else they may hold
(other types, objects) is refused by their header; nothing in them is run.
"""

import io
import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from ganops.images.listing import BadImageError, readable_formats
from ganops.images.shard_index import Levels

MAX_PIXELS = 2 * 89_478_485  # Pillow's own limit for decompression bombs; also for what `pad` makes
NPY_MAGIC = b"\x93NUMPY"
ORIENTATION = 0x0112  # EXIF tag
# EXIF 2.32, 4.6.4: how to turn what is stored for it to stand upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def is_array(content: bytes) -> bool:
    """Whether a file is an .npy array, by its first bytes."""
    return content.startswith(NPY_MAGIC)


def array_shape(content: bytes) -> tuple[int, int, int]:
    """Height, width and channels of an .npy file, by its header.

    Raises:
        BadImageError: it is not whole, or not an image.
    """
    file = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, _, dtype = read(file)
    except (ValueError, KeyError, TypeError, SyntaxError) as error:
        raise BadImageError(f"cannot decode (not a whole .npy file: {' '.join(str(error).split())[:100]})") from None
    if dtype.kind != "u" or dtype.itemsize > 2 or len(shape) not in (2, 3) or not all(shape):
        raise BadImageError(
            f"is an array {list(shape)} of {dtype}, expected [height, width] or [height, width, channels] of uint8 or uint16"
        )
    height, width, *channels = shape
    if height * width > MAX_PIXELS:
        raise BadImageError(f"has more than {MAX_PIXELS} pixels")
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if len(content) - file.tell() != size:
        raise BadImageError(f"cannot decode ({len(content) - file.tell()} bytes of pixels, its header says {size})")
    return height, width, channels[0] if channels else 1


def read_array(content: bytes) -> Levels:
    """The image of an .npy file: [H, W, C] uint8 or uint16.

    Raises:
        BadImageError: it is not whole, or not an image.
    """
    shape = array_shape(content)
    values: NDArray[Any] = np.load(io.BytesIO(content), allow_pickle=False)
    return values.reshape(shape).astype(values.dtype.newbyteorder("="), copy=False)


def decode_image(content: bytes, bits: int) -> tuple[Image.Image | NDArray[np.uint16], bool]:
    """The first frame of what Pillow reads, upright.

    Args:
        content: the file's bytes.
        bits: 16 = grey of 16 bits stays an array.
    Returns:
        The image as L, RGB or RGBA; for `bits` = 16 and a file of 16-bit grey or floats an array of uint16: [H, W], or
        [H, W, 2] with alpha (0 or 65535) if one level is transparent. And whether the file holds more frames.
    Raises:
        BadImageError: its numbers mean nothing. Otherwise whatever Pillow's decoders raise.
    """
    with Image.open(io.BytesIO(content), formats=readable_formats()) as file:
        file.load()
        key, levels, turn = _key_colour(file, content), _grey_levels(file, bits), _turn(file)
        hidden = None
        if key is not None and file.mode.startswith("I;16"):
            hidden = np.asarray(file) == key
        image = _decode(file, key) if levels is None else None
        several_frames = _has_second_frame(file)
    if levels is not None and bits == 16:
        bands = [levels] if hidden is None else [levels, np.where(hidden, 0, 65535)]
        if turn is not None:
            bands = [np.asarray(Image.fromarray(band.astype(np.int32)).transpose(turn)) for band in bands]
        return (bands[0] if len(bands) == 1 else np.stack(bands, axis=2)).astype(np.uint16), several_frames
    if levels is not None:
        image = Image.fromarray(levels.astype(np.uint8))
        if hidden is not None:
            image = image.convert("RGBA")
            image.putalpha(Image.fromarray(np.where(hidden, 0, 255).astype(np.uint8)))
    assert image is not None
    return image if turn is None else image.transpose(turn), several_frames


def reason(error: Exception) -> str:
    """Why a file cannot be decoded, from what a decoder raised."""
    text = " ".join(str(error).split())
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return "file ends early"
    return text or type(error).__name__


def _has_second_frame(file: Image.Image) -> bool:
    try:
        file.seek(1)
    except Exception:  # damaged later frames do not matter: only the first is used
        return False
    return True


def _turn(file: Image.Image) -> Image.Transpose | None:
    """What the EXIF orientation asks for. TIFFs are turned by Pillow when they are loaded, and have none afterwards."""
    try:
        return UPRIGHT.get(file.getexif().get(ORIENTATION, 1))  # values outside 1-8 are nonsense of broken writers
    except Exception as error:  # anything, as in decoding; but the pixels are good, so this is no reason to refuse
        warnings.warn(f"EXIF data cannot be read, orientation unknown ({reason(error)})", stacklevel=1)
        return None


def _key_colour(file: Image.Image, content: bytes) -> Any:
    """Which value is transparent, if any, on the scale of the loaded pixels.

    Pillow leaves a PNG's key as the file has it, also where it spreads pixels of 2 and 4 bits over 0-255 and cuts
    those of 16-bit colour to their high byte.
    """
    key = file.info.get("transparency")
    if file.format == "PNG" and file.mode == "L" and isinstance(key, int):
        key = key * 255 // (2 ** min(8, content[24]) - 1)  # byte 24 of a PNG is its bit depth
    elif file.format == "PNG" and file.mode == "RGB" and isinstance(key, tuple) and content[24] == 16:
        key = tuple(value >> 8 for value in key)
    return key


def _grey_levels(file: Image.Image, bits: int) -> NDArray[Any] | None:
    """Grey of more than 8 bits as levels of `bits` bits, [H, W]; None if the file is something else."""
    if file.mode == "F":
        floats = np.asarray(file).astype(np.float64)
        if not (floats.min() >= 0 and floats.max() <= 1):  # also refuses NaN
            raise BadImageError(f"has floats from {floats.min():g} to {floats.max():g}, expected 0 to 1")
        scaled: NDArray[Any] = np.floor(floats * (2**bits - 1) + 0.5)
        return scaled
    if file.mode != "I" and not file.mode.startswith("I;16"):
        return None
    values: NDArray[Any] = np.asarray(file)
    if values.min() < 0 or values.max() > 65535:
        raise BadImageError(
            f"has 32-bit integers from {values.min()} to {values.max()}, expected 0 to 65535; save it with 16 bits"
        )
    levels: NDArray[Any] = values if bits == 16 else to_8_bits(values)
    return levels


def to_8_bits(levels: NDArray[Any]) -> NDArray[np.uint8]:
    """Levels 0 .. 65535 to 0 .. 255, round(v / 257)."""
    return ((levels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def _decode(file: Image.Image, key: Any) -> Image.Image:
    """The first frame of a file of at most 8 bits per channel as L, RGB or, if anything may be transparent, RGBA."""
    if key is not None:
        file.info["transparency"] = key
    if file.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        turned = ImageCms.profileToProfile(file, *profiles, outputMode="RGB")
        assert turned is not None  # it is only None when done in place
        return turned
    if file.has_transparency_data:
        return file.convert("RGBA")
    return file.convert("L" if file.mode in ("1", "L") else "RGB")
