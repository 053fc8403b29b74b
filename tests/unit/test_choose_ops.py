"""`run.ops`: which form the ops take on CUDA, and what is said when there are no kernels."""

from collections.abc import Iterator

import pytest
import torch

from ganops.errors import OpsError
from ganops.ops import _build, kernels
from ganops.ops.kernels import choose_ops, use_kernels

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


class OnCuda:
    """Stands for a tensor on a device that this machine lacks."""

    is_cuda = True


@pytest.fixture(autouse=True)
def unchosen() -> Iterator[None]:
    yield
    choose_ops("auto", CPU)


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calls of the build, which succeeds."""
    calls: list[str] = []
    monkeypatch.setattr(_build, "load", lambda: calls.append("load"))
    return calls


@pytest.fixture
def no_toolkit(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Calls of the build, which fails."""
    calls: list[str] = []

    def load() -> None:
        calls.append("load")
        raise OpsError("no CUDA compiler for the kernels. Install one.")

    monkeypatch.setattr(_build, "load", load)
    return calls


def test_a_cpu_needs_no_kernels(no_toolkit: list[str]) -> None:
    for mode in ("auto", "cuda", "reference"):
        choose_ops(mode, CPU)
        assert not use_kernels(torch.zeros(3))
    assert not no_toolkit


def test_kernels_are_loaded_at_the_first_use_and_once(builds: list[str]) -> None:
    assert kernels.use_kernels(OnCuda())  # type: ignore[arg-type]
    assert kernels.use_kernels(OnCuda())  # type: ignore[arg-type]
    assert builds == ["load"]


def test_auto_goes_on_without_them_and_says_so_once(no_toolkit: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    choose_ops("auto", CUDA)
    assert not use_kernels(OnCuda())  # type: ignore[arg-type]
    assert no_toolkit == ["load"]
    said = capsys.readouterr().out
    assert said.count("WARNING") == 1
    assert "no CUDA compiler for the kernels. Install one." in said
    assert "slower" in said


def test_cuda_stops_without_them(no_toolkit: list[str]) -> None:
    with pytest.raises(OpsError, match="no CUDA compiler"):
        choose_ops("cuda", CUDA)


def test_reference_does_not_build(builds: list[str]) -> None:
    choose_ops("reference", CUDA)
    assert not use_kernels(OnCuda())  # type: ignore[arg-type]
    assert not builds
