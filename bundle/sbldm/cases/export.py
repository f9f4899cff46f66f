"""The way out: from prepared or decoded volumes on the working grid to brain, labels and image on the native one.

Conditions of the training are measured on what comes out of here (`prepare_case`), and pairs are made by it
(`finish_pair`), so that what is asked for is what can be drawn. Chosen on training cases, confirmed on held-back ones
(docs/path.md): images and masks are the smoothest ones with the same means over the working
voxels (`from_means`), whose rim is as dark as that of the real brain, and a mask keeps its volume.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from sbldm.cases.geometry import NativeGrid, from_means, to_native
from sbldm.cases.intensity import to_scanner
from sbldm.run.preset import Intensity

__all__ = ["body_of", "native_brain", "native_image", "native_labels", "tumour_of"]

THRESHOLDS = (0.3, 0.7)  # between which the one that keeps a tumour's volume is looked for


def body_of(images: np.ndarray, floor: float) -> np.ndarray:
    """Where the brain is on the working grid: the largest component above `floor`, its holes filled.

    At that level, the intensity of the darkest brain, the brain keeps its volume (-0.5 % on real cases there and back).

    Args:
        images: `[C, X, Y, Z]` in [0, 1]: `floor` or more in the brain, 0 outside.

    Returns:
        `[X, Y, Z]` bool, empty when no channel reaches that level.
    """
    mask = images.max(axis=0) > floor
    components, count = ndimage.label(mask)
    if not count:
        return mask
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    return ndimage.binary_fill_holes(components == sizes.argmax())


def tumour_of(labels: np.ndarray) -> np.ndarray:
    """Where the tumour is on the working grid: labels `[L, X, Y, Z]` in [-1, 1] that together fill half of a voxel."""
    return labels.sum(axis=0) + len(labels) - 1 > 0


def native_brain(body: np.ndarray, working: NativeGrid, native: NativeGrid) -> np.ndarray:
    """The outline of a brain `[X, Y, Z]` bool, brought from the working to the native grid."""
    return to_native(body, working, native, 0) > 0.5


def native_image(
    scaled: np.ndarray,
    working: NativeGrid,
    native: NativeGrid,
    intensity: Intensity,
    limits: Sequence[float],
) -> np.ndarray:
    """One channel `[X, Y, Z]` in [0, 1] on the native grid, in the units of `limits` (see `to_scanner`).

    The shoulder is undone first: what overshoots in it would come out as a spark.
    """
    return from_means(to_scanner(scaled, limits, intensity), working, native)


def native_labels(
    occupancy: np.ndarray, brain: np.ndarray, working: NativeGrid, native: NativeGrid
) -> tuple[np.ndarray, float]:
    """The labels that fill working voxels by these shares, and how much of the tumour was cut off outside the brain.

    The tumour (all labels) has the threshold at which its volume is that of its shares: 1/2 costs small and ragged
    tumours volume on native grids that are finer than the working one.

    Args:
        occupancy: `[L, X, Y, Z]` in [0, 1], share of each label in a working voxel.
        brain: `[X, Y, Z]` bool on the native grid.

    Returns:
        `[X, Y, Z]` uint8, 0 background, k the k-th label, nothing outside of `brain`; and the share, 0 to 1, of the
        tumour that lay there.
    """
    shares = np.stack([from_means(label, working, native) for label in occupancy])
    whole = shares.sum(axis=0)  # a voxel can be tumour without being half filled by one label
    tumour = whole > _threshold(whole, _volume(occupancy) * np.prod(working.spacing) / np.prod(native.spacing))
    kept = tumour & brain
    outside = 1 - kept.sum() / max(1, tumour.sum())
    return np.where(kept, shares.argmax(axis=0) + 1, 0).astype(np.uint8), float(outside)


def _volume(occupancy: np.ndarray) -> float:
    """Working voxels that a tumour fills: the shares around what is tumour at all, not a decoder's faint veil."""
    whole = occupancy.sum(axis=0).clip(0, 1)
    core = whole > 0.5
    return float(whole[ndimage.binary_dilation(core, np.ones((3, 3, 3)))].sum()) if core.any() else 0.0


def _threshold(shares: np.ndarray, voxels: float) -> float:
    """The threshold within `THRESHOLDS` above which so many voxels lie, or nearly."""
    if not voxels:
        return np.inf  # whatever overshoots
    low, high = THRESHOLDS
    sure = int((shares > high).sum())
    between = np.sort(shares[(shares > low) & (shares <= high)])[::-1]
    wanted = round(voxels) - sure
    if wanted <= 0:
        return high
    if wanted >= between.size:
        return low
    return float(between[wanted - 1] + between[wanted]) / 2
