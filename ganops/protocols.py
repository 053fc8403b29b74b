"""How a distance is measured so that it may stand beside a published one: the field's protocols, and metrics' names.

A preset's name says which values params.yaml must have; the values themselves stand there. Nothing here computes.
"""

import difflib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from ganops.shape import height_width

# Of one feature pass over the samples; the last two need the generator itself.
MetricName = Literal[
    "distance",
    "kid",
    "precision",
    "recall",
    "density",
    "coverage",
    "inception_score",
    "distance_infinity",
    "class_distance",
    "class_recall",
    "ppl_wend",
    "ppl_wfull",
]
# One number per sample each, cheap enough for every metric_kimg.
TrainMetricName = Literal["distance", "kid", "precision", "recall", "density", "coverage", "inception_score"]
METRICS: tuple[str, ...] = get_args(MetricName)
TRAIN_METRICS: tuple[str, ...] = get_args(TrainMetricName)
EXTRACTORS = ("inception-2015", "efficientnet-lite0")  # built in; anything else is a TorchScript file
SCRIPT_SUFFIXES = (".pt", ".pth", ".jit", ".ts", ".torchscript")  # a name with one of these is meant as a file
SHARDS = "data/shards"  # stats.reference when the reference is the training images
OF_CLASSES = ("class_distance", "class_recall")
OF_GENERATOR = ("ppl_wend", "ppl_wfull")
LARGER_IS_BETTER = frozenset({"precision", "recall", "density", "coverage", "inception_score", "class_recall"})

ProtocolName = Literal[
    "clean",
    "legacy",
    "none",
    "fid50k_full",
    "fid10k_full",
    "fid5k_full",
    "fid50k",
    "fid5k",
    "fid50k_edm",
    "fid50k_clean",
]


@dataclass(frozen=True)
class Preset:
    """What a published protocol fixes, beside Inception-2015 in float32 and samples without truncation.

    Attributes:
        resize: "legacy" (TensorFlow 1's bilinear, inside NVIDIA's network file) or "clean" (Pillow's bicubic).
        ddof: the covariance is a sum over N - ddof.
        num_fake: samples.
        num_real: training images of the reference; None = all of them.
        xflip: whether the reference holds mirrored images too; None = as trained.
    """

    resize: str
    ddof: int
    num_fake: int
    num_real: int | None
    xflip: bool | None


PRESETS: dict[str, Preset] = {
    # StyleGAN2-ADA and StyleGAN3: Karras et al. 2020 (Training GANs with limited data), appendix; 2021.
    "fid50k_full": Preset("legacy", 0, 50000, None, False),
    "fid10k_full": Preset("legacy", 0, 10000, None, False),
    "fid5k_full": Preset("legacy", 0, 5000, None, False),
    # StyleGAN and StyleGAN2: as many real images as samples, mirrored where training mirrors.
    "fid50k": Preset("legacy", 0, 50000, 50000, None),
    "fid5k": Preset("legacy", 0, 5000, 5000, None),
    # EDM (Karras et al. 2022) divides by N - 1; 1.7e-4 of a distance at 50,000 images.
    "fid50k_edm": Preset("legacy", 1, 50000, None, False),
    # Parmar et al. 2022.
    "fid50k_clean": Preset("clean", 1, 50000, None, False),
}


def resize_of(protocol: str) -> str:
    """ "clean", "legacy" or "none": how images come to the network's size."""
    return PRESETS[protocol].resize if protocol in PRESETS else protocol


def preset_conflict(params: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What of params.yaml does not fit the preset that fid.protocol names, in a user's words; None if all does.

    Args:
        params: section -> key -> value.
    """
    name = params["fid"]["protocol"]
    if name not in PRESETS:
        return None
    preset = PRESETS[name]
    expected = {
        "stats.extractor": "inception-2015",
        "stats.precision": "float32",
        "stats.reference": SHARDS,
        "stats.ddof": preset.ddof,
        "stats.num_real": preset.num_real,
        "stats.xflip": params["train"]["xflip"] if preset.xflip is None else preset.xflip,
        "fid.num_fake": preset.num_fake,
        "sample.truncation_psi": 1.0,
        "sample.noise_mode": "random",
    }
    for key, value in expected.items():
        section, entry = key.split(".")
        found = params[section][entry]
        if found != value:
            right = json.dumps(value).strip('"')
            lite = params["stats"]["extractor"] == "efficientnet-lite0"
            otherwise = "clean" if lite else preset.resize
            return (
                f"{key}={json.dumps(found)}, but fid.protocol={name} is measured with {right}. "
                f"Set {key}: {right}, or fid.protocol: {otherwise}."
            )
    return None


def conflict_of_metrics(params: Mapping[str, Mapping[str, Any]]) -> str | None:
    """What of params.yaml cannot be measured, so that it is said at the start and not at the end; None if all can.

    Args:
        params: section -> key -> value.
    """
    stats, train, fid = (params[section] for section in ("stats", "train", "fid"))
    extractor, reference = stats["extractor"], stats["reference"]
    built_in = extractor in EXTRACTORS
    near = difflib.get_close_matches(extractor.lower(), EXTRACTORS, n=1)
    if near and not built_in and Path(extractor).suffix not in SCRIPT_SUFFIXES:
        return f"stats.extractor={extractor} is neither built in nor a likely file. Did you mean {near[0]}?"
    conflict = preset_conflict(params)
    if conflict:
        return conflict
    expected, resize = "clean" if built_in else "none", resize_of(fid["protocol"])
    if resize != expected and not (resize == "legacy" and extractor == "inception-2015"):
        return (
            f"fid.protocol={fid['protocol']} does not fit stats.extractor={extractor}: legacy is a resize of "
            f"inception-2015, and images reach a TorchScript file as they are (none). Set fid.protocol: {expected}."
        )
    if Path(reference).resolve() == Path(SHARDS).resolve() and reference != SHARDS:
        return f"stats.reference={reference} is the training images. Write it as {SHARDS}."
    for name, listed, count in (
        ("fid.metrics", fid["metrics"], fid["num_fake"]),
        ("train.metrics", train["metrics"], train["metric_images"]),
    ):
        conflict = _conflict_of_list(name, listed, count, params)
        if conflict:
            return conflict
    return None


def _conflict_of_list(
    name: str, listed: Sequence[str], count: int, params: Mapping[str, Mapping[str, Any]]
) -> str | None:
    extractor, paths = params["stats"]["extractor"], set(OF_GENERATOR) & set(listed)
    if len(set(listed)) < len(listed):
        return f"{name}={list(listed)} names one metric twice. Name each once."
    lacking = [metric for metric in ("inception_score", *OF_GENERATOR) if metric in listed]
    if lacking and extractor not in EXTRACTORS:
        return (
            f"{name} has {lacking[0]}, which a TorchScript file cannot give (no classes, no layers to compare). "
            f"Remove it, or set stats.extractor to one of {', '.join(EXTRACTORS)}."
        )
    if "inception_score" in listed and count < 100:
        return (
            f"{name} has inception_score, which takes ten parts of {count} images: too few. Use 100 or more "
            "(fid.num_fake, train.metric_images), or remove it."
        )
    if extractor == "inception-2015" and min(height_width(params["prepare"]["resolution"])) < 16 and paths:
        return f"{name} has {min(paths)}, which LPIPS measures from prepare.resolution=16 on. Remove it."
    of_classes = [metric for metric in OF_CLASSES if metric in listed]
    if of_classes and not (params["train"]["conditional"] and params["stats"]["reference"] == SHARDS):
        return (
            f"{name} has {of_classes[0]}, which needs train.conditional: true and stats.reference: {SHARDS}. "
            "Remove it, or set these."
        )
    return None


def metric_name(metric: str, protocol: str, suffix: str, precision: str) -> str:
    """What a number is called: numbers that may not be compared have different names.

    Args:
        metric: one of `METRICS`.
        protocol: fid.protocol.
        suffix: of the extractor: "inception", "efflite0" or a file's name.
        precision: of the extractor.
    Returns:
        With Inception `fid50k_full`, `fid_clean`, `kid_clean`, `is_clean`, `precision_inception_clean`; with others
        `fd_efflite0`, `kd_efflite0`, `precision_efflite0`.
    """
    published = suffix == "inception"  # only its numbers may bear the published names
    distance, kid = ("fid", "kid") if published else ("fd", "kd")
    stems = {"distance": distance, "kid": kid, "inception_score": "is", "distance_infinity": f"{distance}_infinity"}
    tail = "" if precision == "float32" else "_bf16"
    if not published:
        return f"{stems.get(metric, metric)}_{suffix}{tail}"
    if metric in ("distance", "kid") and protocol in PRESETS:
        return stems[metric] + protocol.removeprefix("fid") + tail
    return f"{stems.get(metric, f'{metric}_{suffix}')}_{resize_of(protocol)}{tail}"
