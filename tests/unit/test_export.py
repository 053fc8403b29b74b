"""Exported generators against the snapshots that they were made from; and that nothing wrong is kept."""

import json
import re
import runpy
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from ganops.errors import ExportError, WeightsError
from ganops.networks import export
from ganops.networks.export import export_snapshot
from ganops.networks.snapshot import load_snapshot, save_snapshot
from ganops.networks.stylegan2_generator import Generator
from tests.tolerances import assert_close
from tests.unit.growing import make_G
from tests.unit.test_networks import latents, seeded

ROOT = Path(__file__).parents[2]
OLD = b"what stood there before"
METADATA = {"kimg": 1.5, "class_names": ["a"]}
# (architecture, c_dim, img_channels, resolution, precision): RGB and grey, with and without classes.
CASES = [("skip", 0, 3, 8, "float32"), ("resnet", 3, 1, 8, "float16"), ("orig", 2, 4, 8, "float32")]


def write(path: Path, case: Any, z_dim: int = 8) -> Generator:
    """A snapshot with a mean of w and noise strengths that are not zero."""
    architecture, c_dim, img_channels, resolution, precision = case
    G = Generator(
        z_dim=z_dim,
        c_dim=c_dim,
        w_dim=12,
        resolution=resolution,
        base_grid=(4, 4),
        img_channels=img_channels,
        mapping_layers=2,
        mapping_lr_multiplier=0.01,
        channel_base=64,
        channel_max=8,
        architecture=architecture,
        precision=precision,
        low_precision_resolutions=int(precision != "float32"),
        conv_clamp=256.0,
        rng=seeded(),
    )
    G.w_avg.normal_(generator=seeded(1))
    with torch.no_grad():
        for name, parameter in G.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(0.3)
    save_snapshot(path, G, METADATA)
    return load_snapshot(path)[0]


@contextmanager
def torchscript_warns() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # newer versions of torch announce the end of torch.jit
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def load_torchscript(path: Path) -> tuple[Callable[..., Tensor], str]:
    files = {"ganops": ""}
    with torchscript_warns():
        module = torch.jit.load(path, _extra_files=files)
    return module, str(files["ganops"], "utf-8") if isinstance(files["ganops"], bytes) else files["ganops"]


def load_onnx(path: Path) -> tuple[Callable[..., Tensor], str]:
    session = onnxruntime.InferenceSession(path)
    names = [entry.name for entry in session.get_inputs()]
    assert names in (["z", "truncation_psi"], ["z", "c", "truncation_psi"])
    assert [entry.shape[0] for entry in session.get_inputs()[:-1]] == ["N"] * (len(names) - 1)
    assert session.get_outputs()[0].shape[0] == "N"
    assert [entry.version for entry in onnx.load(path).opset_import] == [export.OPSET]

    def run(*inputs: Tensor) -> Tensor:
        arrays = dict(zip(names, (tensor.numpy() for tensor in inputs), strict=True))
        return torch.from_numpy(session.run(["img"], arrays)[0])

    return run, session.get_modelmeta().custom_metadata_map["ganops"]


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt", ".onnx"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_the_same_images(case: Any, suffix: str, tmp_path: Path) -> None:
    G = write(tmp_path / "G.safetensors", case)
    if case[-1] != "float32":
        G = export.in_float32(G)
    target = tmp_path / f"G{suffix}"
    target.write_bytes(OLD)
    error = export_snapshot(tmp_path / "G.safetensors", target)
    assert error is not None
    assert 0 <= error < 1e-4
    assert {path.name for path in tmp_path.iterdir()} == {"G.safetensors", target.name}
    run, text = load_torchscript(target) if suffix == ".pt" else load_onnx(target)
    header = json.loads(text)
    assert header["metadata"] == METADATA
    assert header["arguments"]["resolution"] == G.resolution
    assert header["noise_mode"] == "const"
    for count in (1, 3, 6):
        for psi in (1.0, 0.5, 0.0):
            z, c = latents(G, count)
            with torchscript_warns():
                found = run(z, *([c] if G.c_dim else []), torch.tensor(psi))
            assert found.dtype == torch.float32
            assert_close(found, G(z, c, psi, None, "const", None), "exported_float32", f"{count} images, psi {psi}")
    content = target.read_bytes()
    assert str(ROOT).encode() not in content
    assert b"site-packages" not in content


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt", ".onnx"])
@pytest.mark.parametrize(
    ("family", "lod"), [("stylegan1", 0.0), ("stylegan1", 1.5), ("stylegan2-growing", 0.5), ("pggan", 0.0)]
)
def test_growing_families(family: str, lod: float, suffix: str, tmp_path: Path) -> None:
    save_snapshot(tmp_path / "G.safetensors", make_G(family, seeded(), lod=lod), METADATA)
    G = load_snapshot(tmp_path / "G.safetensors")[0]
    target = tmp_path / f"G{suffix}"
    error = export_snapshot(tmp_path / "G.safetensors", target)
    assert error is not None
    assert error < 1e-4
    run, _ = load_torchscript(target) if suffix == ".pt" else load_onnx(target)
    for z in (latents(G, 3)[0], torch.zeros(2, G.z_dim)):
        expected = G(z, z[:, :0], 0.7, None, "const", None)
        with torchscript_warns():
            found = run(z, torch.tensor(0.7))
        assert found.shape == (len(z), 3, 16, 16)
        factor = 16 // expected.shape[2]
        expected = expected.repeat_interleave(factor, dim=2).repeat_interleave(factor, dim=3)
        assert_close(found, expected, "exported_float32")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", [".pt", ".onnx"])
def test_epsilons_are_kept(suffix: str, tmp_path: Path) -> None:
    """z = 0 is 0 after normalisation only because of a small number that an optimiser may take for 0."""
    G = write(tmp_path / "G.safetensors", CASES[0])
    target = tmp_path / f"G{suffix}"
    export_snapshot(tmp_path / "G.safetensors", target)
    run, _ = load_torchscript(target) if suffix == ".pt" else load_onnx(target)
    z = torch.zeros(2, G.z_dim)
    with torchscript_warns():
        found = run(z, torch.tensor(1.0))
    assert bool(torch.isfinite(found).all())
    assert_close(found, G(z, z[:, :0], 1.0, None, "const", None), "exported_float32")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda img: img[:, :2], r"images \[1, 2, 8, 8\], expected \[1, 3, 8, 8\]\."),
        (lambda img: img.log().log(), r"for 1 images, \d+ of 192 pixels are not finite \(NaN or infinite\)\."),
    ],
)
def test_what_is_wrong_with_images_is_said(
    wrong: Callable[[Tensor], Tensor], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "G.safetensors", CASES[0])
    written = export._write_torchscript

    def spoiled(*arguments: Any) -> Callable[[list[Tensor]], Tensor]:
        images = written(*arguments)
        return lambda inputs: wrong(images(inputs))

    monkeypatch.setattr(export, "_write_torchscript", spoiled)
    with pytest.raises(ExportError, match=rf"G\.pt: {message}" if "finite" in message else rf"G\.pt: gives {message}"):
        export_snapshot(tmp_path / "G.safetensors", tmp_path / "G.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["G.safetensors"]


@pytest.mark.slow
def test_the_documented_programs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    G = write(Path("G.safetensors"), CASES[0], z_dim=512)
    programs = re.findall(
        r"^```python\n(.*?)^```$", (ROOT / "docs" / "snapshots.md").read_text(), re.DOTALL | re.MULTILINE
    )
    assert len(programs) == 2
    for program, suffix in zip(programs, (".pt", ".onnx"), strict=True):
        export_snapshot(Path("G.safetensors"), Path(f"G{suffix}"))
        names: dict[str, Any] = {}
        with torchscript_warns():
            exec(program, names)
        assert tuple(names["img"].shape) == (4, 3, 8, 8)
        if suffix == ".onnx":
            z = torch.from_numpy(names["z"])
            assert_close(names["img"], G(z, z[:, :0], 0.7, None, "const", None), "exported_float32")


@pytest.mark.slow
def test_the_command_and_a_process_without_this_library(tmp_path: Path) -> None:
    G = write(tmp_path / "G.safetensors", CASES[1])
    source, target = tmp_path / "G.safetensors", tmp_path / "a.pt"
    command = [sys.executable, "-m", "stages.export", str(source), str(target)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "run and compared with" in ended.stdout
    script = """
import sys, torch
G = torch.jit.load("a.pt")
torch.save(G(torch.ones(2, 8), torch.eye(3)[:2], torch.tensor(0.7)), "img.pt")
assert not [name for name in sys.modules if name.startswith("ganops")]
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=tmp_path, check=True)
    expected = export.in_float32(G)(torch.ones(2, 8), torch.eye(3)[:2], 0.7, None, "const", None)
    assert_close(torch.load(tmp_path / "img.pt"), expected, "exported_float32")


def test_other_images_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "G.safetensors", CASES[2])
    target = tmp_path / "G.pt"
    target.write_bytes(OLD)
    plain = export.upfirdn2d_plain
    monkeypatch.setattr(export, "upfirdn2d_plain", lambda *arguments: plain(*arguments[:-1], 1.01 * arguments[-1]))
    with pytest.raises(ExportError, match=r"G\.pt: gives other images: off by 0\.0.* of the largest pixel"):
        export_snapshot(tmp_path / "G.safetensors", target)
    assert target.read_bytes() == OLD
    assert sorted(path.name for path in tmp_path.iterdir()) == ["G.pt", "G.safetensors"]


def test_a_batch_size_that_became_a_constant_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "G.safetensors", CASES[0])
    monkeypatch.setattr(export, "_upfirdn2d", export.upfirdn2d_plain)  # takes few channels of N pictures for N groups
    with pytest.raises(ExportError, match=r"G\.pt: cannot be run for 1 images"):
        export_snapshot(tmp_path / "G.safetensors", tmp_path / "G.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["G.safetensors"]


def test_what_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "G.safetensors", tmp_path / "G.onnx"
    write(source, CASES[2])
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert export_snapshot(source, target) is None
    onnx.checker.check_model(onnx.load(target))
    before = target.read_bytes()
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ExportError, match=r"writing \.onnx needs the package onnx: pip install .*\[export\]"):
        export_snapshot(source, target)
    assert target.read_bytes() == before


def test_a_copy(tmp_path: Path) -> None:
    write(tmp_path / "G.safetensors", CASES[0])
    assert export_snapshot(tmp_path / "G.safetensors", tmp_path / "copy.safetensors") == 0.0
    assert (tmp_path / "copy.safetensors").read_bytes() == (tmp_path / "G.safetensors").read_bytes()


def test_a_bad_copy_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = tmp_path / "G.safetensors", tmp_path / "copy.safetensors"
    write(source, CASES[0])
    target.write_bytes(OLD)

    monkeypatch.setattr(shutil, "copyfile", lambda old, new: new.write_bytes(old.read_bytes()[:-1]))
    with pytest.raises(ExportError, match=r"copy\.safetensors: differs from .*G\.safetensors after copying"):
        export_snapshot(source, target)
    assert target.read_bytes() == OLD
    assert sorted(path.name for path in tmp_path.iterdir()) == ["G.safetensors", "copy.safetensors"]


def test_the_command_says_what_a_copy_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "G.safetensors", CASES[0])
    monkeypatch.setattr(sys, "argv", ["export", str(tmp_path / "G.safetensors"), str(tmp_path / "copy.safetensors")])
    runpy.run_module("stages.export", run_name="__main__")
    said = capsys.readouterr().out
    assert said.endswith(f", copied from {tmp_path / 'G.safetensors'} and read again\n")
    assert "compared" not in said


def test_wrong_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "G.safetensors", CASES[0])
    with pytest.raises(
        ExportError, match=r"G\.pkl: the suffix says the format\. Expected one of \.safetensors, \.pt, \.onnx"
    ):
        export_snapshot(tmp_path / "G.safetensors", tmp_path / "G.pkl")
    with pytest.raises(WeightsError, match=r"none\.safetensors: no such file"):
        export_snapshot(tmp_path / "none.safetensors", tmp_path / "G.pt")
    for target in (tmp_path / "G.safetensors", tmp_path, tmp_path / "none" / "G.pt"):
        monkeypatch.setattr(sys, "argv", ["export", str(tmp_path / "G.safetensors"), str(target)])
        with pytest.raises(SystemExit) as caught:
            runpy.run_module("stages.export", run_name="__main__")
        assert caught.value.code == f"export: {target}: no place for a file. Name another one, in a folder that exists."
    assert [path.name for path in tmp_path.iterdir()] == ["G.safetensors"]
