"""The discriminator of PGGAN, with the classes of AC-GAN."""

import torch
from torch import Tensor, nn

from ganops.networks.early_layers import LRELU_GAIN, EarlyConv, EarlyDense
from ganops.networks.growing import Grid, grid_name, level_channels, level_resolutions
from ganops.networks.growing_discriminator import (
    DiscriminatorByLevels,
    GrowingDiscriminatorBlock,
    GrowingDiscriminatorHead,
)
from ganops.networks.layers import MinibatchStd, Precision, block_dtype
from ganops.shape import size_at


class PGGANDiscriminator(DiscriminatorByLevels):
    """The discriminator (critic) of PGGAN, growing. With labels it also classifies images.

    Layers of levels above the present one are not run, and get no gradients; nor do image layers of levels below it, but
    for the next one while it fades.

    Args:
        c_dim: number of classes, 0 = no labels.
        resolution: nominal, of the fully grown network; a power of two from 4 up.
        base_grid: height and width of the lowest level, (4, 4) for square images; `size` is resolution / 4 times as large.
        img_channels: of the images.
        channel_base: nominal resolution r has min(channel_base / r, channel_max) channels; 16384 and 512 as published.
        channel_max: see `channel_base`.
        mbstd_group_size: images per group of minibatch std; 4 as published (16 in the first release's presets).
        mbstd_num_channels: feature maps that it appends, 0 = none.
        precision: of the highest resolutions; the lowest level and the scores are in the dtype of the weights.
        low_precision_resolutions: how many resolutions have this precision.
        conv_clamp: limit of the activations, 256 with float16; None = no limit.
        lod: how far it has grown, see `ganops.networks.growing`; 0 = fully.
        rng: on CPU; the initial weights are a function of it and of the other arguments. None leaves weights at zero.
    Source: Karras et al. 2018, table 2; classes: Odena et al. 2017 (AC-GAN).
    """

    def __init__(
        self,
        *,
        c_dim: int,
        resolution: int,
        base_grid: Grid,
        img_channels: int,
        channel_base: int,
        channel_max: int,
        mbstd_group_size: int,
        mbstd_num_channels: int,
        precision: Precision,
        low_precision_resolutions: int,
        conv_clamp: float | None,
        lod: float,
        rng: torch.Generator | None,
    ) -> None:
        height, width = base_grid
        arguments = {
            "c_dim": c_dim,
            "resolution": resolution,
            "base_grid": (height, width),
            "img_channels": img_channels,
            "channel_base": channel_base,
            "channel_max": channel_max,
            "mbstd_group_size": mbstd_group_size,
            "mbstd_num_channels": mbstd_num_channels,
            "precision": precision,
            "low_precision_resolutions": low_precision_resolutions,
            "conv_clamp": conv_clamp,
        }
        resolutions = level_resolutions(resolution)
        widths = {r: level_channels(r, channel_base, channel_max) for r in resolutions}
        blocks = nn.ModuleDict()
        for r in reversed(resolutions[1:]):
            blocks[grid_name(size_at(r, (height, width)))] = GrowingDiscriminatorBlock(
                from_rgb=_conv(img_channels, widths[r], 1, 1, conv_clamp, rng),
                conv0=_conv(widths[r], widths[r], 3, 1, conv_clamp, rng),
                conv1_down=_conv(widths[r], widths[r // 2], 3, 2, conv_clamp, rng),
                dtype=block_dtype(precision, r, resolution, low_precision_resolutions),
            )
        channels = widths[resolutions[0]]
        head = GrowingDiscriminatorHead(
            from_rgb=_conv(img_channels, channels, 1, 1, conv_clamp, rng),
            minibatch_std=MinibatchStd(group_size=mbstd_group_size, num_channels=mbstd_num_channels),
            conv=_conv(channels + mbstd_num_channels, channels, 3, 1, conv_clamp, rng),
            dense0=EarlyDense(
                in_features=channels * height * width,
                out_features=channels,
                activation="lrelu",
                gain=LRELU_GAIN,
                lr_multiplier=1.0,
                rng=rng,
            ),
        )
        output = EarlyDense(
            in_features=channels, out_features=1 + c_dim, activation="linear", gain=1.0, lr_multiplier=1.0, rng=rng
        )
        super().__init__(arguments=arguments, lod=lod, blocks=blocks, head=head, output=output)

    def scores_and_classes(self, img: Tensor) -> tuple[Tensor, Tensor | None]:
        """How real images are, and of which class.

        Args:
            img: [N, img_channels, H, W] of the present level, in [-1, 1]; N a multiple of the minibatch-std group.
        Returns:
            Scores [N, 1], higher for real images; and logits of the classes [N, c_dim], None without labels. In the dtype
            of the weights. Differentiable any number of times.
        """
        x = self.outputs(img)
        return x[:, :1], x[:, 1:] if self.c_dim else None

    def forward(self, img: Tensor, c: Tensor) -> Tensor:
        """The scores [N, 1] of `scores_and_classes`; they do not depend on the labels `c` [N, c_dim]."""
        return self.scores_and_classes(img)[0]


def _conv(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    down: int,
    clamp: float | None,
    rng: torch.Generator | None,
) -> EarlyConv:
    """A convolution with bias and leaky ReLU; shrinking ones are fused at all levels, as published."""
    return EarlyConv(
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=kernel_size,
        bias=True,
        activation="lrelu",
        gain=LRELU_GAIN,
        up=1,
        down=down,
        fused=down == 2,
        blur=False,
        clamp=clamp,
        rng=rng,
    )
