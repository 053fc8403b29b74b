"""The schema of params.yaml: the one place that says which values exist and which are allowed.

Frozen, no defaults, nothing extra: a value that is not in params.yaml does not exist. The comment beside each key
in params.yaml says what it means; docs/params.md is checked against this file by a test.
"""

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ganops.errors import ParamsError
from ganops.protocols import MetricName, ProtocolName, TrainMetricName, conflict_of_metrics

Positive = Annotated[int, Field(ge=1)]
NotNegative = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Kimg = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Gain = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Byte = Annotated[int, Field(ge=0, le=255)]
Psi = Annotated[float, Field(ge=-2, le=2)]

FROM_SCRATCH = (
    "presets/from_scratch"  # train.init_from when training starts from random weights: DVC needs a file there
)

FEWEST = 10  # images that anything is measured of: neighbours of five, blocks that one can leave out


class Section(BaseModel):
    """What all sections share: frozen, strict types, no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class PrepareParams(Section):
    source: Annotated[str, Field(min_length=1)]
    resolution: Positive
    channels: Literal[1, 3, 4]
    labels: Literal["none", "folders", "json", "csv"]
    crop: Literal["none", "center", "pad"]
    resize_filter: Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
    background: Annotated[list[Byte], Field(min_length=3, max_length=3)]
    on_bad_image: Literal["fail", "skip"]
    shard_images: Positive

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.resolution < 8 or self.resolution & (self.resolution - 1):
            near = max(8, 2 ** round(self.resolution).bit_length() // 2)
            raise ValueError(
                f"prepare.resolution={self.resolution} is not a power of two from 8 up. The networks start at 4x4 and "
                f"double their size block by block, so no other size comes out; use {near} or {2 * near}."
            )
        return self


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


class TrainParams(Section):
    total_kimg: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    tick_kimg: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    image_kimg: Kimg
    snapshot_kimg: Kimg
    metric_kimg: Kimg
    metric_images: Annotated[int, Field(ge=FEWEST)]
    metrics: Annotated[list[TrainMetricName], Field(min_length=1)]
    best_by: TrainMetricName
    keep_best: Positive
    max_nonfinite_steps: NotNegative
    max_loss: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    rollbacks: NotNegative

    init_from: Annotated[str, Field(min_length=1)]
    D_freeze_blocks: NotNegative
    seed: NotNegative
    conditional: bool
    xflip: bool
    batch_size: Positive
    batch_gpu: Positive

    z_dim: Positive
    w_dim: Positive
    mapping_layers: Positive
    D_mapping_layers: Positive
    mapping_lr_multiplier: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    channel_base: Positive
    channel_max: Positive
    G_architecture: Literal["skip", "resnet", "orig"]
    D_architecture: Literal["skip", "resnet", "orig"]
    mbstd_group_size: Positive
    mbstd_num_channels: NotNegative

    precision: Literal["float32", "bfloat16", "float16"]
    low_precision_resolutions: NotNegative
    conv_clamp: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None
    tf32: bool

    G_lr: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    D_lr: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    lr_rampup_kimg: Kimg
    beta1: Annotated[float, Field(ge=0, lt=1)]
    beta2: Annotated[float, Field(ge=0, lt=1)]
    eps: Annotated[float, Field(gt=0, allow_inf_nan=False)]

    r1_gamma: Gain
    r1_interval: Positive
    pl_weight: Gain
    pl_interval: Positive
    pl_decay: Fraction
    pl_batch_shrink: Positive
    style_mixing_prob: Fraction
    w_avg_beta: Fraction
    ema_kimg: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    ema_rampup: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None

    @model_validator(mode="after")
    def check(self) -> Self:
        if self.batch_size % self.batch_gpu:
            low = self.batch_size // self.batch_gpu * self.batch_gpu
            choice = " or ".join(str(size) for size in (low, low + self.batch_gpu) if size)
            raise ValueError(
                f"train.batch_size={self.batch_size} is not a multiple of train.batch_gpu={self.batch_gpu}. Use {choice}."
            )
        if self.mbstd_num_channels and self.batch_gpu % min(self.mbstd_group_size, self.batch_gpu):
            raise ValueError(
                f"train.batch_gpu={self.batch_gpu} is not a multiple of train.mbstd_group_size={self.mbstd_group_size}: "
                "minibatch standard deviation works on whole groups. Change one of them."
            )
        for key in ("image_kimg", "snapshot_kimg", "metric_kimg", "total_kimg"):
            value = getattr(self, key)
            ticks = value / self.tick_kimg
            if abs(ticks - round(ticks)) > 1e-6:
                raise ValueError(
                    f"train.{key}={value:g} is not a multiple of train.tick_kimg={self.tick_kimg:g}: pictures, snapshots, "
                    "metrics and the end fall on ticks. Change one of them."
                )
        for key in ("image_kimg", "lr_rampup_kimg"):
            if 0 < getattr(self, key) < 1:
                raise ValueError(
                    f"train.{key}={getattr(self, key):g} is between 0 (off) and 1, the smallest. Use 0 or 1."
                )
        if self.tick_kimg * 1000 < self.batch_size:
            raise ValueError(
                f"train.tick_kimg={self.tick_kimg:g} is less than one batch (train.batch_size={self.batch_size}). "
                f"Use at least {self.batch_size / 1000:g}."
            )
        if self.precision != "float32" and not self.low_precision_resolutions:
            raise ValueError(
                f"train.precision={self.precision} with train.low_precision_resolutions=0 computes everything in float32. "
                "Say how many of the highest resolutions use it (4 in the published recipes), or set precision: float32."
            )
        if self.D_freeze_blocks and self.init_from == FROM_SCRATCH:
            raise ValueError(
                f"train.D_freeze_blocks={self.D_freeze_blocks} freezes layers of D, but train.init_from={FROM_SCRATCH} "
                "leaves them random. Name a training state as train.init_from, or set D_freeze_blocks: 0."
            )
        if self.best_by not in self.metrics:
            raise ValueError(
                f"train.best_by={self.best_by} is not among train.metrics={self.metrics}. Choose one of them, or add it."
            )
        if self.channel_base < 4 * 4:
            raise ValueError(f"train.channel_base={self.channel_base} leaves no channel; use at least the resolution.")
        return self


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
        blocks = self.prepare.resolution.bit_length() - 3
        if self.train.D_freeze_blocks > blocks:
            raise ValueError(
                f"train.D_freeze_blocks={self.train.D_freeze_blocks}, but D has {blocks} blocks at prepare.resolution="
                f"{self.prepare.resolution}. Use 0 to {blocks}."
            )
        if min(self.train.channel_base // self.prepare.resolution, self.train.channel_max) < 1:
            raise ValueError(
                f"train.channel_base={self.train.channel_base} gives no channel at prepare.resolution="
                f"{self.prepare.resolution} (a layer has channel_base / resolution of them). Raise it."
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
