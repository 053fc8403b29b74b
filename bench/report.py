"""Prints a benchmark's figures and keeps them, dated and with the machine, in bench/results/<name>.md."""

import datetime
import os
import platform
import re
import subprocess
from pathlib import Path

import torch

from ganops.files import write_bytes


def report(name: str, lines: list[str]) -> None:
    """Prints `lines` and writes them to bench/results/<name>.md, in place of older figures (git keeps those).

    Args:
        name: the file's stem; also the benchmark's module, `python -m bench.<name>`.
        lines: one figure each, with its unit.
    """
    for line in lines:
        print(line, flush=True)
    head = [f"# bench {name}", "", f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, `python -m bench.{name}`", ""]
    text = "\n".join([*head, *(f"- {line}" for line in [*machine(), *lines])]) + "\n"
    write_bytes(Path(__file__).parent / "results" / f"{name}.md", text.encode())


def machine() -> list[str]:
    """What the figures were measured on: processor, cores, GPU, versions, commit. No host name."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    cpu = found[1].strip() if found else platform.machine()
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return [
        f"machine: {cpu}, {os.cpu_count()} cores, {gpu}",
        f"versions: Python {platform.python_version()}, torch {torch.__version__}",
        f"code: {commit()}",
    ]


def commit() -> str:
    """Of this repository, and whether files that git follows were changed since; for a copy without git, that."""
    root = Path(__file__).parents[1]
    try:
        head, changes = (
            subprocess.run(
                ["git", *command.split()], cwd=root, capture_output=True, text=True, check=True
            ).stdout.strip()
            for command in ("rev-parse --short=12 HEAD", "status --porcelain --untracked-files=no")
        )
    except (OSError, subprocess.CalledProcessError):
        return "a copy without git"
    return f"commit {head}" + (" with changes" if changes else "")
