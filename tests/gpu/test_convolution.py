"""Convolutions that are differentiated twice, on a CUDA device, against torch's own in float64 on the CPU."""

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.library import opcheck

from ganops.distributed import configure_numerics
from ganops.networks.layers import Architecture
from ganops.ops import convolution
from tests.tolerances import assert_close
from tests.unit import test_convolution as on_cpu
from tests.unit.test_networks import ARCHITECTURES
from tests.unit.test_registration import CHEAP, LAYOUTS, normal

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TWINS = {torch.float64: "twin_float64", torch.float32: "twin_float32"}
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True, scope="module")
def numerics() -> Iterator[None]:
    """Full float32 and deterministic algorithms, set before the first call of cuBLAS."""
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    configure_numerics(tf32=False, deterministic=True)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32


def placed(tensors: list[Tensor], device: torch.device, dtype: torch.dtype) -> list[Tensor]:
    return [t.detach().to(device, dtype).requires_grad_() for t in tensors]


def derivatives(function: Callable[..., Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """The value, the gradients of a weighted square of it, and those of their squared norms."""
    y = function(*leaves)
    first = torch.autograd.grad((y.square() * normal(*y.shape, seed=9).to(y)).mean(), leaves, create_graph=True)
    second = torch.autograd.grad(torch.stack([gradient.square().sum() for gradient in first]).sum(), leaves)
    return [t.detach() for t in (y, *first, *second)]


@pytest.mark.parametrize("dtype", TWINS, ids=str)
@pytest.mark.parametrize("geometry", on_cpu.GEOMETRIES)
def test_values_gradients_and_formats_are_those_of_torch(geometry: str, dtype: torch.dtype) -> None:
    for size, layout in itertools.product(on_cpu.SIZES, LAYOUTS):
        given = on_cpu.inputs(geometry, size, (layout, LAYOUTS[0]))
        expected = derivatives(on_cpu.torchs(geometry), placed(given, CPU, torch.float64))
        with on_cpu.Recorder() as recorder:
            actual = derivatives(on_cpu.ours(geometry), placed(given, CUDA, dtype))
        assert {name.split("::")[0] for name in recorder.names} == {"ganops"}
        for index, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
            assert ours.is_cuda
            assert ours.dtype == dtype
            assert_close(ours, theirs, TWINS[dtype], f"{geometry} of {size}, {layout}, output {index}")

        leaves = placed(given, CUDA, dtype)
        formats = []
        for function in (on_cpu.ours, on_cpu.torchs):
            y = function(geometry)(*leaves)
            results = [y, *torch.autograd.grad(y, leaves, torch.ones_like(y))]
            formats.append([[t.is_contiguous(memory_format=format) for format in LAYOUTS] for t in results])
        assert formats[0] == formats[1], f"{geometry} of {size}, {layout}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("geometry", on_cpu.GEOMETRIES)
def test_low_precision(geometry: str, dtype: torch.dtype) -> None:
    for layout in LAYOUTS:
        given = on_cpu.inputs(geometry, layouts=(layout, LAYOUTS[0]), dtype=dtype)
        expected = derivatives(on_cpu.torchs(geometry), placed(given, CPU, torch.float64))
        actual = derivatives(on_cpu.ours(geometry), placed(given, CUDA, dtype))
        for index, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
            assert ours.dtype == dtype
            tolerance = "gradients_bfloat16" if index else "twin_bfloat16"
            assert_close(ours, theirs, tolerance, f"{geometry}, {layout}, output {index}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("geometry", on_cpu.GEOMETRIES)
def test_ops_pass_the_checks_of_torch(geometry: str, dtype: torch.dtype) -> None:
    for layout in LAYOUTS:
        x, weight = placed(on_cpu.inputs(geometry, layouts=(layout, LAYOUTS[0])), CUDA, dtype)
        opcheck(torch.ops.ganops.conv2d.default, (x, weight, *on_cpu.numbers(geometry)), test_utils=CHEAP)
        arguments = on_cpu.weight_gradient_arguments(geometry, x, weight)
        opcheck(torch.ops.ganops.conv2d_weight_gradient.default, arguments, test_utils=CHEAP)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("regulariser", on_cpu.REGULARISERS)
def test_regularisers_have_the_same_gradients_with_and_without(
    regulariser: Callable[..., tuple[nn.Module, Tensor]], architecture: Architecture, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = on_cpu.training_gradients(*regulariser(architecture, CPU))
    actual, recorder = on_cpu.training_gradients(*regulariser(architecture, CUDA))
    assert max(recorder.kernels) == 3
    assert {name.split("::")[0] for name in recorder.names} == {"ganops"}
    on_cpu.assert_same_gradients(actual, expected, "golden_float64")
    monkeypatch.setattr(convolution, "DEVICES", ())
    plain, recorder = on_cpu.training_gradients(*regulariser(architecture, CUDA))
    assert {name.split("::")[0] for name in recorder.names} == {"aten"}
    on_cpu.assert_same_gradients(plain, expected, "golden_float64")
