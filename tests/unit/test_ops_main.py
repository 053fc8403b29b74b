"""`python -m ganops.ops` on a machine without a GPU: what it says, and how it ends."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ganops.errors import OpsError
from ganops.ops import __main__ as report
from ganops.ops import _build, kernels
from ganops.ops._build import Toolkit
from tests.unit.tiny import ROOT

LINES = {"bias_act": 4, "upfirdn2d": 4, "conv2d_resample": 2, "modulated_conv2d": 2}
"""How many dtypes each op is compared in."""


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor a toolkit; what the report sets for the whole process is set back."""

    def find_nothing() -> Toolkit:
        raise OpsError("ops: no CUDA compiler for the kernels: none at all.")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(_build, "find_toolkit", find_nothing)
    monkeypatch.setattr(kernels, "_mode", ["auto"])
    monkeypatch.setattr(kernels, "_loaded", [])
    monkeypatch.setattr(report, "configure_numerics", lambda tf32, deterministic: None)


def end_of(capsys: pytest.CaptureFixture[str]) -> tuple[object, str, str]:
    """Exit code, stdout, stderr of the report in this process."""
    with pytest.raises(SystemExit) as end:
        report.main()
    captured = capsys.readouterr()
    return end.value.code, captured.out, captured.err


def test_without_gpu_and_toolkit_all_is_compared_and_it_ends_well(tmp_path: Path) -> None:
    """In a process of its own, as users start it."""
    environment = {"PATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "HOME": str(tmp_path)}
    code = "import importlib.util, runpy\nfind = importlib.util.find_spec\n"
    code += "importlib.util.find_spec = lambda name, *rest: None if name == 'nvidia' else find(name, *rest)\n"
    code += "runpy.run_module('ganops.ops', run_name='__main__')"
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    for line in (
        "device: CPU; no CUDA device is found",
        "toolkit: none, so no kernels are built. ops: ",
        "bias_act, upfirdn2d run as plain torch operations",
        "not tried, for it needs a GPU: running the kernels, and measuring what the ops cost",
        "all right",
    ):
        assert line in done.stdout
    assert {op: done.stdout.count(f"  ok     {op} ") for op in LINES} == LINES
    assert "FAILED" not in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_op_is_reported(
    no_gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    right = report.upfirdn2d

    def wrong(x: Tensor, *settings: object) -> Tensor:
        return right(x, *settings) * (1 + 1e-4)  # type: ignore[arg-type]

    monkeypatch.setattr(report, "upfirdn2d", wrong)
    code, out, _ = end_of(capsys)
    assert code == 1
    assert "FAILED upfirdn2d        float32 " in out
    assert "ok     bias_act         float32 " in out
    assert "FAILED, see above" in out


def test_an_op_that_does_not_run_is_reported(
    no_gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*args: object, **settings: object) -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access\nmore of it")

    monkeypatch.setattr(report, "bias_act", broken)
    code, out, _ = end_of(capsys)
    assert code == 1
    assert "FAILED torch.float16: RuntimeError: CUDA error: an illegal memory access\n" in out


def test_nan_is_not_equal(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(op: report.Op, x: Tensor) -> Tensor:
        return op(x)

    def pair(x: Tensor) -> Tensor:
        return x * float("nan")

    error = report.difference(run, (pair, torch.sin), [torch.ones(3)], torch.float32, torch.device("cpu"))
    assert error == float("inf")


def test_a_failed_build_is_one_line(
    no_gpu: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def fail(say: object) -> Path:
        raise OpsError("ops: the CUDA kernels do not compile: x.cu(1): error: no.")

    monkeypatch.setattr(_build, "find_toolkit", lambda: Toolkit(tmp_path, tmp_path / "bin/nvcc", "13.1.23", "PATH"))
    monkeypatch.setattr(_build, "build", fail)
    monkeypatch.setenv("XDG_CACHE_HOME", os.fspath(tmp_path))
    code, out, err = end_of(capsys)
    assert code == 1
    assert err == "ops: the CUDA kernels do not compile: x.cu(1): error: no.\n"
    assert "toolkit: nvcc 13.1.23" in out
