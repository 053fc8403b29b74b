"""A whole Fréchet distance (resize, network, moments, distance) against clean-fid's, on the same images and network file.

`python -m bench.features`, about four minutes. The network file is a TorchScript of the size and surface of
inception-2015-12-05.pt with random weights: for time, and for how far two computations of one thing are apart; what
bfloat16 does to the real network is not to be seen here. Each side runs in a process of its own, as its users start it, on
one thread; the two take turns. Images are decoded beforehand on both sides (clean-fid reads .npy files).
"""

import os
import tempfile
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import numpy as np
import threadpoolctl
import torch
from cleanfid import fid
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from numpy.typing import NDArray
from torch import Tensor

from bench.report import report
from ganops.distributed import select_device
from ganops.errors import WeightsError
from ganops.metrics import inception
from ganops.metrics.extractor import Extractor, load_extractor
from ganops.metrics.features import Moments, extract, measure_moments
from ganops.metrics.frechet import frechet_distance
from ganops.metrics.resize import resize_images
from tests.standin import noise, write_full_inception

CPU = torch.device("cpu")
COUNT, SIZE, BATCH = 48, 256, 16
ROUNDS = 2
PART_BATCH, PART_ROUNDS = 4, 3
RESIZES = (32, 64, 128, 256, 512, 1024)  # px
SETS = ("one", "two")


@dataclass(frozen=True)
class Measured:
    """One side's round: seconds for the features of both sets and for the distance, the distance, the first features."""

    features_sec: float
    distance_sec: float
    value: float
    features: NDArray[np.float32]


def write_inputs(root: Path) -> str:
    """The network file and both image sets; the file's sha256."""
    for number, name in enumerate(SETS):
        (root / name).mkdir()
        images = noise(COUNT, 1 + number)[..., :SIZE, :SIZE] // (1 + number)
        for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
            np.save(root / name / f"{index:04d}.npy", image)
    return write_full_inception(root / inception.INCEPTION_FILE)[0]


def read_set(folder: Path) -> Tensor:
    """uint8 [N, 3, H, W]."""
    images = np.stack([np.load(path) for path in sorted(folder.iterdir())])
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def theirs(root: Path) -> Measured:
    """clean-fid's distance of the two folders."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    threadpoolctl.threadpool_limits(1)
    network = InceptionV3W(str(root), download=False).eval()
    start = time.perf_counter()
    one, two = (
        fid.get_folder_features(str(root / name), network, num_workers=0, batch_size=BATCH, device=CPU, verbose=False)
        for name in SETS
    )
    middle = time.perf_counter()
    value = float(fid.fid_from_feats(one, two))
    return Measured(middle - start, time.perf_counter() - middle, value, one)


def ours(root: Path, sha256: str, compiled: bool = False) -> Measured:
    """The same, as the stages compute it; compiling is not counted."""
    extractor, sets = load_ours(root, sha256, compiled=compiled), [read_set(root / name) for name in SETS]
    if compiled:
        extractor.features(sets[0][:BATCH])
    start = time.perf_counter()
    features = [np.concatenate(list(extract(extractor, torch.split(images, BATCH), BATCH))) for images in sets]
    one, two = Moments(), Moments()
    one.append(features[0])
    two.append(features[1])
    middle = time.perf_counter()
    value = frechet_distance(one.mean(), one.covariance(1), two.mean(), two.covariance(1))
    return Measured(middle - start, time.perf_counter() - middle, value, features[0])


def load_ours(root: Path, sha256: str, precision: str = "float32", compiled: bool = False) -> Extractor:
    """With this process set up as a stage's is."""
    warnings.simplefilter("ignore")
    device = select_device("cpu", 1)
    with mock.patch.object(inception, "INCEPTION_SHA256", sha256):
        return load_extractor("inception-2015", "", "clean", precision, compiled, device, root)


def seconds_of(**functions: Callable[[], object]) -> dict[str, float]:
    """Of each one's best round; they take turns, and the first rounds are not counted."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(PART_ROUNDS + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: min(seconds[1:]) for name, seconds in times.items()}


def resize_part(size: int) -> str:
    """Ours against clean-fid's, images of one size to 299 px."""
    count = 16 if size <= 256 else 4
    images = torch.randint(0, 256, [count, 3, size, size], dtype=torch.uint8)
    resize, rows = build_resizer("clean"), images.permute(0, 2, 3, 1).numpy()
    seconds = seconds_of(
        pillow=lambda: [resize(image) for image in rows],
        clean=lambda: resize_images(images, 299, "clean"),
        legacy=lambda: resize_images(images, 299, "legacy"),
    )
    rates = {name: count / sec for name, sec in seconds.items()}
    return (
        f"resize, {size} px: Pillow {rates['pillow']:.0f}, ours {rates['clean']:.0f} "
        f"(ratio {rates['clean'] / rates['pillow']:.1f}), legacy {rates['legacy']:.0f} img/s"
    )


def network_parts(root: Path, sha256: str) -> list[str]:
    """One batch of 299 px, which no resize changes, through each variant; and what bfloat16 does to a distance."""
    images = noise(PART_BATCH, 5)
    script = InceptionV3W(str(root), download=False).eval()
    exact, half = load_ours(root, sha256), load_ours(root, sha256, precision="bfloat16")
    variants = {"ours": exact, "ours in bfloat16": half}
    lines = []
    try:
        compiled = load_ours(root, sha256, compiled=True)
        compiled.features(images)
        variants["ours compiled"] = compiled
    except WeightsError as error:
        lines.append(f"network, ours compiled: {error}")
    with torch.no_grad():
        seconds = seconds_of(
            clean_fid=lambda: script(images.float()),
            **{name: lambda variant=variant: variant.features(images) for name, variant in variants.items()},
        )
    expected = exact.features(images)
    for name, sec in seconds.items():
        line = f"network, {name}: {PART_BATCH / sec:.1f} img/s, ratio {seconds['clean_fid'] / sec:.2f}"
        if name in variants:
            apart = float((variants[name].features(images) - expected).abs().max() / expected.abs().max())
            line += f"; features within {apart:.0e} of ours in float32"
        lines.append(line)
    few = [read_set(root / name)[: BATCH // 2] for name in SETS]
    change = distance(half, few) / distance(exact, few) - 1
    lines.append(
        f"bfloat16 changes the distance of {BATCH // 2} against {BATCH // 2} images by {change:+.1%} (random weights "
        "exaggerate)"
    )
    return lines


def distance(extractor: Extractor, sets: list[Tensor]) -> float:
    one, two = (measure_moments(extractor, [images], len(images)) for images in sets)
    return frechet_distance(one.mean(), one.covariance(1), two.mean(), two.covariance(1))


def parts(root: Path, sha256: str) -> list[str]:
    """What a distance is made of, each alone; and the other built-in network."""
    lite = load_extractor("efficientnet-lite0", "", "clean", "float32", False, select_device("cpu", 1), Path())
    images = read_set(root / "one")
    rows = np.random.default_rng(0).random((4096, 2048), dtype=np.float32)
    seconds = seconds_of(moments=lambda: Moments().append(rows), lite=lambda: lite.features(images))
    return [
        *(resize_part(size) for size in RESIZES),
        *network_parts(root, sha256),
        f"moments: {len(rows) / seconds['moments']:.0f} rows/s",
        f"efficientnet-lite0, resize included: {len(images) / seconds['lite']:.0f} img/s",
    ]


def best(rounds: list[Measured]) -> Measured:
    """The smallest seconds of each kind."""
    return replace(
        rounds[0],
        features_sec=min(one.features_sec for one in rounds),
        distance_sec=min(one.distance_sec for one in rounds),
    )


def main() -> None:
    """Interleaved rounds; the best of each counts."""
    load = os.getloadavg()[0]
    context = get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        sha256 = write_inputs(root)
        with (
            ProcessPoolExecutor(1, mp_context=context) as their_process,
            ProcessPoolExecutor(1, mp_context=context) as our_process,
        ):
            rounds = [
                (their_process.submit(theirs, root).result(), our_process.submit(ours, root, sha256).result())
                for _ in range(ROUNDS)
            ]
            part_lines = our_process.submit(parts, root, sha256).result()
            try:
                three = our_process.submit(ours, root, sha256, compiled=True).result()
                part_lines.append(
                    f"features by run.compile_extractor, one round: {2 * COUNT / three.features_sec:.1f} img/s, ratio "
                    f"{min(their.features_sec for their, _ in rounds) / three.features_sec:.2f}; the distance moves by "
                    f"{abs(three.value / rounds[0][1].value - 1):.0e}"
                )
            except WeightsError as error:
                part_lines.append(f"features by run.compile_extractor: {error}")
    one, two = best([their for their, _ in rounds]), best([our for _, our in rounds])
    difference = np.abs(two.features - one.features).max() / np.abs(one.features).max()
    their_sec, our_sec = one.features_sec + one.distance_sec, two.features_sec + two.distance_sec
    report(
        "features",
        [
            f"load average at the start: {load:.1f}; instructions: {torch.backends.cpu.get_cpu_capability()}",
            f"{COUNT} against {COUNT} images of {SIZE} px, batch {BATCH}, one thread each, best of {ROUNDS} interleaved "
            "rounds",
            f"whole distance: clean-fid {their_sec:.1f} s, ours {our_sec:.1f} s, ratio {their_sec / our_sec:.2f}",
            f"its features: clean-fid {one.features_sec:.1f} s ({2 * COUNT / one.features_sec:.1f} img/s), ours "
            f"{two.features_sec:.1f} s ({2 * COUNT / two.features_sec:.1f} img/s), ratio "
            f"{one.features_sec / two.features_sec:.2f}; its last step: clean-fid {one.distance_sec:.1f} s, ours "
            f"{two.distance_sec:.1f} s",
            f"relative difference of the distances {abs(two.value / one.value - 1):.1e} (N < D: clean-fid's matrix "
            "root of singular covariances is the less exact one)",
            f"largest difference of a feature, relative to the largest feature: {difference:.1e}",
            *part_lines,
        ],
    )


if __name__ == "__main__":
    main()
