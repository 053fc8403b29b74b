"""Resizes, features and path lengths on a CUDA device: the CPU's numbers up to rounding, and the same bits again."""

from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from ganops.metrics import inception
from ganops.metrics.extractor import Extractor, load_extractor
from ganops.metrics.features import extract
from ganops.metrics.perceptual import load_perceptual
from ganops.metrics.resize import resize_images
from tests.standin import write_full_inception
from tests.tolerances import assert_close
from tests.unit.test_resize import GREY, noise

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("resize", ["clean", "legacy"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (32, 32), (31, 77), (512, 640)])
def test_a_gpu_gives_the_same(height: int, width: int, resize: str) -> None:
    images = noise(height, width)
    with mock.patch.object(torch.backends.cuda.matmul, "allow_tf32", False):  # as every extractor has it
        on_gpu = resize_images(images.cuda(), 299, resize)
    assert on_gpu.is_cuda
    assert float((on_gpu.cpu() - resize_images(images, 299, resize)).abs().max()) < GREY


def both(name: str, resize: str, precision: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Extractor]:
    """The extractor on the CPU in float32, and on the GPU."""
    if name == "inception-2015":
        sha256 = write_full_inception(folder / inception.INCEPTION_FILE)[0]
        monkeypatch.setattr(inception, "INCEPTION_SHA256", sha256)
    kinds = ((CPU, "float32"), (CUDA, precision))
    return [load_extractor(name, "", resize, kind, False, device, folder) for device, kind in kinds]


@pytest.mark.parametrize(
    ("name", "resize"),
    [("efficientnet-lite0", "clean"), ("inception-2015", "clean"), ("inception-2015", "legacy")],
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_features_are_the_cpus(
    name: str, resize: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_cpu, on_gpu = both(name, resize, precision, tmp_path, monkeypatch)
    images = noise(40, 50, count=10)
    expected = np.concatenate(list(extract(on_cpu, [images], 4)))
    found = np.concatenate(list(extract(on_gpu, [images.cuda()], 4)))
    assert found.dtype == np.float32
    assert_close(found, expected, "features_cuda" if precision == "float32" else "features_bfloat16")
    assert np.array_equal(found, np.concatenate(list(extract(on_gpu, [images], 4))))
    assert np.array_equal(found[:3], next(extract(on_gpu, [images[:3]], 4)))  # whatever the neighbours are


def test_perceptual_distances_are_the_cpus(tmp_path: Path) -> None:
    pair = [noise(64, 64, count=4).float() / 127.5 - 1, noise(64, 64, count=4).flip(0).float() / 127.5 - 1]
    on_cpu, on_gpu = (load_perceptual("efficientnet-lite0", device, tmp_path) for device in (CPU, CUDA))
    assert_close(on_gpu.distance(pair[0].cuda(), pair[1].cuda()), on_cpu.distance(*pair), "features_cuda")
