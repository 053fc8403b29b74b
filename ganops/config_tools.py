"""Sections of params.yaml for the tools around a generator (docs/tools.md); no stage of the pipeline depends on them."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ganops.config_base import Fraction, Gain, NotNegative, Positive, Psi, Section

TOOLS = ("images", "style_mixing", "interpolate", "project", "directions")
MOST_SEEDS = 1_000_000

Seeds = int | str | list[int]
"""As `expand_seeds` reads them."""
Label = NotNegative | Annotated[str, Field(min_length=1)]
"""A class: its number, or as text its name."""
Layers = Annotated[list[NotNegative], Field(min_length=2, max_length=2)]
"""[first, last): layers in the order of ws, without the last."""


def expand_seeds(seeds: int | str | list[int]) -> list[int]:
    """7, "0-31", "1, 5, 8-12" or [1, 5, 8] -> the numbers, in this order.

    Raises:
        ValueError: no numbers, one below 0, a range that runs down, the same number twice, or too many.
    """
    found: list[int] = []
    if isinstance(seeds, int):
        found = [seeds]
    elif isinstance(seeds, str):
        for part in seeds.split(","):
            match = re.fullmatch(r"\s*(\d{1,18})\s*(?:-\s*(\d{1,18})\s*)?", part, re.ASCII)
            if match is None:
                raise ValueError(f"{part.strip()!r} is neither a number nor a range such as 0-31")
            first = int(match[1])
            last = first if match[2] is None else int(match[2])
            if last < first:
                raise ValueError(f"the range {part.strip()} runs down")
            if len(found) + last - first >= MOST_SEEDS:
                raise ValueError(f"these are more than {MOST_SEEDS:,} seeds")
            found += range(first, last + 1)
    else:
        found = seeds
    if not found:
        raise ValueError("there is no seed")
    if min(found) < 0:
        raise ValueError("a seed is below 0")
    if len(set(found)) < len(found):
        raise ValueError("a seed stands twice")
    return found


def _check_seeds(key: str, seeds: int | str | list[int]) -> list[int]:
    try:
        return expand_seeds(seeds)
    except ValueError as error:
        raise ValueError(f"{key}={seeds!r}: {error}. Use a number, a list, or text such as 0-31 or 1,5,8-12.") from None


def _check_layers(key: str, layers: list[int] | None) -> None:
    if layers is not None and layers[0] >= layers[1]:
        raise ValueError(f"{key}={layers} holds no layer: it is [first, last), without the last. Use e.g. [0, 4].")


class ImagesParams(Section):
    seeds: Seeds
    label: Label | None
    truncation_psi: Annotated[list[Psi], Field(min_length=1)]
    truncation_layers: Layers | None
    noise_mode: Literal["random", "const", "none"]
    columns: Positive
    batch_size: Positive

    @model_validator(mode="after")
    def check(self) -> Self:
        _check_seeds("images.seeds", self.seeds)
        _check_layers("images.truncation_layers", self.truncation_layers)
        if len(set(self.truncation_psi)) < len(self.truncation_psi):
            raise ValueError(f"images.truncation_psi={self.truncation_psi} has one value twice. Each gets a folder.")
        return self


class StyleMixingParams(Section):
    row_seeds: Seeds
    column_seeds: Seeds
    column_layers: Layers
    label: Label | None
    truncation_psi: Psi
    batch_size: Positive

    @model_validator(mode="after")
    def check(self) -> Self:
        _check_seeds("style_mixing.row_seeds", self.row_seeds)
        _check_seeds("style_mixing.column_seeds", self.column_seeds)
        _check_layers("style_mixing.column_layers", self.column_layers)
        return self


class InterpolateParams(Section):
    kind: Literal["latents", "truncation"]
    seeds: Seeds
    columns: Positive
    label: Label | list[Label] | None
    space: Literal["z", "w"]
    path: Literal["linear", "spherical"]
    frames: Positive
    loop: bool
    truncation_psi: Psi
    sweep_psi: Annotated[list[Psi], Field(min_length=2, max_length=2)]
    fps: Annotated[int, Field(ge=1, le=240)]
    strip_frames: Annotated[int, Field(ge=2)]
    batch_size: Positive

    @model_validator(mode="after")
    def check(self) -> Self:
        count = len(_check_seeds("interpolate.seeds", self.seeds))
        if self.kind == "truncation":
            if isinstance(self.label, list):
                raise ValueError(
                    "interpolate.label is a list, one class per keyframe, but kind: truncation has no keyframes. Use one."
                )
            return self
        if count % self.columns or count < 2 * self.columns:
            raise ValueError(
                f"interpolate.seeds are {count}, but interpolate.columns={self.columns} side by side take so many per "
                "keyframe, and there must be two keyframes or more. "
                f"Use e.g. {max(count // self.columns, 2) * self.columns}."
            )
        if isinstance(self.label, list) and len(self.label) != count // self.columns:
            raise ValueError(
                f"interpolate.label has {len(self.label)} classes, but there are {count // self.columns} keyframes "
                "(seeds / columns). Use one class per keyframe, one for all, or null."
            )
        return self


class ProjectParams(Section):
    space: Literal["w", "w+"]
    distance: Literal["lpips", "efflite0"]
    label: Label | None
    seed: NotNegative
    steps: Positive
    w_samples: Annotated[int, Field(ge=100)]
    learning_rate: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]
    lr_rampup: Fraction
    lr_rampdown: Fraction
    w_noise: Gain
    w_noise_ramp: Annotated[float, Field(gt=0, le=1)]
    optimise_noise: bool
    noise_weight: Gain
    strip_steps: NotNegative
    state_steps: Positive


class DirectionsParams(Section):
    layers: Layers | None
    count: Positive
    seeds: Seeds
    strengths: Annotated[list[Annotated[float, Field(ge=-100, le=100)]], Field(min_length=1)]
    label: Label | None
    truncation_psi: Psi
    batch_size: Positive

    @model_validator(mode="after")
    def check(self) -> Self:
        _check_seeds("directions.seeds", self.seeds)
        _check_layers("directions.layers", self.layers)
        return self
