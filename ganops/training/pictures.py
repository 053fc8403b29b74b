"""Pictures of a run: what G_ema makes of the same latents, and real images beside it."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ganops.config_train import TrainParams
from ganops.distributed import derive_seed
from ganops.images.pixels import magnify, make_grid, save_png
from ganops.images.shards import Shards
from ganops.networks.families import AnyGenerator
from ganops.networks.sampling import generate_images


def grid_shape(resolution: int, c_dim: int) -> tuple[int, int]:
    """Rows and columns of the picture grid: a row per class (at most 32) when there are classes."""
    columns = min(max(1024 // resolution, 4), 16)
    return (min(c_dim, 32) if c_dim else columns), columns


def draw_grid(path: Path, params: TrainParams, G_ema: AnyGenerator) -> None:
    """Writes a PNG of G_ema on the same latents every time; one class per row when conditional; constant noise."""
    rows, columns = grid_shape(G_ema.resolution, G_ema.c_dim)
    count = rows * columns
    labels = torch.arange(rows).repeat_interleave(columns) if G_ema.c_dim else torch.zeros(count).long()
    seed = derive_seed(params.seed, "grid")
    parts = generate_images(G_ema, seed, range(count), labels, 1.0, None, "const", min(params.batch_gpu, count))
    images = torch.cat([part.cpu() for part in parts]).numpy()
    save_png(path, make_grid(magnify(images), columns))


def draw_reals(path: Path, shards: Shards, c_dim: int) -> None:
    """Writes a PNG of real images in the same layout."""
    rows, columns = grid_shape(shards.index.resolution, c_dim)
    chosen = []
    for row in range(rows):
        members = (shards.labels == row).nonzero()[0] if c_dim else range(row * columns, len(shards))
        chosen += [int(members[i % len(members)]) if len(members) else -1 for i in range(columns)]
    places: NDArray[np.int64] = np.array(chosen)
    images = shards.gather(np.maximum(places, 0))
    images[places < 0] = 0  # a class without images: a black row
    save_png(path, make_grid(magnify(images), columns))
