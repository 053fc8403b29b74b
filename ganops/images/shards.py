"""The image store: HDF5 shards that are written once and read through memory maps, and their index.json.

`images` is contiguous, uint8 [N, C, H, W], page-aligned and allocated early, so its bytes lie in one piece at a
known offset: a batch is a gather from a memory map, with no HDF5 call, chunk cache or lock on the way. Same images,
labels and attributes give the same bytes, however the appends were cut.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ganops.entry import progress
from ganops.errors import DataError
from ganops.files import atomic_path, remove_temporaries, sha256_file, write_json
from ganops.images.shard_file import open_shard, write_shard
from ganops.launch import rank, world_size

FORMAT_VERSION = 1
INDEX_NAME = "index.json"


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
class ShardIndex:
    """What index.json says.

    Attributes:
        resolution: height and width of the images, px.
        channels: 1 grey, 3 RGB, 4 RGBA.
        class_names: empty if unlabelled.
        class_counts: images per class, in the order of `class_names`.
        digest: hex sha256 over the shards' sha256 in order: "the data digest".
        source: what the writer wants known about where the images are from; JSON.
    """

    format_version: int
    resolution: int
    channels: int
    num_images: int
    class_names: tuple[str, ...]
    class_counts: tuple[int, ...]
    shards: tuple[Shard, ...]
    digest: str
    source: dict[str, Any]

    @property
    def num_classes(self) -> int:
        """0 if unlabelled."""
        return len(self.class_names)


def _digest(shards: tuple[Shard, ...]) -> str:
    lines = [f"ganops shards {FORMAT_VERSION}", *(shard.sha256 for shard in shards)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


class ShardWriter:
    """Writes a folder of shards and at last their index.json; without index.json there is no data set.

    What an earlier writer left in the folder is removed first. Use it in a `with` block: left without `close()`, nothing
    stays behind. The pixels of the open shard wait in a temporary file, since a contiguous dataset needs its length
    beforehand; so the disk must hold one shard more than the result.
    """

    def __init__(
        self,
        folder: Path,
        shard_images: int,
        resolution: int,
        channels: int,
        class_names: tuple[str, ...],
        attributes: dict[str, str | int],
    ) -> None:
        """Empties the folder of earlier shards.

        Args:
            folder: made if missing.
            shard_images: images per file.
            resolution: height and width, px.
            channels: 1, 3 or 4.
            class_names: empty if unlabelled.
            attributes: written into each file, so part of the digest; no times, hosts or paths.
        Raises:
            DataError: the folder cannot be written to.
        """
        if shard_images < 1:
            raise ValueError(f"shard_images={shard_images}")
        self._folder = folder
        self._shard_images = shard_images
        self._shape = (channels, resolution, resolution)
        self._class_names = class_names
        self._attributes = attributes
        self._counts = np.zeros(max(1, len(class_names)), np.int64)
        self._shards: list[Shard] = []
        self._labels: list[NDArray[np.int64]] = []  # of the open shard
        self._filled = 0
        self._closed = False
        with _explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._remove_all()
            self._spool = (folder / ".pixels.tmp").open("w+b", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if not self._closed:
            self.abort()

    def append(self, images: NDArray[np.uint8], labels: NDArray[np.int64]) -> None:
        """Adds any number of images.

        Args:
            images: [n, C, H, W] uint8.
            labels: [n] int64, class indices; zeros are stored if there are no classes.
        Raises:
            ValueError: shape, dtype or a label is not what the writer was made for.
            DataError: the disk is full or fails.
        """
        if self._closed:
            raise ValueError("the writer is closed")
        if images.dtype != np.uint8 or images.shape[1:] != self._shape:
            raise ValueError(f"expected uint8 [n, {self._shape}], got {images.dtype} {images.shape}")
        if labels.dtype != np.int64 or labels.shape != images.shape[:1]:
            raise ValueError(f"expected int64 labels [{len(images)}], got {labels.dtype} {labels.shape}")
        if not self._class_names:
            labels = np.zeros_like(labels)
        elif len(labels) and not 0 <= labels.min() <= labels.max() < len(self._class_names):
            raise ValueError(f"labels {labels.min()}..{labels.max()} outside 0..{len(self._class_names) - 1}")
        done = 0
        while done < len(images):
            stop = min(done + self._shard_images - self._filled, len(images))
            with _explained(self._folder):
                _write_all(self._spool, np.ascontiguousarray(images[done:stop]))
            self._labels.append(labels[done:stop].copy())
            self._filled += stop - done
            done = stop
            if self._filled == self._shard_images:
                self._finish()
        self._counts += np.bincount(labels, minlength=len(self._counts))

    def close(self, source: dict[str, Any]) -> ShardIndex:
        """Finishes the last shard and writes index.json.

        Args:
            source: what index.json should say about where the images are from; JSON.
        Raises:
            DataError: no image was appended, or the disk is full or fails.
        """
        if self._filled:
            self._finish()
        if not self._shards:
            raise DataError(f"{self._folder}: there is no image to write.")
        shards = tuple(self._shards)
        index = ShardIndex(
            format_version=FORMAT_VERSION,
            resolution=self._shape[1],
            channels=self._shape[0],
            num_images=sum(shard.count for shard in shards),
            class_names=self._class_names,
            class_counts=tuple(int(count) for count in self._counts[: len(self._class_names)]),
            shards=shards,
            digest=_digest(shards),
            source=source,
        )
        with _explained(self._folder):
            self._close_spool()
            write_json(self._folder / INDEX_NAME, asdict(index))
        self._closed = True
        return index

    def abort(self) -> None:
        """Removes all that was written."""
        self._closed = True
        self._close_spool()
        self._remove_all()

    def _close_spool(self) -> None:
        self._spool.close()
        Path(self._spool.name).unlink(missing_ok=True)

    def _remove_all(self) -> None:
        (self._folder / INDEX_NAME).unlink(missing_ok=True)  # first: a folder without it is no data set
        for path in self._folder.glob("*.h5"):
            if re.fullmatch(r"\d{5,}", path.stem):
                path.unlink()
        remove_temporaries(self._folder)

    def _finish(self) -> None:
        """Makes a shard of the waiting images."""
        images = np.memmap(self._spool, np.uint8, "r", shape=(self._filled, *self._shape))
        path = self._folder / f"{len(self._shards):05d}.h5"
        attributes = {
            "format_version": FORMAT_VERSION,
            "resolution": self._shape[1],
            "class_names": json.dumps(self._class_names, ensure_ascii=False),
            **self._attributes,
        }
        with _explained(self._folder):
            with atomic_path(path) as temporary:
                write_shard(temporary, images, np.concatenate(self._labels), attributes)
            self._shards.append(Shard(path.name, self._filled, sha256_file(path)))
            del images  # unmap before the file under it shrinks
            self._spool.seek(0)
            self._spool.truncate()
        self._labels = []
        self._filled = 0


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    """Tells failures of the disk in the user's words."""
    try:
        yield
    except (OSError, RuntimeError) as error:  # RuntimeError: of h5py
        raise DataError(f"{folder}: cannot write ({error}). Free or change the disk.") from None


def _write_all(file: FileIO, images: NDArray[np.uint8]) -> None:
    view = images.data.cast("B")
    while view:  # a raw file may take less than it is given
        view = view[file.write(view) :]


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
        index = ShardIndex(
            format_version=version,
            resolution=int(value["resolution"]),
            channels=int(value["channels"]),
            num_images=int(value["num_images"]),
            class_names=tuple(str(name) for name in value["class_names"]),
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
    if len(index.class_counts) != index.num_classes or (index.class_names and sum(index.class_counts) != total):
        raise DataError(f"{path}: class_counts do not add up to num_images={total}. Write {folder} again.")
    if index.digest != _digest(index.shards):
        raise DataError(f"{path}: digest does not belong to the listed shards. Write {folder} again.")
    return index


class Shards:
    """Open shards. Made by `open_shards`; keeps memory maps, no file handles, and may be shared by threads."""

    def __init__(self, index: ShardIndex, maps: list[NDArray[np.uint8]], labels: NDArray[np.int64]) -> None:
        self._index = index
        self._maps = maps
        self._labels = labels
        self._starts = np.cumsum([0, *(len(images) for images in maps)])

    @property
    def index(self) -> ShardIndex:
        """What index.json says."""
        return self._index

    @property
    def labels(self) -> NDArray[np.int64]:
        """[N] int64 in 0..num_classes-1; zeros if unlabelled. Read-only."""
        return self._labels

    def __len__(self) -> int:
        return len(self._labels)

    def gather(self, indices: NDArray[np.int64]) -> NDArray[np.uint8]:
        """A copy of the images at `indices`, in that order.

        Args:
            indices: [n] int64 in 0..N-1; repeats are allowed.
        Returns:
            [n, C, H, W] uint8.
        Raises:
            IndexError: an index is outside 0..N-1.
        """
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"indices {indices.min()}..{indices.max()} outside 0..{len(self) - 1}")
        if len(self._maps) == 1:
            return self._maps[0][indices]
        images = np.empty((len(indices), *self._maps[0].shape[1:]), np.uint8)
        shard_of = np.searchsorted(self._starts, indices, side="right") - 1
        places = indices - self._starts[shard_of]
        # One copy per image; a gather per shard and a scatter would copy twice, and is slower at any batch size.
        for i, (shard, place) in enumerate(zip(shard_of.tolist(), places.tolist(), strict=True)):
            images[i] = self._maps[shard][place]
        return images


def open_shards(folder: Path, verify: bool) -> Shards:
    """Maps all shards of a folder into memory.

    Args:
        folder: with index.json and its shards.
        verify: also compare the sha256 of each file, which reads everything once; ranks share the work.
    Raises:
        DataError: a file is missing, is not what index.json says, or cannot be memory-mapped.
    """
    index = read_index(folder)
    maps, labels = [], []
    shown = progress(index.shards, len(index.shards), "checking data", "shard") if verify else index.shards
    for number, shard in enumerate(shown):
        path = folder / shard.name
        if not path.is_file():
            raise DataError(f"{path} not found, but {INDEX_NAME} lists it. Write {folder} again.")
        if verify and number % world_size() == rank() and sha256_file(path) != shard.sha256:
            raise DataError(f"{path}: sha256 differs from {INDEX_NAME}; the file was changed. Write {folder} again.")
        images, shard_labels = open_shard(path, (shard.count, index.channels, index.resolution, index.resolution))
        if shard_labels.min() < 0 or shard_labels.max() >= max(1, index.num_classes):
            raise DataError(f"{path}: labels {shard_labels.min()}..{shard_labels.max()} outside the classes.")
        maps.append(images)
        labels.append(shard_labels)
    joined = np.concatenate(labels)
    joined.flags.writeable = False
    return Shards(index, maps, joined)
