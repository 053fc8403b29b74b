"""What the ranks tell each other: sums, copies and comparisons of tensors, and results brought together in order.

Without ranks each of these does nothing, or what one rank does alone.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ganops.distributed import contact
from ganops.errors import RunError
from ganops.launch import rank, world_size

T = TypeVar("T")

BUCKET_BYTES = 25 * 2**20  # of gradients from which on a message is sent: as large as DDP's
ALIGNMENT = 4  # elements: 16 bytes of float32, which CUDA's fused kernels read at once


def sum_over_ranks(tensor: Tensor) -> None:
    """Adds up a tensor over all ranks, in place; each gets the same bits. Nothing without ranks."""
    if world_size() > 1:
        with contact():
            dist.all_reduce(tensor)


@dataclass
class _Bucket:
    """Some parameters' part [start, stop) of the flat tensor: one message. `missing` gradients are not there yet."""

    start: int
    stop: int = 0
    slots: list[tuple[nn.Parameter, Tensor]] = field(default_factory=list)
    missing: int = 0


class GradientSum:
    """Adds up a network's gradients over all ranks, in one flat tensor, from when the last backward pass reaches them.

    The flat tensor is cut into buckets, from the last parameters to the first, about as backward passes go. Every rank
    sends the same buckets in the same order, whatever its graph: none is sent before the one ahead of it, and what is
    not whole at the end (parameters without a gradient, zeros there) is sent then. Which parameters have a gradient is a
    matter of the phase and not of what is drawn in it, so those without one here have none anywhere and keep `grad` None.

    Not DistributedDataParallel: a phase may call a network several times and differentiate twice, which DDP's hooks do
    not follow; measured in bench/scaling.py, this is no slower.

    Args:
        parameters: of one network, on one device, of one dtype; those that do not learn are left alone.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._flat = torch.empty(0)
        self._buckets: list[_Bucket] = []
        self._bucket_of: dict[nn.Parameter, _Bucket] = {}
        self._sent: list[dist.Work | None] = []

    @contextmanager
    def last_backward(self) -> Iterator[None]:
        """Within runs the backward pass that completes the gradients; buckets are sent as soon as they are whole.

        Raises:
            LostContact: a rank is gone.
        """
        if world_size() == 1:
            yield
            return
        self._make_buckets()
        hooks = [
            parameter.register_post_accumulate_grad_hook(self._note)  # type: ignore[no-untyped-call]
            for parameter in self._parameters
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def finish(self) -> list[Tensor]:
        """Sends what is not sent, and waits: on a GPU the stream does, not the host. Each rank gets the same bits.

        Returns:
            What all gradients lie in, to be worked on at once: one flat tensor, of which each `grad` is a part; on a
            CPU without ranks the gradients themselves, which need not be moved.
        Raises:
            LostContact: a rank is gone.
        """
        if world_size() == 1 and self._parameters[0].device.type == "cpu":
            return [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        if not self._buckets:
            self._make_buckets()
        while len(self._sent) < len(self._buckets):
            self._send()
        for work in self._sent:
            if work is not None:
                with contact():
                    work.wait()
        return [self._flat]

    def _make_buckets(self) -> None:
        backwards = self._parameters[::-1]
        sizes = [-(-parameter.numel() // ALIGNMENT) * ALIGNMENT for parameter in backwards]
        self._flat = torch.zeros(sum(sizes), dtype=backwards[0].dtype, device=backwards[0].device)
        stop = 0
        for parameter, size in zip(backwards, sizes, strict=True):
            if not self._buckets or (stop - self._buckets[-1].start) * self._flat.element_size() >= BUCKET_BYTES:
                self._buckets.append(_Bucket(stop))
            bucket = self._buckets[-1]
            # Laid out like the parameter, as fused optimizers want it.
            slot = self._flat[stop : stop + size].as_strided(parameter.shape, parameter.stride())
            bucket.slots.append((parameter, slot))
            bucket.missing += 1
            bucket.stop = stop = stop + size
            self._bucket_of[parameter] = bucket

    def _note(self, parameter: Tensor) -> None:
        assert isinstance(parameter, nn.Parameter)
        self._bucket_of[parameter].missing -= 1
        while len(self._sent) < len(self._buckets) and not self._buckets[len(self._sent)].missing:
            self._send()

    def _send(self) -> None:
        """Moves the next bucket's gradients into the flat tensor, and begins to add them up."""
        bucket = self._buckets[len(self._sent)]
        moved = [(parameter, slot, parameter.grad) for parameter, slot in bucket.slots if parameter.grad is not None]
        if moved:
            torch._foreach_copy_([slot for _, slot, _ in moved], [gradient for _, _, gradient in moved])
        for parameter, slot, _ in moved:
            parameter.grad = slot
        work = None
        if world_size() > 1:
            with contact():
                work = dist.all_reduce(self._flat[bucket.start : bucket.stop], async_op=True)
        self._sent.append(work)


def largest_over_ranks(value: int) -> int:
    """The largest of the ranks' values."""
    if world_size() == 1:
        return value
    tensor = torch.tensor(value, dtype=torch.int64)
    with contact():
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return int(tensor)


def broadcast_tensors(tensors: Sequence[Tensor]) -> None:
    """Gives every rank the tensors of rank 0, in place."""
    if world_size() > 1:
        with contact(), torch.no_grad():
            for tensor in tensors:
                whole = tensor.contiguous()
                dist.broadcast(whole, 0)
                tensor.copy_(whole)


def check_agreement(tensors: Iterable[Tensor], what: str) -> None:
    """Compares an exact fingerprint of tensors (on one device, of 4 or 8 bytes an element) over all ranks.

    Raises:
        RunError: a rank's tensors differ from rank 0's: a broken machine, or a mistake in this program.
    """
    if world_size() == 1:
        return
    bits = {4: torch.int32, 8: torch.int64}
    sums = [tensor.detach().contiguous().view(bits[tensor.element_size()]).sum(dtype=torch.int64) for tensor in tensors]
    own = torch.stack(sums).cpu()
    everybody = [torch.empty_like(own) for _ in range(world_size())]
    with contact():
        dist.all_gather(everybody, own)
    odd = [number for number, other in enumerate(everybody) if not torch.equal(other, everybody[0])]
    if odd:
        raise RunError(
            f"rank {odd[0]}: its {what} differs from rank 0's, which must never happen. Nothing of this was saved; check "
            "that machine's memory and GPU, and start the same command again."
        )


def collect_rounds(items: Iterator[T], total: int) -> Iterator[list[T]]:
    """Brings together what the ranks have made, in order: item i is made by rank i % world_size().

    Args:
        items: this rank's items, in order.
        total: how many items all ranks have together.
    Yields:
        One list per round, on every rank alike often: on rank 0 the next items in order (at most one of each rank), on
        the others nothing.
    """
    ranks = world_size()
    for start in range(0, total, ranks):
        if ranks == 1:
            yield [next(items)]
            continue
        mine = [next(items)] if start + rank() < total else []
        gathered: list[list[T]] | None = [[]] * ranks if rank() == 0 else None
        with contact():
            dist.gather_object(mine, gathered)
        yield [item for part in gathered or [] for item in part]


def collect_in_order(items: Iterator[T], total: int) -> Iterator[T]:
    """`collect_rounds`, one item after the other: all of them on rank 0; on the others none, but run through it."""
    for arrived in collect_rounds(items, total):
        yield from arrived
