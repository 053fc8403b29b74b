"""Augmentations on a CUDA device: the numbers of the CPU, first and second gradients too; the same bits again and again."""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from ganops.distributed import configure_numerics
from ganops.ops.convolution import differentiated_twice
from ganops.ops.grid_sample import grid_sample, grid_sample_adjoint, ordered_adjoint
from ganops.training.augment import Augmentation, AugmentSet, augment, draw_augmentation
from ganops.training.diffaugment import diffaugment, draw_diffaugment
from tests.tolerances import assert_close
from tests.unit.test_augment import SETS, silent
from tests.unit.test_augment_geometry import picture
from tests.unit.test_diffaugment import ALL
from tests.unit.test_grid_sample import random_grid

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TOLERANCE = {torch.float64: "resampled_float64", torch.float32: "augment_float32"}
CHANNELS = [1, 3, 4, 5]
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.fixture(autouse=True, params=[True, False], ids=["deterministic", "any order"])
def numerics(request: pytest.FixtureRequest) -> Iterator[None]:
    """Full float32, with and without deterministic algorithms."""
    tf32 = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    configure_numerics(tf32=False, deterministic=True)  # first, for what cuBLAS reads once
    configure_numerics(tf32=False, deterministic=request.param)
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = tf32


def derivatives(function: Callable[[Tensor], Tensor], x: Tensor) -> list[Tensor]:
    """The value, the gradient of a weighted fourth power of it, and that of the gradient's squared norm, as for R1."""
    x = x.detach().requires_grad_()
    with differentiated_twice():
        y = function(x)
    weight = picture(*y.shape, seed=9).to(y)
    (first,) = torch.autograd.grad((y.square().square() * weight).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    return [y.detach(), first.detach(), second]


def assert_same_on_both(function: Callable[[Tensor], Tensor], x: Tensor, what: str) -> None:
    expected = derivatives(function, x.double())
    for dtype, tolerance in TOLERANCE.items():
        actual = derivatives(function, x.to(CUDA, dtype))
        for order, (ours, theirs) in enumerate(zip(actual, expected, strict=True)):
            assert ours.is_cuda
            assert ours.dtype == dtype
            assert_close(ours, theirs, tolerance, f"{what}, {dtype}, order {order}")


def rng(device: torch.device) -> torch.Generator:
    return torch.Generator(device).manual_seed(1)


def drawn(augment_set: AugmentSet, p: float, size: tuple[int, int], channels: int) -> Augmentation:
    return draw_augmentation(augment_set, p, 6, *size, channels, torch.Generator().manual_seed(2))


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("augment_set", SETS)
def test_augmentations_are_those_of_the_cpu(augment_set: AugmentSet, channels: int) -> None:
    """But for the noise, which another generator draws."""
    for size in ((16, 16), (9, 14)):
        for p in (0.3, 1.0):
            augmentation = silent(drawn(augment_set, p, size, channels))
            assert_same_on_both(
                lambda x, a=augmentation: augment(x, a, rng(x.device)), picture(6, channels, *size), f"{size}, p {p}"
            )


@pytest.mark.parametrize("channels", CHANNELS)
def test_diffaugment_is_that_of_the_cpu(channels: int) -> None:
    for size in ((16, 16), (9, 14)):
        for p in (0.5, 1.0):
            plan = draw_diffaugment(ALL, p, 6, *size, torch.Generator().manual_seed(2))
            assert_same_on_both(lambda x, p=plan: diffaugment(x, p), picture(6, channels, *size), f"{size}, p {p}")


def test_noise_is_a_function_of_its_generator() -> None:
    augmentation = drawn("noise", 1.0, (16, 16), 3)
    img = picture(6, 3, 16, 16).float().to(CUDA)
    noise = torch.randn(img.shape, generator=rng(CUDA), device=CUDA)
    expected = img + noise * augmentation.noise_std.float().to(CUDA)[:, None, None, None]
    assert torch.equal(augment(img, augmentation, rng(CUDA)), expected)


def test_adjoints_of_sampling() -> None:
    """In any order and in that of the indices."""
    grid, y = random_grid(3, 40, 31), picture(3, 2, 40, 31)
    expected = ordered_adjoint(y, grid, 17, 23)
    for adjoint in (grid_sample_adjoint, ordered_adjoint):
        assert_close(adjoint(y.to(CUDA), grid.to(CUDA), 17, 23), expected, "twin_float64")
        single = adjoint(y.float().to(CUDA), grid.float().to(CUDA), 17, 23)
        assert_close(single, expected, "augment_float32")
    x = picture(3, 2, 17, 23)
    assert_close(grid_sample(x.to(CUDA), grid.to(CUDA)), grid_sample(x, grid), "twin_float64")


@pytest.mark.parametrize("numerics", [True], indirect=True, ids=["deterministic"])
@pytest.mark.parametrize("what", ["bgcfnc", "blit", "diffaugment"])
def test_bits_are_the_same_again_and_again(what: str) -> None:
    """Under deterministic algorithms: values, first and second gradients, of images that are sampled at many places."""
    assert torch.are_deterministic_algorithms_enabled()
    img = picture(6, 3, 64, 64).float().to(CUDA)
    augmentation = drawn("blit" if what == "blit" else "bgcfnc", 0.8, (64, 64), 3)
    plan = draw_diffaugment(ALL, 1.0, 6, 64, 64, torch.Generator().manual_seed(2))

    def function(x: Tensor) -> Tensor:
        return diffaugment(x, plan) if what == "diffaugment" else augment(x, augmentation, rng(CUDA))

    first = derivatives(function, img)
    for _ in range(5):
        for before, now in zip(first, derivatives(function, img), strict=True):
            assert torch.equal(before, now)


def test_the_host_never_waits() -> None:
    img = picture(6, 3, 32, 32).float().to(CUDA)
    augmentation = drawn("bgcfnc", 0.7, (32, 32), 3)
    plan = draw_diffaugment(ALL, 0.7, 6, 32, 32, torch.Generator().manual_seed(2))
    generator = rng(CUDA)
    augment(img, augmentation, generator)  # kernels are built and loaded
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        y = augment(diffaugment(img.requires_grad_(), plan), augmentation, generator)
        torch.autograd.grad(y.square().sum(), img)
    finally:
        torch.cuda.set_sync_debug_mode("default")
