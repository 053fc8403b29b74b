"""A temporary git and DVC repository with this project's files and a tiny pipeline, driven as a user would."""

import atexit
import functools
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TIMEOUT_SEC = 240


def environment() -> dict[str, str]:
    """The caller's, with this interpreter's `python` and `dvc` first on the PATH, one thread, and a git author."""
    names = {
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@b.c",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@b.c",
    }
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("DVC_", "GIT_"))}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**kept, **names, "PATH": path, "OMP_NUM_THREADS": "1", "SHELL": "/bin/sh", "DVC_NO_ANALYTICS": "1"}


def _yaml(value: Any) -> str:
    """A value on one line; JSON, but its keys may be numbers."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {json.dumps(item)}" for key, item in value.items()) + "}"
    return json.dumps(value)


@functools.cache
def nursery() -> subprocess.Popen[str]:
    """This test process's nursery.py, until it ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.pipeline.nursery"], cwd=ROOT, env=environment(), text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip

    def end() -> None:
        with process:
            process.kill()

    atexit.register(end)
    return process


@dataclass(frozen=True)
class Clone:
    """A temporary repository."""

    path: Path

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Starts a command in its own process group, its output together."""
        return subprocess.Popen(
            command, cwd=self.path, env=environment(), text=True, start_new_session=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, *command: str, ok: bool = True, timeout_sec: float = TIMEOUT_SEC) -> str:
        """Runs a command to its end; its output. Fails the test unless it ends as expected."""
        process = self.start(*command)
        output, _ = process.communicate(timeout=timeout_sec)
        assert (process.returncode == 0) == ok, f"{' '.join(command)}: exit {process.returncode}\n{output}"
        return output

    def dvc(self, *arguments: str, ok: bool = True, timeout_sec: float = TIMEOUT_SEC) -> str:
        return self.run("dvc", *arguments, ok=ok, timeout_sec=timeout_sec)

    def stage(self, name: str, ok: bool = True) -> str:
        """Runs a stage without DVC, to its end; its output. Fails the test unless it ends as expected."""
        done = self.stage_apart(name, together=True)
        assert (done.returncode == 0) == ok, f"stages.{name}: exit {done.returncode}\n{done.stdout}"
        return done.stdout

    def stage_apart(self, name: str, together: bool = False) -> subprocess.CompletedProcess[str]:
        """As `stage`, however it ends; with stdout and stderr each by itself, or together in stdout."""
        logs = [self.path.parent / f"{self.path.name}.{name}.{kind}" for kind in ("out", "err")]
        for log in logs:
            log.write_text("")
        order = {
            "module": f"stages.{name}",
            "folder": str(self.path),
            "environment": environment(),
            "stdout": str(logs[0]),
            "stderr": str(logs[not together]),
            "timeout_sec": TIMEOUT_SEC,
        }
        inlet, outlet = nursery().stdin, nursery().stdout
        assert inlet is not None
        assert outlet is not None
        inlet.write(json.dumps(order) + "\n")
        inlet.flush()
        return subprocess.CompletedProcess(name, int(outlet.readline()), *(log.read_text() for log in logs))

    def commit(self) -> None:
        self.run("git", "add", "-A")
        self.run("git", "commit", "-q", "--allow-empty", "-m", "test")

    def set(self, **values: Any) -> None:
        """Edits params.yaml by hand: set(train__total_kimg=4)."""
        path = self.path / "params.yaml"
        text = path.read_text()
        for name, value in values.items():
            section, key = name.split("__")
            head, body = text.split(f"\n{section}:", 1) if not text.startswith(f"{section}:") else ("", text)
            body, count = re.subn(rf"(?m)^  {key}: .*$", f"  {key}: {_yaml(value)}", body, count=1)
            assert count == 1, name
            text = f"{head}\n{section}:{body}" if head else body
        path.write_text(text)

    def models(self) -> dict[str, str]:
        """sha256 of each published model."""
        files = [path for path in (self.path / "models").rglob("*") if path.is_file() and not path.name.startswith(".")]
        return {str(path.relative_to(self.path)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    def kimgs(self) -> list[float]:
        """kimg of each row of the history."""
        lines = (self.path / "results" / "train" / "history.csv").read_text().splitlines()
        column = lines[0].split(",").index("kimg")
        return [float(line.split(",")[column]) for line in lines[1:]]

    def states(self) -> list[Path]:
        return sorted((self.path / "runs").glob("*/states/*.safetensors"))

    def copied(self, target: Path) -> "Clone":
        """An independent copy. DVC's cache and the raw images, thousands of files that nobody edits, are hard links."""
        linked = (self.path / ".dvc" / "cache" / "files", self.path / "data" / "digits")

        def link_or_copy(source: str, copy: str) -> None:
            if any(folder in Path(source).parents for folder in linked):
                os.link(source, copy)
            else:
                shutil.copy2(source, copy)

        shutil.copytree(self.path, target, symlinks=True, copy_function=link_or_copy)
        return Clone(target)

    def remove_runs(self) -> None:
        shutil.rmtree(self.path / "runs", ignore_errors=True)


def stages_run(output: str) -> list[str]:
    """Which stages `dvc repro` really ran."""
    return re.findall(r"Running stage '(\w+)'", output)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    """Waits until a condition holds; fails when the process ends before, or after TIMEOUT_SEC."""
    deadline = time.monotonic() + TIMEOUT_SEC
    while not condition():
        if process is not None and process.poll() is not None:
            output, _ = process.communicate()
            raise AssertionError(f"ended with {process.returncode} before what was waited for\n{output}")
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def trainers(clone: Clone) -> list[int]:
    """Process ids of train stages that run in the clone."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            folder = (entry / "cwd").readlink()
        except OSError:
            continue
        if b"stages.train" in command and str(folder).startswith(str(clone.path)):
            found.append(int(entry.name))
    return found


def survivors(clone: Clone) -> dict[int, str]:
    """Commands of all processes that run in the clone or were started for it (DVC_ROOT), by process id."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            inside = str((entry / "cwd").readlink()).startswith(str(clone.path))
            if inside or str(clone.path).encode() in (entry / "environ").read_bytes():
                found[int(entry.name)] = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
    return found


def ranks(clone: Clone) -> dict[int, int]:
    """Rank -> process id, of the train stages that run in the clone as ranks."""
    found = {}
    for pid in trainers(clone):
        try:
            values = (Path("/proc") / str(pid) / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        for value in values:
            if value.startswith(b"RANK="):
                found[int(value.removeprefix(b"RANK="))] = pid
    return found


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def copy_project(target: Path) -> Clone:
    """The project's files as they are in the working tree, with the tiny pipeline, committed."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in listed.stdout.splitlines():
        source = ROOT / name
        if (
            source.is_file()
            and not name.startswith(("docs/", "bench/", "tests/golden/", "results/"))
            and name != "dvc.lock"
        ):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, target / name)
    shutil.copy(ROOT / "tests" / "pipeline" / "params.yaml", target / "params.yaml")
    clone = Clone(target)
    clone.run("git", "init", "-q", "-b", "main")
    return clone
