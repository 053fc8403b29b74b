"""The StyleGAN1 generator, StyleGAN2's config-a."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ganops.networks.early_layers import FUSED_FROM, EarlyConv
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
from ganops.networks.layers import NoiseMode, NoiseSource, Precision, block_dtype, fast_format, layer_noise
from ganops.networks.stylegan1_layers import Epilogue, StyledConv
from ganops.shape import size_at


class StyleGAN1Block(nn.Module):
    """The layers of one level, each with a style; and its image layer, which has none.

    Args:
        in_channels: channels of the input; 0 = none: the block starts from a learned constant, of ones at first.
        out_channels: channels of the output.
        w_dim: width of w.
        grid: height and width of the output.
        img_channels: channels of the image.
        fused: as in `EarlyConv`.
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
        fused: bool,
        clamp: float | None,
        dtype: torch.dtype | None,
        rng: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.const = self.epilogue = self.conv0_up = None
        if in_channels:
            self.conv0_up = StyledConv(
                in_channels=in_channels,
                out_channels=out_channels,
                w_dim=w_dim,
                grid=grid,
                up=2,
                fused=fused,
                clamp=clamp,
                rng=rng,
            )
        else:
            self.const = nn.Parameter(torch.ones(out_channels, *grid))
            self.epilogue = Epilogue(channels=out_channels, w_dim=w_dim, grid=grid, clamp=clamp, rng=rng)
        self.conv1 = StyledConv(
            in_channels=out_channels,
            out_channels=out_channels,
            w_dim=w_dim,
            grid=grid,
            up=1,
            fused=False,
            clamp=clamp,
            rng=rng,
        )
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

    def noises(self, count: int, mode: NoiseMode, rng: NoiseSource) -> list[Tensor | None]:
        """Of both layers, in their order."""
        first = self.epilogue if self.conv0_up is None else self.conv0_up.epilogue
        epilogues = (first, self.conv1.epilogue)
        return [layer_noise(epilogue.noise_const, count, mode, rng) for epilogue in epilogues if epilogue is not None]

    def forward(self, x: Tensor | None, ws: Sequence[Tensor], noises: Sequence[Tensor | None]) -> Tensor:
        """Features [N, in_channels, H / 2, W / 2] -> [N, out_channels, H, W]; two of `ws` [N, w_dim] and of `noises`."""
        dtype = ws[0].dtype if self.dtype is None else self.dtype
        if self.const is not None and self.epilogue is not None:
            const = self.const.to(dtype)[None].expand(len(ws[0]), -1, -1, -1)
            x = self.epilogue(fast_format(const), ws[0], noises[0])
        elif x is not None and self.conv0_up is not None:
            x = self.conv0_up(x.to(dtype), ws[0], noises[0])
        y: Tensor = self.conv1(x, ws[1], noises[1])
        return y


class StyleGAN1Synthesis(SynthesisByLevels):
    """From ws to images; see `StyleGAN1Generator` for the arguments."""

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
            self.blocks[grid_name(grid)] = StyleGAN1Block(
                in_channels=in_channels,
                out_channels=out_channels,
                w_dim=w_dim,
                grid=grid,
                img_channels=img_channels,
                fused=r >= FUSED_FROM,
                clamp=conv_clamp,
                dtype=block_dtype(precision, r, resolution, low_precision_resolutions),
                rng=rng,
            )
            in_channels = out_channels

    def forward(self, ws: Tensor, noise_mode: NoiseMode, rng: NoiseSource) -> Tensor:
        """Images from one w per layer.

        Args:
            ws: [N, num_ws, w_dim]; those of levels not grown yet are ignored.
            noise_mode: "random" draws from `rng` in the order of the layers, "const" is the same for all images,
                "none" is no noise.
            rng: on the device of `ws`, one for the batch or one per image; None only if the mode is not "random".
        Returns:
            [N, img_channels, H, W] of the present level, in the dtype of the weights, about in [-1, 1].
        """
        assert ws.shape[1] == self.num_ws, ws.shape
        missing, fade = split_lod(self.lod)
        blocks = [block for block in self.blocks.values() if isinstance(block, StyleGAN1Block)]
        blocks = blocks[: len(blocks) - missing]
        # All noise is drawn before the first layer: a compiler can then take the layers as one piece.
        noises = [block.noises(len(ws), noise_mode, rng) for block in blocks]
        split = ws.unbind(dim=1)
        x: Tensor | None = None
        below: Tensor | None = None
        for level, block in enumerate(blocks):
            below, x = x, block(x, split[2 * level : 2 * level + 2], noises[level])
        assert x is not None
        # Images are faded in full precision.
        img: Tensor = blocks[-1].to_rgb(x).to(ws.dtype)
        if fade and below is not None:
            old = blocks[-2].to_rgb(below).to(ws.dtype)
            img = torch.lerp(img, upscale(old, 2), fade)
        return img


class StyleGAN1Generator(GeneratorByLevels):
    """The StyleGAN1 generator, growing.

    Layers of levels above the present one are not run, and get no gradients.

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
        precision: of the highest resolutions; images and the statistics of instance norms have at least float32.
        low_precision_resolutions: how many resolutions have this precision.
        conv_clamp: limit of the activations before the instance norms, 256 with float16; None = no limit.
        lod: how far it has grown, see `ganops.networks.growing`; 0 = fully.
        rng: on CPU; the initial weights are a function of it and of the other arguments. None leaves weights at zero.
    Source: Karras et al. 2019, "A style-based generator architecture for generative adversarial networks", config F;
        config-a of Karras et al. 2020.
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
            gain_in_weights=True,
            rng=rng,
        )
        synthesis = StyleGAN1Synthesis(
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
