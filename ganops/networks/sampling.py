"""Images from a generator, each a function of (seed, its index) alone: not of batch size, count or order."""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ganops.collectives import collect_in_order
from ganops.distributed import make_generator
from ganops.images.pixels import quantize
from ganops.launch import rank, world_size
from ganops.networks.families import AnyGenerator
from ganops.networks.law import LabelLaw, draw_places, labels_at, total_of

CPU = torch.device("cpu")


def image_latents(seed: int, indices: Sequence[int], z_dim: int) -> Tensor:
    """z of images `indices`: [n, z_dim] float32 on the CPU, standard normal."""
    return torch.stack([torch.randn(z_dim, generator=make_generator(CPU, seed, "z", index)) for index in indices])


def image_labels(seed: int, indices: Sequence[int], law: LabelLaw) -> Tensor:
    """Labels of images `indices`, drawn by the empirical law of the real images, on the CPU.

    Args:
        seed: of the sample.
        indices: image numbers.
        law: how often each label is there; () for an unlabelled set.
    Returns:
        [n] int64 classes, zeros for an unlabelled set; or [n, L] float32 vectors.
    """
    if not total_of(law):
        return torch.zeros(len(indices), dtype=torch.int64)
    places = [draw_places(law, 1, make_generator(CPU, seed, "label", index)) for index in indices]
    return labels_at(law, torch.cat(places))


def encode_labels(labels: Tensor, c_dim: int) -> Tensor:
    """Labels as networks take them: c [n, c_dim] float32, on the labels' device.

    Args:
        labels: [n] int64 classes, which become one-hot; or [n, c_dim] float32 vectors, which stay as they are.
        c_dim: 0 for an unconditional network: [n, 0].
    """
    return one_hot(labels, c_dim) if labels.ndim == 1 or c_dim == 0 else labels


def one_hot(labels: Tensor, c_dim: int) -> Tensor:
    """Labels [n] int64 -> c [n, c_dim] float32; [n, 0] for an unconditional network."""
    if c_dim == 0:
        return torch.zeros([len(labels), 0], device=labels.device)
    # Not nn.functional.one_hot, which looks into the labels: on a GPU training would wait for that.
    return (labels[:, None] == torch.arange(c_dim, device=labels.device)).to(torch.float32)


@torch.no_grad()
def generate_images(
    G: AnyGenerator,
    seed: int,
    indices: Sequence[int],
    labels: Tensor,
    truncation_psi: float,
    truncation_cutoff: int | None,
    noise_mode: str,
    batch_size: int,
    bits: Literal[8, 16] = 8,
) -> Iterator[Tensor]:
    """The images `indices` of a seeded, endless sample, batch by batch.

    Args:
        G: on any device; used as it is (give it G_ema).
        seed: of the sample; image i is the same for every count and batch size.
        indices: image numbers.
        labels: [len(indices)] int64 classes or [len(indices), c_dim] float32; ignored by an unconditional G.
        truncation_psi: 1 = none (Karras et al. 2019, appendix B).
        truncation_cutoff: truncate only the first so many layers; None = all.
        noise_mode: "random" draws each image's noise from (seed, index); "const" and "none" as in `Generator`.
        batch_size: images at a time. Short batches are filled up, so that every batch has the same shape.
        bits: of the images.
    Yields:
        uint8 [n, C, H, W] on G's device, or int16 for 16 bits (see `pixels`); n <= batch_size, in the order of `indices`.
    """
    device = G.w_avg.device
    for start in range(0, len(indices), batch_size):
        part = list(indices[start : start + batch_size])
        padded = part + [part[-1]] * (batch_size - len(part))
        part_labels = labels[start : start + batch_size]
        missing = batch_size - len(part)
        part_labels = torch.cat([part_labels, part_labels[-1:].expand(missing, *part_labels.shape[1:])])
        z = image_latents(seed, padded, G.z_dim).to(device)
        c = encode_labels(part_labels.to(device), G.c_dim)
        noise = [make_generator(device, seed, "noise", index) for index in padded]
        img = G(z, c, truncation_psi, truncation_cutoff, noise_mode, noise)
        yield quantize(img, bits)[: len(part)]


def generate_in_ranks(
    G: AnyGenerator,
    seed: int,
    labels: Tensor,
    truncation_psi: float,
    truncation_cutoff: int | None,
    noise_mode: str,
    batch_size: int,
    bits: Literal[8, 16] = 8,
) -> Iterator[Tensor]:
    """The first len(labels) images of a seeded sample, made by all ranks: the same bytes for any number of them.

    Args: as for `generate_images`.
    Yields:
        uint8 or int16 [n, C, H, W] on the CPU, n <= batch_size, in order; on other ranks than the first nothing.
    """
    starts = range(0, len(labels), batch_size)

    def draw(start: int) -> Tensor:
        indices = range(len(labels))[start : start + batch_size]
        part = labels[start : start + batch_size]
        how = (truncation_psi, truncation_cutoff, noise_mode, batch_size, bits)
        return next(generate_images(G, seed, indices, part, *how)).cpu()

    yield from collect_in_order(map(draw, starts[rank() :: world_size()]), len(starts))


def draw_rows(
    G: AnyGenerator, seed: int, rows: Tensor, columns: int, psi: float, noise_mode: str, batch_size: int
) -> np.ndarray:
    """Pictures for a grid: a row of `columns` images per label in `rows`, or `columns` rows when there are none.

    Args:
        rows: see `law.grid_labels`.
    Returns:
        uint8 [rows * columns, C, H, W], row by row.
    """
    labels = rows.repeat_interleave(columns, dim=0) if len(rows) else torch.zeros(columns**2, dtype=torch.int64)
    parts = generate_images(G, seed, range(len(labels)), labels, psi, None, noise_mode, batch_size)
    return torch.cat([part.cpu() for part in parts]).numpy()


def draw_truncation_sweep(
    G: AnyGenerator, seed: int, rows: Tensor, columns: int, psis: Sequence[float], batch_size: int
) -> np.ndarray:
    """The same `columns` latents at each psi, one row per psi; the labels in `rows` in turn along it. Constant noise.

    Returns:
        uint8 [len(psis) * columns, C, H, W], row by row.
    """
    labels = rows[torch.arange(columns) % len(rows)] if len(rows) else torch.zeros(columns, dtype=torch.int64)
    drawn = [generate_images(G, seed, range(columns), labels, psi, None, "const", batch_size) for psi in psis]
    return torch.cat([part.cpu() for row in drawn for part in row]).numpy()
