"""Whether two image channels of one case fit each other."""

from __future__ import annotations

import numpy as np
from skimage.metrics import normalized_mutual_information

from sbldm.metrics.volumes import PERCENTILES

__all__ = ["channel_fit"]

BINS = 64


def channel_fit(first: np.ndarray, second: np.ndarray) -> float:
    """Normalised mutual information of two channels over the brain: 1 where they have nothing in common, 2 where equal.

    (H(A) + H(B)) / H(A, B) of 64 bins each (Studholme, Hill & Hawkes, Pattern Recognit. 32, 1999). It falls when the
    channels are of different brains, or do not lie on each other.

    Args:
        first, second: `[X, Y, Z]` on one grid, in any units, background exactly 0.

    Raises:
        ValueError: the shapes differ, or no voxel is brain in both.
    """
    if first.shape != second.shape:
        raise ValueError(f"The shapes differ: {first.shape} and {second.shape}.")
    brain = (first != 0) & (second != 0)
    if not brain.any():
        raise ValueError("No voxel is brain in both channels.")
    inside = [channel[brain].clip(*np.percentile(channel[brain], PERCENTILES)) for channel in (first, second)]
    return float(normalized_mutual_information(*inside, bins=BINS))
