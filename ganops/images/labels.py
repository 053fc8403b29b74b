"""Labels from folder names, dataset.json or labels.csv: a class for every image, or a vector; or preparing stops.

Tables may hold one class per image, or several numbers (multi-label): 0 and 1 for attributes that an image has or not,
or any others; networks get them as they are.

An image name is its path below the source, with forward slashes. Names are compared in Unicode normal form C, since
archives made on macOS spell accents in another way than tables do.
"""

import csv
import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from ganops.errors import DataError
from ganops.images.shard_index import LabelValues

T = TypeVar("T")

TABLES = {"json": "dataset.json", "csv": "labels.csv"}  # at the source's top, by prepare.labels
MAX_CLASSES = 65536  # a larger integer label is an identifier, not a class index
MOST_VALUE = 1e6  # of a vector: networks take in what is about 1; a larger number is an identifier, or a mistake
LISTED = 10  # items that an error names


@dataclass(frozen=True)
class Labels:
    """The labels of all images.

    Attributes:
        class_names: in the order of their indices; of the columns if each image has several; empty if unlabelled.
        values: [N] int64, a class per image, zeros if unlabelled; or [N, L] float32, a vector per image.
    """

    class_names: tuple[str, ...]
    values: LabelValues

    @property
    def multi_label(self) -> bool:
        return self.values.ndim == 2


def first_ten(items: Iterable[str]) -> str:
    """The first ten items, and how many there are in all if there are more."""
    known = list(items)
    text = ", ".join(known[:LISTED])
    return text if len(known) <= LISTED else f"{text}, ... ({len(known)} in all)"


def read_labels(
    kind: Literal["none", "folders", "json", "csv"], names: Sequence[str], read_table: Callable[[str], bytes | None]
) -> Labels:
    """The labels of all images.

    Args:
        kind: prepare.labels.
        names: of the images, each once.
        read_table: gives the content of a file at the source's top, None if there is no such file.
    Raises:
        DataError: images without a label, labels without an image, names that stand twice, the same label for all, or a
            table that is missing or malformed.
    """
    if kind == "none":
        return Labels((), np.zeros(len(names), np.int64))
    if kind == "folders":
        labels = folder_labels(names)
    else:
        table = TABLES[kind]
        content = read_table(table)
        if content is None:
            raise DataError(
                f"prepare.labels={kind}, but there is no {table} at the source's top. Add it, or change prepare.labels."
            )
        labels = json_labels(content, names) if kind == "json" else csv_labels(content, names)
    alike = same_label(labels, np.arange(len(names)))
    if alike is not None:
        raise DataError(
            f"prepare.labels={kind}, but all {len(names)} images are of one class, {alike}. "
            "Set prepare.labels: none, or check where the source begins: classes are told apart at its top."
        )
    return labels


def same_label(labels: Labels, images: NDArray[np.int64]) -> str | None:
    """What the labels of these images are called if they are all the same, else None."""
    values = labels.values[images]
    if (values != values[0]).any():
        return None
    return str(values[0].tolist()) if labels.multi_label else labels.class_names[int(values[0])]


def folder_labels(names: Sequence[str]) -> Labels:
    """The first folder of each name is its class; sorted by name, or by value if all are plain numbers.

    Raises:
        DataError: an image lies in no folder.
    """
    loose = [name for name in names if "/" not in name]
    if loose:
        what = "there are no class folders" if len(loose) == len(names) else "these images are in no class folder"
        raise DataError(
            f"prepare.labels=folders, but {what}: {first_ten(loose)}. Move them into one, or set prepare.labels: none."
        )
    classes = [name.split("/", 1)[0] for name in names]
    return _index(classes)


def json_labels(content: bytes, names: Sequence[str]) -> Labels:
    """Labels from `{"labels": [["a/0.png", 6], ...]}` or `{"labels": [["a/0.png", [0, 1, 0.5]], ...]}`.

    Classes are called "0" to "max", the places of a vector likewise.

    Raises:
        DataError: as `read_labels`.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:  # ValueError: also what is not UTF-8
        raise DataError(f"dataset.json: not valid JSON ({error}).") from None
    entries = value.get("labels") if isinstance(value, dict) else None
    if entries is None:
        raise DataError(
            'dataset.json: "labels" is missing or null. Expected {"labels": [[name, integer or numbers], ...]}; '
            "or set prepare.labels: none."
        )
    if not isinstance(entries, list):
        raise DataError(
            f'dataset.json: "labels" is a {type(entries).__name__}, expected [[name, integer or numbers], ...].'
        )
    expected, length = "[name, integer from 0 up]", 0
    pairs: list[tuple[str, Any]] = []
    for number, entry in enumerate(entries, 1):
        name, label = entry if isinstance(entry, list) and len(entry) == 2 else [None, None]
        if number == 1 and isinstance(label, list) and label:
            length = len(label)
            expected = f"[name, list of {length} numbers within +-{MOST_VALUE:g}], since the first has {length}"
        if not isinstance(name, str) or not (_is_vector(label, length) if length else _is_class(label)):
            shown = json.dumps(entry, ensure_ascii=False)[:100]
            raise DataError(f'dataset.json: entry {number} of "labels" is {shown}, expected {expected}.')
        pairs.append((name, label))
    matched = _match("dataset.json", pairs, names)
    if not length:
        return _numbered(matched, "dataset.json")
    return _vectors([str(place) for place in range(length)], matched, "dataset.json")


def _is_class(label: object) -> bool:
    return type(label) is int and label >= 0


def _is_vector(label: object, length: int) -> bool:
    if not isinstance(label, list) or len(label) != length:
        return False
    return all(type(value) in (int, float) and abs(value) <= MOST_VALUE for value in label)  # NaN is not <= anything


def csv_labels(content: bytes, names: Sequence[str]) -> Labels:
    """Labels from a table with the header `name,label`, or `name,<attribute>,<attribute>...` for several; UTF-8.

    One label per image: if all are integers from 0 up they are class indices, else class names, sorted. Several: numbers.

    Raises:
        DataError: as `read_labels`.
    """
    pairs = []
    try:
        rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        header = [cell.strip() for cell in next(rows, [])]
        several = len(header) > 2 and header[0] == "name" and all(header)
        if header != ["name", "label"] and not several:
            raise DataError(
                f"labels.csv: its first line is {','.join(header)[:100]!r}, expected name,label or, for several labels per "
                "image, name,<attribute>,<attribute>."
            )
        if twice := repeated(header):
            raise DataError(f"labels.csv: columns that stand more than once: {first_ten(twice)}.")
        for row in rows:
            if not row:
                continue
            cells = [cell.strip() for cell in row]
            if len(cells) != len(header) or not all(cells):
                raise DataError(
                    f"labels.csv, line {rows.line_num}: found {','.join(row)[:100]!r}, expected {','.join(header)[:100]}."
                )
            wrong = [cell for cell in cells[1:] if several and not _is_number(cell)]
            if wrong:
                raise DataError(
                    f"labels.csv, line {rows.line_num}: {wrong[0][:100]!r} is not a number within +-{MOST_VALUE:g}; with "
                    "several labels per image each must be one, e.g. 0 or 1."
                )
            pairs.append((cells[0], cells[1:]))
    except UnicodeDecodeError as error:
        raise DataError(f"labels.csv: not UTF-8 ({error}). Save it as UTF-8.") from None
    except csv.Error as error:
        raise DataError(f"labels.csv, line {rows.line_num}: not valid CSV ({error}).") from None
    matched = _match("labels.csv", pairs, names)
    if several:
        return _vectors(header[1:], [[float(cell) for cell in cells] for cells in matched], "labels.csv")
    labels = [cells[0] for cells in matched]
    if all(re.fullmatch(r"[0-9]{1,18}", label) for label in labels):
        return _numbered([int(label) for label in labels], "labels.csv")
    return _index(labels)


def _is_number(cell: str) -> bool:
    try:
        return abs(float(cell)) <= MOST_VALUE and "_" not in cell  # Python takes 1_0 for 10
    except ValueError:
        return False


def normal_name(name: str) -> str:
    """How names are compared."""
    return unicodedata.normalize("NFC", name)


def repeated(names: Iterable[str]) -> list[str]:
    """The names that stand more than once, each once, in order."""
    seen: dict[str, int] = {}
    for name in names:
        key = normal_name(name)
        seen[key] = seen.get(key, 0) + 1
    return [name for name, count in seen.items() if count > 1]


def _match(table: str, pairs: Sequence[tuple[str, T]], names: Sequence[str]) -> list[T]:
    """The table's labels in the order of `names`."""
    twice = repeated(name for name, _ in pairs)
    if twice:
        raise DataError(f"{table}: names that stand more than once: {first_ten(twice)}. Keep one entry each.")
    label_of = {normal_name(name): label for name, label in pairs}
    keys = [normal_name(name) for name in names]
    missing = [name for name, key in zip(names, keys, strict=True) if key not in label_of]
    if missing:
        raise DataError(
            f"{table}: {len(missing)} of {len(names)} images have no label: {first_ten(missing)}. Names are paths "
            "below the source. Add them, or take the images out."
        )
    known = set(keys)
    absent = [name for name, _ in pairs if normal_name(name) not in known]
    if absent:
        raise DataError(
            f"{table}: {len(absent)} of {len(pairs)} labels have no image: {first_ten(absent)}. Names are paths below "
            "the source. Add the images, or take the entries out."
        )
    return [label_of[key] for key in keys]


def _numbered(values: list[int], table: str) -> Labels:
    """Class indices as they stand; a class between 0 and the largest may be empty."""
    largest = max(values)
    if largest >= MAX_CLASSES:
        raise DataError(
            f"{table}: label {largest} is not a class index below {MAX_CLASSES}. Number the classes from 0 up."
        )
    return Labels(tuple(str(i) for i in range(largest + 1)), np.array(values, np.int64))


def _vectors(columns: list[str], values: list[list[float]], table: str) -> Labels:
    """A vector per image."""
    if len(columns) >= MAX_CLASSES:
        raise DataError(f"{table}: {len(columns)} numbers per image; fewer than {MAX_CLASSES} are taken.")
    return Labels(tuple(columns), np.array(values, np.float32) + np.float32(0))  # -0 becomes 0: equal, and equal bytes


def _index(classes: list[str]) -> Labels:
    """Class names to indices in sorted order."""
    distinct = set(classes)
    broken = sorted(name for name in distinct if len(name.splitlines()) > 1)
    if broken:
        raise DataError(f"the class name {broken[0]!r} has a line break. Rename it.")
    if all(name.isascii() and name.isdigit() for name in distinct):
        ordered = sorted(distinct, key=lambda name: (int(name), name))
    else:
        ordered = sorted(distinct)
    index_of = {name: i for i, name in enumerate(ordered)}
    return Labels(tuple(ordered), np.array([index_of[name] for name in classes], np.int64))
