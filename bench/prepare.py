"""How fast images become shards, and how large: 1 and 2 processes, PNG and JPEG, folder and zip."""

import tempfile
import time
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from ganops.config import PrepareParams
from ganops.images.prepare import prepare

COUNT = 2000
SIZE = 256
RESOLUTION = 64


def make_images(folder: Path, extension: str) -> None:
    """Smooth pictures with some noise, so that PNG and JPEG have about as much to do as with photographs."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for i in range(COUNT):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((SIZE, SIZE))
        image = np.clip(np.asarray(coarse) + rng.normal(0, 4, (SIZE, SIZE, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(image).save(folder / f"{i:05d}{extension}")


def measure(source: Path, target: Path, workers: int) -> float:
    """Images per second, start of the processes included."""
    params = PrepareParams(
        source=str(source),
        resolution=RESOLUTION,
        channels=3,
        bits=8,
        labels="none",
        crop="none",
        resize_filter="lanczos",
        background=[0, 0, 0],
        on_bad_image="fail",
        shard_images=10000,
    )
    start = time.perf_counter()
    index = prepare(source, target, params, workers)
    assert index.num_images == COUNT
    return COUNT / (time.perf_counter() - start)


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


def main() -> None:
    from bench.report import report  # imports torch, which every process of prepare would do again

    lines = [f"{COUNT} images {SIZE}x{SIZE}x3 to {RESOLUTION}x{RESOLUTION}x3, lanczos; best of 2 runs"]
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for extension in (".png", ".jpg"):
            folder = root / extension[1:]
            make_images(folder, extension)
            archive = root / f"{extension[1:]}.zip"
            with zipfile.ZipFile(archive, "w") as file:
                for path in sorted(folder.iterdir()):
                    file.write(path, path.name)
            for source, kind in ((folder, "folder"), (archive, "zip")):
                one, two = (max(measure(source, root / "out", workers) for _ in range(2)) for workers in (1, 2))
                lines.append(
                    f"{extension[1:]} {kind}: {one:.0f} images/s with 1 process, {two:.0f} with 2 (x{two / one:.2f})"
                )
            ratio = folder_bytes(root / "out") / folder_bytes(folder)
            lines.append(
                f"{extension[1:]}: shards take {ratio:.2f} of the source's {folder_bytes(folder) / 1e6:.1f} MB"
            )
        raw = COUNT * 3 * RESOLUTION**2
        lines.append(f"shards over bare pixels: {folder_bytes(root / 'out') / raw:.5f}")
    report("prepare", lines)


if __name__ == "__main__":
    main()
