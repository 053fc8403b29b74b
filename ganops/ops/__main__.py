"""`python -m ganops.ops`: which form the ops have on this machine, whether they are right, and what they cost.

Ends with 1 if there is a toolkit but the kernels do not compile, or if an op differs from its reference.
"""

import itertools
import math
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

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

Op = Callable[..., Tensor]
Size = tuple[int, int, int]
# Largest error, relative to the largest value of the reference in float64. 16 bits: five roundings of 2^-11, 2^-8.
BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2.5e-3, torch.bfloat16: 2e-2}
TAPS = setup_filter([1, 3, 3, 1], separable=True)  # of StyleGAN2
SIZES: tuple[Size, ...] = ((32, 64, 256), (8, 64, 512), (4, 32, 1024))
"""Images, channels, px: 134 million numbers each, far more than an L2 cache holds."""
FORMATS = ((torch.float16, torch.channels_last), (torch.float32, torch.contiguous_format))
"""As the networks have them on CUDA."""
OPS = ("bias_act", "bias_act scaled, noise", "bias_act gradient", "upfirdn2d filter", "upfirdn2d up", "upfirdn2d down")
ROUNDS, CALLS, LONG_SEC = 7, 4, 0.01


@dataclass(frozen=True)
class Cost:
    """Seconds of an op's call, by kernel (None without one) and by torch's operations, and of a copy of `bytes`."""

    what: str
    bytes: int  # that must be read and written
    kernel_sec: float | None
    plain_sec: float
    copy_sec: float

    def share_of_copy(self) -> float:
        """The bandwidth that the kernel reaches, or without one the plain form, divided by the copy's."""
        return self.copy_sec / (self.kernel_sec or self.plain_sec)

    def describe(self) -> str:
        ways = {"kernel": self.kernel_sec, "plain": self.plain_sec, "copy": self.copy_sec}
        figures = [
            f"{name} {1e3 * sec:.3f} ms {self.bytes / sec / 1e9:.0f} GB/s {self.copy_sec / sec:.0%}"
            for name, sec in ways.items()
            if sec is not None
        ]
        return " | ".join([self.what, *figures])


def device_seconds(calls: list[Callable[[], Tensor]]) -> float:
    """Seconds of one call on the GPU, the median of `ROUNDS`; the host queues all rounds before it waits."""
    turns = itertools.cycle(calls)

    def queue(count: int) -> tuple[torch.cuda.Event, torch.cuda.Event]:
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        first.record()
        for _ in range(count):
            next(turns)()
        last.record()
        return first, last

    def seconds(span: tuple[torch.cuda.Event, torch.cuda.Event]) -> float:
        torch.cuda.synchronize()
        return float(span[0].elapsed_time(span[1])) / 1e3

    queue(len(calls))  # loads what has not been loaded
    count = 1 if seconds(queue(1)) > LONG_SEC else CALLS
    spans = [queue(count) for _ in range(ROUNDS + 1)]
    return statistics.median(seconds(span) for span in spans[1:]) / count


def count_buffers(bytes: int, device: torch.device) -> int:
    """So many buffers of `bytes` are twice the L2 cache, and at least two."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    return max(2, math.ceil(2 * cache / bytes))


def op_calls(
    op: str, dtype: torch.dtype, layout: torch.memory_format, size: Size, device: torch.device
) -> tuple[list[Callable[[], Tensor]], int]:
    """An op of `OPS` as the networks call it, on several inputs; and the bytes that one call must move.

    `size` is that of the larger image. The gradient is that of the form chosen now (`choose_ops`).
    """
    (N, C, px), taps = size, TAPS.to(device)
    side = {"upfirdn2d filter": px + 1, "upfirdn2d up": px // 2}.get(op, px)  # + 1: behind a transposed convolution
    noise = torch.randn([N, 1, px, px], device=device, dtype=dtype)
    bias, scale = noise.new_ones([C]), noise.new_ones([N, C])

    def call(x: Tensor) -> Callable[[], Tensor]:
        match op:
            case "bias_act":
                return lambda: bias_act(x, bias, activation="lrelu", clamp=256.0)
            case "bias_act scaled, noise":
                return lambda: bias_act(x, bias, activation="lrelu", clamp=256.0, scale=scale, noise=noise)
            case "bias_act gradient":
                y = bias_act(x.requires_grad_(), bias, activation="lrelu", clamp=256.0)
                dy = torch.ones_like(y)
                return lambda: torch.autograd.grad(y, [x], dy, retain_graph=True)[0]
            case "upfirdn2d filter":
                return lambda: upfirdn2d(x, taps, padding=1, gain=4.0)
            case "upfirdn2d up":
                return lambda: upfirdn2d(x, taps, up=2, padding=[2, 1, 2, 1], gain=4.0)
        return lambda: upfirdn2d(x, taps, down=2, padding=1)

    bytes = N * C * side * side * dtype.itemsize
    images = [torch.randn([N, C, side, side], device=device, dtype=dtype) for _ in range(count_buffers(bytes, device))]
    calls = [call(x.contiguous(memory_format=layout)) for x in images]
    moved = calls[0]().nbytes + bytes * (2 if "gradient" in op else 1) + (noise.nbytes if "noise" in op else 0)
    return calls, moved


def copy_seconds(bytes: int, device: torch.device) -> float:
    """Seconds of a copy on the device that reads and writes `bytes` together."""
    count = count_buffers(bytes // 2, device)
    buffers = [torch.ones(bytes // 2, dtype=torch.uint8, device=device) for _ in range(2 * count)]
    return device_seconds([partial(buffers[2 * i].copy_, buffers[2 * i + 1]) for i in range(count)])


def measure_op(op: str, dtype: torch.dtype, layout: torch.memory_format, size: Size, device: torch.device) -> Cost:
    """By kernel, if that is what runs on `device` now, and by torch's operations."""
    kernel_sec = None
    if use_kernels(torch.empty(0, device=device)):
        kernel_sec = device_seconds(op_calls(op, dtype, layout, size, device)[0])
        choose_ops("reference", device)
    try:
        calls, bytes = op_calls(op, dtype, layout, size, device)
        plain_sec = device_seconds(calls)
    finally:
        choose_ops("reference" if kernel_sec is None else "cuda", device)
    del calls
    form = f"{str(dtype)[6:]} {'channels_last' if layout == torch.channels_last else 'NCHW'}"
    what = f"{op:22} | {form:21} | {'x'.join(map(str, (*size, size[2]))):14}"
    return Cost(what, bytes, kernel_sec, plain_sec, copy_seconds(bytes, device))


def steps_of(unit: float, *shape: int, seed: int) -> Tensor:
    """Multiples of `unit` up to 16 of it: sums are exact in 16 bits too, so none falls to the other side of a kink."""
    return torch.randint(-16, 17, shape, generator=torch.Generator().manual_seed(seed)).double() * unit


def differences(device: torch.device, dtype: torch.dtype) -> Iterator[tuple[str, float]]:
    """(op, its largest relative error against its reference in float64), for NCHW and channels_last."""
    image, noise = steps_of(1 / 8, 3, 5, 19, 21, seed=1), steps_of(1 / 8, 3, 1, 19, 21, seed=2)
    bias = steps_of(1 / 8, 5, seed=3) + 1 / 32  # so no sum is 0
    scale, styles = 2.0 ** steps_of(1 / 16, 3, 5, seed=4).round(), steps_of(1 / 8, 3, 5, seed=5) + 1 / 16
    weight, filtering = steps_of(1 / 8, 7, 5, 3, 3, seed=6), ((1, 1, 1), (2, 1, [2, 1, 2, 1]), (1, 2, 1))
    for x in (image, image.contiguous(memory_format=torch.channels_last)):
        yield "bias_act", difference(
            lambda op, x, b, s, n: op(x, b, activation="lrelu", clamp=3.0, scale=s, noise=n),
            (bias_act, bias_act_reference), [x, bias, scale, noise], dtype, device,
        )  # fmt: skip
        for settings in filtering:
            run = partial(lambda settings, op, x: op(x, TAPS, *settings), settings)
            yield "upfirdn2d", difference(run, (upfirdn2d, upfirdn2d_reference), [x], dtype, device)
        if (
            dtype.itemsize >= 4
        ):  # these are the two above around torch's convolutions, whose roundings in 16 bits add up
            run = partial(lambda op, x, w: op(x, w, TAPS, down=2, padding=1))
            pair = conv2d_resample, conv2d_resample_reference
            yield "conv2d_resample", difference(run, pair, [x, weight], dtype, device)
            run = partial(lambda op, x, w, s: op(x, w, s, up=2, padding=1, resample_filter=TAPS))
            modulated = modulated_conv2d, modulated_conv2d_reference
            yield "modulated_conv2d", difference(run, modulated, [x, weight, styles], dtype, device)


def difference(run: Op, ops: tuple[Op, Op], inputs: list[Tensor], dtype: torch.dtype, device: torch.device) -> float:
    """Largest |op - reference| / max |reference| of the value, its gradients, and the gradients of their squared norm."""
    results = []
    for op, kind in zip(ops, (dtype, torch.float64), strict=True):
        leaves = [tensor.to(device, kind).requires_grad_() for tensor in inputs]
        y = run(op, *leaves)
        dy = steps_of(1 / 512, *y.shape, seed=7).to(device)
        first = torch.autograd.grad((y.double().square() * dy).sum(), leaves, create_graph=True)
        norm = torch.stack([gradient.double().square().sum() for gradient in first]).sum()
        results.append([tensor.detach().double() for tensor in (y, *first, *torch.autograd.grad(norm, leaves))])
    errors = [float((ours - theirs).abs().max() / theirs.abs().max()) for ours, theirs in zip(*results, strict=True)]
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
        for op, worst_error in worst.items():
            good = good and worst_error <= bound
            verdict = "ok    " if worst_error <= bound else "FAILED"
            print(
                f"  {verdict} {op:16} {str(dtype)[6:]:8} largest relative error {worst_error:.1e}, allowed {bound:.1e}"
            )
    return good


def build_here(device: torch.device) -> bool:
    """Finds the toolkit and builds, or says that there is none; whether there are kernels to run on `device`."""
    try:
        toolkit = _build.find_toolkit()
    except OpsError as error:
        print(f"toolkit: none, so no kernels are built. {error}")
        choose_ops("reference", device)
        return False
    print(f"toolkit: nvcc {toolkit.version} in {toolkit.home} (found by {toolkit.origin})")
    names, start = ", ".join(_build.architectures()), time.perf_counter()
    there = _build.library_path(toolkit, _build.architectures()).exists()
    path = _build.build(lambda text: print(text, flush=True))
    print(
        f"kernels: {'built before' if there else f'built in {time.perf_counter() - start:.1f} s'}, for {names}: {path}"
    )
    choose_ops("cuda", device)
    return device.type == "cuda"


def check() -> bool:
    """The whole report; whether all that could be tried is right. Raises OpsError: the kernels do not compile or load."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    configure_numerics(tf32=False, deterministic=False)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU; no CUDA device is found"
    print(f"device: {name}. torch {torch.__version__}")
    form = "CUDA kernels" if build_here(device) else "plain torch operations"
    print(f"bias_act, upfirdn2d run as {form}; conv2d_resample, modulated_conv2d as torch's convolutions around them")
    print("against the references in float64, with gradients of first and second order:")
    good = show_differences(device)
    if device.type == "cpu":
        print("not tried, for it needs a GPU: running the kernels, and measuring what the ops cost")
    elif good:
        print("cost, with inputs that are not in the cache; per cent are of the copy's bandwidth:")
        for size, (dtype, layout), op in itertools.product(SIZES, FORMATS, OPS):
            try:
                print(f"  {measure_op(op, dtype, layout, size, device).describe()}", flush=True)
            except torch.OutOfMemoryError:
                print(f"  {op} | {dtype} | {size}: not measured, the GPU's memory is too small")
    print("all right" if good else "FAILED, see above; until that is mended, set run.ops: reference")
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
