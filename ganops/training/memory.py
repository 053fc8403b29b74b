"""How much memory a step takes, found by trying: each phase once, on one micro-batch, without changing anything."""

import gc
import math
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ganops.collectives import largest_over_ranks
from ganops.config_train import TrainParams
from ganops.distributed import make_generator
from ganops.entry import say
from ganops.errors import RunError
from ganops.files import format_bytes
from ganops.launch import world_size
from ganops.networks.sampling import one_hot
from ganops.training.losses import dmain_loss, dr1_loss, gmain_loss, gpl_loss, pl_batch_size
from ganops.training.schedule import Stage, stages
from ganops.training.state import TrainingState
from ganops.training.step import draw_latents, image_shape, make_augment, set_lod, without_gradients
from ganops.training.wgan import wgan_dmain_loss, wgan_gmain_loss

SHARE = 0.9  # of the free memory that a proposal may fill: other programs and fragmentation need some


@dataclass(frozen=True)
class Peak:
    """The most memory that a phase held at once on a micro-batch, in bytes: of the GPU, or of this process."""

    phase: str
    images: int
    bytes: int


def dry_run(state: TrainingState, params: TrainParams, batch_gpu: int, lod: float = 0.0) -> Peak:
    """Runs every phase of a step forward and backward on one micro-batch, and tells the peak of the largest.

    Gradients are dropped and running means do not move: `state` is the same, bit for bit.

    Args:
        state: on its device.
        params: section `train`, of a stage.
        batch_gpu: images of the micro-batch.
        lod: of growing networks; 0 = the full resolution.
    Raises:
        torch.OutOfMemoryError: it does not fit into the GPU.
    """
    peaks = []
    set_lod(state, lod)
    for phase, run in _phases(state, params, batch_gpu):
        _start_measuring(state.device)
        try:
            network = state.G if phase.startswith("G") else state.D
            if world_size() > 1:  # then the flat tensor is there while the backward pass runs, otherwise after it
                message = _flat_gradients(network)
                run()
                del message
            else:
                run()
                if state.device.type == "cuda":
                    _flat_gradients(network)
        except RuntimeError as error:
            if "ALLOC_FAILED" in str(error):  # cuBLAS and cuDNN, for their workspaces
                raise torch.OutOfMemoryError(str(error)) from None
            raise
        finally:
            state.G.zero_grad(set_to_none=True)
            state.D.zero_grad(set_to_none=True)
        peaks.append(Peak(phase, batch_gpu, _peak_bytes(state.device)))
    return max(peaks, key=lambda peak: peak.bytes)


def _flat_gradients(network: nn.Module) -> Tensor:
    """As much memory as `GradientSum` takes."""
    parameters = list(network.parameters())
    return torch.zeros(sum(p.numel() for p in parameters), dtype=parameters[0].dtype, device=parameters[0].device)


def _phases(state: TrainingState, params: TrainParams, n: int) -> Iterator[tuple[str, Callable[[], None]]]:
    counts = (1,) * max(state.G.c_dim, 1)  # vectors of labels would take no more
    rng = make_generator(state.device, "dry run")
    shape = [n, *image_shape(state.G)]
    real_img = torch.zeros(shape, device=state.device)
    mix = torch.rand(n, device=state.device, generator=rng)
    # ADA draws nothing at first: memory is tried with what it may come to.
    worst = params.ada_max_p if params.augment == "ada" else params.augment_p
    augmented = make_augment(state, params, "dry run", "real", 0, worst)
    real_c = one_hot(torch.zeros(n, dtype=torch.int64, device=state.device), state.G.c_dim)

    def gmain() -> None:
        latents = draw_latents(state, params, "Gmain", 0, n, counts)
        args = (state.G, state.D, latents)
        with without_gradients(state.D):
            if params.loss == "wgan-gp":
                _backward(wgan_gmain_loss(*args, params.acgan_weight, "random", rng, augmented).loss)
            else:
                _backward(gmain_loss(*args, "random", rng, augmented).loss)

    def gpl() -> None:
        m = pl_batch_size(n, params.pl_batch_shrink)
        latents = draw_latents(state, params, "Gpl", 0, m, counts)
        noise = torch.randn([m, *shape[1:]], device=state.device, generator=rng)
        args = (state.pl_mean, params.pl_decay, params.pl_weight)
        _backward(gpl_loss(state.G, latents, noise, *args, "random", rng).loss)

    def dmain() -> None:
        latents = draw_latents(state, params, "Dmain", 0, n, counts)
        args = (state.G, state.D, latents, real_img, real_c)
        if params.loss == "wgan-gp":
            weights = (params.gp_weight, params.drift_weight, params.acgan_weight)
            _backward(wgan_dmain_loss(*args, mix, *weights, "random", rng, augmented, augmented).loss)
        else:
            _backward(dmain_loss(*args, "random", rng, augmented, augmented).loss)

    def dr1() -> None:
        _backward(dr1_loss(state.D, real_img, real_c, params.r1_gamma, augmented).loss)

    yield "Gmain", gmain
    if params.pl_weight:
        yield "Gpl", gpl
    yield "Dmain", dmain
    if params.r1_gamma:
        yield "Dr1", dr1


def _backward(loss: Tensor) -> None:
    loss.mean().backward()  # type: ignore[no-untyped-call]


def _start_measuring(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):  # not Linux, or forbidden: the peak is then the process's so far
        Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held now (proc(5))


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def announce_memory(state: TrainingState, params: TrainParams) -> Peak:
    """Says before the first step how much memory a step will take, and returns it.

    Raises:
        RunError: train.batch_gpu does not fit into the GPU; names the largest that does.
    """
    failed, peaks = "", []
    for stage in stages(params, state.G.resolution):
        try:
            peaks.append(dry_run(state, stage.params, stage.params.batch_gpu, _lod_of(state, stage)))
        except torch.OutOfMemoryError:
            failed = failed or f" at {stage.resolution} px"
    gc.collect()
    if largest_over_ranks(int(bool(failed))):
        if failed:
            torch.cuda.empty_cache()
        if params.lod_initial_resolution is not None:
            raise RunError(
                f"a micro-batch does not fit into {_describe(state.device)}{failed}. Lower train.batch_gpu_by_resolution "
                "there, or train.batch_gpu (results change slightly, so it starts a run of its own)."
            )
        sizes = [size for size in possible_sizes(params) if size < params.batch_gpu]
        best = largest_that_fits(sizes, fits_into_memory(state, params))
        advice = (
            f"train.batch_gpu: {best} fits"
            if best
            else "Not even the smallest fits; lower channel_base, channel_max or mbstd_group_size"
        )
        raise RunError(
            f"train.batch_gpu={params.batch_gpu} does not fit into {_describe(state.device)}. {advice} (micro-batch size "
            "changes results slightly, so it starts a run of its own)."
        )
    peak = max(peaks, key=lambda peak: peak.bytes)
    most = largest_over_ranks(peak.bytes)
    say(
        f"train: memory: {peak.phase} on {peak.images} images takes the most, {format_bytes(most)} "
        f"of {_describe(state.device)}"
    )
    return Peak(peak.phase, peak.images, most)


def _lod_of(state: TrainingState, stage: Stage) -> float:
    """Where a stage takes the most: while it fades in, both of two resolutions are there."""
    lod = math.log2(state.G.resolution / stage.resolution)
    return lod + 0.5 if stage.step and stage.params.lod_transition_kimg else lod


def place_images(
    choice: Literal["auto", "always", "never"], image_bytes: int, peak: Peak, device: torch.device
) -> bool:
    """Whether all images go into the GPU's memory, the same on every rank; with a GPU it says what is done and why.

    A tenth of the memory stays free: for fragmentation, other programs, and the extractor when a distance is measured.

    Args:
        choice: run.data_on_gpu.
        image_bytes: of all images.
        peak: what a step takes, see `announce_memory`.
        device: of the state.
    Raises:
        RunError: `always`, but the device is a CPU or they do not fit.
    """
    images, setting = format_bytes(image_bytes), f"run.data_on_gpu={choice}"
    if device.type != "cuda":
        if choice == "always":
            raise RunError(f"{setting}, but training runs on a CPU. Set run.data_on_gpu: auto.")
        return False
    if choice == "never":
        say(f"train: images: batches are read from the shards and copied to the GPU ({setting})")
        return False
    usable = free_bytes(device) + torch.cuda.memory_reserved(device)
    sizes = (
        f"{images} of images beside the {format_bytes(peak.bytes)} of a step into the {format_bytes(usable)} of the GPU"
    )
    if largest_over_ranks(int(image_bytes + peak.bytes > SHARE * usable)):
        if choice == "always":
            raise RunError(f"{setting}, but {sizes} do not fit ({SHARE:.0%} may be filled). Set run.data_on_gpu: auto.")
        say(f"train: images: batches are read from the shards and copied to the GPU; {sizes} do not fit ({setting})")
        return False
    say(f"train: images: all of them go to the GPU; {sizes} fit ({setting})")
    return True


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        total = torch.cuda.mem_get_info(device)[1]
        return f"the {format_bytes(total)} of {torch.cuda.get_device_name(device)}"
    return f"the {format_bytes(free_bytes(device))} that are free"


def free_bytes(device: torch.device) -> int:
    """Memory that this process may still take: of the GPU, or of the machine."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info(device)[0]
    try:
        return int(Path("/proc/meminfo").read_text().split("MemAvailable:")[1].split()[0]) * 1024
    except (OSError, IndexError):  # not Linux: all that there is
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def possible_sizes(params: TrainParams) -> list[int]:
    """Values of batch_gpu that `train` accepts, ascending: they divide the batch and hold whole groups."""
    group = min(params.mbstd_group_size, params.batch_size) if params.mbstd_num_channels else 1
    return [n for n in range(group, params.batch_size + 1, group) if params.batch_size % n == 0]


def largest_that_fits(sizes: list[int], fits: Callable[[int], bool]) -> int | None:
    """The largest of ascending `sizes` that fits, tried from the smallest on; None if not even that does."""
    best = None
    for size in sizes:
        if not fits(size):
            break
        best = size
    return best


def fits_into_memory(state: TrainingState, params: TrainParams) -> Callable[[int], bool]:
    """A test for micro-batch sizes: on CUDA it tries them; on a CPU it foretells from the two smallest.

    A CPU machine that runs out of memory kills processes, so there nothing is tried that might not fit: the need grows in
    proportion to the images.
    """
    if state.device.type == "cuda":
        return lambda batch_gpu: _fits_gpu(state, params, batch_gpu)
    sizes = possible_sizes(params)
    small, other = sizes[0], sizes[min(1, len(sizes) - 1)]
    base = dry_run(state, params, small).bytes
    per_image = (dry_run(state, params, other).bytes - base) / max(other - small, 1)
    gc.collect()
    limit = SHARE * free_bytes(state.device) + _held_bytes()
    return lambda batch_gpu: base + per_image * (batch_gpu - small) <= limit


def _fits_gpu(state: TrainingState, params: TrainParams, batch_gpu: int) -> bool:
    try:
        peak = dry_run(state, params, batch_gpu).bytes
    except torch.OutOfMemoryError:
        return False
    finally:
        gc.collect()
        torch.cuda.empty_cache()
    return peak <= SHARE * torch.cuda.mem_get_info(state.device)[1]


def _held_bytes() -> int:
    try:
        return int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
