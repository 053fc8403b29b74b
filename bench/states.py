"""What saving a state costs at config-f's sizes for 256x256, against the training that it interrupts.

`python -m bench.states`, about eight minutes on a CPU. A state is copied to host memory between two steps and written by
a thread: the first is what training waits for, the second slows the steps beside it.
"""

import os
import tempfile
import threading
import time
from pathlib import Path

import torch

from bench.report import report
from ganops.config import load_params
from ganops.config_train import TrainParams
from ganops.distributed import configure_numerics, select_device
from ganops.images.dataset import Batch
from ganops.training.saver import StateWriter
from ganops.training.state import TrainingState, copy_state, initial_state, load_state, state_tensors
from ganops.training.step import train_step

ROOT = Path(__file__).parents[1]
RESOLUTION, CHANNELS = 256, 3
BATCH = 4  # per step; what a step takes per image hardly depends on it on a CPU
COPIES = 3


def config_f() -> TrainParams:
    """The preset for 256x256 with config-f's channels, in float32."""
    values = load_params(ROOT / "presets" / "ffhq256.yaml").train.model_dump()
    changes = {"channel_base": 32768, "channel_max": 512, "batch_size": BATCH, "batch_gpu": BATCH}
    low = {"precision": "float32", "low_precision_resolutions": 0, "conv_clamp": None}
    return TrainParams.model_validate(values | changes | low)


def step_seconds(state: TrainingState, params: TrainParams) -> float:
    """Seconds of a step without regularisation: what most steps are, and so the least that a state is held against."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, [BATCH, CHANNELS, RESOLUTION, RESOLUTION], dtype=torch.uint8, generator=rng)
    state.nimg = BATCH  # the second step: nothing lazy is due
    start = time.perf_counter()
    train_step(state, params, Batch(images, torch.zeros(BATCH, dtype=torch.int64)), ())
    if state.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def states(device: torch.device) -> list[str]:
    """Figures on one device."""
    params = config_f()
    configure_numerics(params.tf32, deterministic=False)
    state = initial_state(params, RESOLUTION, CHANNELS, 0, device)
    step_seconds(state, params)  # warm-up
    alone = step_seconds(state, params)
    size = sum(tensor.nbytes for tensor in state_tensors(state).values())
    with tempfile.TemporaryDirectory(dir=ROOT) as folder:
        path = Path(folder) / "state.safetensors"
        copying = []
        for _ in range(COPIES):  # the first allocates the memory that later ones find again
            start = time.perf_counter()
            copy = copy_state(state, {})
            copying.append(time.perf_counter() - start)
        writer = StateWriter()
        started = time.perf_counter()
        writer.start(path, copy)
        ended: list[float] = []

        def note_the_end() -> None:
            while not ended:
                if writer._thread is None or not writer._thread.is_alive():
                    ended.append(time.perf_counter() - started)
                time.sleep(0.01)

        watch = threading.Thread(target=note_the_end)
        watch.start()
        beside = [step_seconds(state, params)]
        while not ended:
            beside.append(step_seconds(state, params))
        watch.join()
        writer.finish()
        start = time.perf_counter()
        load_state(path, state)
        loading = time.perf_counter() - start
    kimg = alone / BATCH * 1000
    slowed = max(sum(beside) - len(beside) * alone, 0.0)
    wait = min(copying[1:])
    return [
        f"config-f, {CHANNELS}x{RESOLUTION}x{RESOLUTION}, {device.type}: a step of {BATCH} images without regularisation "
        f"{alone:.2f} s, so {kimg:.0f} sec/kimg",
        f"a state: {size / 1e6:.0f} MB, {len(state_tensors(state))} tensors; copied to host memory in {copying[0]:.2f} s at "
        f"first, {wait:.2f} s afterwards; written by the thread in {ended[0]:.1f} s, fsync and checksum included",
        f"{len(beside)} steps beside the writing: {slowed:.2f} s longer than as many without",
        f"overhead of a state per kimg: {100 * (wait + slowed) / kimg:.3f} % of the training time "
        f"(waiting {100 * wait / kimg:.3f} %, slower steps {100 * slowed / kimg:.3f} %)",
        f"loading it again, checksum included: {loading:.2f} s",
    ]


def main() -> None:
    """On one CPU thread; bench.gpu measures the same on a GPU."""
    device = select_device("cpu", 1)
    report("states", [f"load average at the start: {os.getloadavg()[0]:.1f}; one CPU thread", *states(device)])


if __name__ == "__main__":
    main()
