"""The stages stats and fid and the tool evaluate on a small set, with a stand-in in the place of the Inception file."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ganops.config import Params, load_params
from ganops.distributed import make_generator
from ganops.entry import Stage
from ganops.errors import DataError
from ganops.evaluation.images import evaluate_images
from ganops.images.shards import ShardWriter, open_shards
from ganops.metrics import inception
from ganops.metrics.statistics import load_statistics
from ganops.networks.snapshot import save_snapshot
from ganops.networks.stylegan2_generator import Generator
from ganops.protocols import METRICS
from stages import fid, stats
from tests.standin import write_inception, write_standin

ROOT = Path(__file__).parents[2]
FAKES = 20
MADE = yaml.safe_load((ROOT / "tests" / "pipeline" / "params.yaml").read_text())["sample"]
PATHS = (
    "data/shards",
    "data/samples",
    "data/stats.npz",
    "models/last.safetensors",
    "results/fid.json",
    "results/neighbours.png",
)
NUMBERS = [
    "fd_net",
    "fd_net_ci95",
    "fd_net_corrected",
    "kd_net",
    "kd_net_std",
    "memorised_net",
    "precision_net",
    "recall_net",
]


def write_images(folder: Path, seed: int, count: int, source: dict[str, object], size: int = 8) -> str:
    """Random grey images of three classes as shards; their digest. Samples say that they were made as params say."""
    source = {"sample": MADE, **source} if folder.name == "samples" else source
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 1, size, size), dtype=np.uint8) // (seed + 1)
    with ShardWriter(folder, 16, size, 1, ("a", "b", "c"), {}) as writer:
        writer.append(images, rng.integers(0, 3, count))
        return writer.close(source).digest


def make_params(root: Path, **changes: object) -> Params:
    """params.yaml with `section__key=value` changed, read and checked as a user's."""
    values: dict[str, Any] = yaml.safe_load((ROOT / "tests" / "pipeline" / "params.yaml").read_text())
    small: dict[str, object] = {"stats__batch_size": 8, "stats__keep_features": 10, "fid__num_fake": FAKES}
    for name, value in (small | changes).items():
        section, key = name.split("__")
        values[section][key] = value
    (root / "params.yaml").write_text(yaml.safe_dump(values))
    return load_params(root / "params.yaml")


def make_stage(root: Path, name: str, **changes: object) -> Stage:
    params = make_params(root, **changes)
    paths = dict.fromkeys(Path(path) for path in (*PATHS, params.stats.reference))
    return Stage(name, params, tuple(paths), root)


def run_both(root: Path, **changes: object) -> dict[str, Any]:
    stats.main(make_stage(root, "stats", **changes))
    fid.main(make_stage(root, "fid", **changes))
    result: dict[str, Any] = json.loads(Path("results/fid.json").read_text())
    return result


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    digest = write_images(tmp_path / "data" / "shards", 0, 30, {})
    write_images(tmp_path / "data" / "samples", 1, 25, {"training": {"data_digest": digest, "kimg": 3.0}})
    return tmp_path


@pytest.fixture
def network(root: Path) -> dict[str, object]:
    return {"stats__extractor": "net.pt", "stats__extractor_sha256": write_standin(root / "net.pt")}


@pytest.mark.parametrize("protocol", ["clean", "legacy"])
def test_only_inception_gives_fid(
    root: Path, protocol: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sha256 = write_inception(root / "data" / "weights" / inception.INCEPTION_FILE)
    monkeypatch.setattr(inception, "INCEPTION_SHA256", sha256)
    result = run_both(root, stats__extractor="inception-2015", fid__protocol=protocol)
    assert {f"fid_{protocol}", f"kid_{protocol}", f"precision_inception_{protocol}"} < set(result)
    assert "fid" not in result
    about = result["protocol"]
    assert about["resizer"] == {"clean": "pil-bicubic-antialias-299", "legacy": "tf1-bilinear-299"}[protocol]
    assert about["extractor_sha256"] == sha256
    assert (about["num_real"], about["num_fake"], about["num_features"]) == (30, FAKES, 2048)
    assert about["num_fake_below_dimension"] is True
    assert about["samples"]["training"]["kimg"] == 3.0
    said = capsys.readouterr().out
    assert "fid: fewer images than the 2048 features" in said
    assert f"fid: fid_{protocol} = " in said
    assert str(root) not in Path("results/fid.json").read_text()


def test_equal_runs_write_equal_bytes(root: Path, network: dict[str, object]) -> None:
    written = []
    for _ in range(2):
        result = run_both(root, **network)
        written.append([Path(path).read_bytes() for path in ("data/stats.npz", *PATHS[-2:])])
    assert written[0] == written[1]
    assert sorted(result) == sorted([*NUMBERS, "protocol"])
    assert all(isinstance(result[name], float) for name in NUMBERS)
    assert result["protocol"]["num_fake_below_dimension"] is False
    picture = np.asarray(Image.open("results/neighbours.png"))
    assert picture.shape == (
        16 * 50 - 2,
        6 * 50 - 2,
    )  # rows of a sample and five neighbours, 8 px shown six times as large


def test_stats_keeps_features_of_the_whole_set(root: Path, network: dict[str, object]) -> None:
    kept = []
    for keep in (30, 10):
        stats.main(make_stage(root, "stats", stats__keep_features=keep, **network))
        kept.append(load_statistics(Path("data/stats.npz")))
    assert np.array_equal(kept[1].features, kept[0].features[::3])
    assert kept[1].places.tolist() == list(range(0, 30, 3))
    labels = open_shards(Path("data/shards"), verify=False).labels
    assert np.array_equal(kept[1].labels, labels[::3])


def test_fewer_and_mirrored_references(root: Path, network: dict[str, object]) -> None:
    found = {}
    for name, changes in {
        "all": {},
        "half": {"stats__num_real": 15},
        "mirrored": {"stats__xflip": True},
    }.items():
        stats.main(make_stage(root, "stats", stats__keep_features=30, **changes, **network))
        found[name] = load_statistics(Path("data/stats.npz"))
    assert [found[name].num for name in found] == [30, 15, 60]
    assert np.array_equal(found["half"].features, found["all"].features[::2])
    np.testing.assert_allclose(found["half"].mu, found["all"].features[::2].mean(0, dtype=np.float64), rtol=1e-9)
    assert np.array_equal(found["mirrored"].features, found["all"].features)
    images = open_shards(Path("data/shards"), verify=False).gather(np.arange(30))
    write = Path("mirrored")
    write.mkdir()
    for index, image in enumerate(np.concatenate([images, images[..., ::-1]])):
        Image.fromarray(image[0]).save(write / f"{index:02d}.png")
    stats.main(make_stage(root, "stats", stats__reference="mirrored", **network))
    folder = load_statistics(Path("data/stats.npz"))
    np.testing.assert_allclose(folder.mu, found["mirrored"].mu, rtol=1e-12)
    np.testing.assert_allclose(folder.sigma, found["mirrored"].sigma, atol=1e-12)
    half = load_statistics(Path("data/stats.npz")).num
    stats.main(make_stage(root, "stats", stats__num_real=20, stats__xflip=True, **network))
    assert (half, load_statistics(Path("data/stats.npz")).num) == (60, 20)  # mirror images are counted
    stats.main(make_stage(root, "stats", stats__num_real=50, **network))
    assert load_statistics(Path("data/stats.npz")).num == 30  # at most so many
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(write / "00.png")
    with pytest.raises(DataError, match=r"^stats.reference=mirrored holds images of mixed px"):
        stats.main(make_stage(root, "stats", stats__reference="mirrored", **network))


def test_statistics_of_other_data_or_another_protocol_are_refused(root: Path, network: dict[str, object]) -> None:
    stats.main(make_stage(root, "stats", **network))
    sha256 = write_standin(root / "other.pt")
    for changes, message in (
        (
            {"stats__extractor": "other.pt", "stats__extractor_sha256": sha256},
            r"^extractor is net\.pt in .*but other\.pt",
        ),
        ({"stats__ddof": 0}, "^ddof is 1"),
        ({"stats__batch_size": 4}, "^batch_size is 8"),
        ({"stats__num_real": 20}, "^num_real_asked is all .* but 20"),
        ({"stats__xflip": True}, "^xflip is False .* but True"),
    ):
        with pytest.raises(DataError, match=message):
            fid.main(make_stage(root, "fid", **(network | changes)))
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


def test_samples_made_by_other_values_are_refused(root: Path, network: dict[str, object]) -> None:
    stats.main(make_stage(root, "stats", **network))
    with pytest.raises(DataError, match=r"made with sample.truncation_psi=1.0, not 0.5. Run `dvc repro sample`"):
        fid.main(make_stage(root, "fid", sample__truncation_psi=0.5, **network))
    digest = open_shards(Path("data/shards"), verify=False).index.digest
    write_images(root / "data" / "samples", 1, 25, {"training": {"data_digest": digest}, "sample": None})
    with pytest.raises(DataError, match=r"made with sample.snapshot=None"):
        fid.main(make_stage(root, "fid", **network))


def test_mirror_images_leave_enough_images(root: Path, network: dict[str, object]) -> None:
    with pytest.raises(DataError, match=r"num_real=12 with stats.xflip=true takes 6 images.*Set stats.num_real: 20"):
        stats.main(make_stage(root, "stats", stats__num_real=12, stats__xflip=True, **network))


@pytest.mark.parametrize(
    ("changes", "share"), [({}, 0.5), ({"stats__xflip": True}, 0.5), ({"stats__num_real": 20}, 0.5)]
)
def test_the_share_searched_for_memorised_images_is_of_the_training_images(
    root: Path, network: dict[str, object], changes: dict[str, object], share: float
) -> None:
    result = run_both(root, stats__keep_features=15, **changes, **network)
    assert result["protocol"]["memorised_searched"] == share


@pytest.mark.parametrize("name", ["train", "samples", "stats.npz"])
def test_a_reference_may_have_any_name(root: Path, name: str, network: dict[str, object]) -> None:
    """Also the names that the pipeline itself has; its images are not taken for those that were trained on."""
    folder = root / "ref" / name
    folder.mkdir(parents=True)
    for index, image in enumerate(open_shards(Path("data/shards"), verify=False).gather(np.arange(30))):
        Image.fromarray(image[0]).save(folder / f"{index:02d}.png")
    result = run_both(root, stats__reference=f"ref/{name}", **network)
    assert result["protocol"]["split"] == f"other: {name}"
    assert "memorised_net" not in result
    (folder / "00.png").unlink()
    with pytest.raises(DataError, match="^data_digest is"):
        fid.main(make_stage(root, "fid", stats__reference=f"ref/{name}", **network))


def test_training_images_that_are_all_the_same_end_in_a_line(root: Path, network: dict[str, object]) -> None:
    shutil.rmtree("data/shards")
    with ShardWriter(Path("data/shards"), 16, 8, 1, ("a", "b", "c"), {}) as writer:
        writer.append(np.zeros((30, 1, 8, 8), np.uint8), np.zeros(30, np.int64))
        digest = writer.close({}).digest
    write_images(root / "data" / "samples", 1, 25, {"training": {"data_digest": digest}})
    stats.main(make_stage(root, "stats", **network))
    with pytest.raises(DataError, match="cannot be measured by fid.metrics"):
        fid.main(make_stage(root, "fid", **network))


def test_a_preset_names_only_what_was_measured_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """params.yaml fits the preset, but the files at hand do not."""
    sha256 = write_inception(root / "data" / "weights" / inception.INCEPTION_FILE)
    monkeypatch.setattr(inception, "INCEPTION_SHA256", sha256)
    common = {"stats__extractor": "inception-2015", "stats__ddof": 0, "sample__count": 50000}
    stats.main(make_stage(root, "stats", fid__protocol="legacy", stats__num_real=12, **common))
    params = make_params(root, fid__protocol="fid50k_full", **(common | {"fid__num_fake": 50000}))
    with pytest.raises(DataError, match="^num_real_asked is 12, but fid.protocol=fid50k_full is measured with all"):
        evaluate_images(Path("data/samples"), Path("data/stats.npz"), params, root)
    stats.main(make_stage(root, "stats", fid__protocol="legacy", **common))
    with pytest.raises(DataError, match="^num_fake is 25, but fid.protocol=fid50k_full is measured with 50000"):
        evaluate_images(Path("data/samples"), Path("data/stats.npz"), params, root)


def test_classes_are_matched_by_name(
    root: Path, network: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"fid__metrics": ["distance", "class_distance"], "stats__keep_features": 30, **network}
    stats.main(make_stage(root, "stats", **changes))
    params = make_params(root, **changes)
    same = evaluate_images(Path("data/shards"), Path("data/stats.npz"), params, root)
    assert same["class_distance_net"] == pytest.approx(0, abs=1e-6)
    index = json.loads(Path("data/shards/index.json").read_text())
    index["class_names"] = index["class_names"][::-1]
    Path("data/shards/index.json").write_text(json.dumps(index))
    other = evaluate_images(Path("data/shards"), Path("data/stats.npz"), params, root)
    assert "class_distance_net" not in other
    assert "not measured: class_distance" in capsys.readouterr().out


def test_every_metric_at_once(root: Path) -> None:
    rng = make_generator(torch.device("cpu"), 0, "G")
    G = Generator(
        z_dim=4, c_dim=3, w_dim=4, resolution=8, base_grid=(4, 4), img_channels=1, mapping_layers=1,
        mapping_lr_multiplier=0.01, channel_base=32, channel_max=4,
        architecture="skip", precision="float32", low_precision_resolutions=0,
        conv_clamp=None, rng=rng,
    )  # fmt: skip
    save_snapshot(root / "models" / "last.safetensors", G, {"class_counts": [10, 10, 10]})
    names = list(METRICS)
    changes = {
        "fid__metrics": names,
        "fid__protocol": "clean",
        "stats__extractor": "efficientnet-lite0",
        "stats__keep_features": 30,
        "fid__num_fake": 100,
        "sample__count": 100,
    }
    digest = open_shards(Path("data/shards"), verify=False).index.digest
    write_images(root / "data" / "samples", 1, 100, {"training": {"data_digest": digest}})
    result = run_both(root, **changes)
    for name in (
        "kd",
        "precision",
        "density",
        "coverage",
        "is",
        "fd_infinity",
        "class_distance",
        "ppl_wend",
        "ppl_wfull",
    ):
        assert np.isfinite(result[f"{name}_efflite0"]), name
    assert sorted(result["classes"]) == ["a", "b", "c"]
    assert sum(numbers["num_fake"] for numbers in result["classes"].values()) == 100
    assert result["protocol"]["perceptual"]["name"] == "efflite0"
    assert result["ppl_wfull_efflite0"] > 0


def test_evaluating_a_folder_gives_the_pipelines_digits(
    root: Path, network: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    result = run_both(root, **network)
    params = make_params(root, **network)
    samples = open_shards(Path("data/samples"), verify=False).gather(np.arange(FAKES))
    reals = open_shards(Path("data/shards"), verify=False).gather(np.arange(30))
    with zipfile.ZipFile("samples.zip", "w") as archive:
        for name, images in (("samples", samples), ("reals", reals)):
            Path(name).mkdir()
            for index, image in enumerate(images):
                Image.fromarray(image[0]).save(f"{name}/{index:03d}.png")
                if name == "samples":
                    archive.write(f"{name}/{index:03d}.png")
    for source in ("samples", "samples.zip"):
        found = evaluate_images(Path(source), Path("data/stats.npz"), params, root)
        assert {name: found[name] for name in NUMBERS} == {name: result[name] for name in NUMBERS}
    found = evaluate_images(Path("samples"), Path("reals"), params, root)
    others = [name for name in NUMBERS if name != "memorised_net"]  # of a folder nobody knows what was trained on
    assert {name: found[name] for name in others} == {name: result[name] for name in others}
    assert "memorised_net" not in found
    found = evaluate_images(Path("data/samples"), Path("data/shards"), params, root)
    assert found["protocol"]["num_fake"] == 25
    Image.fromarray(np.zeros((16, 16), np.uint8)).save("samples/999.png")
    with pytest.raises(DataError, match="^resolution is 8 .* but mixed"):
        evaluate_images(Path("samples"), Path("data/stats.npz"), params, root)
    shutil.copy("params.yaml", "samples/998.png")
    with pytest.raises(DataError, match=r"^samples: 998\.png"):
        evaluate_images(Path("samples"), Path("data/stats.npz"), params, root)
    with pytest.raises(DataError, match="not found"):
        evaluate_images(Path("nowhere"), Path("data/stats.npz"), params, root)


def test_the_tool_prints_json_and_ends_mistakes_in_a_line(root: Path, network: dict[str, object]) -> None:
    stats.main(make_stage(root, "stats", **network))

    def evaluate(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "stages.evaluate", *arguments]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)

    done = evaluate("data/samples", "data/stats.npz", "found.json")
    assert done.returncode == 0, done.stderr
    written = json.loads((root / "found.json").read_text())
    assert json.loads(done.stdout[: done.stdout.rindex("}") + 1]) == written
    assert "evaluate: fd_net = " in done.stdout
    wrong = evaluate("nowhere", "data/stats.npz")
    assert (wrong.returncode, len(wrong.stderr.splitlines())) == (1, 1), wrong.stderr
    assert wrong.stderr.startswith("evaluate: nowhere not found")
    assert evaluate("one").stderr.startswith("usage: ")
    for target in ("", "no/folder/x.json", "data"):
        wrong = evaluate("data/samples", "data/stats.npz", target)
        assert "no place for a file" in wrong.stderr
        assert wrong.stdout == ""


def write_layered(folder: Path, seed: int, count: int, source: dict[str, object]) -> str:
    """Random 16-bit grey with alpha, 16x12, each with three attributes; their digest."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 65536, (count, 2, 16, 12), dtype=np.uint16) >> seed
    vectors = rng.random((count, 3), dtype=np.float32)
    with ShardWriter(folder, 16, (16, 12), 2, ("a", "b", "c"), {}, bits=16, multi_label=True) as writer:
        writer.append(images, vectors)
        return writer.close(source).digest


def test_other_shapes_channels_bits_and_labels(root: Path) -> None:
    shutil.rmtree("data/shards")
    digest = write_layered(root / "data" / "shards", 0, 40, {})
    write_layered(root / "data" / "samples", 1, 25, {"training": {"data_digest": digest, "kimg": 3.0}, "sample": MADE})
    changes = {
        "prepare__resolution": [16, 12], "prepare__channels": 2, "prepare__bits": 16, "prepare__background": [9, 8, 7],
        "stats__extractor": "efficientnet-lite0", "fid__protocol": "clean", "stats__keep_features": 40,
        "fid__metrics": ["distance", "class_distance"],
    }  # fmt: skip
    result = run_both(root, **changes)
    about = result["protocol"]
    assert (about["resolution"], about["channels"], about["bits"]) == ("16x12", 2, 16)
    assert about["channels_seen"] == "grey on background 9 8 7"
    real = open_shards(Path("data/shards"), verify=False).labels
    fake = open_shards(Path("data/samples"), verify=False).labels[:FAKES]
    counts = {name: (int((real[:, i] > 0.5).sum()), int((fake[:, i] > 0.5).sum())) for i, name in enumerate("abc")}
    classes = result["classes"]
    assert {name: (numbers["num_real"], numbers["num_fake"]) for name, numbers in classes.items()} == counts
    assert result["class_distance_efflite0"] == pytest.approx(
        np.mean([numbers["class_distance_efflite0"] for numbers in classes.values()])
    )
    picture = np.asarray(Image.open("results/neighbours.png"))
    assert picture.shape == (16 * (48 + 2) - 2, 6 * (36 + 2) - 2, 4)
    with pytest.raises(DataError, match="^channels_seen is grey on background 9 8 7 in the .* background 0 0 0 for"):
        fid.main(make_stage(root, "fid", **(changes | {"prepare__background": [0, 0, 0]})))
    statistics = load_statistics(Path("data/stats.npz"))
    assert np.array_equal(statistics.labels, real[statistics.places])
    same = evaluate_images(Path("data/shards"), Path("data/stats.npz"), make_params(root, **changes), root)
    assert same["class_distance_efflite0"] == pytest.approx(0, abs=1e-6)


def test_a_reference_of_another_shape_is_refused(root: Path, network: dict[str, object]) -> None:
    (root / "others").mkdir()
    for index in range(12):
        Image.fromarray(np.full((12, 16), index, np.uint8)).save(root / "others" / f"{index}.png")
    changes = {"stats__reference": "others", **network}
    with pytest.raises(DataError, match="others holds images of 12x16 px with 1 channels"):
        stats.main(make_stage(root, "stats", prepare__resolution=[16, 12], **changes))
    stats.main(make_stage(root, "stats", prepare__resolution=[12, 16], **changes))
