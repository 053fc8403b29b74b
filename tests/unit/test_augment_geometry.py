"""The geometric half of ADA against an own evaluation of its definition, and flips, turns and shifts to the bit."""

from math import ceil, pi

import numpy as np
import pytest
import pywt
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.interpolate import RegularGridInterpolator
from torch import Tensor

from ganops.training import augment_geometry
from ganops.training.augment_geometry import (
    FILTER,
    OFFSET,
    SYM6,
    blit,
    inverse_matrix,
    margins,
    resample,
)
from ganops.training.augment_pixels import cut_out, gather_pixels, reflect_pad, replace_images
from tests.tolerances import assert_close

Array = NDArray[np.float64]
TAPS = np.array(pywt.Wavelet("sym6").dec_lo) / np.sqrt(2)
NEUTRAL = {
    "flip": 0.0, "quarter_turns": 0.0, "shift_x": 0.0, "shift_y": 0.0, "scale": 1.0, "pre_rotation": 0.0, "aniso": 1.0,
    "post_rotation": 0.0, "move_x": 0.0, "move_y": 0.0,
}  # fmt: skip
CASES: dict[str, dict[str, float]] = {
    "nothing": {},
    "flip": {"flip": 1},
    "quarter turn": {"quarter_turns": 1},
    "half turn": {"quarter_turns": 2},
    "shift": {"shift_x": 2, "shift_y": -1},
    "larger": {"scale": 1.3},
    "smaller": {"scale": 0.6},
    "rotation": {"pre_rotation": 0.4},
    "wide": {"aniso": 1.4},
    "narrow": {"aniso": 0.7},
    "second rotation": {"post_rotation": -2.0},
    "move right": {"move_x": 0.3},
    "move up": {"move_y": -1.7},
    "all": {
        "flip": 1, "quarter_turns": 3, "shift_x": 1, "shift_y": 2, "scale": 0.8, "pre_rotation": 1.0, "aniso": 1.2,
        "post_rotation": -0.3, "move_x": 0.4, "move_y": -0.7,
    },
    "beyond what is reflected": {"scale": 0.15, "pre_rotation": 0.2, "move_x": 3.0},
    "out of sight": {"move_x": 100.0},
}  # fmt: skip
SIZES = [(8, 8), (7, 7), (6, 9), (9, 4), (2, 3)]


def picture(*shape: int, seed: int = 1) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def matrices(*cases: dict[str, float]) -> Tensor:
    values = [NEUTRAL | case for case in cases]
    return inverse_matrix(**{name: torch.tensor([v[name] for v in values], dtype=torch.float64) for name in NEUTRAL})


@pytest.fixture
def exact_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Filters are float32; for comparisons in float64 they are not rounded."""
    monkeypatch.setattr(augment_geometry, "FILTER", torch.tensor(TAPS))


def came_from(x: Array, y: Array, values: dict[str, float]) -> tuple[Array, Array]:
    """Positions from the centre, taken back through one transformation after the other, the last one first."""

    def turned_back(angle: float) -> tuple[Array, Array]:
        return x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)

    x, y = x - values["move_x"], y - values["move_y"]
    x, y = turned_back(values["post_rotation"])
    x, y = x / values["aniso"], y * values["aniso"]
    x, y = turned_back(values["pre_rotation"])
    x, y = x / values["scale"], y / values["scale"]
    x, y = x - values["shift_x"], y - values["shift_y"]
    x, y = turned_back(values["quarter_turns"] * pi / 2)
    return (-x if values["flip"] else x), y


def doubling(size: int, reach: int) -> tuple[Array, Array]:
    """[2 * (size + 2 * reach), size]: doubling of a row that is reflected by `reach` pixels; where doubled pixels lie.

    The position of a doubled pixel is what doubling gives of positions: the filter reproduces polynomials.
    """
    length = size + 2 * reach
    doubled = np.zeros([2 * length, length])
    for k, n in np.ndindex(*doubled.shape):
        if 0 <= k - 2 * n + 5 < 12:
            doubled[k, n] = 2 * TAPS[k - 2 * n + 5]
    period = np.arange(-reach, size + reach) % (2 * size - 2)
    source = np.minimum(period, 2 * size - 2 - period)
    positions = doubled @ (np.arange(-reach, size + reach) + 0.5 - size / 2)
    inner = positions[12:-12]  # the others lack taps
    step = np.diff(inner)
    assert np.allclose(step, 0.5, atol=1e-9), "positions are evenly spaced"
    positions = inner[0] + (np.arange(2 * length) - 12) / 2
    return doubled @ np.eye(size)[source], positions


def halving(size: int) -> Array:
    """[size, 2 * size + 10]: from the doubled pixels -5 to 2 * size + 4."""
    halved = np.zeros([size, 2 * size + 10])
    for m in range(size):
        halved[m, 2 * m : 2 * m + 12] = TAPS
    return halved


def mapped(image: Array, values: dict[str, float]) -> Array:
    """[C, H, W]: the definition of `resample`."""
    H, W = image.shape[1:]
    (up_y, y), (up_x, x) = doubling(H, H + 5), doubling(W, W + 5)
    doubled = np.einsum("kh,chw,lw->ckl", up_y, image, up_x)
    # One ring of zeros: sampling between the last pixel and what is outside.
    doubled = np.pad(doubled, [(0, 0), (1, 1), (1, 1)])
    y, x = (np.concatenate([p[:1] - 0.5, p, p[-1:] + 0.5]) for p in (y, x))
    first_x, first_y = x[1 + 2 * (W + 5) - 5], y[1 + 2 * (H + 5) - 5]
    out_x, out_y = np.meshgrid(first_x + np.arange(2 * W + 10) / 2, first_y + np.arange(2 * H + 10) / 2)
    from_x, from_y = came_from(out_x, out_y, values)
    found = np.stack(
        [
            RegularGridInterpolator((y, x), channel, bounds_error=False, fill_value=0)(np.stack([from_y, from_x], -1))
            for channel in doubled
        ]
    )
    return np.einsum("mk,ckl,nl->cmn", halving(H), found, halving(W))


def test_filter_is_sym6() -> None:
    wavelet = pywt.Wavelet("sym6")
    assert list(SYM6) == wavelet.dec_lo
    assert wavelet.dec_lo[::-1] == wavelet.rec_lo  # halving is the flipped filter, by which it inverts doubling
    assert_close(FILTER, TAPS, "filter_float32")
    assert FILTER.ndim == 1
    assert pytest.approx(5.5 - np.average(np.arange(12), weights=TAPS), abs=1e-12) == OFFSET


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.usefixtures("exact_filter")
def test_resampling_is_its_definition(case: str, size: tuple[int, int]) -> None:
    img = picture(1, 2, *size)
    expected = mapped(img[0].numpy(), NEUTRAL | CASES[case])
    assert_close(resample(img, matrices(CASES[case]))[0], expected, "resampled_float64", f"{case} of {size}")


@pytest.mark.usefixtures("exact_filter")
def test_resampling_of_a_batch_is_that_of_each_image() -> None:
    """Though all get the margins that any of them needs."""
    cases = [CASES[case] for case in ("rotation", "all", "smaller", "nothing", "beyond what is reflected")]
    img = picture(len(cases), 3, 6, 7)
    together = resample(img, matrices(*cases))
    for index, case in enumerate(cases):
        assert_close(together[index], mapped(img[index].numpy(), NEUTRAL | case), "resampled_float64")
        assert_close(together[index], resample(img[index : index + 1], matrices(case))[0], "twin_float64")
    wide = margins(matrices(*cases), 6, 7)
    own = [margins(matrices(case), 6, 7) for case in cases]
    assert wide == tuple(max(sides) for sides in zip(*own, strict=True))
    assert own[3] == (5, 5 + 1, 5, 5 + 1), "the filters' reach, and one pixel whose weight is 0"
    assert max(wide) == 7 - 1 + 6


@pytest.mark.usefixtures("exact_filter")
def test_nothing_gives_the_image_back() -> None:
    """The halving filter inverts the doubling one."""
    img = picture(1, 3, 11, 8)
    assert_close(resample(img, matrices({})), img, "resampled_float64")


def test_resampled_flips_and_turns_of_smooth_pictures_are_exact_ones() -> None:
    """They would be off by 0.4 px if doubled pixels lay where the middle of the taps is."""
    x = torch.arange(32, dtype=torch.float64)
    img = ((x * 0.4).sin() + (x[:, None] * 0.3 + x * 0.1).cos())[None, None]
    for case in ("flip", "quarter turn", "half turn", "shift"):
        matrix = matrices(CASES[case])
        inside = (..., slice(4, -4), slice(4, -4))
        assert_close(resample(img, matrix)[inside], blit(img, matrix)[inside], "resampled_smooth", case)


def test_rotations_are_clockwise_and_about_the_centre() -> None:
    x, y = (matrices({"pre_rotation": pi / 2})[0] @ torch.tensor([0.0, 1.0, 1.0]).double())[:2].tolist()
    assert (x, y) == pytest.approx((1, 0), abs=1e-12)  # what is below the centre came from the right of it
    assert_close(matrices({"pre_rotation": pi / 2}), matrices({"quarter_turns": 1}), "closed_form_float64")
    assert_close(matrices({"post_rotation": pi}), matrices({"quarter_turns": 2}), "closed_form_float64")


@pytest.mark.parametrize("size", [(8, 8), (7, 7), (6, 9), (9, 4)], ids=str)
def test_blits_are_copies_of_pixels(size: tuple[int, int]) -> None:
    """Bit for bit those of torch's flip, rot90 and reflection."""
    img = picture(1, 3, *size).float()
    count = 0
    for flip in (0, 1):
        for turns in range(0, 4, 1 if size[0] == size[1] else 2):
            for right, down in ((0, 0), (1, 0), (-2, 3), (0, -1)):
                matrix = matrices({"flip": flip, "quarter_turns": turns, "shift_x": right, "shift_y": down})
                assert (matrix == matrix.round()).all()
                expected = torch.rot90(img.flip(3) if flip else img, -turns, [2, 3])
                padded = F.pad(expected, [3, 3, 3, 3], mode="reflect")
                expected = padded[:, :, 3 - down :, 3 - right :][:, :, : size[0], : size[1]]
                assert torch.equal(blit(img, matrix), expected), (flip, turns, right, down)
                count += 1
    assert count == (32 if size[0] == size[1] else 16)


def test_reflection() -> None:
    """As numpy's, also by more than the image's size."""
    img = picture(2, 3, 3, 5)
    for pads in ((0, 0, 0, 0), (1, 2, 0, 1), (4, 0, 2, 2), (9, 17, 5, 8)):
        left, right, top, bottom = pads
        expected = np.pad(img.numpy(), [(0, 0), (0, 0), (top, bottom), (left, right)], mode="reflect")
        assert torch.equal(reflect_pad(img, *pads), torch.from_numpy(expected)), pads


def test_pixels_are_gathered() -> None:
    img = picture(2, 3, 4, 5)
    columns, rows = torch.tensor([[[4, 0, 0]], [[1, 2, 3]]]), torch.tensor([[[1], [3]], [[0], [2]]])
    found = gather_pixels(img, columns, rows)
    assert found.shape == (2, 3, 2, 3)
    assert torch.equal(found[0, :, 1, 0], img[0, :, 3, 4])
    assert torch.equal(found[1, :, 0, 2], img[1, :, 0, 3])


def test_boxes_are_cut_out() -> None:
    img = picture(4, 2, 5, 6)
    boxes = torch.tensor([[1, 3, 0, 2], [-2, 2, 3, 9], [4, 4, 0, 5], [-9, 9, -9, 9]])
    expected = img.clone()
    expected[0, :, 0:2, 1:3] = 0
    expected[1, :, 3:, :2] = 0
    expected[3] = 0
    assert torch.equal(cut_out(img, boxes), expected)


def test_images_are_replaced() -> None:
    img = picture(4, 1, 2, 2)
    assert replace_images(img, (), lambda some: some[:0]) is img
    assert torch.equal(replace_images(img, (1, 3), lambda some: some * 2)[[0, 2]], img[[0, 2]])
    assert torch.equal(replace_images(img, (1, 3), lambda some: some * 2)[[1, 3]], img[[1, 3]] * 2)
    assert torch.equal(replace_images(img, (0, 1, 2, 3), lambda some: some.flip(0)), img.flip(0))


def test_margins_grow_with_the_map() -> None:
    """A picture at half its size shows half an image beyond each edge."""
    left, right, top, bottom = margins(matrices({"scale": 0.5}), 64, 64)
    assert 64 / 2 + 6 <= min(left, right, top, bottom) <= max(left, right, top, bottom) <= ceil(64 / 2) + 9
    left, right, _, _ = margins(matrices({"move_x": 10.0}), 64, 64)
    assert (left - 10 in (5, 6), right) == (True, 0)
    assert margins(matrices({"move_x": 1e6}), 64, 64)[0] == 64 - 1 + 6
