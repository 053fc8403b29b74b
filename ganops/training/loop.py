"""Training, from top to bottom: find the state to start from, step, tick, publish. Every rank runs all of this;
what is written is written by rank 0.
"""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch

from ganops.collectives import check_agreement
from ganops.config import Params
from ganops.distributed import configure_numerics, deal, on_first_rank, select_device
from ganops.entry import say
from ganops.errors import DamagedState, DataError, Diverged, Interrupted, RunError
from ganops.images.dataset import Batch, iterate_batches
from ganops.images.shard_index import ShardIndex
from ganops.images.shards import open_shards
from ganops.launch import local_world_size, rank, world_size
from ganops.ops.kernels import choose_ops
from ganops.shape import size_name
from ganops.training.batches import device_batches, gather_batches, load_images
from ganops.training.compiled import compile_networks
from ganops.training.job import Job, Outputs, StopSignal
from ganops.training.log import RunLog
from ganops.training.measure import load_yardstick
from ganops.training.memory import announce_memory, place_images
from ganops.training.origin import find_origin, take_over
from ganops.training.run import (
    RunDirectory,
    check_environment,
    existing_best,
    good_state,
    open_run,
    remove_later,
    run_identity,
    write_best_index,
)
from ganops.training.saver import StateWriter
from ganops.training.schedule import end_nimg, moment, stages, state_is_due, ticks_passed
from ganops.training.state import (
    Retry,
    TrainingState,
    copy_state,
    initial_state,
    load_state,
    save_state,
    share_state,
    state_tensors,
)
from ganops.training.step import set_lod, train_step
from ganops.training.tick import (
    Clock,
    announce,
    draw_picture,
    end_tick,
    environment,
    prune_run,
    publish,
    publish_pictures,
)
from ganops.training.transfer import init_sha256, start_from


def micro_batches(params: Params) -> int:
    """Micro-batches of a step, the fewest while growing: so many ranks can train."""
    return _fewest_micro_batches(params)[0]


def _fewest_micro_batches(params: Params) -> tuple[int, str]:
    """`micro_batches`, and the values that make so few, in words."""
    resolutions = stages(params.train, params.prepare.nominal)
    least = min(resolutions, key=lambda stage: stage.params.batch_size // stage.params.batch_gpu)
    words = f"train.batch_size={least.params.batch_size} and train.batch_gpu={least.params.batch_gpu}"
    where = f" (their values at {least.resolution} px)" if len(resolutions) > 1 else ""
    return least.params.batch_size // least.params.batch_gpu, words + where


def most_ranks(params: Params) -> int:
    """`micro_batches`; refuses `run.gpus` and `run.nodes` that make more ranks.

    Raises:
        RunError: names the values and what to change.
    """
    if params.run.gpus != "auto":
        check_ranks(params, params.run.gpus * params.run.nodes)
    return micro_batches(params)


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
        GanopsError: data, weights or an earlier run do not fit, and nothing was trained; or training cannot go on.
    """
    stop = StopSignal()
    check_ranks(params, world_size())
    device = select_device(params.run.device, params.run.cpu_threads)
    _say_ranks(params, device)
    if params.train.precision == "float16" and device.type != "cuda":
        raise RunError("train.precision=float16 needs a CUDA device. Use bfloat16 or float32 on a CPU.")
    configure_numerics(params.train.tf32, params.run.deterministic)
    choose_ops(params.run.ops, device)
    shards = open_shards(shards_path, verify=True)
    check_data(params, shards.index)
    yardstick, metric_digest = None, ""
    if params.train.metric_kimg:
        yardstick, metric_digest = load_yardstick(statistics_path, params, shards.index, device, root)

    end = end_nimg(params.train, shards.index.nominal)
    identity = run_identity(params.train, shards.index.digest, params.run.fresh, init_sha256(params.train))
    run = on_first_rank(lambda: open_run(root, identity, stop.check))
    state, init_from = _find_state(params, shards.index, run, end, device)
    job = Job(params, shards, run, yardstick, metric_digest, stop, end, init_from)
    if rank() == 0:
        check_environment(run.path, environment(device, params.run.compile))
        announce(job, state)
    images = None
    if state.nimg >= end:
        say(f"train: kimg {state.nimg / 1000:g} was reached before; nothing to train")
    else:
        peak = announce_memory(state, params.train)
        set_lod(state, moment(params.train, state.G.resolution, state.nimg).lod)
        size = shards.index.num_images * shards.index.image_bytes
        if place_images(params.run.data_on_gpu, size, peak, device):
            images = load_images(shards, device)
        compile_networks(state.G, state.D, params.run.compile, params.run.deterministic)
        if state.nimg == 0 and init_from:
            names = ", ".join(init_from["networks"])
            rest = "" if "D" in init_from["networks"] else "; it holds no D, which starts from random weights"
            say(f"train: {names} start from {params.train.init_from}, kimg {init_from['kimg']}{rest}")
        origin = f"continues at kimg {state.nimg / 1000:g}" if state.nimg else "starts"
        say(f"train: {origin}, ends at kimg {end / 1000:g}")
    log = (
        RunLog(run.path, outputs.results, state.tick_nimg, state.nimg, end, params.train.best_by)
        if rank() == 0
        else None
    )
    try:
        if log is not None:
            publish_pictures(run, log, state.nimg)
        while not _train_until_end(job, state, log, images):
            if log is not None:  # rolled back: rows and bar go back too
                log.close()
                log = RunLog(run.path, outputs.results, state.tick_nimg, state.nimg, end, params.train.best_by)
    except torch.OutOfMemoryError as error:
        batch_gpu = moment(params.train, params.prepare.nominal, state.nimg).params.batch_gpu
        raise RunError(
            f"nimg {state.nimg}: out of memory with train.batch_gpu={batch_gpu} ({str(error).split('.')[0]}). "
            "`python -m stages.batch_gpu` prints what fits (results change slightly); saved states are whole."
        ) from None
    finally:
        if log is not None:
            log.close()
    if rank() == 0:
        publish(job, state, outputs)


def check_ranks(params: Params, ranks: int) -> None:
    """Refuses more ranks than micro-batches.

    Raises:
        RunError: names the values and what to change.
    """
    count, words = _fewest_micro_batches(params)
    if ranks > count:
        raise RunError(
            f"{ranks} ranks, but {words} make only {count} micro-batches. Start at most {count} (run.gpus, run.nodes), or "
            "lower train.batch_gpu (results change slightly)."
        )


def _say_ranks(params: Params, device: torch.device) -> None:
    """Says when ranks or GPUs wait for lack of micro-batches."""
    count, ranks = micro_batches(params), world_size()
    if count % ranks:
        loads = ", ".join(str(len(deal(count, number, ranks))) for number in range(ranks))
        say(f"train: {count} micro-batches over {ranks} ranks: {loads}; the pace is that of the most")
    if device.type == "cuda" and torch.cuda.device_count() > local_world_size() and count == ranks:
        say(
            f"train: {torch.cuda.device_count()} GPUs are visible, {local_world_size()} are used: there are {count} "
            "micro-batches. Lower train.batch_gpu to use more (results change slightly)"
        )


def check_data(params: Params, index: ShardIndex) -> None:
    """Refuses data that would train wrong in silence.

    Raises:
        DataError: see the messages.
    """
    prepare = params.prepare
    for key, found, expected in (
        ("resolution", index.resolution, size_name(*prepare.size)),
        ("channels", index.channels, prepare.channels),
        ("bits", index.bits, prepare.bits),
    ):
        if found != expected:
            raise DataError(f"data/shards has {key}={found}, but prepare.{key}={expected}. Run `dvc repro prepare`.")
    if params.train.conditional and index.num_classes < (1 if index.multi_label else 2):
        raise DataError(
            f"train.conditional=true, but data/shards has {index.num_classes} classes. "
            "Prepare it with labels, or set train.conditional: false."
        )
    if params.train.conditional and index.multi_label and params.train.family != "stylegan2":
        raise DataError(
            f"data/shards has label vectors, which train.family={params.train.family} cannot be conditioned on: its D tells "
            "classes apart. Set train.family: stylegan2, train.conditional: false, or prepare one class per image."
        )
    largest = max(stage.params.batch_size for stage in stages(params.train, index.nominal))
    if index.num_images < largest:
        raise DataError(f"data/shards has {index.num_images} images, fewer than train.batch_size={largest}.")


def _find_state(
    params: Params, index: ShardIndex, run: RunDirectory, end: int, device: torch.device
) -> tuple[TrainingState, dict[str, Any]]:
    """The state to go on from, the same on every rank; and where its first weights came from."""
    state, init_from = _fresh_state(params, index, device)

    def load() -> None:
        damaged: list[Path] = []
        while True:
            origin = find_origin(run, end, params.run.accept_code, damaged)
            if origin.state is None:
                return
            try:
                load_state(origin.state, state)
            except DamagedState as error:
                say(f"train: {error} Falling back to the state before it.")
                damaged.append(origin.state)
                continue
            take_over(run, origin)
            state.best = existing_best(run, state.best)
            return

    on_first_rank(load)
    share_state(state)
    set_lod(state, moment(params.train, index.nominal, state.nimg).lod)
    return state, init_from


def _fresh_state(params: Params, index: ShardIndex, device: torch.device) -> tuple[TrainingState, dict[str, Any]]:
    """The state at nimg 0: random weights, or those of train.init_from."""
    train = params.train
    state = initial_state(train, index.size, index.channels, index.num_classes, device)
    sha256 = init_sha256(train)
    if not sha256:
        return state, {}
    return state, {"sha256": sha256, **start_from(Path(train.init_from), state, train)}


def _train_until_end(job: Job, state: TrainingState, log: RunLog | None, images: Batch | None) -> bool:
    """Steps and ticks until the end; False if training diverged and `state` was rolled back.

    `images` are all of them, if the device holds them. Between any two steps the state is whole, so it can be saved
    anywhere here.
    """
    train, resolution = job.params.train, job.shards.index.nominal
    clock, writer = Clock(state.nimg), StateWriter()
    batches = open_batches(job, state, images)
    try:
        if state.nimg == 0:
            draw_picture(job, state, log)
        while True:
            ticks = [ticks_passed(train, resolution, nimg) for nimg in (state.tick_nimg, state.nimg)]
            # Where ticks change with the resolution, the end need not fall on one: it is one.
            if ticks[1] > ticks[0] or state.tick_nimg < state.nimg >= job.end:
                end_tick(job, state, log, clock)
            if state.nimg > clock.started_nimg and state_is_due(job.params, state.nimg):
                _save(job, state, writer)
            if state.nimg >= job.end:
                break
            before = state.nimg
            train_step(state, train, next(batches), job.law)
            if log is not None:
                log.bar.update(state.nimg - before)
            if writer.check():
                prune_run(job, state)
            job.stop.check_all()
            if state.nimg in {stage.start for stage in stages(train, resolution)}:  # from here on batches differ
                batches.close()
                batches = open_batches(job, state, images)
        writer.finish()
    except Interrupted as error:
        raise Interrupted(f"{error}; {_save_on_interruption(job, state, writer)}", error.signum) from None
    except Diverged as error:
        writer.finish()
        _roll_back(job, state, error)
        return False
    finally:
        batches.close()
    return True


def open_batches(job: Job, state: TrainingState, images: Batch | None) -> Generator[Batch, None, None]:
    """This rank's part of the batches from the state on, of the size that they have there."""
    seed, now = job.params.train.seed, moment(job.params.train, job.shards.index.nominal, state.nimg).params
    own = deal(now.batch_size // now.batch_gpu, rank(), world_size())
    part = range(own.start * now.batch_gpu, own.stop * now.batch_gpu)
    if images is not None:
        return gather_batches(images, seed, state.nimg, now.batch_size, part)
    return device_batches(iterate_batches(job.shards, seed, state.nimg, now.batch_size, part), state.device)


def _save(job: Job, state: TrainingState, writer: StateWriter) -> None:
    """Begins to save a state that can be trusted: not in the middle of a series of gradients that are not finite."""
    check_agreement(state_tensors(state).values(), "state")
    if rank() == 0 and int(state.nonfinite_steps) == 0:
        writer.start(job.run.state_path(state.nimg), copy_state(state, job.provenance()))


def _save_on_interruption(job: Job, state: TrainingState, writer: StateWriter) -> str:
    check_agreement(state_tensors(state).values(), "state")

    def save() -> str:
        writer.finish()
        if int(state.nonfinite_steps):
            return "gradients are not finite at the moment, so the same command continues from the state before."
        save_state(job.run.state_path(state.nimg), state, job.provenance())
        prune_run(job, state)
        return f"the state at kimg {state.nimg / 1000:g} is saved, the same command continues from it."

    return on_first_rank(save)


def _roll_back(job: Job, state: TrainingState, error: Diverged) -> None:
    """Puts the last good state into `state`, to go on from with other random draws.

    Raises:
        RunError: train.rollbacks are used up.
    """
    allowed = job.params.train.rollbacks
    good = on_first_rank(lambda: good_state(job.run, state.tick_nimg, job.params))
    where = "the initial one, at kimg 0" if good is None else str(good)
    if len(state.retries) >= allowed:
        tried = f" after {len(state.retries)} roll-backs" if state.retries else ""
        advice = "" if allowed else " train.rollbacks: 2 goes back to it by itself and on with other random draws."
        raise RunError(f"{error}{tried}. The last good state is {where}; nothing was overwritten.{advice}")
    failed, retries = state.nimg, state.retries

    def load() -> None:
        if good is None:
            fresh, _ = _fresh_state(job.params, job.shards.index, state.device)
            for target, source in zip(state_tensors(state).values(), state_tensors(fresh).values(), strict=True):
                target.data.copy_(source)
            state.sums, state.nimg, state.tick_nimg, state.best = {}, 0, 0, ()
            state.augment_p = fresh.augment_p
        else:
            load_state(good, state)
            state.best = existing_best(job.run, state.best)
        state.retries = (*retries, Retry(failed, state.nimg, str(error)))
        remove_later(job.run, state.nimg)
        write_best_index(job.run, state.best)
        save_state(job.run.state_path(state.nimg), state, job.provenance())

    on_first_rank(load)
    share_state(state)
    set_lod(state, moment(job.params.train, job.shards.index.nominal, state.nimg).lod)
    say(
        f"train: WARNING: {error}. Roll-back {len(state.retries)} of {allowed}: on from kimg {state.nimg / 1000:g} with "
        "other random draws; the states and snapshots from here on say so"
    )
