"""Training on one CPU core: images per second of all four phases at their intervals, against slower forms of the same
networks in the same run.

`python -m bench.train_cpu`, about five minutes. Data are random bytes. Times are of the thread's CPU clock, the best of
several rounds that take turns, since other work on the machine only adds time.

The case that other implementations were measured on: 32x32, 3 channels, batch 32, z = w = 64, 2 mapping layers, channels
64/64/64/32, path length regularisation every 4 steps, R1 every 16, mixing 0.9.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor

from bench.report import report
from bench.train import random_batch
from ganops.config import load_params
from ganops.config_train import TrainParams
from ganops.distributed import configure_numerics, select_device
from ganops.networks import layers, stylegan2_discriminator, stylegan2_generator
from ganops.ops import conv2d_resample as conv2d_resample_module
from ganops.ops.bias_act import Activation, bias_act_reference
from ganops.ops.conv2d_resample import conv2d_resample, conv2d_resample_reference
from ganops.ops.modulated_conv2d import EPSILON, modulated_conv2d_reference
from ganops.ops.upfirdn2d import upfirdn2d_reference
from ganops.training.state import initial_state
from ganops.training.step import dmain_phase, dr1_phase, gmain_phase, gpl_phase, real_micro_batch

ROOT = Path(__file__).parents[1]
ROUNDS = 5


def case(precision: str) -> TrainParams:
    """The case of the docstring, by the demo's other values."""
    low = precision != "float32"
    return TrainParams.model_validate(
        load_params(ROOT / "params.yaml").train.model_dump()
        | {
            "conditional": False,
            "batch_size": 32,
            "batch_gpu": 32,
            "z_dim": 64,
            "w_dim": 64,
            "mapping_layers": 2,
            "channel_base": 1024,
            "channel_max": 64,
            "pl_weight": 2.0,
            "style_mixing_prob": 0.9,
            "precision": precision,
            "low_precision_resolutions": 4 if low else 0,
            "conv_clamp": 256.0 if low else None,
        }
    )


def grouped_modulated_conv2d(
    x: Tensor,
    weight: Tensor,
    styles: Tensor,
    noise: Tensor | None = None,
    up: int = 1,
    down: int = 1,
    padding: int = 0,
    resample_filter: Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    gain: float = 1.0,
    bias: Tensor | None = None,
    activation: Activation = "linear",
    clamp: float | None = None,
) -> Tensor:
    """The usual form: a kernel per sample, all of them in one grouped convolution (Karras et al. 2020, appendix B)."""
    N, O = len(x), len(weight)
    kernels = weight[None] * styles[:, None, :, None, None]
    if demodulate:
        kernels = kernels / (kernels.square().sum(dim=[2, 3, 4], keepdim=True) + EPSILON).sqrt()
    kernels = (kernels * gain).flatten(0, 1).to(x.dtype)
    x = x.reshape(1, -1, *x.shape[2:])
    y = conv2d_resample(x, kernels, resample_filter, up, down, padding, groups=N, flip_weight=flip_weight)
    return bias_act_reference(y.reshape(N, O, *y.shape[2:]), bias, 1, activation, None, 1.0, clamp, None, noise)


def upsample_reference(img: Tensor, filter: Tensor) -> Tensor:
    return upfirdn2d_reference(img, filter, up=2, padding=[2, 1, 2, 1], gain=4.0)


def downsample_reference(img: Tensor, filter: Tensor) -> Tensor:
    return upfirdn2d_reference(img, filter, down=2, padding=1)


def replaced(modulated: Callable[..., Tensor], resample: Callable[..., Tensor]) -> ExitStack:
    """Lets the networks use other operations, and [N, C, H, W] throughout, until the stack is closed."""
    stack = ExitStack()
    for module, name, value in (
        (conv2d_resample_module, "upfirdn2d", upfirdn2d_reference),
        (layers, "bias_act", bias_act_reference),
        (layers, "conv2d_resample", resample),
        (layers, "modulated_conv2d", modulated),
        (stylegan2_generator, "upsample2d", upsample_reference),
        (stylegan2_discriminator, "downsample2d", downsample_reference),
        (stylegan2_generator, "fast_format", lambda x: x),
        (stylegan2_discriminator, "fast_format", lambda x: x),
    ):
        stack.enter_context(mock.patch.object(module, name, value))
    return stack


FORMS: dict[str, Callable[[], ExitStack]] = {
    "ours": ExitStack,
    "the usual form (grouped convolutions, zeros inserted before a filter, NCHW)": lambda: replaced(
        grouped_modulated_conv2d, conv2d_resample
    ),
    "our reference operations (a sample at a time, convolved at the higher resolution)": lambda: replaced(
        modulated_conv2d_reference, conv2d_resample_reference
    ),
}


def phases_of(params: TrainParams, resolution: int) -> tuple[dict[str, Callable[[], object]], int, int]:
    """The four phases as functions, and the parameters of G and D."""
    state = initial_state(params, resolution, 3, 0, torch.device("cpu"))
    batch = random_batch(params, 3, resolution)
    reals = [real_micro_batch(state, params, batch, 0, 0)]
    phases: dict[str, Callable[[], object]] = {
        "Gmain": lambda: gmain_phase(state, params, ()),
        "Gpl": lambda: gpl_phase(state, params, ()),
        "Dmain": lambda: dmain_phase(state, params, (), reals),
        "Dr1": lambda: dr1_phase(state, params, reals),
    }
    sizes = [sum(parameter.numel() for parameter in network.parameters()) for network in (state.G, state.D)]
    return phases, sizes[0], sizes[1]


def describe(params: TrainParams, resolution: int, what: str) -> Iterator[str]:
    phases, G_size, D_size = phases_of(params, resolution)
    yield f"{resolution}x{resolution}, {what}: G {G_size:,}, D {D_size:,} parameters, batch {params.batch_size}"
    best = {(form, phase): float("inf") for form in FORMS for phase in phases}
    for _ in range(ROUNDS):
        for form, patches in FORMS.items():
            with patches():
                for phase, run in phases.items():
                    start = time.thread_time()
                    run()
                    best[form, phase] = min(best[form, phase], time.thread_time() - start)
    rates = {}
    for form in FORMS:
        step = best[form, "Gmain"] + best[form, "Dmain"]
        step += best[form, "Gpl"] / params.pl_interval + best[form, "Dr1"] / params.r1_interval
        rates[form] = params.batch_size / step
        times = ", ".join(f"{phase} {1000 * best[form, phase]:.0f} ms" for phase in phases)
        ratio = "" if form == "ours" else f"; ours is {rates['ours'] / rates[form]:.2f} times as fast"
        yield f"{resolution}x{resolution}, {form}: {rates[form]:.1f} img/s ({times}){ratio}"


def core_speed() -> str:
    """What the core can do at most: a product of large matrices."""
    a, best = torch.randn(1024, 1024), float("inf")
    for _ in range(10):
        start = time.thread_time()
        a @ a
        best = min(best, time.thread_time() - start)
    return f"float32 product of 1024x1024 matrices: {2 * 1024**3 / best / 1e9:.0f} GFLOP/s"


def main() -> None:
    select_device("cpu", 1)
    configure_numerics(tf32=False, deterministic=False)
    capability = torch.backends.cpu.get_cpu_capability()
    lines = [f"one thread, {capability}, load average at the start {os.getloadavg()[0]:.1f}; {core_speed()}"]
    lines += describe(case("float32"), 32, "float32")
    lines += describe(case("float32"), 64, "float32")
    if torch.ops.mkldnn._is_mkldnn_bf16_supported():
        lines += describe(case("bfloat16"), 32, "bfloat16 in all but 4x4")
    else:
        lines.append("bfloat16: this CPU has no instructions for it; not measured")
    report("train_cpu", lines)


if __name__ == "__main__":
    main()
