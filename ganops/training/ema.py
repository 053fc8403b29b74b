"""The exponential moving average of the generator."""

import torch
from torch import nn


@torch.no_grad()
def update_ema(G_ema: nn.Module, G: nn.Module, beta: float) -> None:
    """Moves `G_ema` towards `G` in place: parameters by beta * ema + (1 - beta) * new, buffers (w_avg) copied.

    Args:
        G_ema: the average; the same architecture as `G`.
        G: the generator in training.
        beta: decay of this step, 0 to 1 (`schedule.ema_beta`).
    """
    averages = [parameter.detach() for parameter in G_ema.parameters()]
    torch._foreach_lerp_(averages, [parameter.detach() for parameter in G.parameters()], 1.0 - beta)
    torch._foreach_copy_(list(G_ema.buffers()), list(G.buffers()))
