"""The training state: complete, exact, deterministic, and never half."""

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ganops.errors import DamagedState, RunError
from ganops.training.saver import StateWriter
from ganops.training.state import (
    Best,
    Retry,
    TrainingState,
    copy_state,
    load_state,
    read_state_metadata,
    save_state,
    state_tensors,
)
from tests.unit.tiny import ROOT, run_steps, tiny_params, tiny_state

PROVENANCE = {"identity": {"data": "x"}}


def equal(one: TrainingState, other: TrainingState) -> bool:
    pairs = zip(state_tensors(one).items(), state_tensors(other).items(), strict=True)
    return all(a == b and torch.equal(x, y) for (a, x), (b, y) in pairs)


def test_a_resumed_state_trains_bit_for_bit_the_same(tmp_path: Path) -> None:
    params = tiny_params()
    state = tiny_state(params)
    run_steps(state, params, 5)
    save_state(tmp_path / "state.safetensors", state, PROVENANCE)
    run_steps(state, params, 7)

    resumed = tiny_state(params)
    load_state(tmp_path / "state.safetensors", resumed)
    assert resumed.nimg == 5 * params.batch_size
    run_steps(resumed, params, 7)
    assert equal(state, resumed)
    assert state.sums.keys() == resumed.sums.keys()
    assert all(torch.equal(state.sums[name], resumed.sums[name]) for name in state.sums)


@pytest.mark.parametrize("lost", ["G_opt", "D_opt", "pl_mean", "w_avg", "G_ema"])
def test_every_part_of_the_state_matters(tmp_path: Path, lost: str) -> None:
    """What the public implementations forget when they resume changes the result: the test above would see it."""
    params = tiny_params()
    state = tiny_state(params)
    run_steps(state, params, 5)
    save_state(tmp_path / "state.safetensors", state, PROVENANCE)
    resumed = tiny_state(params)
    load_state(tmp_path / "state.safetensors", resumed)
    for name, tensor in state_tensors(resumed).items():
        if lost in name:
            with torch.no_grad():
                tensor.zero_()
    run_steps(state, params, 4)
    run_steps(resumed, params, 4)
    assert not equal(state, resumed)


# What may differ between a state that was trained and one that was loaded: nothing but what is here, with the reason.
FUNCTIONS_OF_NIMG = {
    ".G_opt.param_groups.0.lr": "set at the start of each step, by schedule.lr_factor",
    ".D_opt.param_groups.0.lr": "the same",
}


def children(thing: Any) -> dict[str, Any] | None:
    """What an object consists of, by name; None for a leaf."""
    if isinstance(thing, torch.Tensor):
        return {"grad": thing.grad} if thing.requires_grad else None
    if isinstance(thing, dict):
        return {key if isinstance(key, str) else str(number): thing[key] for number, key in enumerate(thing)}
    if isinstance(thing, list | tuple):
        return {str(number): value for number, value in enumerate(thing)}
    if isinstance(thing, type) or callable(getattr(thing, "__code__", None)) or not hasattr(thing, "__dict__"):
        return None
    return dict(vars(thing))


def differences(one: Any, other: Any, path: str = "", seen: set[int] | None = None) -> list[str]:
    """Where two object graphs differ: every attribute of every object that training reaches, by path."""
    seen = set() if seen is None else seen
    if path in FUNCTIONS_OF_NIMG:
        return []
    if type(one) is not type(other):
        return [path]
    found = []
    if isinstance(one, torch.Tensor) and not (one.requires_grad == other.requires_grad and torch.equal(one, other)):
        found.append(path)
    mine, theirs = children(one), children(other)
    if mine is None or theirs is None:
        same = isinstance(one, torch.Tensor) or one is other or one == other or callable(one)
        return found if same else [path]
    if id(one) in seen:
        return found
    seen.add(id(one))
    if mine.keys() != theirs.keys():
        return [*found, f"{path}: {sorted(mine.keys() ^ theirs.keys())}"]
    for name, value in mine.items():
        found += differences(value, theirs[name], f"{path}.{name}", seen)
    return found


def test_every_attribute_is_saved_or_a_function_of_nimg(tmp_path: Path) -> None:
    """Walks through all attributes of all objects that training reaches: networks, optimizers, means, whatever is added."""
    params = tiny_params()
    state = tiny_state(params)
    run_steps(state, params, 5)
    state.tick_nimg, state.best = 16, (Best(16, "fd_x", 1.5, "digest"), Best(8, "fd_x", 2.5, "digest"))
    state.retries = (Retry(40, 16, "why"),)
    save_state(tmp_path / "state.safetensors", state, PROVENANCE)
    fresh = tiny_state(params)
    assert len(differences(state, fresh)) > 50  # the walk sees that training changes things
    load_state(tmp_path / "state.safetensors", fresh)
    assert differences(state, fresh) == []


@pytest.mark.parametrize("where", ["G", "D.head", "G_opt", ""])
def test_the_walk_sees_an_attribute_that_is_forgotten(tmp_path: Path, where: str) -> None:
    params = tiny_params()
    state, fresh = tiny_state(params), tiny_state(params)
    save_state(tmp_path / "state.safetensors", state, PROVENANCE)
    load_state(tmp_path / "state.safetensors", fresh)
    assert differences(state, fresh) == []
    for number, whole in enumerate((state, fresh)):
        target: Any = whole
        for name in filter(None, where.split(".")):
            target = getattr(target, name)
        vars(target)["cache"] = number
    assert len(differences(state, fresh)) == 1


def test_equal_states_have_equal_bytes_in_every_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ganops.training.state import save_state\n"
        "from tests.unit.tiny import *\n"
        "p = tiny_params(); s = tiny_state(p); run_steps(s, p, 2)\n"
        "save_state(Path(sys.argv[1]), s, {'b': 1, 'a': 2, 'identity': {}})\n"
    )
    digests = set()
    for index in range(3):
        path = tmp_path / f"{index}.safetensors"
        subprocess.run([sys.executable, "-c", code, str(path)], check=True, cwd=ROOT)
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize("part", [0, 7, 1000, -1])
def test_a_truncated_state_is_refused(tmp_path: Path, part: int) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, tiny_state(tiny_params()), PROVENANCE)
    path.write_bytes(path.read_bytes()[:part])
    with pytest.raises(RunError, match="not a whole training state"):
        read_state_metadata(path)


def test_a_state_of_other_networks_is_refused(tmp_path: Path) -> None:
    save_state(tmp_path / "state.safetensors", tiny_state(tiny_params()), PROVENANCE)
    with pytest.raises(RunError, match="these networks need"):
        load_state(tmp_path / "state.safetensors", tiny_state(tiny_params(w_dim=12)))


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    state = tiny_state(tiny_params())
    save_state(path, state, PROVENANCE)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_state(path, state, {"identity": object()})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_flipped_byte_is_found(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, tiny_state(tiny_params()), PROVENANCE)
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    read_state_metadata(path)  # the header is whole
    with pytest.raises(DamagedState, match="its checksum differs"):
        load_state(path, tiny_state(tiny_params()))


def test_a_state_of_another_format_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, tiny_state(tiny_params()), {**PROVENANCE, "format": 1})
    with pytest.raises(
        RunError, match=r"state format 1, this version reads 3\. Continue with the version that wrote it"
    ):
        load_state(path, tiny_state(tiny_params()))


def test_training_goes_on_while_a_state_is_written(tmp_path: Path) -> None:
    """What is written is the state at the time of the copy, to the byte, although training has gone on since."""
    params = tiny_params()
    state = tiny_state(params)
    run_steps(state, params, 2)
    save_state(tmp_path / "at_once.safetensors", state, PROVENANCE)
    writer = StateWriter()
    writer.start(tmp_path / "beside.safetensors", copy_state(state, PROVENANCE))
    run_steps(state, params, 2)
    assert writer.finish()
    assert (tmp_path / "beside.safetensors").read_bytes() == (tmp_path / "at_once.safetensors").read_bytes()
    assert not writer.finish()


def test_what_goes_wrong_while_a_state_is_written_stops_training(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file where a folder should be")
    writer = StateWriter()
    writer.start(tmp_path / "folder" / "state.safetensors", copy_state(tiny_state(tiny_params()), PROVENANCE))
    with pytest.raises(RunError, match="folder"):
        writer.finish()
