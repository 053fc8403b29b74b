"""The mapping network: from a latent and a label to w; and from w to the ws of all layers."""

import torch
from torch import Tensor, nn

from ganops.networks.layers import Dense


class MappingNetwork(nn.Module):
    """Fully connected network of z and an embedded label. The discriminator uses one without z for its labels.

    Args:
        z_dim: width of z, 0 = no latent.
        c_dim: number of classes, or width of label vectors; 0 = no labels.
        w_dim: width of the result, of all layers and of the label's embedding.
        num_layers: at least 1.
        lr_multiplier: relative learning rate of the layers (not of the embedding).
        rng: for the initial weights; None = zeros.
    Source: Karras et al. 2019; labels as in Karras et al. 2020, "Training GANs with limited data".
    """

    def __init__(
        self,
        *,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_layers: int,
        lr_multiplier: float,
        rng: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.z_dim = z_dim
        self.c_dim = c_dim
        self.embed = (
            Dense(in_features=c_dim, out_features=w_dim, activation="linear", lr_multiplier=1.0, bias_init=0.0, rng=rng)
            if c_dim
            else None
        )
        widths = [z_dim + (w_dim if c_dim else 0)] + [w_dim] * num_layers
        self.layers = nn.ModuleList(
            Dense(
                in_features=widths[index],
                out_features=w_dim,
                activation="lrelu",
                lr_multiplier=lr_multiplier,
                bias_init=0.0,
                rng=rng,
            )
            for index in range(num_layers)
        )

    def forward(self, z: Tensor, c: Tensor) -> Tensor:
        """[N, z_dim], [N, c_dim] -> w [N, w_dim], in the dtype of the weights."""
        dtype = next(self.parameters()).dtype
        parts = []
        if self.z_dim:
            parts.append(normalize(z.to(dtype)))
        if self.embed is not None:
            parts.append(normalize(self.embed(c.to(dtype))))
        x = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
        for layer in self.layers:
            x = layer(x)
        return x


def normalize(x: Tensor) -> Tensor:
    """[N, D] scaled to mean square 1 per row."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


def truncate_w(w: Tensor, w_avg: Tensor, num_ws: int, psi: float, cutoff: int | None) -> Tensor:
    """One w per layer, the first `cutoff` of them pulled towards the mean.

    Args:
        w: [N, w_dim].
        w_avg: [w_dim].
        num_ws: layers.
        psi: 1 = not at all, 0 = all the way: the mean image.
        cutoff: number of layers from the coarse end; None = all.
    Returns:
        [N, num_ws, w_dim].
    """
    ws = w[:, None].expand(-1, num_ws, -1)
    if psi == 1:
        return ws
    truncated = torch.lerp(w_avg, w, psi)[:, None].expand(-1, num_ws, -1)
    return truncated if cutoff is None else torch.cat([truncated[:, :cutoff], ws[:, cutoff:]], dim=1)
