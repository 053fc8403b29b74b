"""Features of image sets, their streamed moments, and the statistics file that keeps them with their protocol."""

import importlib.metadata
import io
import json
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ganops.errors import DataError
from ganops.files import write_bytes
from ganops.images.shards import ShardIndex, Shards
from ganops.launch import rank, world_size
from ganops.metrics.extractor import Extractor

BLOCK_ROWS = 1024  # rows per product; large enough for the BLAS, and fixed, so that sums have one order

# What must agree before two sets may be compared. The rest of a protocol says where a set comes from.
COMPARED = (
    "extractor",
    "extractor_sha256",
    "resizer",
    "ddof",
    "resolution",
    "channels",
    "batch_size",
    "split",
    "data_digest",
)

# What reading a damaged .npz raises, found by changing each of its bytes (RuntimeError: of zip versions, encryption).
DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    AttributeError,
    TypeError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


class Moments:
    """Streamed mean and covariance in float64. The result is the same, bit for bit, however rows arrive in pieces."""

    def __init__(self) -> None:
        self._count = 0
        self._blocks = 0
        self._waiting: list[NDArray[np.float64]] = []
        self._waiting_rows = 0
        self._shift = np.zeros(0)  # the first block's mean
        self._mean = np.zeros(0)  # of the blocks so far, less the shift; with the products of deviations from it
        self._products = np.zeros((0, 0))

    @property
    def count(self) -> int:
        """Rows so far."""
        return self._count

    def append(self, features: NDArray[Any]) -> None:
        """Adds rows [n, D], any floating dtype; the first call settles D."""
        rows = np.array(features, dtype=np.float64)
        if rows.ndim != 2 or (self._waiting and rows.shape[1] != self._waiting[0].shape[1]):
            raise ValueError(f"expected rows [n, D], one D throughout, got {rows.shape}")
        self._count += len(rows)
        self._waiting.append(rows)
        self._waiting_rows += len(rows)
        if self._waiting_rows < BLOCK_ROWS:
            return
        rows = np.concatenate(self._waiting)
        whole = len(rows) // BLOCK_ROWS * BLOCK_ROWS
        for start in range(0, whole, BLOCK_ROWS):
            self._add_block(rows[start : start + BLOCK_ROWS])
        self._waiting = [rows[whole:]]
        self._waiting_rows = len(rows) - whole

    def _add_block(self, block: NDArray[np.float64]) -> None:
        self._shift, self._mean, self._products = self._merged(block)
        self._blocks += 1

    def _merged(
        self, block: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """Shift, mean and products of deviations with one block more.

        Rows are taken relative to the first block's mean and each block about its own: no digits are lost to a mean
        that is far from zero, nor to one that drifts. Source: Chan, Golub and LeVeque 1979.
        """
        shift = self._shift if self._blocks else block.mean(0)
        rows = block - shift
        mean = rows.mean(0)
        centred = rows - mean
        products = centred.T @ centred
        if not self._blocks:
            return shift, mean, products
        before, now = self._blocks * BLOCK_ROWS, len(block)
        step = mean - self._mean
        products += self._products
        products += np.outer(step, step * (before * now / (before + now)))
        return shift, self._mean + step * (now / (before + now)), products

    def _finish(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and products with the rows that do not fill a block; leaves the stream as it is."""
        shift, mean, products = self._shift, self._mean, self._products
        if self._waiting_rows:
            shift, mean, products = self._merged(np.concatenate(self._waiting))
        return shift + mean, products

    def mean(self) -> NDArray[np.float64]:
        """[D]. Raises ValueError without rows."""
        if not self._count:
            raise ValueError("no features")
        return self._finish()[0]

    def covariance(self, ddof: int) -> NDArray[np.float64]:
        """[D, D], symmetric: the sum of products over count - ddof. Raises ValueError without enough rows."""
        if self._count <= ddof:
            raise ValueError(f"{self._count} features are too few for a covariance over N - {ddof}")
        covariance: NDArray[np.float64] = self._finish()[1] / (self._count - ddof)
        return (covariance + covariance.T) / 2


def image_batches(shards: Shards, count: int, batch_size: int) -> Iterator[Tensor]:
    """The first `count` images of a set, uint8 [n, C, H, W] on the CPU, `batch_size` at a time.

    Of several ranks each gets every world_size-th batch.
    """
    for start in range(rank() * batch_size, count, world_size() * batch_size):
        yield torch.from_numpy(shards.gather(np.arange(start, min(start + batch_size, count))))


def extract(extractor: Extractor, batches: Iterable[Tensor], batch_size: int) -> Iterator[NDArray[np.float32]]:
    """Features of a stream of images, batch by batch.

    Images are regrouped into batches of exactly `batch_size`, the last one filled up by repeating its last image: with
    one shape throughout, a feature does not depend on its neighbours.

    Args:
        extractor: the network.
        batches: uint8 [n, C, H, W], any n, on any device.
        batch_size: images per pass.
    Yields:
        float32 [n, D], n <= batch_size, in the order of the images.
    """
    waiting: list[Tensor] = []
    rows = 0
    for batch in batches:
        waiting.append(batch)
        rows += len(batch)
        while rows >= batch_size:
            images = torch.cat(waiting)
            yield extractor.features(images[:batch_size]).cpu().numpy()
            waiting, rows = [images[batch_size:]], rows - batch_size
    if rows:
        images = torch.cat(waiting)
        padded = torch.cat([images, images[-1:].expand(batch_size - rows, -1, -1, -1)])
        yield extractor.features(padded)[:rows].cpu().numpy()


def measure_moments(extractor: Extractor, batches: Iterable[Tensor], batch_size: int) -> Moments:
    """Moments of the features of a stream of images; see `extract`."""
    moments = Moments()
    for features in extract(extractor, batches, batch_size):
        moments.append(features)
    return moments


def spread_indices(count: int, keep: int) -> NDArray[np.int64]:
    """Which of `count` rows to keep, at most `keep`: evenly spread, since sets are often sorted by class."""
    keep = min(count, keep)
    return np.arange(keep, dtype=np.int64) * count // max(keep, 1)


@dataclass(frozen=True)
class Statistics:
    """Moments of an image set's features, and how they came about.

    Attributes:
        mu: [D] float64.
        sigma: [D, D] float64.
        num: images that were measured.
        protocol: JSON-able; see `COMPARED` for what must agree between two sets.
        features: [K, D] float32, of images spread evenly over the set, for kernel metrics.
    """

    mu: NDArray[np.float64]
    sigma: NDArray[np.float64]
    num: int
    protocol: dict[str, Any]
    features: NDArray[np.float32]


def save_statistics(path: Path, statistics: Statistics) -> None:
    """Writes an .npz, whole or not at all; the same statistics give the same bytes."""
    content = io.BytesIO()
    np.savez(
        content,
        mu=statistics.mu,
        sigma=statistics.sigma,
        num=np.int64(statistics.num),
        protocol=np.array(json.dumps(statistics.protocol, sort_keys=True)),
        features=statistics.features,
    )
    write_bytes(path, content.getvalue())


def load_statistics(path: Path) -> Statistics:
    """Reads what `save_statistics` wrote; never runs anything from the file.

    Raises:
        DataError: the file is missing, damaged or something else.
    """
    try:
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            statistics = Statistics(
                file["mu"], file["sigma"], int(file["num"]), json.loads(str(file["protocol"])), file["features"]
            )
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Run `dvc repro stats`.") from None
    except DAMAGE as error:
        raise DataError(f"{path}: not whole statistics ({error}). Remove it and run `dvc repro stats`.") from None
    dim, arrays = statistics.mu.size, (statistics.mu, statistics.sigma)
    shapes = statistics.mu.shape, statistics.sigma.shape, statistics.features.shape[1:]
    if shapes != ((dim,), (dim, dim), (dim,)) or not isinstance(statistics.protocol, dict):
        raise DataError(f"{path}: mean, covariance and features do not fit. Remove it and run `dvc repro stats`.")
    if any(array.dtype != np.float64 or not np.isfinite(array).all() for array in arrays):
        raise DataError(f"{path}: the moments are not finite float64. Remove it and run `dvc repro stats`.")
    return statistics


def describe_protocol(extractor: Extractor, index: ShardIndex, ddof: int, batch_size: int) -> dict[str, Any]:
    """How a set of shards is measured: everything a number needs to be repeated or compared."""
    return {
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
        "metric": extractor.metric,
        "resizer": extractor.resizer,
        "ddof": ddof,
        "batch_size": batch_size,
        "resolution": index.resolution,
        "channels": index.channels,
        "split": "all",
        "xflip": False,
        "data_digest": index.digest,
        "versions": {name: importlib.metadata.version(name) for name in (*extractor.packages, "numpy")},
    }


def trained_on(samples: ShardIndex) -> str:
    """The digest of the data that the samples' model was trained on.

    Raises:
        DataError: the index does not say; the set was not written by the stage `sample`.
    """
    training = samples.source.get("training")
    if not isinstance(training, dict) or not isinstance(training.get("data_digest"), str):
        raise DataError(
            "The samples' index.json does not say what data their model was trained on. Run `dvc repro sample`."
        )
    return str(training["data_digest"])


def check_protocols(real: dict[str, Any], fake: dict[str, Any]) -> None:
    """Refuses to compare sets that were measured differently.

    Args:
        real: of the statistics.
        fake: of the samples, where `data_digest` is that of the data their model was trained on.
    Raises:
        DataError: names the first item of `COMPARED` that differs.
    """
    for name in COMPARED:
        if name not in real or real[name] != fake[name]:
            raise DataError(
                f"{name} is {real.get(name)} in the statistics of the real images, but {fake[name]} for the samples: "
                "their distance would mean nothing. Run `dvc repro`, so that both are of the same data and measured alike."
            )
