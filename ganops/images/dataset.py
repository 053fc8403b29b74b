"""The endless order in which training sees the images, and the batches that follow it.

Which image stands at which position is a function of (seed, position) alone, so a run that resumes at position nimg
sees what an uninterrupted one would have seen. Batches are gathered in this process from the memory-mapped shards,
one thread ahead of the consumer: worker processes would only copy through shared memory (5 times slower).
"""

import queue
import threading
from collections.abc import Generator, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ganops.distributed import derive_seed
from ganops.images.pixels import as_tensor
from ganops.images.shards import Shards

AHEAD = 3  # batches that wait ready; more buys nothing
POLL_SEC = 0.1  # how soon the thread notices that nobody wants more


@dataclass(frozen=True)
class Batch:
    """Images and their labels.

    Attributes:
        images: [B, C, H, W] uint8, or int16 for 16 bits (see `pixels`).
        labels: [B] int64, zeros if unlabelled; or [B, L] float32.
    """

    images: Tensor
    labels: Tensor


def data_order(seed: int, start: int, count: int, num_images: int) -> NDArray[np.int64]:
    """Image indices at positions start .. start + count - 1 of the endless order.

    Each epoch (num_images positions) is a permutation of its own, a function of (seed, epoch).

    Args:
        seed: train.seed.
        start: first position, >= 0; the images seen so far.
        count: how many.
        num_images: size of the data set, >= 1.
    Returns:
        [count] int64 in 0..num_images-1.
    Raises:
        ValueError: a number is out of range.
    """
    return _Order(seed, num_images).take(start, count)


class _Order:
    """`data_order` that keeps the last permutation, since batches mostly stay in one epoch."""

    def __init__(self, seed: int, num_images: int) -> None:
        if num_images < 1:
            raise ValueError(f"num_images={num_images}")
        self._seed = seed
        self._num_images = num_images
        self._epoch = -1
        self._permutation = np.empty(0, np.int64)

    def take(self, start: int, count: int) -> NDArray[np.int64]:
        if start < 0 or count < 0:
            raise ValueError(f"start={start}, count={count}")
        indices = np.empty(count, np.int64)
        done = 0
        while done < count:
            epoch, first = divmod(start + done, self._num_images)
            if epoch != self._epoch:
                self._epoch, self._permutation = epoch, self._permute(epoch)
            part = self._permutation[first : first + count - done]
            indices[done : done + len(part)] = part
            done += len(part)
        return indices

    def _permute(self, epoch: int) -> NDArray[np.int64]:
        # Sorting raw 64-bit draws, not Generator.permutation: numpy keeps the former's stream over versions (NEP 19).
        keys = np.random.PCG64(derive_seed(self._seed, "order", epoch)).random_raw(self._num_images)
        return np.argsort(keys, kind="stable").astype(np.int64, copy=False)


def iterate_batches(
    shards: Shards, seed: int, start: int, batch_size: int, part: range | None = None
) -> Generator[Batch, None, None]:
    """Batches without end in `data_order`, from position `start` on; batches cross the ends of epochs.

    A thread gathers up to three batches ahead. It starts with the first `next()` and ends when the iterator is
    closed or dropped; what it raises is raised here.

    Args:
        shards: what to read.
        seed: train.seed.
        start: images seen so far.
        batch_size: images per batch.
        part: which images of each batch are wanted, for one rank of several; None = all.
    Raises:
        ValueError: a number is out of range.
    """
    part = range(batch_size) if part is None else part
    if start < 0 or batch_size < 1 or part.step != 1 or not 0 <= part.start <= part.stop <= batch_size:
        raise ValueError(f"start={start}, batch_size={batch_size}, part={part}")
    return _prefetch(_gather_batches(shards, _Order(seed, len(shards)), start, batch_size, part))


def _gather_batches(shards: Shards, order: _Order, start: int, batch_size: int, part: range) -> Iterator[Batch]:
    while True:
        indices = order.take(start + part.start, len(part))
        yield Batch(as_tensor(shards.gather(indices)), torch.from_numpy(shards.labels[indices]))
        start += batch_size


def _prefetch(batches: Iterator[Batch]) -> Generator[Batch, None, None]:
    ready: queue.Queue[Batch | Exception] = queue.Queue(AHEAD)
    unwanted = threading.Event()

    def offer(item: Batch | Exception) -> None:
        while not unwanted.is_set():
            try:
                ready.put(item, timeout=POLL_SEC)
            except queue.Full:
                continue
            return

    def work() -> None:
        try:
            for batch in batches:
                offer(batch)
                if unwanted.is_set():
                    return
        except Exception as error:  # whatever it is, it belongs to the consumer
            offer(error)

    thread = threading.Thread(target=work, name="batches", daemon=True)
    thread.start()
    try:
        while True:
            item = ready.get()
            if isinstance(item, Exception):
                raise item
            yield item
    finally:
        unwanted.set()
        while not ready.empty():  # lets a waiting put through at once
            ready.get_nowait()
        thread.join()
