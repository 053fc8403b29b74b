"""One HDF5 file of the image store: written once, then mapped into memory.

`images` is contiguous, uint8 or uint16 [N, C, H, W], page-aligned and allocated early, so its bytes lie in one piece at a
known offset; `labels` is int64 [N] or float32 [N, L]. All of it is little-endian.
"""

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ganops.errors import DataError
from ganops.images.shard_index import LabelValues, Layout, Levels

PAGE_BYTES = 4096
COPY_BYTES = 1 << 24  # written at a time
# Fixed, so that the bytes do not follow h5py's version; from 1.10 on attributes (class names) may exceed 64 KiB.
LIBVER = ("v110", "v110")
KINDS = {"u1": h5py.h5t.STD_U8LE, "u2": h5py.h5t.STD_U16LE, "i8": h5py.h5t.STD_I64LE, "f4": h5py.h5t.IEEE_F32LE}


def write_shard(path: Path, images: Levels, labels: LabelValues, attributes: dict[str, str | int]) -> None:
    """Writes one file; the same content gives the same bytes.

    Args:
        path: the file.
        images: [N, C, H, W] uint8 or uint16, contiguous; may be a memory map.
        labels: [N] int64 or [N, L] float32.
        attributes: of the file.
    Raises:
        OSError: the disk is full or fails; the file is then worthless.
    """
    patient = _PatientFile(path)
    with (
        patient.file,
        h5py.File(patient, "w", libver=LIBVER, alignment_threshold=1, alignment_interval=PAGE_BYTES) as file,
    ):
        for name, value in attributes.items():
            file.attrs[name] = np.bytes_(value.encode()) if isinstance(value, str) else np.int64(value)
        for key, array in (("images", images), ("labels", labels)):
            layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            layout.set_layout(h5py.h5d.CONTIGUOUS)
            layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            layout.set_obj_track_times(False)
            space = h5py.h5s.create_simple(array.shape)
            dataset = h5py.Dataset(h5py.h5d.create(file.id, key.encode(), KINDS[array.dtype.str[1:]], space, layout))
            step = max(1, COPY_BYTES // array[0].nbytes)
            for start in range(0, len(array), step):
                dataset[start : start + step] = array[start : start + step]
    if patient.error is not None:
        raise patient.error


class _PatientFile(io.RawIOBase):
    """A file that never fails towards HDF5, which crashes (SIGSEGV) when it cannot write; the first error is kept."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("w+b", buffering=0)
        self.error: OSError | None = None

    def readinto(self, buffer: Any) -> int:
        return self.file.readinto(buffer)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        size = len(view)
        try:
            while view and self.error is None:  # a raw file may take less than it is given
                view = view[self.file.write(view) :]
        except OSError as error:
            self.error = error
        return size

    def seek(self, place: int, whence: int = 0) -> int:
        return self.file.seek(place, whence)

    def tell(self) -> int:
        return self.file.tell()

    def truncate(self, size: int | None = None) -> int:
        try:
            return self.file.truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def flush(self) -> None:
        """Nothing waits: the file has no buffer."""


def open_shard(path: Path, count: int, layout: Layout) -> tuple[Levels, LabelValues]:
    """The memory-mapped images and the labels of one file of `count` images; h5py's handle is closed again."""
    shape, label_shape = (count, *layout.image_shape), (count, *layout.label_shape)
    dtype, label_dtype = layout.image_dtype, layout.label_dtype
    try:
        with h5py.File(path, "r") as file:
            images, labels = file["images"], file["labels"]
            found = images.shape, labels.shape, images.dtype, labels.dtype
            if found != (shape, label_shape, dtype, label_dtype):
                raise DataError(
                    f"{path}: holds {images.dtype} {images.shape} and labels {labels.dtype} {labels.shape}, "
                    f"but index.json says {dtype} {shape} and {label_dtype} {label_shape}. Write {path.parent} again."
                )
            offset = images.id.get_offset()
            label_values = labels[:]
    except (OSError, KeyError) as error:
        raise DataError(f"{path}: not a whole shard ({error}). Write {path.parent} again.") from None
    if offset is None or offset + count * layout.image_bytes > path.stat().st_size:
        raise DataError(f"{path}: its images do not lie in one piece. Write {path.parent} again.")
    return np.asarray(np.memmap(path, dtype, "r", offset, shape)), label_values  # slices faster than a memmap
