"""The CUDA kernels, compiled by g++ and run as loops: their arithmetic, indices and bounds without a GPU.

Inputs stand between margins of NaN, which would show in a result that was read from outside; outputs begin as NaN
between margins of a known number, which a write outside would change.
"""

import ctypes
import itertools
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ganops.errors import OpsError
from ganops.ops._build import CSRC, find_toolkit
from ganops.ops.bias_act import ACTIVATION_GAINS, CODES, RECTIFIERS
from ganops.ops.upfirdn2d import setup_filter, upfirdn2d_reference
from tests.tolerances import assert_close

SOURCE = Path(__file__).parent / "emulated" / "ops.cpp"
DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]
TOLERANCES = {
    torch.float64: "twin_float64",
    torch.float32: "twin_float32",
    torch.float16: "twin_bfloat16",
    torch.bfloat16: "twin_bfloat16",
}
MARGIN = 64
MARK = 7.0


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compile_kernels(tmp_path_factory.mktemp("emulated"), 2**31)


@pytest.fixture(scope="module")
def kernels_in_parts(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    """With a limit of 1,000 elements in one launch instead of 2^31."""
    return compile_kernels(tmp_path_factory.mktemp("parts"), 1000)


def compile_kernels(folder: Path, max_elements: int) -> ctypes.CDLL:
    try:
        include = find_toolkit().home / "include"
    except OpsError as error:
        pytest.skip(f"needs the CUDA toolkit's headers: {error}")
    if shutil.which("g++") is None:
        pytest.skip("needs g++")
    flags = [
        "-std=c++17",
        "-O1",
        "-Wall",
        "-Werror",
        "-Wno-unknown-pragmas",
        "-shared",
        "-fPIC",
        "-fsanitize=undefined",
    ]
    flags += ["-fno-sanitize-recover", f"-DGANOPS_MAX_ELEMENTS=int64_t({max_elements})", f"-I{include}", f"-I{CSRC}"]
    flags += ["-DGANOPS_ENOUGH_THREADS=40"]  # or no image would be large enough to be walked through in long strips
    subprocess.run(["g++", *flags, str(SOURCE), "-o", str(folder / "ops.so")], check=True)
    return ctypes.CDLL(str(folder / "ops.so"))


def guarded(x: Tensor, fill: float, shift: int = 0) -> tuple[Tensor, Tensor]:
    """A copy of x in the middle of a buffer of `fill`; shifted, it is not aligned to 16 bytes. Both are returned."""
    buffer = torch.full([x.numel() + 2 * MARGIN + shift], fill, dtype=x.dtype)
    # The allocator aligns to 64 bytes, and so does the margin.
    middle = buffer[MARGIN + shift : MARGIN + shift + x.numel()].as_strided(x.shape, x.stride(), MARGIN + shift)
    return middle.copy_(x), buffer


def pointer(x: Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(0 if x is None else x.data_ptr())


def check_margins(buffer: Tensor, inside: Tensor) -> None:
    start = inside.storage_offset()
    assert (buffer[:start] == MARK).all(), "written before the tensor"
    assert (buffer[start + inside.numel() :] == MARK).all(), "written behind the tensor"


def normal(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def run_bias_act(
    kernels: ctypes.CDLL,
    x: Tensor,
    bias: Tensor | None,
    scale: Tensor | None,
    noise: Tensor | None,
    gradient: Tensor | None,
    order: int,
    rest: tuple[int, float, float, float],
    shift: int,
    shifted: int | None = None,
) -> Tensor:
    """Of x, scale, noise, bias, gradient and y, all are shifted, or the one with number `shifted` only."""
    channels_last = x.ndim == 4 and not x.is_contiguous()
    shifts = [shift if shifted in (None, number) else 0 for number in range(6)]
    inputs = [
        None if t is None else guarded(t, float("nan"), s)[0]
        for t, s in zip((x, scale, noise, bias, gradient), shifts, strict=False)
    ]
    y, buffer = guarded(torch.full_like(x, float("nan")), MARK, shifts[5])
    samples, channels, pixels = x.shape[0], x.shape[1], x[0, 0].numel()
    activation, alpha, gain, clamp = rest
    fits = kernels.run_bias_act(
        DTYPES.index(x.dtype), *map(pointer, inputs), pointer(y), *map(ctypes.c_int64, (samples, channels, pixels)),
        channels_last, noise is not None and noise.numel() != pixels, activation, order,
        *map(ctypes.c_double, (alpha, gain, clamp)),
    )  # fmt: skip
    assert fits
    check_margins(buffer, y)
    return y


SHAPES = [(2, 3, 5, 7), (3, 16, 4, 4), (2, 8, 1, 9), (1, 1, 3, 3), (2, 24, 6, 4)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("activation", ACTIVATION_GAINS)
def test_bias_act(kernels: ctypes.CDLL, activation: Any, dtype: torch.dtype) -> None:
    rest = (CODES[activation], {"linear": 1.0, "lrelu": 0.2}.get(activation, 0.0), ACTIVATION_GAINS[activation])
    checked = 0
    for shape, layout, clamp, shift in itertools.product(
        SHAPES, (torch.contiguous_format, torch.channels_last), (-1.0, 0.8), (0, 1)
    ):
        N, C, H, W = shape
        x = normal(*shape, seed=1, dtype=dtype).contiguous(memory_format=layout)
        bias, scale = normal(C, seed=2, dtype=dtype), normal(N, C, seed=3, dtype=dtype)
        full, shared = normal(N, 1, H, W, seed=4, dtype=dtype), normal(H, W, seed=5, dtype=dtype)
        cases = [(None, None, None), (bias, None, None)]
        if activation in RECTIFIERS:
            cases += [(bias, scale, full), (bias, None, shared), (None, scale, None)]
        numbers = (*rest, clamp)
        for b, s, n in cases:
            what = f"{shape} {layout} clamp {clamp} shift {shift} scale {s is not None}"
            y = run_bias_act(kernels, x, b, s, n, None, 0, numbers, shift)
            assert_close(y, torch.ops.ganops.bias_act(x, b, s, n, 1, *numbers), TOLERANCES[dtype], what)
            checked += 1
        gradient = normal(*shape, seed=6, dtype=dtype).contiguous(memory_format=layout)
        for order in (1,) if activation in RECTIFIERS else (1, 2):
            # The rectifiers' slope is told from the result.
            point = torch.ops.ganops.bias_act(x, bias, None, None, 1, *numbers) if activation in RECTIFIERS else x
            b = None if activation in RECTIFIERS else bias
            slope = run_bias_act(kernels, point, b, None, None, gradient, order, numbers, shift)
            expected = torch.ops.ganops.bias_act_slope(gradient, point, b, 1, numbers[0], order, *numbers[1:])
            if (
                activation not in RECTIFIERS and clamp > 0
            ):  # at the limit, rounding decides on which side a number falls
                u = torch.ops.ganops.bias_act(x.double(), bias.double(), None, None, 1, *numbers[:3], -1.0)
                near = (u.abs() - clamp).abs() < 0.02
                slope, expected = slope.masked_fill(near, 0.0), expected.masked_fill(near, 0.0)
            assert_close(slope, expected, TOLERANCES[dtype], f"order {order}, {shape} {layout} clamp {clamp}")
            checked += 1
    assert checked >= 100


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bias_act_where_threads_have_several_packs(kernels: ctypes.CDLL, dtype: torch.dtype) -> None:
    """Many blocks, the last of them not full; neither lines nor samples end where those do."""
    N, C, H, W = 3, 24, 36, 44
    bias, scale = normal(C, seed=2, dtype=dtype), normal(N, C, seed=3, dtype=dtype)
    full, shared = normal(N, 1, H, W, seed=4, dtype=dtype), normal(H, W, seed=5, dtype=dtype)
    for layout, shift in itertools.product((torch.contiguous_format, torch.channels_last), (0, 1)):
        x = normal(N, C, H, W, seed=1, dtype=dtype).contiguous(memory_format=layout)
        gradient = normal(N, C, H, W, seed=6, dtype=dtype).contiguous(memory_format=layout)
        numbers = (CODES["lrelu"], 0.2, 1.3, 0.9)
        for b, s, n in itertools.product((None, bias), (None, scale), (None, full, shared)):
            y = run_bias_act(kernels, x, b, s, n, None, 0, numbers, shift)
            what = f"{layout} shift {shift} bias {b is not None} scale {s is not None} noise {n is not None}"
            exact = (None if t is None else t.double() for t in (x, b, s, n))
            assert_close(y, torch.ops.ganops.bias_act(*exact, 1, *numbers), TOLERANCES[dtype], what)
        slope = run_bias_act(kernels, y, None, None, None, gradient, 1, numbers, shift)
        expected = torch.ops.ganops.bias_act_slope(gradient, y, None, 1, numbers[0], 1, *numbers[1:])
        assert_close(slope, expected, TOLERANCES[dtype], f"{layout} shift {shift} order 1")
        numbers = (CODES["tanh"], 0.0, 1.3, 0.9)
        y = run_bias_act(kernels, x, bias, None, None, None, 0, numbers, shift)
        expected = torch.ops.ganops.bias_act(x, bias, None, None, 1, *numbers)
        assert_close(y, expected, TOLERANCES[dtype], f"{layout} shift {shift} tanh")


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_bias_act_where_one_tensor_is_not_aligned(kernels: ctypes.CDLL, layout: torch.memory_format) -> None:
    """The sanitizer ends the process where 16 bytes are moved at an address that is no multiple of 16."""
    x = normal(2, 8, 4, 4, seed=1, dtype=torch.float32).contiguous(memory_format=layout)
    gradient = normal(2, 8, 4, 4, seed=2, dtype=torch.float32).contiguous(memory_format=layout)
    bias, scale = normal(8, seed=3, dtype=x.dtype), normal(2, 8, seed=4, dtype=x.dtype)
    noise = normal(2, 1, 4, 4, seed=5, dtype=x.dtype)
    numbers = (CODES["lrelu"], 0.2, 1.3, 0.9)
    for number in range(6):
        y = run_bias_act(kernels, x, bias, scale, noise, None, 0, numbers, 1, number)
        assert_close(y, torch.ops.ganops.bias_act(x, bias, scale, noise, 1, *numbers), "twin_float32", f"{number}")
        slope = run_bias_act(kernels, y, None, None, None, gradient, 1, numbers, 1, number)
        expected = torch.ops.ganops.bias_act_slope(gradient, y, None, 1, numbers[0], 1, *numbers[1:])
        assert_close(slope, expected, "twin_float32", f"{number}")


# Twice the last ones is more than float16 holds.
NOT_FINITE = [float("nan"), float("inf"), -float("inf"), 0.0, -1.0, 3.0, -40000.0, 40000.0]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_bias_act_of_what_is_not_finite(kernels: ctypes.CDLL, dtype: torch.dtype) -> None:
    """The rectifiers exactly as defined."""
    x = torch.tensor(NOT_FINITE, dtype=dtype).reshape(1, 1, 2, 4)
    gradient = torch.full_like(x, 3.0)
    for activation, clamp, gain, shift in itertools.product(ACTIVATION_GAINS, (-1.0, 2.0, 3e4), (2.0, -2.0), (0, 1)):
        numbers = (CODES[activation], {"linear": 1.0, "lrelu": 0.25}.get(activation, 0.0), gain, clamp)
        what = f"{activation} gain {gain} clamp {clamp} shift {shift}"
        y = run_bias_act(kernels, x, None, None, None, None, 0, numbers, shift)
        expected = torch.ops.ganops.bias_act(x, None, None, None, 1, *numbers)
        if activation in RECTIFIERS:
            torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True, msg=what)
            slope = run_bias_act(kernels, x, None, None, None, gradient, 1, numbers, shift)
            expected = torch.ops.ganops.bias_act_slope(gradient, x, None, 1, numbers[0], 1, *numbers[1:])
            torch.testing.assert_close(slope, expected, rtol=0, atol=0, equal_nan=True, msg=f"order 1, {what}")
        else:
            assert y.isnan().equal(expected.isnan()), what
            assert clamp < 0 or not (y.abs() > torch.tensor(clamp, dtype=dtype)).any(), what


def test_the_slope_of_rectifiers_is_told_from_the_result_alone(kernels: ctypes.CDLL) -> None:
    y, gradient = normal(2, 8, 3, 4, seed=1, dtype=torch.float32), normal(2, 8, 3, 4, seed=2, dtype=torch.float32)
    bias = normal(8, seed=3, dtype=torch.float32)
    numbers = (CODES["lrelu"], 0.2, 1.3, 0.9)
    slope = run_bias_act(kernels, y, bias, None, None, gradient, 1, numbers, 0)
    expected = torch.ops.ganops.bias_act_slope(gradient, y, bias, 1, numbers[0], 1, *numbers[1:])
    assert_close(slope, expected, "twin_float32")


FILTERS = {
    "separable": setup_filter([1, 3, 3, 1], separable=True),
    "asymmetric": setup_filter([1, 2, -3, 5], separable=True),
    "five": setup_filter([1, 2, -3, 5, 1], separable=True),
    "full": setup_filter([[1, -2, 3], [0.5, 4, 1]], normalize=False),
}
GEOMETRIES = [  # up, down, left, right, top, bottom
    (1, 1, 1, 1, 1, 1), (1, 1, 2, 1, 2, 1), (1, 1, -1, 3, 4, -1), (1, 2, 1, 1, 1, 1), (1, 2, 2, 2, 2, 2), (1, 2, 0, 5, 3, 1),
    (2, 1, 2, 1, 2, 1), (2, 1, 3, 0, 1, 2), (2, 1, 1, 2, 1, 2), (2, 1, -1, 4, 3, -2), (2, 1, 2, 1, 1, 2), (2, 2, 1, 2, 0, 3),
    (3, 2, 5, -1, 3, 2), (3, 1, 9, 8, 7, 6),
]  # fmt: skip


def run_upfirdn2d(
    kernels: ctypes.CDLL, x: Tensor, out_shape: torch.Size, arguments: tuple[Any, ...], shift: int
) -> tuple[Tensor, Tensor]:
    taps, up, _, down, _, left, _, top, _, flip, gain = arguments
    channels_last = not x.is_contiguous()
    layout = torch.channels_last if channels_last else torch.contiguous_format
    y = torch.full(out_shape, float("nan"), dtype=x.dtype).contiguous(memory_format=layout)
    y, buffer = guarded(y, MARK, shift)
    N, C, H, W = x.shape
    channels = C if channels_last else 1
    sizes = (H, W, y.shape[2], y.shape[3], channels, taps.shape[0], taps.shape[-1], up, up, down, down, left, top)
    inside, _ = guarded(x, float("nan"), shift)  # held until the kernel has read it
    fits = kernels.run_upfirdn2d(
        DTYPES.index(x.dtype), pointer(inside), pointer(y), pointer(taps),
        ctypes.c_int64(N * C // channels), (ctypes.c_int * len(sizes))(*sizes), taps.ndim == 1, flip, ctypes.c_double(gain),
    )  # fmt: skip
    assert fits
    return y, buffer


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("filter", FILTERS)
def test_upfirdn2d(kernels: ctypes.CDLL, filter: str, dtype: torch.dtype) -> None:
    taps = FILTERS[filter].to(torch.float64 if dtype == torch.float64 else torch.float32)
    checked = 0
    for shape, layout, geometry, flip, shift in itertools.product(
        [(2, 3, 5, 7), (1, 16, 9, 4), (2, 8, 40, 5)],
        (torch.contiguous_format, torch.channels_last),
        GEOMETRIES,
        (False, True),
        (0, 1),
    ):
        up, down, left, right, top, bottom = geometry
        x = normal(*shape, seed=1, dtype=dtype).contiguous(memory_format=layout)
        arguments = (taps, up, up, down, down, left, right, top, bottom, flip, 1.7)
        expected = torch.ops.ganops.upfirdn2d(x.double(), taps.double(), *arguments[1:])
        y, buffer = run_upfirdn2d(kernels, x, expected.shape, arguments, shift)
        check_margins(buffer, y)
        assert_close(y, expected, TOLERANCES[dtype], f"{shape} {layout} {geometry} flip {flip} shift {shift}")
        checked += 1
    assert checked == 3 * 2 * len(GEOMETRIES) * 4


PADDINGS = [  # left, right, top, bottom
    (1, 1, 1, 1), (2, 1, 2, 1), (1, 2, 1, 2), (2, 1, 1, 2), (0, 3, 3, 0), (3, 0, 0, 4), (-1, 4, -2, 5), (5, -2, 4, -1),
    (-3, 7, -1, 8), (9, 8, 6, 7),
]  # fmt: skip
SIDES = [(1, 1), (2, 3), (5, 2), (3, 4), (4, 5), (7, 9), (16, 8), (33, 6), (34, 13), (67, 3)]  # height, width


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_upfirdn2d_of_four_taps(kernels: ctypes.CDLL, dtype: torch.dtype) -> None:
    """What the networks use, in its own form: tails of rows and columns, ends of strips, paddings of all kinds."""
    taps = FILTERS["asymmetric"].to(torch.float64 if dtype == torch.float64 else torch.float32)
    layouts = [(2, 3, False), (11, 1, False), (2, 3, True), (1, 6, True), (1, 8, True), (2, 24, True)]
    checked = 0
    for (H, W), padding, (up, down), (N, C, last) in itertools.product(
        SIDES, PADDINGS, ((1, 1), (1, 2), (2, 1)), layouts
    ):
        left, right, top, bottom = padding
        if min(H * up + top + bottom, W * up + left + right) < 4:
            continue  # smaller than the filter
        checked += 1
        flip, shift = checked % 2 == 0, int(checked % 3 == 0)
        x = normal(N, C, H, W, seed=checked, dtype=dtype)
        x = x.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
        arguments = (taps, up, up, down, down, *padding, flip, 1.7)
        expected = upfirdn2d_reference(x.double(), taps.double(), up, down, padding, flip, 1.7)
        y, buffer = run_upfirdn2d(kernels, x, expected.shape, arguments, shift)
        what = f"{N}x{C}x{H}x{W} last {last} {padding} up {up} down {down} flip {flip} shift {shift}"
        check_margins(buffer, y)
        assert_close(y, expected, TOLERANCES[dtype], what)
    assert checked > 1000


# In a process of its own, for what is read outside ends it. No torch, for speed.
TOUCHING = """
import ctypes, itertools, mmap, sys

libc, kernels = ctypes.CDLL(None), ctypes.CDLL(sys.argv[1])
kept = []

def between_guards(size, at_end):
    used = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, used + 2 * mmap.PAGESIZE)
    kept.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for page in (start, start + mmap.PAGESIZE + used):
        assert libc.mprotect(ctypes.c_void_p(page), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    return ctypes.c_void_p(start + mmap.PAGESIZE + (used - size if at_end else 0))

taps = (ctypes.c_float * 4)(1, 2, 3, 4)
layouts, ends, factors = ((3, 1), (1, 3), (2, 8)), (False, True), ((1, 1), (1, 2), (2, 1))
sizes = ((1, 1), (4, 4), (9, 5), (40, 8))
paddings = ((1, 1), (2, 2), (0, 0), (-1, -2), (6, 7))
for dtype, (N, C), (H, W), at_end, (up, down), (left, top) in itertools.product(
    range(3), layouts, sizes, ends, factors, paddings
):
    width, height = ((side * up + before + 5 - 4) // down + 1 for side, before in ((W, left), (H, top)))
    bytes = 2 if dtype else 4
    x, y = (between_guards(N * C * pixels * bytes, at_end) for pixels in (H * W, height * width))
    numbers = (H, W, height, width, C, 4, 4, up, up, down, down, left, top)
    given = (ctypes.c_int * 13)(*numbers)
    assert kernels.run_upfirdn2d(dtype, x, y, taps, ctypes.c_int64(N), given, 1, 0, ctypes.c_double(1.0))
print(len(kept) // 2, "images")
"""


def test_upfirdn2d_touches_nothing_outside(kernels: ctypes.CDLL) -> None:
    """Not even what it would not use, such as a row that is read in advance."""
    result = subprocess.run(
        [sys.executable, "-c", TOUCHING, kernels._name], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "1080 images\n"), result.stderr


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_in_parts(kernels_in_parts: ctypes.CDLL, layout: torch.memory_format) -> None:
    """Tensors of more elements than one launch takes."""
    x = normal(9, 8, 6, 5, seed=1, dtype=torch.float32).contiguous(memory_format=layout)
    bias, scale = normal(8, seed=2, dtype=x.dtype), normal(9, 8, seed=3, dtype=x.dtype)
    gradient = normal(9, 8, 6, 5, seed=4, dtype=x.dtype).contiguous(memory_format=layout)
    numbers = (CODES["lrelu"], 0.2, 1.3, 0.9)
    for noise in (normal(9, 1, 6, 5, seed=5, dtype=x.dtype), normal(6, 5, seed=6, dtype=x.dtype)):
        y = run_bias_act(kernels_in_parts, x, bias, scale, noise, None, 0, numbers, 0)
        assert_close(y, torch.ops.ganops.bias_act(x, bias, scale, noise, 1, *numbers), "twin_float32")
    slope = run_bias_act(kernels_in_parts, y, None, None, None, gradient, 1, numbers, 0)
    expected = torch.ops.ganops.bias_act_slope(gradient, y, None, 1, numbers[0], 1, *numbers[1:])
    assert_close(slope, expected, "twin_float32")
    for filter, (up, down, left) in itertools.product(
        ("asymmetric", "full"), ((1, 1, 2), (1, 2, 1), (2, 1, 2), (2, 1, 1))
    ):
        x = normal(9, 8, 4, 5, seed=1, dtype=torch.float32).contiguous(memory_format=layout)
        arguments = (FILTERS[filter], up, up, down, down, left, 1, 2, 1, False, 1.0)
        images = torch.ops.ganops.upfirdn2d(x, *arguments)
        assert_close(run_upfirdn2d(kernels_in_parts, x, images.shape, arguments, 0)[0], images, "twin_float32", filter)


def test_too_large_for_32_bits_is_refused(kernels: ctypes.CDLL) -> None:
    sizes = (1 << 16, 1 << 15, 1 << 16, 1 << 15, 1, 1, 1, 1, 1, 1, 1, 0, 0)
    array = (ctypes.c_int * len(sizes))(*sizes)
    assert not kernels.run_upfirdn2d(0, None, None, None, ctypes.c_int64(1), array, 0, 0, ctypes.c_double(1.0))


def test_division_by_a_constant(kernels: ctypes.CDLL) -> None:
    kernels.divide.restype = ctypes.c_uint32
    rng = torch.Generator().manual_seed(0)
    numbers = torch.randint(2**31, [300], generator=rng).tolist()
    divisors = [1, 2, 3, 7, 2**30, 2**31 - 1, *torch.randint(1, 2**31, [50], generator=rng).tolist(), *range(4, 100)]
    for divisor in divisors:
        for n in (0, 1, divisor - 1, divisor, min(divisor + 1, 2**31 - 1), 2**31 - 1, *numbers):
            assert kernels.divide(ctypes.c_uint32(n), ctypes.c_uint32(divisor)) == n // divisor, f"{n} / {divisor}"
