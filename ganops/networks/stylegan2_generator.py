"""The StyleGAN2 generator, config-e and f by arguments."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ganops.networks.layers import (
    RESAMPLE_TAPS,
    Architecture,
    Conv,
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
from ganops.networks.mapping import MappingNetwork, truncate_w
from ganops.ops.upfirdn2d import setup_filter, upsample2d
from ganops.shape import size_at


class SynthesisBlock(nn.Module):
    """The layers of one resolution.

    Args:
        in_channels: channels of the input; 0 = none: the block starts from a learned constant.
        out_channels: channels of the output.
        w_dim: width of w.
        size: height and width of the output.
        img_channels: channels of the image; 0 = the block makes none.
        architecture: "skip" sums images over the resolutions, "resnet" sums features, "orig" nothing.
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
        w_dim: int,
        size: tuple[int, int],
        img_channels: int,
        architecture: Architecture,
        clamp: float | None,
        dtype: torch.dtype | None,
        rng: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.num_convs = 2 if in_channels else 1
        self.register_buffer("resample_filter", setup_filter(RESAMPLE_TAPS, separable=True), persistent=False)
        self.const = None if in_channels else nn.Parameter(draw_normal(out_channels, *size, rng=rng))
        self.skip = self.conv0_up = None
        if in_channels:
            self.conv0_up = SynthesisLayer(
                in_channels=in_channels,
                out_channels=out_channels,
                w_dim=w_dim,
                size=size,
                up=2,
                clamp=clamp,
                rng=rng,
            )
        last = SynthesisLayer(
            in_channels=out_channels,
            out_channels=out_channels,
            w_dim=w_dim,
            size=size,
            up=1,
            clamp=clamp,
            rng=rng,
        )
        # Named as published: the constant's only convolution has no number.
        self.conv = None if in_channels else last
        self.conv1 = last if in_channels else None
        self.to_rgb = None
        if img_channels:
            self.to_rgb = ToRGB(in_channels=out_channels, img_channels=img_channels, w_dim=w_dim, clamp=clamp, rng=rng)
        if in_channels and architecture == "resnet":
            self.skip = Conv(
                in_channels=in_channels,
                out_channels=out_channels,
                kernel_size=1,
                bias=False,
                activation="linear",
                up=2,
                down=1,
                clamp=None,
                rng=rng,
            )

    def convolutions(self) -> list[SynthesisLayer]:
        """In the order in which they run."""
        return [layer for layer in (self.conv, self.conv0_up, self.conv1) if layer is not None]

    def forward(
        self, x: Tensor | None, img: Tensor | None, ws: Sequence[Tensor], noises: Sequence[Tensor | None]
    ) -> tuple[Tensor, Tensor | None]:
        """Features [N, in_channels, h / 2, w / 2] and image so far -> features and image at this block's size [h, w].

        `ws` holds one [N, w_dim] per convolution and one for the image, `noises` one noise per convolution.
        """
        dtype = ws[0].dtype if self.dtype is None else self.dtype
        if self.const is not None and self.conv is not None:
            const = self.const.to(dtype)[None].expand(len(ws[0]), -1, -1, -1)
            x = self.conv(fast_format(const), ws[0], noises[0])
        elif x is not None and self.conv0_up is not None and self.conv1 is not None:
            x = x.to(dtype)
            if self.skip is not None:
                # The sum of two independent halves keeps the variance.
                y = self.skip(x, gain=0.5**0.5)
                x = self.conv0_up(x, ws[0], noises[0])
                x = y + self.conv1(x, ws[1], noises[1], gain=0.5**0.5)
            else:
                x = self.conv0_up(x, ws[0], noises[0])
                x = self.conv1(x, ws[1], noises[1])
        assert x is not None
        if img is not None:
            img = upsample2d(img, self.resample_filter)
        if self.to_rgb is not None:
            # Images are summed in full precision.
            y = self.to_rgb(x, ws[self.num_convs]).to(ws[0].dtype)
            img = y if img is None else img + y
        return x, img


class SynthesisNetwork(nn.Module):
    """From ws to images; see `Generator` for the arguments."""

    def __init__(
        self,
        *,
        w_dim: int,
        resolution: int,
        base_grid: tuple[int, int],
        img_channels: int,
        channel_base: int,
        channel_max: int,
        architecture: Architecture,
        precision: Precision,
        low_precision_resolutions: int,
        conv_clamp: float | None,
        rng: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.num_ws = 2 * resolution.bit_length() - 4
        self.blocks = nn.ModuleDict()
        in_channels, r = 0, 4
        while r <= resolution:
            out_channels = min(channel_base // r, channel_max)
            height, width = size_at(r, base_grid)
            self.blocks[f"{height}x{width}"] = SynthesisBlock(
                in_channels=in_channels,
                out_channels=out_channels,
                w_dim=w_dim,
                size=(height, width),
                img_channels=img_channels if architecture == "skip" or r == resolution else 0,
                architecture=architecture,
                clamp=conv_clamp,
                dtype=block_dtype(precision, r, resolution, low_precision_resolutions),
                rng=rng,
            )
            in_channels, r = out_channels, 2 * r

    def forward(self, ws: Tensor, noise_mode: NoiseMode, rng: NoiseSource) -> Tensor:
        """Images from one w per layer.

        Args:
            ws: [N, num_ws, w_dim]. A block's image layer shares its w with the next block's first convolution.
            noise_mode: "random" draws from `rng` in the order of the layers, "const" is the same for all images,
                "none" is no noise.
            rng: on the device of `ws`, one for the batch or one per image; None only if the mode is not "random".
        Returns:
            [N, img_channels, H, W] in the dtype of the weights, about in [-1, 1]; see `Generator.size`.
        """
        assert ws.shape[1] == self.num_ws, ws.shape
        # All noise is drawn before the first layer: a compiler can then take the layers as one piece.
        noises = self._noises(len(ws), noise_mode, rng)
        split = ws.unbind(dim=1)
        x: Tensor | None = None
        img: Tensor | None = None
        first = 0
        for block in self.blocks.values():
            assert isinstance(block, SynthesisBlock)
            last = first + block.num_convs
            x, img = block(x, img, split[first : last + 1], noises[first:last])
            first = last
        assert img is not None
        return img

    def _noises(self, count: int, mode: NoiseMode, rng: NoiseSource) -> list[Tensor | None]:
        """Noise of all convolutions, drawn in their order."""
        blocks = [block for block in self.blocks.values() if isinstance(block, SynthesisBlock)]
        return [layer_noise(layer.noise_const, count, mode, rng) for block in blocks for layer in block.convolutions()]


class Generator(nn.Module):
    """The StyleGAN2 generator.

    Args:
        z_dim: width of the latent z.
        c_dim: number of classes, or width of label vectors; 0 = no labels.
        w_dim: width of the intermediate latent w.
        resolution: 4 * 2^k of k doublings, which channels go by; for base_grid=(4, 4) height and width of the images.
        base_grid: height and width of what the first layer has; images are 2^k times as large. See `ganops.shape`.
        img_channels: of the images.
        mapping_layers: layers from z to w.
        mapping_lr_multiplier: relative learning rate of these layers.
        channel_base: resolution r has min(channel_base / r, channel_max) channels: 32768 and 512 in config-f,
            16384 and 512 in config-e.
        channel_max: see `channel_base`.
        architecture: "skip" in config-e and f, "resnet" or "orig".
        precision: of the highest resolutions; the image is summed in the dtype of the weights.
        low_precision_resolutions: how many resolutions have this precision.
        conv_clamp: limit of the activations, 256 with float16; None = no limit.
        rng: on CPU; the initial weights are a function of it and of the other arguments. None leaves weights at zero.
    Source: Karras et al. 2020, "Analyzing and improving the image quality of StyleGAN".
    """

    w_avg: Tensor

    def __init__(
        self,
        *,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        resolution: int,
        base_grid: tuple[int, int],
        img_channels: int,
        mapping_layers: int,
        mapping_lr_multiplier: float,
        channel_base: int,
        channel_max: int,
        architecture: Architecture,
        precision: Precision,
        low_precision_resolutions: int,
        conv_clamp: float | None,
        rng: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.arguments: dict[str, Any] = {
            "z_dim": z_dim,
            "c_dim": c_dim,
            "w_dim": w_dim,
            "resolution": resolution,
            "base_grid": base_grid,
            "img_channels": img_channels,
            "mapping_layers": mapping_layers,
            "mapping_lr_multiplier": mapping_lr_multiplier,
            "channel_base": channel_base,
            "channel_max": channel_max,
            "architecture": architecture,
            "precision": precision,
            "low_precision_resolutions": low_precision_resolutions,
            "conv_clamp": conv_clamp,
        }
        self.z_dim = z_dim
        self.c_dim = c_dim
        self.w_dim = w_dim
        self.resolution = resolution
        self.size = size_at(resolution, base_grid)
        self.img_channels = img_channels
        self.mapping = MappingNetwork(
            z_dim=z_dim,
            c_dim=c_dim,
            w_dim=w_dim,
            num_layers=mapping_layers,
            lr_multiplier=mapping_lr_multiplier,
            rng=rng,
        )
        self.synthesis = SynthesisNetwork(
            w_dim=w_dim,
            resolution=resolution,
            base_grid=base_grid,
            img_channels=img_channels,
            channel_base=channel_base,
            channel_max=channel_max,
            architecture=architecture,
            precision=precision,
            low_precision_resolutions=low_precision_resolutions,
            conv_clamp=conv_clamp,
            rng=rng,
        )
        self.num_ws = self.synthesis.num_ws
        # The running mean of w, moved by the training loop.
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def truncate(self, w: Tensor, psi: float, cutoff: int | None) -> Tensor:
        """[N, w_dim] -> ws [N, num_ws, w_dim], see `truncate_w`."""
        return truncate_w(w, self.w_avg, self.num_ws, psi, cutoff)

    def forward(
        self,
        z: Tensor,
        c: Tensor,
        truncation_psi: float,
        truncation_cutoff: int | None,
        noise_mode: NoiseMode,
        rng: NoiseSource,
    ) -> Tensor:
        """[N, z_dim], [N, c_dim] -> images; see `truncate_w` and `SynthesisNetwork.forward`."""
        ws = self.truncate(self.mapping(z, c), truncation_psi, truncation_cutoff)
        img: Tensor = self.synthesis(ws, noise_mode, rng)
        return img
