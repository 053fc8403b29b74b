"""Transfer learning: a run that starts from the weights of another one (train.init_from)."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ganops.config_base import FROM_SCRATCH
from ganops.config_train import TrainParams
from ganops.errors import RunError
from ganops.files import sha256_file
from ganops.networks.families import AnyGenerator, family_of, lod_of
from ganops.networks.snapshot import load_snapshot
from ganops.training.schedule import lod_at
from ganops.training.state import TrainingState, is_state, read_state

KIND = ("family", "G_architecture", "D_architecture")  # what tells networks apart beside names and sizes of tensors


def init_sha256(params: TrainParams) -> str:
    """The checksum of train.init_from; "" when training starts from scratch.

    Raises:
        RunError: there is no such file.
    """
    if params.init_from == FROM_SCRATCH:
        return ""
    try:
        return sha256_file(Path(params.init_from))
    except OSError as error:
        raise RunError(
            f"train.init_from={params.init_from}: {error.strerror}. Name a snapshot or a state, or {FROM_SCRATCH}."
        ) from None


@torch.no_grad()
def start_from(path: Path, state: TrainingState, params: TrainParams) -> dict[str, Any]:
    """Puts the weights of a file into a fresh state: those of G, D and G_ema from a state, those of G from a snapshot.

    Optimizers, running means and nimg start anew.

    Args:
        path: a training state, or a snapshot (which holds no discriminator: D then starts from random weights).
        state: at nimg 0.
        params: section `train`; its D_freeze_blocks needs a trained D.
    Returns:
        Where the weights come from, for the metadata.
    Raises:
        RunError: another family, or sizes that differ: names the first tensor that does not fit. Or levels of growing
            networks that the source has not come to.
        WeightsError: neither a state nor a snapshot.
    """
    if is_state(path):
        try:
            copy = read_state(path)
        except RunError as error:
            raise RunError(f"train.init_from={path} cannot be used: {error}") from None
        found = copy.metadata["identity"].get("params", {})
        _check_kind(path, params, {key: found.get(key, getattr(params, key)) for key in KIND})
        _copy_weights(path, "G", copy.tensors, "G.", state.G.state_dict())
        _copy_weights(path, "G_ema", copy.tensors, "G_ema.", state.G_ema.state_dict())
        _copy_weights(path, "D", copy.tensors, "D.", state.D.state_dict())
        growing = {key: found[key] for key in found if key.startswith("lod_")}
        source = params.model_copy(update={"lod_initial_resolution": None, **growing})
        _check_lod(path, params, state.G, lod_at(source, state.G.resolution, copy.nimg))
        return {
            "networks": ["G", "D", "G_ema"],
            "kimg": copy.nimg / 1000,
            "run": copy.metadata["run"],
            "data_digest": copy.metadata["identity"]["data"],
        }
    if params.D_freeze_blocks:
        raise RunError(
            f"train.D_freeze_blocks={params.D_freeze_blocks}, but {path} is a snapshot, without a discriminator to freeze. "
            "Name a state (models/state.safetensors of the other run) as train.init_from, or set D_freeze_blocks: 0."
        )
    G, metadata = load_snapshot(path)
    _check_kind(path, params, {"family": family_of(G), "G_architecture": G.arguments.get("architecture", "orig")})
    weights = G.state_dict()
    _copy_weights(path, "G", weights, "", state.G.state_dict())
    _copy_weights(path, "G", weights, "", state.G_ema.state_dict())
    _check_lod(path, params, state.G, lod_of(G))
    # No D: a snapshot holds none, and D starts from random weights.
    return {"networks": ["G", "G_ema"], **{key: metadata.get(key) for key in ("kimg", "run", "data_digest")}}


def _check_kind(path: Path, params: TrainParams, found: Mapping[str, Any]) -> None:
    """Networks of two kinds may have the same names and sizes; their weights would mean nothing to each other."""
    for key, value in found.items():
        if value != getattr(params, key):
            raise RunError(
                f"train.init_from={path} is of {key}={value}, this run of train.{key}={getattr(params, key)}. The "
                "architecture must be the same."
            )


def _check_lod(path: Path, params: TrainParams, G: AnyGenerator, lod: float) -> None:
    """Levels that the source, which had grown to `lod`, has never trained would be random weights among trained ones."""
    start = lod_at(params, G.resolution, 0)
    if lod > start:
        reached, needed = (G.resolution >> math.ceil(value) for value in (lod, start))
        raise RunError(
            f"train.init_from={path} has grown to {reached} px (lod {lod:g}), but this run starts at {needed} px "
            f"(train.lod_initial_resolution={'null' if params.lod_initial_resolution is None else needed}). Start from a "
            f"later file, or set train.lod_initial_resolution: {reached}."
        )


def _copy_weights(
    path: Path, network: str, stored: Mapping[str, Tensor], prefix: str, targets: Mapping[str, Tensor]
) -> None:
    """Copies all tensors or none. Sizes are compared by name; nothing is skipped in silence."""
    found = {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}
    for name in sorted(found.keys() | targets.keys()):
        if name not in found or name not in targets:
            where = "is missing there" if name not in found else "is not part of this network"
            raise RunError(
                f"train.init_from={path}: {network}.{name} {where}. The architecture must be the same: compare resolution, "
                "channels, mapping_layers, conditional and the architectures of both runs."
            )
        if found[name].shape != targets[name].shape:
            raise RunError(
                f"train.init_from={path}: {network}.{name} is {list(found[name].shape)}, but this network needs "
                f"{list(targets[name].shape)}. Sizes must be the same: compare resolution, channels, classes, z_dim, w_dim, "
                "channel_base and channel_max of both runs."
            )
    for name, target in targets.items():
        target.copy_(found[name])
