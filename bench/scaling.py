"""Training by one rank and by two (gloo, one thread each) at the demo's values; and ways to add up gradients.

`python -m bench.scaling`, about three minutes on two cores. Both train the same model: two micro-batches per step.
"""

import multiprocessing
import os
import socket
import statistics
import time
from collections.abc import Callable
from multiprocessing.queues import SimpleQueue
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from bench.report import report
from bench.train import CLASS_COUNTS, random_batch
from ganops import collectives
from ganops.config import Params, load_params
from ganops.config_train import TrainParams
from ganops.distributed import configure_numerics, deal, joined_ranks, select_device
from ganops.images.dataset import Batch
from ganops.images.pixels import to_float
from ganops.networks.sampling import one_hot
from ganops.training.build import build_networks
from ganops.training.state import initial_state
from ganops.training.step import train_step

ROOT = Path(__file__).parents[1]
ROUNDS = 5  # the best counts: other work on the machine only adds time
STEPS = 16  # one period of r1_interval
PASSES = 60  # of D for each way to add up, the median counts
WHOLE = 1 << 40  # bytes of a bucket that holds everything


def params_of(batch_gpu: int) -> Params:
    params = load_params(ROOT / "params.yaml")
    train = TrainParams.model_validate(params.train.model_dump() | {"batch_gpu": batch_gpu})
    return params.model_copy(update={"train": train})


def best_seconds(function: Callable[[], Any], world: int) -> float:
    """Seconds of the best of ROUNDS calls; ranks start each round together."""
    times = []
    for _ in range(ROUNDS):
        if world > 1:
            dist.barrier()
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return min(times)


def run_rank(rank: int, world: int, port: int, answers: "SimpleQueue[dict[str, float]]") -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    params = params_of(16)
    train, prepare = params.train, params.prepare
    device = select_device("cpu", 1)
    configure_numerics(tf32=False, deterministic=False)
    with joined_ranks("train", params):
        state = initial_state(train, prepare.resolution, prepare.channels, len(CLASS_COUNTS), device)
        own = deal(train.batch_size // train.batch_gpu, rank, world)
        part = slice(own.start * train.batch_gpu, own.stop * train.batch_gpu)
        whole = random_batch(train, prepare.channels, prepare.resolution)
        batch = Batch(whole.images[part], whole.labels[part])

        def steps() -> None:
            for _ in range(STEPS):
                train_step(state, train, batch, CLASS_COUNTS)

        steps()
        found = {"step": best_seconds(steps, world) / STEPS}
        if world > 1:
            found |= {f"demo: {name}": value for name, value in compare_sums(state.D, batch).items()}
            large = TrainParams.model_validate(train.model_dump() | {"channel_base": 4096, "channel_max": 256})
            D = build_networks(large, prepare.resolution, prepare.channels, len(CLASS_COUNTS))[1]
            found |= {f"large: {name}": value for name, value in compare_sums(D, batch).items()}
            found["megabytes"] = parameter_bytes(D) / 1e6
    if rank == 0:
        answers.put(found)


def compare_sums(D: torch.nn.Module, batch: Batch) -> dict[str, float]:
    """Seconds (median) of a forward and backward pass of D on the batch, its gradients added up in several ways.

    The ways take turns, so that whatever else the machine does meets all of them alike.
    """
    img, c = to_float(batch.images[:8]), one_hot(batch.labels[:8], len(CLASS_COUNTS))
    wrapped = DistributedDataParallel(D)
    parameters = list(D.parameters())

    def backward(network: torch.nn.Module) -> None:
        network(img, c).sum().backward()

    def one_by_one() -> None:
        backward(D)
        for parameter in parameters:
            dist.all_reduce(parameter.grad)

    def flat() -> None:
        backward(D)
        collectives.GradientSum(parameters).finish()

    def overlapped() -> None:
        gradients = collectives.GradientSum(parameters)
        with gradients.last_backward():
            backward(D)
        gradients.finish()

    def in_messages_of(size: int, way: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            collectives.BUCKET_BYTES = size
            way()

        return run

    ways = {
        "none": lambda: backward(D),
        "one flat message after the backward pass": in_messages_of(WHOLE, flat),
        "one message from the hooks": in_messages_of(WHOLE, overlapped),
        "four messages after": in_messages_of(parameter_bytes(D) // 4, flat),
        "four messages overlapped": in_messages_of(parameter_bytes(D) // 4, overlapped),
        "one by one": one_by_one,
        "DDP": lambda: backward(wrapped),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(PASSES):
        for name, way in ways.items():
            dist.barrier()
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
            D.zero_grad(set_to_none=True)
    return {name: statistics.median(seconds) for name, seconds in times.items()}


def parameter_bytes(network: torch.nn.Module) -> int:
    return sum(parameter.nbytes for parameter in network.parameters())


def measure(world: int) -> dict[str, float]:
    """Rank 0's figures of a world of that size."""
    spawn = multiprocessing.get_context("spawn")
    answers: SimpleQueue[dict[str, float]] = spawn.SimpleQueue()
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    ranks = [spawn.Process(target=run_rank, args=(rank, world, port, answers)) for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
        assert process.exitcode == 0
    return answers.get()


def main() -> None:
    """One rank, two ranks, and the ways to add up."""
    load = os.getloadavg()[0]
    one, two = measure(1), measure(2)
    batch = params_of(16).train.batch_size
    rates = [batch / found["step"] for found in (one, two)]
    ways = {
        size: ", ".join(
            f"{name.removeprefix(size)} {1000 * value:.1f} ms" for name, value in two.items() if name.startswith(size)
        )
        for size in ("demo: ", "large: ")
    }
    report(
        "scaling",
        [
            f"load average at the start: {load:.1f}; best of {ROUNDS} rounds of {STEPS} steps; one thread per rank, gloo",
            f"the demo's networks, batch {batch} in two micro-batches: 1 rank {rates[0]:.0f} img/s, 2 ranks {rates[1]:.0f} "
            f"img/s: {rates[1] / rates[0]:.2f} times as fast, efficiency {100 * rates[1] / rates[0] / 2:.0f} %",
            f"D forward and backward on 8 images by 2 ranks, gradients added up; median of {PASSES}, the ways in turn: "
            + ways["demo: "],
            f"the same with 256 channels ({two['megabytes']:.0f} MB of gradients): " + ways["large: "],
        ],
    )


if __name__ == "__main__":
    main()
