"""Pairs of images a small step apart in w, for the perceptual path length; each pair a function of (seed, its index).

Source: Karras et al. 2019, section 4.1; in w and at the end points as in Karras et al. 2020.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ganops.collectives import collect_in_order
from ganops.distributed import make_generator
from ganops.entry import progress
from ganops.launch import rank, world_size
from ganops.networks.families import AnyGenerator
from ganops.networks.sampling import CPU, encode_labels, image_labels
from ganops.networks.snapshot import load_law, load_snapshot
from ganops.precision import full_float32

PathSampling = Literal["end", "full"]
PATH_EPSILON = 1e-4  # Karras et al. 2019, section 4.1


def path_distances_in_ranks(
    G: AnyGenerator,
    distance: Callable[[Tensor, Tensor], Tensor],
    seed: int,
    labels: Tensor,
    sampling: PathSampling,
    epsilon: float,
    batch_size: int,
) -> Iterator[Tensor]:
    """Distances of the first len(labels) pairs, measured by all ranks: the same bits for any number of them.

    Args:
        G: as for `draw_pairs`, of any precision; so are the others.
        distance: of two batches [N, C, H, W]: [N].
    Yields:
        float32 [n] on the CPU, n <= batch_size, in order; on other ranks than the first nothing. Not yet divided by
        epsilon squared.
    """
    G = in_float32(G)
    starts = range(0, len(labels), batch_size)

    def measure(start: int) -> Tensor:
        part = range(len(labels))[start : start + batch_size]
        pairs = draw_pairs(G, seed, part, labels[start : start + batch_size], sampling, epsilon, batch_size)
        with torch.no_grad():
            return distance(*pairs)[: len(part)].float().cpu()

    yield from collect_in_order(map(measure, starts[rank() :: world_size()]), len(starts))


def snapshot_path_distances(
    snapshot: Path,
    samplings: Sequence[PathSampling],
    distance: Callable[[Tensor, Tensor], Tensor],
    seed: int,
    count: int,
    batch_size: int,
    device: torch.device,
) -> list[NDArray[np.float32]]:
    """Distances of `count` pairs of a snapshot's images for each kind of path, by all ranks; classes by the data's law.

    Args:
        snapshot: a models/*.safetensors.
        samplings: kinds of paths.
        distance: of two batches [N, C, H, W]: [N].
        seed: of the sample.
        count: pairs.
        batch_size: pairs at a time.
        device: where to compute.
    Returns:
        One array [count] per kind; on other ranks than the first empty ones.
    """
    G, _ = load_snapshot(snapshot)
    G = G.to(device).eval().requires_grad_(False)
    labels = image_labels(seed, range(count), load_law(snapshot))
    found = []
    for sampling in samplings:
        parts = path_distances_in_ranks(G, distance, seed, labels, sampling, PATH_EPSILON, batch_size)
        shown = progress(parts, -(-count // batch_size), f"path lengths, {sampling}", "batch")
        found.append(np.concatenate([np.zeros(0, np.float32), *(part.numpy() for part in shown)]))
    return found


def in_float32(G: AnyGenerator) -> AnyGenerator:
    """G, or its twin of the same weights (in the same memory) all of whose layers compute in the weights' dtype."""
    if G.arguments["precision"] == "float32":
        return G
    twin = type(G)(**(G.arguments | {"precision": "float32"}), rng=None).to(G.w_avg.device)
    twin.load_state_dict(G.state_dict(), assign=True)
    return twin.eval().requires_grad_(False)


@torch.no_grad()
def draw_pairs(
    G: AnyGenerator,
    seed: int,
    indices: Sequence[int],
    labels: Tensor,
    sampling: PathSampling,
    epsilon: float,
    batch_size: int,
) -> tuple[Tensor, Tensor]:
    """Images at t and t + epsilon of the way from w0 to w1: same noise, same class, no truncation.

    All is computed in full float32: the step is smaller than what lower precision resolves.

    Args:
        G: on any device, in float32 (see `in_float32`); used as it is (give it G_ema).
        seed: of the sample; pair i is the same for every count and order, and to rounding for every batch size.
        indices: pair numbers, at most `batch_size`.
        labels: [len(indices)] int64, the class of both ends; ignored by an unconditional G.
        sampling: t is 0 ("end") or uniform in [0, 1) ("full").
        epsilon: step along the way, in units of w1 - w0; 1e-4 as published. Measured at 16 and 64 px with both
            distances: float32 makes scores too large by at most 0.1 % at 1e-4, but by 1 to 12 % at 1e-5.
        batch_size: short batches are filled up, so that every batch has the same shape.
    Returns:
        Two float32 [batch_size, C, H, W] on G's device, about in [-1, 1]: neither clamped nor quantised. Those behind
        the last index repeat it.
    """
    device = G.w_avg.device
    missing = batch_size - len(indices)
    padded = [*indices, *[indices[-1]] * missing]
    c = encode_labels(torch.cat([labels, labels[-1:].expand(missing, *labels.shape[1:])]).to(device), G.c_dim)
    z = torch.stack([torch.randn(2, G.z_dim, generator=make_generator(CPU, seed, "path z", i)) for i in padded])
    z = z.to(device)
    with full_float32():  # TensorFloat-32 has ten bits, the step thirteen
        w0, w1 = G.mapping(z[:, 0], c), G.mapping(z[:, 1], c)
        start = w0
        if sampling == "full":
            t = torch.cat([torch.rand(1, generator=make_generator(CPU, seed, "path t", i)) for i in padded])
            start = torch.lerp(w0, w1, t.to(w0)[:, None])
        # Not a second interpolation: t + epsilon in float32 is off by up to 3e-4 of epsilon.
        stop = start + epsilon * (w1 - w0)
        # One call per end, not one of twice the size: in both an image has the same place, so equal w give equal bits.
        img0, img1 = (_synthesize(G, w, seed, padded) for w in (start, stop))
    return img0, img1


def _synthesize(G: AnyGenerator, w: Tensor, seed: int, indices: list[int]) -> Tensor:
    noise = [make_generator(w.device, seed, "path noise", index) for index in indices]
    img: Tensor = G.synthesis(G.truncate(w, 1.0, None), "random", noise)
    return img.float()
