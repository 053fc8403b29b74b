"""Losses: closed forms, style mixing, what gets gradients and what is left as it is."""

import math

import pytest
import torch
from torch import Tensor

from ganops.training.losses import (
    Latents,
    dmain_loss,
    dr1_loss,
    gmain_loss,
    gpl_loss,
    map_latents,
    path_lengths,
    pl_batch_size,
    r1_penalty,
)
from tests.tolerances import assert_close
from tests.unit.test_networks import latents, make_discriminator, make_generator, seeded


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def test_r1_penalty_of_a_linear_and_a_quadratic_function() -> None:
    weight = normal(3, 4, 4)
    x = normal(5, 3, 4, 4, seed=1).requires_grad_()
    linear = (x * weight).sum(dim=[1, 2, 3])[:, None]
    assert_close(r1_penalty(x, linear), weight.square().sum().expand(5), "closed_form_float64")
    quadratic = (x.square() / 2).sum(dim=[1, 2, 3])[:, None]
    penalty = r1_penalty(x, quadratic)
    assert_close(penalty, x.square().sum(dim=[1, 2, 3]), "closed_form_float64")
    # Once more: d |x|^2 / dx = 2x.
    assert_close(torch.autograd.grad(penalty.sum(), [x])[0], 2 * x, "closed_form_float64")


def test_r1_penalty_needs_a_gradient() -> None:
    with pytest.raises(ValueError, match="requires_grad=True"):
        r1_penalty(torch.zeros(1, 1, 4, 4), torch.zeros(1, 1))


def test_path_lengths_of_a_linear_map() -> None:
    """img = A w: the gradient of <img, y> is A' y."""
    N, num_ws, w_dim, H = 3, 2, 5, 4
    A = normal(num_ws, H * H, w_dim)
    ws = normal(N, num_ws, w_dim, seed=1).requires_grad_()
    img = torch.einsum("lpd,nld->np", A, ws).reshape(N, 1, H, H)
    y = normal(N, 1, H, H, seed=2)
    gradients = torch.einsum("lpd,np->nld", A, y.reshape(N, -1)) / H
    expected = gradients.square().sum(dim=2).mean(dim=1).sqrt()
    assert_close(path_lengths(img, ws, y), expected, "closed_form_float64")


def test_main_losses_are_logistic() -> None:
    G, D = make_generator(seeded(), c_dim=3), make_discriminator(seeded(1), c_dim=3)
    z, c = latents(G)
    real = torch.randn(4, 3, 16, 16, generator=seeded(2))
    inputs = Latents(z, c, None, None)
    with torch.no_grad():
        fake = D(G(z, c, 1.0, None, "const", None), c)[:, 0]
        judged = D(real, c)[:, 0]
    g = gmain_loss(G, D, inputs, "const", None)
    assert_close(g.loss, torch.log1p((-fake).exp()), "twin_float32")
    d = dmain_loss(G, D, inputs, real, c, "const", None)
    assert_close(d.loss, torch.log1p(fake.exp()) + torch.log1p((-judged).exp()), "twin_float32")
    assert_close(d.stats["Loss/scores/real"], judged, "twin_float32")
    assert set(g.stats) == {"Loss/scores/fake", "Loss/signs/fake", "Loss/G/loss"}
    real_and_fake = {f"Loss/{kind}/{which}" for kind in ("scores", "signs") for which in ("real", "fake")}
    assert set(d.stats) == real_and_fake | {"Loss/D/loss"}
    for phase in (g, d):
        assert phase.loss.shape == (4,)
        assert all(value.shape == (4,) and not value.requires_grad for value in phase.stats.values())
        assert phase.w_mean is not None
        assert_close(phase.w_mean, G.mapping(z, c).mean(dim=0), "twin_float32")
        assert not phase.w_mean.requires_grad


def test_generator_gets_no_gradients_in_dmain() -> None:
    G, D = make_generator(seeded()), make_discriminator(seeded(1))
    z, c = latents(G)
    dmain_loss(G, D, Latents(z, c, None, None), torch.zeros(4, 3, 16, 16), c, "none", None).loss.mean().backward()
    assert all(parameter.grad is None for parameter in G.parameters())
    assert all(parameter.grad is not None for parameter in D.parameters())


def test_dr1_loss_is_half_gamma_times_the_penalty() -> None:
    D = make_discriminator(seeded())
    real = torch.randn(4, 3, 16, 16, generator=seeded(1))
    loss = dr1_loss(D, real, torch.zeros(4, 0), 10.0)
    assert_close(loss.loss, 5 * loss.stats["Loss/r1_penalty"], "twin_float32")
    assert not real.requires_grad
    assert loss.w_mean is None
    assert set(loss.stats) == {"Loss/scores/real", "Loss/signs/real", "Loss/r1_penalty", "Loss/D/reg"}


def test_gpl_loss_uses_and_leaves_the_running_mean() -> None:
    G = make_generator(seeded()).double()
    z, c = (x.double() for x in latents(G))
    pl_mean = torch.tensor(0.4, dtype=torch.float64)
    y = normal(4, 3, 16, 16)
    loss = gpl_loss(G, Latents(z, c, None, None), y, pl_mean, 0.1, 2.0, "const", None)
    lengths = loss.stats["Loss/pl_lengths"]
    target = 0.4 + 0.1 * (float(lengths.mean()) - 0.4)
    assert_close(loss.loss, 2 * (lengths - target) ** 2, "closed_form_float64")
    assert float(pl_mean) == 0.4
    assert loss.pl_length_mean is not None
    assert math.isclose(float(loss.pl_length_mean), float(lengths.mean()))


def test_gpl_gradient_flows_through_the_moved_mean() -> None:
    """With decay 1 the target is the batch's own mean, so for one image the penalty and its gradient vanish."""
    G = make_generator(seeded()).double()
    z, c = (x.double() for x in latents(G, 1))
    loss = gpl_loss(G, Latents(z, c, None, None), normal(1, 3, 16, 16), torch.tensor(0.4), 1.0, 2.0, "none", None)
    lengths = loss.loss.mean()
    lengths.backward()
    assert all(p.grad is None or float(p.grad.abs().max()) < 1e-12 for p in G.parameters())


def test_style_mixing_takes_the_second_latent_from_the_cutoff_on() -> None:
    G = make_generator(seeded(), c_dim=3)
    z, c = latents(G)
    z_mixed = torch.randn(4, 8, generator=seeded(7))
    ws, w_mean = map_latents(G, Latents(z, c, z_mixed, 2))
    first, second = G.mapping(z, c), G.mapping(z_mixed, c)
    assert ws.shape == (4, 6, 12)
    assert torch.equal(ws, torch.stack([first, first, second, second, second, second], dim=1))
    assert_close(w_mean, first.mean(dim=0), "twin_float32")
    plain, _ = map_latents(G, Latents(z, c, None, None))
    assert torch.equal(plain, first[:, None].expand(-1, 6, -1))


@pytest.mark.parametrize(("batch", "shrink", "expected"), [(8, 2, 4), (1, 2, 1), (3, 2, 1), (5, 1, 5), (2, 8, 1)])
def test_pl_batch_size(batch: int, shrink: int, expected: int) -> None:
    assert pl_batch_size(batch, shrink) == expected


def test_losses_change_nothing_but_gradients() -> None:
    G, D = make_generator(seeded()), make_discriminator(seeded(1))
    before = {name: tensor.clone() for net in (G, D) for name, tensor in net.state_dict().items()}
    z, c = latents(G)
    inputs, real = Latents(z, c, None, None), torch.zeros(4, 3, 16, 16)
    gmain_loss(G, D, inputs, "random", seeded()).loss.mean().backward()
    gpl_loss(G, inputs, real + 1, torch.zeros([]), 0.01, 2.0, "random", seeded()).loss.mean().backward()
    dmain_loss(G, D, inputs, real, c, "random", seeded()).loss.mean().backward()
    dr1_loss(D, real, c, 1.0).loss.mean().backward()
    assert all(torch.equal(before[name], tensor) for net in (G, D) for name, tensor in net.state_dict().items())
