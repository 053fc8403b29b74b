"""The run directory: identity, falling back, accepting code, retention, what was before."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from ganops.config import load_params
from ganops.errors import Interrupted, RunError
from ganops.training import run as module
from ganops.training.origin import find_origin, newest_state, take_over
from ganops.training.run import (
    TIMING_KEYS,
    check_disk,
    check_environment,
    digest,
    disk_bytes,
    existing_best,
    good_state,
    open_run,
    prune,
    remove_later,
    run_identity,
    write_best_index,
)
from ganops.training.state import Best, read_state_metadata, save_state
from tests.unit.tiny import ROOT, tiny_params, tiny_state


@pytest.fixture(autouse=True)
def no_dvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Away from this repository's own dvc.lock and cache."""
    monkeypatch.chdir(tmp_path)


KEYS = sorted(tiny_params().model_dump())
CHANGED = {
    "G_architecture": "resnet", "D_architecture": "orig", "precision": "bfloat16", "conv_clamp": 256.0, "ema_rampup": 0.05,
    "init_from": "x.safetensors", "metrics": ["kid"], "best_by": "kid", "family": "pggan", "loss": "wgan-gp",
    "batch_size_by_resolution": {8: 16}, "batch_gpu_by_resolution": {8: 4}, "lr_by_resolution": {8: 0.1},
    "tick_kimg_by_resolution": {8: 1.0}, "augment": "ada", "augment_set": "blit", "diffaugment_policy": ["color"],
}  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_every_value_is_identity_or_timing(key: str) -> None:
    """A new key of `train` must be one or the other; all but the timing keys start a run of their own."""
    params = tiny_params()
    value = getattr(params, key)
    new = CHANGED[key] if key in CHANGED else (not value) if isinstance(value, bool) else (value or 0) + 1
    other = params.model_copy(update={key: new})
    same = digest(run_identity(params, "data", 0)) == digest(run_identity(other, "data", 0))
    assert same == (key in TIMING_KEYS | {"init_from"})


def test_init_from_counts_by_content_not_by_name() -> None:
    params = tiny_params()
    moved = params.model_copy(update={"init_from": "elsewhere"})
    assert run_identity(params, "data", 0, "1" * 64) == run_identity(moved, "data", 0, "1" * 64)
    assert run_identity(params, "data", 0, "1" * 64) != run_identity(params, "data", 0, "2" * 64)


def test_data_and_fresh_are_identity() -> None:
    params = tiny_params()
    names = {digest(run_identity(params, data, fresh)) for data, fresh in (("a", 0), ("b", 0), ("a", 1))}
    assert len(names) == 3


def test_timing_keys_exist() -> None:
    assert set(KEYS) >= TIMING_KEYS


def make_run(root: Path, code: str = "1", nimgs: tuple[int, ...] = (8, 16, 24)) -> module.RunDirectory:
    params = tiny_params()
    identity = {**run_identity(params, "data", 0), "code": {"ganops.x": code, "ganops.y": "same"}}
    run = open_run(root, identity)
    state = tiny_state(params)
    for nimg in nimgs:
        state.nimg = nimg
        save_state(run.state_path(nimg), state, run.provenance())
    return run


def test_the_newest_state_that_fits_is_taken(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert newest_state(run.states, 100) == run.state_path(24)
    assert newest_state(run.states, 23) == run.state_path(16)
    assert newest_state(run.states, 7) is None
    assert find_origin(run, 100, "").state == run.state_path(24)


def test_truncated_states_are_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path)
    run.state_path(24).write_bytes(run.state_path(24).read_bytes()[:-1])
    assert newest_state(run.states, 100) == run.state_path(16)
    assert "Falling back" in capsys.readouterr().out


def test_changed_code_needs_to_be_accepted_by_digest(tmp_path: Path) -> None:
    os.close(make_run(tmp_path, code="1").lock)
    run = make_run(tmp_path, code="2", nimgs=())
    with pytest.raises(RunError, match=r"reached kimg 0\.024: ganops\.x\. Nothing was trained") as error:
        find_origin(run, 100, "")
    assert "ganops.y" not in str(error.value)
    with pytest.raises(RunError):
        find_origin(run, 100, "0" * 16)
    wanted = digest(run.identity["code"])
    assert wanted in str(error.value)
    origin = find_origin(run, 100, wanted)
    assert origin.state is not None
    assert origin.state.name == "000000024.safetensors"
    assert run.accepted_code[0]["changed"] == ["ganops.x"]
    os.close(run.lock)
    assert open_run(tmp_path, run.identity).accepted_code == run.accepted_code


def test_other_values_are_not_a_change_of_code(tmp_path: Path) -> None:
    os.close(make_run(tmp_path).lock)
    identity = {**run_identity(tiny_params(G_lr=1.0), "data", 0), "code": {"ganops.x": "2"}}
    assert find_origin(open_run(tmp_path, identity), 100, "").state is None


def test_an_origin_elsewhere_is_taken_over(tmp_path: Path) -> None:
    old = make_run(tmp_path, code="1", nimgs=(8,))
    (old.path / "history.csv").write_text("tick\n")
    (old.path / "grids" / "000000.png").write_bytes(b"png")
    os.close(old.lock)
    run = make_run(tmp_path, code="2", nimgs=())
    take_over(run, find_origin(run, 100, digest(run.identity["code"])))
    assert (run.path / "history.csv").read_text() == "tick\n"
    assert (run.path / "grids" / "000000.png").read_bytes() == b"png"


def test_retention(tmp_path: Path) -> None:
    run = make_run(tmp_path, nimgs=(8, 16))
    state = tiny_state(tiny_params())
    state.nimg, state.best = 24, (Best(16, "fd_x", 1.0, "digest"),)
    save_state(run.state_path(24), state, run.provenance())
    for nimg in (8, 16, 24):
        run.best_path(nimg).write_bytes(b"best")
        (run.path / "snapshots" / f"{nimg:09d}.safetensors").write_bytes(b"snapshot")
    prune(run, 24, state.best, keep_states=2, keep_snapshots=1)
    assert sorted(path.stem for path in run.states.iterdir()) == ["000000016", "000000024"]
    assert [path.stem for path in (run.path / "best").iterdir()] == ["000000016"]
    assert [path.stem for path in (run.path / "snapshots").iterdir()] == ["000000024"]


def test_retention_after_total_kimg_was_lowered(tmp_path: Path) -> None:
    """The states that were just reached stay, and the very last one, to continue from when it is raised again."""
    run = make_run(tmp_path, nimgs=(8, 16, 24, 80, 88))
    prune(run, 24, (), keep_states=2, keep_snapshots=1)
    assert sorted(int(path.stem) for path in run.states.iterdir()) == [16, 24, 88]


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    os.close(run.lock)
    left = run.states / ".000000032.safetensors.123.tmp"
    left.write_bytes(b"half")
    open_run(tmp_path, run.identity)
    assert not left.exists()


def test_states_say_nothing_of_time_place_or_resumes(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    metadata = read_state_metadata(run.state_path(8))
    assert set(metadata) == {
        "format",
        "nimg",
        "tick_nimg",
        "augment_p",
        "best",
        "retries",
        "run",
        "identity",
        "accepted_code",
        "sha256",
    }
    assert str(tmp_path) not in json.dumps(metadata)


def test_another_torch_or_device_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_environment(tmp_path, {"torch": "2.11", "device": "cpu"})
    check_environment(tmp_path, {"torch": "2.11", "device": "cpu"})
    assert "WARNING" not in capsys.readouterr().out
    check_environment(tmp_path, {"torch": "2.15", "device": "cpu"})
    assert "torch 2.11 -> 2.15: equal to rounding" in capsys.readouterr().out


def test_a_best_snapshot_not_yet_named_by_a_state_stays(tmp_path: Path) -> None:
    run = make_run(tmp_path, nimgs=(8,))
    for nimg in (8, 16):
        run.best_path(nimg).write_bytes(b"best")
    prune(run, 16, (Best(16, "fd_x", 1.0, "digest"),), keep_states=2, keep_snapshots=1)
    assert [path.stem for path in (run.path / "best").iterdir()] == ["000000016"]


def test_the_index_lists_the_best_and_missing_files_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, nimgs=(8,))
    best = (Best(16, "fd_x", 1.0, "digest"), Best(8, "fd_x", 2.0, "digest"))
    run.best_path(16).write_bytes(b"best")
    write_best_index(run, best)
    index = json.loads((run.path / "best" / "index.json").read_text())
    assert [(entry["file"], entry["value"]) for entry in index] == [
        ("000000016.safetensors", 1.0),
        ("000000008.safetensors", 2.0),
    ]
    assert existing_best(run, best) == best[:1]
    assert "000000008.safetensors is missing" in capsys.readouterr().out


def test_a_good_state_is_one_that_every_uninterrupted_run_has(tmp_path: Path) -> None:
    params = load_params(ROOT / "params.yaml")
    params = params.model_copy(
        update={"train": tiny_params(), "run": params.run.model_copy(update={"state_kimg": 0.016})}
    )
    run = make_run(tmp_path, nimgs=(8, 16, 24, 32, 40))  # 16 and 32 are due, the others were saved when interrupted
    assert good_state(run, 40, params) == run.state_path(32)
    assert good_state(run, 31, params) == run.state_path(16)
    run.state_path(32).write_bytes(run.state_path(32).read_bytes()[:-1])
    assert good_state(run, 40, params) == run.state_path(16)
    assert good_state(run, 15, params) is None
    remove_later(run, 16)
    assert sorted(int(path.stem) for path in run.states.iterdir()) == [8, 16]


def test_disk_use_is_told_and_a_full_disk_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path, nimgs=(8,))
    params = load_params(ROOT / "params.yaml")
    assert disk_bytes(run.path) >= run.state_path(8).stat().st_size
    assert "at most 8.0 MB of models (a state is 1.0 MB, a snapshot 100 kB)" in check_disk(
        run, 10**6, 10**5, params.train, params.run
    )
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**6))
    with pytest.raises(RunError, match="1.0 MB are free, but a state takes 1.0 MB"):
        check_disk(run, 10**6, 10**5, params.train, params.run)


def test_who_waits_says_for_whom_and_may_be_stopped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, nimgs=())

    def stop() -> None:
        raise Interrupted("stopped by SIGINT", 2)

    with pytest.raises(Interrupted):
        open_run(tmp_path, run.identity, stop)
    assert f"is in use by process {os.getpid()} on " in capsys.readouterr().out
