"""Float32 that is float32, for numbers that are compared."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """What makes float32 results exact to rounding and repeatable, for as long as the block lasts.

    TensorFloat-32 is off: its ten bits of mantissa would move features by more than rounding, and drown small steps. The
    same kernel runs every time. TorchScript runs a graph as it stands: its profiling executor rewrites it after the
    first calls, so later batches would round differently.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic
    matmul.allow_tf32 = cudnn.allow_tf32 = False
    cudnn.deterministic = True
    try:
        with torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.deterministic = before
