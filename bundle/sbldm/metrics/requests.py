"""Whether pairs are what was asked for: requested against measured characteristics, with a control beside them.

Arrays hold one pair a row and the nine characteristics of `sbldm.tumour.characteristics.NAMES` in ml, mm2, 1 and mm,
then shares of tissues in per cent, where there are any.
Bounding boxes are put around the centres of mass, as no request says where in its box a tumour's centre lies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.stats import rankdata

from sbldm.metrics.intervals import Estimate
from sbldm.tumour.characteristics import NAMES

__all__ = ["fidelity", "shuffled", "spread"]

VOLUME, SURFACE, SPHERICITY, CENTRE, EXTENTS = 0, 1, 2, slice(3, 6), slice(6, 9)
SIZES = np.delete(np.arange(len(NAMES)), CENTRE)
DRAWS = 1000


def fidelity(requested: np.ndarray, measured: np.ndarray, names: Sequence[str] = NAMES) -> dict[str, Estimate]:
    """How closely pairs follow their requests, with percentile intervals of a bootstrap over pairs.

    The intervals (Efron & Tibshirani 1993) of slopes cover about 95 % from 50 pairs, but 90 to 92 % of 12 to 25.

    Args:
        requested: `[N, K]`.
        measured: `[N, K]` of the same pairs.
        names: of these characteristics, the nine first.

    Returns:
        For volume, sphericity, x, y, z, w, h, d and shares (core, enhancing): `*_slope`, least squares of measured on
        requested (volumes as logarithms), 1 where requests are followed and 0 where they are not; `*_spearman`, rank
        correlation. A slope is left out where requests do not vary, a rank correlation where either does not.
        volume_error: median of |V measured / V requested - 1|; volume_bias: mean of ln(V measured / V requested);
        centre_mm: median distance of the centres of mass; extents_mm: median over pairs of the mean absolute error of
        the three extents; box_iou: median intersection over union of the bounding boxes (Jaccard 1912);
        sphericity_error: median absolute difference; core_error and enhancing_error: the same, in percentage points.

    Raises:
        ValueError: fewer than three pairs, unequal shapes, or values that are not finite or sizes not positive.
    """
    requested, measured = _check(requested, measured)
    index = np.random.default_rng(0).integers(len(requested), size=(DRAWS, len(requested)))
    draws = _scores(requested[index], measured[index], names)
    found = {}
    for name, value in _scores(requested, measured, names).items():
        if not np.isnan(value):
            low, high = np.nanquantile(draws[name], [0.025, 0.975])  # NaN: a draw of equal requests alone
            found[name] = Estimate(float(value), float(low), float(high))
    return found


def shuffled(
    requested: np.ndarray, measured: np.ndarray, names: Sequence[str] = NAMES, seed: int = 0, draws: int = 200
) -> dict[str, float]:
    """The control of `fidelity`: its scores with requests exchanged between pairs, the mean over `draws` permutations.

    What a generator reaches that draws such tumours but ignores the request: slopes and rank correlations are 0.

    Raises:
        ValueError: as `fidelity`.
    """
    requested, measured = _check(requested, measured)
    index = np.random.default_rng(seed).permuted(np.tile(np.arange(len(requested)), (draws, 1)), axis=1)
    scores = _scores(requested[index], measured, names)
    return {name: float(values.mean()) for name, values in scores.items() if not np.isnan(values).any()}


def spread(requested: np.ndarray, measured: np.ndarray) -> dict[str, float] | None:
    """How far pairs of one and the same request differ: near 0, all seeds make one tumour (collapse).

    Args:
        requested: `[N, K]`; three or more equal rows are a group, all others are passed over.
        measured: `[N, K]` of the same pairs.

    Returns:
        groups and pairs: how many groups there are, and pairs in them; volume_sd: pooled SD of ln V within groups;
        centre_sd_mm: of the centre of mass, root of the three axes' summed variances; volume_share and centre_share:
        both over the SD of all `N` pairs (NaN where that is 0): near 1, the request decides nothing, and with a single
        group of all pairs 1 whatever they are. None when no request comes three times.

    Raises:
        ValueError: as `fidelity`.
    """
    requested, measured = _check(requested, measured)
    _, group, sizes = np.unique(requested, axis=0, return_inverse=True, return_counts=True)
    group = group.ravel()
    chosen = np.flatnonzero(sizes >= 3)
    if not len(chosen):
        return None
    values = np.concatenate([np.log(measured[:, [VOLUME]]), measured[:, CENTRE]], axis=1)
    values -= values[0]  # no rounding makes a spread of equal values
    within = sum(((part - part.mean(axis=0)) ** 2).sum(axis=0) for part in (values[group == k] for k in chosen))
    pairs = int(sizes[chosen].sum())
    volume, centre = _deviations(within / (pairs - len(chosen)))
    all_volume, all_centre = _deviations(values.var(axis=0, ddof=1))
    return {
        "groups": float(len(chosen)),
        "pairs": float(pairs),
        "volume_sd": volume,
        "centre_sd_mm": centre,
        "volume_share": volume / all_volume if all_volume else math.nan,
        "centre_share": centre / all_centre if all_centre else math.nan,
    }


def _deviations(variances: np.ndarray) -> tuple[float, float]:
    """SD of ln V and of the centre from the variances `[4]` of both."""
    return math.sqrt(variances[0]), math.sqrt(variances[1:].sum())


def _check(requested: np.ndarray, measured: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    requested, measured = (np.asarray(v, dtype=np.float64) for v in (requested, measured))
    if requested.shape != measured.shape or requested.ndim != 2 or requested.shape[1] < len(NAMES):
        raise ValueError(f"Shapes {requested.shape} and {measured.shape}; twice [N, {len(NAMES)}] is needed.")
    if len(requested) < 3:
        raise ValueError(f"{len(requested)} pair(s); three pairs are the least.")
    if not np.isfinite([requested, measured]).all() or min(requested[:, SIZES].min(), measured[:, SIZES].min()) <= 0:
        raise ValueError("Characteristics must be finite and sizes positive; leave pairs without a tumour out.")
    return requested, measured


def _scores(requested: np.ndarray, measured: np.ndarray, names: Sequence[str]) -> dict[str, np.ndarray]:
    """All scores of `fidelity`, each `[...]`, of `[..., N, K]`; NaN where there is no slope or rank correlation."""
    short = {i: name.split("_")[0] for i, name in enumerate(names)}
    ratio = np.log(measured[..., VOLUME] / requested[..., VOLUME])
    scores = {}
    for i, name in short.items():
        if i == SURFACE:  # which follows from volume and sphericity
            continue
        x, y = (np.log(v[..., i]) if i == VOLUME else v[..., i] for v in (requested, measured))
        scores[f"{name}_slope"] = _slope(x, y)
        ranks = rankdata(x, axis=-1), rankdata(y, axis=-1)
        # Pearson's of the ranks: the geometric mean of both slopes, with their sign.
        forth, back = _slope(*ranks), _slope(*ranks[::-1])
        scores[f"{name}_spearman"] = np.sign(forth) * np.sqrt(forth * back)
    distance = np.linalg.norm(measured[..., CENTRE] - requested[..., CENTRE], axis=-1)
    extents = np.abs(measured[..., EXTENTS] - requested[..., EXTENTS]).mean(axis=-1)
    plain = [i for i in short if i == SPHERICITY or i >= len(NAMES)]
    off = {f"{short[i]}_error": np.abs(measured[..., i] - requested[..., i]) for i in plain}
    return (
        scores
        | {
            "volume_error": np.median(np.abs(np.expm1(ratio)), axis=-1),
            "volume_bias": ratio.mean(axis=-1),
            "centre_mm": np.median(distance, axis=-1),
            "extents_mm": np.median(extents, axis=-1),
            "box_iou": np.median(_box_iou(requested, measured), axis=-1),
        }
        | {name: np.median(error, axis=-1) for name, error in off.items()}
    )


def _slope(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Least-squares slope `[...]` of y on x, both `[..., N]`; NaN where x does not vary."""
    dx, dy = (v - v.mean(axis=-1, keepdims=True) for v in (x, y))
    varies = np.ptp(x, axis=-1) > 0  # deviations of equal values may differ from 0 by rounding
    squares = np.where(varies, (dx * dx).sum(axis=-1), 1)
    return np.where(varies, (dx * dy).sum(axis=-1) / squares, np.nan)


def _box_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union `[...]` of the boxes of `[..., K]`."""
    low = np.maximum(a[..., CENTRE] - a[..., EXTENTS] / 2, b[..., CENTRE] - b[..., EXTENTS] / 2)
    high = np.minimum(a[..., CENTRE] + a[..., EXTENTS] / 2, b[..., CENTRE] + b[..., EXTENTS] / 2)
    common = (high - low).clip(min=0).prod(axis=-1)
    return common / (a[..., EXTENTS].prod(axis=-1) + b[..., EXTENTS].prod(axis=-1) - common)
