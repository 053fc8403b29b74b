"""Layers of the StyleGAN1 generator: noise and style behind every convolution."""

import torch
from torch import Tensor, nn

from ganops.networks.early_layers import LRELU_GAIN, EarlyConv, instance_norm
from ganops.networks.growing import Grid
from ganops.networks.layers import Dense, draw_normal
from ganops.ops.bias_act import bias_act


class Epilogue(nn.Module):
    """What follows each convolution and the constant: noise, bias, leaky ReLU, instance norm, style.

    Args:
        channels: of the features.
        w_dim: width of w.
        grid: height and width of the features.
        clamp: limits the activations before the instance norm to +-clamp; None = no limit.
        rng: for the initial weights; None = zeros.
    Source: Karras et al. 2019, section 2 and equation 1. Noise has a weight per channel, 0 at first; styles (scale - 1,
        then shift) are 0 on average at first.
    """

    noise_const: Tensor

    def __init__(
        self, *, channels: int, w_dim: int, grid: Grid, clamp: float | None, rng: torch.Generator | None
    ) -> None:
        super().__init__()
        self.clamp = clamp
        self.noise_strength = nn.Parameter(torch.zeros(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.affine = Dense(
            in_features=w_dim,
            out_features=2 * channels,
            activation="linear",
            lr_multiplier=1.0,
            bias_init=0.0,
            rng=rng,
        )
        self.register_buffer("noise_const", draw_normal(*grid, rng=rng))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """[N, channels, H, W], [N, w_dim] -> [N, channels, H, W], x's dtype; noise as from `layer_noise`."""
        if noise is not None:
            x = torch.addcmul(x, noise.to(x.dtype), self.noise_strength.to(x.dtype)[:, None, None])
        x = bias_act(x, self.bias.to(x.dtype), activation="lrelu", gain=1.0, clamp=self.clamp)
        scale, shift = self.affine(w)[:, :, None, None].chunk(2, dim=1)
        return torch.addcmul(shift.to(x.dtype), instance_norm(x), (scale + 1).to(x.dtype))


class StyledConv(nn.Module):
    """3x3 convolution, optionally to twice the resolution (with a blur behind), and its epilogue.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        w_dim: width of w.
        grid: height and width of the output.
        up: 1 or 2.
        fused: as in `EarlyConv`.
        clamp: as in `Epilogue`.
        rng: for the initial weights; None = zeros.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        grid: Grid,
        up: int,
        fused: bool,
        clamp: float | None,
        rng: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.conv = EarlyConv(
            in_channels=in_channels,
            out_channels=out_channels,
            kernel_size=3,
            bias=False,
            activation="linear",
            gain=LRELU_GAIN,
            up=up,
            down=1,
            fused=fused,
            blur=up == 2,
            clamp=None,
            rng=rng,
        )
        self.epilogue = Epilogue(channels=out_channels, w_dim=w_dim, grid=grid, clamp=clamp, rng=rng)

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        """[N, in_channels, H, W], [N, w_dim] -> [N, out_channels, H * up, W * up], x's dtype."""
        y: Tensor = self.epilogue(self.conv(x), w, noise)
        return y
