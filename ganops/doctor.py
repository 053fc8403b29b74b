"""What killed and forgotten runs leave behind in a repository: found, explained and, where that is safe, mended.

Each `look_*` returns notes and findings and changes nothing; only a finding's `mend` does. What may be in use is left
alone. Nothing here imports torch: a state is judged by its header.
"""

import fcntl
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ganops.config import Params, load_params
from ganops.errors import GanopsError
from ganops.files import format_bytes, sha256_file, write_bytes

PROC = Path("/proc")
ORPHAN_WAIT_SEC = 60.0
OLD_SEC = 3600.0  # a temporary file that nobody wrote to for so long belongs to nobody
FRESH_SEC = 60.0  # one written to just now may belong to a process of another machine or container
ODD = (AttributeError, KeyError, TypeError, ValueError)  # what JSON that is not as expected raises
BASELINE = "refs/exps/exec/EXEC_BASELINE"


@dataclass(frozen=True)
class Finding:
    """What was found, what it means, what to do; `mend` says what it did or raises GanopsError or OSError."""

    text: str
    mend: Callable[[], str] | None = None  # None if only the user can
    frees: int = 0  # bytes of disk


Look = tuple[list[str], list[Finding]]  # lines that are worth knowing, and findings


def size_and_last_use(folder: Path) -> tuple[int, float]:
    """Bytes on disk of all that is below a folder (links are not followed), and when the newest was written."""
    size, newest = 0, 0.0
    for path in folder.rglob("*"):
        with suppress(OSError):  # removed meanwhile
            status = path.lstat()
            size, newest = size + status.st_blocks * 512, max(newest, status.st_mtime)
    return size, newest


@dataclass(frozen=True)
class Process:
    """A running process; `start` (clock ticks since boot) tells it from a later one of the same number."""

    pid: int
    parent: int
    start: int
    words: tuple[str, ...]


def read_process(pid: int) -> Process | None:
    """None if there is none, or it cannot be read. A zombie, which has ended, has no words."""
    try:
        fields = (PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
        words = (PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").rstrip("\0").split("\0")
        return Process(pid, int(fields[1]), int(fields[19]), tuple(filter(None, words)))
    except (OSError, IndexError, ValueError):
        return None


def read_processes() -> dict[int, Process]:
    """All processes that can be seen, by number; empty where there is no /proc."""
    names = [path.name for path in PROC.iterdir()] if PROC.is_dir() else []
    return {found.pid: found for name in names if name.isdigit() and (found := read_process(int(name)))}


def is_dvc(words: tuple[str, ...]) -> bool:
    """Whether a command line is DVC's: `dvc …`, `python …/bin/dvc …`, `python -m dvc …`."""
    return any(Path(word).name == "dvc" or word.endswith("/dvc/__main__.py") for word in words)


def working_in(folder: Path) -> list[Process]:
    """Other processes whose current folder is `folder` or below it."""
    found = []
    for process in read_processes().values():
        with suppress(OSError):  # another user's
            cwd = Path(str((PROC / str(process.pid) / "cwd").readlink()).removesuffix(" (deleted)"))
            if cwd.is_relative_to(folder.resolve()) and process.pid != os.getpid():
                found.append(process)
    return found


def why_ended(pid: int, command: str) -> str | None:
    """Why the process that was noted as (pid, command) no longer runs; None if it runs, or if that cannot be known."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return f"pid {pid} (`{command}`) has ended"
    except PermissionError:
        pass
    process = read_process(pid)
    if process is None or is_dvc(process.words) or " ".join(process.words).endswith(command):
        return None
    return f"pid {pid} was `{command}` and is now {' '.join(process.words)[:60] or 'a zombie'}"


def look_for_orphans(root: Path) -> Look:
    """Stages that DVC started in this repository and that outlived it."""
    processes = read_processes()
    if not processes:
        return ["processes cannot be listed here, so stages that outlived dvc were not looked for"], []
    wanted, stages = f"DVC_ROOT={root.resolve()}".encode(), {}
    for process in processes.values():
        name = re.search(r"\n-m\nstages\.(?!doctor\b)(\w+)", "\n".join(process.words))
        with suppress(OSError):  # another user's
            if name and wanted in (PROC / str(process.pid) / "environ").read_bytes().split(b"\0"):
                stages[process] = name[1]
    findings = []
    for process, stage in stages.items():
        above = process.parent
        while above in processes and not is_dvc(processes[above].words) and processes[above] not in stages:
            above = processes[above].parent
        if above > 1 or (above in processes and is_dvc(processes[above].words)):
            continue  # below dvc (also as PID 1), below a stage that is in `stages` itself, or hidden from us
        ticks_up = float((PROC / "uptime").read_text().split()[0]) * os.sysconf("SC_CLK_TCK")
        since = time.ctime(time.time() - (ticks_up - process.start) / os.sysconf("SC_CLK_TCK"))
        text = f"stage {stage} (pid {process.pid}, since {since}) goes on although its dvc is gone, and the next dvc would "
        text += f"work on the same files. `kill {process.pid}` ends it; training saves its state first."
        findings.append(Finding(text, lambda process=process: end_process(process)))  # type: ignore[misc]
    return [], findings


def end_process(process: Process) -> str:
    """SIGTERM, and waiting until it has ended; never SIGKILL, which would cut off the saving of a state."""
    deadline = time.monotonic() + ORPHAN_WAIT_SEC
    if read_process(process.pid) == process:
        os.kill(process.pid, signal.SIGTERM)
    while read_process(process.pid) == process:
        if time.monotonic() > deadline:
            raise GanopsError(f"pid {process.pid} got SIGTERM and still runs; it may be saving, look again later")
        time.sleep(0.1)
    return f"pid {process.pid} has ended"


def git(root: Path, *arguments: str) -> tuple[bool, str]:
    """Whether git succeeded, and its output, or what it complained of."""
    command = ["git", "-C", str(root), *arguments]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    except OSError as error:
        return False, str(error)
    return answer.returncode == 0, (answer.stderr if answer.returncode else answer.stdout).strip()


def left_branch(messages: list[str], head: str) -> tuple[str, bool] | None:
    """The branch that DVC detached HEAD from, and whether a later `dvc exp run` ended on the detached HEAD.

    `dvc exp run` detaches HEAD twice, to the full hash: once to stash, which ends with "Restore HEAD to 'branch'", and
    at once again to run. A person's or a CI's checkout of a tag, a branch or a hash looks otherwise.
    `messages` are those of HEAD's reflog, the newest first; `head` is the commit that HEAD is at.
    """
    again = False
    for message, before in itertools.pairwise(messages):
        if match := re.fullmatch(f"checkout: moving from (.+) to {head}", message):
            return (match[1], again) if before == f"dvc: Restore HEAD to '{match[1]}'" else None
        again |= re.fullmatch("dvc: Restore HEAD to '[0-9a-f]{40,64}'", message) is not None
        if not message.startswith("dvc: Restore HEAD to") and not message.startswith("commit: dvc: commit experiment "):
            return None
    return None


def look_at_git(root: Path) -> Look:
    """What a killed `dvc exp run` leaves in git: a detached HEAD, and a ref that `dvc exp` takes for HEAD."""
    ok, head = git(root, "rev-parse", "--verify", "HEAD")
    if not ok:
        return [f"git was not looked at: {head}"], []
    killed = git(root, "rev-parse", "-q", "--verify", BASELINE)[0]
    messages = git(root, "reflog", "show", "-n", "500", "--format=%gs", "HEAD")[1].splitlines()
    left = None if git(root, "symbolic-ref", "-q", "HEAD")[0] else left_branch(messages, head)
    if not killed and not (left and left[1]):
        return [], []
    if busy := [process.pid for process in working_in(root) if is_dvc(process.words)]:
        return [f"dvc works here (pid {busy[0]}), so git was not looked at"], []
    if left is None:
        text = f"a killed `dvc exp run` left {BASELINE}, which `dvc exp show` takes for HEAD. "
        return [], [Finding(f"{text}`git update-ref -d {BASELINE}` removes it.", lambda: mend_git(root, None))]
    text = f"git's HEAD is detached: a killed `dvc exp run` took it off {left[0]}; new commits would be on no branch. "
    if git(root, "rev-parse", "-q", "--verify", f"refs/heads/{left[0]}") != (True, head):
        return [], [Finding(f"{text}{left[0]} has moved since, so choose: `git checkout <branch>` (edits are kept).")]
    text += f"`git checkout {left[0]}` goes back and keeps your edits (if any are missing: `git stash list`)."
    return [], [Finding(text, lambda: mend_git(root, left[0]))]


def mend_git(root: Path, branch: str | None) -> str:
    """Checks out a branch that is at HEAD's commit, so that no file changes, and removes DVC's ref."""
    for command in [["checkout", branch, "--"]] * (branch is not None) + [["update-ref", "-d", BASELINE]]:
        ok, complaint = git(root, *map(str, command))
        if not ok:
            raise GanopsError(f"git refuses `git {command[0]} {command[1]}`: {complaint}")
    return f"HEAD is on {branch} again; edits are kept" if branch else f"{BASELINE} is removed"


@contextmanager
def locked(path: Path, kind: int = fcntl.LOCK_EX) -> Iterator[None]:
    """Holds the flock of a file, or of its folder if there is none. Raises GanopsError if another process has it."""
    handle = os.open(path if path.exists() else path.parent, os.O_RDONLY)
    try:
        fcntl.flock(handle, kind | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise GanopsError(f"{path} is held by a process that works now; nothing was changed") from None
    finally:
        os.close(handle)


def living_entries(text: str) -> tuple[dict[str, Any], set[str]]:
    """DVC's lock file without the entries of ended processes, and why they ended. Raises ODD."""
    ended: set[str] = set()

    def lives(info: dict[str, Any]) -> bool:
        why = why_ended(info["pid"], info["cmd"])
        ended.update([why] if why else [])
        return why is None

    value = json.loads(text)
    write = {path: info for path, info in value.get("write", {}).items() if lives(info)}
    read = {path: [info for info in infos if lives(info)] for path, infos in value.get("read", {}).items()}
    return {"write": write, "read": {path: infos for path, infos in read.items() if infos}}, ended


def look_at_locks(root: Path) -> Look:
    """Locks of DVC whose holders are gone. (.dvc/tmp/lock is a flock, which the kernel frees by itself.)"""
    notes, findings = [], []
    for path in filter(Path.exists, (root / ".dvc/tmp/rwlock", root / ".dvc/tmp/exps/rwlock")):
        name, text = path.relative_to(root), ""
        try:
            with locked(path.with_name("rwlock.lock")):  # DVC writes the file under this lock, not atomically
                why = living_entries(path.read_text())[1]
            if why:
                text = f"{name} names programs that ended: {'; '.join(sorted(why))}. Should another program get such a "
                text += "number, dvc is blocked. Unless another machine or container works here: "
        except GanopsError as error:
            notes.append(str(error))
        except ODD:
            text = f"{name} is empty or odd, as when dvc is stopped while it writes it, and dvc fails with `JSON "
            text += "structure is corrupted`. Unless dvc works here now: "
        if text:
            findings.append(Finding(f"{text}`rm {name}`.", lambda path=path: mend_lock(path)))  # type: ignore[misc]
    return notes, findings


def mend_lock(path: Path) -> str:
    """Removes the entries of ended processes, and the file if no other is left."""
    with locked(path.with_name("rwlock.lock")):
        with suppress(*ODD):
            kept, why = living_entries(path.read_text())
            if kept["write"] or kept["read"]:
                write_bytes(path, json.dumps(kept).encode())
                return f"{len(why)} ended programs are removed from {path.name}; living ones keep their locks"
        path.unlink()
    return f"{path.name} is removed"


@dataclass(frozen=True)
class Run:
    """A run directory; `keep` if it is of the present values and code, or if that cannot be known."""

    path: Path
    group: str  # values and data as text, without the code; "" if unknown
    nimg: int  # of the newest whole state; -1 if none is
    bare: bool  # nothing would be lost: no state is whole, none is odd or unreadable, and there is no snapshot
    keep: bool
    what: str
    in_use: bool
    size: int
    used: float


def state_nimg(path: Path) -> int:
    """Images shown, by a state's header; -1 if the file is cut short. Raises OSError and, not such a state, ODD."""
    with path.open("rb") as file:
        size, length = os.fstat(file.fileno()).st_size, int.from_bytes(file.read(8), "little")
        if size < 8 + length or length == 0:
            return -1
        header = json.loads(file.read(length))
    metadata = json.loads(header.pop("__metadata__")["ganops"])
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    return int(metadata["nimg"]) if 8 + length + end <= size else -1


def read_run(path: Path, root: Path, params: Params | None) -> Run:
    """Looks at a run directory and changes nothing in it."""
    nimgs, bare, in_use = [-1], not any((path / "snapshots").glob("*.safetensors")), True
    for state in (path / "states").glob("*.safetensors"):
        try:
            nimgs.append(state_nimg(state))
        except (OSError, *ODD):
            bare = False
    with suppress(GanopsError, OSError), locked(path / "lock", fcntl.LOCK_SH):  # OSError: no flock there
        in_use = False
    group, what, keep = "", "of unknown values and code", (path / "identity.json").exists()
    with suppress(OSError, *ODD):
        identity = json.loads((path / "identity.json").read_text())
        group = json.dumps([identity[key] for key in ("params", "data", "fresh")], sort_keys=True)
        files = {root / (name.replace(".", "/") + ".py"): digest for name, digest in identity["code"].items()}
        code = all(file.exists() and sha256_file(file) == digest for file, digest in files.items())
        if params is not None:
            present = {"fresh": params.run.fresh, **params.train.model_dump()}
            asked = {"fresh": identity["fresh"], **identity["params"]}
            asked.pop(
                "init_from", None
            )  # there by content, in params.yaml by name: cannot be compared without reading it
            values = all(present.get(key, value) == value for key, value in asked.items())
            keep = values and code
            what = f"{'present' if values else 'other'} values, {'present' if code else 'other'} code"
    return Run(path, group, max(nimgs), bare and max(nimgs) < 0, keep, what, in_use, *size_and_last_use(path))


def why_stale(run: Run, runs: list[Run]) -> str | None:
    """Why nothing needs a run directory any more; None if it is, or may be, of use."""
    if run.in_use or run.keep or (run.nimg < 0 and not run.bare):
        return None
    if run.bare:
        return "holds no whole state, so nothing can continue from it"
    group = [other for other in runs if other.group == run.group != ""]
    best = max(group, key=lambda other: (other.nimg, other.used), default=run)
    if best is run or best.used < run.used:
        return None
    return f"is superseded by {best.path.name}, which has the same values and data, later code and as much kimg"


def look_at_runs(root: Path) -> Look:
    """A line for each run directory, and those that nothing needs any more."""
    notes, findings, params = [], [], None
    paths = [path for path in sorted((root / "runs").glob("[0-9a-f]" * 16)) if (path / "states").is_dir()]
    try:
        params = load_params(root / "params.yaml") if paths else None
    except GanopsError as error:
        notes.append(f"{error} So run directories are not compared with it.")
    runs = [read_run(path, root, params) for path in paths]
    for run in runs:
        name, size, why = run.path.relative_to(root), format_bytes(run.size), why_stale(run, runs)
        kimg = "no whole state" if run.nimg < 0 else f"kimg {run.nimg / 1000:g}"
        facts = [kimg, size, f"last used {time.ctime(run.used)}", run.what, *["in use"] * run.in_use]
        notes.append(f"{name}: {', '.join(facts)}")
        if why:
            text = f"{name} {why}. `rm -r {name}` frees {size}."
            findings.append(Finding(text, lambda path=run.path: remove([path]), run.size))  # type: ignore[misc]
    if runs:
        total, freed = sum(run.size for run in runs), sum(finding.frees for finding in findings)
        notes.append(f"runs: {len(runs)} hold {format_bytes(total)}; --fix would free {format_bytes(freed)} of it")
    return notes, findings


def look_for_temporaries(root: Path) -> Look:
    """Files of killed writers: .NAME.PID.tmp of ganops.files, and the pixels of shards that were not finished."""
    found: list[Path] = []
    for path in itertools.chain(*((root / name).rglob(".*.tmp") for name in ("models", "data", "results", "runs"))):
        if match := re.fullmatch(r"\..+\.(\d+)\.tmp|\.pixels\.tmp", path.name):
            with suppress(OSError):  # renamed meanwhile
                age, ended = time.time() - path.lstat().st_mtime, match[1] and why_ended(int(match[1]), "")
                found += [path] * (age > OLD_SEC or (age > FRESH_SEC and bool(ended)))
    size = sum(path.lstat().st_size for path in found)
    names = " ".join(str(path.relative_to(root)) for path in found[:5]) + " …" * (len(found) > 5)
    text = f"temporary files of killed writers, which nothing reads: {len(found)} ({format_bytes(size)}). `rm {names}`"
    return [], [Finding(text, lambda: remove(found), size)] if found else []


def remove(paths: list[Path]) -> str:
    """Removes files, and run directories under their lock."""
    for path in paths:
        if path.is_dir():
            with locked(path / "lock"):
                shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    return f"{', '.join(path.name for path in paths)} removed"


def look_at_experiments(root: Path) -> Look:
    """Folders of `dvc exp run --temp` and of the queue: what a killed one leaves is only shown, it may be wanted."""
    notes, findings, exps = [], [], root / ".dvc/tmp/exps"
    for folder in [*exps.glob("tmp*/"), *exps.glob("standalone/tmp*/")]:
        name = f"{folder.relative_to(root)} ({format_bytes(size_and_last_use(folder)[0])})"
        if not read_processes() or working_in(folder) or any(is_dvc(process.words) for process in working_in(root)):
            notes.append(f"{name}: of an experiment that may still run")
        else:
            text = f"{name} is what a killed `dvc exp run --temp` or queue task left. Take what you need of it, then "
            findings.append(Finding(f"{text}`rm -rf {folder.relative_to(root)}`."))
    return notes, findings
