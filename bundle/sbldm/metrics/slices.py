"""Consistency from slice to slice: a model that draws axial slices one by one betrays itself along the third axis.

None of the numbers has a good value of its own: anatomy changes along S too, so each is read beside that of real cases
on the same grid, as an effect size (`effect_size`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy import fft, ndimage

from sbldm.metrics.intervals import Estimate
from sbldm.metrics.volumes import Volume
from sbldm.run.errors import DataError

__all__ = ["adjacent_curve", "effect_size", "slice_measures"]

OUTLINE_MM = 3.0  # this close to the outline, partial volume would dominate gradients and means
SIGMA, RADIUS = 1.5, 5  # voxels: the Gaussian window of 11 x 11 of Wang et al. 2004
C1, C2 = 0.01**2, 0.03**2  # theirs, for data range 1
SMALL_SLICE = 0.1  # of the largest: below, a slice's mean is more noise than tissue
FEWEST_SLICES = 8  # that leave something to either half of the spectrum behind a cubic
RIPPLE = 1e-3  # of the intensity range: what lies under it is no banding


def slice_measures(volume: Volume) -> dict[str, float]:
    """How much more neighbouring axial slices differ than they should.

    Args:
        volume: `image` and `mask` `[X, Y, Z]`, slices stacked along Z.

    Returns:
        - `z_gradient_ratio`: mean |difference| per mm of neighbours along Z, over the mean of the same along X and Y;
          both neighbours lie 3 mm or more (one voxel at least) inside the brain. 1 where the texture is isotropic and
          smooth at the scale of a voxel; a coarse axis lowers its own part.
        - `adjacent_ssim`: SSIM (Wang et al. 2004: Gaussian window of 11 x 11 voxels, sigma 1.5, K1 .01, K2 .03, data
          range 1) of neighbouring slices, averaged per pair over the windows that are brain throughout in both, then
          over pairs.
        - `banding`: share, in [0, 1), of the power of the profile of mean intensity along Z that lies above half of
          the highest frequency (periods under four slices). A step of the profile is the mean difference of two slices
          over the voxels that are inner brain in both, so that the outline has no part in it; a cubic is taken off as
          anatomy; the spectrum is that of the cosine transform, which does not see the two ends as a jump; a ripple of
          0.1 % of the intensity range per slice is added to the power, so that rounding of a flat profile is not
          amplified. Near 0 for a profile that is smooth, near 0.5 for an offset of each slice's own, near 1 for
          stripes.
        - `mask_flicker`: mean of 1 - DSC of the tumour in neighbouring slices, from the second to the last but one of
          its slices (from the first to the last where it has fewer than four, gaps included). A pair with tumour in
          one slice only counts 1, a pair without any does not count.
        - `mask_islands`: number of 26-connected components of the tumour that lie in one slice only.

        NaN where there is nothing to measure: no mask, no tumour, a tumour of one slice for its flicker, a brain too
        small for a window, without in-plane contrast, or of too few slices for a spectrum.

    Raises:
        DataError: the volume holds no brain.
    """
    image, brain = _crop(volume)
    inner = _eroded(brain, [max(1, round(OUTLINE_MM / s)) for s in volume.spacing])
    _, ssim = _adjacent_ssim(image, brain)
    tumour = volume.mask is not None and volume.mask.any()
    return {
        "z_gradient_ratio": _z_gradient_ratio(image, inner, volume.spacing),
        "adjacent_ssim": _mean(ssim),
        "banding": _banding(image, inner),
        "mask_flicker": _mask_flicker(volume.mask) if tumour else math.nan,
        "mask_islands": _mask_islands(volume.mask) if tumour else math.nan,
    }


def adjacent_curve(volume: Volume, points: int = 21) -> np.ndarray:
    """SSIM of neighbouring slices, as in `slice_measures`, against relative height in the brain.

    Returns:
        `[points]` float64 at equal steps from the lowest slice of the brain (0) to the highest (1), linear between
        pairs; near both ends, where no window fits into the brain, the value of the nearest pair. NaN if none fits.

    Raises:
        DataError: the volume holds no brain.
    """
    image, brain = _crop(volume)
    pairs, ssim = _adjacent_ssim(image, brain)
    if not len(pairs):
        return np.full(points, math.nan)
    return np.interp(np.linspace(0, 1, points), (pairs + 0.5) / (image.shape[2] - 1), ssim)


def effect_size(samples: np.ndarray, reference: np.ndarray, seed: int = 0, draws: int = 2000) -> Estimate:
    """Difference of the means in standard deviations of the reference (Glass 1976), without unit.

    Args:
        samples: `[N]` of the synthetic cases; NaN entries are left out of either.
        reference: `[M]` of the real cases.
        seed: of the bootstrap.
        draws: of the bootstrap.

    Returns:
        the estimate with the percentile interval of a bootstrap over both (Efron & Tibshirani 1993). A bound is
        infinite where too many draws of the reference have no spread; all is NaN without a sample or where the
        reference itself has no spread or fewer than two entries.
    """
    samples, reference = (x[~np.isnan(x)] for x in (np.asarray(samples, float), np.asarray(reference, float)))
    if not len(samples) or not len(reference) or np.ptp(reference) == 0:
        return Estimate(math.nan, math.nan, math.nan)
    random = np.random.default_rng(seed)
    drawn = (x[random.integers(len(x), size=(draws, len(x)))] for x in (samples, reference))
    deltas = _glass_delta(*drawn)
    # Whole draws, as nothing can be interpolated next to an infinite one.
    low, high = np.quantile(deltas, 0.025, method="lower"), np.quantile(deltas, 0.975, method="higher")
    return Estimate(float(_glass_delta(samples, reference)), float(low), float(high))


def _crop(volume: Volume) -> tuple[np.ndarray, np.ndarray]:
    """Image and brain in the brain's bounding box."""
    boxes = ndimage.find_objects(volume.brain.view(np.uint8))
    if not boxes:
        raise DataError(f"{volume.name}: holds no brain.")
    image = np.ascontiguousarray(volume.image[boxes[0]], np.float32)
    return image, image > 0


def _eroded(mask: np.ndarray, radii: Sequence[int]) -> np.ndarray:
    """Voxels whose box of these radii lies in a mask; outside of the array there is none."""
    for axis, radius in enumerate(radii):
        mask = ndimage.minimum_filter1d(mask.view(np.uint8), 2 * radius + 1, axis, mode="constant", cval=0)
    return mask.view(bool)


def _mean(values: np.ndarray) -> float:
    return float(values.mean(dtype=np.float64)) if values.size else math.nan


def _neighbours(array: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Each element but the last along an axis, and the one after it."""
    count = array.shape[axis]
    before, after = ([slice(None)] * array.ndim for _ in range(2))
    before[axis], after[axis] = slice(count - 1), slice(1, count)
    return array[tuple(before)], array[tuple(after)]


def _z_gradient_ratio(image: np.ndarray, inner: np.ndarray, spacing: Sequence[float]) -> float:
    slopes = []
    for axis, step in enumerate(spacing):
        both = np.logical_and(*_neighbours(inner, axis))
        slopes.append(_mean(np.abs(np.diff(image, axis=axis)[both])) / step)
    in_plane = (slopes[0] + slopes[1]) / 2
    return slopes[2] / in_plane if in_plane > 0 else math.nan


def _adjacent_ssim(image: np.ndarray, brain: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """SSIM of slices k and k + 1 of a brain in its box: `[K]` the k for which a window fits, and `[K]` the values."""

    def blur(x: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(x, SIGMA, radius=RADIUS, axes=(0, 1))

    mean = blur(image)
    square = mean * mean
    variance = blur(image * image) - square
    product = np.multiply(*_neighbours(mean, 2))
    covariance = blur(np.multiply(*_neighbours(image, 2))) - product
    index = (2 * product + C1) * (2 * covariance + C2)
    index /= (np.add(*_neighbours(square, 2)) + C1) * (np.add(*_neighbours(variance, 2)) + C2)

    inside = np.logical_and(*_neighbours(_eroded(brain, (RADIUS, RADIUS, 0)), 2))
    windows = inside.sum((0, 1))
    pairs = np.flatnonzero(windows)
    return pairs, (index * inside).sum((0, 1), dtype=np.float64)[pairs] / windows[pairs]


def _banding(image: np.ndarray, inner: np.ndarray) -> float:
    both = np.logical_and(*_neighbours(inner, 2))
    voxels = both.sum((0, 1))
    steps = (np.diff(image, axis=2) * both).sum((0, 1), dtype=np.float64) / np.maximum(voxels, 1)
    large = np.flatnonzero(voxels > SMALL_SLICE * voxels.max(initial=0))
    if len(large) + 1 < FEWEST_SLICES:
        return math.nan
    profile = np.cumsum([0, *steps[large[0] : large[-1] + 1]])
    height = np.linspace(-1, 1, len(profile))
    residual = profile - np.polynomial.Polynomial.fit(height, profile, 3)(height)
    power = fft.dct(residual, norm="ortho") ** 2  # entry k: k / (2 * slices) cycles per slice
    return float(power[(len(power) + 1) // 2 :].sum() / (power.sum() + len(power) * RIPPLE**2))


def _mask_flicker(mask: np.ndarray) -> float:
    held = np.flatnonzero(mask.any((0, 1)))
    tumour = mask[..., held[0] : held[-1] + 1]
    if tumour.shape[2] >= 4:
        tumour = tumour[..., 1:-1]
    areas = np.add(*_neighbours(tumour.sum((0, 1)), 0))
    common = np.logical_and(*_neighbours(tumour, 2)).sum((0, 1))
    return _mean(1 - 2 * common[areas > 0] / areas[areas > 0])


def _mask_islands(mask: np.ndarray) -> float:
    labels, _ = ndimage.label(mask, np.ones((3, 3, 3)))
    return float(sum(box[2].stop - box[2].start == 1 for box in ndimage.find_objects(labels)))


def _glass_delta(samples: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Along the last axis; infinite, or 0 between equal means, where the reference has no spread."""
    gap = samples.mean(-1) - reference.mean(-1)
    spread = np.where(np.ptp(reference, -1) > 0, reference.std(-1, ddof=1), 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(gap == 0, 0, gap / spread)
