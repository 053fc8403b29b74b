"""Small seeded networks in the place of downloaded weights.

`write_standin`: a TorchScript file of uint8 [N, C, H, W] -> [N, 16], any channels: for pipelines.
`write_inception`: the calling surface of inception-2015-12-05.pt: `.layers(x)` and `(x, return_features=True)`, with
2,048 features of 3-channel images of any size; seeded, so the same file everywhere. Two convolutions only, so its script
runs itself.
`write_full_inception`: both published files in their full size, with random weights: the same network twice.
"""

import hashlib
import io
import warnings
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import inception_v3

from ganops.files import sha256_file


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


class FullInception(nn.Module):
    """The same surface around given layers; with the classifier's weight, which no feature needs."""

    def __init__(self, layers: nn.Module, output: nn.Module) -> None:
        super().__init__()
        self.layers = layers
        self.output = output

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        features = self.layers((F.interpolate(x.float(), [299, 299], mode="bilinear") - 128) / 128)
        return features if return_features else self.output(features).softmax(1)


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


def noise(count: int, seed: int) -> Tensor:
    """Images with coarse and fine structure: uint8 [N, 3, 299, 299]. Of fine noise alone, deep layers see the mean only."""
    rng = torch.Generator().manual_seed(seed)
    img = torch.full([count, 3, 299, 299], 128.0)
    for size in (2, 5, 20, 100, 299):
        contrast = 64 * torch.rand([count, 1, 1, 1], generator=rng)
        img += contrast * F.interpolate(torch.randn([count, 3, size, size], generator=rng), [299, 299], mode="bilinear")
    return img.clamp(0, 255).to(torch.uint8)


def published_pools(x: Tensor, kernel_size: int, stride: int, padding: int) -> Tensor:
    """What the published network has where torchvision's has an average that counts padding as zeros."""
    if x.shape[1] == 2048:  # the last block
        return F.max_pool2d(x, kernel_size, stride, padding)
    return AVG_POOL(x, kernel_size, stride, padding, count_include_pad=False)


AVG_POOL = F.avg_pool2d


def write_full_inception(script: Path, state: Path | None = None, pools: bool = True) -> tuple[str, str]:
    """Writes torchvision's Inception v3 with the published network's pools and random weights, about two seconds.

    Batch norms hold the statistics of a batch, so that activations keep their size.

    Args:
        script: TorchScript with the surface of inception-2015-12-05.pt.
        state: its state dict, named as pt_inception-2015-12-05-6726825d.pth is; None = not written.
        pools: False leaves torchvision's own, so that the two files are of different networks.
    Returns:
        Their sha256.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # torch.jit is deprecated, and says that it traces Python's comparison of a size
        torch.manual_seed(0)
        network = inception_v3(
            weights=None, init_weights=False, transform_input=False, aux_logits=False, num_classes=1008
        ).train()
        for norm in (norm for norm in network.modules() if isinstance(norm, nn.BatchNorm2d)):
            norm.momentum = None  # cumulative: the one batch's own
            norm.weight.uniform_(0.5, 1.5)
            norm.bias.normal_(1, 0.1)  # of mean 0, rounding would grow tenfold up to the features
        weights, output = network.state_dict(), network.fc
        network.fc = network.dropout = nn.Identity()
        img = (noise(4, 0).float() - 128) / 128
        with mock.patch.object(F, "avg_pool2d", published_pools if pools else AVG_POOL):
            network(img)
            layers = torch.jit.trace(network.eval(), img[:2], check_trace=False)
        sha256 = write_network(script, FullInception(layers, output))
    if state is None:
        return sha256, ""
    state.parent.mkdir(parents=True, exist_ok=True)
    torch.save(weights, state)
    return sha256, sha256_file(state)
