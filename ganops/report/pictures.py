"""Pictures inside the page: as they are while they are small, else smaller and as JPEG, so that one file holds all."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from ganops.errors import DataError

T = TypeVar("T")

MOST_WIDTH = 1200  # px; wider than people's screens show it
LEAST_WIDTH = 200
JPEG_QUALITY = 85


@dataclass(frozen=True)
class Picture:
    """An image for an <img> element.

    Attributes:
        uri: data: with the whole file in it.
        width: px.
        height: px.
    """

    uri: str
    width: int
    height: int


def embed(path: Path, most_bytes: int) -> Picture:
    """A PNG as data: URI, at most `MOST_WIDTH` px wide.

    Kept byte for byte if it is small enough. Otherwise scaled down (Lanczos), and written as JPEG at falling widths
    until it has at most `most_bytes` bytes before base64. The same file gives the same text with the same Pillow.

    Raises:
        DataError: the file is not a whole PNG.
    """
    content = path.read_bytes()
    try:
        # Not Image.open, which refuses large pictures from strangers: ours of 32 classes at 1024 px are large.
        image: Image.Image = PngImageFile(io.BytesIO(content))
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} is not a whole PNG ({error}). Remove it and run `dvc repro`.") from None
    if image.width <= MOST_WIDTH and len(content) <= most_bytes:
        return Picture(_uri("png", content), image.width, image.height)
    if image.mode not in ("L", "RGB"):
        layer = image.convert("RGBA")
        image = Image.new("RGB", image.size, "white")
        image.paste(layer, mask=layer)
    width = min(image.width, MOST_WIDTH)
    smaller = image
    while True:
        if width < image.width:
            smaller = image.resize((width, max(image.height * width // image.width, 1)), Image.Resampling.LANCZOS)
        for kind, settings in (("png", {"optimize": True}), ("jpeg", {"quality": JPEG_QUALITY})):
            buffer = io.BytesIO()
            smaller.save(buffer, format=kind, **settings)
            if buffer.tell() <= most_bytes or (kind == "jpeg" and width <= LEAST_WIDTH):
                return Picture(_uri(kind, buffer.getvalue()), smaller.width, smaller.height)
        width = max(width * 4 // 5, LEAST_WIDTH)


def _uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` (2 or more) of the items, evenly over them, always with the first and the last."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]
