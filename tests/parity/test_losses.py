"""The four phases against golden numbers: statistics, gradients of every weight, running means."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from ganops.training.losses import Latents, PhaseLoss, dmain_loss, dr1_loss, gmain_loss, gpl_loss, pl_batch_size
from tests.parity.names import (
    discriminator_name,
    generator_name,
    golden_discriminator,
    golden_generator,
    load_golden,
)
from tests.tolerances import assert_close

PRECISIONS = [("f64", torch.float64, "golden_float64"), ("f32", torch.float32, "golden_float32")]


class Phases:
    """Both networks and the golden inputs in one precision."""

    def __init__(self, suffix: str, dtype: torch.dtype, tolerance: str) -> None:
        description, self.arrays = load_golden("losses")
        self.settings = description["settings"]
        self.suffix = suffix
        self.tolerance = tolerance
        self.G = golden_generator(dtype)
        self.D = golden_discriminator(dtype)
        self.z, self.real, self.pl_y = (torch.from_numpy(self.arrays[name]).to(dtype) for name in ("z", "real", "pl_y"))
        self.c = self.z.new_zeros([len(self.z), 0])
        self.latents = Latents(self.z, self.c, None, None)

    def check(self, phase: str, network: nn.Module, rename: Callable[[str], str], loss: PhaseLoss) -> None:
        """Compares the phase's statistics, then runs its backward pass and compares the gradients."""
        found = [key.split("|") for key in self.arrays if key.startswith(f"{phase}|") and key.endswith(self.suffix)]
        assert found
        for _, name, _ in found:
            if name.startswith("Loss/"):
                self.compare(f"{phase}|{name}", loss.stats[name])
        (loss.loss.mean() * self.settings["gain"][phase]).backward()
        gradients = {name: parameter.grad for name, parameter in network.named_parameters()}
        official = self.arrays[f"{network.__class__.__name__[0]}_param_names"]
        norms = [0.0 if (g := gradients[rename(name)]) is None else float(g.double().norm()) for name in official]
        assert len(norms) == len(gradients)
        self.compare(f"{phase}|gradnorms", np.array(norms))
        for _, name, _ in found:
            if name.startswith("grad:"):
                self.compare(f"{phase}|{name}", gradients[rename(name.removeprefix("grad:"))])

    def compare(self, key: str, value: object) -> None:
        gradient = "|grad" in key and self.suffix == "f32"
        tolerance = "golden_gradient_float32" if gradient else self.tolerance
        assert_close(value, self.arrays[f"{key}|{self.suffix}"], tolerance, key)

    def compare_w_avg(self, phase: str, loss: PhaseLoss) -> None:
        assert loss.w_mean is not None
        self.compare(f"{phase}|w_avg_after", torch.lerp(loss.w_mean, self.G.w_avg, self.settings["w_avg_beta"]))


@pytest.fixture(params=PRECISIONS, ids=[suffix for suffix, _, _ in PRECISIONS])
def phases(request: pytest.FixtureRequest) -> Phases:
    return Phases(*request.param)


def test_gmain(phases: Phases) -> None:
    loss = gmain_loss(phases.G, phases.D, phases.latents, "const", None)
    phases.check("Gmain", phases.G, generator_name, loss)
    phases.compare_w_avg("Gmain", loss)


def test_gpl(phases: Phases) -> None:
    settings = phases.settings
    n = pl_batch_size(len(phases.z), settings["pl_batch_shrink"])
    pl_mean = torch.tensor(settings["pl_mean_before"], dtype=phases.z.dtype)
    latents = Latents(phases.z[:n], phases.c[:n], None, None)
    decay, weight = settings["pl_decay"], settings["pl_weight"]
    loss = gpl_loss(phases.G, latents, phases.pl_y, pl_mean, decay, weight, "const", None)
    phases.check("Greg", phases.G, generator_name, loss)
    phases.compare_w_avg("Greg", loss)
    assert loss.pl_length_mean is not None
    phases.compare("Greg|pl_mean_after", pl_mean + decay * (loss.pl_length_mean - pl_mean))


def test_dmain(phases: Phases) -> None:
    loss = dmain_loss(phases.G, phases.D, phases.latents, phases.real, phases.c, "const", None)
    phases.check("Dmain", phases.D, discriminator_name, loss)
    phases.compare_w_avg("Dmain", loss)
    assert all(parameter.grad is None for parameter in phases.G.parameters())


def test_dr1(phases: Phases) -> None:
    loss = dr1_loss(phases.D, phases.real, phases.c, phases.settings["r1_gamma"])
    phases.check("Dreg", phases.D, discriminator_name, loss)
    assert loss.w_mean is None
