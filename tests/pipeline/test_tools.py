"""The tools around a generator as a user runs them: the commands of docs/tools.md in a folder of their own."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.pipeline.clone import ROOT, TIMEOUT_SEC, Clone, environment, wait_for
from tests.unit.tiny_model import write_snapshot

pytestmark = pytest.mark.slow
BAR = re.compile(r"\w+: \d+/\d+ \w+, .* left\n")  # a line of progress, on a slow machine


@pytest.fixture
def place(tmp_path: Path) -> Clone:
    """Tiny params.yaml, a snapshot with random weights, an image."""
    shutil.copy(ROOT / "tests" / "pipeline" / "params.yaml", tmp_path / "params.yaml")
    write_snapshot(tmp_path / "last.safetensors")
    y, x = np.mgrid[:24, :32] / 32
    Image.fromarray((255 * np.stack([x, y, x * y], axis=2)).astype(np.uint8)).save(tmp_path / "image.png")
    return Clone(tmp_path)


def start(place: Clone, *command: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", f"stages.{command[0]}", *command[1:]], cwd=place.path,
        env={**environment(), "PYTHONPATH": str(ROOT)}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def finish(process: subprocess.Popen[str], code: int = 0) -> str:
    """What it says: stdout if it ends well, else stderr."""
    output, errors = process.communicate(timeout=TIMEOUT_SEC)
    assert process.returncode == code, f"{output}\n{errors}"
    errors = BAR.sub("", errors)
    if code:
        assert errors.count("\n") == 1, errors
        return errors
    assert errors == ""
    return output


def run(place: Clone, *command: str, code: int = 0) -> str:
    return finish(start(place, *command), code)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_pictures(place: Clone) -> None:
    said = run(place, "images", "last.safetensors", "images")
    assert "images: 2 images in images/psi1.0; contact sheet images/psi1.0.png\n" in said
    assert len(files(place.path / "images")) == 1 + 2 * 3
    run(place, "style_mixing", "last.safetensors", "out/mix.png")
    with Image.open(place.path / "out" / "mix.png") as file:
        assert file.size[0] > 4 * 64
    run(place, "directions", "last.safetensors", "directions")
    assert len(files(place.path / "directions")) == 4
    before = files(place.path)
    assert "2 were there" in run(place, "images", "last.safetensors", "images")
    run(place, "style_mixing", "last.safetensors", "out/mix.png")
    assert files(place.path) == before


def test_films(place: Clone) -> None:
    for name in ("a.png", "a.gif", "a.mp4", "b.mp4"):
        assert "8 frames" in run(place, "interpolate", "last.safetensors", name)
    assert (place.path / "a.mp4").read_bytes() == (place.path / "b.mp4").read_bytes()
    with Image.open(place.path / "a.gif") as file:
        assert file.n_frames == 8
    place.set(interpolate__kind="truncation")
    run(place, "interpolate", "last.safetensors", "b.mp4")
    assert (place.path / "a.mp4").read_bytes() != (place.path / "b.mp4").read_bytes()


def test_a_projection_goes_on(place: Clone) -> None:
    place.set(project__steps=24)
    command = ("project", "last.safetensors", "image.png")
    run(place, *command, "whole")
    for signum in (signal.SIGINT, signal.SIGKILL):
        folder = place.path / signum.name
        process = start(place, *command, folder.name)
        wait_for((folder / "state.safetensors").exists, process)
        os.kill(process.pid, signum)
        if signum == signal.SIGKILL:
            process.communicate(timeout=TIMEOUT_SEC)
        else:
            expected = "project: interrupted. What is written is whole; run the same command again.\n"
            assert finish(process, 130) == expected
        assert re.search(r"goes on after step \d*[02468]\n", run(place, *command, folder.name))
        assert files(folder) == files(place.path / "whole")  # and no temporary files


def test_a_stopped_film(place: Clone) -> None:
    place.set(interpolate__frames=100000)
    process = start(place, "interpolate", "last.safetensors", "a.mp4")
    wait_for(lambda: bool(list(place.path.glob(".a.mp4.*.tmp"))), process)
    process.send_signal(signal.SIGTERM)
    assert finish(process, 143) == "interpolate: stopped by SIGTERM. Nothing was written.\n"
    assert {path.name for path in place.path.iterdir()} == {"params.yaml", "last.safetensors", "image.png"}


def test_mistakes_end_in_one_line(place: Clone) -> None:
    (place.path / "text.png").write_text("text")
    before = files(place.path)
    commands = [
        (("images", "last.safetensors"), "usage: python -m stages.images SNAPSHOT FOLDER"),
        (("images", "none.safetensors", "a"), "images: none.safetensors: no such file"),
        (("interpolate", "last.safetensors", "a.avi"), "interpolate: a.avi: the name of the result must end in"),
        (("project", "last.safetensors", "text.png", "a"), "project: text.png: cannot decode"),
    ]
    for command, message in commands:
        assert run(place, *command, code=1).startswith(message)
    (place.path / "folder").mkdir()
    said = run(place, "images", "folder", "a", code=1)
    assert said == "images: folder is a folder. Name a snapshot in it, e.g. models/last.safetensors.\n"
    (place.path / "folder").rmdir()
    place.set(images__seeds="0-")
    assert run(place, "images", "last.safetensors", "a", code=1).startswith("images: params.yaml: images.seeds='0-'")
    (place.path / "params.yaml").write_bytes(before["params.yaml"])
    assert files(place.path) == before
