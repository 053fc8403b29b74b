"""What the numbers of results/fid.json mean, and how they are written down."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ganops.report.inputs import is_number

# The first that fits the beginning of a number's name; names are made by ganops.protocols.metric_name.
MEANINGS = (
    (r"(fid|fd)_infinity", "The distance that infinitely many samples would have. Lower is better."),
    (r"fid", "Fréchet distance of features of Inception-2015, the network of published figures. Lower is better; "
             "0 would be the same mean and covariance."),
    (r"fd_", "Fréchet distance of features of another network than Inception-2015: it ranks runs of one data set and is "
             "not comparable with published FIDs. Lower is better; 0 would be the same mean and covariance."),
    (r"(kid|kd)", "Kernel distance of features (squared maximum mean discrepancy). Lower is better; without bias, so that "
                  "it can be below 0."),
    (r"precision", "Share of the samples that lie where real images are: quality. Higher is better."),
    (r"recall", "Share of the real images that lie where samples are: variety. Higher is better."),
    (r"density", "How deep the samples lie among the real images: quality. Higher is better; can be above 1."),
    (r"coverage", "Share of the real images with a sample near by: variety. Higher is better."),
    (r"is_", "Inception score: confident classes, and many of them. Higher is better; it never looks at real images."),
    (r"ppl_", "Perceptual path length: change of the image per step through the latent space. Lower is smoother."),
    (r"memorised", "Share of the samples that are nearer to a training image than 99 % of these are to each other; "
                   "0.01 where nothing is remembered."),
    (r"class_distance", "Mean over classes of the distance within the class. Lower is better."),
    (r"class_recall", "Mean over classes of the recall within the class. Higher is better."),
)  # fmt: skip
ENDINGS = ("_ci95", "_std", "_corrected")


@dataclass(frozen=True)
class Metric:
    """A number with those that belong to it.

    Attributes:
        name: as in results/fid.json.
        value: may be NaN.
        ci95: half of its 95 % interval, if known.
        std: standard deviation over parts of the samples, if known: of a part, so no error of the number.
        corrected: less its bias, if known.
        meaning: one or two sentences; "" for a name that is not known here.
    """

    name: str
    value: float
    ci95: float | None
    std: float | None
    corrected: float | None
    meaning: str

    def text(self) -> str:
        """55.6 ± 1.3, with digits as the interval allows."""
        error = self.ci95
        if error is None or not math.isfinite(error) or error <= 0 or not math.isfinite(self.value):
            return show(self.value)
        digits = min(max(1 - math.floor(math.log10(error)), 0), 8)
        return f"{self.value:,.{digits}f} ± {error:,.{digits}f}"


def read_metrics(result: Mapping[str, Any]) -> list[Metric]:
    """The flat numbers of results/fid.json in its order, each with its interval and its corrected value."""
    numbers = {key: float(value) for key, value in result.items() if is_number(value)}
    names = [
        key for key in numbers if not any(key.endswith(end) and key.removesuffix(end) in numbers for end in ENDINGS)
    ]
    found = []
    for name in names:
        ci95, std, corrected = (numbers.get(name + ending) for ending in ENDINGS)
        found.append(Metric(name, numbers[name], ci95, std, corrected, meaning_of(name)))
    return found


def meaning_of(name: str) -> str:
    """A sentence for people; "" for a name that is not known here."""
    return next((meaning for start, meaning in MEANINGS if re.match(start, name)), "")


def show(value: object) -> str:
    """A value for people: 1,797; 0.004; yes; –; lists with commas."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        return f"{value:.5g}" if math.isfinite(value) else "not finite"
    if isinstance(value, list):
        return ", ".join(show(item) for item in value) or "none"
    return str(value)


def flatten(values: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Nested names joined by dots, and values as they stand in a file: {"a": {"b": None}} -> {"a.b": "null"}."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{before}{key}.")
        else:
            flat[f"{before}{key}"] = (
                value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)
            )
    return flat
