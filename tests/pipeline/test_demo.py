"""The demo as a newcomer runs it, but for 12 of its 42 kimg: one `dvc repro`, and digits can be read."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from sklearn.svm import SVC

from ganops.images.shards import open_shards
from tests.pipeline.clone import ROOT, copy_project, stages_run

pytestmark = pytest.mark.slow


def test_demo(tmp_path: Path) -> None:
    clone = copy_project(tmp_path / "demo")
    shutil.copy(ROOT / "params.yaml", clone.path / "params.yaml")
    clone.set(train__total_kimg=12, train__snapshot_kimg=6, train__metric_kimg=3)
    clone.commit()
    output = clone.dvc("repro", timeout_sec=1200)
    assert stages_run(output) == ["digits", "prepare", "stats", "train", "sample", "fid", "report"]

    with (clone.path / "results" / "train" / "history.csv").open() as file:
        distances = [float(row["distance"]) for row in csv.DictReader(file) if row["distance"]]
    assert len(distances) == 4
    assert distances[-1] < distances[0] / 2, distances
    fid = json.loads((clone.path / "results" / "fid.json").read_text())
    name = "fd_efflite0"
    spread = {"kd_efflite0", "kd_efflite0_std", "precision_efflite0", "recall_efflite0", "memorised_efflite0"}
    assert set(fid) == {name, f"{name}_ci95", f"{name}_corrected", "protocol"} | spread
    assert 0 < fid[f"{name}_ci95"] < fid[name] / 5
    assert fid[f"{name}_corrected"] < fid[name]
    assert 0 < fid["precision_efflite0"] <= 1
    assert 0.05 < fid["recall_efflite0"] <= 1
    assert fid["memorised_efflite0"] < 0.1
    assert fid["fd_efflite0"] == pytest.approx(distances[-1], rel=0.2)  # other samples, and more of them

    # Recognisable: a classifier of the real digits reads the generated ones as what they were asked to be.
    reals, samples = (open_shards(clone.path / "data" / name, verify=True) for name in ("shards", "samples"))
    pixels = [shards.gather(np.arange(len(shards))).reshape(len(shards), -1) / 255.0 for shards in (reals, samples)]
    readable = SVC().fit(pixels[0], reals.labels).predict(pixels[1]) == samples.labels
    assert readable.mean() > 0.85  # 0.94; an untrained G gives 0.1
    for name in (
        "samples/grid.png",
        "samples/truncation.png",
        "train/grids/000012.png",
        "neighbours.png",
        "report.html",
    ):
        assert (clone.path / "results" / name).stat().st_size > 1000
