"""`python -m ganops.ops`: which form the ops have on this machine, whether they are right, and what they cost.

Ends with 1 if the kernels cannot be built with the toolkit that is there, or an op differs from its reference.
"""

import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor

from ganops.distributed import configure_numerics
from ganops.errors import GanopsError, OpsError
from ganops.ops import _build
from ganops.ops.bias_act import bias_act, bias_act_reference
from ganops.ops.conv2d_resample import conv2d_resample, conv2d_resample_reference
from ganops.ops.kernels import choose_ops, use_kernels
from ganops.ops.modulated_conv2d import modulated_conv2d, modulated_conv2d_reference
from ganops.ops.upfirdn2d import setup_filter, upfirdn2d, upfirdn2d_reference

BOUNDS = {
    # Largest error, relative to the largest value of the reference in float64. 16 bits: five roundings of 2^-11, 2^-8.
    torch.float64: 1e-12,
    torch.float32: 1e-5,
    torch.float16: 2.5e-3,
    torch.bfloat16: 2e-2,
}
TAPS = setup_filter([1, 3, 3, 1], separable=True)  # of StyleGAN2
CLAMP = 3.0
SIZES = ((32, 64, 256), (8, 64, 512), (4, 32, 1024))
"""Images, channels and px: as many numbers each, 134 million, which no L2 cache holds."""
FORMATS = ((torch.float16, torch.channels_last), (torch.float32, torch.contiguous_format))
"""As the networks have them on CUDA."""
OPS = ("bias_act", "bias_act scaled, noise", "bias_act gradient", "upfirdn2d filter", "upfirdn2d up", "upfirdn2d down")
REPEATS, CALLS = 7, 4

Op = Callable[..., Tensor]


@dataclass(frozen=True)
class Calls:
    """The same op on several inputs that together do not fit into the L2 cache, and the bytes that each must move."""

    calls: list[Callable[[], Tensor]]
    bytes: int


@dataclass(frozen=True)
class Cost:
    """Seconds of an op's call, by kernel and by torch's operations, and of a copy that moves as many bytes."""

    op: str
    format: str
    size: str
    bytes: int
    kernel_sec: float | None  # None without kernels
    plain_sec: float
    copy_sec: float

    def share_of_copy(self) -> float:
        """The bandwidth reached, by kernels if there are any, divided by the copy's."""
        return self.copy_sec / (self.plain_sec if self.kernel_sec is None else self.kernel_sec)

    def describe(self) -> str:
        def figure(name: str, seconds: float) -> str:
            speed = f"{self.bytes / seconds / 1e9:.0f} GB/s"
            return f"{name} {1e3 * seconds:.3f} ms, {speed}, {self.copy_sec / seconds:.0%}"

        kernel = "" if self.kernel_sec is None else figure("kernel", self.kernel_sec) + " of copy | "
        copy = f"copy {self.bytes / self.copy_sec / 1e9:.0f} GB/s"
        plain = figure("plain", self.plain_sec)
        return f"{self.op:22} | {self.format:21} | {self.size:14} | {kernel}{plain} of copy | {copy}"


def device_seconds(calls: list[Callable[[], Tensor]]) -> float:
    """Seconds of one call on the GPU, the median of `REPEATS` rounds; the host queues all of them before it waits."""
    for call in calls:  # warms up
        call()
    turn = 0
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(REPEATS + 1)]  # type: ignore[no-untyped-call]
    for number, mark in enumerate(marks):
        mark.record()
        for _ in range(CALLS if number < REPEATS else 0):
            calls[turn % len(calls)]()
            turn += 1
    torch.cuda.synchronize()
    rounds = [first.elapsed_time(second) for first, second in pairwise(marks)]
    return float(statistics.median(rounds)) / 1e3 / CALLS


def count_buffers(bytes: int, device: torch.device) -> int:
    """So many inputs of `bytes` are twice the L2 cache, and at least two."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    return max(2, math.ceil(2 * cache / bytes))


def op_calls(
    op: str, dtype: torch.dtype, layout: torch.memory_format, size: tuple[int, int, int], device: torch.device
) -> Calls:
    """An op of `OPS` as the networks call it, on random numbers; `size` is that of its larger image."""
    N, C, px = size
    side = {"upfirdn2d filter": px + 1, "upfirdn2d up": px // 2}.get(op, px)  # behind a transposed convolution: + 1
    taps = TAPS.to(device)
    options = {"device": device, "dtype": dtype}
    bias, scale, noise = (torch.randn(shape, **options) for shape in ([C], [N, C], [N, 1, px, px]))  # type: ignore[call-overload]

    def call(x: Tensor) -> Callable[[], Tensor]:
        match op:
            case "bias_act":
                return lambda: bias_act(x, bias, activation="lrelu", clamp=256.0)
            case "bias_act scaled, noise":
                return lambda: bias_act(x, bias, activation="lrelu", clamp=256.0, scale=scale, noise=noise)
            case "bias_act gradient":
                leaf = x.requires_grad_()
                y = bias_act(leaf, bias, activation="lrelu", clamp=256.0)
                dy = torch.ones_like(y)
                return lambda: torch.autograd.grad(y, [leaf], dy, retain_graph=True)[0]
            case "upfirdn2d filter":
                return lambda: upfirdn2d(x, taps, padding=1, gain=4.0)
            case "upfirdn2d up":
                return lambda: upfirdn2d(x, taps, up=2, padding=[2, 1, 2, 1], gain=4.0)
        return lambda: upfirdn2d(x, taps, down=2, padding=1)

    def image() -> Tensor:
        return torch.randn([N, C, side, side], **options).contiguous(memory_format=layout)  # type: ignore[call-overload, no-any-return]

    first = image()
    calls = [call(x) for x in [first, *(image() for _ in range(count_buffers(first.nbytes, device) - 1))]]
    moved = calls[0]().nbytes + first.nbytes * (2 if "gradient" in op else 1)
    return Calls(calls, moved + (noise.nbytes if "noise" in op else 0))


def copy_seconds(bytes: int, device: torch.device) -> float:
    """Seconds of a copy on the device that reads and writes `bytes` together."""
    half = bytes // 2
    pairs = [
        [torch.ones(half, dtype=torch.uint8, device=device) for _ in "ab"] for _ in range(count_buffers(half, device))
    ]
    return device_seconds([lambda one=one, two=two: one.copy_(two) for one, two in pairs])  # type: ignore[misc]


def measure_op(
    op: str, dtype: torch.dtype, layout: torch.memory_format, size: tuple[int, int, int], device: torch.device
) -> Cost:
    """By kernels, if they can be had, and by torch's operations; those stay chosen (`choose_ops`) as they were before."""
    work, kernel_sec = op_calls(op, dtype, layout, size, device), None
    if use_kernels(torch.empty(0, device=device)):
        kernel_sec = device_seconds(work.calls)
        choose_ops("reference", device)
        try:
            if "gradient" in op:  # its graph was made by kernels
                work = op_calls(op, dtype, layout, size, device)
            plain_sec = device_seconds(work.calls)
        finally:
            choose_ops("cuda", device)
    else:
        plain_sec = device_seconds(work.calls)
    bytes = work.bytes
    del work
    names = f"{str(dtype)[6:]} {'channels_last' if layout == torch.channels_last else 'NCHW'}"
    N, C, px = size
    return Cost(op, names, f"{N}x{C}x{px}x{px}", bytes, kernel_sec, plain_sec, copy_seconds(bytes, device))


def steps_of(unit: float, *shape: int, seed: int) -> Tensor:
    """Multiples of `unit` up to 16 of it: their sums are exact in 16 bits too, so none falls to the other side of a kink."""
    return torch.randint(-16, 17, shape, generator=torch.Generator().manual_seed(seed)).double() * unit


def differences(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, float]]:
    """(op, its largest relative error against its reference in float64), for NCHW and channels_last."""
    image, noise = steps_of(1 / 8, 3, 5, 19, 21, seed=1), steps_of(1 / 8, 3, 1, 19, 21, seed=2)
    bias = steps_of(1 / 8, 5, seed=3) + 1 / 32  # so no sum is 0
    scale, styles = 2.0 ** steps_of(1 / 16, 3, 5, seed=4).round(), steps_of(1 / 8, 3, 5, seed=5) + 1 / 16
    weight = steps_of(1 / 8, 7, 5, 3, 3, seed=6)
    for x in (image, image.contiguous(memory_format=torch.channels_last)):
        for name, ops, function, inputs in (
            ("bias_act", (bias_act, bias_act_reference), act, [x, bias, scale, noise]),
            ("upfirdn2d", (upfirdn2d, upfirdn2d_reference), resample, [x]),
            ("conv2d_resample", (conv2d_resample, conv2d_resample_reference), convolve, [x, weight]),
            ("modulated_conv2d", (modulated_conv2d, modulated_conv2d_reference), modulate, [x, weight, styles]),
        ):
            # The last two are the first two around torch's convolutions, whose roundings in 16 bits add up.
            if dtype.itemsize >= 4 or "conv" not in name:
                yield name, difference(*(partial(function, op) for op in ops), inputs, dtype, device)


def act(op: Op, x: Tensor, bias: Tensor, scale: Tensor, noise: Tensor) -> Tensor:
    return op(x, bias, activation="lrelu", clamp=CLAMP, scale=scale, noise=noise)


def resample(op: Op, x: Tensor) -> Tensor:
    settings = ((1, 1, 1), (2, 1, [2, 1, 2, 1]), (1, 2, 1))
    return torch.cat([op(x, TAPS, up, down, padding).flatten() for up, down, padding in settings])


def convolve(op: Op, x: Tensor, weight: Tensor) -> Tensor:
    return op(x, weight, TAPS, down=2, padding=1)


def modulate(op: Op, x: Tensor, weight: Tensor, styles: Tensor) -> Tensor:
    return op(x, weight, styles, up=2, padding=1, resample_filter=TAPS)


def difference(op: Op, reference: Op, inputs: list[Tensor], dtype: torch.dtype, device: torch.device) -> float:
    """Largest |op - reference| / max |reference| of the value, its gradients, and the gradients of their squared norm."""
    results = []
    for function, kind in ((op, dtype), (reference, torch.float64)):
        leaves = [tensor.to(device, kind).requires_grad_() for tensor in inputs]
        y = function(*leaves)
        dy = steps_of(1 / 512, *y.shape, seed=7).to(device)
        first = torch.autograd.grad((y.double().square() * dy).sum(), leaves, create_graph=True)
        norm = torch.stack([g.double().square().sum() for g in first]).sum()
        results.append([y, *first, *torch.autograd.grad(norm, leaves)])
    errors = [
        ((ours.detach().double() - theirs.detach()).abs().max() / theirs.detach().abs().max()).item()
        for ours, theirs in zip(*results, strict=True)
    ]
    return max(error if math.isfinite(error) else math.inf for error in errors)


def show_differences(device: torch.device) -> bool:
    """Prints a line for each op and dtype; whether all errors are within `BOUNDS`."""
    good = True
    for dtype, bound in BOUNDS.items():
        worst: dict[str, float] = {}
        try:
            for op, error in differences(device, dtype):
                worst[op] = max(error, worst.get(op, 0.0))
        except RuntimeError as failure:  # a kernel that does not run; after it, nothing else may
            print(f"  FAILED {dtype}: {type(failure).__name__}: {str(failure).splitlines()[0]}")
            good = False
        for op, error in worst.items():
            good = good and error <= bound
            verdict = "ok    " if error <= bound else "FAILED"
            print(f"  {verdict} {op:16} {str(dtype)[6:]:8} largest relative error {error:.1e}, allowed {bound:.1e}")
    return good


def show_costs(device: torch.device) -> None:
    """Prints a line for each op, format and size."""
    for size, (dtype, layout), op in ((s, f, o) for s in SIZES for f in FORMATS for o in OPS):
        try:
            line = measure_op(op, dtype, layout, size, device).describe()
        except torch.OutOfMemoryError:
            line = f"{op} | {dtype} | {size}: not measured, the GPU's memory is too small"
        print(f"  {line}", flush=True)


def build_here(device: torch.device) -> bool:
    """Finds the toolkit, builds the kernels and says so; whether there are any to run on `device`.

    Raises:
        OpsError: there is a toolkit, but the kernels do not compile or load.
    """
    try:
        toolkit = _build.find_toolkit()
    except OpsError as error:
        print(f"toolkit: none. {error}")
        print("kernels: not built; there is nothing to compile them with.")
        choose_ops("reference", device)
        return False
    print(f"toolkit: nvcc {toolkit.version} in {toolkit.home} (found by {toolkit.origin})")
    there, start = _build.library_path(toolkit, _build.architectures()).exists(), time.perf_counter()
    path = _build.build(lambda text: print(text, flush=True))
    took = "were there already" if there else f"built in {time.perf_counter() - start:.1f} s"
    print(f"kernels: {took}, for {', '.join(_build.architectures())}: {path}")
    choose_ops("cuda", device)
    return device.type == "cuda"


def check() -> bool:
    """All of the report; whether what could be tried is right."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    configure_numerics(tf32=False, deterministic=False)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU, no CUDA device is found"
    print(f"device: {name}; torch {torch.__version__}")
    kernels = build_here(device)
    form = "CUDA kernels" if kernels else "plain torch operations"
    print(f"bias_act, upfirdn2d: {form}. conv2d_resample, modulated_conv2d: torch's convolutions around them.")
    print("against the references in float64, with gradients of first and second order:")
    good = show_differences(device)
    if device.type == "cuda" and good:
        print("cost, inputs not in the cache:")
        show_costs(device)
    elif device.type == "cpu":
        print("not tried, for it needs a GPU: running the kernels, and measuring what the ops cost.")
    print("all right" if good else "ops: FAILED: see above. Until that is mended set run.ops: reference.")
    return good


def main() -> None:
    try:
        good = check()
    except GanopsError as error:
        print(error, file=sys.stderr)
        good = False
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
