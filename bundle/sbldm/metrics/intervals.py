"""Numbers with their intervals."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

__all__ = ["Estimate", "mean_estimate", "middle"]


class Estimate(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def middle(draws: np.ndarray) -> np.ndarray:
    """Ends of the middle 95 % of draws `[N]`, a percentile interval (Efron & Tibshirani 1993); NaN where one is."""
    return np.quantile(draws, [0.025, 0.975])


def mean_estimate(values: np.ndarray, seed: int = 0, draws: int = 2000) -> Estimate:
    """Mean of `[N]`, N >= 1, with the percentile interval of a bootstrap over its entries."""
    values = np.asarray(values, dtype=np.float64)
    # Not scipy.stats.bootstrap: the same draws, but it takes no single value, and its ends differ in the last digits.
    index = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    low, high = middle(values[index].mean(axis=1))
    return Estimate(float(values.mean()), float(low), float(high))
