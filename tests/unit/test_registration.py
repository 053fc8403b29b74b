"""The registered ops, called directly: what CUDA uses, with the same gradient formulas, proved on a CPU in float64.

`bias_act` goes through its op on CUDA only, so tests of the public functions do not see these formulas on a CPU.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode

from ganops.ops.bias_act import ACTIVATION_GAINS, CODES, RECTIFIERS, Activation, bias_act_reference
from ganops.ops.upfirdn2d import setup_filter, upfirdn2d_reference
from tests.tolerances import assert_close

LAYOUTS = [torch.contiguous_format, torch.channels_last]
CLAMPS = [-1.0, 0.8]
CHEAP = ("test_schema", "test_autograd_registration", "test_faketensor")
"""The parts of opcheck that take milliseconds; the last one traces forward and backward."""
ALL = (*CHEAP, "test_aot_dispatch_dynamic")
TAPS = {
    "f1331": setup_filter([1, 3, 3, 1]).double(),
    "odd": setup_filter([[1.0, -2.0, 3.0], [0.5, 4.0, 1.0]], normalize=False).double(),
    "separable": setup_filter([1, 2, -3, 5, 1], separable=True).double(),
}
GEOMETRIES = [  # up x, up y, down x, down y, left, right, top, bottom
    (1, 1, 1, 1, 1, 2, 2, 1), (2, 2, 1, 1, 2, 1, 2, 1), (1, 1, 2, 2, 1, 1, 1, 1), (2, 2, 1, 1, 3, 1, 4, 0),
    (2, 1, 1, 3, 5, 2, 3, 4), (3, 2, 2, 1, -1, 4, 5, -2), (1, 1, 2, 1, 7, 6, 9, 8),
]  # fmt: skip


def normal(*shape: int, seed: int, grad: bool = True, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (x.contiguous(memory_format=layout) if len(shape) == 4 else x).requires_grad_(grad)


def contents(activation: Activation) -> tuple[str, ...]:
    """What `bias_act` hands over beside x, by letters: of smooth functions it takes scale and noise before the op."""
    return ("", "b", "s", "bsn", "bm", "sm") if activation in RECTIFIERS else ("", "b")


def numbers(activation: Activation, clamp: float = -1.0) -> tuple[int, float, float, float]:
    """activation, alpha, gain, clamp as the op takes them; no gain is 1."""
    alpha = {"linear": 1.0, "lrelu": 0.2}.get(activation, 0.0)
    return CODES[activation], alpha, 1.3 * ACTIVATION_GAINS[activation], clamp


def tensors(present: str, layout: torch.memory_format = torch.contiguous_format) -> list[Tensor | None]:
    """x, bias, scale, noise of [2, 3, 4, 5]; without those whose letter b, s, n (shared: m) is not in `present`."""
    noise = normal(2, 1, 4, 5, seed=4) if "n" in present else normal(4, 5, seed=5) if "m" in present else None
    return [
        normal(2, 3, 4, 5, seed=1, layout=layout),
        normal(3, seed=2) if "b" in present else None,
        normal(2, 3, seed=3) if "s" in present else None,
        noise,
    ]


def derivatives(function: Callable[..., Tensor], inputs: list[Any], order: int) -> list[Tensor]:
    """The value, and for each order up to `order` the gradients of a weighted square of all that came before it."""
    leaves = [x.detach().clone().requires_grad_() if isinstance(x, Tensor) else x for x in inputs]
    wanted = [x for x in leaves if isinstance(x, Tensor)]
    found = [function(*leaves)]
    last = found
    for number in range(order):
        squares = [
            (t.square() * normal(*t.shape, seed=10 * number + index, grad=False)).sum() for index, t in enumerate(last)
        ]
        last = list(torch.autograd.grad(torch.stack(squares).sum(), wanted, create_graph=True, materialize_grads=True))
        found += last
    return [t.detach() for t in found]


def assert_same_derivatives(
    ours: Callable[..., Tensor], theirs: Callable[..., Tensor], inputs: list[Any], order: int, what: str
) -> None:
    actual, expected = (derivatives(function, inputs, order) for function in (ours, theirs))
    assert len(actual) == len(expected) > order
    assert float(expected[-1].abs().max()) > 0, "nothing to compare"
    for index, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert_close(a, b, "twin_float64", f"{what}, output {index}")


def fused(activation: Activation, clamp: float) -> Callable[..., Tensor]:
    """The op as a function of its tensors."""

    def function(x: Tensor, bias: Tensor | None, scale: Tensor | None, noise: Tensor | None) -> Tensor:
        result: Tensor = torch.ops.ganops.bias_act(x, bias, scale, noise, 1, *numbers(activation, clamp))
        return result

    return function


def definition(activation: Activation, clamp: float) -> Callable[..., Tensor]:
    def function(x: Tensor, bias: Tensor | None, scale: Tensor | None, noise: Tensor | None) -> Tensor:
        _, alpha, gain, _ = numbers(activation)
        limit = None if clamp < 0 else clamp
        return bias_act_reference(x, bias, 1, activation, alpha, gain, limit, scale, noise)

    return function


def slope(activation: Activation, order: int, clamp: float) -> Callable[..., Tensor]:
    code, *rest = numbers(activation, clamp)

    def function(gradient: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        result: Tensor = torch.ops.ganops.bias_act_slope(gradient, x, bias, 1, code, order, *rest)
        return result

    return function


def slope_arguments(activation: Activation, layout: torch.memory_format) -> list[Any]:
    """gradient, x (the result, of a rectifier) and bias. They stand in no special order to one another."""
    bias = None if activation in RECTIFIERS else normal(3, seed=2)
    return [normal(2, 3, 4, 5, seed=6, layout=layout), normal(2, 3, 4, 5, seed=1, layout=layout), bias]


def orders_of(activation: Activation) -> tuple[int, ...]:
    return (1,) if activation in RECTIFIERS else (1, 2)


@pytest.mark.parametrize("activation", ACTIVATION_GAINS)
def test_bias_act_and_its_gradients_are_the_definitions(activation: Activation) -> None:
    checked = 0
    for present, clamp, layout in itertools.product(contents(activation), CLAMPS, LAYOUTS):
        what = f"{activation} of {present!r}, clamp {clamp}, {layout}"
        inputs = tensors(present, layout)
        y = fused(activation, clamp)(*inputs)
        assert y.is_contiguous(memory_format=layout), what
        assert_same_derivatives(fused(activation, clamp), definition(activation, clamp), inputs, 2, what)
        checked += 1
    assert checked == (24 if activation in RECTIFIERS else 8)


@pytest.mark.parametrize("activation", ACTIVATION_GAINS)
def test_gradients_of_order_three(activation: Activation) -> None:
    """Of rectifiers and smooth functions alike, with the terms that clamps cut."""
    for present, clamp in itertools.product(contents(activation), CLAMPS):
        what = f"{activation} of {present!r}, clamp {clamp}"
        assert_same_derivatives(fused(activation, clamp), definition(activation, clamp), tensors(present), 3, what)


def test_bias_along_another_axis() -> None:
    """Also of tensors that are no images, as from a fully connected layer."""
    for shape, dim in (((3, 5), 1), ((3, 5), 0), ((4,), 0), ((2, 3, 4), 2), ((2, 3, 4, 5), 3)):
        for activation in ("lrelu", "linear", "tanh"):
            code, alpha, gain, clamp = numbers(activation, 0.8)

            def ours(x: Tensor, b: Tensor, dim: int = dim, rest: Any = (code, alpha, gain, clamp)) -> Tensor:
                result: Tensor = torch.ops.ganops.bias_act(x, b, None, None, dim, *rest)
                return result

            def theirs(x: Tensor, b: Tensor, dim: int = dim, name: Any = activation, gain: float = gain) -> Tensor:
                return bias_act_reference(x, b, dim, name, None, gain, 0.8)

            inputs = [normal(*shape, seed=1), normal(shape[dim], seed=2)]
            assert_same_derivatives(ours, theirs, inputs, 2, f"{activation} of {shape} along {dim}")


@pytest.mark.parametrize("activation", ACTIVATION_GAINS)
def test_bias_act_against_differences(activation: Activation) -> None:
    for present, clamp in itertools.product(("", contents(activation)[-1]), CLAMPS):
        inputs = [None if t is None else shrink(t) for t in tensors(present)]
        given = [t for t in inputs if t is not None]

        def op(*args: Tensor, inputs: Any = inputs, clamp: float = clamp) -> Tensor:
            remaining = iter(args)
            return fused(activation, clamp)(*(None if t is None else next(remaining) for t in inputs))

        assert gradcheck(op, given)
        assert gradgradcheck(lambda *args, op=op: op(*args).square(), given)


def shrink(t: Tensor) -> Tensor:
    """Fewer numbers for differences, which take two evaluations each: images become 2 x 2."""
    return (t.detach()[..., :2, :2] if t.shape[-2:] == (4, 5) else t.detach()).contiguous().requires_grad_()


@pytest.mark.parametrize("activation", ACTIVATION_GAINS)
def test_bias_act_slope_against_differences(activation: Activation) -> None:
    for order, clamp in itertools.product(orders_of(activation), CLAMPS):
        gradient, x, bias = slope_arguments(activation, torch.contiguous_format)
        given = [shrink(gradient), shrink(x)] + ([] if bias is None else [bias])
        if activation in RECTIFIERS:  # its slope is constant where it has one
            given[1] = given[1].detach().clamp(-0.8, 0.8) if clamp > 0 else given[1].detach()

        def op(gradient: Tensor, x: Tensor, bias: Tensor | None = None, order: int = order, c: float = clamp) -> Tensor:
            return slope(activation, order, c)(gradient, x, bias)

        assert gradcheck(op, given)
        assert gradgradcheck(lambda *args, op=op: op(*args).square(), given)


@pytest.mark.parametrize("activation", ACTIVATION_GAINS)
def test_bias_act_slope_is_the_derivative(activation: Activation) -> None:
    """Of order 1 and 2, by torch's own differentiation of the definition."""
    for clamp, layout in itertools.product(CLAMPS, LAYOUTS):
        _, point, bias = slope_arguments(activation, layout)
        gradient = normal(2, 3, 4, 5, seed=6, grad=False, layout=layout)
        u = (point if bias is None else point + bias[:, None, None]).detach().requires_grad_()
        y = definition(activation, clamp)(u, None, None, None)
        for order in orders_of(activation):
            (derivative,) = torch.autograd.grad(y.sum(), u, create_graph=True)
            x = y.detach() if activation in RECTIFIERS else point.detach()
            actual = slope(activation, order, clamp)(gradient, x, None if bias is None else bias.detach())
            assert actual.is_contiguous(memory_format=layout)
            what = f"{activation}, order {order}, clamp {clamp}, {layout}"
            assert_close(actual, gradient * derivative.detach(), "twin_float64", what)
            y = derivative


@pytest.mark.parametrize("activation", ACTIVATION_GAINS)
def test_bias_act_passes_the_checks_of_torch(activation: Activation) -> None:
    """Schema (nothing is changed in place, nothing aliases), autograd, shapes and strides of the fake tensors."""
    for present, clamp, layout in itertools.product(contents(activation), CLAMPS, LAYOUTS):
        x, bias, scale, noise = tensors(present, layout)
        arguments = (x, bias, scale, noise, 1, *numbers(activation, clamp))
        opcheck(torch.ops.ganops.bias_act.default, arguments, test_utils=CHEAP)
    for order, clamp, layout in itertools.product(orders_of(activation), CLAMPS, LAYOUTS):
        code, *rest = numbers(activation, clamp)
        arguments = (*slope_arguments(activation, layout), 1, code, order, *rest)
        opcheck(torch.ops.ganops.bias_act_slope.default, arguments, test_utils=CHEAP)


# torch looks at the gradients of copies that it makes itself.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("activation", ["lrelu", "tanh"])
def test_traced_ops_give_the_same(activation: Activation, layout: torch.memory_format) -> None:
    """opcheck's last part: forward and backward, traced with unknown sizes and run again."""
    code, *rest = numbers(activation, 0.8)
    opcheck(
        torch.ops.ganops.bias_act.default, (*tensors(contents(activation)[-1], layout), 1, code, *rest), test_utils=ALL
    )
    arguments = (*slope_arguments(activation, layout), 1, code, 1, *rest)
    opcheck(torch.ops.ganops.bias_act_slope.default, arguments, test_utils=ALL)
    taps = TAPS["f1331"]
    for geometry in GEOMETRIES[1:3]:
        x = normal(2, 5, 6, 4, seed=1, layout=layout)
        opcheck(torch.ops.ganops.upfirdn2d.default, (x, taps, *geometry, False, 1.3), test_utils=ALL)


def up_down(taps: str, geometry: tuple[int, ...], flip: bool) -> Callable[[Tensor], Tensor]:
    def function(x: Tensor) -> Tensor:
        result: Tensor = torch.ops.ganops.upfirdn2d(x, TAPS[taps], *geometry, flip, 1.7)
        return result

    return function


@pytest.mark.parametrize("taps", TAPS)
def test_upfirdn2d_and_its_gradients_are_the_definitions(taps: str) -> None:
    checked = 0
    for geometry, flip, layout, channels in itertools.product(GEOMETRIES, (False, True), LAYOUTS, (1, 5)):
        ux, uy, dx, dy, *padding = geometry
        filter = TAPS[taps]
        # As the public functions have it, for the definition takes the gain of separable taps once per axis.
        definition = functools.partial(
            upfirdn2d_reference, filter=filter, up=[ux, uy], down=[dx, dy], padding=padding, flip_filter=flip, gain=1.7
        )
        what = f"{taps} {geometry}, flip {flip}, {layout}, {channels} channels"
        x = normal(2, channels, 6, 5, seed=1, layout=layout)
        if channels > 1:
            assert up_down(taps, geometry, flip)(x).is_contiguous(memory_format=layout), what
        assert_same_derivatives(up_down(taps, geometry, flip), definition, [x], 2, what)
        checked += 1
    assert checked == len(GEOMETRIES) * 8


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("taps", TAPS)
def test_upfirdn2d_against_differences(taps: str, geometry: tuple[int, ...]) -> None:
    op = up_down(taps, geometry, False)
    x = normal(1, 2, 5, 4, seed=1)
    assert gradcheck(op, [x])
    assert gradgradcheck(lambda x: op(x).square(), [x])


def test_upfirdn2d_passes_the_checks_of_torch() -> None:
    for taps, geometry, layout in itertools.product(TAPS, GEOMETRIES, LAYOUTS):
        x = normal(2, 5, 6, 5, seed=1, layout=layout)
        arguments = (x, TAPS[taps], *geometry, True, 1.7)
        opcheck(torch.ops.ganops.upfirdn2d.default, arguments, test_utils=CHEAP)


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Names of the operations that run within, backward passes included."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name not in ("detach", "view", "unsqueeze", "ones_like", "alias", "expand"):  # they compute nothing
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def backward_work(y: Tensor, needed: list[Tensor]) -> list[str]:
    gradient = normal(*y.shape, seed=7, grad=False)
    recorder = Recorder()
    with recorder:
        torch.autograd.grad(y, needed, gradient)
    return recorder.names


@pytest.mark.parametrize(
    ("needed", "work"),
    [
        ("x", ["bias_act_slope", "mul"]),
        ("bias", ["bias_act_slope", "sum"]),
        ("scale", ["bias_act_slope", "mul", "sum"]),
        ("noise", ["bias_act_slope", "sum"]),
        ("x bias", ["bias_act_slope", "mul", "sum"]),
    ],
)
@pytest.mark.parametrize("activation", ["lrelu", "relu"])
def test_bias_act_computes_no_gradient_that_nobody_needs(activation: Activation, needed: str, work: list[str]) -> None:
    names = needed.split()
    given = dict(zip(("x", "bias", "scale", "noise"), tensors("bsn"), strict=True))
    given = {name: None if t is None else t.detach().requires_grad_(name in names) for name, t in given.items()}
    leaves = [t for name, t in given.items() if t is not None and name in names]
    assert backward_work(fused(activation, -1.0)(*given.values()), leaves) == work


@pytest.mark.parametrize(
    ("needed", "work"),
    [
        ("gradient", ["bias_act_slope"]),
        ("x", ["mul", "bias_act_slope"]),
        ("x bias", ["mul", "bias_act_slope", "sum"]),
    ],
)
def test_bias_act_slope_computes_no_gradient_that_nobody_needs(needed: str, work: list[str]) -> None:
    names = needed.split()
    given = dict(zip(("gradient", "x", "bias"), slope_arguments("tanh", torch.contiguous_format), strict=True))
    given = {name: t.detach().requires_grad_(name in names) for name, t in given.items()}
    leaves = [t for name, t in given.items() if name in names]
    assert backward_work(slope("tanh", 1, -1.0)(*given.values()), leaves) == work


def test_what_needs_no_gradient_has_none() -> None:
    for y in (
        fused("lrelu", 0.8)(*(None if t is None else t.detach() for t in tensors("bsn"))),
        slope("tanh", 1, 0.8)(*(t.detach() for t in slope_arguments("tanh", torch.contiguous_format))),
        up_down("f1331", GEOMETRIES[0], False)(normal(1, 2, 5, 4, seed=1, grad=False)),
    ):
        assert not y.requires_grad
    # The slope of a rectifier does not depend on where it was taken, so R1 stops there.
    gradient, x, _ = slope_arguments("lrelu", torch.contiguous_format)
    y = slope("lrelu", 1, -1.0)(gradient, x, None)
    assert torch.autograd.grad(y.sum(), [gradient, x], allow_unused=True)[1] is None


@pytest.fixture
def dynamo() -> Iterator[None]:
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("dynamo")
def test_both_ops_compile_without_a_graph_break() -> None:
    def block(x: Tensor, bias: Tensor, scale: Tensor, noise: Tensor) -> Tensor:
        y = up_down("f1331", GEOMETRIES[1], False)(x)
        result: Tensor = torch.ops.ganops.bias_act(y, bias, scale, noise, 1, *numbers("lrelu", 0.8))
        return result

    inputs = [normal(2, 3, 4, 5, seed=1), normal(3, seed=2), normal(2, 3, seed=3), normal(8, 10, seed=4)]
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")  # raises at a break
    found = []
    for function in (block, compiled):
        y = function(*inputs)
        found.append([y.detach(), *torch.autograd.grad(y.square().sum(), inputs)])
    for index, (expected, actual) in enumerate(zip(*found, strict=True)):
        assert_close(actual, expected, "twin_float64", f"output {index}")
