"""How far two samples of feature vectors are apart: rows are cases, columns are features, in any unit.

Nothing is centred or standardised here. `mmd`, precision, recall, density and coverage know distances between rows
alone, so that neither a common shift nor a common factor changes them; `mmd` takes its unit from a third sample
(`Scale`), the same for a comparison and its floor. `kid` and `frechet` depend on the unit of the features.

`kid` sees next to nothing but the means: brains lie so close together (mean square of the features .18, their variance
.018) that its cubic kernel is a straight line there. What kernels see, 30 against 30 real cases drawn 40 times from 105
(features of three planes); each change as the rise of the score in standard deviations of its null:

| kernel | spread x .1 | x .5 | x .8 | 5 modes | 10 modes | blur SD 1 mm | half of that shift | blur SD 2 mm |
|---|---|---|---|---|---|---|---|---|
| cubic, as KID | 1.4 | 1.1 | .5 | 7.7 | 3.0 | 8.2 | 2.0 | 77 |
| cubic, centred and scaled | 2.8 | 1.9 | .7 | 12 | 5.1 | 6.1 | 1.2 | 190 |
| cubic, 20 whitened components | 3.3 | 2.3 | .9 | 21 | 8.8 | 8.4 | 1.8 | 170 |
| Gaussian, median distance | 9.4 | 5.3 | 1.4 | 9.7 | 3.7 | 7.8 | 2.0 | 60 |
| Gaussian, half of it | 55 | 23 | 3.7 | 20 | 7.7 | 7.5 | 2.0 | 39 |
| distance (energy) | 28 | 7.8 | 1.5 | 13 | 5.1 | 8.0 | 2.0 | 64 |
| Laplace, median distance (`mmd`) | 64 | 16 | 2.5 | 20 | 8.0 | 7.9 | 2.0 | 54 |

Narrower Gaussians see collapse better still and tell far clouds apart no more. Features divided by their standard
deviations gain a quarter in some columns and nothing for a blur of 1 mm, which is not worth 3840 more constants.

All intervals come from halves of both samples drawn without replacement (delete-half jackknife; Shao & Wu 1989). The
deviation of a half from the whole has variance (2/N - 1/N) s^2 = s^2/N, about that of the whole's own error; rows
drawn twice, as a bootstrap has them, would be neighbours at distance 0 and kernel values of 1. For `kid` and `mmd`
this is exact in the leading order where the distributions differ. Where they are equal that order vanishes, and the
interval is wider than need be by about the square root of 3: it then covers 0 in nearly all cases, not in 95 %.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.distance import pdist, squareform

from sbldm.metrics.intervals import Estimate, middle

__all__ = ["Scale", "frechet", "kid", "mmd", "permutation_p", "prdc"]

DRAWS = 1000
NORMAL = 1.959964  # two-sided 95 %


def kid(reference: ArrayLike, samples: ArrayLike, seed: int = 0, draws: int = DRAWS) -> Estimate:
    """Kernel inception distance (Binkowski et al. 2018): unbiased squared MMD with the kernel (x.y / D + 1)^3.

    Without bias at every N: 0 on average, hence often negative, when both are drawn alike. Of features that lie close
    together it sees the means alone (see above).

    Args:
        reference, samples: `[N, D]` and `[M, D]`, at least 2 rows each.
        draws: half-samples behind the interval, which is NaN below 4 rows.

    Raises:
        ValueError: fewer than 2 rows, other shapes, or a value that is not finite.
    """
    reference, samples = _checked(reference, samples, least=2)
    pooled = np.concatenate([reference, samples])
    kernel = (pooled @ pooled.T / pooled.shape[1] + 1) ** 3
    return _estimate(kernel, len(reference), draws, np.random.default_rng(seed))


class Scale(NamedTuple):
    """The unit that `mmd` is measured in, of real cases to which none of the compared rows need belong.

    Attributes:
        distance: median distance between two of them.
        likeness: mean kernel between two of them.
    """

    distance: float
    likeness: float

    @classmethod
    def of(cls, rows: ArrayLike) -> Scale:
        """Of `[N, D]`, at least 2 rows.

        Raises:
            ValueError: fewer than 2 rows, another shape, or a value that is not finite.
        """
        rows, _ = _checked(rows, rows, least=2)
        distances = pdist(rows)
        median = float(np.median(distances)) or 1.0
        return cls(median, float(np.exp(-distances / median).mean()))


def mmd(reference: ArrayLike, samples: ArrayLike, scale: Scale, seed: int = 0, draws: int = DRAWS) -> Estimate:
    """Unbiased squared MMD (Gretton et al. 2012) with the kernel exp(-|x - y| / median distance), as a share.

    0 on average, hence often just below, where both are drawn alike; 1 where they have nothing in common but are as
    varied as the cases of the scale; beyond 1 only where they lie apart and are less varied. In many dimensions, where
    all distances are alike: .39 for a cloud shrunk to a tenth around its centre, .09 for one of half the spread, .86 p
    for a collapse that puts the share p of all couples into one place, 1 - exp(1 - sqrt(1 + c^2)) for a shift by c
    median distances. Brains blurred by a Gaussian of 1 mm SD have about .05, of 2 mm .3.

    Args:
        reference, samples: `[N, D]` and `[M, D]`, at least 2 rows each.
        scale: of the training cases, the same for every score that is set beside this one.
        draws: half-samples behind the interval, which is NaN below 4 rows.

    Raises:
        ValueError: fewer than 2 rows, other shapes, or a value that is not finite.
    """
    kernel, n = _laplace(reference, samples, scale)
    return _estimate(kernel, n, draws, np.random.default_rng(seed))


def permutation_p(
    reference: ArrayLike, samples: ArrayLike, scale: Scale, permutations: int = 500, seed: int = 0
) -> float:
    """The p-value of "both are drawn alike" by `mmd`, which needs no approximation (Gretton et al. 2012).

    Args:
        reference, samples, scale: as for `mmd`.
        permutations: relabellings of the pooled rows; the least value is 1 / (1 + permutations).

    Raises:
        ValueError: as `mmd`.
    """
    kernel, n = _laplace(reference, samples, scale)
    ours = np.arange(len(kernel))[None] < n
    others = _subsets(n, len(kernel), permutations, np.random.default_rng(seed))
    # Relabellings that tie with the data in exact arithmetic must count, whatever the order of summation.
    count = np.sum(_squared_mmd(kernel, others, ~others) >= _squared_mmd(kernel, ours, ~ours) - 1e-12)
    return float((1 + count) / (1 + permutations))


def prdc(reference: ArrayLike, samples: ArrayLike, k: int = 5, seed: int = 0, draws: int = 300) -> dict[str, Estimate]:
    """Precision, recall (Kynkäänniemi et al. 2019), density, coverage (Naeem et al. 2020) by nearest-neighbour balls.

    A row's ball reaches to its k-th nearest other row of the same sample, that distance included. Precision: share of
    the samples inside a reference ball; density: reference balls around a sample, over k; coverage: share of the
    reference balls that hold a sample; recall: share of the reference rows inside a ball of the samples.

    Even samples drawn alike stay below 1 (about .92, .92, 1 and .97 at N = M = 100 and D = 8), and all four depend on N
    and M: give both sides, and the floor beside them, the same number of rows. Blurred samples lower recall and raise
    density; coverage they lower in few dimensions only, since balls of outlying rows reach far inwards.

    The halves behind the intervals redraw rows and radii of both sides at the same k. Their standard deviation gives
    density +- 1.96 deviations, and each share a Wilson interval at its effective number of rows, so that 0 and 1 have a
    width, too (Korn & Graubard 1998). Measured on normal samples of 50 to 100: 88 to 98 % for the shares, 89 to 97 %
    for density; too narrow for density below 20 rows or far above 1, and for all when the samples are copies of a few,
    whose own number is the true N.

    Args:
        reference, samples: `[N, D]` and `[M, D]`, at least k + 2 rows each.
        k: neighbours that a ball holds.
        draws: half-samples behind the intervals.

    Returns:
        "precision", "recall", "coverage" in 0-1, "density" from 0 without an upper bound.

    Raises:
        ValueError: fewer than k + 2 rows, other shapes, or a value that is not finite.
    """
    reference, samples = _checked(reference, samples, least=k + 2)
    distances = squareform(pdist(np.concatenate([reference, samples])))
    real, drawn = np.split(np.arange(len(distances)), [len(reference)])
    values = _neighbour_shares(distances, real, drawn, k)
    rng = np.random.default_rng(seed)
    halves = [_neighbour_shares(distances, _half(real, rng), _half(drawn, rng), k) for _ in range(draws)]
    deviations = dict(zip(values, np.std([list(half.values()) for half in halves], axis=0), strict=True))
    margin = NORMAL * float(deviations["density"])
    return {
        "precision": _wilson(values["precision"], deviations["precision"], len(drawn)),
        "recall": _wilson(values["recall"], deviations["recall"], len(real)),
        "density": Estimate(values["density"], max(0.0, values["density"] - margin), values["density"] + margin),
        "coverage": _wilson(values["coverage"], deviations["coverage"], len(real)),
    }


def frechet(reference: ArrayLike, samples: ArrayLike) -> float:
    """Fréchet distance of the Gaussians fitted to both (Heusel et al. 2017), in squared units of the features.

    |m_r - m_s|^2 + tr(S_r) + tr(S_s) - 2 tr((S_r S_s)^(1/2)). With centred rows A and B, S_r = A'A and S_s = B'B, the
    last trace is the sum of the singular values of A B', so no root of a singular matrix is taken and N < D is exact.
    The estimate itself is biased upwards, the more the smaller N against D: compare at equal N and beside a floor only.

    Args:
        reference, samples: `[N, D]` and `[M, D]`, at least 2 rows each.

    Raises:
        ValueError: fewer than 2 rows, other shapes, or a value that is not finite.
    """
    reference, samples = _checked(reference, samples, least=2)
    mean_apart = np.sum((reference.mean(axis=0) - samples.mean(axis=0)) ** 2)
    a, b = _covariance_root(reference), _covariance_root(samples)
    spread_apart = np.sum(a**2) + np.sum(b**2) - 2 * np.linalg.norm(a @ b.T, "nuc")
    return float(mean_apart + max(spread_apart, 0.0))


def _checked(reference: ArrayLike, samples: ArrayLike, least: int) -> tuple[np.ndarray, np.ndarray]:
    reference, samples = np.asarray(reference, dtype=np.float64), np.asarray(samples, dtype=np.float64)
    for name, rows in (("reference", reference), ("samples", samples)):
        if rows.ndim != 2 or rows.shape[1] == 0:
            raise ValueError(f"The features of the {name} must be [cases, features], not {list(rows.shape)}.")
        if len(rows) < least:
            raise ValueError(f"At least {least} cases are needed on each side; the {name} has {len(rows)}.")
        if not np.isfinite(rows).all():
            raise ValueError(f"The features of the {name} hold values that are not finite.")
    if reference.shape[1] != samples.shape[1]:
        raise ValueError(f"The two sides have {reference.shape[1]} and {samples.shape[1]} features.")
    return reference, samples


def _laplace(reference: ArrayLike, samples: ArrayLike, scale: Scale) -> tuple[np.ndarray, int]:
    """Kernel of the pooled rows, in shares (see `mmd`), and how many of them are of the reference."""
    reference, samples = _checked(reference, samples, least=2)
    distances = squareform(pdist(np.concatenate([reference, samples])))
    return np.exp(-distances / scale.distance) / (2 * scale.likeness), len(reference)


def _squared_mmd(kernel: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """`[S]` unbiased estimates of the kernel's `[P, P]` rows that `first` and `second`, `[S, P]` bool, pick."""
    kernel = kernel - np.diag(np.diagonal(kernel))
    first, second = first.astype(np.float64), second.astype(np.float64)
    n, m = first.sum(axis=1), second.sum(axis=1)
    from_first = first @ kernel
    within_first = np.sum(from_first * first, axis=1) / (n * (n - 1))
    within_second = np.sum((second @ kernel) * second, axis=1) / (m * (m - 1))
    return within_first + within_second - 2 * np.sum(from_first * second, axis=1) / (n * m)


def _subsets(chosen: int, total: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """`[draws, total]` bool, `chosen` of each row True, every subset as likely as another."""
    return rng.permuted(np.tile(np.arange(total) < chosen, (draws, 1)), axis=1)


def _estimate(kernel: np.ndarray, n: int, draws: int, rng: np.random.Generator) -> Estimate:
    """Squared MMD of the first `n` rows and the others, with the percentiles of those of their halves."""
    m = len(kernel) - n
    first = np.arange(len(kernel))[None] < n
    value = float(_squared_mmd(kernel, first, ~first)[0])
    if min(n, m) < 4:
        return Estimate(value, np.nan, np.nan)
    of_first = np.pad(_subsets(n // 2, n, draws, rng), ((0, 0), (0, m)))
    of_second = np.pad(_subsets(m // 2, m, draws, rng), ((0, 0), (n, 0)))
    low, high = middle(_squared_mmd(kernel, of_first, of_second))
    return Estimate(value, float(low), float(high))


def _half(rows: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return rng.choice(rows, max(2, len(rows) // 2), replace=False)


def _neighbour_shares(distances: np.ndarray, real: np.ndarray, drawn: np.ndarray, k: int) -> dict[str, float]:
    """The four scores of two sets of rows of the pooled distances `[P, P]`; a small set has fewer neighbours than k."""
    k = min(k, len(real) - 1, len(drawn) - 1)
    between = distances[np.ix_(real, drawn)]
    in_real_ball = between <= _radii(distances, real, k)[:, None]
    in_drawn_ball = between <= _radii(distances, drawn, k)
    return {
        "precision": float(in_real_ball.any(axis=0).mean()),
        "recall": float(in_drawn_ball.any(axis=1).mean()),
        "density": float(in_real_ball.sum(axis=0).mean() / k),
        "coverage": float(in_real_ball.any(axis=1).mean()),
    }


def _radii(distances: np.ndarray, rows: np.ndarray, k: int) -> np.ndarray:
    # Every row is its own nearest at distance 0, so that the k-th other one has index k.
    return np.partition(distances[np.ix_(rows, rows)], k, axis=1)[:, k]


def _wilson(share: float, deviation: float, rows: int) -> Estimate:
    """Score interval (Wilson 1927) of a share whose standard deviation may exceed that of `rows` independent rows."""
    spread = share * (1 - share)
    effective = min(rows, spread / deviation**2) if spread * deviation > 0 else rows
    scale = 1 + NORMAL**2 / effective
    centre = (share + NORMAL**2 / (2 * effective)) / scale
    margin = NORMAL / scale * np.sqrt(spread / effective + (NORMAL / (2 * effective)) ** 2)
    # Rounding may leave 0 and 1 just outside their own interval.
    return Estimate(share, float(np.clip(centre - margin, 0, share)), float(np.clip(centre + margin, share, 1)))


def _covariance_root(rows: np.ndarray) -> np.ndarray:
    """R `[min(N, D), D]` with R'R the covariance of `[N, D]`."""
    return np.linalg.qr((rows - rows.mean(axis=0)) / np.sqrt(len(rows) - 1), mode="r")
