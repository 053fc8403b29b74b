"""The body that growing discriminators share: an image layer per level, two convolutions each, a head at the lowest level.

The layers themselves are made by each family.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from ganops.networks.early_layers import EarlyDense
from ganops.networks.growing import Grid, average, check_lod, split_lod
from ganops.networks.layers import Dense, MinibatchStd, fast_format
from ganops.shape import size_at


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


class DiscriminatorByLevels(nn.Module):
    """What growing discriminators share: how they grow, and the way from an image to the last layer.

    Args:
        arguments: of the family's constructor but for `lod` and `rng`, as JSON values.
        lod: how far it has grown.
        blocks: `GrowingDiscriminatorBlock`s by the names of their grids, from the image down.
        head: the lowest level.
        output: [N, channels] -> [N, outputs].
    """

    def __init__(
        self,
        *,
        arguments: dict[str, Any],
        lod: float,
        blocks: nn.ModuleDict,
        head: GrowingDiscriminatorHead,
        output: Dense | EarlyDense,
    ) -> None:
        super().__init__()
        self._arguments = arguments
        self.c_dim: int = arguments["c_dim"]
        self.resolution: int = arguments["resolution"]
        self.base_grid: Grid = arguments["base_grid"]
        self.size = size_at(self.resolution, self.base_grid)
        self.img_channels: int = arguments["img_channels"]
        self.lod = check_lod(lod, self.resolution)
        self.blocks = blocks
        self.head = head
        self.output = output

    @property
    def arguments(self) -> dict[str, Any]:
        """The constructor's arguments as JSON values, without rng; `lod` is the present one."""
        return {**self._arguments, "lod": self.lod}

    def set_lod(self, lod: float) -> None:
        """Grows (or shrinks) the network to `lod`; ValueError where there is no such level."""
        self.lod = check_lod(lod, self.resolution)

    def outputs(self, img: Tensor) -> Tensor:
        """What the last layer says of images.

        Blocks above the present level are not run. While that level fades in, its features are mixed with those that the
        next lower one sees in the averaged image (Karras et al. 2018, figure 2).

        Args:
            img: [N, img_channels, H, W] of the present level, in [-1, 1]; N a multiple of the minibatch-std group.
        Returns:
            [N, outputs] in the dtype of the weights. Differentiable any number of times.
        """
        missing, fade = split_lod(self.lod)
        grid = size_at(self.resolution >> missing, self.base_grid)
        assert tuple(img.shape[2:]) == grid, (tuple(img.shape), grid)
        img = img.to(self.output.weight.dtype)
        blocks = [block for block in self.blocks.values() if isinstance(block, GrowingDiscriminatorBlock)]
        levels: list[GrowingDiscriminatorBlock | GrowingDiscriminatorHead] = [*blocks, self.head]
        levels = levels[missing:]
        x = levels[0].look(img)
        for index, (level, below) in enumerate(pairwise(levels)):
            x = level(x)
            x = x.to(img.dtype if below.dtype is None else below.dtype)
            if index == 0 and fade:
                x = torch.lerp(x, below.look(average(img, 2)), fade)
        outputs: Tensor = self.output(self.head(x))
        return outputs
