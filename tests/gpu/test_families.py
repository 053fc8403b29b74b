"""Every family on a CUDA device: resumes exactly while it grows, near the CPU in float32, near float32 in low precision."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ganops.distributed import configure_numerics
from ganops.networks.families import AnyDiscriminator, AnyGenerator
from ganops.networks.sampling import one_hot
from ganops.training.build import build_networks
from ganops.training.state import TrainingState, initial_state, load_state, save_state, state_tensors
from ganops.training.step import set_lod, train_step
from tests.tolerances import assert_close
from tests.unit.test_families import RESOLUTION, SETUPS, batch_at, params_of
from tests.unit.tiny import CLASS_COUNTS

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
LOW = {"float16": "network_float16", "bfloat16": "network_bfloat16"}
NETWORKS = ["a", "d", "e", "pggan"]
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


def fresh(name: str) -> TrainingState:
    return initial_state(params_of(name), RESOLUTION, 1, len(CLASS_COUNTS), CUDA)


def train(name: str, state: TrainingState, steps: int) -> None:
    params = params_of(name)
    for _ in range(steps):
        train_step(state, params, batch_at(params, state.nimg), CLASS_COUNTS)


@pytest.mark.parametrize("name", SETUPS)
def test_resume_is_exact_while_growing_and_augmenting(tmp_path: Path, name: str) -> None:
    whole, half, resumed = fresh(name), fresh(name), fresh(name)
    train(name, whole, 18)
    train(name, half, 5)
    save_state(tmp_path / "state.safetensors", half, {})
    load_state(tmp_path / "state.safetensors", resumed)
    train(name, resumed, 13)
    expected, found = state_tensors(whole) | whole.sums, state_tensors(resumed) | resumed.sums
    assert expected.keys() == found.keys()
    assert not [key for key in expected if not torch.equal(expected[key], found[key])]
    assert whole.augment_p == resumed.augment_p
    assert all(bool(tensor.isfinite().all()) for tensor in whole.G.state_dict().values())


def networks(name: str, precision: str, device: torch.device) -> tuple[AnyGenerator, AnyDiscriminator]:
    low = {"precision": precision, "low_precision_resolutions": 2} if precision != "float32" else {}
    params = params_of(name, channel_base=256, channel_max=16, conv_clamp=256.0, **low)
    G, D = build_networks(params, RESOLUTION, 3, len(CLASS_COUNTS))
    return G.to(device), D.to(device)


def outputs(name: str, precision: str, device: torch.device, lod: float) -> list[Tensor]:
    """Images, logits, and the gradients of the logits' sum by the images."""
    G, D = networks(name, precision, device)
    if name != "e":
        for network in (G, D):
            network.set_lod(lod)  # type: ignore[union-attr]
    rng = torch.Generator().manual_seed(0)
    z, c = torch.randn(8, G.z_dim, generator=rng).to(device), one_hot(torch.arange(8) % 3, 3).to(device)
    img = G.synthesis(G.truncate(G.mapping(z, c), 1.0, None), "const", None)
    given = torch.randn(img.shape, generator=rng).to(device).requires_grad_()
    logits = D(given, c)
    (gradients,) = torch.autograd.grad(logits.sum(), [given])
    return [img, logits, gradients]


@pytest.mark.parametrize("lod", [0.0, 0.4])
@pytest.mark.parametrize("name", NETWORKS)
def test_float32_is_near_the_cpu(name: str, lod: float) -> None:
    for cuda, cpu in zip(outputs(name, "float32", CUDA, lod), outputs(name, "float32", CPU, lod), strict=True):
        assert cuda.is_cuda
        assert_close(cuda, cpu, "golden_gradient_float32", name)


@pytest.mark.parametrize("precision", LOW)
@pytest.mark.parametrize("name", NETWORKS)
def test_low_precision_is_near_float32(name: str, precision: str) -> None:
    whole = outputs(name, "float32", CUDA, 0.0)
    for low, full in zip(outputs(name, precision, CUDA, 0.0)[:2], whole, strict=False):
        assert low.dtype == torch.float32
        assert not torch.equal(low, full), "nothing was computed in low precision"
        assert_close(low, full, LOW[precision], name)


def test_tf32_is_near_float32() -> None:
    """Ten bits of mantissa in products, as float16 has."""
    whole = outputs("e", "float32", CUDA, 0.0)
    configure_numerics(tf32=True, deterministic=True)
    try:
        for fast, full in zip(outputs("e", "float32", CUDA, 0.0)[:2], whole, strict=False):
            assert_close(fast, full, "network_float16", "tf32")
    finally:
        configure_numerics(tf32=False, deterministic=True)


def test_a_state_tells_networks_how_far_they_have_grown() -> None:
    state = fresh("a")
    set_lod(state, 0.5)
    assert state.G.synthesis(torch.zeros(2, state.G.num_ws, state.G.w_dim, device=CUDA), "none", None).shape[2:] == (
        16,
        16,
    )
