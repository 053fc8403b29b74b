"""Training of every family: growing, losses, augmentation; what resumes and what ranks see."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from ganops.config_train import TrainParams
from ganops.errors import RunError
from ganops.images.dataset import Batch
from ganops.networks.families import GROWING, lod_of
from ganops.networks.snapshot import save_snapshot
from ganops.training import step
from ganops.training.accumulate import Accumulator, own_micro_batches
from ganops.training.losses import Latents, PhaseLoss, dr1_loss
from ganops.training.schedule import lod_at, moment
from ganops.training.state import TrainingState, initial_state, load_state, save_state, state_tensors
from ganops.training.step import train_step
from ganops.training.tick import class_table, worst_class
from ganops.training.transfer import start_from
from ganops.training.wgan import class_cross_entropy, gradient_penalty, wgan_dmain_loss, wgan_gmain_loss
from tests.tolerances import assert_close
from tests.unit.tiny import CLASS_COUNTS, tiny_params

GROWS = {
    "G_architecture": "orig", "D_architecture": "orig", "lod_initial_resolution": 4, "lod_training_kimg": 0.032,
    "lod_transition_kimg": 0.032, "batch_size_by_resolution": {4: 16}, "batch_gpu_by_resolution": {4: 8},
    "lr_by_resolution": {16: 0.001},
}  # fmt: skip
SETUPS: dict[str, dict[str, Any]] = {
    "a": {**GROWS, "family": "stylegan1", "r1_interval": 1, "pl_weight": 0.0},
    "b": {**GROWS, "family": "stylegan2-growing", "r1_interval": 1, "pl_weight": 0.0},
    "c": {**GROWS, "family": "stylegan2-growing", "r1_interval": 3, "pl_weight": 0.0},
    "d": {**GROWS, "family": "stylegan2-growing", "r1_interval": 3, "pl_weight": 2.0},
    "e": {"family": "stylegan2"},
    "pggan": {
        **GROWS, "family": "pggan", "loss": "wgan-gp", "r1_gamma": 0.0, "pl_weight": 0.0, "style_mixing_prob": 0.0,
        "mapping_layers": 0, "D_first": True, "D_repeats": 2, "ema_beta": 0.999,
    },
    "ada": {"augment": "ada", "augment_p": 0.5, "ada_kimg": 1.0, "augment_set": "bgcfnc"},
    "diffaugment": {"augment": "diffaugment", "augment_p": 0.7},
}  # fmt: skip
RESOLUTION = 16


def params_of(name: str, **changes: Any) -> TrainParams:
    return tiny_params(**({"channel_base": 64, **SETUPS[name]} | changes))


def make_state(params: TrainParams) -> TrainingState:
    return initial_state(params, RESOLUTION, 1, len(CLASS_COUNTS), torch.device("cpu"))


def batch_at(params: TrainParams, nimg: int) -> Batch:
    """Stand-in for the data: a function of nimg."""
    rng, count = torch.Generator().manual_seed(nimg), moment(params, RESOLUTION, nimg).params.batch_size
    images = torch.randint(0, 256, [count, 1, RESOLUTION, RESOLUTION], dtype=torch.uint8, generator=rng)
    return Batch(images, torch.randint(0, 3, [count], generator=rng))


def train(state: TrainingState, params: TrainParams, steps: int) -> None:
    for _ in range(steps):
        train_step(state, params, batch_at(params, state.nimg), CLASS_COUNTS)


@pytest.mark.parametrize("name", SETUPS)
def test_each_setup_trains_and_resumes_bit_for_bit_after_every_kind_of_step(tmp_path: Path, name: str) -> None:
    """Through all resolutions: before, at the start of, within and after each fade, and where the batch changes."""
    params = params_of(name)
    whole, seen = make_state(params), set()
    train(whole, params, 18)
    for steps in (1, 4, 12):
        state = make_state(params)
        train(state, params, steps)
        seen.add(lod_of(state.G))
        save_state(tmp_path / "state.safetensors", state, {})
        resumed = make_state(params)
        load_state(tmp_path / "state.safetensors", resumed)
        train(resumed, params, 18 - steps)
        for (key, one), (_, other) in zip(state_tensors(whole).items(), state_tensors(resumed).items(), strict=True):
            assert torch.equal(one, other), (steps, key)
        assert whole.augment_p == resumed.augment_p
        assert whole.sums.keys() == resumed.sums.keys()
        assert all(torch.equal(whole.sums[key], resumed.sums[key]) for key in whole.sums)
    if params.lod_initial_resolution:
        assert {math.floor(lod) for lod in seen} == {0, 1, 2}
        assert any(lod % 1 for lod in seen)
        assert lod_of(whole.G) == lod_of(whole.D) == lod_of(whole.G_ema) == 0
    fresh = make_state(params)
    assert all(
        not torch.equal(a, b) for a, b in zip(fresh.G.parameters(), whole.G.parameters(), strict=True) if a.numel() > 1
    )
    assert all(parameter.isfinite().all() for parameter in whole.D.parameters())


@pytest.mark.parametrize("name", ["a", "d", "pggan"])
def test_networks_and_reals_are_as_far_grown_as_the_schedule_says(name: str) -> None:
    params = params_of(name)
    state = make_state(params)
    seen = []
    for _ in range(20):
        nimg = state.nimg
        train(state, params, 1)
        assert lod_of(state.G) == lod_at(params, RESOLUTION, state.nimg)
        img, _ = step.real_micro_batch(state, params, batch_at(params, state.nimg), 0, 0)
        seen.append(
            (nimg, img.shape[2], state.G_opt.param_groups[0]["lr"], moment(params, RESOLUTION, nimg).params.batch_size)
        )
    sizes = [size for _, size, _, _ in seen]
    assert sizes == sorted(sizes)
    assert {4, 8, 16} == set(sizes)
    assert {batch for *_, batch in seen} == {16, 8}
    for nimg, _, lr, _ in seen:
        at_16 = lod_at(params, RESOLUTION, nimg) < 1
        c = params.pl_interval / (params.pl_interval + 1) if params.pl_weight else 1.0
        assert lr == pytest.approx((0.001 if at_16 else params.G_lr) * c)


def test_adam_starts_anew_with_a_new_resolution_and_only_then() -> None:
    params = params_of("a")
    state = make_state(params)
    counts = []
    for _ in range(14):
        now = moment(params, RESOLUTION, state.nimg)
        train(state, params, 1)
        first = next(iter(state.D.parameters()))
        counts.append(
            (now.new_lod, {int(moments["step"]) for moments in state.D_opt.state.values() if int(moments["step"])})
        )
        assert first is not None
    for (_, before), (new, after) in pairwise(counts):
        assert after == ({1} if new else {max(before) + 1, *({1} if len(after) > 1 else ())}), counts
    kept = params_of("a", reset_opt_for_new_lod=False)
    state = make_state(kept)
    train(state, kept, 14)
    assert max(int(moments["step"]) for moments in state.D_opt.state.values()) == 14


def test_regularisation_of_every_step_is_part_of_the_main_loss() -> None:
    """One Adam step with the summed gradient, and no correction of the learning rate."""
    params = params_of("e", r1_interval=1, pl_weight=0.0, G_lr=0.001, D_lr=0.001)
    state = make_state(params)
    batch = batch_at(params, 0)
    reals = [step.real_micro_batch(state, params, batch, place, place) for place in range(2)]
    parts = []
    for changed in (params, params.model_copy(update={"r1_gamma": 0.0})):
        seen: list[torch.Tensor] = []

        def keep(state: TrainingState, gradients: list[torch.Tensor], *_: object) -> torch.Tensor:
            seen.extend(gradient.clone().flatten() for gradient in gradients)  # noqa: B023 called within the loop
            return torch.tensor(False)

        original, step.apply_gradients = step.apply_gradients, keep
        try:
            step.dmain_phase(state, changed, CLASS_COUNTS, batch)
        finally:
            step.apply_gradients = original
        state.D.zero_grad(set_to_none=True)
        parts.append(torch.cat(seen))
    for img, c in reals:
        img = img.clone().requires_grad_()
        (gradients,) = torch.autograd.grad(state.D(img, c).sum(), [img], create_graph=True)
        (gradients.square().sum([1, 2, 3]).mean() * params.r1_gamma / 2 / len(reals)).backward()
    expected = torch.cat(
        [
            (torch.zeros_like(p) if p.grad is None else p.grad).flatten()
            for p in state.D.parameters()
            if p.grad is not None
        ]
    )
    names = [p for p in state.D.parameters() if p.grad is not None]
    both = parts[0] - parts[1]
    everything = list(state.D.parameters())
    offsets, found = 0, []
    for p in everything:
        if any(p is other for other in names):
            found.append(both[offsets : offsets + p.numel()])
        offsets += p.numel()
    assert_close(torch.cat(found), expected, "golden_gradient_float32")
    train(state, params, 1)
    assert state.D_opt.param_groups[0]["lr"] == 0.001
    assert {int(moments["step"]) for moments in state.D_opt.state.values()} == {1}


def test_G_learns_in_one_of_D_repeats_steps() -> None:
    for D_first in (True, False):
        params = params_of("pggan", D_repeats=3, D_first=D_first)
        state = make_state(params)
        moved = []
        for _ in range(6):
            before = [parameter.detach().clone() for parameter in state.G.parameters()]
            train(state, params, 1)
            moved.append(any(not torch.equal(a, b) for a, b in zip(before, state.G.parameters(), strict=True)))
        turn = [False, False, True] if D_first else [True, False, False]
        assert moved == turn * 2


# WGAN-GP and AC-GAN


def latents_of(state: TrainingState, count: int, seed: int) -> Latents:
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, state.G.c_dim, [count], generator=rng)
    return Latents(
        torch.randn(count, state.G.z_dim, generator=rng), F.one_hot(labels, state.G.c_dim).float(), None, None
    )


def test_wgan_losses_against_their_definition() -> None:
    """Gulrajani et al. 2017, equation 3, with drift and class terms, written out image by image in float64.

    At 4 x 4 of 16 x 16 pixels a full image is 4 x 4 copies of each pixel, and the norm by those 4 times smaller.
    """
    params = params_of("pggan")
    state = make_state(params)
    G, D = state.G.double(), state.D.double()
    latents, real_c = latents_of(state, 8, 0), latents_of(state, 8, 1).c.double()
    size = step.image_shape(G)
    real_img = torch.randn(8, *size, dtype=torch.float64).clamp(-1, 1)
    mix = torch.rand(8, dtype=torch.float64)
    latents = Latents(latents.z.double(), latents.c.double(), None, None)
    found = wgan_dmain_loss(G, D, latents, real_img, real_c, mix, 10.0, 0.001, 1.5, "none", None).loss
    with torch.no_grad():
        fake_img = G.synthesis(G.truncate(G.mapping(latents.z, latents.c), 1.0, None), "none", None)
    between = (real_img * (1 - mix)[:, None, None, None] + fake_img * mix[:, None, None, None]).requires_grad_()
    scores = {
        kind: D.scores_and_classes(img) for kind, img in (("fake", fake_img), ("real", real_img), ("mix", between))
    }
    (slopes,) = torch.autograd.grad(scores["mix"][0].sum(), [between])
    for i in range(8):
        norm = math.sqrt(sum(float(value) ** 2 for value in slopes[i].detach().flatten())) / 4
        fake, real = float(scores["fake"][0][i].detach()), float(scores["real"][0][i].detach())
        entropies = 0.0
        for kind, c in (("fake", latents.c), ("real", real_c)):
            logits = scores[kind][1][i].detach()
            entropies += float(logits.logsumexp(0) - logits[int(c[i].argmax())])
        assert float(found[i].detach()) == pytest.approx(
            fake - real + 10 * (norm - 1) ** 2 + 0.001 * real**2 + 1.5 * entropies, rel=1e-9
        )
    G_loss = wgan_gmain_loss(G, D, latents, 1.5, "none", None).loss
    for i in range(8):
        logits = scores["fake"][1][i].detach()
        entropy = float(logits.logsumexp(0) - logits[int(latents.c[i].argmax())])
        assert float(G_loss[i].detach()) == pytest.approx(
            -float(scores["fake"][0][i].detach()) + 1.5 * entropy, rel=1e-9
        )


def test_the_gradient_penalty_trains_D() -> None:
    """Its derivative by D's weights against central differences, in float64."""
    params = params_of("pggan", mbstd_num_channels=0)
    D = make_state(params).D.double()
    img = torch.randn(2, 1, 4, 4, dtype=torch.float64)
    c = torch.zeros(2, 3, dtype=torch.float64)
    weight = next(
        parameter for name, parameter in D.named_parameters() if name.endswith("weight") and parameter.dim() == 2
    )
    gradient_penalty(D, img, c).sum().backward()
    place, epsilon = (0, 1), 1e-6
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            weight[place] += sign * epsilon
        values.append(float(gradient_penalty(D, img, c).sum().detach()))
        with torch.no_grad():
            weight[place] -= sign * epsilon
    assert weight.grad is not None
    assert_close(weight.grad[place], torch.tensor((values[0] - values[1]) / (2 * epsilon)), "central_difference")


def test_without_labels_there_is_no_class_term() -> None:
    assert class_cross_entropy(None, torch.zeros(3, 0)).tolist() == [0, 0, 0]


# ADA


def test_p_moves_towards_the_target_by_the_published_speed() -> None:
    params = params_of("ada", ada_kimg=0.5, ada_interval=4, ada_target=0.6, ada_max_p=0.8, augment_p=0.0)
    state = make_state(params)
    change = params.batch_size * 4 / 500
    for total, expected in ((9.0, change), (10.0, 2 * change), (-10.0, change), (5.0, 0.0), (1.0, 0.0)):
        state.ada_signs = torch.tensor([10.0, total], dtype=torch.float64)
        step.move_augment_p(state, params)
        assert state.augment_p == pytest.approx(expected)
        assert state.ada_signs.tolist() == [0, 0]
    for _ in range(100):
        state.ada_signs = torch.tensor([10.0, 10.0], dtype=torch.float64)
        step.move_augment_p(state, params)
    assert state.augment_p == 0.8  # the cap
    step.move_augment_p(state, params)
    assert state.augment_p == 0.8  # nothing was seen: nothing moves


def test_the_statistic_pools_phases_Dmain_and_Dr1(monkeypatch: pytest.MonkeyPatch) -> None:
    params = params_of("ada", ada_interval=4, r1_interval=3)
    state = make_state(params)
    seen = []
    move = step.move_augment_p
    monkeypatch.setattr(step, "move_augment_p", lambda *args: (seen.append(state.ada_signs.tolist()), move(*args)))
    train(state, params, 8)
    assert [count for count, _ in seen] == [(4 + 2) * 8, (4 + 1) * 8]  # R1 in steps 0, 3 and 6
    assert all(abs(total) <= count for count, total in seen)


@pytest.mark.parametrize("name", ["ada", "diffaugment"])
def test_augmentations_differ_by_phase_kind_and_step_and_by_nothing_else(name: str) -> None:
    params = params_of(name)
    state = make_state(params)
    img = torch.rand(4, 1, 16, 16)

    def augmented(phase: str = "Dmain", kind: str = "real", index: int = 0, nimg: int = 0) -> torch.Tensor:
        state.nimg = nimg
        return step.make_augment(state, params, phase, kind, index, 0.9)(img)

    assert torch.equal(augmented(), augmented())
    others = [augmented(phase="Dr1"), augmented(kind="fake"), augmented(index=1), augmented(nimg=8)]
    assert all(not torch.equal(augmented(), other) for other in others)
    assert step.make_augment(state, params, "Dmain", "real", 0, 0.0)(img) is img


# Signs by class


def test_signs_of_D_are_added_up_by_class(monkeypatch: pytest.MonkeyPatch) -> None:
    params = params_of("e")
    state = make_state(params)
    kept: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]] = []
    original = step.dmain_loss

    def spy(G, D, latents, real_img, real_c, *rest):  # type: ignore[no-untyped-def]
        result = original(G, D, latents, real_img, real_c, *rest)
        kept.append((latents.c, result.stats["Loss/signs/fake"], real_c, result.stats["Loss/signs/real"]))
        return result

    monkeypatch.setattr(step, "dmain_loss", spy)
    train(state, params, 5)
    table = class_table(state, ["a", "b", "c"])
    for label, line in enumerate(table):
        fakes = [float(s) for c, signs, _, _ in kept for one, s in zip(c, signs, strict=True) if one[label]]
        reals = [float(s) for _, _, c, signs in kept for one, s in zip(c, signs, strict=True) if one[label]]
        assert (line["class"], line["name"]) == (label, "abc"[label])
        assert (line["fake_images"], line["real_images"]) == (len(fakes), len(reals))
        assert line["fake_sign"] == pytest.approx(sum(fakes) / len(fakes))
        assert line["real_sign"] == pytest.approx(sum(reals) / len(reals))
    assert sum(line["fake_images"] for line in table) == 5 * params.batch_size


def test_of_label_vectors_those_count_that_an_image_has() -> None:
    """Attributes may be any numbers, e.g. from -1 to 1; an image has those above 0.5, as in the shards' index."""
    params = params_of("e")
    state = make_state(params)
    losses = Accumulator(state, params, state.D)
    c = torch.tensor([[1.0, -1.0, 0.4], [0.6, 0.9, -0.2]] * 4)
    signs = torch.tensor([1.0, -1.0] * 4)
    weight = next(state.D.parameters())
    stats = {"Loss/signs/fake": signs, "Loss/signs/real": -signs}
    for index in own_micro_batches(params):
        main = PhaseLoss(weight.sum() * torch.ones(8), stats, None, None)
        losses.add(index, main, labels={"fake": c, "real": c})
    losses.finish()
    count = len(own_micro_batches(params)) * 4
    table = class_table(state, ["a", "b", "c"])
    assert [line["fake_images"] for line in table] == [2 * count, count, 0]
    assert [line["fake_sign"] for line in table] == [0.0, -1.0, None]
    assert [line["real_sign"] for line in table] == [0.0, 1.0, None]


def test_the_worst_class_is_one_of_which_enough_is_known() -> None:
    few = {"name": "few", "fake_images": 49, "fake_sign": -1.0}
    none = {"name": "none", "fake_images": 0, "fake_sign": None}
    enough = [{"name": name, "fake_images": 50, "fake_sign": sign} for name, sign in (("a", -0.2), ("b", -0.3))]
    assert worst_class([few, none, *enough]) is enough[1]
    assert worst_class([few, none]) is None


def test_a_regulariser_is_made_when_the_main_loss_is_done_with() -> None:
    """So that memory never holds the graphs of both; the gradients are those of the sum."""
    params = params_of("e")
    state = make_state(params)
    weight = next(state.D.parameters())
    seen = []

    def regulariser() -> PhaseLoss:
        seen.append(weight.grad is not None)
        return PhaseLoss(weight.square().sum() * torch.ones(4), {}, None, None)

    losses = Accumulator(state, params, state.D)
    for index in own_micro_batches(params):
        losses.add(
            index, PhaseLoss(3 * weight.sum() * torch.ones(8), {"one": torch.ones(8)}, None, None), 2.0, regulariser
        )
    losses.finish()
    assert seen == [True] * len(own_micro_batches(params))
    assert weight.grad is not None
    assert_close(weight.grad, 6 + 2 * weight.detach(), "twin_float32")


@pytest.mark.parametrize("name", ["a", "e"])
def test_a_tick_tells_the_rates_of_its_last_step_even_after_a_restart(tmp_path: Path, name: str) -> None:
    """A run may be stopped between a tick's last step and its row."""
    params = params_of(name, lr_rampup_kimg=1.0, ema_rampup=0.5)
    state, resumed = make_state(params), make_state(params)
    train(state, params, 7)
    save_state(tmp_path / "state.safetensors", state, {})
    load_state(tmp_path / "state.safetensors", resumed)
    told = [step.tick_means(one, params) for one in (state, resumed)]
    assert told[0] == told[1]
    assert told[0]["G_lr"] == state.G_opt.param_groups[0]["lr"] < params.G_lr / 2
    assert told[0]["D_lr"] == state.D_opt.param_groups[0]["lr"] < params.D_lr / 2


def test_growing_networks_are_told_apart() -> None:
    assert isinstance(make_state(params_of("a")).G, GROWING)
    assert not isinstance(make_state(params_of("e")).G, GROWING)


# Starting from another run


def test_levels_that_the_source_never_trained_are_refused(tmp_path: Path) -> None:
    params = params_of("a")
    young, old = make_state(params), make_state(params)
    train(young, params, 3)
    train(old, params, 14)
    assert lod_of(young.G) > 1
    assert lod_of(old.G) == 0
    tables: dict[str, Any] = {key: {} for key in GROWS if key.endswith("_by_resolution")}
    whole = params_of("a", **tables, lod_initial_resolution=None)
    for source, name in ((young, "young"), (old, "old")):
        identity = {"params": params.model_dump(mode="json"), "data": "digest"}
        save_state(tmp_path / f"{name}.safetensors", source, {"run": "a", "identity": identity})
        save_snapshot(tmp_path / f"{name}_G.safetensors", source.G_ema, {})
    for kind in ("", "_G"):
        start_from(tmp_path / f"old{kind}.safetensors", make_state(whole), whole)
        start_from(tmp_path / f"young{kind}.safetensors", make_state(params), params)
        with pytest.raises(RunError, match=r"young.*has grown to [48] px \(lod .*but this run starts at 16 px"):
            start_from(tmp_path / f"young{kind}.safetensors", make_state(whole), whole)


# Penalties while growing


@pytest.mark.parametrize(("name", "lod"), [("a", 2.0), ("d", 1.4), ("pggan", 1.0), ("pggan", 0.6)])
def test_penalties_are_those_of_images_of_the_full_size(name: str, lod: float) -> None:
    """As published code takes them: by full-size images of squares of equal pixels, which are averaged for D."""
    state = make_state(params_of(name, mbstd_num_channels=0))
    D = state.D.double()
    assert isinstance(D, GROWING)
    D.set_lod(lod)
    factor = 2 ** math.floor(lod)
    small = torch.randn(3, 1, RESOLUTION // factor, RESOLUTION // factor, dtype=torch.float64)
    c = F.one_hot(torch.arange(3), 3).double()
    full = small.repeat_interleave(factor, 2).repeat_interleave(factor, 3).requires_grad_()
    (gradients,) = torch.autograd.grad(D(F.avg_pool2d(full, factor), c).sum(), [full])
    squares = gradients.square().sum([1, 2, 3])
    assert squares.min() > 0
    assert_close(dr1_loss(D, small, c, 2.0).loss, squares, "closed_form_float64")
    assert_close(gradient_penalty(D, small, c), (squares.sqrt() - 1).square(), "golden_float64")


# What has no meaning is refused


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("pggan", {"loss": "logistic"}, "needs train.loss: wgan-gp"),
        ("e", {"loss": "wgan-gp", "pl_weight": 0.0}, "only the D of train.family=pggan tells classes"),
        ("ada", {"ada_max_p": 0.0}, "train.ada_max_p=0 with train.augment=ada changes no image"),
        ("pggan", {"augment": "ada"}, "which has no meaning with train.loss: wgan-gp"),
        ("ada", {"augment": "fixed", "augment_p": 0.0}, "train.augment_p=0 changes no image"),
        ("a", {"lod_training_kimg": 0.0001, "lod_transition_kimg": 0.0}, "growing takes time, at least 0.001"),
        ("a", {"tick_kimg_by_resolution": {8: 0.0001}}, "train.tick_kimg=0.0001 is less than one batch"),
        ("a", {"lod_initial_resolution": 6}, "is not a power of two"),
        ("a", {"batch_size_by_resolution": {12: 16}}, "powers of two from 4 up"),
        ("e", {"lr_by_resolution": {8: 0.1}}, "nothing grows"),
        ("e", {"mapping_layers": 0}, "has a mapping network"),
    ],
)
def test_values_without_effect_or_meaning_are_refused(name: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        params_of(name, **changes)


def test_keys_that_dvc_writes_as_text_are_numbers() -> None:
    assert params_of("a", batch_size_by_resolution={"8": 16}).batch_size_by_resolution == {8: 16}
    with pytest.raises(ValueError, match="valid integer"):
        params_of("a", batch_size_by_resolution={"8": 16, 8: 32})


@pytest.mark.parametrize("kind", ["state", "snapshot"])
def test_weights_of_another_family_are_refused(tmp_path: Path, kind: str) -> None:
    """Their tensors may have the same names and sizes."""
    old, new = params_of("e", conditional=False), params_of("d", conditional=False)
    states = [initial_state(p, RESOLUTION, 1, 0, torch.device("cpu")) for p in (old, new)]
    path = tmp_path / "start.safetensors"
    if kind == "state":
        identity = {"data": "x", "params": json.loads(old.model_dump_json())}
        save_state(path, states[0], {"run": "x", "identity": identity})
    else:
        save_snapshot(path, states[0].G_ema, {})
    with pytest.raises(RunError, match="is of family=stylegan2, this run of train.family=stylegan2-growing"):
        start_from(path, states[1], new)
