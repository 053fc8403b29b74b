"""Generators from snapshots of NVIDIA's stylegan2-ada-pytorch and stylegan3 repositories, as ours."""

import math
import re
from mmap import mmap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ganops.errors import WeightsError
from ganops.files import sha256_file
from ganops.networks.layers import RESAMPLE_TAPS
from ganops.networks.nvidia_pickle import (
    MAGIC,
    Module,
    TensorData,
    open_pickle,
    read_pickle,
    read_tensor,
    shown,
)
from ganops.networks.stylegan2_generator import Generator
from ganops.ops.upfirdn2d import setup_filter

NETWORK = "G_ema"
"""The network that is imported: the mean of the weights, which the published pictures and distances are made with."""

POSITIONAL = ("z_dim", "c_dim", "w_dim", "img_resolution", "img_channels", "mapping_kwargs", "synthesis_kwargs")
NESTED = ("mapping_kwargs", "synthesis_kwargs")
MOST = 65536
"""Of any width or number of classes; a bound for files that lie."""
MOST_PARTS = 1000
MOST_DEPTH = 16

# Arguments that say how to compute or how to train, and not what.
WITHOUT_EFFECT = {"w_avg_beta", "fp16_channels_last", "fused_modconv_default"}
DEFAULTS: dict[str, Any] = {
    # Of the published constructors. num_fp16_res and conv_clamp differ between the two repositories: where a file does
    # not pass them, they stand in its layers (`_recorded`).
    "num_layers": 8,
    "lr_multiplier": 0.01,
    "channel_base": 32768,
    "channel_max": 512,
    "num_fp16_res": 0,
    "conv_clamp": None,
    "architecture": "skip",
    "embed_features": None,
    "layer_features": None,
    "activation": "lrelu",
    "resample_filter": list(RESAMPLE_TAPS),
    "use_noise": True,
    "kernel_size": 3,
}


def read_generator(path: Path) -> tuple[Generator, dict[str, Any]]:
    """Reads G_ema from a .pkl, running nothing in it; every tensor of it is found again in the result.

    Args:
        path: of a network-snapshot-*.pkl or a published network.
    Returns:
        The generator, on the CPU, in evaluation mode and without gradients; and the metadata for `save_snapshot`.
    Raises:
        WeightsError: no such snapshot, one that asks for more than data, or a network that `Generator` cannot be.
    """
    try:
        with open_pickle(path) as content:
            return _read(content, path)
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


def _read(content: mmap, path: Path) -> tuple[Generator, dict[str, Any]]:
    root = read_pickle(content)
    if type(root) is int and root == MAGIC:
        raise WeightsError("a checkpoint of torch.save, not a snapshot of NVIDIA's training code.")
    network = root.get(NETWORK) if type(root) is dict else None
    if not isinstance(network, Module):
        raise WeightsError(f"holds no network {NETWORK}, so it is not a snapshot of NVIDIA's training code.")
    parts = _parts(network)
    given, nested = _given_arguments(network)
    arguments = _arguments(given, parts)
    tensors = _read_tensors(content, _match(parts, arguments))
    G = Generator(**arguments, rng=None)
    G.load_state_dict(tensors)
    return G.eval().requires_grad_(False), _metadata(root, path, network.class_name, nested, arguments["c_dim"])


def _metadata(root: dict[Any, Any], path: Path, class_name: str, nested: bool, c_dim: int) -> dict[str, Any]:
    """The keys that snapshots of our own training have, null where the file does not say; and where it came from."""
    nimg = root.get("cur_nimg")
    nimg = nimg if type(nimg) is int and 0 <= nimg < 1 << 53 else None
    return {
        "nimg": nimg,
        "kimg": None if nimg is None else nimg / 1000,
        "best": None,
        "retries": [],
        "data_digest": "unknown",
        # The file knows neither names nor how often each class occurs.
        "class_names": [str(label) for label in range(c_dim)],
        "class_counts": [1] * c_dim,
        "run": None,
        "accepted_code": None,
        "init_from": {},
        "origin": {
            "sha256": sha256_file(path),
            "format": "stylegan2-ada-pytorch pickle" if nested else "stylegan3 pickle",
            "network": NETWORK,
            "class_name": class_name,
        },
    }


def _parts(network: Module) -> dict[str, Module]:
    """All modules by their dotted names, the network itself as ""."""
    found: dict[str, Module] = {}
    waiting = [("", network)]
    while waiting:
        name, part = waiting.pop()
        found[name] = part
        modules = _entries(part, name, "_modules")
        # Those that wait count too: a part that holds itself under many names would multiply them at each level.
        if len(found) + len(waiting) + len(modules) > MOST_PARTS or name.count(".") > MOST_DEPTH:
            raise WeightsError(f"{NETWORK} has more than {MOST_PARTS} parts, or parts in parts to no end.")
        for key, child in modules.items():
            if not isinstance(child, Module):
                raise WeightsError(f"{_dotted(name, key)} is {shown(child)} instead of a module.")
            waiting.append((_dotted(name, key), child))
    return found


def _entries(part: Module, name: str, kind: str) -> dict[str, Any]:
    """The modules, parameters or buffers of a part; None stands for one that the part does without."""
    entries = part.state.get(kind)
    if type(entries) is not dict or not all(
        type(key) is str and re.fullmatch(r"\w{1,64}", key, re.ASCII) for key in entries
    ):
        raise WeightsError(f"{name or NETWORK} has no {kind}, or names in it that are none.")
    return {key: value for key, value in entries.items() if value is not None}


def _dotted(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name


def _given_arguments(network: Module) -> tuple[list[tuple[str, Any]], bool]:
    """The constructor arguments as (name, value), of all levels; and whether the file nests those of the synthesis."""
    args, kwargs = (network.state.get(key) for key in ("_init_args", "_init_kwargs"))
    if type(args) is not tuple or type(kwargs) is not dict or len(args) > len(POSITIONAL):
        raise WeightsError(f"{NETWORK} does not say what it was constructed with (_init_args, _init_kwargs).")
    top: list[tuple[Any, Any]] = [*zip(POSITIONAL, args, strict=False), *kwargs.items()]
    given = []
    for name, value in top:
        if type(name) is str and name in NESTED:
            if type(value) is not dict:
                raise WeightsError(f"{NETWORK} was constructed with {name}={shown(value)}.")
            given += list(value.items())
        else:
            given.append((name, value))
    return given, "synthesis_kwargs" in [name for name, _ in top]


def _arguments(given: list[tuple[Any, Any]], parts: dict[str, Module]) -> dict[str, Any]:
    """Arguments of `Generator`; whatever it cannot be is refused by name and value."""
    if "synthesis.input" in parts or parts[""].class_name != "Generator" or "synthesis.b4" not in parts:
        raise WeightsError(
            f"{NETWORK} is a {shown(parts[''].class_name)} without the blocks of StyleGAN2 (StyleGAN3 has others); only "
            "StyleGAN2 is read."
        )
    values: dict[str, Any] = {}
    for name, value in given:
        if type(name) is not str or name not in {*POSITIONAL, *DEFAULTS, *WITHOUT_EFFECT} or name in NESTED:
            raise _unsupported(name, value)
        if name in values and name not in WITHOUT_EFFECT and shown(values[name]) != shown(value):
            raise WeightsError(
                f"{NETWORK} was constructed with {name}={shown(values[name])} and {shown(value)} at once."
            )
        values[name] = value
    values = DEFAULTS | _recorded(parts) | values
    for name, least in {"z_dim": 1, "c_dim": 0, "w_dim": 1, "img_resolution": 8, "img_channels": 1}.items():
        values[name] = _integer(name, values.get(name), least, MOST)
    for name, most in {"num_layers": 64, "channel_base": 1 << 30, "channel_max": MOST}.items():
        values[name] = _integer(name, values[name], 1, most)
    resolution, num_fp16_res = values["img_resolution"], _integer("num_fp16_res", values["num_fp16_res"], 0, 64)
    if resolution & (resolution - 1) or values["channel_base"] < resolution:
        raise _unsupported("img_resolution", resolution)
    for name in ("embed_features", "layer_features"):
        if values[name] is not None and _integer(name, values[name], 1, MOST) != values["w_dim"]:
            raise _unsupported(name, values[name])
    taps = values["resample_filter"]
    if type(taps) not in (list, tuple) or shown(taps) != shown(RESAMPLE_TAPS):
        raise _unsupported("resample_filter", taps)
    choices: dict[str, list[Any]] = {
        "activation": ["lrelu"],
        "use_noise": [True],
        "kernel_size": [3],
        "architecture": ["skip", "resnet", "orig"],
    }
    for name, possible in choices.items():
        if type(values[name]) is not type(possible[0]) or values[name] not in possible:
            raise _unsupported(name, values[name])
    clamp = values["conv_clamp"]
    return {
        "z_dim": values["z_dim"],
        "c_dim": values["c_dim"],
        "w_dim": values["w_dim"],
        "resolution": resolution,
        "base_grid": (4, 4),
        "img_channels": values["img_channels"],
        "mapping_layers": values["num_layers"],
        "mapping_lr_multiplier": _positive("lr_multiplier", values["lr_multiplier"]),
        "channel_base": values["channel_base"],
        "channel_max": values["channel_max"],
        "architecture": values["architecture"],
        "precision": "float16" if num_fp16_res else "float32",
        "low_precision_resolutions": num_fp16_res,
        "conv_clamp": None if clamp is None else _positive("conv_clamp", clamp),
    }


def _recorded(parts: dict[str, Module]) -> dict[str, Any]:
    """What the layers themselves say of arguments that the two repositories have different defaults for."""
    blocks = [part.state for name, part in parts.items() if re.fullmatch(r"synthesis\.b\d+", name)]
    layers = [part.state for name, part in parts.items() if re.fullmatch(r"synthesis\.b\d+\.conv1", name)]
    recorded: dict[str, Any] = {}
    if any("use_fp16" in block for block in blocks):
        recorded["num_fp16_res"] = sum(block.get("use_fp16") is True for block in blocks)
    clamps = {shown(layer["conv_clamp"]): layer["conv_clamp"] for layer in layers if "conv_clamp" in layer}
    if len(clamps) > 1:
        raise _unsupported("conv_clamp", ", ".join(clamps))
    for clamp in clamps.values():
        recorded["conv_clamp"] = clamp
    return recorded


def _unsupported(name: Any, value: Any) -> WeightsError:
    return WeightsError(
        f"{NETWORK} was constructed with {shown(name).strip(chr(39))}={shown(value)}, which is not supported."
    )


def _integer(name: str, value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise _unsupported(name, value)
    return value


def _positive(name: str, value: Any) -> float:
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise _unsupported(name, value)
    return float(value)


def _match(parts: dict[str, Module], arguments: dict[str, Any]) -> dict[str, tuple[str, TensorData]]:
    """Our name -> their name and tensor, for each tensor of the network; filters too, as "" + their name.

    Raises:
        WeightsError: a tensor is missing, unknown or of another size. Nothing has been read from the file so far.
    """
    found: dict[str, tuple[str, TensorData]] = {}
    for part_name, part in parts.items():
        for kind in ("_parameters", "_buffers"):
            for key, data in _entries(part, part_name, kind).items():
                name = _dotted(part_name, key)
                if not isinstance(data, TensorData):
                    raise WeightsError(f"{name} is {shown(data)} instead of a tensor.")
                if (ours := _our_name(name)) in found:
                    raise WeightsError(f"{name} occurs twice.")
                found[ours] = name, data
    with torch.device("meta"):  # no memory, whatever sizes the file claims
        expected = {name: tensor.shape for name, tensor in Generator(**arguments, rng=None).state_dict().items()}
    filters = {name for name in found if name.endswith(".resample_filter")}
    if missing := sorted(expected.keys() - found.keys()):
        raise WeightsError(f"lacks the tensor that is {missing[0]} here ({len(missing)} are missing).")
    if unknown := sorted(found.keys() - expected.keys() - filters):
        raise WeightsError(f"has a tensor {found[unknown[0]][0]}, which StyleGAN2 has no place for.")
    for name, size in expected.items():
        theirs, data = found[name]
        if data.size != tuple(size):
            raise WeightsError(f"{theirs} is {shown(data.size)} instead of {list(size)}.")
    return found


def _our_name(name: str) -> str:
    """E.g. synthesis.b8.conv0.affine.weight -> synthesis.blocks.8x8.conv0_up.affine.weight."""
    if name == "mapping.w_avg":
        return "w_avg"
    name = re.sub(r"^mapping\.fc(\d+)\.", r"mapping.layers.\1.", name)
    name = re.sub(r"^synthesis\.b(\d+)\.", r"synthesis.blocks.\1x\1.", name)
    name = name.replace(".conv0.", ".conv0_up.").replace(".torgb.", ".to_rgb.")
    return re.sub(r"^synthesis\.blocks\.4x4\.conv1\.", "synthesis.blocks.4x4.conv.", name)


def _read_tensors(content: mmap, found: dict[str, tuple[str, TensorData]]) -> dict[str, Tensor]:
    """The tensors by our names. Filters are compared with ours, which are no part of our snapshots.

    Weights are stored as ours are used: enlarging convolutions as true convolutions, the others as correlations.
    """
    total = sum(4 * math.prod(data.size) for _, data in found.values())
    if total > len(content):
        raise WeightsError(f"its tensors have {total} bytes, more than the whole file. Get it again.")
    taps = setup_filter(RESAMPLE_TAPS, separable=True)
    ours = torch.outer(taps, taps)
    tensors = {}
    for name, (theirs, data) in found.items():
        try:
            tensor = read_tensor(content, data)
        except WeightsError as error:
            raise WeightsError(f"{theirs}: {error}") from error
        if not bool(torch.isfinite(tensor).all()):
            raise WeightsError(f"{theirs} holds values that are not finite: the network has diverged.")
        if not name.endswith(".resample_filter"):
            tensors[name] = tensor
        elif tensor.shape != ours.shape or not torch.allclose(tensor, ours, rtol=1e-6, atol=0):
            raise WeightsError(f"{theirs} is not the filter {list(RESAMPLE_TAPS)}, which is the only one supported.")
    return tensors
