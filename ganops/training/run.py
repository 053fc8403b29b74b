"""The run directory: runs/<identity>/ holds everything that a killed, extended or repeated run needs.

It lies outside DVC's outputs, because DVC deletes a stage's outputs before the stage runs. What is in it:

    identity.json   the values, data and code that the identity is the hash of
    lock, owner     flock of the trainer that uses it
    states/         NNNNNNNNN.safetensors by nimg, the newest run.keep_states of them
    best/           the snapshot that each kept state calls its best
    snapshots/      G_ema every train.snapshot_kimg, the newest run.keep_snapshots
    history.csv, grids/, reals.png, layers.txt, environment.json, tensorboard/
"""

import fcntl
import hashlib
import json
import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ganops.config import TrainParams
from ganops.entry import say
from ganops.errors import RunError
from ganops.files import copy_file, remove_temporaries, sha256_file, write_json
from ganops.training.state import read_state_metadata

# Values that say how long or when to write, and change no weight. Every other key of `train` is part of the identity.
TIMING_KEYS = frozenset({"total_kimg", "tick_kimg", "image_kimg", "snapshot_kimg", "metric_kimg", "metric_images"})

# Rooms and modules whose code changes numbers. ganops.metrics is exempt: it measures, and values measured in training
# carry its digest. The others that training imports write files and lines (a test holds this list complete).
NUMERIC_MODULES = (
    "ganops.distributed",
    "ganops.images.dataset",
    "ganops.images.pixels",
    "ganops.images.shards",
    "ganops.networks.layers",
    "ganops.networks.mapping",
    "ganops.networks.sampling",
    "ganops.networks.stylegan2_discriminator",
    "ganops.networks.stylegan2_generator",
    "ganops.ops.bias_act",
    "ganops.ops.conv2d_resample",
    "ganops.ops.modulated_conv2d",
    "ganops.ops.upfirdn2d",
    "ganops.training.ema",
    "ganops.training.loop",
    "ganops.training.losses",
    "ganops.training.schedule",
    "ganops.training.state",
    "ganops.training.step",
)


def code_digests(modules: tuple[str, ...] = NUMERIC_MODULES) -> dict[str, str]:
    """sha256 of each module's source file."""
    root = Path(__file__).parents[2]
    return {name: sha256_file(root / (name.replace(".", "/") + ".py")) for name in modules}


def digest(value: Any) -> str:
    """16 hex digits of the sha256 of a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def run_identity(params: TrainParams, data_digest: str, fresh: int) -> dict[str, Any]:
    """What a run's results depend on. Two runs with equal identity are one run."""
    values = {key: value for key, value in params.model_dump().items() if key not in TIMING_KEYS}
    return {"params": values, "data": data_digest, "fresh": fresh, "code": code_digests()}


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


def open_run(root: Path, identity: dict[str, Any]) -> RunDirectory:
    """Opens and locks runs/<identity>; waits, and says for whom, while another process has it."""
    path = root / "runs" / digest(identity)
    folders = [path / name for name in ("states", "best", "snapshots", "grids")]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = (path / "owner").read_text().strip() if (path / "owner").exists() else "another process"
        say(f"train: {path} is in use by {owner}; waiting for it to end")
        fcntl.flock(lock, fcntl.LOCK_EX)
    (path / "owner").write_text(f"pid {os.getpid()}\n")
    for folder in (path, *folders):
        remove_temporaries(folder)
    if not (path / "identity.json").exists():
        write_json(path / "identity.json", identity)
    accepted: list[dict[str, Any]] = []
    with suppress(FileNotFoundError):
        accepted = json.loads((path / "accepted_code.json").read_text())
    return RunDirectory(path, identity, lock, accepted)


def newest_state(states: Path, end: int) -> Path | None:
    """The newest whole state with nimg <= `end`; says which truncated ones it passes over."""
    for path in sorted(states.glob("[0-9]" * 9 + ".safetensors"), reverse=True):
        if int(path.stem) > end:
            continue
        try:
            read_state_metadata(path)
        except RunError as error:
            say(f"train: {error} Falling back to the state before it.")
            continue
        return path
    return None


@dataclass(frozen=True)
class Origin:
    """Where a run continues from.

    Attributes:
        state: the state file; None to start at nimg 0.
        history: the history.csv that belongs to it, if there is one.
        best: the best snapshot that the state names, if it names one.
        grids: pictures to take over, by name.
    """

    state: Path | None
    history: Path | None = None
    best: Path | None = None
    grids: dict[str, Path] = field(default_factory=dict)


def find_origin(run: RunDirectory, end: int, accept_code: str) -> Origin:
    """The state to continue from: this directory's, else one of the same run with other code, else DVC's cache.

    Args:
        run: the opened run directory.
        end: nimg at which training will end; newer states are passed over.
        accept_code: `run.accept_code`.

    Raises:
        RunError: only the code differs from that of an earlier run, and `accept_code` does not name the new code.
    """
    own = newest_state(run.states, end)
    if own is not None:
        return _origin_in(run.path, own)
    candidates: list[tuple[int, Origin]] = []
    for folder in sorted(run.path.parent.iterdir()):
        state = newest_state(folder / "states", end) if folder != run.path else None
        if state is not None and _same_but_code(read_state_metadata(state)["identity"], run.identity):
            candidates.append((int(state.stem), _origin_in(folder, state)))
    cached = cached_outputs("train")
    state = cached.get("models/state.safetensors")
    metadata = None if state is None else _readable_metadata(state)
    if metadata is not None and metadata["nimg"] <= end and _same_but_code(metadata["identity"], run.identity):
        grids = {Path(name).name: path for name, path in cached.items() if "/grids/" in name}
        history = cached.get("results/train/history.csv")
        candidates.append((metadata["nimg"], Origin(state, history, cached.get("models/best.safetensors"), grids)))
    same_code = [item for item in candidates if _code_of(item[1]) == run.identity["code"]]
    chosen = max(same_code or candidates, key=lambda item: item[0], default=None)
    if chosen is None or chosen[0] == 0:
        return Origin(None)
    if not same_code:
        _accept(run, chosen[1], chosen[0], accept_code)
    return chosen[1]


def _readable_metadata(state: Path) -> dict[str, Any] | None:
    try:
        return read_state_metadata(state)
    except RunError as error:
        say(f"train: the state that dvc.lock names is not used: {error}")
        return None


def _origin_in(folder: Path, state: Path) -> Origin:
    best = read_state_metadata(state)["best"]
    history = folder / "history.csv"
    return Origin(
        state,
        history if history.exists() else None,
        None if best is None else folder / "best" / f"{best['nimg']:09d}.safetensors",
        {path.name: path for path in (folder / "grids").glob("*.png")},
    )


def _code_of(origin: Origin) -> Any:
    assert origin.state is not None
    return read_state_metadata(origin.state)["identity"]["code"]


def _same_but_code(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(one[key] == other[key] for key in ("params", "data", "fresh"))


def _accept(run: RunDirectory, origin: Origin, nimg: int, accept_code: str) -> None:
    """Refuses to continue with changed code, unless the user named exactly this code; then records it."""
    old, new = _code_of(origin), run.identity["code"]
    changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
    if accept_code != digest(new):
        raise RunError(
            f"the code changed since this run reached kimg {nimg / 1000:g}: {', '.join(changed)}. Nothing was trained. "
            f"Set run.accept_code: {digest(new)} in params.yaml to continue it with the new code (recorded in the "
            "snapshots), or raise run.fresh to train from scratch."
        )
    assert origin.state is not None
    earlier = read_state_metadata(origin.state)["accepted_code"]
    run.accepted_code[:] = [*earlier, {"nimg": nimg, "from": digest(old), "changed": changed}]
    write_json(run.path / "accepted_code.json", run.accepted_code)
    say(f"train: continuing with changed code ({', '.join(changed)}), as run.accept_code says")


def cached_outputs(stage: str) -> dict[str, Path]:
    """What DVC's cache holds of the outputs that dvc.lock records for `stage`: workspace name -> cache file.

    While a stage runs, dvc.lock still names its previous outputs, although DVC has deleted them from the workspace:
    that is how a fresh clone after `dvc pull` goes on training. Read only: cache files are never written to.
    """
    try:
        outs = yaml.safe_load(Path("dvc.lock").read_text())["stages"][stage]["outs"]
        answer = subprocess.run(
            [sys.executable, "-m", "dvc", "cache", "dir"], capture_output=True, text=True, check=True
        )
    except (OSError, KeyError, TypeError, yaml.YAMLError, subprocess.CalledProcessError):
        return {}
    cache = Path(answer.stdout.strip()) / "files" / "md5"
    found: dict[str, Path] = {}
    for out in outs:
        md5 = out.get("md5", "")
        path = cache / md5[:2] / md5[2:]
        if not md5 or not path.exists():
            continue
        if not md5.endswith(".dir"):
            found[out["path"]] = path
            continue
        for entry in json.loads(path.read_text()):
            file = cache / entry["md5"][:2] / entry["md5"][2:]
            if file.exists():
                found[f"{out['path']}/{entry['relpath']}"] = file
    return found


def take_over(run: RunDirectory, origin: Origin, best_nimg: int | None) -> None:
    """Copies history, best snapshot and pictures of an origin that lies outside the run directory into it."""
    if origin.state is None or origin.state.parent == run.states:
        return
    if origin.history is not None:
        copy_file(origin.history, run.path / "history.csv")
    if best_nimg is not None and origin.best is not None and origin.best.exists():
        copy_file(origin.best, run.best_path(best_nimg))
    for name, path in origin.grids.items():
        copy_file(path, run.path / "grids" / name)


def prune(run: RunDirectory, nimg: int, keep_states: int, keep_snapshots: int) -> None:
    """Removes all but the newest states and snapshots up to `nimg`, and best snapshots that no kept state names.

    After total_kimg was lowered there are later ones: the very last is kept, so that raising it again continues there.
    """
    for folder, keep in ((run.states, keep_states), (run.path / "snapshots", keep_snapshots)):
        paths = sorted(folder.glob("[0-9]" * 9 + ".safetensors"))
        reached = [path for path in paths if int(path.stem) <= nimg]
        for path in set(paths) - set(reached[-keep:]) - set(paths[-1:]):
            path.unlink()
    named = set()
    for path in run.states.glob("[0-9]" * 9 + ".safetensors"):
        with suppress(RunError):
            best = read_state_metadata(path)["best"]
            named.add(None if best is None else run.best_path(best["nimg"]))
    for path in (run.path / "best").glob("*.safetensors"):
        if path not in named:
            path.unlink()


def check_environment(path: Path, environment: dict[str, str]) -> None:
    """Warns when a run continues under another torch or on another device: equal to rounding, no longer bit for bit."""
    file = path / "environment.json"
    if file.exists():
        old = json.loads(file.read_text())
        changed = [
            f"{key} {old.get(key)} -> {environment[key]}" for key in environment if old.get(key) != environment[key]
        ]
        if changed:
            say(f"train: WARNING: this run continues under {', '.join(changed)}: equal to rounding, not bit for bit")
    write_json(file, environment)
