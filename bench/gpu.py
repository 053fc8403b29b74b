"""Config-f at 256x256 on a CUDA device: seconds per kimg and peak memory in each precision, feature images/s, and
what saving a state costs.

`python -m bench.gpu`, a few minutes. Without a CUDA device it says so and ends well. Data are random bytes.
"""

import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor

from bench.features import write_network
from bench.report import report
from bench.states import states
from ganops.config import TrainParams, load_params
from ganops.distributed import configure_numerics, select_device
from ganops.images.dataset import Batch
from ganops.metrics import extractor as module
from ganops.metrics.extractor import Extractor, load_extractor
from ganops.training.state import initial_state
from ganops.training.step import train_step

ROOT = Path(__file__).parents[1]
RESOLUTION, CHANNELS = 256, 3
BATCH_SIZE, BATCH_GPU = 32, 8
WARM_UP, STEPS = 5, 16  # one period of r1_interval, four of pl_interval
FEATURE_BATCH, FEATURE_BATCHES = 64, 8


def config_f(precision: str, tf32: bool) -> TrainParams:
    """The preset for 256x256 with config-f's channels."""
    low = precision != "float32"
    return TrainParams.model_validate(
        load_params(ROOT / "presets" / "ffhq256.yaml").train.model_dump()
        | {
            "channel_base": 32768,
            "channel_max": 512,
            "batch_size": BATCH_SIZE,
            "batch_gpu": BATCH_GPU,
            "precision": precision,
            "low_precision_resolutions": 4 if low else 0,
            "conv_clamp": 256.0 if low else None,
            "tf32": tf32,
        }
    )


def seconds_of(function: Callable[[], Any], count: int) -> float:
    """Seconds of `count` calls, waiting for the device."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(count):
        function()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def training(device: torch.device, name: str, params: TrainParams, deterministic: bool) -> str:
    """One line on one precision."""
    configure_numerics(params.tf32, deterministic)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    state = initial_state(params, RESOLUTION, CHANNELS, 0, device)
    rng = torch.Generator().manual_seed(0)
    shape = [params.batch_size, CHANNELS, RESOLUTION, RESOLUTION]
    batch = Batch(
        torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng).pin_memory(),
        torch.zeros(params.batch_size, dtype=torch.int64),
    )
    seconds_of(lambda: train_step(state, params, batch, ()), WARM_UP)
    seconds = seconds_of(lambda: train_step(state, params, batch, ()), STEPS) / (STEPS * params.batch_size)
    memory = torch.cuda.max_memory_allocated() / 2**30
    order = "deterministic" if deterministic else "sums in any order"
    return (
        f"training, {name}, {order}: {1000 * seconds:.2f} sec/kimg, {1 / seconds:.0f} img/s, "
        f"peak memory {memory:.1f} GiB, {int(state.nonfinite_steps)} steps not finite at the end"
    )


def features(extractor: Extractor, name: str) -> str:
    """One line on one extractor; images come from the CPU's memory, as they do from shards."""
    rng = torch.Generator().manual_seed(0)
    shape = [FEATURE_BATCH, CHANNELS, RESOLUTION, RESOLUTION]
    images: Tensor = torch.randint(0, 256, shape, dtype=torch.uint8, generator=rng)
    seconds_of(lambda: extractor.features(images), 2)
    rate = FEATURE_BATCHES * FEATURE_BATCH / seconds_of(lambda: extractor.features(images), FEATURE_BATCHES)
    return f"features, {name}, {RESOLUTION} px, batch {FEATURE_BATCH}: {rate:.0f} img/s"


def extractors(device: torch.device) -> Iterator[str]:
    yield features(load_extractor("efficientnet-lite0", "", device, Path()), "efficientnet-lite0")
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        sha256 = write_network(Path(folder) / module.INCEPTION_FILE)
        with mock.patch.object(module, "INCEPTION_SHA256", sha256):
            extractor = load_extractor("inception-2015", "", device, Path(folder))
    yield features(extractor, "inception-2015's size with random weights, resize on one CPU core")


def main() -> None:
    """Precisions from the slowest to the fastest, then features."""
    if not torch.cuda.is_available():
        print("bench.gpu: no CUDA device here; nothing was measured.")
        return
    device = select_device("cuda", 1)
    modes = (
        ("float32", config_f("float32", False), True),
        ("TF32", config_f("float32", True), True),
        ("float16 in 4 resolutions", config_f("float16", False), True),
        ("float16 in 4 resolutions", config_f("float16", False), False),
    )
    lines = [f"config-f, {RESOLUTION}x{RESOLUTION}, batch {BATCH_SIZE} in micro-batches of {BATCH_GPU}, {STEPS} steps"]
    lines += [training(device, name, params, deterministic) for name, params, deterministic in modes]
    report("gpu", [*lines, *extractors(device), *states(device)])


if __name__ == "__main__":
    main()
