"""Training, from top to bottom: find the state to start from, step, tick, publish."""

import signal
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from ganops.config import Params
from ganops.distributed import configure_numerics, derive_seed, select_device
from ganops.entry import say
from ganops.errors import DataError, Interrupted, RunError
from ganops.files import copy_file, write_bytes
from ganops.images.dataset import iterate_batches
from ganops.images.pixels import magnify, make_grid, save_png
from ganops.images.shards import ShardIndex, Shards, open_shards
from ganops.networks.sampling import generate_images
from ganops.networks.snapshot import save_snapshot
from ganops.networks.table import describe_networks
from ganops.training.log import RunLog, memory_gb
from ganops.training.measure import Yardstick, load_yardstick, measure_distance
from ganops.training.run import (
    RunDirectory,
    check_environment,
    find_origin,
    open_run,
    prune,
    run_identity,
    take_over,
)
from ganops.training.schedule import comes_due, end_nimg, intervals_passed
from ganops.training.state import Best, TrainingState, initial_state, load_state, save_state
from ganops.training.step import tick_means, train_step


@dataclass(frozen=True)
class Outputs:
    """Where a finished run is published (dvc.yaml names the paths), and where its logs appear while it goes on."""

    last: Path
    best: Path
    state: Path
    results: Path


class StopSignal:
    """SIGINT and SIGTERM, as a flag that the loop looks at between steps; a second one stops at once."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            raise KeyboardInterrupt  # not Interrupted: in the middle of a step there is nothing whole to save
        self.signal = signal.Signals(number)
        say(f"train: {self.signal.name}: will save and stop after this step; again to stop at once")

    def check(self) -> None:
        """Raises Interrupted if a signal came."""
        if self.signal is not None:
            raise Interrupted(f"stopped by {self.signal.name}", self.signal)


def train(params: Params, shards_path: Path, statistics_path: Path, outputs: Outputs, root: Path) -> None:
    """Trains, or goes on training, until train.total_kimg; then publishes the models.

    Args:
        params: all of params.yaml.
        shards_path: data/shards.
        statistics_path: data/stats.npz.
        outputs: where to publish.
        root: the repository that owns runs/ and data/weights.
    Raises:
        Interrupted: after a signal; the state was saved.
        GanopsError: data, weights or an earlier run do not fit; nothing was trained.
    """
    stop = StopSignal()
    device = select_device(params.run.device, params.run.cpu_threads)
    if params.train.precision == "float16" and device.type != "cuda":
        raise RunError("train.precision=float16 needs a CUDA device. Use bfloat16 or float32 on a CPU.")
    configure_numerics(params.train.tf32, params.run.deterministic)
    shards = open_shards(shards_path, verify=True)
    check_data(params, shards.index)
    yardstick = None
    if params.train.metric_kimg:
        weights = root / "data" / "weights"
        yardstick = load_yardstick(
            statistics_path, params.stats, params.train.metric_images, shards.index.digest, device, weights
        )

    end = end_nimg(params.train.total_kimg, params.train.batch_size)
    run = open_run(root, run_identity(params.train, shards.index.digest, params.run.fresh))
    origin = find_origin(run, end, params.run.accept_code)
    index = shards.index
    state = initial_state(params.train, index.resolution, index.channels, index.num_classes, device)
    if origin.state is not None:
        load_state(origin.state, state)
        take_over(run, origin, state.best.nimg if state.best else None)
        if state.best is not None and not run.best_path(state.best.nimg).exists():
            say(f"train: {run.best_path(state.best.nimg)} is missing; the best snapshot is chosen anew from here on")
            state.best = None
    check_environment(run.path, _environment(device))
    _announce(run, state, end, shards, outputs)

    log = RunLog(run.path, outputs.results, state.tick_nimg, state.nimg, end)
    try:
        _publish_pictures(run, log, state.nimg)
        _train_until(end, params, state, shards, run, log, yardstick, stop)
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"nimg {state.nimg}: out of memory with train.batch_gpu={params.train.batch_gpu} ({str(error).split('.')[0]}). "
            "Lower it (results change slightly); saved states are whole."
        ) from None
    finally:
        log.close()
    _publish(params, state, shards.index, run, outputs)


def check_data(params: Params, index: ShardIndex) -> None:
    """Refuses data that would train wrong in silence.

    Raises:
        DataError: see the messages.
    """
    if params.train.conditional and index.num_classes < 2:
        raise DataError(
            f"train.conditional=true, but data/shards has {index.num_classes} classes. "
            "Prepare it with labels, or set train.conditional: false."
        )
    if index.num_images < params.train.batch_size:
        raise DataError(
            f"data/shards has {index.num_images} images, fewer than train.batch_size={params.train.batch_size}."
        )


def _train_until(
    end: int,
    params: Params,
    state: TrainingState,
    shards: Shards,
    run: RunDirectory,
    log: RunLog,
    yardstick: Yardstick | None,
    stop: StopSignal,
) -> None:
    """Steps and ticks until `end`. Between any two steps the state is whole, so it can be saved anywhere here."""
    clock = Clock(state.nimg)
    batch_size, tick_kimg = params.train.batch_size, params.train.tick_kimg
    batches = iterate_batches(shards, params.train.seed, state.nimg, batch_size)
    try:
        if state.nimg == 0:
            _draw_grid(params, state, shards.index, run, log)
        while True:
            if intervals_passed(state.nimg, tick_kimg) > intervals_passed(state.tick_nimg, tick_kimg):
                _end_tick(params, state, shards.index, run, log, yardstick, stop, clock)
            if state.nimg > clock.started_nimg and comes_due(state.nimg, batch_size, params.run.state_kimg):
                _save(params, state, run)
            if state.nimg >= end:
                break
            train_step(state, params.train, next(batches), shards.index.class_counts)
            log.bar.update(batch_size)
            stop.check()
    except Interrupted as error:
        save_state(run.state_path(state.nimg), state, run.provenance())
        raise Interrupted(
            f"{error}; the state at kimg {state.nimg / 1000:g} is saved, the same command continues from it.",
            error.signum,
        ) from None
    finally:
        batches.close()


@dataclass
class Clock:
    """Wall time of this process, for speeds only."""

    started_nimg: int
    tick_nimg: int
    started: float
    tick_started: float

    def __init__(self, nimg: int) -> None:
        self.started_nimg = self.tick_nimg = nimg
        self.started = self.tick_started = time.monotonic()


def _end_tick(
    params: Params,
    state: TrainingState,
    index: ShardIndex,
    run: RunDirectory,
    log: RunLog,
    yardstick: Yardstick | None,
    stop: StopSignal,
    clock: Clock,
) -> None:
    """One row; and when they are due a picture, a distance, a snapshot. Doing it twice does the same."""
    train = params.train
    means = tick_means(state, train)
    now = time.monotonic()
    steps_nimg = max(state.nimg - clock.tick_nimg, 1)
    cpu_mem_gb, gpu_mem_gb = memory_gb(state.device)
    row: dict[str, Any] = {
        "tick": intervals_passed(state.nimg, train.tick_kimg),
        "nimg": state.nimg,
        "kimg": state.nimg / 1000,
        "sec_per_kimg": (now - clock.tick_started) / steps_nimg * 1000,
        "cpu_mem_gb": cpu_mem_gb,
        "gpu_mem_gb": gpu_mem_gb,
        "distance": None,
        "metric": None,
        "metric_digest": "" if yardstick is None else yardstick.digest,
        **means,
    }
    if int(state.nonfinite_steps) > train.max_nonfinite_steps:
        kept = sorted(run.states.glob("*.safetensors"))
        raise RunError(
            f"nimg {state.nimg}: gradients were not finite in {int(state.nonfinite_steps)} steps in a row "
            f"(train.max_nonfinite_steps={train.max_nonfinite_steps}). "
            f"The last good state is {kept[-1] if kept else 'the initial one'}; nothing was overwritten. "
            "Lower the learning rates or raise train.r1_gamma."
        )
    if comes_due(state.nimg, train.batch_size, train.image_kimg):
        _draw_grid(params, state, index, run, log)
    if yardstick is not None and comes_due(state.nimg, train.batch_size, train.metric_kimg):
        row["metric"] = yardstick.extractor.metric
        row["distance"] = measure_distance(
            yardstick, state.G_ema, train.seed, train.metric_images, index.class_counts, train.batch_gpu, stop.check
        )
        best = state.best
        if best is None or best.digest != yardstick.digest or row["distance"] < best.value:
            state.best = Best(state.nimg, row["metric"], row["distance"], yardstick.digest)
            save_snapshot(run.best_path(state.nimg), state.G_ema, _snapshot_metadata(params, state, index, run))
    if comes_due(state.nimg, train.batch_size, train.snapshot_kimg):
        path = run.path / "snapshots" / f"{state.nimg:09d}.safetensors"
        save_snapshot(path, state.G_ema, _snapshot_metadata(params, state, index, run))
    log.add_row(row, now - clock.started, clock.started_nimg)
    state.tick_nimg = state.nimg
    state.sums.clear()
    clock.tick_nimg, clock.tick_started = state.nimg, time.monotonic()


def _draw_grid(params: Params, state: TrainingState, index: ShardIndex, run: RunDirectory, log: RunLog) -> None:
    """G_ema on the same latents every time; one class per row when conditional; constant noise."""
    rows, columns = grid_shape(index.resolution, state.G.c_dim)
    count = rows * columns
    labels = torch.arange(rows).repeat_interleave(columns) if state.G.c_dim else torch.zeros(count).long()
    seed = derive_seed(params.train.seed, "grid")
    parts = generate_images(
        state.G_ema, seed, range(count), labels, 1.0, None, "const", min(params.train.batch_gpu, count)
    )
    images = torch.cat([part.cpu() for part in parts]).numpy()
    path = run.path / "grids" / f"{state.nimg // 1000:06d}.png"
    save_png(path, make_grid(magnify(images), columns))
    log.add_picture(path)


def grid_shape(resolution: int, c_dim: int) -> tuple[int, int]:
    """Rows and columns of the picture grid: a row per class (at most 32) when there are classes."""
    columns = min(max(1024 // resolution, 4), 16)
    return (min(c_dim, 32) if c_dim else columns), columns


def _save(params: Params, state: TrainingState, run: RunDirectory) -> None:
    """Saves a state that can be trusted: not in the middle of a series of gradients that are not finite."""
    if int(state.nonfinite_steps) == 0:
        save_state(run.state_path(state.nimg), state, run.provenance())
        prune(run, state.nimg, params.run.keep_states, params.run.keep_snapshots)


def _snapshot_metadata(params: Params, state: TrainingState, index: ShardIndex, run: RunDirectory) -> dict[str, Any]:
    return {
        "nimg": state.nimg,
        "kimg": state.nimg / 1000,
        "best": None if state.best is None else vars(state.best),
        "data_digest": index.digest,
        "class_names": list(index.class_names),
        "class_counts": list(index.class_counts),
        **run.provenance(),
    }


def _announce(run: RunDirectory, state: TrainingState, end: int, shards: Shards, outputs: Outputs) -> None:
    """Says what is trained on what, from where to where; writes the layer table and a picture of real images."""
    index = shards.index
    table = describe_networks(state.G, state.D)
    write_bytes(run.path / "layers.txt", table.encode())
    say(table)
    say(
        f"train: {index.num_images} images {index.channels}x{index.resolution}x{index.resolution}, "
        f"{index.num_classes or 'no'} classes; run directory {run.path}"
    )
    if state.nimg >= end:
        say(f"train: kimg {state.nimg / 1000:g} was reached before; nothing to train")
    else:
        origin = f"continues at kimg {state.nimg / 1000:g}" if state.nimg else "starts"
        say(f"train: {origin}, ends at kimg {end / 1000:g}, on {_environment(state.device)['device']}")
    rows, columns = grid_shape(index.resolution, state.G.c_dim)
    chosen = []
    for row in range(rows):
        members = (shards.labels == row).nonzero()[0] if state.G.c_dim else range(row * columns, len(shards))
        chosen += [int(members[i % len(members)]) if len(members) else -1 for i in range(columns)]
    places = np.array(chosen)
    images = shards.gather(np.maximum(places, 0))
    images[places < 0] = 0  # a class without images: a black row
    save_png(run.path / "reals.png", make_grid(magnify(images), columns))


def _publish_pictures(run: RunDirectory, log: RunLog, nimg: int) -> None:
    """Puts the run's pictures up to `nimg` where people look; DVC has emptied that place."""
    grids = [path for path in sorted((run.path / "grids").glob("*.png")) if int(path.stem) <= nimg // 1000]
    for path in (run.path / "reals.png", run.path / "layers.txt", *grids):
        log.add_picture(path)


def _publish(params: Params, state: TrainingState, index: ShardIndex, run: RunDirectory, outputs: Outputs) -> None:
    """Copies the final state and snapshots to DVC's outputs. Copies, never links: the cache must not share them."""
    final = run.state_path(state.nimg)
    if not final.exists():
        save_state(final, state, run.provenance())
    prune(run, state.nimg, params.run.keep_states, params.run.keep_snapshots)
    copy_file(final, outputs.state)
    save_snapshot(outputs.last, state.G_ema, _snapshot_metadata(params, state, index, run))
    if state.best is None:
        say("train: no distance was measured; best.safetensors is the last snapshot")
        copy_file(outputs.last, outputs.best)
    else:
        copy_file(run.best_path(state.best.nimg), outputs.best)
        say(f"train: best {state.best.metric} {state.best.value:.2f} at kimg {state.best.nimg / 1000:g}")


def _environment(device: torch.device) -> dict[str, str]:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return {"torch": torch.__version__, "device": name, "threads": str(torch.get_num_threads())}
