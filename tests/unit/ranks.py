"""Trains tiny networks in worlds of 1, 2, 3 and 4 ranks: `python -m tests.unit.ranks OUT`. The test reads what is left.

Processes are forked, so torch is imported once; the real gloo, the real steps.
"""

import hashlib
import json
import multiprocessing
import os
import socket
import sys
from pathlib import Path

import torch
import torch._dynamo  # two seconds, at the first torch.optim of a process
from safetensors.torch import save_file
from torch import Tensor

from ganops.config import load_params
from ganops.distributed import deal, joined_ranks
from ganops.images.dataset import Batch
from ganops.training import step
from ganops.training.schedule import adam_values
from ganops.training.state import make_adam, state_tensors
from tests.unit.tiny import CLASS_COUNTS, ROOT, tiny_batch, tiny_params, tiny_state

STEPS = 20
WORLDS = (1, 2, 3, 4)


def hash_of(*tensors: Tensor | None) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(b"none" if tensor is None else tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def record_draws(draws: dict[str, str]) -> None:
    """Keeps a hash of everything random or read that a micro-batch sees."""
    draw_latents, real_micro_batch, make_generator = step.draw_latents, step.real_micro_batch, step.make_generator

    def latents(state, params, phase, index, count, counts):  # type: ignore[no-untyped-def]
        drawn = draw_latents(state, params, phase, index, count, counts)
        draws[f"{phase} {state.nimg} {index}"] = f"{hash_of(drawn.z, drawn.c, drawn.z_mixed)} {drawn.mixing_cutoff}"
        return drawn

    def reals(state, params, batch, place, index):  # type: ignore[no-untyped-def]
        img, c = real_micro_batch(state, params, batch, place, index)
        draws[f"reals {state.nimg} {index}"] = hash_of(img, c)
        return img, c

    def generator(device, *parts):  # type: ignore[no-untyped-def]
        rng = make_generator(device, *parts)
        if "noise" in parts:
            draws["noise " + " ".join(map(str, parts))] = str(rng.initial_seed())
        return rng

    step.draw_latents, step.real_micro_batch, step.make_generator = latents, reals, generator


def train(rank: int, world: int, port: int, dtype: torch.dtype, out: Path) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(world)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    params = tiny_params(batch_gpu=2, mbstd_group_size=2)
    draws: dict[str, str] = {}
    record_draws(draws)
    with joined_ranks("train", load_params(ROOT / "params.yaml")):
        state = tiny_state(params)
        if dtype != torch.float32:
            for network in (state.G, state.D, state.G_ema):
                network.to(dtype)
            state.pl_mean = state.pl_mean.to(dtype)
            state.G_opt = make_adam(state.G, adam_values(params, params.G_lr, params.pl_weight, params.pl_interval))
            state.D_opt = make_adam(state.D, adam_values(params, params.D_lr, params.r1_gamma, params.r1_interval))
        own = deal(4, rank, world)
        part = slice(own.start * 2, own.stop * 2)
        for _ in range(STEPS):
            whole = tiny_batch(params, state.nimg)
            step.train_step(state, params, Batch(whole.images[part], whole.labels[part]), CLASS_COUNTS)
    name = f"{world}-{rank}-{str(dtype).split('.')[1]}"
    sums = {f"sums.{key}": value for key, value in state.sums.items()}
    save_file(
        {key: value.contiguous() for key, value in (state_tensors(state) | sums).items()}, out / f"{name}.safetensors"
    )
    (out / f"{name}.json").write_text(json.dumps(draws))


def main(out: Path) -> None:
    fork = multiprocessing.get_context("fork")
    for dtype in (torch.float32, torch.float64):
        for world in WORLDS:
            with socket.create_server(("127.0.0.1", 0)) as probe:
                port = probe.getsockname()[1]
            ranks = [fork.Process(target=train, args=(rank, world, port, dtype, out)) for rank in range(world)]
            for process in ranks:
                process.start()
            for process in ranks:
                process.join()
            assert not any(process.exitcode for process in ranks), [process.exitcode for process in ranks]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
