"""How batches reach the device: copied one ahead, or gathered there from all images; the host never waits for a copy."""

from collections.abc import Generator
from contextlib import closing

import numpy as np
import torch
from torch import Tensor

from ganops.entry import progress
from ganops.errors import RunError
from ganops.images.dataset import Batch, data_order
from ganops.images.pixels import as_tensor
from ganops.images.shards import Shards

LOAD_BYTES = 1 << 24  # of images copied at a time while loading them all


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on `device`; itself if it is there. From the CPU to CUDA the copy queues behind what the GPU does.

    From memory that is not pinned, CUDA would first wait for what is queued. torch keeps the pinned memory until the copy
    is done, and then for the next one.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def device_batches(batches: Generator[Batch, None, None], device: torch.device) -> Generator[Batch, None, None]:
    """The same batches on `device`; on CUDA the next one is copied while the GPU works on the one before.

    Args:
        batches: on the CPU; taken one ahead, and closed when this is closed or dropped.
        device: on a CPU they pass as they are.
    """
    with closing(batches):
        if device.type != "cuda":
            yield from batches
            return
        side = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        ahead: tuple[Batch, torch.cuda.Event] | None = None
        for batch in batches:
            sent = _send(batch, side)
            if ahead is not None:
                yield _receive(*ahead)
            ahead = sent
        if ahead is not None:
            yield _receive(*ahead)


def _send(batch: Batch, side: torch.cuda.Stream) -> tuple[Batch, torch.cuda.Event]:
    """Begins to copy a batch on the stream `side`; and the event of its arrival."""
    arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):
        copy = Batch(to_device(batch.images, side.device), to_device(batch.labels, side.device))
        arrived.record(side)
    return copy, arrived


def _receive(batch: Batch, arrived: torch.cuda.Event) -> Batch:
    """Lets the current stream wait for a batch, and its memory be given to the next one only when that stream is done."""
    stream = torch.cuda.current_stream(batch.images.device)
    stream.wait_event(arrived)
    for tensor in (batch.images, batch.labels):
        tensor.record_stream(stream)
    return batch


def load_images(shards: Shards, device: torch.device) -> Batch:
    """All images and labels on `device`, in the order of the shards. Shows how far it is.

    Raises:
        RunError: they do not fit.
    """
    index = shards.index
    dtype = torch.uint8 if index.bits == 8 else torch.int16
    try:
        images = torch.empty([len(shards), *index.image_shape], dtype=dtype, device=device)
    except torch.OutOfMemoryError as error:
        raise RunError(
            f"the images do not fit into the GPU's memory ({str(error).split('.')[0]}). Set run.data_on_gpu: never, or "
            "end other programs that use the GPU."
        ) from None
    starts = range(0, len(shards), max(LOAD_BYTES // images[0].nbytes, 1))
    for start in progress(starts, len(starts), "loading images", "part"):
        part = as_tensor(shards.gather(np.arange(start, min(start + starts.step, len(shards)))))
        images[start : start + starts.step] = to_device(part, device)
    return Batch(images, to_device(torch.from_numpy(shards.labels.copy()), device))


def gather_batches(
    data: Batch, seed: int, start: int, batch_size: int, part: range | None = None
) -> Generator[Batch, None, None]:
    """What `dataset.iterate_batches` gives, byte for byte, gathered on the device that holds all images.

    Args:
        data: all images and labels, see `load_images`.
        seed: train.seed.
        start: images seen so far.
        batch_size: images per batch.
        part: which images of each batch are wanted, at least one, for one rank of several; None = all.
    Raises:
        ValueError: a number is out of range.
    """
    part = range(batch_size) if part is None else part
    if start < 0 or part.step != 1 or not 0 <= part.start < part.stop <= batch_size:
        raise ValueError(f"start={start}, batch_size={batch_size}, part={part}")
    return _gather(data, seed, start, batch_size, part)


def _gather(data: Batch, seed: int, start: int, batch_size: int, part: range) -> Generator[Batch, None, None]:
    count, device = len(data.images), data.images.device
    epoch, order = -1, torch.empty(0)  # the order of one epoch, on the device too
    while True:
        pieces: list[Tensor] = []
        position, stop = start + part.start, start + part.stop
        while position < stop:
            if position // count != epoch:
                epoch = position // count
                order = to_device(torch.from_numpy(data_order(seed, epoch * count, count, count)), device)
            first = position % count
            pieces.append(order[first : first + stop - position])
            position += len(pieces[-1])
        indices = torch.cat(pieces)
        yield Batch(data.images.index_select(0, indices), data.labels.index_select(0, indices))
        start += batch_size
