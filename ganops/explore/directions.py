"""Directions in w that change the styles most: what the tool `directions` does.

Source: Shen & Zhou 2021, "Closed-form factorization of latent semantics in GANs" (SeFa). A style is A w + b; among all
unit vectors n, the eigenvectors of A^T A with the largest eigenvalues have the largest |A n|. A is the affine maps of
all chosen layers, one below the other.
"""

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ganops.config import Params
from ganops.config_tools import expand_seeds
from ganops.entry import progress, say
from ganops.errors import DataError
from ganops.explore.captions import caption_grid
from ganops.explore.model import (
    check_layers,
    find_label,
    map_seeds,
    name_layers,
    open_model,
    sample_w,
    seed_caption,
    seed_labels,
    synthesize,
)
from ganops.explore.record import claim_folder
from ganops.files import write_bytes
from ganops.images.pixels import save_png
from ganops.networks.families import AnyGenerator
from ganops.networks.snapshot import METADATA_KEY

W_SAMPLES = 10_000  # for the standard deviation of w along a direction
SAMPLE_SEED = 0


def draw_directions(params: Params, snapshot: Path, folder: Path) -> None:
    """Writes directions.safetensors, and a picture per direction: a row per seed, a column per strength.

    directions.safetensors holds float32 `directions` [count, w_dim], unit vectors; `eigenvalues` [count]; `w_std`
    [count], the standard deviation of w along each. Constant noise.

    Args:
        params: all of params.yaml.
        snapshot: the generator.
        folder: new, empty, or of the same command before.
    Raises:
        WeightsError: the snapshot cannot be used.
        DataError: values that do not fit the model, a model without styles, or a folder that holds other things.
    """
    p = params.directions
    model = open_model(snapshot, params.run)
    matrices = style_matrices(model.G)
    if not any(len(matrix) for matrix in matrices):
        raise DataError(f"{snapshot} has no layers with an affine map of w to styles, so it has no such directions.")
    first, last = check_layers(model, "directions.layers", p.layers)
    matrix = np.concatenate(matrices[first:last])
    most = matrix.shape[1]
    if p.count > most:
        raise DataError(f"directions.count={p.count}, but w has {most} dimensions in {snapshot}. Use at most so many.")
    seeds = expand_seeds(p.seeds)
    labels = seed_labels(model, "directions.label", p.label, seeds)
    values: dict[str, Any] = {
        **p.model_dump(exclude={"seeds", "label", "batch_size"}),
        "seeds": seeds,
        "label": find_label(model, "directions.label", p.label),
        "snapshot_sha256": model.sha256,
    }
    w = sample_w(model, "directions.label", p.label, SAMPLE_SEED, W_SAMPLES).cpu().double().numpy()
    claim_folder(folder, "directions.json", values)
    directions, eigenvalues = factorize(matrix, p.count)
    spread = (w @ directions.T).std(axis=0)
    found = {"directions": directions, "eigenvalues": eigenvalues, "w_std": spread}
    tensors = {name: torch.from_numpy(value).float().contiguous() for name, value in found.items()}
    header = {METADATA_KEY: json.dumps(values, sort_keys=True, separators=(",", ":"))}  # one key: see snapshot.py
    write_bytes(folder / "directions.safetensors", safetensors.torch.save(tensors, header))

    ws = model.G.truncate(map_seeds(model, seeds, labels), p.truncation_psi, None)
    top = [f"{strength:+g}" if strength else "0" for strength in p.strengths]
    left = [seed_caption(model, seed, label) for seed, label in zip(seeds, labels, strict=True)]
    for number in progress(range(p.count), p.count, "directions", "picture"):
        step = (tensors["directions"][number] * float(spread[number])).to(model.device)
        moved = move(ws, step, p.strengths, (first, last))
        images = synthesize(model, moved.flatten(0, 1), "const", None, p.batch_size)
        save_png(folder / f"direction{number:02d}.png", caption_grid(images, len(p.strengths), top=top, left=left))
    say(f"directions: {p.count} of {name_layers(first, last)} in {folder}")


def factorize(matrix: NDArray[np.float64], count: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The `count` unit vectors that a matrix makes longest, each at right angles to those before.

    Args:
        matrix: A, [M, D].
        count: 1 to D.
    Returns:
        Directions [count, D], each with its largest component positive; and the eigenvalues |A n|^2 [count], falling.
    Source: Shen & Zhou 2021, equation 5.
    """
    eigenvalues, vectors = np.linalg.eigh(matrix.T @ matrix)  # rising
    directions = vectors.T[::-1][:count]
    # The sign is arbitrary: fixed, so that every machine has the same.
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
    return directions * np.sign(largest), np.maximum(eigenvalues[::-1][:count], 0)


def move(ws: Tensor, step: Tensor, strengths: Sequence[float], layers: tuple[int, int]) -> Tensor:
    """ws [N, num_ws, w_dim] and a step [w_dim] -> [N, len(strengths), num_ws, w_dim]; only layers [first, last) move."""
    moved = ws[:, None].repeat(1, len(strengths), 1, 1)
    for number, strength in enumerate(strengths):
        moved[:, number, layers[0] : layers[1]] += strength * step
    return moved


@torch.no_grad()
def style_matrices(G: AnyGenerator) -> list[NDArray[np.float64]]:
    """The linear part of each layer's styles, as it acts on w (with all gains of the affine map).

    A layer with styles is a module of G.synthesis with a submodule `affine` that maps w [N, w_dim] to styles. Which w it
    takes is found by giving the i-th w the value i, and looking at what arrives.

    Returns:
        For each of num_ws the matrices of the layers that take this w, one below the other: [M_i, w_dim], M_i >= 0.
    """
    arrived: dict[str, int] = {}
    handles = []
    affines = {
        name: layer.affine
        for name, layer in G.synthesis.named_modules()
        if isinstance(getattr(layer, "affine", None), nn.Module)
    }

    def watch(name: str, affine: nn.Module) -> None:
        def note(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
            arrived[name] = round(float(inputs[0].mean()))

        handles.append(affine.register_forward_pre_hook(note))

    for name, affine in affines.items():
        watch(name, affine)
    numbers = torch.arange(G.num_ws, device=G.w_avg.device, dtype=G.w_avg.dtype)
    G.synthesis(numbers[None, :, None].expand(1, -1, G.w_dim).contiguous(), "none", None)
    for handle in handles:
        handle.remove()
    found: list[list[NDArray[np.float64]]] = [[] for _ in range(G.num_ws)]
    units = torch.cat([torch.zeros(1, G.w_dim), torch.eye(G.w_dim)]).double()
    for name, affine in affines.items():
        if name not in arrived:  # an image layer that no longer runs, or a level that a growing network has not yet
            continue
        styles = copy.deepcopy(affine).cpu().double()(units)
        found[arrived[name]].append((styles[1:] - styles[:1]).T.numpy())
    return [np.concatenate([np.zeros((0, G.w_dim)), *matrices]) for matrices in found]
