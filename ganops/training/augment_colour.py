"""The colour half of ADA: affine maps of RGB as one 4x4 matrix per image.

Source: Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data", section 2.3 and appendix B.
"""

from math import sqrt

import torch
from torch import Tensor

from ganops.config_train import COLOR_CHANNELS
from ganops.training.batches import to_device

LUMA = torch.full([3], 1 / sqrt(3), dtype=torch.float64)
"""The axis of greys."""


def color_matrix(*, brightness: Tensor, contrast: Tensor, luma_flip: Tensor, hue: Tensor, saturation: Tensor) -> Tensor:
    """All colour transformations, applied in this order, as one.

    Args, all [N] float64:
        brightness: is added to each channel; images are in [-1, 1].
        contrast: factor of each channel.
        luma_flip: 1 = light and dark exchanged, hues kept: reflection at the plane that greys are normal to; 0 = not.
        hue: radians, rotation about the axis of greys.
        saturation: factor of the distance from that axis.
    Returns:
        [N, 4, 4] float64, for columns (red, green, blue, 1).
    """
    along = torch.outer(LUMA, LUMA)
    x, y, z = LUMA.tolist()
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    across = torch.eye(3, dtype=torch.float64) - along
    b, k, f, h, s = (number[:, None, None] for number in (brightness, contrast, luma_flip, hue, saturation))
    flipped = torch.eye(3, dtype=torch.float64) - 2 * along * f
    rotated = along + across * h.cos() + cross * h.sin()
    saturated = along + across * s
    linear = saturated @ rotated @ flipped * k
    matrix = torch.eye(4, dtype=torch.float64).repeat(len(brightness), 1, 1)
    matrix[:, :3, :3] = linear
    matrix[:, :3, 3:] = (linear * b).sum(dim=2, keepdim=True)
    return matrix


def apply_color(img: Tensor, matrix: Tensor) -> Tensor:
    """Maps the colours of images.

    Args:
        img: [N, C, H, W]; C = 1 is grey, that is three equal channels, of which the mean of the result is taken;
            3 is RGB; 4 is RGBA, whose alpha stays as it is.
        matrix: [N, 4, 4] on the CPU, from `color_matrix`.
    Returns:
        [N, C, H, W]. The identity keeps every bit.
    Raises:
        ValueError: other channels.
    """
    C = img.shape[1]
    if C not in COLOR_CHANNELS:
        raise ValueError(f"colours of {C} channels")
    if C == 1:
        factor, offset = matrix[:, :3, :3].sum(dim=2).mean(dim=1), matrix[:, :3, 3].mean(dim=1)
        factor, offset = to_device(torch.stack([factor, offset]).to(img.dtype), img.device)[..., None, None, None]
        grey: Tensor = img * factor + offset
        return grey
    columns = to_device(matrix[:, :3].to(img.dtype), img.device)[..., None, None].unbind(2)
    # Not a matrix product: CUDA might round its factors to 11 bits (tf32).
    rgb: Tensor = columns[0] * img[:, 0:1] + columns[1] * img[:, 1:2] + columns[2] * img[:, 2:3] + columns[3]
    return rgb if C == 3 else torch.cat([rgb, img[:, 3:]], dim=1)
