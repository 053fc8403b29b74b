"""Networks: shapes, conditions, architectures, precision, noise, truncation, minibatch std, construction."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ganops.networks.layers import Architecture, MinibatchStd, Precision, block_dtype
from ganops.networks.mapping import MappingNetwork
from ganops.networks.stylegan2_discriminator import Discriminator
from ganops.networks.stylegan2_generator import Generator
from ganops.networks.table import format_table, layer_table
from tests.tolerances import assert_close

ARCHITECTURES: list[Architecture] = ["skip", "resnet", "orig"]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_generator(
    rng: torch.Generator | None,
    *,
    c_dim: int = 0,
    architecture: Architecture = "skip",
    precision: Precision = "float32",
    low_precision_resolutions: int = 0,
    conv_clamp: float | None = None,
) -> Generator:
    return Generator(
        z_dim=8,
        c_dim=c_dim,
        w_dim=12,
        resolution=16,
        base_grid=(4, 4),
        img_channels=3,
        mapping_layers=2,
        mapping_lr_multiplier=0.01,
        channel_base=128,
        channel_max=16,
        architecture=architecture,
        precision=precision,
        low_precision_resolutions=low_precision_resolutions,
        conv_clamp=conv_clamp,
        rng=rng,
    )


def make_discriminator(
    rng: torch.Generator | None,
    *,
    c_dim: int = 0,
    architecture: Architecture = "resnet",
    mbstd_num_channels: int = 1,
    precision: Precision = "float32",
    low_precision_resolutions: int = 0,
    conv_clamp: float | None = None,
) -> Discriminator:
    return Discriminator(
        c_dim=c_dim,
        resolution=16,
        base_grid=(4, 4),
        img_channels=3,
        mapping_layers=2,
        mapping_lr_multiplier=0.01,
        channel_base=128,
        channel_max=16,
        architecture=architecture,
        mbstd_group_size=4,
        mbstd_num_channels=mbstd_num_channels,
        precision=precision,
        low_precision_resolutions=low_precision_resolutions,
        conv_clamp=conv_clamp,
        rng=rng,
    )


def latents(G: Generator, n: int = 4) -> tuple[Tensor, Tensor]:
    z = torch.randn(n, G.z_dim, generator=seeded(1))
    return z, torch.eye(G.c_dim)[torch.arange(n) % G.c_dim] if G.c_dim else torch.zeros(n, 0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("c_dim", [0, 3])
def test_generator_shapes_and_gradients(architecture: Architecture, c_dim: int) -> None:
    G = make_generator(seeded(), c_dim=c_dim, architecture=architecture)
    z, c = latents(G)
    w = G.mapping(z, c)
    assert w.shape == (4, 12)
    assert G.num_ws == 6
    img = G(z, c, 1.0, None, "random", seeded(2))
    assert img.shape == (4, 3, 16, 16)
    assert img.dtype == torch.float32
    img.square().sum().backward()
    unused = [name for name, parameter in G.named_parameters() if parameter.grad is None]
    assert unused == []


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("c_dim", [0, 3])
@pytest.mark.parametrize("mbstd_num_channels", [0, 1, 2])
def test_discriminator_shapes_and_gradients(architecture: Architecture, c_dim: int, mbstd_num_channels: int) -> None:
    D = make_discriminator(seeded(), c_dim=c_dim, architecture=architecture, mbstd_num_channels=mbstd_num_channels)
    img = torch.randn(8, 3, 16, 16, generator=seeded(1))
    logits = D(img, torch.eye(3)[torch.arange(8) % 3] if c_dim else torch.zeros(8, 0))
    assert logits.shape == (8, 1)
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert [name for name, parameter in D.named_parameters() if parameter.grad is None] == []


def test_labels_change_images_and_logits() -> None:
    G, D = make_generator(seeded(), c_dim=3), make_discriminator(seeded(1), c_dim=3)
    z, _ = latents(G)
    first, second = (torch.eye(3)[[label] * 4] for label in (0, 2))
    images = [G(z, c, 1.0, None, "none", None) for c in (first, second)]
    assert not torch.allclose(*images)
    assert not torch.allclose(D(images[0], first), D(images[0], second))


def test_projection_is_the_scaled_product_of_features_and_label() -> None:
    D = make_discriminator(seeded(), c_dim=3).double()
    img, c = torch.randn(4, 3, 16, 16, generator=seeded(1)).double(), torch.eye(3).double()[[0, 1, 2, 0]]
    features: list[Tensor] = []
    D.output.register_forward_hook(lambda module, inputs, output: features.append(output))
    logits = D(img, c)
    assert D.mapping is not None
    mapped = D.mapping(img.new_zeros(4, 0), c)
    expected = (features[0].detach().numpy() * mapped.detach().numpy()).sum(1) / np.sqrt(16)
    assert_close(logits[:, 0], expected, "closed_form_float64")


def test_mapping_is_scale_free_in_z_and_normalises_the_label_apart() -> None:
    mapping = MappingNetwork(z_dim=8, c_dim=3, w_dim=12, num_layers=2, lr_multiplier=0.01, rng=seeded()).double()
    z, c = torch.randn(4, 8, generator=seeded(1)).double(), torch.eye(3).double()[[0, 1, 2, 0]]
    # 1e-8 under the root is all that tells z from 10 z.
    assert_close(mapping(10 * z, c), mapping(z, c), "normalized_scale")
    assert_close(mapping(z, 10 * c), mapping(z, c), "normalized_scale")
    assert not torch.allclose(mapping(z, c.roll(1, 0)), mapping(z, c))


def test_initial_outputs_have_unit_size() -> None:
    """Equalised learning rate: features keep their second moment through the layers at initialisation."""
    G, D = make_generator(seeded()), make_discriminator(seeded(1))
    z = torch.randn(64, 8, generator=seeded(2))
    w = G.mapping(z, torch.zeros(64, 0)).detach()
    assert 0.5 < float(w.square().mean()) < 2
    assert all(
        float(parameter.detach().std()) > 50 for name, parameter in G.mapping.named_parameters() if "weight" in name
    )
    logits = D(torch.randn(64, 3, 16, 16, generator=seeded(3)), torch.zeros(64, 0)).detach()
    assert float(logits.abs().max()) < 20


def test_construction_is_a_function_of_the_generator() -> None:
    for make in (make_generator, make_discriminator):
        states: list[dict[str, Tensor]] = [make(seeded(seed)).state_dict() for seed in (5, 5, 6)]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
        weights = [name for name in states[0] if name.endswith(("weight", "const"))]
        assert all(not torch.equal(states[0][name], states[2][name]) for name in weights)
        state = torch.random.get_rng_state()
        make(seeded())
        assert torch.equal(state, torch.random.get_rng_state())
        assert all(not tensor.any() for name, tensor in make(None).state_dict().items() if name.endswith("weight"))


def test_initial_values() -> None:
    G = make_generator(seeded())
    for name, parameter in G.named_parameters():
        if name.endswith("affine.bias"):
            assert bool((parameter == 1).all()), name
        elif name.endswith(("bias", "noise_strength")):
            assert not parameter.any(), name
    assert not G.w_avg.any()


def test_noise_modes() -> None:
    G = make_generator(seeded())
    with torch.no_grad():
        for name, parameter in G.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(0.5)
    z, c = latents(G)
    ws = G.truncate(G.mapping(z, c), 1.0, None)
    first, second, third = (G.synthesis(ws, "random", seeded(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert torch.equal(G.synthesis(ws, "const", None), G.synthesis(ws, "const", None))
    assert not torch.equal(G.synthesis(ws, "const", None), G.synthesis(ws, "none", None))
    # One number per pixel and image, layer by layer, in float32 also for a float64 network.
    rng = seeded(1)
    G.synthesis(ws, "random", rng)
    other = seeded(1)
    for size in (4, 8, 8, 16, 16):
        torch.randn([4, 1, size, size], generator=other)
    assert torch.equal(rng.get_state(), other.get_state())
    double = G.double()
    assert_close(double.synthesis(ws.double(), "random", seeded(1)), first, "golden_float32")


def test_truncation() -> None:
    G = make_generator(seeded())
    G.w_avg.copy_(torch.randn(12, generator=seeded(3)))
    w = G.mapping(*latents(G))
    assert G.truncate(w, 1.0, None).shape == (4, 6, 12)
    assert torch.equal(G.truncate(w, 1.0, 2), w[:, None].expand(-1, 6, -1))
    assert_close(G.truncate(w, 0.0, None), G.w_avg.expand(4, 6, 12), "twin_float32")
    half = G.truncate(w, 0.5, 2)
    assert_close(half[:, :2], ((w + G.w_avg) / 2)[:, None].expand(-1, 2, -1), "twin_float32")
    assert torch.equal(half[:, 2:], w[:, None].expand(-1, 4, -1))


def test_synthesis_takes_one_w_per_layer() -> None:
    """A change in one w shows, and the image layer of a block shares its w with the next block's first layer."""
    G = make_generator(seeded())
    ws = G.truncate(G.mapping(*latents(G)), 1.0, None).contiguous()
    before = G.synthesis(ws, "none", None)
    for layer in range(G.num_ws):
        changed = ws.clone()
        changed[:, layer] += 1
        assert not torch.allclose(G.synthesis(changed, "none", None), before), layer


@pytest.mark.parametrize(("N", "group", "channels"), [(8, 4, 1), (6, 3, 2), (2, 4, 1), (1, 4, 2), (4, 1, 1)])
def test_minibatch_std_is_a_loop_of_numpy(N: int, group: int, channels: int) -> None:
    x = torch.randn(N, 4, 3, 5, generator=seeded()).double()
    y = MinibatchStd(group_size=group, num_channels=channels)(x).numpy()
    assert y.shape == (N, 4 + channels, 3, 5)
    assert np.array_equal(y[:, :4], x.numpy())
    g = min(group, N)
    for n in range(N):
        members = [m for m in range(N) if m % (N // g) == n % (N // g)]
        assert len(members) == g
        for f in range(channels):
            maps = x.numpy()[members, f * 4 // channels : (f + 1) * 4 // channels]
            expected = np.sqrt(maps.var(axis=0) + 1e-8).mean()
            assert_close(y[n, 4 + f], np.full([3, 5], expected), "loop_float64")


def test_minibatch_std_needs_whole_groups() -> None:
    with pytest.raises(ValueError, match="batch of 6 images cannot be split into groups of 4"):
        MinibatchStd(group_size=4, num_channels=1)(torch.zeros(6, 4, 4, 4))


def test_block_dtype() -> None:
    def low(low_precision_resolutions: int) -> list[int]:
        sizes = [4, 8, 16, 32, 64]
        return [r for r in sizes if block_dtype("bfloat16", r, 64, low_precision_resolutions) is torch.bfloat16]

    assert low(0) == []
    assert low(1) == [64]
    assert low(3) == [16, 32, 64]
    assert low(9) == [8, 16, 32, 64]
    assert block_dtype("float32", 64, 64, 4) is None


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_is_near_and_gives_float32(precision: Precision) -> None:
    settings: dict[str, Any] = {"precision": precision, "low_precision_resolutions": 2, "conv_clamp": 256.0}
    for architecture in ARCHITECTURES:
        networks = [
            (make_generator(seeded(), architecture=architecture, **extra), make_discriminator(seeded(1), **extra))
            for extra in ({}, settings)
        ]
        seen: list[torch.dtype] = []
        block = networks[1][0].synthesis.blocks["16x16"]
        block.register_forward_hook(lambda module, inputs, output: seen.append(output[0].dtype))  # noqa: B023
        z, c = latents(networks[0][0])
        outputs = []
        for G, D in networks:
            img = G(z, c, 1.0, None, "const", None)
            logits = D(img, c)
            assert img.dtype == logits.dtype == torch.float32
            logits.sum().backward()
            outputs.append((img, logits, G.synthesis.blocks["4x4"].const.grad))
        assert seen == [getattr(torch, precision)]
        for high, low in zip(*outputs, strict=True):
            assert_close(low, high, f"network_{precision}", architecture)


def test_conv_clamp_limits_activations() -> None:
    G, D = make_generator(seeded(), conv_clamp=0.1), make_discriminator(seeded(1), conv_clamp=0.1)
    maxima: dict[str, float] = {}
    layers = {"synthesis.blocks.16x16.conv1": G, "blocks.16x16.conv0": D}
    for name, network in layers.items():
        module = network.get_submodule(name)
        module.register_forward_hook(lambda m, i, o, name=name: maxima.update({name: float(o.detach().abs().max())}))
    z, c = latents(G)
    D(G(z, c, 1.0, None, "none", None), c)
    assert maxima == dict.fromkeys(layers, pytest.approx(0.1))


def test_float64_is_computed_in_float64_throughout() -> None:
    G, D = make_generator(seeded(), c_dim=3).double(), make_discriminator(seeded(1), c_dim=3).double()
    dtypes: set[torch.dtype] = set()

    def note(module: Any, inputs: Any, output: Any) -> None:
        # Noise, the third input of a layer, is float32 always.
        dtypes.update(x.dtype for x in (*inputs[:2], output) if isinstance(x, Tensor))

    for network in (G, D):
        for module in network.modules():
            module.register_forward_hook(note)
    z, c = latents(G)
    D(G(z.double(), c.double(), 0.7, 2, "random", seeded()), c.double())
    assert dtypes == {torch.float64}


def test_image_gradients_of_the_discriminator_are_second_order() -> None:
    D = make_discriminator(seeded()).double()
    img = torch.randn(4, 3, 16, 16, generator=seeded(1)).double().requires_grad_()
    (gradient,) = torch.autograd.grad(D(img, img.new_zeros(4, 0)).sum(), [img], create_graph=True)
    gradient.square().sum().backward()
    weight = dict(D.named_parameters())["blocks.16x16.conv0.weight"]
    step, index = 1e-6, (2, 1, 0, 2)
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[index] += sign * step
        (moved,) = torch.autograd.grad(D(img, img.new_zeros(4, 0)).sum(), [img])
        values.append(float(moved.square().sum()))
        with torch.no_grad():
            weight[index] -= sign * step
    assert_close((values[0] - values[1]) / (2 * step), weight.grad[index], "central_difference")


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("c_dim", [0, 3])
def test_layer_table_adds_up(architecture: Architecture, c_dim: int) -> None:
    for make in (make_generator, make_discriminator):
        network = make(seeded(), c_dim=c_dim, architecture=architecture)
        rows = layer_table(network)
        total = sum(parameter.numel() for parameter in network.parameters())
        assert sum(row.num_parameters for row in rows) == total
        assert len({row.name for row in rows}) == len(rows)
        text = format_table(rows)
        assert text.splitlines()[-1].split() == ["total", f"{total:,}"]
        assert len(text.splitlines()) == len(rows) + 2
