"""A folder or zip of images, to be measured as it is: nothing is cropped or resized."""

import hashlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ganops.entry import progress
from ganops.errors import DataError
from ganops.images.decode import ORIENTATION, array_shape, is_array
from ganops.images.listing import BadImageError, Listing, list_source, open_zip, read_file
from ganops.images.raw import Conversion, convert_image
from ganops.shape import size_name


class FolderImages:
    """Images of a folder (searched recursively) or a zip, in the order of their names. Made by `open_folder`."""

    def __init__(self, source: Path, listing: Listing, conversion: Conversion) -> None:
        self._source = source
        self._listing = listing
        self._conversion = conversion
        self._archive = open_zip(source) if source.is_file() else None
        self._survey: tuple[str, int | str] | None = None

    def __len__(self) -> int:
        return len(self._listing.names)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the images, as paths below the source."""
        return self._listing.names

    @property
    def channels(self) -> int:
        """Of every image as `image` gives it."""
        return self._conversion.channels

    def _content(self, index: int) -> bytes:
        try:
            return read_file(self._archive, self._listing.locations[index])
        except BadImageError as error:
            raise self._bad(index, error) from None

    def _bad(self, index: int, error: BadImageError) -> DataError:
        return DataError(f"{self._source}: {self.names[index]} {error}. Replace or remove it.")

    def image(self, index: int) -> NDArray[np.uint8]:
        """[C, H, W] uint8, upright; with transparent pixels on the background when there are 1 or 3 channels.

        Files of 16 bits come with 8, as shards of 16 bits reach a feature network too.

        Raises:
            DataError: the file cannot be read or decoded.
        """
        content = self._content(index)
        try:
            pixels = convert_image(content, self._conversion).pixels
        except BadImageError as error:
            raise self._bad(index, error) from None
        return pixels.astype(np.uint8, copy=False)

    def survey(self) -> tuple[str, int | str]:
        """Reads every file, without decoding; the first time only.

        Returns:
            A hex sha256 over all names and contents; and the images' size: a number for squares, else "480x640" (height x
            width), or "mixed" if there are several.
        """
        if self._survey is not None:
            return self._survey
        total, sizes = hashlib.sha256(b"ganops folder 1\n"), set()
        for index in progress(range(len(self)), len(self), f"hashing {self._source}", "img"):
            content = self._content(index)
            total.update(f"{hashlib.sha256(content).hexdigest()} {self.names[index]}\n".encode())
            try:
                sizes.add(_upright_size(content))
            except BadImageError as error:
                raise self._bad(index, error) from None
            except Exception as error:  # Pillow's readers raise almost anything for damaged files
                raise self._bad(index, BadImageError(f"cannot be read ({error})")) from None
        self._survey = total.hexdigest(), "mixed" if len(sizes) > 1 else size_name(*sizes.pop())
        return self._survey


def _upright_size(content: bytes) -> tuple[int, int]:
    """Height and width as `convert_image` gives them, by the file's header."""
    if is_array(content):
        return array_shape(content)[:2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of large images, and of odd EXIF data: decoding has reported them
        with Image.open(io.BytesIO(content)) as file:
            width, height = file.size
            try:
                lies = file.getexif().get(ORIENTATION, 1) in (5, 6, 7, 8)
            except Exception:  # as in decoding: unreadable EXIF data turn nothing
                lies = False
    return (width, height) if lies else (height, width)


def open_folder(source: Path, channels: int, background: Sequence[int]) -> FolderImages:
    """The images below a folder or in a zip.

    Args:
        source: where.
        channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA; what every image is converted to. Or what all arrays have.
        background: RGB, 0-255, behind transparent pixels.
    Raises:
        DataError: there is nothing, or no image.
    """
    ground = (background[0], background[1], background[2])
    conversion = Conversion(0, 0, channels, 8, "none", "nearest", ground)
    return FolderImages(source, list_source(source), conversion)
