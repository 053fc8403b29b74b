"""`stages.doctor` on what real DVC leaves when it is killed, in a repository with one stage that only waits."""

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from tests.pipeline.clone import ROOT, Clone, wait_for

SLOW = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
Path("started").touch()
while not Path("finish").exists():
    time.sleep(0.05)
Path("out").touch()
"""
# Modules of ganops; doctor shall work without the others.
NEEDED = (
    "__init__", "config", "config_base", "config_tools", "config_train", "doctor", "errors", "files", "protocols", "shape",
)  # fmt: skip
PIPELINE = """
stages:
  slow:
    cmd: exec python -m stages.slow
    params: [a]
    outs: [out]
"""


@pytest.fixture
def repository(tmp_path: Path) -> Clone:
    """Committed on the branch `work`, with an edit that is not."""
    for name in ("stages/__init__", "stages/doctor", *(f"ganops/{name}" for name in NEEDED)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / f"{name}.py", tmp_path / f"{name}.py")
    (tmp_path / "stages" / "slow.py").write_text(SLOW)
    (tmp_path / "dvc.yaml").write_text(PIPELINE)
    (tmp_path / "params.yaml").write_text("a: 1\n")
    (tmp_path / ".gitignore").write_text("/out\nstarted\nfinish\n__pycache__\n")
    clone = Clone(tmp_path)
    clone.run("git", "init", "-q", "-b", "main")
    clone.dvc("init", "-q")
    clone.commit()
    clone.run("git", "checkout", "-q", "-b", "work")
    clone.commit()
    (tmp_path / "params.yaml").write_text("a: 2\n")
    return clone


def doctor(clone: Clone, *arguments: str, ok: bool = True) -> str:
    return clone.run(sys.executable, "-m", "stages.doctor", *arguments, ok=ok)


def kill_exp_run(clone: Clone) -> str:
    """Starts `dvc exp run` and kills it while its stage runs; what doctor says before."""
    process = clone.start("dvc", "exp", "run")
    wait_for((clone.path / "started").exists, process)
    (clone.path / "started").unlink()
    before = doctor(clone)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()  # not communicate(): the stage lives on and holds the pipe
    assert process.stdout is not None
    process.stdout.close()
    return before


def branch(clone: Clone) -> str:
    return clone.run("git", "rev-parse", "--abbrev-ref", "HEAD").strip()


def test_a_killed_exp_run(repository: Clone) -> None:
    before = kill_exp_run(repository)
    assert "dvc works here" in before
    assert "All is well." in before
    assert branch(repository) == "HEAD"
    found = doctor(repository, ok=False)
    assert found.count("FOUND") == 3
    assert "stage slow (pid " in found
    assert "`git checkout work`" in found
    assert "rm .dvc/tmp/rwlock" in found
    assert branch(repository) == "HEAD", "only --fix changes anything"
    (repository.path / ".git" / "index.lock").touch()
    assert "left: git refuses `git checkout work`" in doctor(repository, "--fix", ok=False)
    assert branch(repository) == "HEAD"
    (repository.path / ".git" / "index.lock").unlink()
    assert "HEAD is on work again" in doctor(repository, "--fix")
    assert branch(repository) == "work"
    assert (repository.path / "params.yaml").read_text() == "a: 2\n"
    assert repository.run("git", "status", "--short").strip() == "M params.yaml"
    assert doctor(repository) == "All is well.\n"
    (repository.path / "finish").touch()
    assert "Ran experiment" in repository.dvc("exp", "run")
    assert branch(repository) == "work"


def test_another_exp_run_on_the_detached_head(repository: Clone) -> None:
    kill_exp_run(repository)
    (repository.path / "finish").touch()  # ends the orphan, and lets the next one end
    repository.dvc("exp", "run")
    assert branch(repository) == "HEAD"
    assert "HEAD is on work again" in doctor(repository, "--fix")
    assert branch(repository) == "work"
    assert (repository.path / "params.yaml").read_text() == "a: 2\n"


def test_a_branch_that_moved_is_not_guessed(repository: Clone) -> None:
    kill_exp_run(repository)
    repository.run("git", "branch", "-f", "work", "main")
    assert "work has moved since" in doctor(repository, "--fix", ok=False)
    assert branch(repository) == "HEAD"


def test_a_detached_head_of_the_users_own_is_left(repository: Clone) -> None:
    (repository.path / "finish").touch()
    repository.dvc("exp", "run")
    repository.commit()
    head = repository.run("git", "rev-parse", "HEAD").strip()
    repository.run("git", "tag", "v1")
    for target in ("v1", head):
        repository.run("git", "checkout", "-q", "work")
        repository.run("git", "checkout", "-q", target)
        assert doctor(repository, "--fix") == "All is well.\n"
        assert branch(repository) == "HEAD"


def test_an_empty_rwlock(repository: Clone) -> None:
    (repository.path / "finish").touch()
    repository.dvc("repro")
    (repository.path / ".dvc" / "tmp" / "rwlock").write_text("")
    assert "JSON structure is corrupted" in repository.dvc("status", ok=False)
    assert "`rm .dvc/tmp/rwlock`" in doctor(repository, ok=False)
    doctor(repository, "--fix")
    repository.dvc("status")


def test_an_orphan_that_does_not_end_is_named_and_not_killed(repository: Clone) -> None:
    """As one that saves a large state."""
    slow = repository.path / "stages" / "slow.py"
    slow.write_text(SLOW.replace("lambda *_: sys.exit(143)", "signal.SIG_IGN"))
    waiting = repository.path / "ganops" / "doctor.py"
    waiting.write_text(waiting.read_text().replace("WAIT_SEC = 60.0", "WAIT_SEC = 0.5"))
    kill_exp_run(repository)
    try:
        assert "got SIGTERM and still runs" in doctor(repository, "--fix", ok=False)
        assert "goes on although its dvc is gone" in doctor(repository, ok=False)
    finally:
        (repository.path / "finish").touch()
    wait_for((repository.path / "out").exists)
