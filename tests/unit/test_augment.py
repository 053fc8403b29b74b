"""ADA as a whole: what is drawn, how often, for whom; and the derivatives of what is done with it."""

from dataclasses import fields, replace
from math import pi, sqrt
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from ganops.training.augment import (
    KINDS,
    Augmentation,
    AugmentKind,
    AugmentSet,
    Parameters,
    acting_kinds,
    augment,
    draw_augmentation,
    draw_parameters,
    make_augmentation,
    neutral_parameters,
)
from ganops.training.augment_colour import apply_color
from ganops.training.augment_filter import apply_filter
from ganops.training.augment_geometry import blit, resample
from ganops.training.augment_pixels import cut_out
from tests.tolerances import assert_close
from tests.unit.test_augment_geometry import picture

SETS: tuple[AugmentSet, ...] = get_args(AugmentSet)
OWNERS: dict[str, AugmentKind] = {
    "flip": "blit", "quarter_turns": "blit", "shift_x": "blit", "shift_y": "blit", "scale": "geom",
    "pre_rotation": "geom", "aniso": "geom", "post_rotation": "geom", "move_x": "geom", "move_y": "geom",
    "brightness": "color", "contrast": "color", "luma_flip": "color", "hue": "color", "saturation": "color",
    "bands": "filter", "noise_std": "noise", "cutout_size": "cutout",
}  # fmt: skip
SIGMAS = 4.5


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def changed(parameters: Parameters) -> dict[str, Tensor]:
    """Which images each parameter is not neutral for."""
    neutral = neutral_parameters(len(parameters.flip))
    return {name: getattr(parameters, name) != getattr(neutral, name) for name in OWNERS}


def slice_of(parameters: Parameters, rows: slice) -> Parameters:
    return Parameters(**{field.name: getattr(parameters, field.name)[rows] for field in fields(Parameters)})


def silent(augmentation: Augmentation) -> Augmentation:
    return replace(augmentation, noise_std=augmentation.noise_std * 0, noisy=False)


@pytest.mark.parametrize("p", [0.05, 0.3, 0.8, 1.0])
def test_rates(p: float) -> None:
    """Of each transformation, within what chance allows for."""
    count = 20000
    parameters = draw_parameters("bgcfnc", p, count, generator(1))
    chances = dict.fromkeys(OWNERS, p) | {
        "flip": p / 2, "luma_flip": p / 2, "quarter_turns": p * 3 / 4,
        "pre_rotation": 1 - sqrt(1 - p), "post_rotation": 1 - sqrt(1 - p),
    }  # fmt: skip
    found = changed(parameters)
    for name, rows in found.items():
        chance = chances[name]
        rate = rows.double().mean(dim=0)
        assert rate.shape == ((4,) if name == "bands" else ())
        assert (rate - chance).abs().max() <= SIGMAS * sqrt(chance * (1 - chance) / count), f"{name}: {rate}"
    rotated = (found["pre_rotation"] | found["post_rotation"]).double().mean()
    assert abs(rotated - p) <= SIGMAS * sqrt(p * (1 - p) / count)
    assert torch.equal(found["shift_x"], found["shift_y"])
    # Independent of each other: no two transformations coincide more often than chance has it.
    switches = torch.stack(
        [rows.double() for name, rows in found.items() if name not in ("bands", "shift_y", "move_y")]
    )
    varying = switches.std(dim=1) > 0
    correlation = torch.corrcoef(switches[varying]) if varying.sum() > 1 else torch.eye(1)
    assert (correlation - torch.eye(len(correlation))).abs().max() < SIGMAS / sqrt(count)


def test_distributions() -> None:
    """Of what is drawn, at p = 1: means, spreads and limits."""
    count = 20000
    P = draw_parameters("bgcfnc", 1.0, count, generator(2))
    normal = {
        "scale": (P.scale.log2(), 0.2), "aniso": (P.aniso.log2(), 0.2), "move x": (P.move_x, 0.125),
        "move y": (P.move_y, 0.125), "brightness": (P.brightness, 0.2), "contrast": (P.contrast.log2(), 0.5),
        "saturation": (P.saturation.log2(), 1.0), "bands": (P.bands.log2().flatten(), 1.0),
    }  # fmt: skip
    for name, (values, std) in normal.items():
        assert abs(values.mean()) < SIGMAS * std / sqrt(count), name
        assert abs(values.std() / std - 1) < SIGMAS / sqrt(2 * count), name
        assert abs((values.abs() < std).double().mean() - 0.6827) < SIGMAS * sqrt(0.6827 * 0.3173 / count), name
    uniform = {
        "shift x": (P.shift_x, -0.125, 0.125), "shift y": (P.shift_y, -0.125, 0.125),
        "pre-rotation": (P.pre_rotation, -pi, pi), "post-rotation": (P.post_rotation, -pi, pi), "hue": (P.hue, -pi, pi),
        "cutout x": (P.cutout_x, 0.0, 1.0), "cutout y": (P.cutout_y, 0.0, 1.0),
    }  # fmt: skip
    for name, (values, low, high) in uniform.items():
        assert low <= values.min() < low + (high - low) / 1000, name
        assert high >= values.max() > high - (high - low) / 1000, name
        assert abs((values.mean() - (low + high) / 2) / (high - low)) < SIGMAS / sqrt(12 * count), name
    assert abs(P.noise_std.square().mean().sqrt() / 0.1 - 1) < SIGMAS / sqrt(2 * count)
    assert P.noise_std.min() >= 0
    assert set(P.cutout_size.tolist()) == {0.5}
    for turns in range(4):
        assert abs((P.quarter_turns == turns).double().mean() - 0.25) < SIGMAS * sqrt(3 / 16 / count)


@pytest.mark.parametrize("augment_set", SETS)
def test_larger_chances_and_sets_add_to_what_there_is(augment_set: AugmentSet) -> None:
    whole = draw_parameters("bgcfnc", 1.0, 64, generator(3))
    before: dict[str, Tensor] | None = None
    for p in (0.0, 0.1, 0.35, 0.7, 1.0):
        parameters = draw_parameters(augment_set, p, 64, generator(3))
        on = changed(parameters)
        for name, rows in on.items():
            assert torch.equal(getattr(parameters, name)[rows], getattr(whole, name)[rows]), name
            assert before is None or not (before[name] & ~rows).any(), f"{name} was on with a smaller p"
            assert rows.any() == (p > 0 and OWNERS[name] in KINDS[augment_set]), name
        before = on


def test_first_images_do_not_depend_on_the_number_of_images() -> None:
    many = draw_parameters("bgcfnc", 0.6, 40, generator(4))
    for count in (1, 3, 17):
        few = draw_parameters("bgcfnc", 0.6, count, generator(4))
        for field in fields(Parameters):
            assert torch.equal(getattr(few, field.name), getattr(many, field.name)[:count]), field.name


def test_sets_and_channels() -> None:
    assert "".join(kind[0] for kind in KINDS["bgcfnc"]) == "bgcfnc"
    for channels in (1, 3, 4):
        assert acting_kinds("bgc", channels) == ("blit", "geom", "color")
    assert acting_kinds("bgc", 2) == ("blit", "geom")
    assert acting_kinds("color", 5) == ()
    img = picture(6, 5, 6, 6)
    with_color, without = (draw_augmentation(s, 1.0, 6, 6, 6, 5, generator(5)) for s in ("bgc", "bg"))
    assert torch.equal(augment(img, with_color, generator()), augment(img, without, generator()))
    assert draw_augmentation("color", 1.0, 6, 6, 6, 5, generator()).does_nothing
    P = neutral_parameters(1)
    for name in ("hue", "saturation"):
        assert make_augmentation(replace(P, **{name: P.scale * 2}), 6, 6, 1).does_nothing
        assert not make_augmentation(replace(P, **{name: P.scale * 2}), 6, 6, 3).does_nothing


@pytest.mark.parametrize("augment_set", SETS)
def test_without_a_chance_nothing_is_done(augment_set: AugmentSet) -> None:
    img = picture(3, 3, 5, 4)
    augmentation = draw_augmentation(augment_set, 0.0, 3, 5, 4, 3, generator())
    assert augmentation.does_nothing
    assert augment(img, augmentation, generator()) is img


def test_parameters_reach_their_stages() -> None:
    """Each stage gets what was drawn, in its units, and runs for the images that drew it only."""
    P = neutral_parameters(2)
    on = torch.tensor([0.0, 1.0], dtype=torch.float64)
    img = picture(2, 3, 8, 16)
    rng = generator()

    def found(**values: Tensor) -> tuple[Tensor, Augmentation]:
        augmentation = make_augmentation(replace(P, **values), 8, 16, 3)
        assert not augmentation.does_nothing
        y = augment(img, augmentation, rng)
        assert torch.equal(y[0], img[0])
        return y[1], augmentation

    y, a = found(flip=on)
    assert (a.blitted, a.resampled) == ((1,), ())
    assert torch.equal(y, img[1].flip(2))
    y, a = found(shift_x=on * 0.1, shift_y=on * -0.1)  # of 16 and 8 px: 1.6 and -0.8
    assert torch.equal(y[:, :-1, 2:], img[1, :, 1:, :-2])
    for turns, expected in ((1, False), (2, True), (3, True)):  # the image is not square
        rows = make_augmentation(replace(P, quarter_turns=on * turns), 8, 16, 3).blitted
        assert rows == ((1,) if expected else ())
    y, a = found(quarter_turns=on * 3)
    assert torch.equal(y, img[1].flip([1, 2]))
    for values in ({"scale": 1 + on * 0.2}, {"aniso": 1 + on * 0.2}, {"pre_rotation": on}, {"post_rotation": on}):
        y, a = found(flip=on, **values)
        assert (a.blitted, a.resampled) == ((), (1,))
        assert torch.equal(y, resample(img[1:], a.geometry[1:])[0])
    y, a = found(move_x=on * 0.25, move_y=on * 0.5)
    assert a.geometry[1].tolist() == [[1, 0, -4], [0, 1, -4], [0, 0, 1]]
    for name in ("brightness", "luma_flip", "hue"):
        y, a = found(**{name: on})
        assert torch.equal(y, apply_color(img[1:], a.color[1:])[0])
    for name in ("contrast", "saturation"):
        y, a = found(**{name: 1 + on})
        assert torch.equal(y, apply_color(img[1:], a.color[1:])[0])
    y, a = found(bands=1 + on[:, None] * torch.tensor([0.0, 1.0, 0.0, 0.0]).double())
    assert a.filtered == (1,)
    assert torch.equal(y, apply_filter(img[1:], a.taps[1:])[0])
    y, a = found(cutout_size=on * 0.5, cutout_x=on * 0.25, cutout_y=on * 0.9)
    assert a.boxes.tolist() == [[0, 0, 0, 0], [0, 8, 5, 9]]
    assert torch.equal(y, cut_out(img[1:], a.boxes[1:])[0])
    y, a = found(noise_std=on * 0.1)
    noise = torch.randn(2, 3, 8, 16, generator=generator(), dtype=torch.float64)
    assert torch.equal(y, img[1] + noise[1] * 0.1)


def test_stages_come_in_order() -> None:
    """Geometry, colour, filter, noise, cut-out."""
    P = draw_parameters("bgcfnc", 1.0, 4, generator(6))
    P = replace(P, scale=torch.tensor([1.0, 1.2, 0.7, 0.9]).double())
    img = picture(4, 3, 8, 8)
    a = make_augmentation(P, 8, 8, 3)
    assert a.resampled == (0, 1, 2, 3)
    expected = apply_filter(apply_color(resample(img, a.geometry), a.color), a.taps)
    noise = torch.randn(img.shape, generator=generator(7), dtype=torch.float64)
    expected = cut_out(expected + noise * a.noise_std[:, None, None, None], a.boxes)
    assert torch.equal(augment(img, a, generator(7)), expected)
    assert (expected == 0).all(dim=1).any(dim=2).any(dim=1).all(), "a box in each image"


def test_set_blit_copies_pixels() -> None:
    img = torch.arange(6.0 * 64).reshape(6, 1, 8, 8)
    augmentation = draw_augmentation("blit", 1.0, 6, 8, 8, 1, generator(8))
    assert len(augmentation.blitted) > 3
    assert not augmentation.resampled
    y = augment(img, augmentation, generator())
    assert torch.equal(y, y.round())
    for index in range(6):
        assert torch.isin(y[index], img[index]).all()
    row = augmentation.blitted[0]
    assert torch.equal(y[row], blit(img[row : row + 1], augmentation.geometry[row : row + 1])[0])


@pytest.mark.parametrize("size", [(7, 7), (6, 9)], ids=str)
def test_images_do_not_depend_on_each_other(size: tuple[int, int]) -> None:
    parameters = draw_parameters("bgcfnc", 0.3, 12, generator(9))
    img = picture(12, 4, *size)
    together = augment(img, silent(make_augmentation(parameters, *size, 4)), generator())
    for index in range(12):
        one = slice(index, index + 1)
        alone = augment(img[one], silent(make_augmentation(slice_of(parameters, one), *size, 4)), generator())
        assert_close(together[one], alone, "twin_float64")


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("augment_set", ["blit", "geom", "color", "filter", "noise", "cutout", "bgcfnc"])
def test_derivatives(augment_set: AugmentSet, channels: int) -> None:
    """Against differences, twice; and <A x, y> = <x, A' y> of the linear part."""
    augmentation = draw_augmentation(augment_set, 0.9, 2, 2, 3, channels, generator(10))
    assert not augmentation.does_nothing

    def function(x: Tensor) -> Tensor:
        return augment(x, augmentation, generator(11))

    x = picture(2, channels, 2, 3).requires_grad_()
    # One direction instead of all, where the stages have been seen to one by one, or with fewer channels.
    fast = augment_set == "bgcfnc" or (channels == 4 and augment_set != "color")
    assert gradcheck(function, [x], fast_mode=fast)
    assert gradgradcheck(lambda x: function(x).square(), [x], fast_mode=fast)
    y = function(x)
    other = picture(2, channels, 2, 3, seed=2)
    (adjoint,) = torch.autograd.grad(y, x, other)
    linear = (y - function(torch.zeros_like(x))).detach()
    assert_close((linear * other).sum(), (x.detach() * adjoint).sum(), "twin_float64")


def test_noise_is_a_function_of_its_generator() -> None:
    img = picture(3, 3, 5, 5).float()
    augmentation = draw_augmentation("bgcfn", 1.0, 3, 5, 5, 3, generator(12))
    first, again, other = (augment(img, augmentation, generator(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.dtype == torch.float32


def test_float32_and_strides() -> None:
    img = picture(4, 3, 9, 9)
    augmentation = silent(draw_augmentation("bgcfnc", 0.7, 4, 9, 9, 3, generator(13)))
    expected = augment(img, augmentation, generator())
    for given in (img.float(), img.float().contiguous(memory_format=torch.channels_last)):
        assert_close(augment(given, augmentation, generator()), expected, "golden_float32")


def test_numbers_out_of_range_are_refused() -> None:
    for p in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="expected a chance"):
            draw_augmentation("bgc", p, 1, 8, 8, 3, generator())
    with pytest.raises(ValueError, match="2 x 2 at least"):
        draw_augmentation("bgc", 0.5, 1, 1, 8, 3, generator())
    augmentation = draw_augmentation("bgc", 0.5, 2, 8, 8, 3, generator())
    for shape in ((1, 3, 8, 8), (2, 1, 8, 8), (2, 3, 8, 9)):
        with pytest.raises(ValueError, match="augmentation of"):
            augment(picture(*shape), augmentation, generator())
