"""What training costs on a CUDA device, beside published figures and goals: one table, in less than eight minutes.

`python -m bench.gpu`. Without a CUDA device it says so and ends well. Data are random bytes. A part that fails says so in
its row, one that would overrun the time is left out and named; rows appear on stderr as they are measured.
"""

import datetime
import gc
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench.report import report
from bench.states import states
from ganops.config import load_params
from ganops.config_train import TrainParams
from ganops.distributed import configure_numerics, select_device
from ganops.images.dataset import Batch
from ganops.metrics import inception
from ganops.metrics.extractor import EFFLITE0_SIZE, Extractor, load_extractor
from ganops.metrics.resize import resize_images
from ganops.ops.__main__ import FORMATS, OPS, SIZES, measure_op
from ganops.ops.kernels import OpsMode, choose_ops, use_kernels
from ganops.training import step
from ganops.training.compiled import CompileMode, compile_networks
from ganops.training.state import initial_state
from ganops.training.step import train_step
from tests.standin import write_full_inception

ROOT = Path(__file__).parents[1]
LIMIT_SEC = 450.0  # of measuring; what is left of eight minutes is for starting and ending
COMPILE_SEC = 90.0  # expected of the first compilation; later ones are expected to take as long as the longest so far
CHANNELS, BATCH_SIZE = 3, 32
BATCH_GPU = {128: 8, 256: 8, 512: 8, 1024: 4}
LARGE_BATCH_GPU = {128: 32, 256: 32, 512: 16, 1024: 8}
"""Fewer launches per image: at low resolutions small micro-batches keep a GPU waiting for the host."""
GOALS = {128: 2.2, 256: 4.0, 512: 13.0, 1024: 28.0}
"""sec/kimg on one H200."""
OP_GOAL = 0.85
"""Of the copy's bandwidth, for each op by kernel."""
PUBLISHED = {128: (12.51, 6.79), 256: (20.84, 12.53), 512: (71.59, 41.06), 1024: (141.8, 90.4)}
"""sec/kimg on one V100, one A100: docs/configs.md of stylegan3. Not measured by this project."""
WARM_UP, MOST_WARM_UP = 2, 12
STEPS = 16  # one period of r1_interval, four of pl_interval; before, in the first warm-up step, all phases run
PHASES = ("Gmain", "Gpl", "Dmain", "Dr1")
FEATURE_BATCH, FEATURE_BATCHES, FEATURE_PX = 64, 8, 256
FEATURE_KINDS = (
    ("clean", "float32", False), ("legacy", "float32", False), ("clean", "bfloat16", False), ("clean", "float32", True)
)  # fmt: skip


class OutOfTime(BaseException):
    """The alarm went off within a part. No Exception: torch's compiler catches those, goes on, and spoils the figures."""


@dataclass(frozen=True)
class Setup:
    """One way to train."""

    resolution: int
    kernels: bool = True
    compiled: CompileMode = "none"
    precision: str = "float16"
    tf32: bool = True
    deterministic: bool = False
    large: bool = False  # micro-batches of LARGE_BATCH_GPU instead of BATCH_GPU

    @property
    def batch_gpu(self) -> int:
        return (LARGE_BATCH_GPU if self.large else BATCH_GPU)[self.resolution]

    def describe(self) -> str:
        ops = ("kernels" if self.kernels else "plain ops") + (" + compile" if self.compiled != "none" else "")
        kind = "float16 in 4 resolutions" if self.precision == "float16" else self.precision
        numbers = f"{kind}, {'TF32' if self.tf32 else 'no TF32'}" + (", deterministic" if self.deterministic else "")
        return f"{self.resolution:4} px by {self.batch_gpu:2} | {ops:17} | {numbers:45}"


@dataclass(frozen=True)
class Training:
    """What was measured of one setup."""

    sec_per_kimg: float
    shares: dict[str, float]
    memory_gib: float
    warm_up: str
    new_graphs: int  # compiled while it was measured
    nonfinite_steps: int

    def describe(self, setup: Setup) -> str:
        shares = ", ".join(f"{name} {share:.0%}" for name, share in self.shares.items())
        first = f" | before that {self.warm_up}" if setup.compiled != "none" else ""
        goal = ""
        if setup.kernels and (setup.precision, setup.tf32, setup.deterministic) == ("float16", True, False):
            limit, (v100, a100) = GOALS[setup.resolution], PUBLISHED[setup.resolution]
            goal = f" | goal {limit:g}: {'met' if self.sec_per_kimg <= limit else 'NOT met'}"
            goal += f" | published, not by us: V100 {v100:g}, A100 {a100:g} s/kimg"
        odd = f" | {self.nonfinite_steps} steps not finite" if self.nonfinite_steps else ""
        odd += f" | NOT VALID: {self.new_graphs} graphs were compiled meanwhile" if self.new_graphs else ""
        figures = f"{self.sec_per_kimg:6.2f} s/kimg | {shares} | {self.memory_gib:.1f} GiB{first}"
        return f"{setup.describe()} | {figures}{goal}{odd}"


@dataclass
class Table:
    """Rows by section, in the order of printing, which is not that of measuring; and the time that is left."""

    ends: float
    rows: dict[str, list[str]] = field(default_factory=dict)

    def add(self, section: str, row: str) -> None:
        self.rows.setdefault(section, []).append(row)
        print(f"[{max(self.ends - time.monotonic(), 0):3.0f} s left] {section}: {row}", file=sys.stderr, flush=True)

    def measure(self, section: str, name: str, expected_sec: float, part: Callable[[], Iterable[str]]) -> None:
        """The rows of one part; its failure, or that it was left out, is a row too."""
        left = self.ends - time.monotonic()
        if expected_sec > left:
            self.add(section, f"{name} | left out: about {expected_sec:.0f} s, of which {max(left, 0):.0f} s are left")
            return
        start = time.monotonic()
        try:
            for row in part():
                self.add(section, row)
        except OutOfTime:
            self.add(section, f"{name} | left out: not done when the time was over, {time.monotonic() - start:.0f} s")
        except Exception as error:
            reason = (str(error).strip() or "no message").splitlines()[0][:200]
            self.add(section, f"{name} | FAILED: {type(error).__name__}: {reason}")
        gc.collect()
        torch.cuda.empty_cache()

    def lines(self) -> list[str]:
        return [line for section, rows in self.rows.items() for line in (f"**{section}**", *rows)]


def config_f(setup: Setup) -> TrainParams:
    """The preset for 256x256 with config-f's channels, for any resolution."""
    low = setup.precision != "float32"
    return TrainParams.model_validate(
        load_params(ROOT / "presets" / "ffhq256.yaml").train.model_dump()
        | {
            "channel_base": 32768,
            "channel_max": 512,
            "mapping_layers": 8,
            "batch_size": BATCH_SIZE,
            "batch_gpu": setup.batch_gpu,
            "mbstd_group_size": 4,  # divides all micro-batches; 4 in config-f
            "precision": setup.precision,
            "low_precision_resolutions": 4 if low else 0,
            "conv_clamp": 256.0 if low else None,
            "tf32": setup.tf32,
            "pl_interval": 4,
            "r1_interval": 16,
            "style_mixing_prob": 0.9,
        }
    )


def mark() -> torch.cuda.Event:
    """A point in the GPU's queue, which the host does not wait for."""
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def seconds_between(first: torch.cuda.Event, second: torch.cuda.Event) -> float:
    return float(first.elapsed_time(second)) / 1e3


def seconds_of(function: Callable[[], Any], count: int) -> float:
    """Seconds of `count` calls, waiting for the device."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        function()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def measure_training(setup: Setup, device: torch.device) -> Training:
    """One period of regularisation, each phase between two marks."""
    params = config_f(setup)
    configure_numerics(params.tf32, setup.deterministic)
    choose_ops("cuda" if setup.kernels else "reference", device)
    torch.cuda.reset_peak_memory_stats()
    state = initial_state(params, setup.resolution, CHANNELS, 0, device)
    compile_networks(state.G, state.D, setup.compiled, setup.deterministic)
    rng = torch.Generator().manual_seed(0)
    shape = [params.batch_size, CHANNELS, setup.resolution, setup.resolution]
    batch = Batch(
        torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng).to(device),
        torch.zeros(params.batch_size, dtype=torch.int64, device=device),
    )
    start_sec, steps, history = time.perf_counter(), 0, [-1]
    # Mixed and unmixed latents and both kinds of calls have graphs of their own: until none is new for two steps.
    while steps < WARM_UP or (len(set(history[-3:])) > 1 and steps < MOST_WARM_UP):
        seconds_of(lambda: train_step(state, params, batch, ()), 1)
        steps, history = steps + 1, [*history, graphs(setup)]
    warm_up = f"{steps} steps {time.perf_counter() - start_sec:.0f} s"
    for _ in range(2):
        before = graphs(setup)
        seconds, shares = measure_period(lambda: train_step(state, params, batch, ()))
        new_graphs = graphs(setup) - before
        if not new_graphs:  # a seldom case, as a batch without mixing, came late; once more
            break
    memory = torch.cuda.max_memory_allocated() / 2**30
    per_kimg = 1000 * seconds / (STEPS * params.batch_size)
    return Training(per_kimg, shares, memory, warm_up, new_graphs, int(state.nonfinite_steps))


def measure_period(run_step: Callable[[], None]) -> tuple[float, dict[str, float]]:
    """Seconds of `STEPS` steps, and each phase's share."""
    spans: dict[str, list[tuple[torch.cuda.Event, torch.cuda.Event]]] = {name: [] for name in PHASES}
    with ExitStack() as stack:
        for name in PHASES:
            function = getattr(step, f"{name.lower()}_phase")
            stack.enter_context(mock.patch.object(step, f"{name.lower()}_phase", between_marks(function, spans[name])))
        torch.cuda.synchronize()
        start = mark()
        for _ in range(STEPS):
            run_step()
        end = mark()
        torch.cuda.synchronize()
    seconds = seconds_between(start, end)
    shares = {name: sum(seconds_between(*span) for span in spans[name]) / seconds for name in PHASES}
    return seconds, shares | {"rest": 1 - sum(shares.values())}


def graphs(setup: Setup) -> int:
    """How many graphs torch has compiled so far."""
    if setup.compiled == "none":
        return 0
    from torch._dynamo.utils import counters  # only here: it takes two seconds

    return int(counters["stats"]["unique_graphs"])


def between_marks(
    function: Callable[..., Tensor], spans: list[tuple[torch.cuda.Event, torch.cuda.Event]]
) -> Callable[..., Tensor]:
    def marked(*args: Any) -> Tensor:
        first = mark()
        result = function(*args)
        spans.append((first, mark()))
        return result

    return marked


def train_all(
    table: Table, setups: Iterable[Setup], section: str, device: torch.device, took: dict[Setup, float]
) -> None:
    """A row per setup. `took` holds the seconds of those done, from which those to come are foretold."""
    usual: OpsMode = "cuda" if use_kernels(torch.empty(0, device=device)) else "reference"

    def part(setup: Setup) -> Iterator[str]:
        start = time.monotonic()
        try:
            found = measure_training(setup, device)
        finally:
            configure_numerics(tf32=False, deterministic=False)
            choose_ops(usual, device)
            if setup.compiled != "none":
                torch._dynamo.reset()
        took[setup] = time.monotonic() - start
        yield found.describe(setup)

    for setup in setups:
        table.measure(section, setup.describe(), expected_seconds(setup, took), partial(part, setup))


def expected_seconds(setup: Setup, took: dict[Setup, float]) -> float:
    """Of measuring one setup: by the goals at first, then by what like ones took; float32 and plain ops three times that."""
    like = Setup(setup.resolution)
    base = took.get(like, GOALS[setup.resolution] * BATCH_SIZE * (STEPS + WARM_UP) / 1000 * 1.5 + 5)
    if setup.compiled != "none":
        extra = [took[one] - took.get(Setup(one.resolution), 0.0) for one in took if one.compiled != "none"]
        return base + max(extra, default=COMPILE_SEC)
    return base * (1 if setup in (like, replace(like, large=True)) else 1.5 if setup.deterministic else 3)


def op_rows(size: tuple[int, int, int], device: torch.device) -> Iterator[str]:
    for dtype, layout in FORMATS:
        for op in OPS:
            try:
                cost = measure_op(op, dtype, layout, size, device)
            except torch.OutOfMemoryError:
                yield f"{op} | {dtype} | {size}: FAILED: out of memory"
                continue
            goal = f" | goal {OP_GOAL:.0%}: {'met' if cost.share_of_copy() >= OP_GOAL else 'NOT met'}"
            yield cost.describe() + ("" if cost.kernel_sec is None else goal)


def features(extractor: Extractor, resize: tuple[int, str], name: str) -> str:
    """One row on one extractor; images come from the CPU's memory, as they do from shards."""
    rng = torch.Generator().manual_seed(0)
    shape = [FEATURE_BATCH, CHANNELS, FEATURE_PX, FEATURE_PX]
    images: Tensor = torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng)
    seconds_of(lambda: extractor.features(images), 2)
    whole = seconds_of(lambda: extractor.features(images), FEATURE_BATCHES)
    before = seconds_of(lambda: resize_images(images.to(extractor.device), *resize), FEATURE_BATCHES)
    return (
        f"features, {name}, {FEATURE_PX} px, batch {FEATURE_BATCH}: {FEATURE_BATCHES * FEATURE_BATCH / whole:.0f} img/s; "
        f"the network's share {1 - before / whole:.0%}"
    )


def extractors(device: torch.device) -> Iterator[str]:
    lite = load_extractor("efficientnet-lite0", "", "clean", "float32", False, device, Path())
    yield features(lite, (EFFLITE0_SIZE, "clean"), "efficientnet-lite0")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        sha256 = write_full_inception(Path(folder) / inception.INCEPTION_FILE)[0]
        with mock.patch.object(inception, "INCEPTION_SHA256", sha256):
            for resize, precision, compiled in FEATURE_KINDS:
                kind = f"{resize}, {precision}{', compiled' if compiled else ''}"
                extractor = load_extractor("inception-2015", "", resize, precision, compiled, device, Path(folder))
                yield features(
                    extractor, (inception.INCEPTION_SIZE, resize), f"inception-2015 (random weights), {kind}"
                )


def fill(table: Table, device: torch.device) -> None:
    """All parts, those whose time is hard to foretell last."""
    sections = ("ops", "training", "training at 256 px in other numbers", "features", "saving a state")
    table.rows.update({name: [] for name in sections})
    ops, training, numbers, extracting, saving = sections
    took: dict[Setup, float] = {}
    kernels = use_kernels(torch.empty(0, device=device))
    if not kernels:
        table.add(
            ops, "no CUDA kernels here (`python -m ganops.ops` says why); what follows is by plain torch operations"
        )
    for size in SIZES:
        table.measure(ops, f"{size}", 15, partial(op_rows, size, device))
    if kernels:
        train_all(table, [Setup(resolution) for resolution in GOALS], training, device, took)
        train_all(table, [Setup(resolution, large=True) for resolution in GOALS], training, device, took)
        kinds = (Setup(256, deterministic=True), Setup(256, precision="float32"))
        train_all(table, [*kinds, Setup(256, precision="float32", tf32=False)], numbers, device, took)
    train_all(table, [Setup(resolution, kernels=False) for resolution in GOALS], training, device, took)
    table.measure(saving, "states", 20, lambda: states(device))
    table.measure(extracting, "features", 100, lambda: extractors(device))
    compiled = [Setup(resolution, kernels=kernels, compiled="main") for resolution in (256, 1024, 512, 128)]
    train_all(table, compiled, training, device, took)
    table.rows[training].sort()


def on_alarm(signum: int, frame: FrameType | None) -> None:
    raise OutOfTime


def main() -> None:
    """The table, with what one must know to read it."""
    if not torch.cuda.is_available():
        print("bench.gpu: no CUDA device here; nothing was measured.")
        return
    # cuBLAS reads it once, and the deterministic rows need it; so all rows have it.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    device = select_device("cuda", 1)
    configure_numerics(tf32=False, deterministic=False)
    choose_ops("auto", device)
    table, start = Table(time.monotonic() + LIMIT_SEC), time.monotonic()
    signal.signal(signal.SIGALRM, on_alarm)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_SEC, 5.0)  # again and again: one may be lost in a destructor
    try:
        fill(table, device)
    except OutOfTime:  # between two parts
        table.add("the time was over", "what is missing above was left out")
    signal.setitimer(signal.ITIMER_REAL, 0)
    head = [
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, measured in {time.monotonic() - start:.0f} s; the goals are for "
        "one NVIDIA H200",
        f"training: channel_base 32768, channel_max 512, 8 mapping layers, batch {BATCH_SIZE} in micro-batches of "
        f"{', '.join(map(str, BATCH_GPU.values()))}, as the goals were set, and of larger ones; PL every 4, R1 every 16 "
        f"steps, mixing 0.9; no augmentation; over {STEPS} steps, one period of R1, without data loading and writing",
        "published, not measured by us: docs/configs.md of stylegan3, one GPU. Those runs had augmentation, but half of "
        "these channels up to 256 px, 2 mapping layers, and batches of 32, 16, 8, 4 images",
    ]
    report("gpu", [*head, *table.lines()])


if __name__ == "__main__":
    main()
