"""The families of networks, by the names that snapshots bear."""

from torch import Tensor

from ganops.networks.growing import split_lod, upscale
from ganops.networks.pggan_discriminator import PGGANDiscriminator
from ganops.networks.pggan_generator import PGGANGenerator
from ganops.networks.stylegan1_discriminator import StyleGAN1Discriminator
from ganops.networks.stylegan1_generator import StyleGAN1Generator
from ganops.networks.stylegan2_discriminator import Discriminator
from ganops.networks.stylegan2_generator import Generator
from ganops.networks.stylegan2_growing_generator import GrowingGenerator

AnyGenerator = Generator | GrowingGenerator | StyleGAN1Generator | PGGANGenerator
AnyDiscriminator = Discriminator | StyleGAN1Discriminator | PGGANDiscriminator

GENERATORS: dict[str, type[AnyGenerator]] = {
    "stylegan2": Generator,
    "stylegan2-growing": GrowingGenerator,
    "stylegan1": StyleGAN1Generator,
    "pggan": PGGANGenerator,
}


def family_of(network: AnyGenerator) -> str:
    """The name of a generator's family."""
    return next(name for name, kind in GENERATORS.items() if type(network) is kind)


GROWING = (GrowingGenerator, StyleGAN1Generator, StyleGAN1Discriminator, PGGANGenerator, PGGANDiscriminator)
"""Networks with a `lod`."""


def active_ws(G: AnyGenerator) -> int:
    """How many of `num_ws`, from the coarse end, matter for the images that G makes at the moment."""
    return G.num_ws if isinstance(G, Generator) else G.active_ws


def lod_of(network: AnyGenerator | AnyDiscriminator) -> float:
    """How far a network has yet to grow; 0 for those that do not."""
    return network.lod if isinstance(network, GROWING) else 0.0


def levels_missing(network: AnyGenerator | AnyDiscriminator) -> int:
    """How many levels a network has yet to grow before its images have their full size; 0 for those that do not."""
    return split_lod(lod_of(network))[0]


def full_size(G: AnyGenerator, img: Tensor) -> Tensor:
    """[N, C, H, W] of the present level -> [N, C, *G.size], each pixel a square of equal ones."""
    return upscale(img, 2 ** levels_missing(G))
