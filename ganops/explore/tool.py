"""How a tool starts and ends: its paths from the command line, its values from params.yaml, one line for what goes wrong."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import torch

from ganops.config import Params, load_params
from ganops.errors import GanopsError, Interrupted
from ganops.launch import print_error


def run_tool(name: str, usage: str, main: Callable[[Params, list[Path]], None], resumable: bool) -> None:
    """Runs `main`; a mistake ends in one line on stderr and exit code 1, an interruption in 130 or 143.

    Args:
        name: of the tool: python -m stages.NAME.
        usage: the names of its paths, in words, e.g. "SNAPSHOT FOLDER".
        main: what to do with params.yaml and as many paths.
        resumable: what was written before an interruption stays, and the same command uses or replaces it.
    """
    if len(sys.argv) - 1 != len(usage.split()):
        sys.exit(f"usage: python -m stages.{name} {usage}")
    signal.signal(signal.SIGTERM, _raise_interrupted)
    message, code = "", 0
    rest = " What is written is whole; run the same command again." if resumable else " Nothing was written."
    try:
        main(load_params(Path("params.yaml")), [Path(text) for text in sys.argv[1:]])
    except KeyboardInterrupt:
        message, code = f"interrupted.{rest}", 130
    except Interrupted as error:
        message, code = f"{error}.{rest}", 128 + error.signum
    except (GanopsError, OSError) as error:
        message, code = str(error), 1
    except (MemoryError, torch.OutOfMemoryError):
        remedy = "take a smaller network" if name == "project" else f"lower {name}.batch_size"
        message, code = f"out of memory. Close other programs, or {remedy}.", 1
    if code:
        print_error(f"{name}: {message}")
        sys.exit(code)


def _raise_interrupted(signum: int, _frame: FrameType | None) -> None:
    signal.signal(signum, signal.SIG_IGN)
    raise Interrupted(f"stopped by {signal.Signals(signum).name}", signum)
