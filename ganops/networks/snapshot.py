"""Snapshots of the generator: weights and constructor arguments, no code.

A safetensors file with one metadata key `ganops` that holds JSON with sorted keys: several keys would be written in
random order, and equal snapshots would have different bytes. No time, host or path goes in.

What labels a conditional generator is to be given, without its data: the metadata's class_counts; or, if labels are
vectors, the tensors `labels.vectors` and `labels.counts` beside the weights (see `ganops.networks.law`).
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch

from ganops.errors import WeightsError
from ganops.files import write_bytes
from ganops.networks.families import GENERATORS, AnyGenerator, family_of
from ganops.networks.law import LabelLaw, LabelVectors

FORMAT_VERSION = 1
METADATA_KEY = "ganops"
LABELS = "labels."  # how names of tensors begin that are not the network's
SQUARE_GRID = (4, 4)  # of snapshots from before there were others, which do not say


def save_snapshot(path: Path, network: AnyGenerator, metadata: dict[str, Any], law: LabelLaw = ()) -> None:
    """Writes a generator, whole or not at all. The same weights, arguments and metadata give the same bytes.

    Args:
        path: of the .safetensors file.
        network: of any family, on any device.
        metadata: what else is to be known of it (kimg, params, data digest), JSON values only; NaN is refused.
        law: of labels that are vectors; class counts are part of the metadata.
    """
    header = {
        "format_version": FORMAT_VERSION,
        "family": family_of(network),
        "arguments": network.arguments,
        "metadata": metadata,
    }
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    if isinstance(law, LabelVectors):
        tensors[f"{LABELS}vectors"] = torch.from_numpy(law.vectors)
        tensors[f"{LABELS}counts"] = torch.from_numpy(law.counts)
    write_bytes(path, safetensors.torch.save(tensors, {METADATA_KEY: text}))


def load_snapshot(path: Path) -> tuple[AnyGenerator, dict[str, Any]]:
    """Reads a generator written by `save_snapshot`.

    Returns:
        The generator, on CPU, in evaluation mode and without gradients; and the metadata.
    Raises:
        WeightsError: the file is missing, damaged, of another format or family, or its weights do not fit its arguments.
    """
    text, tensors = _read(path, labels=False)
    family, arguments, metadata = _parse_header(path, text)
    network = _construct(path, GENERATORS[family], arguments)
    _load_weights(path, network, tensors)
    return network.eval().requires_grad_(False), metadata


def load_law(path: Path) -> LabelLaw:
    """How often each label stood among what a snapshot was trained on; () if it is not conditional.

    Raises:
        WeightsError: as `load_snapshot`; or it does not say.
    """
    text, tensors = _read(path, labels=True)
    _, arguments, metadata = _parse_header(path, text)
    c_dim = arguments.get("c_dim")
    if not c_dim:
        return ()
    if tensors:
        law = LabelVectors(*(tensors.get(f"{LABELS}{name}", torch.empty(0)).numpy() for name in ("vectors", "counts")))
        fits = law.vectors.dtype == np.float32 and law.counts.dtype == np.int64 and len(law.counts) > 0
        if not fits or law.vectors.shape != (len(law.counts), c_dim) or law.counts.min() < 1:
            raise WeightsError(f"{path}: its label vectors are damaged or do not fit. Get the snapshot again.")
        return law
    counts = metadata.get("class_counts")
    if not isinstance(counts, list) or len(counts) != c_dim or not all(type(count) is int for count in counts):
        raise WeightsError(f"{path}: does not say how often each of its {c_dim} classes is there (class_counts).")
    return tuple(counts)


def _read(path: Path, labels: bool) -> tuple[str, dict[str, torch.Tensor]]:
    """The header's JSON, and the tensors of the labels' law or all others."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            names = [name for name in file.keys() if name.startswith(LABELS) == labels]  # noqa: SIM118 (not a dict)
            tensors = {name: file.get_tensor(name) for name in names}
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such file. Expected a snapshot (.safetensors).") from error
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: cannot read as safetensors ({error}). Get the snapshot again.") from error
    if text is None:
        raise WeightsError(f"{path}: has no metadata key {METADATA_KEY!r}, so it is not a snapshot of this library.")
    return text, tensors


def _parse_header(path: Path, text: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Family (a known one), arguments and metadata."""
    try:
        header = json.loads(text)
    except json.JSONDecodeError as error:
        raise WeightsError(f"{path}: its metadata is not JSON ({error}). Get the snapshot again.") from error
    header = header if isinstance(header, dict) else {}
    known: dict[str, list[Any]] = {"format_version": [FORMAT_VERSION], "family": list(GENERATORS)}
    for key, values in known.items():
        if (found := header.get(key)) not in values:
            choice = " or ".join(repr(value) for value in values)
            raise WeightsError(
                f"{path}: {key}={found!r}, but this version reads {choice}. Use the ganops that wrote it."
            )
    arguments, metadata = header.get("arguments"), header.get("metadata")
    if not isinstance(arguments, dict) or not isinstance(metadata, dict):
        raise WeightsError(f"{path}: its metadata lacks arguments or metadata. Get the snapshot again.")
    return header["family"], arguments, metadata


def _construct(path: Path, kind: type[AnyGenerator], arguments: dict[str, Any]) -> AnyGenerator:
    """The generator with zero weights, or an error that says which argument it cannot be made with."""
    grid = arguments.get("base_grid", SQUARE_GRID)
    arguments = {**arguments, "base_grid": tuple(grid) if isinstance(grid, list) else grid}
    known = set(kind.__init__.__annotations__) - {"rng", "return"}
    if unknown := sorted(set(arguments) - known):
        raise WeightsError(f"{path}: unknown constructor arguments {', '.join(unknown)}. Use the ganops that wrote it.")
    if missing := sorted(known - set(arguments)):
        raise WeightsError(f"{path}: lacks constructor arguments {', '.join(missing)}. Use the ganops that wrote it.")
    try:
        return kind(**arguments, rng=None)
    except (TypeError, ValueError, LookupError, RuntimeError, ArithmeticError) as error:
        raise WeightsError(f"{path}: no generator can be made from its arguments ({error}).") from error


def _load_weights(path: Path, network: AnyGenerator, tensors: dict[str, torch.Tensor]) -> None:
    own = network.state_dict()
    if differing := sorted(set(own) ^ set(tensors)):
        raise WeightsError(f"{path}: its weights do not fit its arguments: {differing[0]} is missing or unexpected.")
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            shapes = f"{list(tensors[name].shape)} instead of {list(tensor.shape)}"
            raise WeightsError(f"{path}: its weights do not fit its arguments: {name} is {shapes}.")
    network.load_state_dict(tensors)
