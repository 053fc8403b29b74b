"""Operations: fast forms against their reference twins, and gradients against differences, on small odd sizes."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from ganops.ops.bias_act import ACTIVATION_GAINS, Activation, bias_act, bias_act_reference
from ganops.ops.conv2d_resample import conv2d_resample, conv2d_resample_reference
from ganops.ops.modulated_conv2d import modulated_conv2d, modulated_conv2d_reference
from ganops.ops.upfirdn2d import downsample2d, setup_filter, upfirdn2d, upfirdn2d_reference, upsample2d
from tests.tolerances import assert_close

FILTERS: dict[str, Any] = {
    "none": None,
    "f1331": setup_filter([1, 3, 3, 1]),
    "odd": setup_filter([[1, -2, 3], [0.5, 4, 1]], normalize=False),
    "separable": setup_filter([1, 2, -3, 5, 1], separable=True),
    "wide": setup_filter([range(1, 8)]),
}
SCALES: list[tuple[Any, Any]] = [(1, 1), (2, 1), (1, 2), (2, 2), (3, 2), ([2, 1], [1, 3]), ([1, 3], 1), (1, [2, 1])]
PADDINGS: list[Any] = [0, 3, [4, 5], [3, 2, 1, 4], [-1, 4, 5, -2], [7, 6, 9, 8]]


def normal(*shape: int, seed: int = 0, grad: bool = False, dtype: torch.dtype = torch.float64) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.float64).to(dtype).requires_grad_(grad)


@pytest.mark.parametrize("filter", FILTERS)
@pytest.mark.parametrize("channels", [1, 5])
def test_upfirdn2d_is_its_definition(filter: str, channels: int) -> None:
    taps = FILTERS[filter]
    checked = 0
    for (up, down), padding, flip in itertools.product(SCALES, PADDINGS, [False, True]):
        for layout in (torch.contiguous_format, torch.channels_last):
            x = normal(2, channels, 7, 9).contiguous(memory_format=layout).requires_grad_()
            settings = {"up": up, "down": down, "padding": padding, "flip_filter": flip, "gain": 1.7}
            expected = upfirdn2d_reference(x, taps, **settings)
            actual = upfirdn2d(x, taps, **settings)
            assert_close(actual, expected, "twin_float64", str(settings))
            dy = normal(*expected.shape, seed=1)
            gradients = [torch.autograd.grad(y, [x], dy)[0] for y in (actual, expected)]
            assert_close(*gradients, "twin_float64", str(settings))
            checked += 1
    assert checked == len(SCALES) * len(PADDINGS) * 4


def test_upfirdn2d_reference_is_a_loop_of_numpy() -> None:
    x, taps = normal(1, 1, 4, 5).numpy(), FILTERS["odd"].double().numpy()
    up, down, (left, right, top, bottom) = (2, 3), (1, 2), (2, 1, 0, -1)
    y = upfirdn2d_reference(torch.from_numpy(x), FILTERS["odd"], list(up), list(down), [left, right, top, bottom])
    stuffed = np.zeros((4 * up[1], 5 * up[0]))
    stuffed[:: up[1], :: up[0]] = x[0, 0]
    canvas = np.zeros((stuffed.shape[0] + top + bottom, stuffed.shape[1] + left + right))
    canvas[:, left : left + stuffed.shape[1]] = stuffed[: canvas.shape[0]]
    kh, kw = taps.shape
    rows = range(0, canvas.shape[0] - kh + 1, down[1])
    columns = range(0, canvas.shape[1] - kw + 1, down[0])
    expected = [[(canvas[i : i + kh, j : j + kw] * taps[::-1, ::-1]).sum() for j in columns] for i in rows]
    assert_close(y[0, 0], expected, "loop_float64")


@pytest.mark.parametrize(
    ("up", "down", "padding"), [(1, 1, 1), (2, 1, [2, 1, 2, 1]), (1, 2, 1), ([3, 1], 2, [5, -1, 3, 2])]
)
@pytest.mark.parametrize("filter", ["f1331", "odd", "separable"])
def test_upfirdn2d_gradients(filter: str, up: Any, down: Any, padding: Any) -> None:
    x = normal(1, 2, 5, 4, grad=True)

    def op(x: Tensor) -> Tensor:
        return upfirdn2d(x, FILTERS[filter], up, down, padding, gain=1.3)

    assert gradcheck(op, [x])
    # Linear in x alone, so its second derivative is checked through the square.
    assert gradgradcheck(lambda x: op(x).square(), [x])


def test_resampling_keeps_a_constant_image() -> None:
    x = torch.full([1, 2, 16, 16], 3.0, dtype=torch.float64)
    for filter in (FILTERS["f1331"], setup_filter([1, 2, 3, 4, 4, 3, 2, 1])):
        for y, size in ((upsample2d(x, filter), 32), (downsample2d(x, filter), 8)):
            assert y.shape == (1, 2, size, size)
            inner = y[:, :, size // 2 - 1 : size // 2 + 1, size // 2 - 1 : size // 2 + 1]
            assert_close(inner, torch.full_like(inner, 3.0), "twin_float32")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_upfirdn2d_in_low_precision_keeps_the_dtype(dtype: torch.dtype) -> None:
    x = normal(2, 5, 8, 8, dtype=dtype)
    for up, down, padding in ((2, 1, [2, 1, 2, 1]), (1, 2, 1), (1, 1, [2, 1, 2, 1])):
        y = upfirdn2d(x, FILTERS["f1331"], up, down, padding)
        assert y.dtype == dtype
        expected = upfirdn2d_reference(x.double(), FILTERS["f1331"], up, down, padding)
        assert_close(y, expected, "twin_bfloat16")


@pytest.mark.parametrize("activation", ACTIVATION_GAINS)
@pytest.mark.parametrize("clamp", [None, 0.6])
@pytest.mark.parametrize("gain", [None, 0.7, -1.5])
def test_bias_act_is_its_definition(activation: Activation, clamp: float | None, gain: float | None) -> None:
    x, b = normal(3, 5, 4, grad=True), normal(5, seed=1, grad=True)
    for bias in (b, None):
        inputs = [x] if bias is None else [x, b]
        actual = bias_act(x, bias, activation=activation, gain=gain, clamp=clamp)
        expected = bias_act_reference(x, bias, activation=activation, gain=gain, clamp=clamp)
        assert_close(actual, expected, "twin_float64")
        dy = normal(3, 5, 4, seed=2)
        pairs = zip(*(torch.autograd.grad(y, inputs, dy) for y in (actual, expected)), strict=True)
        for first, second in pairs:
            assert_close(first, second, "twin_float64")


@pytest.mark.parametrize("activation", ACTIVATION_GAINS)
def test_bias_act_gradients(activation: Activation) -> None:
    x, b = normal(2, 3, 5, grad=True), normal(5, seed=1, grad=True)

    def op(x: Tensor, b: Tensor) -> Tensor:
        return bias_act(x, b, dim=2, activation=activation, clamp=2.5)

    assert gradcheck(op, [x, b])
    assert gradgradcheck(lambda x, b: op(x, b).square(), [x, b])


def test_bias_act_alpha_and_axis() -> None:
    x, b = normal(2, 3, 5), normal(2, seed=1)
    y = bias_act(x, b, dim=0, activation="lrelu", alpha=0.4, gain=1.0)
    shifted = x + b[:, None, None]
    assert_close(y, torch.where(shifted > 0, shifted, 0.4 * shifted), "closed_form_float64")


CONVOLUTIONS = [
    {"up": up, "down": down, "padding": padding, "groups": groups, "flip_weight": flip, "k": k}
    for (up, down), padding, groups, flip, k in itertools.product(
        [(1, 1), (2, 1), (1, 2), (2, 2), (3, 1)], [0, 1, [2, 0, 1, 3]], [1, 2], [True, False], [1, 3]
    )
]


def test_conv2d_resample_is_its_definition() -> None:
    for case, filter in itertools.product(CONVOLUTIONS, ("f1331", "odd", "none", "separable")):
        settings = {key: value for key, value in case.items() if key != "k"}
        x = normal(2, 4, 6, 7, grad=True)
        w = normal(6, 4 // case["groups"], case["k"], case["k"], seed=1, grad=True)
        expected = conv2d_resample_reference(x, w, FILTERS[filter], **settings)
        actual = conv2d_resample(x, w, FILTERS[filter], **settings)
        assert_close(actual, expected, "twin_float64", f"{case} {filter}")
        dy = normal(*expected.shape, seed=2)
        pairs = zip(*(torch.autograd.grad(y, [x, w], dy) for y in (actual, expected)), strict=True)
        for first, second in pairs:
            assert_close(first, second, "twin_float64", f"{case} {filter}")


@pytest.mark.parametrize(("up", "down", "k"), [(1, 1, 3), (2, 1, 3), (1, 2, 3), (2, 1, 1), (1, 2, 1)])
def test_conv2d_resample_gradients(up: int, down: int, k: int) -> None:
    x, w = normal(1, 2, 4, 5, grad=True), normal(3, 2, k, k, seed=1, grad=True)

    def op(x: Tensor, w: Tensor) -> Tensor:
        return conv2d_resample(x, w, FILTERS["odd"], up, down, k // 2)

    assert gradcheck(op, [x, w])
    assert gradgradcheck(op, [x, w])


MODULATED = [
    {"up": up, "down": down, "demodulate": demodulate, "gain": gain, "k": k}
    for (up, down), demodulate, gain, k in itertools.product(
        [(1, 1), (2, 1), (1, 2)], [True, False], [1.0, 1.7], [1, 3]
    )
]


@pytest.mark.parametrize("with_noise", [False, True])
def test_modulated_conv2d_is_its_definition(with_noise: bool) -> None:
    for case in MODULATED:
        k = case["k"]
        settings = {key: value for key, value in case.items() if key != "k"}
        x, w = normal(3, 4, 6, 5, grad=True), normal(5, 4, k, k, seed=1, grad=True)
        s = normal(3, 4, seed=2, grad=True)
        settings |= {"padding": k // 2, "resample_filter": FILTERS["f1331"]}
        H, W = (size * case["up"] // case["down"] for size in (6, 5))
        noise = normal(3, 1, H, W, seed=3, grad=True) if with_noise else None
        inputs = [x, w, s] if noise is None else [x, w, s, noise]
        expected = modulated_conv2d_reference(x, w, s, noise, **settings)
        actual = modulated_conv2d(x, w, s, noise, **settings)
        assert_close(actual, expected, "twin_float64", str(case))
        dy = normal(*expected.shape, seed=4)
        pairs = zip(*(torch.autograd.grad(y, inputs, dy) for y in (actual, expected)), strict=True)
        for first, second in pairs:
            assert_close(first, second, "twin_float64", str(case))


@pytest.mark.parametrize(
    ("up", "k", "demodulate"), [(1, 3, True), (2, 3, True), (1, 1, False), (1, 1, True), (1, 3, False)]
)
def test_modulated_conv2d_gradients(up: int, k: int, demodulate: bool) -> None:
    x, w = normal(2, 2, 3, 4, grad=True), normal(3, 2, k, k, seed=1, grad=True)
    s, noise = normal(2, 2, seed=2, grad=True), normal(2, 1, 3 * up, 4 * up, seed=3, grad=True)

    def op(x: Tensor, w: Tensor, s: Tensor, noise: Tensor) -> Tensor:
        filter = FILTERS["f1331"]
        return modulated_conv2d(x, w, s, noise, up, 1, k // 2, filter, demodulate=demodulate, gain=1.3)

    assert gradcheck(op, [x, w, s, noise])
    assert gradgradcheck(op, [x, w, s, noise])


def test_modulated_conv2d_in_float16_stays_in_range() -> None:
    """Large weights and styles overflow float16 unless they are scaled first; the norm takes the scale out again."""
    x, w, s = normal(2, 64, 4, 4), normal(8, 64, 3, 3, seed=1) * 1e4, normal(2, 64, seed=2) * 1e4
    expected = modulated_conv2d_reference(x, w, s, padding=1)
    actual = modulated_conv2d(x.half(), w.float(), s.float(), padding=1)
    assert actual.dtype == torch.float16
    assert_close(actual, expected, "twin_bfloat16")


def test_where_bias_act_has_nothing_to_do_it_makes_no_copy() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert bias_act(x, None) is x
    assert bias_act(x, None, gain=2.0) is not x


@pytest.mark.parametrize(
    ("up", "down", "k", "size", "padding"),
    [
        (2, 1, 3, (5, 3), [-6, 8, 1, 8]),
        (2, 1, 2, (1, 6), [0, 2, 4, -4]),
        (2, 1, 4, (3, 2), [-5, 5, 2, 7]),
        (3, 3, 1, (5, 1), [7, -7, 4, -3]),
        (2, 3, 5, (3, 3), [-7, 6, -1, 0]),
    ],
)
def test_more_is_cut_from_one_side_than_there_is(
    up: int, down: int, k: int, size: tuple[int, int], padding: list[int]
) -> None:
    """The other side has grown before, in the definition; in the gradients too."""
    filter = torch.arange(1.0, k + 1)
    found = []
    for function in (upfirdn2d, upfirdn2d_reference):
        x = torch.arange(6.0 * size[0] * size[1], dtype=torch.float64).reshape(2, 3, *size).requires_grad_()
        y = function(x, filter, up, down, padding)
        found.append((y, *torch.autograd.grad(y.square().sum(), x)))
    for ours, theirs in zip(*found, strict=True):
        assert_close(ours, theirs, "twin_float64")
