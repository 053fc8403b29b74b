"""Seconds from SIGKILL of a training run to the next step, with the demo's networks: `python -m bench.resume`, two minutes.

Works in a temporary copy of the repository with a small data set of the demo's digits. The stage is started at once after
the kill; the next step has been done when a newer state appears (one is saved after every step).
"""

import fcntl
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from bench.report import report

ROOT = Path(__file__).parents[1]
REPEATS = 3
POLL_SEC = 0.005


def states(clone: Path) -> list[Path]:
    return sorted(clone.glob("runs/*/states/[0-9]*.safetensors"))


def set_value(clone: Path, key: str, value: object) -> None:
    path = clone / "params.yaml"
    path.write_text(re.sub(rf"(?m)^  {key}: .*$", f"  {key}: {value}", path.read_text(), count=1))


def start(clone: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "stages.train"]
    return subprocess.Popen(command, cwd=clone, stdout=subprocess.DEVNULL, start_new_session=True)


def wait_for_states(clone: Path, more_than: list[Path], process: subprocess.Popen[bytes]) -> None:
    while not set(states(clone)) - set(more_than):
        if process.poll() is not None:
            raise RuntimeError(f"training ended with {process.returncode} before it saved a state; its lines are above")
        time.sleep(POLL_SEC)


def wait_for_lock(clone: Path) -> None:
    """Until no process uses the run directory: the ranks of a killed launcher save and end by themselves."""
    for path in clone.glob("runs/*/lock"):
        with path.open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # freed when the file is closed


def measure(clone: Path, ranks: int) -> float:
    """The best of REPEATS."""
    set_value(clone, "gpus", ranks)
    times = []
    for _ in range(REPEATS):
        process = start(clone)
        wait_for_states(clone, states(clone), process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        wait_for_lock(clone)
        known = states(clone)
        began = time.perf_counter()
        process = start(clone)
        wait_for_states(clone, known, process)
        times.append(time.perf_counter() - began)
        process.send_signal(signal.SIGTERM)
        process.wait()
    return min(times)


def main() -> None:
    """One rank and two."""
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        for name in ("ganops", "stages", "presets"):
            shutil.copytree(ROOT / name, clone / name)
        for name in ("params.yaml", "dvc.yaml"):
            shutil.copy(ROOT / name, clone / name)
        for key, value in {
            "state_kimg": 0.03,
            "metric_kimg": 0,
            "image_kimg": 0,
            "batch_gpu": 16,
            "keep_states": 100,
        }.items():
            set_value(clone, key, value)
        for stage in ("digits", "prepare", "stats"):
            subprocess.run([sys.executable, "-m", f"stages.{stage}"], cwd=clone, check=True, stdout=subprocess.DEVNULL)
        lines = [
            f"{ranks} rank{'s' if ranks > 1 else ''}: {measure(clone, ranks):.1f} s from the start to the first new state, "
            "the start of Python and torch included"
            for ranks in (1, 2)
        ]
    report(
        "resume",
        [f"load average at the start: {load:.1f}; best of {REPEATS}; the demo's networks, a state per step", *lines],
    )


if __name__ == "__main__":
    main()
