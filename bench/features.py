"""A whole Fréchet distance (resize, network, moments, distance) against clean-fid's, on the same images and network.

`python -m bench.features`, about three minutes. The network is torchvision's Inception v3 with random weights, as
TorchScript with the calling surface of inception-2015-12-05.pt: of the real one's size, for time only. Images are
decoded beforehand on both sides (clean-fid reads .npy files), one torch thread.
"""

import contextlib
import io
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from cleanfid import fid
from cleanfid.inception_torchscript import InceptionV3W
from cleanfid.resize import build_resizer
from torch import Tensor, nn
from torchvision.models import inception_v3

from bench.report import report
from ganops.files import sha256_file
from ganops.metrics import extractor as module
from ganops.metrics.extractor import Extractor, load_extractor
from ganops.metrics.features import Moments, extract, measure_moments
from ganops.metrics.frechet import frechet_distance

CPU = torch.device("cpu")
COUNT, SIZE, BATCH = 48, 32, 16
ROUNDS = 2


class Layers(nn.Module):
    """`.layers` of the Inception file: float [N, 3, 299, 299] -> [N, 2048]."""

    def __init__(self) -> None:
        super().__init__()
        self.network = inception_v3(weights=None, init_weights=False, transform_input=False, aux_logits=True)
        self.network.fc = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.network(x)
        return features


class Surface(nn.Module):
    """The module around it."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        features: Tensor = self.layers(x)
        return features


def write_network(path: Path) -> str:
    """Random weights, batch norms set to a batch's statistics so that activations keep their size; its sha256."""
    torch.manual_seed(0)
    layers = Layers().train()
    noise = torch.randn([8, 3, 299, 299])
    for norm in (norm for norm in layers.modules() if isinstance(norm, nn.BatchNorm2d)):
        norm.momentum = None  # cumulative: the one batch's own
    with torch.no_grad():
        layers(noise)
        traced = torch.jit.trace(layers.eval(), noise[:2], check_trace=False)  # type: ignore[no-untyped-call]
        content = io.BytesIO()
        torch.jit.save(torch.jit.script(Surface(traced).eval()), content)
    path.write_bytes(content.getvalue())
    return sha256_file(path)


def theirs(folders: list[Path], network: InceptionV3W) -> tuple[float, float]:
    """clean-fid's distance of two folders, and the seconds it takes."""
    start = time.perf_counter()
    features = [
        fid.get_folder_features(str(folder), network, num_workers=0, batch_size=BATCH, device=CPU, verbose=False)
        for folder in folders
    ]
    return float(fid.fid_from_feats(*features)), time.perf_counter() - start


def ours(sets: list[Tensor], weights: Path) -> tuple[float, float]:
    """The same distance, ours."""
    extractor = load_extractor("inception-2015", "", CPU, weights)
    start = time.perf_counter()
    one, two = (measure_moments(extractor, torch.split(images, BATCH), BATCH) for images in sets)
    value = frechet_distance(one.mean(), one.covariance(1), two.mean(), two.covariance(1))
    return value, time.perf_counter() - start


def rate(function: Callable[[], object], items: int) -> float:
    """Items per second, of the best round."""
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return items / min(times)


def parts(extractor: Extractor, images: Tensor) -> list[str]:
    """What a distance is made of, each alone; and the other built-in network."""
    small, resize = images[:BATCH], build_resizer("clean")
    resize_rate = rate(lambda: [resize(image) for image in small.permute(0, 2, 3, 1).numpy()], BATCH)
    whole_rate = rate(lambda: extractor.features(small), BATCH)
    network_rate = 1 / (1 / whole_rate - 1 / resize_rate)
    rows = np.random.default_rng(0).random((4096, 2048), dtype=np.float32)
    moments_rate = rate(lambda: Moments().append(rows), len(rows))
    lite = load_extractor("efficientnet-lite0", "", CPU, Path())
    lite_rate = rate(lambda: lite.features(images), len(images))
    return [
        f"parts: resize {resize_rate:.0f} img/s, network {network_rate:.1f} img/s, moments {moments_rate:.0f} rows/s",
        f"efficientnet-lite0, resize included: {lite_rate:.0f} img/s",
    ]


def main() -> None:
    """Interleaved rounds; the best of each counts."""
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        root = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sha256 = write_network(root / module.INCEPTION_FILE)
        stack.enter_context(mock.patch.object(module, "INCEPTION_SHA256", sha256))
        rng = np.random.default_rng(0)
        folders, sets = [], []
        for name in ("one", "two"):
            (root / name).mkdir()
            images = rng.integers(0, 256 if name == "one" else 128, (COUNT, SIZE, SIZE, 3), dtype=np.uint8)
            for index, image in enumerate(images):
                np.save(root / name / f"{index:04d}.npy", image)
            folders.append(root / name)
            sets.append(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        network = InceptionV3W(str(root), download=False).eval()
        rounds = [(theirs(folders, network), ours(sets, root)) for _ in range(ROUNDS)]
        their_sec, our_sec = (min(one[side][1] for one in rounds) for side in (0, 1))
        their_value, our_value = rounds[0][0][0], rounds[0][1][0]
        extractor = load_extractor("inception-2015", "", CPU, root)
        our_features = np.concatenate(list(extract(extractor, torch.split(sets[0], BATCH), BATCH)))
        their_features = fid.get_folder_features(
            str(folders[0]), network, num_workers=0, batch_size=BATCH, device=CPU, verbose=False
        )
        difference = np.abs(our_features - their_features).max() / np.abs(their_features).max()
        part_lines = parts(extractor, sets[0])
    report(
        "features",
        [
            f"load average at the start: {load:.1f}",
            f"{COUNT} against {COUNT} images of {SIZE} px, batch {BATCH}, one thread, best of {ROUNDS} interleaved rounds",
            f"clean-fid {their_sec:.1f} s, ours {our_sec:.1f} s, ratio {their_sec / our_sec:.2f}",
            f"relative difference of the distances {abs(our_value / their_value - 1):.1e} (N < D: clean-fid's matrix "
            "root of singular covariances is the less exact one)",
            f"largest difference of a feature, relative to the largest feature: {difference:.1e}",
            *part_lines,
        ],
    )


if __name__ == "__main__":
    main()
