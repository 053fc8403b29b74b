"""What a phase of a step adds up over its micro-batches and over the ranks; and the step of the optimizer."""

from collections.abc import Callable, Mapping
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from ganops.collectives import GradientSum, sum_over_ranks
from ganops.config_train import TrainParams
from ganops.distributed import deal
from ganops.launch import rank, world_size
from ganops.training.losses import GRADIENT_SCALE, PhaseLoss
from ganops.training.state import TrainingState


def own_micro_batches(params: TrainParams) -> range:
    """The numbers of this rank's micro-batches within a batch; all of them without ranks."""
    return deal(params.batch_size // params.batch_gpu, rank(), world_size())


class Accumulator:
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

    def add(
        self,
        index: int,
        main: PhaseLoss,
        gain: float = 1.0,
        regulariser: Callable[[], PhaseLoss] | None = None,
        labels: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Backpropagates micro-batch `index`: the mean of `main` over its samples times `gain`, and of the regulariser.

        Sums over samples are differentiated: float16 would lose gradients of their mean.

        Args:
            index: number of the micro-batch within the batch.
            main: of this phase; it tells the phase's number of samples.
            gain: of `main`.
            regulariser: makes a second loss. It is called when the first one's graph is gone, so that memory never holds
                both.
            labels: "fake" and "real" -> c [N, c_dim] of the main loss's logits, to add up their signs by class.
        """
        self.samples = self.micro_batches * main.loss.numel()
        row: dict[str, Tensor] = {}
        is_last = index == own_micro_batches(self.params)[-1]
        self._backward(main, gain, main.loss.numel(), is_last and regulariser is None, row)
        if regulariser is not None:
            self._backward(regulariser(), 1.0, main.loss.numel(), is_last, row)
        for kind, c in (labels or {}).items():
            signs = main.stats[f"Loss/signs/{kind}"]
            if c.shape[1]:
                has = (c > 0.5).to(c.dtype)  # of label vectors: the attributes that an image has
                row[f"classes/{kind}"] = torch.cat([has.sum(0), signs.to(c) @ has])
        self.rows[index] = row

    def _backward(
        self, phase_loss: PhaseLoss, gain: float, samples: int, is_last: bool, row: dict[str, Tensor]
    ) -> None:
        """Adds the gradients of one loss to the parameters', and what it tells to the micro-batch's row."""
        loss = phase_loss.loss.sum() * (gain * GRADIENT_SCALE * samples / phase_loss.loss.numel())
        with self.gradients.last_backward() if is_last else nullcontext():
            loss.backward()  # type: ignore[no-untyped-call]
        for name, values in phase_loss.stats.items():
            pair = torch.stack([torch.full([], values.numel(), device=values.device), values.sum()])
            row[name] = row[name] + pair if name in row else pair
        if phase_loss.w_mean is not None and "w_mean" not in row:
            row["w_mean"] = phase_loss.w_mean
        if phase_loss.pl_length_mean is not None:
            row["pl_length_mean"] = phase_loss.pl_length_mean.reshape(1)

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
            elif name.startswith("classes/"):
                add_up(self.state.sums, name, column.sum(0).reshape(2, -1))
            else:
                for total in column:
                    add_up(self.state.sums, name, total)
                    if name == "Loss/signs/real":
                        self.state.ada_signs += total
        return gradients


def add_up(sums: dict[str, Tensor], name: str, value: Tensor) -> None:
    """Adds `value` to the sum called `name`, which starts with it."""
    sums[name] = sums[name] + value if name in sums else value.clone()


def apply_gradients(
    state: TrainingState, gradients: list[Tensor], optimizer: torch.optim.Adam, norm_name: str | None
) -> Tensor:
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
        add_up(state.sums, norm_name, torch.stack([one, norm.double()]))
    return nonfinite
