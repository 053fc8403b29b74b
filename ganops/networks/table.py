"""What a network is made of: a table to print when training starts."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ganops.networks.early_layers import EarlyConv, EarlyDense
from ganops.networks.families import AnyDiscriminator, AnyGenerator
from ganops.networks.growing import Grid, grid_name, level_resolutions
from ganops.networks.joint_mapping import LabelMatrix
from ganops.networks.layers import Conv, Dense, SynthesisLayer, ToRGB
from ganops.networks.pggan_generator import PGGANFirst
from ganops.networks.stylegan1_layers import Epilogue, StyledConv
from ganops.networks.stylegan2_discriminator import Discriminator
from ganops.networks.stylegan2_generator import Generator
from ganops.shape import size_at

LAYERS = (Conv, Dense, SynthesisLayer, ToRGB, EarlyConv, EarlyDense, LabelMatrix, PGGANFirst, Epilogue, StyledConv)
"""What has a row. A layer inside a layer has none."""


@dataclass(frozen=True)
class LayerRow:
    """One layer: its name as in the published tables, its number of trainable parameters, its output for one image."""

    name: str
    num_parameters: int
    output_shape: tuple[int, ...]


def layer_table(network: AnyGenerator | AnyDiscriminator) -> tuple[LayerRow, ...]:
    """The layers in the order of the data. Costs no computation: a copy of the network runs on the meta device.

    Args:
        network: any device, any precision, however far it has grown; left as it is.
    Returns:
        One row per layer, also of those that a growing network does not use yet or any more; an affine transformation of
        styles is part of its layer. The numbers add up to all trainable parameters.
    """
    with torch.device("meta"):
        copy = type(network)(**network.arguments, rng=None)
    rows: dict[str, LayerRow] = {}

    def watch(name: str, module: nn.Module) -> None:
        def note(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            rows[name] = LayerRow(_published_name(name, copy), _count(module), tuple(output.shape[1:]))

        module.register_forward_hook(note)

    for name, module in copy.named_modules():
        inside_layer = isinstance(copy.get_submodule(name.rpartition(".")[0]), LAYERS)
        if isinstance(module, LAYERS) and not inside_layer:
            watch(name, module)
    with torch.device("meta"):
        if isinstance(copy, Generator | Discriminator):
            _run(copy, copy.resolution)
        else:
            # An image layer runs while its level is the topmost one: all do in turn.
            for lod, r in enumerate(reversed(level_resolutions(copy.resolution))):
                copy.set_lod(lod)
                _run(copy, r)
    for name, const in copy.named_parameters():
        if name.endswith(".const"):
            rows[name] = LayerRow(_published_name(name, copy), const.numel(), tuple(const.shape))
    # In the order in which the modules were made: a block's skip branch after its convolutions. Constants are first.
    order = {name: index for index, (name, _) in enumerate(copy.named_modules())}
    return tuple(rows[name] for name in sorted(rows, key=lambda name: order[name.removesuffix(".const")]))


def _run(network: AnyGenerator | AnyDiscriminator, r: int) -> None:
    """Sends one image of nominal resolution r through a network."""
    c = torch.zeros(1, network.c_dim)
    if isinstance(network, AnyGenerator):
        network(torch.zeros(1, network.z_dim), c, 1.0, None, "none", None)
    else:
        network(torch.zeros(1, network.img_channels, *size_at(r, _base_grid(network))), c)


def _base_grid(network: AnyGenerator | AnyDiscriminator) -> Grid:
    height, width = network.arguments["base_grid"]
    return height, width


def format_table(rows: tuple[LayerRow, ...]) -> str:
    """Aligned text: name, parameters, output shape, and the total below."""
    total = sum(row.num_parameters for row in rows)
    cells = [(row.name, f"{row.num_parameters:,}", "x".join(map(str, row.output_shape))) for row in rows]
    cells = [("layer", "parameters", "output"), *cells, ("total", f"{total:,}", "")]
    widths = [max(len(line[column]) for line in cells) for column in range(3)]
    lines = (f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c}".rstrip() for a, b, c in cells)
    return "\n".join(lines)


def _published_name(name: str, network: AnyGenerator | AnyDiscriminator) -> str:
    lowest = grid_name(_base_grid(network))
    return name.replace("blocks.", "").replace("layers.", "").replace("head.", f"{lowest}.")


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def describe_networks(G: AnyGenerator, D: AnyDiscriminator) -> str:
    """The tables of both networks, one below the other."""
    return f"Generator\n{format_table(layer_table(G))}\n\nDiscriminator\n{format_table(layer_table(D))}"
