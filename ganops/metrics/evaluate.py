"""From features to numbers: every metric of a sample against a reference, and the pictures of nearest neighbours."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ganops.config import Params
from ganops.entry import say
from ganops.errors import DataError
from ganops.images.folder import FolderImages
from ganops.images.pixels import as_array, for_eyes, magnify, make_grid
from ganops.images.shard_index import LabelValues
from ganops.images.shards import PRESENT, Shards
from ganops.metrics.extractor import Extractor
from ganops.metrics.features import moments_of, read_images
from ganops.metrics.frechet import Reference, distance_to, frechet_distance_of_rows, make_reference
from ganops.metrics.kernel import kernel_distance
from ganops.metrics.neighbours import density_coverage, memorised_share, nearest, precision_recall
from ganops.metrics.score import inception_score
from ganops.metrics.statistics import Statistics
from ganops.metrics.uncertainty import distance_at_infinity, measure_uncertainty
from ganops.protocols import OF_CLASSES, metric_name

PRECISION_NEIGHBOURS = 3  # k of precision and recall: Kynkäänniemi et al. 2019, as in pr50k3
DENSITY_NEIGHBOURS = 5  # k of density and coverage: Naeem et al. 2020
SHOWN_FIRST, SHOWN_NEAREST, SHOWN_NEIGHBOURS = 8, 8, 5  # rows and columns of the picture of nearest neighbours
Numbers = dict[str, float]


@dataclass(frozen=True)
class Yardstick:
    """What samples are measured with: a feature network and the reference's statistics.

    Attributes:
        extractor: the network.
        real: the reference.
        batch_size: images per pass of the network.
    """

    extractor: Extractor
    real: Statistics
    batch_size: int

    @property
    def ddof(self) -> int:
        return int(self.real.protocol["ddof"])

    @cached_property
    def reference(self) -> Reference:
        """The reference's moments with what every distance to them needs."""
        return make_reference(self.real.mu, self.real.sigma)


def measure_sample(
    metrics: Sequence[str], yardstick: Yardstick, fake: NDArray[np.float32], seed: int, name: Callable[[str], str]
) -> Numbers:
    """Numbers of a sample.

    Args:
        metrics: of `protocols.METRICS`; those of classes or of the generator are left to others.
        yardstick: what it is measured with.
        fake: [N, D] features of the sample.
        seed: of kid's subsets.
        name: what each is called.
    Returns:
        Name -> number; beside kid and inception_score their standard deviations, name_std.
    """
    real, numbers = yardstick.real.features, {}
    if "distance" in metrics:
        moments = moments_of(fake)
        numbers[name("distance")] = distance_to(yardstick.reference, moments.mean(), moments.covariance(yardstick.ddof))
    if "kid" in metrics:
        kid = kernel_distance(real, fake, seed)
        numbers[name("kid")], numbers[name("kid") + "_std"] = kid.value, kid.std
    if "precision" in metrics or "recall" in metrics:
        both = dict(zip(("precision", "recall"), precision_recall(real, fake, PRECISION_NEIGHBOURS), strict=True))
        numbers |= {name(metric): value for metric, value in both.items() if metric in metrics}
    if "density" in metrics or "coverage" in metrics:
        both = dict(zip(("density", "coverage"), density_coverage(real, fake, DENSITY_NEIGHBOURS), strict=True))
        numbers |= {name(metric): value for metric, value in both.items() if metric in metrics}
    if "inception_score" in metrics:
        key = name("inception_score")
        numbers[key], numbers[key + "_std"] = inception_score(logits_of(yardstick.extractor, fake))
    return numbers


def logits_of(extractor: Extractor, features: NDArray[np.float32]) -> NDArray[np.float32]:
    """[N, classes] logits of features [N, D]. The extractor must have classes, which `open_extractor` sees to."""
    assert extractor.classify is not None
    with torch.no_grad():
        parts = [
            extractor.classify(torch.from_numpy(rows).to(extractor.device)) for rows in np.array_split(features, 10)
        ]
    return torch.cat(parts).cpu().numpy()


def measure_errors(yardstick: Yardstick, fake: NDArray[np.float32], key: str) -> Numbers:
    """How far the distance may be off: `key`_ci95 (half a 95 % interval), `key`_corrected (for the samples' number).

    They are of the samples' draw alone, the reference held fixed: what two models measured against it may differ by.
    """
    found = measure_uncertainty(yardstick.real.mu, yardstick.real.sigma, fake, yardstick.ddof)
    return {f"{key}_ci95": found.ci95, f"{key}_corrected": found.corrected}


def measure_classes(
    metrics: Sequence[str],
    yardstick: Yardstick,
    fake: NDArray[np.float32],
    labels: LabelValues,
    class_names: Sequence[str],
    name: Callable[[str], str],
) -> dict[str, Numbers]:
    """Distance and recall class by class, of the reference's kept features and the samples of the same class.

    With label vectors, attribute by attribute: of the images that have it (a number above 0.5), so one image counts for
    none, one or several.

    Returns:
        Class name -> number's name -> number; a class with fewer than two images on one side has none.
    """
    found: dict[str, Numbers] = {}
    for label, class_name in enumerate(class_names):
        real_rows = yardstick.real.features[_members(yardstick.real.labels, label)]
        fake_rows = fake[_members(labels, label)]
        numbers: Numbers = {"num_real": len(real_rows), "num_fake": len(fake_rows)}
        fewest = min(len(real_rows), len(fake_rows))
        if "class_distance" in metrics and fewest >= 2:
            numbers[name("class_distance")] = frechet_distance_of_rows(real_rows, fake_rows, yardstick.ddof)
        if "class_recall" in metrics and fewest > PRECISION_NEIGHBOURS:
            numbers[name("class_recall")] = precision_recall(real_rows, fake_rows, PRECISION_NEIGHBOURS)[1]
        found[class_name] = numbers
    return found


def _members(labels: LabelValues, label: int) -> NDArray[np.bool_]:
    """Which images are of a class, or have an attribute."""
    return labels == label if labels.ndim == 1 else labels[:, label] > PRESENT


def _measure_all(
    params: Params,
    yardstick: Yardstick,
    fake: NDArray[np.float32],
    labels: LabelValues | None,
    class_names: Sequence[str],
    name: Callable[[str], str],
) -> dict[str, Any]:
    p, real = params.fid, yardstick.real
    result: dict[str, Any] = dict(measure_sample(p.metrics, yardstick, fake, p.seed, name))
    if "distance" in p.metrics:
        result |= measure_errors(yardstick, fake, name("distance"))
    if "distance_infinity" in p.metrics:
        result[name("distance_infinity")] = distance_at_infinity(real.mu, real.sigma, fake, yardstick.ddof)
    if real.protocol["split"] == "train":  # to be near to images that were not trained on is no memory
        result[name("memorised")] = memorised_share(real.features, fake)
    if labels is not None and any(metric in p.metrics for metric in OF_CLASSES):
        classes = measure_classes(p.metrics, yardstick, fake, labels, class_names, name)
        for metric in OF_CLASSES:
            values = [numbers[name(metric)] for numbers in classes.values() if name(metric) in numbers]
            if metric in p.metrics and not values:
                raise ValueError(f"{metric}: no class has enough images on both sides")
            if values:
                result[name(metric)] = float(np.mean(values))
                say(f"{name(metric)}: mean over {len(values)} of {len(classes)} classes")
        result["classes"] = classes
    return result


def evaluate(
    params: Params,
    yardstick: Yardstick,
    fake: NDArray[np.float32],
    labels: LabelValues | None,
    class_names: Sequence[str],
) -> dict[str, Any]:
    """Everything that fid.metrics lists and features can give, under the names of the protocol.

    Args:
        params: all of params.yaml.
        yardstick: what the sample is measured with.
        fake: [N, D] features of the sample.
        labels: [N] classes or [N, L] label vectors; None when they are not known.
        class_names: of the labels.
    Returns:
        Flat numbers; `memorised_*` if the reference is what was trained on; `classes` if asked for and known;
        `protocol`: of the reference, and the counts.
    Raises:
        DataError: there are too few images, or their features are not finite or all the same.
    """
    p, extractor, real = params.fid, yardstick.extractor, yardstick.real

    def name(metric: str) -> str:
        return metric_name(metric, p.protocol, extractor.suffix, extractor.precision)

    # Folders are sorted, often by class; blocks, splits and prefixes of samples are to be like the whole.
    order = np.random.Generator(np.random.PCG64(p.seed)).permutation(len(fake))
    try:
        result = _measure_all(
            params, yardstick, fake[order], None if labels is None else labels[order], class_names, name
        )
    except ValueError as error:
        raise DataError(f"these images cannot be measured by fid.metrics={p.metrics}: {error}") from None
    dim, num_fake = fake.shape[1], len(fake)
    result["protocol"] = {
        **real.protocol,
        "name": name(p.metrics[0]),
        "protocol": p.protocol,
        "metrics": list(p.metrics),
        "seed": p.seed,
        "num_real": real.num,
        "num_real_kept": len(real.features),
        "memorised_searched": len(real.features) / real.protocol["num_images"],
        "compiled": params.run.compile_extractor,
        "num_fake": num_fake,
        "num_features": dim,
        "num_real_below_dimension": real.num < dim,
        "num_fake_below_dimension": num_fake < dim,
        "precision_neighbours": PRECISION_NEIGHBOURS,
        "density_neighbours": DENSITY_NEIGHBOURS,
    }
    return result


def summary(result: dict[str, Any]) -> list[str]:
    """The result for the terminal: a line with the distance and its interval, one with the rest, and warnings."""
    protocol = result["protocol"]
    key, counts = protocol["name"], f"{protocol['num_real']} real images, {protocol['num_fake']} samples"
    numbers = {name: value for name, value in result.items() if isinstance(value, float)}
    lines = []
    if key in numbers:
        interval = f" +- {numbers[key + '_ci95']:.3g} (95 %)" if key + "_ci95" in numbers else ""
        corrected = f", {numbers[key + '_corrected']:.5g} corrected" if key + "_corrected" in numbers else ""
        lines.append(f"{key} = {numbers[key]:.5g}{interval}{corrected} ({counts}, ddof {protocol['ddof']})")
    rest = [f"{name} {value:.4g}" for name, value in numbers.items() if not name.startswith(key)]
    if rest:
        lines.append(", ".join(rest))
    if "distance" in protocol["metrics"] and (
        protocol["num_real_below_dimension"] or protocol["num_fake_below_dimension"]
    ):
        lines.append(
            f"fewer images than the {protocol['num_features']} features: the distance is biased upwards; "
            "compare only equal counts with each other"
        )
    return lines


def draw_neighbours(
    real: Statistics, fake: NDArray[np.float32], samples: Shards | FolderImages, reference: Shards | FolderImages
) -> NDArray[np.uint8]:
    """A picture with a sample and its nearest reference images per row: the first samples, then those nearest to any.

    Args:
        real: of the reference, with the features of some of its images.
        fake: [N, D] features of the samples.
        samples: the images of `fake`, in order.
        reference: the images that `real` is of; of the samples' shape, since others are not compared.
    Returns:
        [H, W] or [H, W, C] uint8, see `make_grid`.
    """
    columns = min(SHOWN_NEIGHBOURS, len(real.features))
    distances, found = nearest(fake, real.features, columns)
    closest = np.argsort(distances[:, 0], kind="stable")[:SHOWN_NEAREST]
    shown = []
    for row in [*range(min(SHOWN_FIRST, len(fake))), *closest.tolist()]:
        shown += [*read_images(samples, [row]), *read_images(reference, real.places[found[row]].tolist())]
    return make_grid(magnify(np.concatenate([for_eyes(as_array(images)) for images in shown])), columns + 1)
