"""Section train of params.yaml: what is trained, how, and for how long."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from ganops.config_base import FEWEST, FROM_SCRATCH, Fraction, Gain, Kimg, NotNegative, Positive, Section
from ganops.protocols import TrainMetricName

Family = Literal["stylegan2", "stylegan2-growing", "stylegan1", "pggan"]
AugmentSet = Literal[
    "blit", "geom", "color", "filter", "noise", "cutout", "bg", "bgc", "bgcf", "bgcfn", "bgcfnc"
]  # fmt: skip
COLOR_CHANNELS = (1, 3, 4)  # of images that augmentations know the colours of: grey, RGB, RGBA
DiffAugmentKind = Literal["color", "translation", "cutout"]


class TrainParams(Section):
    total_kimg: Annotated[float, Field(gt=0, lt=1_000_000, allow_inf_nan=False)]  # files bear nimg in nine digits
    tick_kimg: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    tick_kimg_by_resolution: dict[Positive, Annotated[float, Field(gt=0, allow_inf_nan=False)]]
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
    batch_size_by_resolution: dict[Positive, Positive]
    batch_gpu_by_resolution: dict[Positive, Positive]

    family: Family
    lod_initial_resolution: Annotated[int, Field(ge=4)] | None
    lod_training_kimg: Kimg
    lod_transition_kimg: Kimg
    reset_opt_for_new_lod: bool

    z_dim: Positive
    w_dim: Positive
    mapping_layers: NotNegative
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
    lr_by_resolution: dict[Positive, Annotated[float, Field(gt=0, allow_inf_nan=False)]]
    beta1: Annotated[float, Field(ge=0, lt=1)]
    beta2: Annotated[float, Field(ge=0, lt=1)]
    eps: Annotated[float, Field(gt=0, allow_inf_nan=False)]

    loss: Literal["logistic", "wgan-gp"]
    gp_weight: Gain
    drift_weight: Gain
    acgan_weight: Gain
    D_first: bool
    D_repeats: Positive

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
    ema_beta: Annotated[float, Field(ge=0, lt=1)] | None

    augment: Literal["none", "ada", "fixed", "diffaugment"]
    augment_set: AugmentSet
    augment_p: Fraction
    ada_target: Annotated[float, Field(gt=-1, lt=1)]
    ada_interval: Positive
    ada_kimg: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    ada_max_p: Fraction
    diffaugment_policy: Annotated[list[DiffAugmentKind], Field(min_length=1)]

    @field_validator(
        "batch_size_by_resolution",
        "batch_gpu_by_resolution",
        "lr_by_resolution",
        "tick_kimg_by_resolution",
        mode="before",
    )
    @classmethod
    def number_keys(cls, values: Any) -> Any:
        """`dvc exp run -S +train.batch_size_by_resolution.8=16` writes the key as text."""
        if not isinstance(values, dict):
            return values
        numbered = {int(key) if isinstance(key, str) and key.isdecimal() else key: item for key, item in values.items()}
        return numbered if len(numbered) == len(values) else values  # 8 and "8": told as a key that is no number

    @model_validator(mode="after")
    def check(self) -> Self:
        for conflict in (
            conflict_of_batches(self),
            conflict_of_intervals(self),
            conflict_of_growing(self),
            conflict_of_family(self),
            conflict_of_values(self),
        ):
            if conflict:
                raise ValueError(conflict)
        return self


def conflict_of_batches(p: TrainParams) -> str | None:
    """Whether every resolution's batch is made of whole micro-batches and these of whole groups; each in a user's words."""
    listed = {*p.batch_size_by_resolution, *p.batch_gpu_by_resolution, *p.tick_kimg_by_resolution}
    for resolution in (None, *sorted(listed)):
        batch_size = p.batch_size if resolution is None else p.batch_size_by_resolution.get(resolution, p.batch_size)
        batch_gpu = p.batch_gpu if resolution is None else p.batch_gpu_by_resolution.get(resolution, p.batch_gpu)
        where = "" if resolution is None else f" at {resolution} px"
        if batch_size % batch_gpu:
            low = batch_size // batch_gpu * batch_gpu
            choice = " or ".join(str(size) for size in (low, low + batch_gpu) if size)
            return (
                f"train.batch_size={batch_size} is not a multiple of train.batch_gpu={batch_gpu}{where}. Use {choice}."
            )
        # Where the batch itself is smaller than a group, it is the group, as published. A micro-batch is never: the model
        # would follow from the memory of a GPU, and a group of one image has no deviation at all.
        if p.mbstd_num_channels and batch_gpu % min(p.mbstd_group_size, batch_size):
            return (
                f"train.batch_gpu={batch_gpu}{where} is not a multiple of train.mbstd_group_size={p.mbstd_group_size}: "
                "minibatch standard deviation works on whole groups. Change one of them."
            )
        tick_kimg = p.tick_kimg if resolution is None else p.tick_kimg_by_resolution.get(resolution, p.tick_kimg)
        if tick_kimg * 1000 < batch_size * p.D_repeats:
            repeats = f" of train.D_repeats={p.D_repeats}" if p.D_repeats > 1 else ""
            return (
                f"train.tick_kimg={tick_kimg:g} is less than one batch{repeats} (train.batch_size={batch_size}{where}). "
                f"Use at least {batch_size * p.D_repeats / 1000:g}."
            )
    return None


def conflict_of_intervals(p: TrainParams) -> str | None:
    """Whether pictures, snapshots, metrics and the end can fall on ticks; in a user's words."""
    for key in ("image_kimg", "snapshot_kimg", "metric_kimg", "total_kimg"):
        value = getattr(p, key)
        ticks = value / p.tick_kimg
        # Ticks that change with the resolution fall nowhere in particular: what is due waits for the next one.
        if abs(ticks - round(ticks)) > 1e-6 and not p.tick_kimg_by_resolution:
            return (
                f"train.{key}={value:g} is not a multiple of train.tick_kimg={p.tick_kimg:g}: pictures, snapshots, "
                "metrics and the end fall on ticks. Change one of them."
            )
    for key in ("image_kimg", "lr_rampup_kimg"):
        if 0 < getattr(p, key) < 1:
            return f"train.{key}={getattr(p, key):g} is between 0 (off) and 1, the smallest. Use 0 or 1."
    return None


def conflict_of_growing(p: TrainParams) -> str | None:
    """Whether values of progressive growing fit each other; in a user's words."""
    by_resolution = [
        key
        for key in (
            "batch_size_by_resolution",
            "batch_gpu_by_resolution",
            "lr_by_resolution",
            "tick_kimg_by_resolution",
        )
        if getattr(p, key)
    ]
    for key in by_resolution:
        odd = [size for size in getattr(p, key) if size < 4 or size & (size - 1)]
        if odd:
            return f"train.{key} has {odd[0]}, which no network passes while it grows. Use powers of two from 4 up."
    if p.lr_by_resolution and p.G_lr != p.D_lr:
        return (
            f"train.lr_by_resolution={p.lr_by_resolution} stands for both train.G_lr={p.G_lr:g} and train.D_lr={p.D_lr:g}, "
            "but they differ. Make them equal, or set train.lr_by_resolution: {}."
        )
    initial = p.lod_initial_resolution
    if initial is None:
        if by_resolution:
            return (
                f"train.{by_resolution[0]}={getattr(p, by_resolution[0])}, but train.lod_initial_resolution=null: nothing "
                f"grows. Set it to the first resolution, or train.{by_resolution[0]}: {{}}."
            )
        return None
    if p.family == "stylegan2":
        return (
            f"train.lod_initial_resolution={initial}, but train.family=stylegan2 does not grow. Set it to null, or "
            "train.family: stylegan2-growing."
        )
    if initial & (initial - 1):
        return f"train.lod_initial_resolution={initial} is not a power of two. Use 4 or 8."
    if p.lod_training_kimg + p.lod_transition_kimg < 0.001:
        return (
            f"train.lod_training_kimg={p.lod_training_kimg:g} and train.lod_transition_kimg={p.lod_transition_kimg:g}: "
            "growing takes time, at least 0.001 together."
        )
    return None


def conflict_of_family(p: TrainParams) -> str | None:
    """Whether the networks' values fit their family; in a user's words."""
    expected: dict[str, object] = {}
    if p.family != "stylegan2":
        expected = {"G_architecture": "orig", "D_architecture": "orig", "D_freeze_blocks": 0}
    if p.family == "pggan":
        expected |= {"mapping_layers": 0, "w_dim": p.z_dim, "style_mixing_prob": 0.0, "pl_weight": 0.0}
    for key, value in expected.items():
        if getattr(p, key) != value:
            found = getattr(p, key)
            return f"train.{key}={found}, but train.family={p.family} knows only {value}. Set train.{key}: {value}."
    if p.conditional and p.family == "pggan" and p.loss == "logistic":
        return (
            "train.conditional=true with train.family=pggan needs train.loss: wgan-gp: its D knows classes by the class "
            "term of that loss alone."
        )
    if p.conditional and p.family != "pggan" and p.loss == "wgan-gp" and p.acgan_weight:
        return (
            f"train.acgan_weight={p.acgan_weight:g}, but only the D of train.family=pggan tells classes; that of {p.family} "
            "is given them. Set train.acgan_weight: 0."
        )
    if p.family != "pggan" and not p.mapping_layers:
        return f"train.mapping_layers=0, but train.family={p.family} has a mapping network. Use 1 or more."
    return None


def conflict_of_values(p: TrainParams) -> str | None:
    """Values of which one would have no effect, or no meaning; in a user's words."""
    if p.precision != "float32" and not p.low_precision_resolutions:
        return (
            f"train.precision={p.precision} with train.low_precision_resolutions=0 computes everything in float32. "
            "Say how many of the highest resolutions use it (4 in the published recipes), or set precision: float32."
        )
    if p.D_freeze_blocks and p.init_from == FROM_SCRATCH:
        return (
            f"train.D_freeze_blocks={p.D_freeze_blocks} freezes layers of D, but train.init_from={FROM_SCRATCH} "
            "leaves them random. Name a training state as train.init_from, or set D_freeze_blocks: 0."
        )
    if p.best_by not in p.metrics:
        return f"train.best_by={p.best_by} is not among train.metrics={p.metrics}. Choose one of them, or add it."
    if p.channel_base < 4 * 4:
        return f"train.channel_base={p.channel_base} leaves no channel; use at least the resolution."
    lowest = min(p.channel_base // 4, p.channel_max)
    if p.mbstd_num_channels and lowest % p.mbstd_num_channels:
        return (
            f"train.mbstd_num_channels={p.mbstd_num_channels} does not divide the {lowest} channels that D has at 4 px: "
            "each map is of as many of them. Use 1, as published, or 0."
        )
    if p.ema_beta is not None and p.ema_rampup is not None:
        return (
            f"train.ema_rampup={p.ema_rampup:g} has no effect with train.ema_beta={p.ema_beta:g}, which is the decay of "
            "every step. Set one of them to null."
        )
    if p.augment in ("fixed", "diffaugment") and not p.augment_p:
        return (
            f"train.augment={p.augment} with train.augment_p=0 changes no image. Set augment_p (1 for DiffAugment as "
            "published), or train.augment: none."
        )
    if p.augment == "ada" and p.loss == "wgan-gp":
        return (
            "train.augment=ada steers by the sign of D, which has no meaning with train.loss: wgan-gp. Set train.augment: "
            "fixed or diffaugment, or none."
        )
    if p.augment == "ada" and not p.ada_max_p:
        return "train.ada_max_p=0 with train.augment=ada changes no image. Raise it, or set train.augment: none."
    if p.augment == "ada" and p.augment_p > p.ada_max_p:
        return f"train.augment_p={p.augment_p:g} is above train.ada_max_p={p.ada_max_p:g}. Lower the one or raise the other."
    if len(set(p.diffaugment_policy)) < len(p.diffaugment_policy):
        return f"train.diffaugment_policy={p.diffaugment_policy} names one twice. Name each once."
    return None
