"""Adds up gradients in worlds of 1, 2 and 3 ranks: `python -m tests.unit.sums OUT`. The test reads what is left.

Networks of a few products whose graphs differ from rank to rank, in messages of a few bytes; the real gloo.
"""

import json
import multiprocessing
import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import nn

from ganops import collectives
from ganops.collectives import GradientSum
from ganops.config import load_params
from ganops.distributed import deal, joined_ranks
from ganops.errors import LostContact
from tests.unit.tiny import ROOT

SHAPES = ((3,), (2, 5), (), (4, 1, 3), (6,), (1,), (7,))
UNUSED, FROZEN = 3, 5  # the first takes part in nothing, the other does not learn
MICRO_BATCHES = 4
WORLDS = (1, 2, 3)
MODES = ("in order", "backwards", "rank by rank", "one message")


def parameters() -> list[nn.Parameter]:
    rng = torch.Generator().manual_seed(0)
    made = [nn.Parameter(torch.randn(shape, generator=rng, dtype=torch.float64)) for shape in SHAPES]
    made[FROZEN].requires_grad_(False)
    return made


def loss(values: list[nn.Parameter], micro_batch: int, order: list[int]) -> torch.Tensor:
    """A sum of parts, one per parameter; backward passes reach them from the last of `order` to the first."""
    total = torch.zeros([], dtype=torch.float64)
    for place in order:
        total = total + (values[place] * (micro_batch + 1)).square().sum() * (place + 1)
    return total


def order_of(mode: str, number: int, micro_batch: int) -> list[int]:
    """In the order of the parameters, against it, or: on odd ranks against it, and each micro-batch leaves one out."""
    used = [place for place in range(len(SHAPES)) if place != UNUSED]
    if mode == "backwards" or (mode == "rank by rank" and number % 2):
        used.reverse()
    if mode == "rank by rank" and micro_batch % 2:  # of two of a rank's own at least one holds it
        used.remove(number)
    return used


def add_up(number: int, world: int, mode: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """This rank's gradients after the sum, and what happened in which order."""
    collectives.BUCKET_BYTES = 1 << 30 if mode == "one message" else 48
    events: list[str] = []
    all_reduce = dist.all_reduce

    def noted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        events.append(f"sent {tensor.numel()}")
        return all_reduce(tensor, *args, **kwargs)

    dist.all_reduce = noted
    try:
        values = parameters()
        gradients = GradientSum(values)
        for index in (own := deal(MICRO_BATCHES, number, world)):
            part = loss(values, index, order_of(mode, number, index - own[0]))
            if index == own[-1]:
                with gradients.last_backward():
                    part.backward()
                events.append("backward ended")
            else:
                part.backward()
        whole = gradients.finish()
    finally:
        dist.all_reduce = all_reduce
    found = {str(place): value.grad.clone() for place, value in enumerate(values) if value.grad is not None}
    for gradient in whole:  # what is done to the whole is done to each
        gradient.mul_(2)
    for place, value in enumerate(values):
        if value.grad is not None:
            assert torch.equal(value.grad, 2 * found[str(place)])
            assert value.grad.stride() == value.stride()
    return found, events


def work(number: int, world: int, port: int, out: Path) -> None:
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(world), "LOCAL_RANK": str(number)}
    os.environ |= {"LOCAL_WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    with joined_ranks("train", load_params(ROOT / "params.yaml")):
        for mode in MODES:
            found, events = add_up(number, world, mode)
            save_file(found, out / f"{world}-{number}-{mode}.safetensors")
            (out / f"{world}-{number}-{mode}.json").write_text(json.dumps(events))


def lose_contact(number: int, port: int, out: Path) -> None:
    """Two ranks, of which one ends when its gradients are due."""
    os.environ |= {"RANK": str(number), "WORLD_SIZE": "2", "LOCAL_RANK": str(number), "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    collectives.BUCKET_BYTES = 48
    try:
        with joined_ranks("train", load_params(ROOT / "params.yaml")):
            values = parameters()
            gradients = GradientSum(values)
            if number:
                os._exit(0)
            with gradients.last_backward():
                loss(values, 0, order_of("in order", 0, 0)).backward()
            gradients.finish()
    except LostContact as error:
        (out / "lost.txt").write_text(str(error))


def main(out: Path) -> None:
    fork = multiprocessing.get_context("fork")

    def run(target: Any, *leading: int, world: int) -> None:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        ranks = [fork.Process(target=target, args=(number, *leading, port, out)) for number in range(world)]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        assert not any(process.exitcode for process in ranks), [process.exitcode for process in ranks]

    for world in WORLDS:
        run(work, world, world=world)
    run(lose_contact, world=2)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
