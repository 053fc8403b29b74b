"""PGGAN: against plain numpy, the label's way through both networks, sizes, float16."""

from typing import Any

import numpy as np
import pytest
import torch

from ganops.networks.early_layers import pixel_norm
from ganops.networks.pggan_discriminator import PGGANDiscriminator
from ganops.networks.pggan_generator import PGGANGenerator
from ganops.networks.table import layer_table
from tests.tolerances import assert_close
from tests.unit import plain_growing as plain
from tests.unit.growing import arrays, image_at, level_names, make_D, make_G, normal, seeded, stir
from tests.unit.test_stylegan1 import LODS, MULTI_HOT, PUBLISHED_CHANNELS


def test_mapping_normalises_latent_and_label_as_one() -> None:
    G = make_G("pggan", seeded(), c_dim=3).double()
    assert (G.w_dim, G.num_ws, G.active_ws) == (8, 1, 1)
    z, c = normal(4, 5, seed=1), torch.tensor(MULTI_HOT, dtype=torch.float64)
    w = G.mapping(z, c).numpy()
    for n in range(4):
        both = [*z[n].tolist(), *MULTI_HOT[n]]
        size = np.sqrt(sum(number**2 for number in both) / 8 + 1e-8)
        assert_close(w[n], [number / size for number in both], "loop_float64")


@pytest.mark.parametrize("base_grid", [(4, 4), (3, 5)])
@pytest.mark.parametrize("lod", LODS)
def test_synthesis_is_plain_numpy(lod: float, base_grid: tuple[int, int]) -> None:
    G = stir(make_G("pggan", seeded(), c_dim=3, base_grid=base_grid, lod=lod), 1)
    ws = normal(2, 1, 8, seed=2)
    expected = plain.pggan_synthesis(arrays(G), level_names(base_grid, 3), ws[:, 0].numpy(), lod)
    img = G.synthesis(ws, "none", None)
    assert img.shape[2:] == (base_grid[0] << 2 - int(lod), base_grid[1] << 2 - int(lod))
    assert_close(img, expected, "network_loop_float64")


@pytest.mark.parametrize("base_grid", [(4, 4), (3, 5)])
@pytest.mark.parametrize("lod", LODS)
def test_discriminator_is_plain_numpy(lod: float, base_grid: tuple[int, int]) -> None:
    D = stir(make_D("pggan", seeded(), c_dim=3, base_grid=base_grid, lod=lod), 1)
    img, c = image_at(D, 4, seed=2), torch.tensor(MULTI_HOT, dtype=torch.float64)
    expected = plain.discriminator_outputs(arrays(D), level_names(base_grid, 3)[::-1], img.numpy(), lod, "pggan")
    scores, classes = D.scores_and_classes(img)
    assert_close(scores, expected[:, :1], "network_loop_float64")
    assert_close(classes, expected[:, 1:], "network_loop_float64")
    # The scores are what D gives, whatever the label.
    assert torch.equal(D(img, c), scores)
    assert torch.equal(D(img, 1 - c), scores)


def test_no_classes_without_labels() -> None:
    D = make_D("pggan", seeded())
    scores, classes = D.scores_and_classes(image_at(D, 4, seed=1).float())
    assert scores.shape == (4, 1)
    assert classes is None


def test_minibatch_std_takes_its_group() -> None:
    """Groups of 2 see pairs only: the score of an image depends on its partner, two places on, and on no other."""
    D = stir(make_D("pggan", seeded(), mbstd_group_size=2), 1)
    img = image_at(D, 4, seed=2)
    before = D(img, img.new_zeros(4, 0))[:, 0]
    img[3] += 1
    changed = D(img, img.new_zeros(4, 0))[:, 0] != before
    assert changed.tolist() == [False, True, False, True]


def test_there_is_no_noise() -> None:
    G = make_G("pggan", seeded())
    ws = G.truncate(G.mapping(normal(4, 5, seed=1).float(), torch.zeros(4, 0)), 1.0, None)
    rng = seeded(2)
    images = [G.synthesis(ws, mode, rng) for mode in ("random", "const", "none")]
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])
    assert torch.equal(rng.get_state(), seeded(2).get_state())


def test_truncation() -> None:
    G = make_G("pggan", seeded())
    G.w_avg.copy_(normal(5, seed=3))
    w = G.mapping(normal(4, 5, seed=1).float(), torch.zeros(4, 0))
    assert torch.equal(G.truncate(w, 1.0, None), w[:, None])
    assert torch.equal(G.truncate(w, 0.5, 0), w[:, None])
    assert_close(G.truncate(w, 0.5, None), ((w + G.w_avg) / 2)[:, None], "twin_float32")


def test_pixel_norm_in_low_precision() -> None:
    """Numbers whose squares float16 does not hold, and small ones where its larger epsilon shows."""
    for dtype, epsilon in ((torch.float16, 1e-4), (torch.bfloat16, 1e-8), (torch.float32, 1e-8)):
        for size in (1e-3, 1.0, 3e3):
            x = (normal(2, 64, 3, 3, seed=1) * size).to(dtype)
            y = pixel_norm(x)
            assert y.dtype == dtype
            squares = (x.double().numpy() ** 2).mean(axis=1, keepdims=True)
            assert_close(y, x.double().numpy() / np.sqrt(squares + epsilon), "twin_bfloat16", f"{dtype} {size}")


SIZES: dict[str, Any] = {
    "c_dim": 0,
    "resolution": 1024,
    "base_grid": (4, 4),
    "img_channels": 3,
    "channel_base": 16384,
    "channel_max": 512,
    "precision": "float32",
    "low_precision_resolutions": 0,
    "conv_clamp": None,
    "lod": 0.0,
    "rng": None,
}


def test_layer_table_of_the_published_generator() -> None:
    """Every layer's parameters by hand; the sum is the published 23.1 million (Karras et al. 2019, section 2)."""
    with torch.device("meta"):
        G = PGGANGenerator(z_dim=512, **SIZES)
    expected = []
    below = 512
    for level, channels in enumerate(PUBLISHED_CHANNELS):
        block = f"synthesis.{4 << level}x{4 << level}"
        if level == 0:
            expected += [(f"{block}.dense", 512 * 512 * 16 + 512), (f"{block}.conv", 9 * 512 * 512 + 512)]
        else:
            expected += [(f"{block}.conv0_up", 9 * below * channels + channels)]
            expected += [(f"{block}.conv1", 9 * channels * channels + channels)]
        expected += [(f"{block}.to_rgb", 3 * channels + 3)]
        below = channels
    rows = layer_table(G)
    assert [(row.name, row.num_parameters) for row in rows] == expected
    total = sum(row.num_parameters for row in rows)
    assert total == sum(parameter.numel() for parameter in G.parameters())
    assert round(total / 1e6, 1) == 23.1


def test_layer_table_of_the_published_discriminator() -> None:
    with torch.device("meta"):
        D = PGGANDiscriminator(mbstd_group_size=4, mbstd_num_channels=1, **(SIZES | {"c_dim": 10}))
    expected = []
    for level in range(8, 0, -1):
        channels, below = PUBLISHED_CHANNELS[level], PUBLISHED_CHANNELS[level - 1]
        block = f"{4 << level}x{4 << level}"
        expected += [
            (f"{block}.from_rgb", 3 * channels + channels),
            (f"{block}.conv0", 9 * channels * channels + channels),
            (f"{block}.conv1_down", 9 * channels * below + below),
        ]
    expected += [
        ("4x4.from_rgb", 3 * 512 + 512),
        ("4x4.conv", 9 * 513 * 512 + 512),
        ("4x4.dense0", 512 * 16 * 512 + 512),
        ("output", 512 * (1 + 10) + (1 + 10)),
    ]
    rows = layer_table(D)
    assert [(row.name, row.num_parameters) for row in rows] == expected
    assert sum(row.num_parameters for row in rows) == sum(parameter.numel() for parameter in D.parameters())
