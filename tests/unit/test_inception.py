"""Inception-2015: the names of its layers, and how a TorchScript file's tensors get them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torchvision.models import inception_v3

from ganops.metrics.inception import name_tensors
from ganops.metrics.inception_network import build_network, conv_names


def published_state() -> dict[str, Tensor]:
    """Shapes only."""
    with torch.device("meta"):
        network = inception_v3(
            weights=None, init_weights=False, transform_input=False, aux_logits=False, num_classes=1008
        )
    return network.state_dict()


def test_layers_are_those_of_torchvision() -> None:
    names = [name.removesuffix(".conv.weight") for name in published_state() if name.endswith(".conv.weight")]
    assert list(conv_names()) == names
    assert len(names) == 94


def renamed(rename: Callable[[str, str], str], order: tuple[str, ...]) -> dict[str, Tensor]:
    """The published tensors under other names, each convolution's parts in this order."""
    state, found = published_state(), {}
    for number, name in enumerate(conv_names()):
        for part in order:
            found[rename(f"layers.{number}", part)] = state[f"{name}.{part}"]
    return found


LAYOUTS = {
    "torch": (
        lambda conv, part: f"{conv}.{part}",
        ("conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var"),
    ),
    "one module": (
        lambda conv, part: f"{conv}." + {"conv.weight": "weight", "bn.bias": "beta"}.get(part, part[-4:].strip("_g")),
        ("conv.weight", "bn.bias", "bn.running_mean", "bn.running_var"),
    ),
    "moments first": (
        lambda conv, part: f"{conv}.{part}",
        ("bn.running_var", "bn.running_mean", "bn.bias", "conv.weight"),
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tensors_are_known_by_their_structure(layout: str) -> None:
    rename, order = LAYOUTS[layout]
    tensors = renamed(rename, order)
    classes = torch.empty(2048, 1008, device="meta")
    named = name_tensors({"output.bias": torch.empty(1008), **tensors, "output.weight": classes})
    for name, tensor in published_state().items():
        if name.endswith("num_batches_tracked") or name == "fc.bias":
            continue
        assert named[name].shape == tensor.shape, name
    for number, name in enumerate(conv_names()):
        for part in order:
            assert named[f"{name}.{part}"] is tensors[rename(f"layers.{number}", part)]
        if "bn.weight" not in order:
            assert bool((named[f"{name}.bn.weight"] == 1).all())


def test_another_structure_is_refused() -> None:
    state = published_state()
    with pytest.raises(ValueError, match="0 convolutions, expected 94"):
        name_tensors({})
    del state["Mixed_7c.branch_pool.conv.weight"]
    with pytest.raises(
        ValueError, match=r"Mixed_7c\.branch_pool\.conv\.weight is missing, expected \[192, 2048, 1, 1\]"
    ):
        build_network(name_tensors(state))
    state = published_state()
    swapped = state["Mixed_6b.branch7x7_2.conv.weight"]
    state["Mixed_6b.branch7x7_2.conv.weight"] = swapped.transpose(2, 3)
    with pytest.raises(ValueError, match=r"is \[128, 128, 7, 1\], expected \[128, 128, 1, 7\]"):
        build_network(state)


def test_batch_norms_are_folded() -> None:
    """The first convolution, against the two operations one after the other in float64."""
    rng = torch.Generator().manual_seed(0)
    state = {name: torch.empty(tensor.shape) for name, tensor in published_state().items()}
    for name in list(state):
        if name.startswith("Conv2d_1a_3x3."):
            state[name] = torch.rand(state[name].shape, generator=rng) + 0.5
    first = build_network(state).layers[0]
    img = torch.randn([1, 3, 9, 9], generator=rng)
    part = {name.removeprefix("Conv2d_1a_3x3."): tensor.double() for name, tensor in state.items()}
    expected = torch.nn.functional.batch_norm(
        torch.nn.functional.conv2d(img.double(), part["conv.weight"], stride=2),
        part["bn.running_mean"],
        part["bn.running_var"],
        part["bn.weight"],
        part["bn.bias"],
        eps=1e-3,
    )
    assert float((first(img) - expected).abs().max() / expected.abs().max()) < 1e-6
