"""Metrics against the reference while training: the code of ganops.metrics on a seeded sample of G_ema."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ganops.collectives import collect_rounds
from ganops.config import Params
from ganops.distributed import derive_seed, on_first_rank
from ganops.files import sha256_file
from ganops.images.shard_index import ShardIndex
from ganops.launch import rank, world_size
from ganops.metrics.evaluate import Numbers, Yardstick, measure_sample
from ganops.metrics.features import extract
from ganops.metrics.perceptual import load_perceptual
from ganops.metrics.statistics import (
    check_protocols,
    describe_protocol,
    describe_reference,
    load_statistics,
    open_extractor,
)
from ganops.networks.families import AnyGenerator
from ganops.networks.law import LabelLaw
from ganops.networks.sampling import generate_images, image_labels
from ganops.protocols import OF_GENERATOR, SHARDS


def load_yardstick(
    statistics: Path, params: Params, index: ShardIndex, device: torch.device, root: Path
) -> tuple[Yardstick, str]:
    """The extractor and the statistics of the reference, to measure samples with.

    Args:
        statistics: data/stats.npz.
        params: all of params.yaml.
        index: of the training data.
        device: where to compute.
        root: the repository that owns data/weights.
    Returns:
        The yardstick; and a digest of everything that its numbers depend on (code, statistics, count of samples): only
        numbers of one digest are compared.
    Raises:
        DataError: the statistics are of other data or measured otherwise than params.yaml says.
        WeightsError: the extractor's weights are missing or wrong.
    """
    real = load_statistics(statistics)
    extractor = open_extractor(params, device, root)
    if any(metric in params.fid.metrics for metric in OF_GENERATOR):  # had before days of training, not missed after
        load_perceptual(params.stats.extractor, torch.device("cpu"), root / "data" / "weights")
    expected = {
        **describe_protocol(extractor, params.stats, index.resolution, index.channels),
        **describe_reference(params.stats),
        **({"data_digest": index.digest} if params.stats.reference == SHARDS else {}),
    }
    check_protocols(real.protocol, expected)
    library = Path(__file__).parents[1]
    code = [*sorted((library / "metrics").glob("*.py")), library / "precision.py", library / "protocols.py"]
    parts = [sha256_file(path) for path in (*code, statistics)]
    digest = derive_seed(params.train.metric_images, *parts)
    return Yardstick(extractor, real, params.stats.batch_size), f"{digest:016x}"


def measure_metrics(
    metrics: Sequence[str],
    yardstick: Yardstick,
    G_ema: AnyGenerator,
    seed: int,
    count: int,
    law: LabelLaw,
    batch_size: int,
    bits: Literal[8, 16],
    check_stop: Callable[[], None],
) -> Numbers:
    """Metrics of `count` images of G_ema; the same images every time, psi 1, random noise.

    Every rank must come here: they share the images, and all learn the result.

    Args:
        metrics: train.metrics.
        yardstick: see `load_yardstick`.
        G_ema: the averaged generator.
        seed: train.seed; the sample is a function of it.
        count: images to draw.
        law: what labels are drawn by.
        batch_size: images per pass of G_ema.
        bits: of the images.
        check_stop: called between batches, on every rank alike often; may raise.
    Returns:
        Metric -> number.
    """
    sample_seed = derive_seed(seed, "metric")
    # Dealt in pieces that both batch sizes divide, so that no batch depends on the number of ranks.
    piece = math.lcm(batch_size, yardstick.batch_size)
    pieces = [range(start, min(start + piece, count)) for start in range(0, count, piece)]

    def measure(indices: range) -> NDArray[np.float32]:
        labels = image_labels(sample_seed, indices, law)
        images = generate_images(G_ema, sample_seed, indices, labels, 1.0, None, "random", batch_size, bits)
        return np.concatenate(list(extract(yardstick.extractor, images, yardstick.batch_size)))

    rows: list[NDArray[np.float32]] = []
    for arrived in collect_rounds(map(measure, pieces[rank() :: world_size()]), len(pieces)):
        rows += arrived
        check_stop()
    return on_first_rank(lambda: measure_sample(metrics, yardstick, np.concatenate(rows), sample_seed, str))
