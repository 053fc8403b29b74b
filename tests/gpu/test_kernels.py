"""The CUDA kernels on a CUDA device, against the definitions in float64: numbers, gradients, memory, streams, training."""

import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.utils._triton import has_triton

from ganops.distributed import configure_numerics
from ganops.errors import OpsError
from ganops.ops._build import find_toolkit
from ganops.ops.bias_act import ACTIVATION_GAINS, CODES, RECTIFIERS, Activation, bias_act, bias_act_reference
from ganops.ops.kernels import OpsMode, choose_ops, use_kernels
from ganops.ops.modulated_conv2d import modulated_conv2d, modulated_conv2d_reference
from ganops.ops.upfirdn2d import setup_filter, upfirdn2d, upfirdn2d_reference
from ganops.training.state import TrainingState, initial_state, load_state, save_state, state_tensors
from tests.tolerances import assert_close
from tests.unit.tiny import CLASS_COUNTS, ROOT, run_steps, tiny_params

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
VALUES = {
    torch.float64: "twin_float64",
    torch.float32: "twin_float32",
    torch.float16: "twin_bfloat16",
    torch.bfloat16: "twin_bfloat16",
}
GRADIENTS = VALUES | {torch.float16: "gradients_bfloat16", torch.bfloat16: "gradients_bfloat16"}
LAYOUTS = ("contiguous", "channels_last", "sliced", "transposed", "misaligned")
SHAPES = [(2, 3, 5, 7), (3, 16, 4, 4), (2, 8, 1, 9), (2, 5, 3, 3), (2, 24, 6, 4)]
"""Channels and pixels that do and do not fill packs of 16 bytes, which are 2 to 8 numbers."""
CLAMP = 0.8
TAPS = {
    "f1331": setup_filter([1, 3, 3, 1]),
    "separable": setup_filter([1, 2, -3, 5], separable=True),
    "five": setup_filter([1, 2, -3, 5, 1], separable=True),
    "full": setup_filter([[1.0, -2.0, 3.0], [0.5, 4.0, 1.0]], normalize=False),
}
GEOMETRIES: list[tuple[Any, Any, list[int]]] = [  # up, down, padding
    (1, 1, [1, 2, 2, 1]), (1, 1, [-1, 3, 4, -1]), (1, 2, [1, 1, 1, 1]), (1, 2, [0, 5, 3, 1]), (2, 1, [2, 1, 2, 1]),
    (2, 1, [3, 0, 1, 2]), (2, 1, [2, 1, 1, 2]), (2, 2, [1, 2, 2, 3]), (3, 2, [5, -1, 3, 2]), ([2, 1], [1, 3], [3, 2, 5, 4]),
]  # fmt: skip
LARGE_BYTES = 40 << 30
"""Free memory that a test of 2^31 elements needs: five tensors of half precision, and what torch makes on the way."""
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True, scope="module")
def kernels() -> Iterator[None]:
    """Built and loaded; full float32 and deterministic algorithms, set before the first call of cuBLAS."""
    try:
        find_toolkit()
    except OpsError as error:
        pytest.skip(f"nothing to compile the kernels with. {error}")
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    configure_numerics(tf32=False, deterministic=True)
    choose_ops("cuda", CUDA)
    yield
    choose_ops("auto", CPU)
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32


@contextmanager
def ops(mode: OpsMode) -> Iterator[None]:
    choose_ops(mode, CUDA)
    try:
        yield
    finally:
        choose_ops("cuda", CUDA)


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The same numbers for all dtypes, up to rounding. On the CPU."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def laid_out(x: Tensor, layout: str) -> Tensor:
    """[N, C, H, W] on the device, in another order of memory, with gaps of NaN, or not aligned to 16 bytes."""
    N, C, H, W = x.shape
    match layout:
        case "contiguous":
            return x.to(CUDA)
        case "channels_last":
            return x.to(CUDA).contiguous(memory_format=torch.channels_last)
        case "sliced":
            whole = torch.full([N, C + 1, H + 2, 2 * W], float("nan"), dtype=x.dtype, device=CUDA)
            return whole[:, 1:, 1:-1, ::2].copy_(x)
        case "transposed":
            return x.to(CUDA).transpose(2, 3).contiguous().transpose(2, 3)
        case "misaligned":
            return torch.full([x.numel() + 1], float("nan"), dtype=x.dtype, device=CUDA)[1:].view(x.shape).copy_(x)
        case _:
            raise AssertionError(layout)


def poison() -> None:
    """Fills the memory that torch keeps for the next tensors with NaN: what a kernel leaves out is seen."""
    torch.cuda.empty_cache()
    # Tensors up to 1 MB come from segments of 2 MB, larger ones from segments of 20 MB or more.
    blocks = [torch.full([size], float("nan"), device=CUDA) for size in [1 << 17] * 32 + [1 << 19] * 8 + [1 << 22] * 4]
    del blocks


def derivatives(function: Callable[..., Tensor], leaves: list[Tensor], weight: Tensor) -> list[Tensor]:
    """The value, all gradients of a weighted square of it, and all gradients of two penalties.

    One penalty is the squared norm of the first leaf's gradient, as in R1, the other of the last leaf's, as for path
    lengths. Sums are in at least float32.
    """
    leaves = [x.detach().requires_grad_() for x in leaves]
    y = function(*leaves)
    exact = torch.promote_types(y.dtype, torch.float32)
    loss = (weight.to(exact) * y.to(exact).square()).mean()
    first = torch.autograd.grad(loss, leaves, create_graph=True)
    found = [y, *first]
    for gradient in (first[0], first[-1]):
        # Scaled to about 1, for the numbers of half precision end at 6e-8.
        penalty = (gradient.to(exact) * y.numel() ** 0.5).square().sum()
        found += torch.autograd.grad(penalty, leaves, retain_graph=True, materialize_grads=True)
    return [t.detach() for t in found]


def assert_right(actual: list[Tensor], expected: list[Tensor], dtype: torch.dtype, what: str) -> None:
    assert len(actual) == len(expected) >= 4
    if dtype.itemsize == 2:  # gradients that were summed before cancel, and their squares have any relative error
        count = 1 + (len(expected) - 1) // 3 * 2
        actual, expected = actual[:count], expected[:count]
    for index, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
        assert ours.device.type == CUDA.type
        assert ours.dtype == dtype
        assert_close(ours, theirs, (GRADIENTS if index else VALUES)[dtype], f"{what}, output {index}")


def test_the_kernels_are_what_runs() -> None:
    assert use_kernels(torch.zeros(1, device=CUDA))
    for name in ("bias_act", "bias_act_slope", "upfirdn2d"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"ganops::{name}", "CUDA"), name


@pytest.mark.parametrize("dtype", VALUES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATION_GAINS)
def test_bias_act(activation: Activation, dtype: torch.dtype) -> None:
    """Value and gradients of orders 1 and 2, where a result at the limit is left out: it may fall on either side."""
    checked = 0
    for shape, layout, clamp, terms in itertools.product(SHAPES, LAYOUTS, (None, CLAMP), ("", "b", "bs", "bsn", "bsm")):
        N, C, H, W = shape
        x = normal(*shape, seed=1, dtype=dtype)
        small = {
            "b": ("bias", normal(C, seed=2, dtype=dtype)),
            "s": ("scale", normal(N, C, seed=3, dtype=dtype)),
            "n": ("noise", normal(N, 1, H, W, seed=4, dtype=dtype)),
            "m": ("noise", normal(H, W, seed=5, dtype=dtype)),
        }
        names, given = [small[term][0] for term in terms], [small[term][1] for term in terms]

        def op(form: Any, x: Tensor, *rest: Tensor, clamp: Any = clamp, names: Any = names) -> Tensor:
            by_name: dict[str, Any] = {"bias": None} | dict(zip(names, rest, strict=True))
            result: Tensor = form(x, activation=activation, clamp=clamp, **by_name)
            return result

        def ours(*leaves: Tensor, op: Any = op) -> Tensor:
            result: Tensor = op(bias_act, *leaves)
            return result

        def theirs(*leaves: Tensor, op: Any = op) -> Tensor:
            result: Tensor = op(bias_act_reference, *leaves)
            return result

        leaves = [x.double(), *(t.double() for t in given)]
        free = bias_act_reference(leaves[0], activation=activation, **{"bias": None} | dict(zip(names, leaves[1:])))  # type: ignore[arg-type] # noqa: B905
        weight = normal(*shape, seed=6, dtype=dtype).double()
        if clamp is not None:
            weight = weight.masked_fill((free.abs() - clamp).abs() < 0.02, 0.0)
        expected = derivatives(theirs, leaves, weight)
        actual = derivatives(ours, [laid_out(x, layout), *(t.to(CUDA) for t in given)], weight.to(CUDA))
        assert_right(actual, expected, dtype, f"{shape} {layout}, clamp {clamp}, terms {terms!r}")
        if layout in ("contiguous", "channels_last"):
            format = torch.channels_last if layout == "channels_last" else torch.contiguous_format
            assert actual[0].is_contiguous(memory_format=format)
        checked += 1
    assert checked == len(SHAPES) * len(LAYOUTS) * 10


@pytest.mark.parametrize("dtype", VALUES, ids=str)
@pytest.mark.parametrize("taps", TAPS)
def test_upfirdn2d(taps: str, dtype: torch.dtype) -> None:
    checked = 0
    for shape, layout, (up, down, padding), flip in itertools.product(
        [(2, 3, 5, 7), (1, 16, 9, 4), (2, 8, 40, 5)], LAYOUTS, GEOMETRIES, (False, True)
    ):
        x, filter = normal(*shape, seed=1, dtype=dtype), TAPS[taps]
        on_device = filter.to(CUDA)
        settings: dict[str, Any] = {"up": up, "down": down, "padding": padding, "flip_filter": flip, "gain": 1.7}

        def theirs(x: Tensor, filter: Tensor = filter, settings: Any = settings) -> Tensor:
            return upfirdn2d_reference(x, filter, **settings)

        def ours(x: Tensor, filter: Tensor = on_device, settings: Any = settings) -> Tensor:
            return upfirdn2d(x, filter, **settings)

        weight = normal(*theirs(x.double()).shape, seed=6, dtype=dtype).double()
        expected = derivatives(theirs, [x.double()], weight)
        actual = derivatives(ours, [laid_out(x, layout)], weight.to(CUDA))
        assert_right(actual, expected, dtype, f"{shape} {layout} {settings}")
        checked += 1
    assert checked == 3 * len(LAYOUTS) * len(GEOMETRIES) * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("kernel", "up", "down"), [(1, 1, 1), (3, 1, 1), (3, 2, 1), (3, 1, 2)])
def test_modulated_conv2d(kernel: int, up: int, down: int, dtype: torch.dtype) -> None:
    """All that a layer does, with gradients for path lengths, which are by the styles."""
    given = [normal(3, 6, 9, 9, seed=1, dtype=dtype), normal(8, 6, kernel, kernel, seed=2, dtype=dtype)]
    given += [normal(8, seed=4, dtype=dtype), normal(3, 6, seed=3, dtype=dtype)]
    taps, size = setup_filter([1, 3, 3, 1], separable=True), {(2, 1): 18, (1, 2): 4}.get((up, down), 9)

    def op(form: Callable[..., Tensor], taps: Tensor, noise: Tensor) -> Callable[..., Tensor]:
        def function(x: Tensor, weight: Tensor, bias: Tensor, styles: Tensor) -> Tensor:
            return form(
                x, weight, styles, noise, up, down, kernel // 2, taps, flip_weight=up == 1, bias=bias,
                activation="lrelu", clamp=3.0,
            )  # fmt: skip

        return function

    noise, weight = normal(size, size, seed=5, dtype=dtype), normal(3, 8, size, size, seed=6, dtype=dtype).double()
    expected = derivatives(op(modulated_conv2d_reference, taps, noise.double()), [t.double() for t in given], weight)
    for layout in ("contiguous", "channels_last"):
        leaves = [laid_out(given[0], layout), *(t.to(CUDA) for t in given[1:])]
        actual = derivatives(op(modulated_conv2d, taps.to(CUDA), noise.to(CUDA)), leaves, weight.to(CUDA))
        assert_right(actual, expected, dtype, f"{layout}, kernel {kernel}, up {up}, down {down}")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_checks_of_torch(layout: str) -> None:
    """The shapes and strides that torch.compile is told are those that the kernels give."""
    x = laid_out(normal(2, 6, 5, 4, seed=1), layout).requires_grad_()  # or torch does not look at derivatives
    output = x.detach().clone()
    bias, taps = normal(6, seed=2).to(CUDA), TAPS["separable"].to(CUDA)
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    for activation in ("lrelu", "tanh"):
        code = CODES[activation]
        opcheck(torch.ops.ganops.bias_act, (x, bias, None, None, 1, code, 0.2, 1.0, CLAMP), test_utils=checks)
        point = None if activation in RECTIFIERS else bias
        opcheck(torch.ops.ganops.bias_act_slope, (x, output, point, 1, code, 1, 0.2, 1.0, CLAMP), test_utils=checks)
    opcheck(torch.ops.ganops.upfirdn2d, (x, taps, 2, 2, 1, 1, 2, 1, 2, 1, False, 1.0), test_utils=checks)


def bias_act_derivatives(dtype: torch.dtype, layout: str) -> list[Tensor]:
    x, bias = laid_out(normal(3, 24, 33, 35, seed=1, dtype=dtype), layout), normal(24, seed=2, dtype=dtype).to(CUDA)
    scale, noise = normal(3, 24, seed=3, dtype=dtype).to(CUDA), normal(3, 1, 33, 35, seed=4, dtype=dtype).to(CUDA)

    def function(x: Tensor, bias: Tensor, noise: Tensor, scale: Tensor) -> Tensor:
        return bias_act(x, bias, activation="lrelu", clamp=CLAMP, scale=scale, noise=noise)

    weight = normal(3, 24, 33, 35, seed=6).to(CUDA)
    poison()
    return derivatives(function, [x, bias, noise, scale], weight)


def upfirdn2d_derivatives(dtype: torch.dtype, layout: str) -> list[Tensor]:
    found = []
    for (up, down, padding), taps in itertools.product(GEOMETRIES, TAPS.values()):
        x = laid_out(normal(2, 24, 17, 19, seed=1, dtype=dtype), layout)

        def function(x: Tensor, up: Any = up, down: Any = down, padding: Any = padding, taps: Any = taps) -> Tensor:
            return upfirdn2d(x, taps.to(CUDA), up, down, padding)

        with torch.no_grad():
            shape = function(x).shape
        weight = normal(*shape, seed=6).to(CUDA)
        poison()
        found += derivatives(function, [x], weight)
    return found


@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "misaligned"])
@pytest.mark.parametrize("dtype", VALUES, ids=str)
@pytest.mark.parametrize("function", [bias_act_derivatives, upfirdn2d_derivatives])
def test_all_is_written_and_again_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, function: Callable[..., list[Tensor]], dtype: torch.dtype, layout: str
) -> None:
    """In memory of NaN: filled by torch, which it can where algorithms are to be deterministic; filled before."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    filled = function(dtype, layout)
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)
    first, second = (function(dtype, layout) for _ in range(2))
    assert len(first) >= 9
    for index, outputs in enumerate(zip(first, second, filled, strict=True)):
        assert torch.isfinite(outputs[0]).all(), f"output {index}"
        for other in outputs[1:]:
            assert torch.equal(outputs[0], other), f"output {index}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_expanded_tensors(dtype: torch.dtype) -> None:
    """One number that stands for many: x, noise, scale and bias, and the gradient of a sum."""
    x, noise = normal(1, 8, 1, 1, seed=1, dtype=dtype).to(CUDA), normal(1, 1, 6, 4, seed=2, dtype=dtype).to(CUDA)
    scale, bias = normal(1, 8, seed=3, dtype=dtype).to(CUDA), normal(1, seed=4, dtype=dtype).to(CUDA)
    views = [x.expand(3, 8, 6, 4), bias.expand(8), scale.expand(3, 8), noise.expand(3, 1, 6, 4)]
    found = []
    for tensors in (views, [t.double().contiguous() for t in views]):
        x, bias, scale, noise = leaves = [t.detach().requires_grad_() for t in tensors]
        form = bias_act_reference if x.dtype == torch.float64 else bias_act
        y = form(x, bias, activation="lrelu", scale=scale, noise=noise)
        found.append([y, *torch.autograd.grad(y.sum(), leaves)])
        images = upfirdn2d_reference if x.dtype == torch.float64 else upfirdn2d
        y = images(x, TAPS["separable"].to(CUDA), 2, 1, [2, 1, 2, 1])
        found[-1] += [y, *torch.autograd.grad(y.sum(), [x])]
    for index, (ours, theirs) in enumerate(zip(*found, strict=True)):
        assert_close(ours, theirs, VALUES[dtype], f"output {index}")


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_gradients_in_another_layout_than_the_tensor(layout: str) -> None:
    x, other = normal(2, 8, 6, 4, seed=1), "channels_last" if layout == "contiguous" else "contiguous"
    dy, large = normal(2, 8, 6, 4, seed=2), normal(2, 8, 12, 8, seed=3)
    leaf, reference = laid_out(x, layout).requires_grad_(), x.double().requires_grad_()
    for ours, theirs, gradient in (
        (bias_act(leaf, None, activation="lrelu"), bias_act_reference(reference, None, activation="lrelu"), dy),
        (bias_act(leaf, None, activation="tanh"), bias_act_reference(reference, None, activation="tanh"), dy),
        (
            upfirdn2d(leaf, TAPS["separable"].to(CUDA), 2, 1, [2, 1, 2, 1]),
            upfirdn2d_reference(reference, TAPS["separable"], 2, 1, [2, 1, 2, 1]),
            large,
        ),
    ):
        (actual,) = torch.autograd.grad(ours, leaf, laid_out(gradient, other))
        (expected,) = torch.autograd.grad(theirs, reference, gradient.double())
        assert_close(actual, expected, "twin_float32")


def test_an_empty_batch() -> None:
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.empty([0, 8, 6, 4], device=CUDA).contiguous(memory_format=layout).requires_grad_()
        bias = torch.ones(8, device=CUDA, requires_grad=True)
        y = bias_act(x, bias, activation="lrelu")
        dx, dbias = torch.autograd.grad(y.sum(), [x, bias])
        assert y.shape == dx.shape == x.shape
        assert not dbias.any()
        y = upfirdn2d(x, TAPS["separable"].to(CUDA), 2, 1, [2, 1, 2, 1])
        assert y.shape == (0, 8, 12, 8)
        assert torch.autograd.grad(y.sum(), [x])[0].shape == x.shape
    torch.cuda.synchronize()


def test_the_kernels_run_on_the_stream_of_their_caller() -> None:
    """Behind slow work that makes their input: on another stream they would find NaN."""
    source, taps = normal(8, 16, 32, 32, seed=1).to(CUDA), TAPS["separable"].to(CUDA)
    slow = torch.ones([4096, 4096], device=CUDA)
    x = torch.full_like(source, float("nan")).requires_grad_()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(stream):
        for _ in range(20):
            slow = slow @ slow * 1e-4
        with torch.no_grad():
            x.copy_(source)
        y = bias_act(upfirdn2d(x, taps, 2, 1, [2, 1, 2, 1]), None, activation="lrelu")
        (gradient,) = torch.autograd.grad(y.square().sum(), x)
    stream.synchronize()
    leaf = source.cpu().double().requires_grad_()
    images = upfirdn2d_reference(leaf, TAPS["separable"], 2, 1, [2, 1, 2, 1])
    expected = bias_act_reference(images, None, activation="lrelu")
    assert_close(y, expected, "twin_float32")
    assert_close(gradient, torch.autograd.grad(expected.square().sum(), leaf)[0], "twin_float32")


def need_memory() -> None:
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    if free < LARGE_BYTES:
        pytest.skip(f"needs {LARGE_BYTES >> 30} GiB of free GPU memory, there are {free >> 30}")


@pytest.mark.slow
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_more_than_2_31_elements(layout: torch.memory_format) -> None:
    """Each sample has the bits that it has alone; before, in and behind the part where one launch ends."""
    need_memory()
    shape = (33, 64, 1024, 1024)
    rng = torch.Generator(CUDA).manual_seed(0)
    x = torch.empty(shape, dtype=torch.float16, device=CUDA, memory_format=layout).normal_(generator=rng)
    assert x.numel() > 2**31
    bias, scale = normal(64, seed=1, dtype=x.dtype).to(CUDA), normal(33, 64, seed=2, dtype=x.dtype).to(CUDA)
    noise, taps = normal(1024, 1024, seed=3, dtype=x.dtype).to(CUDA), TAPS["separable"].to(CUDA)
    rest = (1, CODES["lrelu"], 0.2, 1.4, CLAMP)
    numbers = (0, 15, 30, 31, 32)

    def check(whole: Tensor, alone: Callable[[int], Tensor], what: str) -> None:
        assert whole.shape == shape
        for n in numbers:
            assert torch.equal(whole[n], alone(n)[0]), f"{what}, sample {n}"

    y = torch.ops.ganops.bias_act(x, bias, scale, noise, *rest)

    def activated(n: int) -> Tensor:
        sample: Tensor = torch.ops.ganops.bias_act(x[n : n + 1], bias, scale[n : n + 1], noise, *rest)
        return sample

    check(y, activated, "bias_act")
    slope: Callable[..., Tensor] = torch.ops.ganops.bias_act_slope
    arguments = (None, 1, CODES["lrelu"], 1, 0.2, 1.4, CLAMP)
    check(slope(x, y, *arguments), lambda n, y=y: slope(x[n : n + 1], y[n : n + 1], *arguments), "bias_act_slope")  # type: ignore[misc]
    del y
    for name in ("separable", "full"):
        taps, padding = TAPS[name].to(CUDA), [1, 2, 1, 2] if name == "separable" else [1, 1, 0, 1]
        images = upfirdn2d(x, taps, padding=padding)
        check(images, lambda n, taps=taps, padding=padding: upfirdn2d(x[n : n + 1], taps, padding=padding), name)  # type: ignore[misc]
        corner = upfirdn2d_reference(x[32:, 60:, -64:, -64:].cpu().double(), TAPS[name], padding=padding)
        assert_close(images[32:, 60:, -32:, -32:], corner[:, :, -32:, -32:], "twin_bfloat16", name)
        del images


@pytest.mark.slow
def test_a_sample_of_2_31_elements_is_refused() -> None:
    need_memory()
    x = torch.empty([1, 1, 1 << 16, 1 << 15], dtype=torch.float16, device=CUDA)
    with pytest.raises(RuntimeError, match=r"ganops::bias_act: a sample has 2\^31 elements or more"):
        bias_act(x, None, activation="lrelu")
    with pytest.raises(RuntimeError, match=r"ganops::upfirdn2d: an image has 2\^31 elements or more"):
        upfirdn2d(x, None)


def test_what_the_kernels_do_not_take_is_refused() -> None:
    x, taps = torch.ones([1, 1, 2, 2], device=CUDA), TAPS["separable"].to(CUDA)
    with pytest.raises(RuntimeError, match="the padded image is smaller than the filter"):
        upfirdn2d(x, taps)
    with pytest.raises(RuntimeError, match="taps must be float32"):
        torch.ops.ganops.upfirdn2d(x, taps.double(), 1, 1, 1, 1, 2, 2, 2, 2, False, 1.0)
    with pytest.raises(RuntimeError, match="dtype must be float32, float16, bfloat16 or float64"):
        torch.ops.ganops.bias_act(x.int(), None, None, None, 1, CODES["lrelu"], 0.2, 1.0, -1.0)


def fresh() -> TrainingState:
    return initial_state(tiny_params(), 8, 1, len(CLASS_COUNTS), CUDA)


def test_training_is_that_of_plain_operations() -> None:
    params = tiny_params()
    found = []
    for mode in ("cuda", "reference"):
        with ops(mode):
            state = fresh()
            run_steps(state, params, 50)
            found.append(torch.cat([p.detach().flatten() for net in (state.G, state.D) for p in net.parameters()]))
    kernels, plain = found
    assert_close(kernels, plain, "steps_float32")
    assert not torch.equal(kernels, plain), "the same operations ran twice"


def test_resume_with_kernels_is_exact(tmp_path: Path) -> None:
    """Four steps at once, and two, a state file, and two more in a fresh state: all phases, equal bits."""
    params = tiny_params()
    whole, half, resumed = fresh(), fresh(), fresh()
    run_steps(whole, params, 4)
    run_steps(half, params, 2)
    save_state(tmp_path / "state.safetensors", half, {})
    load_state(tmp_path / "state.safetensors", resumed)
    run_steps(resumed, params, 2)
    expected, found = state_tensors(whole) | whole.sums, state_tensors(resumed) | resumed.sums
    assert expected.keys() == found.keys()
    different = [name for name in expected if not torch.equal(expected[name], found[name])]
    assert not different


@pytest.fixture
def dynamo() -> Iterator[None]:
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@pytest.mark.usefixtures("dynamo")
@pytest.mark.filterwarnings("ignore::UserWarning")  # of inductor, about speed
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what inductor imports
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_a_compiled_block(backend: str) -> None:
    """No graph breaks, and the gradients of first order that the uncompiled block has, in both formats."""
    if backend == "inductor" and not has_triton():
        pytest.skip("needs triton")
    taps = setup_filter([1, 3, 3, 1], separable=True).to(CUDA)

    def block(x: Tensor, weight: Tensor, styles: Tensor, bias: Tensor) -> Tensor:
        y = modulated_conv2d(
            x, weight, styles, up=2, padding=1, resample_filter=taps, flip_weight=False, bias=bias, activation="lrelu"
        )
        return upfirdn2d(bias_act(y, bias, activation="swish"), taps, down=2, padding=1)

    compiled = torch.compile(block, fullgraph=True, backend=backend)
    for layout in ("contiguous", "channels_last"):
        inputs = [laid_out(normal(2, 8, 6, 6, seed=1), layout), normal(8, 8, 3, 3, seed=2).to(CUDA)]
        inputs = [t.requires_grad_() for t in [*inputs, normal(2, 8, seed=3).to(CUDA), normal(8, seed=4).to(CUDA)]]
        found = []
        for function in (block, compiled):
            y = function(*inputs)
            found.append([y.detach(), *torch.autograd.grad(y.square().sum(), inputs)])
        for index, (expected, actual) in enumerate(zip(*found, strict=True)):
            assert_close(actual, expected, "twin_float32", f"{layout}, output {index}")


PROGRAM = """
import itertools
import torch
from ganops.ops.bias_act import bias_act
from ganops.ops.kernels import choose_ops
from ganops.ops.upfirdn2d import setup_filter, upfirdn2d

cuda = torch.device("cuda")
choose_ops("cuda", cuda)
dtypes, formats = (torch.float32, torch.float16, torch.float64), (torch.contiguous_format, torch.channels_last)
filters = [setup_filter(taps, separable=True).to(cuda) for taps in ([1, 3, 3, 1], [1, 2, 3, 2, 1])]
for dtype, format, (N, C, H, W) in itertools.product(dtypes, formats, [(2, 3, 5, 7), (3, 16, 4, 4), (1, 8, 33, 1)]):
    x = torch.randn([N, C, H, W], dtype=dtype, device=cuda).contiguous(memory_format=format).requires_grad_()
    bias, scale = (torch.ones(shape, dtype=dtype, device=cuda, requires_grad=True) for shape in ((C,), (N, C)))
    for activation, noise in itertools.product(("lrelu", "swish"), ((H, W), (N, 1, H, W))):
        noise = torch.randn(noise, dtype=dtype, device=cuda, requires_grad=True)
        y = bias_act(x, bias, activation=activation, clamp=3.0, scale=scale, noise=noise)
        (dx,) = torch.autograd.grad(y.square().sum(), [x], create_graph=True)
        torch.autograd.grad(dx.square().sum(), [x, bias, scale, noise], materialize_grads=True)
    for taps, (up, down, padding) in itertools.product(filters, ((2, 1, 2), (1, 2, 2), (1, 1, 2), (3, 2, 4))):
        y = upfirdn2d(x, taps, up, down, padding)
        torch.autograd.grad(y.square().sum(), [x])
torch.cuda.synchronize()
print("finished")
"""


def find_sanitizer() -> str | None:
    beside = find_toolkit().home / "bin/compute-sanitizer"
    return shutil.which("compute-sanitizer") or (str(beside) if beside.exists() else None)


@pytest.mark.slow
def test_no_access_outside_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the check of the CUDA toolkit, with each tensor in an allocation of its own."""
    program = find_sanitizer()
    if program is None:
        pytest.skip("needs compute-sanitizer of the CUDA toolkit")
    monkeypatch.setenv("PYTORCH_NO_CUDA_MEMORY_CACHING", "1")
    command = [program, "--tool", "memcheck", "--error-exitcode", "99", "--report-api-errors", "no"]
    command += [sys.executable, "-c", PROGRAM]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if "Device not supported" in result.stdout + result.stderr:
        pytest.skip("compute-sanitizer does not run on this machine: device not supported")
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-4000:]
    assert "finished" in result.stdout
