"""Features of image sets and their streamed moments."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ganops.collectives import collect_in_order
from ganops.entry import progress
from ganops.images.folder import FolderImages
from ganops.images.pixels import as_tensor
from ganops.images.shards import Shards
from ganops.launch import rank, world_size
from ganops.metrics.extractor import Extractor

BLOCK_ROWS = 1024  # rows per product; large enough for the BLAS, and fixed, so that sums have one order


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


def extract(extractor: Extractor, batches: Iterable[Tensor], batch_size: int) -> Iterator[NDArray[np.float32]]:
    """Features of a stream of images, batch by batch.

    Images are regrouped into batches of exactly `batch_size`, the last one filled up by repeating its last image: with
    one shape throughout, a feature does not depend on its neighbours.

    Args:
        extractor: the network.
        batches: [n, C, H, W] as `Extractor.features` takes them, any n, on any device.
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


def read_images(images: Shards | FolderImages, indices: Sequence[int]) -> list[Tensor]:
    """Images of a set on the CPU, in order: one batch [n, C, H, W] for each run of images of one shape.

    uint8, or int16 for shards of 16 bits (see `ganops.images.pixels`).
    """
    if isinstance(images, Shards):
        return [as_tensor(images.gather(np.asarray(indices, dtype=np.int64)))]
    runs: list[list[NDArray[np.uint8]]] = []
    for image in map(images.image, indices):
        if not runs or runs[-1][0].shape != image.shape:
            runs.append([])
        runs[-1].append(image)
    return [torch.from_numpy(np.stack(run)) for run in runs]


def measure_features(
    extractor: Extractor,
    images: Shards | FolderImages,
    indices: Sequence[int],
    batch_size: int,
    what: str,
    flip: bool = False,
) -> Iterator[NDArray[np.float32]]:
    """Features of the images `indices`, made by all ranks: the same bits for any number of them.

    Args:
        extractor: the network.
        images: the set.
        indices: which, in which order.
        batch_size: images per pass; see `extract`.
        what: shown beside the progress.
        flip: of the mirrored images instead.
    Yields:
        float32 [n, D], n <= batch_size, in order; nothing on other ranks than the first, which must run through it too.
    """
    starts = range(0, len(indices), batch_size)

    def measure(start: int) -> NDArray[np.float32]:
        parts = read_images(images, indices[start : start + batch_size])
        parts = [part.flip(3) for part in parts] if flip else parts
        return np.concatenate([rows for part in parts for rows in extract(extractor, [part], batch_size)])

    made = collect_in_order(map(measure, starts[rank() :: world_size()]), len(starts))
    yield from progress(made, len(starts), what, "batch")


def measure_moments(extractor: Extractor, batches: Iterable[Tensor], batch_size: int) -> Moments:
    """Moments of the features of a stream of images; see `extract`."""
    moments = Moments()
    for features in extract(extractor, batches, batch_size):
        moments.append(features)
    return moments


def moments_of(features: NDArray[Any]) -> Moments:
    """Moments of rows that are at hand; see `Moments`."""
    moments = Moments()
    for start in range(0, len(features), BLOCK_ROWS):
        moments.append(features[start : start + BLOCK_ROWS])
    return moments


def spread_indices(count: int, keep: int) -> NDArray[np.int64]:
    """Which of `count` rows to keep, at most `keep`: evenly spread, since sets are often sorted by class."""
    keep = min(count, keep)
    return np.arange(keep, dtype=np.int64) * count // max(keep, 1)
