"""Adaptive discriminator augmentation (ADA): random transformations of what the discriminator sees, each with chance p.

Drawn on the CPU (`draw_augmentation`), applied on any device (`augment`). Since an image stays as it is with some chance,
a generator can match the augmented data only by matching the data themselves; safely so up to p = 0.8, while near 1 an
image turned by 90 degrees is as likely as an upright one, and generated images may be turned (section 2.2).

Source: Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data", sections 2 and 3, appendix B.
"""

from dataclasses import dataclass, fields
from math import pi, sqrt
from typing import Literal

import torch
from torch import Tensor

from ganops.config_train import COLOR_CHANNELS, AugmentSet
from ganops.training.augment_colour import apply_color, color_matrix
from ganops.training.augment_filter import BANDS, apply_filter, filter_taps
from ganops.training.augment_geometry import blit, inverse_matrix, resample
from ganops.training.augment_pixels import cut_out, replace_images
from ganops.training.batches import to_device

AugmentKind = Literal["blit", "geom", "color", "filter", "noise", "cutout"]
KINDS: dict[AugmentSet, tuple[AugmentKind, ...]] = {
    "blit": ("blit",),
    "geom": ("geom",),
    "color": ("color",),
    "filter": ("filter",),
    "noise": ("noise",),
    "cutout": ("cutout",),
    "bg": ("blit", "geom"),
    "bgc": ("blit", "geom", "color"),
    "bgcf": ("blit", "geom", "color", "filter"),
    "bgcfn": ("blit", "geom", "color", "filter", "noise"),
    "bgcfnc": ("blit", "geom", "color", "filter", "noise", "cutout"),
}
"""What each set is made of; bgc is the paper's choice."""

MAX_SHIFT = 0.125  # of the size, by whole pixels
SCALE_STD = ANISO_STD = 0.2  # of log2
MOVE_STD = 0.125  # of the size
BRIGHTNESS_STD = 0.2  # white is 1, black -1
CONTRAST_STD = 0.5  # of log2
SATURATION_STD = BAND_STD = 1.0  # of log2
NOISE_STD = 0.1
CUTOUT_SIZE = 0.5  # of the image's
COLUMNS = 41  # random numbers per image


@dataclass(frozen=True)
class Parameters:
    """The parameters of all transformations of N images, in the order in which they act; neutral where they are off.

    Args, [N] float64 where no shape is given:
        flip: 0 or 1.
        quarter_turns: 0 to 3, clockwise.
        shift_x, shift_y: of the width, of the height; to be rounded to whole pixels.
        scale: factor of size.
        pre_rotation: radians.
        aniso: factor of width and divisor of height.
        post_rotation: radians.
        move_x, move_y: of the width, of the height; not rounded.
        brightness: added.
        contrast: factor.
        luma_flip: 0 or 1.
        hue: radians.
        saturation: factor.
        bands: [N, 4], factors of four octaves of frequencies, the lowest first.
        noise_std: >= 0.
        cutout_x, cutout_y: centre of the box, of the width, of the height.
        cutout_size: of the width and the height; 0 = none.
    """

    flip: Tensor
    quarter_turns: Tensor
    shift_x: Tensor
    shift_y: Tensor
    scale: Tensor
    pre_rotation: Tensor
    aniso: Tensor
    post_rotation: Tensor
    move_x: Tensor
    move_y: Tensor
    brightness: Tensor
    contrast: Tensor
    luma_flip: Tensor
    hue: Tensor
    saturation: Tensor
    bands: Tensor
    noise_std: Tensor
    cutout_x: Tensor
    cutout_y: Tensor
    cutout_size: Tensor


@dataclass(frozen=True)
class Augmentation:
    """What happens to N images, small tensors on the CPU, and to which of them; a stage that changes none is left out.

    Args:
        height, width, channels: of the images.
        geometry: [N, 3, 3] float64, where pixels come from, see `augment_geometry.inverse_matrix`.
        blitted: images that are flipped, turned or shifted by whole pixels and not moved otherwise.
        resampled: images that are scaled, rotated or moved by parts of pixels; their flips are in the same matrix.
        color: [N, 4, 4] float64, see `augment_colour.color_matrix`.
        recolored: whether any image is.
        taps: [N, 43] float64, see `augment_filter.filter_taps`.
        filtered: images that are.
        noise_std: [N] float64.
        noisy: whether any image gets noise.
        boxes: [N, 4] int64, see `augment_pixels.cut_out`.
        cut: whether any image is.
    """

    height: int
    width: int
    channels: int
    geometry: Tensor
    blitted: tuple[int, ...]
    resampled: tuple[int, ...]
    color: Tensor
    recolored: bool
    taps: Tensor
    filtered: tuple[int, ...]
    noise_std: Tensor
    noisy: bool
    boxes: Tensor
    cut: bool

    @property
    def does_nothing(self) -> bool:
        """Whether `augment` gives back what it is given."""
        return not (self.blitted or self.resampled or self.recolored or self.filtered or self.noisy or self.cut)


def acting_kinds(augment_set: AugmentSet, channels: int) -> tuple[AugmentKind, ...]:
    """What a set does to images of so many channels: all that it is made of, but colour only with 1, 3 or 4 channels.

    4 are RGBA: colour leaves alpha alone, everything else acts on all channels alike. Of colour, grey images feel
    brightness, contrast and luma flip: hue and saturation do nothing to them.
    """
    return tuple(kind for kind in KINDS[augment_set] if kind != "color" or channels in COLOR_CHANNELS)


def draw_augmentation(
    augment_set: AugmentSet, p: float, count: int, height: int, width: int, channels: int, rng: torch.Generator
) -> Augmentation:
    """Draws what happens to each of `count` images.

    Args:
        augment_set: which transformations there are.
        p: chance of each transformation, 0 to 1.
        count: images.
        height: of the images, px, at least 2. Where it differs from the width, images are turned by 0 or 180 degrees
            only, never by 90.
        width: of the images, px, at least 2.
        channels: of the images, see `acting_kinds`.
        rng: on the CPU. The first images of a larger `count` are the same, and so is everything in a larger set or with
            a larger p except for what it adds.
    Raises:
        ValueError: a number is out of range.
    """
    if min(height, width) < 2 or channels < 1:
        raise ValueError(f"images of {channels} channels, {height} x {width}: expected 2 x 2 at least")
    return make_augmentation(draw_parameters(augment_set, p, count, rng), height, width, channels)


def draw_parameters(augment_set: AugmentSet, p: float, count: int, rng: torch.Generator) -> Parameters:
    """Draws the parameters of each transformation for each of `count` images; see `draw_augmentation`.

    Each transformation has a uniform number of its own and is on where that is below its chance: p; for each of the two
    rotations 1 - sqrt(1 - p), so that an image is rotated with chance p. "On" may still be neutral: x-flips and luma
    flips are 0 or 1, quarter turns 0 to 3 with equal chances.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p={p}: expected a chance from 0 to 1")
    kinds = KINDS[augment_set]
    # Only uniform numbers: torch draws normal ones in blocks, so that they would depend on the number of images.
    columns = iter(torch.rand([count, COLUMNS], dtype=torch.float64, generator=rng).unbind(1))

    def on(kind: AugmentKind, chance: float = p) -> Tensor:
        return next(columns) < (chance if kind in kinds else 0.0)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * next(columns)

    def normal(std: float) -> Tensor:
        number: Tensor = torch.special.ndtri(next(columns).clamp(min=2.0**-54))
        return number * std

    def where(condition: Tensor, value: Tensor, neutral: float = 0.0) -> Tensor:
        return torch.where(condition, value, neutral)

    rotated = 1 - sqrt(1 - p)
    parameters = Parameters(
        flip=where(on("blit"), uniform(0, 2).floor()),
        quarter_turns=where(on("blit"), uniform(0, 4).floor()),
        shift_x=where(shifted := on("blit"), uniform(-MAX_SHIFT, MAX_SHIFT)),
        shift_y=where(shifted, uniform(-MAX_SHIFT, MAX_SHIFT)),
        scale=where(on("geom"), 2 ** normal(SCALE_STD), 1.0),
        pre_rotation=where(on("geom", rotated), uniform(-pi, pi)),
        aniso=where(on("geom"), 2 ** normal(ANISO_STD), 1.0),
        post_rotation=where(on("geom", rotated), uniform(-pi, pi)),
        move_x=where(moved := on("geom"), normal(MOVE_STD)),
        move_y=where(moved, normal(MOVE_STD)),
        brightness=where(on("color"), normal(BRIGHTNESS_STD)),
        contrast=where(on("color"), 2 ** normal(CONTRAST_STD), 1.0),
        luma_flip=where(on("color"), uniform(0, 2).floor()),
        hue=where(on("color"), uniform(-pi, pi)),
        saturation=where(on("color"), 2 ** normal(SATURATION_STD), 1.0),
        bands=torch.stack([where(on("filter"), 2 ** normal(BAND_STD), 1.0) for _ in range(BANDS)], dim=1),
        noise_std=where(on("noise"), normal(NOISE_STD).abs()),
        cutout_x=uniform(0, 1),
        cutout_y=uniform(0, 1),
        cutout_size=where(on("cutout"), torch.full([count], CUTOUT_SIZE, dtype=torch.float64)),
    )
    assert next(columns, None) is None
    return parameters


def neutral_parameters(count: int) -> Parameters:
    """Of transformations that are all off."""
    factors = {"scale", "aniso", "contrast", "saturation", "bands"}
    values = {}
    for field in fields(Parameters):
        shape = [count, BANDS] if field.name == "bands" else [count]
        values[field.name] = torch.full(shape, float(field.name in factors), dtype=torch.float64)
    return Parameters(**values)


def make_augmentation(parameters: Parameters, height: int, width: int, channels: int) -> Augmentation:
    """Parameters as matrices, filters and boxes for images of one size; see `draw_augmentation` for the arguments."""
    P = parameters
    # By 90 degrees an image would change its shape; turns of 0, 1 are 0, turns of 2, 3 are 180 degrees.
    turns = P.quarter_turns if height == width else 2 * (P.quarter_turns / 2).floor()
    shift_x, shift_y = (P.shift_x * width).round(), (P.shift_y * height).round()
    geometry = inverse_matrix(
        flip=P.flip,
        quarter_turns=turns,
        shift_x=shift_x,
        shift_y=shift_y,
        scale=P.scale,
        pre_rotation=P.pre_rotation,
        aniso=P.aniso,
        post_rotation=P.post_rotation,
        move_x=P.move_x * width,
        move_y=P.move_y * height,
    )
    blitted = _any_off(0, P.flip, turns, shift_x, shift_y)
    resampled = _any_off(1, P.scale, P.aniso) | _any_off(0, P.pre_rotation, P.post_rotation, P.move_x, P.move_y)
    color = color_matrix(
        brightness=P.brightness, contrast=P.contrast, luma_flip=P.luma_flip, hue=P.hue, saturation=P.saturation
    )
    has_hue = channels != 1
    recolored = _any_off(0, P.brightness, P.luma_flip) | _any_off(1, P.contrast)
    recolored |= (_any_off(0, P.hue) | _any_off(1, P.saturation)) & has_hue
    centre = torch.stack([P.cutout_x, P.cutout_y], dim=1)
    size = torch.tensor([width, height], dtype=torch.float64)
    low, high = (((centre + P.cutout_size[:, None] * half) * size).round().long() for half in (-0.5, 0.5))
    return Augmentation(
        height=height,
        width=width,
        channels=channels,
        geometry=geometry,
        blitted=_rows(blitted & ~resampled),
        resampled=_rows(resampled),
        color=color,
        recolored=bool(recolored.any()) and channels in COLOR_CHANNELS,
        taps=filter_taps(P.bands),
        filtered=_rows((P.bands != 1).any(dim=1)),
        noise_std=P.noise_std,
        noisy=bool((P.noise_std > 0).any()),
        boxes=torch.stack([low, high], dim=2).flatten(1),
        cut=bool((P.cutout_size > 0).any()),
    )


def _any_off(neutral: float, *values: Tensor) -> Tensor:
    """[N], whether one of them is away from `neutral`."""
    return (torch.stack(values) != neutral).any(dim=0)


def _rows(chosen: Tensor) -> tuple[int, ...]:
    return tuple(chosen.nonzero().flatten().tolist())


def augment(img: Tensor, augmentation: Augmentation, noise_rng: torch.Generator) -> Tensor:
    """Transforms images: geometry, colour, filter, noise, cut-out.

    Images that are flipped, turned by 90 degrees or shifted only are copies of pixels, bit for bit. In others the same
    maps are part of one affine map, and all that is revealed at edges is one reflection of the input.

    Args:
        img: [N, C, H, W] float32 or float64 in [-1, 1]; the result may leave that range.
        augmentation: of as many images of that size.
        noise_rng: on img's device; not used if no image gets noise.
    Returns:
        [N, C, H, W]. Affine in img: differentiable any number of times, and deterministic where torch is told to be. For
        R1 call it within `ops.convolution.differentiated_twice`. Reads nothing back from the device.
    Raises:
        ValueError: `img` is of another size.
    """
    a = augmentation
    expected = (len(a.noise_std), a.channels, a.height, a.width)
    if tuple(img.shape) != expected:
        raise ValueError(f"augmentation of {list(expected)} for images of {list(img.shape)}")
    img = replace_images(img, a.blitted, lambda some: blit(some, a.geometry[list(a.blitted)]))
    img = replace_images(img, a.resampled, lambda some: resample(some, a.geometry[list(a.resampled)]))
    if a.recolored:
        img = apply_color(img, a.color)
    img = replace_images(img, a.filtered, lambda some: apply_filter(some, a.taps[list(a.filtered)]))
    if a.noisy:
        noise = torch.randn(img.shape, generator=noise_rng, device=img.device, dtype=img.dtype)
        img = img + noise * to_device(a.noise_std.to(img.dtype), img.device)[:, None, None, None]
    return cut_out(img, a.boxes) if a.cut else img
