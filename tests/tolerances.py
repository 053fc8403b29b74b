"""The one table of tolerances. A test that compares numbers takes its tolerance from here, by name.

An error is relative to the largest magnitude in the expected array: max |a - b| / max |b|.
"""

from typing import Any

import numpy as np
import torch

TOLERANCES: dict[str, float] = {
    # float64 against golden numbers made by another order of the same operations; measured up to 6e-15.
    "golden_float64": 1e-10,
    # float32 against golden float32 numbers: rounding of 2^-24, summed over a dozen layers; measured up to 6e-6.
    "golden_float32": 1e-4,
    # Gradients in float32 against golden ones. A sum of 6e-7 before a leaky ReLU that rounds to the other side of zero
    # multiplies one pixel's gradient by five (found: one of 262,144 in D's first layer); measured up to 4e-4. What is
    # exact about gradients is held in float64.
    "golden_gradient_float32": 2e-3,
    # Golden filters are stored in float32, ours are rounded from float64 once: at most one unit in the last place.
    "filter_float32": 1.2e-7,
    # Fast op against its reference twin, both float64: other order of sums; measured up to 3e-15.
    "twin_float64": 1e-12,
    # The same in float32; measured up to 7e-8.
    "twin_float32": 1e-5,
    # One operation in bfloat16 (8 bits of mantissa) or float16 (11) against float64; measured up to 3e-3.
    "twin_bfloat16": 2e-2,
    # Its gradients of orders 1 and 2, each a chain of such operations; measured up to 0.03 with plain operations.
    "gradients_bfloat16": 1.5e-1,
    # A small network, forward and backward, two of three resolutions in 11 bits of mantissa; measured up to 0.013.
    "network_float16": 3e-2,
    # The same in 8 bits; measured up to 0.07.
    "network_bfloat16": 1.5e-1,
    # torch against an explicit numpy loop, both float64; measured up to 4e-16.
    "loop_float64": 1e-12,
    # A derivative against central differences with step 1e-6 in float64: the difference of two nearly equal numbers
    # loses ten digits; measured 9e-7.
    "central_difference": 1e-5,
    # Independence of the scale of z, broken by the 1e-8 under the root of the normalisation; measured 1.4e-8.
    "normalized_scale": 1e-6,
    # Weights after 20 steps by 2, 3 or 4 ranks against 1: gradients are added in another order (2^-24 each), and Adam,
    # which divides by their size, passes a rounding error of a tiny gradient on as one of a step; measured up to 1.2e-5.
    "ranks_float32": 1e-4,
    # The same in float64; measured up to 1.3e-14.
    "ranks_float64": 1e-9,
    # Weights after 4 steps by networks that torch compiled against eager mode: other orders of sums,
    # passed on by Adam; measured up to 3.1e-6.
    "compiled_float32": 1e-4,
    # Weights after 50 steps with kernels and with plain operations: other rounding, which Adam passes on as for ranks, for
    # more than twice as many steps; on a CPU, where only bias_act differs, measured 5e-9, on a GPU not yet.
    "steps_float32": 1e-3,
    # Features of a deep network by another device's convolutions, float32; on a GPU not measured yet (on a CPU, folding
    # batch norms moves them by 5e-6).
    "features_cuda": 1e-3,
    # The same network in 8 bits of mantissa, random images; on a CPU measured 0.06 (EfficientNet), 0.03 (random Inception).
    "features_bfloat16": 2e-1,
    # Affine maps of images against an own evaluation, both float64: its places of doubled pixels come from the published
    # taps, whose moments are exact to eleven digits; measured up to 1.1e-9.
    "resampled_float64": 1e-8,
    # Augmentations and their first and second gradients of fourth powers in float32 on CUDA against the CPU in float64:
    # places are rounded to 1e-6 px of a small image, and what is sampled there is multiplied by contrast, again in each
    # gradient; on a GPU not measured yet, on a CPU up to 7e-6.
    "augment_float32": 1e-4,
    # A smooth picture that is flipped and turned by way of twice the resolution, against exact flips and turns: what the
    # filters lose; measured up to 2.2e-3. Were their centre off by a tenth of a pixel, 3e-2.
    "resampled_smooth": 5e-3,
    # A small network against one of plain numpy loops, both float64: sums of other orders, norms; measured 4e-15.
    "network_loop_float64": 1e-10,
    # A growing network 1e-9 before and behind a whole lod; measured up to 2.3e-9.
    "fade_edge": 1e-7,
    # Eigenvectors of a product of matrices against singular vectors of the matrix, float64; measured 8e-15.
    "eigenvectors_float64": 1e-10,
    # Exported networks run by TorchScript and onnxruntime: other orders of sums; measured up to 1e-6.
    # Exported networks run by TorchScript and onnxruntime: other orders of sums; measured up to 7e-7.
    "exported_float32": 1e-5,
    # Closed forms in float64; measured up to 2e-16.
    "closed_form_float64": 1e-12,
}


def relative_error(actual: Any, expected: Any) -> float:
    """max |actual - expected| / max |expected|, in float64; infinite where shapes or finiteness differ."""
    a, b = (
        x.detach().to("cpu", torch.float64).numpy() if isinstance(x, torch.Tensor) else np.asarray(x, np.float64)
        for x in (actual, expected)
    )
    if a.shape != b.shape or not np.isfinite(a).all() or not np.isfinite(b).all():
        return float("inf")
    if not a.size:
        return 0.0
    scale = float(np.abs(b).max())
    return float(np.abs(a - b).max()) / (scale or 1.0)


def assert_close(actual: Any, expected: Any, tolerance: str, what: str = "") -> None:
    """Fails with the measured error if it is above the named tolerance."""
    error = relative_error(actual, expected)
    assert error <= TOLERANCES[tolerance], (
        f"{what}: relative error {error:.3g} > {TOLERANCES[tolerance]:g} ({tolerance})"
    )
