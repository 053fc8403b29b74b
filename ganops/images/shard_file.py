"""One HDF5 file of the image store: written once, then mapped into memory.

`images` is contiguous, uint8 [N, C, H, W], page-aligned and allocated early, so its bytes lie in one piece at a known
offset; `labels` is int64 [N].
"""

import io
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ganops.errors import DataError

PAGE_BYTES = 4096
COPY_BYTES = 1 << 24  # written at a time
# Fixed, so that the bytes do not follow h5py's version; from 1.10 on attributes (class names) may exceed 64 KiB.
LIBVER = ("v110", "v110")


def write_shard(
    path: Path, images: NDArray[np.uint8], labels: NDArray[np.int64], attributes: dict[str, str | int]
) -> None:
    """Writes one file; the same content gives the same bytes.

    Args:
        path: the file.
        images: [N, C, H, W] uint8, contiguous; may be a memory map.
        labels: [N] int64.
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
        for key, array, kind in (("images", images, h5py.h5t.STD_U8LE), ("labels", labels, h5py.h5t.STD_I64LE)):
            layout = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            layout.set_layout(h5py.h5d.CONTIGUOUS)
            layout.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            layout.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            layout.set_obj_track_times(False)
            space = h5py.h5s.create_simple(array.shape)
            dataset = h5py.Dataset(h5py.h5d.create(file.id, key.encode(), kind, space, layout))
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


def open_shard(path: Path, shape: tuple[int, ...]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The memory-mapped images and the labels of one file; h5py's handle is closed again."""
    try:
        with h5py.File(path, "r") as file:
            images, labels = file["images"], file["labels"]
            if (images.shape, labels.shape) != (shape, shape[:1]) or (images.dtype, labels.dtype) != ("u1", "<i8"):
                raise DataError(
                    f"{path}: holds {images.dtype} {images.shape} and labels {labels.dtype} {labels.shape}, "
                    f"but index.json says uint8 {shape}. Write {path.parent} again."
                )
            offset = images.id.get_offset()
            label_values = labels[:]
    except (OSError, KeyError) as error:
        raise DataError(f"{path}: not a whole shard ({error}). Write {path.parent} again.") from None
    if offset is None or offset + int(np.prod(shape)) > path.stat().st_size:
        raise DataError(f"{path}: its images do not lie in one piece. Write {path.parent} again.")
    return np.asarray(np.memmap(path, np.uint8, "r", offset, shape)), label_values  # slices faster than a memmap
