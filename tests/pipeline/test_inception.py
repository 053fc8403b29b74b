"""stats, train, sample and fid with the Inception extractor, whose weights a small network stands in for."""

import csv
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

import stages.fid
import stages.prepare
import stages.sample
import stages.stats
import stages.train
from ganops.config import load_params
from ganops.entry import load_stage
from ganops.images.shards import open_shards
from ganops.metrics import inception as module
from tests.pipeline.clone import ROOT, Clone
from tests.standin import write_inception

CLASSES, PER_CLASS, FAKES, BATCH = 3, 16, 40, 16
# torch.jit, which the published file is written in; sqrtm(disp=...) and singular matrices in clean-fid.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::RuntimeWarning"
)


@pytest.fixture
def process() -> Iterator[None]:
    """Stages change signal handlers, threads, numerics and an environment variable: each process has one stage."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threads, environment = torch.get_num_threads(), dict(os.environ)
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    deterministic = torch.are_deterministic_algorithms_enabled()
    with threadpool_limits(1):  # as many tests as cores run at a time: more threads of the BLAS wait for each other
        yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
    torch.set_num_threads(threads)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32
    torch.use_deterministic_algorithms(deterministic)
    os.environ.clear()
    os.environ.update(environment)


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, process: None) -> Clone:
    """A folder with the pipeline's files, a few dozen images and the stand-in where the published weights belong."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    shutil.copy(ROOT / "tests" / "pipeline" / "params.yaml", tmp_path)
    place = Clone(tmp_path)
    place.set(
        stats__extractor="inception-2015",
        stats__batch_size=BATCH,
        fid__protocol="clean",
        train__total_kimg=0.5,
        train__tick_kimg=0.5,
        train__image_kimg=0,
        train__snapshot_kimg=0,
        train__metric_kimg=0.5,
        train__metric_images=FAKES,
        sample__count=FAKES,
        fid__num_fake=FAKES,
    )
    rng = np.random.default_rng(0)
    for name in range(CLASSES):
        folder = tmp_path / "data" / "digits" / str(name)
        folder.mkdir(parents=True)
        for index in range(PER_CLASS):
            Image.fromarray(rng.integers(0, 80 * (name + 1), (8, 8), dtype=np.uint8)).save(folder / f"{index}.png")
    sha256 = write_inception(tmp_path / "data" / "weights" / module.INCEPTION_FILE)
    monkeypatch.setattr(module, "INCEPTION_SHA256", sha256)
    return place


def cleanfid_features(folder: Path, weights: Path) -> NDArray[np.float32]:
    from cleanfid import fid
    from cleanfid.inception_torchscript import InceptionV3W

    features: NDArray[np.float32] = fid.get_folder_features(
        str(folder),
        InceptionV3W(str(weights), download=False).eval(),
        num_workers=0,
        batch_size=BATCH,
        device=torch.device("cpu"),
        mode="clean",
        verbose=False,
    )
    return features


def cleanfid_distance(one: NDArray[np.float32], two: NDArray[np.float32]) -> float:
    """clean-fid's distance, of the features turned into a basis of their own span: the same in exact numbers, but its
    matrix root takes milliseconds instead of a minute.
    """
    from cleanfid import fid

    basis = np.linalg.qr(np.concatenate([one, two]).astype(np.float64).T)[0]
    return float(fid.fid_from_feats(one @ basis, two @ basis))


@pytest.mark.slow
def test_whole_pipeline_measures_a_fid_equal_to_cleanfids(workplace: Clone) -> None:
    for name, main in (
        ("prepare", stages.prepare.main),
        ("stats", stages.stats.main),
        ("train", stages.train.main),
        ("sample", stages.sample.main),
        ("fid", stages.fid.main),
    ):
        main(load_stage(name))

    result: dict[str, Any] = json.loads(Path("results/fid.json").read_text())
    distance, kernel = {"fid_clean", "fid_clean_ci95", "fid_clean_corrected"}, {"kid_clean", "kid_clean_std"}
    others = {f"{name}_inception_clean" for name in ("precision", "recall", "memorised")}
    assert set(result) == distance | kernel | others | {"protocol"}
    protocol = result["protocol"]
    assert protocol["extractor"] == "inception-2015"
    assert protocol["extractor_sha256"] == module.INCEPTION_SHA256
    assert protocol["resizer"] == "pil-bicubic-antialias-299"
    assert protocol["name"] == "fid_clean"
    assert (protocol["num_real"], protocol["num_fake"]) == (CLASSES * PER_CLASS, FAKES)

    with Path("results/train/history.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["metric"] == "fid_clean"
    assert float(row["distance"]) > 0

    samples = open_shards(Path("data/samples"), verify=True)
    Path("fakes").mkdir()
    for index, image in enumerate(samples.gather(np.arange(FAKES))):
        Image.fromarray(image[0]).save(f"fakes/{index}.png")
    weights = Path("data/weights")
    theirs = cleanfid_distance(
        cleanfid_features(Path("data/digits"), weights), cleanfid_features(Path("fakes"), weights)
    )
    assert result["fid_clean"] == pytest.approx(theirs, rel=1e-4)


@pytest.mark.parametrize("path", sorted((ROOT / "presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_presets_of_published_data_measure_a_fid(path: Path) -> None:
    expected = "efficientnet-lite0" if path.stem == "digits" else "inception-2015"
    assert load_params(path).stats.extractor == expected
