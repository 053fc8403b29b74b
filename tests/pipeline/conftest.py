"""One repository in which the whole tiny pipeline has run, and copies of it."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pipeline.clone import Clone, copy_project
from tests.shared import made_once
from tests.standin import write_standin


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone in which `dvc repro` has run everything once, committed. Tests must not change it: they take a `copy`."""

    def make(folder: Path) -> None:
        clone = copy_project(folder / "repository")
        clone.set(stats__extractor_sha256=write_standin(clone.path / "data" / "standin.pt"))
        clone.commit()
        (folder / "first.log").write_text(clone.dvc("repro"))
        clone.commit()

    return Clone(made_once(tmp_path_factory, "finished", make) / "repository")


@pytest.fixture
def copy(finished: Clone, tmp_path: Path) -> Callable[[str], Clone]:
    """Makes an independent copy of the finished repository: files, git, cache and run directories."""

    def make(name: str = "copy") -> Clone:
        return finished.copied(tmp_path / name)

    return make
