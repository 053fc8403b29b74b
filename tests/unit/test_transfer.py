"""Transfer learning: what of another run's file is taken, what is refused, and what stays frozen."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from ganops.errors import Interrupted, RunError, WeightsError
from ganops.images.dataset import Batch
from ganops.images.pixels import to_float
from ganops.networks.sampling import one_hot
from ganops.networks.snapshot import load_snapshot, save_snapshot
from ganops.training.losses import dr1_loss
from ganops.training.state import TrainingState, initial_state, read_state_metadata, save_state, state_tensors
from ganops.training.step import train_step
from ganops.training.transfer import init_sha256, start_from
from tests.unit.test_divergence import Fault, Trainer, all_params, trainer
from tests.unit.tiny import CLASS_COUNTS, run_steps, tiny_params, tiny_state

__all__ = ["trainer"]  # the fixture

PROVENANCE = {"run": "0123456789abcdef", "identity": {"data": "data digest"}, "accepted_code": []}
MARK = {"kimg": 0.024, "run": "0123456789abcdef", "data_digest": "data digest"}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingState, Path, Path]:
    """A state after three steps, its file and its snapshot."""
    params = tiny_params()
    state = tiny_state(params)
    run_steps(state, params, 3)
    folder = tmp_path_factory.mktemp("source")
    save_state(folder / "state.safetensors", state, PROVENANCE)
    save_snapshot(folder / "snapshot.safetensors", state.G_ema, MARK)
    return state, folder / "state.safetensors", folder / "snapshot.safetensors"


def parts(state: TrainingState, prefix: str) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in state_tensors(state).items() if name.startswith(prefix)}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_from_a_state_networks_are_taken_and_all_else_is_new(
    source: tuple[TrainingState, Path, Path],
) -> None:
    old, path, _ = source
    params = tiny_params(seed=1)
    state, fresh = tiny_state(params), tiny_state(params)
    assert start_from(path, state, tiny_params()) == {"networks": ["G", "D", "G_ema"], **MARK}
    for network in ("G.", "D.", "G_ema."):
        assert equal(parts(state, network), parts(old, network))
        assert not equal(parts(state, network), parts(fresh, network))
    for rest in ("G_opt.", "D_opt.", "pl_mean", "nonfinite_steps"):
        assert equal(parts(state, rest), parts(fresh, rest))
    assert not equal(parts(old, "D_opt."), parts(fresh, "D_opt."))
    assert (state.nimg, state.tick_nimg, state.sums, state.best, state.retries) == (0, 0, {}, (), ())


def test_from_a_snapshot_only_G_is_taken(
    source: tuple[TrainingState, Path, Path],
) -> None:
    """The snapshot is of G_ema: both G and G_ema start from it, D from its own random weights."""
    old, _, path = source
    params = tiny_params(seed=1)
    state, fresh = tiny_state(params), tiny_state(params)
    assert start_from(path, state, tiny_params()) == {"networks": ["G", "G_ema"], **MARK}
    averaged = {name.removeprefix("G_ema."): value for name, value in parts(old, "G_ema.").items()}
    for network in ("G.", "G_ema."):
        assert equal({name.removeprefix(network): value for name, value in parts(state, network).items()}, averaged)
    for rest in ("D.", "G_opt.", "D_opt."):
        assert equal(parts(state, rest), parts(fresh, rest))


@pytest.mark.parametrize("kind", [1, 2], ids=["state", "snapshot"])
@pytest.mark.parametrize(
    ("changes", "resolution", "message"),
    [
        ({"w_dim": 16}, 8, r"G\.mapping\.\S+ is \[.*\], but this network needs \[.*w_dim"),
        ({"channel_max": 4}, 8, r"G\.\S+ is \[.*\], but this network needs \[.*channel_max"),
        ({}, 16, r"G\.synthesis\.\S*16\S* is missing there\. .*resolution"),
        ({"conditional": False}, 8, r"G\.mapping\.\S+ is (missing there|not part of this network)\..*conditional"),
        ({"mapping_layers": 3}, 8, r"G\.mapping\.\S+ is missing there\. .*mapping_layers"),
    ],
    ids=["w_dim", "channels", "resolution", "conditional", "mapping_layers"],
)
def test_other_sizes_are_refused_by_the_name_of_a_tensor(
    source: tuple[TrainingState, Path, Path], kind: int, changes: dict[str, Any], resolution: int, message: str
) -> None:
    """Nothing is skipped in silence, and nothing was copied when it is refused."""
    path = source[kind]
    assert isinstance(path, Path)
    state = initial_state(tiny_params(**changes), resolution, 1, len(CLASS_COUNTS), torch.device("cpu"))
    before = parts(state, "")
    with pytest.raises(RunError, match=message) as error:
        start_from(path, state, tiny_params())
    assert str(error.value).startswith(f"train.init_from={path}: ")
    assert "\n" not in str(error.value)
    assert equal(parts(state, ""), before)


def test_another_number_of_classes_is_refused(source: tuple[TrainingState, Path, Path]) -> None:
    state = initial_state(tiny_params(), 8, 1, 5, torch.device("cpu"))
    with pytest.raises(RunError, match=r"mapping\.\S+ is \[.*3\], but this network needs \[.*5\]\. .*classes"):
        start_from(source[1], state, tiny_params())


def test_a_discriminator_of_another_kind_is_refused(source: tuple[TrainingState, Path, Path]) -> None:
    """G fits, D does not: the file of a state counts as a whole."""
    state = tiny_state(tiny_params(D_architecture="orig"))
    with pytest.raises(RunError, match=r"D\.\S+ is (missing there|not part of this network)\..*architectures"):
        start_from(source[1], state, tiny_params())


@pytest.mark.parametrize("kind", ["image", "text", "truncated state", "truncated snapshot", "other safetensors"])
def test_neither_a_state_nor_a_snapshot(source: tuple[TrainingState, Path, Path], tmp_path: Path, kind: str) -> None:
    """One clear error that names the file."""
    _, state_path, snapshot_path = source
    path = tmp_path / "file.safetensors"
    content = {
        "image": b"\x89PNG\r\n\x1a\n" + bytes(1000),
        "text": b"hello\n",
        "truncated state": state_path.read_bytes()[:-10],
        "truncated snapshot": snapshot_path.read_bytes()[:-10],
        "other safetensors": (2).to_bytes(8, "little") + b"{}",
    }[kind]
    path.write_bytes(content)
    with pytest.raises((RunError, WeightsError)) as error:
        start_from(path, tiny_state(tiny_params()), tiny_params())
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("name", "reason"), [("missing", "No such file"), ("folder", "Is a directory")])
def test_no_file(tmp_path: Path, name: str, reason: str) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(RunError, match=rf"train\.init_from={tmp_path / name}: {reason}.*presets/from_scratch"):
        init_sha256(tiny_params(init_from=str(tmp_path / name)))


def test_a_changed_state_is_refused(source: tuple[TrainingState, Path, Path], tmp_path: Path) -> None:
    """A flipped byte among the weights: the checksum tells."""
    content = bytearray(source[1].read_bytes())
    content[-20] ^= 1
    (tmp_path / "state.safetensors").write_bytes(content)
    with pytest.raises(RunError, match=r"state\.safetensors: not a whole training state \(its checksum differs"):
        start_from(tmp_path / "state.safetensors", tiny_state(tiny_params()), tiny_params())


def test_freezing_needs_a_discriminator(source: tuple[TrainingState, Path, Path]) -> None:
    with pytest.raises(RunError, match=r"D_freeze_blocks=1, but .* is a snapshot.*state\.safetensors"):
        start_from(source[2], tiny_state(tiny_params()), tiny_params().model_copy(update={"D_freeze_blocks": 1}))


def test_frozen_blocks_stay_and_the_others_learn() -> None:
    """FreezeD at 16x16: the block at the image stays bit for bit over steps of all phases; nothing else does."""
    params = tiny_params(D_freeze_blocks=1, init_from="some.safetensors", batch_gpu=8)
    state = initial_state(params, 16, 1, len(CLASS_COUNTS), torch.device("cpu"))
    before, opt_before = parts(state, "D."), parts(state, "D_opt.")
    rng = torch.Generator().manual_seed(0)
    for _ in range(3):
        images = torch.randint(0, 256, [8, 1, 16, 16], dtype=torch.uint8, generator=rng)
        train_step(state, params, Batch(images, torch.arange(8) % 3), CLASS_COUNTS)
    assert next(iter(state.D.blocks.keys())) == "16x16"
    moved = {name for name, value in parts(state, "D.").items() if not torch.equal(value, before[name])}
    frozen = {name for name in before if name.startswith("D.blocks.16x16.")}
    assert frozen
    learned = {f"D.{name}" for name, parameter in state.D.named_parameters()} - frozen
    assert moved == learned
    opt_moved = {name for name, value in parts(state, "D_opt.").items() if not torch.equal(value, opt_before[name])}
    assert not {name for name in opt_moved if ".blocks.16x16." in name}
    assert opt_moved
    assert all(parameter.requires_grad for name, parameter in state.D.named_parameters() if f"D.{name}" in learned)


def test_the_gradient_penalty_flows_through_frozen_blocks() -> None:
    """R1 differentiates with respect to the image, so through the frozen block: the others get the same gradients."""
    grads = []
    for frozen in (0, 1):
        changes = {"D_freeze_blocks": frozen, "init_from": "some.safetensors"}
        state = initial_state(tiny_params(**changes), 16, 1, len(CLASS_COUNTS), torch.device("cpu"))
        images = torch.randint(0, 256, [4, 1, 16, 16], generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        labels = one_hot(torch.arange(4) % 3, 3)
        dr1_loss(state.D, to_float(images), labels, 10.0).loss.mean().backward()
        grads.append({name: parameter.grad for name, parameter in state.D.named_parameters()})
    free, frozen_grads = grads
    for name, gradient in frozen_grads.items():
        # None too: biases of the last layer, on which R1 does not depend.
        if name.startswith("blocks.16x16.") or free[name] is None:
            assert gradient is None
        else:
            assert gradient is not None
            assert torch.equal(gradient, free[name])
    assert sum(float(g.abs().sum()) > 0 for n, g in frozen_grads.items() if g is not None) > 5


def test_a_transferred_run(trainer: Trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way: provenance in state and snapshot, resumed bit for bit, and the file counts by content not path."""
    trainer("old", all_params(total_kimg=0.04))
    origin, moved = trainer.folder / "old" / "models" / "state.safetensors", trainer.folder / "moved.safetensors"
    shutil.copy(origin, moved)
    changes = {"total_kimg": 0.08, "seed": 3, "D_freeze_blocks": 1}

    trainer("new", all_params(init_from=str(origin), **changes))
    published = trainer.folder / "new" / "models"
    metadata = read_state_metadata(published / "state.safetensors")
    old = read_state_metadata(origin)
    sha256 = init_sha256(tiny_params(init_from=str(origin)))
    expected = {
        "networks": ["G", "D", "G_ema"],
        "kimg": 0.04,
        "run": old["run"],
        "data_digest": old["identity"]["data"],
        "sha256": sha256,
    }
    assert metadata["init_from"] == expected
    assert metadata["identity"]["params"]["init_from"] == sha256
    assert str(origin) not in str(metadata)
    assert load_snapshot(published / "last.safetensors")[1]["init_from"] == expected

    fault = Fault(monkeypatch, lambda state: False)
    fault.stops = {(0, 48): "SIGTERM"}
    with pytest.raises(Interrupted):
        trainer("stopped", all_params(init_from=str(moved), **changes))
    trainer("stopped", all_params(init_from=str(moved), **changes))
    assert trainer.models("stopped") == trainer.models("new")
    assert trainer.run_path("stopped").name == trainer.run_path("new").name

    start = trainer.folder / "new" / "models" / "state.safetensors"  # other content: another run
    trainer("other", all_params(init_from=str(start), **changes))
    assert trainer.run_path("other").name != trainer.run_path("new").name
    with pytest.raises(RunError, match="is a snapshot, without a discriminator"):
        trainer("refused", all_params(init_from=str(published / "last.safetensors"), **changes))
    assert trainer.states("refused") == []


def test_rolled_back_to_the_start_is_rolled_back_to_the_transferred_weights(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not to random ones: with a roll-back before the first state, frozen weights are those of the file still."""
    trainer("old", all_params(total_kimg=0.04))
    origin = trainer.folder / "old" / "models" / "state.safetensors"
    seen: dict[str, torch.Tensor] = {}

    def when(state: TrainingState) -> bool:
        if state.retries and not seen:
            seen.update(parts(state, "D."))
        return not state.retries

    Fault(monkeypatch, when)
    trainer("new", all_params(init_from=str(origin), total_kimg=0.08, rollbacks=1))
    wanted = tiny_state(tiny_params())
    start_from(origin, wanted, tiny_params())
    assert equal(seen, parts(wanted, "D."))
