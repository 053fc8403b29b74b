"""Presets against the published recipes, written down here a second time; and a step of each at a reduced width."""

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ganops.config import Params, load_params
from ganops.config_train import TrainParams
from ganops.errors import ParamsError
from ganops.images.dataset import Batch
from ganops.training.build import build_networks
from ganops.training.schedule import stages
from ganops.training.state import TrainingState, initial_state
from ganops.training.step import train_step
from stages.preset import put_in_place
from tests.unit.tiny import ROOT

Values = dict[str, Any]

FOLDER = ROOT / "presets"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
DRY_RESOLUTION = 32
WHEN = 13  # the first so many keys of section train change no weight

# What is published: Karras et al. 2020 (StyleGAN2), tables 1 to 3; Karras et al. 2020 (ADA); Karras et al. 2018; and the
# values of their released code, where the number of feature maps is given as fmap_base = channel_base / 2.
CONFIG_F: Values = {
    "init_from": "presets/from_scratch", "D_freeze_blocks": 0, "seed": 0, "conditional": False, "xflip": True,
    "batch_size": 32, "batch_gpu": 32 // 8, "batch_size_by_resolution": {}, "batch_gpu_by_resolution": {},
    "family": "stylegan2", "lod_initial_resolution": None, "lod_training_kimg": 600, "lod_transition_kimg": 600,
    "reset_opt_for_new_lod": True, "z_dim": 512, "w_dim": 512, "mapping_layers": 8, "D_mapping_layers": 8,
    "mapping_lr_multiplier": 0.01, "channel_base": 2 * 16384, "channel_max": 512, "G_architecture": "skip",
    "D_architecture": "resnet", "mbstd_group_size": 4, "mbstd_num_channels": 1, "precision": "float32",
    "low_precision_resolutions": 0, "conv_clamp": None, "tf32": False, "G_lr": 2e-3, "D_lr": 2e-3, "lr_rampup_kimg": 0,
    "lr_by_resolution": {}, "beta1": 0.0, "beta2": 0.99, "eps": 1e-8, "loss": "logistic", "gp_weight": 10.0,
    "drift_weight": 0.001, "acgan_weight": 1.0, "D_first": False, "D_repeats": 1, "r1_gamma": 10.0, "r1_interval": 16,
    "pl_weight": 2.0, "pl_interval": 4, "pl_decay": 0.01, "pl_batch_shrink": 2, "style_mixing_prob": 0.9,
    "w_avg_beta": 0.995, "ema_kimg": 10.0, "ema_rampup": None, "ema_beta": None, "augment": "none", "augment_set": "bgc",
    "augment_p": 0.0, "ada_target": 0.6, "ada_interval": 4, "ada_kimg": 500, "ada_max_p": 0.8,
    "diffaugment_policy": ["color", "translation", "cutout"],
}  # fmt: skip
LSUN: Values = CONFIG_F | {"xflip": False}
CONFIG_E: Values = CONFIG_F | {"channel_base": 2 * 8192, "r1_gamma": 100.0}
CONFIG_D: Values = CONFIG_E | {
    "family": "stylegan2-growing", "G_architecture": "orig", "D_architecture": "orig", "r1_gamma": 10.0,
    "lod_initial_resolution": 8, "G_lr": 1e-3, "D_lr": 1e-3,
    "lr_by_resolution": {128: 0.0015, 256: 0.002, 512: 0.003, 1024: 0.003},
    "batch_size_by_resolution": {8: 256, 16: 128, 32: 64, 64: 32},
    "batch_gpu_by_resolution": {8: 32, 16: 16, 32: 8, 64: 4},
}  # fmt: skip
CONFIG_C: Values = CONFIG_D | {"pl_weight": 0.0}
CONFIG_B: Values = CONFIG_C | {"r1_interval": 1}
CONFIG_A: Values = CONFIG_B | {"family": "stylegan1"}


def ada(gpus: int, batch: int, mbstd: int, fmaps: float, lr: float, gamma: float, ema: float, mapping: int) -> Values:
    """A row of ADA's table of recipes: always float16 on four resolutions and a clamp at 256."""
    return CONFIG_F | {
        "batch_size": batch, "batch_gpu": batch // gpus, "mbstd_group_size": mbstd, "channel_base": int(32768 * fmaps),
        "G_lr": lr, "D_lr": lr, "r1_gamma": gamma, "ema_kimg": ema, "mapping_layers": mapping, "precision": "float16",
        "low_precision_resolutions": 4, "conv_clamp": 256.0, "augment": "ada", "xflip": False,
    }  # fmt: skip


def auto(resolution: int, gpus: int = 8) -> Values:
    """ADA's rule for any data set."""
    batch = max(min(gpus * min(4096 // resolution, 32), 64), gpus)
    fmaps = 1 if resolution >= 512 else 0.5
    lr = 0.002 if resolution >= 1024 else 0.0025
    gamma = 0.0002 * resolution**2 / batch
    return ada(gpus, batch, min(batch // gpus, 4), fmaps, lr, gamma, batch * 10 / 32, 2) | {"ema_rampup": 0.05}


PAPER256 = ada(8, 64, 8, 0.5, 0.0025, 1.0, 20, 8)
PAPER512 = ada(8, 64, 8, 1, 0.0025, 0.5, 20, 8)
PAPER1024 = ada(8, 32, 4, 1, 0.002, 2.0, 10, 8)
CIFAR = ada(2, 64, 32, 1, 0.0025, 0.01, 500, 2) | {
    "G_lr": 0.002,  # the released code corrects it for a regularisation that is off
    "ema_rampup": 0.05, "pl_weight": 0.0, "style_mixing_prob": 0.0, "D_architecture": "orig", "conditional": True,
}  # fmt: skip
MIRRORED = {"xflip": True}


def pggan(gpus: int, batch: int, batches: dict[int, int], lr: dict[int, float]) -> Values:
    return CONFIG_F | {
        "family": "pggan", "G_architecture": "orig", "D_architecture": "orig", "mapping_layers": 0, "channel_base": 16384,
        "lod_initial_resolution": 4, "style_mixing_prob": 0.0, "pl_weight": 0.0, "r1_gamma": 0.0, "loss": "wgan-gp",
        "D_first": True, "ema_beta": 0.999, "G_lr": 1e-3, "D_lr": 1e-3, "lr_by_resolution": lr,
        "batch_size": batch, "batch_gpu": batch // gpus, "batch_size_by_resolution": batches,
        "batch_gpu_by_resolution": {resolution: size // gpus for resolution, size in batches.items()},
    }  # fmt: skip


PGGAN: dict[str, Values] = {
    "pggan_v1_1gpu": pggan(1, 16, {256: 14, 512: 6, 1024: 3}, {})
    | {"lod_training_kimg": 800, "lod_transition_kimg": 800, "mbstd_group_size": 16},
    "pggan_v2_1gpu": pggan(
        1, 4, {4: 128, 8: 128, 16: 128, 32: 64, 64: 32, 128: 16, 256: 8, 512: 4}, {1024: 0.0015}
    ),
    "pggan_v2_2gpus": pggan(
        2, 8, {4: 256, 8: 256, 16: 128, 32: 64, 64: 32, 128: 16, 256: 8}, {512: 0.0015, 1024: 0.002}
    ),
    "pggan_v2_4gpus": pggan(
        4, 16, {4: 512, 8: 256, 16: 128, 32: 64, 64: 32, 128: 16}, {256: 0.0015, 512: 0.002, 1024: 0.003}
    ),
    "pggan_v2_8gpus": pggan(
        8, 32, {4: 512, 8: 256, 16: 128, 32: 64, 64: 32}, {128: 0.0015, 256: 0.002, 512: 0.003, 1024: 0.003}
    ),
}  # fmt: skip
PGGAN_TICKS = {4: 160, 8: 140, 16: 120, 32: 100, 64: 80, 128: 60, 256: 40, 512: 20, 1024: 10}
PGGAN_CAPS = {256: 16, 512: 8, 1024: 4}  # images per GPU in float32

# name: resolution, kimg, protocol, published FID (None: there is none), section train
PUBLISHED: dict[str, tuple[int, float, str, str | None, Values]] = {
    "ffhq1024_a": (1024, 25_000, "fid50k", "4.40", CONFIG_A),
    "ffhq1024_b": (1024, 25_000, "fid50k", "4.39", CONFIG_B),
    "ffhq1024_c": (1024, 25_000, "fid50k", "4.38", CONFIG_C),
    "ffhq1024_d": (1024, 25_000, "fid50k", "4.34", CONFIG_D),
    "ffhq1024_e": (1024, 25_000, "fid50k", "3.31", CONFIG_E),
    "ffhq1024": (1024, 25_000, "fid50k", "2.84", CONFIG_F),
    "lsun_car": (512, 57_000, "fid50k", "2.32", LSUN),
    "lsun_cat": (256, 88_000, "fid50k", "6.93", LSUN),
    "lsun_church": (256, 88_000, "fid50k", "3.86", LSUN | {"r1_gamma": 100.0}),
    "lsun_horse": (256, 100_000, "fid50k", "3.43", LSUN | {"r1_gamma": 100.0}),
    "ffhq256": (256, 25_000, "fid50k_full", "3.66", PAPER256 | MIRRORED | {"augment": "none"}),
    "cifar10": (32, 100_000, "fid50k_full", "2.42", CIFAR),
    "paper256": (256, 25_000, "fid50k_full", None, PAPER256),
    "paper512": (512, 25_000, "fid50k_full", None, PAPER512),
    "paper1024": (1024, 25_000, "fid50k_full", None, PAPER1024),
    "auto256": (256, 25_000, "fid50k_full", None, auto(256)),
    "auto512": (512, 25_000, "fid50k_full", None, auto(512)),
    "auto1024": (1024, 25_000, "fid50k_full", None, auto(1024)),
    "afhq_cat": (512, 25_000, "fid50k_full", "3.55", PAPER512 | MIRRORED),
    "afhq_dog": (512, 25_000, "fid50k_full", "7.40", PAPER512 | MIRRORED),
    "afhq_wild": (512, 25_000, "fid50k_full", "3.05", PAPER512 | MIRRORED),
    "metfaces": (1024, 25_000, "fid50k_full", "18.22", PAPER1024 | MIRRORED | {"ada_kimg": 100}),
    **{name: (1024, 19_000 if "v1" in name else 12_000, "fid50k", "7.3", values) for name, values in PGGAN.items()},
}

# What is not lanczos without cropping: the published 256x256 FFHQ was made with the box filter; LSUN is not square.
FILTERS = {"ffhq256": "box", "paper256": "box"}
OWN_IMAGES = ("paper256", "paper512", "paper1024", "auto256", "auto512", "auto1024")
CROPS = {"lsun_car": "pad", **dict.fromkeys((*OWN_IMAGES, "lsun_cat", "lsun_church", "lsun_horse"), "center")}
# Karras et al. 2020, released networks: G and D.
PARAMETERS = {
    "ffhq1024": (30_370_060, 29_012_513), "ffhq1024_e": (24_900_764, 24_038_161), "lsun_car": (30_276_583, 28_982_849),
    "lsun_horse": (30_034_338, 28_864_129), "ffhq256": (24_767_458, 24_001_089),
    "afhq_dog": (30_276_583, 28_982_849), "metfaces": (30_370_060, 29_012_513),
}  # fmt: skip


def preset(name: str) -> Params:
    return load_params(FOLDER / f"{name}.yaml")


def header(name: str) -> str:
    """The comment at the top, in one line."""
    text = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8")
    return " ".join(line.removeprefix("# ") for line in text.split("\n\n")[0].splitlines())


def keys_and_comments(path: Path) -> list[str]:
    """All lines below the header, without values; that of section train without its comment, which is the preset's own."""
    lines = path.read_text(encoding="utf-8").split("\n\n", 1)[1].splitlines()
    return [re.sub(r"^(  \w+: ).*?(\s+# .*)?$", r"\1\2", re.sub(r"^(train:).*", r"\1", line)) for line in lines]


def test_the_presets_are_these() -> None:
    assert sorted([*PUBLISHED, "digits"]) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_has_the_keys_and_comments_of_params_yaml(name: str) -> None:
    found, expected = keys_and_comments(FOLDER / f"{name}.yaml"), keys_and_comments(ROOT / "params.yaml")
    for line, other in zip(found, expected, strict=True):
        assert re.sub(r"\s+", " ", line) == re.sub(r"\s+", " ", other)


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_tells_its_source_and_what_fid_to_expect(name: str) -> None:
    said = header(name)
    assert "Source: " in said
    fid = PUBLISHED[name][3] if name in PUBLISHED else None
    if fid is None:
        assert "no FID published" in said
    else:
        assert f"FID: {fid} " in said
        assert f"({PUBLISHED[name][2]}" in said
    if name in PUBLISHED:
        assert "Not trained by this project yet." in said


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_is_its_recipe(name: str) -> None:
    """Every value that changes the weights, and how the published distance was measured."""
    params = preset(name)
    resolution, kimg, protocol, _, expected = PUBLISHED[name]
    assert list(expected) == list(TrainParams.model_fields)[WHEN:]
    train = params.train.model_dump()
    different = {key: (train[key], value) for key, value in expected.items() if train[key] != pytest.approx(value)}
    assert not different, f"found, expected: {different}"
    assert params.train.total_kimg == kimg
    ticks = (10, PGGAN_TICKS) if name in PGGAN else (4, {})
    assert (params.train.tick_kimg, params.train.tick_kimg_by_resolution) == ticks
    prepare = params.prepare
    assert (prepare.resolution, prepare.channels) == (resolution, 3)
    assert prepare.labels == ("folders" if params.train.conditional else "none")
    assert (prepare.resize_filter, prepare.crop) == (FILTERS.get(name, "lanczos"), CROPS.get(name, "none"))
    assert (params.stats.extractor, params.fid.protocol) == ("inception-2015", protocol)
    assert (params.sample.count, params.sample.truncation_psi) == (50_000, 1.0)


@pytest.mark.parametrize(
    ("resolution", "batch_size", "lr", "r1_gamma", "ema_kimg"),
    [(256, 64, 0.0025, 0.2048, 20.0), (512, 64, 0.0025, 0.8192, 20.0), (1024, 32, 0.002, 6.5536, 10.0)],
)
def test_the_auto_rule(resolution: int, batch_size: int, lr: float, r1_gamma: float, ema_kimg: float) -> None:
    """Worked out by hand for 8 GPUs, as in the files' comments."""
    name = f"auto{resolution}"
    for found in (auto(resolution), preset(name).train.model_dump()):
        values = [found[key] for key in ("batch_size", "G_lr", "r1_gamma", "ema_kimg", "mbstd_group_size", "batch_gpu")]
        assert values == pytest.approx([batch_size, lr, r1_gamma, ema_kimg, 4, batch_size / 8])
    for number in (batch_size, r1_gamma, round(ema_kimg)):
        assert f" = {number}" in header(name)


@pytest.mark.parametrize("name", PGGAN)
def test_pggan_keeps_to_the_caps_per_gpu(name: str) -> None:
    train = preset(name).train
    for resolution, cap in PGGAN_CAPS.items():
        assert train.batch_gpu_by_resolution.get(resolution, train.batch_gpu) <= cap


@pytest.mark.parametrize("name", PARAMETERS)
def test_full_width_has_the_published_number_of_parameters(name: str) -> None:
    params = preset(name)
    with torch.device("meta"):
        networks = build_networks(params.train, PUBLISHED[name][0], 3, 0)
    assert tuple(sum(value.numel() for value in network.parameters()) for network in networks) == PARAMETERS[name]


def reduced(params: Params) -> TrainParams:
    """Narrow networks, batches of 4 or 8 in micro-batches of 4, and float32: float16 needs a GPU. All else as it is."""
    train = params.train
    width = {"z_dim": 16, "w_dim": 16, "channel_base": max(train.channel_base // 256, 64), "channel_max": 8}
    growing = train.lod_initial_resolution is not None
    changes = width | {
        "mapping_layers": min(train.mapping_layers, 2), "D_mapping_layers": 2, "precision": "float32",
        "low_precision_resolutions": 0, "mbstd_group_size": min(train.mbstd_group_size, 4),
        "batch_size": 4 if growing else 8, "batch_size_by_resolution": dict.fromkeys(train.batch_size_by_resolution, 8),
        "batch_gpu": 4, "batch_gpu_by_resolution": dict.fromkeys(train.batch_gpu_by_resolution, 4),
    }  # fmt: skip
    return TrainParams.model_validate(train.model_dump() | changes)


def random_batch(train: TrainParams, nimg: int) -> Batch:
    rng = torch.Generator().manual_seed(nimg)
    size = [train.batch_size, 3, DRY_RESOLUTION, DRY_RESOLUTION]
    images = torch.randint(0, 256, size, dtype=torch.uint8, generator=rng)
    return Batch(images, torch.randint(0, 3, [train.batch_size], generator=rng))


def weights(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def step_and_look(state: TrainingState, train: TrainParams) -> set[str]:
    """One step, after which everything is finite. Returns the parameters of G and D that it changed."""
    networks = {"G": state.G, "D": state.D}
    before = {kind: weights(network) for kind, network in networks.items()}
    nimg, average = state.nimg, weights(state.G_ema)
    stage = next(stage for stage in reversed(stages(train, DRY_RESOLUTION)) if stage.start <= nimg)
    train_step(state, train, random_batch(stage.params, nimg), (3, 5, 2) if train.conditional else (10,))
    assert state.nimg == nimg + stage.params.batch_size
    for network in (*networks.values(), state.G_ema):
        assert all(bool(value.isfinite().all()) for value in network.state_dict().values())
    assert all(bool(torch.isfinite(total).all()) for total in state.sums.values())
    assert not bool(state.nonfinite_steps)
    after = weights(state.G_ema)
    assert any(not torch.equal(value, after[name]) for name, value in average.items())
    return {
        f"{kind}.{name}"
        for kind, network in networks.items()
        for name, value in network.named_parameters()
        if not torch.equal(value, before[kind][name])
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_step_of_every_preset_at_a_reduced_width(name: str) -> None:
    """All phases of the first step, at 32x32; where networks grow, also a step while the last resolution fades in."""
    train = reduced(preset(name))
    state = initial_state(train, DRY_RESOLUTION, 3, 3 if train.conditional else 0, torch.device("cpu"))
    if train.augment == "ada":
        state.augment_p = 0.5  # it starts at 0, which augments nothing
    changed = step_and_look(state, train)
    if train.lod_initial_resolution is not None:
        assert state.G.lod == {4: 3.0, 8: 2.0}[train.lod_initial_resolution]
        last = stages(train, DRY_RESOLUTION)[-1]
        steps = 300_000 // last.params.batch_size  # to the middle of a fade, or near it
        state.nimg = last.start + steps * last.params.batch_size
        changed |= step_and_look(state, train)
        assert 0 < state.G.lod < 1
    phases = {
        "Loss/G/loss": True, "Loss/D/loss": True, "Loss/pl_penalty": train.pl_weight > 0,
        "Loss/r1_penalty": train.r1_gamma > 0, "Loss/gp_penalty": train.loss == "wgan-gp",
    }  # fmt: skip
    assert {key: key in state.sums for key in phases} == phases
    learning = {f"{kind}.{key}" for kind, network in (("G", state.G), ("D", state.D)) for key in weights(network)}
    never = {key for key in learning - changed if train.lod_initial_resolution is None or not re.search("rgb", key)}
    assert not never  # image layers of resolutions that were passed over had nothing to learn


def test_the_docs_table_is_the_presets() -> None:
    """docs/presets.md: name, resolution, kimg and FID of every preset."""
    text = (ROOT / "docs" / "presets.md").read_text(encoding="utf-8")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| [")]
    found = {row[0].split("]")[0].removeprefix("["): row for row in rows}
    assert sorted(found) == NAMES
    assert len(rows) == len(NAMES)
    for name, row in found.items():
        params = preset(name)
        assert row[0] == f"[{name}](../presets/{name}.yaml)"
        assert row[2] == str(params.prepare.resolution)
        assert row[4] == f"{params.train.total_kimg:,.0f}"
        if name in PUBLISHED:
            fid, protocol = PUBLISHED[name][3], PUBLISHED[name][2]
            assert row[5] == "none" if fid is None else re.match(rf"{fid}( ± [\d.]+)? \({protocol}\)", row[5])


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository with params.yaml, committed, and the presets. The current folder is there."""
    shutil.copytree(FOLDER, tmp_path / "presets")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "params.yaml"], [*identity, "commit", "-q", "-m", "start"]):
        subprocess.run(["git", *command], check=True)
    return tmp_path


def test_a_preset_is_put_in_place(clone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    put_in_place(Path("presets/ffhq256.yaml"))
    assert (clone / "params.yaml").read_bytes() == (FOLDER / "ffhq256.yaml").read_bytes()
    assert "params.yaml is now presets/ffhq256.yaml" in capsys.readouterr().out


def test_after_one_preset_another(clone: Path) -> None:
    """Nothing is lost: the first one stands in presets/."""
    for name in ("cifar10", "digits"):
        put_in_place(Path(f"presets/{name}.yaml"))
        assert (clone / "params.yaml").read_bytes() == (FOLDER / f"{name}.yaml").read_bytes()


def test_without_git_it_ends_in_a_line(clone: Path) -> None:
    (clone / "params.yaml").write_text((clone / "params.yaml").read_text() + "\n")
    done = subprocess.run(
        [sys.executable, "-m", "stages.preset", "presets/digits.yaml"], cwd=clone, capture_output=True, text=True,
        env={"PYTHONPATH": str(FOLDER.parent), "PATH": str(clone)}, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("preset: ")
    assert "git" in done.stderr
    assert done.stderr.count("\n") == 1


def test_edits_are_not_lost(clone: Path) -> None:
    edited = (clone / "params.yaml").read_text() + "\n"
    (clone / "params.yaml").write_text(edited)
    with pytest.raises(ParamsError, match="edits that are not committed"):
        put_in_place(Path("presets/ffhq256.yaml"))
    assert (clone / "params.yaml").read_text() == edited


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [
        ("presets/fhq256.yaml", "ffhq256"),
        ("cifar10", "cifar10"),
        ("presets/lsun-horse.yml", "lsun_horse"),
        ("presets/PGGAN_v2_8gpu.yaml", "pggan_v2_8gpus"),
        ("presets", None),
        ("zzz", None),
    ],
)
def test_an_unknown_preset_names_the_nearest_and_lists_all(clone: Path, asked: str, nearest: str | None) -> None:
    before = (clone / "params.yaml").read_bytes()
    with pytest.raises(ParamsError) as error:
        put_in_place(Path(asked))
    message = str(error.value)
    assert message.startswith(f"{asked} is not a preset.")
    suggestion = re.search(r"Did you mean presets/(\w+)\.yaml\?", message)
    assert (suggestion and suggestion.group(1)) == nearest
    assert message.endswith(f"There are, in presets/: {', '.join(NAMES)}.")
    assert "\n" not in message
    assert (clone / "params.yaml").read_bytes() == before


def test_where_no_presets_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ParamsError, match=r"is not a preset\. .*no presets/ in .*root of the repository"):
        put_in_place(Path("presets/digits.yaml"))
