"""All that a training step depends on, and nothing else, as one safetensors file.

What is not here is a pure function of (params, data, nimg): data order, latents, noise, flips, learning rates,
what is due. There is no stored random state.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ganops.config import TrainParams
from ganops.distributed import make_generator
from ganops.errors import RunError
from ganops.files import atomic_path
from ganops.networks.stylegan2_discriminator import Discriminator
from ganops.networks.stylegan2_generator import Generator
from ganops.training.schedule import AdamValues, adam_values

STATE_FORMAT = 1


@dataclass(frozen=True)
class Best:
    """The snapshot with the smallest distance so far, among those of one yardstick (`digest`)."""

    nimg: int
    metric: str
    value: float
    digest: str


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
        sums: per logged name, float64 [count, sum] since the last tick.
        best: see `Best`; None before the first measurement.
    """

    G: Generator
    D: Discriminator
    G_ema: Generator
    G_opt: torch.optim.Adam
    D_opt: torch.optim.Adam
    pl_mean: Tensor
    nonfinite_steps: Tensor
    nimg: int = 0
    tick_nimg: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)
    best: Best | None = None

    @property
    def device(self) -> torch.device:
        return self.pl_mean.device


def build_networks(
    params: TrainParams, resolution: int, channels: int, num_classes: int
) -> tuple[Generator, Discriminator]:
    """G and D of `params` with their initial weights, on the CPU; a pure function of its arguments."""
    c_dim = num_classes if params.conditional else 0
    cpu = torch.device("cpu")
    G = Generator(
        z_dim=params.z_dim,
        c_dim=c_dim,
        w_dim=params.w_dim,
        resolution=resolution,
        img_channels=channels,
        mapping_layers=params.mapping_layers,
        mapping_lr_multiplier=params.mapping_lr_multiplier,
        channel_base=params.channel_base,
        channel_max=params.channel_max,
        architecture=params.G_architecture,
        precision=params.precision,
        low_precision_resolutions=params.low_precision_resolutions,
        conv_clamp=params.conv_clamp,
        rng=make_generator(cpu, params.seed, "init", "G"),
    )
    D = Discriminator(
        c_dim=c_dim,
        resolution=resolution,
        img_channels=channels,
        channel_base=params.channel_base,
        channel_max=params.channel_max,
        architecture=params.D_architecture,
        mbstd_group_size=params.mbstd_group_size,
        mbstd_num_channels=params.mbstd_num_channels,
        mapping_layers=params.mapping_layers,
        mapping_lr_multiplier=params.mapping_lr_multiplier,
        precision=params.precision,
        low_precision_resolutions=params.low_precision_resolutions,
        conv_clamp=params.conv_clamp,
        rng=make_generator(cpu, params.seed, "init", "D"),
    )
    return G, D


def initial_state(
    params: TrainParams, resolution: int, channels: int, num_classes: int, device: torch.device
) -> TrainingState:
    """The state at nimg 0. G_ema starts as a copy of G."""
    G, D = build_networks(params, resolution, channels, num_classes)
    G, D = G.to(device), D.to(device)
    G_ema, _ = build_networks(params, resolution, channels, num_classes)
    G_ema = G_ema.to(device).eval().requires_grad_(False)
    G_adam = adam_values(params, params.G_lr, params.pl_weight > 0, params.pl_interval)
    D_adam = adam_values(params, params.D_lr, params.r1_gamma > 0, params.r1_interval)
    return TrainingState(
        G=G,
        D=D,
        G_ema=G_ema,
        G_opt=make_adam(G, G_adam),
        D_opt=make_adam(D, D_adam),
        pl_mean=torch.zeros([], device=device),
        nonfinite_steps=torch.zeros([], dtype=torch.int64, device=device),
    )


def make_adam(network: nn.Module, values: AdamValues) -> torch.optim.Adam:
    """Adam over all parameters of `network`, its moments allocated, so that a fresh state has all its tensors."""
    parameters = list(network.parameters())
    optimizer = torch.optim.Adam(
        parameters, lr=values.lr, betas=(values.beta1, values.beta2), eps=values.eps, foreach=True
    )
    for parameter in parameters:
        optimizer.state[parameter] = {
            "step": torch.zeros([]),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def state_tensors(state: TrainingState) -> dict[str, Tensor]:
    """Every tensor of the state by name; the very tensors, not copies."""
    tensors = {"pl_mean": state.pl_mean, "nonfinite_steps": state.nonfinite_steps}
    for name, network in (("G", state.G), ("D", state.D), ("G_ema", state.G_ema)):
        for key, value in network.state_dict().items():
            tensors[f"{name}.{key}"] = value
    for name, network, optimizer in (("G_opt", state.G, state.G_opt), ("D_opt", state.D, state.D_opt)):
        for key, parameter in network.named_parameters():
            for moment, value in optimizer.state[parameter].items():
                tensors[f"{name}.{moment}.{key}"] = value
    return tensors


def save_state(path: Path, state: TrainingState, provenance: dict[str, Any]) -> None:
    """Writes the whole state: temporary name, fsync, rename. The same state gives the same bytes.

    Args:
        path: the file.
        state: what to save.
        provenance: JSON-able facts of the run (identity, data digest, params, accepted code).
    """
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in state_tensors(state).items()}
    tensors |= {f"sums.{name}": value.cpu() for name, value in state.sums.items()}
    metadata = {
        "format": STATE_FORMAT,
        "nimg": state.nimg,
        "tick_nimg": state.tick_nimg,
        "best": None if state.best is None else vars(state.best),
        **provenance,
    }
    with atomic_path(path) as temporary:
        # One metadata key: safetensors writes several in random order, and bytes would differ from run to run.
        try:
            save_file(tensors, temporary, {"ganops": json.dumps(metadata, sort_keys=True)})
        except SafetensorError as error:  # a full disk, for one
            raise RunError(f"{path}: cannot write the state ({error}). Earlier states are whole.") from None


def read_state_metadata(path: Path) -> dict[str, Any]:
    """The metadata of a state file, from its header alone.

    Raises:
        RunError: the file is truncated, not a state, or of another format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = json.loads((file.metadata() or {})["ganops"])
            size = metadata["nimg"], metadata["tick_nimg"], metadata["format"]
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise RunError(f"{path}: not a whole training state ({error}).") from None
    if size[2] != STATE_FORMAT:
        raise RunError(
            f"{path}: state format {size[2]}, this version reads {STATE_FORMAT}. Continue with the version that wrote "
            "it, or raise run.fresh to train from scratch."
        )
    return metadata


@torch.no_grad()
def load_state(path: Path, state: TrainingState) -> None:
    """Puts a file's content into `state`, whose networks must have been built from the same params.

    Raises:
        RunError: truncated file, other format, or tensors that do not fit.
    """
    metadata = read_state_metadata(path)
    try:
        with safe_open(path, framework="pt") as file:
            stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (not a dict)
    except (SafetensorError, OSError) as error:
        raise RunError(f"{path}: not a whole training state ({error}).") from None
    targets = state_tensors(state)
    sums = {name.removeprefix("sums."): stored.pop(name) for name in list(stored) if name.startswith("sums.")}
    if stored.keys() != targets.keys():
        odd = sorted(stored.keys() ^ targets.keys())
        raise RunError(f"{path}: does not fit these networks: {len(odd)} tensors differ, the first is {odd[0]}.")
    for name, target in targets.items():
        if stored[name].shape != target.shape or stored[name].dtype != target.dtype:
            raise RunError(
                f"{path}: {name} is {stored[name].dtype} {list(stored[name].shape)}, "
                f"these networks need {target.dtype} {list(target.shape)}."
            )
    for name, target in targets.items():
        target.copy_(stored[name])
    state.sums = {name: value.to(state.device) for name, value in sums.items()}
    state.nimg, state.tick_nimg = metadata["nimg"], metadata["tick_nimg"]
    state.best = None if metadata["best"] is None else Best(**metadata["best"])
