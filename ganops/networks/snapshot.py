"""Snapshots of the generator: weights and constructor arguments, no code.

A safetensors file with one metadata key `ganops` that holds JSON with sorted keys: several keys would be written in
random order, and equal snapshots would have different bytes. No time, host or path goes in.
"""

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from ganops.errors import WeightsError
from ganops.files import write_bytes
from ganops.networks.families import GENERATORS, AnyGenerator, family_of

FORMAT_VERSION = 1
METADATA_KEY = "ganops"


def save_snapshot(path: Path, network: AnyGenerator, metadata: dict[str, Any]) -> None:
    """Writes a generator, whole or not at all. The same weights, arguments and metadata give the same bytes.

    Args:
        path: of the .safetensors file.
        network: of any family, on any device.
        metadata: what else is to be known of it (kimg, params, data digest), JSON values only; NaN is refused.
    """
    header = {
        "format_version": FORMAT_VERSION,
        "family": family_of(network),
        "arguments": network.arguments,
        "metadata": metadata,
    }
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), allow_nan=False)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_bytes(path, safetensors.torch.save(tensors, {METADATA_KEY: text}))


def load_snapshot(path: Path) -> tuple[AnyGenerator, dict[str, Any]]:
    """Reads a generator written by `save_snapshot`.

    Returns:
        The generator, on CPU, in evaluation mode and without gradients; and the metadata.
    Raises:
        WeightsError: the file is missing, damaged, of another format or family, or its weights do not fit its arguments.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such file. Expected a snapshot (.safetensors).") from error
    except (safetensors.SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: cannot read as safetensors ({error}). Get the snapshot again.") from error
    if text is None:
        raise WeightsError(f"{path}: has no metadata key {METADATA_KEY!r}, so it is not a snapshot of this library.")
    family, arguments, metadata = _parse_header(path, text)
    network = _construct(path, GENERATORS[family], arguments)
    _load_weights(path, network, tensors)
    return network.eval().requires_grad_(False), metadata


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
    known = set(kind.__init__.__annotations__) - {"rng", "return"}
    if unknown := sorted(set(arguments) - known):
        raise WeightsError(f"{path}: unknown constructor arguments {', '.join(unknown)}. Use the ganops that wrote it.")
    if missing := sorted(known - set(arguments)):
        raise WeightsError(f"{path}: lacks constructor arguments {', '.join(missing)}. Use the ganops that wrote it.")
    try:
        return kind(**arguments, rng=None)
    except (TypeError, ValueError, KeyError, RuntimeError, ArithmeticError) as error:
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
