"""The distance between images that `project` makes small: LPIPS, or a substitute without a download, as params.yaml says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ganops.errors import DataError
from ganops.images.pixels import WITH_ALPHA
from ganops.metrics.perceptual import (
    LPIPS_LEAST,
    LPIPS_MOST,
    VGG_FILE,
    VGG_SHA256,
    VGG_URL,
    load_perceptual,
)
from ganops.metrics.weights import download

EXTRACTORS = {"lpips": "inception-2015", "efflite0": "efficientnet-lite0"}  # stats.extractor that a distance goes with


@dataclass(frozen=True)
class Distance:
    """Of images to one target.

    Attributes:
        name: "lpips_vgg" or "efflite0".
        sha256: of the network's weights.
        to_target: img [N, C, H, W] about in [-1, 1], any C -> [N] >= 0, differentiable; of what `lay_on` makes of it.
    """

    name: str
    sha256: str
    to_target: Callable[[Tensor], Tensor]


def open_distance(
    name: Literal["lpips", "efflite0"],
    target: Tensor,
    background: Sequence[int],
    device: torch.device,
    weights_folder: Path,
) -> Distance:
    """The distance to `target`.

    Args:
        name: project.distance.
        target: [1, C, H, W] in [-1, 1], any C.
        background: RGB, 0-255; what transparent images are laid on.
        device: where to compute.
        weights_folder: where downloaded weights are kept.
    Raises:
        DataError: images of this size have no such distance.
        WeightsError: the weights of VGG-16 are missing and cannot be downloaded, or are others than published.
    """
    height, width = target.shape[2:]
    if name == "lpips" and min(height, width) < LPIPS_LEAST:
        raise DataError(
            f"project.distance=lpips needs images of {LPIPS_LEAST}x{LPIPS_LEAST} pixels or more, but these have "
            f"{height}x{width}. Set project.distance: efflite0."
        )
    vgg = weights_folder / VGG_FILE
    if name == "lpips" and not vgg.exists():
        otherwise = (
            f"Download {VGG_URL} (553 MB) on another machine and put it there (sha256 {VGG_SHA256}), or set "
            "project.distance: efflite0, a substitute that compares with nothing published."
        )
        download(vgg, VGG_URL, VGG_SHA256, otherwise)
    perceptual = load_perceptual(EXTRACTORS[name], device, weights_folder)
    prepared = _prepare(target.to(device), background, name)

    def to_target(img: Tensor) -> Tensor:
        # .network and not .distance, which has no gradients
        return perceptual.network(_prepare(img, background, name), prepared.expand(len(img), -1, -1, -1))

    return Distance(perceptual.name, perceptual.sha256, to_target)


def lay_on(img: Tensor, background: Sequence[int]) -> Tensor:
    """`ganops.images.pixels.to_rgb` for the networks' range, without rounding, differentiable.

    Args:
        img: [N, C, H, W] about in [-1, 1]. 1: grey, three times. 2 (grey and alpha) and 4 (RGBA): laid on `background`. 5
            and more: the first three.
        background: RGB, 0-255.
    Returns:
        [N, 3, H, W] float32.
    """
    img = img.float()
    channels = img.shape[1]
    colour = img[:, :1].expand(-1, 3, -1, -1) if channels < 3 else img[:, :3]
    if channels not in WITH_ALPHA:
        return colour
    alpha = (img[:, -1:] + 1) / 2
    # A pixel shows alpha clamped to [0, 1]. The gradient ignores this: else what is transparent once stays so for ever.
    alpha = alpha + (alpha.clamp(0, 1) - alpha).detach()
    ground = torch.tensor([*background], device=img.device)[:, None, None] / 127.5 - 1
    return ground + alpha * (colour - ground)


def _prepare(img: Tensor, background: Sequence[int], name: str) -> Tensor:
    """Laid on the background; for LPIPS averaged to at most 256 px, as published.

    By avg_pool2d: interpolate(mode="area"), which LPIPS would take itself, has no deterministic gradient on CUDA.
    """
    img = lay_on(img, background)
    factor = max(img.shape[2:]) // LPIPS_MOST
    return F.avg_pool2d(img, factor) if name == "lpips" and factor > 1 else img
