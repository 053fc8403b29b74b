"""StyleGAN1 and the discriminator of config-a to d: against plain numpy, sizes, labels, noise, fused convolutions."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from ganops.networks.early_layers import LRELU_GAIN, EarlyConv
from ganops.networks.stylegan1_discriminator import StyleGAN1Discriminator
from ganops.networks.stylegan1_generator import StyleGAN1Generator
from ganops.networks.table import layer_table
from tests.tolerances import assert_close
from tests.unit import plain_growing as plain
from tests.unit.growing import arrays, image_at, level_names, make_D, make_G, normal, seeded, stir

MULTI_HOT = [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]]
LODS = [0.0, 0.3, 1.0, 1.75, 2.0]

# Channels of 4x4, 8x8 … 1024x1024 with channel_base 16384 (nf(stage) = min(8192 / 2^stage, 512), stage = log2(r) - 1).
PUBLISHED_CHANNELS = [512, 512, 512, 512, 256, 128, 64, 32, 16]


def test_mapping_is_plain_numpy() -> None:
    G = stir(make_G("stylegan1", seeded(), c_dim=3), 1)
    z, c = normal(4, 5, seed=2), torch.tensor(MULTI_HOT, dtype=torch.float64)
    expected = plain.joint_mapping(arrays(G), z.numpy(), c.numpy(), 3, early=True)
    assert_close(G.mapping(z, c), expected, "loop_float64")
    unlabelled = stir(make_G("stylegan1", seeded()), 1)
    expected = plain.joint_mapping(arrays(unlabelled), z.numpy(), c.numpy(), 3, early=True)
    assert_close(unlabelled.mapping(z, z[:, :0]), expected, "loop_float64")


@pytest.mark.parametrize("base_grid", [(4, 4), (3, 5)])
@pytest.mark.parametrize("lod", LODS)
def test_synthesis_is_plain_numpy(lod: float, base_grid: tuple[int, int]) -> None:
    G = stir(make_G("stylegan1", seeded(), base_grid=base_grid, lod=lod), 1)
    ws = normal(2, 6, 6, seed=2)
    expected = plain.stylegan1_synthesis(arrays(G), level_names(base_grid, 3), ws.numpy(), lod)
    img = G.synthesis(ws, "const", None)
    assert img.shape[2:] == (base_grid[0] << 2 - int(lod), base_grid[1] << 2 - int(lod))
    assert_close(img, expected, "network_loop_float64")


def test_fused_convolutions_are_plain_numpy() -> None:
    """From 128x128 on, convolutions that change the resolution are computed in another way."""
    G = stir(make_G("stylegan1", seeded(), resolution=128, channel_base=16, channel_max=2), 1)
    D = stir(make_D("stylegan1", seeded(), resolution=128, channel_base=16, channel_max=2), 2)
    assert [block.conv0_up.conv.fused for block in list(G.synthesis.blocks.values())[1:]] == [False] * 4 + [True]
    assert [block.conv1_down.fused for block in D.blocks.values()] == [True] + [False] * 4
    ws, img, names = normal(1, 12, 6, seed=2), normal(2, 3, 128, 128, seed=3), level_names((4, 4), 6)
    expected = plain.stylegan1_synthesis(arrays(G), names, ws.numpy(), 0.0)
    assert_close(G.synthesis(ws, "const", None), expected, "network_loop_float64")
    expected = plain.discriminator_outputs(arrays(D), names[::-1], img.numpy(), 0.0, "stylegan1")
    assert_close(D(img, img.new_zeros(2, 0)), expected, "network_loop_float64")


@pytest.mark.parametrize("blur", [True, False])
@pytest.mark.parametrize(("up", "down"), [(2, 1), (1, 2)])
def test_fused_is_the_same_function(up: int, down: int, blur: bool) -> None:
    layers = [
        EarlyConv(
            in_channels=3,
            out_channels=2,
            kernel_size=3,
            bias=True,
            activation="lrelu",
            gain=LRELU_GAIN,
            up=up,
            down=down,
            fused=fused,
            blur=blur,
            clamp=None,
            rng=seeded(),
        ).double()
        for fused in (False, True)
    ]
    x = normal(2, 3, 6, 10, seed=1).requires_grad_()
    results = []
    for layer in layers:
        y = layer(x)
        assert y.shape == (2, 2, 6 * up // down, 10 * up // down)
        results.append([y, *torch.autograd.grad(y.square().sum(), [x, layer.weight, layer.bias])])
    for fused, expected in zip(results[1], results[0], strict=True):
        assert_close(fused, expected, "twin_float64")


@pytest.mark.parametrize("kind", ["stylegan1", "stylegan2-growing"])
@pytest.mark.parametrize("base_grid", [(4, 4), (3, 5)])
@pytest.mark.parametrize("lod", LODS)
def test_discriminator_is_plain_numpy(lod: float, base_grid: tuple[int, int], kind: str) -> None:
    D = stir(make_D(kind, seeded(), c_dim=3, base_grid=base_grid, lod=lod), 1)
    img, c = image_at(D, 4, seed=2), torch.tensor(MULTI_HOT, dtype=torch.float64)
    names = level_names(base_grid, 3)[::-1]
    outputs = plain.discriminator_outputs(arrays(D), names, img.numpy(), lod, kind.removesuffix("-growing"))
    assert outputs.shape == (4, 3)
    assert_close(D(img, c), (outputs * c.numpy()).sum(axis=1, keepdims=True), "network_loop_float64")


def test_discriminator_without_labels_has_one_output() -> None:
    D = stir(make_D("stylegan1", seeded()), 1)
    img = image_at(D, 8, seed=2)
    outputs = plain.discriminator_outputs(arrays(D), level_names((4, 4), 3)[::-1], img.numpy(), 0.0, "stylegan1")
    assert outputs.shape == (8, 1)
    assert_close(D(img, img.new_zeros(8, 0)), outputs, "network_loop_float64")


def test_resample_filter_is_one_of_two() -> None:
    with pytest.raises(ValueError, match=r"resample_filter=\(1, 1\) is neither \(1, 2, 1\) nor \(1, 3, 3, 1\)"):
        StyleGAN1Discriminator(**make_D("stylegan1").arguments | {"resample_filter": [1, 1]}, rng=None)


def test_initial_values() -> None:
    G = make_G("stylegan1", seeded())
    for name, parameter in G.named_parameters():
        if name.endswith("const"):
            assert bool((parameter == 1).all()), name
        elif name.endswith(("bias", "noise_strength")):
            assert not parameter.any(), name
    assert float(G.synthesis.blocks["8x8"].conv1.conv.weight.detach().std()) == pytest.approx(1, abs=0.1)


def test_noise_has_a_weight_per_channel() -> None:
    G = make_G("stylegan1", seeded())
    ws = G.truncate(G.mapping(normal(2, 5, seed=1), torch.zeros(2, 0)), 1.0, None)
    assert torch.equal(G.synthesis(ws, "const", None), G.synthesis(ws, "none", None))
    epilogue = G.synthesis.blocks["16x16"].conv1.epilogue
    with torch.no_grad():
        epilogue.noise_strength[3] = 1.0
    seen: list[torch.Tensor] = []
    epilogue.register_forward_hook(lambda module, inputs, output: seen.append(output))
    for mode in ("none", "const"):
        G.synthesis(ws, mode, None)
    changed = (seen[0] != seen[1]).flatten(2).any(dim=2)
    assert changed.tolist() == [[channel == 3 for channel in range(4)]] * 2


def test_truncation_and_mixing_reach_single_layers() -> None:
    G = make_G("stylegan1", seeded())
    ws = G.truncate(G.mapping(normal(2, 5, seed=1), torch.zeros(2, 0)), 1.0, None).contiguous()
    before = G.synthesis(ws, "none", None)
    for layer in range(G.num_ws):
        changed = ws.clone()
        changed[:, layer] += 1
        assert not torch.allclose(G.synthesis(changed, "none", None), before), layer


def test_layer_table_of_the_published_generator() -> None:
    """Every layer's parameters by hand; the sum is the published 26.2 million (Karras et al. 2019, section 2)."""
    with torch.device("meta"):
        G = StyleGAN1Generator(
            z_dim=512,
            c_dim=0,
            w_dim=512,
            resolution=1024,
            base_grid=(4, 4),
            img_channels=3,
            mapping_layers=8,
            mapping_lr_multiplier=0.01,
            channel_base=16384,
            channel_max=512,
            precision="float32",
            low_precision_resolutions=0,
            conv_clamp=None,
            lod=8,
            rng=None,
        )

    def epilogue(channels: int) -> int:
        return channels + channels + (512 * 2 * channels + 2 * channels)  # noise, bias, styles

    expected = [(f"mapping.{i}", 512 * 512 + 512) for i in range(8)]
    below = 512
    for level, channels in enumerate(PUBLISHED_CHANNELS):
        block = f"synthesis.{4 << level}x{4 << level}"
        if level == 0:
            expected += [(f"{block}.const", 512 * 4 * 4), (f"{block}.epilogue", epilogue(512))]
        else:
            expected += [(f"{block}.conv0_up", 9 * below * channels + epilogue(channels))]
        expected += [(f"{block}.conv1", 9 * channels**2 + epilogue(channels)), (f"{block}.to_rgb", 3 * channels + 3)]
        below = channels
    rows = layer_table(G)
    assert [(row.name, row.num_parameters) for row in rows] == expected
    assert sum(row.num_parameters for row in rows) == sum(count for _, count in expected) == 26_219_627
    assert sum(parameter.numel() for parameter in G.parameters()) == 26_219_627
    shapes = {row.name: row.output_shape for row in rows}
    assert shapes["synthesis.4x4.to_rgb"] == (3, 4, 4)
    assert shapes["synthesis.256x256.conv0_up"] == (64, 256, 256)
    assert shapes["synthesis.1024x1024.to_rgb"] == (3, 1024, 1024)
    assert G.num_ws == 18


@pytest.mark.parametrize("taps", [(1, 2, 1), (1, 3, 3, 1)])
def test_layer_table_of_the_published_discriminator(taps: tuple[int, ...]) -> None:
    """Every layer's parameters by hand. Config-e's published discriminator has skips instead of the image layers."""
    with torch.device("meta"):
        D = StyleGAN1Discriminator(
            c_dim=0,
            resolution=1024,
            base_grid=(4, 4),
            img_channels=3,
            channel_base=16384,
            channel_max=512,
            resample_filter=taps,
            mbstd_group_size=4,
            mbstd_num_channels=1,
            precision="float32",
            low_precision_resolutions=0,
            conv_clamp=None,
            lod=0.5,
            rng=None,
        )
    expected = []
    for level in range(8, 0, -1):
        channels, below = PUBLISHED_CHANNELS[level], PUBLISHED_CHANNELS[level - 1]
        block = f"{4 << level}x{4 << level}"
        expected += [
            (f"{block}.from_rgb", 3 * channels + channels),
            (f"{block}.conv0", 9 * channels**2 + channels),
            (f"{block}.conv1_down", 9 * channels * below + below),
        ]
    expected += [
        ("4x4.from_rgb", 3 * 512 + 512),
        ("4x4.conv", 9 * 513 * 512 + 512),
        ("4x4.dense0", 512 * 16 * 512 + 512),
        ("output", 512 + 1),
    ]
    rows = layer_table(D)
    assert [(row.name, row.num_parameters) for row in rows] == expected
    pairs = list(pairwise(PUBLISHED_CHANNELS))
    config_e = 24_038_161  # Karras et al. 2020, the released network
    total = config_e - sum(below * above for below, above in pairs) + sum(4 * below for below, _ in pairs)
    assert sum(row.num_parameters for row in rows) == total == sum(parameter.numel() for parameter in D.parameters())
    assert {row.name: row.output_shape for row in rows}["64x64.from_rgb"] == (256, 64, 64)


def test_labels_are_rows_of_a_matrix_without_equalised_learning_rate() -> None:
    G = make_G("stylegan1", seeded(), c_dim=3)
    rows = {row.name: row for row in layer_table(G)}
    assert rows["mapping.embed"].num_parameters == 3 * 5
    assert rows["mapping.0"].num_parameters == (5 + 5) * 6 + 6
    # z and label have one norm: a label ten times as large leaves less of z.
    z = np.ones([1, 5])
    embedded = arrays(G)["mapping.embed.weight"][1:2]
    seen: list[np.ndarray] = []
    G.mapping.layers[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach().numpy()))
    for size in (1.0, 10.0):
        G.mapping(torch.ones(1, 5), torch.tensor([[0.0, size, 0.0]]))
        both = np.concatenate([z, size * embedded], axis=1)
        assert_close(seen[-1], both / np.sqrt((both**2).mean() + 1e-8), "twin_float32")
