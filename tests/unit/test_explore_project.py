"""Projection: the noise penalty, schedules, resuming with the same bits, an image found again, and bad input."""

import csv
import hashlib
import itertools
import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from ganops.config_tools import ProjectParams
from ganops.errors import DataError, WeightsError
from ganops.explore import distance as distance_module
from ganops.explore.distance import Distance, lay_on, open_distance
from ganops.explore.model import open_model
from ganops.explore.project import project_image, read_target
from ganops.explore.projection import Projection, Start, noise_penalty, rate_at, strip_steps
from ganops.images.pixels import for_eyes, to_float, to_rgb, to_uint8
from ganops.metrics import perceptual
from ganops.metrics.perceptual import Perceptual, load_perceptual
from tests.tolerances import assert_close
from tests.unit.test_perceptual import vgg_convolutions
from tests.unit.tiny_model import tiny_generator, tool_params, write_snapshot

CPU = torch.device("cpu")
GROUND = (250, 128, 0)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_snapshot(tmp_path_factory.mktemp("model") / "last.safetensors")


def section(**changes: Any) -> ProjectParams:
    return tool_params(**{f"project__{key}": value for key, value in changes.items()}).project


def squares(target: Tensor) -> Distance:
    """A distance that costs nothing."""
    return Distance("squares", "0", lambda img: (img - target).square().mean([1, 2, 3]))


def make(p: ProjectParams, target: Tensor | None = None) -> Projection:
    G = tiny_generator()
    return Projection(G, p, Start(G.w_avg, 1.0), squares(torch.zeros(1, 1, 16, 16) if target is None else target))


def penalty_by_hand(image: np.ndarray) -> float:
    total, size = 0.0, len(image)
    while True:
        for down, right in ((1, 0), (0, 1)):
            terms = [
                image[y, x] * image[(y - down) % size, (x - right) % size]
                for y, x in itertools.product(range(size), repeat=2)
            ]
            total += float(np.mean(terms)) ** 2
        if size <= 8:
            return total
        size //= 2
        image = np.array(
            [[image[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].mean() * 2 for x in range(size)] for y in range(size)]
        )


def test_the_noise_penalty_is_the_papers() -> None:
    rng = np.random.default_rng(0)
    images = [rng.standard_normal((size, size)) for size in (4, 8, 16, 32)]
    expected = sum(penalty_by_hand(image) for image in images)
    assert_close(noise_penalty([torch.from_numpy(image) for image in images]), expected, "loop_float64")


def test_smooth_noise_costs_more_than_white_noise() -> None:
    white = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    smooth = torch.linspace(-1.7, 1.7, 64).expand(64, 64)
    assert float(noise_penalty([white])) < 0.1 < 1 < float(noise_penalty([smooth]))


def test_the_learning_rate_rises_and_falls() -> None:
    rates = [rate_at(t, 0.05, 0.25) for t in (0, 0.025, 0.05, 0.5, 0.75, 0.875, 0.999)]
    assert rates == pytest.approx([0, 0.5, 1, 1, 1, 0.5, 0], abs=1e-4)
    assert rate_at(0, 0, 0) == rate_at(0.99, 0, 0) == 1


@pytest.mark.parametrize(
    ("steps", "pictures", "expected"),
    [(1000, 3, [250, 500, 750]), (10, 2, [4, 7]), (5, 0, []), (2, 6, [1, 2]), (1, 1, [1])],
)
def test_steps_with_a_picture(steps: int, pictures: int, expected: list[int]) -> None:
    assert strip_steps(section(steps=steps, strip_steps=pictures)) == expected


def test_what_the_optimisation_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rate, noise on w and penalty of each step, by the paper's formulas."""
    seen: list[Tensor] = []
    projection = make(section(steps=40, w_noise=0.1, w_noise_ramp=0.5, learning_rate=0.02))
    synthesize = projection.synthesize

    def watch(w: Tensor) -> Tensor:
        if w.grad_fn is not None:
            seen.append((w - projection.w).detach())
        return synthesize(w)

    monkeypatch.setattr(projection, "synthesize", watch)
    assert list(projection.run()) == list(range(1, 41))
    sizes = torch.stack(seen).square().mean(dim=[1, 2, 3]).sqrt()
    assert sizes[20:].max() == 0
    expected = torch.tensor([0.1 * (1 - step / 40 / 0.5) ** 2 for step in range(20)])
    ratios = sizes[:18] / expected[:18]  # of 8 draws each: their root mean square is about 1
    assert 0.8 < float(ratios.mean()) < 1.2
    assert 0.4 < float(ratios.min()) < float(ratios.max()) < 2
    rates = projection.rows[:, 3].tolist()
    assert rates == pytest.approx([0.02 * rate_at(step / 40, 0.05, 0.25) for step in range(40)])
    loss, distance, penalty = projection.rows[:, :3].T
    assert_close(loss, distance + 1e5 * penalty, "golden_float32")


def test_noise_images_move_and_stay_standard() -> None:
    projection = make(section(steps=30, noise_weight=0.0))
    before = {name: noise.detach().clone() for name, noise in projection.noises.items()}
    assert list(before) == sorted(before)
    assert len(before) == 5
    list(projection.run())
    for name, noise in projection.noises.items():
        assert not torch.equal(noise, before[name])
        assert float(noise.detach().mean()) == pytest.approx(0, abs=1e-6)
        assert float(noise.detach().square().mean()) == pytest.approx(1, abs=1e-5)
    for name, buffer in projection.G.synthesis.named_buffers():
        if name in before:
            assert torch.equal(buffer, before[name])  # the network itself is left alone
    assert make(section(optimise_noise=False)).noises == {}


def test_the_penalty_keeps_noise_white() -> None:
    target = to_float(to_uint8(torch.linspace(-1, 1, 16).expand(1, 1, 16, 16)))
    penalties = []
    for weight in (0.0, 1e5):
        projection = make(section(steps=60, noise_weight=weight), target)
        list(projection.run())
        penalties.append(float(noise_penalty(list(projection.noises.values())).detach()))
    assert penalties[1] < penalties[0] / 20, penalties


@pytest.mark.parametrize("space", ["w", "w+"])
def test_an_own_image_is_found(space: str) -> None:
    G = tiny_generator()
    w = G.w_avg + 0.8 * torch.randn(1, 1, 8, generator=torch.Generator().manual_seed(5))
    target = G.synthesis(w.expand(1, 6, 8), "const", None)
    projection = make(section(space=space, steps=150, optimise_noise=False, learning_rate=0.05), target)
    list(projection.run())
    first, last = projection.rows[0, 1], projection.rows[-1, 1]
    assert last < first / 100
    assert projection.ws().shape == (1, 6, 8)
    same = [torch.equal(projection.ws()[:, 0], projection.ws()[:, layer]) for layer in range(6)]
    assert all(same) == (space == "w")


@pytest.mark.parametrize("stop", [1, 7, 20])
@pytest.mark.parametrize("space", ["w", "w+"])
def test_resumed_is_the_same_to_the_bit(tmp_path: Path, stop: int, space: str) -> None:
    p = section(steps=20, strip_steps=3, space=space)
    whole = make(p)
    for step in whole.run():
        if step == stop:
            whole.save(tmp_path / "state")
    resumed = make(p)
    resumed.load(tmp_path / "state")
    assert resumed.step == stop
    assert list(resumed.run()) == list(range(stop + 1, 21))
    assert torch.equal(whole.w, resumed.w)
    assert torch.equal(whole.rows, resumed.rows)
    assert torch.equal(whole.pictures, resumed.pictures)
    assert len(whole.pictures) == 3
    for name, noise in whole.noises.items():
        assert torch.equal(noise, resumed.noises[name])


def test_a_damaged_state(tmp_path: Path) -> None:
    projection = make(section(steps=3))
    for _ in projection.run():
        break
    projection.save(tmp_path / "state")
    content = (tmp_path / "state").read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"x" * 100):
        (tmp_path / "state").write_bytes(damaged)
        with pytest.raises(DataError, match="cannot be used .*Remove it to start again") as error:
            projection.load(tmp_path / "state")
        assert "\n" not in str(error.value)
    (tmp_path / "state").write_bytes(content)
    with pytest.raises(DataError, match="cannot be used"):
        make(section(steps=3, space="w+")).load(tmp_path / "state")


def test_a_loss_that_is_not_finite() -> None:
    with pytest.raises(WeightsError, match="the loss is not finite at step 0"):
        list(make(section(), torch.full([1, 1, 16, 16], math.nan)).run())


def write_image(path: Path, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> Path:
    y, x = np.mgrid[: size[1], : size[0]] / 40
    image = np.stack([255 * x, 255 * y, 128 + 0 * x], axis=2).astype(np.uint8)
    Image.fromarray(image).convert(mode).save(path)
    return path


def test_files(snapshot: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = write_image(tmp_path / "image.png")
    params = tool_params(project__space="w+")
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        project_image(params, snapshot, image, folder, tmp_path)
    assert "image.png is in colour, the model's images are grey: converted" in capsys.readouterr().out
    names = {path.name for path in folders[0].iterdir()}
    assert names == {"target.png", "projected.png", "strip.png", "ws.safetensors", "loss.csv", "project.json"}
    for name in names:
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    record = json.loads((folders[0] / "project.json").read_text())
    assert record["result"]["distance_name"] == "efflite0"
    rows = list(csv.DictReader((folders[0] / "loss.csv").read_text().splitlines()))
    assert [row["step"] for row in rows] == list("012345")
    model = open_model(snapshot, params.run)
    found = safetensors.torch.load_file(folders[0] / "ws.safetensors")
    assert found["ws"].shape == (1, 6, 8)
    noises = {name: tensor for name, tensor in found.items() if name != "ws"}
    img = torch.func.functional_call(model.G.synthesis, noises, (found["ws"], "const", None))
    projected = np.asarray(Image.open(folders[0] / "projected.png"))
    assert np.array_equal(to_uint8(img)[0, 0].numpy(), projected)
    target = np.asarray(Image.open(folders[0] / "target.png"))
    pair = to_float(torch.tensor(np.stack([target, projected]))[:, None])
    measured = load_perceptual("efficientnet-lite0", CPU, tmp_path).distance(pair[:1], pair[1:])
    assert record["result"]["distance"] == pytest.approx(float(measured), rel=0.05)  # of the image before rounding
    project_image(params, snapshot, image, folders[0], tmp_path)
    assert "is complete already" in capsys.readouterr().out
    with pytest.raises(DataError, match="holds results of other values: steps=6 there, 7 now"):
        project_image(tool_params(project__space="w+", project__steps=7), snapshot, image, folders[0], tmp_path)
    other = write_image(tmp_path / "other.png", size=(50, 50))
    with pytest.raises(DataError, match="image_sha256="):
        project_image(params, snapshot, other, folders[0], tmp_path)


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3), ("L", 3), ("RGB", 1), ("1", 1), ("P", 3)])
def test_the_target_is_as_prepare_makes_it(
    tmp_path: Path, mode: str, channels: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_image(tmp_path / "image.png", mode)
    params = tool_params()
    model = open_model(write_snapshot(tmp_path / "m", 0, 16, channels), params.run)
    target = read_target(path, model, params.prepare)
    assert target.shape == (channels, 16, 16)
    resample = Image.Resampling[params.prepare.resize_filter.upper()]
    with Image.open(path) as file:
        by_hand = file.convert("L" if mode in ("L", "1") else "RGB").convert("L" if channels == 1 else "RGB")
    by_hand = by_hand.crop((5, 0, 35, 30)).resize((16, 16), resample)
    assert np.array_equal(target.transpose(1, 2, 0).squeeze(), np.asarray(by_hand))
    said = capsys.readouterr().out
    assert ("converted" in said) == ((mode in ("L", "1")) != (channels == 1))
    write_image(path, mode, (12, 12))
    read_target(path, model, params.prepare)
    assert "smaller than the model's 16 px: enlarged" in capsys.readouterr().out


def test_a_projection_that_failed_can_be_started_anew(
    snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, folder = write_image(tmp_path / "image.png"), tmp_path / "folder"
    with monkeypatch.context() as patch:
        patch.setattr("ganops.explore.projection.noise_penalty", lambda noises: torch.tensor(math.inf))
        with pytest.raises(WeightsError, match="the loss is not finite"):
            project_image(tool_params(project__learning_rate=100.0), snapshot, image, folder, tmp_path)
    assert {path.name for path in folder.iterdir()} == {"project.json", "target.png"}
    project_image(tool_params(), snapshot, image, folder, tmp_path)
    assert (folder / "strip.png").exists()


def test_unreadable_images(snapshot: Path, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "empty.png").write_text("")
    content = write_image(tmp_path / "whole.png").read_bytes()
    (tmp_path / "short.png").write_bytes(content[: len(content) // 2])
    for name, message in (
        ("text.png", "cannot decode"),
        ("empty.png", "the file is empty"),
        ("short.png", "cannot decode"),
        ("none.png", "cannot open"),
        ("", "cannot open"),
    ):
        with pytest.raises(DataError, match=message) as error:
            project_image(tool_params(), snapshot, tmp_path / name, tmp_path / "folder", tmp_path)
        assert "\n" not in str(error.value)
        assert str(tmp_path / name) in str(error.value)
    assert not (tmp_path / "folder").exists()


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5])
def test_transparency_is_laid_on_the_background(channels: int) -> None:
    """As `to_rgb` does it for metrics, but for rounding; and with gradients."""
    rng = torch.Generator().manual_seed(0)
    levels = torch.randint(256, [2, channels, 16, 16], generator=rng, dtype=torch.uint8)
    laid = lay_on(to_float(levels), GROUND)
    assert laid.shape == (2, 3, 16, 16)
    assert float(((laid + 1) * 127.5 - to_rgb(levels, GROUND)).abs().max()) < 0.51
    img = (to_float(levels) * 1.5).double().requires_grad_()  # beyond [-1, 1] too
    seen = lay_on(img, GROUND)
    (gradient,) = torch.autograd.grad(seen.square().sum(), img)
    assert bool((gradient != 0).flatten(2).any(dim=2)[:, : min(channels, 4) if channels != 5 else 3].all())
    if channels in (2, 4):
        with torch.no_grad():
            beyond = img[:, -1:].expand_as(seen)
            ground = (torch.tensor(GROUND)[:, None, None] / 127.5 - 1).expand_as(seen)
            colour = img[:, :-1].float().expand_as(seen)
            assert torch.equal(seen[beyond <= -1], ground[beyond <= -1])
            torch.testing.assert_close(seen[beyond >= 1], colour[beyond >= 1])
            slope = (2 * seen * (colour - ground) / 2).sum(dim=1)
        torch.testing.assert_close(gradient[:, -1].float(), slope)


def write_target(path: Path, channels: int) -> Path:
    """Of 40x30 px: a fading image for 2 and 4 channels, an array for 5."""
    y, x = np.mgrid[:30, :40] / 40
    levels = (255 * np.stack([x, y, x * y, 1 - x, 1 - y], axis=2)).astype(np.uint8)
    if channels == 5:
        path = path.with_suffix(".npy")
        np.save(path, levels)
        return path
    levels[12:20, 15:25, 3] = 0  # a hole
    Image.fromarray(levels[:, :, :4]).convert({2: "LA", 4: "RGBA"}[channels]).save(path)
    return path


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_images_of_any_channels_are_projected(
    tmp_path: Path, channels: int, capsys: pytest.CaptureFixture[str]
) -> None:
    snapshot = write_snapshot(tmp_path / "model", 0, 16, channels)
    image = write_target(tmp_path / "image.png", channels)
    params = tool_params(project__steps=60, project__space="w+", project__w_noise=0.0)
    folder = tmp_path / "folder"
    project_image(params, snapshot, image, folder, tmp_path)
    assert "converted" not in capsys.readouterr().out
    target = read_target(image, open_model(snapshot, params.run), params.prepare)
    shown = for_eyes(target[None])[0].transpose(1, 2, 0)
    assert target.shape == (channels, 16, 16)
    assert np.array_equal(np.asarray(Image.open(folder / "target.png")), shown)
    assert np.asarray(Image.open(folder / "projected.png")).shape == shown.shape
    strip = np.asarray(Image.open(folder / "strip.png"))
    assert strip.shape[2] == shown.shape[2]
    if channels != 5:
        assert strip[:, -60:, 3].min() == 255  # the difference can be seen
    rows = list(csv.DictReader((folder / "loss.csv").read_text().splitlines()))
    assert float(rows[-1]["distance"]) < 0.9 * float(rows[0]["distance"])
    assert safetensors.torch.load_file(folder / "ws.safetensors")["ws"].shape == (1, 6, 8)


def test_arrays_must_have_the_models_channels(tmp_path: Path) -> None:
    array, image = write_target(tmp_path / "image", 5), write_target(tmp_path / "image.png", 4)
    for channels, path, message in ((3, array, "an array of 5 channels"), (5, image, "no .npy array")):
        snapshot = write_snapshot(tmp_path / f"model{channels}", 0, 16, channels)
        with pytest.raises(DataError, match=f"is {message}, but .* makes images of {channels}") as error:
            project_image(tool_params(), snapshot, path, tmp_path / "folder", tmp_path)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "folder").exists()


def test_images_without_a_distance(tmp_path: Path) -> None:
    small = write_snapshot(tmp_path / "small", 0, 8, 1)
    image = write_image(tmp_path / "image.png")
    with pytest.raises(DataError, match=r"project.distance=lpips needs images of 16x16 .* 8x8. Set project.distance"):
        project_image(tool_params(project__distance="lpips"), small, image, tmp_path / "folder", tmp_path)
    assert not (tmp_path / "folder").exists()


def test_lpips_without_weights_says_what_to_do(snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distance_module, "VGG_URL", "http://localhost:9/vgg.pth")  # where nobody answers
    image = write_image(tmp_path / "image.png")
    with pytest.raises(
        WeightsError, match=r"is missing and cannot be downloaded.*set project.distance: efflite0"
    ) as error:
        project_image(tool_params(project__distance="lpips"), snapshot, image, tmp_path / "folder", tmp_path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "folder").exists()


def test_large_images_are_averaged_for_lpips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To 256 px, and with gradients."""

    def network(img0: Tensor, img1: Tensor) -> Tensor:
        assert img0.shape == img1.shape == (1, 3, 256, 256)
        return (img0 - img1).square().mean([1, 2, 3])

    fake = Perceptual("lpips_vgg", "0", "", (), CPU, network)
    monkeypatch.setattr(distance_module, "load_perceptual", lambda *arguments: fake)
    (tmp_path / distance_module.VGG_FILE).write_text("")
    rng = torch.Generator().manual_seed(0)
    img, target = torch.randn(2, 1, 1, 512, 512, generator=rng)
    img.requires_grad_()
    value = open_distance("lpips", target, GROUND, CPU, tmp_path).to_target(img)
    means = (img - target).reshape(1, 256, 2, 256, 2).mean([2, 4])
    torch.testing.assert_close(value, means.square().mean([1, 2]))
    (gradient,) = torch.autograd.grad(value.sum(), img)
    assert gradient.abs().min() > 0


@pytest.mark.parametrize("name", ["efflite0", "lpips"])
def test_distances_have_gradients(
    tmp_path: Path, name: Literal["efflite0", "lpips"], monkeypatch: pytest.MonkeyPatch
) -> None:
    """LPIPS with random weights in the place of VGG-16's."""
    vgg = {
        f"{layer}.{kind}": x
        for layer, *pair in vgg_convolutions()
        for kind, x in zip(("weight", "bias"), pair, strict=True)
    }
    torch.save(vgg, tmp_path / perceptual.VGG_FILE)
    digest = hashlib.sha256((tmp_path / perceptual.VGG_FILE).read_bytes()).hexdigest()
    monkeypatch.setattr(perceptual, "VGG_SHA256", digest)
    rng = torch.Generator().manual_seed(0)
    img, target = torch.rand(2, 1, 1, 16, 16, generator=rng) * 2 - 1
    distance = open_distance(name, target, GROUND, CPU, tmp_path)
    img.requires_grad_()
    value = distance.to_target(img)
    assert float(distance.to_target(target)) == 0
    gradient = torch.autograd.grad(value.sum(), img)[0]
    step = gradient / gradient.norm() * 1e-2
    change = float((distance.to_target(img - step) - value).detach())
    assert change == pytest.approx(-float((gradient * step).sum()), rel=0.2)
    measured = load_perceptual(distance_module.EXTRACTORS[name], CPU, tmp_path).distance(img.detach(), target)
    assert float(value.detach()) == pytest.approx(float(measured))
