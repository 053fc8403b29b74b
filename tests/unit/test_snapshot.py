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
from ganops.networks.families import GENERATORS
from ganops.networks.snapshot import load_snapshot, save_snapshot
from tests.unit.growing import FAMILIES, make_G, stir
from tests.unit.test_networks import latents, make_generator, seeded

METADATA = {"kimg": 12.5, "params": {"b": [1, None], "a": "x"}, "data_digest": "0" * 64}

SAVE = """
import sys
from pathlib import Path
from ganops.networks.snapshot import save_snapshot
from tests.unit.test_networks import make_generator, seeded
save_snapshot(Path(sys.argv[1]), make_generator(seeded(), c_dim=3), {"z": 1, "a": {"c": 2, "b": 3}, "kimg": 1.5})
"""

SAVE_GROWING = """
import sys
from pathlib import Path
from ganops.networks.snapshot import save_snapshot
from tests.unit.growing import make_G, seeded
for family in ("stylegan1", "stylegan2-growing", "pggan"):
    G = make_G(family, seeded(), c_dim=3, base_grid=(3, 5), lod=2)
    G.set_lod(1.25)
    save_snapshot(Path(sys.argv[1]) / f"{family}.safetensors", G, {"z": 1, "a": {"c": 2, "b": 3}, "kimg": 1.5})
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


@pytest.mark.parametrize("family", FAMILIES)
def test_round_trip_of_half_grown_networks(tmp_path: Path, family: str) -> None:
    """A snapshot in the middle of growth knows how far it is, and that is not what the network was made with."""
    G = stir(make_G(family, seeded(), c_dim=3, base_grid=(3, 5), lod=2), 1).float()
    G.set_lod(0.75)
    G.w_avg.copy_(torch.randn(G.w_dim, generator=seeded(2)))
    path = tmp_path / "G.safetensors"
    save_snapshot(path, G, METADATA)
    with safetensors.safe_open(path, framework="pt") as file:
        assert json.loads(file.metadata()["ganops"])["family"] == family
    loaded, metadata = load_snapshot(path)
    assert type(loaded) is type(G)
    assert metadata == METADATA
    assert loaded.arguments == G.arguments
    assert loaded.arguments["lod"] == 0.75
    state, other = G.state_dict(), loaded.state_dict()
    assert state.keys() == other.keys()
    assert all(torch.equal(state[name], other[name]) for name in state)
    z, c = latents(G)
    img = loaded(z, c, 0.7, 2, "const", None)
    assert img.shape == (4, 3, 12, 20)
    assert torch.equal(img, G(z, c, 0.7, 2, "const", None))
    rewrite(path, lambda header, tensors: header["arguments"].update(lod=3))
    with pytest.raises(WeightsError, match=r"no generator can be made from its arguments \(lod=3 is not in \[0, 2\]"):
        load_snapshot(path)
    rewrite(path, lambda header, tensors: header["arguments"].update(lod=1, base_grid=[4]))
    with pytest.raises(WeightsError, match="no generator can be made from its arguments"):
        load_snapshot(path)


def test_every_process_writes_the_same_bytes_of_growing_networks(tmp_path: Path) -> None:
    digests: dict[str, set[str]] = {family: set() for family in FAMILIES}
    for index in range(2):
        folder = tmp_path / str(index)
        folder.mkdir()
        environment = {"PYTHONHASHSEED": str(index), "OMP_NUM_THREADS": "1", "PATH": "", "PYTHONPATH": str(Path.cwd())}
        subprocess.run([sys.executable, "-c", SAVE_GROWING, str(folder)], check=True, env=environment)
        for family in FAMILIES:
            digests[family].add(hashlib.sha256((folder / f"{family}.safetensors").read_bytes()).hexdigest())
    assert [len(found) for found in digests.values()] == [1] * len(FAMILIES)


def test_families_keep_their_names(snapshot: Path) -> None:
    """Snapshots that were written before there were other families say "stylegan2"."""
    with safetensors.safe_open(snapshot, framework="pt") as file:
        assert json.loads(file.metadata()["ganops"])["family"] == "stylegan2"
    assert list(GENERATORS) == ["stylegan2", "stylegan2-growing", "stylegan1", "pggan"]
    rewrite(snapshot, lambda header, tensors: header.update(family="pggan"))
    with pytest.raises(WeightsError, match="unknown constructor arguments architecture, "):
        load_snapshot(snapshot)


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
        (
            lambda header, tensors: header.update(family="stylegan9"),
            "family='stylegan9', but this version reads 'stylegan2' or ",
        ),
        (lambda header, tensors: header.update(family=["pggan"]), r"family=\['pggan'\], but this version reads"),
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
