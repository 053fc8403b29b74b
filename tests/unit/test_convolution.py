"""Convolutions that are differentiated twice: the op against torch's own, on a CPU, where only these tests choose it."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from ganops.networks.layers import Architecture
from ganops.ops import convolution
from ganops.ops.bias_act import CODES
from ganops.ops.conv2d_resample import conv2d_resample, conv2d_resample_reference
from ganops.ops.convolution import conv2d, conv_transpose2d, differentiated_twice
from ganops.ops.upfirdn2d import setup_filter
from ganops.training.losses import Latents, dr1_loss, gpl_loss
from tests.tolerances import assert_close
from tests.unit.test_networks import ARCHITECTURES, latents, make_discriminator, make_generator, seeded
from tests.unit.test_registration import ALL, CHEAP, LAYOUTS, assert_same_derivatives, normal

CPU = torch.device("cpu")
DTYPES = {
    torch.float64: "twin_float64",
    torch.float32: "twin_float32",
    torch.float16: "twin_bfloat16",
    torch.bfloat16: "twin_bfloat16",
}
GEOMETRIES: dict[str, tuple[int, Any, Any, bool, int, tuple[int, int]]] = {
    # stride, padding, output padding, transposed, groups, kernel
    "same": (1, 1, 0, False, 1, (3, 3)),
    "valid": (1, 0, 0, False, 1, (3, 2)),
    "uneven padding": (1, (2, 0), 0, False, 1, (3, 1)),
    "stride": (2, 0, 0, False, 1, (3, 3)),
    "stride, padding": (3, (1, 2), 0, False, 2, (3, 3)),
    "1x1": (1, 0, 0, False, 1, (1, 1)),
    "1x1, stride, groups": (2, 0, 0, False, 2, (1, 1)),
    "groups": (1, 1, 0, False, 2, (3, 3)),
    "transposed": (2, 0, 0, True, 1, (3, 3)),
    "transposed, no stride": (1, (0, 1), 0, True, 1, (2, 3)),
    "transposed, all": (3, 1, (2, 1), True, 2, (3, 4)),
    "transposed 1x1": (2, 0, 0, True, 1, (1, 1)),  # torch's own writes outside of its memory with output padding 1
}
SIZES = [(6, 5), (7, 8)]
"""With a stride of 2 or 3 the last rows and columns are used or left over."""


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU too."""
    monkeypatch.setattr(convolution, "DEVICES", ("cpu", "cuda"))


def ours(geometry: str) -> Callable[[Tensor, Tensor], Tensor]:
    stride, padding, extra, transposed, groups, _ = GEOMETRIES[geometry]

    def function(x: Tensor, weight: Tensor) -> Tensor:
        with differentiated_twice():
            if transposed:
                return conv_transpose2d(x, weight, stride, padding, extra, groups)
            return conv2d(x, weight, stride, padding, groups)

    return function


def torchs(geometry: str) -> Callable[[Tensor, Tensor], Tensor]:
    stride, padding, extra, transposed, groups, _ = GEOMETRIES[geometry]

    def function(x: Tensor, weight: Tensor) -> Tensor:
        if transposed:
            return F.conv_transpose2d(x, weight, None, stride, padding, extra, groups)
        return F.conv2d(x, weight, None, stride, padding, 1, groups)

    return function


def pair(number: Any) -> list[int]:
    return [number, number] if isinstance(number, int) else list(number)


def numbers(geometry: str) -> tuple[Any, ...]:
    """As the op takes them."""
    stride, padding, extra, transposed, groups, _ = GEOMETRIES[geometry]
    return pair(stride), pair(padding), pair(extra), transposed, groups


def inputs(
    geometry: str,
    size: tuple[int, int] = SIZES[0],
    layouts: Any = LAYOUTS[:1] * 2,
    dtype: torch.dtype = torch.float64,
    channels: tuple[int, int] = (4, 6),
) -> list[Tensor]:
    """x [2, 4, H, W] and the weight for 6 channels, each with its layout."""
    _, _, _, transposed, groups, k = GEOMETRIES[geometry]
    C, O = channels
    shape = (C, O // groups, *k) if transposed else (O, C // groups, *k)
    x, weight = normal(2, C, *size, seed=1, layout=layouts[0]), normal(*shape, seed=2, layout=layouts[1])
    return [t.detach().to(dtype).requires_grad_() for t in (x, weight)]


def weight_gradient_arguments(
    geometry: str, x: Tensor, weight: Tensor, layout: torch.memory_format = LAYOUTS[0]
) -> tuple[Any, ...]:
    """As `conv2d_weight_gradient` takes them: gradient, x, and numbers; of a transposed convolution exchanged."""
    stride, padding, _, transposed, groups = numbers(geometry)
    y = torchs(geometry)(x, weight)
    gradient = normal(*y.shape, seed=3, layout=layout).detach().to(y).requires_grad_()
    small, large = (x, gradient) if transposed else (gradient, x)
    return small, large, list(weight.shape), stride, padding, groups


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """The convolutions that run within, backward passes included, and the sizes of their kernels."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []
        self.kernels: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if "conv" in name:
            self.names.append(name)
        if name in ("aten::convolution", "ganops::conv2d"):
            self.kernels.append(max(args[1].shape[2:]))
        elif name in ("aten::convolution_backward", "ganops::conv2d_weight_gradient"):
            self.kernels.append(max(args[2].shape[2:] if name.startswith("aten") else args[2][2:]))
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("chosen")
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_values_and_gradients_are_those_of_torch(geometry: str) -> None:
    # torch's own derivatives end at the second if there is output padding ("not supported for non-transposed").
    order = 2 if GEOMETRIES[geometry][2] else 3
    for size, x_layout, w_layout in itertools.product(SIZES, LAYOUTS, LAYOUTS):
        given = inputs(geometry, size, (x_layout, w_layout))
        what = f"{geometry} of {size}, {x_layout}, {w_layout}"
        assert_same_derivatives(ours(geometry), torchs(geometry), given, order, what)


@pytest.mark.usefixtures("chosen")
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_conv2d_against_differences(geometry: str) -> None:
    given = inputs(geometry, (5, 4), channels=(2, 2))
    with Recorder() as recorder:
        assert gradcheck(ours(geometry), given)
        assert gradgradcheck(ours(geometry), given)
    assert {name.split("::")[0] for name in recorder.names} == {"ganops"}


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_weight_gradient_against_differences(geometry: str) -> None:
    x, weight = inputs(geometry, (5, 4), channels=(2, 2))
    gradient, x, *rest = weight_gradient_arguments(geometry, x, weight)

    def op(gradient: Tensor, x: Tensor) -> Tensor:
        result: Tensor = torch.ops.ganops.conv2d_weight_gradient(gradient, x, *rest)
        return result

    assert gradcheck(op, [gradient, x])
    assert gradgradcheck(op, [gradient, x])


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_ops_pass_the_checks_of_torch(geometry: str) -> None:
    """Schema, autograd, and the strides of fake tensors, for all layouts and dtypes."""
    for dtype, x_layout, w_layout in itertools.product(DTYPES, LAYOUTS, LAYOUTS):
        x, weight = inputs(geometry, layouts=(x_layout, w_layout), dtype=dtype)
        opcheck(torch.ops.ganops.conv2d.default, (x, weight, *numbers(geometry)), test_utils=CHEAP)
        arguments = weight_gradient_arguments(geometry, x, weight, w_layout)
        opcheck(torch.ops.ganops.conv2d_weight_gradient.default, arguments, test_utils=CHEAP)


# torch looks at the gradients of copies that it makes itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("geometry", ["same", "stride", "transposed, all"])
def test_traced_ops_give_the_same(geometry: str) -> None:
    for layout in LAYOUTS:
        x, weight = inputs(geometry, layouts=(layout, LAYOUTS[0]))
        opcheck(torch.ops.ganops.conv2d.default, (x, weight, *numbers(geometry)), test_utils=ALL)
        arguments = weight_gradient_arguments(geometry, x, weight, layout)
        opcheck(torch.ops.ganops.conv2d_weight_gradient.default, arguments, test_utils=ALL)


@pytest.mark.usefixtures("chosen")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_dtypes_and_formats_are_those_of_torch(geometry: str, dtype: torch.dtype) -> None:
    """Of values and gradients, whatever format the incoming gradient has."""
    for x_layout, dy_layout in itertools.product(LAYOUTS, LAYOUTS):
        given = inputs(geometry, layouts=(x_layout, LAYOUTS[0]), dtype=dtype)
        exact = [t.detach().double().requires_grad_() for t in given]
        results, dy = [], None
        for function, leaves in ((ours, given), (torchs, given), (torchs, exact)):
            y = function(geometry)(*leaves)
            if dy is None:
                dy = normal(*y.shape, seed=3, layout=dy_layout).detach().to(dtype)
            results.append([y.detach(), *torch.autograd.grad(y, leaves, dy.to(y.dtype))])
        for index, (actual, plain, expected) in enumerate(zip(*results, strict=True)):
            what = f"output {index}, {x_layout}, {dy_layout}"
            assert actual.dtype == dtype, what
            assert_close(actual, expected, DTYPES[dtype], what)
            for layout in LAYOUTS:
                assert actual.is_contiguous(memory_format=layout) == plain.is_contiguous(memory_format=layout), what


@pytest.mark.usefixtures("chosen")
@pytest.mark.parametrize(
    ("needed", "work"),
    [
        ([True, False], ["ganops::conv2d"]),
        ([False, True], ["ganops::conv2d_weight_gradient"]),
        ([True, True], ["ganops::conv2d", "ganops::conv2d_weight_gradient"]),
    ],
)
@pytest.mark.parametrize("geometry", ["stride", "transposed"])
def test_no_gradient_is_computed_that_nobody_needs(geometry: str, needed: list[bool], work: list[str]) -> None:
    given = [t.requires_grad_(wanted) for t, wanted in zip(inputs(geometry), needed, strict=True)]
    y = ours(geometry)(*given)
    with Recorder() as recorder:
        torch.autograd.grad(y.sum(), [t for t in given if t.requires_grad])
    assert recorder.names == work

    gradient, x, *rest = weight_gradient_arguments(geometry, *inputs(geometry))
    given = [t.detach().requires_grad_(wanted) for t, wanted in zip((gradient, x), needed, strict=True)]
    y = torch.ops.ganops.conv2d_weight_gradient(*given, *rest)
    with Recorder() as recorder:
        torch.autograd.grad(y.sum(), [t for t in given if t.requires_grad])
    assert recorder.names == ["ganops::conv2d"] * sum(needed)


@pytest.mark.usefixtures("chosen")
def test_where_no_gradient_arrives_nothing_is_computed() -> None:
    """None, as with torch's own, and no convolution of zeros."""
    gradient, x, *rest = weight_gradient_arguments("same", *inputs("same"))
    x, weight = inputs("same")
    lrelu = (CODES["lrelu"], 1, 0.2, 1.0, -1.0)
    for function in (
        lambda: ours("same")(x, weight),
        lambda: torch.ops.ganops.conv2d_weight_gradient(gradient, x, *rest),
    ):
        # The slope of a rectifier is constant, so that nothing flows to where it was taken.
        y = function()
        slope = torch.ops.ganops.bias_act_slope(torch.ones_like(y), y, None, 1, *lrelu)
        with Recorder() as recorder:
            found = torch.autograd.grad(slope.sum(), [gradient, x, weight], allow_unused=True)
        assert found == (None, None, None)
        assert recorder.names == []


def test_a_cpu_and_what_is_differentiated_once_have_torchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same bits, and no op of ours."""

    def results(geometry: str, function: Callable[[Tensor, Tensor], Tensor]) -> tuple[list[Tensor], list[str]]:
        given = inputs(geometry, dtype=torch.float32)
        with Recorder() as recorder:
            y = function(*given)
            return [y, *torch.autograd.grad(y.square().sum(), given)], recorder.names

    for geometry in GEOMETRIES:
        expected, _ = results(geometry, torchs(geometry))
        actual, names = results(geometry, ours(geometry))
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))
        assert {name.split("::")[0] for name in names} == {"aten"}
    monkeypatch.setattr(convolution, "DEVICES", ("cpu",))
    x, weight = inputs("same")
    with Recorder() as recorder:
        conv2d(x, weight)
        with differentiated_twice():
            conv2d(x, weight)
            with differentiated_twice():
                conv_transpose2d(x, weight.transpose(0, 1))
            conv2d(x, weight)
        conv2d(x, weight)
        with pytest.raises(ZeroDivisionError), differentiated_twice():
            raise ZeroDivisionError
        conv_transpose2d(x, weight.transpose(0, 1))
    assert [name.split("::")[0] for name in recorder.names] == ["aten", *["ganops"] * 3, "aten", "aten"]


@pytest.mark.usefixtures("chosen")
def test_conv2d_resample_with_it_is_its_definition() -> None:
    taps = setup_filter([1, 3, 3, 1])
    for (up, down), groups, flip, k in itertools.product([(1, 1), (2, 1), (1, 2)], [1, 2], [True, False], [1, 3]):
        given = [normal(2, 4, 6, 7, seed=1), normal(6, 4 // groups, k, k, seed=2)]
        settings: dict[str, Any] = {"up": up, "down": down, "padding": k // 2, "groups": groups, "flip_weight": flip}

        def op(x: Tensor, weight: Tensor, settings: Any = settings) -> Tensor:
            with differentiated_twice():
                return conv2d_resample(x, weight, taps, **settings)

        def definition(x: Tensor, weight: Tensor, settings: Any = settings) -> Tensor:
            return conv2d_resample_reference(x, weight, taps, **settings)

        assert_same_derivatives(op, definition, given, 2, f"{settings}, k {k}")


def r1(architecture: Architecture, device: torch.device = CPU) -> tuple[nn.Module, Tensor]:
    """A small discriminator in float64 and its penalty, computed within `differentiated_twice`."""
    D = make_discriminator(seeded(1), c_dim=3, architecture=architecture).double().to(device)
    real, c = normal(4, 3, 16, 16, seed=2, grad=False), torch.eye(3, dtype=torch.float64)[[0, 1, 2, 0]]
    with differentiated_twice():
        return D, dr1_loss(D, real.to(device), c.to(device), 10.0).loss.sum()


def path_length(architecture: Architecture, device: torch.device = CPU) -> tuple[nn.Module, Tensor]:
    """The same of a generator."""
    G = make_generator(seeded(), c_dim=3, architecture=architecture).double().to(device)
    z, c = (t.double().to(device) for t in latents(G))
    y, pl_mean = normal(4, 3, 16, 16, seed=2, grad=False).to(device), torch.tensor(0.4).double().to(device)
    with differentiated_twice():
        return G, gpl_loss(G, Latents(z, c, None, None), y, pl_mean, 0.1, 2.0, "const", None).loss.sum()


REGULARISERS: list[Callable[..., tuple[nn.Module, Tensor]]] = [r1, path_length]


def training_gradients(network: nn.Module, loss: Tensor) -> tuple[dict[str, Tensor | None], Recorder]:
    """Of all parameters; the backward pass runs outside of `differentiated_twice`, as in training."""
    with Recorder() as recorder:
        loss.backward()  # type: ignore[no-untyped-call]
    return {name: parameter.grad for name, parameter in network.named_parameters()}, recorder


def assert_same_gradients(actual: dict[str, Tensor | None], expected: dict[str, Tensor | None], tolerance: str) -> None:
    """And that the same parameters have none."""
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        found = actual[name]
        assert (found is None) == (gradient is None), name
        if gradient is not None:
            assert_close(found, gradient, tolerance, name)
    assert sum(gradient is not None and bool(gradient.any()) for gradient in actual.values()) > 10


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("regulariser", REGULARISERS)
def test_regularisers_have_the_same_gradients_from_small_kernels(
    regulariser: Callable[..., tuple[nn.Module, Tensor]], architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And torch's own double backward convolves with whole images, which is the reason for the op."""
    expected, without = training_gradients(*regulariser(architecture))
    monkeypatch.setattr(convolution, "DEVICES", ("cpu",))
    actual, recorder = training_gradients(*regulariser(architecture))
    assert max(without.kernels) == 16
    assert max(recorder.kernels) == 3
    assert {name.split("::")[0] for name in without.names} == {"aten"}
    assert {name.split("::")[0] for name in recorder.names} == {"ganops"}
    assert_same_gradients(actual, expected, "twin_float64")
