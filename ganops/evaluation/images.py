"""Any images against any others: what the tool `evaluate` does."""

from pathlib import Path
from typing import Any

import numpy as np

from ganops.config import Params
from ganops.config_base import FEWEST
from ganops.distributed import select_device
from ganops.entry import say
from ganops.errors import DataError
from ganops.images.shard_index import LabelValues
from ganops.images.shards import Shards
from ganops.metrics.evaluate import Yardstick, evaluate
from ganops.metrics.features import measure_features
from ganops.metrics.statistics import (
    Statistics,
    check_protocols,
    describe_images,
    describe_protocol,
    describe_reference,
    open_extractor,
    open_images,
    open_reference,
    printable,
)
from ganops.protocols import OF_CLASSES, OF_GENERATOR, PRESETS

REMEDY = "Measure both with one params.yaml, and bring the images to one size."


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
    for path in (source, reference):
        if not path.exists():
            raise DataError(f"{path} not found (looked in {Path.cwd()}).")
    extractor = open_extractor(params, device, root)
    real = open_reference(reference, extractor, params)
    images = open_images(source, params, real.protocol["channels"])
    if len(images) < FEWEST:
        raise DataError(f"{source} holds {len(images)} images; at least {FEWEST} are needed.")
    _check_preset(params, real, len(images))
    digest, resolution, channels = describe_images(images)
    check_protocols(real.protocol, describe_protocol(extractor, p, resolution, channels), REMEDY)
    labels: LabelValues | None = None
    names: tuple[str, ...] = ()
    if (
        isinstance(images, Shards)
        and images.index.num_classes
        and images.index.class_names == real.class_names
        and images.labels.ndim == real.labels.ndim
    ):
        labels, names = images.labels, images.index.class_names
    lacking = [m for m in params.fid.metrics if m in OF_GENERATOR or (m in OF_CLASSES and labels is None)]
    if lacking:
        say(f"evaluate: needs the generator, or the same classes on both sides, so not measured: {', '.join(lacking)}")
    rows = list(measure_features(extractor, images, range(len(images)), p.batch_size, "evaluate"))
    result = evaluate(params, Yardstick(extractor, real, p.batch_size), np.concatenate(rows), labels, names)
    result["protocol"]["samples"] = {"data_digest": digest, "source": printable(source.name)}
    return result


def _check_preset(params: Params, real: Statistics, count: int) -> None:
    """That a number gets a preset's name only if it was measured so; params.yaml is checked by the schema, files here."""
    if params.fid.protocol not in PRESETS:
        return
    expected = {**describe_reference(params.stats), "num_fake": params.fid.num_fake}
    found = {**real.protocol, "num_fake": count}
    for key in ("split", "num_real_asked", "xflip", "num_fake"):
        if found[key] != expected[key]:
            raise DataError(
                f"{key} is {found[key]}, but fid.protocol={params.fid.protocol} is measured with {expected[key]}. Set "
                f"fid.protocol: {PRESETS[params.fid.protocol].resize} to measure these images under another name."
            )
