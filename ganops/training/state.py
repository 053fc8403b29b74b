"""All that a training step depends on, and nothing else, as one safetensors file.

What is not here is a pure function of (params, data, nimg): data order, latents, noise, flips, learning rates,
what is due. There is no stored random state. Every rank holds the whole state, and the same bits of it.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ganops.collectives import broadcast_tensors
from ganops.config_train import TrainParams
from ganops.distributed import on_first_rank
from ganops.errors import DamagedState, RunError
from ganops.files import atomic_path
from ganops.networks.families import AnyDiscriminator, AnyGenerator
from ganops.networks.stylegan2_discriminator import Discriminator
from ganops.shape import Resolution
from ganops.training.build import build_networks
from ganops.training.schedule import AdamValues, adam_values

STATE_FORMAT = 3  # 2 had no augmentation and no signs by class; 1 one best snapshot, no retries and no checksum


@dataclass(frozen=True)
class Best:
    """One of the snapshots with the smallest distances so far, all measured by one yardstick (`digest`)."""

    nimg: int
    metric: str
    value: float
    digest: str


@dataclass(frozen=True)
class Retry:
    """A roll-back: training diverged at `failed_nimg` and went on from `nimg` with other random draws."""

    failed_nimg: int
    nimg: int
    reason: str


@dataclass
class TrainingState:
    """Everything that changes while training.

    Attributes:
        G, D, G_ema: the networks, on one device.
        G_opt, D_opt: their Adam optimizers.
        pl_mean: float32 scalar, the running mean of path lengths.
        nonfinite_steps: int64 scalar, steps in a row whose gradients were not finite.
        nimg: real images shown so far; a multiple of the batch size.
        tick_nimg: nimg at the last tick that was completed (its row is written).
        ada_signs: float64 [count, sum] of the signs of D on real images since ADA's last move.
        augment_p: ADA's probability.
        sums: per logged name, float64 [count, sum] since the last tick; "classes/fake" and "classes/real" are [2, c_dim],
            count and sum of D's signs by class.
        best: the train.keep_best best snapshots, the best first; see `Best`.
        retries: roll-backs so far.
    """

    G: AnyGenerator
    D: AnyDiscriminator
    G_ema: AnyGenerator
    G_opt: torch.optim.Adam
    D_opt: torch.optim.Adam
    pl_mean: Tensor
    nonfinite_steps: Tensor
    ada_signs: Tensor
    augment_p: float
    nimg: int = 0
    tick_nimg: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    best: tuple[Best, ...] = ()
    retries: tuple[Retry, ...] = ()

    @property
    def device(self) -> torch.device:
        return self.pl_mean.device


def initial_state(
    params: TrainParams, resolution: Resolution, channels: int, num_classes: int, device: torch.device
) -> TrainingState:
    """The state at nimg 0. G_ema starts as a copy of G. The lowest train.D_freeze_blocks of D do not learn.

    Source of freezing: Mo et al. 2020 (FreezeD); "low" is near the image, at the highest resolutions.
    """
    G, D = build_networks(params, resolution, channels, num_classes)
    G, D = G.to(device), D.to(device)
    if isinstance(D, Discriminator):
        for block in list(D.blocks.values())[: params.D_freeze_blocks]:
            block.requires_grad_(False)
    G_ema, _ = build_networks(params, resolution, channels, num_classes)
    G_ema = G_ema.to(device).eval().requires_grad_(False)
    G_adam = adam_values(params, params.G_lr, params.pl_weight, params.pl_interval)
    D_adam = adam_values(params, params.D_lr, params.r1_gamma, params.r1_interval)
    return TrainingState(
        G=G,
        D=D,
        G_ema=G_ema,
        G_opt=make_adam(G, G_adam),
        D_opt=make_adam(D, D_adam),
        pl_mean=torch.zeros([], device=device),
        nonfinite_steps=torch.zeros([], dtype=torch.int64, device=device),
        ada_signs=torch.zeros(2, dtype=torch.float64, device=device),
        augment_p=params.augment_p,
    )


def make_adam(network: nn.Module, values: AdamValues) -> torch.optim.Adam:
    """Adam over all parameters of `network`, its moments allocated, so that a fresh state has all its tensors.

    On CUDA one fused kernel, which counts steps on the device; a state of one device can be loaded on the other.
    """
    parameters = list(network.parameters())
    fused = parameters[0].is_cuda
    optimizer = torch.optim.Adam(
        parameters, lr=values.lr, betas=(values.beta1, values.beta2), eps=values.eps, foreach=not fused, fused=fused
    )
    for parameter in parameters:
        optimizer.state[parameter] = {
            "step": torch.zeros([], device=parameter.device if fused else "cpu"),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def state_tensors(state: TrainingState) -> dict[str, Tensor]:
    """Every tensor of the state by name; the very tensors, not copies."""
    tensors = {"pl_mean": state.pl_mean, "nonfinite_steps": state.nonfinite_steps, "ada_signs": state.ada_signs}
    for name, network in (("G", state.G), ("D", state.D), ("G_ema", state.G_ema)):
        for key, value in network.state_dict().items():
            tensors[f"{name}.{key}"] = value
    for name, network, optimizer in (("G_opt", state.G, state.G_opt), ("D_opt", state.D, state.D_opt)):
        for key, parameter in network.named_parameters():
            for moment, value in optimizer.state[parameter].items():
                tensors[f"{name}.{moment}.{key}"] = value
    return tensors


@dataclass(frozen=True)
class HostCopy:
    """A state's content, apart from the state: training may go on while it is written."""

    nimg: int
    tensors: Mapping[str, Tensor]
    metadata: dict[str, Any]


def copy_state(state: TrainingState, provenance: dict[str, Any]) -> HostCopy:
    """Copies the whole state to host memory.

    Args:
        state: what to save.
        provenance: JSON-able facts of the run (identity, data digest, params, accepted code).
    """
    sums = {f"sums.{name}": value for name, value in state.sums.items()}
    tensors = {}
    for name, tensor in (state_tensors(state) | sums).items():
        # On CUDA into pinned memory, so that the copies queue behind the step without the host waiting for each.
        host = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda, memory_format=torch.contiguous_format)
        tensors[name] = host.copy_(tensor.detach(), non_blocking=True)
    if state.device.type == "cuda":
        torch.cuda.current_stream(state.device).synchronize()
    metadata = {
        "format": STATE_FORMAT,
        "nimg": state.nimg,
        "tick_nimg": state.tick_nimg,
        "augment_p": state.augment_p,
        "best": [asdict(best) for best in state.best],
        "retries": [asdict(retry) for retry in state.retries],
        **provenance,
    }
    return HostCopy(state.nimg, tensors, json.loads(json.dumps(metadata)))


def write_state(path: Path, copy: HostCopy) -> None:
    """Writes a state: temporary name, fsync, rename. The same state gives the same bytes.

    Raises:
        RunError: the disk is full or fails; earlier states are whole.
    """
    text = json.dumps({**copy.metadata, "sha256": _checksum(copy.tensors)}, sort_keys=True)
    try:
        with atomic_path(path) as temporary:
            # One metadata key: safetensors writes several in random order, and bytes would differ from run to run.
            save_file(dict(copy.tensors), temporary, {"ganops": text})
    except (SafetensorError, OSError) as error:  # a full disk, for one
        raise RunError(f"{path}: cannot write the state ({error}). Earlier states are whole.") from None


def save_state(path: Path, state: TrainingState, provenance: dict[str, Any]) -> None:
    """Copies and writes a state at once; see `copy_state` and `write_state`."""
    write_state(path, copy_state(state, provenance))


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes of all tensors."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def is_state(path: Path) -> bool:
    """Whether a file is a training state (of any format), and not a snapshot or something else."""
    try:
        with safe_open(path, framework="pt") as file:
            return "tick_nimg" in json.loads((file.metadata() or {})["ganops"])
    except (SafetensorError, OSError, KeyError, ValueError):
        return False


def read_state_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a state file, from its header alone.

    Raises:
        DamagedState: the file is truncated or not a state.
        RunError: it is of another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = json.loads((file.metadata() or {})["ganops"])
            size = metadata["nimg"], metadata["tick_nimg"], metadata["format"]
            metadata.setdefault("sha256", "")
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise DamagedState(f"{path}: not a whole training state ({error}).") from None
    if size[2] != STATE_FORMAT:
        raise RunError(
            f"{path}: state format {size[2]}, this version reads {STATE_FORMAT}. Continue with the version that wrote "
            "it, or raise run.fresh to train from scratch."
        )
    return metadata


def read_state(path: Path) -> HostCopy:
    """A state file's content, its checksum compared.

    Raises:
        DamagedState: the file is truncated or was changed.
        RunError: it is of another format.
    """
    metadata = read_state_metadata(path)
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError) as error:
        raise DamagedState(f"{path}: not a whole training state ({error}).") from None
    if _checksum(tensors) != metadata["sha256"]:
        raise DamagedState(f"{path}: not a whole training state (its checksum differs: the file was changed).")
    return HostCopy(metadata["nimg"], tensors, metadata)


@torch.no_grad()
def load_state(path: Path, state: TrainingState) -> None:
    """Puts a file's content into `state`, whose networks must have been built from the same params.

    Raises:
        DamagedState: the file is truncated or was changed.
        RunError: it is of another format, or its tensors do not fit.
    """
    copy = read_state(path)
    targets = state_tensors(state)
    sums = {name: value for name, value in copy.tensors.items() if name.startswith("sums.")}
    check_fit(path, {name: value for name, value in copy.tensors.items() if name not in sums}, targets)
    for name, target in targets.items():
        target.copy_(copy.tensors[name])
    state.sums = {name.removeprefix("sums."): value.to(state.device) for name, value in sums.items()}
    state.nimg, state.tick_nimg = copy.metadata["nimg"], copy.metadata["tick_nimg"]
    state.augment_p = copy.metadata["augment_p"]
    state.best = tuple(Best(**best) for best in copy.metadata["best"])
    state.retries = tuple(Retry(**retry) for retry in copy.metadata["retries"])


def check_fit(path: Path, stored: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> None:
    """Compares names, shapes and types of a file's tensors with those of the networks.

    Raises:
        RunError: names the first that differs.
    """
    if stored.keys() != targets.keys():
        odd = sorted(stored.keys() ^ targets.keys())
        raise RunError(f"{path}: does not fit these networks: {len(odd)} tensors differ, the first is {odd[0]}.")
    for name, target in targets.items():
        if stored[name].shape != target.shape or stored[name].dtype != target.dtype:
            raise RunError(
                f"{path}: {name} is {stored[name].dtype} {list(stored[name].shape)}, "
                f"these networks need {target.dtype} {list(target.shape)}."
            )


@torch.no_grad()
def share_state(state: TrainingState) -> None:
    """Gives every rank rank 0's state. Only rank 0 need have read a file."""
    broadcast_tensors(list(state_tensors(state).values()))
    sums = {name: value.cpu() for name, value in state.sums.items()}
    shared = on_first_rank(lambda: (sums, state.augment_p, state.nimg, state.tick_nimg, state.best, state.retries))
    sums, state.augment_p, state.nimg, state.tick_nimg, state.best, state.retries = shared
    state.sums = {name: value.to(state.device) for name, value in sums.items()}
