"""DiffAugment: colour, translation and cut-out of what the discriminator sees, always, or each image with chance p.

Source: Zhao et al. 2020, "Differentiable Augmentation for Data-Efficient GAN Training", section 3 and appendix.
"""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from ganops.config_train import COLOR_CHANNELS, DiffAugmentKind
from ganops.training.augment_pixels import cut_out, gather_pixels, replace_images
from ganops.training.batches import to_device

MAX_TRANSLATION = 0.125  # of the size
CUTOUT_SIZE = 0.5  # of the size
COLUMNS = 8  # random numbers per image


@dataclass(frozen=True)
class DiffAugmentation:
    """What happens to N images, small tensors on the CPU, and to which of them.

    Args:
        height, width: of the images.
        recolored: images whose colour changes; all others are exempt from the next three.
        brightness: [N] float64, is added, -0.5 to 0.5.
        saturation: [N] float64, factor of the distance from the mean over the channels, 0 to 2.
        contrast: [N] float64, factor of the distance from the image's mean, 0.5 to 1.5.
        translated: images that are.
        translation: [N, 2] int64, px to the right and down.
        boxes: [N, 4] int64, see `augment_pixels.cut_out`; empty where nothing is cut.
        cut: whether any image is.
    """

    height: int
    width: int
    recolored: tuple[int, ...]
    brightness: Tensor
    saturation: Tensor
    contrast: Tensor
    translated: tuple[int, ...]
    translation: Tensor
    boxes: Tensor
    cut: bool

    @property
    def does_nothing(self) -> bool:
        """Whether `diffaugment` gives back what it is given."""
        return not (self.recolored or self.translated or self.cut)


def acting_diffaugment_kinds(policy: Collection[DiffAugmentKind], channels: int) -> tuple[DiffAugmentKind, ...]:
    """What a policy does to images of so many channels: all of it, but colour only with 1, 3 or 4 channels.

    4 are RGBA: colour leaves alpha alone. Of colour, grey images feel brightness and contrast.
    """
    return tuple(kind for kind in policy if kind != "color" or channels in COLOR_CHANNELS)


def draw_diffaugment(
    policy: Collection[DiffAugmentKind], p: float, count: int, height: int, width: int, rng: torch.Generator
) -> DiffAugmentation:
    """Draws what happens to each of `count` images.

    Args:
        policy: which transformations there are; the paper has all three, or the last two.
        p: chance of each image to get all of them; the paper has 1.
        count: images.
        height: of the images, px.
        width: of the images, px.
        rng: on the CPU. The first images of a larger `count` are the same, and so is everything with a larger policy or
            p except for what it adds.
    Raises:
        ValueError: p is not a chance.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"p={p}: expected a chance from 0 to 1")
    columns = torch.rand([count, COLUMNS], dtype=torch.float64, generator=rng).unbind(1)
    on = columns[0] < p
    rows = tuple(on.nonzero().flatten().tolist())
    translation, boxes = [], []
    for size, place, middle in ((width, columns[4], columns[6]), (height, columns[5], columns[7])):
        furthest = int(size * MAX_TRANSLATION + 0.5)
        translation.append((place * (2 * furthest + 1)).floor().long() - furthest)
        # The middle may be any pixel, and with an even box the edge after the last one too: what is outside is lost.
        length = int(size * CUTOUT_SIZE + 0.5)
        low = (middle * (size + 1 - length % 2)).floor().long() - length // 2
        boxes += [low, low + length * on]
    return DiffAugmentation(
        height=height,
        width=width,
        recolored=rows if "color" in policy else (),
        brightness=columns[1] - 0.5,
        saturation=columns[2] * 2,
        contrast=columns[3] + 0.5,
        translated=rows if "translation" in policy else (),
        translation=torch.stack(translation, dim=1),
        boxes=torch.stack(boxes, dim=1),
        cut="cutout" in policy and bool(rows),
    )


def diffaugment(img: Tensor, plan: DiffAugmentation) -> Tensor:
    """Transforms images: brightness, saturation, contrast, translation, cut-out. What is revealed or cut is 0, mid grey.

    Args:
        img: [N, C, H, W] float32 or float64 in [-1, 1]; the result may leave that range. Colours change with 1, 3 and 4
            channels, see `acting_diffaugment_kinds`.
        plan: for as many images of that size.
    Returns:
        [N, C, H, W]. Affine in img: differentiable any number of times, and deterministic where torch is told to be.
        Images that are off keep every bit. Reads nothing back from the device.
    Raises:
        ValueError: `img` is of another size.
    """
    expected = (len(plan.brightness), plan.height, plan.width)
    if (len(img), *img.shape[2:]) != expected:
        raise ValueError(f"plan for {list(expected)} for images of {list(img.shape)}")
    if img.shape[1] in COLOR_CHANNELS:
        img = replace_images(img, plan.recolored, lambda some: _recolor(some, plan))
    img = replace_images(img, plan.translated, lambda some: _translate(some, plan.translation[list(plan.translated)]))
    return cut_out(img, plan.boxes) if plan.cut else img


def _recolor(img: Tensor, plan: DiffAugmentation) -> Tensor:
    rows = list(plan.recolored)
    values = torch.stack([plan.brightness[rows], plan.saturation[rows], plan.contrast[rows]]).to(img.dtype)
    brightness, saturation, contrast = to_device(values, img.device)[..., None, None, None]
    color, alpha = img[:, :3], img[:, 3:]
    color = color + brightness
    if img.shape[1] > 1:
        grey = color.mean(dim=1, keepdim=True)
        color = (color - grey) * saturation + grey
    mean = color.mean(dim=[1, 2, 3], keepdim=True)
    return torch.cat([(color - mean) * contrast + mean, alpha], dim=1)


def _translate(img: Tensor, translation: Tensor) -> Tensor:
    H, W = img.shape[2:]
    x_shift, y_shift = to_device(translation, img.device)[:, :, None, None].unbind(1)
    x = torch.arange(W, device=img.device) - x_shift
    y = torch.arange(H, device=img.device)[:, None] - y_shift
    outside = (x < 0) | (x >= W) | (y < 0) | (y >= H)
    moved = gather_pixels(img, x.clamp(0, W - 1), y.clamp(0, H - 1))
    return moved.masked_fill(outside[:, None], 0)
