"""Builds the CUDA kernels in csrc/ once, at their first use, and loads them; docs/kernels.md tells users about it.

The library lies outside the tree, under the hash of all that it is made of. The stable ABI of torch compiles in seconds.
"""

import ctypes
import fcntl
import hashlib
import importlib.util
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch

from ganops.entry import PR_SET_PDEATHSIG, say
from ganops.errors import OpsError
from ganops.files import atomic_path, remove_temporaries, write_bytes

CSRC = Path(__file__).parent / "csrc"
SUFFIXES = (".cu", ".cuh", ".h")
NAME = "ganops_ops"
CHILD = (sys.executable, "-m", "ganops.ops._build")
FLAGS = (
    "-O3",  # of the code around the kernels; for them it is nvcc's default
    "-DUSE_CUDA",  # declares aoti_torch_get_current_cuda_stream
    "-DTORCH_TARGET_VERSION=0x020b000000000000",  # the ABI of 2.11: the oldest torch that ganops runs on
    "-Werror=all-warnings",
    "-Wno-deprecated-gpu-targets",  # a GPU that the next toolkit will not know is no mistake
    "-Xptxas=-v",  # registers and spills, into the log
)
USUALLY = "usually 10 to 60 s"
INSTALL = "pip install 'cuda-toolkit[nvcc,crt,nvvm,cccl]'"  # pip takes the version that torch has installed
REMEDY = "or set run.ops: reference (same numbers, slower)."
# The first line that says what went wrong: nvcc, ptxas, g++ and ninja say "error:" or "fatal:", ld and sh do not.
DECISIVE = r"\b(error|fatal)\b[^:]*:|cannot find -l|undefined (reference|symbol)|: not found$|^\w+Error: "

_outcome: list[OpsError | None] = []  # of this process's one attempt to load


@dataclass(frozen=True)
class Toolkit:
    """A CUDA compiler: home/bin/nvcc."""

    home: Path
    nvcc: Path
    version: str  # of nvcc, e.g. "13.0.88"
    origin: str  # where it was found: "CUDA_HOME", "PATH" or "pip"
    passed_over: tuple[str, ...] = ()  # what was found before it and cannot be used, and why


def find_toolkit() -> Toolkit:
    """The first toolkit of torch's major CUDA version: CUDA_HOME, the nvcc on the PATH, the nvidia packages of pip.

    A CUDA_HOME without nvcc does not end the search, for containers and cluster modules set it for the libraries alone.

    Raises:
        OpsError: there is none, or this torch is not built for CUDA.
    """
    if torch.version.cuda is None:
        raise OpsError(f"ops: torch {torch.__version__} is built without CUDA. Install one with it, {REMEDY}")
    major = torch.version.cuda.split(".")[0]
    absent, passed_over = [], []
    for origin, home, text in _candidates(major):
        if home is None:
            absent.append(text)
            continue
        match = re.search(r"release .*, V([\d.]+)", _output_of(home / "bin/nvcc", "--version"))
        if match is None:
            passed_over.append(f"{text} has no bin/nvcc that runs")
        elif match[1].split(".")[0] != major:
            passed_over.append(f"{text} is CUDA {match[1]}, but torch is built for {torch.version.cuda}")
        else:
            return Toolkit(home, home / "bin/nvcc", match[1], origin, tuple(passed_over))
    # pip's packages for CUDA 12 hold parts of the compiler, but not nvcc itself.
    remedy = "Set" if int(major) < 13 else f"Install the one that belongs to torch (`{INSTALL}`), or set"
    raise OpsError(
        f"ops: no CUDA compiler for the kernels: {'; '.join(passed_over + absent)}. {remedy} CUDA_HOME to a CUDA "
        f"{major} toolkit, {REMEDY}"
    )


def _candidates(major: str) -> Iterator[tuple[str, Path | None, str]]:
    """(origin, home or None, what to call it) of each place to look at."""
    home = os.environ.get("CUDA_HOME")
    yield "CUDA_HOME", Path(home).absolute() if home else None, f"CUDA_HOME={home}" if home else "CUDA_HOME is unset"
    if nvcc := shutil.which("nvcc"):
        # What is on the PATH may be a script or a link that starts an nvcc elsewhere; that one says where it is.
        top = re.search(r"^#\$ TOP=(.+)$", _output_of(nvcc, "--dryrun", "x.cu"), re.M)
        yield "PATH", Path(top[1].strip() if top else Path(nvcc).parents[1]).resolve(), f"{nvcc} on the PATH"
    else:
        yield "PATH", None, "nvcc is not on the PATH"
    package = importlib.util.find_spec("nvidia")
    folders = [Path(folder) / f"cu{major}" for folder in (package and package.submodule_search_locations) or []]
    found = next((folder for folder in folders if (folder / "bin/nvcc").exists()), None)
    yield "pip", found, str(found) if found else f"pip's nvidia/cu{major} has no bin/nvcc"


def _output_of(*command: str | Path) -> str:
    """Also that of the shell, if there is no such command."""
    return subprocess.getoutput(shlex.join(map(str, command)), errors="replace")


def architectures() -> tuple[str, ...]:
    """Of the visible CUDA devices, e.g. ("9.0",). Without one: what TORCH_CUDA_ARCH_LIST says, else ("9.0",)."""
    capabilities = {torch.cuda.get_device_capability(index) for index in range(torch.cuda.device_count())}
    if capabilities:
        return tuple(f"{major}.{minor}" for major, minor in sorted(capabilities))
    return tuple(re.findall(r"[^;\s]+", os.environ.get("TORCH_CUDA_ARCH_LIST", ""))) or ("9.0",)


def library_path(toolkit: Toolkit, architectures: tuple[str, ...], sources: Path = CSRC) -> Path:
    """Where the library made of what is in `sources` belongs, whether it is there or not."""
    parts = [torch.__version__, *architectures, toolkit.version, *FLAGS, os.uname().machine]
    digest = hashlib.sha256("\n".join(parts).encode())
    for path in sorted(path for path in sources.iterdir() if path.suffix in SUFFIXES):
        content = path.read_bytes()
        digest.update(f"\n{path.name} {len(content)}\n".encode() + content)
    cache = Path(os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")).absolute()  # noqa: PTH111
    return cache / "ganops/ops" / digest.hexdigest()[:16] / f"{NAME}.so"


def build(say: Callable[[str], None], sources: Path = CSRC) -> Path:
    """The library of the kernels; compiled if it is not there yet. Any number of processes may call this at once.

    Args:
        say: shows one line, before what takes long.
    Raises:
        OpsError: nothing to compile with, no place to write to, or it failed, here or in the process waited for.
    """
    toolkit, names = find_toolkit(), architectures()
    path = library_path(toolkit, names, sources)
    try:
        if path.exists():
            return path
        _check_host_tools()
        path.parent.mkdir(parents=True, exist_ok=True)
        before = _read_failure(path.parent)
        with _locked(path.parent / "lock", say):
            failure = _read_failure(path.parent)
            if path.exists():
                return path
            if failure not in ("", before):  # of the process that this one waited for; it would fail here too
                raise OpsError(failure.split("\n", 1)[1])
            which = "; ".join([f"nvcc {toolkit.version} of {toolkit.home}", *toolkit.passed_over])
            say(f"ops: compiles the CUDA kernels for {', '.join(names)}, once ({USUALLY}; {which})")
            _compile(toolkit, names, sources, path)
    except OSError as error:
        text = f"ops: the CUDA kernels cannot be kept in {path.parent} ({error.strerror or error}). Set XDG_CACHE_HOME "
        raise OpsError(f"{text}to a folder with room that can be written to, {REMEDY}") from None
    return path


@contextmanager
def _locked(path: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Holds the flock of a file; the kernel ends it with the process that holds it, however that ends."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"ops: waits for another process that compiles the CUDA kernels ({USUALLY})")
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _read_failure(folder: Path) -> str:
    """Of the last failed build in a folder: a line that no other build has, then its message. Empty without one."""
    path = folder / "failure.txt"
    return path.read_text() if path.exists() else ""


def _compile(toolkit: Toolkit, names: tuple[str, ...], sources: Path, path: Path) -> None:
    """Under the lock: compiles in a fresh folder beside `path`, then renames. Leaves build.log, of a failure too."""
    folder, log = path.parent, path.parent / "build.log"
    for left in folder.glob("build-*"):  # of builds that were killed
        shutil.rmtree(left, ignore_errors=True)
    remove_temporaries(folder)
    workshop = Path(tempfile.mkdtemp(prefix="build-", dir=folder))
    try:
        with (workshop / "log").open("wb") as output:
            code = _run_child(toolkit, names, sources, workshop, output.fileno())
        os.replace(workshop / "log", log)
        if code != 0:
            reason = decisive_line(log.read_text(errors="replace"), code)
            message = f"ops: the CUDA kernels do not compile: {reason} (log: {log}). See docs/kernels.md, {REMEDY}"
            write_bytes(folder / "failure.txt", f"{workshop.name}\n{message}".encode())
            raise OpsError(message)
        with atomic_path(path) as temporary:
            os.replace(workshop / f"{NAME}.so", temporary)
        (folder / "failure.txt").unlink(missing_ok=True)
    finally:
        shutil.rmtree(workshop, ignore_errors=True)


def decisive_line(log: str, code: int) -> str:
    """What a compiler's output says was wrong; its last line if none looks so. Raises OSError for a full disk."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name} (out of memory?)"
    if re.search("No space left|quota exceeded", log):
        raise OSError("no space left")
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    return next((line for line in lines if re.search(DECISIVE, line, re.I)), [f"exit code {code}", *lines][-1])[:300]


def _check_host_tools() -> None:
    """nvcc and torch start these by name, and their own words for a missing one are hard to read."""
    for command in (os.environ.get("CC") or "g++", os.environ.get("CXX") or "c++", "ninja"):
        if shutil.which(command.split()[0], path=_path_with_scripts()) is None:
            raise OpsError(f"ops: no {command} to compile the CUDA kernels with. Install g++ and ninja, {REMEDY}")


def _path_with_scripts() -> str:
    """The PATH, and after it the folder of this Python's scripts: pip puts ninja there, activated or not."""
    return os.environ.get("PATH", os.defpath) + os.pathsep + sysconfig.get_path("scripts")


def _run_child(toolkit: Toolkit, names: tuple[str, ...], sources: Path, workshop: Path, output: int) -> int:
    """Compiles in a process of its own, for torch reads CUDA_HOME when cpp_extension is imported. Gives its exit code."""
    environment = os.environ | {
        "CUDA_HOME": str(toolkit.home),
        "TORCH_CUDA_ARCH_LIST": ";".join(names),
        "PATH": _path_with_scripts(),
        "PYTHONPATH": f"{Path(__file__).parents[2]}:{os.environ.get('PYTHONPATH', '')}",  # ganops need not be installed
        "TMPDIR": str(workshop),  # what killed compilers leave goes with the folder
    }
    child = subprocess.Popen(
        [*CHILD, str(sources.resolve()), str(os.getpid())], cwd=workshop, env=environment, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=output, stderr=output,
    )  # fmt: skip
    try:
        return child.wait()
    finally:
        if child.poll() is None or child.returncode < 0:  # Ctrl-C here, or it was killed
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGTERM)  # ninja hands it on to the compilers; killed, it would not
            child.wait()


def load() -> None:
    """Builds the kernels if need be and registers them with torch; tried once per process.

    Raises:
        OpsError: that was not possible. The same error at each call.
    """
    if not _outcome:
        try:
            torch.ops.load_library(build(say))  # type: ignore[no-untyped-call]
            _outcome.append(None)
        except OpsError as error:
            _outcome.append(error)
        except OSError as error:  # its cause is dlopen's, which names the library and what it lacks
            _outcome.append(OpsError(f"ops: cannot load {error.__cause__ or error}. Remove that folder, {REMEDY}"))
    if _outcome[0] is not None:
        raise _outcome[0]


def _end_all(signum: int, _frame: FrameType | None) -> None:
    signal.signal(signum, signal.SIG_IGN)
    os.killpg(0, signum)
    os._exit(1)  # not sys.exit: on its way out subprocess.run would kill ninja before that has ended the compilers


def main() -> None:
    """The child: compiles what is in the folder argv[1] into the current folder, and tries to load it."""
    sources, parent, home = Path(sys.argv[1]), int(sys.argv[2]), Path(os.environ["CUDA_HOME"])
    signal.signal(signal.SIGTERM, _end_all)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        sys.exit("the process that wanted the kernels is gone")
    from torch.utils import cpp_extension  # only here: it takes a second, and looks for CUDA_HOME

    runtimes = sorted(home.glob("lib*/libcudart.so*"))
    if runtimes and runtimes[0].name != "libcudart.so":  # pip's packages have libcudart.so.13 only; ld wants the other
        Path("libcudart.so").symlink_to(runtimes[0])
    cpp_extension.load(
        name=NAME,
        sources=[str(path) for path in sorted(sources.glob("*.cu"))],
        extra_cuda_cflags=list(FLAGS),
        extra_ldflags=["-L."],
        build_directory=str(Path.cwd()),
        with_cuda=True,
        is_python_module=False,
        verbose=True,  # or the output of a build that went well is lost
    )


if __name__ == "__main__":
    main()
