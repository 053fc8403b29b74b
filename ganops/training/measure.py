"""The distance to the real images while training: the code of ganops.metrics on a seeded sample of G_ema."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ganops.collectives import collect_rounds
from ganops.config import StatsParams
from ganops.distributed import derive_seed, on_first_rank
from ganops.errors import DataError
from ganops.files import sha256_file
from ganops.launch import rank, world_size
from ganops.metrics.extractor import Extractor, load_extractor
from ganops.metrics.features import Moments, Statistics, extract, load_statistics
from ganops.metrics.frechet import frechet_distance
from ganops.networks.sampling import generate_images, image_labels
from ganops.networks.stylegan2_generator import Generator


@dataclass(frozen=True)
class Yardstick:
    """What distances are measured with; only those of one `digest` (code, statistics, samples) are compared."""

    extractor: Extractor
    statistics: Statistics
    batch_size: int
    digest: str


def load_yardstick(
    statistics: Path, params: StatsParams, count: int, data_digest: str, device: torch.device, weights: Path
) -> Yardstick:
    """Loads the extractor and the statistics of the real images, to measure samples of `count` images with.

    Raises:
        DataError: the statistics are of other data or another extractor.
        WeightsError: the extractor's weights are missing or wrong.
    """
    stored = load_statistics(statistics)
    extractor = load_extractor(params.extractor, params.extractor_sha256, device, weights)
    for name, found, expected in (
        ("data_digest", stored.protocol["data_digest"], data_digest),
        ("extractor_sha256", stored.protocol["extractor_sha256"], extractor.sha256),
        ("resizer", stored.protocol["resizer"], extractor.resizer),
    ):
        if found != expected:
            raise DataError(f"{statistics}: {name} is {found}, expected {expected}. Run `dvc repro stats`.")
    room = Path(__file__).parents[1] / "metrics"
    parts = [sha256_file(path) for path in sorted(room.glob("*.py"))] + [sha256_file(statistics)]
    return Yardstick(extractor, stored, params.batch_size, f"{derive_seed(count, *parts):016x}")


def measure_distance(
    yardstick: Yardstick,
    G_ema: Generator,
    seed: int,
    count: int,
    class_counts: Sequence[int],
    batch_size: int,
    check_stop: Callable[[], None],
) -> float:
    """Fréchet distance of `count` images of G_ema to the real ones; the same images every time, psi 1, random noise.

    Every rank must come here: they share the images, and all learn the result.

    Args:
        yardstick: see `load_yardstick`.
        G_ema: the averaged generator.
        seed: train.seed; the sample is a function of it.
        count: images to draw.
        class_counts: the empirical law of the labels.
        batch_size: images per pass of G_ema.
        check_stop: called between batches, on every rank alike often; may raise.
    """
    sample_seed = derive_seed(seed, "metric")
    # Dealt in pieces that both batch sizes divide, so that no batch depends on the number of ranks.
    piece = math.lcm(batch_size, yardstick.batch_size)
    pieces = [range(start, min(start + piece, count)) for start in range(0, count, piece)]

    def measure(indices: range) -> NDArray[np.float32]:
        labels = image_labels(sample_seed, indices, class_counts)
        images = generate_images(G_ema, sample_seed, indices, labels, 1.0, None, "random", batch_size)
        return np.concatenate(list(extract(yardstick.extractor, images, yardstick.batch_size)))

    moments = Moments()
    for arrived in collect_rounds(map(measure, pieces[rank() :: world_size()]), len(pieces)):
        for features in arrived:
            moments.append(features)
        check_stop()
    real = yardstick.statistics
    ddof = int(real.protocol["ddof"])
    return on_first_rank(lambda: frechet_distance(real.mu, real.sigma, moments.mean(), moments.covariance(ddof)))
