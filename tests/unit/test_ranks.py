"""The same model for any number of ranks: real processes, real gloo, worlds of 1, 2, 3 and 4."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from ganops.distributed import deal
from tests.shared import made_once
from tests.tolerances import assert_close
from tests.unit.ranks import STEPS, WORLDS
from tests.unit.tiny import ROOT

DTYPES = ("float32", "float64")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of `tests.unit.ranks`: per world, rank and dtype the state and what was drawn."""

    def make(out: Path) -> None:
        subprocess.run([sys.executable, "-m", "tests.unit.ranks", str(out)], check=True, cwd=ROOT, timeout=600)

    return made_once(tmp_path_factory, "ranks", make)


def state_of(out: Path, world: int, rank: int, dtype: str) -> dict[str, Tensor]:
    return load_file(out / f"{world}-{rank}-{dtype}.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("world", WORLDS[1:])
def test_ranks_draw_and_read_what_one_rank_would(trained: Path, world: int, dtype: str) -> None:
    """z, labels, mixing, noise seeds, data and flips of every micro-batch of every phase, each on exactly one rank."""
    alone = json.loads((trained / f"1-0-{dtype}.json").read_text())
    parts = [json.loads((trained / f"{world}-{rank}-{dtype}.json").read_text()) for rank in range(world)]
    assert sum(len(part) for part in parts) == len(alone) > STEPS * 4 * 4
    assert {key: value for part in parts for key, value in part.items()} == alone


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("world", WORLDS[1:])
def test_ranks_train_the_same_weights(trained: Path, world: int, dtype: str) -> None:
    alone, together = state_of(trained, 1, 0, dtype), state_of(trained, world, 0, dtype)
    assert alone.keys() == together.keys()
    for name, value in alone.items():
        assert_close(together[name], value, f"ranks_{dtype}", name)


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS[1:])
def test_all_ranks_hold_the_same_bits(trained: Path, world: int) -> None:
    for dtype in DTYPES:
        first = state_of(trained, world, 0, dtype)
        for rank in range(1, world):
            other = state_of(trained, world, rank, dtype)
            assert all(torch.equal(first[name], other[name]) for name in first)


def test_micro_batches_are_dealt_in_blocks() -> None:
    assert [list(deal(8, rank, 3)) for rank in range(3)] == [[0, 1, 2], [3, 4, 5], [6, 7]]
    for count in range(12):
        for ranks in range(1, 6):
            dealt = [deal(count, rank, ranks) for rank in range(ranks)]
            assert [index for part in dealt for index in part] == list(range(count))
            assert max(map(len, dealt)) - min(map(len, dealt)) <= 1
