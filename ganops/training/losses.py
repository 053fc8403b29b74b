"""The four losses of StyleGAN2: Gmain, Gpl, Dmain, Dr1.

Functions of tensors: all that is random (latents, mixing cut-offs, the image noise of the path length) is drawn by the
caller; only the noise inside the synthesis network comes from the generator `rng`. Nothing is changed: the running
means of w and of the path length are moved by the caller, from what the losses report.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import torch
import torch.nn.functional as F
from torch import Tensor

from ganops.networks.families import AnyDiscriminator, AnyGenerator, levels_missing
from ganops.networks.layers import NoiseMode
from ganops.ops.convolution import differentiated_twice

GRADIENT_SCALE = 16.0
"""What is differentiated is multiplied by this and its gradients are divided by it: exactly, it is a power of two.

float16 ends at 6e-8, and gradients of single pixels are smaller: unscaled, half of those of a generator's last layer at
1024 px are zero, with this one in a hundred; up to 65504 there is still room (measured on networks with random weights).
"""


Augment = Callable[[Tensor], Tensor]
"""Images [N, C, H, W] -> as D sees them, the same shape; differentiable twice."""


def as_they_are(img: Tensor) -> Tensor:
    """No augmentation."""
    return img


@dataclass(frozen=True)
class Latents:
    """The inputs of the generator for one micro-batch.

    Args:
        z: [N, z_dim], N(0, 1).
        c: [N, c_dim] one-hot labels; [N, 0] without labels.
        z_mixed: [N, z_dim], the second latent of style mixing, for the layers from `mixing_cutoff` on; None = no mixing.
        mixing_cutoff: 1 to num_ws - 1; None = no mixing.
    """

    z: Tensor
    c: Tensor
    z_mixed: Tensor | None
    mixing_cutoff: int | None


@dataclass(frozen=True)
class PhaseLoss:
    """What a phase gives for one micro-batch of N images.

    Args:
        loss: [N], differentiable; to be averaged over the batch. The factor of lazy regularisation is the caller's.
        stats: values per sample [N], detached, by the names that they are logged under.
        w_mean: [w_dim], mean of w of the unmixed latents, detached; None in phases without a mapping pass.
        pl_length_mean: [], mean path length, detached; None in other phases than Gpl.
    """

    loss: Tensor
    stats: dict[str, Tensor]
    w_mean: Tensor | None
    pl_length_mean: Tensor | None


def gmain_loss(
    G: AnyGenerator,
    D: AnyDiscriminator,
    latents: Latents,
    noise_mode: NoiseMode,
    rng: torch.Generator | None,
    augment: Augment = as_they_are,
) -> PhaseLoss:
    """The non-saturating loss of G, softplus(-D(G(z))).

    Gradients flow into D's weights too unless they do not require them: switch that off, it costs a third of the time.
    Source: Goodfellow et al. 2014, section 3.
    """
    ws, w_mean = map_latents(G, latents)
    logits = D(augment(G.synthesis(ws, noise_mode, rng)), latents.c).squeeze(1)
    loss = F.softplus(-logits)
    stats = {**score_stats("fake", logits), "Loss/G/loss": loss.detach()}
    return PhaseLoss(loss, stats, w_mean, None)


def gpl_loss(
    G: AnyGenerator,
    latents: Latents,
    pl_noise: Tensor,
    pl_mean: Tensor,
    pl_decay: float,
    pl_weight: float,
    noise_mode: NoiseMode,
    rng: torch.Generator | None,
) -> PhaseLoss:
    """Path length regularisation: pl_weight * (length - mean length)^2.

    Args:
        G: its mapping and synthesis get gradients.
        latents: of a smaller batch, see `pl_batch_size`.
        pl_noise: [N, img_channels, resolution, resolution], N(0, 1): the random direction in image space.
        pl_mean: [], the running mean before this phase; left as it is.
        pl_decay: the penalty is taken to pl_mean + pl_decay * (mean length of this micro-batch - pl_mean), and its
            gradient flows through this mean.
        pl_weight: 2 in config-d to f.
        noise_mode: of the synthesis.
        rng: of the synthesis noise.
    Returns:
        loss [N]; `pl_length_mean`, from which the caller moves the running mean once per phase.
    Source: Karras et al. 2020, section 3.2 and equation 4; the constants as in the released code.
    """
    ws, w_mean = map_latents(G, latents)
    with differentiated_twice():
        img = G.synthesis.forward(ws, noise_mode, rng)  # never compiled
    lengths = path_lengths(img, ws, pl_noise)
    target = pl_mean + pl_decay * (lengths.mean() - pl_mean)
    penalty = (lengths - target).square()
    loss = penalty * pl_weight
    stats = {
        "Loss/pl_lengths": lengths.detach(),
        "Loss/pl_penalty": penalty.detach(),
        "Loss/G/reg": loss.detach(),
    }
    return PhaseLoss(loss, stats, w_mean, lengths.detach().mean())


def dmain_loss(
    G: AnyGenerator,
    D: AnyDiscriminator,
    latents: Latents,
    real_img: Tensor,
    real_c: Tensor,
    noise_mode: NoiseMode,
    rng: torch.Generator | None,
    augment_fake: Augment = as_they_are,
    augment_real: Augment = as_they_are,
) -> PhaseLoss:
    """The logistic loss of D, softplus(D(fake)) + softplus(-D(real)); G gets no gradients.

    Args:
        G: runs without autograd.
        D: judges fake and real images in two passes, so minibatch std never mixes them.
        latents: of the fake images.
        real_img: [N, C, H, W] in [-1, 1].
        real_c: [N, c_dim].
        noise_mode: of the synthesis.
        rng: of the synthesis noise.
        augment_fake: of the fakes.
        augment_real: of the reals.
    """
    with torch.no_grad():
        ws, w_mean = map_latents(G, latents)
        fake_img = augment_fake(G.synthesis(ws, noise_mode, rng))
    fake_logits = D(fake_img, latents.c).squeeze(1)
    real_logits = D(augment_real(real_img), real_c).squeeze(1)
    loss = F.softplus(fake_logits) + F.softplus(-real_logits)
    stats = {
        **score_stats("fake", fake_logits),
        **score_stats("real", real_logits),
        "Loss/D/loss": loss.detach(),
    }
    return PhaseLoss(loss, stats, w_mean, None)


def dr1_loss(
    D: AnyDiscriminator, real_img: Tensor, real_c: Tensor, r1_gamma: float, augment: Augment = as_they_are
) -> PhaseLoss:
    """R1 regularisation: r1_gamma / 2 * |gradient of D at real images|^2. `real_img` need not require grad.

    The gradient is that of D after the augmentation, taken at the images before it (Karras et al. 2020, ADA). While D
    grows it is as strong as at images of the full size, each pixel a square of equal ones, which D averages: a gradient
    by one small pixel is the sum of those by the f^2 equal ones, so its square is f^2 times the sum of theirs.
    """
    real_img = real_img.detach().requires_grad_()
    with differentiated_twice():
        real_logits = D.forward(augment(real_img), real_c)  # never compiled
    penalty = r1_penalty(real_img, real_logits) / 4 ** levels_missing(D)
    loss = penalty * (r1_gamma / 2)
    stats = {
        **score_stats("real", real_logits.squeeze(1)),
        "Loss/r1_penalty": penalty.detach(),
        "Loss/D/reg": loss.detach(),
    }
    return PhaseLoss(loss, stats, None, None)


def r1_penalty(real_img: Tensor, real_logits: Tensor) -> Tensor:
    """Squared gradient norm of the discriminator at real images.

    Args:
        real_img: [N, C, H, W] in [-1, 1], requires grad.
        real_logits: [N, 1], computed from `real_img`.
    Returns:
        [N], >= 0, not yet times gamma / 2. Differentiable once more (needed to train D).
    Raises:
        ValueError: `real_img` does not require grad.
    Source: Mescheder et al. 2018. Lazy weighting is the caller's (Karras et al. 2020, section 3.1).
    """
    if not real_img.requires_grad:
        raise ValueError("r1_penalty needs real_img with requires_grad=True before D is called.")
    (gradients,) = torch.autograd.grad(real_logits.sum() * GRADIENT_SCALE, [real_img], create_graph=True)
    return (gradients / GRADIENT_SCALE).square().sum(dim=[1, 2, 3])


def path_lengths(img: Tensor, ws: Tensor, pl_noise: Tensor) -> Tensor:
    """How much images move per step in w, along a random direction in image space.

    Args:
        img: [N, C, H, W], computed from `ws`.
        ws: [N, num_ws, w_dim], requires grad.
        pl_noise: [N, C, H, W], N(0, 1); divided here by sqrt(H * W).
    Returns:
        [N], >= 0: root mean over the layers of the squared gradient norm. Differentiable once more.
    Source: Karras et al. 2020, section 3.2.
    """
    noise = pl_noise.to(img.dtype) / sqrt(img.shape[2] * img.shape[3])
    (gradients,) = torch.autograd.grad((img * noise).sum() * GRADIENT_SCALE, [ws], create_graph=True)
    return (gradients / GRADIENT_SCALE).square().sum(dim=2).mean(dim=1).sqrt()


def pl_batch_size(batch: int, pl_batch_shrink: int) -> int:
    """Images of a micro-batch in phase Gpl, at least one."""
    return max(batch // pl_batch_shrink, 1)


def map_latents(G: AnyGenerator, latents: Latents) -> tuple[Tensor, Tensor]:
    """ws [N, num_ws, w_dim] with style mixing, and the mean [w_dim] of w of the first latents, detached."""
    w = G.mapping(latents.z, latents.c)
    ws = w[:, None].repeat(1, G.num_ws, 1)  # not expanded: a compiler would make one graph for it, one for mixed ws
    if latents.z_mixed is not None and latents.mixing_cutoff is not None:
        # Both latents share the label: mixing styles of two classes is not what the label says.
        w_mixed = G.mapping(latents.z_mixed, latents.c)
        num_mixed = G.num_ws - latents.mixing_cutoff
        ws = torch.cat([ws[:, : latents.mixing_cutoff], w_mixed[:, None].expand(-1, num_mixed, -1)], dim=1)
    return ws, w.detach().mean(dim=0)


def score_stats(name: str, logits: Tensor) -> dict[str, Tensor]:
    """Logits [N] and their signs, for the log."""
    logits = logits.detach()
    return {f"Loss/scores/{name}": logits, f"Loss/signs/{name}": logits.sign()}
