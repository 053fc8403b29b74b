"""A disk that is full: one message or a warning, what was saved stays whole, and the same command goes on.

Two ways to a full disk: a limit on the size of files (RLIMIT_FSIZE: writing beyond it fails with EFBIG), for a whole
stage or only while one function runs; and a small file system in memory, which really has no space left (ENOSPC).
"""

import functools
import hashlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ganops.images.shards import open_shards
from ganops.training.state import read_state
from tests.pipeline.clone import Clone, environment, wait_for

Copy = Callable[..., Clone]

# A snapshot of the tiny pipeline has 18 kB, a picture 21 kB, a state 108 kB, the shards 90 and 76 kB.
FOR_THE_STAGE = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
os.execv(sys.executable, [sys.executable, "-m", sys.argv[2]])
"""
WHILE_A_FUNCTION_RUNS = """
import functools, importlib, resource, runpy, sys
size, stage, where = int(sys.argv[1]), sys.argv[2], sys.argv[3]
module, _, path = where.partition(":")
*owners, name = path.split(".")
owner = functools.reduce(getattr, owners, importlib.import_module(module))
inner = getattr(owner, name)
@functools.wraps(inner)
def limited(*args, **kwargs):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        return inner(*args, **kwargs)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
setattr(owner, name, limited)
runpy.run_module(stage, run_name="__main__", alter_sys=True)
"""
# In a namespace of its own, so that nothing stays mounted: the folder's content moves onto the small file system for as
# long as the stage runs, and is copied out of it afterwards.
ON_A_SMALL_DISK = """
set -e
mv "$1" "$1.before"
mkdir "$1" "$1.after"
mount -t tmpfs -o size="$2" none "$1"
cp -a "$1.before/." "$1/"
code=0
"$3" -m "$4" || code=$?
cp -a "$1/." "$1.after/"
exit $code
"""


def limited(clone: Clone, stage: str, size: int, where: str = "") -> subprocess.CompletedProcess[str]:
    """Runs a stage that can write no file beyond `size` bytes, at all or while the function `where` runs."""
    script = WHILE_A_FUNCTION_RUNS if where else FOR_THE_STAGE
    command = [sys.executable, "-c", script, str(size), f"stages.{stage}", *([where] if where else [])]
    return subprocess.run(
        command, cwd=clone.path, env=environment(), capture_output=True, text=True, timeout=240, check=False
    )


def on_a_small_disk(clone: Clone, stage: str, folder: str, size: int) -> subprocess.CompletedProcess[str]:
    """Runs a stage with `folder` of the clone on a file system of `size` bytes."""
    path = clone.path / folder
    path.mkdir(parents=True, exist_ok=True)
    command = ["unshare", "-rm", "sh", "-c", ON_A_SMALL_DISK, "sh", str(path), str(size), sys.executable]
    done = subprocess.run(
        [*command, f"stages.{stage}"], cwd=clone.path, env=environment(), capture_output=True, text=True, timeout=240,
        check=False,
    )  # fmt: skip
    path.rmdir()  # where it was mounted
    Path(f"{path}.after").rename(path)
    shutil.rmtree(f"{path}.before")
    return done


@functools.cache
def may_mount() -> bool:
    """Whether this user can mount a file system in a namespace; the other tests of this file need not."""
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


needs_mount = pytest.mark.skipif(not may_mount(), reason="`unshare -rm mount -t tmpfs` is not permitted here")


def nearly_finished(clone: Clone) -> Clone:
    """As after a SIGKILL at kimg 1.92 of 2: two steps, a tick, a picture, a distance and a snapshot are to come."""
    assert [path.stem for path in clone.states()] == ["000001920", "000002000"]
    clone.states()[-1].unlink()
    for folder in ("models", "results/train"):  # as DVC does before it runs the stage
        shutil.rmtree(clone.path / folder)
    for path in (clone.path / "runs").glob("*/*/*2000.safetensors"):
        path.unlink()
    return clone


def check_stopped(done: subprocess.CompletedProcess[str], *texts: str) -> None:
    """Exit code 1 and exactly one line on stderr, which holds `texts`."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stdout
    for text in texts:
        assert text in done.stderr


def check_runs_are_whole(clone: Clone) -> list[str]:
    """Every state with its final name can be read, and nothing else is there; their names."""
    for path in clone.states():
        read_state(path)
    assert not list((clone.path / "runs").rglob("*.tmp"))
    assert not list((clone.path / "models").rglob(".*.tmp"))
    return [path.stem for path in clone.states()]


def contents(folder: Path) -> dict[str, str]:
    """sha256 of each file in a folder."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


@pytest.mark.slow
def test_what_training_cannot_do_without(copy: Copy, finished: Clone) -> None:
    """State, snapshot, history, numbers, publishing fail one after the other in one run, which ends as if none had."""
    clone = nearly_finished(copy())
    (clone.states()[0].parent / ".000002000.safetensors.1.tmp").write_bytes(b"half")  # of a killed writer

    clone.set(run__state_kimg=0.04)  # due at 1960, while training
    check_stopped(limited(clone, "train", 100_000), "/000001960.safetensors: cannot write the state", "are whole.")
    assert check_runs_are_whole(clone) == ["000001920"]

    clone.set(run__state_kimg=1000)
    for where, size in (
        ("ganops.training.tick:save_snapshot", 15_000),
        ("ganops.training.log:RunLog._write_history", 1000),
        ("ganops.training.log:write_json", 100),
    ):
        done = limited(clone, "train", size, where)
        check_stopped(done)
        assert "continues at kimg 1.92" in done.stdout
        assert check_runs_are_whole(clone) == ["000001920"]

    check_stopped(limited(clone, "train", 50_000, "ganops.training.tick:copy_file"))
    assert check_runs_are_whole(clone) == ["000001920", "000002000"]
    assert not (clone.path / "models" / "state.safetensors").exists()

    assert "was reached before; nothing to train" in clone.stage("train")
    assert clone.models() == finished.models()
    assert clone.kimgs() == finished.kimgs()


def test_the_message_names_the_file(copy: Copy) -> None:
    """ "File too large" alone does not say which disk is full: results/, runs/ and models/ may lie on different ones."""
    clone = nearly_finished(copy())
    done = limited(clone, "train", 1000, "ganops.training.log:RunLog._write_history")
    check_stopped(done, "history.csv", "File too large")


@pytest.mark.parametrize(
    "where",
    [
        "ganops.training.tick:draw_grid",
        "ganops.training.tick:draw_reals",
        "ganops.training.loop:publish_pictures",
        "torch.utils.tensorboard:SummaryWriter.flush",
    ],
)
def test_what_training_can_do_without(copy: Copy, finished: Clone, where: str) -> None:
    """A picture or the file of TensorBoard is lost: a warning, and the result is the same."""
    clone = nearly_finished(copy())
    done = limited(clone, "train", 500, where)
    assert done.stderr == ""
    assert done.returncode == 0
    assert "WARNING" in done.stdout
    assert check_runs_are_whole(clone) == ["000001920", "000002000"]
    assert clone.models() == finished.models()
    assert clone.kimgs() == finished.kimgs()


@pytest.mark.slow
def test_a_signal_while_the_disk_is_full(copy: Copy, finished: Clone) -> None:
    """The last state cannot be saved: the message says so, and that earlier ones are whole; then it goes on from there."""
    clone = nearly_finished(copy())
    clone.set(run__state_kimg=1000, train__total_kimg=20)
    command = (sys.executable, "-c", FOR_THE_STAGE, "100000", "stages.train")
    process = clone.start(*command)
    grid = clone.path / "results/train/grids/000002.png"  # drawn at the tick of 2
    wait_for(grid.exists, process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode not in (0, -signal.SIGTERM), output
    last = output.splitlines()[-1]
    assert "cannot write the state" in last
    assert "Earlier states are whole." in last
    assert "Traceback" not in output
    assert "is saved" not in output
    assert check_runs_are_whole(clone) == ["000001920"]
    clone.set(run__state_kimg=0.1, train__total_kimg=2)
    assert "continues at kimg 1.92" in clone.stage("train")
    assert clone.models() == finished.models()
    assert clone.kimgs() == finished.kimgs()


@needs_mount
@pytest.mark.slow
def test_no_space_left_for_states(copy: Copy, finished: Clone) -> None:
    """runs/ on a file system on which there is room for one state more, but not for two."""
    clone = nearly_finished(copy())
    # Nothing but states is written there.
    clone.set(run__state_kimg=0.04, train__total_kimg=2.5, train__snapshot_kimg=0, train__metric_kimg=0)
    held = sum(-(-path.stat().st_size // 4096) * 4096 for path in (clone.path / "runs").rglob("*"))
    done = on_a_small_disk(clone, "train", "runs", held + 130_000)
    check_stopped(done, "cannot write the state", "No space left on device", "Earlier states are whole.")
    names = check_runs_are_whole(clone)
    assert "000001920" in names
    reached = names[-1]
    clone.set(train__total_kimg=2, train__snapshot_kimg=1, train__metric_kimg=1)
    output = clone.stage("train")
    assert f"continues at kimg {int(reached) / 1000:g}" in output
    assert clone.models() == finished.models()
    assert clone.kimgs() == finished.kimgs()


@needs_mount
def test_too_small_a_disk_is_refused_before_the_first_step(copy: Copy) -> None:
    clone = nearly_finished(copy())
    held = sum(-(-path.stat().st_size // 4096) * 4096 for path in (clone.path / "runs").rglob("*"))
    done = on_a_small_disk(clone, "train", "runs", held + 60_000)
    check_stopped(done, "are free, but a state takes", "python -m stages.doctor")
    assert "continues at" not in done.stdout
    assert check_runs_are_whole(clone) == ["000001920"]


@needs_mount
def test_no_space_left_for_shards_and_samples(copy: Copy, finished: Clone) -> None:
    """prepare looks beforehand; sample finds out, and leaves nothing that could be taken for samples."""
    clone = copy()
    for path in (clone.path / "data" / name for name in ("shards", "samples")):
        shutil.rmtree(path)
    check_stopped(on_a_small_disk(clone, "prepare", "data/shards", 100_000), "data/shards needs about", "are free")
    assert contents(clone.path / "data/shards") == {}
    done = on_a_small_disk(clone, "sample", "data/samples", 16_384)
    check_stopped(done, "data/samples", "cannot write")
    assert contents(clone.path / "data/samples") == {}
    clone.stage("prepare")
    clone.stage("sample")
    for name in ("shards", "samples"):
        assert contents(clone.path / "data" / name) == contents(finished.path / "data" / name)


def test_shards_that_cannot_be_written(copy: Copy, finished: Clone) -> None:
    """The waiting pixels, a shard, the index: one line, and no folder that looks like a data set is left."""
    clone = copy()
    shards = clone.path / "data" / "shards"
    shutil.rmtree(shards)
    check_stopped(limited(clone, "prepare", 60_000), "data/shards: cannot write (", "Free or change the disk.")
    assert contents(shards) == {}
    check_stopped(limited(clone, "prepare", 80_000), "data/shards: cannot write (", "Free or change the disk.")
    assert contents(shards) == {}
    check_stopped(limited(clone, "prepare", 500, "ganops.images.shards:write_json"), "data/shards: cannot write (")
    assert contents(shards) == {}
    clone.stage("prepare")
    assert contents(shards) == contents(finished.path / "data" / "shards")
    open_shards(shards, verify=True)


def test_samples_that_cannot_be_written(copy: Copy, finished: Clone) -> None:
    """The samples and the pictures of stage sample: one line; afterwards the same bytes as ever."""
    clone = copy()
    samples = clone.path / "data" / "samples"
    for folder in (samples, clone.path / "results" / "samples"):
        shutil.rmtree(folder)
    for size in (5000, 20_000):
        check_stopped(limited(clone, "sample", size), "data/samples: cannot write (", "Free or change the disk.")
        assert contents(samples) == {}
    check_stopped(limited(clone, "sample", 1000, "ganops.images.pixels:save_png"))
    assert contents(samples) == contents(finished.path / "data" / "samples")
    assert not list((clone.path / "results/samples").rglob("*.png"))
    clone.stage("sample")
    for name in ("data/samples", "results/samples"):
        assert contents(clone.path / name) == contents(finished.path / name)
