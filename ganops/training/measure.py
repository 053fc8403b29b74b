"""The distance to the real images while training: the code of ganops.metrics on a seeded sample of G_ema."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ganops.config import StatsParams
from ganops.distributed import derive_seed
from ganops.errors import DataError
from ganops.files import sha256_file
from ganops.metrics.extractor import Extractor, load_extractor
from ganops.metrics.features import Statistics, load_statistics, measure_moments
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

    Args:
        yardstick: see `load_yardstick`.
        G_ema: the averaged generator.
        seed: train.seed; the sample is a function of it.
        count: images to draw.
        class_counts: the empirical law of the labels.
        batch_size: images per pass of G_ema.
        check_stop: called between batches; may raise.
    """
    sample_seed = derive_seed(seed, "metric")
    indices = range(count)
    labels = image_labels(sample_seed, indices, class_counts)

    def batches() -> Iterator[Tensor]:
        for images in generate_images(G_ema, sample_seed, indices, labels, 1.0, None, "random", batch_size):
            check_stop()
            yield images

    moments = measure_moments(yardstick.extractor, batches(), yardstick.batch_size)
    real = yardstick.statistics
    return frechet_distance(real.mu, real.sigma, moments.mean(), moments.covariance(int(real.protocol["ddof"])))
