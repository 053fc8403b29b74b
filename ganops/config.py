"""The schema of params.yaml: the one place that says which values exist and which are allowed.

Frozen, no defaults, nothing extra: a value that is not in params.yaml does not exist. The comment beside each key
in params.yaml says what it means; docs/params.md is checked against this file by a test.
"""

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, model_validator

from ganops.config_base import FEWEST, Byte, NotNegative, Positive, Psi, Section
from ganops.config_tools import (
    DirectionsParams,
    ImagesParams,
    InterpolateParams,
    ProjectParams,
    StyleMixingParams,
)
from ganops.config_train import COLOR_CHANNELS, TrainParams
from ganops.errors import ParamsError
from ganops.protocols import MetricName, ProtocolName, conflict_of_metrics
from ganops.shape import base_grid, height_width, nominal_resolution


class PrepareParams(Section):
    source: Annotated[str, Field(min_length=1)]
    resolution: Positive | Annotated[list[Positive], Field(min_length=2, max_length=2)]
    channels: Positive
    bits: Literal[8, 16]
    labels: Literal["none", "folders", "json", "csv"]
    crop: Literal["none", "center", "pad"]
    resize_filter: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
    background: Annotated[list[Byte], Field(min_length=3, max_length=3)]
    on_bad_image: Literal["fail", "skip"]
    shard_images: Positive

    @model_validator(mode="after")
    def check(self) -> Self:
        try:
            base_grid(*self.size)
        except ValueError as error:
            raise ValueError(f"prepare.resolution={self.resolution}: {error}") from None
        return self

    @property
    def size(self) -> tuple[int, int]:
        """Height and width, px."""
        return height_width(self.resolution)

    @property
    def nominal(self) -> int:
        """The size of a square whose networks have as many levels, px."""
        return nominal_resolution(*self.size)


class StatsParams(Section):
    extractor: Annotated[str, Field(min_length=1)]
    extractor_sha256: Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]
    precision: Literal["float32", "bfloat16"]
    batch_size: Positive
    reference: Annotated[str, Field(min_length=1)]
    num_real: Annotated[int, Field(ge=FEWEST)] | None
    xflip: bool
    ddof: Literal[0, 1]
    keep_features: Annotated[int, Field(ge=FEWEST)]


class SampleParams(Section):
    snapshot: Literal["last", "best"]
    count: Positive
    seed: NotNegative
    truncation_psi: Psi
    truncation_cutoff: Positive | None
    noise_mode: Literal["random", "const", "none"]
    batch_size: Positive
    shard_images: Positive
    grid_columns: Positive
    grid_psi: Psi
    sweep_psi: Annotated[list[Psi], Field(min_length=1)]


class FidParams(Section):
    protocol: ProtocolName
    num_fake: Annotated[int, Field(ge=FEWEST)]
    metrics: Annotated[list[MetricName], Field(min_length=1)]
    seed: NotNegative


class RunParams(Section):
    device: Literal["auto", "cpu", "cuda"]
    gpus: Literal["auto"] | Positive
    nodes: Positive
    rendezvous: Annotated[str, Field(pattern=r"^([^:\s]+:\d{1,5})?$")]
    cpu_threads: Positive
    workers: NotNegative
    deterministic: bool
    data_on_gpu: Literal["auto", "always", "never"]
    ops: Literal["auto", "cuda", "reference"]
    compile: Literal["none", "main"]
    compile_extractor: bool
    state_kimg: Annotated[float, Field(ge=0.001, allow_inf_nan=False)]
    keep_states: Positive
    keep_snapshots: Positive
    accept_code: Annotated[str, Field(pattern="^([0-9a-f]{16})?$")]
    fresh: NotNegative

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.nodes > 1 and not self.rendezvous:
            raise ValueError(
                f"run.nodes={self.nodes} needs run.rendezvous, host:port of the first node, where the others meet it."
            )
        return self


class Params(Section):
    """All of params.yaml."""

    prepare: PrepareParams
    stats: StatsParams
    train: TrainParams
    sample: SampleParams
    fid: FidParams
    run: RunParams
    images: ImagesParams
    style_mixing: StyleMixingParams
    interpolate: InterpolateParams
    project: ProjectParams
    directions: DirectionsParams

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.train.conditional and self.prepare.labels == "none":
            raise ValueError(
                "train.conditional=true needs labels, but prepare.labels=none. Set prepare.labels to folders, json or "
                "csv, or train.conditional: false."
            )
        if self.sample.snapshot == "best" and not self.train.metric_kimg:
            raise ValueError(
                "sample.snapshot=best, but train.metric_kimg=0 measures nothing to choose by. Set train.metric_kimg, "
                "or sample.snapshot: last."
            )
        if self.fid.num_fake > self.sample.count:
            raise ValueError(
                f"fid.num_fake={self.fid.num_fake} is more than sample.count={self.sample.count}. Sample at least as many."
            )
        conflict = conflict_of_metrics(self.model_dump())
        if conflict:
            raise ValueError(conflict)
        nominal = nominal_resolution(*self.prepare.size)
        initial = self.train.lod_initial_resolution
        if initial is not None and initial > nominal:
            raise ValueError(
                f"train.lod_initial_resolution={initial} is above prepare.resolution={self.prepare.resolution}"
                f"{'' if self.prepare.size == (nominal, nominal) else f', nominally {nominal}'}. Lower it."
            )
        for key in (
            "batch_size_by_resolution",
            "batch_gpu_by_resolution",
            "lr_by_resolution",
            "tick_kimg_by_resolution",
        ):
            odd = [size for size in getattr(self.train, key) if not (initial or 4) <= size <= nominal]
            if odd:
                raise ValueError(
                    f"train.{key} has {odd[0]}, but the networks grow from {initial} to {nominal} px. Remove it, or change "
                    "train.lod_initial_resolution or prepare.resolution."
                )
        uncoloured = self.prepare.channels not in COLOR_CHANNELS
        of_set = self.train.augment in ("ada", "fixed") and self.train.augment_set == "color"
        of_policy = self.train.augment == "diffaugment" and self.train.diffaugment_policy == ["color"]
        if uncoloured and (of_set or of_policy):
            key = "augment_set" if of_set else "diffaugment_policy"
            raise ValueError(
                f"train.{key}={getattr(self.train, key)} does nothing to prepare.channels={self.prepare.channels}. Choose "
                "another, or set train.augment: none."
            )
        if initial is not None and self.run.compile != "none":
            raise ValueError(
                f"run.compile={self.run.compile}, but train.lod_initial_resolution={initial}: a network that grows would be "
                "compiled again for every fade. Set run.compile: none."
            )
        if self.train.family == "pggan":
            for key, value in (("truncation_psi", 1.0), ("grid_psi", 1.0), ("sweep_psi", [1.0])):
                if getattr(self.sample, key) != value:
                    raise ValueError(
                        f"sample.{key}={getattr(self.sample, key)}, but train.family=pggan has no w to truncate. "
                        f"Set sample.{key}: {value}."
                    )
        blocks = nominal.bit_length() - 3
        if self.train.D_freeze_blocks > blocks:
            raise ValueError(
                f"train.D_freeze_blocks={self.train.D_freeze_blocks}, but D has {blocks} blocks at prepare.resolution="
                f"{self.prepare.resolution}. Use 0 to {blocks}."
            )
        if min(self.train.channel_base // nominal, self.train.channel_max) < 1:
            raise ValueError(
                f"train.channel_base={self.train.channel_base} gives no channel at prepare.resolution="
                f"{self.prepare.resolution} (a layer has channel_base / resolution of them; for this shape that is "
                f"{nominal}). Raise it."
            )
        return self


class _Loader(yaml.SafeLoader):
    """YAML as DVC reads and writes it: 1e-08 is a number (YAML 1.2), a key that stands twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                raise ParamsError(f"params.yaml: line {key_node.start_mark.line + 1} has a key that is not a word.")
            if key_node.value in seen:
                raise ParamsError(
                    f"params.yaml: {key_node.value} stands twice in one section (line {key_node.start_mark.line + 1})."
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"),
    list("-+.0123456789"),
)


def load_params(path: Path) -> Params:
    """Reads and checks a params.yaml.

    Raises:
        ParamsError: one line naming the first wrong `section.key`, what was found and what is allowed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ParamsError(f"{path} not found in {Path.cwd()}.") from None
    except UnicodeDecodeError:
        raise ParamsError(f"{path}: not UTF-8 text. Save it as UTF-8.") from None
    try:
        values = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ParamsError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ParamsError(
            f"{path}: expected sections ({', '.join(Params.model_fields)}), found {type(values).__name__}."
        )
    try:
        return Params.model_validate(values)
    except ValidationError as error:
        raise ParamsError(f"{path.name}: {_explain(error)}") from None


def _explain(error: ValidationError) -> str:
    """The first finding in the user's words; unknown keys first, since they explain missing ones."""
    findings = sorted(error.errors(), key=lambda finding: finding["type"] != "extra_forbidden")
    finding = findings[0]
    name = ".".join(str(part) for part in finding["loc"][:2])  # deeper parts are kinds of a value, or places in a list
    if finding["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, _all_keys(), n=1, cutoff=0.5)
        return f"{name} is not a known key." + (f" Did you mean {near[0]}?" if near else " Remove it.")
    if finding["type"] == "missing":
        return f"{name} is missing. Every key must be there; see the comments in presets/digits.yaml."
    if finding["type"] == "value_error":
        return str(finding["ctx"]["error"])
    return f"{name}={finding['input']!r}: {finding['msg'][0].lower()}{finding['msg'][1:]}."


def _all_keys() -> list[str]:
    sections = {name: field.annotation for name, field in Params.model_fields.items()}
    keys = [f"{name}.{key}" for name, section in sections.items() if section for key in section.model_fields]
    return [*sections, *keys]
