"""Losses that are not finite or out of proportion: stop with the last good state named, or go back to it and on.

The whole of `train` runs in this process, on forty tiny images; a fault is put into the loss of G.
"""

import csv
import hashlib
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ganops.config import Params, RunParams, load_params
from ganops.errors import Interrupted, RunError
from ganops.images.shards import ShardWriter
from ganops.networks.snapshot import load_snapshot
from ganops.training import loop, step
from ganops.training.job import Outputs
from ganops.training.losses import Latents, PhaseLoss
from ganops.training.run import RunDirectory
from ganops.training.state import TrainingState, read_state, read_state_metadata
from tests.unit.tiny import ROOT, tiny_params

# A batch is 8: ticks at 40, 80, ... 200; from nimg 100 on the fault. Two bad steps have ended at the tick of 120.
TRAIN: dict[str, Any] = {
    "total_kimg": 0.2, "tick_kimg": 0.04, "image_kimg": 0.0, "snapshot_kimg": 0.04, "metric_kimg": 0.0,
    "max_nonfinite_steps": 1, "batch_gpu": 8, "pl_interval": 8,
}  # fmt: skip
RUN: dict[str, Any] = {"device": "cpu", "cpu_threads": 1, "gpus": "auto", "state_kimg": 0.04, "keep_states": 2}
FAULT_NIMG, FOUND_NIMG = 100, 120

Condition = Callable[[TrainingState], bool]


def first_stream(state: TrainingState) -> bool:
    """A fault that only the first random stream meets."""
    return state.nimg >= FAULT_NIMG and not state.retries


def always(state: TrainingState) -> bool:
    return state.nimg >= FAULT_NIMG


def write_shards(folder: Path, resolution: int = 8, classes: int = 3) -> None:
    """Forty random images in two shards."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, [40, 1, resolution, resolution], np.uint8)
    names = tuple("abcdefgh"[:classes])
    with ShardWriter(folder, 20, resolution, 1, names, {}) as writer:
        writer.append(images, np.arange(40, dtype=np.int64) % max(classes, 1))
        writer.close({})


def all_params(run: dict[str, Any] | None = None, **train: Any) -> Params:
    """A whole params.yaml for `tiny_params`; `run` and `train` are changes to its sections."""
    params = load_params(ROOT / "params.yaml")
    prepare = params.prepare.model_copy(update={"resolution": 8, "channels": 1})
    section = RunParams.model_validate(params.run.model_dump() | RUN | (run or {}))
    return params.model_copy(update={"prepare": prepare, "train": tiny_params(**(TRAIN | train)), "run": section})


class Trainer:
    """Calls `train` as often as wanted in this process. Each `name` is a repository of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.locks: list[int] = []
        open_run = loop.open_run

        def opened(*args: Any) -> RunDirectory:
            run = open_run(*args)
            self.locks.append(run.lock)
            return run

        monkeypatch.setattr(loop, "open_run", opened)

    def __call__(self, name: str, params: Params) -> None:
        root = self.folder / name
        models = root / "models"
        outputs = Outputs(
            models / "last.safetensors", models / "best.safetensors", models / "best", models / "state.safetensors",
            root / "results",
        )  # fmt: skip
        try:
            loop.train(params, self.folder / "shards", self.folder / "stats.npz", outputs, root)
        finally:
            for thread in threading.enumerate():
                if thread.name == "state":  # of a "killed" training: what it writes is whole or has a temporary name
                    thread.join()
            for lock in self.locks:  # the end of a process would free them
                os.close(lock)
            self.locks.clear()

    def models(self, name: str) -> dict[str, str]:
        """sha256 of what is published."""
        paths = sorted((self.folder / name / "models").rglob("*.safetensors"))
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}

    def rows(self, name: str) -> list[dict[str, str]]:
        """history.csv without what a clock measures."""
        with (self.folder / name / "results" / "history.csv").open() as file:
            rows = list(csv.DictReader(file))
        return [{key: row[key] for key in row if not key.endswith(("_gb", "sec_per_kimg"))} for row in rows]

    def run_path(self, name: str) -> Path:
        (path,) = (self.folder / name / "runs").iterdir()
        return path

    def states(self, name: str) -> list[int]:
        return sorted(int(path.stem) for path in (self.run_path(name) / "states").glob("*.safetensors"))


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Trainer]:
    """`train` in this process, which gets its signals and its threads back."""
    write_shards(tmp_path / "shards")
    monkeypatch.chdir(tmp_path)  # away from this repository's own dvc.lock and cache
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    deterministic = torch.are_deterministic_algorithms_enabled()
    yield Trainer(tmp_path, monkeypatch)
    torch.use_deterministic_algorithms(deterministic)
    for number, handler in handlers.items():
        signal.signal(number, handler)


class Fault:
    """Spoils the loss of G while `when` holds, stops training once where it is told to, and remembers the draws.

    Attributes:
        when: in which states a step's loss is spoilt.
        gain: by what the loss is multiplied.
        stops: (roll-backs so far, nimg) -> "SIGTERM", "kill": what to do before that step, once.
        draws: (roll-backs so far, nimg) -> the first latents of that step.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, when: Condition, gain: float = math.nan) -> None:
        self.when = when
        self.gain = gain
        self.stops: dict[tuple[int, int], str] = {}
        self.draws: dict[tuple[int, int], Tensor] = {}
        self.state: TrainingState | None = None
        self.real_step, self.real_loss = loop.train_step, step.gmain_loss
        monkeypatch.setattr(loop, "train_step", self._step)
        monkeypatch.setattr(step, "gmain_loss", self._loss)

    def _step(self, state: TrainingState, *args: Any) -> None:
        self.state = state
        way = self.stops.pop((len(state.retries), state.nimg), "")
        if way == "kill":
            raise KeyboardInterrupt
        if way == "SIGTERM":
            os.kill(os.getpid(), signal.SIGTERM)
        self.real_step(state, *args)

    def _loss(self, G: Any, D: Any, latents: Latents, *args: Any) -> PhaseLoss:
        assert self.state is not None
        result = self.real_loss(G, D, latents, *args)
        self.draws.setdefault((len(self.state.retries), self.state.nimg), latents.z)
        if not self.when(self.state):
            return result
        stats = {name: value * self.gain for name, value in result.stats.items()}
        return PhaseLoss(result.loss * self.gain, stats, result.w_mean, result.pl_length_mean)


def test_without_rollbacks_it_stops_and_names_the_last_good_state(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    Fault(monkeypatch, always)
    with pytest.raises(RunError, match="gradients were not finite in 2 steps in a row") as error:
        trainer("one", all_params())
    good = trainer.run_path("one") / "states" / "000000080.safetensors"
    assert f"The last good state is {good}; nothing was overwritten." in str(error.value)
    assert "train.rollbacks: 2" in str(error.value)
    assert "\n" not in str(error.value)
    assert trainer.states("one") == [40, 80]
    for nimg in (40, 80):
        read_state(good.with_name(f"{nimg:09d}.safetensors"))
    assert all(bool(torch.isfinite(tensor).all()) for tensor in read_state(good).tensors.values())
    assert not (trainer.folder / "one" / "models").exists()
    assert [row["nimg"] for row in trainer.rows("one")] == ["40", "80"]


def test_a_cured_fault_goes_on_from_the_last_good_state(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failed attempt leaves nothing behind: the result is that of a run that never had a fault."""
    fault = Fault(monkeypatch, always)
    with pytest.raises(RunError, match="last good state"):
        trainer("one", all_params())
    fault.when = lambda state: False
    trainer("one", all_params())
    trainer("other", all_params())
    assert trainer.models("one") == trainer.models("other")
    assert trainer.rows("one") == trainer.rows("other")


def test_a_loss_out_of_proportion_stops(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Finite gradients, so only train.max_loss notices; at the tick, whose mean holds three good steps too."""
    Fault(monkeypatch, always, gain=1e6)
    with pytest.raises(RunError, match=r"mean G_loss is .*e\+05 \(train\.max_loss=1000\)") as error:
        trainer("one", all_params(max_loss=1000.0))
    assert "000000080.safetensors" in str(error.value)
    trainer("other", all_params(max_loss=1e9))  # the user's choice


def test_a_rollback_takes_another_stream_and_is_recorded(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A fault of one random stream is survived; states, snapshots and history tell of it and of nothing given up."""
    fault = Fault(monkeypatch, first_stream)
    trainer("one", all_params(rollbacks=2))
    said = capsys.readouterr().out
    assert said.count("Roll-back 1 of 2: on from kimg 0.08") == 1
    assert "Roll-back 2" not in said

    metadata = read_state_metadata(trainer.folder / "one" / "models" / "state.safetensors")
    (retry,) = metadata["retries"]
    assert (retry["failed_nimg"], retry["nimg"]) == (FOUND_NIMG, 80)
    assert "gradients were not finite in 2 steps in a row" in retry["reason"]
    _, of_last = load_snapshot(trainer.folder / "one" / "models" / "last.safetensors")
    assert of_last["retries"] == metadata["retries"]
    snapshots = {path.stem: load_snapshot(path)[1] for path in (trainer.run_path("one") / "snapshots").iterdir()}
    assert {int(name): len(of["retries"]) for name, of in snapshots.items()} == {120: 1, 160: 1, 200: 1}

    for nimg in (80, 88, 96):
        assert not torch.equal(fault.draws[0, nimg], fault.draws[1, nimg])
    assert (1, 72) not in fault.draws  # what was good is not trained again
    rows = trainer.rows("one")
    assert [row["nimg"] for row in rows] == ["40", "80", "120", "160", "200"]
    assert all(row["nonfinite_steps"] == "0" and row["G_loss"] != "nan" for row in rows)
    kept, shown = (trainer.run_path("one") / "history.csv").read_bytes(), trainer.folder / "one" / "results"
    assert (shown / "history.csv").read_bytes() == kept

    trainer("again", all_params(rollbacks=2))
    assert trainer.models("again") == trainer.models("one")
    assert trainer.rows("again") == rows
    fault.when = lambda state: False
    trainer("healthy", all_params(rollbacks=2))
    assert trainer.models("healthy") != trainer.models("one")
    assert trainer.rows("healthy")[:2] == rows[:2]


STOPS: tuple[dict[tuple[int, int], str], ...] = (
    {(1, 80): "kill"},
    {(1, 80): "SIGTERM"},
    {(1, 136): "SIGTERM", (1, 152): "kill"},
    {(0, 112): "SIGTERM"},
)


def test_stopped_around_a_rollback_and_resumed(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Right after the roll-back, later, and in the middle of the fault: the same bytes as without a stop."""
    fault = Fault(monkeypatch, first_stream)
    trainer("whole", all_params(rollbacks=1))
    for number, stops in enumerate(STOPS):
        name = f"stopped{number}"
        for stop, way in stops.items():
            fault.stops = {stop: way}
            with pytest.raises(KeyboardInterrupt if way == "kill" else Interrupted):
                trainer(name, all_params(rollbacks=1))
        trainer(name, all_params(rollbacks=1))
        assert trainer.models(name) == trainer.models("whole"), stops
        assert trainer.rows(name) == trainer.rows("whole"), stops


def test_a_fault_that_stays_is_given_up_after_n_rollbacks(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each attempt has a stream of its own; what is left is good; the same command once more says the same."""
    fault = Fault(monkeypatch, always)
    for _ in range(2):
        with pytest.raises(RunError, match=r"after 2 roll-backs\. The last good state is .*/000000080\.safet") as error:
            trainer("one", all_params(rollbacks=2))
        assert "train.rollbacks: 2" not in str(error.value)  # it has been tried
    assert capsys.readouterr().out.count("WARNING: nimg 120: gradients were not finite") == 2
    draws = [fault.draws[number, 80] for number in range(3)]
    assert not any(torch.equal(draws[one], draws[other]) for one, other in ((0, 1), (0, 2), (1, 2)))
    good = read_state(trainer.run_path("one") / "states" / "000000080.safetensors")
    assert [retry["nimg"] for retry in good.metadata["retries"]] == [80, 80]
    assert [row["nimg"] for row in trainer.rows("one")] == ["40", "80"]
    fault.when = lambda state: state.nimg >= FAULT_NIMG and len(state.retries) < 3
    trainer("one", all_params(rollbacks=3))  # raising it goes on from there
    assert len(read_state_metadata(trainer.folder / "one" / "models" / "state.safetensors")["retries"]) == 3


@pytest.mark.parametrize("stop", ["", "kill"])
def test_without_a_good_state_it_starts_again_with_another_stream(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    """A fault before the first state: from the initial weights, whose own draws do not change; also when killed then."""
    fault = Fault(monkeypatch, lambda state: not state.retries)
    if stop:
        fault.stops = {(1, 0): stop}
        with pytest.raises(KeyboardInterrupt):
            trainer("one", all_params(rollbacks=1))
    trainer("one", all_params(rollbacks=1))
    (retry,) = read_state_metadata(trainer.folder / "one" / "models" / "state.safetensors")["retries"]
    assert (retry["failed_nimg"], retry["nimg"]) == (40, 0)
    assert [row["nimg"] for row in trainer.rows("one")] == ["40", "80", "120", "160", "200"]
    assert not torch.equal(fault.draws[0, 0], fault.draws[1, 0])
    with pytest.raises(RunError, match="The last good state is the initial one, at kimg 0"):
        trainer("other", all_params())


@pytest.mark.parametrize("stops", [(72,), (64, 72)], ids=str)
def test_a_state_saved_by_an_interruption_is_not_rolled_back_to(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch, stops: tuple[int, ...]
) -> None:
    """Due are 64 and 128 only. However often the run was interrupted before the tick of 80, it goes back to 64.

    Or its numbers would depend on when somebody pressed Ctrl-C, and with many interruptions on run.keep_states.
    """
    run = {"state_kimg": 0.064}
    fault = Fault(monkeypatch, first_stream)
    trainer("whole", all_params(run, rollbacks=1))
    for nimg in stops:
        fault.stops = {(0, nimg): "SIGTERM"}
        with pytest.raises(Interrupted):
            trainer("stopped", all_params(run, rollbacks=1))
        assert nimg + 8 in trainer.states("stopped")
    trainer("stopped", all_params(run, rollbacks=1))
    for name in ("whole", "stopped"):
        (retry,) = read_state_metadata(trainer.folder / name / "models" / "state.safetensors")["retries"]
        assert (name, retry["nimg"]) == (name, 64)
    assert trainer.models("stopped") == trainer.models("whole")
    assert trainer.rows("stopped") == trainer.rows("whole")


def test_a_good_state_is_kept_when_states_are_more_frequent_than_ticks(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tick of 40 with a state every 16: at the tick that finds the fault, run.keep_states of 2 hold 96 and 112 only.

    Both are younger than the last tick in which all was well.
    """
    Fault(monkeypatch, lambda state: state.nimg >= 112 and not state.retries)
    trainer("one", all_params({"state_kimg": 0.016}, max_nonfinite_steps=0, rollbacks=1))
    (retry,) = read_state_metadata(trainer.folder / "one" / "models" / "state.safetensors")["retries"]
    assert (retry["failed_nimg"], retry["nimg"]) == (FOUND_NIMG, 80)


def test_states_of_the_course_that_was_given_up_are_gone(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """States at 96 and 112 are younger than the good one at 80: killed after the roll-back, nothing goes on from them."""
    fault = Fault(monkeypatch, lambda state: state.nimg >= 112 and not state.retries)
    params = all_params({"state_kimg": 0.016, "keep_states": 8}, max_nonfinite_steps=0, rollbacks=1)
    trainer("whole", params)
    fault.stops = {(1, 88): "kill"}
    with pytest.raises(KeyboardInterrupt):
        trainer("stopped", params)
    assert trainer.states("stopped") == [16, 32, 48, 64, 80]
    trainer("stopped", params)
    assert trainer.models("stopped") == trainer.models("whole")
    assert trainer.rows("stopped") == trainer.rows("whole")
