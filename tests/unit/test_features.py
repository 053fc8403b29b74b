"""Moments, and features in batches."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ganops.images.folder import open_folder
from ganops.images.pixels import save_png
from ganops.metrics import inception
from ganops.metrics.extractor import Extractor, load_extractor
from ganops.metrics.features import BLOCK_ROWS, Moments, extract, measure_features, moments_of, spread_indices
from tests.standin import write_inception, write_standin

CPU = torch.device("cpu")


@pytest.mark.parametrize("rows", [2, 100, BLOCK_ROWS, BLOCK_ROWS + 1, 3 * BLOCK_ROWS + 17])
@pytest.mark.parametrize("ddof", [0, 1])
def test_moments_equal_numpys(rows: int, ddof: int) -> None:
    x = np.random.default_rng(0).standard_normal((rows, 24)) * 0.01 + 1000  # a mean far from zero
    moments = Moments()
    moments.append(x)
    assert moments.count == rows
    np.testing.assert_allclose(moments.mean(), x.mean(0), rtol=1e-13)
    expected = np.cov(x, rowvar=False, ddof=ddof)
    assert np.abs(moments.covariance(ddof) - expected).max() < 1e-12 * np.abs(expected).max()


@pytest.mark.parametrize("pieces", [[3500], [1] * 50 + [3450], [1023, 2, 1024, 1451], [1024, 1024, 1452]])
def test_moments_do_not_depend_on_how_rows_arrive(pieces: list[int]) -> None:
    x = np.random.default_rng(1).standard_normal((3500, 8)).astype(np.float32)
    whole, parts = Moments(), Moments()
    whole.append(x)
    for part in np.split(x, np.cumsum(pieces)[:-1]):
        parts.append(part)
        parts.mean()  # looking in between changes nothing
    assert np.array_equal(whole.mean(), parts.mean())
    assert np.array_equal(whole.covariance(1), parts.covariance(1))


def test_too_few_rows() -> None:
    moments = Moments()
    with pytest.raises(ValueError, match="no features"):
        moments.mean()
    moments.append(np.ones((1, 3)))
    with pytest.raises(ValueError, match="too few"):
        moments.covariance(1)


@pytest.fixture
def extractor(tmp_path: Path) -> Extractor:
    sha256 = write_standin(tmp_path / "net.pt")
    return load_extractor(str(tmp_path / "net.pt"), sha256, "none", "float32", False, CPU, tmp_path)


def batches(images: Tensor, size: int) -> Iterator[Tensor]:
    return iter(images.split(size))


def test_features_do_not_depend_on_neighbours_or_the_tail(extractor: Extractor) -> None:
    images = torch.randint(0, 256, [37, 3, 16, 16], dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = np.concatenate(list(extract(extractor, batches(images, 16), 16)))
    assert whole.shape == (37, 16)
    for size in (1, 5, 37):
        assert np.array_equal(whole, np.concatenate(list(extract(extractor, batches(images, size), 16))))
    assert np.array_equal(whole[:3], next(extract(extractor, batches(images[:3], 3), 16)))
    moments = moments_of(whole)
    np.testing.assert_allclose(moments.mean(), whole.mean(0, dtype=np.float64), rtol=1e-12)


@pytest.mark.parametrize("name", ["inception-2015", "efficientnet-lite0"])
def test_features_of_the_named_networks_do_not_depend_on_neighbours(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inception, "INCEPTION_SHA256", write_inception(tmp_path / inception.INCEPTION_FILE))
    extractor = load_extractor(name, "", "clean", "float32", False, CPU, tmp_path)
    images = torch.randint(0, 256, [11, 3, 16, 16], dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = np.concatenate(list(extract(extractor, batches(images, 11), 4)))
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    assert np.array_equal(whole[order], np.concatenate(list(extract(extractor, batches(images[order], 3), 4))))
    assert np.array_equal(whole[:1], next(extract(extractor, batches(images[:1], 1), 4)))


def test_kept_rows_are_spread_evenly() -> None:
    assert spread_indices(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert spread_indices(10, 4).tolist() == [0, 2, 5, 7]
    assert spread_indices(10, 0).tolist() == []


def test_a_folder_of_several_sizes_gives_each_image_its_own_features(extractor: Extractor, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    sizes = [(8, 8), (8, 8), (16, 8), (8, 8), (16, 8), (16, 8), (5, 7)]
    images = [rng.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    for index, image in enumerate(images):
        save_png(tmp_path / "images" / f"{index}.png", image)
    folder = open_folder(tmp_path / "images", 3, (0, 0, 0))
    rows = np.concatenate(list(measure_features(extractor, folder, range(7), 4, "test")))
    for row, image in zip(rows, images, strict=True):
        alone = torch.from_numpy(image.transpose(2, 0, 1).copy())[None]
        assert np.array_equal(row, next(extract(extractor, [alone], 4))[0])
    assert folder.survey()[1] == "mixed"
    mirrored = np.concatenate(list(measure_features(extractor, folder, [2], 4, "test", flip=True)))
    alone = torch.from_numpy(images[2][:, ::-1].transpose(2, 0, 1).copy())[None]
    assert np.array_equal(mirrored, next(extract(extractor, [alone], 4)))
