"""How a tool starts and ends: its paths from the command line, where it may write, one line for what goes wrong."""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch
import yaml

from ganops.config import Params, load_params
from ganops.errors import DataError, GanopsError, ParamsError


def run_tool(name: str, usage: str, main: Callable[[Params, list[Path]], None], resumable: bool) -> None:
    """Runs `main` with params.yaml, as `run_command`.

    Args:
        name: of the tool: python -m stages.NAME.
        usage: the names of its paths, in words, e.g. "SNAPSHOT FOLDER".
        main: what to do with params.yaml and as many paths.
        resumable: what was written before an interruption stays, and the same command uses or replaces it.
    """
    remedy = "take a smaller network" if name == "project" else f"lower {name}.batch_size"
    rest = "What is written is whole; run the same command again." if resumable else "Nothing was written."
    run_command(name, usage, lambda paths: main(load_params(Path("params.yaml")), paths), f", or {remedy}", rest)


def run_command(
    name: str, usage: str, main: Callable[[list[Path]], None], remedy: str = "", rest: str = "Nothing was written."
) -> None:
    """Runs `main`; a mistake ends in one line on stderr and exit code 1, an interruption in 130 or 143.

    Args:
        name: of the tool: python -m stages.NAME.
        usage: the names of its paths, in words; those in brackets may be left out, e.g. "IMAGES [RESULT.json]".
        main: what to do with the paths.
        remedy: what else helps when memory runs out, e.g. ", or take a smaller network".
        rest: what an interruption leaves.
    """
    words = usage.split()
    if not len([word for word in words if word[0] != "["]) <= len(sys.argv) - 1 <= len(words):
        sys.exit(f"usage: python -m stages.{name} {usage}")
    stopped: list[str] = []

    def stop(signum: int, _frame: FrameType | None) -> None:
        # As Ctrl-C, which the libraries that are at work let through: many of them take any Exception for their own.
        signal.signal(signum, signal.SIG_IGN)
        stopped.append(f"stopped by {signal.Signals(signum).name}")
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        main([Path(text) for text in sys.argv[1:]])
    except (KeyboardInterrupt, GanopsError, OSError, MemoryError, torch.OutOfMemoryError) as error:
        if stopped or isinstance(error, KeyboardInterrupt):
            print(f"{name}: {stopped[0] if stopped else 'interrupted'}. {rest}", file=sys.stderr)
            sys.exit(128 + (signal.SIGTERM if stopped else signal.SIGINT))
        is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
        sys.exit(f"{name}: " + (f"out of memory. Close other programs{remedy}." if is_memory else str(error)))
    finally:
        signal.signal(signal.SIGTERM, before)


def refuse_output(target: Path) -> None:
    """That a file to be written is no output of a pipeline: DVC keeps those, and the next stages would take it for theirs.

    Raises:
        DataError: it is one, or lies in one, of the dvc.yaml of a folder above it.
        ParamsError: that dvc.yaml cannot be read.
    """
    # Where the name is, not what it points to: an output may be a link into DVC's cache. Its folder may be one to anywhere.
    for path in {Path(os.path.abspath(target)), target.parent.resolve() / target.name}:  # noqa: PTH100 (follows no link)
        for folder in path.parents:
            for output, stage in _outputs(folder / "dvc.yaml").items():
                if path.is_relative_to(folder / output):
                    raise DataError(
                        f"{target}: is an output of the stage {stage} of {folder / 'dvc.yaml'}, which DVC keeps. "
                        "Name another file."
                    )


def _outputs(pipeline: Path) -> dict[str, str]:
    """Each output in a dvc.yaml and its stage; none if there is no such file."""
    try:
        stages = (yaml.safe_load(pipeline.read_text()) or {}).get("stages") or {}
        entries = [
            (entry, name)
            for name, stage in stages.items()
            for kind in ("outs", "metrics", "plots")
            for entry in stage.get(kind, [])
        ]
        return {str(next(iter(entry)) if isinstance(entry, dict) else entry): name for entry, name in entries}
    except (FileNotFoundError, PermissionError):
        return {}
    except (yaml.YAMLError, UnicodeDecodeError, LookupError, TypeError, AttributeError) as error:
        raise ParamsError(
            f"{pipeline}: cannot tell which files are outputs ({type(error).__name__}). Mend it."
        ) from None
