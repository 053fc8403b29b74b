"""Where a run continues from: its own states, those of the same run with other code, or DVC's cache."""

import json
import re
import subprocess
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ganops.entry import say
from ganops.errors import DamagedState, RunError
from ganops.files import copy_file, write_json
from ganops.training.run import RunDirectory, digest
from ganops.training.state import read_state_metadata

BEST = r"models/best/\d{9}\.safetensors"


def newest_state(states: Path, end: int, damaged: Collection[Path] = ()) -> Path | None:
    """The newest whole state with nimg <= `end`; says which truncated ones it passes over.

    Raises:
        RunError: the newest is of another format.
    """
    for path in sorted(states.glob("[0-9]" * 9 + ".safetensors"), reverse=True):
        if int(path.stem) > end or path in damaged:
            continue
        try:
            read_state_metadata(path)
        except DamagedState as error:
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
        best: nimg -> file of the best snapshots that the state names.
        grids: pictures to take over, by name.
    """

    state: Path | None
    history: Path | None = None
    best: dict[int, Path] = field(default_factory=dict)
    grids: dict[str, Path] = field(default_factory=dict)


def find_origin(run: RunDirectory, end: int, accept_code: str, damaged: Collection[Path] = ()) -> Origin:
    """The state to continue from: this directory's, else one of the same run with other code, else DVC's cache.

    Args:
        run: the opened run directory.
        end: nimg at which training will end; newer states are passed over.
        accept_code: `run.accept_code`.
        damaged: state files that were found damaged.

    Raises:
        RunError: only the code differs from that of an earlier run, and `accept_code` does not name the new code.
    """
    own = newest_state(run.states, end, damaged)
    if own is not None:
        return _origin_in(run.path, own)
    candidates: list[tuple[int, Origin]] = []
    for folder in sorted(run.path.parent.iterdir()):
        state = _readable_newest(folder / "states", end, damaged) if folder != run.path else None
        if state is not None and _same_but_code(read_state_metadata(state)["identity"], run.identity):
            candidates.append((int(state.stem), _origin_in(folder, state)))
    cached = cached_outputs("train")
    state = cached.get("models/state.safetensors")
    metadata = None if state is None or state in damaged else _readable_metadata(state)
    if metadata is not None and metadata["nimg"] <= end and _same_but_code(metadata["identity"], run.identity):
        grids = {Path(name).name: path for name, path in cached.items() if "/grids/" in name}
        history = cached.get("results/train/history.csv")
        best = {int(Path(name).stem): path for name, path in cached.items() if re.fullmatch(BEST, name)}
        candidates.append((metadata["nimg"], Origin(state, history, best, grids)))
    same_code = [item for item in candidates if _code_of(item[1]) == run.identity["code"]]
    chosen = max(same_code or candidates, key=lambda item: item[0], default=None)
    if chosen is None or chosen[0] == 0:
        return Origin(None)
    if not same_code:
        _accept(run, chosen[1], chosen[0], accept_code)
    return chosen[1]


def _readable_newest(states: Path, end: int, damaged: Collection[Path]) -> Path | None:
    """Of another run: what cannot be read there is no reason to stop here."""
    try:
        return newest_state(states, end, damaged)
    except RunError:
        return None


def _readable_metadata(state: Path) -> dict[str, Any] | None:
    try:
        return read_state_metadata(state)
    except RunError as error:
        say(f"train: the state that dvc.lock names is not used: {error}")
        return None


def _origin_in(folder: Path, state: Path) -> Origin:
    history = folder / "history.csv"
    return Origin(
        state,
        history if history.exists() else None,
        {
            best["nimg"]: folder / "best" / f"{best['nimg']:09d}.safetensors"
            for best in read_state_metadata(state)["best"]
        },
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


def take_over(run: RunDirectory, origin: Origin) -> None:
    """Copies history, best snapshots and pictures of an origin that lies outside the run directory into it."""
    if origin.state is None or origin.state.parent == run.states:
        return
    if origin.history is not None:
        copy_file(origin.history, run.path / "history.csv")
    for nimg, path in origin.best.items():
        if path.exists():
            copy_file(path, run.best_path(nimg))
    for name, path in origin.grids.items():
        copy_file(path, run.path / "grids" / name)
