"""The growing discriminator of StyleGAN1 (StyleGAN2's config-a) and of config-b to d."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ganops.networks.early_layers import BLUR_TAPS, FUSED_FROM, LRELU_GAIN, EarlyConv, EarlyDense
from ganops.networks.growing import Grid, grid_name, level_channels, level_resolutions
from ganops.networks.growing_discriminator import (
    DiscriminatorByLevels,
    GrowingDiscriminatorBlock,
    GrowingDiscriminatorHead,
)
from ganops.networks.layers import RESAMPLE_TAPS, Conv, Dense, MinibatchStd, Precision, block_dtype
from ganops.shape import size_at


class StyleGAN1Discriminator(DiscriminatorByLevels):
    """The StyleGAN1 discriminator, growing, without residual branches. With labels it has an output per class.

    Layers of levels above the present one are not run, and get no gradients; nor do image layers of levels below it, but
    for the next one while it fades.

    Args:
        c_dim: number of classes, 0 = no labels.
        resolution: nominal, of the fully grown network; a power of two from 4 up.
        base_grid: height and width of the lowest level, (4, 4) for square images; `size` is resolution / 4 times as large.
        img_channels: of the images.
        channel_base: nominal resolution r has min(channel_base / r, channel_max) channels; 16384 and 512 as published.
        channel_max: see `channel_base`.
        resample_filter: (1, 2, 1) in config-a: shrinking convolutions blur, convolve and average squares of four pixels, and
            the activations' gain is in the weights. (1, 3, 3, 1) in config-b to d: StyleGAN2's layers, which filter and
            convolve with a stride, and whose gain is behind the activations.
        mbstd_group_size: images per group of minibatch std.
        mbstd_num_channels: feature maps that it appends, 0 = none.
        precision: of the highest resolutions; the lowest level and the logits are in the dtype of the weights.
        low_precision_resolutions: how many resolutions have this precision.
        conv_clamp: limit of the activations, 256 with float16; None = no limit.
        lod: how far it has grown, see `ganops.networks.growing`; 0 = fully.
        rng: on CPU; the initial weights are a function of it and of the other arguments. None leaves weights at zero.
    Source: Karras et al. 2019; Karras et al. 2020, table 1 (labels: the released code).
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
        resample_filter: Sequence[int],
        mbstd_group_size: int,
        mbstd_num_channels: int,
        precision: Precision,
        low_precision_resolutions: int,
        conv_clamp: float | None,
        lod: float,
        rng: torch.Generator | None,
    ) -> None:
        height, width = base_grid
        early = tuple(resample_filter) == BLUR_TAPS
        if not early and tuple(resample_filter) != RESAMPLE_TAPS:
            raise ValueError(f"resample_filter={tuple(resample_filter)} is neither {BLUR_TAPS} nor {RESAMPLE_TAPS}")
        arguments = {
            "c_dim": c_dim,
            "resolution": resolution,
            "base_grid": (height, width),
            "img_channels": img_channels,
            "channel_base": channel_base,
            "channel_max": channel_max,
            "resample_filter": tuple(resample_filter),
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
                from_rgb=_conv(early, img_channels, widths[r], 1, 1, r, conv_clamp, rng),
                conv0=_conv(early, widths[r], widths[r], 3, 1, r, conv_clamp, rng),
                conv1_down=_conv(early, widths[r], widths[r // 2], 3, 2, r, conv_clamp, rng),
                dtype=block_dtype(precision, r, resolution, low_precision_resolutions),
            )
        lowest = resolutions[0]
        channels = widths[lowest]
        head = GrowingDiscriminatorHead(
            from_rgb=_conv(early, img_channels, channels, 1, 1, lowest, conv_clamp, rng),
            minibatch_std=MinibatchStd(group_size=mbstd_group_size, num_channels=mbstd_num_channels),
            conv=_conv(early, channels + mbstd_num_channels, channels, 3, 1, lowest, conv_clamp, rng),
            dense0=_dense(early, channels * height * width, channels, rng),
        )
        output = Dense(
            in_features=channels,
            out_features=max(c_dim, 1),
            activation="linear",
            lr_multiplier=1.0,
            bias_init=0.0,
            rng=rng,
        )
        super().__init__(arguments=arguments, lod=lod, blocks=blocks, head=head, output=output)

    def forward(self, img: Tensor, c: Tensor) -> Tensor:
        """Logits of images being real.

        Args:
            img: [N, img_channels, H, W] of the present level, in [-1, 1]; N a multiple of the minibatch-std group.
            c: [N, c_dim] of zeros and ones: the outputs of an image's classes are added.
        Returns:
            [N, 1] in the dtype of the weights. Differentiable any number of times.
        """
        x = self.outputs(img)
        logits: Tensor = (x * c.to(x.dtype)).sum(dim=1, keepdim=True) if self.c_dim else x
        return logits


def _conv(
    early: bool,
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    down: int,
    nominal: int,
    clamp: float | None,
    rng: torch.Generator | None,
) -> EarlyConv | Conv:
    """A convolution with bias and leaky ReLU, for an input of this nominal resolution, of StyleGAN1 (early) or 2."""
    if not early:
        return Conv(
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=kernel_size,
            bias=True,
            activation="lrelu",
            up=1,
            down=down,
            clamp=clamp,
            rng=rng,
        )
    return EarlyConv(
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=kernel_size,
        bias=True,
        activation="lrelu",
        gain=LRELU_GAIN,
        up=1,
        down=down,
        fused=down == 2 and nominal >= FUSED_FROM,
        blur=down == 2,
        clamp=clamp,
        rng=rng,
    )


def _dense(early: bool, in_features: int, out_features: int, rng: torch.Generator | None) -> EarlyDense | Dense:
    """A dense layer with leaky ReLU, of StyleGAN1 (early) or 2."""
    if not early:
        return Dense(
            in_features=in_features,
            out_features=out_features,
            activation="lrelu",
            lr_multiplier=1.0,
            bias_init=0.0,
            rng=rng,
        )
    return EarlyDense(
        in_features=in_features,
        out_features=out_features,
        activation="lrelu",
        gain=LRELU_GAIN,
        lr_multiplier=1.0,
        rng=rng,
    )
