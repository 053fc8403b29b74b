"""The layers of Inception-2015: a table, and the network that is built from it and a state dict's tensors.

Szegedy et al. 2015 (Rethinking the Inception Architecture for Computer Vision), as published by Google on 2015-12-05.
Batch norms are folded into convolutions, and pixels hold their channels together ("channels last").
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

FEATURES = 2048
NORM_EPSILON = 1e-3  # of the batch norms


@dataclass(frozen=True)
class Conv:
    """Convolution, batch norm, ReLU. With `padded` a stride of 1 keeps the size. `name` as in the state dict."""

    name: str
    outputs: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    padded: bool = True


@dataclass(frozen=True)
class Pool:
    """Over 3x3 pixels. With stride 1 it keeps the size, and averages leave out what lies outside the image."""

    kind: Literal["max", "average"]
    stride: int


@dataclass(frozen=True)
class Fork:
    """Branches from one input; their outputs are joined, channels after channels. `name` precedes those within."""

    name: str
    branches: tuple[tuple["Conv | Pool | Fork", ...], ...]


Step = Conv | Pool | Fork
AVERAGE, MAX, HALVE = Pool("average", 1), Pool("max", 1), Pool("max", 2)


def _three(name: str, outputs: int, stride: int = 1, padded: bool = True) -> Conv:
    return Conv(name, outputs, (3, 3), stride, padded)


def _block_35(name: str, pooled: int) -> Fork:
    """At 35x35 pixels (figure 5 of the paper)."""
    return Fork(
        name,
        (
            (Conv("branch1x1", 64),),
            (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, (5, 5))),
            (Conv("branch3x3dbl_1", 64), _three("branch3x3dbl_2", 96), _three("branch3x3dbl_3", 96)),
            (AVERAGE, Conv("branch_pool", pooled)),
        ),
    )


def _block_35_to_17(name: str) -> Fork:
    """Halves the size (figure 10)."""
    return Fork(
        name,
        (
            (_three("branch3x3", 384, 2, False),),
            (Conv("branch3x3dbl_1", 64), _three("branch3x3dbl_2", 96), _three("branch3x3dbl_3", 96, 2, False)),
            (HALVE,),
        ),
    )


def _block_17(name: str, inner: int) -> Fork:
    """At 17x17 pixels, 7x7 factorised (figure 6)."""
    return Fork(
        name,
        (
            (Conv("branch1x1", 192),),
            (Conv("branch7x7_1", inner), Conv("branch7x7_2", inner, (1, 7)), Conv("branch7x7_3", 192, (7, 1))),
            (
                Conv("branch7x7dbl_1", inner),
                Conv("branch7x7dbl_2", inner, (7, 1)),
                Conv("branch7x7dbl_3", inner, (1, 7)),
                Conv("branch7x7dbl_4", inner, (7, 1)),
                Conv("branch7x7dbl_5", 192, (1, 7)),
            ),
            (AVERAGE, Conv("branch_pool", 192)),
        ),
    )


def _block_17_to_8(name: str) -> Fork:
    """Halves the size."""
    return Fork(
        name,
        (
            (Conv("branch3x3_1", 192), _three("branch3x3_2", 320, 2, False)),
            (
                Conv("branch7x7x3_1", 192),
                Conv("branch7x7x3_2", 192, (1, 7)),
                Conv("branch7x7x3_3", 192, (7, 1)),
                _three("branch7x7x3_4", 192, 2, False),
            ),
            (HALVE,),
        ),
    )


def _block_8(name: str, pool: Pool) -> Fork:
    """At 8x8 pixels, the widest (figure 7)."""

    def wide(first: str, second: str) -> Fork:
        return Fork("", ((Conv(first, 384, (1, 3)),), (Conv(second, 384, (3, 1)),)))

    return Fork(
        name,
        (
            (Conv("branch1x1", 320),),
            (Conv("branch3x3_1", 384), wide("branch3x3_2a", "branch3x3_2b")),
            (
                Conv("branch3x3dbl_1", 448),
                _three("branch3x3dbl_2", 384),
                wide("branch3x3dbl_3a", "branch3x3dbl_3b"),
            ),
            (pool, Conv("branch_pool", 192)),
        ),
    )


STEPS: tuple[Step, ...] = (
    _three("Conv2d_1a_3x3", 32, 2, False),  # 149 px
    _three("Conv2d_2a_3x3", 32, 1, False),  # 147
    _three("Conv2d_2b_3x3", 64),
    HALVE,  # 73
    Conv("Conv2d_3b_1x1", 80),
    _three("Conv2d_4a_3x3", 192, 1, False),  # 71
    HALVE,  # 35
    _block_35("Mixed_5b", 32),
    _block_35("Mixed_5c", 64),
    _block_35("Mixed_5d", 64),
    _block_35_to_17("Mixed_6a"),
    _block_17("Mixed_6b", 128),
    _block_17("Mixed_6c", 160),
    _block_17("Mixed_6d", 160),
    _block_17("Mixed_6e", 192),
    _block_17_to_8("Mixed_7a"),
    _block_8("Mixed_7b", AVERAGE),
    _block_8("Mixed_7c", MAX),  # an average in the paper, a maximum in what Google published
)


class Branches(nn.Module):
    """What a `Fork` computes: [N, C, H, W] -> [N, sum of the branches' channels, H', W']."""

    def __init__(self, branches: list[nn.Module]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], 1)


class Network(nn.Module):
    """[N, 3, 299, 299] in [-1, 1], of the weights' type, -> [N, 2048] float32."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layers(x).float().mean([2, 3])
        return features


def conv_names(steps: tuple[Step, ...] = STEPS, prefix: str = "") -> Iterator[str]:
    """Names of all convolutions, as the state dict has them and in its order."""
    for step in steps:
        if isinstance(step, Conv):
            yield prefix + step.name
        elif isinstance(step, Fork):
            for branch in step.branches:
                yield from conv_names(branch, f"{prefix}{step.name}." if step.name else prefix)


def build_network(state: Mapping[str, Tensor]) -> Network:
    """The network with these weights, for inference, float32 on the CPU, channels last.

    Args:
        state: names of the published state dict -> tensors; more (of the training's second output) are left out.
    Raises:
        ValueError: a tensor is missing or has another shape.
    """
    layers, channels = _build(STEPS, 3, "", state)
    assert channels == FEATURES
    return Network(layers).eval().requires_grad_(False)


def _build(steps: tuple[Step, ...], inputs: int, prefix: str, state: Mapping[str, Tensor]) -> tuple[nn.Sequential, int]:
    """The layers of `steps`, and how many channels they give."""
    layers: list[nn.Module] = []
    for step in steps:
        if isinstance(step, Conv):
            layers += [_build_conv(step, inputs, prefix + step.name, state), nn.ReLU(inplace=True)]
            inputs = step.outputs
        elif isinstance(step, Fork):
            inner = f"{prefix}{step.name}." if step.name else prefix
            built = [_build(branch, inputs, inner, state) for branch in step.branches]
            layers.append(Branches([branch for branch, _ in built]))
            inputs = sum(outputs for _, outputs in built)
        elif step.kind == "max":
            layers.append(nn.MaxPool2d(3, step.stride, padding=2 - step.stride))
        else:
            layers.append(nn.AvgPool2d(3, step.stride, padding=2 - step.stride, count_include_pad=False))
    return nn.Sequential(*layers), inputs


def _build_conv(step: Conv, inputs: int, name: str, state: Mapping[str, Tensor]) -> nn.Conv2d:
    """A convolution with its batch norm multiplied into it, in float64."""

    def tensor(part: str, *shape: int) -> Tensor:
        found = state.get(f"{name}.{part}")
        if found is None or found.shape != shape:
            is_there = f"is {list(found.shape)}" if found is not None else "is missing"
            raise ValueError(f"{name}.{part} {is_there}, expected {list(shape)}")
        return found.double()

    outputs, (height, width) = step.outputs, step.kernel
    weight = tensor("conv.weight", outputs, inputs, height, width)
    variance = tensor("bn.running_var", outputs)
    gain = tensor("bn.weight", outputs) * (variance + NORM_EPSILON).rsqrt()
    bias = tensor("bn.bias", outputs) - tensor("bn.running_mean", outputs) * gain
    padding = (height // 2, width // 2) if step.padded else (0, 0)
    # On no device: initial weights would cost time and draw from the global random state.
    conv = nn.Conv2d(inputs, outputs, step.kernel, step.stride, padding, device="meta")
    folded = (weight * gain[:, None, None, None]).float().contiguous(memory_format=torch.channels_last)
    conv.weight, conv.bias = nn.Parameter(folded), nn.Parameter(bias.float())
    return conv
