"""Devices, and seeds that are a pure function of what they are for.

Nothing in ganops keeps a random state: a generator is made where it is used, from (seed, what, where in
training), so a resumed run draws what an uninterrupted one would have drawn.
"""

import ctypes
import hashlib
import os
import sys

import threadpoolctl
import torch

from ganops.errors import ParamsError


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from `parts`, e.g. (train.seed, "Gmain", nimg, micro_batch). Different parts, unrelated seeds."""
    text = "/".join(f"{type(part).__name__}:{part}" for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def make_generator(device: torch.device, *parts: int | str) -> torch.Generator:
    """A fresh generator on `device`, seeded by `derive_seed(*parts)`. CPU and CUDA streams differ."""
    return torch.Generator(device).manual_seed(derive_seed(*parts))


def select_device(device: str, cpu_threads: int) -> torch.device:
    """The device for `run.device` (auto, cpu, cuda); sets the number of CPU threads of this process, of torch and of numpy.

    Raises:
        ParamsError: `run.device: cuda` on a machine without a usable CUDA device.
    """
    torch.set_num_threads(cpu_threads)
    threadpoolctl.threadpool_limits(cpu_threads)  # numpy's BLAS too: its sums depend on the number of threads
    keep_freed_memory()
    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ParamsError("run.device=cuda, but torch finds no CUDA device here. Set run.device: auto or cpu.")
    return torch.device("cuda" if available and device != "cpu" else "cpu")


def keep_freed_memory() -> None:
    """Lets glibc keep freed tensors instead of giving every large one back to the kernel.

    Each large tensor otherwise costs its page faults again: measured, feature extraction at 128 px takes twice as long.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        if hasattr(libc, "mallopt"):  # glibc; musl has none
            for parameter, value in ((-3, 1 << 30), (-1, (1 << 31) - 1), (-2, 256 << 20)):  # mmap, trim, top pad
                libc.mallopt(parameter, value)


def configure_numerics(tf32: bool, deterministic: bool) -> None:
    """Sets what CUDA may do to float32 (`train.tf32`) and whether it must repeat itself bit for bit.

    Without `deterministic`, sums in CUDA's backward passes are in any order and a resumed run is equal only to rounding.
    """
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = False
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs it for determinism
    torch.use_deterministic_algorithms(deterministic)
