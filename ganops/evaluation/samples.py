"""The pipeline's samples against the reference: what the stage `fid` does."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ganops.config import Params
from ganops.distributed import select_device
from ganops.entry import say
from ganops.errors import DataError
from ganops.images.shard_index import ShardIndex
from ganops.images.shards import open_shards
from ganops.launch import rank
from ganops.metrics.evaluate import Yardstick, draw_neighbours, evaluate
from ganops.metrics.features import measure_features
from ganops.metrics.perceptual import load_perceptual, path_length_score
from ganops.metrics.statistics import (
    check_protocols,
    check_samples,
    describe_images,
    describe_protocol,
    describe_reference,
    load_statistics,
    open_extractor,
    open_images,
)
from ganops.networks.path_length import PATH_EPSILON, PathSampling, snapshot_path_distances
from ganops.protocols import OF_GENERATOR

PATHS: dict[str, PathSampling] = {"ppl_wend": "end", "ppl_wfull": "full"}


def evaluate_samples(
    params: Params, samples: Path, statistics: Path, reference: Path, snapshot: Path, root: Path
) -> tuple[dict[str, Any], NDArray[np.uint8]] | None:
    """All of fid.metrics for the first fid.num_fake samples, by all ranks.

    Args:
        params: all of params.yaml.
        samples: data/samples.
        statistics: data/stats.npz.
        reference: the images that the statistics are of.
        snapshot: the model that made the samples.
        root: the repository that owns data/weights.
    Returns:
        What results/fid.json holds, and the picture of nearest neighbours; None on other ranks than the first.
    Raises:
        DataError: images are missing or damaged, or samples and statistics may not be compared.
        WeightsError: see `load_extractor`.
    """
    p, count = params.stats, params.fid.num_fake
    device = select_device(params.run.device, params.run.cpu_threads)
    real = load_statistics(statistics)
    extractor = open_extractor(params, device, root)
    paths = [metric for metric in OF_GENERATOR if metric in params.fid.metrics]
    perceptual = None
    if paths:
        perceptual = load_perceptual(p.extractor, device, root / "data" / "weights", params.prepare.background)
    fakes = open_shards(samples, verify=True)
    if len(fakes) < count:
        raise DataError(f"fid.num_fake={count}, but data/samples has {len(fakes)} images. Run `dvc repro sample`.")
    index = fakes.index
    fake = describe_protocol(extractor, p, index.resolution, index.channels)
    check_samples(real.protocol, {**fake, **describe_reference(p)}, index)
    _check_values(index, params)
    reals = open_images(reference, params)
    check_protocols(real.protocol, {"data_digest": describe_images(reals)[0]})
    say(f"fid: protocol {params.fid.protocol}, {extractor.name} on {device.type}, {count} samples")
    rows = list(measure_features(extractor, fakes, range(count), p.batch_size, "fid"))
    lengths = {}
    if perceptual is not None:
        kinds = [PATHS[metric] for metric in paths]
        size = params.sample.batch_size
        found = snapshot_path_distances(snapshot, kinds, perceptual.distance, params.fid.seed, count, size, device)
        lengths = {f"{metric}_{perceptual.name}": of_kind for metric, of_kind in zip(paths, found, strict=True)}
    if rank():
        return None
    features, labels = np.concatenate(rows), fakes.labels[:count]
    result = evaluate(params, Yardstick(extractor, real, p.batch_size), features, labels, index.class_names)
    result |= {name: path_length_score(distances, PATH_EPSILON) for name, distances in lengths.items()}
    result["protocol"]["samples"] = {
        **index.source,
        "data_digest": index.digest,
        "versions": fake["versions"],
        "device": fake["device"],
    }
    if perceptual is not None:
        result["protocol"]["perceptual"] = {"name": perceptual.name, "sha256": perceptual.sha256}
    return result, draw_neighbours(real, features, fakes, reals)


def _check_values(index: ShardIndex, params: Params) -> None:
    """That the samples were made as params.yaml says, also when stages are run by hand: numbers are named by it."""
    made = index.source.get("sample")
    for key in ("snapshot", "seed", "truncation_psi", "truncation_cutoff", "noise_mode"):
        found, asked = (made or {}).get(key), getattr(params.sample, key)
        if made is None or found != asked:
            raise DataError(f"data/samples was made with sample.{key}={found}, not {asked}. Run `dvc repro sample`.")
