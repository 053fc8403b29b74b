"""DiffAugment against loops over images and pixels, how often it draws what, and its derivatives."""

from math import sqrt
from typing import get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from ganops.training.diffaugment import (
    DiffAugmentation,
    DiffAugmentKind,
    acting_diffaugment_kinds,
    diffaugment,
    draw_diffaugment,
)
from tests.tolerances import assert_close
from tests.unit.test_augment import SIGMAS, generator
from tests.unit.test_augment_geometry import picture

ALL: tuple[DiffAugmentKind, ...] = get_args(DiffAugmentKind)


def defined(image: Tensor, plan: DiffAugmentation, index: int, on: bool, policy: tuple[DiffAugmentKind, ...]) -> Tensor:
    """One image [C, H, W], step by step."""
    image = image.clone()
    C, H, W = image.shape
    if not on:
        return image
    if "color" in policy and C in (1, 3, 4):
        color = image[:3] + plan.brightness[index]
        grey = color.mean(dim=0)
        color = torch.stack([grey + plan.saturation[index] * (channel - grey) for channel in color])
        image[:3] = color.mean() + plan.contrast[index] * (color - color.mean())
    if "translation" in policy:
        right, down = plan.translation[index].tolist()
        padded = F.pad(image, [W, W, H, H])
        image = padded[:, H - down : 2 * H - down, W - right : 2 * W - right].clone()
    if "cutout" in policy:
        left, end, top, bottom = plan.boxes[index].tolist()
        image[:, max(top, 0) : max(bottom, 0), max(left, 0) : max(end, 0)] = 0
    return image


@pytest.mark.parametrize("p", [0.5, 1.0])
@pytest.mark.parametrize("policy", [ALL, ALL[1:], ALL[:1], ALL[2:]], ids="-".join)
def test_images_are_the_definition(policy: tuple[DiffAugmentKind, ...], p: float) -> None:
    for channels, size in ((3, (16, 16)), (1, (9, 20)), (4, (17, 8)), (2, (9, 9))):
        img = picture(8, channels, *size)
        plan = draw_diffaugment(policy, p, 8, *size, generator(1))
        rows = range(8) if p == 1 else plan.recolored or plan.translated or [i for i in range(8) if on_by_box(plan, i)]
        assert p == 1 or 0 < len(rows) < 8
        y = diffaugment(img, plan)
        for index in range(8):
            expected = defined(img[index], plan, index, index in rows, policy)
            assert_close(y[index], expected, "closed_form_float64", f"image {index} of {channels} channels, {size}")
            assert index in rows or torch.equal(y[index], img[index])
        assert_close(diffaugment(img.float(), plan), y, "twin_float32")


def on_by_box(plan: DiffAugmentation, index: int) -> bool:
    left, right, _, _ = plan.boxes[index].tolist()
    return bool(right > left)


def test_distributions() -> None:
    count, H, W = 20000, 16, 33
    plan = draw_diffaugment(ALL, 1.0, count, H, W, generator(2))
    for values, low, high in ((plan.brightness, -0.5, 0.5), (plan.saturation, 0, 2), (plan.contrast, 0.5, 1.5)):
        assert low <= values.min() < low + 0.001 * (high - low)
        assert high >= values.max() > high - 0.001 * (high - low)
        assert abs(float(values.mean()) - (low + high) / 2) < SIGMAS * (high - low) / sqrt(12 * count)
    for axis, furthest in ((0, 4), (1, 2)):  # an eighth of 33 and 16, rounded
        found = plan.translation[:, axis] + furthest
        rates = found.bincount().double() / count
        assert len(rates) == 2 * furthest + 1
        chance = 1 / len(rates)
        assert (rates - chance).abs().max() < SIGMAS * sqrt(chance * (1 - chance) / count)
    # Half of the size, rounded: 17 of 33 and 8 of 16 px; the middle anywhere.
    assert set((plan.boxes[:, 1] - plan.boxes[:, 0]).tolist()) == {17}
    assert set((plan.boxes[:, 3] - plan.boxes[:, 2]).tolist()) == {8}
    assert (plan.boxes[:, 0].min(), plan.boxes[:, 0].max()) == (-8, 24)
    assert (plan.boxes[:, 2].min(), plan.boxes[:, 2].max()) == (-4, 12)
    for p in (0.1, 0.6):
        plan = draw_diffaugment(ALL, p, count, H, W, generator(2))
        assert abs(len(plan.recolored) / count - p) < SIGMAS * sqrt(p * (1 - p) / count)


def test_larger_chances_and_more_images_add_to_what_there_is() -> None:
    whole = draw_diffaugment(ALL, 1.0, 40, 16, 16, generator(3))
    before: set[int] = set()
    for p in (0.0, 0.2, 0.7, 1.0):
        for policy in (ALL, ALL[1:]):
            plan = draw_diffaugment(policy, p, 40, 16, 16, generator(3))
            assert torch.equal(plan.translation, whole.translation)
            assert torch.equal(plan.contrast, whole.contrast)
            rows = set(plan.translated)
            assert rows >= before
            assert set(plan.recolored) == (rows if "color" in policy else set())
            for index in range(40):
                assert plan.boxes[index].tolist() == whole.boxes[index].tolist() or index not in rows
                assert on_by_box(plan, index) == (index in rows)
            before = rows
    few = draw_diffaugment(ALL, 0.7, 7, 16, 16, generator(3))
    many = draw_diffaugment(ALL, 0.7, 40, 16, 16, generator(3))
    assert torch.equal(few.boxes, many.boxes[:7])
    assert few.translated == tuple(row for row in many.translated if row < 7)


def test_images_do_not_depend_on_each_other() -> None:
    img = picture(8, 3, 16, 16)
    together = diffaugment(img, draw_diffaugment(ALL, 0.7, 8, 16, 16, generator(4)))
    alone = diffaugment(img[:3], draw_diffaugment(ALL, 0.7, 3, 16, 16, generator(4)))
    assert_close(together[:3], alone, "closed_form_float64")


def test_nothing_is_done_without_a_chance_or_a_policy() -> None:
    img = picture(4, 3, 8, 8)
    for policy, p in ((ALL, 0.0), ((), 1.0)):
        plan = draw_diffaugment(policy, p, 4, 8, 8, generator())
        assert plan.does_nothing
        assert diffaugment(img, plan) is img
    assert not draw_diffaugment(ALL, 1.0, 4, 8, 8, generator()).does_nothing
    assert acting_diffaugment_kinds(ALL, 4) == ALL
    assert acting_diffaugment_kinds(ALL, 2) == ALL[1:]


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("policy", [ALL[:1], ALL[1:2], ALL[2:], ALL], ids="-".join)
def test_derivatives(policy: tuple[DiffAugmentKind, ...], channels: int) -> None:
    """Against differences, twice; and <A x, y> = <x, A' y> of the linear part."""
    plan = draw_diffaugment(policy, 0.7, 2, 4, 4, generator(5))
    assert plan.translation.abs().max() > 0
    x = picture(2, channels, 4, 4).requires_grad_()
    assert gradcheck(lambda x: diffaugment(x, plan), [x])
    assert gradgradcheck(lambda x: diffaugment(x, plan).square(), [x])
    y = diffaugment(x, plan)
    other = picture(2, channels, 4, 4, seed=2)
    (adjoint,) = torch.autograd.grad(y, x, other)
    linear = (y - diffaugment(torch.zeros_like(x), plan)).detach()
    assert_close((linear * other).sum(), (x.detach() * adjoint).sum(), "twin_float64")


def test_numbers_out_of_range_are_refused() -> None:
    for p in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="expected a chance"):
            draw_diffaugment(ALL, p, 1, 8, 8, generator())
    plan = draw_diffaugment(ALL, 1.0, 2, 8, 8, generator())
    for shape in ((1, 3, 8, 8), (2, 3, 8, 9)):
        with pytest.raises(ValueError, match="plan for"):
            diffaugment(picture(*shape), plan)
