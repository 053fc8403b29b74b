"""Raw images: where they lie, and from a file's bytes to the pixels that are trained on.

An image is a file whose extension Pillow knows (`readable_extensions`); hidden files and what operating systems
leave behind are passed over, other files are listed as ignored. Folders that are links are followed when they lead
outside the source; those that lead back into it would loop or count images twice, and are listed.

What happens to the modes that Pillow reads, in this order:

- 1 bit: 0 and 255. Palettes, YCbCr, HSV, CMYK (plain formula) and LAB (to sRGB) become RGB. Embedded colour profiles
  are not applied, as everywhere in the field.
- 16-bit grey: round(v / 257), so 65535 is 255. Integer grey of 32 bits is taken as 16-bit (PGM is, in Pillow) and
  refused outside 0..65535; float grey is taken as 0..1 and refused outside: their range would be a guess. 16-bit
  colour is cut to its high byte by Pillow itself.
- Transparency (alpha, palette or key colour): with fewer than 4 channels the image is laid on `background` before it
  is resized; with 4 it is resized premultiplied, so what is invisible does not bleed into edges.
- Colour to grey: ITU-R 601 luma. Grey to colour: three times the same.
- Of several frames the first counts.
"""

import io
import os
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError

from ganops.errors import DataError
from ganops.images.labels import TABLES, first_ten, repeated

MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# Known to Pillow, but read through other programs (EPS) or not at all on their own (the others).
NO_IMAGES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
MAX_PIXELS = 2 * 89_478_485  # Pillow's own limit for decompression bombs; also for the square that `pad` makes
LEFT_BEHIND = {"__MACOSX", "Thumbs.db", "ehthumbs.db", "desktop.ini", "$RECYCLE.BIN", "@eaDir"}  # by operating systems
MAX_FILE_BYTES = 1 << 31  # Pillow's largest allowed image takes less even with 64 bits per pixel
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


class BadImageError(Exception):
    """This file cannot be used; the text is the reason, without the file's name."""


@dataclass(frozen=True)
class Listing:
    """What the source holds.

    Attributes:
        names: of the images, as paths below the source, sorted.
        locations: where to read each: a path, or a zip entry's own name.
        tables: possible label tables at the top, name to location.
        ignored: names of files that are no images by extension.
        links: linked folders that were not followed.
    """

    names: tuple[str, ...]
    locations: tuple[str, ...]
    tables: dict[str, str]
    ignored: tuple[str, ...]
    links: tuple[str, ...]


@dataclass(frozen=True)
class Conversion:
    """What is made of every image.

    Attributes:
        resolution: height and width, px; 0 = as it is, of any shape.
        channels: 1 grey, 3 RGB, 4 RGBA.
        crop: none (must be square), center (largest centred square) or pad (to a square, with background).
        resize_filter: Pillow's name for it.
        background: RGB, 0-255.
    """

    resolution: int
    channels: Literal[1, 3, 4]
    crop: Literal["none", "center", "pad"]
    resize_filter: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
    background: tuple[int, int, int]


@dataclass(frozen=True)
class Converted:
    """An image as it is trained on, and what was noticed on the way.

    Attributes:
        pixels: [C, H, W] uint8.
        enlarged: the square that was resized was smaller than the resolution.
        several_frames: the file holds more frames than the first.
        warnings: Pillow's.
    """

    pixels: NDArray[np.uint8]
    enlarged: bool
    several_frames: bool
    warnings: tuple[str, ...]


def readable_formats() -> tuple[str, ...]:
    """The formats that Pillow reads here without other programs, sorted."""
    Image.init()
    return tuple(sorted(set(Image.OPEN) - NO_IMAGES))


def readable_extensions() -> frozenset[str]:
    """Their file extensions, lower case, with the dot."""
    formats = readable_formats()
    return frozenset(ext.lower() for ext, kind in Image.registered_extensions().items() if kind in formats)


def list_source(source: Path) -> Listing:
    """Finds all images; reads none.

    Raises:
        DataError: the source is missing, unreadable, encrypted or without images, or names stand twice.
    """
    if source.is_dir():
        links: list[str] = []
        stat = source.stat()
        found = sorted(_walk(source, source.resolve(), "", frozenset({(stat.st_dev, stat.st_ino)}), links))
    elif source.is_file():
        links = []
        found = sorted(_list_zip(source))
    else:
        raise DataError(f"{source} not found (looked in {Path.cwd()}). Give a folder or a zip of images.")
    extensions = readable_extensions()
    images = [(name, place) for name, place in found if PurePosixPath(name).suffix.lower() in extensions]
    ignored = [name for name, _ in found if PurePosixPath(name).suffix.lower() not in extensions]
    if not images:
        others = f"; it has other files: {first_ten(ignored)}" if ignored else ""
        raise DataError(f"{source} has no images{others}. Images are told by their file extension.")
    twice = repeated(name for name, _ in images)
    if twice:
        raise DataError(f"{source}: names that stand more than once: {first_ten(twice)}. Keep one file of each.")
    return Listing(
        names=tuple(name for name, _ in images),
        locations=tuple(place for _, place in images),
        tables={name: place for name, place in found if name in TABLES.values()},
        ignored=tuple(ignored),
        links=tuple(links),
    )


def _is_hidden(part: str) -> bool:
    return (part.startswith(".") and part != "..") or part in LEFT_BEHIND


def _shown(name: str) -> str:
    """File names may be any bytes; what is not UTF-8 is written as \\xNN."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _walk(
    folder: Path, root: Path, prefix: str, above: frozenset[tuple[int, int]], links: list[str]
) -> Iterator[tuple[str, str]]:
    """Names and paths of all files below `folder`. `above`: device and inode of the folders on the way down."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot list this folder ({error.strerror}).") from None
    for entry in entries:
        name = prefix + _shown(entry.name)
        path = Path(entry.path)
        if _is_hidden(entry.name):
            continue
        if not path.is_dir():
            # Pipes and devices would block; a link to nothing is told later, with its reason.
            if path.is_file() or path.is_symlink():
                yield name, entry.path
            continue
        stat = path.stat()
        here = (stat.st_dev, stat.st_ino)
        real = path.resolve()
        if here in above or (path.is_symlink() and (real.is_relative_to(root) or root.is_relative_to(real))):
            links.append(name)
            continue
        yield from _walk(path, root, f"{name}/", above | {here}, links)


def _list_zip(source: Path) -> Iterator[tuple[str, str]]:
    with open_zip(source) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            parts = [part for part in info.filename.replace("\\", "/").split("/") if part not in ("", ".")]
            if any(_is_hidden(part) for part in parts):
                continue
            if info.flag_bits & 1:
                raise DataError(
                    f"{source} is encrypted ({info.filename}). Unpack it, or make a zip without a password."
                )
            yield _shown("/".join(parts)), info.filename


def open_zip(source: Path) -> zipfile.ZipFile:
    """The zip, for `read_file`.

    Raises:
        DataError: it is none, or is damaged.
    """
    try:
        return zipfile.ZipFile(source)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise DataError(
            f"{source} is a file, but not a whole zip ({error}). Give a folder or a zip of images."
        ) from None
    except OSError as error:
        raise DataError(f"{source}: cannot open ({error.strerror}).") from None


def read_file(archive: zipfile.ZipFile | None, location: str) -> bytes:
    """The content of one file.

    Args:
        archive: the source if that is a zip.
        location: from a `Listing`.
    Raises:
        BadImageError: it cannot be read, or is too large.
    """
    try:
        size = Path(location).stat().st_size if archive is None else archive.getinfo(location).file_size
        if size > MAX_FILE_BYTES:
            raise BadImageError(f"has {size} bytes, more than the {MAX_FILE_BYTES} that are read")
        return Path(location).read_bytes() if archive is None else archive.read(location)
    except (BadImageError, MemoryError):
        raise
    except OSError as error:
        raise BadImageError(f"cannot open ({error.strerror or error})") from None
    except Exception as error:  # each compression of a damaged zip raises its own kind
        raise BadImageError(f"cannot read from the zip ({error})") from None


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
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            with Image.open(io.BytesIO(content), formats=readable_formats()) as file:
                file.load()
                image = _upright(_decode(file, _key_colour(file, content)), file)
                several_frames = _has_second_frame(file)
            image = _flatten(image, conversion)
            square = _crop(image, conversion)
            pixels = np.asarray(_resize(square, conversion))
        except (BadImageError, MemoryError):
            raise
        except Image.DecompressionBombError:
            raise BadImageError(f"has more than {MAX_PIXELS} pixels (a decompression bomb?)") from None
        except UnidentifiedImageError:
            raise BadImageError("cannot decode (no image format that Pillow reads)") from None
        except Exception as error:  # Pillow's decoders raise almost anything for damaged files
            raise BadImageError(f"cannot decode ({_reason(error)})") from None
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    return Converted(
        pixels=np.ascontiguousarray(pixels.transpose(2, 0, 1)),
        enlarged=square.width < conversion.resolution,
        several_frames=several_frames,
        warnings=tuple(" ".join(str(warning.message).split()) for warning in caught),
    )


def _reason(error: Exception) -> str:
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


def _upright(image: Image.Image, file: Image.Image) -> Image.Image:
    """Applies the EXIF orientation. TIFFs are turned by Pillow when they are loaded, and have none afterwards."""
    try:
        turn = UPRIGHT.get(file.getexif().get(ORIENTATION, 1))  # values outside 1-8 are nonsense of broken writers
    except Exception as error:  # anything, as in decoding; but the pixels are good, so this is no reason to refuse
        warnings.warn(f"EXIF data cannot be read, orientation unknown ({_reason(error)})", stacklevel=1)
        return image
    return image if turn is None else image.transpose(turn)


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


def _decode(file: Image.Image, key: Any) -> Image.Image:
    """The first frame as L, RGB or, if anything may be transparent, RGBA."""
    if key is not None:
        file.info["transparency"] = key
    image: Image.Image
    if file.mode.startswith("I;16"):
        values = np.asarray(file).astype(np.uint32)
        image = Image.fromarray(((values + 128) // 257).astype(np.uint8))
        if key is not None:
            image = image.convert("RGBA")
            image.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    elif file.mode == "I":
        values = np.asarray(file)
        if values.min() < 0 or values.max() > 65535:
            raise BadImageError(
                f"has 32-bit integers from {values.min()} to {values.max()}, expected 0 to 65535; save it with 16 bits"
            )
        image = Image.fromarray(((values.astype(np.uint32) + 128) // 257).astype(np.uint8))
    elif file.mode == "F":
        floats = np.asarray(file).astype(np.float64)
        if not (floats.min() >= 0 and floats.max() <= 1):  # also refuses NaN
            raise BadImageError(f"has floats from {floats.min():g} to {floats.max():g}, expected 0 to 1")
        image = Image.fromarray(np.floor(floats * 255 + 0.5).astype(np.uint8))
    elif file.mode == "LAB":
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        turned = ImageCms.profileToProfile(file, *profiles, outputMode="RGB")
        assert turned is not None  # it is only None when done in place
        image = turned
    elif file.has_transparency_data:
        image = file.convert("RGBA")
    else:
        image = file.convert("L" if file.mode in ("1", "L") else "RGB")
    return image


def _flatten(image: Image.Image, conversion: Conversion) -> Image.Image:
    """To the mode of the result."""
    if image.mode == "RGBA" and conversion.channels < 4:
        ground = Image.new("RGBA", image.size, (*conversion.background, 255))
        image = Image.alpha_composite(ground, image).convert("RGB")
    return image.convert(MODES[conversion.channels])


def _crop(image: Image.Image, conversion: Conversion) -> Image.Image:
    width, height = image.size
    if width == height or not conversion.resolution:
        return image
    if conversion.crop == "none":
        raise BadImageError(f"is {width}x{height}, not square, and prepare.crop=none; center or pad make squares")
    if conversion.crop == "center":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return image.crop((left, top, left + side, top + side))
    side = max(width, height)
    if side * side > MAX_PIXELS:
        raise BadImageError(f"is {width}x{height}; padded to a square it has more than {MAX_PIXELS} pixels")
    ground = Image.new("RGB", (side, side), conversion.background).convert(image.mode)
    ground.paste(image, ((side - width) // 2, (side - height) // 2))
    return ground


def _resize(square: Image.Image, conversion: Conversion) -> Image.Image:
    """No step for images of the right size; no `reducing_gap`, which trades exactness for speed."""
    size = (conversion.resolution, conversion.resolution)
    if square.size == size or not conversion.resolution:
        return square
    resample = Image.Resampling[conversion.resize_filter.upper()]
    if square.mode == "RGBA" and resample != Image.Resampling.NEAREST:
        return square.convert("RGBa").resize(size, resample).convert("RGBA")
    return square.resize(size, resample)
