"""From a folder or zip of images to shards: list, check, convert in parallel, write in the order of names.

The result does not depend on the number of processes, nor on whether the images were zipped.
"""

import ctypes
import functools
import hashlib
import multiprocessing
import os
import shutil
import signal
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from ganops.config import PrepareParams
from ganops.entry import PR_SET_PDEATHSIG, progress, say
from ganops.errors import DataError
from ganops.images.labels import LISTED, TABLES, Labels, first_ten, read_labels, same_label
from ganops.images.listing import BadImageError, Listing, list_source, open_zip, read_file
from ganops.images.raw import Conversion, convert_image
from ganops.images.shard_index import Layout, Levels, ShardIndex
from ganops.images.shards import ShardWriter
from ganops.launch import local_world_size, rank, world_size

CHUNK_BYTES = 1 << 22  # of pixels that a worker sends back at a time
CHUNK_IMAGES = 64
CHUNKS_AHEAD = 3  # per worker, done or being done: together with CHUNK_BYTES the bound on memory
SHARD_OVERHEAD = 1 << 17  # of an HDF5 file, generously
LISTED_CLASSES = 20  # printed one by one up to this many
LISTED_WARNINGS = 20


@dataclass(frozen=True)
class _Outcome:
    """What became of one file; `reason` is why it cannot be used, "" if it can."""

    reason: str
    sha256: str = ""
    enlarged: bool = False
    several_frames: bool = False
    warnings: tuple[str, ...] = ()


@dataclass
class _Tally:
    """What is counted while the images pass by."""

    skipped: list[tuple[str, str]] = field(default_factory=list)
    digest: Any = field(default_factory=hashlib.sha256)  # over lines as `sha256sum` prints them
    enlarged: int = 0
    several_frames: int = 0
    warnings: Counter[str] = field(default_factory=Counter)

    def add(self, name: str, outcome: _Outcome) -> None:
        if outcome.reason:
            self.skipped.append((name, outcome.reason))
            return
        self.digest.update(f"{outcome.sha256}  {name}\n".encode())
        self.enlarged += outcome.enlarged
        self.several_frames += outcome.several_frames
        self.warnings.update(outcome.warnings)


def prepare(source: Path, target: Path, params: PrepareParams, workers: int) -> ShardIndex | None:
    """Makes a folder of shards from a folder or zip of images.

    Args:
        source: a folder, searched recursively, or a zip.
        target: the folder for shards and index.json; earlier shards in it are replaced, and gone if this fails.
        params: section `prepare` of params.yaml (`source` is not read).
        workers: processes of this rank; 0 = one per core. Has no influence on the result; nor has the number of ranks,
            which all convert, and of which the first writes.
    Returns:
        What was written; None on other ranks than the first.
    Raises:
        DataError: the source, its labels or its images cannot be used, or the disk is too small.
    """
    listing = list_source(source)
    if source.is_dir() and target.resolve().is_relative_to(source.resolve()):
        raise DataError(f"{target} lies in prepare.source={source}. Keep the images in a folder of their own.")
    labels = read_labels(params.labels, listing.names, functools.partial(_read_table, source, listing))
    layout = Layout(*params.size, params.channels, params.bits, labels.class_names, labels.multi_label)
    if rank() == 0:
        _check_disk(target, len(listing.names), params.shard_images, layout)
    conversion = Conversion(
        height=layout.height,
        width=layout.width,
        channels=params.channels,
        bits=params.bits,
        crop=params.crop,
        resize_filter=params.resize_filter,
        background=(params.background[0], params.background[1], params.background[2]),
    )
    attributes: dict[str, str | int] = {
        "crop": params.crop,
        "resize_filter": params.resize_filter,
        "background": " ".join(str(level) for level in params.background),
    }
    converted = _convert_all(source, listing.locations, conversion, workers)
    if rank():
        deque(converted, maxlen=0)
        return None
    tally = _Tally()
    fail = params.on_bad_image == "fail"
    with ShardWriter(
        target,
        params.shard_images,
        layout.size,
        params.channels,
        labels.class_names,
        attributes,
        bits=params.bits,
        multi_label=labels.multi_label,
    ) as writer:
        outcomes = _write_all(converted, writer, labels, tally, fail)
        for name, outcome in zip(listing.names, progress(outcomes, len(listing.names), "prepare", "img"), strict=True):
            if fail and outcome.reason and not tally.skipped:
                say(f"{source}/{name}: {outcome.reason}. Looking through the rest before stopping.")
            tally.add(name, outcome)
        _check_skipped(source, listing.names, labels, tally.skipped, fail)
        index = writer.close(_describe(listing, params, tally))
    _say_summary(index, tally)
    return index


def _read_table(source: Path, listing: Listing, name: str) -> bytes | None:
    location = listing.tables.get(name)
    if location is None:
        return None
    with ExitStack() as stack:
        archive = stack.enter_context(open_zip(source)) if source.is_file() else None
        try:
            return read_file(archive, location)
        except BadImageError as error:
            raise DataError(f"{source}/{name}: {error}.") from None


def _check_disk(target: Path, count: int, shard_images: int, layout: Layout) -> None:
    """The shards, and one more while it is built."""
    label_bytes = layout.label_dtype.itemsize * (layout.num_classes if layout.multi_label else 1)
    shards = -(-count // shard_images)
    need = (count + min(count, shard_images)) * (layout.image_bytes + label_bytes) + shards * SHARD_OVERHEAD
    existing = next(folder for folder in [target.absolute(), *target.absolute().parents] if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if need > free:
        raise DataError(
            f"{target} needs about {need / 1e9:.2f} GB for {count} images, but only {free / 1e9:.2f} GB are free. "
            "Free some space, or lower prepare.resolution or prepare.shard_images (one shard is held twice)."
        )


class _Converter:
    """Reads and converts chunks of files; keeps a zip open."""

    def __init__(self, source: Path, conversion: Conversion) -> None:
        self._archive = open_zip(source) if source.is_file() else None
        self._conversion = conversion

    def close(self) -> None:
        if self._archive is not None:
            self._archive.close()

    def convert(self, locations: Sequence[str]) -> tuple[Levels, list[_Outcome]]:
        """The usable images [n, C, H, W], and what became of each file."""
        pixels, outcomes = [], []
        for location in locations:
            try:
                content = read_file(self._archive, location)
                made = convert_image(content, self._conversion)
            except BadImageError as error:
                outcomes.append(_Outcome(str(error)))
                continue
            pixels.append(made.pixels)
            sha256 = hashlib.sha256(content).hexdigest()
            outcomes.append(_Outcome("", sha256, made.enlarged, made.several_frames, made.warnings))
        conversion = self._conversion
        shape = (len(pixels), conversion.channels, conversion.height, conversion.width)
        dtype: Any = np.uint8 if conversion.bits == 8 else np.uint16
        return np.array(pixels, dtype).reshape(shape), outcomes


_converter: _Converter | None = None  # of this worker process


def _start_worker(parent: int, source: Path, conversion: Conversion) -> None:
    global _converter
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent ends its workers
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            sys.exit(1)
    _converter = _Converter(source, conversion)


def _work(locations: Sequence[str]) -> tuple[Levels, list[_Outcome]]:
    assert _converter is not None
    return _converter.convert(locations)


def _convert_all(
    source: Path, locations: Sequence[str], conversion: Conversion, workers: int
) -> Iterator[tuple[Levels, list[_Outcome]]]:
    """Chunks in order, by several processes on every rank; all of them on rank 0, none on the others."""
    image_bytes = conversion.channels * conversion.height * conversion.width * conversion.bits // 8
    size = min(CHUNK_IMAGES, max(1, CHUNK_BYTES // image_bytes))
    chunks = [locations[start : start + size] for start in range(0, len(locations), size)]
    if world_size() == 1:
        yield from _convert_here(source, chunks, conversion, workers)
        return
    from ganops.collectives import collect_in_order  # not at the top: workers would wait seconds for torch

    own = _convert_here(source, chunks[rank() :: world_size()], conversion, workers)
    yield from collect_in_order(own, len(chunks))


def _convert_here(
    source: Path, chunks: Sequence[Sequence[str]], conversion: Conversion, workers: int
) -> Iterator[tuple[Levels, list[_Outcome]]]:
    """Chunks in order, by several processes; by this one if there is too little to do for two."""
    workers = min(workers or max((os.cpu_count() or 1) // local_world_size(), 1), len(chunks))
    if workers <= 1:
        converter = _Converter(source, conversion)
        try:
            yield from map(converter.convert, chunks)
        finally:
            converter.close()
        return
    # Spawned, not forked: a fork copies threads' locks (torch, HDF5) in whatever state they are.
    pool = ProcessPoolExecutor(
        workers,
        multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(os.getpid(), source.absolute(), conversion),
    )
    pending: deque[Future[tuple[Levels, list[_Outcome]]]] = deque()
    try:
        for chunk in chunks:
            pending.append(pool.submit(_work, chunk))
            if len(pending) >= CHUNKS_AHEAD * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except (BrokenProcessPool, MemoryError):
        raise DataError(
            "A process of prepare was killed or found no memory. Lower run.workers and start again."
        ) from None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _write_all(
    converted: Iterator[tuple[Levels, list[_Outcome]]],
    writer: ShardWriter,
    labels: Labels,
    tally: _Tally,
    fail: bool,
) -> Iterator[_Outcome]:
    """Appends what can be used and passes on, file by file, what became of it."""
    start = 0
    for pixels, outcomes in converted:
        values = labels.values[start : start + len(outcomes)]
        start += len(outcomes)
        good = np.array([not outcome.reason for outcome in outcomes])
        if not (fail and (tally.skipped or not good.all())):  # once it must fail, writing is for nothing
            writer.append(pixels, values[good])
        yield from outcomes


def _check_skipped(
    source: Path, names: Sequence[str], labels: Labels, skipped: Sequence[tuple[str, str]], fail: bool
) -> None:
    """Stops if files had to be left out that may not, or if too little is left without them."""
    if not skipped:
        return
    lines = [f"{source}/{name}: {reason}" for name, reason in skipped[:LISTED]]
    if len(skipped) > LISTED:
        lines.append(f"... and {len(skipped) - LISTED} more")
    if fail:
        advice = "or set prepare.on_bad_image: skip to leave such files out; index.json will list them."
        if len(skipped) == 1:
            raise DataError(f"{lines[0]}. Replace or remove it, {advice}")
        head = f"{len(skipped)} of {len(names)} images cannot be used:"
        raise DataError("\n  ".join([head, *lines]) + f"\nReplace or remove them, {advice}")
    if len(skipped) == len(names):
        raise DataError("\n  ".join([f"None of {len(names)} images can be used:", *lines]))
    lost = {name for name, _ in skipped}
    left = np.array([place for place, name in enumerate(names) if name not in lost])
    alike = same_label(labels, left) if labels.class_names else None
    if alike is not None:
        head = f"Without these {len(skipped)} images only class {alike} is left:"
        raise DataError("\n  ".join([head, *lines]))


def _describe(listing: Listing, params: PrepareParams, tally: _Tally) -> dict[str, Any]:
    """`source` in index.json. No path or time, so that the same images give the same bytes wherever they lie."""
    ignored = [name for name in listing.ignored if name != TABLES.get(params.labels)]
    kinds = Counter(Path(name).suffix.lower() for name in ignored)
    return {
        "digest": tally.digest.hexdigest(),
        "images": len(listing.names),
        "labels": params.labels,
        "crop": params.crop,
        "resize_filter": params.resize_filter,
        "background": list(params.background),
        "on_bad_image": params.on_bad_image,
        "skipped": [list(item) for item in tally.skipped],
        "ignored": {"count": len(ignored), "extensions": dict(kinds), "first": ignored[:LISTED]},
        "links_not_followed": list(listing.links),
        "enlarged": tally.enlarged,
        "several_frames": tally.several_frames,
        "warnings": dict(sorted(tally.warnings.items(), key=lambda item: (-item[1], item[0]))[:LISTED_WARNINGS]),
        "pillow": PIL.__version__,
    }


def _say_summary(index: ShardIndex, tally: _Tally) -> None:
    total = index.num_images
    if index.class_names:
        counts = index.class_counts
        say(f"{index.num_classes} {index.label_kind}, {min(counts)} to {max(counts)} images each (all in index.json)")
        for name, count in list(zip(index.class_names, counts, strict=True))[:LISTED_CLASSES]:
            say(f"  {name}: {count}")
        empty = [name for name, count in zip(index.class_names, counts, strict=True) if not count]
        if empty:
            say(f"{len(empty)} {index.label_kind} have no image: {first_ten(empty)}")
    found = total + len(tally.skipped)
    for count, text in (
        (len(tally.skipped), f"of {found} images were skipped; index.json lists them with the reason"),
        (tally.enlarged, f"of {total} images are smaller than {index.resolution} px and were enlarged"),
        (tally.several_frames, f"of {total} images have several frames, of which the first was used"),
        (tally.warnings.total(), "warnings of Pillow; index.json counts them"),
        (index.source["ignored"]["count"], "files are no images by their extension and were ignored"),
        (len(index.source["links_not_followed"]), "linked folders lead back into the source and were not followed"),
    ):
        if count:
            say(f"{count} {text}")
