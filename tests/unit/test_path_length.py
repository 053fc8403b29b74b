"""Pairs a small step apart in w: each a function of (seed, index), and path lengths that are known beforehand."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ganops.metrics.perceptual import load_perceptual, path_length_score
from ganops.networks import path_length as module
from ganops.networks.layers import draw_noise
from ganops.networks.path_length import (
    PATH_EPSILON,
    draw_pairs,
    in_float32,
    path_distances_in_ranks,
    snapshot_path_distances,
)
from ganops.networks.sampling import image_labels
from ganops.networks.snapshot import save_snapshot
from ganops.networks.stylegan2_generator import Generator
from tests.unit.tiny import run_steps, tiny_params, tiny_state

CPU = torch.device("cpu")
WIDTH = 256


class LinearGenerator:
    """A generator whose images are scale * w + noise, and whose w is z + 100 * class."""

    def __init__(self, scale: float, noise: float = 0.0) -> None:
        self.scale, self.noise = scale, noise
        self.z_dim, self.c_dim = WIDTH, 3
        self.w_avg = torch.zeros(WIDTH)
        self.arguments = {"precision": "float32"}

    def mapping(self, z: Tensor, c: Tensor) -> Tensor:
        return z + 100 * c.argmax(1, keepdim=True)

    def truncate(self, w: Tensor, psi: float, cutoff: int | None) -> Tensor:
        assert (psi, cutoff) == (1, None)
        return w[:, None]

    def synthesis(self, ws: Tensor, mode: str, rng: list[torch.Generator]) -> Tensor:
        assert mode == "random"
        img = self.scale * ws[:, 0].reshape(-1, 1, 16, 16)
        return img + self.noise * draw_noise(len(ws), (16, 16), CPU, rng)


def squared(img0: Tensor, img1: Tensor) -> Tensor:
    return (img1 - img0).square().sum([1, 2, 3])


def path_pairs(G, seed, indices, labels, sampling, epsilon, batch_size):  # type: ignore[no-untyped-def]
    """All pairs, batch by batch, as distances are measured of them."""
    G = in_float32(G) if isinstance(G, Generator) else G
    for start in range(0, len(indices), batch_size):
        part = indices[start : start + batch_size]
        of_part = labels[start : start + batch_size]
        img0, img1 = draw_pairs(G, seed, part, of_part, sampling, epsilon, batch_size)
        assert len(img0) == len(img1) == batch_size
        yield img0[: len(part)], img1[: len(part)]


def pairs(G, count=20, sampling="end", epsilon=1e-4, batch_size=8, seed=3, indices=None) -> Tensor:  # type: ignore[no-untyped-def]
    """[count, 2, C, H, W]."""
    indices = range(count) if indices is None else indices
    labels = torch.tensor([index % 3 for index in indices])
    drawn = path_pairs(G, seed, indices, labels, sampling, epsilon, batch_size)
    return torch.cat([torch.stack(pair, dim=1) for pair in drawn])


def distances(G, distance, count: int, sampling: str, epsilon: float) -> np.ndarray:  # type: ignore[no-untyped-def]
    labels = torch.zeros(count, dtype=torch.int64)
    return torch.cat(list(path_distances_in_ranks(G, distance, 3, labels, sampling, epsilon, 16))).numpy()  # type: ignore[arg-type]


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


@pytest.mark.parametrize("sampling", ["end", "full"])
@pytest.mark.parametrize(("epsilon", "tolerance"), [(0.5, 0.01), (1e-3, 0.01)])
def test_path_length_of_a_linear_map(sampling: str, epsilon: float, tolerance: float) -> None:
    """Squared distance of scale * w, w ~ N(0, 1): scale² * 2 per dimension, whatever epsilon and t are."""
    found = distances(LinearGenerator(0.3), squared, 2000, sampling, epsilon)
    assert path_length_score(found, epsilon) == pytest.approx(0.3**2 * 2 * WIDTH, rel=tolerance)
    assert found.mean() / epsilon**2 == pytest.approx(0.3**2 * 2 * WIDTH, rel=tolerance)


def test_full_paths_start_anywhere_and_end_paths_at_the_end() -> None:
    linear = LinearGenerator(1.0)
    end, full = pairs(linear, 300, "end", 1.0).double(), pairs(linear, 300, "full", 1.0).double()
    way = (end[:, 1] - end[:, 0]).flatten(1)
    assert torch.allclose((full[:, 1] - full[:, 0]).flatten(1), way, atol=1e-4)  # values up to 200 in float32
    t = ((full[:, 0] - end[:, 0]).flatten(1) * way).sum(1) / way.square().sum(1)
    assert float(t.min()) >= -1e-6
    assert float(t.max()) <= 1
    assert len(t.unique()) == 300
    deciles = torch.histc(t, 10, 0, 1)
    assert int(deciles.min()) > 15  # 30 expected
    assert torch.allclose(t[0] * way[0], (full[0, 0] - end[0, 0]).flatten(), atol=1e-3)  # on the straight line in w


def test_both_ends_have_the_same_class() -> None:
    found = pairs(LinearGenerator(1.0), 6, epsilon=1.0)
    means = found.mean([2, 3, 4])
    assert torch.allclose(means, 100.0 * (torch.arange(6) % 3)[:, None].expand(-1, 2), atol=1)


def test_both_images_have_the_same_noise_and_each_pair_its_own() -> None:
    found = pairs(LinearGenerator(0.0, noise=1.0), 40)
    assert torch.equal(found[:, 0], found[:, 1])
    assert len({pair.numpy().tobytes() for pair in found[:, 0]}) == 40
    assert float(found.std()) == pytest.approx(1, abs=0.02)


def test_a_pair_does_not_depend_on_count_order_or_start(G: Generator) -> None:
    whole = pairs(G, 21, "full")
    assert torch.equal(whole, pairs(G, 21, "full"))
    assert torch.equal(whole[:13], pairs(G, 13, "full"))
    assert torch.equal(whole[5:], pairs(G, sampling="full", indices=range(5, 21)))
    assert torch.equal(whole.flip(0), pairs(G, sampling="full", indices=list(range(20, -1, -1))))
    assert not torch.equal(whole, pairs(G, 21, "full", seed=4))
    assert len({pair.numpy().tobytes() for pair in whole}) == 21


@pytest.mark.parametrize("batch_size", [1, 3, 21, 64])
def test_a_pair_does_not_depend_on_the_batch_size(G: Generator, batch_size: int) -> None:
    one, other = pairs(G, 21, "full", batch_size=8), pairs(G, 21, "full", batch_size=batch_size)
    assert one.shape == (21, 2, 1, 8, 8)
    assert float((one - other).abs().max()) < 1e-5  # a float32's last bits; images reach 1


@pytest.mark.parametrize("world", [2, 3, 5])
def test_ranks_measure_what_one_rank_would(G: Generator, world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit; how results are brought together in order has its own tests."""
    labels = torch.arange(21) % 3
    alone = list(path_distances_in_ranks(G, squared, 3, labels, "full", 0.1, 4))
    monkeypatch.setattr(module, "world_size", lambda: world)
    monkeypatch.setattr(module, "collect_in_order", lambda items, _: items)
    together: list[Tensor] = [torch.empty(0)] * len(alone)
    for number in range(world):
        monkeypatch.setattr(module, "rank", lambda number=number: number)
        together[number::world] = path_distances_in_ranks(G, squared, 3, labels, "full", 0.1, 4)
    assert [len(part) for part in alone] == [4, 4, 4, 4, 4, 1]
    assert torch.equal(torch.cat(alone), torch.cat(together))


def test_networks_see_full_batches_only() -> None:
    """A short batch may be computed by other kernels, which round differently."""
    sizes = []

    class Recorder(LinearGenerator):
        def synthesis(self, ws: Tensor, mode: str, rng: list[torch.Generator]) -> Tensor:
            sizes.append(len(ws))
            return super().synthesis(ws, mode, rng)

    def recorded(img0: Tensor, img1: Tensor) -> Tensor:
        sizes.append(len(img0))
        return squared(img0, img1)

    labels = torch.zeros(5, dtype=torch.int64)
    parts = path_distances_in_ranks(Recorder(1.0), recorded, 3, labels, "end", 1e-4, 4)  # type: ignore[arg-type]
    assert [len(part) for part in parts] == [4, 1]
    drawn = path_pairs(Recorder(1.0), 3, range(5), labels, "end", 1e-4, 4)  # type: ignore[arg-type]
    assert [len(img0) for img0, _ in drawn] == [4, 1]
    assert sizes == [4] * 10


def test_distances_are_those_of_the_pairs(G: Generator) -> None:
    labels = torch.arange(21) % 3
    found = torch.cat(list(path_distances_in_ranks(G, squared, 3, labels, "full", 0.1, 8)))
    whole = pairs(G, 21, "full", 0.1)
    assert torch.allclose(found, squared(whole[:, 0], whole[:, 1]), rtol=1e-5)


@pytest.mark.parametrize("sampling", ["end", "full"])
def test_equal_w_give_equal_images_and_no_distance(G: Generator, sampling: str) -> None:
    """Without a step, in a last batch that is filled up too; a small one is seen."""
    found = pairs(G, 11, sampling, epsilon=0.0)
    assert torch.equal(found[:, 0], found[:, 1])
    perceptual = load_perceptual("efficientnet-lite0", CPU, Path())
    assert not distances(G, perceptual.distance, 3, sampling, 0.0).any()
    moved = pairs(G, 11, sampling, epsilon=1e-4)
    assert all(not torch.equal(img0, img1) for img0, img1 in moved)


def test_path_length_does_not_depend_on_epsilon(G: Generator) -> None:
    """In float32, with a small network and a real distance: measured 0.1 to 0.5 %, of which rounding is under 0.1 %."""
    perceptual = load_perceptual("efficientnet-lite0", CPU, Path())
    one, other = (path_length_score(distances(G, perceptual.distance, 32, "end", e), e) for e in (1e-3, 1e-4))
    assert one > 0
    assert other == pytest.approx(one, rel=0.02)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_pairs_are_float32_whatever_the_precision_of_the_network_is(G: Generator, precision: str) -> None:
    low = Generator(**(G.arguments | {"precision": precision, "low_precision_resolutions": 2}), rng=None)
    low.load_state_dict(G.state_dict())
    assert torch.equal(pairs(low, 9), pairs(G, 9))
    twin = in_float32(low)
    assert low.arguments["precision"] == precision
    assert twin.w_avg.data_ptr() == low.w_avg.data_ptr()  # no second copy of the weights
    assert in_float32(G) is G


def test_settings_and_random_state_are_left_as_they_are(G: Generator) -> None:
    before = torch.random.get_rng_state()
    torch.backends.cudnn.allow_tf32 = True
    for img0, _ in path_pairs(G, 0, range(3), torch.zeros(3).long(), "full", 1e-4, 2):
        assert torch.backends.cudnn.allow_tf32
        assert not torch.backends.cudnn.deterministic
        assert not img0.requires_grad
    assert torch.equal(before, torch.random.get_rng_state())


def test_paths_of_a_snapshot(G: Generator, tmp_path: Path) -> None:
    save_snapshot(tmp_path / "G.safetensors", G, {"class_counts": [3, 5, 2]})
    found = snapshot_path_distances(tmp_path / "G.safetensors", ["full", "end"], squared, 3, 21, 8, CPU)
    labels = image_labels(3, range(21), [3, 5, 2])
    for kind, sampling in zip(found, ("full", "end"), strict=True):
        parts = path_distances_in_ranks(G, squared, 3, labels, sampling, PATH_EPSILON, 8)
        assert np.array_equal(kind, torch.cat(list(parts)).numpy())
