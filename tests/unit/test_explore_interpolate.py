"""Interpolation: positions, paths, classes, truncation sweeps; and the files that move."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from ganops.errors import DataError
from ganops.explore import video
from ganops.explore.interpolate import (
    _latents,
    _strip,
    _sweep,
    _to_rgb,
    draw_interpolation,
    frame_positions,
    interpolate,
)
from ganops.explore.model import Model, map_seeds, open_model, seed_labels
from ganops.explore.video import gif_centiseconds, write_gif, write_mp4
from ganops.networks.sampling import image_latents
from tests.tolerances import assert_close
from tests.unit.tiny_model import CLASS_NAMES, tool_params, write_snapshot


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_snapshot(tmp_path_factory.mktemp("model") / "last.safetensors")


@pytest.fixture(scope="module")
def model(snapshot: Path) -> Model:
    return open_model(snapshot, tool_params().run)


def section(**changes: Any) -> Any:
    return tool_params(**{f"interpolate__{key}": value for key, value in changes.items()}).interpolate


def w_of(model: Model, seeds: list[int], label: Any = None) -> torch.Tensor:
    return map_seeds(model, seeds, seed_labels(model, "k", label, seeds))


def test_positions() -> None:
    assert frame_positions(3, 2, loop=True) == [0, 0.5, 1, 1.5, 2, 2.5]
    assert frame_positions(3, 2, loop=False) == [0, 0.5, 1, 1.5, 2]
    assert frame_positions(2, 1, loop=False) == [0, 1]


def test_a_spherical_path_turns_and_grows_evenly() -> None:
    rng = torch.Generator().manual_seed(0)
    x0, x1 = torch.randn(2, 20, 16, generator=rng, dtype=torch.float64)
    steps = [interpolate(x0, x1, t, "spherical") for t in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert_close(steps[0], x0, "closed_form_float64")
    assert_close(steps[4], x1, "closed_form_float64")
    lengths = torch.stack([x.norm(dim=1) for x in steps])
    assert_close(lengths.diff(dim=0), (lengths[4] - lengths[0]).expand(4, -1) / 4, "closed_form_float64")
    cosines = [torch.cosine_similarity(a, b, dim=1) for a, b in itertools.pairwise(steps)]
    whole = torch.cosine_similarity(x0, x1, dim=1).acos()
    for cosine in cosines:
        assert_close(cosine.acos(), whole / 4, "closed_form_float64")


@pytest.mark.parametrize("scale", [1.0, -1.0, 0.0, 3.0])
def test_a_spherical_path_without_an_angle_is_straight(scale: float) -> None:
    x0 = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))
    middle = interpolate(x0, scale * x0, 0.5, "spherical")
    torch.testing.assert_close(middle, torch.lerp(x0, scale * x0, 0.5), atol=1e-5, rtol=1e-5)


def test_a_linear_path() -> None:
    x0, x1 = torch.zeros(2, 3), torch.ones(2, 3)
    assert torch.equal(interpolate(x0, x1, 0.25, "linear"), torch.full((2, 3), 0.25))


def test_keyframes_are_the_seeds_in_turn(model: Model) -> None:
    film = _latents(model, section(seeds="0-5", columns=2, truncation_psi=0.5))
    labels = [CLASS_NAMES[number] for number in seed_labels(model, "k", None, range(6)).tolist()]
    captions = [f"{seed}: {label}" for seed, label in enumerate(labels)]
    assert film.captions == [" > ".join(captions[0::2]), " > ".join(captions[1::2])]
    assert len(film.positions) == 12
    w = w_of(model, list(range(6)))
    for keyframe in range(3):
        expected = model.G.truncate(w[2 * keyframe : 2 * keyframe + 2], 0.5, None)
        torch.testing.assert_close(film.ws(float(keyframe)), expected)
    closing = model.G.truncate((w[4:6] + w[0:2]) / 2, 0.5, None)
    torch.testing.assert_close(film.ws(2.5), closing)


def test_spherical_in_w_is_around_the_mean(model: Model) -> None:
    film = _latents(model, section(seeds="0-1", columns=1, path="spherical", truncation_psi=1.0))
    mean, w = model.G.w_avg, w_of(model, [0, 1])
    ends = (w - mean).norm(dim=1)
    torch.testing.assert_close((film.ws(0.5)[0, 0] - mean).norm(), ends.mean())


def test_z_and_classes_between_keyframes(model: Model) -> None:
    """In z the frame's z is mapped under both classes, and w goes from one to the other."""
    values = {"seeds": "3,4", "columns": 1, "space": "z", "label": ["cat", 2], "truncation_psi": 1.0}
    film = _latents(model, section(**values))
    z = image_latents(0, [3, 4], 8)
    middle = torch.lerp(z[:1], z[1:], 0.25)
    as_cat, as_7 = (model.G.mapping(middle, torch.eye(3)[[label]]) for label in (0, 2))
    torch.testing.assert_close(film.ws(0.25)[0, 0], torch.lerp(as_cat, as_7, 0.25)[0])
    torch.testing.assert_close(film.ws(0.0)[0, 0], w_of(model, [3], "cat")[0])
    in_w = _latents(model, section(**values | {"space": "w"}))
    torch.testing.assert_close(in_w.ws(0.25)[0, 0], torch.lerp(w_of(model, [3], 0), w_of(model, [4], 2), 0.25)[0])
    with pytest.raises(DataError, match=r"interpolate.label='bird' is no class"):
        _latents(model, section(**values | {"label": ["cat", "bird"]}))


@pytest.mark.parametrize(("loop", "psis"), [(True, [0.2, 0.6, 1.0, 0.6]), (False, [0.2, 0.6, 1.0])])
def test_a_sweep_of_truncation(model: Model, loop: bool, psis: list[float]) -> None:
    film = _sweep(model, section(kind="truncation", seeds="0-4", columns=3, frames=2, sweep_psi=[0.2, 1.0], loop=loop))
    w = w_of(model, [0, 1, 2, 3, 4])
    assert len(film.positions) == len(psis)
    for position, psi in zip(film.positions, psis, strict=True):
        torch.testing.assert_close(film.ws(position), model.G.truncate(w, psi, None))
        assert film.words(position) == f"psi {psi:.2f}"


@pytest.mark.parametrize(("loop", "words"), [(True, ["0", "0.5", "1", "1.5"]), (False, ["0", "0.25", "0.75", "1"])])
def test_strip(model: Model, loop: bool, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    p = section(seeds="0-3", columns=2, strip_frames=4, loop=loop, label="cat")
    film = _latents(model, p)
    calls: list[Any] = []
    monkeypatch.setattr("ganops.explore.interpolate.caption_grid", lambda *args, **names: calls.append((args, names)))
    _strip(model, film, p)
    (images, columns), names = calls[0]
    assert (images.shape, columns, names["left"]) == ((8, 1, 16, 16), 4, ["0: cat > 2: cat", "1: cat > 3: cat"])
    assert names["top"] == words
    assert not np.array_equal(images[0], images[4])


def colourful(count: int, height: int, width: int) -> Iterator[np.ndarray]:
    """Smooth frames, each of another hue."""
    y, x = np.mgrid[:height, :width] / max(height, width)
    for number in range(count):
        yield (255 * np.stack([x, y, np.full_like(x, number / count)], axis=2)).astype(np.uint8)


@pytest.mark.parametrize("size", [(64, 48), (37, 51)])
def test_mp4(tmp_path: Path, size: tuple[int, int]) -> None:
    paths = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    for path in paths:
        write_mp4(path, colourful(7, *size), 25)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert len(list(tmp_path.iterdir())) == 2
    with av.open(str(paths[0])) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert container.streams.video[0].average_rate == 25
    even = size[0] + size[0] % 2, size[1] + size[1] % 2
    assert [frame.shape for frame in frames] == [(*even, 3)] * 7
    for frame, expected in zip(frames, colourful(7, *size), strict=True):
        assert np.abs(frame[: size[0], : size[1]].astype(int) - expected).mean() < 3


def test_a_film_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyAV's errors are OSErrors whose filename cannot be set."""
    path = tmp_path / "a.mp4"

    class Locked(PermissionError):
        filename = property(lambda self: None)

    def refuse(*_: Any, **__: Any) -> None:
        raise Locked(13, "Permission denied")

    monkeypatch.setattr(av, "open", refuse)
    with pytest.raises(PermissionError, match=r"\[Errno 13\] Permission denied: '.*a.mp4'") as error:
        write_mp4(path, colourful(2, 16, 16), 25)
    assert error.value.filename == str(path)

    def refuse_as_av(*_: Any, **__: Any) -> None:
        raise av.error.PermissionError(13, "Permission denied")

    monkeypatch.setattr(av, "open", refuse_as_av)
    with pytest.raises(PermissionError, match="a.mp4"):
        write_mp4(path, colourful(2, 16, 16), 25)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("size", "remedy"), [((16, 16386), "fewer columns"), ((16386, 16), "fewer images")])
def test_films_that_are_too_large(tmp_path: Path, size: tuple[int, int], remedy: str) -> None:
    def frames(*size: int) -> Iterator[np.ndarray]:
        return iter([np.zeros(size, np.uint8)] * 2)

    sizes = f"{size[1]}x{size[0]}"
    with pytest.raises(DataError, match=f"frames of {sizes} .* H.264 has at most 16384. Write a .gif, or .*{remedy}"):
        write_mp4(tmp_path / "a.mp4", frames(*size), 25)
    write_gif(tmp_path / "a.gif", frames(*size), 25, True)
    larger = [65536 if edge > 16 else 1 for edge in size]
    with pytest.raises(DataError, match=f"a GIF has at most 65535. Show {remedy}"):
        write_gif(tmp_path / "b.gif", frames(*larger), 25, True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]
    write_mp4(tmp_path / "b.mp4", frames(*[min(edge, 16384) for edge in size]), 25)  # the limit is x264's own


def test_mp4_of_grey(tmp_path: Path) -> None:
    write_mp4(tmp_path / "a.mp4", iter([np.full((16, 16), level, np.uint8) for level in (0, 128, 255)]), 240)
    with av.open(str(tmp_path / "a.mp4")) as container:
        levels = [frame.to_ndarray(format="rgb24").mean() for frame in container.decode(video=0)]
    assert levels == pytest.approx([0, 128, 255], abs=3)


def test_a_film_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"old")

    def broken() -> Iterator[np.ndarray]:
        yield np.zeros((16, 16), np.uint8)
        raise KeyboardInterrupt

    for write in (lambda: write_mp4(path, broken(), 25), lambda: write_gif(path, broken(), 25, True)):
        with pytest.raises(KeyboardInterrupt):
            write()
    monkeypatch.setattr(video, "CODEC", "libnone")
    with pytest.raises(DataError, match="PyAV has no x264 here"):
        write_mp4(path, colourful(2, 16, 16), 25)
    assert path.read_bytes() == b"old"
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(("fps", "centiseconds"), [(10, 10), (25, 4), (30, 3), (50, 2), (100, 2), (1, 100)])
def test_gif_speed(fps: int, centiseconds: int) -> None:
    assert gif_centiseconds(fps) == centiseconds


@pytest.mark.parametrize("loop", [True, False])
def test_gif(tmp_path: Path, loop: bool) -> None:
    levels = [0, 100, 255]
    frames = [np.full((9, 11), level, np.uint8) for level in levels]
    for name in ("a.gif", "b.gif"):
        write_gif(tmp_path / name, iter(frames), 25, loop)
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()
    with Image.open(tmp_path / "a.gif") as file:
        assert file.n_frames == 3
        assert ("loop" in file.info) == loop
        for number, level in enumerate(levels):
            file.seek(number)
            assert file.info["duration"] == 40
            assert (np.asarray(file.convert("L")) == level).all()


def test_transparency_is_laid_on_white() -> None:
    frame = np.zeros((2, 2, 4), np.uint8)
    frame[0, 0], frame[1, 1] = (10, 20, 30, 255), (0, 0, 0, 128)
    assert _to_rgb(frame).tolist() == [[[10, 20, 30], [255] * 3], [[255] * 3, [127] * 3]]


def test_bad_targets(snapshot: Path, tmp_path: Path) -> None:
    for name, message in (("a.avi", r"must end in .png or .mp4 or .gif"), ("folder.mp4", "is a folder")):
        (tmp_path / "folder.mp4").mkdir(exist_ok=True)
        with pytest.raises(DataError, match=message):
            draw_interpolation(tool_params(), snapshot, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["folder.mp4"]


@pytest.mark.parametrize("channels", [3, 4])
def test_films_in_colour(tmp_path: Path, channels: int) -> None:
    snapshot = write_snapshot(tmp_path / "m.safetensors", c_dim=0, img_channels=channels)
    for name in ("a.mp4", "a.gif", "a.png"):
        draw_interpolation(tool_params(), snapshot, tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000
