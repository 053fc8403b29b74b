"""params.yaml's schema: every mistake ends in one line that names the key."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from ganops.config import Params, load_params
from ganops.entry import load_stage
from ganops.errors import ParamsError

ROOT = Path(__file__).parents[2]
GROWS = {
    "train.family": "stylegan1", "train.G_architecture": "orig", "train.D_architecture": "orig",
    "train.lod_initial_resolution": 4,
}  # fmt: skip
PRESETS = sorted((ROOT / "presets").glob("*.yaml"))


def write(path: Path, changes: dict[str, Any]) -> Path:
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    for name, value in changes.items():
        section, key = name.split(".")
        values[section][key] = value
    (path / "params.yaml").write_text(yaml.safe_dump(values))
    return path / "params.yaml"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.r1_gama": 1.0}, r"train\.r1_gama is not a known key. Did you mean train\.r1_gamma\?"),
        (
            {"train.batch_size": 30, "train.batch_gpu": 4},
            "batch_size=30 is not a multiple of train.batch_gpu=4. Use 28 or 32",
        ),
        (
            {"prepare.resolution": 25},
            "prepare.resolution=25: 25x25 px .* cannot be reached by doubling.*24x24 or 26x26",
        ),
        ({"prepare.resolution": 4}, "prepare.resolution=4: 4x4 px .*The nearest that can: 6x6 or 8x8"),
        ({"prepare.resolution": [1080, 1920]}, r"resolution=\[1080, 1920\].*can: 1024x1920 or 1152x1920"),
        ({"prepare.resolution": [16, 16, 3]}, "prepare.resolution="),
        ({"prepare.resolution": [16]}, "prepare.resolution="),
        ({"prepare.resolution": [16, 0]}, "prepare.resolution="),
        ({"prepare.channels": 0}, "prepare.channels=0"),
        (
            {**GROWS, "train.batch_size_by_resolution": {4: 32}, "train.lod_initial_resolution": 8},
            "batch_size_by_resolution has 4, but the networks grow from 8 to 16 px",
        ),
        ({**GROWS, "train.lr_by_resolution": {32: 0.1}}, "lr_by_resolution has 32, but the networks grow from 4 to 16"),
        ({**GROWS, "train.lod_initial_resolution": 32}, "lod_initial_resolution=32 is above prepare.resolution=16"),
        ({**GROWS, "run.compile": "main"}, "would be compiled again for every fade"),
        (
            {"train.augment": "ada", "train.augment_set": "color", "prepare.channels": 2},
            "train.augment_set=color does nothing to prepare.channels=2",
        ),
        (
            {
                "train.augment": "diffaugment",
                "train.augment_p": 1.0,
                "train.diffaugment_policy": ["color"],
                "prepare.channels": 5,
            },
            "does nothing to prepare.channels=5",
        ),
        (
            {
                "train.family": "pggan",
                "train.G_architecture": "orig",
                "train.D_architecture": "orig",
                "train.loss": "wgan-gp",
                "train.mapping_layers": 0,
            },
            "sample.grid_psi=0.9, but train.family=pggan has no w to truncate",
        ),
        ({"prepare.bits": 12}, "prepare.bits=12"),
        (
            {"prepare.resolution": [16, 12], "train.D_freeze_blocks": 3, "train.init_from": "state.safetensors"},
            "D has 2 blocks .*Use 0 to 2",
        ),
        (
            {"prepare.resolution": [2048, 1536], "train.channel_base": 512},
            "gives no channel .* for this shape that is 2048",
        ),
        ({"train.batch_size": "32"}, "train.batch_size='32'"),
        ({"train.seed": True}, "train.seed=True"),
        ({"train.style_mixing_prob": 1.5}, "train.style_mixing_prob=1.5"),
        ({"train.mbstd_group_size": 5}, "is not a multiple of train.mbstd_group_size=5"),
        ({"train.batch_gpu": 1}, "train.batch_gpu=1 is not a multiple of train.mbstd_group_size=4"),
        ({"train.batch_gpu": 2}, "train.batch_gpu=2 is not a multiple of train.mbstd_group_size=4"),
        ({"train.mbstd_num_channels": 3}, "train.mbstd_num_channels=3 does not divide the [0-9]+ channels"),
        (
            {"train.ema_beta": 0.999, "train.ema_rampup": 0.05},
            "ema_rampup=0.05 has no effect with train.ema_beta=0.999",
        ),
        ({"train.total_kimg": 1_000_000}, "train.total_kimg=1000000"),
        (
            {**GROWS, "train.lr_by_resolution": {8: 0.1}, "train.D_lr": 0.1},
            "stands for both train.G_lr=.* but they differ",
        ),
        ({"train.metric_kimg": 10}, "train.metric_kimg=10 is not a multiple of train.tick_kimg=3"),
        ({"train.total_kimg": 61}, "train.total_kimg=61 is not a multiple"),
        ({"train.tick_kimg": 0.01, "train.total_kimg": 1}, "is less than one batch"),
        ({"prepare.labels": "none"}, "train.conditional=true needs labels"),
        ({"fid.num_fake": 5000}, "fid.num_fake=5000 is more than sample.count"),
        ({"train.metric_kimg": 0, "sample.snapshot": "best"}, "sample.snapshot=best"),
        ({"train.image_kimg": 0.5, "train.tick_kimg": 0.5}, "train.image_kimg=0.5 is between 0"),
        ({"run.state_kimg": 0.0001}, "run.state_kimg=0.0001"),
        ({"train.precision": "bfloat16"}, "low_precision_resolutions=0"),
        ({"train.channel_base": 8}, "channel_base=8"),
        ({"train.total_kimg": float("inf")}, "train.total_kimg=inf"),
        ({"run.accept_code": "yes"}, "run.accept_code='yes'"),
        ({"train.best_by": "recall"}, r"train.best_by=recall is not among train.metrics"),
        ({"train.metrics": ["distance", "distance"]}, "names one metric twice"),
        ({"train.metrics": ["distance", "ppl_wend"]}, "train.metrics="),
        ({"fid.metrics": ["fid"]}, r"fid.metrics='fid'"),
        ({"fid.num_fake": 9}, "fid.num_fake=9"),
        ({"fid.protocol": "legacy"}, "legacy does not fit stats.extractor=efficientnet-lite0.*Set fid.protocol: clean"),
        ({"stats.extractor": "net.pt"}, "clean does not fit stats.extractor=net.pt.*Set fid.protocol: none"),
        (
            {"stats.extractor": "net.pt", "fid.protocol": "none", "fid.metrics": ["inception_score"]},
            "fid.metrics has inception_score, which a TorchScript file cannot give",
        ),
        (
            {"fid.protocol": "fid50k_full"},
            "stats.extractor=.efficientnet-lite0., but fid.protocol=fid50k_full is measured",
        ),
        (
            {"fid.protocol": "fid50k_full", "stats.extractor": "inception-2015"},
            "stats.ddof=1, but fid.protocol=fid50k_full is measured with 0. Set stats.ddof: 0, or fid.protocol: legacy",
        ),
        (
            {"fid.protocol": "fid50k", "stats.extractor": "inception-2015", "stats.ddof": 0},
            "stats.num_real=null, but fid.protocol=fid50k is measured with 50000",
        ),
        ({"stats.extractor": "Inception-2015"}, r"Did you mean inception-2015\?"),
        ({"stats.reference": "./data/shards"}, "is the training images. Write it as data/shards"),
        ({"stats.reference": "data/shards/"}, "is the training images. Write it as data/shards"),
        (
            {"train.metrics": ["inception_score"], "train.best_by": "inception_score", "train.metric_images": 99},
            "train.metrics has inception_score, which takes ten parts of 99 images: too few",
        ),
        (
            {"stats.extractor": "inception-2015", "prepare.resolution": 8, "fid.metrics": ["ppl_wend"]},
            "fid.metrics has ppl_wend, which LPIPS measures from prepare.resolution=16 on",
        ),
        (
            {"stats.extractor": "inception-2015", "prepare.resolution": [16, 12], "fid.metrics": ["ppl_wend"]},
            "fid.metrics has ppl_wend, which LPIPS measures from prepare.resolution=16 on",
        ),
        (
            {"fid.metrics": ["class_recall"], "stats.reference": "test.zip"},
            "fid.metrics has class_recall, which needs train.conditional: true and stats.reference: data/shards",
        ),
    ],
)
def test_mistakes_name_the_key(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ParamsError, match=message) as error:
        load_params(write(tmp_path, changes))
    assert "\n" not in str(error.value)


def test_missing_key(tmp_path: Path) -> None:
    values = yaml.safe_load((ROOT / "params.yaml").read_text())
    del values["train"]["seed"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(ParamsError, match=r"train\.seed is missing"):
        load_params(tmp_path / "params.yaml")


@pytest.mark.parametrize("text", ["", "just text", "a: [1", "- 1"])
def test_not_a_params_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ParamsError, match=r"params\.yaml"):
        load_params(tmp_path / "params.yaml")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="not found"):
        load_params(tmp_path / "params.yaml")


def test_a_key_twice_is_an_error(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text().replace("  z_dim: 64 ", "  z_dim: 32\n  z_dim: 64 ")
    (tmp_path / "params.yaml").write_text(text)
    with pytest.raises(ParamsError, match="z_dim stands twice"):
        load_params(tmp_path / "params.yaml")


def test_numbers_as_dvc_writes_them(tmp_path: Path) -> None:
    """`dvc exp run -S train.eps=1e-8` writes 1e-08, which YAML 1.1 reads as text."""
    text = (ROOT / "params.yaml").read_text().replace("eps: 1.0e-08", "eps: 1e-08")
    (tmp_path / "params.yaml").write_text(text)
    assert load_params(tmp_path / "params.yaml").train.eps == 1e-8


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_presets_are_complete(path: Path) -> None:
    params = load_params(path)
    assert set(params.model_dump()) == set(Params.model_fields)


def test_presets_exist() -> None:
    assert {path.stem for path in PRESETS} >= {"digits", "cifar10", "ffhq256", "ffhq1024"}


def test_params_yaml_is_the_digits_preset() -> None:
    assert (ROOT / "params.yaml").read_text() == (ROOT / "presets" / "digits.yaml").read_text()


def test_the_docs_table_is_the_schema() -> None:
    """docs/params.md lists every key once, in the schema's order."""
    listed = [
        line.split("`")[1] for line in (ROOT / "docs" / "params.md").read_text().splitlines() if line.startswith("| `")
    ]
    sections = {name: field.annotation for name, field in Params.model_fields.items()}
    expected = [f"{name}.{key}" for name, section in sections.items() if section for key in section.model_fields]
    assert listed == expected


def test_a_start_file_may_have_the_name_of_an_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """train.init_from is a dep of the stage: its outputs are still found."""
    text = (
        (ROOT / "params.yaml")
        .read_text()
        .replace("init_from: presets/from_scratch", "init_from: data/start/state.safetensors")
    )
    (tmp_path / "params.yaml").write_text(text)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    stage = load_stage("train")
    assert stage.path("models/state.safetensors") == Path("models/state.safetensors")
    assert Path("data/start/state.safetensors") in stage.paths
