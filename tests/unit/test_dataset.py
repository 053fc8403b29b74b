"""The endless order, and batches that follow it."""

import itertools
import threading
import time
from collections.abc import Generator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from ganops.images.dataset import Batch, data_order, iterate_batches
from ganops.images.shards import Shards, ShardWriter, open_shards

COUNT = 23
GOLDEN = [9, 4, 8, 0, 2, 7, 5, 3, 6, 1, 1, 0]


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    """Image i is i everywhere and has label i % 5; three shards."""
    images = np.broadcast_to(np.arange(COUNT, dtype=np.uint8)[:, None, None, None], (COUNT, 1, 8, 8))
    with ShardWriter(tmp_path, 10, 8, 1, tuple("abcde"), {}) as writer:
        writer.append(np.ascontiguousarray(images), np.arange(COUNT) % 5)
        writer.close({})
    return open_shards(tmp_path, verify=True)


def batches(shards: Shards, seed: int, start: int, size: int, count: int) -> list[Batch]:
    iterator = cast(Generator[Batch], iterate_batches(shards, seed, start, size))
    taken = list(itertools.islice(iterator, count))
    iterator.close()
    return taken


def test_each_epoch_is_a_permutation_of_its_own() -> None:
    order = data_order(seed=3, start=0, count=4 * COUNT, num_images=COUNT).reshape(4, COUNT)
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in order.tolist())
    assert len({tuple(epoch) for epoch in order.tolist()}) == 4


def test_any_start_gives_the_same_order() -> None:
    whole = data_order(3, 0, 100, COUNT)
    for start, count in itertools.product((0, 1, 22, 23, 24, 57), (0, 1, 22, 23, 43)):
        assert np.array_equal(data_order(3, start, count, COUNT), whole[start : start + count])
    far = 10**12 * COUNT
    assert np.array_equal(data_order(3, far, 5, COUNT), data_order(3, far - 2, 7, COUNT)[2:])


def test_order_does_not_change_over_versions() -> None:
    # Made by this code with numpy 2.4; a run that resumes under another numpy must see the same images.
    assert data_order(0, 0, 12, 10).tolist() == GOLDEN


def test_seed_matters_and_positions_are_uniform() -> None:
    assert data_order(0, 0, COUNT, COUNT).tolist() != data_order(1, 0, COUNT, COUNT).tolist()
    # 4000 epochs of 5: how often each image comes first is binomial, standard deviation 25.
    first = data_order(0, 0, 20000, 5)[::5]
    assert np.abs(np.bincount(first, minlength=5) - 800).max() < 125


@pytest.mark.parametrize("size", [1, 4, 23, 50])
def test_batches_follow_the_order(shards: Shards, size: int) -> None:
    order = data_order(7, 11, 5 * size, COUNT).reshape(5, size)
    for batch, indices in zip(batches(shards, 7, 11, size, 5), order, strict=True):
        assert (batch.images.dtype, batch.images.shape) == (torch.uint8, (size, 1, 8, 8))
        assert batch.images[:, 0, 7, 7].tolist() == indices.tolist()
        assert batch.labels.dtype == torch.int64
        assert batch.labels.tolist() == (indices % 5).tolist()


def test_resuming_gives_the_same_batches(shards: Shards) -> None:
    whole = batches(shards, 0, 0, 6, 20)
    rest = batches(shards, 0, 8 * 6, 6, 12)
    for a, b in zip(whole[8:], rest, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.labels, b.labels)


def test_batches_are_copies(shards: Shards) -> None:
    (batch,) = batches(shards, 0, 0, COUNT, 1)
    batch.images.zero_()
    (again,) = batches(shards, 0, 0, COUNT, 1)
    assert again.images.any()


def test_closing_ends_the_thread(shards: Shards) -> None:
    before = threading.active_count()
    iterator = cast(Generator[Batch], iterate_batches(shards, 0, 0, 4))
    next(iterator)
    assert threading.active_count() == before + 1
    start = time.monotonic()
    iterator.close()
    assert threading.active_count() == before
    assert time.monotonic() - start < 2


def test_errors_of_the_thread_reach_the_consumer(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(indices: object) -> None:
        raise OSError("the disk went away")

    monkeypatch.setattr(shards, "gather", fail)
    before = threading.active_count()
    with pytest.raises(OSError, match="the disk went away"):
        next(iterate_batches(shards, 0, 0, 4))
    assert threading.active_count() == before


def test_wrong_numbers_are_refused_at_once(shards: Shards) -> None:
    with pytest.raises(ValueError, match="batch_size=0"):
        iterate_batches(shards, 0, 0, 0)
    with pytest.raises(ValueError, match="start=-1"):
        data_order(0, -1, 1, 5)
    with pytest.raises(ValueError, match="num_images=0"):
        data_order(0, 0, 1, 0)
