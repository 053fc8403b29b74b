"""Growing: levels and fades of all families, config-b to d's generator, real images, derivatives of second order."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ganops.networks.growing import (
    average,
    check_lod,
    fade_reals,
    level_channels,
    level_resolutions,
    upscale,
)
from ganops.networks.layers import layer_noise
from ganops.networks.mapping import truncate_w
from ganops.networks.path_length import in_float32
from ganops.networks.sampling import generate_images
from ganops.networks.stylegan2_growing_generator import GrowingGenerator
from ganops.networks.table import describe_networks, format_table, layer_table
from tests.tolerances import assert_close
from tests.unit import plain_growing as plain
from tests.unit.growing import (
    FAMILIES,
    GrowingG,
    arrays,
    image_at,
    level_names,
    make_D,
    make_G,
    normal,
    seeded,
    stir,
)
from tests.unit.test_stylegan1 import LODS, MULTI_HOT, PUBLISHED_CHANNELS

EDGE = 1e-9  # as near to a whole lod as two networks are compared


@pytest.mark.parametrize("lod", [0.0, 0.25, 1.0, 1.5, 2.0, 2.75])
def test_fade_reals_is_explicit_averages(lod: float) -> None:
    """Each pixel by hand: the average of its square, mixed with that of the square of twice its side."""
    img = normal(2, 3, 16, 24, seed=1)
    missing, share = int(lod), lod - int(lod)
    side = 2**missing
    expected = np.zeros([2, 3, 16 // side, 24 // side])
    for y in range(16 // side):
        for x in range(24 // side):
            own = img[:, :, y * side : (y + 1) * side, x * side : (x + 1) * side].numpy().mean(axis=(2, 3))
            top, left = (y // 2) * 2 * side, (x // 2) * 2 * side
            wider = img[:, :, top : top + 2 * side, left : left + 2 * side].numpy().mean(axis=(2, 3))
            expected[:, :, y, x] = own + share * (wider - own)
    assert_close(fade_reals(img, lod), expected, "loop_float64")
    assert fade_reals(img.float(), lod).dtype == torch.float32


def test_fade_reals_continues_across_levels() -> None:
    img = normal(2, 3, 16, 16, seed=1)
    for level in (1, 2):
        assert_close(fade_reals(img, level - EDGE), upscale(fade_reals(img, level), 2), "fade_edge")
        assert_close(fade_reals(img, level + EDGE), fade_reals(img, level), "fade_edge")
    assert fade_reals(img, 0.0) is img


def test_upscale_and_average() -> None:
    x = normal(2, 3, 4, 6, seed=1)
    assert np.array_equal(upscale(x, 4).numpy(), np.repeat(np.repeat(x.numpy(), 4, 2), 4, 3))
    assert_close(average(upscale(x, 4), 4), x, "twin_float64")
    fast = x.float().contiguous(memory_format=torch.channels_last)
    for y in (upscale(fast, 2), average(fast, 2)):
        assert y.is_contiguous(memory_format=torch.channels_last)
    for dtype in (torch.float16, torch.bfloat16):
        assert upscale(x.to(dtype), 2).dtype == average(x.to(dtype), 2).dtype == dtype


def test_levels() -> None:
    assert level_resolutions(32) == [4, 8, 16, 32]
    assert level_resolutions(4) == [4]
    assert [level_channels(4 << level, 16384, 512) for level in range(9)] == PUBLISHED_CHANNELS
    assert level_channels(64, 32, 512) == 1
    for resolution in (0, 2, 12):
        with pytest.raises(ValueError, match=f"resolution={resolution} is not a power of two from 4 up"):
            level_resolutions(resolution)
    for lod in (-0.1, 3.01, float("nan")):
        with pytest.raises(ValueError, match=r"is not in \[0, 3\], which resolution=32 allows"):
            check_lod(lod, 32)
    assert isinstance(check_lod(3, 32), float)


def test_truncate_w() -> None:
    w, w_avg = normal(4, 6, seed=1), normal(6, seed=2)
    assert torch.equal(truncate_w(w, w_avg, 5, 1.0, 2), w[:, None].expand(-1, 5, -1))
    assert_close(truncate_w(w, w_avg, 5, 0.0, None), w_avg.expand(4, 5, 6), "twin_float64")
    half = truncate_w(w, w_avg, 5, 0.7, 2)
    assert_close(half[:, :2], (0.7 * w + 0.3 * w_avg)[:, None].expand(-1, 2, -1), "twin_float64")
    assert torch.equal(half[:, 2:], w[:, None].expand(-1, 3, -1))


def test_noise_of_a_grid() -> None:
    const = normal(3, 5, seed=1)
    assert layer_noise(const, 2, "none", None) is None
    assert layer_noise(const, 2, "const", None) is const
    noise = layer_noise(const, 2, "random", seeded(1))
    assert torch.equal(noise, torch.randn([2, 1, 3, 5], generator=seeded(1)))
    each = layer_noise(const, 2, "random", [seeded(1), seeded(2)])
    assert torch.equal(each, torch.cat([torch.randn([1, 1, 3, 5], generator=seeded(seed)) for seed in (1, 2)]))


@pytest.mark.parametrize("base_grid", [(4, 4), (3, 5)])
@pytest.mark.parametrize("lod", LODS)
def test_growing_generator_is_plain_numpy(lod: float, base_grid: tuple[int, int]) -> None:
    G = stir(make_G("stylegan2-growing", seeded(), c_dim=3, base_grid=base_grid, lod=lod), 1)
    z, c = normal(4, 5, seed=2), torch.tensor(MULTI_HOT, dtype=torch.float64)
    expected = plain.joint_mapping(arrays(G), z.numpy(), c.numpy(), 3, early=False)
    assert_close(G.mapping(z, c), expected, "loop_float64")
    ws = normal(2, 6, 6, seed=3)
    expected = plain.stylegan2_synthesis(arrays(G), level_names(base_grid, 3), ws.numpy(), lod)
    assert_close(G.synthesis(ws, "const", None), expected, "network_loop_float64")


def test_layer_table_of_the_published_growing_generator() -> None:
    """Every layer's parameters by hand. Config-e, with skips, has the same layers: an image layer per level too."""
    with torch.device("meta"):
        G = GrowingGenerator(
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
            lod=7.5,
            rng=None,
        )

    def conv(channels: int, out: int) -> int:
        return 9 * channels * out + (512 * channels + channels) + out + 1  # kernel, styles, bias, noise

    expected = [(f"mapping.{i}", 512 * 512 + 512) for i in range(8)]
    below = 512
    for level, channels in enumerate(PUBLISHED_CHANNELS):
        block = f"synthesis.{4 << level}x{4 << level}"
        if level == 0:
            expected += [(f"{block}.const", 512 * 16), (f"{block}.conv", conv(512, 512))]
        else:
            expected += [(f"{block}.conv0_up", conv(below, channels)), (f"{block}.conv1", conv(channels, channels))]
        expected += [(f"{block}.to_rgb", 3 * channels + (512 * channels + channels) + 3)]
        below = channels
    rows = layer_table(G)
    assert [(row.name, row.num_parameters) for row in rows] == expected
    config_e = 24_900_764  # Karras et al. 2020, the released network
    assert sum(row.num_parameters for row in rows) == config_e == sum(p.numel() for p in G.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_tables_add_up_at_every_lod(family: str) -> None:
    """Of labelled networks that are not square, half grown: each layer has its row, and they stay as they are."""
    networks = [make(family, seeded(), c_dim=3, base_grid=(3, 5), lod=1.5) for make in (make_G, make_D)]
    for network in networks:
        rows = layer_table(network)
        assert sum(row.num_parameters for row in rows) == sum(p.numel() for p in network.parameters())
        assert len({row.name for row in rows}) == len(rows)
        assert {row.name.split(".")[-2] for row in rows if row.name.endswith("rgb")} == {"3x5", "6x10", "12x20"}
        assert network.lod == 1.5
        assert network.size == (12, 20)
        network.set_lod(0)
        assert layer_table(network) == rows
    text = describe_networks(*networks)
    assert format_table(layer_table(networks[1])) in text


def ws_of(G: GrowingG, count: int = 2) -> Tensor:
    return normal(count, G.num_ws, G.w_dim, seed=5)


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_lods_are_smaller_networks(family: str) -> None:
    """Half grown, a network is the one of half the resolution with the same weights, to the bit."""
    big, D_big = stir(make_G(family, seeded(), c_dim=3), 1), stir(make_D(family, seeded(), c_dim=3), 2)
    for lod, resolution in ((1, 8), (2, 4)):
        small, D_small = (make(family, c_dim=3, resolution=resolution).double() for make in (make_G, make_D))
        for network, source in ((small, big), (D_small, D_big)):
            state = source.state_dict()
            network.load_state_dict({name: state[name] for name in network.state_dict()})
        big.set_lod(lod)
        D_big.set_lod(lod)
        ws, c = ws_of(big), torch.tensor(MULTI_HOT, dtype=torch.float64)
        img = small.synthesis(ws[:, : small.num_ws], "const", None)
        assert img.shape == (2, 3, resolution, resolution)
        assert torch.equal(big.synthesis(ws, "const", None), img)
        assert big.active_ws == small.num_ws
        z = normal(4, 5, seed=6)
        full = big(z, c, 0.7, 1, "const", None)
        assert full.shape == (4, 3, 16, 16)
        assert torch.equal(full, upscale(small(z, c, 0.7, 1, "const", None), 2**lod))
        real = image_at(D_big, 4, seed=7)
        assert torch.equal(D_big(real, c), D_small(real, c))


@pytest.mark.parametrize("family", FAMILIES)
def test_growth_continues_across_levels(family: str) -> None:
    """A new level comes in with share 0, so nothing jumps: neither images nor, for images of that kind, logits."""
    G, D = stir(make_G(family, seeded()), 1), stir(make_D(family, seeded()), 2)
    c, ws = torch.zeros(4, 0), ws_of(G)
    for level in (1, 2):
        results = {}
        real = image_at(make_D(family, lod=level), 4, seed=7)
        for lod in (level - EDGE, float(level), level + EDGE if level < 2 else float(level)):
            G.set_lod(lod)
            D.set_lod(lod)
            larger = lod < level
            img = G.synthesis(ws, "const", None)
            assert img.shape[2] == 16 >> level - larger
            results[lod] = average(img, 2) if larger else img, D(upscale(real, 2) if larger else real, c)
            if larger:
                assert_close(upscale(average(img, 2), 2), img, "fade_edge", "squares of equal pixels")
        expected = results.pop(float(level))
        for img, logits in results.values():
            assert_close(img, expected[0], "fade_edge", "G")
            assert_close(logits, expected[1], "fade_edge", "D")
    # In between neither level is alone.
    G.set_lod(0.5)
    D.set_lod(0.5)
    half, logits = G.synthesis(ws, "const", None), D(image_at(D, 4, seed=7), c)
    for lod in (0.0, 1 - EDGE):
        G.set_lod(lod)
        D.set_lod(lod)
        assert not torch.allclose(G.synthesis(ws, "const", None), half, rtol=1e-3)
        assert not torch.allclose(D(image_at(D, 4, seed=7), c), logits, rtol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
def test_who_gets_gradients(family: str) -> None:
    """Levels not grown yet get none; of the image layers only the present one, and the one below while it fades."""
    G, D = make_G(family, seeded(), c_dim=3), make_D(family, seeded(), c_dim=3)
    c = torch.tensor(MULTI_HOT)
    for lod, levels, rgb in ((2.0, [0], [0]), (1.5, [0, 1], [0, 1]), (1.0, [0, 1], [1]), (0.0, [0, 1, 2], [2])):
        for network in (G, D):
            network.set_lod(lod)
            network.zero_grad()
        D(
            G.synthesis(G.truncate(G.mapping(normal(4, 5, seed=1).float(), c), 1.0, None), "none", None), c
        ).sum().backward()
        names = level_names((4, 4), 3)
        for network in (G, D):
            for name, parameter in network.named_parameters():
                found = [level for level in range(3) if f"blocks.{names[level]}." in name]
                level = found[0] if found else 0
                expected = level in (rgb if "_rgb" in name else levels)
                if not name.endswith("noise_strength"):  # there was no noise
                    assert (parameter.grad is not None) == expected, (lod, name)


@pytest.mark.parametrize("family", FAMILIES)
def test_lod_is_an_argument(family: str) -> None:
    for make in (make_G, make_D):
        network = make(family, seeded(), lod=1)
        assert network.lod == 1.0
        assert isinstance(network.lod, float)
        network.set_lod(0.25)
        assert network.arguments["lod"] == network.lod == 0.25
        twin = type(network)(**network.arguments, rng=None)
        assert twin.arguments == network.arguments
        assert copy.deepcopy(network).lod == 0.25
        with pytest.raises(ValueError, match=r"lod=2.5 is not in \[0, 2\]"):
            network.set_lod(2.5)
        assert network.lod == 0.25


@pytest.mark.parametrize("family", FAMILIES)
def test_construction_is_a_function_of_the_generator(family: str) -> None:
    for make in (make_G, make_D):
        state = torch.random.get_rng_state()
        states: list[dict[str, Tensor]] = [make(family, seeded(seed), c_dim=3).state_dict() for seed in (5, 5, 6)]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        assert all(not torch.equal(states[0][name], states[2][name]) for name in states[0] if name.endswith("weight"))
        empty = make(family, c_dim=3).state_dict()
        assert all(not tensor.any() for name, tensor in empty.items() if name.endswith("weight"))
        assert torch.equal(state, torch.random.get_rng_state())


@pytest.mark.parametrize("family", FAMILIES)
def test_images_do_not_depend_on_their_batch(family: str) -> None:
    G = make_G(family, seeded(), c_dim=3, lod=0.5, base_grid=(3, 5))
    with torch.no_grad():
        for name, parameter in G.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(0.5)
    labels = torch.tensor([0, 1, 2, 0])
    images = [list(generate_images(G, 1, range(4), labels, 0.8, None, "random", size)) for size in (2, 4)]
    assert torch.cat(images[0]).shape == (4, 3, 12, 20)
    assert int((torch.cat(images[0]).int() - images[1][0].int()).abs().max()) <= 1


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_low_precision_is_near_and_gives_float32(family: str, precision: str) -> None:
    settings: dict[str, Any] = {"precision": precision, "low_precision_resolutions": 2, "conv_clamp": 256.0}
    for lod in (0.0, 0.5, 1.5):
        outputs = []
        seen: list[torch.dtype] = []
        for extra in ({}, settings):
            G, D = make_G(family, seeded(), lod=lod, **extra), make_D(family, seeded(1), lod=lod, **extra)
            for network in (G.synthesis, D):
                network.blocks["8x8"].register_forward_hook(lambda module, inputs, y: seen.append(y.dtype))  # noqa: B023
            img, logits = G.synthesis(ws_of(G, 4).float(), "const", None), D(image_at(D, 4, seed=7), torch.zeros(4, 0))
            assert img.dtype == logits.dtype == torch.float32
            (img.square().sum() + logits.sum()).backward()
            gradients = [p.grad for network in (G, D) for p in network.parameters() if p.grad is not None]
            assert all(bool(gradient.isfinite().all()) for gradient in gradients)
            outputs.append((img, logits))
        assert seen == [torch.float32] * 2 + [getattr(torch, precision)] * 2
        for high, low in zip(*outputs, strict=True):
            assert_close(low, high, f"network_{precision}", family)


@pytest.mark.parametrize("family", FAMILIES)
def test_float64_is_computed_in_float64_throughout(family: str) -> None:
    G, D = make_G(family, seeded(), c_dim=3, lod=0.5).double(), make_D(family, seeded(1), c_dim=3, lod=0.5).double()
    dtypes: set[torch.dtype] = set()

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        # Noise, the third input of a layer, is float32 always.
        dtypes.update(x.dtype for x in (*inputs[:2], output) if isinstance(x, Tensor))

    for network in (G, D):
        for module in network.modules():
            module.register_forward_hook(note)
    z, c = normal(4, 5, seed=1), torch.tensor(MULTI_HOT, dtype=torch.float64)
    D(G.synthesis(G.truncate(G.mapping(z, c), 0.7, 2), "random", seeded()), c)
    assert dtypes == {torch.float64}
    # What is drawn in float32 may come as it is.
    assert G.mapping(z.float(), c.float()).dtype == torch.float64


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_twins_for_path_lengths(family: str) -> None:
    low = make_G(family, seeded(), lod=0.5, precision="bfloat16", low_precision_resolutions=2).requires_grad_(False)
    twin, high = in_float32(low), make_G(family, seeded(), lod=0.5)
    assert twin.arguments == low.arguments | {"precision": "float32"}
    assert torch.equal(
        twin.synthesis(ws_of(low).float(), "const", None), high.synthesis(ws_of(low).float(), "const", None)
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_conv_clamp_limits_activations(family: str) -> None:
    G, D = make_G(family, seeded(), conv_clamp=0.05), make_D(family, seeded(1), conv_clamp=0.05)
    maxima: dict[str, float] = {}
    # Behind the clamp of other families there is a norm.
    layers = [(G, "synthesis.blocks.16x16.conv1")] if family == "stylegan2-growing" else []
    for network, name in [(G, "synthesis.blocks.16x16.to_rgb"), (D, "blocks.16x16.conv0"), *layers]:
        module = network.get_submodule(name)
        module.register_forward_hook(lambda m, i, o, name=name: maxima.update({name: float(o.detach().abs().max())}))
    D(G.synthesis(ws_of(G, 4).float(), "none", None) * 100, torch.zeros(4, 0))
    limit = pytest.approx(0.05)
    rgb = maxima.pop("synthesis.blocks.16x16.to_rgb")
    assert rgb < 0.0501 if layers else rgb == limit
    assert list(maxima.values()) == [limit] * (1 + len(layers))


TINY: dict[str, Any] = {"resolution": 8, "base_grid": (2, 3), "channel_base": 8, "channel_max": 2, "img_channels": 1}
FIRST_WEIGHTS = {
    "stylegan1": ["conv0_up.conv.weight", "conv1.epilogue.affine.weight"],
    "stylegan2-growing": ["conv0_up.weight", "conv1.affine.weight"],
    "pggan": ["conv0_up.weight", "conv1.bias"],
}


@pytest.mark.parametrize("lod", [0.0, 0.4])
@pytest.mark.parametrize("family", FAMILIES)
def test_second_derivatives_of_generators(family: str, lod: float) -> None:
    """As path lengths need them: in ws and in weights, against central differences."""
    G = stir(make_G(family, seeded(), lod=lod, **TINY), 1)
    names = [f"blocks.4x6.{name}" for name in FIRST_WEIGHTS[family]]
    weights = [G.synthesis.get_parameter(name).detach().clone().requires_grad_() for name in names]

    def run(ws: Tensor, *values: Tensor) -> Tensor:
        changed = dict(zip(names, values, strict=True))
        img: Tensor = torch.func.functional_call(G.synthesis, changed, (ws, "const", None))
        return img

    ws = normal(1, G.num_ws, G.w_dim, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(run, (ws, *weights), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (ws, *weights), fast_mode=True)


@pytest.mark.parametrize("lod", [0.0, 0.4])
@pytest.mark.parametrize("family", FAMILIES)
def test_second_derivatives_of_discriminators(family: str, lod: float) -> None:
    """As R1 and gradient penalties need them: in images and in weights, against central differences."""
    D = stir(make_D(family, seeded(), lod=lod, mbstd_group_size=2, **TINY), 1)
    names = ["blocks.4x6.from_rgb.weight", "blocks.4x6.conv1_down.weight", "head.conv.weight"]
    weights = [D.get_parameter(name).detach().clone().requires_grad_() for name in names]

    def run(img: Tensor, *values: Tensor) -> Tensor:
        changed = dict(zip(names, values, strict=True))
        logits: Tensor = torch.func.functional_call(D, changed, (img, img.new_zeros(2, 0)))
        return logits

    img = image_at(D, 2, seed=3).requires_grad_()
    assert torch.autograd.gradcheck(run, (img, *weights), fast_mode=True)
    assert torch.autograd.gradgradcheck(run, (img, *weights), fast_mode=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_of_discriminators_go_down(family: str) -> None:
    """The first of D.blocks are near the image: those that train.D_freeze_blocks freezes."""
    assert list(make_D(family).blocks) == ["16x16", "8x8"]
