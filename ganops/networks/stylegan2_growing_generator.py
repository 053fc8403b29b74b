"""The growing generator of StyleGAN2's config-b to d: StyleGAN2's layers, an image layer per level, no sum of images."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

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
from ganops.networks.joint_mapping import JointMappingNetwork
from ganops.networks.layers import (
    NoiseMode,
    NoiseSource,
    Precision,
    SynthesisLayer,
    ToRGB,
    block_dtype,
    draw_normal,
    fast_format,
    layer_noise,
)
from ganops.shape import size_at


class GrowingBlock(nn.Module):
    """The layers of one level, and its image layer.

    Args:
        in_channels: channels of the input; 0 = none: the block starts from a learned constant.
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
        self.const = None if in_channels else nn.Parameter(draw_normal(out_channels, *grid, rng=rng))
        self.conv0_up = None
        if in_channels:
            self.conv0_up = _synthesis_layer(in_channels, out_channels, w_dim, grid, 2, clamp, rng)
        last = _synthesis_layer(out_channels, out_channels, w_dim, grid, 1, clamp, rng)
        # Named as published: the constant's only convolution has no number.
        self.conv = None if in_channels else last
        self.conv1 = last if in_channels else None
        self.to_rgb = ToRGB(in_channels=out_channels, img_channels=img_channels, w_dim=w_dim, clamp=clamp, rng=rng)

    def convolutions(self) -> list[SynthesisLayer]:
        """In the order in which they run."""
        return [layer for layer in (self.conv, self.conv0_up, self.conv1) if layer is not None]

    def forward(self, x: Tensor | None, ws: Sequence[Tensor], noises: Sequence[Tensor | None]) -> Tensor:
        """Features [N, in_channels, H / 2, W / 2] -> [N, out_channels, H, W]; a w [N, w_dim] and a noise per convolution."""
        dtype = ws[0].dtype if self.dtype is None else self.dtype
        if self.const is not None:
            x = fast_format(self.const.to(dtype)[None].expand(len(ws[0]), -1, -1, -1))
        assert x is not None
        x = x.to(dtype)
        for layer, w, noise in zip(self.convolutions(), ws, noises, strict=True):
            x = layer(x, w, noise)
        return x


class GrowingSynthesis(SynthesisByLevels):
    """From ws to images; see `GrowingGenerator` for the arguments."""

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
        super().__init__(resolution=resolution, lod=lod, num_ws=2 * len(level_resolutions(resolution)))
        in_channels = 0
        for r in level_resolutions(resolution):
            out_channels = level_channels(r, channel_base, channel_max)
            grid = size_at(r, base_grid)
            self.blocks[grid_name(grid)] = GrowingBlock(
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
        """Images from one w per layer.

        Args:
            ws: [N, num_ws, w_dim]. A block's image layer shares its w with the next block's first convolution; those of
                levels not grown yet are ignored.
            noise_mode: "random" draws from `rng` in the order of the layers, "const" is the same for all images,
                "none" is no noise.
            rng: on the device of `ws`, one for the batch or one per image; None only if the mode is not "random".
        Returns:
            [N, img_channels, H, W] of the present level, in the dtype of the weights, about in [-1, 1].
        """
        assert ws.shape[1] == self.num_ws, ws.shape
        missing, fade = split_lod(self.lod)
        blocks = [block for block in self.blocks.values() if isinstance(block, GrowingBlock)]
        blocks = blocks[: len(blocks) - missing]
        # All noise is drawn before the first layer: a compiler can then take the layers as one piece.
        layers = [layer for block in blocks for layer in block.convolutions()]
        noises = [layer_noise(layer.noise_const, len(ws), noise_mode, rng) for layer in layers]
        split = ws.unbind(dim=1)
        x: Tensor | None = None
        below: Tensor | None = None
        first = 0
        for block in blocks:
            last = first + len(block.convolutions())
            below, x = x, block(x, split[first:last], noises[first:last])
            first = last
        assert x is not None
        # Images are faded in full precision.
        img: Tensor = blocks[-1].to_rgb(x, split[first]).to(ws.dtype)
        if fade and below is not None:
            old = blocks[-2].to_rgb(below, split[first - 2]).to(ws.dtype)
            img = torch.lerp(img, upscale(old, 2), fade)
        return img


class GrowingGenerator(GeneratorByLevels):
    """The generator of StyleGAN2's config-b to d.

    Layers of levels above the present one are not run, and get no gradients; nor do image layers of levels below it, but
    for the next one while it fades.

    Args:
        z_dim: width of the latent z.
        c_dim: number of classes, 0 = no labels.
        w_dim: width of the intermediate latent w.
        resolution: nominal, of the fully grown network; a power of two from 4 up.
        base_grid: height and width of the lowest level, (4, 4) for square images; `size` is resolution / 4 times as large.
        img_channels: of the images.
        mapping_layers: layers from z to w.
        mapping_lr_multiplier: relative learning rate of these layers.
        channel_base: nominal resolution r has min(channel_base / r, channel_max) channels; 16384 and 512 as published.
        channel_max: see `channel_base`.
        precision: of the highest resolutions; images are faded in the dtype of the weights.
        low_precision_resolutions: how many resolutions have this precision.
        conv_clamp: limit of the activations, 256 with float16; None = no limit.
        lod: how far it has grown, see `ganops.networks.growing`; 0 = fully.
        rng: on CPU; the initial weights are a function of it and of the other arguments. None leaves weights at zero.
    Source: Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN", section 2 and table 1.
    """

    def __init__(
        self,
        *,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        resolution: int,
        base_grid: Grid,
        img_channels: int,
        mapping_layers: int,
        mapping_lr_multiplier: float,
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
            "w_dim": w_dim,
            "resolution": resolution,
            "base_grid": (height, width),
            "img_channels": img_channels,
            "mapping_layers": mapping_layers,
            "mapping_lr_multiplier": mapping_lr_multiplier,
            "channel_base": channel_base,
            "channel_max": channel_max,
            "precision": precision,
            "low_precision_resolutions": low_precision_resolutions,
            "conv_clamp": conv_clamp,
        }
        mapping = JointMappingNetwork(
            z_dim=z_dim,
            c_dim=c_dim,
            w_dim=w_dim,
            num_layers=mapping_layers,
            lr_multiplier=mapping_lr_multiplier,
            gain_in_weights=False,
            rng=rng,
        )
        synthesis = GrowingSynthesis(
            w_dim=w_dim,
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
        super().__init__(arguments=arguments, w_dim=w_dim, mapping=mapping, synthesis=synthesis, ws_per_level=2)


def _synthesis_layer(
    in_channels: int,
    out_channels: int,
    w_dim: int,
    grid: Grid,
    up: int,
    clamp: float | None,
    rng: torch.Generator | None,
) -> SynthesisLayer:
    return SynthesisLayer(
        in_channels=in_channels,
        out_channels=out_channels,
        w_dim=w_dim,
        size=grid,
        up=up,
        clamp=clamp,
        rng=rng,
    )
