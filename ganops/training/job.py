"""What a training job is made of, its stop signal, and what its files say of where they come from."""

import signal
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any

from ganops.collectives import largest_over_ranks
from ganops.config import Params
from ganops.entry import say
from ganops.errors import Interrupted
from ganops.images.shards import Shards
from ganops.launch import is_ended_by_launcher
from ganops.metrics.evaluate import Yardstick
from ganops.networks.law import LabelLaw, bounded, label_law
from ganops.training.run import RunDirectory
from ganops.training.state import TrainingState

SAME_SIGNAL_SEC = 2.0  # when the parent dies, the kernel sends SIGTERM once for each thread that it had


@dataclass(frozen=True)
class Outputs:
    """Where a finished run is published (dvc.yaml names the paths), and where its logs appear while it goes on."""

    last: Path
    best: Path
    best_folder: Path
    state: Path
    results: Path


class StopSignal:
    """SIGINT and SIGTERM, as a flag that the loop looks at between steps; a second one stops at once."""

    def __init__(self) -> None:
        self.signal = 0
        self.since = 0.0
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._receive)

    def _receive(self, number: int, _frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGTERM and time.monotonic() - self.since < SAME_SIGNAL_SEC:
            return
        if self.signal:
            raise KeyboardInterrupt  # not Interrupted: in the middle of a step there is nothing whole to save
        self.signal, self.since = number, time.monotonic()
        if not is_ended_by_launcher():
            say(f"train: {signal.Signals(number).name}: will save and stop after this step; again to stop at once")

    def check(self) -> None:
        """Raises Interrupted if a signal came to this rank."""
        if self.signal:
            raise Interrupted(f"stopped by {signal.Signals(self.signal).name}", self.signal)

    def check_all(self) -> None:
        """Raises Interrupted on every rank if a signal came to any: all stop after the same step."""
        number = largest_over_ranks(self.signal)
        if number:
            raise Interrupted(f"stopped by {signal.Signals(number).name}", number)


@dataclass(frozen=True)
class Job:
    """What stays the same while a run trains."""

    params: Params
    shards: Shards
    run: RunDirectory
    yardstick: Yardstick | None
    metric_digest: str
    stop: StopSignal
    end: int
    init_from: dict[str, Any]

    @cached_property
    def law(self) -> LabelLaw:
        """What labels of fakes are drawn by; () if training is not conditional."""
        return label_law(self.shards) if self.params.train.conditional else ()

    @cached_property
    def snapshot_law(self) -> LabelLaw:
        """What snapshots carry of it, and their samples and metrics go by."""
        return bounded(self.law)

    def provenance(self) -> dict[str, Any]:
        """What states and snapshots say of where they come from."""
        return {**self.run.provenance(), "init_from": self.init_from}

    def snapshot_metadata(self, state: TrainingState) -> dict[str, Any]:
        """What a snapshot of `state` says of itself."""
        index = self.shards.index
        return {
            "nimg": state.nimg,
            "kimg": state.nimg / 1000,
            "best": vars(state.best[0]) if state.best else None,
            "retries": [vars(retry) for retry in state.retries],
            "data_digest": index.digest,
            "class_names": list(index.class_names),
            "class_counts": list(index.class_counts),
            "bits": index.bits,
            **self.provenance(),
        }
