"""Which form the ops have on CUDA: our kernels, or plain torch operations (`run.ops`)."""

from typing import Literal

import torch
from torch import Tensor

from ganops.entry import say
from ganops.errors import OpsError
from ganops.ops import _build

OpsMode = Literal["auto", "cuda", "reference"]

_mode: list[OpsMode] = ["auto"]
_loaded: list[bool] = []  # empty until the first use on CUDA


def choose_ops(mode: OpsMode, device: torch.device) -> None:
    """Sets what `run.ops` says for this process; on CUDA it builds and loads the kernels at once.

    Args:
        mode: "auto" takes the kernels, or plain torch operations where they cannot be built; "cuda" fails instead;
            "reference" takes plain torch operations.
        device: where the ops will run. On a CPU all three are the same.
    Raises:
        OpsError: mode is "cuda" and the kernels cannot be built; says why and what to do.
    """
    _mode[0] = mode
    _loaded.clear()
    if device.type == "cuda":
        _load()


def use_kernels(x: Tensor) -> bool:
    """Whether an op on `x` runs by a kernel; builds and loads them at the first CUDA tensor."""
    if not x.is_cuda:
        return False
    return _loaded[0] if _loaded else _load()


def memory_format(x: Tensor) -> torch.memory_format:
    """Of the result of an op on x: channels_last if x is so and not contiguous as well, else contiguous."""
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format


def _load() -> bool:
    if _mode[0] == "reference":
        _loaded.append(False)
        return False
    try:
        _build.load()
    except OpsError as error:
        if _mode[0] == "cuda":
            raise
        say(
            f"ops: WARNING: no CUDA kernels, so plain torch operations run instead: the same numbers up to rounding, but "
            f"slower and with more memory. {error} `python -m ganops.ops` shows what each op costs."
        )
        _loaded.append(False)
        return False
    _loaded.append(True)
    return True
