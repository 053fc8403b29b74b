"""The statistics file, and the refusal to compare what was measured differently."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ganops.errors import DataError
from ganops.metrics.statistics import (
    COMPARED,
    OF_REFERENCE,
    Statistics,
    check_protocols,
    load_statistics,
    save_statistics,
)

ROOT = Path(__file__).parents[2]


def statistics() -> Statistics:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((12, 3)).astype(np.float32)
    mu, places = features.mean(0).astype(np.float64), np.arange(12)
    protocol = {**dict.fromkeys((*COMPARED, *OF_REFERENCE, "data_digest", "num_images"), "x"), "b": 1, "a": [1, 2]}
    return Statistics(mu, np.eye(3), 12, protocol, features, np.zeros(12, np.int64), places, ("a", "ü"))


def test_statistics_round_trip(tmp_path: Path) -> None:
    save_statistics(tmp_path / "stats.npz", statistics())
    loaded, expected = load_statistics(tmp_path / "stats.npz"), statistics()
    assert np.array_equal(loaded.mu, expected.mu)
    assert np.array_equal(loaded.sigma, expected.sigma)
    assert np.array_equal(loaded.features, expected.features)
    assert (loaded.num, loaded.protocol, loaded.class_names) == (12, expected.protocol, ("a", "ü"))


def test_equal_statistics_have_equal_bytes_in_every_process(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from ganops.metrics.statistics import save_statistics\n"
        "from tests.unit.test_statistics import statistics\n"
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


@pytest.mark.parametrize("name", [*COMPARED, *OF_REFERENCE, "data_digest"])
def test_other_protocols_are_refused_by_name(name: str) -> None:
    protocol = dict.fromkeys((*COMPARED, *OF_REFERENCE, "data_digest"), "x")
    check_protocols(protocol, dict(protocol))
    with pytest.raises(DataError, match=f"^{name} is x in the statistics of the real images, but y"):
        check_protocols(protocol, {**protocol, name: "y"})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"protocol": {"a": 1}}, "the protocol lacks"),
        (
            {"features": np.zeros((3, 3), np.float32), "labels": np.zeros(3, np.int64), "places": np.arange(3)},
            "too few",
        ),
        ({"sigma": -np.eye(3)}, "a variance below zero"),
        ({"labels": np.zeros(12)}, "labels are int64 and float64"),
        ({"features": np.full((12, 3), np.nan, np.float32)}, "not finite float32"),
    ],
)
def test_whole_files_of_something_else_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    save_statistics(tmp_path / "stats.npz", replace(statistics(), **changes))
    with pytest.raises(DataError, match=message):
        load_statistics(tmp_path / "stats.npz")
