"""One thread per test process: the tests run on all cores already (pytest-xdist), and more threads only wait."""

import os
import signal

import threadpoolctl
import torch

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # of processes that tests start
torch.set_num_threads(1)
threadpoolctl.threadpool_limits(1)
# A shell's background jobs ignore Ctrl-C, and so would every process that tests start and send one to.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers() -> int:
    """One process more than there are cores: tests of whole pipelines wait for others half of their time."""
    return (os.cpu_count() or 1) + 1
