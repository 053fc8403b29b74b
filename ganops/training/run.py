"""The run directory: runs/<identity>/ holds everything that a killed, extended or repeated run needs.

It lies outside DVC's outputs, because DVC deletes a stage's outputs before the stage runs. What is in it:

    identity.json   the values, data and code that the identity is the hash of
    lock, owner     flock of the trainer that uses it
    states/         NNNNNNNNN.safetensors by nimg, the newest run.keep_states of them
    best/           the train.keep_best snapshots that each kept state calls its best; index.json lists those of the newest
    snapshots/      G_ema every train.snapshot_kimg, the newest run.keep_snapshots
    history.csv, grids/, reals.png, layers.txt, environment.json, tensorboard/
"""

import fcntl
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ganops.config import Params, RunParams
from ganops.config_train import TrainParams
from ganops.entry import say
from ganops.errors import RunError
from ganops.files import format_bytes, remove_temporaries, sha256_file, write_json
from ganops.training.schedule import state_is_due
from ganops.training.state import Best, read_state, read_state_metadata

LOCK_POLL_SEC = 0.2

# Values that say how long, when to write and what to keep, or when to give up: up to there they change no weight. Every
# other key of `train` is part of the identity.
TIMING_KEYS = frozenset(
    {
        "total_kimg",
        "tick_kimg",
        "tick_kimg_by_resolution",
        "image_kimg",
        "snapshot_kimg",
        "metric_kimg",
        "metric_images",
        "metrics",
        "best_by",
        "keep_best",
        "max_nonfinite_steps",
        "max_loss",
        "rollbacks",
    }
)

# Rooms and modules whose code changes numbers. ganops.metrics is exempt: it measures, and values measured in training
# carry its digest. The others that training imports write files and lines (a test holds this list complete).
NUMERIC_MODULES = (
    "ganops.collectives",
    "ganops.distributed",
    "ganops.images.dataset",
    "ganops.images.pixels",
    "ganops.images.shard_file",
    "ganops.images.shard_index",
    "ganops.images.shards",
    "ganops.networks.early_layers",
    "ganops.networks.families",
    "ganops.networks.growing",
    "ganops.networks.growing_discriminator",
    "ganops.networks.joint_mapping",
    "ganops.networks.law",
    "ganops.networks.layers",
    "ganops.networks.mapping",
    "ganops.networks.pggan_discriminator",
    "ganops.networks.pggan_generator",
    "ganops.networks.sampling",
    "ganops.networks.stylegan1_discriminator",
    "ganops.networks.stylegan1_generator",
    "ganops.networks.stylegan1_layers",
    "ganops.networks.stylegan2_discriminator",
    "ganops.networks.stylegan2_generator",
    "ganops.networks.stylegan2_growing_generator",
    "ganops.ops.bias_act",
    "ganops.ops.conv2d_resample",
    "ganops.ops.convolution",
    "ganops.ops.grid_sample",
    "ganops.ops.modulated_conv2d",
    "ganops.ops.upfirdn2d",
    "ganops.shape",
    "ganops.training.accumulate",
    "ganops.training.augment",
    "ganops.training.augment_colour",
    "ganops.training.augment_filter",
    "ganops.training.augment_geometry",
    "ganops.training.augment_pixels",
    "ganops.training.batches",
    "ganops.training.build",
    "ganops.training.compiled",
    "ganops.training.diffaugment",
    "ganops.training.ema",
    "ganops.training.loop",
    "ganops.training.losses",
    "ganops.training.schedule",
    "ganops.training.state",
    "ganops.training.step",
    "ganops.training.transfer",
    "ganops.training.wgan",
)


def code_digests(modules: tuple[str, ...] = NUMERIC_MODULES) -> dict[str, str]:
    """sha256 of each module's source file, and of the CUDA kernels'."""
    root = Path(__file__).parents[2]
    digests = {name: sha256_file(root / (name.replace(".", "/") + ".py")) for name in modules}
    kernels = sorted((root / "ganops" / "ops" / "csrc").iterdir())
    return digests | {f"ganops.ops.csrc.{path.name}": sha256_file(path) for path in kernels}


def digest(value: Any) -> str:
    """16 hex digits of the sha256 of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def run_identity(params: TrainParams, data_digest: str, fresh: int, init_sha256: str = "") -> dict[str, Any]:
    """What a run's results depend on. Two runs with equal identity are one run.

    Args:
        params: section `train`.
        data_digest: of the shards.
        fresh: run.fresh.
        init_sha256: of the file train.init_from, which counts by content and not by name; "" when starting from scratch.
    """
    values = {key: value for key, value in params.model_dump().items() if key not in TIMING_KEYS}
    values["init_from"] = init_sha256
    identity = {"params": values, "data": data_digest, "fresh": fresh, "code": code_digests()}
    return dict(json.loads(json.dumps(identity)))  # as files hold it: keys of JSON are text


@dataclass(frozen=True)
class RunDirectory:
    """An opened, locked run directory. Closing the file descriptor `lock` frees it; so does the end of the process."""

    path: Path
    identity: dict[str, Any]
    lock: int
    accepted_code: list[dict[str, Any]] = field(default_factory=list)

    @property
    def states(self) -> Path:
        return self.path / "states"

    def state_path(self, nimg: int) -> Path:
        return self.states / f"{nimg:09d}.safetensors"

    def best_path(self, nimg: int) -> Path:
        return self.path / "best" / f"{nimg:09d}.safetensors"

    def provenance(self) -> dict[str, Any]:
        """What states and snapshots say of where they come from; nothing of time, machine or number of resumes."""
        return {"run": self.path.name, "identity": self.identity, "accepted_code": self.accepted_code}


def open_run(root: Path, identity: dict[str, Any], check_stop: Callable[[], None] = lambda: None) -> RunDirectory:
    """Opens and locks runs/<identity>; waits, and says for whom, while another process has it.

    Args:
        root: the repository that owns runs/.
        identity: see `run_identity`.
        check_stop: called while waiting; may raise.
    """
    path = root / "runs" / digest(identity)
    folders = [path / name for name in ("states", "best", "snapshots", "grids")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT)
    waiting = False
    while not _try_lock(lock):
        if not waiting:
            owner = (path / "owner").read_text().strip() if (path / "owner").exists() else "another process"
            say(f"train: {path} is in use by {owner}; waiting for it to end")
        waiting = True
        check_stop()
        time.sleep(LOCK_POLL_SEC)
    (path / "owner").write_text(f"process {os.getpid()} on {socket.gethostname()}\n")
    for folder in (path, *folders):
        remove_temporaries(folder)
    if not (path / "identity.json").exists():
        write_json(path / "identity.json", identity)
    accepted: list[dict[str, Any]] = []
    with suppress(FileNotFoundError):
        accepted = json.loads((path / "accepted_code.json").read_text())
    return RunDirectory(path, identity, lock, accepted)


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def existing_best(run: RunDirectory, best: tuple[Best, ...]) -> tuple[Best, ...]:
    """Those of a state's best snapshots whose files are there; says which are not."""
    found = tuple(entry for entry in best if run.best_path(entry.nimg).exists())
    for entry in best:
        if entry not in found:
            say(f"train: {run.best_path(entry.nimg)} is missing; the best snapshots are chosen without it from here on")
    return found


def write_best_index(run: RunDirectory, best: tuple[Best, ...]) -> None:
    """best/index.json: the best snapshots, the best first, each file whole."""
    entries = [{**asdict(entry), "file": run.best_path(entry.nimg).name} for entry in best]
    write_json(run.path / "best" / "index.json", entries)


def prune(
    run: RunDirectory,
    nimg: int,
    best: tuple[Best, ...],
    keep_states: int,
    keep_snapshots: int,
    good: Collection[Path] = (),
) -> None:
    """Removes all but the newest states and snapshots up to `nimg`, and snapshots that neither `best` nor a state names.

    After total_kimg was lowered there are later ones: the very last is kept, so that raising it again continues there.

    Args:
        run: the run directory.
        nimg: images shown so far.
        best: the present best snapshots.
        keep_states: run.keep_states.
        keep_snapshots: run.keep_snapshots.
        good: states that are kept beside these, see `states_to_return_to`.
    """
    for folder, keep in ((run.states, keep_states), (run.path / "snapshots", keep_snapshots)):
        paths = sorted(folder.glob("[0-9]" * 9 + ".safetensors"))
        reached = [path for path in paths if int(path.stem) <= nimg]
        for path in set(paths) - set(reached[-keep:]) - set(paths[-1:]) - set(good):
            path.unlink()
    named = {run.best_path(entry.nimg) for entry in best}
    for path in run.states.glob("[0-9]" * 9 + ".safetensors"):
        with suppress(RunError):
            named |= {run.best_path(entry["nimg"]) for entry in read_state_metadata(path)["best"]}
    for path in (run.path / "best").glob("*.safetensors"):
        if path not in named:
            path.unlink()


def due_states(run: RunDirectory, nimg: int, params: Params) -> list[Path]:
    """States up to `nimg` that every uninterrupted run saves too, the newest first; not looked into."""
    return [
        path
        for path in sorted(run.states.glob("[0-9]" * 9 + ".safetensors"), reverse=True)
        if 0 < int(path.stem) <= nimg and state_is_due(params, int(path.stem))
    ]


def states_to_return_to(run: RunDirectory, tick_nimg: int, nimg: int, params: Params) -> list[Path]:
    """What a roll-back may need, now or after the next tick: states of interruptions must not crowd it out."""
    return [path for until in (tick_nimg, nimg) for path in due_states(run, until, params)[:1]]


def good_state(run: RunDirectory, tick_nimg: int, params: Params) -> Path | None:
    """The newest whole state up to the last tick in which nothing was wrong; None if there is none but the first.

    Only of those that every uninterrupted run saves too, so that a roll-back does not depend on interruptions.
    """
    for path in due_states(run, tick_nimg, params):
        with suppress(RunError):
            read_state(path)
            return path
    return None


def remove_later(run: RunDirectory, nimg: int) -> None:
    """Removes states and snapshots of a course that is given up."""
    for folder in (run.states, run.path / "snapshots"):
        for path in folder.glob("[0-9]" * 9 + ".safetensors"):
            if int(path.stem) > nimg:
                path.unlink()


def disk_bytes(path: Path) -> int:
    """What a folder's files hold."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def check_disk(run: RunDirectory, state_bytes: int, snapshot_bytes: int, params: TrainParams, keep: RunParams) -> str:
    """What the run holds and may come to hold, in one line.

    Raises:
        RunError: the disk has no room for one more state.
    """
    states = keep.keep_states + 4  # one that is being written, the last of a longer run, two to go back to
    best = params.keep_best * (keep.keep_states + 3) if params.metric_kimg else 0  # each state may name others
    bound = states * state_bytes + (keep.keep_snapshots + 2 + best) * snapshot_bytes
    held, free = disk_bytes(run.path), shutil.disk_usage(run.path).free
    state, snapshot = format_bytes(state_bytes), format_bytes(snapshot_bytes)
    if free < state_bytes + snapshot_bytes:
        raise RunError(
            f"{run.path}: {format_bytes(free)} are free, but a state takes {state} and a snapshot {snapshot}. Free some "
            "space: `python -m stages.doctor` lists what old runs hold."
        )
    return (
        f"train: {run.path} holds {format_bytes(held)}, at most {format_bytes(bound)} of models "
        f"(a state is {state}, a snapshot {snapshot}); {format_bytes(free)} are free"
    )


def check_environment(path: Path, environment: dict[str, str]) -> None:
    """Warns when a run continues under another torch or on another device: equal to rounding, no longer bit for bit."""
    file = path / "environment.json"
    if file.exists():
        old = json.loads(file.read_text())
        changed = [
            f"{key} {old[key]} -> {environment[key]}"
            for key in environment
            if old.get(key, environment[key]) != environment[key]
        ]
        if changed:
            say(f"train: WARNING: this run continues under {', '.join(changed)}: equal to rounding, not bit for bit")
    write_json(file, environment)
