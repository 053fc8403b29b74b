"""The image store: HDF5 shards that are written once and read through memory maps, and their index.json.

`images` is contiguous, uint8 or uint16 [N, C, H, W], page-aligned and allocated early, so its bytes lie in one piece at
a known offset: a batch is a gather from a memory map, with no HDF5 call, chunk cache or lock on the way. `labels` are
classes, int64 [N], or vectors, float32 [N, L]. Same images, labels and attributes give the same bytes, however the
appends were cut.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from ganops.entry import progress
from ganops.errors import DataError
from ganops.files import atomic_path, remove_temporaries, sha256_file, write_json
from ganops.images.shard_file import open_shard, write_shard
from ganops.images.shard_index import (
    FORMAT_VERSION,
    INDEX_NAME,
    LabelValues,
    Layout,
    Levels,
    Shard,
    ShardIndex,
    read_index,
    shards_digest,
)
from ganops.launch import rank, world_size
from ganops.shape import Resolution, height_width

PRESENT = 0.5  # numbers of label vectors above this say that an image has the attribute


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
        resolution: Resolution,
        channels: int,
        class_names: tuple[str, ...],
        attributes: dict[str, str | int],
        *,
        bits: Literal[8, 16] = 8,
        multi_label: bool = False,
    ) -> None:
        """Empties the folder of earlier shards.

        Args:
            folder: made if missing.
            shard_images: images per file.
            resolution: px; a number, or height and width.
            channels: see `Layout`, and so the others.
            class_names: empty if unlabelled.
            attributes: written into each file, so part of the digest; no times, hosts or paths.
            bits: 8 or 16.
            multi_label: labels are vectors.
        Raises:
            DataError: the folder cannot be written to.
        """
        if shard_images < 1 or (multi_label and not class_names):
            raise ValueError(f"shard_images={shard_images}, class_names={class_names}")
        self._folder = folder
        self._shard_images = shard_images
        self._layout = Layout(*height_width(resolution), channels, bits, class_names, multi_label)
        self._attributes = attributes
        self._counts = np.zeros(len(class_names), np.int64)
        self._shards: list[Shard] = []
        self._labels: list[LabelValues] = []  # of the open shard
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

    def append(self, images: Levels, labels: LabelValues) -> None:
        """Adds any number of images.

        Args:
            images: [n, C, H, W] uint8; uint16 for 16 bits.
            labels: [n] int64, class indices, of which zeros are stored if there are no classes; or [n, L] float32, finite.
        Raises:
            ValueError: shape, dtype or a label is not what the writer was made for.
            DataError: the disk is full or fails.
        """
        if self._closed:
            raise ValueError("the writer is closed")
        layout = self._layout
        if images.dtype != layout.image_dtype or images.shape[1:] != layout.image_shape:
            raise ValueError(
                f"expected {layout.image_dtype} [n, {layout.image_shape}], got {images.dtype} {images.shape}"
            )
        label_shape = (len(images), *layout.label_shape)
        if labels.dtype != layout.label_dtype or labels.shape != label_shape:
            raise ValueError(
                f"expected {layout.label_dtype} labels {list(label_shape)}, got {labels.dtype} {labels.shape}"
            )
        if not layout.class_names:
            labels = np.zeros_like(labels)
        elif not labels_fit(labels, layout):
            raise ValueError(f"labels {labels.min()}..{labels.max()} outside 0..{layout.num_classes - 1} or not finite")
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
        if layout.multi_label:
            self._counts += (labels > PRESENT).sum(0)
        elif layout.class_names:
            self._counts += np.bincount(labels, minlength=layout.num_classes)

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
            **asdict(self._layout),
            format_version=FORMAT_VERSION,
            num_images=sum(shard.count for shard in shards),
            class_counts=tuple(int(count) for count in self._counts),
            shards=shards,
            digest=shards_digest(shards),
            source=source,
        )
        with _explained(self._folder):
            self._close_spool()
            write_json(self._folder / INDEX_NAME, index.to_json())
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
        layout = self._layout
        images = np.memmap(self._spool, layout.image_dtype, "r", shape=(self._filled, *layout.image_shape))
        path = self._folder / f"{len(self._shards):05d}.h5"
        attributes = {
            "format_version": FORMAT_VERSION,
            "height": layout.height,
            "width": layout.width,
            "bits": layout.bits,
            "class_names": json.dumps(layout.class_names, ensure_ascii=False),
            "multi_label": int(layout.multi_label),
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


def _write_all(file: FileIO, images: Levels) -> None:
    view = images.data.cast("B")
    while view:  # a raw file may take less than it is given
        view = view[file.write(view) :]


class Shards:
    """Open shards. Made by `open_shards`; keeps memory maps, no file handles, and may be shared by threads."""

    def __init__(self, index: ShardIndex, maps: list[Levels], labels: LabelValues) -> None:
        self._index = index
        self._maps = maps
        self._labels = labels
        self._starts = np.cumsum([0, *(len(images) for images in maps)])

    @property
    def index(self) -> ShardIndex:
        """What index.json says."""
        return self._index

    @property
    def labels(self) -> LabelValues:
        """[N] int64 in 0..num_classes-1, zeros if unlabelled; or [N, num_classes] float32. Read-only."""
        return self._labels

    def __len__(self) -> int:
        return len(self._labels)

    def gather(self, indices: NDArray[np.int64]) -> Levels:
        """A copy of the images at `indices`, in that order.

        Args:
            indices: [n] int64 in 0..N-1; repeats are allowed.
        Returns:
            [n, C, H, W] uint8; uint16 for 16 bits.
        Raises:
            IndexError: an index is outside 0..N-1.
        """
        if len(indices) and not 0 <= indices.min() <= indices.max() < len(self):
            raise IndexError(f"indices {indices.min()}..{indices.max()} outside 0..{len(self) - 1}")
        if len(self._maps) == 1:
            return self._maps[0][indices]
        images = np.empty((len(indices), *self._maps[0].shape[1:]), self._maps[0].dtype)
        shard_of = np.searchsorted(self._starts, indices, side="right") - 1
        places = indices - self._starts[shard_of]
        # One copy per image; a gather per shard and a scatter would copy twice, and is slower at any batch size.
        for i, (shard, place) in enumerate(zip(shard_of.tolist(), places.tolist(), strict=True)):
            images[i] = self._maps[shard][place]
        return images


def labels_fit(labels: LabelValues, layout: Layout) -> bool:
    """Whether all are classes that there are, or finite numbers."""
    if layout.multi_label or not len(labels):
        return bool(np.isfinite(labels).all())
    return bool(labels.min() >= 0 and labels.max() < max(1, layout.num_classes))


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
        images, shard_labels = open_shard(path, shard.count, index)
        if not labels_fit(shard_labels, index):
            raise DataError(
                f"{path}: labels {shard_labels.min()}..{shard_labels.max()} outside the classes, or not finite."
            )
        maps.append(images)
        labels.append(shard_labels)
    joined = np.concatenate(labels)
    joined.flags.writeable = False
    return Shards(index, maps, joined)
