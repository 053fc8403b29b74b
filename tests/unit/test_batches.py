"""Batches on their way to the device: the same bytes by every way, nothing left open, and where all images go."""

import itertools
import threading
from collections.abc import Generator
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch

from ganops.errors import RunError
from ganops.images.dataset import Batch, data_order, iterate_batches
from ganops.images.pixels import as_array
from ganops.images.shards import Shards, ShardWriter, open_shards
from ganops.networks.sampling import one_hot
from ganops.training import batches, memory
from ganops.training.batches import device_batches, gather_batches, load_images, to_device
from ganops.training.memory import Peak, place_images

COUNT = 23
CPU = torch.device("cpu")
GIGABYTE = 10**9


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    """Random images in three shards, image i with label i % 5."""
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 3, 8, 8), dtype=np.uint8)
    with ShardWriter(tmp_path, 10, 8, 3, tuple("abcde"), {}) as writer:
        writer.append(images, np.arange(COUNT) % 5)
        writer.close({})
    return open_shards(tmp_path, verify=True)


def take(stream: Generator[Batch, None, None], count: int) -> list[Batch]:
    taken = list(itertools.islice(stream, count))
    stream.close()
    return taken


def assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        for a, b in ((one.images, other.images), (one.labels, other.labels)):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


@pytest.mark.parametrize("bytes_at_a_time", [1, 1000, 1 << 24])
def test_all_images_are_loaded_in_their_order(
    shards: Shards, monkeypatch: pytest.MonkeyPatch, bytes_at_a_time: int
) -> None:
    monkeypatch.setattr(batches, "LOAD_BYTES", bytes_at_a_time)  # 1, 5 and all images at a time
    data = load_images(shards, CPU)
    assert np.array_equal(data.images.numpy(), shards.gather(np.arange(COUNT)))
    assert data.labels.tolist() == shards.labels.tolist()


def test_images_that_after_all_do_not_fit_are_a_users_matter(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(torch, "empty", fail)
    with pytest.raises(
        RunError, match=r"do not fit into the GPU's memory \(CUDA out of memory\)\. Set run\.data_on_gpu"
    ):
        load_images(shards, CPU)


@pytest.mark.parametrize("part", [None, range(2), range(2, 5), range(4, 6)], ids=str)
@pytest.mark.parametrize("start", [0, 6, 17, 22, 23, 24, 23 * 1000 + 5])
def test_gathered_batches_are_those_of_the_shards(shards: Shards, start: int, part: range | None) -> None:
    """Byte for byte, over several ends of epochs, for every start and for each rank's part."""
    data = load_images(shards, CPU)
    gathered = take(gather_batches(data, 7, start, 6, part), 20)
    assert_same(gathered, take(cast(Generator[Batch], iterate_batches(shards, 7, start, 6, part)), 20))
    assert len({batch.images.numpy().tobytes() for batch in gathered}) > 15


def test_16_bits_and_label_vectors_reach_the_device(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 65536, (23, 2, 6, 8), dtype=np.uint16)
    vectors = rng.random((23, 3), dtype=np.float32)
    with ShardWriter(tmp_path, 10, (6, 8), 2, tuple("abc"), {}, bits=16, multi_label=True) as writer:
        writer.append(images, vectors)
        writer.close({})
    shards = open_shards(tmp_path, verify=True)
    data = load_images(shards, CPU)
    assert np.array_equal(as_array(data.images), images)
    gathered = take(gather_batches(data, 7, 5, 6), 9)
    assert_same(gathered, take(cast(Generator[Batch], iterate_batches(shards, 7, 5, 6)), 9))
    for batch, start in zip(gathered, range(5, 60, 6), strict=False):
        places = data_order(7, start, 6, 23)
        assert np.array_equal(as_array(batch.images), images[places])
        assert np.array_equal(batch.labels.numpy(), vectors[places])


def test_batches_larger_than_the_data_set(shards: Shards) -> None:
    data = load_images(shards, CPU)
    expected = take(cast(Generator[Batch], iterate_batches(shards, 0, 11, 60)), 3)
    assert_same(take(gather_batches(data, 0, 11, 60), 3), expected)


def test_gathered_batches_are_copies(shards: Shards) -> None:
    data = load_images(shards, CPU)
    (batch,) = take(gather_batches(data, 0, 0, COUNT), 1)
    batch.images.zero_()
    assert np.array_equal(data.images.numpy(), shards.gather(np.arange(COUNT)))


@pytest.mark.parametrize(
    ("start", "size", "part"), [(-1, 4, None), (0, 0, None), (0, 4, range(2, 2)), (0, 4, range(5))]
)
def test_wrong_numbers_are_refused_at_once(shards: Shards, start: int, size: int, part: range | None) -> None:
    with pytest.raises(ValueError, match=f"start={start}, batch_size={size}"):
        gather_batches(load_images(shards, CPU), 0, start, size, part)


def test_on_a_cpu_batches_pass_as_they_are(shards: Shards) -> None:
    expected = take(cast(Generator[Batch], iterate_batches(shards, 3, 5, 4)), 9)
    assert_same(take(device_batches(iterate_batches(shards, 3, 5, 4), CPU), 9), expected)
    batch = expected[0]
    assert to_device(batch.images, CPU) is batch.images


def test_closing_ends_the_thread_that_reads(shards: Shards) -> None:
    before = threading.active_count()
    stream = device_batches(iterate_batches(shards, 0, 0, 4), CPU)
    next(stream)
    assert threading.active_count() == before + 1
    stream.close()
    assert threading.active_count() == before


def test_errors_of_reading_arrive(shards: Shards, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> None:
        raise OSError("the disk went away")

    monkeypatch.setattr(shards, "gather", fail)
    with pytest.raises(OSError, match="the disk went away"):
        next(device_batches(iterate_batches(shards, 0, 0, 4), CPU))


def test_one_hot() -> None:
    expected = torch.tensor([[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    found = one_hot(torch.tensor([2, 0, 1, 2]), 3)
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)
    assert one_hot(torch.tensor([0, 0]), 0).shape == (2, 0)


def pretend_gpu(monkeypatch: pytest.MonkeyPatch, free: int, held: int) -> torch.device:
    monkeypatch.setattr(memory, "free_bytes", lambda _: free)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: held)
    return torch.device("cuda", 0)


@pytest.mark.parametrize(("images", "fits"), [(11, True), (12, True), (13, False), (40, False)])
def test_all_images_go_to_the_gpu_when_they_fit_beside_a_step(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], images: int, fits: bool
) -> None:
    """Of 20 GB, 5 of which training holds already, nine tenths may be filled; a step takes 6."""
    device = pretend_gpu(monkeypatch, free=15 * GIGABYTE, held=5 * GIGABYTE)
    assert place_images("auto", images * GIGABYTE, Peak("Dr1", 8, 6 * GIGABYTE), device) is fits
    said = capsys.readouterr().out
    assert said.count("\n") == 1
    assert said.startswith("train: images: " + ("all of them go to the GPU" if fits else "batches are read"))
    for part in (f"{images} GB of images", "6.0 GB of a step", "20 GB of the GPU", "run.data_on_gpu=auto"):
        assert part in said


def test_images_that_do_not_fit_on_one_rank_stay_out_on_all(monkeypatch: pytest.MonkeyPatch) -> None:
    device = pretend_gpu(monkeypatch, free=20 * GIGABYTE, held=0)
    monkeypatch.setattr(memory, "largest_over_ranks", lambda value: 1)
    assert not place_images("auto", GIGABYTE, Peak("Dr1", 8, GIGABYTE), device)


def test_images_that_must_fit_but_do_not_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    device = pretend_gpu(monkeypatch, free=15 * GIGABYTE, held=5 * GIGABYTE)
    assert place_images("always", GIGABYTE, Peak("Dr1", 8, GIGABYTE), device)
    with pytest.raises(RunError, match=r"run\.data_on_gpu=always, but 30 GB of images .* do not fit") as error:
        place_images("always", 30 * GIGABYTE, Peak("Dr1", 8, GIGABYTE), device)
    assert "\n" not in str(error.value)


def test_a_cpu_reads_from_the_shards(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RunError, match=r"run\.data_on_gpu=always, but training runs on a CPU"):
        place_images("always", 1, Peak("Dr1", 8, 1), CPU)
    for choice in ("auto", "never"):
        assert not place_images(choice, 1, Peak("Dr1", 8, 1), CPU)  # type: ignore[arg-type]
    assert not capsys.readouterr().out  # nobody expects anything else


def test_never_is_never(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    device = pretend_gpu(monkeypatch, free=20 * GIGABYTE, held=0)
    assert not place_images("never", 1, Peak("Dr1", 8, 1), device)
    assert "run.data_on_gpu=never" in capsys.readouterr().out
