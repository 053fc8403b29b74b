"""Small seeded networks in the place of downloaded weights.

`write_standin`: a TorchScript file of uint8 [N, C, H, W] -> [N, 16], any channels: for pipelines.
`write_inception`: the calling surface of inception-2015-12-05.pt: `.layers(x)` and `(x, return_features=True)`, with
2,048 features of 3-channel images of any size; seeded, so the same file everywhere.
"""

import hashlib
import io
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PixelFeatures(nn.Module):
    """Random projection of an image pooled to 8x8."""

    projection: Tensor

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.register_buffer("projection", torch.randn([64, 16], generator=rng) / 8)

    def forward(self, images: Tensor) -> Tensor:
        img = F.adaptive_avg_pool2d(images.float().mean(1, keepdim=True) / 255, [8, 8])
        return (img.flatten(1) @ self.projection).tanh()


class InceptionLayers(nn.Module):
    """Two convolutions and a pooling, from [N, 3, H, W] about in [-1, 1] to 2,048 features."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        self.first = nn.Parameter(torch.randn([16, 3, 7, 7], generator=rng) / 12)
        self.second = nn.Parameter(torch.randn([2048, 16, 3, 3], generator=rng) / 12)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.first, stride=8))
        x = F.relu(F.conv2d(x, self.second, stride=4))
        return x.mean([2, 3])


class Inception(nn.Module):
    """The surface that clean-fid and others call."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = InceptionLayers()

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        x = F.interpolate(x.float(), [299, 299], mode="bilinear")
        return self.layers((x - 128) / 128)


class FixedSize(nn.Module):
    """Takes 4x4 grey images only."""

    def forward(self, images: Tensor) -> Tensor:
        return images.float().reshape(len(images), 2, 8).sum(2)


def write_network(path: Path, network: nn.Module) -> str:
    """Writes a network as TorchScript; its sha256."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch.jit, which published files are written with
        warnings.simplefilter("ignore", FutureWarning)
        content = io.BytesIO()
        torch.jit.save(torch.jit.script(network.eval()), content)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.getvalue())
    return hashlib.sha256(content.getvalue()).hexdigest()


def write_standin(path: Path) -> str:
    """Writes the network for pipelines; its sha256."""
    return write_network(path, PixelFeatures())


def write_inception(path: Path) -> str:
    """Writes the stand-in of the Inception file; its sha256."""
    return write_network(path, Inception())
