"""The networks that section `train` describes, with their initial weights."""

import torch

from ganops.config_train import TrainParams
from ganops.distributed import make_generator
from ganops.networks.early_layers import BLUR_TAPS
from ganops.networks.families import AnyDiscriminator, AnyGenerator
from ganops.networks.layers import RESAMPLE_TAPS
from ganops.networks.pggan_discriminator import PGGANDiscriminator
from ganops.networks.pggan_generator import PGGANGenerator
from ganops.networks.stylegan1_discriminator import StyleGAN1Discriminator
from ganops.networks.stylegan1_generator import StyleGAN1Generator
from ganops.networks.stylegan2_discriminator import Discriminator
from ganops.networks.stylegan2_generator import Generator
from ganops.networks.stylegan2_growing_generator import GrowingGenerator
from ganops.shape import Resolution, base_grid, height_width, nominal_resolution
from ganops.training.schedule import lod_at


def build_networks(
    params: TrainParams, resolution: Resolution, channels: int, num_classes: int
) -> tuple[AnyGenerator, AnyDiscriminator]:
    """G and D of `params` with their initial weights, on the CPU; a pure function of its arguments.

    Growing networks are as far grown as training begins.

    Args:
        params: section `train`.
        resolution: of the images, px; a number, or height and width.
        channels: of the images.
        num_classes: width of labels.
    Raises:
        ValueError: no networks make images of that size.
    """
    c_dim, size = num_classes if params.conditional else 0, height_width(resolution)
    shape = nominal_resolution(*size), base_grid(*size), channels
    return build_generator(params, *shape, c_dim), build_discriminator(params, *shape, c_dim)


def build_generator(
    params: TrainParams, resolution: int, grid: tuple[int, int], channels: int, c_dim: int
) -> AnyGenerator:
    """G of train.family; see `build_networks`."""
    rng = make_generator(torch.device("cpu"), params.seed, "init", "G")
    if params.family == "stylegan2":
        return Generator(
            z_dim=params.z_dim,
            c_dim=c_dim,
            w_dim=params.w_dim,
            resolution=resolution,
            base_grid=grid,
            img_channels=channels,
            mapping_layers=params.mapping_layers,
            mapping_lr_multiplier=params.mapping_lr_multiplier,
            channel_base=params.channel_base,
            channel_max=params.channel_max,
            architecture=params.G_architecture,
            precision=params.precision,
            low_precision_resolutions=params.low_precision_resolutions,
            conv_clamp=params.conv_clamp,
            rng=rng,
        )
    if params.family == "pggan":
        return PGGANGenerator(
            z_dim=params.z_dim,
            c_dim=c_dim,
            resolution=resolution,
            base_grid=grid,
            img_channels=channels,
            channel_base=params.channel_base,
            channel_max=params.channel_max,
            precision=params.precision,
            low_precision_resolutions=params.low_precision_resolutions,
            conv_clamp=params.conv_clamp,
            lod=lod_at(params, resolution, 0),
            rng=rng,
        )
    kind = StyleGAN1Generator if params.family == "stylegan1" else GrowingGenerator
    return kind(
        z_dim=params.z_dim,
        c_dim=c_dim,
        w_dim=params.w_dim,
        resolution=resolution,
        base_grid=grid,
        img_channels=channels,
        mapping_layers=params.mapping_layers,
        mapping_lr_multiplier=params.mapping_lr_multiplier,
        channel_base=params.channel_base,
        channel_max=params.channel_max,
        precision=params.precision,
        low_precision_resolutions=params.low_precision_resolutions,
        conv_clamp=params.conv_clamp,
        lod=lod_at(params, resolution, 0),
        rng=rng,
    )


def build_discriminator(
    params: TrainParams, resolution: int, grid: tuple[int, int], channels: int, c_dim: int
) -> AnyDiscriminator:
    """D of train.family; see `build_networks`."""
    rng = make_generator(torch.device("cpu"), params.seed, "init", "D")
    if params.family == "stylegan2":
        return Discriminator(
            c_dim=c_dim,
            resolution=resolution,
            base_grid=grid,
            img_channels=channels,
            channel_base=params.channel_base,
            channel_max=params.channel_max,
            architecture=params.D_architecture,
            mbstd_group_size=params.mbstd_group_size,
            mbstd_num_channels=params.mbstd_num_channels,
            mapping_layers=params.D_mapping_layers,
            mapping_lr_multiplier=params.mapping_lr_multiplier,
            precision=params.precision,
            low_precision_resolutions=params.low_precision_resolutions,
            conv_clamp=params.conv_clamp,
            rng=rng,
        )
    if params.family == "pggan":
        return PGGANDiscriminator(
            c_dim=c_dim,
            resolution=resolution,
            base_grid=grid,
            img_channels=channels,
            channel_base=params.channel_base,
            channel_max=params.channel_max,
            mbstd_group_size=params.mbstd_group_size,
            mbstd_num_channels=params.mbstd_num_channels,
            precision=params.precision,
            low_precision_resolutions=params.low_precision_resolutions,
            conv_clamp=params.conv_clamp,
            lod=lod_at(params, resolution, 0),
            rng=rng,
        )
    return StyleGAN1Discriminator(
        c_dim=c_dim,
        resolution=resolution,
        base_grid=grid,
        img_channels=channels,
        channel_base=params.channel_base,
        channel_max=params.channel_max,
        resample_filter=BLUR_TAPS if params.family == "stylegan1" else RESAMPLE_TAPS,
        mbstd_group_size=params.mbstd_group_size,
        mbstd_num_channels=params.mbstd_num_channels,
        precision=params.precision,
        low_precision_resolutions=params.low_precision_resolutions,
        conv_clamp=params.conv_clamp,
        lod=lod_at(params, resolution, 0),
        rng=rng,
    )
