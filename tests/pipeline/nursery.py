"""Forks stages from a process that has imported torch already: `python -m tests.pipeline.nursery`.

A start costs tenths of a second instead of seconds, and there are dozens in these tests. Nothing of this project is
imported before the fork: a stage gets the modules of the folder that it runs in, as `python -m stages.NAME` there does.
Reads a JSON object a line: `module`, `folder`, `environment`, `stdout` and `stderr` (files), `timeout_sec`. Answers with the
exit code.
"""

import ctypes
import importlib
import json
import os
import runpy
import signal
import sys
import traceback
from typing import Any

PRELOADED = (
    "h5py", "numpy", "PIL.Image", "pydantic", "safetensors.torch", "torch", "torch._dynamo", "torch.distributed.run",
    "torch.utils.tensorboard", "tqdm", "yaml",
)  # fmt: skip
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    for name in PRELOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            run_child(json.loads(line))
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def run_child(order: dict[str, Any]) -> None:
    """What `python -m MODULE` does in the folder, in a process group of its own; never returns."""
    code = 1
    try:
        os.setsid()
        signal.alarm(int(order["timeout_sec"]))
        os.chdir(order["folder"])
        os.environ.clear()
        os.environ.update(order["environment"])
        for number, path in ((0, os.devnull), (1, order["stdout"]), (2, order["stderr"])):
            os.dup2(os.open(path, os.O_RDWR | os.O_APPEND), number)
        sys.path[0] = order["folder"]
        sys.argv = [order["module"]]
        runpy.run_module(order["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    main()
