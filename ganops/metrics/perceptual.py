"""How different two images look: LPIPS, or a substitute whose weights need no download; and what is made of distances.

As for feature networks, weights are hashed before they are loaded, and what was hashed is what is loaded.
"""

import functools
import hashlib
import importlib.resources
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganops.distributed import on_first_rank
from ganops.errors import DataError, WeightsError
from ganops.images.pixels import WITH_ALPHA
from ganops.metrics.extractor import EFFLITE0_CENTRE, EFFLITE0_SCALE, EFFLITE0_SHA256, EFFLITE0_SIZE, read_efflite0
from ganops.metrics.weights import download, read_checked
from ganops.precision import full_float32

VGG_FILE = "vgg16-397923af.pth"  # torchvision's; its name holds the first 8 digits of its sha256
VGG_URL = "https://download.pytorch.org/models/vgg16-397923af.pth"
VGG_SHA256 = "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0"  # pinned by several projects
LPIPS_SHA256 = "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"  # weights/v0.1/vgg.pth of lpips 0.1.4
LPIPS_MOST = 256  # px; larger images are made smaller first, as for the published path lengths
LPIPS_LEAST = 16  # px; VGG-16 halves four times
EFFLITE0_BLOCKS = (0, 2, 4, 10, 15)  # the last of each resolution: 64, 32, 16, 8 and 4 px of 128
LEAVE_OUT = "take ppl_wend and ppl_wfull out of fid.metrics"
NORM_EPSILON = 1e-10  # as in LPIPS; keeps positions without any activation at 0


@dataclass(frozen=True)
class Perceptual:
    """A distance between images.

    Attributes:
        name: "lpips_vgg" or "efflite0"; part of the name of what is measured with it.
        sha256: of the network's weights.
        resizer: identifies how images come to the network's size.
        packages: the distributions whose versions may change a distance by rounding or more.
        device: where it computes.
        network: two float32 [N, 3, H, W] in [-1, 1] on `device` -> [N].
        background: RGB, 0-255, what transparent pixels are laid on.
    """

    name: str
    sha256: str
    resizer: str
    packages: tuple[str, ...]
    device: torch.device
    network: Callable[[Tensor, Tensor], Tensor]
    background: tuple[int, ...] = (0, 0, 0)

    def distance(self, img0: Tensor, img1: Tensor) -> Tensor:
        """How different the images of each pair look.

        Args:
            img0: float32 [N, C, H, W] in [-1, 1] or somewhat beyond, on any device; other channels than 3 become RGB as
                for features (`ganops.images.pixels.to_rgb`), without rounding.
            img1: likewise.
        Returns:
            float32 [N] on `device`, >= 0, without gradients, computed in full float32; exactly 0 for equal images.
            With the same N, a distance is the same bits whatever its neighbours are.
        Raises:
            DataError: images of this size have no such distance, or it is not finite.
        """
        with torch.no_grad(), full_float32():
            distances = self.network(self._to_rgb(img0), self._to_rgb(img1)).float()
        if not bool(torch.isfinite(distances).all()):
            raise DataError(
                f"{self.name}: a distance between two generated images is not finite, since the images are not. "
                "Take an earlier snapshot, from before the run diverged."
            )
        return distances

    def _to_rgb(self, img: Tensor) -> Tensor:
        img = img.to(self.device)
        channels = img.shape[1]
        colour = img[:, :1].expand(-1, 3, -1, -1) if channels < 3 else img[:, :3]
        if channels not in WITH_ALPHA:
            return colour
        ground = torch.tensor(self.background, device=img.device)[:, None, None] / 127.5 - 1
        return torch.lerp(ground, colour, ((img[:, -1:] + 1) / 2).clamp(0, 1))


def load_perceptual(
    extractor_name: str, device: torch.device, weights_folder: Path, background: Sequence[int] = (0, 0, 0)
) -> Perceptual:
    """The distance that goes with a feature network.

    Args:
        extractor_name: stats.extractor: "inception-2015" has LPIPS of VGG-16, which published path lengths are measured
            with; "efficientnet-lite0" a substitute that needs no network and compares with nothing published.
        device: where to compute.
        weights_folder: where downloaded weights are kept, data/weights.
        background: prepare.background.
    Raises:
        WeightsError: the extractor has no such distance; a file is missing, cannot be had, or is not the pinned one.
    """
    if extractor_name == "inception-2015":
        return replace(_load_lpips(device, weights_folder), background=tuple(background))
    if extractor_name == "efficientnet-lite0":
        return replace(_load_efflite0(device), background=tuple(background))
    raise WeightsError(
        f"stats.extractor={extractor_name} has no perceptual distance to measure path lengths with. Set stats.extractor: "
        f"inception-2015 (LPIPS) or efficientnet-lite0 (a substitute without a download), or {LEAVE_OUT}."
    )


def trimmed_mean(distances: np.ndarray, low: float = 1, high: float = 99) -> float:
    """Mean of the distances from percentile `low` to percentile `high`, these two values included.

    The percentiles are values of the sample: the next lower and the next higher one, so that few are dropped from a
    small sample.

    Args:
        distances: [N], N >= 1.
        low: percentile below which to drop.
        high: percentile above which to drop.
    Source: Karras et al. 2019's measurement of path lengths.
    """
    values = np.asarray(distances, dtype=np.float64)
    least, most = np.percentile(values, low, method="lower"), np.percentile(values, high, method="higher")
    return float(values[(values >= least) & (values <= most)].mean())


def path_length_score(distances: np.ndarray, epsilon: float) -> float:
    """The perceptual path length of distances between pairs that are `epsilon` apart.

    Args:
        distances: [N], N >= 1.
        epsilon: as the pairs were drawn.
    Source: Karras et al. 2019, equation 2: an expectation of distances over epsilon squared, since distances are
        quadratic in small differences.
    """
    return trimmed_mean(distances) / epsilon**2


def _load_lpips(device: torch.device, folder: Path) -> Perceptual:
    """LPIPS 0.1 of VGG-16. The heads are in the package `lpips`, the network is torchvision's file.

    Source: Zhang et al. 2018.
    """
    path = folder / VGG_FILE
    on_first_rank(functools.partial(_download_if_missing, path))
    weights = torch.load(io.BytesIO(read_checked(path, VGG_SHA256)), map_location="cpu", weights_only=True)
    network = _construct_lpips(weights).to(device)

    def compute(img0: Tensor, img1: Tensor) -> Tensor:
        if min(img0.shape[2:]) < LPIPS_LEAST:
            raise DataError(
                f"LPIPS needs images of {LPIPS_LEAST}x{LPIPS_LEAST} pixels or more, but these have "
                f"{img0.shape[2]}x{img0.shape[3]}. Set stats.extractor: efficientnet-lite0, or {LEAVE_OUT}."
            )
        distances: Tensor = network(_at_most(img0, LPIPS_MOST), _at_most(img1, LPIPS_MOST))
        return distances.flatten()

    packages = ("torch", "torchvision", "lpips")
    return Perceptual("lpips_vgg", VGG_SHA256, f"torch-area-at-most-{LPIPS_MOST}", packages, device, compute)


def _construct_lpips(vgg: dict[str, Tensor]) -> nn.Module:
    """The package's network with torchvision's weights (`features.*`; its classifier is not needed) and its own heads."""
    import lpips

    content = (importlib.resources.files(lpips) / "weights" / "v0.1" / "vgg.pth").read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != LPIPS_SHA256:
        raise WeightsError(
            f"lpips: sha256 of its weights is {found}, expected {LPIPS_SHA256}. Install lpips==0.1.4 again."
        )
    # On "meta" no initial weights are made: 138 million of them would cost time and draw from the global random state.
    with warnings.catch_warnings(), torch.device("meta"):
        # lpips 0.1.4, its newest, still says pretrained=False to torchvision, where weights=None is the word now.
        warnings.filterwarnings("ignore", message=".*'pretrained' is deprecated", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*weight enum or `None`", category=UserWarning)
        network: nn.Module = lpips.LPIPS(pretrained=False, net="vgg", pnet_rand=True, verbose=False)
    network.scaling_layer = lpips.ScalingLayer()  # holds constants, not weights
    # The package names a layer net.slice3.12.weight that torchvision calls features.12.weight.
    names = [name for name in network.state_dict() if name.startswith("net.")]
    weights = {name: vgg["features." + name.split(".", 2)[2]] for name in names}
    weights |= torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    # Not strict, since the heads have a second name each (lins.0 is lin0): what counts is that nothing is left out.
    network.load_state_dict(weights, strict=False, assign=True)
    assert not any(tensor.is_meta for tensor in network.state_dict().values())
    return network.eval().requires_grad_(False)


def _at_most(img: Tensor, size: int) -> Tensor:
    """Averages areas of larger images down to `size`; smaller ones stay as they are."""
    height, width = img.shape[2:]
    return F.interpolate(img, [min(height, size), min(width, size)], mode="area") if max(height, width) > size else img


def _download_if_missing(path: Path) -> None:
    if path.exists():
        return
    otherwise = (
        f"Download {VGG_URL} (553 MB) on another machine and put it there (sha256 {VGG_SHA256}), set stats.extractor: "
        f"efficientnet-lite0, or {LEAVE_OUT}."
    )
    download(path, VGG_URL, VGG_SHA256, otherwise)


def _load_efflite0(device: torch.device) -> Perceptual:
    """A distance in the form of LPIPS, without its learned weights, over EfficientNet-Lite0; not comparable with LPIPS.

    Images are resized to 128 px, as for the features, but neither quantised nor clamped.
    """
    network = read_efflite0()[0].to(device).to(memory_format=torch.channels_last)

    def features(img: Tensor) -> list[Tensor]:
        img = F.interpolate(img, [EFFLITE0_SIZE, EFFLITE0_SIZE], mode="bicubic", antialias=True)
        img = ((img + 1) * 127.5 - EFFLITE0_CENTRE) / EFFLITE0_SCALE
        x = network._swish(network._bn0(network._conv_stem(img.contiguous(memory_format=torch.channels_last))))
        found = []
        for number, block in enumerate(network._blocks):
            x = block(x)
            if number in EFFLITE0_BLOCKS:
                found.append(x)
        return found

    def compute(img0: Tensor, img1: Tensor) -> Tensor:
        return layered_distance(features(img0), features(img1))

    packages = ("torch", "efficientnet_lite_pytorch")
    resizer = f"torch-bicubic-antialias-{EFFLITE0_SIZE}"
    return Perceptual("efflite0", EFFLITE0_SHA256, resizer, packages, device, compute)


def layered_distance(features0: list[Tensor], features1: list[Tensor]) -> Tensor:
    """LPIPS without learned weights: the squared distance of unit vectors over channels, averaged over space.

    Args:
        features0: one [N, C_l, H_l, W_l] per layer.
        features1: likewise.
    Returns:
        [N], summed over the layers.
    Source: Zhang et al. 2018, equation 1 with all weights 1.
    """
    layers = []
    for x0, x1 in zip(features0, features1, strict=True):
        unit0, unit1 = (x / (x.square().sum(1, keepdim=True).sqrt() + NORM_EPSILON) for x in (x0, x1))
        layers.append((unit0 - unit1).square().sum(1).mean([1, 2]))
    return torch.stack(layers).sum(0)
