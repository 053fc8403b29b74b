"""Several ranks write what one would: shards, statistics, samples and distances to the byte; and the model."""

import hashlib
import shutil
from collections.abc import Callable

import pytest

from tests.pipeline.clone import Clone
from tests.pipeline.test_resume import start_over

Copy = Callable[..., Clone]


def files(clone: Clone, *places: str) -> dict[str, str]:
    """sha256 of every file in these places."""
    found = {}
    for place in places:
        path = clone.path / place
        for file in [path] if path.is_file() else sorted(path.rglob("*")):
            if file.is_file():
                found[str(file.relative_to(clone.path))] = hashlib.sha256(file.read_bytes()).hexdigest()
    assert found
    return found


@pytest.mark.slow
def test_shards_statistics_samples_and_distances_are_equal_to_the_byte(copy: Copy, finished: Clone) -> None:
    clone = copy()
    shutil.rmtree(clone.path / "data" / "shards")
    clone.run("torchrun", "--standalone", "--nproc-per-node=2", "-m", "stages.prepare")
    assert files(clone, "data/shards") == files(finished, "data/shards")
    clone.set(run__gpus=2)
    clone.stage("sample")
    assert files(clone, "data/samples", "results/samples") == files(finished, "data/samples", "results/samples")
    clone.set(stats__batch_size=16)  # so that there is something for three
    found = []
    for ranks in (1, 3):
        clone.set(run__gpus=ranks)
        clone.stage("stats")
        clone.stage("fid")
        found.append(files(clone, "data/stats.npz", "results/fid.json"))
    assert found[0] == found[1]


@pytest.mark.slow
def test_two_ranks_train_the_same_model(copy: Copy, finished: Clone) -> None:
    """With two micro-batches even to the byte: a sum of two has one order."""
    clone = copy()
    start_over(clone)
    clone.set(run__gpus=2)
    assert "on 2 ranks, cpu" in clone.stage("train")
    assert clone.models() == finished.models()
    assert clone.kimgs() == finished.kimgs()
