"""The colour matrices of ADA against closed forms, and against one transformation after the other."""

from math import cos, pi, sin, sqrt

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from ganops.training.augment_colour import apply_color, color_matrix
from tests.tolerances import assert_close
from tests.unit.test_augment_geometry import picture

NEUTRAL = {"brightness": 0.0, "contrast": 1.0, "luma_flip": 0.0, "hue": 0.0, "saturation": 1.0}
AXIS = np.ones(3) / sqrt(3)


def matrices(*cases: dict[str, float]) -> Tensor:
    values = [NEUTRAL | case for case in cases]
    return color_matrix(**{name: torch.tensor([v[name] for v in values], dtype=torch.float64) for name in NEUTRAL})


def recolored(rgb: NDArray[np.float64], values: dict[str, float]) -> NDArray[np.float64]:
    """One colour, by the definitions in their order; the rotation is Rodrigues' formula."""
    rgb = (rgb + values["brightness"]) * values["contrast"]
    if values["luma_flip"]:
        rgb = rgb - 2 * rgb.mean()
    angle, grey = values["hue"], np.full(3, rgb.mean())
    rgb = rgb * cos(angle) + np.cross(AXIS, rgb) * sin(angle) + AXIS * (AXIS @ rgb) * (1 - cos(angle))
    return np.asarray(grey + (rgb - grey) * values["saturation"])


CASES: list[dict[str, float]] = [
    {},
    {"brightness": 0.3},
    {"contrast": 1.7},
    {"luma_flip": 1},
    {"hue": 0.9},
    {"saturation": 2.5},
    {"brightness": -0.2, "contrast": 0.6, "luma_flip": 1, "hue": -2.0, "saturation": 0.4},
    {"brightness": 0.1, "contrast": 1.3, "hue": 1.0, "saturation": 1.9},
]


@pytest.mark.parametrize("channels", [3, 4])
def test_colours_are_the_definitions(channels: int) -> None:
    img = picture(len(CASES), channels, 2, 3)
    found = apply_color(img, matrices(*CASES))
    for index, case in enumerate(CASES):
        for y, x in np.ndindex(2, 3):
            expected = recolored(img[index, :3, y, x].numpy(), NEUTRAL | case)
            assert_close(found[index, :3, y, x], expected, "closed_form_float64", str(case))
    assert torch.equal(found[:, 3:], img[:, 3:])
    assert torch.equal(found[0], img[0]), "the identity keeps every bit"
    assert_close(apply_color(img.float(), matrices(*CASES)), found, "twin_float32")


def test_grey_is_three_equal_channels() -> None:
    """Of which hue and saturation change nothing."""
    img = picture(len(CASES), 1, 2, 3)
    found = apply_color(img, matrices(*CASES))
    as_rgb = apply_color(img.repeat(1, 3, 1, 1), matrices(*CASES))
    assert_close(found.expand(-1, 3, -1, -1), as_rgb, "closed_form_float64")
    for same in (0, 4, 5):
        assert_close(found[same], img[same], "closed_form_float64")
    assert_close(found[3], -img[3], "closed_form_float64", "luma flip")
    assert_close(found[6], -(img[6] - 0.2) * 0.6, "closed_form_float64", "brightness, contrast, luma flip")


def test_closed_forms() -> None:
    identity = torch.eye(4, dtype=torch.float64)
    half = matrices({"hue": pi})[0]
    assert_close(half @ half, identity, "closed_form_float64", "half a turn, twice")
    assert not torch.allclose(half, identity)
    red = torch.tensor([1.0, 0.0, 0.0, 1.0]).double()
    green = torch.tensor([0.0, 1.0, 0.0, 1.0]).double()
    assert_close(matrices({"hue": 2 * pi / 3})[0] @ red, green, "closed_form_float64", "a third of a turn")
    flip = matrices({"luma_flip": 1})[0]
    assert_close(flip @ flip, identity, "closed_form_float64")
    img = picture(1, 3, 2, 2)
    grey = apply_color(img, matrices({"saturation": 0}))
    assert_close(grey, img.mean(dim=1, keepdim=True).expand_as(img), "closed_form_float64")
    # Light and dark change places, differences between channels stay.
    flipped = apply_color(img, matrices({"luma_flip": 1}))
    assert_close(flipped.mean(dim=1), -img.mean(dim=1), "closed_form_float64")
    assert_close(flipped - flipped.roll(1, 1), img - img.roll(1, 1), "closed_form_float64")


def test_other_channels_are_refused() -> None:
    with pytest.raises(ValueError, match="colours of 2 channels"):
        apply_color(picture(1, 2, 2, 2), matrices({}))
