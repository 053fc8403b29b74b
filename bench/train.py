"""Training at the demo's values, params.yaml, on one CPU thread: images per second, each phase's share, saving a state.

`python -m bench.train`, about a minute. Data are random bytes: what is in the images costs nothing.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench.report import report
from ganops.config import load_params
from ganops.config_train import TrainParams
from ganops.distributed import configure_numerics, select_device
from ganops.images.dataset import Batch
from ganops.training.state import TrainingState, initial_state, save_state, state_tensors
from ganops.training.step import dmain_phase, dr1_phase, gmain_phase, gpl_phase, real_micro_batch, train_step

ROOT = Path(__file__).parents[1]
CLASS_COUNTS = (100,) * 10
ROUNDS = 3  # the best counts: other work on the machine only adds time


def random_batch(params: TrainParams, channels: int, resolution: int) -> Batch:
    rng = torch.Generator().manual_seed(0)
    shape = [params.batch_size, channels, resolution, resolution]
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng)
    return Batch(images, torch.randint(0, len(CLASS_COUNTS), [params.batch_size], generator=rng))


def best_time(function: Callable[[], object], repeats: int) -> float:
    """Seconds per call, of the best round."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(repeats):
            function()
        times.append((time.perf_counter() - start) / repeats)
    return min(times)


def step_time(state: TrainingState, params: TrainParams, batch: Batch) -> float:
    """Seconds per step, over one period of R1, which holds whole periods of path length regularisation."""
    for _ in range(3):
        train_step(state, params, batch, CLASS_COUNTS)
    return best_time(lambda: train_step(state, params, batch, CLASS_COUNTS), params.r1_interval)


def phase_times(state: TrainingState, params: TrainParams, batch: Batch) -> dict[str, float]:
    """Seconds of one run of each phase, its Adam step included."""
    count = params.batch_size // params.batch_gpu
    reals = [real_micro_batch(state, params, batch, index, index) for index in range(count)]
    phases: dict[str, Callable[[], object]] = {
        "Gmain": lambda: gmain_phase(state, params, CLASS_COUNTS),
        "Gpl": lambda: gpl_phase(state, params, CLASS_COUNTS),
        "Dmain": lambda: dmain_phase(state, params, CLASS_COUNTS, reals),
        "Dr1": lambda: dr1_phase(state, params, reals),
    }
    return {name: best_time(function, 4) for name, function in phases.items()}


def describe(name: str, params: TrainParams, channels: int, resolution: int) -> list[str]:
    """Figures of one size of images."""
    classes = len(CLASS_COUNTS) if params.conditional else 0
    state = initial_state(params, resolution, channels, classes, torch.device("cpu"))
    batch = random_batch(params, channels, resolution)
    seconds = step_time(state, params, batch)
    phases = phase_times(state, params, batch)
    shares = {
        "Gmain": phases["Gmain"],
        "Gpl": phases["Gpl"] / params.pl_interval if params.pl_weight else 0.0,
        "Dmain": phases["Dmain"],
        "Dr1": phases["Dr1"] / params.r1_interval if params.r1_gamma else 0.0,
    }
    whole = sum(shares.values())
    lines = [
        f"{name}, {channels}x{resolution}x{resolution}, batch {params.batch_size}: "
        f"{seconds / params.batch_size * 1000:.2f} sec/kimg, {params.batch_size / seconds:.0f} img/s",
        f"{name}, one run of a phase: "
        + ", ".join(f"{phase} {1000 * value:.0f} ms" for phase, value in phases.items())
        + "; share of the phases' time as scheduled: "
        + ", ".join(f"{phase} {value / whole:.0%}" for phase, value in shares.items()),
    ]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        saving = best_time(lambda: save_state(path, state, {}), 1)
        size = path.stat().st_size / 1e6
    count = len(state_tensors(state))
    return [*lines, f"{name}, state: {size:.2f} MB, {count} tensors, saved in {1000 * saving:.0f} ms (fsync included)"]


def main() -> None:
    """The demo; the demo with path length regularisation and mixing, as config-f has them; and 32 px in colour."""
    select_device("cpu", 1)
    configure_numerics(tf32=False, deterministic=False)
    params = load_params(ROOT / "params.yaml")
    train, prepare = params.train, params.prepare
    paper = TrainParams.model_validate(train.model_dump() | {"pl_weight": 2.0, "style_mixing_prob": 0.9})
    report(
        "train",
        [
            f"load average at the start: {os.getloadavg()[0]:.1f}",
            f"one thread, best of {ROUNDS} rounds of {train.r1_interval} steps; without data loading and writing",
            *describe("demo", train, prepare.channels, prepare.resolution),
            *describe("demo with pl_weight 2 and mixing 0.9", paper, prepare.channels, prepare.resolution),
            *describe("demo's values at 32 px", train, 3, 32),
        ],
    )


if __name__ == "__main__":
    main()
