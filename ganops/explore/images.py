"""Images by seed: what the tool `images` does."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ganops.config import Params
from ganops.config_tools import expand_seeds
from ganops.entry import progress, say
from ganops.errors import DataError
from ganops.explore.captions import caption_grid
from ganops.explore.model import (
    Model,
    check_layers,
    find_label,
    map_seeds,
    open_model,
    seed_caption,
    seed_labels,
    synthesize,
    truncate_layers,
)
from ganops.explore.record import claim_folder
from ganops.images.pixels import make_grid, save_png

SHEET_MOST = 256  # images of a contact sheet


def draw_images(params: Params, snapshot: Path, folder: Path) -> None:
    """Writes a PNG per seed and truncation psi, and a contact sheet per psi. Keeps those that are there.

    The folder's images.json says what the images are a function of besides seed and psi, which are in their names:
    with more seeds or other psi the folder grows, other values are refused.

    Args:
        params: all of params.yaml.
        snapshot: the generator.
        folder: for images.json, psi0.7.png (contact sheet), psi0.7/seed0000.png, ...
    Raises:
        WeightsError: the snapshot cannot be used.
        DataError: values that do not fit the model, or a folder that holds other things.
    """
    p = params.images
    model = open_model(snapshot, params.run)
    layers = check_layers(model, "images.truncation_layers", p.truncation_layers)
    seeds = expand_seeds(p.seeds)
    labels = seed_labels(model, "images.label", p.label, seeds)
    values = {
        "snapshot_sha256": model.sha256,
        "label": find_label(model, "images.label", p.label),
        "truncation_layers": p.truncation_layers,
        "noise_mode": p.noise_mode,
    }
    claim_folder(folder, "images.json", values)
    for psi in p.truncation_psi:
        target = folder / f"psi{psi}"
        missing = [number for number, seed in enumerate(seeds) if not (target / file_name(seed)).exists()]
        starts = range(0, len(missing), p.batch_size)
        for start in progress(starts, len(starts), f"images, psi {psi:g}", "batch"):
            part = missing[start : start + p.batch_size]
            numbers = [seeds[number] for number in part]
            ws = truncate_layers(model.G, map_seeds(model, numbers, labels[part]), psi, layers)
            noise_seeds = numbers if p.noise_mode == "random" else None
            images = synthesize(model, ws, p.noise_mode, noise_seeds, p.batch_size)
            for seed, image in zip(numbers, images, strict=True):
                save_png(target / file_name(seed), make_grid(image[None], 1))
        save_png(folder / f"psi{psi}.png", _contact_sheet(model, target, seeds, labels, p.columns))
        kept = f" ({len(seeds) - len(missing)} were there)" if len(missing) < len(seeds) else ""
        shown = f", the first {SHEET_MOST}" if len(seeds) > SHEET_MOST else ""
        say(f"images: {len(seeds)} images in {target}{kept}; contact sheet {folder}/psi{psi}.png{shown}")


def file_name(seed: int) -> str:
    """Of the image of a seed."""
    return f"seed{seed:04d}.png"


def _contact_sheet(
    model: Model, target: Path, seeds: list[int], labels: torch.Tensor, columns: int
) -> NDArray[np.uint8]:
    shown = seeds[:SHEET_MOST]
    images = np.stack([_read(model, target / file_name(seed)) for seed in shown])
    words = [seed_caption(model, seed, label) for seed, label in zip(seeds, labels, strict=True)]
    return caption_grid(images, min(columns, len(shown)), below=words[: len(shown)])


def _read(model: Model, path: Path) -> NDArray[np.uint8]:
    """A PNG that was written here: [C, H, W].

    Raises:
        DataError: somebody has changed it since.
    """
    try:
        with Image.open(path) as file:
            image = np.asarray(file)
    except (OSError, SyntaxError) as error:
        raise DataError(f"{path} cannot be read ({error}). Remove it; the same command draws it again.") from None
    image = image[None] if image.ndim == 2 else image.transpose(2, 0, 1)
    if image.dtype != np.uint8 or image.shape[1:] != model.G.size:
        raise DataError(f"{path} is another image than was written. Remove it; the same command draws it again.")
    return image
