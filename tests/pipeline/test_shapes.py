"""Whole pipelines of images that are not square 8-bit RGB: shapes, depths, channels and labels of several kinds.

One of them by DVC, as a user runs it; the others stage by stage in this process, where torch is imported already.
"""

import contextlib
import csv
import functools
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ganops.entry import load_stage
from ganops.images.shards import open_shards
from ganops.networks.law import LabelVectors
from ganops.networks.snapshot import load_law, load_snapshot
from stages import fid, prepare, sample, stats, train
from tests.pipeline.clone import Clone, copy_project, stages_run, wait_for
from tests.shared import made_once
from tests.standin import write_standin

COUNT = 64
STAGES = {
    "prepare": prepare.main, "stats": stats.main, "train": train.main, "sample": sample.main, "fid": fid.main,
}  # fmt: skip
SIGNALS = (signal.SIGINT, signal.SIGTERM)
Fill = Callable[[Path], None]


def scene(seed: int, height: int, width: int, top: int, channels: int) -> np.ndarray:
    """A bright disc on a slope, so that pictures can be looked at: [height, width, channels]."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    disc = np.hypot(rows - rng.uniform(0, height), columns - rng.uniform(0, width)) < min(height, width) / 4
    levels = [
        np.where(disc, top * (0.9 - 0.1 * c), top * rng.uniform(0.1, 0.4) * rows / height) for c in range(channels)
    ]
    return np.stack(levels, axis=2)


def rgb_files(source: Path) -> None:
    for place in range(COUNT):  # twice the size of what is trained on, and some of another ratio
        image = scene(place, 32, 24 + 8 * (place % 2), 255, 3).astype(np.uint8)
        Image.fromarray(image).save(source / f"{place:03d}.png")


def wide_grey_files(source: Path) -> None:
    for place in range(COUNT):
        Image.fromarray(scene(place, 16, 12, 65535, 1)[:, :, 0].astype(np.uint16)).save(source / f"{place:03d}.png")


def arrays(source: Path) -> None:
    for place in range(COUNT):
        np.save(source / f"{place:03d}.npy", scene(place, 20, 32, 255, 5).astype(np.uint8))


def attributes(source: Path) -> None:
    rng = np.random.default_rng(0)
    with (source / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["name", "bright", "wide", "share"])
        for place in range(COUNT):
            grey = rng.integers(0, 2, 2)
            image = scene(place, 16, 12, 255 if grey[0] else 120, 2).astype(np.uint8)
            Image.fromarray(image).save(source / f"{place:03d}.png")
            table.writerow([f"{place:03d}.png", *grey, place % 3 / 2])


KINDS: dict[str, tuple[Fill, dict[str, object]]] = {
    "rgb": (rgb_files, {"resolution": [16, 12], "channels": 3, "crop": "center", "labels": "none"}),
    "grey16": (wide_grey_files, {"resolution": [16, 12], "channels": 1, "bits": 16, "labels": "none"}),
    "arrays": (arrays, {"resolution": [10, 16], "channels": 5, "labels": "none", "crop": "center"}),
    "attributes": (attributes, {"resolution": [16, 12], "channels": 2, "labels": "csv"}),
}


def make_clone(folder: Path, kind: str) -> Clone:
    fill, values = KINDS[kind]
    clone = copy_project(folder / "repository")
    (clone.path / "data" / "mine").mkdir(parents=True)
    fill(clone.path / "data" / "mine")
    changes = {f"prepare__{key}": value for key, value in values.items()}
    clone.set(
        prepare__source="data/mine", stats__extractor_sha256=write_standin(clone.path / "data" / "standin.pt"),
        stats__keep_features=30, stats__batch_size=32, train__conditional=kind == "attributes", train__total_kimg=0.5,
        train__tick_kimg=0.25, train__snapshot_kimg=0, train__image_kimg=0, train__metric_kimg=0.5,
        train__metric_images=32, sample__count=40, fid__num_fake=40, run__state_kimg=0.1, **changes,
    )  # fmt: skip
    return clone


def run_here(clone: Clone) -> None:
    """All stages up to fid, in this process, which gets its folder, its signals and its threads back."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    with contextlib.chdir(clone.path):
        for name, main in STAGES.items():
            main(load_stage(name))
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Clone]:
    """A clone in which all stages have run; each kind once."""

    def make(kind: str, folder: Path) -> None:
        clone = make_clone(folder, kind)
        if kind == "attributes":
            clone.commit()
            assert stages_run(clone.dvc("repro")) == ["digits", *STAGES, "report"]
        else:
            run_here(clone)

    return lambda kind: Clone(made_once(tmp_path_factory, kind, functools.partial(make, kind)) / "repository")


def pixels(clone: Clone, name: str) -> np.ndarray:
    return np.asarray(Image.open(clone.path / "results" / name))


@pytest.mark.parametrize("kind", KINDS)
def test_all_stages_run(made: Callable[[str], Clone], kind: str) -> None:
    clone, values = made(kind), KINDS[kind][1]
    height, width = values["resolution"]  # type: ignore[misc]
    channels, bits = values["channels"], values.get("bits", 8)
    real = open_shards(clone.path / "data" / "shards", verify=True)
    fake = open_shards(clone.path / "data" / "samples", verify=True)
    for shards, count in ((real, COUNT), (fake, 40)):
        assert shards.index.image_shape == (channels, height, width)
        assert shards.index.bits == bits
        assert len(shards) == count
    assert fake.index.class_names == real.index.class_names
    G, metadata = load_snapshot(clone.path / "models" / "last.safetensors")
    assert (G.size, metadata["bits"]) == ((height, width), bits)
    result = json.loads((clone.path / "results" / "fid.json").read_text())
    assert np.isfinite(result["fd_standin"])
    assert result["protocol"]["resolution"] == f"{height}x{width}"
    assert result["protocol"]["channels_seen"] == "as they are"
    assert result["protocol"]["bits"] == bits
    factor = 48 // max(height, width)
    seen = {1: (), 2: (4,), 3: (3,), 5: (3,)}[channels]  # type: ignore[index]
    gap_and_images = (4 * (height * factor + 2) - 2, 4 * (width * factor + 2) - 2)
    if kind != "attributes":
        assert pixels(clone, "samples/grid.png").shape == (*gap_and_images, *seen)
    assert pixels(clone, "neighbours.png").shape[2:] == seen


def test_16_bits_are_used_in_full(made: Callable[[str], Clone]) -> None:
    clone = made("grey16")
    source = np.stack([np.asarray(Image.open(path)) for path in sorted((clone.path / "data" / "mine").iterdir())])
    real = open_shards(clone.path / "data" / "shards", verify=False)
    assert np.array_equal(real.gather(np.arange(COUNT))[:, 0], source)
    fake = open_shards(clone.path / "data" / "samples", verify=False).gather(np.arange(40))
    assert len(np.unique(fake % 257)) > 200  # not the levels of 8 bits


def test_label_vectors_reach_the_samples(made: Callable[[str], Clone]) -> None:
    clone = made("attributes")
    real = open_shards(clone.path / "data" / "shards", verify=False)
    fake = open_shards(clone.path / "data" / "samples", verify=False)
    assert real.index.class_names == ("bright", "wide", "share")
    assert real.index.multi_label
    assert fake.index.multi_label
    rows = {tuple(row) for row in real.labels.tolist()}
    assert {tuple(row) for row in fake.labels.tolist()} <= rows
    law = load_law(clone.path / "models" / "last.safetensors")
    assert isinstance(law, LabelVectors)
    assert {tuple(row) for row in law.vectors.tolist()} == rows
    assert len(rows) == 12
    factor = 48 // 16
    expected = (12 * (16 * factor + 2) - 2, 4 * (12 * factor + 2) - 2, 4)  # a row per vector
    assert pixels(clone, "samples/grid.png").shape == expected
    page = (clone.path / "results" / "report.html").read_text()
    assert "16 x 12 px (height x width), grey and alpha, 8 bits" in page
    assert "Images per attribute" in page


def test_killed_and_started_again_is_exact(made: Callable[[str], Clone], tmp_path: Path) -> None:
    """Not square, 2 channels, label vectors, SIGKILL in the middle: the models are the same, bit for bit."""
    clone = made("attributes").copied(tmp_path / "copy")
    before = clone.models()
    clone.remove_runs()
    (clone.path / "dvc.lock").unlink()  # or the finished state would come from DVC's cache
    process = clone.start(sys.executable, "-m", "stages.train")
    wait_for(lambda: len(clone.states()) >= 2, process)
    process.kill()
    process.communicate()
    output = clone.stage("train")
    assert "continues at kimg 0." in output
    assert clone.models() == before
