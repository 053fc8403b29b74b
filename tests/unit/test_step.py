"""One training step: accumulation, running means, draws, gradients that are not finite."""

import pytest
import torch

from ganops.training.accumulate import apply_gradients
from ganops.training.state import TrainingState
from ganops.training.step import (
    dmain_phase,
    dr1_phase,
    draw_latents,
    gmain_phase,
    gpl_phase,
    tick_means,
    train_step,
)
from tests.tolerances import assert_close
from tests.unit.tiny import CLASS_COUNTS, run_steps, tiny_batch, tiny_params, tiny_state


def gradients(state: TrainingState) -> list[torch.Tensor]:
    return [parameter.grad.clone() for parameter in state.G.parameters() if parameter.grad is not None]


def test_draws_are_a_function_of_seed_phase_nimg_and_micro_batch() -> None:
    params = tiny_params()
    state = tiny_state(params)

    def z(phase: str, index: int) -> torch.Tensor:
        return draw_latents(state, params, phase, index, 4, CLASS_COUNTS).z

    first = z("Gmain", 0)
    assert torch.equal(first, z("Gmain", 0))
    assert not torch.equal(first, z("Gmain", 1))
    assert not torch.equal(first, z("Dmain", 0))
    state.nimg = 8
    assert not torch.equal(first, z("Gmain", 0))


def test_labels_of_fakes_follow_the_empirical_law() -> None:
    params = tiny_params()
    c = draw_latents(tiny_state(params), params, "Gmain", 0, 20_000, CLASS_COUNTS).c
    assert c.mean(0).tolist() == pytest.approx([0.3, 0.5, 0.2], abs=0.012)  # 3.4 standard deviations


def test_mixing_cutoffs_are_uniform_over_the_layers() -> None:
    params = tiny_params(style_mixing_prob=0.9)
    state = tiny_state(params)
    cutoffs = []
    for step in range(4000):
        state.nimg = step * 8
        cutoffs.append(draw_latents(state, params, "Gmain", 0, 1, CLASS_COUNTS).mixing_cutoff)
    assert state.G.num_ws == 4
    shares = [cutoffs.count(value) / 4000 for value in (None, 1, 2, 3)]
    assert shares == pytest.approx([0.1, 0.3, 0.3, 0.3], abs=0.025)


def test_gradients_are_averaged_over_micro_batches_not_summed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two micro-batches of 4 that hold the same draws give the gradients of one of them."""
    seen = []
    monkeypatch.setattr(
        "ganops.training.step.apply_gradients", lambda state, *_: seen.append(gradients(state)) or torch.tensor(False)
    )
    draw = draw_latents
    monkeypatch.setattr(
        "ganops.training.step.draw_latents", lambda s, p, phase, index, *rest: draw(s, p, phase, 0, *rest)
    )
    monkeypatch.setattr("ganops.training.step.make_generator", lambda device, *_: torch.Generator().manual_seed(1))
    for batch_size in (4, 8):
        params = tiny_params(batch_size=batch_size, batch_gpu=4)
        gmain_phase(tiny_state(params), params, CLASS_COUNTS)
    for one, two in zip(*seen, strict=True):
        assert torch.allclose(one, two, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("phase", ["Gmain", "Gpl", "Dmain", "Dr1"])
def test_float16_keeps_its_gradients_however_many_micro_batches_there_are(
    monkeypatch: pytest.MonkeyPatch, phase: str
) -> None:
    """The share of one micro-batch of 16,384 is below what float16 can hold, so it must not pass through it."""
    found: dict[str, list[torch.Tensor]] = {}
    for module in ("step", "accumulate"):
        monkeypatch.setattr(f"ganops.training.{module}.own_micro_batches", lambda params: range(1))
    for precision in ("float32", "float16"):
        low = int(precision == "float16")
        params = tiny_params(precision=precision, low_precision_resolutions=low, conv_clamp=256.0)
        params = params.model_copy(update={"batch_size": 4 * 2**14})
        state = tiny_state(params)

        def keep(state: TrainingState, gradients: list[torch.Tensor], *_: object) -> torch.Tensor:
            found[precision] = [gradient.clone() for gradient in gradients]  # noqa: B023 called within the loop
            return torch.tensor(False)

        monkeypatch.setattr("ganops.training.step.apply_gradients", keep)
        batch = tiny_batch(tiny_params(), 0)
        match phase:
            case "Gmain":
                gmain_phase(state, params, CLASS_COUNTS)
            case "Gpl":
                gpl_phase(state, params, CLASS_COUNTS)
            case "Dmain":
                dmain_phase(state, params, CLASS_COUNTS, batch)
            case "Dr1":
                dr1_phase(state, params, batch)
    whole = {name: torch.cat([gradient.flatten() for gradient in parts]) for name, parts in found.items()}
    assert whole["float32"].abs().max() > 0
    assert_close(whole["float16"], whole["float32"], "network_float16", phase)


def test_running_means_move_once_per_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    params = tiny_params()
    state = tiny_state(params)
    w_means, lengths = [], []
    from ganops.training import step

    original = step.gpl_loss

    def spy(*arguments):  # type: ignore[no-untyped-def]
        result = original(*arguments)
        w_means.append(result.w_mean)
        lengths.append(result.pl_length_mean)
        return result

    monkeypatch.setattr(step, "gpl_loss", spy)
    state.pl_mean.fill_(0.5)
    gpl_phase(state, params, CLASS_COUNTS)
    assert len(w_means) == 2
    torch.testing.assert_close(state.G.w_avg, 0.005 * torch.stack(w_means).mean(0), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(state.pl_mean, 0.5 + 0.01 * (torch.stack(lengths).mean() - 0.5))


def test_ema_follows_g() -> None:
    params = tiny_params(ema_kimg=1e-6)
    state = tiny_state(params)
    run_steps(state, params, 1)
    for average, parameter in zip(state.G_ema.parameters(), state.G.parameters(), strict=True):
        assert torch.equal(average, parameter)
    assert torch.equal(state.G_ema.w_avg, state.G.w_avg)


def test_r1_and_path_length_run_when_due() -> None:
    params = tiny_params()
    state = tiny_state(params)
    counts = []
    for _ in range(6):
        state.sums.clear()
        train_step(state, params, tiny_batch(params, state.nimg), CLASS_COUNTS)
        counts.append(("Loss/pl_penalty" in state.sums, "Loss/r1_penalty" in state.sums))
    assert counts == [(True, True), (False, False), (True, False), (False, True), (True, False), (False, False)]


def test_gradients_that_are_not_finite_are_replaced_and_reported() -> None:
    params = tiny_params()
    state = tiny_state(params)
    for parameter in state.G.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    before = [parameter.detach().clone() for parameter in state.G.parameters()]
    found = [parameter.grad for parameter in state.G.parameters() if parameter.grad is not None]
    assert bool(apply_gradients(state, found, state.G_opt, "G_grad_norm"))
    for old, parameter in zip(before, state.G.parameters(), strict=True):
        assert torch.equal(old, parameter)  # NaN counts as 0, and Adam's first step of 0 is 0


def test_steps_that_are_not_finite_are_counted_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    params = tiny_params()
    state = tiny_state(params)
    answers = iter([True, False, True, True, False] + [False] * 50)
    monkeypatch.setattr("ganops.training.step.gmain_phase", lambda *_: torch.tensor(next(answers)))
    counted = []
    for _ in range(5):
        run_steps(state, params, 1)
        counted.append(int(state.nonfinite_steps))
    assert counted == [1, 0, 1, 2, 0]


def test_ticks_average_over_images() -> None:
    params = tiny_params()
    state = tiny_state(params)
    run_steps(state, params, 6)
    means = tick_means(state, params)
    assert state.sums["Loss/G/loss"][0] == 6 * params.batch_size
    assert means["G_loss"] == pytest.approx(float(state.sums["Loss/G/loss"][1]) / 48)
    assert means["pl_mean"] == pytest.approx(float(state.pl_mean))
