"""Every config on the demo's digits: grown through all resolutions, killed in the middle of a fade, sampled, measured."""

import csv
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.pipeline.clone import Clone, trainers, wait_for
from tests.shared import made_once

SMALL = {
    "train__total_kimg": 0.5, "train__tick_kimg": 0.125, "train__metric_kimg": 0, "train__snapshot_kimg": 0,
    "train__image_kimg": 0, "run__state_kimg": 0.025, "run__keep_states": 100, "sample__count": 64, "fid__num_fake": 64,
}  # fmt: skip
GROWS = {
    "train__G_architecture": "orig", "train__D_architecture": "orig", "train__lod_initial_resolution": 4,
    "train__lod_training_kimg": 0.1, "train__lod_transition_kimg": 0.1, "train__batch_size_by_resolution": {4: 32},
    "train__batch_gpu_by_resolution": {4: 16}, "train__lr_by_resolution": {16: 0.003},
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "a": {**GROWS, "train__family": "stylegan1", "train__r1_interval": 1},
    "b": {**GROWS, "train__family": "stylegan2-growing", "train__r1_interval": 1},
    "c": {**GROWS, "train__family": "stylegan2-growing"},
    "d": {**GROWS, "train__family": "stylegan2-growing", "train__pl_weight": 2.0},
    "e": {"train__pl_weight": 2.0, "train__augment": "ada", "train__ada_kimg": 0.5, "train__ada_target": 0.1},
    "pggan": {
        **GROWS, "train__family": "pggan", "train__loss": "wgan-gp", "train__r1_gamma": 0.0, "train__pl_weight": 0.0,
        "train__style_mixing_prob": 0.0, "train__mapping_layers": 0, "train__D_first": True, "train__ema_beta": 0.99,
        "train__tick_kimg_by_resolution": {4: 0.05, 8: 0.1, 16: 0.15}, "sample__truncation_psi": 1.0,
        "sample__grid_psi": 1.0, "sample__sweep_psi": [1.0],
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(finished: Clone, tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """Shards and statistics at 16 px: three resolutions from 4 px on."""

    def make(folder: Path) -> None:
        clone = finished.copied(folder / "repository")
        clone.remove_runs()
        clone.set(prepare__resolution=16, **SMALL)
        clone.dvc("repro", "stats")

    return Clone(made_once(tmp_path_factory, "prepared", make) / "repository")


def rows(clone: Clone) -> list[dict[str, str]]:
    with (clone.path / "results" / "train" / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_grows_is_killed_within_a_fade_and_ends_the_same(prepared: Clone, tmp_path: Path, name: str) -> None:
    whole, killed = (Clone(tmp_path / kind) for kind in ("whole", "killed"))
    for clone in (whole, killed):
        prepared.copied(clone.path)
        clone.set(**CONFIGS[name])
    measured = name in ("a", "pggan")  # the oldest way and the newest; what follows training is the same for all
    output = whole.dvc("repro", "fid") if measured else whole.stage("train")
    grows = "lod_initial_resolution" in json.dumps(CONFIGS[name])
    assert ("lod 0.00" in output) == grows
    if grows:
        lods = [float(row["lod"]) for row in rows(whole)]
        assert lods == sorted(lods, reverse=True)
        assert (lods[0] > 1, lods[-1]) == (True, 0.0)
        assert int(rows(whole)[-1]["nimg"]) >= 500
    else:
        assert float(rows(whole)[-1]["augment_p"]) > 0
    header, *classes = (whole.path / "results" / "train" / "classes.csv").read_text().splitlines()
    assert header == "class,name,real_images,real_sign,fake_images,fake_sign"
    assert len(classes) == 10
    if measured:
        assert "fd_standin" in json.loads((whole.path / "results" / "fid.json").read_text())

    process = killed.start(sys.executable, "-m", "stages.train")
    fade = range(310, 390) if grows else range(100, 400)  # the second fade: from 8 to 16 px
    wait_for(lambda: any(int(path.stem) in fade for path in killed.states()), process)
    for pid in trainers(killed):
        os.kill(pid, signal.SIGKILL)
    process.communicate(timeout=60)
    reached = int(killed.states()[-1].stem)
    assert reached < 500
    assert f"continues at kimg {reached / 1000:g}" in killed.stage("train")
    assert killed.models() == whole.models()
    assert [row["G_loss"] for row in rows(killed)] == [row["G_loss"] for row in rows(whole)]


def test_mistakes_of_growing_end_in_a_line(finished: Clone, copy: Callable[..., Clone]) -> None:
    clone = copy()
    for values, said in (
        ({"train__lod_initial_resolution": 4}, "train.family=stylegan2 does not grow"),
        (
            {"train__family": "stylegan1", **GROWS, "train__lod_initial_resolution": 64},
            "lod_initial_resolution=64 is above",
        ),
        ({"train__family": "stylegan1", "train__G_architecture": "skip"}, "train.family=stylegan1 knows only orig"),
    ):
        shutil.copy(finished.path / "params.yaml", clone.path / "params.yaml")
        clone.set(**values)
        assert said in clone.stage("train", ok=False)
