"""Images with some layers from one latent and some from another: what the tool `style_mixing` does.

Source: Karras et al. 2019, section 3.1 and figure 3.
"""

from pathlib import Path

import torch

from ganops.config import Params
from ganops.config_tools import expand_seeds
from ganops.entry import say
from ganops.errors import DataError
from ganops.explore.captions import caption_grid
from ganops.explore.model import (
    check_layers,
    map_seeds,
    name_layers,
    open_model,
    seed_caption,
    seed_labels,
    synthesize,
)
from ganops.explore.record import check_picture
from ganops.images.pixels import save_png


def draw_style_mixing(params: Params, snapshot: Path, picture: Path) -> None:
    """Writes a picture: unmixed images at the top and at the left, and where they cross the row's image with layers
    [first, last) of the column's. Constant noise.

    Args:
        params: all of params.yaml.
        snapshot: the generator.
        picture: a .png, replaced as a whole.
    Raises:
        WeightsError: the snapshot cannot be used.
        DataError: values that do not fit the model, a model with one w for all layers, or no place for a .png.
    """
    p = params.style_mixing
    check_picture(picture, (".png",))
    model = open_model(snapshot, params.run)
    if model.G.num_ws == 1:
        raise DataError(f"{snapshot} has one w for all layers, so there are no styles to mix.")
    first, last = check_layers(model, "style_mixing.column_layers", p.column_layers)
    seeds = [expand_seeds(kind) for kind in (p.row_seeds, p.column_seeds)]
    labels = [seed_labels(model, "style_mixing.label", p.label, kind) for kind in seeds]
    rows, columns = (
        model.G.truncate(map_seeds(model, kind, of_kind), p.truncation_psi, None)
        for kind, of_kind in zip(seeds, labels, strict=True)
    )
    # The picture row by row: an empty place and the columns' images; then a row's image and its mixtures.
    parts = [rows[:1], columns]
    for row in rows:
        mixed = row.expand(len(columns), -1, -1).clone()
        mixed[:, first:last] = columns[:, first:last]
        parts += [row[None], mixed]
    images = synthesize(model, torch.cat(parts), "const", None, p.batch_size)
    images[0] = 255
    captions = [
        [seed_caption(model, seed, label) for seed, label in zip(kind, of_kind, strict=True)]
        for kind, of_kind in zip(seeds, labels, strict=True)
    ]
    save_png(picture, caption_grid(images, len(columns) + 1, top=["", *captions[1]], left=["", *captions[0]]))
    say(f"style_mixing: {name_layers(first, last)} of {model.G.num_ws} from the images at the top: {picture}")
