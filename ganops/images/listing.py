"""Where raw images lie: the files of a folder or zip, and their contents.

An image is a file whose extension Pillow knows (`readable_extensions`), or `.npy`; hidden files and what operating
systems leave behind are passed over, other files are listed as ignored. Folders that are links are followed when they
lead outside the source; those that lead back into it would loop or count images twice, and are listed.
"""

import os
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image

from ganops.errors import DataError
from ganops.images.labels import TABLES, first_ten, repeated

# Known to Pillow, but read through other programs (EPS) or not at all on their own (the others).
NO_IMAGES = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
LEFT_BEHIND = {"__MACOSX", "Thumbs.db", "ehthumbs.db", "desktop.ini", "$RECYCLE.BIN", "@eaDir"}  # by operating systems
MAX_FILE_BYTES = 1 << 31  # Pillow's largest allowed image takes less even with 64 bits per pixel


class BadImageError(Exception):
    """This file cannot be used; the text is the reason, without the file's name."""


@dataclass(frozen=True)
class Listing:
    """What the source holds.

    Attributes:
        names: of the images, as paths below the source, sorted.
        locations: where to read each: a path, or a zip entry's own name.
        tables: possible label tables at the top, name to location.
        ignored: names of files that are no images by extension.
        links: linked folders that were not followed.
    """

    names: tuple[str, ...]
    locations: tuple[str, ...]
    tables: dict[str, str]
    ignored: tuple[str, ...]
    links: tuple[str, ...]


def readable_formats() -> tuple[str, ...]:
    """The formats that Pillow reads here without other programs, sorted."""
    Image.init()
    return tuple(sorted(set(Image.OPEN) - NO_IMAGES))


def readable_extensions() -> frozenset[str]:
    """Their file extensions and that of arrays, lower case, with the dot."""
    formats = readable_formats()
    return frozenset([".npy", *(ext.lower() for ext, kind in Image.registered_extensions().items() if kind in formats)])


def list_source(source: Path) -> Listing:
    """Finds all images; reads none.

    Raises:
        DataError: the source is missing, unreadable, encrypted or without images, or names stand twice.
    """
    if source.is_dir():
        links: list[str] = []
        stat = source.stat()
        found = sorted(_walk(source, source.resolve(), "", frozenset({(stat.st_dev, stat.st_ino)}), links))
    elif source.is_file():
        links = []
        found = sorted(_list_zip(source))
    else:
        raise DataError(f"{source} not found (looked in {Path.cwd()}). Give a folder or a zip of images.")
    extensions = readable_extensions()
    images = [(name, place) for name, place in found if PurePosixPath(name).suffix.lower() in extensions]
    ignored = [name for name, _ in found if PurePosixPath(name).suffix.lower() not in extensions]
    if not images:
        others = f"; it has other files: {first_ten(ignored)}" if ignored else ""
        raise DataError(f"{source} has no images{others}. Images are told by their file extension.")
    twice = repeated(name for name, _ in images)
    if twice:
        raise DataError(f"{source}: names that stand more than once: {first_ten(twice)}. Keep one file of each.")
    return Listing(
        names=tuple(name for name, _ in images),
        locations=tuple(place for _, place in images),
        tables={name: place for name, place in found if name in TABLES.values()},
        ignored=tuple(ignored),
        links=tuple(links),
    )


def _is_hidden(part: str) -> bool:
    return (part.startswith(".") and part != "..") or part in LEFT_BEHIND


def _shown(name: str) -> str:
    """File names may be any bytes; what is not UTF-8 is written as \\xNN."""
    return os.fsencode(name).decode(errors="backslashreplace")


def _walk(
    folder: Path, root: Path, prefix: str, above: frozenset[tuple[int, int]], links: list[str]
) -> Iterator[tuple[str, str]]:
    """Names and paths of all files below `folder`. `above`: device and inode of the folders on the way down."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot list this folder ({error.strerror}).") from None
    for entry in entries:
        name = prefix + _shown(entry.name)
        path = Path(entry.path)
        if _is_hidden(entry.name):
            continue
        if not path.is_dir():
            # Pipes and devices would block; a link to nothing is told later, with its reason.
            if path.is_file() or path.is_symlink():
                yield name, entry.path
            continue
        stat = path.stat()
        here = (stat.st_dev, stat.st_ino)
        real = path.resolve()
        if here in above or (path.is_symlink() and (real.is_relative_to(root) or root.is_relative_to(real))):
            links.append(name)
            continue
        yield from _walk(path, root, f"{name}/", above | {here}, links)


def _list_zip(source: Path) -> Iterator[tuple[str, str]]:
    with open_zip(source) as archive:
        for info in archive.infolist():
            if info.is_dir():
                continue
            parts = [part for part in info.filename.replace("\\", "/").split("/") if part not in ("", ".")]
            if any(_is_hidden(part) for part in parts):
                continue
            if info.flag_bits & 1:
                raise DataError(
                    f"{source} is encrypted ({info.filename}). Unpack it, or make a zip without a password."
                )
            yield _shown("/".join(parts)), info.filename


def open_zip(source: Path) -> zipfile.ZipFile:
    """The zip, for `read_file`.

    Raises:
        DataError: it is none, or is damaged.
    """
    try:
        return zipfile.ZipFile(source)
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise DataError(
            f"{source} is a file, but not a whole zip ({error}). Give a folder or a zip of images."
        ) from None
    except OSError as error:
        raise DataError(f"{source}: cannot open ({error.strerror}).") from None


def read_file(archive: zipfile.ZipFile | None, location: str) -> bytes:
    """The content of one file.

    Args:
        archive: the source if that is a zip.
        location: from a `Listing`.
    Raises:
        BadImageError: it cannot be read, or is too large.
    """
    try:
        size = Path(location).stat().st_size if archive is None else archive.getinfo(location).file_size
        if size > MAX_FILE_BYTES:
            raise BadImageError(f"has {size} bytes, more than the {MAX_FILE_BYTES} that are read")
        return Path(location).read_bytes() if archive is None else archive.read(location)
    except (BadImageError, MemoryError):
        raise
    except OSError as error:
        raise BadImageError(f"cannot open ({error.strerror or error})") from None
    except Exception as error:  # each compression of a damaged zip raises its own kind
        raise BadImageError(f"cannot read from the zip ({error})") from None
