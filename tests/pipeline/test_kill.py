"""SIGKILL at any moment, then the same command: training ends with the same bytes, and no file is ever damaged."""

import csv
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

from tests.pipeline.clone import TIMEOUT_SEC, Clone, ranks, survivors, trainers, wait_for
from tests.pipeline.killed import check_files
from tests.pipeline.test_resume import start_over

Copy = Callable[..., Clone]
TRAIN = (sys.executable, "-m", "stages.train")


def losses(clone: Clone) -> list[tuple[str, ...]]:
    """kimg and losses of each row of the history, as they are written."""
    with (clone.path / "results" / "train" / "history.csv").open(newline="") as file:
        return [(row["kimg"], row["G_loss"], row["D_loss"]) for row in csv.DictReader(file)]


def assert_equal_results(clone: Clone, finished: Clone) -> None:
    assert clone.models() == finished.models()
    assert losses(clone) == losses(finished)


def newest_nimg(clone: Clone) -> int:
    return max((int(path.stem) for path in clone.states()), default=0)


@pytest.mark.slow
def test_twenty_kills_at_random_moments(copy: Copy, finished: Clone) -> None:
    """While it starts, steps, writes a state and publishes; after each kill every file was whole (killed.py looks)."""
    clone = copy()
    start_over(clone)
    output = clone.run(sys.executable, "-m", "tests.pipeline.killed", "20", "0", timeout_sec=2 * TIMEOUT_SEC)
    report = json.loads(output.splitlines()[-1])
    killed = [attempt for attempt in report["attempts"] if attempt["phase"] != "ended"]
    assert len(killed) >= 20
    for phase, least in (("start", 2), ("training", 5), ("writing", 3), ("publishing", 1)):
        assert sum(attempt["phase"] == phase for attempt in killed) >= least, killed
    assert sum(attempt["states"] > 0 for attempt in killed) >= 10
    assert report["undisturbed"] == finished.models()
    assert all(result == finished.models() for result in report["results"])
    assert_equal_results(clone, finished)


@pytest.mark.slow
def test_kills_of_ranks_and_of_their_launcher(copy: Copy, finished: Clone) -> None:
    """World size 2: nothing survives, the message names the rank, and the result has world size 1's bytes."""
    clone = copy()
    start_over(clone)
    clone.set(run__gpus=2)
    rng = random.Random(0)
    for kill, victim in enumerate([0, *[0, 1, "launcher"] * 2]):
        before = newest_nimg(clone)
        process = clone.start(*TRAIN)
        wait_for(lambda: len(ranks(clone)) == 2, process)
        if kill == 0:  # while rank 1 waits for what rank 0 reads
            wait_for(lambda: any(clone.path.glob("runs/*/owner")), process)
        elif kill < 4:  # while they import torch, meet, or have just begun
            time.sleep(rng.uniform(0, 4))
        else:
            wait_for(lambda before=before: newest_nimg(clone) > before, process)  # type: ignore[misc]
            time.sleep(rng.uniform(0, 0.5))
        os.kill(process.pid if victim == "launcher" else ranks(clone)[victim], signal.SIGKILL)
        output, _ = process.communicate(timeout=TIMEOUT_SEC)
        wait_for(lambda: not survivors(clone))
        check_files(clone)
        if victim == "launcher":
            assert process.returncode == -signal.SIGKILL
        else:
            assert process.returncode == 1
            assert re.search(rf"(?m)^train: rank {victim} on \S+ was killed by SIGKILL", output), output
    clone.stage("train")
    assert_equal_results(clone, finished)


def forget_training(clone: Clone) -> None:
    """As `start_over`, but the stages after it stay recorded: `dvc exp apply` looks for the outputs of all."""
    path = clone.path / "dvc.lock"
    stages = yaml.safe_load(path.read_text())["stages"]
    start_over(clone)
    lock = yaml.safe_load(path.read_text())
    lock["stages"] |= {name: stages[name] for name in ("sample", "fid")}
    path.write_text(yaml.safe_dump(lock))


@pytest.mark.slow
def test_sigkill_under_exp_run_temp(copy: Copy, finished: Clone) -> None:
    """The run directory is the parent repository's, so what the temporary copy had reached is not lost with it."""
    clone = copy()
    forget_training(clone)
    command = ("exp", "run", "--temp", "train")
    process = clone.start("dvc", *command)
    wait_for(lambda: newest_nimg(clone) > 500, process)
    for pid in trainers(clone):
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=TIMEOUT_SEC)
    assert process.returncode != 0
    reached = newest_nimg(clone)
    assert reached < 2000
    output = clone.dvc(*command)
    assert f"continues at kimg {reached / 1000:g}" in output
    match = re.search(r"Ran experiment\(s\): (\S+)", output)
    assert match is not None, output
    clone.dvc("exp", "apply", match[1])
    assert_equal_results(clone, finished)


def queue_state(clone: Clone, name: str) -> str:
    """What `dvc queue status` says of an experiment: Queued, Running, Failed or Success."""
    for line in clone.dvc("queue", "status").splitlines():
        words = line.split()
        if name in words:
            return words[-1]
    return ""


def start_queue(clone: Clone) -> None:
    """Not through a pipe: the worker inherits it, and reading to its end would wait for the queue's."""
    clone.run("sh", "-c", "exec dvc queue start -j 1 >>../queue.log 2>&1")


@pytest.mark.slow
def test_sigkill_in_the_queue(copy: Copy, finished: Clone) -> None:
    clone = copy()
    forget_training(clone)
    clone.dvc("exp", "run", "--queue", "--name", "first", "train")
    start_queue(clone)
    wait_for(lambda: newest_nimg(clone) > 500)
    for pid in trainers(clone):
        os.kill(pid, signal.SIGKILL)
    wait_for(lambda: queue_state(clone, "first") == "Failed")
    reached = newest_nimg(clone)
    assert reached < 2000
    clone.dvc("exp", "run", "--queue", "--name", "second", "train")
    start_queue(clone)
    wait_for(lambda: queue_state(clone, "second") in ("Success", "Failed"))
    assert f"continues at kimg {reached / 1000:g}" in clone.dvc("queue", "logs", "second")
    clone.dvc("exp", "apply", "second")
    assert_equal_results(clone, finished)
    clone.dvc("queue", "stop", "--kill")
    wait_for(lambda: not survivors(clone))


def interrupt(clone: Clone, process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Waits until it has trained a little, then sends a signal to the stage alone, and waits for its end."""
    before = newest_nimg(clone)
    wait_for(lambda: newest_nimg(clone) > before, process)
    process.send_signal(number)
    output, _ = process.communicate(timeout=TIMEOUT_SEC)
    assert process.returncode == 128 + number, output
    assert "the same command continues" in output


@pytest.mark.slow
def test_interrupted_twice_then_extended(copy: Copy, finished: Clone) -> None:
    """Equal to the run that was asked for the whole length at once."""
    clone = copy()
    start_over(clone)
    clone.set(train__total_kimg=1)
    for _ in range(2):
        interrupt(clone, clone.start(*TRAIN), signal.SIGINT)
    assert newest_nimg(clone) < 1000
    assert "ends at kimg 1\n" in clone.stage("train")
    clone.set(train__total_kimg=2)
    assert "continues at kimg 1, ends at kimg 2" in clone.stage("train")
    assert_equal_results(clone, finished)


def largest_difference(one: Path, other: Path) -> float:
    """Over all tensors: the largest difference, relative to the largest value of the tensor."""
    ours, theirs = load_file(one), load_file(other)
    assert ours.keys() == theirs.keys()
    worst = 0.0
    for name, value in theirs.items():
        scale = float(value.abs().max())
        difference = float((ours[name] - value).abs().max())
        worst = max(worst, difference / scale if scale else difference)
    return worst


@pytest.mark.slow
def test_resumed_at_another_world_size(copy: Copy, record_property: Callable[[str, object], None]) -> None:
    """1 -> 2 -> 1 ranks, stopped by SIGTERM: equal to rounding, since with five micro-batches sums group otherwise."""
    clone, straight = copy(), copy("straight")
    for each in (clone, straight):
        start_over(each)
        each.set(train__batch_gpu=8, train__total_kimg=1, train__metric_kimg=0)
    straight.stage("train")
    for count in (1, 2):
        clone.set(run__gpus=count)
        interrupt(clone, clone.start(*TRAIN), signal.SIGTERM)
    clone.set(run__gpus=1)
    assert "ends at kimg 1\n" in clone.stage("train")
    name = "models/last.safetensors"
    difference = largest_difference(clone.path / name, straight.path / name)
    record_property("largest_relative_difference", difference)
    assert difference < 1e-3
    assert clone.kimgs() == straight.kimgs()
