"""On a CUDA device: the same numbers as on the CPU, up to rounding, and the same bits again and again."""

import copy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ganops.distributed import configure_numerics, make_generator
from ganops.errors import RunError
from ganops.networks.sampling import generate_images, one_hot
from ganops.networks.stylegan2_discriminator import Discriminator
from ganops.networks.stylegan2_generator import Generator
from ganops.ops.bias_act import ACTIVATION_GAINS, Activation, bias_act
from ganops.ops.modulated_conv2d import modulated_conv2d
from ganops.ops.upfirdn2d import setup_filter, upfirdn2d
from ganops.training.build import build_networks
from ganops.training.losses import Latents, PhaseLoss, dmain_loss, dr1_loss, gmain_loss, gpl_loss
from ganops.training.memory import announce_memory, dry_run
from ganops.training.saver import StateWriter
from ganops.training.state import (
    TrainingState,
    copy_state,
    initial_state,
    load_state,
    save_state,
    state_tensors,
)
from tests.tolerances import assert_close
from tests.unit.tiny import CLASS_COUNTS, run_steps, tiny_params

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
TWINS = {torch.float64: "twin_float64", torch.float32: "twin_float32"}
NETWORKS = {"float16": "network_float16", "bfloat16": "network_bfloat16"}
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


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def with_gradients(function: Callable[..., Tensor], inputs: list[Tensor], device: torch.device) -> list[Tensor]:
    """The value, its gradients, and the gradients of their squared norm, as path lengths and R1 need them."""
    leaves = [tensor.to(device).requires_grad_() for tensor in inputs]
    y = function(*leaves)
    dy = normal(*y.shape, seed=9, dtype=y.dtype).to(device)
    first = torch.autograd.grad(y, leaves, dy, create_graph=True)
    norm = torch.stack([gradient.square().sum() for gradient in first]).sum()
    second: tuple[Any, ...] = (None,) * len(leaves)
    if norm.requires_grad:  # not of a linear function
        second = torch.autograd.grad(norm, leaves, allow_unused=True)
    return [y.detach(), *(gradient.detach() for gradient in first), *(g for g in second if g is not None)]


def assert_same_on_both(function: Callable[..., Tensor], inputs: list[Tensor], what: str) -> None:
    tolerance = TWINS[inputs[0].dtype]
    expected, actual = (with_gradients(function, inputs, device) for device in (CPU, CUDA))
    assert len(expected) == len(actual)
    for order, (theirs, ours) in enumerate(zip(expected, actual, strict=True)):
        assert ours.is_cuda
        assert_close(ours, theirs, tolerance, f"{what}, output {order}")


@pytest.mark.parametrize("dtype", TWINS)
@pytest.mark.parametrize(("up", "down"), [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_upfirdn2d(up: int, down: int, dtype: torch.dtype) -> None:
    for taps in (setup_filter([1, 3, 3, 1]), setup_filter([1, 2, -3, 5, 1], separable=True)):
        for channels in (1, 5):
            x = normal(2, channels, 7, 9, seed=channels, dtype=dtype)
            assert_same_on_both(
                lambda x, taps=taps: upfirdn2d(x, taps, up, down, [3, 2, 1, 4], gain=1.7), [x], f"{channels} channels"
            )


@pytest.mark.parametrize("dtype", TWINS)
@pytest.mark.parametrize("activation", ACTIVATION_GAINS)
def test_bias_act(activation: Activation, dtype: torch.dtype) -> None:
    inputs = [normal(3, 5, 7, 4, seed=1, dtype=dtype), normal(5, seed=2, dtype=dtype)]
    assert_same_on_both(lambda x, b: bias_act(x, b, activation=activation, clamp=2.0), inputs, activation)


@pytest.mark.parametrize("dtype", TWINS)
@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize(("kernel", "up", "down"), [(1, 1, 1), (3, 1, 1), (3, 2, 1), (3, 1, 2)])
def test_modulated_conv2d(kernel: int, up: int, down: int, demodulate: bool, dtype: torch.dtype) -> None:
    inputs = [
        normal(3, 6, 9, 9, seed=1, dtype=dtype),
        normal(8, 6, kernel, kernel, seed=2, dtype=dtype),
        normal(3, 6, seed=3, dtype=dtype),
    ]
    taps = setup_filter([1, 3, 3, 1])

    def function(x: Tensor, weight: Tensor, styles: Tensor) -> Tensor:
        return modulated_conv2d(
            x, weight, styles, up=up, down=down, padding=kernel // 2, resample_filter=taps.to(x.device),
            demodulate=demodulate, flip_weight=up == 1,
        )  # fmt: skip

    assert_same_on_both(function, inputs, f"kernel {kernel}, up {up}, down {down}")


def noisy_state(device: torch.device) -> TrainingState:
    """The tiny state with noise that is felt: its strengths start at zero."""
    state = initial_state(tiny_params(), 8, 1, len(CLASS_COUNTS), device)
    with torch.no_grad():
        for name, parameter in state.G.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(0.3)
    return state


def phase_loss(phase: str, state: TrainingState) -> PhaseLoss:
    """A phase on inputs that were drawn on the CPU: the streams of the devices differ."""
    params, device = tiny_params(), state.device
    z, z_mixed = normal(4, params.z_dim, seed=1).to(device), normal(4, params.z_dim, seed=2).to(device)
    c = one_hot(torch.tensor([0, 1, 2, 1], device=device), len(CLASS_COUNTS))
    latents = Latents(z, c, z_mixed, 2)
    real_img, pl_noise = normal(4, 1, 8, 8, seed=3).to(device), normal(4, 1, 8, 8, seed=4).to(device)
    match phase:
        case "Gmain":
            return gmain_loss(state.G, state.D, latents, "const", None)
        case "Gpl":
            return gpl_loss(state.G, latents, pl_noise, state.pl_mean, params.pl_decay, 2.0, "const", None)
        case "Dmain":
            return dmain_loss(state.G, state.D, latents, real_img, c, "const", None)
        case _:
            return dr1_loss(state.D, real_img, c, 3.0)


@pytest.mark.parametrize("phase", ["Gmain", "Gpl", "Dmain", "Dr1"])
def test_losses_and_their_gradients(phase: str) -> None:
    found = []
    for device in (CPU, CUDA):
        state = noisy_state(device)
        network = state.G if phase.startswith("G") else state.D
        result = phase_loss(phase, state)
        result.loss.mean().backward()  # type: ignore[no-untyped-call]
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        found.append((result.loss, torch.cat([gradient.flatten() for gradient in gradients])))
    (loss, gradient), (cuda_loss, cuda_gradient) = found
    assert_close(cuda_loss, loss, "golden_float32", f"{phase}: loss")
    assert_close(cuda_gradient, gradient, "golden_float32", f"{phase}: gradient")


def test_resume_is_exact(tmp_path: Path) -> None:
    """Four steps at once, and two, a state file, and two more in a fresh state: all phases, equal bits."""
    params = tiny_params()

    def fresh() -> TrainingState:
        return initial_state(params, 8, 1, len(CLASS_COUNTS), CUDA)

    whole, half, resumed = fresh(), fresh(), fresh()
    run_steps(whole, params, 4)
    run_steps(half, params, 2)
    save_state(tmp_path / "state.safetensors", half, {})
    load_state(tmp_path / "state.safetensors", resumed)
    run_steps(resumed, params, 2)
    assert resumed.nimg == whole.nimg
    expected = state_tensors(whole) | whole.sums
    found = state_tensors(resumed) | resumed.sums
    assert expected.keys() == found.keys()
    different = [name for name in expected if not torch.equal(expected[name], found[name])]
    assert not different


def networks(precision: str) -> tuple[Generator, Discriminator]:
    """At 16x16; the two highest resolutions are in `precision`."""
    params = tiny_params(
        precision=precision,
        low_precision_resolutions=0 if precision == "float32" else 2,
        conv_clamp=256.0,
        channel_base=256,
        channel_max=16,
    )
    G, D = build_networks(params, 16, 3, len(CLASS_COUNTS))
    return G.to(CUDA), D.to(CUDA)


@torch.no_grad()
@pytest.mark.parametrize("precision", NETWORKS)
def test_low_precision_is_near_float32(precision: str) -> None:
    z, c = normal(8, 8, seed=1).to(CUDA), one_hot(torch.arange(8, device=CUDA) % 3, len(CLASS_COUNTS))
    img = normal(8, 3, 16, 16, seed=2).to(CUDA)
    (G, D), (low_G, low_D) = networks("float32"), networks(precision)
    fakes, low_fakes = (network(z, c, 1.0, None, "const", None) for network in (G, low_G))
    logits, low_logits = (network(img, c) for network in (D, low_D))
    assert low_fakes.dtype == low_logits.dtype == torch.float32
    assert not torch.equal(low_fakes, fakes), "nothing was computed in low precision"
    assert_close(low_fakes, fakes, NETWORKS[precision], "G")
    assert_close(low_logits, logits, NETWORKS[precision], "D")


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_images_do_not_depend_on_their_number(precision: str) -> None:
    G = networks(precision)[0].eval().requires_grad_(False)

    def sample(count: int) -> Tensor:
        labels = torch.arange(count) % len(CLASS_COUNTS)
        return torch.cat(list(generate_images(copy.deepcopy(G), 0, range(count), labels, 0.7, None, "random", 4)))

    many, few = sample(11), sample(6)
    assert many.is_cuda
    assert len(many) == 11
    assert torch.equal(many[:6], few)
    assert len(torch.unique(many.flatten(1), dim=0)) == 11


def test_streams_repeat_on_the_device() -> None:
    first, again, other = (
        torch.randn(100, device=CUDA, generator=make_generator(CUDA, *parts)) for parts in ((0, 1), (0, 1), (0, 2))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_training_goes_on_while_a_state_is_written(tmp_path: Path) -> None:
    """The copy to pinned memory is the state at its time, to the byte, although steps follow at once."""
    params = tiny_params()
    state = initial_state(params, 8, 1, len(CLASS_COUNTS), CUDA)
    run_steps(state, params, 2)
    save_state(tmp_path / "at_once.safetensors", state, {"identity": {}})
    writer = StateWriter()
    writer.start(tmp_path / "beside.safetensors", copy_state(state, {"identity": {}}))
    run_steps(state, params, 2)
    assert writer.finish()
    assert (tmp_path / "beside.safetensors").read_bytes() == (tmp_path / "at_once.safetensors").read_bytes()


def test_a_dry_run_tells_the_peak_and_changes_nothing() -> None:
    params = tiny_params(channel_base=2048, channel_max=64)
    state = initial_state(params, 32, 3, len(CLASS_COUNTS), CUDA)
    before = {name: tensor.clone() for name, tensor in state_tensors(state).items()}
    small, large = (dry_run(state, params, size).bytes for size in (4, 32))
    assert 0 < small < large
    assert all(torch.equal(tensor, before[name]) for name, tensor in state_tensors(state).items())


def test_what_does_not_fit_ends_with_a_proposal_that_does() -> None:
    params = tiny_params(channel_base=4096, channel_max=64, batch_size=64, batch_gpu=64, pl_weight=0.0)
    state = initial_state(params, 64, 3, len(CLASS_COUNTS), CUDA)
    small, large = (dry_run(state, params, size).bytes for size in (8, 64))
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info()[1]
    torch.cuda.set_per_process_memory_fraction((small + large) / 2 / total)
    try:
        with pytest.raises(RunError, match=r"train\.batch_gpu=64 does not fit .* train\.batch_gpu: (8|16|32) fits"):
            announce_memory(state, params)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
