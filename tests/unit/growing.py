"""Small growing networks for tests, and what tests of several families need."""

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from ganops.networks.pggan_discriminator import PGGANDiscriminator
from ganops.networks.pggan_generator import PGGANGenerator
from ganops.networks.stylegan1_discriminator import StyleGAN1Discriminator
from ganops.networks.stylegan1_generator import StyleGAN1Generator
from ganops.networks.stylegan2_growing_generator import GrowingGenerator

GrowingG = StyleGAN1Generator | GrowingGenerator | PGGANGenerator
GrowingD = StyleGAN1Discriminator | PGGANDiscriminator

Network = TypeVar("Network", bound=nn.Module)

FAMILIES = ["stylegan1", "stylegan2-growing", "pggan"]

SIZES: dict[str, Any] = {
    "c_dim": 0,
    "resolution": 16,
    "base_grid": (4, 4),
    "img_channels": 3,
    "channel_base": 64,
    "channel_max": 8,
    "precision": "float32",
    "low_precision_resolutions": 0,
    "conv_clamp": None,
    "lod": 0.0,
}
MAPPING: dict[str, Any] = {"w_dim": 6, "mapping_layers": 3, "mapping_lr_multiplier": 0.01}
STD: dict[str, Any] = {"mbstd_group_size": 4, "mbstd_num_channels": 1}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make_G(family: str, rng: torch.Generator | None = None, **changes: Any) -> GrowingG:
    """A generator of z_dim 5; zero weights without `rng`."""
    sizes = SIZES | changes
    if family == "pggan":
        return PGGANGenerator(z_dim=5, **sizes, rng=rng)
    if family == "stylegan1":
        return StyleGAN1Generator(z_dim=5, **MAPPING, **sizes, rng=rng)
    return GrowingGenerator(z_dim=5, **MAPPING, **sizes, rng=rng)


def make_D(family: str, rng: torch.Generator | None = None, **changes: Any) -> GrowingD:
    """The family's discriminator; zero weights without `rng`."""
    sizes = SIZES | STD | changes
    if family == "pggan":
        return PGGANDiscriminator(**sizes, rng=rng)
    taps = (1, 2, 1) if family == "stylegan1" else (1, 3, 3, 1)
    return StyleGAN1Discriminator(**sizes, resample_filter=taps, rng=rng)


def stir(network: Network, seed: int) -> Network:
    """In float64, all weights moved: also those that start at 0 or 1, on which conventions depend."""
    rng = seeded(seed)
    network.double()
    with torch.no_grad():
        for parameter in network.parameters():
            size = float(parameter.abs().mean()) or 1.0
            parameter += 0.5 * size * torch.randn(parameter.shape, generator=rng, dtype=torch.float64)
    return network


def arrays(network: nn.Module) -> dict[str, np.ndarray]:
    return {name: tensor.detach().numpy() for name, tensor in network.state_dict().items()}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def image_at(D: GrowingD, count: int, seed: int) -> Tensor:
    """Random images of the size that D takes at its lod."""
    nominal = D.resolution >> int(D.lod)
    height, width = (side * nominal // 4 for side in D.base_grid)
    return normal(count, D.img_channels, height, width, seed=seed)


def level_names(base_grid: tuple[int, int], levels: int) -> list[str]:
    """From the lowest level up."""
    return [f"{base_grid[0] << level}x{base_grid[1] << level}" for level in range(levels)]
