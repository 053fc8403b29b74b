"""Any images against any others: what the tool `evaluate` does."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ganops.config import FEWEST, Params
from ganops.distributed import select_device
from ganops.entry import say
from ganops.errors import DataError
from ganops.images.shards import Shards
from ganops.metrics.evaluate import Yardstick, evaluate
from ganops.metrics.features import measure_features
from ganops.metrics.statistics import (
    check_protocols,
    describe_images,
    describe_protocol,
    open_extractor,
    open_images,
    open_reference,
)
from ganops.protocols import OF_CLASSES, OF_GENERATOR


def evaluate_images(source: Path, reference: Path, params: Params, root: Path) -> dict[str, Any]:
    """All metrics of any images against any others: what the stage `fid` gives for the same images, to the last digit.

    Args:
        source: a folder or zip of images, or a folder of shards.
        reference: likewise, or a statistics file.
        params: all of params.yaml.
        root: the repository that owns data/weights.
    Returns:
        As `evaluate`; without what needs the generator, or classes where they are not known, which is said.
    Raises:
        DataError: images are missing or damaged, or the two may not be compared.
        WeightsError: see `load_extractor`.
    """
    p, device = params.stats, select_device(params.run.device, params.run.cpu_threads)
    extractor = open_extractor(params, device, root)
    real = open_reference(reference, extractor, params)
    images = open_images(source, params, real.protocol["channels"])
    if len(images) < FEWEST:
        raise DataError(f"{source} holds {len(images)} images; at least {FEWEST} are needed.")
    digest, resolution, channels = describe_images(images)
    check_protocols(real.protocol, describe_protocol(extractor, p, resolution, channels))
    labels: NDArray[np.int64] | None = None
    names: tuple[str, ...] = ()
    if isinstance(images, Shards) and images.index.num_classes and len(np.unique(real.labels)) > 1:
        labels, names = images.labels, images.index.class_names
    lacking = [m for m in params.fid.metrics if m in OF_GENERATOR or (m in OF_CLASSES and labels is None)]
    if lacking:
        say(f"evaluate: needs the generator or classes, so not measured: {', '.join(lacking)}")
    rows = list(measure_features(extractor, images, range(len(images)), p.batch_size, "evaluate"))
    result = evaluate(params, Yardstick(extractor, real, p.batch_size), np.concatenate(rows), labels, names)
    result["protocol"]["samples"] = {"data_digest": digest, "source": source.name}
    return result
