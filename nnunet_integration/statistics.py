"""Whether one arm scores higher than another, from scores [seeds, cases] in which higher is better.

Scores in which lower is better (HD95) are passed with their sign changed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from scipy import stats

__all__ = ["detectable_difference", "holm", "mean_and_spreads", "paired_difference", "verdict", "wilcoxon_p"]


def _sd(values: np.ndarray) -> float:
    """Sample standard deviation of [N]; NaN of a single value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def mean_and_spreads(scores: np.ndarray) -> dict[str, float]:
    """Mean of scores [S, C] of S seeds and C cases, and what varies how much, in the unit of the scores.

    Returns:
        mean; sd_cases, the sample SD over cases of each case's mean over seeds; sd_trainings, the sample SD over seeds
        of each seed's mean over cases. A spread of a single value is NaN.
    """
    return {"mean": float(scores.mean()), "sd_cases": _sd(scores.mean(0)), "sd_trainings": _sd(scores.mean(1))}


def paired_difference(
    scores: np.ndarray, baseline: np.ndarray, draws: int = 10_000, seed: int = 0, level: float = 0.95
) -> dict[str, float]:
    """Mean difference between two arms, with the percentile interval of a hierarchical bootstrap.

    In each draw the cases are drawn with replacement, the same for both arms (paired), and the seeds with replacement
    in each arm by itself. An arm with one seed adds no spread of seeds, and one with few adds (S - 1) / S of its
    variance: the interval is then somewhat too narrow.

    Source: Efron & Tibshirani, An Introduction to the Bootstrap (1993), ch. 13.

    Args:
        scores: [S1, C], seeds by cases.
        baseline: [S2, C], the same cases in the same order.
        draws: number of bootstrap draws; memory is about 24 bytes times draws times C.
        seed: of the draws.
        level: coverage of the interval.

    Returns:
        difference (scores - baseline), low and high, in the unit of the scores.

    Raises:
        ValueError: the numbers of cases differ.
    """
    if scores.shape[1] != baseline.shape[1]:
        raise ValueError(f"Not the same cases: {scores.shape[1]} and {baseline.shape[1]}.")
    random = np.random.default_rng(seed)

    def weights(n: int) -> np.ndarray:  # [draws, n]: how often each of n is drawn, as a share
        return random.multinomial(n, np.full(n, 1 / n), size=draws) / n

    gaps = weights(len(scores)) @ scores - weights(len(baseline)) @ baseline
    drawn = np.einsum("dc,dc->d", weights(scores.shape[1]), gaps)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return {"difference": float(scores.mean() - baseline.mean()), "low": float(low), "high": float(high)}


def wilcoxon_p(differences: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test of paired differences [C].

    Zeros are left out (Wilcoxon's own rule), and what differs from zero by rounding alone is one; all zero give 1.
    """
    differences = np.round(differences, 12)
    return float(stats.wilcoxon(differences).pvalue) if differences.any() else 1.0


def holm(p: Mapping[str, float]) -> dict[str, float]:
    """Adjust p values for the number of tests by Holm's step-down rule (Scand. J. Stat. 6, 1979).

    Returns:
        The same keys in the same order; NaN stays and does not count as a test.
    """
    adjusted, largest = dict(p), 0.0
    tests = sorted((name for name in p if not math.isnan(p[name])), key=p.__getitem__)
    for place, name in enumerate(tests):
        largest = adjusted[name] = max(largest, min(1.0, (len(tests) - place) * p[name]))
    return adjusted


def detectable_difference(differences: np.ndarray, power: float = 0.8, alpha: float = 0.05) -> float:
    """Smallest true mean of paired differences [C] that a two-sided test of so many cases shows with this power.

    (z of 1 - alpha / 2 plus z of the power) times SD / sqrt(C), in the unit of the differences; NaN for one case.
    """
    z = stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(power)
    return float(z * _sd(differences) / math.sqrt(len(differences)))


def verdict(difference: float, low: float, high: float, p: float, alpha: float = 0.05) -> str:
    """Say "better" or "worse" when the interval leaves out 0 on that side and p < alpha, else "within noise"."""
    if p < alpha and min(difference, low) > 0:
        return "better"
    return "worse" if p < alpha and max(difference, high) < 0 else "within noise"
