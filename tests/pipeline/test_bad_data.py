"""Shards and states that are not what they should be: found before the first step, named, nothing trained on them."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from ganops.errors import RunError
from ganops.files import sha256_file
from ganops.images.shard_index import Shard, shards_digest
from ganops.images.shards import ShardWriter
from ganops.training.state import DamagedState, is_state, read_state, read_state_metadata
from tests.pipeline.clone import Clone, wait_for

Copy = Callable[..., Clone]
Spoil = Callable[[Path], None]


def writable(path: Path) -> Path:
    """A file that DVC may have linked to its cache, as a copy that may be edited."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    return path


def flip_byte(path: Path, place: int) -> None:
    content = bytearray(writable(path).read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def write_other_resolution(folder: Path, counts: tuple[int, ...] = (1000, 797)) -> None:
    """Shards of 16x16 with the same names and numbers of images and classes."""
    with ShardWriter(folder, counts[0], 16, 1, tuple("0123456789"), {}) as writer:
        for count in counts:
            writer.append(np.zeros([count, 1, 16, 16], np.uint8), np.arange(count, dtype=np.int64) % 10)
        writer.close({})


def edit_index(shards: Path, change: Callable[[dict[str, object]], None]) -> None:
    index = json.loads(writable(shards / "index.json").read_text())
    change(index)
    (shards / "index.json").write_text(json.dumps(index))


def flipped_pixel(shards: Path) -> None:
    flip_byte(shards / "00001.h5", 50_000)


def truncated(shards: Path) -> None:
    path = writable(shards / "00001.h5")
    path.write_bytes(path.read_bytes()[:-4096])


def missing(shards: Path) -> None:
    (shards / "00001.h5").unlink()


def other_resolution(shards: Path) -> None:
    """One shard of another data set in the place of a good one."""
    write_other_resolution(shards.parent / "other")
    writable(shards / "00001.h5").write_bytes((shards.parent / "other" / "00001.h5").read_bytes())


def other_resolution_and_checksums(shards: Path) -> None:
    """And somebody has made index.json agree with its sha256, but not with its size."""
    other_resolution(shards)

    def change(index: dict[str, object]) -> None:
        listed = index["shards"]
        assert isinstance(listed, list)
        listed[1]["sha256"] = sha256_file(shards / "00001.h5")
        index["digest"] = shards_digest(tuple(Shard(**entry) for entry in listed))

    edit_index(shards, change)


def another_data_set(shards: Path) -> None:
    """Whole in itself, but not what prepare.resolution says."""
    shutil.rmtree(shards)
    write_other_resolution(shards)


def index_of_other_resolution(shards: Path) -> None:
    edit_index(shards, lambda index: index.update(height=16, width=16))


CASES: dict[str, tuple[Spoil, tuple[str, ...]]] = {
    "flipped pixel": (flipped_pixel, ("data/shards/00001.h5: sha256 differs",)),
    "truncated": (truncated, ("data/shards/00001.h5: sha256 differs",)),
    "missing": (missing, ("data/shards/00001.h5 not found, but index.json lists it",)),
    "other resolution": (other_resolution, ("data/shards/00001.h5: sha256 differs",)),
    "other resolution, checksums agree": (
        other_resolution_and_checksums,
        ("data/shards/00001.h5: holds uint8 (797, 1, 16, 16)", "says uint8 (797, 1, 8, 8)"),
    ),
    "another data set": (another_data_set, ("data/shards has resolution=16, but prepare.resolution=8", "dvc repro")),
    "index of other resolution": (index_of_other_resolution, ("data/shards/00000.h5: holds", "(1000, 1, 16, 16)")),
}


def check_refused(clone: Clone, *texts: str) -> None:
    """Exit code 1, one line, and no byte of the run's states and models has changed."""

    def saved() -> dict[Path, str]:
        return {path: sha256_file(path) for path in [*clone.states(), *(clone.path / "models").rglob("*.safetensors")]}

    before = saved()
    done = clone.stage_apart("train")
    assert done.returncode == 1, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert all(text in done.stderr for text in texts), done.stderr
    assert "Traceback" not in done.stdout
    assert "continues" not in done.stdout
    assert "tick" not in done.stdout
    assert saved() == before


@pytest.mark.slow
def test_bad_shards_are_named_before_the_first_step(copy: Copy) -> None:
    """One clone and one kind of damage after the other, so that the whole does not take minutes."""
    clone = copy()
    clone.set(train__total_kimg=2.5)  # or there would be nothing to train
    shards, good = clone.path / "data" / "shards", clone.path / "data" / "good"
    shutil.copytree(shards, good)
    for spoil, texts in CASES.values():
        spoil(shards)
        check_refused(clone, *texts)
        for folder in (shards, shards.parent / "other"):
            shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(good, shards)
    assert len(clone.states()) == 2
    clone.remove_runs()
    (shards / "00001.h5").unlink()
    check_refused(clone, "data/shards/00001.h5 not found")
    assert not list((clone.path / "runs").rglob("*.safetensors"))


@pytest.mark.slow
def test_of_several_ranks_each_checks_its_share(copy: Copy) -> None:
    """Shard 1 is read by rank 1 only: the launcher passes its one line on, and no rank trains."""
    clone = copy()
    clone.set(train__total_kimg=2.5, run__gpus=2, run__device="cpu")
    flipped_pixel(clone.path / "data" / "shards")
    check_refused(clone, "rank 1 on ", "data/shards/00001.h5: sha256 differs")


def rewrite_state(path: Path, **changes: object) -> None:
    """The same tensors with other metadata, as another version would have written them."""
    copy = read_state(path)
    text = json.dumps({**copy.metadata, **changes}, sort_keys=True)
    save_file(dict(copy.tensors), path, {"ganops": text})


@pytest.mark.slow
def test_a_state_of_another_format_is_refused(copy: Copy) -> None:
    """Neither read wrong nor passed over in silence, which would train the same again from an older state."""
    clone = copy()
    clone.set(train__total_kimg=2.5)
    newest = clone.states()[-1]
    rewrite_state(newest, format=1)
    assert is_state(newest)
    with pytest.raises(RunError) as error:
        read_state_metadata(newest)
    assert not isinstance(error.value, DamagedState)
    check_refused(clone, f"{newest.name}: state format 1, this version reads 3.", "raise run.fresh")


@pytest.mark.slow
def test_a_changed_newest_state_falls_back(copy: Copy, finished: Clone) -> None:
    """A flipped byte among its numbers, found by the checksum: a line, the state before it, and the same bytes."""
    clone = copy()
    newest = clone.states()[-1]
    flip_byte(newest, newest.stat().st_size // 2)
    for folder in ("models", "results/train"):
        shutil.rmtree(clone.path / folder)
    output = clone.stage("train")
    assert f"{newest.name}: not a whole training state (its checksum differs: the file was changed)" in output
    assert "Falling back to the state before it." in output
    assert f"continues at kimg {int(clone.states()[0].stem) / 1000:g}" in output
    assert clone.models() == finished.models()
    assert clone.kimgs() == finished.kimgs()


@pytest.mark.slow
def test_when_every_state_was_changed(copy: Copy) -> None:
    """It starts from nothing, and says of each file why."""
    clone = copy()
    names = [path.name for path in clone.states()]
    for path in clone.states():
        flip_byte(path, path.stat().st_size // 2)
    (clone.path / "dvc.lock").unlink()  # DVC's cache has the last state too
    clone.set(train__total_kimg=2.5, train__metric_kimg=0, run__state_kimg=1000)
    shutil.rmtree(clone.path / "results" / "train")
    process = clone.start(sys.executable, "-m", "stages.train")
    wait_for((clone.path / "results/train/history.csv").exists, process)
    process.terminate()
    output, _ = process.communicate(timeout=60)
    assert "train: starts, ends at kimg 2.52" in output
    assert all(f"{name}: not a whole training state (its checksum differs" in output for name in names)
    assert output.count("Falling back to the state before it.") == len(names)
