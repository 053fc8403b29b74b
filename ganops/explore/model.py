"""A snapshot opened to look into: its latents by seed, its classes by name, its images.

Seed i is image i of a sample with seed 0: what stage `sample` writes as its i-th image when sample.seed is 0.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import safetensors
import torch
from numpy.typing import NDArray
from torch import Tensor

from ganops.config import RunParams
from ganops.distributed import configure_numerics, make_generator, select_device
from ganops.errors import DataError, WeightsError
from ganops.files import sha256_file
from ganops.images.labels import first_ten
from ganops.images.pixels import for_eyes, to_uint8
from ganops.networks.families import AnyGenerator, active_ws, full_size
from ganops.networks.law import LabelLaw, total_of
from ganops.networks.layers import NoiseMode
from ganops.networks.sampling import CPU, encode_labels, image_labels, image_latents
from ganops.networks.snapshot import METADATA_KEY, load_law, load_snapshot
from ganops.ops.kernels import choose_ops

SEED = 0  # of the sample whose images the seeds of all tools count
MAPPING_BATCH = 1000  # latents at a time where only w is wanted


@dataclass(frozen=True)
class Model:
    """A generator and what is known of it.

    Attributes:
        path: of the snapshot.
        sha256: of the snapshot's file.
        G: on `device`, without gradients.
        device: where it computes.
        class_names: () for an unconditional G, or where they are not known.
        law: how often each label is among the real images; () likewise.
    """

    path: Path
    sha256: str
    G: AnyGenerator
    device: torch.device
    class_names: tuple[str, ...]
    law: LabelLaw


def open_model(path: Path, run: RunParams, deterministic: bool | None = None) -> Model:
    """Loads a snapshot onto the device that `run` names.

    Args:
        path: of the snapshot.
        run: section run.
        deterministic: instead of run.deterministic, for what has no deterministic algorithm on CUDA.
    Raises:
        WeightsError: there is no snapshot, or it cannot be used.
        ParamsError: there is no such device.
    """
    device = select_device(run.device, run.cpu_threads)
    configure_numerics(tf32=False, deterministic=run.deterministic if deterministic is None else deterministic)
    choose_ops(run.ops, device)
    _check_kind(path)
    G, metadata = load_snapshot(path)
    names = tuple(metadata.get("class_names") or ()) if G.c_dim else ()
    law = load_law(path) if metadata.get("class_counts") else ()
    return Model(path, sha256_file(path), G.to(device).eval().requires_grad_(False), device, names, law)


def _check_kind(path: Path) -> None:
    """That a path is not one of the other things that lie beside snapshots; what is wrong else, `load_snapshot` says.

    Raises:
        WeightsError: it is a folder, a training state, or a result of one of the tools.
    """
    if path.is_dir():
        raise WeightsError(f"{path} is a folder. Name a snapshot in it, e.g. models/last.safetensors.")
    header = None
    errors = safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError
    with suppress(*errors), safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()[METADATA_KEY])
    if isinstance(header, dict) and "format_version" not in header:
        kind = "a training state" if "tick_nimg" in header else "a result of another tool"
        raise WeightsError(f"{path} is {kind}, no snapshot of a generator. Take models/last.safetensors.")


def find_label(model: Model, key: str, label: int | str | None) -> int | None:
    """The number of the class that `label` names; None for None.

    Args:
        model: what has the classes.
        key: in params.yaml, for messages.
        label: a number, a name, or None.
    Raises:
        DataError: the model has no classes, or not this one.
    """
    if label is None:
        return None
    if not model.G.c_dim:
        raise DataError(f"{key}={label!r}, but {model.path} has no classes. Set {key}: null.")
    number = label if isinstance(label, int) else -1
    if label in model.class_names:
        number = model.class_names.index(str(label))
    if not 0 <= number < model.G.c_dim:
        names = f", named {first_ten(model.class_names)}" if model.class_names else ""
        raise DataError(f"{key}={label!r} is no class of {model.path}: it has 0 to {model.G.c_dim - 1}{names}.")
    return number


def seed_labels(model: Model, key: str, label: int | str | None, seeds: Sequence[int]) -> Tensor:
    """Labels of the images of `seeds`, on the CPU; `label`, or for None drawn as often as in the data.

    Returns:
        [n] int64 classes; or [n, c_dim] float32, label vectors of the data.

    Raises:
        DataError: as `find_label`; or nothing is known of how often the classes are.
    """
    number = find_label(model, key, label)
    if number is not None:
        return torch.full([len(seeds)], number)
    if model.G.c_dim and not total_of(model.law):
        raise DataError(f"{model.path} does not say how often its classes are, so {key} must name one.")
    return image_labels(SEED, seeds, model.law)


def class_name(model: Model, label: int) -> str:
    """For captions: the name, or the number where no names are known; "" for an unconditional model."""
    if not model.G.c_dim:
        return ""
    return model.class_names[label] if label < len(model.class_names) else str(label)


def seed_caption(model: Model, seed: int, label: Tensor) -> str:
    """For captions: the seed, and if there are labels the class, or the attributes above 0.5 of a label vector or "none"."""
    if not model.G.c_dim:
        return str(seed)
    numbers = (label > 0.5).nonzero()[:, 0].tolist() if label.ndim else [int(label)]
    return f"{seed}: {'+'.join(class_name(model, number) for number in numbers) or 'none'}"


@torch.no_grad()
def map_seeds(model: Model, seeds: Sequence[int], labels: Tensor) -> Tensor:
    """w of the images of `seeds` with `labels`, see `seed_labels`: [n, w_dim] on the model's device, not truncated."""
    return map_latents(model, image_latents(SEED, seeds, model.G.z_dim), labels)


@torch.no_grad()
def map_latents(model: Model, z: Tensor, labels: Tensor) -> Tensor:
    """[n, z_dim], labels of n -> w [n, w_dim] on the model's device.

    Raises:
        WeightsError: w is not finite.
    """
    parts = []
    for start in range(0, len(z), MAPPING_BATCH):
        part = slice(start, start + MAPPING_BATCH)
        c = encode_labels(labels[part].to(model.device), model.G.c_dim)
        parts.append(model.G.mapping(z[part].to(model.device), c))
    w = torch.cat(parts)
    if not bool(torch.isfinite(w).all()):
        raise WeightsError(f"{model.path}: its w are not finite. Take a snapshot from before the run diverged.")
    return w


def sample_w(model: Model, key: str, label: int | str | None, seed: int, count: int) -> Tensor:
    """w of `count` random latents, other ones than those of seeds: [count, w_dim] on the model's device.

    Args:
        model: what to map with.
        key: of `label`, for messages.
        label: as for `seed_labels`.
        seed: of the draw.
        count: how many.
    Raises:
        DataError: see `seed_labels`.
    """
    z = torch.randn([count, model.G.z_dim], generator=make_generator(CPU, seed, "w samples"))
    return map_latents(model, z, seed_labels(model, key, label, range(count)))


def check_layers(model: Model, key: str, layers: Sequence[int] | None) -> tuple[int, int]:
    """[first, last) of the model's layers; for None all that run (of a model that is still growing, not all do).

    Raises:
        DataError: the model has not so many, or does not run all of them yet.
    """
    active = active_ws(model.G)
    first, last = (0, active) if layers is None else layers
    if last > model.G.num_ws:
        raise DataError(
            f"{key}=[{first}, {last}], but {model.path} has {model.G.num_ws} layers, one w each. "
            f"Use [first, last] from 0 to {model.G.num_ws}."
        )
    if last > active:
        raise DataError(
            f"{key}=[{first}, {last}], but {model.path} is still growing: so far only {name_layers(0, active)} of "
            f"{model.G.num_ws} run{'s' if active == 1 else ''}. Use [first, last] from 0 to {active}."
        )
    return first, last


def name_layers(first: int, last: int) -> str:
    """[first, last) in words: "layers 0 to 3", or "layer 5"."""
    return f"layer {first}" if last - first == 1 else f"layers {first} to {last - 1}"


def truncate_layers(G: AnyGenerator, w: Tensor, psi: float, layers: tuple[int, int]) -> Tensor:
    """One w per layer, those of [first, last) pulled towards the mean.

    Args:
        G: whose mean.
        w: [N, w_dim].
        psi: 1 = not at all, 0 = the mean.
        layers: first and last (without) layer; from 0 on it is what `Generator.truncate` gives with a cutoff.
    Returns:
        [N, num_ws, w_dim].
    Source: Karras et al. 2019, appendix B.
    """
    first, last = layers
    ws, truncated = G.truncate(w, 1.0, None), G.truncate(w, psi, None)
    return torch.cat([ws[:, :first], truncated[:, first:last], ws[:, last:]], dim=1)


@torch.no_grad()
def synthesize(
    model: Model, ws: Tensor, noise_mode: NoiseMode, seeds: Sequence[int] | None, batch_size: int
) -> NDArray[np.uint8]:
    """Images from ws.

    Args:
        model: on any device.
        ws: [n, num_ws, w_dim].
        noise_mode: "random" is drawn for each image from its seed, as in `sample`; "const" and "none" as in G.
        seeds: one per image; None unless the noise is random.
        batch_size: images at a time. Short batches are filled up, so an image does not depend on their number.
    Returns:
        [n, 1, 3 or 4, H, W] on the CPU, as a PNG can show them.
    """
    parts = []
    for start in range(0, len(ws), batch_size):
        part = ws[start : start + batch_size]
        missing = batch_size - len(part)
        padded = torch.cat([part, part[-1:].expand(missing, -1, -1)])
        rng = None
        if seeds is not None:
            numbers = [*seeds[start : start + batch_size], *[seeds[-1]] * missing]
            rng = [make_generator(model.device, SEED, "noise", number) for number in numbers]
        img = full_size(model.G, model.G.synthesis(padded, noise_mode, rng))
        parts.append(to_uint8(img)[: len(part)].cpu().numpy())
    return for_eyes(np.concatenate(parts))
