"""Inception-2015, the network of the Fréchet Inception Distance: its weights, from either of the published files.

Both files hold what Google published on 2015-12-05 and Heusel et al. 2017 used. The state dict names its tensors. NVIDIA's
TorchScript holds a graph too, which our network replaces where the two are proven equal: it is faster on every device.
"""

import functools
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ganops.distributed import on_first_rank
from ganops.entry import say
from ganops.errors import WeightsError
from ganops.metrics.inception_network import FEATURES, Network, build_network, conv_names
from ganops.metrics.weights import download, load_torchscript, read_checked

STATE_FILE = "pt_inception-2015-12-05-6726825d.pth"
STATE_URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
STATE_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
INCEPTION_FILE = "inception-2015-12-05.pt"
INCEPTION_URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"  # pinned by several projects

INCEPTION_SIZE = 299  # px
CENTRE = SCALE = 128.0  # pixels 0..255 come in as (x - 128) / 128
CLASSES = 1008
PROBE_IMAGES = 2
PROBE_TOLERANCE = 1e-4  # of the largest feature; rounding measures 6e-6 with random weights, a wrong layer above 1e-2

# A convolution's tensors in a TorchScript file, by the last part of their names, as the state dict calls them.
NORM_TENSORS = {
    "weight": "bn.weight",
    "gamma": "bn.weight",
    "bias": "bn.bias",
    "beta": "bn.bias",
    "mean": "bn.running_mean",
    "running_mean": "bn.running_mean",
    "var": "bn.running_var",
    "running_var": "bn.running_var",
}


def name_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives a TorchScript file's tensors the state dict's names, by their order, shapes and last parts of names.

    Args:
        tensors: in the file's order, a convolution's together in any order; without a batch norm's factor it is 1.
    Raises:
        ValueError: these are not the tensors of this network.
    """
    groups: list[dict[str, Tensor]] = []
    named: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        role = NORM_TENSORS.get(name.rpartition(".")[2]) if tensor.ndim == 1 else None
        if tensor.ndim == 4:
            role = "conv.weight"
        if tensor.ndim == 2 and sorted(tensor.shape) == sorted((CLASSES, FEATURES)):
            named["fc.weight"] = tensor if tensor.shape[0] == CLASSES else tensor.T
        if role is None or tensor.shape == (CLASSES,):  # a count of batches, or the classifier's
            continue
        if not groups or role in groups[-1]:
            groups.append({})
        groups[-1][role] = tensor
    names = list(conv_names())
    if len(groups) != len(names):
        raise ValueError(f"{len(groups)} convolutions, expected {len(names)}")
    for name, group in zip(names, groups, strict=True):
        if "conv.weight" in group and "bn.weight" not in group:
            group["bn.weight"] = torch.ones(len(group["conv.weight"]))
        named |= {f"{name}.{part}": tensor for part, tensor in group.items()}
    return named


@dataclass(frozen=True)
class Inception:
    """Loaded weights.

    Attributes:
        network: None where the file's own script must run.
        script: that script; None where it need not.
        class_weights: [1008, 2048] float32 on the CPU; None if the file does not show them.
        sha256: of the file.
    """

    network: Network | None
    script: torch.jit.ScriptModule | None
    class_weights: Tensor | None
    sha256: str


def load_inception(folder: Path, device: torch.device) -> Inception:
    """The weights in `folder`, from the state dict, or else NVIDIA's TorchScript; downloads the former if neither is there.

    Raises:
        WeightsError: neither can be had, or a file is not the published one.
    """
    path = on_first_rank(functools.partial(_find, folder))
    if path.name == STATE_FILE:
        return _load_state(path, device)
    return _load_script(path, device)


def _find(folder: Path) -> Path:
    """Which of the two files to use."""
    state, script = folder / STATE_FILE, folder / INCEPTION_FILE
    if not state.exists() and script.exists():
        return script
    if not state.exists():
        otherwise = (
            f"Download it on another machine, from {STATE_URL} (sha256 {STATE_SHA256}), or {INCEPTION_FILE} from "
            f"{INCEPTION_URL} (sha256 {INCEPTION_SHA256}), and put it into {folder}; or set stats.extractor: "
            "efficientnet-lite0, which needs no network."
        )
        download(state, STATE_URL, STATE_SHA256, otherwise)
    return state


def _load_state(path: Path, device: torch.device) -> Inception:
    content = read_checked(path, STATE_SHA256)
    state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    try:
        network = build_network(state)
    except ValueError as error:
        raise WeightsError(f"{path}: not the weights of Inception-2015 ({error}).") from None
    return Inception(network.to(device), None, state["fc.weight"].float(), STATE_SHA256)


def _load_script(path: Path, device: torch.device) -> Inception:
    """Our network with the script's weights if that is proven to be the same network, else the script."""
    content = read_checked(path, INCEPTION_SHA256)
    cpu = torch.device("cpu")
    script = load_torchscript(content, path, cpu)
    class_weights = None
    try:
        named = name_tensors(script.state_dict())
        class_weights = named["fc.weight"].float().contiguous() if "fc.weight" in named else None
        network = build_network(named)
        error = probe(network, script_features(script))
        if not error <= PROBE_TOLERANCE:
            raise ValueError(f"features differ by {error:.1g}")
    except ValueError as error:
        say(f"inception-2015: {path.name} is built otherwise ({error}), so its own script runs: same numbers, slower")
        return Inception(None, load_torchscript(content, path, device), class_weights, INCEPTION_SHA256)
    return Inception(network.to(device), None, class_weights, INCEPTION_SHA256)


def script_features(script: torch.jit.ScriptModule) -> Callable[[Tensor], Tensor]:
    """The convolutions of NVIDIA's TorchScript file: [N, 3, 299, 299] in [-1, 1] -> [N, 2048]."""

    def compute(img: Tensor) -> Tensor:
        features: Tensor = script.layers(img)
        return features.reshape(len(img), -1)

    return compute


def probe(network: Network, other: Callable[[Tensor], Tensor]) -> float:
    """How far two networks are apart on a few seeded images, relative to the largest feature; infinite if not alike."""
    rng = torch.Generator().manual_seed(0)
    # Coarse and fine noise: of fine noise alone, deep layers see the mean only.
    coarse = torch.rand([PROBE_IMAGES, 3, 6, 6], generator=rng)
    fine = torch.rand([PROBE_IMAGES, 3, INCEPTION_SIZE, INCEPTION_SIZE], generator=rng)
    img = (
        nn.functional.interpolate(coarse, [INCEPTION_SIZE, INCEPTION_SIZE], mode="bilinear", align_corners=False)
        + fine
        - 1
    )
    with torch.no_grad(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
        ours, theirs = network(img.contiguous(memory_format=torch.channels_last)), other(img).float()
    if ours.shape != theirs.shape:
        return float("inf")
    return float((ours - theirs).abs().max() / theirs.abs().max())


def normalise(img: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 [N, 3, 299, 299] in 0..255 -> in [-1, 1], `dtype`, channels last. Works in the memory of `img`."""
    return img.sub_(CENTRE).div_(SCALE).to(dtype=dtype, memory_format=torch.channels_last)
