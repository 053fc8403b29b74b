"""What a run tells of itself: history.csv, metrics.json, the status line, TensorBoard. Nothing here is read back
by training; resuming cuts the history back to the state's tick.
"""

import csv
import io
import math
import resource
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from ganops.entry import say
from ganops.files import copy_file, write_bytes, write_json
from ganops.protocols import LARGER_IS_BETTER, TRAIN_METRICS

# One row per tick. Means over the tick's images, except: nimg to metric_digest, which are values at its end.
COLUMNS = (
    "tick",
    "nimg",
    "kimg",
    "G_loss",
    "D_loss",
    "real_logits",
    "fake_logits",
    "real_sign",
    "fake_sign",
    "worst_class",
    "worst_class_sign",
    "r1_penalty",
    "gp_penalty",
    "pl_penalty",
    "pl_mean",
    "G_grad_norm",
    "D_grad_norm",
    "nonfinite_steps",
    "augment_p",
    "lod",
    "batch_size",
    "G_lr",
    "D_lr",
    "ema_beta",
    "sec_per_kimg",
    "cpu_mem_gb",
    "gpu_mem_gb",
    *TRAIN_METRICS,
    "metric",
    "metric_digest",
)


CLASS_COLUMNS = ("class", "name", "real_images", "real_sign", "fake_images", "fake_sign")


def read_history(path: Path) -> list[dict[str, Any]]:
    """The rows of a history; [] without a file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def format_duration(seconds: float) -> str:
    """1d 02h 03m, 2h 03m, 3m 05s or 7s."""
    seconds = round(seconds)
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if days:
        return f"{days}d {hours % 24:02d}h {minutes % 60:02d}m"
    if hours:
        return f"{hours}h {minutes % 60:02d}m"
    return f"{minutes}m {seconds % 60:02d}s" if minutes else f"{seconds}s"


class RunLog:
    """Writes a run's rows, numbers and lines; on a terminal also a bar of the images shown."""

    def __init__(self, run_path: Path, results: Path, tick_nimg: int, nimg: int, end: int, best_by: str) -> None:
        """
        Args:
            run_path: the run directory, where everything is kept.
            results: results/train, where DVC and people look.
            tick_nimg: nimg at the last tick that the state has completed; later rows of an interrupted run are dropped.
            nimg: images shown so far.
            end: images at the end.
            best_by: the metric that says which tick is the best.
        """
        self.run_path = run_path
        self.results = results
        self.end = end
        self.best_by = best_by
        rows = read_history(run_path / "history.csv")
        self.rows = [row for row in rows if int(row["nimg"]) <= tick_nimg]
        # Of states that are newer than the one continued from: kept in the run directory until they are trained again.
        self.later_rows = [row for row in rows if int(row["nimg"]) > tick_nimg]
        threading.excepthook = _hide_tensorboard(threading.excepthook)
        self.writer: SummaryWriter | None = SummaryWriter(str(run_path / "tensorboard"), purge_step=nimg + 1)
        self.bar = tqdm(
            total=end, initial=nimg, desc="train", unit="img", unit_scale=True, dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )  # fmt: skip
        self._write_history()

    def close(self) -> None:
        self.bar.close()
        self._tell_tensorboard(SummaryWriter.close)

    def _tell_tensorboard(self, what: Callable[[SummaryWriter], None]) -> None:
        """Training does without TensorBoard once its file cannot be written."""
        if self.writer is None:
            return
        try:
            what(self.writer)
        except OSError as error:
            self.writer = None
            folder = self.run_path / "tensorboard"
            say(f"train: WARNING: {folder} cannot be written ({error}); training goes on without it")

    def add_row(self, row: dict[str, Any], seconds: float, started_nimg: int) -> None:
        """Writes a tick's row everywhere and says its status line.

        Args:
            row: COLUMNS -> value; None for what was not measured.
            seconds: since training started or resumed in this process.
            started_nimg: images shown when it did.
        """
        self.rows.append({name: _text(row[name]) for name in COLUMNS})
        self._write_history()

        def add_scalars(writer: SummaryWriter) -> None:
            for name in COLUMNS[3:-2]:
                if row[name] is not None and name != "worst_class":
                    writer.add_scalar(_TENSORBOARD.get(name, f"Progress/{name}"), row[name], row["nimg"])
            writer.flush()

        self._tell_tensorboard(add_scalars)
        done = row["nimg"] - started_nimg
        eta = seconds / done * (self.end - row["nimg"]) if done else 0.0
        G_loss = "-" if row["G_loss"] is None else f"{row['G_loss']:.3f}"  # G learns in one of D_repeats steps
        speed = "-" if row["sec_per_kimg"] is None else f"{row['sec_per_kimg']:.2f}"
        line = (
            f"tick {row['tick']:<5d} kimg {row['kimg']:<8g} time {format_duration(seconds):<11s} "
            f"sec/kimg {speed:<7s} eta {format_duration(eta):<11s} "
            f"G {G_loss:<6s} D {row['D_loss']:<6.3f} cpumem {row['cpu_mem_gb']:.2f} gpumem {row['gpu_mem_gb']:.2f}"
        )
        if row["lod"] is not None:
            line += f"  lod {row['lod']:.2f}"
        if row["augment_p"] is not None:
            line += f"  augment {row['augment_p']:.3f}"
        if row["worst_class"] is not None:
            line += f"  worst class {row['worst_class']} {row['worst_class_sign']:.2f}"
        for metric in TRAIN_METRICS:
            if row[metric] is not None:
                line += f"  {metric} {row[metric]:.4g}"
        say(line)

    def write_classes(self, table: Sequence[Mapping[str, Any]]) -> None:
        """Writes classes.csv: what D thought of each class in the last tick, see `tick.class_table`."""
        write_classes(self.run_path, table)
        copy_file(self.run_path / "classes.csv", self.results / "classes.csv")

    def add_picture(self, path: Path) -> None:
        """Copies a picture of the run directory to its place under results/train."""
        copy_file(path, self.results / path.relative_to(self.run_path))

    def _write_history(self) -> None:
        """history.csv in both places and metrics.json; also without a new row, since DVC has emptied the results."""
        last = int(self.rows[-1]["nimg"]) if self.rows else 0
        later = [row for row in self.later_rows if int(row["nimg"]) > last]
        write_bytes(self.run_path / "history.csv", _table(self.rows + later))
        write_bytes(self.results / "history.csv", _table(self.rows))
        if self.rows:
            write_json(self.results / "metrics.json", self._summary())

    def _summary(self) -> dict[str, float | None]:
        """The last row's numbers; distances only of one yardstick, since others are not comparable."""
        last = self.rows[-1]
        numbers = {
            key: float(last[key]) for key in ("kimg", "G_loss", "D_loss", "real_sign", "sec_per_kimg") if last[key]
        }
        summary = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
        measured = [row for row in self.rows if row.get(self.best_by)]
        alike = [row for row in measured if row["metric_digest"] == measured[-1]["metric_digest"]]
        if alike:
            sign = -1 if self.best_by in LARGER_IS_BETTER else 1
            best = min(reversed(alike), key=lambda row: sign * float(row[self.best_by]))
            summary |= {metric: float(alike[-1][metric]) for metric in TRAIN_METRICS if alike[-1].get(metric)}
            summary |= {f"best_{self.best_by}": float(best[self.best_by]), "best_kimg": float(best["kimg"])}
        return summary


def write_classes(folder: Path, table: Sequence[Mapping[str, Any]]) -> None:
    """Writes classes.csv into a folder; only its header if there are no classes."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CLASS_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _text(row[name]) for name in CLASS_COLUMNS} for row in table)
    write_bytes(folder / "classes.csv", text.getvalue().encode())


def _hide_tensorboard(inner: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A threading.excepthook without what TensorBoard's thread raises: the caller of its writer is told the same."""

    def hook(args: Any) -> None:
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__name__ == "_AsyncWriterThread"):
            inner(args)

    return hook


def _table(rows: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    table = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue().encode()


_TENSORBOARD = {
    "G_loss": "Loss/G/loss",
    "D_loss": "Loss/D/loss",
    "real_logits": "Loss/scores/real",
    "fake_logits": "Loss/scores/fake",
    "real_sign": "Loss/signs/real",
    "fake_sign": "Loss/signs/fake",
    "r1_penalty": "Loss/r1_penalty",
    "gp_penalty": "Loss/gp_penalty",
    "pl_penalty": "Loss/pl_penalty",
    "augment_p": "Progress/augment",
    "sec_per_kimg": "Timing/sec_per_kimg",
    "cpu_mem_gb": "Resources/cpu_mem_gb",
    "gpu_mem_gb": "Resources/peak_gpu_mem_gb",
    **{metric: f"Metrics/{metric}" for metric in TRAIN_METRICS},
}


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.9g}" if isinstance(value, float) else str(value)


def memory_gb(device: torch.device) -> tuple[float, float]:
    """Peak resident memory of this process and peak allocated memory of its GPU since the last call, in 10^9 bytes."""
    cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9  # kilobytes on Linux (getrusage(2))
    if device.type != "cuda":
        return cpu, 0.0
    gpu = torch.cuda.max_memory_allocated(device) / 1e9
    torch.cuda.reset_peak_memory_stats(device)
    return cpu, gpu
