"""The losses of PGGAN: WGAN-GP with drift, and AC-GAN's cross entropy of classes.

Functions of tensors, as in losses.py: all that is random is drawn by the caller.
Source: Karras et al. 2018 (progressive growing), appendix A; Gulrajani et al. 2017 (WGAN-GP); Odena et al. 2017 (AC-GAN).
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ganops.networks.families import AnyDiscriminator, AnyGenerator, levels_missing
from ganops.networks.layers import NoiseMode
from ganops.networks.pggan_discriminator import PGGANDiscriminator
from ganops.ops.convolution import differentiated_twice
from ganops.training.losses import (
    GRADIENT_SCALE,
    Augment,
    Latents,
    PhaseLoss,
    as_they_are,
    map_latents,
    score_stats,
)


def wgan_gmain_loss(
    G: AnyGenerator,
    D: AnyDiscriminator,
    latents: Latents,
    acgan_weight: float,
    noise_mode: NoiseMode,
    rng: torch.Generator | None,
    augment: Augment = as_they_are,
) -> PhaseLoss:
    """The loss of G: -D(G(z)), and acgan_weight times the cross entropy of the class that it was asked for.

    Gradients flow into D's weights too unless they do not require them.
    """
    ws, w_mean = map_latents(G, latents)
    logits, class_logits = _judge(D, augment(G.synthesis(ws, noise_mode, rng)), latents.c)
    loss = -logits + acgan_weight * class_cross_entropy(class_logits, latents.c)
    stats = {**score_stats("fake", logits), "Loss/G/loss": loss.detach()}
    return PhaseLoss(loss, stats, w_mean, None)


def wgan_dmain_loss(
    G: AnyGenerator,
    D: AnyDiscriminator,
    latents: Latents,
    real_img: Tensor,
    real_c: Tensor,
    mix: Tensor,
    gp_weight: float,
    drift_weight: float,
    acgan_weight: float,
    noise_mode: NoiseMode,
    rng: torch.Generator | None,
    augment_fake: Augment = as_they_are,
    augment_real: Augment = as_they_are,
) -> PhaseLoss:
    """The loss of D: D(fake) - D(real) + gp_weight (|gradient| - 1)^2 + drift_weight D(real)^2 + cross entropies.

    Args:
        G: runs without autograd.
        D: judges fakes, reals and mixtures in three passes.
        latents: of the fakes.
        real_img: [N, C, H, W] in [-1, 1].
        real_c: [N, c_dim].
        mix: [N] uniform in [0, 1): the share of the fake in each mixture that the gradient is taken at.
        gp_weight: 10 as published.
        drift_weight: 0.001 as published: keeps real logits from drifting away.
        acgan_weight: of the cross entropies of real and fake classes; 1 as published.
        noise_mode: of the synthesis.
        rng: of the synthesis noise.
        augment_fake: of the fakes.
        augment_real: of the reals.
    """
    with torch.no_grad():
        ws, w_mean = map_latents(G, latents)
        fake_img = augment_fake(G.synthesis(ws, noise_mode, rng))
        real_img = augment_real(real_img)
    fake_logits, fake_classes = _judge(D, fake_img, latents.c)
    real_logits, real_classes = _judge(D, real_img, real_c)
    penalty = gradient_penalty(D, torch.lerp(real_img, fake_img, mix.to(real_img)[:, None, None, None]), real_c)
    classes = class_cross_entropy(real_classes, real_c) + class_cross_entropy(fake_classes, latents.c)
    loss = fake_logits - real_logits + gp_weight * penalty + drift_weight * real_logits.square()
    loss = loss + acgan_weight * classes
    stats = {
        **score_stats("fake", fake_logits),
        **score_stats("real", real_logits),
        "Loss/gp_penalty": penalty.detach(),
        "Loss/D/loss": loss.detach(),
    }
    return PhaseLoss(loss, stats, w_mean, None)


def gradient_penalty(D: AnyDiscriminator, img: Tensor, c: Tensor) -> Tensor:
    """(|gradient of D at img| - 1)^2, the norm over channels and pixels: [N], differentiable once more.

    While D grows the norm is that at images of the full size, see `losses.dr1_loss`.

    Source: Gulrajani et al. 2017, equation 3.
    """
    img = img.detach().requires_grad_()
    with differentiated_twice():
        logits = D.forward(img, c)
    (gradients,) = torch.autograd.grad(logits.sum() * GRADIENT_SCALE, [img], create_graph=True)
    # The root of zero has no derivative; 1e-12 is nothing beside the 1 that the norm is drawn to.
    squares = (gradients / GRADIENT_SCALE).square().sum(dim=[1, 2, 3]) / 4 ** levels_missing(D)
    norm = (squares + 1e-12).sqrt()
    penalty: Tensor = (norm - 1).square()
    return penalty


def class_cross_entropy(class_logits: Tensor | None, c: Tensor) -> Tensor:
    """[N, c_dim] logits and labels -> [N]; zeros where D tells no classes."""
    if class_logits is None or not c.shape[1]:
        return c.new_zeros(len(c))
    return -(c * F.log_softmax(class_logits, dim=1)).sum(dim=1)


def _judge(D: AnyDiscriminator, img: Tensor, c: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits [N] and, of a D with a class head, class logits [N, c_dim]."""
    if isinstance(D, PGGANDiscriminator):
        logits, class_logits = D.scores_and_classes(img)
        return logits.squeeze(1), class_logits
    logits = D(img, c)
    return logits.squeeze(1), None
