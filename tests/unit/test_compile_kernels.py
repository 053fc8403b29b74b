"""The CUDA kernels compile, link and load on a machine without a GPU, and keep their numbers in registers."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from ganops.errors import OpsError
from ganops.ops._build import CSRC, find_toolkit
from tests.unit.tiny import ROOT

ARCHITECTURES = ("7.5", "8.0", "8.6", "8.9", "9.0", "10.0")
# Bytes that a kernel may spill, by a part of its C++ name. Each entry says why; without one it is 0.
ALLOWED_SPILLS: dict[str, int] = {}

# What `ganops.ops._build.load` does, in a process of its own: a library cannot be unloaded.
PROGRAM = """
import torch
from ganops.ops import _build, bias_act, upfirdn2d  # they define the schemas
path = _build.build(print)
torch.ops.load_library(path)
names = [name for name in torch._C._dispatch_get_registrations_for_dispatch_key("CUDA") if name.startswith("ganops::")]
for name in names:
    torch._C._dispatch_find_schema_or_throw(name, "")
    print("registered", name)
print("library", path)
"""

LOG_WITH_SPILLS = """
ptxas info    : Compiling entry function '_Z4goodPf' for 'sm_80'
ptxas info    : Function properties for _Z4goodPf
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, 380 bytes cmem[0]
ptxas info    : Compiling entry function '_Z3badPf' for 'sm_90'
ptxas info    : Function properties for _Z3badPf
    16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 255 registers, used 0 barriers
ptxas info    : Function properties for _Z6calledf
    8 bytes stack frame, 4 bytes spill stores, 0 bytes spill loads
"""


@dataclass(frozen=True)
class Compiled:
    """What ptxas says of a function. `spilled`: bytes stored and loaded because registers did not suffice."""

    function: str
    architecture: str
    spilled: int


def read_ptxas(log: str) -> list[Compiled]:
    """The functions in a log of `nvcc -Xptxas -v`."""
    found: list[Compiled] = []
    architecture = function = ""
    for line in log.splitlines():
        if match := re.search(r"Compiling entry function '\S+' for '(\w+)'", line):
            architecture = match[1]
        elif match := re.search(r"Function properties for (\S+)", line):
            function = match[1]
        elif match := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            found.append(Compiled(function, architecture, int(match[1]) + int(match[2])))
    return found


def readable(name: str) -> str:
    """The C++ name of a function, where binutils are installed (g++ needs them)."""
    if shutil.which("c++filt") is None:
        return name
    return subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout.strip()


def too_many_spills(compiled: list[Compiled]) -> list[str]:
    """A line for each function that spills more than it may."""
    lines = []
    for one in compiled:
        if one.spilled:
            name = readable(one.function)
            allowed = max([size for part, size in ALLOWED_SPILLS.items() if part in name], default=0)
            print(f"spills: {one.spilled} bytes, {allowed} allowed, {one.architecture}, {name}")
            if one.spilled > allowed:
                lines.append(f"{name} spills {one.spilled} bytes on {one.architecture}, {allowed} are allowed")
    return lines


def test_spills_are_found() -> None:
    compiled = read_ptxas(LOG_WITH_SPILLS)
    assert [(one.architecture, one.spilled) for one in compiled] == [("sm_80", 0), ("sm_90", 32), ("sm_90", 4)]
    assert len(too_many_spills(compiled)) == 2


@pytest.mark.slow
def test_the_kernels_compile_link_and_load(tmp_path: Path) -> None:
    """For all architectures at once, by the way of a user's build: the same flags, warnings are errors."""
    try:
        toolkit = find_toolkit()
    except OpsError as error:
        pytest.skip(f"nothing to compile with. {error}")
    sources = sorted(CSRC.glob("*.cu"))
    assert sources
    environment = os.environ | {
        "XDG_CACHE_HOME": str(tmp_path / "a cache"),  # with a space: such paths are to work
        "CUDA_VISIBLE_DEVICES": "",
        "TORCH_CUDA_ARCH_LIST": ";".join(ARCHITECTURES),
        "MAX_JOBS": "2",
    }
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    said, *registered, library = result.stdout.splitlines()
    assert f"nvcc {toolkit.version} of {toolkit.home}" in said

    implemented = {name for path in sources for name in re.findall(r'm\.impl\("(\w+)"', path.read_text())}
    assert implemented
    assert set(registered) == {f"registered ganops::{name}" for name in implemented}

    compiled = read_ptxas((Path(library.removeprefix("library ")).parent / "build.log").read_text())
    kernels = dict.fromkeys((f"sm_{name.replace('.', '')}" for name in ARCHITECTURES), 0)
    for one in compiled:
        kernels[one.architecture] += 1
    print(f"kernels: {kernels}, compiled by nvcc {toolkit.version} of {toolkit.home}")
    assert len(set(kernels.values())) == 1
    assert min(kernels.values()) >= len(sources)
    assert not too_many_spills(compiled)
