"""Equal to clean-fid on the same images and network file, through its public functions."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cleanfid.inception_torchscript import InceptionV3W
from PIL import Image

from ganops.metrics import inception as module
from ganops.metrics.extractor import Extractor, load_extractor
from ganops.metrics.features import extract, measure_moments
from ganops.metrics.frechet import frechet_distance
from tests.standin import write_inception

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning", "ignore::RuntimeWarning"
)


def folder(path: Path, seed: int, count: int, size: int) -> tuple[Path, torch.Tensor]:
    path.mkdir()
    images = np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8) // (seed + 1)
    for index, image in enumerate(images):
        Image.fromarray(image).save(path / f"{index:04d}.png")
    return path, torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "INCEPTION_SHA256", write_inception(tmp_path / "weights" / module.INCEPTION_FILE))
    return tmp_path / "weights"


def load(weights: Path) -> Extractor:
    return load_extractor("inception-2015", "", "clean", "float32", False, CPU, weights)


@pytest.mark.parametrize("size", [8, 64, 301])
def test_features_equal_cleanfids(tmp_path: Path, weights: Path, size: int) -> None:
    from cleanfid import fid

    reference = InceptionV3W(str(weights), download=False).eval()
    path, images = folder(tmp_path / "images", 0, 12, size)
    theirs = fid.get_folder_features(
        str(path), reference, num_workers=0, batch_size=4, device=CPU, mode="clean", verbose=False
    )
    ours = np.concatenate(list(extract(load(weights), images.split(5), 4)))
    assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(theirs).max()


def test_whole_distance_equals_cleanfids(tmp_path: Path, weights: Path) -> None:
    """Images to number. Of 24 of the features: clean-fid's root of a singular covariance is right to 1e-4 only."""
    from cleanfid import fid

    wrapper = InceptionV3W(str(weights), download=False).eval()
    extractor = load(weights)
    theirs: list[Any] = []
    ours: list[Any] = []
    for seed in (0, 1):
        path, images = folder(tmp_path / f"{seed}", seed, 80, 32)
        theirs.append(
            fid.get_folder_features(
                str(path), lambda x: wrapper(x)[:, :24], num_workers=0, batch_size=16, device=CPU, verbose=False
            )
        )
        few = replace(extractor, network=lambda x: extractor.network(x)[:, :24])
        ours.append(measure_moments(few, images.split(30), 16))
    one, two = ours
    value = frechet_distance(one.mean(), one.covariance(1), two.mean(), two.covariance(1))
    assert value == pytest.approx(fid.fid_from_feats(*theirs), rel=1e-6)


def test_distance_equals_cleanfids_where_covariances_are_regular() -> None:
    from cleanfid import fid

    rng = np.random.default_rng(0)
    one, two = rng.standard_normal((2, 2000, 48))
    two = two * 1.3 + 0.2
    ours = frechet_distance(one.mean(0), np.cov(one.T), two.mean(0), np.cov(two.T))
    theirs = fid.frechet_distance(one.mean(0), np.cov(one.T), two.mean(0), np.cov(two.T))
    assert ours == pytest.approx(theirs, rel=1e-6)
