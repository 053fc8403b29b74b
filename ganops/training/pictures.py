"""Pictures of a run: what G_ema makes of the same latents, and real images beside it."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ganops.config_train import TrainParams
from ganops.distributed import derive_seed
from ganops.images.pixels import for_eyes, magnify, make_grid, save_png
from ganops.images.shards import Shards
from ganops.networks.families import AnyGenerator
from ganops.networks.sampling import draw_rows


def grid_columns(size: tuple[int, int]) -> int:
    """Columns of the picture grid for images of (height, width) px: about 1024 px wide, 4 to 16 images."""
    return min(max(1024 // size[1], 4), 16)


def draw_grid(path: Path, params: TrainParams, G_ema: AnyGenerator, rows: Tensor) -> None:
    """Writes a PNG of G_ema on the same latents every time; constant noise.

    Args:
        path: the file.
        params: section `train`.
        G_ema: the averaged generator.
        rows: one label per row, see `law.grid_labels`; none for an unconditional G: then there are as many rows as columns.
    """
    columns = grid_columns(G_ema.size)
    batch_size = min(params.batch_gpu, columns * (len(rows) or columns))
    images = draw_rows(G_ema, derive_seed(params.seed, "grid"), rows, columns, 1.0, "const", batch_size)
    save_png(path, make_grid(magnify(for_eyes(images)), columns))


def draw_reals(path: Path, shards: Shards, rows: Tensor) -> None:
    """Writes a PNG of real images in the same layout."""
    columns = grid_columns(shards.index.size)
    chosen: list[int] = []
    for row in rows.numpy():
        members = (shards.labels == row).reshape(len(shards), -1).all(1).nonzero()[0]
        chosen += [int(members[i % len(members)]) if len(members) else -1 for i in range(columns)]
    for row in range(0 if len(rows) else columns):
        rest = range(row * columns, len(shards))
        chosen += [rest[i % len(rest)] if rest else -1 for i in range(columns)]
    places: NDArray[np.int64] = np.array(chosen)
    images = shards.gather(np.maximum(places, 0))
    images[places < 0] = 0  # a class without images: a black row
    save_png(path, make_grid(magnify(for_eyes(images)), columns))
