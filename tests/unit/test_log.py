"""history.csv and metrics.json: cut to the state, whole after a resume, and honest about yardsticks."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from ganops.protocols import TRAIN_METRICS
from ganops.training.log import COLUMNS, RunLog, format_duration


def row(nimg: int, distance: float | None = None, digest: str = "a") -> dict[str, Any]:
    values: dict[str, Any] = dict.fromkeys(COLUMNS, 0.5)
    return values | {
        "tick": nimg // 100, "nimg": nimg, "kimg": nimg / 1000, **dict.fromkeys(TRAIN_METRICS), "distance": distance,
        "metric": None if distance is None else "fd_x", "metric_digest": digest, "pl_penalty": None,
    }  # fmt: skip


def open_log(tmp_path: Path, tick_nimg: int, best_by: str = "distance") -> RunLog:
    (tmp_path / "results").mkdir(exist_ok=True)
    return RunLog(tmp_path / "run", tmp_path / "results", tick_nimg, tick_nimg, 1000, best_by)


def kept(path: Path) -> list[int]:
    with path.open() as file:
        return [int(line["nimg"]) for line in csv.DictReader(file)]


@pytest.fixture
def log_of_three(tmp_path: Path) -> Path:
    log = open_log(tmp_path, 0)
    for nimg, distance in ((100, 9.0), (200, 3.0), (300, 5.0)):
        log.add_row(row(nimg, distance), 1.0, 0)
    log.close()
    return tmp_path


def test_summary_names_last_and_best(log_of_three: Path) -> None:
    summary = json.loads((log_of_three / "results" / "metrics.json").read_text())
    assert (summary["distance"], summary["best_distance"], summary["best_kimg"]) == (5.0, 3.0, 0.2)


def test_of_equal_ticks_the_later_is_the_best(tmp_path: Path) -> None:
    log = open_log(tmp_path, 0, "precision")
    for nimg in (100, 200):
        log.add_row(row(nimg, 5.0) | {"precision": 1.0}, 1.0, 0)
    log.close()
    assert json.loads((tmp_path / "results" / "metrics.json").read_text())["best_kimg"] == 0.2


def test_a_history_with_other_columns_is_continued(tmp_path: Path) -> None:
    log = open_log(tmp_path, 0)
    log.add_row(row(100, 9.0), 1.0, 0)
    log.close()
    path = tmp_path / "run" / "history.csv"
    head, line = path.read_text().splitlines()
    path.write_text(f"{head.replace(',kid,', ',').replace('tick,', 'extra,tick,')}\n7,{line.replace(',,', ',', 1)}\n")
    open_log(tmp_path, 100).close()
    assert path.read_text().splitlines()[0].split(",") == list(COLUMNS)


def test_the_best_by_another_metric(tmp_path: Path) -> None:
    log = open_log(tmp_path, 0, "recall")
    for nimg, recall in ((100, 0.2), (200, 0.4), (300, 0.3)):
        log.add_row(row(nimg, 5.0) | {"recall": recall}, 1.0, 0)
    log.close()
    summary = json.loads((tmp_path / "results" / "metrics.json").read_text())
    assert (summary["recall"], summary["best_recall"], summary["best_kimg"]) == (0.3, 0.4, 0.2)
    assert "best_distance" not in summary


def test_resuming_without_a_step_left_writes_everything_again(log_of_three: Path) -> None:
    before = {path.name: path.read_bytes() for path in (log_of_three / "results").iterdir()}
    for path in (log_of_three / "results").iterdir():
        path.unlink()
    open_log(log_of_three, 300).close()
    assert {path.name: path.read_bytes() for path in (log_of_three / "results").iterdir()} == before


def test_later_rows_are_hidden_until_they_are_trained_again(log_of_three: Path) -> None:
    log = open_log(log_of_three, 100)
    assert kept(log_of_three / "results" / "history.csv") == [100]
    assert kept(log_of_three / "run" / "history.csv") == [100, 200, 300]
    log.add_row(row(200, 3.0), 1.0, 0)
    log.close()
    assert kept(log_of_three / "results" / "history.csv") == [100, 200]
    assert kept(log_of_three / "run" / "history.csv") == [100, 200, 300]


def test_distances_of_another_yardstick_are_not_compared(log_of_three: Path) -> None:
    log = open_log(log_of_three, 300)
    log.add_row(row(400, 70.0, digest="b"), 1.0, 0)
    log.close()
    summary = json.loads((log_of_three / "results" / "metrics.json").read_text())
    assert (summary["distance"], summary["best_distance"]) == (70.0, 70.0)


def test_numbers_that_are_not_finite_stay_valid_json(tmp_path: Path) -> None:
    log = open_log(tmp_path, 0)
    log.add_row(row(100) | {"G_loss": float("nan")}, 1.0, 0)
    log.close()
    assert json.loads((tmp_path / "results" / "metrics.json").read_text())["G_loss"] is None


@pytest.mark.parametrize(("seconds", "text"), [(7, "7s"), (185, "3m 05s"), (7380, "2h 03m"), (93_780, "1d 02h 03m")])
def test_durations(seconds: int, text: str) -> None:
    assert format_duration(seconds) == text
