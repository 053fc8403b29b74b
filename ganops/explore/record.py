"""A folder of results belongs to one snapshot and one set of values, which a JSON file in it tells."""

import json
from pathlib import Path
from typing import Any

from ganops.errors import DataError
from ganops.files import write_json


def claim_folder(folder: Path, name: str, values: dict[str, Any]) -> dict[str, Any]:
    """Makes a folder ours, or finds that it is.

    Args:
        folder: made if it does not exist.
        name: of the JSON file in it, which is written if the folder is new or empty.
        values: what the results are a function of; JSON values.
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
        record: dict[str, Any] = {"values": values}
        write_json(path, record)
        return record
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        found = record["values"]
        keys = sorted({*found, *values})
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{path} is damaged. Remove {folder}, or name another folder.") from None
    for key in keys:
        if found.get(key) != values.get(key):
            raise DataError(
                f"{folder} holds results of other values: {key}={_short(found.get(key))} there, "
                f"{_short(values.get(key))} now. Name another folder, or remove this one."
            )
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
