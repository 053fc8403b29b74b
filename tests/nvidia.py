"""Writes pickles as NVIDIA's training code does, without that code: stand-ins that pickle under its names."""

import pickle
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ganops.networks.stylegan2_generator import Generator

SOURCE = "raise SystemExit('the source text in a snapshot must never run')\n"
BUFFERS = ("resample_filter", "noise_const", "w_avg")


def _reconstruct_persistent_obj(meta: Any) -> Any:
    raise AssertionError("called while reading")


class EasyDict(dict):
    pass


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
EasyDict.__module__ = "dnnlib.util"


class Persistent:
    """A network or a part of one; `state` is its __dict__."""

    def __init__(self, class_name: str, state: dict[str, Any]) -> None:
        self.class_name, self.state = class_name, state

    def __reduce__(self) -> Any:
        meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": self.class_name, "state": self.state}
        return _reconstruct_persistent_obj, (meta,)


@contextmanager
def foreign_names() -> Iterator[None]:
    """While it lasts pickle finds the stand-ins where NVIDIA's code has the originals."""
    modules = {
        name: types.ModuleType(name) for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util")
    }
    modules["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj  # type: ignore[attr-defined]
    modules["dnnlib.util"].EasyDict = EasyDict  # type: ignore[attr-defined]
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


def dumps(value: Any, protocol: int = 4) -> bytes:
    with foreign_names():
        return pickle.dumps(value, protocol)


CLASSES = {"mapping": "MappingNetwork", "synthesis": "SynthesisNetwork", "torgb": "ToRGBLayer", "skip": "Conv2dLayer"}


def network(tensors: Mapping[str, Any], kwargs: dict[str, Any], attributes: Mapping[str, dict[str, Any]]) -> Persistent:
    """A generator of tensors by their official names, constructed with `kwargs`.

    `attributes` are those of parts, by their names.
    """

    def part(name: str, inside: dict[str, Any]) -> Persistent:
        children: dict[str, dict[str, Any]] = {}
        parameters: dict[str, Any] = {"unused": None}
        buffers: dict[str, Any] = {}
        for key, tensor in inside.items():
            head, dot, rest = key.partition(".")
            if dot:
                children.setdefault(head, {})[rest] = tensor
            elif key in BUFFERS:
                buffers[key] = tensor
            else:
                is_tensor = isinstance(tensor, Tensor)
                parameters[key] = torch.nn.Parameter(tensor, requires_grad=False) if is_tensor else tensor
        last = name.rpartition(".")[2]
        state = {
            "training": False,
            "_parameters": OrderedDict(parameters),
            "_buffers": OrderedDict(buffers),
            "_non_persistent_buffers_set": {"nothing"},
            "_backward_hooks": OrderedDict(),
            "_modules": OrderedDict((key, part(f"{name}.{key}".strip("."), value)) for key, value in children.items()),
            "weight_gain": np.float64(0.125),
            "_init_args": (),
            "_init_kwargs": kwargs if not name else {"w_dim": 1},
            **attributes.get(name, {}),
        }
        return Persistent("Generator" if not name else CLASSES.get(last, "SynthesisLayer"), state)

    return part("", dict(tensors))


def snapshot(G_ema: Any, **more: Any) -> dict[str, Any]:
    """What a .pkl holds."""
    training_set = EasyDict(
        class_name="training.dataset.ImageFolderDataset", path="a.zip", use_labels=False, xflip=True
    )
    return {
        "training_set_kwargs": dict(training_set),
        "G": G_ema,
        "D": None,
        "G_ema": G_ema,
        "augment_pipe": None,
        **more,
    }


def nested_kwargs(G: Generator) -> dict[str, Any]:
    """Constructor arguments as stylegan2-ada-pytorch passes them."""
    a = G.arguments
    synthesis = EasyDict(
        channel_base=a["channel_base"],
        channel_max=a["channel_max"],
        num_fp16_res=a["low_precision_resolutions"],
        conv_clamp=a["conv_clamp"],
        architecture=a["architecture"],
        resample_filter=[1, 3, 3, 1],
        use_noise=True,
    )
    mapping = EasyDict(
        num_layers=a["mapping_layers"], lr_multiplier=a["mapping_lr_multiplier"], activation="lrelu", w_avg_beta=0.995
    )
    return EasyDict(
        z_dim=a["z_dim"],
        c_dim=a["c_dim"],
        w_dim=a["w_dim"],
        img_resolution=a["resolution"],
        img_channels=a["img_channels"],
        mapping_kwargs=mapping,
        synthesis_kwargs=synthesis,
    )


def flat_kwargs(G: Generator) -> dict[str, Any]:
    """The same as the stylegan3 repository passes them."""
    nested = nested_kwargs(G)
    return EasyDict(
        {key: value for key, value in nested.items() if key != "synthesis_kwargs"} | nested["synthesis_kwargs"]
    )


def official_tensors(G: Generator) -> dict[str, Tensor]:
    """The tensors of one of our generators by their official names, with the filters that official files have."""
    tensors = {}
    for ours, tensor in G.state_dict().items():
        name = ours.replace("mapping.layers.", "mapping.fc") if ours != "w_avg" else "mapping.w_avg"
        if name.startswith("synthesis.blocks."):
            _, _, block, rest = name.split(".", 3)
            rest = (
                f"{rest}.".replace("to_rgb.", "torgb.").replace("conv0_up.", "conv0.").replace("conv.", "conv1.")[:-1]
            )
            name = f"synthesis.b{block.split('x')[0]}.{rest}"
        tensors[name] = tensor.detach().clone()
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    for name in [name for name in tensors if name.endswith(".noise_strength")]:
        tensors[name.replace("noise_strength", "resample_filter")] = torch.outer(taps, taps)
    return tensors


def write_generator(path: Path, G: Generator, kwargs: dict[str, Any], **more: Any) -> Path:
    """A .pkl of one of our generators."""
    path.write_bytes(dumps(snapshot(network(official_tensors(G), kwargs, {}), **more)))
    return path
