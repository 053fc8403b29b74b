"""What a network is made of: a table to print when training starts."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ganops.networks.layers import Conv, Dense, SynthesisLayer, ToRGB
from ganops.networks.stylegan2_discriminator import Discriminator
from ganops.networks.stylegan2_generator import Generator


@dataclass(frozen=True)
class LayerRow:
    """One layer: its name as in the published tables, its number of trainable parameters, its output for one image."""

    name: str
    num_parameters: int
    output_shape: tuple[int, ...]


def layer_table(network: Generator | Discriminator) -> tuple[LayerRow, ...]:
    """The layers in the order of the data. Costs no computation: a copy of the network runs on the meta device.

    Args:
        network: any device, any precision; left as it is.
    Returns:
        One row per layer, an affine transformation of styles being part of its layer. The numbers add up to all
        trainable parameters.
    """
    with torch.device("meta"):
        copy = type(network)(**network.arguments, rng=None)
    rows: list[LayerRow] = []

    def watch(name: str, module: nn.Module) -> None:
        def note(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            rows.append(LayerRow(_published_name(name), _count(module), tuple(output.shape[1:])))

        module.register_forward_hook(note)

    for name, module in copy.named_modules():
        inside_layer = isinstance(copy.get_submodule(name.rpartition(".")[0]), SynthesisLayer | ToRGB)
        if isinstance(module, Conv | Dense | SynthesisLayer | ToRGB) and not inside_layer:
            watch(name, module)
    with torch.device("meta"):
        c = torch.zeros(1, copy.c_dim)
        if isinstance(copy, Generator):
            copy(torch.zeros(1, copy.z_dim), c, 1.0, None, "none", None)
            const = copy.synthesis.blocks["4x4"].const
            assert isinstance(const, Tensor)
            row = LayerRow("synthesis.4x4.const", const.numel(), tuple(const.shape))
            rows.insert(next(i for i, other in enumerate(rows) if other.name.startswith("synthesis.")), row)
        else:
            copy(torch.zeros(1, copy.img_channels, copy.resolution, copy.resolution), c)
    return tuple(_sorted_like(rows, copy))


def format_table(rows: tuple[LayerRow, ...]) -> str:
    """Aligned text: name, parameters, output shape, and the total below."""
    total = sum(row.num_parameters for row in rows)
    cells = [(row.name, f"{row.num_parameters:,}", "x".join(map(str, row.output_shape))) for row in rows]
    cells = [("layer", "parameters", "output"), *cells, ("total", f"{total:,}", "")]
    widths = [max(len(line[column]) for line in cells) for column in range(3)]
    lines = (f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c}".rstrip() for a, b, c in cells)
    return "\n".join(lines)


def _sorted_like(rows: list[LayerRow], network: nn.Module) -> list[LayerRow]:
    """Rows in the order in which the modules were made: a block's skip branch after its convolutions."""
    order = {_published_name(name): index for index, (name, _) in enumerate(network.named_modules())}
    position = {row.name: order[row.name.removesuffix(".const")] for row in rows}
    return sorted(rows, key=lambda row: position[row.name])


def _published_name(name: str) -> str:
    return name.replace("blocks.", "").replace("layers.", "").replace("head.", "4x4.")


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def describe_networks(G: Generator, D: Discriminator) -> str:
    """The tables of both networks, one below the other."""
    return f"Generator\n{format_table(layer_table(G))}\n\nDiscriminator\n{format_table(layer_table(D))}"
