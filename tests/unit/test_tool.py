"""How tools end, what a signal leaves behind, and where they do not write."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ganops.errors import DataError, ExportError, ParamsError
from ganops.explore.tool import refuse_output, run_command
from tests.nvidia import nested_kwargs, write_generator
from tests.unit.test_networks import make_generator, seeded
from tests.unit.tiny_model import write_snapshot

ROOT = Path(__file__).parents[2]
OLD = b"what stood there before"
TIMEOUT_SEC = 120
PIPELINE = """
stages:
  train:
    cmd: train
    deps: [data/raw]
    outs: [models/last.safetensors, models/best, {results/grids: {cache: false}}]
    metrics: [results/metrics.json]
    plots: [{results/history.csv: {x: kimg}}]
  empty:
    cmd: nothing
"""
# Writes as the tool does, and then waits in the middle of it: the file is whole, but not in its place.
HELD = """
import runpy, sys, time
import ganops.files
ganops.files._fsync = lambda path: time.sleep(600)
del sys.argv[0]
runpy.run_module("stages." + sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tool", "target"),
    [("export", "G.pt"), ("export", "copy.safetensors"), ("import_snapshot", "G.safetensors")],
)
def test_a_signal_leaves_no_temporary(tool: str, target: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    if tool == "export":
        write_snapshot(source)
    else:
        G = make_generator(seeded())
        write_generator(source, G, nested_kwargs(G))
    path = tmp_path / target
    path.write_bytes(OLD)
    process = subprocess.Popen(
        [sys.executable, "-c", HELD, tool, str(source), str(path)], cwd=ROOT, text=True, stderr=subprocess.PIPE
    )
    try:
        until = time.monotonic() + TIMEOUT_SEC
        while not list(tmp_path.glob(".*.tmp")):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=TIMEOUT_SEC)[1]
    finally:
        process.kill()
    assert (process.returncode, said) == (143, f"{tool}: stopped by SIGTERM. Nothing was written.\n")
    assert path.read_bytes() == OLD
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(["source", target])


def end(
    main: Callable[[list[Path]], None], monkeypatch: pytest.MonkeyPatch, usage: str = "A [B]", count: int = 1
) -> object:
    monkeypatch.setattr(sys, "argv", ["tool", *"abcd"[:count]])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught:
        run_command("tool", usage, main, ", or wait")
    assert signal.getsignal(signal.SIGTERM) is before
    return caught.value.code


def raising(error: BaseException) -> Callable[[list[Path]], None]:
    def main(paths: list[Path]) -> None:
        raise error

    return main


def test_ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert end(raising(ExportError("bad")), monkeypatch) == "tool: bad"
    assert end(raising(OSError()), monkeypatch) == "tool: "
    for memory in (MemoryError(), torch.OutOfMemoryError()):
        assert end(raising(memory), monkeypatch) == "tool: out of memory. Close other programs, or wait."
    assert end(raising(KeyboardInterrupt()), monkeypatch) == 130
    assert capsys.readouterr().err == "tool: interrupted. Nothing was written.\n"
    with pytest.raises(ZeroDivisionError):  # a mistake of ours keeps its traceback
        end(raising(ZeroDivisionError()), monkeypatch)
    monkeypatch.setattr(sys, "argv", ["tool", "a", "b"])
    found: list[Path] = []
    run_command("tool", "A [B]", found.extend)
    assert found == [Path("a"), Path("b")]


@pytest.mark.parametrize(("usage", "count"), [("A [B]", 0), ("A [B]", 3), ("A B", 1), ("A B", 3)])
def test_usage(usage: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    said = end(raising(AssertionError()), monkeypatch, usage, count)
    assert said == f"usage: python -m stages.tool {usage}"


def test_a_signal_that_a_library_takes_for_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def main(paths: list[Path]) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Exception:
            pytest.fail("an Exception")
        except BaseException as error:
            raise ExportError("cannot be traced") from error

    assert end(main, monkeypatch) == 143
    assert capsys.readouterr().err == "tool: stopped by SIGTERM. Nothing was written.\n"


def test_outputs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path / "models")
    outputs = ["last.safetensors", "best/G.pt", "../models/best", "../results/grids/a/b.pt", "../results/metrics.json"]
    for name in [*outputs, "../results/history.csv", str(tmp_path / "models" / "last.safetensors")]:
        with pytest.raises(
            DataError,
            match=rf"^{re.escape(name)}: is an output of the stage train of .*dvc\.yaml, .* Name another file\.",
        ):
            refuse_output(Path(name))
    for name in (
        "last2.safetensors",
        "best.safetensors",
        "../last.safetensors",
        "../data/raw/x",
        "last.safetensors.pt",
    ):
        refuse_output(Path(name))
    (tmp_path / "link").symlink_to("models")
    with pytest.raises(DataError, match="output"):
        refuse_output(tmp_path / "link" / "last.safetensors")
    (tmp_path / "models" / "last.safetensors").symlink_to("cached")  # as DVC may keep it
    with pytest.raises(DataError, match="output"):
        refuse_output(Path("last.safetensors"))


@pytest.mark.parametrize("text", ["", "plots: []", "stages:"])
def test_a_pipeline_without_outputs(text: str, tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text(text)
    refuse_output(tmp_path / "G.pt")


@pytest.mark.parametrize("text", ["stages: [", "stages: 3", "- a", "stages: {a: {outs: 1}}"])
def test_a_damaged_pipeline(text: str, tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text(text)
    with pytest.raises(ParamsError, match=r"dvc\.yaml: cannot tell which files are outputs"):
        refuse_output(tmp_path / "G.pt")


@pytest.mark.parametrize("tool", ["export", "import_snapshot", "evaluate"])
def test_the_tools_refuse_outputs(tool: str, tmp_path: Path) -> None:
    """In a copy of this pipeline: before anything is read."""
    for name in ("dvc.yaml", "params.yaml"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    target = {"evaluate": "results/fid.json"}.get(tool, "models/last.safetensors")
    (tmp_path / target).parent.mkdir()
    (tmp_path / target).write_bytes(OLD)
    paths = ["none", "none", target] if tool == "evaluate" else ["none", target]
    ended = subprocess.run(
        [sys.executable, "-m", f"stages.{tool}", *paths], cwd=tmp_path, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )  # fmt: skip
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1), ended.stderr
    assert ended.stderr.startswith(f"{tool}: {target}: is an output of the stage ")
    assert (tmp_path / target).read_bytes() == OLD
