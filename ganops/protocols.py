"""How a distance is measured so that it may stand beside a published one: the field's protocols, and metrics' names.

A preset's name says which values params.yaml must have; the values themselves stand there. Nothing here computes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

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
        "stats.reference": "data/shards",
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
            return (
                f"{key}={json.dumps(found)}, but fid.protocol={name} is measured with {right}. "
                f"Set {key}: {right}, or fid.protocol: {preset.resize}."
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
    resize = resize_of(protocol)
    tail = "" if precision == "float32" else "_bf16"
    if suffix != "inception":
        stem = {"distance": "fd", "kid": "kd", "inception_score": "is", "distance_infinity": "fd_infinity"}
        return f"{stem.get(metric, metric)}_{suffix}{tail}"
    if metric in ("distance", "kid") and protocol in PRESETS:
        return protocol.replace("fid", {"distance": "fid", "kid": "kid"}[metric]) + tail
    stem = {"distance": "fid", "kid": "kid", "inception_score": "is", "distance_infinity": "fid_infinity"}
    name = stem.get(metric, f"{metric}_{suffix}")
    return f"{name}_{resize}{tail}"
