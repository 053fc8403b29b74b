"""Networks against golden numbers, through the name map; sizes against the published tables."""

import json

import pytest
import torch

from ganops.networks.layers import NoiseMode
from ganops.networks.stylegan2_discriminator import Discriminator
from ganops.networks.stylegan2_generator import Generator
from ganops.networks.table import layer_table
from ganops.training.losses import r1_penalty
from tests.parity.names import (
    GOLDEN,
    discriminator_name,
    golden_discriminator,
    golden_generator,
    load_golden,
)
from tests.tolerances import assert_close

PRECISIONS = [("f64", torch.float64, "golden_float64"), ("f32", torch.float32, "golden_float32")]
CONFIG_F, CONFIG_E = 32768, 16384

# Parameters of G and D (Karras et al. 2020, the released networks).
PUBLISHED_PARAMETERS = {
    (CONFIG_F, 128): (29_328_669, 28_389_121),
    (CONFIG_F, 256): (30_034_338, 28_864_129),
    (CONFIG_F, 512): (30_276_583, 28_982_849),
    (CONFIG_F, 1024): (30_370_060, 29_012_513),
    (CONFIG_E, 128): (24_525_213, 23_882_369),
    (CONFIG_E, 256): (24_767_458, 24_001_089),
    (CONFIG_E, 512): (24_860_935, 24_030_753),
    (CONFIG_E, 1024): (24_900_764, 24_038_161),
}


@pytest.mark.parametrize(("suffix", "dtype", "tolerance"), PRECISIONS)
def test_generator(suffix: str, dtype: torch.dtype, tolerance: str) -> None:
    G = golden_generator(dtype)
    _, arrays = load_golden("generator_32")
    z, c = (torch.from_numpy(arrays[name]).to(dtype) for name in "zc")

    def check(name: str, value: torch.Tensor) -> None:
        assert value.dtype == dtype, name
        assert_close(value, arrays[f"{name}_{suffix}"], tolerance, name)

    with torch.no_grad():
        w = G.mapping(z, c)
        ws = G.truncate(w, 1.0, None)
        check("w", ws)
        check("w_psi07", G.truncate(w, 0.7, None))
        check("w_psi07_cut3", G.truncate(w, 0.7, 3))
        modes: tuple[tuple[str, NoiseMode], ...] = (("img_const", "const"), ("img_none", "none"))
        for name, mode in modes:
            check(name, G.synthesis(ws, mode, None))
        check("img_const_psi07", G(z, c, 0.7, None, "const", None))
        rolled = torch.stack([ws[:, i].roll(i, dims=0) for i in range(G.num_ws)], dim=1)
        check("img_wplus_const", G.synthesis(rolled, "const", None))


@pytest.mark.parametrize(("suffix", "dtype", "tolerance"), PRECISIONS)
def test_discriminator(suffix: str, dtype: torch.dtype, tolerance: str) -> None:
    D = golden_discriminator(dtype)
    _, arrays = load_golden("discriminator_32")
    img, c = (torch.from_numpy(arrays[name]).to(dtype) for name in ("img", "c"))
    img.requires_grad_()
    parameters = dict(D.named_parameters())
    ours = [parameters[discriminator_name(name)] for name in arrays["grad_param_names"]]
    assert len(ours) == len(parameters)

    logits = D(img, c)
    assert_close(logits, arrays[f"logits_{suffix}"], tolerance, "logits")
    (grad_img,) = torch.autograd.grad(logits.sum(), [img], retain_graph=True)
    assert_close(grad_img, arrays[f"grad_img_{suffix}"], tolerance, "grad_img")
    penalty = r1_penalty(img, logits)
    assert_close(penalty, arrays[f"r1_per_sample_{suffix}"], tolerance, "r1_per_sample")
    assert_close(penalty.mean(), arrays[f"r1_mean_{suffix}"], tolerance, "r1_mean")
    gradients = torch.autograd.grad(penalty.mean(), ours, retain_graph=True, allow_unused=True)
    by_name = dict(zip(arrays["grad_param_names"], gradients, strict=True))
    assert_close(by_name["b32.fromrgb.weight"], arrays[f"r1grad_first_{suffix}"], tolerance, "r1grad_first")
    assert_close(by_name["b32.conv0.weight"], arrays[f"r1grad_conv0_{suffix}"], tolerance, "r1grad_conv0")
    norms = [0.0 if gradient is None else float(gradient.norm()) for gradient in gradients]
    assert_close(norms, arrays[f"r1grad_norms_{suffix}"], tolerance, "r1grad_norms")
    loss = torch.nn.functional.softplus(logits).mean()
    norms = [float(gradient.norm()) for gradient in torch.autograd.grad(loss, ours)]
    assert_close(norms, arrays[f"lossgrad_norms_{suffix}"], tolerance, "lossgrad_norms")


@pytest.mark.parametrize(("channel_base", "resolution"), list(PUBLISHED_PARAMETERS))
def test_published_parameter_counts(channel_base: int, resolution: int) -> None:
    networks = published_networks(channel_base, resolution)
    counts = tuple(sum(parameter.numel() for parameter in network.parameters()) for network in networks)
    assert counts == PUBLISHED_PARAMETERS[channel_base, resolution]


def test_layer_table_is_the_published_one() -> None:
    published = json.loads((GOLDEN / "layers_128.json").read_text())
    for name, network in zip("GD", published_networks(CONFIG_F, 128), strict=True):
        rows = [[row.name, row.num_parameters] for row in layer_table(network)]
        assert rows == published[name]
        assert sum(count for _, count in rows) == published[f"{name}_total"]


def published_networks(channel_base: int, resolution: int) -> tuple[Generator, Discriminator]:
    with torch.device("meta"):
        G = Generator(
            z_dim=512,
            c_dim=0,
            w_dim=512,
            resolution=resolution,
            base_grid=(4, 4),
            img_channels=3,
            mapping_layers=8,
            mapping_lr_multiplier=0.01,
            channel_base=channel_base,
            channel_max=512,
            architecture="skip",
            precision="float32",
            low_precision_resolutions=0,
            conv_clamp=None,
            rng=None,
        )
        D = Discriminator(
            c_dim=0,
            resolution=resolution,
            base_grid=(4, 4),
            img_channels=3,
            mapping_layers=8,
            mapping_lr_multiplier=0.01,
            channel_base=channel_base,
            channel_max=512,
            architecture="resnet",
            mbstd_group_size=4,
            mbstd_num_channels=1,
            precision="float32",
            low_precision_resolutions=0,
            conv_clamp=None,
            rng=None,
        )
    return G, D
