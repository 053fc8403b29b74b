"""How the CUDA kernels are built: what is found, who builds, and what is left of a build that failed or was killed.

Most tests compile nothing: a shell script stands for the child that compiles, or for nvcc.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import torch

from ganops.errors import OpsError
from ganops.ops import _build
from ganops.ops._build import Toolkit, architectures, build, decisive_line, find_toolkit, library_path, load
from tests.unit.tiny import ROOT

WAIT_SEC = 120.0
# In the place of `python -m ganops.ops._build`: counts itself, waits while there is a file `hold`, fails if there is a
# file `fail`, which holds what the compiler says.
FAKE_CHILD = """
echo child >> "$FAKE/count"
while [ -e "$FAKE/hold" ]; do sleep 0.02; done
echo compiling
if [ -e "$FAKE/fail" ]; then cat "$FAKE/fail"; exit 1; fi
printf 'a whole library' > ganops_ops.so
"""
FAKE_NVCC = """#!/bin/sh
case "$*" in
  --version) echo 'Cuda compilation tools, release {major}.1, V{major}.1.23' ;;
  --dryrun*) echo '#$ TOP={home}/bin/..' >&2 ;;
  *) {compile} ;;
esac
"""
BUILDER = """
import sys
import torch
from pathlib import Path
from ganops.ops import _build
torch.version.cuda = "13.2"
torch.cuda.device_count = lambda: 0
if sys.argv[2]:
    _build.CHILD = ("/bin/sh", sys.argv[2])
print(_build.build(lambda text: print(text, flush=True), Path(sys.argv[1])), flush=True)
"""


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SEC
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def make_toolkit(home: Path, major: int = 13, compile: str = "exit 1") -> Path:
    """A folder with a bin/nvcc that says what version it is."""
    nvcc = home / "bin/nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(FAKE_NVCC.format(major=major, home=home, compile=compile))
    nvcc.chmod(0o755)
    return home


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No toolkit anywhere, no GPU, torch for CUDA 13.2, an empty cache. Returns tmp_path."""
    for name in ("CUDA_HOME", "TORCH_CUDA_ARCH_LIST", "CC", "CXX"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.version, "cuda", "13.2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    folders = [folder for folder in os.environ["PATH"].split(":") if not (Path(folder) / "nvcc").exists()]
    (tmp_path / "tools").mkdir()
    for tool in ("g++", "c++", "ninja", "sh", "cat", "sleep"):  # they may stand in the same folder as an nvcc
        (tmp_path / "tools" / tool).symlink_to(shutil.which(tool, path=_build._path_with_scripts()) or "/bin/true")
    monkeypatch.setenv("PATH", ":".join([str(tmp_path / "tools"), *folders]))
    return tmp_path


@dataclass
class Place:
    """A cache, a toolkit, sources, and a child that only pretends."""

    root: Path
    sources: Path
    said: list[str]

    def build(self) -> Path:
        return build(self.said.append, self.sources)

    def path(self) -> Path:
        return library_path(find_toolkit(), architectures(), self.sources)

    def children(self) -> int:
        count = self.root / "count"
        return len(count.read_text().splitlines()) if count.exists() else 0

    def left(self) -> set[str]:
        return {path.name for path in self.path().parent.iterdir()}


@pytest.fixture
def place(clean: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("CUDA_HOME", str(make_toolkit(clean / "cuda")))
    monkeypatch.setenv("FAKE", str(clean))
    (clean / "child").write_text(FAKE_CHILD)
    monkeypatch.setattr(_build, "CHILD", ("/bin/sh", str(clean / "child")))
    monkeypatch.setattr(_build, "_outcome", [])
    sources = clean / "csrc"
    sources.mkdir()
    (sources / "one.cu").write_text("one")
    (sources / "one.cuh").write_text("kernel")
    return Place(clean, sources, [])


# The toolkit.


def test_nothing_found_says_where_it_was_looked_for(clean: Path) -> None:
    with pytest.raises(OpsError) as error:
        find_toolkit()
    text = str(error.value)
    assert "CUDA_HOME is unset; nvcc is not on the PATH; pip's nvidia/cu13 has no bin/nvcc" in text
    assert "pip install 'cuda-toolkit[nvcc,crt,nvvm,cccl]'" in text
    assert "run.ops: reference" in text


def test_pips_compiler_is_not_advised_where_it_has_none(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    with pytest.raises(OpsError, match="bin/nvcc. Set CUDA_HOME to a CUDA 12 toolkit, or set run.ops") as error:
        find_toolkit()
    assert "pip install" not in str(error.value)


def test_torch_without_cuda(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(OpsError, match="is built without CUDA"):
        find_toolkit()


def test_cuda_home_comes_before_the_path(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = make_toolkit(clean / "first"), make_toolkit(clean / "second")
    monkeypatch.setenv("PATH", str(second / "bin"), prepend=":")
    assert find_toolkit() == Toolkit(second, second / "bin/nvcc", "13.1.23", "PATH")
    monkeypatch.setenv("CUDA_HOME", str(first))
    assert find_toolkit() == Toolkit(first, first / "bin/nvcc", "13.1.23", "CUDA_HOME")


def test_a_cuda_home_without_nvcc_is_passed_over_and_said(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", "/nowhere")
    with pytest.raises(OpsError, match="CUDA_HOME=/nowhere has no bin/nvcc that runs; nvcc is not on the PATH"):
        find_toolkit()
    monkeypatch.setenv("PATH", str(make_toolkit(clean / "cuda") / "bin"), prepend=":")
    toolkit = find_toolkit()
    assert toolkit.origin == "PATH"
    assert toolkit.passed_over == ("CUDA_HOME=/nowhere has no bin/nvcc that runs",)


def test_a_toolkit_of_another_major_version_is_passed_over(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(make_toolkit(clean / "old", major=12)))
    with pytest.raises(OpsError, match=r"CUDA_HOME=.*/old is CUDA 12\.1\.23, but torch is built for 13\.2"):
        find_toolkit()


@pytest.mark.parametrize("kind", ["script", "link"])
def test_what_is_on_the_path_leads_to_the_toolkit(clean: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    home = make_toolkit(clean / "cuda")
    wrapper = clean / "wrapper/bin/nvcc"
    wrapper.parent.mkdir(parents=True)
    if kind == "link":
        wrapper.symlink_to(home / "bin/nvcc")
    else:
        wrapper.write_text(f'#!/bin/sh\nexec {home}/bin/nvcc "$@"\n')
        wrapper.chmod(0o755)
    monkeypatch.setenv("PATH", str(wrapper.parent), prepend=":")
    assert find_toolkit() == Toolkit(home, home / "bin/nvcc", "13.1.23", "PATH")


def test_the_packages_of_pip_come_last(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleType("nvidia")
    home = make_toolkit(clean / "site/nvidia/cu13")

    class Spec:
        submodule_search_locations = ("/elsewhere/nvidia", str(clean / "site/nvidia"))

    monkeypatch.setattr("importlib.util.find_spec", lambda name: Spec if name == package.__name__ else None)
    assert find_toolkit() == Toolkit(home, home / "bin/nvcc", "13.1.23", "pip")
    other = make_toolkit(clean / "cuda")
    monkeypatch.setenv("PATH", str(other / "bin"), prepend=":")
    assert find_toolkit().home == other


@pytest.mark.parametrize(
    ("capabilities", "listed", "expected"),
    [
        ([], None, ("9.0",)),
        ([], "8.0;9.0+PTX", ("8.0", "9.0+PTX")),
        ([], "7.5 8.6", ("7.5", "8.6")),
        ([(9, 0), (8, 0), (9, 0)], "7.5", ("8.0", "9.0")),
        ([(12, 0), (9, 0)], None, ("9.0", "12.0")),
    ],
)
def test_architectures(
    clean: Path,
    monkeypatch: pytest.MonkeyPatch,
    capabilities: list[tuple[int, int]],
    listed: str | None,
    expected: tuple[str, ...],
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    if listed is not None:
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    assert architectures() == expected


def test_the_path_depends_on_what_the_library_is_made_of(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    path = place.path()
    assert path.is_relative_to(place.root / "cache/ganops/ops")
    (place.sources / "notes.md").write_text("not compiled")
    assert place.path() == path
    seen = {path}
    (place.sources / "one.cuh").write_text("another kernel")
    seen.add(place.path())
    (place.sources / "two.cu").write_text("")
    seen.add(place.path())
    (place.sources / "two.cu").rename(place.sources / "three.cu")
    seen.add(place.path())
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0")
    seen.add(place.path())
    monkeypatch.setattr(torch, "__version__", "2.11.0")
    seen.add(place.path())
    monkeypatch.setattr(_build, "FLAGS", ("-O1",))
    seen.add(place.path())
    toolkit = find_toolkit()
    seen.add(library_path(Toolkit(toolkit.home, toolkit.nvcc, "13.2.0", "PATH"), architectures(), place.sources))
    assert len(seen) == 8


# Building.


def test_what_is_built_is_not_built_again(place: Place) -> None:
    path = place.build()
    assert path == place.path()
    assert path.read_text() == "a whole library"
    assert place.left() == {"ganops_ops.so", "build.log", "lock"}
    assert (path.parent / "build.log").read_text() == "compiling\n"
    assert len(place.said) == 1
    assert "compiles the CUDA kernels for 9.0, once (usually 10 to 60 s; nvcc 13.1.23 of" in place.said[0]
    assert place.build() == path
    assert place.children() == len(place.said) == 1


def test_a_failure_is_told_in_one_line_and_tried_again_later(place: Place) -> None:
    (place.root / "fail").write_text(
        '[1/2] nvcc -Werror\none.cu(3): error: identifier "x" is undefined\nmore: error: x\n'
    )
    with pytest.raises(OpsError) as error:
        place.build()
    log = place.path().parent / "build.log"
    assert f'do not compile: one.cu(3): error: identifier "x" is undefined (log: {log})' in str(error.value)
    assert "run.ops: reference" in str(error.value)
    assert "more: error" in log.read_text()
    assert place.left() == {"build.log", "failure.txt", "lock"}
    (place.root / "fail").unlink()  # the user has mended it
    place.build()
    assert place.children() == 2
    assert place.left() == {"ganops_ops.so", "build.log", "lock"}


def test_loading_is_tried_once_per_process(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_build, "build", lambda say: build(say, place.sources))
    (place.root / "fail").write_text("one.cu(3): error: wrong\n")
    with pytest.raises(OpsError) as first:
        load()
    (place.root / "fail").unlink()
    with pytest.raises(OpsError) as second:
        load()
    assert second.value is first.value
    assert place.children() == 1


def test_a_library_that_cannot_be_loaded(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_build, "build", lambda say: build(say, place.sources))
    with pytest.raises(OpsError, match=r"cannot load /.*/ganops_ops\.so: .*Remove that folder"):
        load()


def test_processes_that_want_the_same_build_it_once(place: Place) -> None:
    (place.root / "hold").touch()
    command = [sys.executable, "-c", BUILDER, str(place.sources), str(place.root / "child")]
    processes = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    lines = [process.stdout.readline() for process in processes if process.stdout]
    assert sorted(line.split()[1] for line in lines) == ["compiles", "waits"], lines
    assert "ops: waits for another process that compiles the CUDA kernels (usually 10 to 60 s)\n" in lines
    (place.root / "hold").unlink()
    for process in processes:
        output, _ = process.communicate()
        assert output == f"{place.path()}\n"
        assert process.returncode == 0
    assert place.children() == 1


def test_a_failure_is_shared_with_those_who_wait(place: Place) -> None:
    """In threads: flock is of the open file, so they keep each other out as processes do."""
    (place.root / "hold").touch()
    (place.root / "fail").write_text("one.cu(3): error: wrong\n")
    errors: list[str] = []

    def attempt() -> None:
        try:
            place.build()
        except OpsError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=attempt) for _ in range(3)]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(place.said) == 3)
    (place.root / "hold").unlink()
    for thread in threads:
        thread.join()
    assert len(errors) == 3
    assert len(set(errors)) == 1
    assert place.children() == 1


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_build_blocks_nobody_and_leaves_nothing(place: Place, signum: signal.Signals) -> None:
    """The real child and ninja, and an nvcc that has written half a file when the building process is killed."""
    hang = (
        f"echo half > ganops_ops.so; echo $$ > {place.root}/part; mv {place.root}/part {place.root}/pid; exec sleep 600"
    )
    nvcc = place.root / "cuda/bin/nvcc"
    nvcc.write_text(FAKE_NVCC.format(major=13, home=nvcc.parents[1], compile=hang))
    process = subprocess.Popen(
        [sys.executable, "-c", BUILDER, str(place.sources), ""], cwd=ROOT, stderr=subprocess.PIPE
    )
    wait_for((place.root / "pid").exists)
    pid = int((place.root / "pid").read_text())
    assert any(path.name.startswith("build-") for path in place.path().parent.iterdir())
    process.send_signal(signum)
    process.communicate()
    assert process.returncode == -signum
    assert not place.path().exists()
    assert place.build().read_text() == "a whole library"
    assert place.said[0].startswith("ops: compiles")
    wait_for(lambda: not is_running(pid))
    place.path().unlink()
    place.build()  # what the dying compiler may have written after the first cleaning
    assert place.left() == {"ganops_ops.so", "build.log", "lock"}


# What can be missing.


@pytest.mark.parametrize("missing", ["g++", "c++", "ninja"])
def test_a_missing_tool(place: Place, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    (place.root / "tools" / missing).unlink()
    monkeypatch.setenv("PATH", str(place.root / "tools"))
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(place.root))
    with pytest.raises(OpsError, match=f"no {missing.replace('+', '.')} to compile"):
        place.build()
    assert place.children() == 0


def test_a_compiler_that_the_environment_names(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "clang-of-another-machine -O1")
    with pytest.raises(OpsError, match="no clang-of-another-machine -O1 to compile"):
        place.build()


def test_a_cache_that_cannot_be_written(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    (place.root / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(place.root / "file"))
    with pytest.raises(
        OpsError, match=r"cannot be kept in /.*/file/ganops/ops/.* \(Not a directory\)\. Set XDG_CACHE_HOME"
    ):
        place.build()


def test_a_full_disk(place: Place) -> None:
    (place.root / "fail").write_text("fatal error: when writing output to x.ii: No space left on device\n")
    with pytest.raises(OpsError, match=r"cannot be kept in .* \(no space left\)\. Set XDG_CACHE_HOME"):
        place.build()


@pytest.mark.parametrize(
    ("log", "code", "expected"),
    [
        (
            "a\nnvcc fatal   : Unsupported gpu architecture 'compute_99'\n",
            1,
            "nvcc fatal   : Unsupported gpu architect",
        ),
        ('x.cu(2): error #177-D: variable "a" was declared\n', 1, 'x.cu(2): error #177-D: variable "a" was declared'),
        ("ptxas error   : Entry function uses too much\n", 1, "ptxas error   : Entry function uses too much"),
        ("x.h:3:10: fatal error: y.h: No such file\nz\n", 1, "x.h:3:10: fatal error: y.h: No such file"),
        (
            "/usr/bin/ld: cannot find -lcudart: No such file\ncollect2: error: ld\n",
            1,
            "/usr/bin/ld: cannot find -lcudart",
        ),
        ("/bin/sh: 1: nvcc: not found\n", 1, "/bin/sh: 1: nvcc: not found"),
        ("Traceback:\n  x\nImportError: no y\n", 1, "ImportError: no y"),
        ("all odd\n\nthe last\n", 1, "the last"),
        ("", 3, "exit code 3"),
        ("x.cu: error: y", -9, "killed by SIGKILL (out of memory?)"),
    ],
)
def test_the_line_that_decides(log: str, code: int, expected: str) -> None:
    assert decisive_line(log, code).startswith(expected)


@pytest.mark.slow
def test_the_compiler_refuses_warnings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The one real compilation here; tests/unit/test_compile_kernels.py has one that goes well."""
    try:
        find_toolkit()
    except OpsError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "odd.cu").write_text("__global__ void kernel() { int unused = 1; }\n")
    with pytest.raises(
        OpsError, match=r'odd\.cu\(1\): error #177-D: variable "unused" was declared but never referenced'
    ):
        build(lambda text: None, tmp_path)
