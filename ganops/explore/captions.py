"""Pictures of many images with words at the top, at the left or below each image."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

LEAST, MOST = (
    64,
    256,
)  # px: small images are magnified until the shorter side has this, large ones averaged down to that
GAP = 4
FONT_SIZE = 12
MOST_LEFT = 240  # px, width of captions at the left
LINE = 18  # px, height of a line of text
MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def caption_grid(
    images: NDArray[np.uint8],
    columns: int,
    top: Sequence[str] = (),
    left: Sequence[str] = (),
    below: Sequence[str] = (),
) -> NDArray[np.uint8]:
    """One picture of many images, row by row, on white.

    Args:
        images: [N, C, H, W], C in 1, 3, 4; brought to a size that is good to look at, and if still narrow or flat in the
            middle of a place of LEAST px.
        columns: images per row.
        top: a caption per column, or none.
        left: a caption per row, or none.
        below: a caption per image, or none. Captions wider than an image are cut.
    Returns:
        [H', W'] if C = 1, else [H', W', C].
    """
    images = _resize(images)
    count, channels, height, width = images.shape
    font = ImageFont.load_default(FONT_SIZE)
    inner_x, inner_y = max(LEAST - width, 0) // 2, max(LEAST - height, 0) // 2
    place_width, place_height = max(width, LEAST), max(height, LEAST)
    top, below = ([_fit(text, font, place_width + GAP) for text in texts] for texts in (top, below))
    left = [_fit(text, font, MOST_LEFT) for text in left]
    rows = -(-count // columns)
    margin_left = GAP + max((round(font.getlength(text)) for text in left), default=-GAP) + GAP if left else 0
    margin_top = LINE if top else 0
    step_x, step_y = place_width + GAP, place_height + GAP + (LINE if below else 0)
    size = (margin_left + columns * step_x - GAP, margin_top + rows * step_y - GAP)
    picture = Image.new(MODES[channels], size, "white")
    draw = ImageDraw.Draw(picture)
    for column, text in enumerate(top):
        draw.text((margin_left + column * step_x + place_width / 2, margin_top / 2), text, "black", font, anchor="mm")
    for row, text in enumerate(left):
        draw.text((margin_left - GAP, margin_top + row * step_y + place_height / 2), text, "black", font, anchor="rm")
    for number, image in enumerate(images):
        x, y = margin_left + number % columns * step_x, margin_top + number // columns * step_y
        picture.paste(Image.fromarray(_last(image)), (x + inner_x, y + inner_y))
        if below:
            place = (x + place_width / 2, y + place_height + LINE / 2)
            draw.text(place, below[number], "black", font, anchor="mm")
    return np.asarray(picture)


def _last(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[C, H, W] -> [H, W] or [H, W, C]."""
    return image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))


def _resize(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """By a whole factor; no longer side is magnified beyond MOST."""
    shorter, longer = sorted(images.shape[2:])
    factor = -(-longer // MOST)
    if factor == 1:
        larger = min(-(-LEAST // shorter), MOST // longer)
        return images.repeat(larger, axis=2).repeat(larger, axis=3)
    small = [np.asarray(Image.fromarray(_last(image)).reduce(factor)) for image in images]
    return np.stack([image[None] if image.ndim == 2 else image.transpose(2, 0, 1) for image in small])


def _fit(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """The text, or its beginning with dots, in at most `width` px."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."
