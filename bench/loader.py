"""How fast training gets its images: iterate_batches against a DataLoader that decodes PNG files, in the same run."""

import tempfile
import time
from collections.abc import Callable, Generator, Iterable
from itertools import islice
from pathlib import Path
from statistics import median

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bench.report import report
from ganops.images.dataset import iterate_batches
from ganops.images.shards import ShardWriter, open_shards

COUNT = 20000
SIZE = 64
BATCH_SIZE = 256
ROUNDS = 5
PASSES = 5  # over the data per round, for the fast loaders


class PngFolder(Dataset[Tensor]):
    """The usual way: one PNG file per image, opened and decoded on demand."""

    def __init__(self, folder: Path) -> None:
        self._paths = sorted(folder.iterdir())

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Tensor:
        with Image.open(self._paths[index]) as file:
            return torch.from_numpy(np.array(file).transpose(2, 0, 1).copy())


def speed(batches: Callable[[], Iterable[Tensor]], passes: int) -> float:
    """Images per second from the first batch on: workers and threads are already running, as in a long training."""

    def endless() -> Generator[Tensor, None, None]:
        while True:
            yield from batches()

    iterator = endless()
    next(iterator)
    steps = passes * (COUNT // BATCH_SIZE - 1)
    start = time.perf_counter()
    seen = sum(len(batch) for batch in islice(iterator, steps))
    elapsed = time.perf_counter() - start
    iterator.close()
    return seen / elapsed


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        images = np.random.default_rng(0).integers(0, 256, (COUNT, 3, SIZE, SIZE), dtype=np.uint8)
        images //= 8  # so that PNG has something to pack, as in photographs
        for folder, per_shard in (("one", COUNT), ("many", COUNT // 8)):
            with ShardWriter(root / folder, per_shard, SIZE, 3, (), {}) as writer:
                writer.append(images, np.zeros(COUNT, np.int64))
                writer.close({})
        (root / "png").mkdir()
        for i, image in enumerate(images):
            Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))).save(root / "png" / f"{i:05d}.png")
        loader = DataLoader(PngFolder(root / "png"), BATCH_SIZE, shuffle=True, num_workers=2, drop_last=True)
        one, many = (open_shards(root / folder, verify=False) for folder in ("one", "many"))
        ours, sharded, usual = [], [], []
        for _ in range(ROUNDS):
            ours.append(speed(lambda: (b.images for b in iterate_batches(one, 0, 0, BATCH_SIZE)), PASSES))
            sharded.append(speed(lambda: (b.images for b in iterate_batches(many, 0, 0, BATCH_SIZE)), PASSES))
            usual.append(speed(lambda: loader, 1))
    report(
        "loader",
        [
            f"{COUNT} images {SIZE}x{SIZE}x3 in page cache, batch {BATCH_SIZE}; median (best) of {ROUNDS} rounds",
            f"iterate_batches, one shard: {median(ours):,.0f} ({max(ours):,.0f}) images/s",
            f"iterate_batches, 8 shards: {median(sharded):,.0f} ({max(sharded):,.0f}) images/s",
            f"DataLoader over PNG files, 2 workers: {median(usual):,.0f} ({max(usual):,.0f}) images/s",
            f"ratio of the medians, one shard to PNG: x{median(ours) / median(usual):.0f}",
        ],
    )


if __name__ == "__main__":
    main()
