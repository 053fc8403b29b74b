"""How a stage starts: its paths from dvc.yaml, its values from params.yaml, its signals, its progress."""

import ctypes
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TextIO, TypeVar

import yaml
from tqdm import tqdm

from ganops.config import Params, load_params
from ganops.errors import GanopsError, Interrupted, LostContact, ParamsError
from ganops.launch import (
    LAUNCHER,
    adopt_slurm,
    announce_rank,
    gather_nodes,
    has_launcher,
    is_ended_by_launcher,
    is_rank,
    launch,
    print_error,
    rank,
    ranks_per_node,
    world_size,
    write_report,
)

T = TypeVar("T")

PR_SET_PDEATHSIG = 1  # linux/prctl.h
LOG_INTERVAL_SEC = 10.0


@dataclass(frozen=True)
class Stage:
    """What a stage needs to know of the pipeline.

    Attributes:
        name: its name in dvc.yaml.
        params: all of params.yaml, checked.
        paths: every dep and output of the stage in dvc.yaml, in order, with `${section.key}` filled in.
        root: the repository that owns caches and run directories; under `dvc exp run --temp` and in the queue the
            parent repository, not the temporary copy that the stage runs in.
    """

    name: str
    params: Params
    paths: tuple[Path, ...]
    root: Path

    def path(self, name: str) -> Path:
        """The dep or output that ends in `name`, e.g. `stage.path("shards")` for data/shards.

        Raises:
            ParamsError: dvc.yaml names no such path for this stage, or several.
        """
        parts = Path(name).parts
        exact = [path for path in self.paths if path == Path(name)]
        found = exact or [path for path in self.paths if path.parts[-len(parts) :] == parts]
        if len(found) != 1:
            raise ParamsError(
                f"dvc.yaml: stage {self.name} has {len(found)} deps and outs ending in {name}, expected 1."
            )
        return found[0]


def load_stage(name: str) -> Stage:
    """Reads dvc.yaml and params.yaml in the current folder (DVC starts stages there).

    Raises:
        ParamsError: a file is missing or wrong.
    """
    params = load_params(Path("params.yaml"))
    try:
        stage = yaml.safe_load(Path("dvc.yaml").read_text())["stages"][name]
    except FileNotFoundError:
        raise ParamsError(f"dvc.yaml not found in {Path.cwd()}. Run stages from the repository's top folder.") from None
    except KeyError:
        raise ParamsError(f"dvc.yaml has no stage {name}.") from None
    entries = [entry for kind in ("deps", "outs", "metrics", "plots") for entry in stage.get(kind, [])]
    texts = [next(iter(entry)) if isinstance(entry, dict) else str(entry) for entry in entries]

    def fill(match: re.Match[str]) -> str:
        section, key = match[1].split(".")
        return str(getattr(getattr(params, section), key))

    paths = tuple(Path(re.sub(r"\$\{([^}]+)\}", fill, text)) for text in texts)
    return Stage(name, params, paths, Path(os.environ.get("DVC_ROOT") or "."))


def run_stage(name: str, main: Callable[[Stage], None], most_ranks: Callable[[Params], int] | None = None) -> None:
    """Runs `main`, in as many ranks as `run.gpus` and `run.nodes` say; ends with exit code 0, or says why not.

    A user's mistake ends in one line on stderr and exit code 1, an interruption in 130 or 143: a stage that exits with
    0 after Ctrl-C would be recorded by DVC as done. The stage also asks the kernel for SIGTERM when its parent (DVC, or
    the launcher of its ranks) dies, so that nothing trains on unseen.

    Args:
        name: of the stage in dvc.yaml.
        main: what to do, in every rank.
        most_ranks: how many ranks the stage has work for; None for a stage that is always one process.
    """
    if (LAUNCHER in os.environ or "DVC_ROOT" in os.environ) and sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    signal.signal(signal.SIGTERM, _raise_interrupted)
    kind, message, code = "", "", 0
    try:
        adopt_slurm()
        announce_rank()
        stage = load_stage(name)
        _run_here_or_in_ranks(stage, main, most_ranks)
    except Interrupted as error:
        kind, message, code = "interrupted", str(error), 128 + error.signum
    except KeyboardInterrupt:
        kind, message, code = "interrupted", "interrupted", 130
    except LostContact as error:
        kind, message, code = "lost", str(error), 1
    except (GanopsError, OSError) as error:  # OSError: a full disk, a folder that may not be written to
        kind, message, code = "error", str(error), 1
    except MemoryError:
        kind, message, code = (
            "error",
            "out of memory. Close other programs, or lower the batch sizes in params.yaml.",
            1,
        )
    except Exception as error:
        write_report("crash", f"{type(error).__name__}: {error}", 1)
        raise
    if code:
        if not write_report(kind, message, code):
            print_error(f"{name}: {_who()}{message}")
        sys.exit(code)


def _run_here_or_in_ranks(
    stage: Stage, main: Callable[[Stage], None], most_ranks: Callable[[Params], int] | None
) -> None:
    if most_ranks is None:
        main(stage)
    elif is_rank():
        from ganops.distributed import joined_ranks  # not at the top: `digits` and one-process `prepare` need no torch

        with joined_ranks(stage.name, stage.params):
            main(stage)
    else:
        nodes, most = stage.params.run.nodes, most_ranks(stage.params)
        count = ranks_per_node(stage.params, most)
        if nodes > 1:
            launch(stage.name, stage.params, count, gather_nodes(stage.name, stage.params, max(most // nodes, 1)))
        elif count > 1:
            launch(stage.name, stage.params, count)
        else:
            main(stage)


def _who() -> str:
    return f"rank {rank()}: " if world_size() > 1 else ""


def _raise_interrupted(signum: int, _frame: FrameType | None) -> None:
    # When the parent dies, the kernel sends the signal once for each thread that it had: once is enough.
    signal.signal(signum, signal.SIG_IGN)
    if is_ended_by_launcher() and has_launcher():
        raise LostContact("ended by the launcher, because another rank failed")
    raise Interrupted(f"stopped by {signal.Signals(signum).name}", signum)


def say(text: str) -> None:
    """One line of a stage's report, at once (DVC does not set PYTHONUNBUFFERED), not torn by a bar. Only rank 0 speaks."""
    if rank():
        return
    tqdm.write(text, file=sys.stdout)
    sys.stdout.flush()


def progress(items: Iterable[T], total: int, what: str, unit: str, stream: TextIO | None = None) -> Iterator[T]:
    """Passes `items` on and shows how far they are: a bar on a terminal, a plain line every ten seconds in a log.

    Args:
        items: what to iterate over.
        total: how many items there will be.
        what: what is being done, e.g. "prepare".
        unit: what an item is, e.g. "img".
        stream: where to show it; stderr if None.
    """
    out = stream if stream is not None else sys.stderr
    if rank():
        yield from items
        return
    if out.isatty():
        yield from tqdm(items, total=total, desc=what, unit=unit, file=out, dynamic_ncols=True)
        return
    start = last = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last >= LOG_INTERVAL_SEC and done < total:
            last = now
            rate = done / (now - start)
            print(f"{what}: {done}/{total} {unit}, {rate:.1f} {unit}/s, {(total - done) / rate:.0f} s left", file=out)
            out.flush()
