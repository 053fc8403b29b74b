"""What the report is made of: the files that the other stages wrote, read once and checked."""

import csv
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ganops.errors import DataError

Row = Mapping[str, str]


@dataclass(frozen=True)
class Paths:
    """Where the files are.

    Attributes:
        result: results/fid.json.
        history: results/train/history.csv.
        summary: results/train/metrics.json.
        grids: the folder results/train/grids, a PNG per kimg.
        reals: real images in the layout of the grids.
        samples: the folder results/samples with grid.png and truncation.png.
        neighbours: samples and the real images nearest to them.
        index: data/shards/index.json.
    """

    result: Path
    history: Path
    summary: Path
    grids: Path
    reals: Path
    samples: Path
    neighbours: Path
    index: Path


@dataclass(frozen=True)
class Inputs:
    """The contents of `Paths`.

    Attributes:
        params: section -> key -> value, without `run`.
        result: numbers, and the protocol in full under "protocol".
        metric: the name of the headline number in `result`: protocol.name, or the first one if that was not measured.
        history: a row per tick, all cells as text; [] before the first tick.
        summary: the numbers of the last tick.
        index: what the shards hold.
        grids: (kimg, PNG), in order.
        reals: PNG.
        samples: PNG.
        truncation: PNG.
        neighbours: PNG.
    """

    params: Mapping[str, Mapping[str, Any]]
    result: Mapping[str, Any]
    metric: str
    history: list[Row]
    summary: Mapping[str, Any]
    index: Mapping[str, Any]
    grids: list[tuple[int, Path]]
    reals: Path
    samples: Path
    truncation: Path
    neighbours: Path


def read_inputs(paths: Paths, params: Mapping[str, Mapping[str, Any]]) -> Inputs:
    """Reads everything but the pictures, which are looked at when they are put into the page.

    Raises:
        DataError: a file is missing, is not what its name says, or names no headline number.
    """
    result = _read_json(paths.result, "fid")
    protocol, numbers = result.get("protocol"), [key for key in result if is_number(result[key])]
    if not isinstance(protocol, dict) or "name" not in protocol or not numbers:
        raise DataError(f"{paths.result} has no number, or no protocol.name. Run `dvc repro -f fid`.")
    metric = protocol["name"] if protocol["name"] in numbers else numbers[0]  # fid.metrics may be without the distance
    index = _read_json(paths.index, "prepare")
    missing = {
        "num_images", "height", "width", "channels", "bits", "multi_label", "class_names", "class_counts", "digest",
    } - set(index)  # fmt: skip
    if missing:
        raise DataError(f"{paths.index} has no {min(missing)}. Run `dvc repro -f prepare`.")
    pictures = (paths.reals, paths.samples / "grid.png", paths.samples / "truncation.png", paths.neighbours)
    for path, stage in zip(pictures, ("train", "sample", "sample", "fid"), strict=True):
        _must_exist(path, stage)
    _must_exist(paths.grids, "train")
    grids = sorted((int(path.stem), path) for path in paths.grids.glob("*.png") if path.stem.isdecimal())
    summary = _read_json(paths.summary, "train")
    return Inputs(params, result, metric, _read_history(paths.history), summary, index, grids, *pictures)


def _must_exist(path: Path, stage: str) -> None:
    if not path.exists():
        raise DataError(f"{path} is missing. Run `dvc repro {stage}`, the stage that writes it.")


def _read_json(path: Path, stage: str) -> dict[str, Any]:
    _must_exist(path, stage)
    try:
        value = json.loads(path.read_text(encoding="utf8"))
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}). Run `dvc repro -f {stage}`.") from None
    if not isinstance(value, dict):
        raise DataError(
            f"{path} holds a {type(value).__name__}, expected names and values. Run `dvc repro -f {stage}`."
        )
    return value


def _read_history(path: Path) -> list[Row]:
    _must_exist(path, "train")
    with path.open(newline="", encoding="utf8") as file:
        table = csv.DictReader(file, restval="")
        columns = table.fieldnames or ()
        rows: list[Row] = list(table)
    if "kimg" not in columns:
        raise DataError(f"{path} has no column kimg. Run `dvc repro -f train`.")
    if any(finite_number(row["kimg"]) is None for row in rows):
        raise DataError(f"{path} has a row without kimg. Run `dvc repro -f train`.")
    return rows


def is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def finite_number(cell: str) -> float | None:
    """A cell of the history: None if it is empty, NaN or infinite.

    Raises:
        DataError: it is no number.
    """
    try:
        value = float(cell) if cell else math.nan
    except ValueError:
        raise DataError(f"results/train/history.csv has {cell!r} where a number should be.") from None
    return value if math.isfinite(value) else None
