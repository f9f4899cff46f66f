"""Copies in the feature space of a network."""

from __future__ import annotations

import numpy as np
from scipy.spatial.distance import cdist

__all__ = ["authenticity", "feature_ratio"]


def feature_ratio(samples: np.ndarray, train: np.ndarray, heldout: np.ndarray) -> np.ndarray:
    """Distance to the nearest training vector over that to the nearest held-back vector: 1 if honest, 0 for copies.

    The nearest of more is nearer. So the distance to the larger set is multiplied by what it would grow by, for real
    vectors of the smaller set, if the larger set were cut to that size at random: the mean over all such subsets, in
    closed form. (Cutting the set for the samples themselves would hide each copy whose original is cut away.)

    Args:
        samples: `[N, D]`.
        train: `[T, D]`, T >= 1.
        heldout: `[H, D]`, H >= 1.

    Returns:
        `[N]`. Its median says little: with a quarter of copies it is still near 1; look at the lowest quantiles.
    """
    to_train, to_heldout = (cdist(samples, real).min(axis=1) for real in (train, heldout))
    if len(train) > len(heldout):
        to_train = to_train * _growth(heldout, train)
    else:
        to_heldout = to_heldout * _growth(train, heldout)
    return to_train / np.maximum(to_heldout, np.finfo(float).tiny)


def _growth(few: np.ndarray, many: np.ndarray) -> float:
    """Mean distance of few vectors to the nearest in a random subset of many, as large as the few, over that in all."""
    n, size = len(many), len(few)
    distances = np.sort(cdist(few, many), axis=1)
    # The k-th nearest is the nearest in the subset when it is drawn and all nearer ones are not.
    skipped = np.arange(n - size)
    chance = size / n * np.cumprod(np.concatenate([[1.0], (n - size - skipped) / (n - 1 - skipped)]))
    return float((distances[:, : n - size + 1] @ chance).mean() / max(distances[:, 0].mean(), np.finfo(float).tiny))


def authenticity(samples: np.ndarray, train: np.ndarray) -> np.ndarray:
    """AuthPct: which samples are farther from their nearest training vector than that is from its own nearest one.

    Alaa et al. 2022, "How faithful is your synthetic data?". About 0.6 of the vectors from the training distribution
    are, not all, and of copies none; of vectors in the middle of the cloud, such as of over-smooth images, few too.

    Args:
        samples: `[N, D]`.
        train: `[T, D]`, T >= 2.

    Returns:
        `[N]` bool.
    """
    among = cdist(train, train)
    np.fill_diagonal(among, np.inf)
    distances = cdist(samples, train)
    return distances.min(axis=1) > among.min(axis=1)[distances.argmin(axis=1)]
