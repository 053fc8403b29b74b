"""The generator of PGGAN."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ganops.networks.early_layers import LRELU_GAIN, EarlyConv, pixel_norm
from ganops.networks.growing import (
    GeneratorByLevels,
    Grid,
    SynthesisByLevels,
    grid_name,
    level_channels,
    level_resolutions,
    split_lod,
    upscale,
)
from ganops.networks.layers import NoiseMode, NoiseSource, Precision, block_dtype, draw_normal, fast_format
from ganops.networks.mapping import normalize
from ganops.ops.bias_act import bias_act
from ganops.shape import size_at


class PGGANMapping(nn.Module):
    """z and the label, normalised as one vector: the "w" of a family without a mapping network. Has no weights."""

    like: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Of the dtype that the network's weights are converted to; it has no other use.
        self.register_buffer("like", torch.zeros([]), persistent=False)

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        """[N, z_dim], [N, c_dim] -> [N, z_dim + c_dim] of mean square 1, in the dtype of the network's weights."""
        return normalize(torch.cat([z, c], dim=1).to(self.like.dtype))


class PGGANFirst(nn.Module):
    """The dense layer from w to the features of the lowest level, with a bias per channel.

    Args:
        w_dim: width of the input.
        channels: of the output.
        grid: height and width of the output.
        clamp: limits the activations to +-clamp; None = no limit.
        rng: for the initial weights; None = zeros.
    """

    def __init__(
        self, *, w_dim: int, channels: int, grid: Grid, clamp: float | None, rng: torch.Generator | None
    ) -> None:
        super().__init__()
        self.grid = grid
        self.clamp = clamp
        self.weight = nn.Parameter(draw_normal(channels * grid[0] * grid[1], w_dim, rng=rng))
        self.bias = nn.Parameter(torch.zeros(channels))
        # A quarter of what a leaky ReLU asks for, as published (of 4x4 positions each counts as one input).
        self.weight_gain = LRELU_GAIN / 4 / w_dim**0.5

    def forward(self, w: Tensor) -> Tensor:
        """[N, w_dim] -> [N, channels, H, W], w's dtype; with leaky ReLU, not yet normalised."""
        x = F.linear(w, self.weight * self.weight_gain).reshape(len(w), len(self.bias), *self.grid)
        return bias_act(x, self.bias, activation="lrelu", gain=1.0, clamp=self.clamp)


class PGGANBlock(nn.Module):
    """The layers of one level, each followed by pixel norm, and its image layer.

    Args:
        in_channels: channels of the input; 0 = none: the block starts from w.
        out_channels: channels of the output.
        w_dim: width of w.
        grid: height and width of the output.
        img_channels: channels of the image.
        clamp: limit of the activations, or None.
        dtype: low precision to compute in; None = dtype of the weights.
        rng: for the initial weights; None = zeros.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        grid: Grid,
        img_channels: int,
        clamp: float | None,
        dtype: torch.dtype | None,
        rng: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.dense = self.conv0_up = None
        if in_channels:
            self.conv0_up = _lrelu_conv(in_channels, out_channels, 2, clamp, rng)
        else:
            self.dense = PGGANFirst(w_dim=w_dim, channels=out_channels, grid=grid, clamp=clamp, rng=rng)
        last = _lrelu_conv(out_channels, out_channels, 1, clamp, rng)
        # Named as in the other families: the lowest level's only convolution has no number.
        self.conv = None if in_channels else last
        self.conv1 = last if in_channels else None
        self.to_rgb = EarlyConv(
            in_channels=out_channels,
            out_channels=img_channels,
            kernel_size=1,
            bias=True,
            activation="linear",
            gain=1.0,
            up=1,
            down=1,
            fused=False,
            blur=False,
            clamp=clamp,
            rng=rng,
        )

    def forward(self, x: Tensor | None, w: Tensor) -> Tensor:
        """Features [N, in_channels, H / 2, W / 2] (None at the lowest level) -> [N, out_channels, H, W]."""
        dtype = w.dtype if self.dtype is None else self.dtype
        if self.dense is not None:
            x = pixel_norm(fast_format(self.dense(w)))
        assert x is not None
        x = x.to(dtype)
        for layer in (self.conv, self.conv0_up, self.conv1):
            if layer is not None:
                x = pixel_norm(layer(x))
        return x


class PGGANSynthesis(SynthesisByLevels):
    """From ws to images; see `PGGANGenerator` for the arguments."""

    def __init__(
        self,
        *,
        w_dim: int,
        resolution: int,
        base_grid: Grid,
        img_channels: int,
        channel_base: int,
        channel_max: int,
        precision: Precision,
        low_precision_resolutions: int,
        conv_clamp: float | None,
        lod: float,
        rng: torch.Generator | None,
    ) -> None:
        super().__init__(resolution=resolution, lod=lod, num_ws=1)
        in_channels = 0
        for r in level_resolutions(resolution):
            out_channels = level_channels(r, channel_base, channel_max)
            grid = size_at(r, base_grid)
            self.blocks[grid_name(grid)] = PGGANBlock(
                in_channels=in_channels,
                out_channels=out_channels,
                w_dim=w_dim,
                grid=grid,
                img_channels=img_channels,
                clamp=conv_clamp,
                dtype=block_dtype(precision, r, resolution, low_precision_resolutions),
                rng=rng,
            )
            in_channels = out_channels

    def forward(self, ws: Tensor, noise_mode: NoiseMode, rng: NoiseSource) -> Tensor:
        """Images from one w.

        Args:
            ws: [N, 1, w_dim], in the dtype of the weights.
            noise_mode: every mode gives the same images: PGGAN has no noise.
            rng: not drawn from, for the same reason.
        Returns:
            [N, img_channels, H, W] of the present level, in the dtype of the weights, about in [-1, 1].
        """
        assert ws.shape[1] == 1, ws.shape
        missing, fade = split_lod(self.lod)
        blocks = [block for block in self.blocks.values() if isinstance(block, PGGANBlock)]
        blocks = blocks[: len(blocks) - missing]
        w = ws[:, 0]
        x: Tensor | None = None
        below: Tensor | None = None
        for block in blocks:
            below, x = x, block(x, w)
        assert x is not None
        # Images are faded in full precision.
        img: Tensor = blocks[-1].to_rgb(x).to(w.dtype)
        if fade and below is not None:
            old = blocks[-2].to_rgb(below).to(w.dtype)
            img = torch.lerp(img, upscale(old, 2), fade)
        return img


class PGGANGenerator(GeneratorByLevels):
    """The generator of PGGAN, growing. Its w is the normalised latent and label, one for all layers; it has no noise.

    Truncation (psi below 1) is not part of PGGAN.

    Layers of levels above the present one are not run, and get no gradients; nor do image layers of levels below it, but
    for the next one while it fades.

    Args:
        z_dim: width of the latent z.
        c_dim: number of classes, 0 = no labels. w_dim is z_dim + c_dim.
        resolution: nominal, of the fully grown network; a power of two from 4 up.
        base_grid: height and width of the lowest level, (4, 4) for square images; `size` is resolution / 4 times as large.
        img_channels: of the images.
        channel_base: nominal resolution r has min(channel_base / r, channel_max) channels; 16384 and 512 as published.
        channel_max: see `channel_base`.
        precision: of the highest resolutions; images are faded in the dtype of the weights.
        low_precision_resolutions: how many resolutions have this precision.
        conv_clamp: limit of the activations, 256 with float16; None = no limit.
        lod: how far it has grown, see `ganops.networks.growing`; 0 = fully.
        rng: on CPU; the initial weights are a function of it and of the other arguments. None leaves weights at zero.
    Source: Karras et al. 2018, "Progressive growing of GANs for improved quality, stability, and variation", table 2.
    """

    def __init__(
        self,
        *,
        z_dim: int,
        c_dim: int,
        resolution: int,
        base_grid: Grid,
        img_channels: int,
        channel_base: int,
        channel_max: int,
        precision: Precision,
        low_precision_resolutions: int,
        conv_clamp: float | None,
        lod: float,
        rng: torch.Generator | None,
    ) -> None:
        height, width = base_grid
        arguments = {
            "z_dim": z_dim,
            "c_dim": c_dim,
            "resolution": resolution,
            "base_grid": (height, width),
            "img_channels": img_channels,
            "channel_base": channel_base,
            "channel_max": channel_max,
            "precision": precision,
            "low_precision_resolutions": low_precision_resolutions,
            "conv_clamp": conv_clamp,
        }
        mapping = PGGANMapping()
        synthesis = PGGANSynthesis(
            w_dim=z_dim + c_dim,
            resolution=resolution,
            base_grid=(height, width),
            img_channels=img_channels,
            channel_base=channel_base,
            channel_max=channel_max,
            precision=precision,
            low_precision_resolutions=low_precision_resolutions,
            conv_clamp=conv_clamp,
            lod=lod,
            rng=rng,
        )
        super().__init__(arguments=arguments, w_dim=z_dim + c_dim, mapping=mapping, synthesis=synthesis, ws_per_level=0)


def _lrelu_conv(
    in_channels: int, out_channels: int, up: int, clamp: float | None, rng: torch.Generator | None
) -> EarlyConv:
    """3x3 with bias and leaky ReLU; enlarging ones are fused at all levels, as published."""
    return EarlyConv(
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=3,
        bias=True,
        activation="lrelu",
        gain=LRELU_GAIN,
        up=up,
        down=1,
        fused=up == 2,
        blur=False,
        clamp=clamp,
        rng=rng,
    )
