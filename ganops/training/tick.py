"""What a run shows while it goes on and at its end: ticks, pictures, distances, snapshots, the published models."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ganops.collectives import check_agreement
from ganops.config_train import TrainParams
from ganops.entry import say
from ganops.errors import Diverged
from ganops.files import copy_file, format_bytes, write_bytes
from ganops.launch import rank, world_size
from ganops.networks.law import grid_labels
from ganops.networks.snapshot import save_snapshot
from ganops.networks.table import describe_networks
from ganops.ops.kernels import use_kernels
from ganops.protocols import LARGER_IS_BETTER, TRAIN_METRICS, metric_name
from ganops.training.augment import acting_kinds
from ganops.training.diffaugment import acting_diffaugment_kinds
from ganops.training.job import Job, Outputs
from ganops.training.log import RunLog, memory_gb, write_classes
from ganops.training.measure import measure_metrics
from ganops.training.pictures import draw_grid, draw_reals
from ganops.training.run import RunDirectory, check_disk, disk_bytes, prune, states_to_return_to, write_best_index
from ganops.training.schedule import came_due, ticks_passed
from ganops.training.state import Best, TrainingState, read_state_metadata, save_state, state_tensors
from ganops.training.step import tick_means

FEWEST_FAKES = 50
"""Images of a class whose mean sign says something: its standard error is then at most 0.14 (1 / sqrt(50)).

Of 1000 equal classes with four fakes each, some 60 have four times -1 by chance alone, if D is right half of the time.
"""


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


def end_tick(job: Job, state: TrainingState, log: RunLog | None, clock: Clock) -> None:
    """One row; and when they are due a picture, a distance, a snapshot. Doing it twice does the same."""
    train, run, yardstick = job.params.train, job.run, job.yardstick
    means = tick_means(state, train)
    now = time.monotonic()
    steps_nimg = state.nimg - clock.tick_nimg
    cpu_mem_gb, gpu_mem_gb = memory_gb(state.device)
    row: dict[str, Any] = {
        "tick": ticks_passed(train, state.G.resolution, state.nimg),
        "nimg": state.nimg,
        "kimg": state.nimg / 1000,
        # Nothing was trained since, where a run was stopped between a tick's last step and its row.
        "sec_per_kimg": (now - clock.tick_started) / steps_nimg * 1000 if steps_nimg else None,
        "cpu_mem_gb": cpu_mem_gb,
        "gpu_mem_gb": gpu_mem_gb,
        **dict.fromkeys(TRAIN_METRICS),
        "metric": None,
        "metric_digest": job.metric_digest,
        **means,
    }
    classes = class_table(state, job.shards.index.class_names)
    worst = None if train.loss == "wgan-gp" else worst_class(classes)  # whose D gives no sign
    row["worst_class"] = None if worst is None else worst["name"]
    row["worst_class_sign"] = None if worst is None else worst["fake_sign"]
    _check_health(state, train.max_nonfinite_steps, train.max_loss, means)
    check_agreement(state_tensors(state).values(), "state")
    if came_due(state.tick_nimg, state.nimg, train.image_kimg):
        draw_picture(job, state, log)
    if yardstick is not None and came_due(state.tick_nimg, state.nimg, train.metric_kimg):
        row["metric"] = _best_name(job)
        row |= measure_metrics(
            train.metrics,
            yardstick,
            state.G_ema,
            train.seed,
            train.metric_images,
            job.snapshot_law,
            train.batch_gpu,
            job.shards.index.bits,
            job.stop.check_all,
        )
        _keep_if_best(job, state, Best(state.nimg, row["metric"], row[train.best_by], job.metric_digest))
    if log is not None:
        if came_due(state.tick_nimg, state.nimg, train.snapshot_kimg):
            path = run.path / "snapshots" / f"{state.nimg:09d}.safetensors"
            save_snapshot(path, state.G_ema, job.snapshot_metadata(state), job.snapshot_law)
        if train.augment == "ada" and state.augment_p >= train.ada_max_p:
            _say_cap(train, log, means["real_sign"])
        log.write_classes(classes)
        log.add_row(row, now - clock.started, clock.started_nimg)
    state.tick_nimg = state.nimg
    state.sums.clear()
    clock.tick_nimg, clock.tick_started = state.nimg, time.monotonic()


def class_table(state: TrainingState, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """What D thought of each class since the last tick: a row per class, empty without labels.

    A class that has collapsed is one whose fakes D knows: its fake_sign is near -1 while others are near 0.
    """
    if not state.G.c_dim or "classes/fake" not in state.sums:
        return []
    (real_count, real_sum), (fake_count, fake_sum) = (
        state.sums[f"classes/{kind}"].tolist() for kind in ("real", "fake")
    )
    return [
        {
            "class": label,
            "name": name,
            "real_images": round(real_count[label]),
            "real_sign": real_sum[label] / real_count[label] if real_count[label] else None,
            "fake_images": round(fake_count[label]),
            "fake_sign": fake_sum[label] / fake_count[label] if fake_count[label] else None,
        }
        for label, name in enumerate(class_names)
    ]


def worst_class(classes: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The row of `class_table` whose fakes D knows best; None if no class has had FEWEST_FAKES since the last tick."""
    seen = [line for line in classes if line["fake_images"] >= FEWEST_FAKES]
    return min(seen, key=lambda line: line["fake_sign"], default=None)


def _say_cap(train: TrainParams, log: RunLog, real_sign: float | int | None) -> None:
    """Says once that ADA has come to its cap, and again after p had left it."""
    if log.rows and float(log.rows[-1]["augment_p"] or 0) >= train.ada_max_p:
        return
    say(
        f"train: WARNING: augment_p has reached train.ada_max_p={train.ada_max_p:g}, and D still tells real images with "
        f"sign {real_sign:.2f} (train.ada_target={train.ada_target:g}): it overfits. More data, a larger train.r1_gamma or "
        "a smaller D help; a higher cap lets augmentations leak into the samples"
    )


def _check_health(state: TrainingState, max_steps: int, max_loss: float, means: dict[str, float | int | None]) -> None:
    """Raises Diverged when it makes no sense to go on."""
    nonfinite = int(state.nonfinite_steps)
    if nonfinite > max_steps:
        raise Diverged(
            f"nimg {state.nimg}: gradients were not finite in {nonfinite} steps in a row (train.max_nonfinite_steps="
            f"{max_steps}). Lower the learning rates or raise train.r1_gamma"
        )
    for name in ("G_loss", "D_loss"):
        loss = means[name]
        if loss is not None and math.isfinite(loss) and abs(loss) > max_loss:
            raise Diverged(
                f"nimg {state.nimg}: the tick's mean {name} is {loss:.4g} (train.max_loss={max_loss:g}). "
                "Lower the learning rates or raise train.r1_gamma"
            )


def _best_name(job: Job) -> str:
    """What train.best_by's numbers are called; "" if nothing is measured."""
    if job.yardstick is None:
        return ""
    extractor = job.yardstick.extractor
    return metric_name(job.params.train.best_by, job.params.fid.protocol, extractor.suffix, extractor.precision)


def _keep_if_best(job: Job, state: TrainingState, new: Best) -> None:
    """Puts a snapshot among the train.keep_best best, if it is one of them.

    Those of another yardstick or by another metric are forgotten.
    """
    train = job.params.train
    sign = -1 if train.best_by in LARGER_IS_BETTER else 1
    kind = (new.digest, new.metric)
    alike = [best for best in state.best if (best.digest, best.metric) == kind and best.nimg != new.nimg]
    state.best = tuple(sorted([*alike, new], key=lambda best: (sign * best.value, -best.nimg)))[: train.keep_best]
    if rank() == 0:
        if new in state.best:
            save_snapshot(job.run.best_path(new.nimg), state.G_ema, job.snapshot_metadata(state), job.snapshot_law)
        write_best_index(job.run, state.best)


def draw_picture(job: Job, state: TrainingState, log: RunLog | None) -> None:
    """A picture of G_ema; if it cannot be written, training goes on without it."""
    if log is None:
        return
    path = job.run.path / "grids" / f"{state.nimg // 1000:06d}.png"
    try:
        draw_grid(path, job.params.train, state.G_ema, grid_labels(job.law))
        log.add_picture(path)
    except OSError as error:
        _say_lost(path, error)


def _say_lost(path: Path, error: OSError) -> None:
    say(f"train: WARNING: {path} cannot be written ({error}); training goes on without this picture")


def prune_run(job: Job, state: TrainingState) -> None:
    """Removes old states and snapshots; keeps what run.keep_* say, and what a roll-back would need."""
    keep = job.params.run
    good = states_to_return_to(job.run, state.tick_nimg, state.nimg, job.params)
    prune(job.run, state.nimg, state.best, keep.keep_states, keep.keep_snapshots, good)


def announce(job: Job, state: TrainingState) -> None:
    """Says what is trained on what, and where; writes the layer table and a picture of real images."""
    run, index = job.run, job.shards.index
    table = describe_networks(state.G, state.D)
    write_bytes(run.path / "layers.txt", table.encode())
    say(table)
    if job.params.train.augment != "none":
        say(describe_augmentation(job.params.train, index.channels))
    ranks = f"{world_size()} ranks, " if world_size() > 1 else ""
    say(
        f"train: {index.num_images} images {index.describe()}, "
        f"{index.num_classes or 'no'} {index.label_kind}, on {ranks}{device_name(state.device)}"
    )
    sizes = [sum(t.nbytes for t in tensors) for tensors in (state_tensors(state).values(), state.G_ema.parameters())]
    say(check_disk(run, sizes[0], sizes[1], job.params.train, job.params.run))
    try:
        draw_reals(run.path / "reals.png", job.shards, grid_labels(job.law))
    except OSError as error:
        _say_lost(run.path / "reals.png", error)


def describe_augmentation(train: TrainParams, channels: int) -> str:
    """One line: what D's images go through, and what of it does nothing to images of so many channels."""
    listed: list[str] = list(acting_kinds(train.augment_set, 3))
    acting: list[str] = list(acting_kinds(train.augment_set, channels))
    if train.augment == "diffaugment":
        listed = list(train.diffaugment_policy)
        acting = list(acting_diffaugment_kinds(train.diffaugment_policy, channels))
    idle = ", ".join(kind for kind in listed if kind not in acting)
    rest = f"; {idle} does nothing to {channels} channels" if idle else ""
    how = (
        f"adaptive, towards a mean real sign of {train.ada_target:g}"
        if train.augment == "ada"
        else f"p {train.augment_p:g}"
    )
    return f"train: augment: {train.augment}, {', '.join(acting)}, {how}{rest}"


def publish_pictures(run: RunDirectory, log: RunLog, nimg: int) -> None:
    """Puts the run's pictures up to `nimg` where people look; DVC has emptied that place."""
    grids = [path for path in sorted((run.path / "grids").glob("*.png")) if int(path.stem) <= nimg // 1000]
    for path in (run.path / "reals.png", run.path / "layers.txt", *grids):
        try:
            log.add_picture(path)
        except OSError as error:
            _say_lost(path, error)


def publish(job: Job, state: TrainingState, outputs: Outputs) -> None:
    """Copies the final state and snapshots to DVC's outputs. Copies, never links: the cache must not share them."""
    run = job.run
    others = [best for best in state.best if best.metric != _best_name(job)]
    if others and job.yardstick is not None:
        say(
            f"train: the kept snapshots were chosen by {others[0].metric}, not by {_best_name(job)} (train.best_by): they "
            "are not published; a best one is chosen again where training goes on"
        )
        state.best = tuple(best for best in state.best if best not in others)
    final = run.state_path(state.nimg)
    # It may be there from an interruption within the last tick, which is complete only now.
    if not final.exists() or read_state_metadata(final)["tick_nimg"] != state.nimg:
        save_state(final, state, job.provenance())
    prune_run(job, state)
    if not (run.path / "reals.png").exists():  # lost at the start, but DVC expects it
        draw_reals(run.path / "reals.png", job.shards, grid_labels(job.law))
    if not (run.path / "classes.csv").exists():  # of a state from elsewhere, at whose end nothing is trained
        write_classes(run.path, [])
    for name in ("reals.png", "layers.txt", "classes.csv"):
        copy_file(run.path / name, outputs.results / name)
    copy_file(final, outputs.state)
    save_snapshot(outputs.last, state.G_ema, job.snapshot_metadata(state), job.snapshot_law)
    for path in outputs.best_folder.glob("*"):  # of an earlier run outside DVC, which empties it itself
        path.unlink()
    write_best_index(run, state.best)
    for path in (*(run.best_path(best.nimg) for best in state.best), run.path / "best" / "index.json"):
        copy_file(path, outputs.best_folder / path.name)
    if not state.best:
        say("train: nothing was measured; best.safetensors is the last snapshot")
        copy_file(outputs.last, outputs.best)
    else:
        best = state.best[0]
        copy_file(run.best_path(best.nimg), outputs.best)
        say(f"train: best {best.metric} {best.value:.4g} at kimg {best.nimg / 1000:g}")
    say(f"train: {run.path} holds {format_bytes(disk_bytes(run.path))}")


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def environment(device: torch.device, compiled: str) -> dict[str, str]:
    """What a run's bits depend on beside its identity."""
    return {
        "torch": torch.__version__,
        "device": device_name(device),
        "threads": str(torch.get_num_threads()),
        "ranks": str(world_size()),
        "kernels": str(use_kernels(torch.empty(0, device=device))),
        "compile": compiled,
    }
