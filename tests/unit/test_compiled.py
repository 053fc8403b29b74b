"""torch.compile of the main phases: no graph breaks in the networks, and the training of eager mode up to rounding."""

import pytest
import torch
from torch import Tensor

from ganops.training.compiled import compile_networks
from ganops.training.losses import dr1_loss
from ganops.training.state import initial_state, state_tensors
from tests.tolerances import assert_close
from tests.unit.tiny import CLASS_COUNTS, run_steps, tiny_params

CPU = torch.device("cpu")
# torch names a CUDA toolkit that it would use if there were a GPU, and warns of its own parts.
pytestmark = pytest.mark.filterwarnings("ignore")


def gradients(loss: Tensor, parameters: list[Tensor]) -> list[Tensor | None]:
    return list(torch.autograd.grad(loss, parameters, allow_unused=True))


def test_networks_compile_in_one_piece() -> None:
    state = initial_state(tiny_params(), 8, 1, len(CLASS_COUNTS), CPU)
    ws = torch.randn(4, state.G.num_ws, state.G.w_dim, generator=torch.Generator().manual_seed(0))
    img, c = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.eye(3)[[0, 1, 2, 0]]
    render = torch.compile(state.G.synthesis.forward, backend="aot_eager", fullgraph=True)
    judge = torch.compile(state.D.forward, backend="aot_eager", fullgraph=True)
    cases = [
        (render(ws, "const", None), state.G.synthesis.forward(ws, "const", None), list(state.G.synthesis.parameters())),
        (judge(img, c), state.D.forward(img, c), list(state.D.parameters())),
    ]
    for compiled, eager, parameters in cases:
        assert_close(compiled, eager, "twin_float32")
        ours, theirs = gradients(compiled.square().sum(), parameters), gradients(eager.square().sum(), parameters)
        assert [gradient is None for gradient in ours] == [gradient is None for gradient in theirs]
        for first, second in zip(ours, theirs, strict=True):
            if first is not None and second is not None:
                assert_close(first, second, "golden_float32")


@pytest.mark.slow
def test_training_is_that_of_eager_mode() -> None:
    params = tiny_params()
    eager, compiled = (initial_state(params, 8, 1, len(CLASS_COUNTS), CPU) for _ in range(2))
    compile_networks(compiled.G, compiled.D, "main", deterministic=False)
    for state in (eager, compiled):
        run_steps(state, params, 4)
    for (name, ours), theirs in zip(state_tensors(compiled).items(), state_tensors(eager).values(), strict=True):
        if name.endswith("step"):  # Adam skips parameters without a gradient: these are the same ones
            assert torch.equal(ours, theirs), name
        else:
            assert_close(ours, theirs, "compiled_float32", name)


def test_regularisers_are_not_compiled() -> None:
    state = initial_state(tiny_params(), 8, 1, len(CLASS_COUNTS), CPU)
    state.D.compile(backend=lambda graph, inputs: pytest.fail("was compiled"))
    img, c = torch.randn(4, 1, 8, 8), torch.eye(3)[[0, 1, 2, 0]]
    dr1_loss(state.D, img, c, 1.0).loss.sum().backward()
    assert state.D.blocks["8x8"].conv0.weight.grad is not None
