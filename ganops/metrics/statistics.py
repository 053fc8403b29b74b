"""The statistics file: moments and features of the reference images, with the whole protocol; what may be compared."""

import importlib.metadata
import io
import json
import os
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ganops.config import Params, StatsParams
from ganops.config_base import FEWEST
from ganops.errors import DataError, WeightsError
from ganops.files import write_bytes
from ganops.images.folder import FolderImages, open_folder
from ganops.images.shard_index import INDEX_NAME, LabelValues, ShardIndex
from ganops.images.shards import Shards, open_shards
from ganops.launch import rank
from ganops.metrics.extractor import Extractor, load_extractor
from ganops.metrics.features import Moments, measure_features, spread_indices
from ganops.protocols import SHARDS, resize_of
from ganops.shape import size_name

# What must agree before two sets may be compared. The rest of a protocol says where a set comes from, and what its
# numbers depend on by rounding only (device, compiled, versions).
COMPARED = (
    "extractor",
    "extractor_sha256",
    "resizer",
    "precision",
    "ddof",
    "batch_size",
    "resolution",
    "channels",
    "channels_seen",
)
# What of the reference must be as params.yaml says.
OF_REFERENCE = ("split", "num_real_asked", "xflip", "keep_features")

# What reading a damaged .npz raises, found by changing each of its bytes (RuntimeError: of zip versions, encryption).
DAMAGE = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    AttributeError,
    TypeError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class Statistics:
    """Moments of a reference set's features, and how they came about.

    Attributes:
        mu: [D] float64.
        sigma: [D, D] float64.
        num: images that were measured, mirrored ones included.
        protocol: JSON-able; see `COMPARED` for what must agree between two sets.
        features: [K, D] float32, of images spread evenly over the set, for all metrics but the distance.
        labels: [K] int64, their classes, zeros if there are none; or [K, L] float32, their label vectors.
        places: [K] int64, which images of the set they are.
        class_names: of the labels; empty if there are none.
    """

    mu: NDArray[np.float64]
    sigma: NDArray[np.float64]
    num: int
    protocol: dict[str, Any]
    features: NDArray[np.float32]
    labels: LabelValues
    places: NDArray[np.int64]
    class_names: tuple[str, ...]


def open_extractor(params: Params, device: torch.device, root: Path) -> Extractor:
    """The feature network that params.yaml names, with the resize of fid.protocol; weights lie in root/data/weights.

    Raises:
        WeightsError: see `load_extractor`; or it lacks what a listed metric needs.
    """
    p, weights = params.stats, root / "data" / "weights"
    resize = resize_of(params.fid.protocol)
    compiled = params.run.compile_extractor
    how = (resize, p.precision, compiled, device, weights, params.prepare.background)
    extractor = load_extractor(p.extractor, p.extractor_sha256, *how)
    if extractor.classify is None and "inception_score" in (*params.fid.metrics, *params.train.metrics):
        raise WeightsError(
            f"inception_score is listed in fid.metrics or train.metrics, but the file of {extractor.name} in {weights} "
            "does not show its classes. Remove it from the lists, or use the other file (docs/metrics.md)."
        )
    return extractor


def open_images(source: Path, params: Params, channels: int | None = None) -> Shards | FolderImages:
    """A set to be measured: a folder of shards (each file's sha256 is checked), or a folder or zip of images.

    Args:
        source: where.
        params: all of params.yaml.
        channels: what images of a folder are converted to; None = prepare.channels.
    Raises:
        DataError: it is missing, damaged or empty.
    """
    if (source / INDEX_NAME).is_file():
        return open_shards(source, verify=True)
    return open_folder(source, channels or params.prepare.channels, params.prepare.background)


def open_reference(source: Path, extractor: Extractor, params: Params) -> Statistics:
    """Statistics as they are in a file, or those of a set of images, measured now. For one rank.

    Raises:
        DataError: it is missing, damaged or empty.
    """
    if source.suffix == ".npz":
        return load_statistics(source)
    name = SHARDS if source.resolve() == Path(SHARDS).resolve() else str(source)
    p = params.stats.model_copy(update={"reference": name})
    statistics = measure_statistics(extractor, open_images(source, params), p)
    assert statistics is not None  # None on other ranks than the first
    return statistics


def check_reference(images: Shards | FolderImages, params: Params) -> None:
    """That a reference fits what is trained; reads every file of a folder once.

    Raises:
        DataError: it holds images of another size or number of channels.
    """
    _, resolution, channels = describe_images(images)
    p = params.prepare
    if (resolution, channels) != (size_name(*p.size), p.channels):
        raise DataError(
            f"stats.reference={params.stats.reference} holds images of {resolution} px with {channels} channels, but "
            f"training is at prepare.resolution={p.resolution}, prepare.channels={p.channels}: their distance would mean "
            "nothing. Bring the reference to that size in the way that prepare brings the training images."
        )


def measure_statistics(extractor: Extractor, images: Shards | FolderImages, params: StatsParams) -> Statistics | None:
    """Features of a reference set by all ranks: of at most stats.num_real images, mirror images (stats.xflip) counted.

    Returns:
        The statistics; None on other ranks than the first.
    Raises:
        DataError: there are too few images.
    """
    if len(images) < FEWEST:
        raise DataError(f"the reference {params.reference} holds {len(images)} images; at least {FEWEST} are needed.")
    most = len(images) if params.num_real is None else params.num_real // (2 if params.xflip else 1)
    chosen = spread_indices(len(images), most)
    if len(chosen) < FEWEST:
        raise DataError(
            f"stats.num_real={params.num_real} with stats.xflip=true takes {len(chosen)} images and their mirror images; at "
            f"least {FEWEST} images are needed. Set stats.num_real: {2 * FEWEST} or more."
        )
    kept = spread_indices(len(chosen), params.keep_features)
    moments, rows = Moments(), []
    for flip in (False, True) if params.xflip else (False,):
        what = "stats, mirrored" if flip else "stats"
        start = 0
        for features in measure_features(extractor, images, chosen.tolist(), params.batch_size, what, flip):
            places = kept - start
            if not flip:
                rows.append(features[places[(places >= 0) & (places < len(features))]])
            moments.append(features)
            start += len(features)
    if rank():
        return None
    digest, resolution, channels = describe_images(images)
    protocol = {
        **describe_protocol(extractor, params, resolution, channels),
        **describe_reference(params),
        "data_digest": digest,
        "num_images": len(images),
        "bits": images.index.bits if isinstance(images, Shards) else 8,  # 16 are rounded to 8 for the network
    }
    labels: LabelValues = np.zeros(len(kept), np.int64)
    names: tuple[str, ...] = ()
    if isinstance(images, Shards):
        labels, names = images.labels[chosen[kept]], images.index.class_names
    mu, sigma = moments.mean(), moments.covariance(params.ddof)
    return Statistics(mu, sigma, moments.count, protocol, np.concatenate(rows), labels, chosen[kept], names)


def describe_protocol(
    extractor: Extractor, params: StatsParams, resolution: int | str, channels: int
) -> dict[str, Any]:
    """How a set is measured: everything a number needs to be repeated or compared."""
    return {
        "extractor": extractor.name,
        "extractor_sha256": extractor.sha256,
        "resizer": extractor.resizer,
        "precision": extractor.precision,
        "ddof": params.ddof,
        "batch_size": params.batch_size,
        "resolution": resolution,
        "channels": channels,
        "channels_seen": extractor.channels_seen(channels),
        "device": extractor.device.type,
        "versions": {name: importlib.metadata.version(name) for name in (*extractor.packages, "numpy")},
    }


def describe_images(images: Shards | FolderImages) -> tuple[str, int | str, int]:
    """Digest, resolution and channels of a set; reads every file of a folder once."""
    if isinstance(images, Shards):
        return images.index.digest, images.index.resolution, images.index.channels
    return *images.survey(), images.channels


def describe_reference(params: StatsParams) -> dict[str, Any]:
    """Which images the reference is, as params.yaml says."""
    return {
        "split": "train" if params.reference == SHARDS else f"other: {printable(Path(params.reference).name)}",
        "num_real_asked": "all" if params.num_real is None else params.num_real,
        "xflip": params.xflip,
        "keep_features": params.keep_features,
    }


def printable(name: str) -> str:
    """A file's name as text that can be written, whatever its bytes are."""
    return os.fsencode(name).decode("utf-8", "replace")


def save_statistics(path: Path, statistics: Statistics) -> None:
    """Writes an .npz, whole or not at all; the same statistics give the same bytes."""
    content = io.BytesIO()
    np.savez(
        content,
        mu=statistics.mu,
        sigma=statistics.sigma,
        num=np.int64(statistics.num),
        protocol=np.array(json.dumps(statistics.protocol, sort_keys=True)),
        features=statistics.features,
        labels=statistics.labels,
        places=statistics.places,
        class_names=np.array(json.dumps(statistics.class_names)),
    )
    write_bytes(path, content.getvalue())


def load_statistics(path: Path) -> Statistics:
    """Reads what `save_statistics` wrote; never runs anything from the file.

    Raises:
        DataError: the file is missing, damaged or something else.
    """
    try:
        with path.open("rb") as content, np.load(content, allow_pickle=False) as file:
            statistics = Statistics(
                file["mu"],
                file["sigma"],
                int(file["num"]),
                json.loads(str(file["protocol"])),
                file["features"],
                file["labels"],
                file["places"],
                tuple(json.loads(str(file["class_names"]))),
            )
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Run `dvc repro stats`.") from None
    except DAMAGE as error:
        raise DataError(f"{path}: not whole statistics ({error}). Remove it and run `dvc repro stats`.") from None
    dim, kept, arrays = statistics.mu.size, len(statistics.features), (statistics.mu, statistics.sigma)
    shapes = [array.shape for array in (*arrays, statistics.features, statistics.labels, statistics.places)]
    labels_shape = (kept, len(statistics.class_names)) if statistics.labels.ndim == 2 else (kept,)
    if shapes != [(dim,), (dim, dim), (kept, dim), labels_shape, (kept,)] or not isinstance(statistics.protocol, dict):
        raise DataError(f"{path}: mean, covariance and features do not fit. Remove it and run `dvc repro stats`.")
    if any(array.dtype != np.float64 or not np.isfinite(array).all() for array in arrays):
        raise DataError(f"{path}: the moments are not finite float64. Remove it and run `dvc repro stats`.")
    lacking = {*COMPARED, *OF_REFERENCE, "data_digest", "num_images"} - set(statistics.protocol)
    if lacking or kept < FEWEST or statistics.sigma.diagonal().min(initial=0.0) < 0:
        what = f"the protocol lacks {min(lacking)}" if lacking else "too few features, or a variance below zero"
        raise DataError(f"{path}: {what}. Remove it and run `dvc repro stats`.")
    types = [str(array.dtype) for array in (statistics.places, statistics.labels)]
    if types != ["int64", "int64" if statistics.labels.ndim == 1 else "float32"]:
        raise DataError(f"{path}: places or labels are {' and '.join(types)}. Remove it and run `dvc repro stats`.")
    if statistics.features.dtype != np.float32 or not np.isfinite(statistics.features).all():
        raise DataError(f"{path}: the features are not finite float32. Remove it and run `dvc repro stats`.")
    return statistics


def trained_on(samples: ShardIndex) -> str:
    """The digest of the data that the samples' model was trained on.

    Raises:
        DataError: the index does not say; the set was not written by the stage `sample`.
    """
    training = samples.source.get("training")
    if not isinstance(training, dict) or not isinstance(training.get("data_digest"), str):
        raise DataError(
            "The samples' index.json does not say what data their model was trained on. Run `dvc repro sample`."
        )
    return str(training["data_digest"])


def check_protocols(
    real: Mapping[str, Any],
    fake: Mapping[str, Any],
    remedy: str = "Run `dvc repro`, so that both are of the same data and measured alike.",
) -> None:
    """Refuses to compare sets that were measured differently.

    Args:
        real: of the statistics.
        fake: of what is compared with them: `COMPARED`, and of the other items those that must agree too.
        remedy: what to do about it.
    Raises:
        DataError: names the first item that differs.
    """
    for name in (*COMPARED, *OF_REFERENCE, "data_digest"):
        if name in fake and (name not in real or real[name] != fake[name]):
            raise DataError(
                f"{name} is {real.get(name)} in the statistics of the real images, but {fake[name]} for the samples: "
                f"their distance would mean nothing. {remedy}"
            )


def check_samples(real: Mapping[str, Any], fake: Mapping[str, Any], samples: ShardIndex) -> None:
    """`check_protocols` for what the stage `sample` wrote: their model must be of the reference's data, if that is them.

    Raises:
        DataError: names what differs.
    """
    digest = trained_on(samples)
    check_protocols(real, {**fake, "data_digest": digest} if real.get("split") == "train" else fake)
