"""The mapping network of the growing families: the label joins z before the one normalisation of both."""

import torch
from torch import Tensor, nn

from ganops.networks.early_layers import LRELU_GAIN, EarlyDense
from ganops.networks.layers import Dense, draw_normal
from ganops.networks.mapping import normalize


class LabelMatrix(nn.Module):
    """A vector per class, or the sum of several ones' vectors; without equalised learning rate and bias.

    Args:
        c_dim: number of classes.
        features: width of the vectors.
        rng: for the initial weights, N(0, 1); None = zeros.
    """

    def __init__(self, *, c_dim: int, features: int, rng: torch.Generator | None) -> None:
        super().__init__()
        self.weight = nn.Parameter(draw_normal(c_dim, features, rng=rng))

    def forward(self, c: Tensor) -> Tensor:
        """[N, c_dim] -> [N, features], in the dtype of the weights."""
        return c.to(self.weight.dtype) @ self.weight


class JointMappingNetwork(nn.Module):
    """The mapping network of StyleGAN1 and of StyleGAN2's config-b to d: z and the label are normalised as one vector.

    Args:
        z_dim: width of z.
        c_dim: number of classes, 0 = no labels. A label becomes a vector as wide as z.
        w_dim: width of the result and of all layers.
        num_layers: at least 1.
        lr_multiplier: relative learning rate of the layers (not of the label's vectors).
        gain_in_weights: the gain sqrt(2) of leaky ReLU is in the weights (StyleGAN1), or behind the activation (StyleGAN2).
        rng: for the initial weights; None = zeros.
    Source: Karras et al. 2019; labels as in the released code of Karras et al. 2020.
    """

    def __init__(
        self,
        *,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_layers: int,
        lr_multiplier: float,
        gain_in_weights: bool,
        rng: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.embed = LabelMatrix(c_dim=c_dim, features=z_dim, rng=rng) if c_dim else None
        widths = [z_dim * (2 if c_dim else 1)] + [w_dim] * num_layers
        self.layers = nn.ModuleList(
            EarlyDense(
                in_features=width,
                out_features=w_dim,
                activation="lrelu",
                gain=LRELU_GAIN,
                lr_multiplier=lr_multiplier,
                rng=rng,
            )
            if gain_in_weights
            else Dense(
                in_features=width,
                out_features=w_dim,
                activation="lrelu",
                lr_multiplier=lr_multiplier,
                bias_init=0.0,
                rng=rng,
            )
            for width in widths[:-1]
        )

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        """[N, z_dim], [N, c_dim] -> w [N, w_dim], in the dtype of the weights."""
        x = z.to(next(self.parameters()).dtype)
        if self.embed is not None:
            x = torch.cat([x, self.embed(c)], dim=1)
        x = normalize(x)
        for layer in self.layers:
            x = layer(x)
        return x
