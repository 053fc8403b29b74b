"""Files that are whole or absent: temporary name, fsync, rename; and their checksums."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`; what was written there becomes `path` when the block ends well.

    Creates missing parent folders. On an error the temporary file is removed and `path` is untouched.
    The file and its folder are fsynced, so a crash of the machine leaves the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        _fsync(temporary)
        os.replace(temporary, path)
        _fsync(path.parent)
    except OSError as error:
        if error.errno and error.filename is None:  # write(2) knows no name: say which file the disk had no room for
            raise OSError(error.errno, error.strerror, str(path)) from error  # of PyAV's errors the name cannot be set
        raise
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a whole file or leaves the old one."""
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, value: Any) -> None:
    """Writes sorted-key, indented JSON: the same value gives the same bytes. NaN is refused (ValueError)."""
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode())


def copy_file(source: Path, target: Path) -> None:
    """Copies content only; never a hard link, which would share bytes with DVC's cache."""
    with atomic_path(target) as temporary, source.open("rb") as reader, temporary.open("wb") as writer:
        while block := reader.read(1 << 22):
            writer.write(block)


def sha256_file(path: Path) -> str:
    """Hex sha256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def remove_temporaries(folder: Path) -> None:
    """Removes what killed writers left in `folder`. Only for a folder that nobody else writes to."""
    for path in folder.glob(".*.tmp"):
        path.unlink()


def format_bytes(size: float) -> str:
    """1234567 -> '1.2 MB'."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while size >= 1000 and len(units) > 1:
        size, units = size / 1000, units[1:]
    return f"{size:.0f} {units[0]}" if size >= 10 or units[0] == "B" else f"{size:.1f} {units[0]}"
