"""The stages stats and fid on a small set, with a stand-in in the place of the Inception file."""

import json
from pathlib import Path

import numpy as np
import pytest

from ganops.config import Params, load_params
from ganops.entry import Stage
from ganops.errors import DataError
from ganops.images.shards import ShardWriter
from ganops.metrics import extractor as module
from stages import fid, stats
from tests.standin import write_inception, write_standin

ROOT = Path(__file__).parents[2]


def write_images(folder: Path, seed: int, count: int, source: dict[str, object], size: int = 8) -> str:
    """Random grey images as shards; their digest."""
    images = np.random.default_rng(seed).integers(0, 256, (count, 1, size, size), dtype=np.uint8) // (seed + 1)
    with ShardWriter(folder, 16, size, 1, (), {}) as writer:
        writer.append(images, np.zeros(count, np.int64))
        return writer.close(source).digest


def make_stage(root: Path, name: str, **values: object) -> Stage:
    params: Params = load_params(ROOT / "params.yaml")
    section = params.stats.model_copy(update={"batch_size": 8, "keep_features": 10, **values})
    fakes = params.fid.model_copy(update={"num_fake": 20})
    paths = tuple(root / path for path in ("data/shards", "data/samples", "data/stats.npz", "results/fid.json"))
    return Stage(name, params.model_copy(update={"stats": section, "fid": fakes}), paths, root)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    digest = write_images(tmp_path / "data" / "shards", 0, 30, {})
    write_images(tmp_path / "data" / "samples", 1, 25, {"training": {"data_digest": digest, "kimg": 3.0}})
    return tmp_path


def test_only_inception_gives_fid(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "INCEPTION_SHA256", write_inception(root / "data" / "weights" / module.INCEPTION_FILE))
    stats.main(make_stage(root, "stats", extractor="inception-2015"))
    fid.main(make_stage(root, "fid", extractor="inception-2015"))
    result = json.loads((root / "results" / "fid.json").read_text())
    assert sorted(result) == ["fid", "protocol"]
    protocol = result["protocol"]
    assert protocol["resizer"] == "cleanfid-clean-299"
    assert (protocol["num_real"], protocol["num_fake"], protocol["num_features"]) == (30, 20, 2048)
    assert protocol["num_fake_below_dimension"] is True
    assert protocol["samples"]["training"]["kimg"] == 3.0
    assert sorted(protocol["versions"]) == ["clean-fid", "numpy", "pillow", "torch"]
    said = capsys.readouterr().out
    assert "fid: fewer images than the 2048 features" in said
    assert said.splitlines()[-1].startswith("fid: fid = ")
    assert str(root) not in (root / "results" / "fid.json").read_text()


@pytest.fixture
def network(root: Path) -> dict[str, object]:
    sha256 = write_standin(root / "net.pt")
    return {"extractor": str(root / "net.pt"), "extractor_sha256": sha256}


def test_equal_runs_write_equal_bytes(root: Path, network: dict[str, object]) -> None:
    written = []
    for _ in range(2):
        stats.main(make_stage(root, "stats", **network))
        fid.main(make_stage(root, "fid", **network))
        written.append([(root / path).read_bytes() for path in ("data/stats.npz", "results/fid.json")])
    assert written[0] == written[1]
    result = json.loads(written[0][1])
    assert sorted(result) == ["fd_net", "protocol"]
    assert result["protocol"]["num_fake_below_dimension"] is False


def test_stats_keeps_features_of_the_whole_set(root: Path, network: dict[str, object]) -> None:
    rows = []
    for keep in (30, 10):
        stats.main(make_stage(root, "stats", keep_features=keep, **network))
        with np.load(root / "data" / "stats.npz") as file:
            rows.append(file["features"])
    assert np.array_equal(rows[1], rows[0][::3])


def test_statistics_of_other_data_or_another_protocol_are_refused(root: Path, network: dict[str, object]) -> None:
    stats.main(make_stage(root, "stats", **network))
    other = {"extractor": str(root / "other.pt"), "extractor_sha256": write_standin(root / "other.pt")}
    with pytest.raises(DataError, match=r"^extractor is net\.pt in .*but other\.pt"):
        fid.main(make_stage(root, "fid", **other))
    with pytest.raises(DataError, match="^ddof is 1"):
        fid.main(make_stage(root, "fid", ddof=0, **network))
    samples = root / "data" / "samples"
    write_images(samples, 1, 25, {"training": {"data_digest": "0" * 64}})
    with pytest.raises(DataError, match="^data_digest is"):
        fid.main(make_stage(root, "fid", **network))
    write_images(samples, 1, 25, {"training": {"data_digest": "0" * 64}}, size=16)
    with pytest.raises(DataError, match="^resolution is 8 .* but 16"):
        fid.main(make_stage(root, "fid", **network))
    write_images(samples, 1, 25, {})
    with pytest.raises(DataError, match="does not say what data"):
        fid.main(make_stage(root, "fid", **network))
    write_images(samples, 1, 19, {})
    with pytest.raises(DataError, match="num_fake=20, but data/samples has 19"):
        fid.main(make_stage(root, "fid", **network))
    assert not (root / "results").exists()
