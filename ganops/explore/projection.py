"""A latent, and noise images, from which a network makes a given image: the optimisation, step by step, resumable.

Source: Karras et al. 2020, appendix D; one w per layer (w+) as in Abdal et al. 2019.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ganops.config_tools import ProjectParams
from ganops.distributed import make_generator
from ganops.errors import DataError, WeightsError
from ganops.explore.distance import Distance
from ganops.files import write_bytes
from ganops.images.pixels import to_uint8
from ganops.networks.families import AnyGenerator, full_size
from ganops.networks.sampling import CPU
from ganops.networks.snapshot import METADATA_KEY
from ganops.precision import full_float32

NOISE_LEAST = 8  # px; noise images are compared with themselves down to this size
COLUMNS = ("loss", "distance", "noise_penalty", "learning_rate")


@dataclass(frozen=True)
class Start:
    """Where the optimisation starts.

    Attributes:
        w_mean: [w_dim].
        w_std: root of the mean squared distance of w from its mean.
    """

    w_mean: Tensor
    w_std: float


class Projection:
    """The state of an optimisation: what moves, Adam's moments, and what was noted on the way.

    Args:
        G: in float32, on any device; only copies of its noise images are changed.
        p: section project.
        start: of w.
        distance: to the target image.
    """

    def __init__(self, G: AnyGenerator, p: ProjectParams, start: Start, distance: Distance) -> None:
        self.G, self.p, self.distance, self.w_std = G, p, distance, start.w_std
        layers = 1 if p.space == "w" else G.num_ws
        self.step = 0
        self.w = start.w_mean.detach().repeat(1, layers, 1).requires_grad_()
        self.noises = {
            name: noise.detach().clone().requires_grad_()
            for name, noise in sorted(G.synthesis.named_buffers())
            if p.optimise_noise and name.rpartition(".")[2] == "noise_const"
        }
        self.optimizer = torch.optim.Adam([self.w, *self.noises.values()], lr=p.learning_rate)
        self.rows = torch.zeros(0, len(COLUMNS), dtype=torch.float64)
        self.pictures = torch.zeros(0, G.img_channels, *G.size, dtype=torch.uint8)

    def ws(self) -> Tensor:
        """[1, num_ws, w_dim] as it is now, without gradients."""
        return self.w.detach().expand(-1, self.G.num_ws, -1).contiguous()

    def synthesize(self, w: Tensor) -> Tensor:
        """The image of w [1, 1 or num_ws, w_dim] with the noise images as they are now: [1, C, H, W]."""
        # The network reads its constant noise from buffers; for this call these stand in for them.
        arguments = (w.expand(-1, self.G.num_ws, -1), "const", None)
        img: Tensor = torch.func.functional_call(self.G.synthesis, self.noises, arguments)
        return full_size(self.G, img)

    @torch.no_grad()
    def result(self) -> tuple[Tensor, float]:
        """The image as it is now, without noise on w: [C, H, W] uint8 on the CPU; and its distance to the target."""
        with full_float32():
            img = self.synthesize(self.w)
            return to_uint8(img)[0].cpu(), float(self.distance.to_target(img).sum())

    def run(self) -> Iterator[int]:
        """Goes on to the last step; yields the number of steps done after each.

        Raises:
            WeightsError: the loss is no longer finite.
        """
        while self.step < self.p.steps:
            with full_float32():
                self._advance()
            yield self.step

    def _advance(self) -> None:
        p, t = self.p, self.step / self.p.steps
        rate = p.learning_rate * rate_at(t, p.lr_rampup, p.lr_rampdown)
        self.optimizer.param_groups[0]["lr"] = rate
        scale = p.w_noise * self.w_std * max(0.0, 1 - t / p.w_noise_ramp) ** 2
        rng = make_generator(CPU, p.seed, "project", self.step)
        noise = torch.randn(self.w.shape, generator=rng).to(self.w.device)
        distance = self.distance.to_target(self.synthesize(self.w + scale * noise)).sum()
        penalty = noise_penalty(list(self.noises.values())) if self.noises else torch.zeros_like(distance)
        loss = distance + p.noise_weight * penalty
        if not math.isfinite(float(loss.detach())):
            raise WeightsError(
                f"project: the loss is not finite at step {self.step}. Lower project.learning_rate, or take a snapshot "
                "from before the run diverged."
            )
        parameters = [self.w, *self.noises.values()]
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        self.optimizer.step()
        with torch.no_grad():
            for image in self.noises.values():
                image.sub_(image.mean()).mul_(image.square().mean().rsqrt())
        row = [float(value) for value in (loss.detach(), distance.detach(), penalty.detach(), rate)]
        self.rows = torch.cat([self.rows, torch.tensor([row], dtype=torch.float64)])
        self.step += 1
        if self.step in strip_steps(p):
            self.pictures = torch.cat([self.pictures, self.result()[0][None]])

    def save(self, path: Path) -> None:
        """Writes all that `load` needs to go on with the same bits."""
        tensors = {"rows": self.rows, "pictures": self.pictures}
        for name, parameter in self._named().items():
            tensors[f"value/{name}"] = parameter
            tensors |= {f"adam/{name}/{key}": value for key, value in self.optimizer.state[parameter].items()}
        header = json.dumps({"step": self.step})
        content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        write_bytes(path, safetensors.torch.save(content, {METADATA_KEY: header}))

    def load(self, path: Path) -> None:
        """Goes back to what `save` wrote.

        Raises:
            DataError: the file is damaged, or of other values.
        """
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                step = json.loads(file.metadata()[METADATA_KEY])["step"]
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
            with torch.no_grad():
                for name, parameter in self._named().items():
                    value = tensors[f"value/{name}"]
                    if value.shape != parameter.shape:
                        raise ValueError(f"{name} is {list(value.shape)} instead of {list(parameter.shape)}")
                    parameter.copy_(value)
                    moments = {
                        key: tensors[f"adam/{name}/{key}"].to(parameter.device) for key in ("exp_avg", "exp_avg_sq")
                    }
                    self.optimizer.state[parameter] = {"step": tensors[f"adam/{name}/step"], **moments}
            self.step, self.rows, self.pictures = step, tensors["rows"], tensors["pictures"]
        except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{path} cannot be used ({error}). Remove it to start again.") from None

    def _named(self) -> dict[str, Tensor]:
        return {"w": self.w, **self.noises}


def strip_steps(p: ProjectParams) -> list[int]:
    """After which steps there is a picture; the last one is the result, and no picture of its own."""
    return sorted({math.ceil(p.steps * number / (p.strip_steps + 1)) for number in range(1, p.strip_steps + 1)})


def rate_at(t: float, rampup: float, rampdown: float) -> float:
    """Share of the learning rate at t in [0, 1): linear from 0 in the first `rampup`, cosine to 0 in the last `rampdown`."""
    up = min(1.0, t / rampup) if rampup else 1.0
    down = min(1.0, (1 - t) / rampdown) if rampdown else 1.0
    return up * (0.5 - 0.5 * math.cos(math.pi * down))


def noise_penalty(noises: list[Tensor]) -> Tensor:
    """How far noise images are from white: squared means of neighbours' products, on all sizes down to 8 px, summed.

    Args:
        noises: [H, W] each, of mean 0 and variance 1.
    Returns:
        A number >= 0, differentiable. The rims are neighbours of each other; twice the means of 2x2 pixels of white noise
        are white noise again.
    Source: Karras et al. 2020, appendix D.
    """
    total = torch.zeros([], device=noises[0].device)
    for noise in noises:
        x = noise[None, None]
        while True:
            total = total + sum((x * x.roll(1, dims=axis)).mean().square() for axis in (2, 3))
            if min(x.shape[2:]) <= NOISE_LEAST:
                break
            x = nn.functional.avg_pool2d(x, 2) * 2
    return total
