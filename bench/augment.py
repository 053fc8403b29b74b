"""What augmentation costs: forward, forward and backward, and R1's double backward, per batch of eight 256x256 images.

`python -m bench.augment`, about two minutes; on a CUDA device if there is one, else on one CPU core. Pictures: see
bench.augment_pictures. Times are the best of several rounds that take turns; what is drawn changes from call to call as in
training, the same for every row, and a round is the mean over several draws.

R1's discriminator is a weighted sum of squares: what is left after its cost is taken away is the augmentation's.
"""

import os
import time
from collections.abc import Callable

import torch
from torch import Tensor

from bench.report import report
from ganops.distributed import configure_numerics, make_generator, select_device
from ganops.ops.convolution import differentiated_twice
from ganops.training.augment import AugmentSet, augment, draw_augmentation
from ganops.training.diffaugment import DiffAugmentKind, diffaugment, draw_diffaugment

SIZE, BATCH, CHANNELS = 256, 8, 3
DRAWS, ROUNDS = 8, 3
CPU = torch.device("cpu")
POLICY: tuple[DiffAugmentKind, ...] = ("color", "translation", "cutout")
Augmenter = Callable[[Tensor, int], Tensor]


def adaptive(augment_set: AugmentSet, p: float) -> Augmenter:
    """Draws and applies, as a training step would."""

    def function(img: Tensor, draw: int) -> Tensor:
        rng = make_generator(CPU, "bench", draw)
        augmentation = draw_augmentation(augment_set, p, len(img), SIZE, SIZE, CHANNELS, rng)
        return augment(img, augmentation, make_generator(img.device, "noise", draw))

    return function


def differentiable(img: Tensor, draw: int) -> Tensor:
    return diffaugment(img, draw_diffaugment(POLICY, 1.0, len(img), SIZE, SIZE, make_generator(CPU, "bench", draw)))


CASES: dict[str, Augmenter] = {
    "nothing": lambda img, draw: img * 1,
    "blit, p = 0.5": adaptive("blit", 0.5),
    "bgc, p = 0.1": adaptive("bgc", 0.1),
    "bgc, p = 0.5": adaptive("bgc", 0.5),
    "bgcfnc, p = 0.5": adaptive("bgcfnc", 0.5),
    "DiffAugment": differentiable,
}


def forward(function: Augmenter, img: Tensor, draw: int) -> None:
    with torch.no_grad():
        function(img, draw)


def backward(function: Augmenter, img: Tensor, draw: int) -> None:
    y = function(img.requires_grad_(), draw)
    torch.autograd.grad(y.sum(), img)


def r1(function: Augmenter, img: Tensor, draw: int) -> None:
    """The penalty's gradient by the weights of a discriminator, which here are one number."""
    weight = torch.ones([], device=img.device, requires_grad=True)
    with differentiated_twice():
        y = function(img.requires_grad_(), draw)
        score = (y.square() * weight).sum()
    (gradient,) = torch.autograd.grad(score, img, create_graph=True)
    torch.autograd.grad(gradient.square().sum(), weight)


PASSES = {"forward": forward, "forward and backward": backward, "R1": r1}


def mean_ms(work: Callable[[int], None], device: torch.device) -> float:
    """Of DRAWS different calls; on a CPU by the thread's clock, since other work on the machine only adds time."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        start = time.perf_counter()
    else:
        start = time.thread_time()
    for draw in range(DRAWS):
        work(draw)
    if device.type == "cuda":
        torch.cuda.synchronize()
        return (time.perf_counter() - start) / DRAWS * 1e3
    return (time.thread_time() - start) / DRAWS * 1e3


def measure(device: torch.device) -> list[str]:
    """One line per case."""
    img = torch.rand([BATCH, CHANNELS, SIZE, SIZE], generator=make_generator(CPU, "images")).to(device) * 2 - 1
    best = {(case, name): float("inf") for case in CASES for name in PASSES}
    for _ in range(ROUNDS):
        for case, function in CASES.items():
            for name, run in PASSES.items():
                found = mean_ms(lambda draw, run=run, f=function: run(f, img.detach(), draw), device)
                best[case, name] = min(best[case, name], found)
    return [
        f"{case}: " + ", ".join(f"{name} {best[case, name] - best['nothing', name]:.0f} ms" for name in PASSES)
        for case in CASES
        if case != "nothing"
    ]


def main() -> None:
    """On a GPU also with deterministic algorithms."""
    device = select_device("auto", 1)
    lines = [
        f"load average at the start: {os.getloadavg()[0]:.1f}",
        f"{BATCH} images, {SIZE}x{SIZE}, {CHANNELS} channels, float32, on {'one core' if device == CPU else 'the GPU'}; "
        f"mean of {DRAWS} draws, best of {ROUNDS} rounds; the drawing included",
    ]
    configure_numerics(tf32=False, deterministic=False)
    lines += measure(device)
    if device.type == "cuda":
        configure_numerics(tf32=False, deterministic=True)
        lines += [f"deterministic algorithms, {line}" for line in measure(device)]
    report("augment", lines)


if __name__ == "__main__":
    main()
