"""Section train of params.yaml: what is trained, how, and for how long."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from ganops.config_base import FEWEST, FROM_SCRATCH, Fraction, Gain, Kimg, NotNegative, Positive, Section
from ganops.protocols import TrainMetricName


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
