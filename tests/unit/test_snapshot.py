"""Snapshots: round trip, equal bytes in every process, and errors that name the file."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch

from ganops.errors import WeightsError
from ganops.networks.snapshot import load_snapshot, save_snapshot
from tests.unit.test_networks import latents, make_generator, seeded

METADATA = {"kimg": 12.5, "params": {"b": [1, None], "a": "x"}, "data_digest": "0" * 64}

SAVE = """
import sys
from pathlib import Path
from ganops.networks.snapshot import save_snapshot
from tests.unit.test_networks import make_generator, seeded
save_snapshot(Path(sys.argv[1]), make_generator(seeded(), c_dim=3), {"z": 1, "a": {"c": 2, "b": 3}, "kimg": 1.5})
"""


def rewrite(path: Path, change: Any) -> None:
    """Applies `change` to the header's JSON and the tensors of a snapshot."""
    with safetensors.safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["ganops"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(header, tensors)
    safetensors.torch.save_file(tensors, path, {"ganops": json.dumps(header)})


@pytest.fixture
def snapshot(tmp_path: Path) -> Path:
    path = tmp_path / "G.safetensors"
    save_snapshot(path, make_generator(seeded(), c_dim=3), METADATA)
    return path


def test_round_trip(snapshot: Path) -> None:
    G = make_generator(seeded(), c_dim=3)
    loaded, metadata = load_snapshot(snapshot)
    assert metadata == METADATA
    assert loaded.arguments == G.arguments
    state, other = G.state_dict(), loaded.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)
    z, c = latents(G)
    assert torch.equal(loaded(z, c, 0.7, 2, "const", None), G(z, c, 0.7, 2, "const", None))
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_one_metadata_key(snapshot: Path) -> None:
    with safetensors.safe_open(snapshot, framework="pt") as file:
        assert list(file.metadata()) == ["ganops"]
        text = file.metadata()["ganops"]
    assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))


def test_every_process_writes_the_same_bytes(tmp_path: Path) -> None:
    digests = set()
    for index in range(3):
        path = tmp_path / f"{index}.safetensors"
        environment = {"PYTHONHASHSEED": str(index), "OMP_NUM_THREADS": "1", "PATH": "", "PYTHONPATH": str(Path.cwd())}
        subprocess.run([sys.executable, "-c", SAVE, str(path)], check=True, env=environment)
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.parametrize("damage", ["empty", "cut", "header", "text"])
def test_damaged_file(snapshot: Path, damage: str) -> None:
    content = snapshot.read_bytes()
    damaged = {"empty": b"", "cut": content[:-7], "header": b"\xff" * 16 + content[16:], "text": b"not a snapshot"}
    snapshot.write_bytes(damaged[damage])
    with pytest.raises(WeightsError, match=r"G\.safetensors: cannot read as safetensors"):
        load_snapshot(snapshot)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"none\.safetensors: no such file"):
        load_snapshot(tmp_path / "none.safetensors")


def test_foreign_file(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"foreign\.safetensors: has no metadata key 'ganops'"):
        load_snapshot(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header, tensors: header["arguments"].update(colour=1), "unknown constructor arguments colour"),
        (lambda header, tensors: header["arguments"].pop("w_dim"), "lacks constructor arguments w_dim"),
        (lambda header, tensors: header["arguments"].update(w_dim="wide"), "no generator can be made"),
        (lambda header, tensors: header["arguments"].update(channel_max=8), "do not fit its arguments: .* is "),
        (lambda header, tensors: header.update(family="stylegan9"), "family='stylegan9', but this version reads"),
        (lambda header, tensors: header.update(format_version=99), "format_version=99, but this version reads 1"),
        (lambda header, tensors: header.pop("metadata"), "lacks arguments or metadata"),
        (lambda header, tensors: tensors.pop("w_avg"), "w_avg is missing or unexpected"),
        (lambda header, tensors: tensors.update(more=torch.zeros(1)), "more is missing or unexpected"),
    ],
)
def test_what_does_not_fit(snapshot: Path, change: Any, message: str) -> None:
    rewrite(snapshot, change)
    with pytest.raises(WeightsError, match=message):
        load_snapshot(snapshot)


def test_metadata_must_be_finite_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_snapshot(tmp_path / "G.safetensors", make_generator(seeded()), {"fid": float("nan")})
    assert not list(tmp_path.iterdir())
