"""A brain without its tumour: the mirror image of the other half where that is healthy, else what lies around.

It serves the copy-paste pairs that hold one tumour, the pasted one, as real cases do (`copypaste`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

__all__ = ["heal", "rise"]

MARGIN_MM = 4.0  # around the mask, where the tumour still shows; it fades into the brain
PLANE_MM = 6.0  # how far the middle of the halves may be from that of the brain's bounding box
WINDOWS_MM = (4.0, 8.0, 16.0, 32.0)  # SD of the means of what lies around; the narrowest that holds enough is taken
ENOUGH = 0.02  # share of a window that is known
AROUND_MM = 32.0


def rise(x: np.ndarray) -> np.ndarray:
    """From 0 at 0 and below to 1 at 1 and above, with no kink at either end."""
    x = x.clip(0, 1)
    return x * x * (3 - 2 * x)


def heal(
    image: np.ndarray, labels: np.ndarray, spacing: Sequence[float], left_right: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Replace a tumour by the mirrored other half of the brain, brought to the brightness of its new surroundings.

    Where the other half is not healthy, or is no brain, the mean of what lies around takes its place: 13 % of the
    replaced voxels of 25 real cases. The tumour's margin of 4 mm fades into the brain. There the mask's place is .4 SD
    of the brain brighter than healthy brain, once 2.7 SD (its mirror image, where healthy: .2 SD), and has .8 of its
    gradient. .6 s a case at 2 mm, undisturbed.

    Args:
        image: `[C, X, Y, Z]`, background exactly 0.
        labels: `[X, Y, Z]`, 0 background.
        spacing: mm a voxel along the array axes.
        left_right: array axis along which the halves lie.

    Returns:
        float32 image, equal beyond 4 mm from the tumour, and labels, all 0. A brain without a healthy voxel beyond that
        margin comes back as it is, with its labels.
    """
    spacing, brain, tumour = np.asarray(spacing, float), (image != 0).any(axis=0), labels > 0
    healed = image.astype(np.float32)
    if not tumour.any():
        return healed, labels
    distance = ndimage.distance_transform_edt(~tumour, spacing)
    region, healthy = brain & (distance < MARGIN_MM), brain & (distance >= MARGIN_MM)
    if not healthy.any():
        return healed, labels
    mirror, there = _mirror(image[0], brain, healthy, left_right, spacing)
    points = np.argwhere(region)
    reach = np.ceil(AROUND_MM / spacing).astype(int)
    low, high = (points.min(axis=0) - reach).clip(0), points.max(axis=0) + reach + 1
    window = tuple(map(slice, low, high))

    def mirrored(volume: np.ndarray) -> np.ndarray:
        return np.take(volume, mirror, axis=left_right)[window]

    usable = mirrored(healthy) & there[window] & brain[window]
    region, healthy = region[window], healthy[window]
    weight = np.where(region, rise(1 - distance[window] / MARGIN_MM), 0)
    for k, channel in enumerate(image.astype(np.float32)):
        own, other = channel[window], mirrored(channel)
        # Like seamless cloning: the difference at the rim, carried inwards, is what the mirror image is corrected by.
        other = other + _around(own - other, healthy & usable, region, np.divide(WINDOWS_MM[1:], spacing[:, None]))
        known = np.where(healthy, own, other)
        lost = region & ~usable
        known = np.where(lost, _around(known, healthy | usable, lost, np.divide(WINDOWS_MM, spacing[:, None])), known)
        known = known.clip(own[healthy].min(), own[healthy].max())  # never background
        healed[k][window] = np.where(weight > 0, weight * known + (1 - weight) * own, own)
    return healed, np.zeros_like(labels)


def _mirror(
    image: np.ndarray, brain: np.ndarray, healthy: np.ndarray, axis: int, spacing: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """For each index along an axis that of its mirror image, for the plane about which healthy tissue is most alike.

    Returns:
        indices `[n]`, and bool of the shape of the brain: where that index lies inside the image.
    """
    n, reach = brain.shape[axis], int(np.ceil(PLANE_MM / spacing[axis]))
    ends = np.flatnonzero(brain.any(axis=tuple({0, 1, 2} - {axis})))[[0, -1]]
    thin = tuple(slice(None) if k == axis else slice(None, None, 2) for k in range(3))  # every other voxel will do
    image, healthy = image[thin], healthy[thin]
    best, found = -np.inf, ends.sum() - np.arange(n)
    for shift in range(-reach, reach + 1):
        index = ends.sum() + shift - np.arange(n)
        kept = index.clip(0, n - 1)
        both = healthy & np.take(healthy, kept, axis)
        values = image[both], np.take(image, kept, axis)[both]
        alike = np.corrcoef(*values)[0, 1] if both.any() and all(map(np.ptp, values)) else -np.inf
        if alike > best:
            best, found = alike, index
    inside = (found >= 0) & (found < n)
    return found.clip(0, n - 1), np.broadcast_to(np.expand_dims(inside, tuple({0, 1, 2} - {axis})), brain.shape)


def _around(values: np.ndarray, known: np.ndarray, wanted: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """Gaussian means of known values at the wanted voxels, each in the narrowest window that holds enough of them.

    `windows` is `[3, W]`, SDs in voxels from narrow to wide; beyond the widest the mean of all that is known, or 0.
    """
    found = np.full(values.shape, values[known].mean() if known.any() else 0.0)
    held = np.where(known, values, 0)
    for sd in windows.T[::-1]:
        share = ndimage.gaussian_filter(known.astype(np.float32), sd)
        enough = wanted & (share > ENOUGH)
        found[enough] = ndimage.gaussian_filter(held, sd)[enough] / share[enough]
    return found
