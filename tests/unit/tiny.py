"""A training set-up that is as small as it gets, for tests of the step, the state and the run directory."""

from pathlib import Path
from typing import Any

import torch

from ganops.config import load_params
from ganops.config_train import TrainParams
from ganops.images.dataset import Batch
from ganops.training.state import TrainingState, initial_state
from ganops.training.step import train_step

ROOT = Path(__file__).parents[2]
CLASS_COUNTS = (3, 5, 2)


def tiny_params(**changes: Any) -> TrainParams:
    """Section train at 8x8 with 4 to 8 channels, all regularisers on."""
    values = load_params(ROOT / "params.yaml").train.model_dump()
    values |= {
        "batch_size": 8, "batch_gpu": 4, "z_dim": 8, "w_dim": 8, "channel_base": 32, "channel_max": 8,
        "pl_weight": 2.0, "pl_interval": 2, "r1_interval": 3, "style_mixing_prob": 0.9, "xflip": True, "tick_kimg": 0.5,
    }  # fmt: skip
    return TrainParams.model_validate(values | changes)


def tiny_state(params: TrainParams) -> TrainingState:
    return initial_state(params, 8, 1, len(CLASS_COUNTS), torch.device("cpu"))


def tiny_batch(params: TrainParams, nimg: int) -> Batch:
    """Stand-in for the data: a function of nimg."""
    rng = torch.Generator().manual_seed(nimg)
    images = torch.randint(0, 256, [params.batch_size, 1, 8, 8], dtype=torch.uint8, generator=rng)
    return Batch(images, torch.randint(0, 3, [params.batch_size], generator=rng))


def run_steps(state: TrainingState, params: TrainParams, steps: int) -> None:
    for _ in range(steps):
        train_step(state, params, tiny_batch(params, state.nimg), CLASS_COUNTS)
