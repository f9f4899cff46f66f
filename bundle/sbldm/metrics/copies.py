"""Is a brain a copy of a training case? Nearest cases, with real brains that were held back as the yardstick.

A generator that learnt the distribution comes as near to its training cases as a new patient does; one that memorised
comes nearer (Carlini et al. 2023, "Extracting training data from diffusion models"; Dar et al. 2024, "Unconditional
latent diffusion models memorize patient imaging data"). Three looks at it: the brain at low resolution
(`fingerprint`, `Memory`), the tumour, at its place (`mask_print`, `nearest_mask`) and wherever it lies (`tumour_print`,
`TumourMemory`), and feature vectors of a network (`feature_ratio`, `authenticity`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import cdist
from scipy.stats import binomtest, gumbel_r

from sbldm.metrics.alignment import affine_fit, moved
from sbldm.metrics.intervals import Estimate
from sbldm.run.errors import DataError, StateError
from sbldm.run.files import atomic_path, cached_npz

__all__ = [
    "REACH",
    "SURE",
    "TUMOUR_REACH",
    "Memory",
    "Nearest",
    "TumourMemory",
    "aligned",
    "authenticity",
    "copy_rate",
    "feature_ratio",
    "fingerprint",
    "mask_print",
    "near_floor",
    "nearest_mask",
    "too_many_copies",
    "tumour_print",
]

CELL, GRID = 6.0, (30, 36, 30)  # mm; 180 x 216 x 180 mm hold every skull-stripped adult brain
MASK_CELL, MASK_GRID = 4.0, (44, 54, 44)
NEIGHBOURHOOD = 10.0  # mm, SD of the window whose mean and contrast a fingerprint takes out
FAINTEST = 0.2  # of the brain's SD: contrasts below it are not blown up
SLIVER = 0.01  # planes with less of the brain than this share of the fullest plane do not move its bounding box

SHIFTS = tuple(itertools.product((-1, 0, 1), repeat=3))
LEAST_HELDOUT, LEAST_TRAIN = 10, 3
MOST_LEFT_OUT = 100  # training cases that are compared with the others, for time's sake
NEAR = 0.95
SURE = 0.001  # share of honest pairs beyond the limit for copies
COPY = round((gumbel_r.ppf(1 - SURE) - gumbel_r.mean()) / gumbel_r.std(), 2)  # SD above the mean: 4.94
NEXT = 5  # training cases that the nearest one is set against
REPEAT, PLAIN = 6.0, 0.3  # robust SD and z beyond which a held-back case is a training case under another name
VERSION = 3
# What the audit finds, measured on twenty copies of each kind beyond `Memory.copy` (docs/copies.md).
REACH = (
    "The audit compares whole brains at 6 mm. On BraTS at 2 mm, where one honest brain in a thousand is taken for a "
    "copy, it finds all copies that are mirrored, moved, cut by 12 mm, turned by up to 15 degrees, scaled by up to "
    "15 %, noisy, blurred, shaded, with another tumour, mixed half and half with another brain, or warped by 3 mm (SD, "
    "smooth over 10 or 20 mm), and 95 % of those warped by 5 mm over 20 mm; it does not find most that are warped "
    "more (by 5 mm over 10 mm: 40 % found; by 7 mm over 20 mm: 30 %), copies of parts of a brain or of details below "
    "6 mm, which it does not look for, nor those of a person who is among the training cases more than five times."
)
TUMOUR_REACH = (
    "Tumours are compared by their masks at 4 mm, wherever they lie. On BraTS at 2 mm, where one honest tumour in a "
    "thousand is taken for a copy, that finds all copies that are mirrored, moved, turned by 5 degrees or scaled by "
    "5 %, 97 % of those that went through the autoencoder of `small`, and most that are turned by 10 degrees, scaled "
    "by 10 % or warped by 3 mm (SD, smooth over 20 mm); it does not find most that are turned by 20 degrees or scaled "
    "by 15 %, nor those of the tissue inside behind another outline."
)


# --- brains at low resolution -----------------------------------------------------------------------------------------


def fingerprint(image: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """The pattern of a brain at 6 mm, whatever the scale and offset of its intensities and its place in the image.

    Cells are exact averages over the voxels they cover, on a grid centred on the brain's bounding box. Local mean and
    local contrast (Gaussian window of 10 mm SD) are taken out, because broad shading and bright tumours make strangers
    alike and hide a copied brain behind another tumour; what is left is anatomy of roughly 12 to 40 mm.

    Args:
        image: `[X, Y, Z]`, background exactly 0, axes along L, P, S.
        spacing: of the axes, mm.

    Returns:
        `[30, 36, 30]` float32; mean 0 and SD 1 inside the brain, 0 outside. Equal for `a * image + b` in the brain,
        a > 0. All 0 for a constant brain.

    Raises:
        DataError: there is no brain in the image.
    """
    brain = image != 0
    windows = _windows(brain, spacing, CELL, GRID)
    share = _averages(brain, windows)
    inside = share > 0.5
    cells = np.where(inside, _averages(image, windows) / np.maximum(share, 0.5), 0)
    cells = _standardised(cells, inside)
    cells = np.where(inside, cells - _local_mean(cells, inside), 0)
    cells /= np.sqrt(_local_mean(cells**2, inside) + FAINTEST**2)
    return _standardised(cells, inside).astype(np.float32)


def _windows(brain: np.ndarray, spacing: Sequence[float], cell: float, grid: Sequence[int]) -> list[np.ndarray]:
    """For each axis `[cells, voxels]`: which share of a cell each voxel fills, on a grid centred on the brain."""
    if not brain.any():
        raise DataError("An image without a brain (all voxels are 0) cannot be compared with others.")
    windows = []
    for axis, (n, width) in enumerate(zip(brain.shape, spacing, strict=True)):
        planes = brain.sum(axis=tuple({0, 1, 2} - {axis}))
        ends = np.flatnonzero(planes >= SLIVER * planes.max())[[0, -1]]  # a stray voxel must not hide a copy
        edges = np.arange(n + 1) * width - (ends.sum() + 1) / 2 * width
        low = (np.arange(grid[axis])[:, None] - grid[axis] / 2) * cell
        overlap = np.minimum(low + cell, edges[1:]) - np.maximum(low, edges[:-1])
        windows.append((overlap.clip(0) / cell).astype(np.float32))
    return windows


def _averages(image: np.ndarray, windows: Sequence[np.ndarray]) -> np.ndarray:
    """Area averages of `[X, Y, Z]`, separably."""
    cells = image.astype(np.float32)
    for window in windows:  # each pass puts its axis last, so three bring them back in order
        cells = np.tensordot(cells, window, axes=(0, 1))
    return cells


def _local_mean(cells: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Gaussian mean over the cells inside the brain."""
    sd = NEIGHBOURHOOD / CELL
    weight = gaussian_filter(inside.astype(np.float32), sd, mode="constant")
    return gaussian_filter(np.where(inside, cells, 0), sd, mode="constant") / np.maximum(weight, 1e-6)


def _standardised(cells: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Mean 0, SD 1 inside, 0 outside; a constant stays 0."""
    values = cells[inside].astype(np.float64)
    spread = values.std()
    if spread <= 1e-6 * np.abs(values).max(initial=0):
        return np.zeros_like(cells)
    return np.where(inside, (cells - values.mean()) / spread, 0)


# --- nearest brains ---------------------------------------------------------------------------------------------------


class Nearest(NamedTuple):
    """The nearest training case of one brain: its name, their correlation, and its excess over the next five."""

    name: str
    correlation: float
    excess: float


class _Look(NamedTuple):
    """Training brains `[N, ...]` as they are compared: less their mean, in the cells where half of them or more lie."""

    mean: np.ndarray
    inside: np.ndarray
    train: np.ndarray

    @classmethod
    def at(cls, prints: np.ndarray) -> _Look:
        mean, inside = _mean(prints), 2 * (prints != 0).sum(axis=0) >= len(prints)
        look = cls(mean, inside, prints)
        return look._replace(train=look.rows(prints))

    def rows(self, prints: np.ndarray) -> np.ndarray:
        """`[N, ...]` to unit rows `[N, V]`, whose products are correlations; cells outside a brain count as average."""
        values = prints[:, self.inside]
        present = values != 0
        values = np.where(present, values - self.mean[self.inside], 0)
        means = values.sum(axis=1) / np.maximum(present.sum(axis=1), 1)
        values -= present * means[:, None].astype(np.float32)
        return values / np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-6)

    def correlations(self, variants: np.ndarray) -> np.ndarray:
        """`[N]`, with each training brain the largest over the variants of a fingerprint."""
        return (self.rows(variants) @ self.train.T).max(axis=0).clip(-1, 1)  # rounding


def _mean(prints: np.ndarray) -> np.ndarray:
    """Of the brains that have a cell."""
    return (prints.sum(axis=0) / np.maximum((prints != 0).sum(axis=0), 1)).astype(np.float32)


def _template(prints: np.ndarray) -> np.ndarray:
    """The mean of brains and their mirror images, 0 where fewer than half of them lie."""
    both = np.concatenate([prints, prints[:, ::-1]])
    return np.where(2 * (both != 0).sum(axis=0) >= len(both), _mean(both), 0)


def _shifted(cells: np.ndarray) -> np.ndarray:
    """`[54, ...]`: a fingerprint and its left-right mirror image, shifted by -1, 0 and +1 cells along each axis."""
    variants = []
    for flipped in (cells, cells[::-1]):
        padded = np.pad(flipped, 1)
        for shift in SHIFTS:
            variants.append(padded[tuple(slice(1 - s, 1 - s + n) for s, n in zip(shift, cells.shape, strict=True))])
    return np.stack(variants)


def _fitted(cells: np.ndarray, other: np.ndarray) -> np.ndarray:
    """`[2, ...]`: a fingerprint and its left-right mirror image, each fitted affinely to another one."""
    return np.stack([moved(flipped, affine_fit(flipped, other)) for flipped in (cells, cells[::-1])])


def aligned(query: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The flip, shift or affine fit of a fingerprint that correlates most with another one."""
    variants = np.concatenate([_shifted(query), _fitted(query, other)])
    rows, target = variants.reshape(len(variants), -1), other.ravel()
    return variants[int((rows @ target / np.maximum(np.linalg.norm(rows, axis=1), 1e-6)).argmax())]


def _excess(correlations: np.ndarray) -> float:
    """By how much the largest of correlations `[N]` exceeds the mean of the next five, after Fisher's z transform."""
    first, *others = _fisher(np.sort(correlations)[::-1][: 1 + NEXT])
    return float(np.tanh(first - np.mean(others)))


@dataclass(frozen=True, eq=False)
class Memory:
    """Knows the training cases and how near an honest brain comes to them.

    The correlation of two brains is that of their fingerprints less the mean training fingerprint, over the cells where
    at least half of the training brains have tissue (cells outside one of the two brains add nothing): the largest over
    left-right flips and shifts of 6 mm, and over both flips fitted affinely (`alignment`) to the mean of the training
    brains and their mirror images, to which the training brains are fitted as well. An honest brain resembles many
    training cases a little, a copy one of them: a brain is as near as its largest correlation **exceeds the next five**
    (the tanh of the difference of z = artanh r: 0 for no difference, 1 for a copy voxel by voxel). The limits are
    measured on real brains:

    * `near`: 95 % of honest brains lie below. The 95th percentile by Weibull's rule, which leaves 4 to 5 %
      of new cases beyond it on average; measured on 30 held-back cases, the rate of one audit is that give or take 4.
    * `copy`, to refuse single pairs: the largest honest excess or the mean + 4.94 SD on the scale of z, whichever is
      larger. As the largest of many correlations z follows Gumbel's distribution rather than a normal one, and one
      honest brain in a thousand lies beyond. (The excess of 3 to 100 normal z needs 4.0 to 4.7 SD for that.)

    `REACH` says what it finds; .12 s a brain and 14 s to build with 100 training cases, one core. What else was tried,
    at the same false rate on the same disguises, stands in docs/copies.md: no fit, the correlation itself in place of
    its excess, elastic fits, and registration to each of the nearest cases.

    Held-back cases are treated exactly as queries. Those that are training cases under another name (6 robust SD above
    the median, and plainly so) set no limits. Fewer than 10 held-back cases are no yardstick; then training cases are
    compared with the others, each with a mean that leaves it out, 100 at most.

    A memory contains real brains at 6 mm: keep it where the training cases are kept.

    Attributes:
        names: of the training cases (N).
        near, copy: limits of the excess.
        calibration: what they were measured on, in words.
        honest: on how many brains.
        heldout_excess: `[M]` of each held-back case.
        template: `[30, 36, 30]`, what brains are fitted to.
        looks: the training brains as they are, and fitted.
    """

    names: tuple[str, ...]
    near: float
    copy: float
    calibration: str
    honest: int
    heldout_excess: np.ndarray
    template: np.ndarray
    looks: tuple[_Look, _Look]

    @classmethod
    def build(cls, train: Mapping[str, np.ndarray], heldout: Mapping[str, np.ndarray]) -> Memory:
        """From fingerprints by name.

        Raises:
            DataError: fewer than 3 training cases.
        """
        if len(train) < LEAST_TRAIN:
            raise DataError(
                f"Copies cannot be told with {len(train)} training cases; at least {LEAST_TRAIN} are needed."
            )
        prints = np.stack(list(train.values()))
        template = _template(prints)
        template = _template(np.stack([moved(cells, affine_fit(cells, template)) for cells in prints]))
        fitted = np.stack([moved(cells, affine_fit(cells, template)) for cells in prints])
        looks = _Look.at(prints), _Look.at(fitted)
        measured = np.array([_excess(_correlations(cells, template, looks)) for cells in heldout.values()], np.float64)
        honest, calibration = _yardstick(measured, lambda: _leave_one_out(prints, fitted, template))
        return cls(tuple(train), *_limits(honest), calibration, len(honest), measured, template, looks)

    def nearest(self, fingerprint: np.ndarray) -> Nearest:
        """The training case that a fingerprint correlates most with (see the class)."""
        found = _correlations(fingerprint, self.template, self.looks)
        best = int(found.argmax())
        return Nearest(self.names[best], float(found[best]), _excess(found))

    def save(self, path: Path) -> None:
        """Write one .npz of plain arrays, whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        content = {name: value for name, value in vars(self).items() if name != "looks"}
        for k, look in enumerate(self.looks):
            content |= {f"{name}_{k}": value for name, value in look._asdict().items()}
        with atomic_path(Path(path)) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, version=VERSION, **content)

    @classmethod
    def load(cls, path: Path) -> Memory:
        """Read what `save` wrote.

        Raises:
            StateError: the file is missing, damaged or of another version.
        """
        content = _content(path)
        try:
            looks = tuple(_Look(*(content.pop(f"{name}_{k}") for name in _Look._fields)) for k in range(2))
            return cls(**content | {"names": tuple(content["names"].tolist())} | _plain(content), looks=looks)
        except (KeyError, TypeError, ValueError) as error:
            raise _unreadable(path, error) from None


def _content(path: Path) -> dict[str, Any]:
    """Arrays of a memory of this version."""
    content = dict(cached_npz(path) or {})
    version = content.pop("version", None)
    if version != VERSION:
        raise _unreadable(path, "missing or damaged" if version is None else "of another version")
    return content


def _plain(content: Mapping[str, Any]) -> dict[str, Any]:
    return {key: content[key].item() for key in ("near", "copy", "calibration", "honest")}


def _unreadable(path: Path, why: Any) -> StateError:
    return StateError(f"{path}: no memory of training cases can be read ({why}); remove and rebuild it.")


def _correlations(cells: np.ndarray, template: np.ndarray, looks: tuple[_Look, _Look]) -> np.ndarray:
    """`[N]`, of a fingerprint with each training brain (see `Memory`)."""
    ways = _shifted(cells), _fitted(cells, template)
    return np.max([look.correlations(variants) for look, variants in zip(looks, ways, strict=True)], axis=0)


def _leave_one_out(prints: np.ndarray, fitted: np.ndarray, template: np.ndarray) -> np.ndarray:
    """Excess of each of at most 100 evenly spaced fingerprints among the others; the fit stays that to all."""
    chosen = np.unique(np.linspace(0, len(prints) - 1, min(len(prints), MOST_LEFT_OUT)).round().astype(int))
    found = []
    for k in chosen:
        looks = tuple(_Look.at(np.delete(brains, k, axis=0)) for brains in (prints, fitted))
        found.append(_excess(_correlations(prints[k], template, looks)))
    return np.array(found, dtype=np.float64)


def _yardstick(measured: np.ndarray, leave_one_out: Callable[[], np.ndarray]) -> tuple[np.ndarray, str]:
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


def _limits(honest: np.ndarray) -> tuple[float, float]:
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


# --- masks ------------------------------------------------------------------------------------------------------------


def near_floor(pairs: int, honest: int, seed: int = 0) -> Estimate:
    """Share of `pairs` honest pairs beyond `Memory.near`, which was measured on so many honest brains.

    The mean and the middle 95 % of shares: 5 % on average (1 / (M + 1) of fewer than 19), but one limit measured on few
    brains can lie low, and then all pairs have it against them.
    """
    random = np.random.default_rng(seed)
    limits = np.quantile(random.uniform(size=(4000, honest)), NEAR, axis=1, method="weibull")
    low, high = np.quantile(random.binomial(pairs, 1 - limits) / pairs, [0.025, 0.975])
    return Estimate(max(1 - NEAR, 1 / (honest + 1)), float(low), float(high))


def too_many_copies(rows: Sequence[Mapping[str, str]], honest_cases: int) -> str:
    """Say so when more pairs look near to a training case than an honest generator would have (`near_floor`).

    Args:
        rows: of a manifest; those without `near_copy` count for nothing.
        honest_cases: on how many brains nearness was measured.
    """
    near = [row["near_copy"] == "1" for row in rows if row.get("near_copy")]
    if not near or not honest_cases:
        return ""
    most = near_floor(len(near), honest_cases).high
    if sum(near) <= most * len(near):
        return ""
    return (
        f"{sum(near)} of {len(near)} pairs are nearer to a training case than 95 % of {honest_cases} other cases are; "
        f"an honest generator would have {most * len(near):.0f} at most"
    )


def mask_print(mask: np.ndarray, image: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """A mask at 4 mm on a grid centred on the brain's bounding box.

    Args:
        mask: `[X, Y, Z]` bool.
        image: `[X, Y, Z]`, background exactly 0, axes along L, P, S.
        spacing: of the axes, mm.

    Returns:
        `[44, 54, 44]` bool: cells filled by half or more; of a mask that fills none by half, the fullest.

    Raises:
        DataError: there is no brain in the image.
    """
    share = _averages(mask, _windows(image != 0, spacing, MASK_CELL, MASK_GRID))
    return (share > 0) & (share >= min(0.5, share.max()))


def nearest_mask(mask: np.ndarray, train_masks: Mapping[str, np.ndarray]) -> tuple[str, float]:
    """The training mask with the largest Dice coefficient with a mask or its left-right mirror image, and that Dice.

    Args:
        mask: bool, of `mask_print`.
        train_masks: the same of one training case or more, by name.

    Returns:
        Name and Dice; 0 for empty masks, which are like no other.
    """
    dice = {name: max(_dice(mask, other), _dice(mask[::-1], other)) for name, other in train_masks.items()}
    name = max(dice, key=dice.__getitem__)
    return name, dice[name]


@dataclass(frozen=True, eq=False)
class TumourMemory:
    """Knows the shapes of the training tumours: is a tumour one of them, wherever in whichever brain it lies?

    Compared are masks on grids centred on their own bounding boxes (`mask_print` of a mask in place of a brain), by
    their Dice coefficients, mirror images allowed. As with whole brains (`Memory`) the excess over the next five is
    judged, by limits of the same kind. What it finds, and what not, stands in docs/copies.md.

    Attributes:
        names: of the training cases with a tumour (N).
        prints: `[N, 44, 54, 44]` bool.
        near, copy, calibration, honest: as in `Memory`.
    """

    names: tuple[str, ...]
    prints: np.ndarray
    near: float
    copy: float
    calibration: str
    honest: int

    @classmethod
    def build(cls, train: Mapping[str, np.ndarray], heldout: Mapping[str, np.ndarray]) -> TumourMemory:
        """From prints by name; those without a tumour are left out.

        Raises:
            DataError: fewer than 3 training cases with a tumour.
        """
        train, heldout = ({name: mask for name, mask in some.items() if mask.any()} for some in (train, heldout))
        if len(train) < LEAST_TRAIN:
            raise DataError(
                f"Copies of tumours cannot be told with {len(train)} training cases that have one; "
                f"at least {LEAST_TRAIN} are needed."
            )
        prints = np.stack(list(train.values()))
        measured = np.array([_excess(_all_dice(mask, prints)) for mask in heldout.values()], np.float64)

        def leave_one_out() -> np.ndarray:
            return np.array([_excess(np.delete(_all_dice(mask, prints), k)) for k, mask in enumerate(prints)])

        honest, calibration = _yardstick(measured, leave_one_out)
        return cls(tuple(train), prints, *_limits(honest), calibration, len(honest))

    def nearest(self, mask: np.ndarray) -> Nearest:
        """The training tumour most like a print, with their Dice coefficient in the place of a correlation."""
        dice = _all_dice(mask, self.prints)
        best = int(dice.argmax())
        return Nearest(self.names[best], float(dice[best]), _excess(dice))

    def save(self, path: Path) -> None:
        """Write one .npz of plain arrays, whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        with atomic_path(Path(path)) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, version=VERSION, **vars(self))

    @classmethod
    def load(cls, path: Path) -> TumourMemory:
        """Read what `save` wrote.

        Raises:
            StateError: the file is missing, damaged or of another version.
        """
        content = _content(path)
        try:
            return cls(**content | {"names": tuple(content["names"].tolist())} | _plain(content))
        except (KeyError, TypeError, ValueError) as error:
            raise _unreadable(path, error) from None


def tumour_print(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """A tumour for `TumourMemory`, wherever it lies: `mask_print` of it alone; empty for an empty mask."""
    return mask_print(mask, mask, spacing) if mask.any() else np.zeros(MASK_GRID, bool)


def _all_dice(mask: np.ndarray, prints: np.ndarray) -> np.ndarray:
    """`[N]` Dice coefficients of a print with others, each the larger of it and its left-right mirror image."""
    common = np.maximum(*((prints & way).sum(axis=(1, 2, 3)) for way in (mask, mask[::-1])))
    return 2 * common / np.maximum(prints.sum(axis=(1, 2, 3)) + mask.sum(), 1)


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / max(np.count_nonzero(a) + np.count_nonzero(b), 1)


# --- feature vectors --------------------------------------------------------------------------------------------------


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


def authenticity(samples: np.ndarray, train: np.ndarray) -> float:
    """AuthPct: share of samples farther from their nearest training vector than that is from its own nearest one.

    Alaa et al. 2022, "How faithful is your synthetic data?". Vectors from the training distribution reach about 0.6,
    not 1, copies 0; vectors in the middle of the cloud, such as of over-smooth images, come near 0 too.

    Args:
        samples: `[N, D]`, N >= 1.
        train: `[T, D]`, T >= 2.
    """
    among = cdist(train, train)
    np.fill_diagonal(among, np.inf)
    distances = cdist(samples, train)
    return float((distances.min(axis=1) > among.min(axis=1)[distances.argmin(axis=1)]).mean())
