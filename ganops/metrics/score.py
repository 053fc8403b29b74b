"""The Inception Score."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def inception_score(logits: NDArray[np.floating[Any]], splits: int = 10) -> tuple[float, float]:
    """exp of the mean divergence KL(p(class | image) || p(class)), where p(class) is the images' mean.

    Taken over contiguous parts of the images, as the field does: for fewer images per part it is smaller, so only
    scores of equally many images and parts compare.

    Args:
        logits: [N, K], in random order.
        splits: parts, between 1 and N.
    Returns:
        Mean and standard deviation over the parts; the mean lies between 1 and K.
    Raises:
        ValueError: not [N, K], a number is not finite, or fewer images than parts.
    Source: Salimans et al. 2016.
    """
    if logits.ndim != 2 or not logits.size or not 1 <= splits <= len(logits):
        raise ValueError(f"logits {logits.shape} do not make {splits} parts of images")
    if not np.isfinite(logits).all():
        raise ValueError("logits are not finite")
    scores = [_score(logits[i * len(logits) // splits : (i + 1) * len(logits) // splits]) for i in range(splits)]
    return float(np.mean(scores)), float(np.std(scores))


def _score(logits: NDArray[np.floating[Any]]) -> float:
    shifted = logits.astype(np.float64) - logits.max(1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    p = np.exp(log_p)
    mean = p.mean(0)
    # A class that underflows to 0 throughout adds nothing: 0 log 0 = 0.
    log_mean = np.log(np.where(mean > 0, mean, 1.0))
    return float(np.exp((p * (log_p - log_mean)).sum(1).mean()))
