"""A folder of results belongs to one snapshot and one set of values, which a JSON file in it tells."""

import json
import os
from pathlib import Path
from typing import Any

from ganops.errors import DataError
from ganops.files import write_json


def claim_folder(folder: Path, name: str, values: dict[str, Any], inputs: tuple[str, ...] = ()) -> dict[str, Any]:
    """Makes a folder ours, or finds that it is; removes what killed processes left half-written in it.

    Args:
        folder: made if it does not exist.
        name: of the JSON file in it, which is written if the folder is new or empty.
        values: what the results are a function of; JSON values.
        inputs: names of files that are written before there are results. A folder with no more than these and the JSON
            file is of a run that failed, and may be claimed with other values.
    Returns:
        What the JSON file holds: "values", and what else was written there.
    Raises:
        DataError: the folder holds results of other values, or other things; or is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder} is a file. Name a folder, new or empty.")
    values = json.loads(json.dumps(values))
    path = folder / name
    if not path.exists():
        if folder.exists() and any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise DataError(f"{folder} holds other things (it has no {name}). Name a folder that is new or empty.")
        return _write_new(path, values)
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found = record["values"]
        keys = sorted({*found, *values})
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} is damaged. Remove {folder}, or name another folder.") from None
    for key in keys:
        if found.get(key) != values.get(key):
            if all(entry.name in (name, *inputs) or entry.name.startswith(".") for entry in folder.iterdir()):
                return _write_new(path, values)
            raise DataError(
                f"{folder} holds results of other values: {key}={_short(found.get(key))} there, "
                f"{_short(values.get(key))} now. Name another folder, or remove this one."
            )
    _remove_stale(folder)
    return record


def _write_new(path: Path, values: dict[str, Any]) -> dict[str, Any]:
    record = {"values": values}
    write_json(path, record)
    _remove_stale(path.parent)
    return record


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:40] + "..."


def check_picture(path: Path, suffixes: tuple[str, ...]) -> None:
    """That a picture can be written to a path.

    Raises:
        DataError: it is a folder, or has another ending.
    """
    if path.suffix.lower() not in suffixes:
        raise DataError(f"{path}: the name of the result must end in {' or '.join(suffixes)}.")
    if path.is_dir():
        raise DataError(f"{path} is a folder. Name a file.")


def _remove_stale(folder: Path) -> None:
    """Removes what killed writers left in `folder` and below, where others may be writing at the same time.

    Temporaries of processes that run on this machine stay; but not our own, whose number a killed one may have had.
    """
    for path in folder.rglob(".*.tmp"):
        pid = path.name.split(".")[-2]
        if pid.isdecimal() and (int(pid) == os.getpid() or not _runs(int(pid))):
            path.unlink(missing_ok=True)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # of another user
        return True
    return True
