"""One repository in which the whole tiny pipeline has run, and copies of it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipeline.clone import Clone, copy_project
from tests.standin import write_standin


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone in which `dvc repro` has run everything once, committed. Tests must not change it: they take a `copy`."""
    clone = copy_project(tmp_path_factory.mktemp("finished") / "repository")
    clone.set(stats__extractor_sha256=write_standin(clone.path / "data" / "standin.pt"))
    clone.commit()
    (clone.path.parent / "first.log").write_text(clone.dvc("repro"))
    clone.commit()
    return clone


@pytest.fixture
def copy(finished: Clone, tmp_path: Path) -> Callable[[str], Clone]:
    """Makes an independent copy of the finished repository: files, git, cache and run directories."""

    def make(name: str = "copy") -> Clone:
        shutil.copytree(finished.path, tmp_path / name, symlinks=True)
        return Clone(tmp_path / name)

    return make
