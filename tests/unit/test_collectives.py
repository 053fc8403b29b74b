"""Gradients of several ranks: the same sum everywhere, in the same messages, whatever each rank's graph is."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ganops.distributed import deal
from tests.tolerances import assert_close
from tests.unit.sums import FROZEN, MICRO_BATCHES, MODES, SHAPES, UNUSED, WORLDS, loss, order_of, parameters
from tests.unit.tiny import ROOT


@pytest.fixture(scope="module")
def summed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of `tests.unit.sums`: per world, rank and mode the gradients and the messages."""
    out = tmp_path_factory.mktemp("sums")
    subprocess.run([sys.executable, "-m", "tests.unit.sums", str(out)], check=True, cwd=ROOT, timeout=300)
    return out


def expected_gradients(world: int, mode: str) -> dict[str, torch.Tensor]:
    """All micro-batches of all ranks one after the other, with nothing between."""
    values = parameters()
    for number in range(world):
        own = deal(MICRO_BATCHES, number, world)
        for index in own:
            loss(values, index, order_of(mode, number, index - own[0])).backward()  # type: ignore[no-untyped-call]
    return {str(place): value.grad for place, value in enumerate(values) if value.grad is not None}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("world", WORLDS)
def test_every_rank_gets_the_same_sum(summed: Path, world: int, mode: str) -> None:
    """To the bit on all ranks; parameters that nobody uses, or that do not learn, keep no gradient."""
    expected = expected_gradients(world, mode)
    assert expected.keys() == {str(place) for place in range(len(SHAPES))} - {str(UNUSED), str(FROZEN)}
    ranks = [load_file(summed / f"{world}-{number}-{mode}.safetensors") for number in range(world)]
    for found in ranks:
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], ranks[0][name]) for name in found)
    for name, value in expected.items():
        assert_close(ranks[0][name], value, "twin_float64", name)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("world", WORLDS)
def test_every_rank_sends_the_same_messages(summed: Path, world: int, mode: str) -> None:
    events = [json.loads((summed / f"{world}-{number}-{mode}.json").read_text()) for number in range(world)]
    messages = [[event for event in own if event != "backward ended"] for own in events]
    assert all(own == messages[0] for own in messages)
    # From the last parameter to the first (the frozen one left out), each padded to 4 numbers; 48 bytes are 6 of float64.
    sizes = [48] if mode == "one message" else [8, 8, 12, 4 + 12, 4]
    assert messages[0] == ([f"sent {size}" for size in sizes] if world > 1 else [])


@pytest.mark.parametrize("world", WORLDS[1:])
def test_messages_are_sent_while_the_backward_pass_runs(summed: Path, world: int) -> None:
    """All that is whole by then, but nothing from the first bucket on that waits for a gradient which never comes."""

    def sent_early(mode: str, number: int) -> int:
        return int(json.loads((summed / f"{world}-{number}-{mode}.json").read_text()).index("backward ended"))

    for number in range(world):
        assert sent_early("in order", number) == sent_early("backwards", number) == 2  # the third holds the unused one
        assert sent_early("one message", number) == 0


def test_a_rank_that_is_gone_is_told(summed: Path) -> None:
    text = (summed / "lost.txt").read_text()
    assert text.startswith("lost contact with another rank (")
    assert "Rank 1" in text
