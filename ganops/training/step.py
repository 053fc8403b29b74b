"""One training step: Gmain, every k-th step Gpl, Dmain, every k-th step Dr1, then G_ema.

Source: Karras et al. 2020 (StyleGAN2), sections 3.1 and 3.2. A batch is dealt in micro-batches of batch_gpu images, and
these to the ranks; gradients are averaged over all of them. Every draw is a function of (seed, phase, nimg,
micro-batch), and what is logged or averaged is added up in the order of micro-batches: no number of ranks is seen.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from ganops.config_train import TrainParams
from ganops.distributed import derive_seed, make_generator
from ganops.images.dataset import Batch
from ganops.images.pixels import to_float
from ganops.networks.families import GROWING, AnyGenerator, active_ws, lod_of
from ganops.networks.growing import fade_reals
from ganops.networks.law import LabelLaw, draw_places, labels_at
from ganops.networks.sampling import encode_labels
from ganops.training.accumulate import Accumulator, apply_gradients, own_micro_batches
from ganops.training.augment import augment, draw_augmentation
from ganops.training.batches import to_device
from ganops.training.diffaugment import diffaugment, draw_diffaugment
from ganops.training.ema import update_ema
from ganops.training.losses import (
    Augment,
    Latents,
    PhaseLoss,
    as_they_are,
    dmain_loss,
    dr1_loss,
    gmain_loss,
    gpl_loss,
    pl_batch_size,
)
from ganops.training.schedule import (
    Moment,
    adam_values,
    ema_beta,
    lod_at,
    lr_factor,
    moment,
    phase_is_due,
    previous_step,
)
from ganops.training.state import TrainingState
from ganops.training.wgan import wgan_dmain_loss, wgan_gmain_loss

CPU = torch.device("cpu")


def train_step(state: TrainingState, params: TrainParams, batch: Batch, law: LabelLaw) -> None:
    """Trains on one batch in place and advances `state.nimg`. Reads nothing back from the GPU, but ADA's statistic.

    Args:
        state: everything that changes.
        params: section `train`.
        batch: images [n, C, H, W] of 8 or 16 bits and their labels, at best on the state's device: those of this rank's
            micro-batches, in order.
        law: how often each label is there: what labels of fakes are drawn by.
    """
    now = moment(params, state.G.resolution, state.nimg)
    params = now.params
    set_lod(state, now.lod)
    if now.new_lod and params.reset_opt_for_new_lod:
        reset_optimizers(state)
    set_learning_rates(state, params)
    nonfinite = torch.zeros([], dtype=torch.bool, device=state.device)
    if not params.D_first:
        nonfinite |= train_G(state, params, law, now)
    nonfinite |= train_D(state, params, law, batch, now)
    if params.D_first:
        nonfinite |= train_G(state, params, law, now)
    state.nonfinite_steps.copy_(torch.where(nonfinite, state.nonfinite_steps + 1, 0))
    if params.augment == "ada" and (now.step + 1) % params.ada_interval == 0:
        move_augment_p(state, params)
    update_ema(state.G_ema, state.G, ema_beta(state.nimg, params))
    state.nimg += params.batch_size
    set_lod(state, lod_at(params, state.G.resolution, state.nimg))  # what is shown of the state is a function of nimg


def train_G(state: TrainingState, params: TrainParams, law: LabelLaw, now: Moment) -> Tensor:
    """The phases of G, in one of train.D_repeats steps: the first of them, or the last when D goes first."""
    turn = params.D_repeats - 1 if params.D_first else 0
    if now.step % params.D_repeats != turn:
        return torch.zeros([], dtype=torch.bool, device=state.device)
    nonfinite = gmain_phase(state, params, law)
    due = params.pl_interval > 1 and phase_is_due(now.step // params.D_repeats, params.pl_interval)
    if params.pl_weight and due:
        nonfinite |= gpl_phase(state, params, law)
    return nonfinite


def train_D(
    state: TrainingState,
    params: TrainParams,
    law: LabelLaw,
    batch: Batch,
    now: Moment,
) -> Tensor:
    """The phases of D, in every step."""
    nonfinite = dmain_phase(state, params, law, batch)
    if params.r1_gamma and params.r1_interval > 1 and phase_is_due(now.step, params.r1_interval):
        nonfinite |= dr1_phase(state, params, batch)
    return nonfinite


def set_lod(state: TrainingState, lod: float) -> None:
    """Tells networks that grow how far they have grown; no tensor changes."""
    for network in (state.G, state.D, state.G_ema):
        if isinstance(network, GROWING):
            network.set_lod(lod)


def reset_optimizers(state: TrainingState) -> None:
    """Adam starts anew: its moments are of layers whose task has changed (Karras et al. 2018, released code)."""
    for optimizer in (state.G_opt, state.D_opt):
        torch._foreach_zero_([value for moments in optimizer.state.values() for value in moments.values()])


def move_augment_p(state: TrainingState, params: TrainParams) -> None:
    """ADA: p goes up where D is too sure of real images, and down where it is not; the statistic starts anew.

    The mean sign of D on real images is of all micro-batches, of phases Dmain and Dr1, since the last move. Waits for the
    GPU, once every ada_interval steps: what is drawn next depends on it.
    Source: Karras et al. 2020 (Training GANs with limited data), section 3.
    """
    count, total = state.ada_signs.tolist()
    if count:
        change = params.batch_size * params.ada_interval / (params.ada_kimg * 1000)
        excess = total / count - params.ada_target
        p = state.augment_p + change * ((excess > 0) - (excess < 0))
        state.augment_p = min(max(p, 0.0), params.ada_max_p)
    state.ada_signs.zero_()


def present_p(state: TrainingState, params: TrainParams) -> float:
    """The probability of augmentations: ADA's present one, or the fixed one."""
    return state.augment_p if params.augment == "ada" else params.augment_p


def make_augment(state: TrainingState, params: TrainParams, phase: str, kind: str, index: int, p: float) -> Augment:
    """The augmentation of one micro-batch with probability `p`: a function of (seed, phase, fake or real, nimg, index).

    Each image of the batch draws its own; where p is zero, images stay as they are.
    """
    if params.augment == "none" or not p:
        return as_they_are
    where = (random_stream(state, params), "augment", phase, kind, state.nimg, index)

    def augmented(img: Tensor) -> Tensor:
        rng = make_generator(CPU, *where)
        count, channels, height, width = img.shape
        if params.augment == "diffaugment":
            return diffaugment(img, draw_diffaugment(params.diffaugment_policy, p, count, height, width, rng))
        drawn = draw_augmentation(params.augment_set, p, count, height, width, channels, rng)
        return augment(img, drawn, make_generator(img.device, *where, "noise"))

    return augmented


def random_stream(state: TrainingState, params: TrainParams) -> int:
    """The seed of all that is drawn in steps: train.seed, and another one after each roll-back."""
    return derive_seed(params.seed, "retry", len(state.retries)) if state.retries else params.seed


@contextmanager
def without_gradients(network: nn.Module) -> Iterator[None]:
    """Keeps a network's parameters from being differentiated; those that are frozen anyway stay so afterwards."""
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    for parameter in learning:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)


def gmain_phase(state: TrainingState, params: TrainParams, law: LabelLaw) -> Tensor:
    """G against D, and path length regularisation if it is of every step. Returns whether a gradient was not finite."""
    joined = params.pl_weight > 0 and params.pl_interval == 1
    losses = Accumulator(state, params, state.G)
    with without_gradients(state.D):
        for index in own_micro_batches(params):
            latents = draw_latents(state, params, "Gmain", index, params.batch_gpu, law)
            rng = make_generator(state.device, random_stream(state, params), "Gmain", "noise", state.nimg, index)
            args = (state.G, state.D, latents)
            augment_fake = make_augment(state, params, "Gmain", "fake", index, present_p(state, params))
            if params.loss == "wgan-gp":
                main = wgan_gmain_loss(*args, params.acgan_weight, "random", rng, augment_fake)
            else:
                main = gmain_loss(*args, "random", rng, augment_fake)
            losses.add(index, main, regulariser=partial(_gpl_of, state, params, law, index) if joined else None)
    return apply_gradients(state, losses.finish(), state.G_opt, "G_grad_norm")


def gpl_phase(state: TrainingState, params: TrainParams, law: LabelLaw) -> Tensor:
    """Path length regularisation of G, `pl_interval` times as strong since it runs so much more rarely."""
    losses = Accumulator(state, params, state.G)
    for index in own_micro_batches(params):
        losses.add(index, _gpl_of(state, params, law, index), float(params.pl_interval))
    return apply_gradients(state, losses.finish(), state.G_opt, None)


def _gpl_of(state: TrainingState, params: TrainParams, law: LabelLaw, index: int) -> PhaseLoss:
    count = pl_batch_size(params.batch_gpu, params.pl_batch_shrink)
    latents = draw_latents(state, params, "Gpl", index, count, law)
    rng = make_generator(state.device, random_stream(state, params), "Gpl", "noise", state.nimg, index)
    pl_noise = torch.randn([count, *image_shape(state.G)], device=state.device, generator=rng)
    return gpl_loss(state.G, latents, pl_noise, state.pl_mean, params.pl_decay, params.pl_weight, "random", rng)


def dmain_phase(state: TrainingState, params: TrainParams, law: LabelLaw, batch: Batch) -> Tensor:
    """D on fakes and reals, and the R1 penalty if it is of every step."""
    joined = params.r1_gamma > 0 and params.r1_interval == 1
    losses = Accumulator(state, params, state.D)
    for place, index in enumerate(own_micro_batches(params)):
        real_img, real_c = real_micro_batch(state, params, batch, place, index)
        latents = draw_latents(state, params, "Dmain", index, params.batch_gpu, law)
        rng = make_generator(state.device, random_stream(state, params), "Dmain", "noise", state.nimg, index)
        args = (state.G, state.D, latents, real_img, real_c)
        p = present_p(state, params)
        augments = [make_augment(state, params, "Dmain", kind, index, p) for kind in ("fake", "real")]
        if params.loss == "wgan-gp":
            mix_rng = make_generator(CPU, random_stream(state, params), "Dmain", "mix", state.nimg, index)
            mix = to_device(torch.rand(params.batch_gpu, generator=mix_rng), state.device)
            weights = (params.gp_weight, params.drift_weight, params.acgan_weight)
            main = wgan_dmain_loss(*args, mix, *weights, "random", rng, *augments)
        else:
            main = dmain_loss(*args, "random", rng, *augments)
        regulariser = partial(_dr1_of, state, params, real_img, real_c, index) if joined else None
        losses.add(index, main, regulariser=regulariser, labels={"fake": latents.c, "real": real_c})
    return apply_gradients(state, losses.finish(), state.D_opt, "D_grad_norm")


def dr1_phase(state: TrainingState, params: TrainParams, batch: Batch) -> Tensor:
    """R1 penalty of D on the step's reals, `r1_interval` times as strong since it runs so much more rarely."""
    losses = Accumulator(state, params, state.D)
    for place, index in enumerate(own_micro_batches(params)):
        real_img, real_c = real_micro_batch(state, params, batch, place, index)
        losses.add(index, _dr1_of(state, params, real_img, real_c, index), float(params.r1_interval))
    return apply_gradients(state, losses.finish(), state.D_opt, None)


def _dr1_of(state: TrainingState, params: TrainParams, real_img: Tensor, real_c: Tensor, index: int) -> PhaseLoss:
    augment_real = make_augment(state, params, "Dr1", "real", index, present_p(state, params))
    return dr1_loss(state.D, real_img, real_c, params.r1_gamma, augment_real)


def image_shape(G: AnyGenerator) -> tuple[int, int, int]:
    """[C, H, W] of the images that G makes and D sees, as far as they have grown."""
    missing = math.floor(lod_of(G))
    return G.img_channels, G.size[0] >> missing, G.size[1] >> missing


def real_micro_batch(
    state: TrainingState, params: TrainParams, batch: Batch, place: int, index: int
) -> tuple[Tensor, Tensor]:
    """Reals of one micro-batch on the device: img [batch_gpu, C, H, W] in [-1, 1], flipped by chance, and c.

    `index` is its number within the step's batch, `place` among those that `batch` holds. While G grows they are made as
    small as its images, and fade like them. Made anew in each phase: floats of a whole batch would fill the GPU.
    """
    part = slice(place * params.batch_gpu, (place + 1) * params.batch_gpu)
    img = to_float(to_device(batch.images[part], state.device))
    if params.xflip:
        rng = make_generator(CPU, random_stream(state, params), "xflip", state.nimg, index)
        flip = to_device(torch.randint(2, [params.batch_gpu, 1, 1, 1], generator=rng).to(torch.bool), state.device)
        img = torch.where(flip, img.flip(3), img)
    if lod_of(state.G):
        img = fade_reals(img, lod_of(state.G))
    return img, encode_labels(to_device(batch.labels[part], state.device), state.G.c_dim)


def draw_latents(
    state: TrainingState, params: TrainParams, phase: str, index: int, count: int, law: LabelLaw
) -> Latents:
    """z, labels by the empirical law, and by chance a second z with a cut-off, for one micro-batch of a phase.

    Style mixing has one cut-off per micro-batch, uniform in 1 ... num_ws - 1 (Karras et al. 2019, section 3.1).
    """
    rng = make_generator(CPU, random_stream(state, params), phase, state.nimg, index)
    z = torch.randn([count, params.z_dim], generator=rng)
    labels = torch.zeros(count, dtype=torch.int64)
    if state.G.c_dim:
        labels = labels_at(law, draw_places(law, count, rng))
    z_mixed, cutoff = None, None
    if torch.rand([], generator=rng) < params.style_mixing_prob:
        cutoff = int(torch.randint(1, active_ws(state.G), [], generator=rng))
        z_mixed = to_device(torch.randn([count, params.z_dim], generator=rng), state.device)
    c = encode_labels(to_device(labels, state.device), state.G.c_dim)
    return Latents(to_device(z, state.device), c, z_mixed, cutoff)


def set_learning_rates(state: TrainingState, params: TrainParams) -> None:
    """Learning rates of this step."""
    rates = learning_rates(params, state.nimg)
    for optimizer, lr in zip((state.G_opt, state.D_opt), rates, strict=True):
        optimizer.param_groups[0]["lr"] = lr


def learning_rates(params: TrainParams, nimg: int) -> tuple[float, float]:
    """Of G and D in the step that starts at `nimg`: the values of lazy regularisation times the warm-up."""
    factor = lr_factor(nimg, params.lr_rampup_kimg)
    G_adam = adam_values(params, params.G_lr, params.pl_weight, params.pl_interval)
    D_adam = adam_values(params, params.D_lr, params.r1_gamma, params.r1_interval)
    return G_adam.lr * factor, D_adam.lr * factor


def tick_means(state: TrainingState, params: TrainParams) -> dict[str, float | int | None]:
    """The tick's columns of history.csv from `state.sums`; None for a phase that did not run in it."""
    means = {name: float(total[1] / total[0]) for name, total in state.sums.items() if total.dim() == 1}
    # Of the last step, whether this process has run it or was started again behind it.
    last_nimg = previous_step(params, state.G.resolution, state.nimg)
    before = moment(params, state.G.resolution, last_nimg)
    G_lr, D_lr = learning_rates(before.params, last_nimg)
    return {
        "G_loss": means.get("Loss/G/loss"),
        "D_loss": means["Loss/D/loss"],
        "real_logits": means["Loss/scores/real"],
        "fake_logits": means["Loss/scores/fake"],
        "real_sign": means["Loss/signs/real"],
        "fake_sign": means["Loss/signs/fake"],
        "r1_penalty": means.get("Loss/r1_penalty"),
        "gp_penalty": means.get("Loss/gp_penalty"),
        "pl_penalty": means.get("Loss/pl_penalty"),
        "pl_mean": float(state.pl_mean),
        "G_grad_norm": means.get("G_grad_norm"),
        "D_grad_norm": means["D_grad_norm"],
        "nonfinite_steps": int(state.nonfinite_steps),
        "augment_p": state.augment_p if params.augment == "ada" else None,
        "lod": before.lod if params.lod_initial_resolution is not None else None,
        "batch_size": before.params.batch_size,
        "G_lr": G_lr,
        "D_lr": D_lr,
        "ema_beta": ema_beta(last_nimg, before.params),
    }
