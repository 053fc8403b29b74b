"""The body that growing discriminators share: an image layer per level, two convolutions each, a head at the lowest level.

The layers themselves are made by each family.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ganops.networks.growing import average, split_lod
from ganops.networks.layers import MinibatchStd, fast_format


class GrowingDiscriminatorBlock(nn.Module):
    """The layers of one level above the lowest, which halve height and width.

    Args:
        from_rgb: image [N, img_channels, H, W] -> features [N, in_channels, H, W].
        conv0: [N, in_channels, H, W] -> the same.
        conv1_down: [N, in_channels, H, W] -> [N, out_channels, H / 2, W / 2].
        dtype: low precision to compute in; None = dtype of the weights.
    """

    def __init__(
        self, *, from_rgb: nn.Module, conv0: nn.Module, conv1_down: nn.Module, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.dtype = dtype
        self.from_rgb = from_rgb
        self.conv0 = conv0
        self.conv1_down = conv1_down

    def look(self, img: Tensor) -> Tensor:
        """Features of an image in the dtype of the weights, in this block's."""
        # The format is set here, behind: an image of one channel has every format and would carry none on.
        return fast_format(self.from_rgb(img if self.dtype is None else img.to(self.dtype)))

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, out_channels, H / 2, W / 2]."""
        y: Tensor = self.conv1_down(self.conv0(x))
        return y


class GrowingDiscriminatorHead(nn.Module):
    """The layers of the lowest level, in the dtype of the weights.

    Args:
        from_rgb: image -> features [N, channels, H, W].
        minibatch_std: appends feature maps.
        conv: -> [N, channels, H, W].
        dense0: [N, channels * H * W] -> [N, channels].
    """

    def __init__(self, *, from_rgb: nn.Module, minibatch_std: MinibatchStd, conv: nn.Module, dense0: nn.Module) -> None:
        super().__init__()
        self.dtype: torch.dtype | None = None
        self.from_rgb = from_rgb
        self.minibatch_std = minibatch_std
        self.conv = conv
        self.dense0 = dense0

    def look(self, img: Tensor) -> Tensor:
        """Features of an image in the dtype of the weights."""
        return fast_format(self.from_rgb(img))

    def forward(self, x: Tensor) -> Tensor:
        """[N, channels, H, W] -> [N, channels]."""
        features: Tensor = self.dense0(self.conv(self.minibatch_std(x)).flatten(1))
        return features


def discriminate(
    blocks: Sequence[GrowingDiscriminatorBlock], head: GrowingDiscriminatorHead, img: Tensor, lod: float
) -> Tensor:
    """Features [N, channels] of images at `lod`; blocks above the present level are not run.

    Args:
        blocks: from the image down.
        head: the lowest level.
        img: [N, img_channels, H, W] of the present level, in the dtype of the weights.
        lod: while the present level fades in, its features are mixed with those that the next lower one sees in the
            averaged image (Karras et al. 2018, figure 2).
    """
    missing, fade = split_lod(lod)
    levels: list[GrowingDiscriminatorBlock | GrowingDiscriminatorHead] = [*blocks, head]
    levels = levels[missing:]
    x = levels[0].look(img)
    for index, (level, below) in enumerate(pairwise(levels)):
        x = level(x)
        x = x.to(img.dtype if below.dtype is None else below.dtype)
        if index == 0 and fade:
            x = torch.lerp(x, below.look(average(img, 2)), fade)
    features: Tensor = head(x)
    return features
