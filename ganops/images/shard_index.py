"""What is known of a set of shards: its index.json."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ganops.errors import DataError
from ganops.shape import nominal_resolution, size_name

FORMAT_VERSION = 2  # 1 had squares of 8 bits only, one class per image
INDEX_NAME = "index.json"

Levels = NDArray[np.uint8 | np.uint16]
"""Pixels: of 8 or of 16 bits."""
LabelValues = NDArray[np.int64 | np.float32]
"""[N] classes, or [N, L] vectors."""


@dataclass(frozen=True)
class Layout:
    """What all images of a set have in common.

    Attributes:
        height: px.
        width: px.
        channels: 1 grey, 2 grey and alpha, 3 RGB, 4 RGBA; or any other number.
        bits: 8 or 16 per channel.
        class_names: empty if unlabelled; with `multi_label` the names of the label vector's places.
        multi_label: each image has a vector of numbers, not one class.
    """

    height: int
    width: int
    channels: int
    bits: Literal[8, 16]
    class_names: tuple[str, ...]
    multi_label: bool

    @property
    def num_classes(self) -> int:
        """Width of what networks are conditioned on; 0 if unlabelled."""
        return len(self.class_names)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, px."""
        return self.height, self.width

    @property
    def nominal(self) -> int:
        """The size of a square whose networks have as many levels, px; ValueError if there are no such networks."""
        return nominal_resolution(*self.size)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[C, H, W]."""
        return self.channels, self.height, self.width

    @property
    def image_dtype(self) -> np.dtype[Any]:
        """uint8 or uint16, little-endian."""
        return np.dtype("u1" if self.bits == 8 else "<u2")

    @property
    def image_bytes(self) -> int:
        """Of one image."""
        return int(np.prod(self.image_shape)) * self.bits // 8

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Of one label: [] for a class, [L] for a vector."""
        return (self.num_classes,) if self.multi_label else ()

    @property
    def label_dtype(self) -> np.dtype[Any]:
        """int64 for classes, float32 for vectors, little-endian."""
        return np.dtype("<f4" if self.multi_label else "<i8")

    @property
    def label_kind(self) -> str:
        """What `class_names` are, for people: "classes" or "attributes"."""
        return "attributes" if self.multi_label else "classes"

    def describe(self) -> str:
        """For people: 3x256x192 of 8 bits."""
        channels, height, width = self.image_shape
        return f"{channels}x{height}x{width}" + (" of 16 bits" if self.bits == 16 else "")


@dataclass(frozen=True)
class Shard:
    """One file of the store.

    Attributes:
        name: its file name, e.g. "00000.h5".
        count: its images.
        sha256: hex, of the whole file.
    """

    name: str
    count: int
    sha256: str


@dataclass(frozen=True)
class ShardIndex(Layout):
    """What index.json says.

    Attributes:
        class_counts: images per class, in the order of `class_names`; with `multi_label` those whose number there is
            above 0.5: an image counts for none, one or several.
        digest: hex sha256 over the shards' sha256 in order: "the data digest".
        source: what the writer wants known about where the images are from; JSON.
    """

    format_version: int
    num_images: int
    class_counts: tuple[int, ...]
    shards: tuple[Shard, ...]
    digest: str
    source: dict[str, Any]

    @property
    def resolution(self) -> int | str:
        """As protocols name it: 256, or "256x192" (height x width)."""
        return size_name(self.height, self.width)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def shards_digest(shards: tuple[Shard, ...]) -> str:
    """The data digest."""
    lines = [f"ganops shards {FORMAT_VERSION}", *(shard.sha256 for shard in shards)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_index(folder: Path) -> ShardIndex:
    """Reads and checks index.json; the shards themselves are not touched.

    Raises:
        DataError: it is missing, of another format version, or contradicts itself.
    """
    path = folder / INDEX_NAME
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path} not found. The stage that writes {folder} has not run or did not finish.") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot read ({error}). Write {folder} again.") from None
    version = value.get("format_version") if isinstance(value, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(f"{path}: format_version={version}, but ganops reads {FORMAT_VERSION}. Write {folder} again.")
    try:
        bits, multi_label = int(value["bits"]), value["multi_label"]
        if bits not in (8, 16) or not isinstance(multi_label, bool):
            raise ValueError(f"bits={bits}, multi_label={multi_label}")
        index = ShardIndex(
            format_version=version,
            height=int(value["height"]),
            width=int(value["width"]),
            channels=int(value["channels"]),
            bits=16 if bits == 16 else 8,
            num_images=int(value["num_images"]),
            class_names=tuple(str(name) for name in value["class_names"]),
            multi_label=multi_label,
            class_counts=tuple(int(count) for count in value["class_counts"]),
            shards=tuple(Shard(str(s["name"]), int(s["count"]), str(s["sha256"])) for s in value["shards"]),
            digest=str(value["digest"]),
            source=dict(value["source"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: an entry is missing or mistyped ({error}). Write {folder} again.") from None
    total = sum(shard.count for shard in index.shards)
    if not total or total != index.num_images or min(shard.count for shard in index.shards) < 1:
        raise DataError(f"{path}: num_images={index.num_images}, but its shards have {total}. Write {folder} again.")
    counts = index.class_counts
    if index.multi_label:
        wrong = not index.class_names or not all(0 <= count <= total for count in counts)
    else:
        wrong = bool(index.class_names) and sum(counts) != total
    if wrong or len(counts) != index.num_classes:
        raise DataError(f"{path}: class_counts do not add up to num_images={total}. Write {folder} again.")
    if index.digest != shards_digest(index.shards):
        raise DataError(f"{path}: digest does not belong to the listed shards. Write {folder} again.")
    return index
