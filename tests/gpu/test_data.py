"""On a CUDA device: batches arrive whole and in order, training never waits for the GPU, gradients lie in one piece."""

import copy
import itertools
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ganops.collectives import GradientSum
from ganops.config_train import TrainParams
from ganops.distributed import configure_numerics
from ganops.errors import RunError
from ganops.images.dataset import Batch, iterate_batches
from ganops.images.shards import Shards, ShardWriter, open_shards
from ganops.training.batches import device_batches, gather_batches, load_images, to_device
from ganops.training.memory import announce_memory, place_images
from ganops.training.state import TrainingState, initial_state, load_state, save_state, state_tensors
from ganops.training.step import train_step
from tests.unit.tiny import CLASS_COUNTS, run_steps, tiny_params

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 0)
COUNT = 203
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    # torch says of its check for synchronisations that it does not find every one.
    pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning"),
]


@pytest.fixture(autouse=True, scope="module")
def numerics() -> Iterator[None]:
    """Full float32 and deterministic algorithms, set before the first call of cuBLAS."""
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    configure_numerics(tf32=False, deterministic=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32


@contextmanager
def no_waiting() -> Iterator[None]:
    """Within, whatever makes the host wait for the GPU, and torch knows of, is an error."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def shards(tmp_path: Path) -> Shards:
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 1, 8, 8), dtype=np.uint8)
    with ShardWriter(tmp_path / "shards", 100, 8, 1, tuple("abc"), {}) as writer:
        writer.append(images, np.arange(COUNT) % 3)
        writer.close({})
    return open_shards(tmp_path / "shards", verify=True)


def from_shards(shards: Shards, start: int, size: int, part: range | None = None) -> Generator[Batch, None, None]:
    return cast(Generator[Batch, None, None], iterate_batches(shards, 0, start, size, part))


def stay_busy() -> Tensor:
    """Work for some milliseconds, which a host that waits for it would notice, and a copy that does not would overtake."""
    x = torch.ones([4096, 4096], device=CUDA)
    for _ in range(5):
        x = x @ x * 1e-4
    return x


def assert_arrive(ours: Iterator[Batch], theirs: Iterator[Batch], count: int) -> None:
    """Sums of each batch, computed on the device behind other work, and looked at only at the end."""
    seen: list[tuple[Tensor, Tensor]] = []
    for batch in itertools.islice(ours, count):
        assert batch.images.is_cuda
        assert batch.labels.is_cuda
        stay_busy()
        seen.append((batch.images.clone(), batch.labels.clone()))
    assert len(seen) == count
    for (images, labels), expected in zip(seen, theirs, strict=False):
        assert torch.equal(images.cpu(), expected.images)
        assert torch.equal(labels.cpu(), expected.labels)


@pytest.mark.parametrize("part", [None, range(8, 16)], ids=str)
def test_batches_arrive_whole_and_in_order(shards: Shards, part: range | None) -> None:
    """Although the memory of old ones is used again while the GPU still works on them."""
    assert_arrive(device_batches(from_shards(shards, 40, 16, part), CUDA), from_shards(shards, 40, 16, part), count=60)


def test_batches_that_end_arrive_to_the_last() -> None:
    def numbered() -> Generator[Batch, None, None]:
        for number in range(5):
            yield Batch(torch.full([2, 1, 4, 4], number, dtype=torch.uint8), torch.full([2], number))

    assert [int(batch.labels[0]) for batch in device_batches(numbered(), CUDA)] == [0, 1, 2, 3, 4]


def test_one_batch_is_copied_ahead() -> None:
    taken = []

    def numbered() -> Generator[Batch, None, None]:
        for number in itertools.count():
            taken.append(number)
            yield Batch(torch.zeros([2, 1, 4, 4], dtype=torch.uint8), torch.full([2], number))

    stream = device_batches(numbered(), CUDA)
    for number in range(4):
        assert int(next(stream).labels[0]) == number
        assert taken[-1] == number + 1
    stream.close()


def test_closing_ends_the_thread_that_reads(shards: Shards) -> None:
    before = threading.active_count()
    stream = device_batches(from_shards(shards, 0, 16), CUDA)
    next(stream)
    stream.close()
    assert threading.active_count() == before


@pytest.mark.parametrize("part", [None, range(8, 16)], ids=str)
def test_all_images_on_the_device_give_the_same_batches(shards: Shards, part: range | None) -> None:
    data = load_images(shards, CUDA)
    assert data.images.is_cuda
    assert_arrive(gather_batches(data, 0, 40, 16, part), from_shards(shards, 40, 16, part), count=60)


def test_a_copy_to_the_device_does_not_wait() -> None:
    stay_busy()  # once before, for what a library sets up
    source = torch.arange(1 << 20)
    with no_waiting():
        busy = stay_busy()
        copied = to_device(source, CUDA)
    source.zero_()  # the pinned copy was made before
    assert torch.equal(copied.cpu(), torch.arange(1 << 20))
    assert bool(torch.isfinite(busy).all())


def whole_params() -> TrainParams:
    """All phases in the first step, mixing and flips, two micro-batches of a step."""
    return tiny_params(batch_size=16, batch_gpu=8, pl_interval=1, r1_interval=1)


@pytest.mark.parametrize("resident", [False, True])
def test_steps_never_wait_for_the_gpu(shards: Shards, resident: bool) -> None:
    """All four phases, data included, after two steps in which libraries set themselves up."""
    params = whole_params()
    state = initial_state(params, 8, 1, len(CLASS_COUNTS), CUDA)
    if resident:
        batches = gather_batches(load_images(shards, CUDA), 0, 0, params.batch_size)
    else:
        batches = device_batches(from_shards(shards, 0, params.batch_size), CUDA)
    for _ in range(2):
        train_step(state, params, next(batches), CLASS_COUNTS)
    with no_waiting():
        for _ in range(30):  # over the end of an epoch
            train_step(state, params, next(batches), CLASS_COUNTS)
    batches.close()
    assert int(state.nonfinite_steps) == 0


def test_every_way_of_the_data_trains_the_same_bits(shards: Shards) -> None:
    """From the CPU within the step, copied ahead, and gathered on the device."""
    params = whole_params()
    ways = (
        from_shards(shards, 0, params.batch_size),
        device_batches(from_shards(shards, 0, params.batch_size), CUDA),
        gather_batches(load_images(shards, CUDA), 0, 0, params.batch_size),
    )
    found = []
    for batches in ways:
        state = initial_state(params, 8, 1, len(CLASS_COUNTS), CUDA)
        for batch in itertools.islice(batches, 15):
            train_step(state, params, batch, CLASS_COUNTS)
        batches.close()
        found.append(state_tensors(state))
    for other in found[1:]:
        assert all(torch.equal(value, other[name]) for name, value in found[0].items())


def test_gradients_lie_in_one_piece() -> None:
    """Each `grad` becomes a part of it, with the same bits; what has no gradient has none afterwards."""
    rng = torch.Generator().manual_seed(0)
    network = nn.ParameterList([torch.randn(shape, generator=rng) for shape in ((3,), (5, 2, 3, 3), (), (7,), (4,))])
    network.to(CUDA)
    values = list(network.parameters())
    values[4].requires_grad_(False)
    for number in (0, 1, 2):  # not the fourth
        values[number].grad = values[number].detach() * 2
    expected = [None if value.grad is None else value.grad.clone() for value in values]
    (flat,) = GradientSum(values).finish()
    for value, gradient in zip(values, expected, strict=True):
        if gradient is None:
            assert value.grad is None
            continue
        assert value.grad is not None
        assert torch.equal(value.grad, gradient)
        assert value.grad.data_ptr() % 16 == 0
        assert value.grad.untyped_storage().data_ptr() == flat.untyped_storage().data_ptr()
    present = [gradient.double() for gradient in expected if gradient is not None]
    norm = torch.linalg.vector_norm(torch.cat([gradient.flatten() for gradient in present]))
    torch.testing.assert_close(torch.linalg.vector_norm(flat.double()), norm)


def test_adam_is_fused_and_counts_on_the_device() -> None:
    state = initial_state(tiny_params(), 8, 1, len(CLASS_COUNTS), CUDA)
    for optimizer in (state.G_opt, state.D_opt):
        assert optimizer.defaults["fused"]
    tensors = state_tensors(state)
    assert all(value.is_cuda for value in tensors.values())
    expected = {name: (value.dtype, value.shape) for name, value in state_tensors(cpu_state()).items()}
    assert {name: (value.dtype, value.shape) for name, value in tensors.items()} == expected


def cpu_state() -> TrainingState:
    return initial_state(tiny_params(), 8, 1, len(CLASS_COUNTS), CPU)


@pytest.mark.parametrize(("first", "second"), [(CPU, CUDA), (CUDA, CPU)], ids=str)
def test_states_of_one_device_continue_on_the_other(tmp_path: Path, first: torch.device, second: torch.device) -> None:
    """Every tensor arrives with its bits, steps of Adam included, goes back with the same bytes, and training goes on."""
    params = tiny_params()
    state, other = (initial_state(params, 8, 1, len(CLASS_COUNTS), device) for device in (first, second))
    run_steps(state, params, 3)
    save_state(tmp_path / "there.safetensors", state, {})
    load_state(tmp_path / "there.safetensors", other)
    for (name, value), copied in zip(state_tensors(state).items(), state_tensors(other).values(), strict=True):
        assert torch.equal(value.cpu(), copied.cpu()), name
    save_state(tmp_path / "back.safetensors", other, {})
    assert (tmp_path / "back.safetensors").read_bytes() == (tmp_path / "there.safetensors").read_bytes()
    before = copy.deepcopy([parameter.detach() for parameter in other.G.parameters()])
    run_steps(other, params, 1)
    assert not all(torch.equal(a, b) for a, b in zip(before, other.G.parameters(), strict=True))
    steps = [value for name, value in state_tensors(other).items() if ".step." in name]
    assert max(int(value) for value in steps) >= 4


def test_images_go_to_the_gpu_when_they_fit() -> None:
    params = tiny_params()
    state = initial_state(params, 8, 1, len(CLASS_COUNTS), CUDA)
    peak = announce_memory(state, params)
    total = torch.cuda.mem_get_info(CUDA)[1]
    assert place_images("auto", 1000, peak, CUDA)
    assert not place_images("auto", total, peak, CUDA)
    assert not place_images("never", 1000, peak, CUDA)
    with pytest.raises(RunError, match=r"run\.data_on_gpu=always"):
        place_images("always", total, peak, CUDA)
