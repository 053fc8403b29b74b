"""However a run is ended, nothing of it survives, nothing hangs, and DVC does not take it for done."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
import yaml

from tests.pipeline.clone import TIMEOUT_SEC, Clone, ranks, survivors, trainers, wait_for
from tests.pipeline.test_kill import queue_state, start_queue
from tests.pipeline.test_resume import start_over

Copy = Callable[..., Clone]
TRAIN = (sys.executable, "-m", "stages.train")


def prepare(clone: Clone, gpus: int) -> None:
    """Nothing trained yet; no state is saved unless a signal asks for it, and there is time to send one."""
    start_over(clone)
    clone.set(run__gpus=gpus, run__state_kimg=1000, train__total_kimg=20)


def wait_until_training(clone: Clone, process: subprocess.Popen[str] | None = None) -> None:
    """Until every rank has made steps: a row is in the run directory, and no state yet."""
    wait_for(lambda: any(path.read_text().count("\n") > 1 for path in clone.path.glob("runs/*/history.csv")), process)
    assert trainers(clone)
    assert not clone.states()


def assert_not_done(clone: Clone) -> None:
    """DVC has recorded nothing, and would run the stage again."""
    assert "train" not in yaml.safe_load((clone.path / "dvc.lock").read_text())["stages"]
    assert "Running stage 'train'" in clone.dvc("repro", "--dry", "train")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "gpus"),
    [("Ctrl-C", 1), ("Ctrl-C", 2), ("SIGTERM to dvc", 1), ("SIGKILL to dvc", 1), ("SIGKILL to dvc", 2)],
)
def test_dvc_repro_ends_with_all_its_processes(copy: Copy, way: str, gpus: int) -> None:
    """And the trainer, whose parent is gone, saves first: the kernel tells it once for each thread that dvc had."""
    clone = copy()
    prepare(clone, gpus)
    process = clone.start("dvc", "repro", "train")
    wait_until_training(clone, process)
    assert len(ranks(clone)) == (gpus if gpus > 1 else 0)
    if way == "Ctrl-C":
        os.killpg(process.pid, signal.SIGINT)
    else:
        os.kill(process.pid, signal.SIGTERM if "SIGTERM" in way else signal.SIGKILL)
    output, _ = process.communicate(timeout=TIMEOUT_SEC)  # the trainers have its output open: this waits for them too
    wait_for(lambda: not survivors(clone))
    assert process.returncode != 0
    assert len(re.findall(r"(?m)^train: .*the same command continues from it", output)) == 1, output
    assert len(clone.states()) == 1
    assert_not_done(clone)


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--force"]])
def test_queue_kill_ends_the_trainer(copy: Copy, options: list[str]) -> None:
    clone = copy()
    prepare(clone, 1)
    clone.dvc("exp", "run", "--queue", "--name", "doomed", "train")
    start_queue(clone)
    wait_until_training(clone)
    clone.dvc("queue", "kill", *options, "doomed")
    wait_for(lambda: not trainers(clone))
    assert len(clone.states()) == 1
    wait_for(lambda: queue_state(clone, "doomed") == "Failed")
    assert "doomed" not in clone.dvc("exp", "list", "--name-only")
    assert_not_done(clone)
    clone.dvc("queue", "stop", "--kill")
    wait_for(lambda: not survivors(clone))


@pytest.mark.slow
def test_a_rank_that_hangs_is_given_up(copy: Copy) -> None:
    """The others notice by themselves, within a minute: stopped by SIGSTOP it keeps its connections open."""
    clone = copy()
    prepare(clone, 2)
    process = clone.start(*TRAIN)
    wait_until_training(clone, process)
    pid = ranks(clone)[1]
    os.kill(pid, signal.SIGSTOP)
    output, _ = process.communicate(timeout=TIMEOUT_SEC)
    wait_for(lambda: not survivors(clone))
    assert process.returncode == 1
    said = re.findall(r"(?m)^.*sign of life.*$", output)
    assert len(said) == 1, output
    assert re.match(rf"train: rank 1 \(\S+, process {pid}\) has given no sign of life", said[0])
    assert "Traceback" not in output


def lines_with(text: str, output: str) -> list[str]:
    return [line for line in output.splitlines() if text in line]


@pytest.mark.slow
def test_an_error_of_one_rank_is_said_once_with_its_number(copy: Copy) -> None:
    """A changed pixel in the second shard, whose checksum only rank 1 compares."""
    clone = copy()
    prepare(clone, 2)
    shard = clone.path / "data" / "shards" / "00001.h5"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.unlink()  # it may be a link into the cache
    shard.write_bytes(content)
    output = clone.run(*TRAIN, ok=False)
    wait_for(lambda: not survivors(clone))
    said = lines_with("sha256 differs", output)
    assert len(said) == 1, output
    assert re.match(r"train: rank 1 on \S+: data/shards/00001\.h5: sha256 differs", said[0])
    assert len(lines_with("train: ", output)) == 1, output
    assert "Traceback" not in output
    assert not clone.states()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["run.gpus", "torchrun"])
def test_more_ranks_than_micro_batches_are_refused(copy: Copy, way: str) -> None:
    clone = copy()
    prepare(clone, 1)
    if way == "run.gpus":
        clone.set(run__gpus=3)
        process = clone.start(*TRAIN)
    else:
        # Unbuffered, as many clusters set it: each write of a rank goes out by itself, and the lines are to stay whole.
        torchrun = ("torchrun", "--standalone", "--nproc-per-node=3", "-m", "stages.train")
        process = clone.start("env", "PYTHONUNBUFFERED=1", *torchrun)
    output, _ = process.communicate(timeout=TIMEOUT_SEC)
    wait_for(lambda: not survivors(clone))
    assert process.returncode == 1
    lines = lines_with("make only 2 micro-batches", output)
    assert len(lines) == (1 if way == "run.gpus" else 3), output
    said = {line.split(": ", 2)[-1] for line in lines}
    assert len(said) == 1, output
    assert said.pop().startswith("3 ranks, but train.batch_size=40 and train.batch_gpu=20 make only 2 micro-batches")
    if way == "run.gpus":
        assert len(lines_with("train: ", output)) == 1, output
    assert not clone.states()
    assert not (clone.path / "models").exists()
