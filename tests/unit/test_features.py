"""Moments, batching, the statistics file and the refusal to compare what was measured differently."""

import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ganops.errors import DataError
from ganops.metrics import extractor as module
from ganops.metrics.extractor import Extractor, load_extractor
from ganops.metrics.features import (
    BLOCK_ROWS,
    COMPARED,
    Moments,
    Statistics,
    check_protocols,
    extract,
    load_statistics,
    measure_moments,
    save_statistics,
    spread_indices,
)
from tests.standin import write_inception, write_standin

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


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
    return load_extractor(str(tmp_path / "net.pt"), write_standin(tmp_path / "net.pt"), CPU, tmp_path)


def batches(images: Tensor, size: int) -> Iterator[Tensor]:
    return iter(images.split(size))


def test_features_do_not_depend_on_neighbours_or_the_tail(extractor: Extractor) -> None:
    images = torch.randint(0, 256, [37, 3, 16, 16], dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = np.concatenate(list(extract(extractor, batches(images, 16), 16)))
    assert whole.shape == (37, 16)
    for size in (1, 5, 37):
        assert np.array_equal(whole, np.concatenate(list(extract(extractor, batches(images, size), 16))))
    assert np.array_equal(whole[:3], next(extract(extractor, batches(images[:3], 3), 16)))
    moments = measure_moments(extractor, batches(images, 7), 16)
    np.testing.assert_allclose(moments.mean(), whole.mean(0, dtype=np.float64), rtol=1e-12)


@pytest.mark.parametrize("name", ["inception-2015", "efficientnet-lite0"])
def test_features_of_the_named_networks_do_not_depend_on_neighbours(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "INCEPTION_SHA256", write_inception(tmp_path / module.INCEPTION_FILE))
    extractor = load_extractor(name, "", CPU, tmp_path)
    images = torch.randint(0, 256, [11, 3, 16, 16], dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    whole = np.concatenate(list(extract(extractor, batches(images, 11), 4)))
    order = torch.randperm(11, generator=torch.Generator().manual_seed(1))
    assert np.array_equal(whole[order], np.concatenate(list(extract(extractor, batches(images[order], 3), 4))))
    assert np.array_equal(whole[:1], next(extract(extractor, batches(images[:1], 1), 4)))


def test_kept_rows_are_spread_evenly() -> None:
    assert spread_indices(5, 10).tolist() == [0, 1, 2, 3, 4]
    assert spread_indices(10, 4).tolist() == [0, 2, 5, 7]
    assert spread_indices(10, 0).tolist() == []


def statistics() -> Statistics:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((5, 3)).astype(np.float32)
    return Statistics(features.mean(0).astype(np.float64), np.eye(3), 5, {"b": 1, "a": [1, 2]}, features)


def test_statistics_round_trip(tmp_path: Path) -> None:
    save_statistics(tmp_path / "stats.npz", statistics())
    loaded, expected = load_statistics(tmp_path / "stats.npz"), statistics()
    assert np.array_equal(loaded.mu, expected.mu)
    assert np.array_equal(loaded.sigma, expected.sigma)
    assert np.array_equal(loaded.features, expected.features)
    assert (loaded.num, loaded.protocol) == (5, expected.protocol)


def test_equal_statistics_have_equal_bytes_in_every_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ganops.metrics.features import save_statistics\n"
        "from tests.unit.test_features import statistics\n"
        "save_statistics(Path(sys.argv[1]), statistics())\n"
    )
    for index in range(2):
        subprocess.run([sys.executable, "-c", code, str(tmp_path / f"{index}.npz")], check=True, cwd=ROOT)
    one, two = (hashlib.sha256((tmp_path / f"{index}.npz").read_bytes()).digest() for index in range(2))
    assert one == two


@pytest.mark.parametrize("kept", [0, 10, 300, -1])
def test_broken_statistics_are_named(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "stats.npz"
    save_statistics(path, statistics())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"stats\.npz: not whole statistics"):
        load_statistics(path)


def test_damaged_statistics_never_get_through_unnoticed(tmp_path: Path) -> None:
    """A byte changed anywhere: refused in one line, or harmless (zip's time stamps and the like)."""
    path = tmp_path / "stats.npz"
    save_statistics(path, statistics())
    content, expected = path.read_bytes(), load_statistics(path)
    for place in range(0, len(content), 3):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            loaded = load_statistics(path)
        except DataError:
            continue
        assert np.array_equal(loaded.mu, expected.mu)
        assert np.array_equal(loaded.sigma, expected.sigma)
        assert (loaded.num, loaded.protocol) == (expected.num, expected.protocol)


def test_missing_statistics(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        load_statistics(tmp_path / "stats.npz")


@pytest.mark.parametrize("name", COMPARED)
def test_other_protocols_are_refused_by_name(name: str) -> None:
    protocol = dict.fromkeys(COMPARED, "x")
    check_protocols(protocol, dict(protocol))
    with pytest.raises(DataError, match=f"^{name} is x in the statistics of the real images, but y"):
        check_protocols(protocol, {**protocol, name: "y"})
