"""The run directory: identity, falling back, accepting code, retention, what was before."""

import json
import os
from pathlib import Path

import pytest

from ganops.errors import RunError
from ganops.training import run as module
from ganops.training.run import (
    TIMING_KEYS,
    check_environment,
    digest,
    find_origin,
    newest_state,
    open_run,
    prune,
    run_identity,
    take_over,
)
from ganops.training.state import Best, read_state_metadata, save_state
from tests.unit.tiny import tiny_params, tiny_state


@pytest.fixture(autouse=True)
def no_dvc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Away from this repository's own dvc.lock and cache."""
    monkeypatch.chdir(tmp_path)


KEYS = sorted(tiny_params().model_dump())
CHANGED = {
    "G_architecture": "resnet", "D_architecture": "orig", "precision": "bfloat16", "conv_clamp": 256.0, "ema_rampup": 0.05,
}  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_every_value_is_identity_or_timing(key: str) -> None:
    """A new key of `train` must be one or the other; all but the six timing keys start a run of their own."""
    params = tiny_params()
    value = getattr(params, key)
    new = CHANGED[key] if key in CHANGED else (not value) if isinstance(value, bool) else (value or 0) + 1
    other = params.model_copy(update={key: new})
    same = digest(run_identity(params, "data", 0)) == digest(run_identity(other, "data", 0))
    assert same == (key in TIMING_KEYS)


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
    take_over(run, find_origin(run, 100, digest(run.identity["code"])), None)
    assert (run.path / "history.csv").read_text() == "tick\n"
    assert (run.path / "grids" / "000000.png").read_bytes() == b"png"


def test_retention(tmp_path: Path) -> None:
    run = make_run(tmp_path, nimgs=(8, 16))
    state = tiny_state(tiny_params())
    state.nimg, state.best = 24, Best(16, "fd_x", 1.0, "digest")
    save_state(run.state_path(24), state, run.provenance())
    for nimg in (8, 16, 24):
        run.best_path(nimg).write_bytes(b"best")
        (run.path / "snapshots" / f"{nimg:09d}.safetensors").write_bytes(b"snapshot")
    prune(run, 24, keep_states=2, keep_snapshots=1)
    assert sorted(path.stem for path in run.states.iterdir()) == ["000000016", "000000024"]
    assert [path.stem for path in (run.path / "best").iterdir()] == ["000000016"]
    assert [path.stem for path in (run.path / "snapshots").iterdir()] == ["000000024"]


def test_retention_after_total_kimg_was_lowered(tmp_path: Path) -> None:
    """The states that were just reached stay, and the very last one, to continue from when it is raised again."""
    run = make_run(tmp_path, nimgs=(8, 16, 24, 80, 88))
    prune(run, 24, keep_states=2, keep_snapshots=1)
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
    assert set(metadata) == {"format", "nimg", "tick_nimg", "best", "run", "identity", "accepted_code"}
    assert str(tmp_path) not in json.dumps(metadata)


def test_another_torch_or_device_warns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    check_environment(tmp_path, {"torch": "2.11", "device": "cpu"})
    check_environment(tmp_path, {"torch": "2.11", "device": "cpu"})
    assert "WARNING" not in capsys.readouterr().out
    check_environment(tmp_path, {"torch": "2.15", "device": "cpu"})
    assert "torch 2.11 -> 2.15: equal to rounding" in capsys.readouterr().out
