"""From decoded volumes to a finished pair in the native grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from sbldm.cases.geometry import WorkingGrid, brain_centre, to_native
from sbldm.cases.intensity import whole_numbers, written_by
from sbldm.synthesis.model import Model
from sbldm.tumour.characteristics import measure

__all__ = ["Pair", "finish_pair"]

OUTSIDE = 0.05  # share of the tumour outside the brain above which a pair is refused
LEAST_ML = 0.1  # a smaller mask counts as empty


@dataclass(frozen=True)
class Pair:
    """One synthetic pair in the native grid.

    Attributes:
        image: `[C, X, Y, Z]` int16, background exactly 0, brain 1 or more: in scanner units of the training data, or
            spread (see `cases.intensity`).
        labels: `[X, Y, Z]` uint8, 0 background, k the k-th label.
        measured: characteristics `[9]`, positions from the centre of the brain's bounding box; None without a tumour.
        fault: why it is no pair at all, or an empty string (more is looked at by `Gate`).
    """

    image: np.ndarray
    labels: np.ndarray
    measured: np.ndarray | None
    fault: str


def finish_pair(volume: np.ndarray, model: Model) -> Pair:
    """Bring a decoded volume `[C + L, X, Y, Z]` in [-1, 1] back to the native grid, cut it to the brain, measure it."""
    channels, floor = len(model.preset["data"]["channels"]), model.preset["intensity"]["floor"]
    native, working = model.native, model.working
    sound = bool(np.isfinite(volume).all())
    volume = (np.nan_to_num(volume, nan=-1, posinf=-1, neginf=-1) + 1) / 2
    # At the floor of brain intensities the brain keeps its volume (-0.3 % on real cases there and back).
    brain = to_native(_largest_body(volume[:channels].max(axis=0) > floor), working, native, 0) > 0.5
    occupancy = np.stack([to_native(v, working, native, 0) for v in volume[channels:]])
    tumour = occupancy.sum(axis=0) > 0.5  # a voxel can be tumour without being half filled by one label
    outside = 1 - (tumour & brain).sum() / max(1, tumour.sum())
    tumour &= brain
    labels = np.where(tumour, occupancy.argmax(axis=0) + 1, 0).astype(np.uint8)

    images = []
    usual = model.constants["intensities"]  # of the training cases, in scanner units
    for scaled, limits, written in zip(volume[:channels], usual, written_by(model.constants), strict=True):
        low, high = written or limits
        image = low + (to_native(scaled, working, native, 0) - floor) / (1 - floor) * (high - low)
        images.append(whole_numbers(image, brain))

    volume_ml = tumour.sum() * np.prod(native.spacing) / 1000
    if not sound:
        fault = "voxels that are no numbers"
    elif volume_ml < LEAST_ML:
        fault = "empty mask"
    elif outside > OUTSIDE:
        fault = f"{100 * outside:.0f} % of the mask outside the brain"
    else:
        fault = ""
    measured = None
    if volume_ml >= LEAST_ML:  # in the frame of the training cases: millimetres from the centre of this brain's box
        centre, _ = brain_centre(brain, native.image())
        grid = WorkingGrid.from_config(working.size, np.multiply(working.size, working.spacing))
        measured = measure(tumour, native.frame(grid.placed(centre, working.direction)))
    return Pair(np.stack(images), labels, measured, fault)


def _largest_body(mask: np.ndarray) -> np.ndarray:
    """The largest connected component with its holes filled; empty when the mask is."""
    components, count = ndimage.label(mask)
    if not count:
        return mask
    sizes = np.bincount(components.ravel())
    sizes[0] = 0
    return ndimage.binary_fill_holes(components == sizes.argmax())
