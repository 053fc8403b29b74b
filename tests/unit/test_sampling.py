"""Seeded images: each a function of (seed, index)."""

import pytest
import torch

from ganops.networks.sampling import (
    draw_rows,
    draw_truncation_sweep,
    generate_images,
    image_labels,
    image_latents,
    one_hot,
)
from ganops.networks.stylegan2_generator import Generator
from tests.unit.tiny import CLASS_COUNTS, run_steps, tiny_params, tiny_state


@pytest.fixture(scope="module")
def G() -> Generator:
    params = tiny_params(ema_kimg=1e-3)
    state = tiny_state(params)
    run_steps(state, params, 10)
    with torch.no_grad():
        for name, parameter in state.G_ema.named_parameters():
            if name.endswith("noise_strength"):
                parameter.fill_(0.3)  # so that noise is seen
    return state.G_ema


def generate(G: Generator, indices: range, batch_size: int, noise_mode: str = "random") -> torch.Tensor:
    labels = image_labels(5, indices, CLASS_COUNTS)
    return torch.cat(list(generate_images(G, 5, indices, labels, 1.0, None, noise_mode, batch_size)))


@pytest.mark.parametrize("batch_size", [1, 3, 8, 64])
def test_an_image_does_not_depend_on_the_batch_size(G: Generator, batch_size: int) -> None:
    one, other = generate(G, range(40), 16).int(), generate(G, range(40), batch_size).int()
    assert one.shape == (40, 1, 8, 8)
    assert int((one - other).abs().max()) <= 1  # the last bit of a float32, seldom, over a rounding edge
    assert float((one != other).float().mean()) < 1e-3


def test_an_image_does_not_depend_on_count_or_start(G: Generator) -> None:
    whole = generate(G, range(40), 16)
    assert torch.equal(whole[:21], generate(G, range(21), 16))
    assert torch.equal(whole[7:19], generate(G, range(7, 19), 16))


def test_images_differ_by_index_and_by_noise(G: Generator) -> None:
    images = generate(G, range(8), 8)
    assert len({image.numpy().tobytes() for image in images}) == 8
    assert not torch.equal(images, generate(G, range(8), 8, "const"))


def test_latents_are_standard_normal() -> None:
    z = image_latents(0, range(500), 64)
    assert float(z.mean()) == pytest.approx(0, abs=0.02)
    assert float(z.std()) == pytest.approx(1, abs=0.02)


def test_labels_follow_the_empirical_law() -> None:
    labels = image_labels(0, range(10_000), CLASS_COUNTS)
    assert (torch.bincount(labels) / 10_000).tolist() == pytest.approx([0.3, 0.5, 0.2], abs=0.02)
    assert image_labels(0, range(3), ()).tolist() == [0, 0, 0]


def test_one_hot() -> None:
    assert one_hot(torch.tensor([1, 0]), 3).tolist() == [[0, 1, 0], [1, 0, 0]]
    assert one_hot(torch.tensor([0, 0]), 0).shape == (2, 0)


def test_grids_have_a_row_per_class_and_sweeps_a_row_per_psi(G: Generator) -> None:
    assert draw_rows(G, 0, torch.arange(3), 4, 0.7, "const", 5).shape == (12, 1, 8, 8)
    assert draw_rows(G, 0, torch.arange(0), 4, 0.7, "const", 5).shape == (16, 1, 8, 8)
    sweep = draw_truncation_sweep(G, 0, torch.arange(3), 4, [0.0, 1.0], 4)
    assert sweep.shape == (8, 1, 8, 8)
    assert all((sweep[0] == image).all() for image in sweep[:4])  # psi 0: the mean image, whatever z
    assert not (sweep[4] == sweep[5]).all()
