"""The distance between images that `project` makes small: LPIPS, or a substitute without a download, as params.yaml says."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from ganops.errors import DataError
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
        to_target: img [N, C, H, W] about in [-1, 1] -> [N] >= 0, differentiable.
    """

    name: str
    sha256: str
    to_target: Callable[[Tensor], Tensor]


def open_distance(
    name: Literal["lpips", "efflite0"], target: Tensor, device: torch.device, weights_folder: Path
) -> Distance:
    """The distance to `target`.

    Args:
        name: project.distance.
        target: [1, C, H, W] in [-1, 1].
        device: where to compute.
        weights_folder: where downloaded weights are kept.
    Raises:
        DataError: images with these channels or this size have no such distance.
        WeightsError: the weights of VGG-16 are missing and cannot be downloaded, or are others than published.
    """
    channels, height, width = target.shape[1:]
    if channels not in (1, 3):
        raise DataError(f"images of {channels} channels cannot be compared: networks that do it see 1 or 3.")
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
    prepared = _prepare(target.to(device), name)

    def to_target(img: Tensor) -> Tensor:
        # .network and not .distance, which has no gradients
        return perceptual.network(_prepare(img, name), prepared.expand(len(img), -1, -1, -1))

    return Distance(perceptual.name, perceptual.sha256, to_target)


def _prepare(img: Tensor, name: str) -> Tensor:
    """To three channels; for LPIPS averaged to at most 256 px, as published.

    By avg_pool2d: interpolate(mode="area"), which LPIPS would take itself, has no deterministic gradient on CUDA.
    """
    factor = max(img.shape[2:]) // LPIPS_MOST
    if name == "lpips" and factor > 1:
        img = F.avg_pool2d(img, factor)
    return img.float().expand(-1, 3, -1, -1)
