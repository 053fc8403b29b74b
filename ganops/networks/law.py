"""The empirical law of the labels: how often each one stands among the real images, which fakes' labels are drawn by.

To draw a label is to draw a real image, all alike, and to take its label.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ganops.images.shards import Shards

MAX_ROWS = 32  # of a picture; more classes than that are not looked at one by one
# Distinct label vectors that a snapshot carries: 10 MB with 40 numbers each.
MOST_VECTORS = 65536


@dataclass(frozen=True)
class LabelVectors:
    """The law of labels that are vectors.

    Attributes:
        vectors: [K, L] float32. Distinct, in the order in which they first come; or one per image, if there are too many.
        counts: [K] int64, images with each.
    """

    vectors: NDArray[np.float32]
    counts: NDArray[np.int64]

    @cached_property
    def bounds(self) -> Tensor:
        """[K] int64, running sums of the counts."""
        return torch.from_numpy(np.cumsum(self.counts))


LabelLaw = Sequence[int] | LabelVectors
"""Images per class, () for unlabelled ones; or label vectors and how often each is there."""


def label_law(shards: Shards) -> LabelLaw:
    """The law of a set's labels. Of vectors it takes a second per million images.

    With more than `MOST_VECTORS` distinct vectors (numbers of a continuous kind) every image's own is kept, as a view of
    what is in memory already: training draws from all of them.
    """
    labels = shards.labels
    if labels.ndim == 1:
        return shards.index.class_counts
    vectors = labels.astype(np.float32, copy=False)
    found: dict[bytes, int] = {}
    places: list[int] = []
    for place, vector in enumerate(vectors):
        key = vector.tobytes()
        if key not in found:
            if len(places) == MOST_VECTORS:
                return LabelVectors(vectors, np.ones(len(vectors), np.int64))
            places.append(place)
        found[key] = found.get(key, 0) + 1
    return LabelVectors(vectors[places], np.array(list(found.values()), np.int64))


def bounded(law: LabelLaw) -> LabelLaw:
    """The law that a snapshot carries, and that metrics and samples are drawn by.

    At most `MOST_VECTORS` vectors. If there are more, so many of them, spread evenly over the images: of 10 million
    different ones the 65,536 at every 152nd image. Samples then have labels of the data, but only these.
    """
    if not isinstance(law, LabelVectors) or len(law.counts) <= MOST_VECTORS:
        return law
    chosen = np.arange(MOST_VECTORS, dtype=np.int64) * len(law.counts) // MOST_VECTORS
    return LabelVectors(law.vectors[chosen], law.counts[chosen])


def total_of(law: LabelLaw) -> int:
    """Images that the law is of; 0 without labels."""
    return int(law.bounds[-1]) if isinstance(law, LabelVectors) else sum(law)


def draw_places(law: LabelLaw, count: int, rng: torch.Generator) -> Tensor:
    """Real images, drawn uniformly: [count] int64 on the CPU, for `labels_at`. `rng` is on the CPU."""
    return torch.randint(total_of(law), [count], generator=rng)


def labels_at(law: LabelLaw, places: Tensor) -> Tensor:
    """The labels of real images, which are numbered label by label.

    Args:
        law: with labels.
        places: [n] int64 in 0 .. total_of(law) - 1.
    Returns:
        [n] int64 classes, or [n, L] float32 vectors; on the CPU.
    """
    if not isinstance(law, LabelVectors):
        return torch.searchsorted(torch.tensor(law, dtype=torch.int64).cumsum(0), places, right=True)
    indices = torch.searchsorted(law.bounds, places, right=True)
    return torch.from_numpy(law.vectors[indices.numpy()])


def grid_labels(law: LabelLaw) -> Tensor:
    """The labels of a picture's rows: at most `MAX_ROWS`, none without labels.

    Returns:
        [n] int64, the first classes; or [n, L] float32, the most frequent vectors (of equally frequent ones those that
        come first in the data). Not each attribute alone: most data hold no image with just one.
    """
    if not isinstance(law, LabelVectors):
        return torch.arange(min(len(law), MAX_ROWS))
    order = np.argsort(-law.counts, kind="stable")[:MAX_ROWS]
    return torch.from_numpy(law.vectors[order])
