"""Killed, interrupted, truncated, doubled: training goes on and ends with the same bytes."""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.pipeline.clone import Clone, stages_run, trainers, wait_for

Copy = Callable[..., Clone]


def start_over(clone: Clone) -> None:
    """Forgets that anything was trained, here and in DVC's run cache; data and statistics stay."""
    clone.remove_runs()
    for name in (".dvc/cache/runs", "models", "results/train"):
        shutil.rmtree(clone.path / name)
    lock = yaml.safe_load((clone.path / "dvc.lock").read_text())
    for stage in ("train", "sample", "fid"):
        del lock["stages"][stage]
    (clone.path / "dvc.lock").write_text(yaml.safe_dump(lock))


@pytest.mark.parametrize("way", ["repro", "exp run"])
def test_sigkill_then_the_same_command(copy: Copy, finished: Clone, way: str) -> None:
    clone = copy()
    start_over(clone)
    process = clone.start("dvc", *way.split())
    wait_for(lambda: len(clone.states()) >= 2, process)
    for pid in trainers(clone):
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode != 0
    interrupted_at = int(clone.states()[-1].stem)
    assert interrupted_at < 2000
    output = clone.dvc(*way.split())
    assert f"continues at kimg {interrupted_at / 1000:g}" in output
    assert clone.models() == finished.models()
    assert clone.kimgs() == finished.kimgs()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_save_first_and_exit_non_zero(copy: Copy, finished: Clone, number: signal.Signals, code: int) -> None:
    clone = copy()
    start_over(clone)
    clone.set(run__state_kimg=1000)
    process = clone.start(sys.executable, "-m", "stages.train")
    wait_for(lambda: (clone.path / "results" / "train" / "metrics.json").exists() and bool(trainers(clone)), process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == code
    assert f"stopped by {number.name}; the state at kimg" in output
    assert len(clone.states()) == 1
    clone.stage("train")
    assert clone.models() == finished.models()


def test_nothing_trains_on_when_dvc_is_killed(copy: Copy) -> None:
    clone = copy()
    start_over(clone)
    process = clone.start("dvc", "repro")
    wait_for(lambda: len(clone.states()) >= 1, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    wait_for(lambda: not trainers(clone))
    assert len(clone.states()) >= 1


def test_ctrl_c_under_dvc_is_not_recorded_as_done(copy: Copy) -> None:
    clone = copy()
    start_over(clone)
    process = clone.start("dvc", "repro")
    wait_for(lambda: len(clone.states()) >= 1, process)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "sample" not in stages_run(output)
    assert "train" not in yaml.safe_load((clone.path / "dvc.lock").read_text())["stages"]


def test_a_truncated_newest_state_falls_back(copy: Copy, finished: Clone) -> None:
    clone = copy()
    newest = clone.states()[-1]
    newest.write_bytes(newest.read_bytes()[:-100])
    output = clone.stage("train")
    assert f"{newest.name}: not a whole training state" in output
    assert "continues at kimg 1." in output
    assert clone.models() == finished.models()


def test_a_finished_run_is_published_again(copy: Copy, finished: Clone) -> None:
    """As after a SIGKILL between the last state and DVC's own bookkeeping."""
    clone = copy()
    runs = clone.path / "kept"
    (clone.path / "runs").rename(runs)
    start_over(clone)
    runs.rename(clone.path / "runs")
    output = clone.dvc("repro", "train")
    assert "was reached before; nothing to train" in output
    assert clone.models() == finished.models()
    assert clone.kimgs() == finished.kimgs()


def test_another_best_by_never_publishes_what_another_metric_chose(copy: Copy) -> None:
    clone = copy()
    clone.set(train__best_by="kid")
    output = clone.stage("train")
    assert "the kept snapshots were chosen by fd_standin, not by kd_standin" in output
    best, last = (clone.path / "models" / f"{name}.safetensors" for name in ("best", "last"))
    assert best.read_bytes() == last.read_bytes()
    clone.set(train__total_kimg=3)  # where training goes on, it is chosen again
    assert "train: best kd_standin" in clone.stage("train")


def test_a_lowered_total_gives_what_it_would_have_given(copy: Copy, finished: Clone) -> None:
    lowered, direct = copy("lowered"), copy("direct")
    lowered.set(train__total_kimg=1)
    shutil.rmtree(lowered.path / "results" / "train")  # as DVC does before it runs the stage
    assert "starts, ends at kimg 1\n" in lowered.stage("train")  # the kept states are later
    start_over(direct)
    direct.set(train__total_kimg=1)
    direct.stage("train")
    assert lowered.models() == direct.models()
    assert lowered.kimgs() == direct.kimgs()
    names = [
        sorted(path.name for path in (clone.path / "results/train/grids").iterdir()) for clone in (lowered, direct)
    ]
    assert names[0] == names[1]
    lowered.set(train__total_kimg=2)
    assert "was reached before" in lowered.stage("train")
    assert lowered.models() == finished.models()
    assert lowered.kimgs() == finished.kimgs()


def test_two_trainers_of_one_run_take_turns(copy: Copy, finished: Clone) -> None:
    clone = copy()
    start_over(clone)
    first = clone.start(sys.executable, "-m", "stages.train")
    wait_for(lambda: len(clone.states()) >= 1, first)
    second = clone.stage("train")
    assert f"is in use by process {first.pid} on " in second
    first.communicate(timeout=60)
    assert first.returncode == 0
    assert "was reached before; nothing to train" in second
    assert clone.models() == finished.models()


def test_changed_code_stops_before_the_first_step(copy: Copy) -> None:
    clone = copy()
    models = clone.models()
    with (clone.path / "ganops" / "training" / "ema.py").open("a") as file:
        file.write("\n# a remark\n")
    clone.set(train__total_kimg=2.5)
    output = clone.stage("train", ok=False)
    assert "the code changed since this run reached kimg 2: ganops.training.ema" in output
    assert "run.fresh" in output
    assert clone.models() == models
    digest = output.split("run.accept_code: ")[1].split()[0]
    clone.set(run__accept_code=digest)
    output = clone.stage("train")
    assert "continuing with changed code" in output
    assert "continues at kimg 2" in output
    clone.set(run__accept_code="", train__total_kimg=3)
    assert "continues at kimg 2.52" in clone.stage("train")
    header = (clone.path / "models" / "last.safetensors").read_bytes()[:20_000]
    assert b"accepted_code" in header
    assert b"ganops.training.ema" in header


@pytest.mark.parametrize("change", [{"run__fresh": 1}, {"train__G_lr": 0.001}])
def test_fresh_and_other_values_never_continue_from_old_state(copy: Copy, change: dict[str, float]) -> None:
    """tests/unit/test_run.py goes through all keys."""
    clone = copy()
    clone.set(train__total_kimg=0.5, train__image_kimg=0, train__metric_kimg=0, train__snapshot_kimg=0, **change)
    assert "train: starts, ends at kimg 0.52" in clone.stage("train")


def test_other_data_never_continues_from_stale_state(copy: Copy) -> None:
    clone = copy()
    index = Path(clone.path / "data" / "shards" / "index.json")
    clone.set(prepare__resize_filter="box")
    clone.stage("prepare")
    assert index.exists()
    output = clone.stage("train", ok=False)
    assert "data_digest" in output
    assert "dvc repro" in output
