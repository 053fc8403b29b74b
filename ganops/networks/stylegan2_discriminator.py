"""The StyleGAN2 discriminator, config-e and f by arguments."""

from typing import Any

import torch
from torch import Tensor, nn

from ganops.networks.layers import (
    RESAMPLE_TAPS,
    Architecture,
    Conv,
    Dense,
    MinibatchStd,
    Precision,
    block_dtype,
    fast_format,
)
from ganops.networks.mapping import MappingNetwork
from ganops.ops.upfirdn2d import downsample2d, setup_filter
from ganops.shape import size_at


class FromRGB(Conv):
    """1x1 convolution from image channels to features."""

    def __init__(
        self, *, img_channels: int, out_channels: int, clamp: float | None, rng: torch.Generator | None
    ) -> None:
        super().__init__(
            in_channels=img_channels,
            out_channels=out_channels,
            kernel_size=1,
            bias=True,
            activation="lrelu",
            up=1,
            down=1,
            clamp=clamp,
            rng=rng,
        )


class DiscriminatorBlock(nn.Module):
    """The layers of one resolution, which halve it.

    Args:
        in_channels: channels at this resolution.
        out_channels: channels at the next lower one.
        img_channels: channels of the image; 0 = the block does not look at it.
        architecture: "resnet" adds a linear branch around the convolutions, "skip" feeds the image to every block.
        clamp: limit of the activations, or None.
        dtype: low precision to compute in; None = dtype of the weights.
        rng: for the initial weights; None = zeros.
    """

    resample_filter: Tensor

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        img_channels: int,
        architecture: Architecture,
        clamp: float | None,
        dtype: torch.dtype | None,
        rng: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.architecture = architecture
        self.register_buffer("resample_filter", setup_filter(RESAMPLE_TAPS, separable=True), persistent=False)
        self.from_rgb = None
        if img_channels:
            self.from_rgb = FromRGB(img_channels=img_channels, out_channels=in_channels, clamp=clamp, rng=rng)
        self.conv0 = Conv(
            in_channels=in_channels,
            out_channels=in_channels,
            kernel_size=3,
            bias=True,
            activation="lrelu",
            up=1,
            down=1,
            clamp=clamp,
            rng=rng,
        )
        self.conv1_down = Conv(
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=3,
            bias=True,
            activation="lrelu",
            up=1,
            down=2,
            clamp=clamp,
            rng=rng,
        )
        self.skip = None
        if architecture == "resnet":
            self.skip = Conv(
                in_channels=in_channels,
                out_channels=out_channels,
                kernel_size=1,
                bias=False,
                activation="linear",
                up=1,
                down=2,
                clamp=None,
                rng=rng,
            )

    def forward(self, x: Tensor | None, img: Tensor) -> tuple[Tensor, Tensor]:
        """Features (None at the top) and image at resolution r -> the same at r / 2 ("skip"; else the image as it is)."""
        dtype = self.conv0.weight.dtype if self.dtype is None else self.dtype
        x = None if x is None else x.to(dtype)
        if self.from_rgb is not None:
            # The format is set here, behind: an image of one channel has every format and would carry none on.
            y = fast_format(self.from_rgb(img.to(dtype)))
            x = y if x is None else x + y
            if self.architecture == "skip":
                img = downsample2d(img, self.resample_filter)
        assert x is not None
        if self.skip is None:
            return self.conv1_down(self.conv0(x)), img
        # The sum of two independent halves keeps the variance.
        y = self.skip(x, gain=0.5**0.5)
        return y + self.conv1_down(self.conv0(x), gain=0.5**0.5), img


class DiscriminatorHead(nn.Module):
    """The layers at the base grid, in the dtype of the weights: minibatch std, convolution, dense layer."""

    def __init__(
        self,
        *,
        channels: int,
        base_grid: tuple[int, int],
        img_channels: int,
        mbstd_group_size: int,
        mbstd_num_channels: int,
        clamp: float | None,
        rng: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.from_rgb = None
        if img_channels:
            self.from_rgb = FromRGB(img_channels=img_channels, out_channels=channels, clamp=None, rng=rng)
        self.minibatch_std = MinibatchStd(group_size=mbstd_group_size, num_channels=mbstd_num_channels)
        self.conv = Conv(
            in_channels=channels + mbstd_num_channels,
            out_channels=channels,
            kernel_size=3,
            bias=True,
            activation="lrelu",
            up=1,
            down=1,
            clamp=clamp,
            rng=rng,
        )
        self.dense0 = Dense(
            in_features=channels * base_grid[0] * base_grid[1],
            out_features=channels,
            activation="lrelu",
            lr_multiplier=1.0,
            bias_init=0.0,
            rng=rng,
        )

    def forward(self, x: Tensor, img: Tensor) -> Tensor:
        """[N, channels, *base_grid] -> [N, channels]."""
        x = x.to(self.conv.weight.dtype)
        if self.from_rgb is not None:
            x = x + self.from_rgb(img)
        x = self.conv(self.minibatch_std(x))
        features: Tensor = self.dense0(x.flatten(1))
        return features


class Discriminator(nn.Module):
    """The StyleGAN2 discriminator. With labels it is a projection discriminator.

    Args:
        c_dim: number of classes, or width of label vectors; 0 = no labels.
        resolution: as for `Generator`.
        base_grid: likewise.
        img_channels: of the images.
        mapping_layers: layers of the label's mapping; unused without labels.
        mapping_lr_multiplier: relative learning rate of these layers.
        channel_base: resolution r has min(channel_base / r, channel_max) channels.
        channel_max: see `channel_base`.
        architecture: "resnet" in config-e and f, "skip" or "orig".
        mbstd_group_size: images per group of minibatch std.
        mbstd_num_channels: feature maps that it appends, 0 = none.
        precision: of the highest resolutions; the base grid and the logits are in the dtype of the weights.
        low_precision_resolutions: how many resolutions have this precision.
        conv_clamp: limit of the activations, 256 with float16; None = no limit.
        rng: on CPU; the initial weights are a function of it and of the other arguments. None leaves weights at zero.
    Source: Karras et al. 2020; projection: Miyato and Koyama 2018.
    """

    def __init__(
        self,
        *,
        c_dim: int,
        resolution: int,
        base_grid: tuple[int, int],
        img_channels: int,
        mapping_layers: int,
        mapping_lr_multiplier: float,
        channel_base: int,
        channel_max: int,
        architecture: Architecture,
        mbstd_group_size: int,
        mbstd_num_channels: int,
        precision: Precision,
        low_precision_resolutions: int,
        conv_clamp: float | None,
        rng: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "c_dim": c_dim,
            "resolution": resolution,
            "base_grid": base_grid,
            "img_channels": img_channels,
            "mapping_layers": mapping_layers,
            "mapping_lr_multiplier": mapping_lr_multiplier,
            "channel_base": channel_base,
            "channel_max": channel_max,
            "architecture": architecture,
            "mbstd_group_size": mbstd_group_size,
            "mbstd_num_channels": mbstd_num_channels,
            "precision": precision,
            "low_precision_resolutions": low_precision_resolutions,
            "conv_clamp": conv_clamp,
        }
        self.c_dim = c_dim
        self.resolution = resolution
        self.size = size_at(resolution, base_grid)
        self.img_channels = img_channels
        self.blocks = nn.ModuleDict()
        r = resolution
        while r > 4:
            height, width = size_at(r, base_grid)
            self.blocks[f"{height}x{width}"] = DiscriminatorBlock(
                in_channels=min(channel_base // r, channel_max),
                out_channels=min(channel_base // (r // 2), channel_max),
                img_channels=img_channels if architecture == "skip" or r == resolution else 0,
                architecture=architecture,
                clamp=conv_clamp,
                dtype=block_dtype(precision, r, resolution, low_precision_resolutions),
                rng=rng,
            )
            r //= 2
        channels = min(channel_base // 4, channel_max)
        self.head = DiscriminatorHead(
            channels=channels,
            base_grid=base_grid,
            img_channels=img_channels if architecture == "skip" else 0,
            mbstd_group_size=mbstd_group_size,
            mbstd_num_channels=mbstd_num_channels,
            clamp=conv_clamp,
            rng=rng,
        )
        # With labels the last layer gives features to be compared with the mapped label, as wide as those before it.
        self.mapping = None
        if c_dim:
            self.mapping = MappingNetwork(
                z_dim=0,
                c_dim=c_dim,
                w_dim=channels,
                num_layers=mapping_layers,
                lr_multiplier=mapping_lr_multiplier,
                rng=rng,
            )
        self.output = Dense(
            in_features=channels,
            out_features=channels if c_dim else 1,
            activation="linear",
            lr_multiplier=1.0,
            bias_init=0.0,
            rng=rng,
        )

    def forward(self, img: Tensor, c: Tensor) -> Tensor:
        """Logits of images being real.

        Args:
            img: [N, img_channels, H, W] in [-1, 1], of `size`; N a multiple of the minibatch-std group.
            c: [N, c_dim], one-hot or a label vector.
        Returns:
            [N, 1] in the dtype of the weights. Differentiable any number of times.
        """
        img = img.to(self.output.weight.dtype)
        x: Tensor | None = None
        for block in self.blocks.values():
            x, img = block(x, img)
        x = self.output(self.head(x, img))
        assert x is not None
        if self.mapping is not None:
            x = (x * self.mapping(img.new_zeros([len(img), 0]), c)).sum(dim=1, keepdim=True) * x.shape[1] ** -0.5
        return x
