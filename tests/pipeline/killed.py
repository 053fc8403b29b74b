"""Kills the train stage again and again in the current folder: `python -m tests.pipeline.killed KILLS SEED`.

Each attempt is a fork of this process, which has imported torch already, and runs what `python -m stages.train` runs;
so an attempt costs tenths of a second, and a test can afford many. What happened is printed as one line of JSON.
"""

import csv
import ctypes
import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import safetensors.torch
import torch
import torch._dynamo  # two seconds, at the first torch.optim of a process
from safetensors import safe_open

from ganops.entry import run_stage
from ganops.training import state as state_module
from ganops.training.state import read_state
from stages import train
from tests.pipeline.clone import Clone

LOG = Path("../attempts.log")
POLL_SEC = 0.001
SLOW_SEC = 5.0  # how long half a state lies there in a slow attempt, unless it is killed
MOST_ATTEMPTS = 100


@dataclass(frozen=True)
class Attempt:
    """One start of the stage.

    Attributes:
        way: what decided when to kill it: random, writing, publishing; or none.
        phase: what it was killed in: start, training, writing, publishing; or ended, by itself.
        seconds: how long it lived.
        started: seconds until it had a state to go on from; None if it did not come so far.
        states: whole states afterwards.
    """

    way: str
    phase: str
    seconds: float
    started: float | None
    states: int


@dataclass
class Life:
    """A running attempt: seconds since its start, and since it said where it goes on from."""

    pid: int
    seconds: float = 0.0
    started: float | None = None

    @property
    def seconds_begun(self) -> float:
        return -1.0 if self.started is None else self.seconds - self.started


def main(kills: int, seed: int) -> None:
    """Measures a whole run, then trains in the same way under kills, over and over until there were enough of them."""
    torch.set_num_threads(1)
    clone, rng = Clone(Path.cwd()), random.Random(seed)
    forget(clone)
    whole = attempt(clone, "none", never)
    undisturbed = clone.models()
    attempts: list[Attempt] = []
    results = []
    while sum(each.phase != "ended" for each in attempts) < kills:
        forget(clone)
        attempts += train_under_kills(clone, rng, whole)
        attempts += publish_under_kills(clone, rng)
        results.append(clone.models())
    report = {
        "whole": asdict(whole),
        "undisturbed": undisturbed,
        "results": results,
        "attempts": [asdict(each) for each in attempts],
    }
    print(json.dumps(report), flush=True)


def never(life: Life) -> bool:
    return False


def train_under_kills(clone: Clone, rng: random.Random, whole: Attempt) -> list[Attempt]:
    """Attempts until one ends by itself, in turn killed at the start, in steps and ticks, or over half a state."""
    assert whole.started is not None
    attempts: list[Attempt] = []
    while not attempts or attempts[-1].phase != "ended":
        assert len(attempts) < MOST_ATTEMPTS
        number = len(attempts)
        if number % 5 == 0:
            moment = rng.uniform(0, whole.started)
            attempts.append(attempt(clone, "random", lambda life, moment=moment: life.seconds > moment))
        elif number % 5 == 2 and number < 15:
            attempts.append(attempt(clone, "writing", lambda life: state_temporary(clone, life.pid)))
        else:  # counted from the first step: on a busy machine the start may take any time
            moment = rng.uniform(0, (whole.seconds - whole.started) / 5)
            attempts.append(attempt(clone, "random", lambda life, moment=moment: life.seconds_begun > moment))
    return attempts


def publish_under_kills(clone: Clone, rng: random.Random) -> list[Attempt]:
    """Once trained, an attempt only publishes: killed at the first file, at random moments, and at last not."""
    models = clone.path / "models"
    empty_outputs(clone)
    attempts = [attempt(clone, "none", never)]
    for _ in range(4):
        empty_outputs(clone)
        moment = rng.uniform(0, attempts[0].seconds - (attempts[0].started or 0.0))
        attempts.append(attempt(clone, "random", lambda life, moment=moment: life.seconds_begun > moment))
    empty_outputs(clone)
    attempts.append(attempt(clone, "publishing", lambda life: models.exists()))
    return [*attempts, attempt(clone, "none", never)]


def attempt(clone: Clone, way: str, is_due: Callable[[Life], bool]) -> Attempt:
    """Starts the stage, kills it as soon as it is due, and looks at what is left."""
    LOG.write_text("")
    pid = os.fork()
    if pid == 0:
        run_child(slow=way == "writing")
    life, phase, born = Life(pid), "ended", time.monotonic()
    while True:
        life.seconds = time.monotonic() - born
        if life.started is None and has_begun():
            life.started = life.seconds
        gone, status = os.waitpid(pid, os.WNOHANG)
        if gone:
            break
        if is_due(life):
            phase = phase_of(clone, life)
            os.kill(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            break
        time.sleep(POLL_SEC)
    if os.WIFEXITED(status):  # by itself, perhaps just before the kill
        phase = "ended"
        assert os.WEXITSTATUS(status) == 0, LOG.read_text()
    check_files(clone)
    return Attempt(way, phase, life.seconds, life.started, len(clone.states()))


def check_files(clone: Clone) -> None:
    """Fails if a file that has its final name is not whole: models, states, snapshots and what is written of them."""
    runs = [path for kind in ("states", "best", "snapshots") for path in (clone.path / "runs").glob(f"*/{kind}/*")]
    for path in [*(clone.path / "models").rglob("*"), *runs]:
        if path.name.startswith(".") or path.is_dir():
            continue
        if path.suffix == ".json":
            json.loads(path.read_bytes())
            continue
        with safe_open(path, framework="pt") as file:
            assert all(file.get_tensor(name) is not None for name in file.keys())  # noqa: SIM118  (not a dict)
        if path.parent.name == "states" or path.name == "state.safetensors":
            read_state(path)
    for path in (clone.path / "runs").glob("*/history.csv"):
        widths = {len(row) for row in csv.reader(path.read_text().splitlines())}
        assert len(widths) == 1, path


def run_child(slow: bool) -> None:
    """What `python -m stages.train` does, in a forked process; never returns."""
    code = 1
    try:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: ends with the driver
        log = os.open(LOG, os.O_WRONLY | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if slow:
            state_module.save_file = save_slowly
        run_stage("train", train.main, train.most_ranks)
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def save_slowly(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
    """safetensors' save_file, but half of the file lies there for a while."""
    content = safetensors.torch.save(tensors, metadata)
    with path.open("wb") as file:
        file.write(content[: len(content) // 2])
        file.flush()
        time.sleep(SLOW_SEC)
        file.write(content[len(content) // 2 :])


def has_begun() -> bool:
    """Whether the attempt has said where it goes on from."""
    text = LOG.read_text()
    return "train: starts" in text or "train: continues" in text or "was reached before" in text


def state_temporary(clone: Clone, pid: int) -> bool:
    """Whether this attempt is writing a state. An earlier one may have left a file of its own."""
    return any((clone.path / "runs").glob(f"*/states/.*.safetensors.{pid}.tmp"))


def phase_of(clone: Clone, life: Life) -> str:
    if not has_begun():
        return "start"
    if (clone.path / "models").exists():
        return "publishing"
    return "writing" if state_temporary(clone, life.pid) else "training"


def empty_outputs(clone: Clone) -> None:
    """As DVC does before it runs the stage."""
    for name in ("models", "results/train"):
        shutil.rmtree(clone.path / name, ignore_errors=True)


def forget(clone: Clone) -> None:
    """As if nothing had been trained."""
    clone.remove_runs()
    empty_outputs(clone)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
