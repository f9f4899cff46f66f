"""How near is too near: limits that are measured on honest cases, for brains and tumours alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import binomtest, gumbel_r

from sbldm.metrics.intervals import Estimate, middle
from sbldm.run.errors import StateError
from sbldm.run.files import cached_npz

__all__ = [
    "LEAST_TRAIN",
    "SURE",
    "VERSION",
    "Nearest",
    "copy_rate",
    "excess_of",
    "limits_of",
    "near_floor",
    "plain_values",
    "read_memory",
    "too_many_copies",
    "unreadable",
    "yardstick_of",
]

LEAST_HELDOUT, LEAST_TRAIN = 10, 3
NEAR = 0.95
SURE = 0.001  # share of honest pairs beyond the limit for copies
COPY = round((gumbel_r.ppf(1 - SURE) - gumbel_r.mean()) / gumbel_r.std(), 2)  # SD above the mean: 4.94
NEXT = 5  # training cases that the nearest one is set against
REPEAT, PLAIN = 6.0, 0.3  # robust SD and z beyond which a held-back case is a training case under another name
VERSION = 3


class Nearest(NamedTuple):
    """The nearest training case of one brain: its name, their correlation, and its excess over the next five."""

    name: str
    correlation: float
    excess: float


def excess_of(correlations: np.ndarray) -> float:
    """By how much the largest of correlations `[N]` exceeds the mean of the next five, after Fisher's z transform."""
    first, *others = _fisher(np.sort(correlations)[::-1][: 1 + NEXT])
    return float(np.tanh(first - np.mean(others)))


def read_memory(path: Path) -> dict[str, Any]:
    """Arrays of a memory of this version."""
    content = dict(cached_npz(path) or {})
    version = content.pop("version", None)
    if version != VERSION:
        raise unreadable(path, "missing or damaged" if version is None else "of another version")
    return content


def plain_values(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: content[key].item() for key in ("near", "copy", "calibration", "honest")}


def unreadable(path: Path, why: Any) -> StateError:
    return StateError(f"{path}: no memory of training cases can be read ({why}); remove and rebuild it.")


def yardstick_of(measured: np.ndarray, leave_one_out: Callable[[], np.ndarray]) -> tuple[np.ndarray, str]:
    """Excess of honest cases: the held-back ones `measured`, or training cases where these are too few; and in words.

    Those that must be a training case under another name are left out.
    """
    enough = len(measured) >= LEAST_HELDOUT
    each = measured if enough else leave_one_out()
    honest = _without_repeats(each)
    calibration = f"{len(honest)} {'held-back cases' if enough else 'training cases, each against the others'}"
    if len(honest) < len(each):
        calibration += f" ({len(each) - len(honest)} more seem to be a training case under another name: left out)"
    return honest, calibration


def _fisher(values: np.ndarray) -> np.ndarray:
    return np.arctanh(np.minimum(values, 1 - 1e-6))


def _without_repeats(values: np.ndarray) -> np.ndarray:
    """Without those so large that they must belong to one person scanned, or listed, twice."""
    z = _fisher(values)
    spread = 1.4826 * np.median(np.abs(z - np.median(z)))
    return values[z <= max(np.median(z) + REPEAT * spread, PLAIN)]  # of few values the spread can be small by chance


def limits_of(honest: np.ndarray) -> tuple[float, float]:
    """`near` and `copy` (see `Memory`)."""
    z = _fisher(honest)
    near = float(np.quantile(honest, NEAR, method="weibull"))
    return near, max(float(honest.max()), float(np.tanh(z.mean() + COPY * z.std(ddof=1))))


def copy_rate(values: np.ndarray, threshold: float) -> tuple[int, Estimate]:
    """How many of values `[N]`, N >= 1, exceed a limit, and their share with its exact 95 % interval.

    Clopper & Pearson 1934. The interval covers the chance in the pairs, not that in the limit.
    """
    count, n = int((np.asarray(values) > threshold).sum()), len(values)
    interval = binomtest(count, n).proportion_ci(0.95, "exact")
    return count, Estimate(count / n, float(interval.low), float(interval.high))


def near_floor(pairs: int, honest: int, seed: int = 0) -> Estimate:
    """Share of `pairs` honest pairs beyond `Memory.near`, which was measured on so many honest brains.

    The mean and the middle 95 % of shares: 5 % on average (1 / (M + 1) of fewer than 19), but one limit measured on few
    brains can lie low, and then all pairs have it against them.
    """
    random = np.random.default_rng(seed)
    limits = np.quantile(random.uniform(size=(4000, honest)), NEAR, axis=1, method="weibull")
    low, high = middle(random.binomial(pairs, 1 - limits) / pairs)
    return Estimate(max(1 - NEAR, 1 / (honest + 1)), float(low), float(high))


def too_many_copies(near: Sequence[bool | None], honest_cases: int) -> str:
    """Say so when more pairs look near to a training case than an honest generator would have (`near_floor`).

    Args:
        near: whether each pair is nearer to a training case than 95 % of held-back cases; None counts for nothing.
        honest_cases: on how many brains nearness was measured.
    """
    near = [found for found in near if found is not None]
    if not near or not honest_cases:
        return ""
    most = near_floor(len(near), honest_cases).high
    if sum(near) <= most * len(near):
        return ""
    return (
        f"{sum(near)} of {len(near)} pairs are nearer to a training case than 95 % of {honest_cases} other cases are; "
        f"an honest generator would have {most * len(near):.0f} at most"
    )
