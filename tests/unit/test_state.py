"""The training state: complete, exact, deterministic, and never half."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ganops.errors import RunError
from ganops.training.state import Best, TrainingState, load_state, read_state_metadata, save_state, state_tensors
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


def test_every_attribute_is_saved_or_a_function_of_params(tmp_path: Path) -> None:
    """A new attribute of the state must be classified here, and saved unless it is a constant."""
    saved = {"G", "D", "G_ema", "G_opt", "D_opt", "pl_mean", "nonfinite_steps", "nimg", "tick_nimg", "sums", "best"}
    params = tiny_params()
    state = tiny_state(params)
    assert set(vars(state)) == saved
    run_steps(state, params, 3)
    state.tick_nimg, state.best = 16, Best(16, "fd_x", 1.5, "digest")
    save_state(tmp_path / "state.safetensors", state, PROVENANCE)
    loaded = tiny_state(params)
    load_state(tmp_path / "state.safetensors", loaded)
    assert equal(state, loaded)
    assert (loaded.nimg, loaded.tick_nimg, loaded.best) == (state.nimg, 16, Best(16, "fd_x", 1.5, "digest"))
    for one, other in ((state.G_opt, loaded.G_opt), (state.D_opt, loaded.D_opt)):
        moments = [key for value in one.state.values() for key in value]
        assert set(moments) == {"step", "exp_avg", "exp_avg_sq"}
        assert len(other.state) == len(one.state)


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
