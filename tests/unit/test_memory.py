"""Memory: trying a step changes nothing, and what does not fit is answered with what does."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ganops.config_train import TrainParams
from ganops.errors import RunError
from ganops.training import memory
from ganops.training.memory import Peak, announce_memory, dry_run, largest_that_fits, possible_sizes
from ganops.training.state import TrainingState, state_tensors
from tests.unit.tiny import run_steps, tiny_params, tiny_state

ROOT = Path(__file__).parents[2]
MEGABYTE = 10**6


def test_a_dry_run_leaves_the_state_bit_for_bit() -> None:
    """Also in the middle of training, where moments and running means are not zero; and what follows is the same."""
    params = tiny_params()
    state, untouched = tiny_state(params), tiny_state(params)
    for one in (state, untouched):
        run_steps(one, params, 2)
    sums = {name: value.clone() for name, value in state.sums.items()}
    dry_run(state, params, params.batch_gpu)
    for (name, value), other in zip(state_tensors(state).items(), state_tensors(untouched).values(), strict=True):
        assert torch.equal(value, other), name
    assert all(p.grad is None for network in (state.G, state.D, state.G_ema) for p in network.parameters())
    assert all(p.requires_grad for network in (state.G, state.D) for p in network.parameters())
    assert (state.nimg, state.tick_nimg) == (untouched.nimg, untouched.tick_nimg)
    assert state.sums.keys() == sums.keys()
    assert all(torch.equal(state.sums[name], sums[name]) for name in sums)
    for one in (state, untouched):
        run_steps(one, params, 1)
    for (name, value), other in zip(state_tensors(state).items(), state_tensors(untouched).values(), strict=True):
        assert torch.equal(value, other), name


def test_a_dry_run_keeps_frozen_blocks_frozen() -> None:
    params = tiny_params(D_freeze_blocks=1, init_from="some.safetensors")
    state = tiny_state(params)
    before = {name: p.requires_grad for name, p in state.D.named_parameters()}
    assert False in before.values()
    dry_run(state, params, 4)
    assert {name: p.requires_grad for name, p in state.D.named_parameters()} == before


@pytest.mark.parametrize(
    "cause", ["CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "a bug"]
)
def test_libraries_without_memory_count_as_out_of_memory(monkeypatch: pytest.MonkeyPatch, cause: str) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError(cause)

    monkeypatch.setattr(memory, "dr1_loss", fail)
    params = tiny_params()
    with pytest.raises(RuntimeError) as error:
        dry_run(tiny_state(params), params, 4)
    assert isinstance(error.value, torch.OutOfMemoryError) == ("ALLOC_FAILED" in cause)


@pytest.mark.parametrize("failing", ["gmain_loss", "gpl_loss", "dmain_loss", "dr1_loss"])
def test_a_dry_run_that_fails_leaves_no_gradients(monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    """Out of memory in any phase: what was held is given back, and D learns again after Gmain."""

    def fail(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")

    monkeypatch.setattr(memory, failing, fail)
    params = tiny_params()
    state = tiny_state(params)
    before = {name: value.clone() for name, value in state_tensors(state).items()}
    with pytest.raises(torch.OutOfMemoryError):
        dry_run(state, params, 4)
    assert all(p.grad is None and p.requires_grad for network in (state.G, state.D) for p in network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in state_tensors(state).items())


def test_phases_that_are_off_are_not_tried() -> None:
    params = tiny_params(pl_weight=0.0, r1_gamma=0.0)
    names = [name for name, _ in memory._phases(tiny_state(params), params, 4)]
    assert names == ["Gmain", "Dmain"]


def test_the_peak_grows_with_the_batch() -> None:
    """Of a process on a CPU, which other tests have not left free memory to: against what it holds anyway."""
    code = "from tests.unit.test_memory import peaks_of_two_batches; print(*peaks_of_two_batches())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    small, large = map(int, done.stdout.split()[-2:])
    activations = 2048 * 32 * 8 * 8 * 4  # one layer's at 8x8
    assert small > 0
    assert large - small > activations


def peaks_of_two_batches() -> tuple[int, int]:
    """Bytes that a batch of 64 and one 32 times as large take."""
    params = tiny_params(
        batch_size=2048,
        tick_kimg=3.0,
        total_kimg=3.0,
        snapshot_kimg=0.0,
        metric_kimg=0.0,
        image_kimg=0.0,
        channel_base=256,
        channel_max=32,
    )
    state = tiny_state(params)
    dry_run(state, params, 64)  # what the first time alone takes
    small, large = dry_run(state, params, 64), dry_run(state, params, 2048)
    assert small.phase in ("Gmain", "Gpl", "Dmain", "Dr1")
    return small.bytes, large.bytes


@pytest.mark.parametrize(
    ("changes", "sizes"),
    [
        ({"batch_size": 32, "mbstd_group_size": 4}, [4, 8, 16, 32]),
        ({"batch_size": 24, "mbstd_group_size": 4}, [4, 8, 12, 24]),
        ({"batch_size": 24, "mbstd_group_size": 4, "mbstd_num_channels": 0}, [1, 2, 3, 4, 6, 8, 12, 24]),
        ({"batch_size": 6, "batch_gpu": 6, "mbstd_group_size": 3}, [3, 6]),
        ({"batch_size": 7, "batch_gpu": 7, "mbstd_group_size": 7}, [7]),
        ({"batch_size": 6, "batch_gpu": 6, "mbstd_group_size": 16}, [6]),  # PGGAN's last resolutions
    ],
)
def test_possible_sizes_divide_the_batch_and_hold_whole_groups(changes: dict[str, int], sizes: list[int]) -> None:
    """Exactly the values that params.yaml may hold."""
    params = tiny_params(**changes)
    assert possible_sizes(params) == sizes
    for size in range(1, params.batch_size + 1):
        try:
            accepted = TrainParams.model_validate(params.model_dump() | {"batch_gpu": size}).batch_gpu == size
        except ValueError:
            accepted = False
        assert accepted == (size in sizes), size


@pytest.mark.parametrize(("limit", "best"), [(0, None), (1, 1), (5, 4), (8, 8), (99, 16)])
def test_the_largest_that_fits(limit: int, best: int | None) -> None:
    """From below, and never a size beyond the first that fails: on a GPU that would be for nothing."""
    tried = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= limit

    assert largest_that_fits([1, 2, 4, 8, 16], fits) == best
    assert tried == [size for size in [1, 2, 4, 8, 16] if size // 2 <= limit]


def overflowing_from(limit: int) -> Callable[[TrainingState, TrainParams, int, float], Peak]:
    """A `dry_run` as on a GPU that holds `limit` images at most."""

    def run(state: TrainingState, params: TrainParams, batch_gpu: int, lod: float = 0.0) -> Peak:
        if batch_gpu > limit:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return Peak("Dr1", batch_gpu, batch_gpu * MEGABYTE)

    return run


def pretend_memory(monkeypatch: pytest.MonkeyPatch, limit: int, free: int) -> None:
    """A device on which `limit` images can be tried and `free` bytes are free, of which tests hold none."""
    monkeypatch.setattr(memory, "dry_run", overflowing_from(limit))
    monkeypatch.setattr(memory, "free_bytes", lambda _: free)
    monkeypatch.setattr(memory, "_held_bytes", lambda: 0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)


@pytest.mark.parametrize(("limit", "best"), [(16, 16), (12, 8), (4, 4), (2, 2)])
def test_what_does_not_fit_is_answered_with_what_does(monkeypatch: pytest.MonkeyPatch, limit: int, best: int) -> None:
    """One message with the value to set; before the first step. A tenth stays free: 16 images need 16 of 18 MB."""
    free = limit * MEGABYTE * 100 // 89
    pretend_memory(monkeypatch, limit, free)
    params = tiny_params(batch_size=32, batch_gpu=32, mbstd_num_channels=0)
    with pytest.raises(RunError) as error:
        announce_memory(tiny_state(params), params)
    text = str(error.value)
    assert "train.batch_gpu=32 does not fit into" in text
    assert f"train.batch_gpu: {best} fits" in text
    assert "changes results slightly" in text
    assert "\n" not in text


def test_when_not_even_the_smallest_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes that are tried on a CPU hold too little here to be foretold from: nothing fits."""
    pretend_memory(monkeypatch, 2, free=MEGABYTE // 2)
    params = tiny_params(batch_size=32, batch_gpu=32, mbstd_num_channels=0)
    with pytest.raises(
        RunError, match="Not even the smallest fits; lower channel_base, channel_max or mbstd_group_size"
    ):
        announce_memory(tiny_state(params), params)


def test_what_fits_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    pretend_memory(monkeypatch, 32, free=100 * MEGABYTE)
    params = tiny_params(batch_size=32, batch_gpu=32)
    announce_memory(tiny_state(params), params)
    said = capsys.readouterr().out
    assert said == "train: memory: Dr1 on 32 images takes the most, 32 MB of the 100 MB that are free\n"


def test_the_free_memory_is_that_of_the_machine() -> None:
    total = int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0]) * 1024
    assert 0 < memory.free_bytes(torch.device("cpu")) <= total
