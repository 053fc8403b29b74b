"""Latents by seed, classes by name, truncation of a range of layers; the pictures of `images` and `style_mixing`."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image

from ganops.errors import DataError, WeightsError
from ganops.explore.captions import GAP, LINE, _fit, caption_grid
from ganops.explore.images import draw_images, file_name
from ganops.explore.model import (
    Model,
    check_layers,
    find_label,
    map_seeds,
    open_model,
    sample_w,
    seed_caption,
    seed_labels,
    synthesize,
    truncate_layers,
)
from ganops.explore.record import check_picture, claim_folder
from ganops.explore.style_mixing import draw_style_mixing
from ganops.networks.sampling import generate_images, image_labels
from ganops.networks.snapshot import load_snapshot, save_snapshot
from tests.unit.tiny_model import growing_generator, tool_params, write_snapshot

SEEDS = [0, 4, 11, 3, 2, 9]


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_snapshot(tmp_path_factory.mktemp("model") / "last.safetensors")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_snapshot(tmp_path_factory.mktemp("plain") / "last.safetensors", c_dim=0, img_channels=3)


@pytest.fixture(scope="module")
def model(snapshot: Path) -> Model:
    return open_model(snapshot, tool_params().run)


def images_by_hand(snapshot: Path, psi: float, cutoff: int | None, noise_mode: str) -> np.ndarray:
    G, _ = load_snapshot(snapshot)
    labels = image_labels(0, SEEDS, (5, 3, 2))
    return torch.cat(list(generate_images(G, 0, SEEDS, labels, psi, cutoff, noise_mode, 4))).numpy()


@pytest.mark.parametrize("noise_mode", ["random", "const", "none"])
@pytest.mark.parametrize(("psi", "layers", "cutoff"), [(1.0, None, None), (0.5, None, None), (0.5, [0, 2], 2)])
def test_a_seed_is_an_image_of_the_sample(
    snapshot: Path, model: Model, psi: float, layers: list[int] | None, cutoff: int | None, noise_mode: str
) -> None:
    labels = seed_labels(model, "images.label", None, SEEDS)
    w = map_seeds(model, SEEDS, labels)
    ws = truncate_layers(model.G, w, psi, check_layers(model, "images.truncation_layers", layers))
    images = synthesize(model, ws, noise_mode, SEEDS if noise_mode == "random" else None, 4)
    # w comes from a batch of another size, whose rounding may move a pixel over an edge.
    difference = np.abs(images.astype(int) - images_by_hand(snapshot, psi, cutoff, noise_mode))
    assert difference.max() <= 1
    assert (difference > 0).mean() < 0.01


def test_truncation_of_a_range(model: Model) -> None:
    w = map_seeds(model, SEEDS, torch.zeros(6, dtype=torch.int64))
    ws = truncate_layers(model.G, w, 0.25, (2, 5))
    assert torch.equal(ws[:, :2], w[:, None].expand(-1, 2, -1))
    assert torch.equal(ws[:, 5:], w[:, None].expand(-1, 1, -1))
    expected = model.G.w_avg + 0.25 * (w - model.G.w_avg)
    torch.testing.assert_close(ws[:, 2:5], expected[:, None].expand(-1, 3, -1))


def test_classes_by_number_and_name(model: Model, plain: Path) -> None:
    found = [find_label(model, "k", label) for label in (None, 0, 2, "dog", "7")]
    assert found == [None, 0, 2, 1, 2]
    for label in (3, "bird", "1"):
        with pytest.raises(DataError, match=r"images.label=.* is no class of .*it has 0 to 2, named cat, dog, 7\."):
            find_label(model, "images.label", label)
    unconditional = open_model(plain, tool_params().run)
    assert seed_labels(unconditional, "k", None, SEEDS).tolist() == [0] * 6
    with pytest.raises(DataError, match=r"images.label=1, but .* has no classes. Set images.label: null"):
        find_label(unconditional, "images.label", 1)


def test_captions_name_the_class(model: Model, plain: Path) -> None:
    assert seed_caption(model, 7, torch.tensor(1)) == "7: dog"
    assert seed_caption(model, 7, torch.tensor([0.9, 0.2, 1.0])) == "7: cat+7"
    assert seed_caption(model, 7, torch.zeros(3)) == "7: none"
    assert seed_caption(open_model(plain, tool_params().run), 7, torch.tensor(0)) == "7"


def test_classes_as_often_as_in_the_data(model: Model) -> None:
    drawn = seed_labels(model, "k", None, range(2000)).bincount() / 2000
    assert drawn.tolist() == pytest.approx([0.5, 0.3, 0.2], abs=0.05)
    assert seed_labels(model, "k", "dog", SEEDS).tolist() == [1] * 6
    unknown = Model(model.path, "", model.G, model.device, (), ())
    with pytest.raises(DataError, match="does not say how often its classes are, so images.label must name one"):
        seed_labels(unknown, "images.label", None, SEEDS)


def test_samples_of_w_are_other_latents_than_seeds(model: Model) -> None:
    w = sample_w(model, "k", None, 0, 1500)
    assert w.shape == (1500, 8)
    assert torch.equal(w[:5], sample_w(model, "k", None, 0, 1500)[:5])
    assert not torch.equal(w[:5], sample_w(model, "k", None, 1, 1500)[:5])
    seeds = map_seeds(model, range(5), seed_labels(model, "k", None, range(5)))
    assert not torch.isclose(w[:5], seeds).any(dim=1).all()


def test_images_are_kept_and_a_folder_grows(snapshot: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "images"
    draw_images(tool_params(images__seeds="0-4"), snapshot, folder)
    one = {path: path.read_bytes() for path in folder.rglob("*.png")}
    assert {str(path.relative_to(folder)) for path in one} == {
        f"psi{psi}{name}" for psi in ("0.7", "1.0") for name in (".png", *[f"/seed000{seed}.png" for seed in range(5)])
    }
    kept = folder / "psi1.0" / file_name(2)
    stamp = kept.stat().st_mtime_ns
    (folder / "psi1.0" / file_name(3)).unlink()
    draw_images(tool_params(images__seeds="0-4"), snapshot, folder)
    assert {path: path.read_bytes() for path in folder.rglob("*.png")} == one
    draw_images(tool_params(images__seeds=[6, 2], images__truncation_psi=[1.0]), snapshot, folder)
    assert kept.stat().st_mtime_ns == stamp
    assert (folder / "psi1.0" / file_name(6)).exists()
    expected = images_by_hand(snapshot, 1.0, None, "random")[1, 0]  # seed 4
    found = np.asarray(Image.open(folder / "psi1.0" / file_name(4)))
    assert np.abs(found.astype(int) - expected).max() <= 1


def test_images_of_other_values_are_refused(snapshot: Path, plain: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    draw_images(tool_params(), snapshot, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for params, path, key in (
        (tool_params(images__label="cat"), snapshot, "label=null there, 0 now"),
        (tool_params(images__truncation_layers=[0, 2]), snapshot, r"truncation_layers=null there, \[0, 2\] now"),
        (tool_params(images__noise_mode="none"), snapshot, 'noise_mode="random" there, "none" now'),
        (tool_params(), plain, 'snapshot_sha256="'),
    ):
        with pytest.raises(DataError, match=key) as error:
            draw_images(params, path, folder)
        assert "\n" not in str(error.value)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    (folder / "psi1.0" / file_name(1)).write_bytes(b"no")
    with pytest.raises(DataError, match=r"seed0001.png cannot be read.*Remove it"):
        draw_images(tool_params(), snapshot, folder)


def test_folders_that_are_not_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        claim_folder(tmp_path / "file", "a.json", {})
    with pytest.raises(DataError, match=r"holds other things \(it has no a.json\)"):
        claim_folder(tmp_path, "a.json", {})
    claim_folder(tmp_path / "new", "a.json", {"x": 1.5})
    (tmp_path / "new" / "b.png").write_text("")
    assert claim_folder(tmp_path / "new", "a.json", {"x": 1.5}) == {"values": {"x": 1.5}}
    for text in ("", "[]", '{"values": 3}'):
        (tmp_path / "new" / "a.json").write_text(text)
        with pytest.raises(DataError, match=r"a.json is damaged"):
            claim_folder(tmp_path / "new", "a.json", {"x": 1.5})


def test_a_folder_without_results_is_claimed_anew(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    claim_folder(folder, "a.json", {"x": 1})
    assert claim_folder(folder, "a.json", {"x": 2}) == {"values": {"x": 2}}
    (folder / "target.png").write_text("")
    with pytest.raises(DataError, match="holds results of other values: x=2 there, 3 now"):
        claim_folder(folder, "a.json", {"x": 3})
    claim_folder(folder, "a.json", {"x": 3}, inputs=("target.png",))
    assert json.loads((folder / "a.json").read_text()) == {"values": {"x": 3}}
    (folder / "state").write_text("")
    with pytest.raises(DataError, match="holds results of other values: x=3 there, 4 now"):
        claim_folder(folder, "a.json", {"x": 4}, inputs=("target.png",))


def test_what_a_killed_run_left_is_removed(snapshot: Path, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    draw_images(tool_params(), snapshot, folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    places = [folder / ".images.json", folder / "psi1.0" / ".seed0000.png"]
    for place in places:
        for pid in (dead.pid, os.getpid()):  # the number of a process may come again
            place.with_name(f"{place.name}.{pid}.tmp").write_bytes(b"half")
    theirs = [folder / f".x.{os.getppid()}.tmp", folder / ".notes.tmp"]
    for path in theirs:
        path.write_bytes(b"not ours")
    draw_images(tool_params(), snapshot, folder)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert after == before | dict.fromkeys(theirs, b"not ours")


def test_places_for_pictures(tmp_path: Path) -> None:
    check_picture(tmp_path / "a.PNG", (".png",))
    with pytest.raises(DataError, match=r"must end in .png or .gif"):
        check_picture(tmp_path / "a.jpg", (".png", ".gif"))
    with pytest.raises(DataError, match="is a folder"):
        check_picture(tmp_path, ("",))


def test_style_mixing(snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[np.ndarray] = []

    def keep(images: np.ndarray, columns: int, top: list[str], left: list[str]) -> np.ndarray:
        assert (columns, top, left) == (3, ["", "5: cat", "6: cat"], ["", "1: cat", "2: cat", "3: cat"])
        drawn.append(images.reshape(4, 3, *images.shape[1:]))
        return caption_grid(images, columns, top=top, left=left)

    monkeypatch.setattr("ganops.explore.style_mixing.caption_grid", keep)
    values = {"row_seeds": "1-3", "column_seeds": "5,6", "label": "cat", "column_layers": [2, 4]}
    changes = {f"style_mixing__{key}": value for key, value in values.items()}
    draw_style_mixing(tool_params(**changes), snapshot, tmp_path / "mix.png")
    grid = drawn[0]
    model = open_model(snapshot, tool_params().run)
    ws = [model.G.truncate(map_seeds(model, [seed], torch.zeros(1, dtype=torch.int64)), 0.7, None) for seed in (2, 6)]
    mixed = torch.cat([ws[0][:, :2], ws[1][:, 2:4], ws[0][:, 4:]], dim=1)
    for ws_expected, place in ((ws[0], grid[2, 0]), (ws[1], grid[0, 2]), (mixed, grid[2, 2])):
        difference = np.abs(synthesize(model, ws_expected, "const", None, 8)[0].astype(int) - place)
        assert difference.max() <= 1
    assert (grid[0, 0] == 255).all()
    assert np.abs(grid[2, 2].astype(int) - grid[2, 0]).max() > 10


def test_style_mixing_needs_layers(snapshot: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"style_mixing.column_layers=\[1, 7\], but .* has 6 layers.*from 0 to 6"):
        draw_style_mixing(tool_params(style_mixing__column_layers=[1, 7]), snapshot, tmp_path / "mix.png")
    G, _ = load_snapshot(snapshot)
    G.num_ws = 1
    monkeypatch.setattr("ganops.explore.model.load_snapshot", lambda path: (G, {}))
    with pytest.raises(DataError, match="has one w for all layers, so there are no styles to mix"):
        draw_style_mixing(tool_params(), snapshot, tmp_path / "mix.png")
    assert not list(tmp_path.iterdir())


def test_layers_that_do_not_run_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    snapshot = tmp_path / "growing.safetensors"
    save_snapshot(snapshot, growing_generator("stylegan1", 1.0), {})
    message = (
        r"=\[4, 6\], but .* is still growing: so far only layers 0 to 3 of 6 run\. Use \[first, last\] from 0 to 4"
    )
    mixing = {"style_mixing__label": None}
    with pytest.raises(DataError, match="style_mixing.column_layers" + message):
        draw_style_mixing(tool_params(style_mixing__column_layers=[4, 6], **mixing), snapshot, tmp_path / "mix.png")
    with pytest.raises(DataError, match="images.truncation_layers" + message):
        draw_images(tool_params(images__truncation_layers=[4, 6], images__label=None), snapshot, tmp_path / "images")
    assert list(tmp_path.iterdir()) == [snapshot]
    draw_style_mixing(tool_params(style_mixing__column_layers=[3, 4], **mixing), snapshot, tmp_path / "mix.png")
    assert "style_mixing: layer 3 of 6 from" in capsys.readouterr().out
    model = open_model(snapshot, tool_params().run)
    assert check_layers(model, "k", None) == (0, 4)
    model.G.set_lod(2.0)
    with pytest.raises(DataError, match="so far only layers 0 to 1 of 6 run"):
        check_layers(model, "k", [0, 3])
    model.G.set_lod(0.0)
    assert check_layers(model, "k", None) == check_layers(model, "k", [0, 6]) == (0, 6)


def test_no_snapshot(tmp_path: Path) -> None:
    for path, message in ((tmp_path / "none.safetensors", "no such file"), (tmp_path, "is a folder. Name a snapshot")):
        with pytest.raises(WeightsError, match=message) as error:
            draw_images(tool_params(), path, tmp_path / "images")
        assert "\n" not in str(error.value)
        assert str(path) in str(error.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"format": 5, "nimg": 0, "tick_nimg": 0}, "is a training state, no snapshot of a generator. Take models/last"),
        ({"seeds": [1]}, "is a result of another tool, no snapshot"),
        ({"format_version": 99, "family": "stylegan2"}, "format_version=99, but this version reads 1"),
        ([], "format_version=None"),
        (None, "so it is not a snapshot of this library"),
    ],
)
def test_files_that_are_no_snapshots(tmp_path: Path, header: Any, message: str) -> None:
    path = tmp_path / "state.safetensors"
    metadata = None if header is None else {"ganops": json.dumps(header)}
    safetensors.torch.save_file({"x": torch.zeros(1)}, path, metadata)
    with pytest.raises(WeightsError, match=message) as error:
        open_model(path, tool_params().run)
    assert "\n" not in str(error.value)
    path.write_bytes(b"damaged")
    with pytest.raises(WeightsError, match="cannot read as safetensors"):
        open_model(path, tool_params().run)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [16, 64, 600])
def test_pictures_with_captions(channels: int, size: int) -> None:
    images = np.full((5, channels, size, size), 200, np.uint8)
    picture = caption_grid(images, 3, top=["a", "b", "c" * 500], left=["row", ""], below=list("vwxyz"))
    cell = {16: 64, 64: 64, 600: 200}[size]
    assert picture.shape[2:] == (() if channels == 1 else (channels,))
    assert picture.shape[0] == LINE + 2 * (cell + GAP + LINE) - GAP
    left = picture.shape[1] - 3 * (cell + GAP) + GAP
    assert 2 * GAP < left < 50
    assert (picture[LINE : LINE + cell, left : left + cell] == 200).all()
    assert (picture[:LINE, : left - GAP] == 255).all()  # a corner without words
    assert picture[:LINE, left : left + cell].min() < 100  # words
    assert np.array_equal(
        caption_grid(images[:1], 1).squeeze(), np.squeeze(picture[LINE : LINE + cell, left : left + cell])
    )


@pytest.mark.parametrize(
    ("size", "image", "place"),
    [
        ((28, 28), (84, 84), (84, 84)),
        ((8, 16), (64, 128), (64, 128)),
        ((4, 128), (8, 256), (64, 256)),
        ((200, 10), (200, 10), (200, 64)),
        ((1024, 64), (256, 16), (256, 64)),
    ],
)
def test_small_and_flat_images_have_room_for_captions(
    size: tuple[int, int], image: tuple[int, int], place: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[str] = []

    def fit(*arguments: Any) -> str:
        drawn.append(_fit(*arguments))
        return drawn[-1]

    monkeypatch.setattr("ganops.explore.captions._fit", fit)
    images = np.full((2, 1, *size), 100, np.uint8)
    top = ["target", "difference"]
    picture = caption_grid(images, 2, top=top)
    assert picture.shape == (LINE + place[0], 2 * place[1] + GAP)
    rest = [(outer - inner) // 2 for outer, inner in zip(place, image, strict=True)]
    rows, columns = ((picture[LINE:, : place[1]] == 100).any(axis=axis).nonzero()[0] for axis in (1, 0))
    assert (len(rows), rows[0], len(columns), columns[0]) == (image[0], rest[0], image[1], rest[1])
    assert drawn == top  # not cut
