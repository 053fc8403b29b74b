"""A picture of what augmentations do, for the eye: `python -m bench.augment_pictures PATH.png`.

One row per transformation, set and policy, at p = 1; the first column is the photograph that comes with scikit-learn.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from ganops.distributed import make_generator
from ganops.images.pixels import make_grid, save_png, to_float, to_uint8
from ganops.training.augment import (
    Parameters,
    augment,
    draw_augmentation,
    draw_parameters,
    make_augmentation,
    neutral_parameters,
)
from ganops.training.diffaugment import diffaugment, draw_diffaugment

SIZE, COLUMNS = 128, 9
CPU = torch.device("cpu")
ALONE: tuple[tuple[str, ...], ...] = (
    ("flip",),
    ("quarter_turns",),
    ("shift_x", "shift_y"),
    ("scale",),
    ("pre_rotation",),
    ("aniso",),
    ("move_x", "move_y"),
    ("brightness",),
    ("contrast",),
    ("luma_flip",),
    ("hue",),
    ("saturation",),
    ("bands",),
    ("noise_std",),
    ("cutout_x", "cutout_y", "cutout_size"),
)


def main() -> None:
    """Rows from the top: each transformation alone, bgc, bgcfnc, DiffAugment."""
    photograph = Image.fromarray(load_sample_image("china.jpg")).crop((100, 0, 527, 427)).resize((SIZE, SIZE))
    pixels = torch.frombuffer(bytearray(photograph.tobytes()), dtype=torch.uint8).reshape(SIZE, SIZE, 3)
    img = to_float(pixels.permute(2, 0, 1).repeat(COLUMNS, 1, 1, 1))
    drawn = draw_parameters("bgcfnc", 1.0, COLUMNS, make_generator(CPU, "pictures"))
    rows = []
    for names in ALONE:
        parameters: Parameters = replace(neutral_parameters(COLUMNS), **{name: getattr(drawn, name) for name in names})
        augmentation = make_augmentation(parameters, SIZE, SIZE, 3)
        rows.append(augment(img, augmentation, make_generator(CPU, "noise")))
    for augment_set in ("bgc", "bgcfnc"):
        augmentation = draw_augmentation(augment_set, 1.0, COLUMNS, SIZE, SIZE, 3, make_generator(CPU, "pictures"))
        rows.append(augment(img, augmentation, make_generator(CPU, "noise")))
    policy = ("color", "translation", "cutout")
    plan = draw_diffaugment(policy, 1.0, COLUMNS, SIZE, SIZE, make_generator(CPU, "pictures"))
    rows.append(diffaugment(img, plan))
    shown = torch.cat([torch.cat([img[:1], row]) for row in rows])
    save_png(Path(sys.argv[1]), make_grid(to_uint8(shown).numpy(), COLUMNS + 1))


if __name__ == "__main__":
    main()
