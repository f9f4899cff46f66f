"""Is a brain a copy of a training case? Nearest cases, with real brains that were held back as the yardstick.

A generator that learnt the distribution comes as near to its training cases as a new patient does; one that memorised
comes nearer (Carlini et al. 2023, "Extracting training data from diffusion models"; Dar et al. 2024, "Unconditional
latent diffusion models memorize patient imaging data"). Three looks at it: the brain at low resolution (here), the
tumour (`tumour_copies`), and feature vectors of a network (`feature_copies`).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.ndimage import gaussian_filter

from sbldm.metrics.alignment import affine_fit, moved
from sbldm.metrics.nearness import (
    LEAST_TRAIN,
    VERSION,
    Nearest,
    excess_of,
    limits_of,
    plain_values,
    read_memory,
    unreadable,
    yardstick_of,
)
from sbldm.run.errors import DataError
from sbldm.run.files import atomic_path

__all__ = ["REACH", "Memory", "aligned", "fingerprint", "memories_of", "nearest_of"]


CELL, GRID = 6.0, (30, 36, 30)  # mm; 180 x 216 x 180 mm hold every skull-stripped adult brain
NEIGHBOURHOOD = 10.0  # mm, SD of the window whose mean and contrast a fingerprint takes out
FAINTEST = 0.2  # of the brain's SD: contrasts below it are not blown up
SLIVER = 0.01  # planes with less of the brain than this share of the fullest plane do not move its bounding box

SHIFTS = tuple(itertools.product((-1, 0, 1), repeat=3))
MOST_LEFT_OUT = 100  # training cases that are compared with the others, for time's sake
# What the audit finds, measured on twenty copies of each kind beyond `Memory.copy` (docs/copies.md).
REACH = (
    "The audit compares whole brains at 6 mm. On BraTS at 2 mm, where one honest brain in a thousand is taken for a "
    "copy, it finds all copies that are mirrored, moved, cut by 12 mm, turned by up to 15 degrees, scaled by up to "
    "15 %, noisy, blurred, shaded, with another tumour, mixed half and half with another brain, or warped by 3 mm (SD, "
    "smooth over 10 or 20 mm), and 95 % of those warped by 5 mm over 20 mm; it does not find most that are warped "
    "more (by 5 mm over 10 mm: 40 % found; by 7 mm over 20 mm: 30 %), copies of parts of a brain or of details below "
    "6 mm, which it does not look for, nor those of a person who is among the training cases more than five times."
)


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
    windows = cell_windows(brain, spacing, CELL, GRID)
    share = cell_means(brain, windows)
    inside = share > 0.5
    cells = np.where(inside, cell_means(image, windows) / np.maximum(share, 0.5), 0)
    cells = _standardised(cells, inside)
    cells = np.where(inside, cells - _local_mean(cells, inside), 0)
    cells /= np.sqrt(_local_mean(cells**2, inside) + FAINTEST**2)
    return _standardised(cells, inside).astype(np.float32)


def cell_windows(brain: np.ndarray, spacing: Sequence[float], cell: float, grid: Sequence[int]) -> list[np.ndarray]:
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


def cell_means(image: np.ndarray, windows: Sequence[np.ndarray]) -> np.ndarray:
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
        return memories_of([train], [heldout])[0]

    def nearest(self, fingerprint: np.ndarray) -> Nearest:
        """The training case that a fingerprint correlates most with (see the class)."""
        found = _correlations(fingerprint, self.template, self.looks)
        best = int(found.argmax())
        return Nearest(self.names[best], float(found[best]), excess_of(found))

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
        content = read_memory(path)
        try:
            looks = tuple(_Look(*(content.pop(f"{name}_{k}") for name in _Look._fields)) for k in range(2))
            return cls(**content | {"names": tuple(content["names"].tolist())} | plain_values(content), looks=looks)
        except (KeyError, TypeError, ValueError) as error:
            raise unreadable(path, error) from None


def memories_of(train: Sequence[Mapping[str, np.ndarray]], heldout: Sequence[Mapping[str, np.ndarray]]) -> list[Memory]:
    """A memory of each image channel, to ask each for one brain's fingerprint in that channel.

    A brain is as near as it is in its nearest channel, and so are the held-back ones: all memories have the limits and
    the excesses of that.

    Args:
        train, heldout: of each channel fingerprints by name, of the same cases in the same order.

    Raises:
        DataError: fewer than 3 training cases.
    """
    if len(train[0]) < LEAST_TRAIN:
        raise DataError(
            f"Copies cannot be told with {len(train[0])} training cases; at least {LEAST_TRAIN} are needed."
        )
    parts = [_fitted_to_mean(np.stack(list(prints.values()))) for prints in train]
    looks = [(_Look.at(prints), _Look.at(fitted)) for prints, fitted, _ in parts]
    measured = [
        [excess_of(_correlations(cells, template, look)) for cells in prints.values()]
        for prints, (*_, template), look in zip(heldout, parts, looks, strict=True)
    ]
    nearest = np.max(np.array(measured, np.float64), axis=0)
    honest, calibration = yardstick_of(nearest, lambda: np.max([_leave_one_out(*part) for part in parts], axis=0))
    known = tuple(train[0]), *limits_of(honest), calibration, len(honest), nearest
    return [Memory(*known, template, look) for (*_, template), look in zip(parts, looks, strict=True)]


def nearest_of(memories: Sequence[Memory], prints: Sequence[np.ndarray]) -> tuple[int, Nearest]:
    """The number of the channel in which one brain is nearest, and how near it is there.

    Args:
        memories: see `memories_of`.
        prints: the brain's fingerprint in each of their channels.
    """
    found = [memory.nearest(cells) for memory, cells in zip(memories, prints, strict=True)]
    k = int(np.argmax([near.excess for near in found]))
    return k, found[k]


def _fitted_to_mean(prints: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Fingerprints `[N, ...]`, as they are and fitted, and the template that they are fitted to."""
    template = _template(prints)
    template = _template(np.stack([moved(cells, affine_fit(cells, template)) for cells in prints]))
    return prints, np.stack([moved(cells, affine_fit(cells, template)) for cells in prints]), template


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
        found.append(excess_of(_correlations(prints[k], template, looks)))
    return np.array(found, dtype=np.float64)
