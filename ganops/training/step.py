"""One training step: Gmain, every k-th step Gpl, Dmain, every k-th step Dr1, then G_ema.

Source: Karras et al. 2020 (StyleGAN2), sections 3.1 and 3.2. A batch is dealt in micro-batches of batch_gpu images, and
these to the ranks; gradients are averaged over all of them. Every draw is a function of (seed, phase, nimg,
micro-batch), and what is logged or averaged is added up in the order of micro-batches: no number of ranks is seen.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn

from ganops.collectives import GradientSum, sum_over_ranks
from ganops.config_train import TrainParams
from ganops.distributed import deal, derive_seed, make_generator
from ganops.images.dataset import Batch
from ganops.images.pixels import to_float
from ganops.launch import rank, world_size
from ganops.networks.sampling import one_hot
from ganops.training.batches import to_device
from ganops.training.ema import update_ema
from ganops.training.losses import (
    GRADIENT_SCALE,
    Latents,
    PhaseLoss,
    dmain_loss,
    dr1_loss,
    gmain_loss,
    gpl_loss,
    pl_batch_size,
)
from ganops.training.schedule import adam_values, ema_beta, lr_factor, phase_is_due
from ganops.training.state import TrainingState

CPU = torch.device("cpu")


def train_step(state: TrainingState, params: TrainParams, batch: Batch, class_counts: Sequence[int]) -> None:
    """Trains on one batch in place and advances `state.nimg`. Reads nothing back from the GPU.

    Args:
        state: everything that changes.
        params: section `train`.
        batch: uint8 images [n, C, H, W] and their labels, at best on the state's device: those of this rank's
            micro-batches, in order.
        class_counts: the empirical law that labels of fakes are drawn by.
    """
    set_learning_rates(state, params)
    reals = [
        real_micro_batch(state, params, batch, place, index) for place, index in enumerate(own_micro_batches(params))
    ]
    nonfinite = gmain_phase(state, params, class_counts)
    if params.pl_weight and phase_is_due(state.nimg, params.batch_size, params.pl_interval):
        nonfinite |= gpl_phase(state, params, class_counts)
    nonfinite |= dmain_phase(state, params, class_counts, reals)
    if params.r1_gamma and phase_is_due(state.nimg, params.batch_size, params.r1_interval):
        nonfinite |= dr1_phase(state, params, reals)
    state.nonfinite_steps.copy_(torch.where(nonfinite, state.nonfinite_steps + 1, 0))
    state.nimg += params.batch_size
    update_ema(state.G_ema, state.G, ema_beta(state.nimg, params.batch_size, params.ema_kimg, params.ema_rampup))


def own_micro_batches(params: TrainParams) -> range:
    """The numbers of this rank's micro-batches within a batch; all of them without ranks."""
    return deal(params.batch_size // params.batch_gpu, rank(), world_size())


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


def gmain_phase(state: TrainingState, params: TrainParams, class_counts: Sequence[int]) -> Tensor:
    """G against D. Returns whether a gradient was not finite, like each phase."""
    losses = _Accumulator(state, params, state.G)
    with without_gradients(state.D):
        for index in own_micro_batches(params):
            latents = draw_latents(state, params, "Gmain", index, params.batch_gpu, class_counts)
            rng = make_generator(state.device, random_stream(state, params), "Gmain", "noise", state.nimg, index)
            losses.add(index, gmain_loss(state.G, state.D, latents, "random", rng), gain=1.0)
    return _apply(state, losses.finish(), state.G_opt, "G_grad_norm")


def gpl_phase(state: TrainingState, params: TrainParams, class_counts: Sequence[int]) -> Tensor:
    """Path length regularisation of G, `pl_interval` times as strong since it runs so much more rarely."""
    count = pl_batch_size(params.batch_gpu, params.pl_batch_shrink)
    losses = _Accumulator(state, params, state.G)
    for index in own_micro_batches(params):
        latents = draw_latents(state, params, "Gpl", index, count, class_counts)
        rng = make_generator(state.device, random_stream(state, params), "Gpl", "noise", state.nimg, index)
        shape = [count, state.G.img_channels, state.G.resolution, state.G.resolution]
        pl_noise = torch.randn(shape, device=state.device, generator=rng)
        phase_loss = gpl_loss(
            state.G, latents, pl_noise, state.pl_mean, params.pl_decay, params.pl_weight, "random", rng
        )
        losses.add(index, phase_loss, gain=float(params.pl_interval))
    return _apply(state, losses.finish(), state.G_opt, None)


def dmain_phase(
    state: TrainingState, params: TrainParams, class_counts: Sequence[int], reals: list[tuple[Tensor, Tensor]]
) -> Tensor:
    """D on fakes and reals."""
    losses = _Accumulator(state, params, state.D)
    for index, (real_img, real_c) in zip(own_micro_batches(params), reals, strict=True):
        latents = draw_latents(state, params, "Dmain", index, params.batch_gpu, class_counts)
        rng = make_generator(state.device, random_stream(state, params), "Dmain", "noise", state.nimg, index)
        losses.add(index, dmain_loss(state.G, state.D, latents, real_img, real_c, "random", rng), gain=1.0)
    return _apply(state, losses.finish(), state.D_opt, "D_grad_norm")


def dr1_phase(state: TrainingState, params: TrainParams, reals: list[tuple[Tensor, Tensor]]) -> Tensor:
    """R1 penalty of D on the step's reals, `r1_interval` times as strong since it runs so much more rarely."""
    losses = _Accumulator(state, params, state.D)
    for index, (real_img, real_c) in zip(own_micro_batches(params), reals, strict=True):
        losses.add(index, dr1_loss(state.D, real_img, real_c, params.r1_gamma), gain=float(params.r1_interval))
    return _apply(state, losses.finish(), state.D_opt, None)


def real_micro_batch(
    state: TrainingState, params: TrainParams, batch: Batch, place: int, index: int
) -> tuple[Tensor, Tensor]:
    """Reals of one micro-batch on the device: img [batch_gpu, C, H, W] in [-1, 1], flipped by chance, and c.

    `index` is its number within the step's batch, `place` among those that `batch` holds.
    """
    part = slice(place * params.batch_gpu, (place + 1) * params.batch_gpu)
    img = to_float(to_device(batch.images[part], state.device))
    if params.xflip:
        rng = make_generator(CPU, random_stream(state, params), "xflip", state.nimg, index)
        flip = to_device(torch.randint(2, [params.batch_gpu, 1, 1, 1], generator=rng).to(torch.bool), state.device)
        img = torch.where(flip, img.flip(3), img)
    return img, one_hot(to_device(batch.labels[part], state.device), state.G.c_dim)


def draw_latents(
    state: TrainingState, params: TrainParams, phase: str, index: int, count: int, class_counts: Sequence[int]
) -> Latents:
    """z, labels by the empirical law, and by chance a second z with a cut-off, for one micro-batch of a phase.

    Style mixing has one cut-off per micro-batch, uniform in 1 ... num_ws - 1 (Karras et al. 2019, section 3.1).
    """
    rng = make_generator(CPU, random_stream(state, params), phase, state.nimg, index)
    z = torch.randn([count, params.z_dim], generator=rng)
    labels = torch.zeros(count, dtype=torch.int64)
    if state.G.c_dim:
        bounds = torch.tensor(class_counts, dtype=torch.int64).cumsum(0)
        places = torch.randint(int(bounds[-1]), [count], generator=rng)
        labels = torch.searchsorted(bounds, places, right=True)
    z_mixed, cutoff = None, None
    if torch.rand([], generator=rng) < params.style_mixing_prob:
        cutoff = int(torch.randint(1, state.G.num_ws, [], generator=rng))
        z_mixed = to_device(torch.randn([count, params.z_dim], generator=rng), state.device)
    c = one_hot(to_device(labels, state.device), state.G.c_dim)
    return Latents(to_device(z, state.device), c, z_mixed, cutoff)


class _Accumulator:
    """Gradients, logged sums and running means of one phase, over its micro-batches in their order.

    What the ranks have to tell each other beside gradients is a table with a row per micro-batch, in which each rank
    fills its own rows: added up over the ranks it is the same, bit for bit, for any number of them.
    """

    def __init__(self, state: TrainingState, params: TrainParams, network: nn.Module) -> None:
        self.state = state
        self.params = params
        self.gradients = GradientSum(network.parameters())
        self.micro_batches = params.batch_size // params.batch_gpu
        self.samples = 0  # of the phase, over all ranks
        self.rows: dict[int, dict[str, Tensor]] = {}

    def add(self, index: int, phase_loss: PhaseLoss, gain: float) -> None:
        """Backpropagates the losses of micro-batch `index`, summed: float16 would lose gradients of their mean."""
        self.samples = self.micro_batches * phase_loss.loss.numel()
        loss = phase_loss.loss.sum() * (gain * GRADIENT_SCALE)
        with self.gradients.last_backward() if index == own_micro_batches(self.params)[-1] else nullcontext():
            loss.backward()  # type: ignore[no-untyped-call]
        row = {}
        for name, values in phase_loss.stats.items():
            row[name] = torch.stack([torch.full([], values.numel(), device=values.device), values.sum()])
        if phase_loss.w_mean is not None:
            row["w_mean"] = phase_loss.w_mean
        if phase_loss.pl_length_mean is not None:
            row["pl_length_mean"] = phase_loss.pl_length_mean.reshape(1)
        self.rows[index] = row

    def finish(self) -> list[Tensor]:
        """Adds up gradients and the table; moves w_avg and pl_mean once per phase, by their means over all micro-batches.

        Returns:
            What all gradients lie in, see `GradientSum.finish`.
        """
        gradients = self.gradients.finish()
        torch._foreach_mul_(gradients, 1 / (GRADIENT_SCALE * self.samples))  # those of the mean loss
        first = next(iter(self.rows.values()))
        sizes = [value.numel() for value in first.values()]
        table = torch.zeros([self.micro_batches, sum(sizes)], dtype=torch.float64, device=self.state.device)
        for index, row in self.rows.items():
            table[index] = torch.cat([value.double() for value in row.values()])
        sum_over_ranks(table)
        for name, column in zip(first, torch.split(table, sizes, dim=1), strict=True):
            if name == "w_mean":
                w_avg = self.state.G.w_avg
                w_avg.lerp_(column.to(w_avg.dtype).mean(0), 1.0 - self.params.w_avg_beta)
            elif name == "pl_length_mean":
                pl_mean = self.state.pl_mean
                pl_mean.lerp_(column.to(pl_mean.dtype).mean(), self.params.pl_decay)
            else:
                for total in column:
                    old = self.state.sums.get(name)
                    self.state.sums[name] = total.clone() if old is None else old + total
        return gradients


def _apply(state: TrainingState, gradients: list[Tensor], optimizer: torch.optim.Adam, norm_name: str | None) -> Tensor:
    """One Adam step by all ranks' gradients. NaN counts as 0 and infinity as 1e5, but the caller learns of it.

    `gradients` are those of the optimizer's parameters, or one tensor that they all lie in.
    Source of the two numbers: the StyleGAN2-ADA training loop. The norm is infinite or NaN if any gradient is.
    """
    norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    nonfinite = ~torch.isfinite(norm)
    if norm.device.type == "cuda" or nonfinite:  # asking the GPU would wait for it; on finite numbers this is identity
        for gradient in gradients:
            torch.nan_to_num(gradient, nan=0.0, posinf=1e5, neginf=-1e5, out=gradient)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if norm_name is not None:
        one = torch.ones([], dtype=torch.float64, device=norm.device)
        total = torch.stack([one, norm.double()])
        state.sums[norm_name] = state.sums[norm_name] + total if norm_name in state.sums else total
    return nonfinite


def set_learning_rates(state: TrainingState, params: TrainParams) -> None:
    """Learning rates of this step: the values of lazy regularisation times the warm-up."""
    factor = lr_factor(state.nimg, params.lr_rampup_kimg)
    G_adam = adam_values(params, params.G_lr, params.pl_weight > 0, params.pl_interval)
    D_adam = adam_values(params, params.D_lr, params.r1_gamma > 0, params.r1_interval)
    for optimizer, values in ((state.G_opt, G_adam), (state.D_opt, D_adam)):
        optimizer.param_groups[0]["lr"] = values.lr * factor


def tick_means(state: TrainingState, params: TrainParams) -> dict[str, float | int | None]:
    """The tick's columns of history.csv from `state.sums`; None for a phase that did not run in it."""
    means = {name: float(total[1] / total[0]) for name, total in state.sums.items()}
    return {
        "G_loss": means["Loss/G/loss"],
        "D_loss": means["Loss/D/loss"],
        "real_logits": means["Loss/scores/real"],
        "fake_logits": means["Loss/scores/fake"],
        "real_sign": means["Loss/signs/real"],
        "fake_sign": means["Loss/signs/fake"],
        "r1_penalty": means.get("Loss/r1_penalty"),
        "pl_penalty": means.get("Loss/pl_penalty"),
        "pl_mean": float(state.pl_mean),
        "G_grad_norm": means["G_grad_norm"],
        "D_grad_norm": means["D_grad_norm"],
        "nonfinite_steps": int(state.nonfinite_steps),
        "G_lr": state.G_opt.param_groups[0]["lr"],
        "D_lr": state.D_opt.param_groups[0]["lr"],
        "ema_beta": ema_beta(state.nimg, params.batch_size, params.ema_kimg, params.ema_rampup),
    }
