"""What a tumour of several tissues is made of: how much of each, whether they lie within each other, how they show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from scipy import ndimage

from sbldm.metrics.tumours import components
from sbldm.metrics.volumes import PERCENTILES

__all__ = ["bare_share", "edge", "tissue_measures"]

RIM_MM = 3.0
HOLDING, HELD = "tumour core", "enhancing tumour"  # of the nested regions: what lies between them is dead tissue


def tissue_measures(
    images: Mapping[str, np.ndarray],
    labels: np.ndarray,
    spacing: Sequence[float],
    names: Mapping[str, int],
    regions: Mapping[str, Sequence[int]],
) -> dict[str, float]:
    """Measures of one case, NaN where it has not what they look at.

    Args:
        images: channel -> `[X, Y, Z]` in any units, background exactly 0.
        labels: `[X, Y, Z]`, 0 where there is no tumour.
        spacing: of the axes, mm.
        names: of the labels, each with its number.
        regions: nested ones, the whole tumour first, each with the numbers of its labels (see `Source.nested`).

    Returns:
        volume.REGION (ml) and share.REGION (of the whole tumour) of each region but the whole tumour, parts.REGION of
        the innermost (26-connected, of at least 0.1 ml), bare.REGION of the tumour core and bare.necrotic tissue (see
        `bare_share`), edge.REGION of each (see `edge`), and contrast.CHANNEL.LABEL: the mean in a label minus that of
        the healthy brain, in SDs of the latter (which is clipped to its 0.5 and 99.8 percentiles).
    """
    whole, *inner = regions
    masks = {name: np.isin(labels, numbers) for name, numbers in regions.items()}
    volumes = {name: mask.sum() * math.prod(spacing) / 1000 for name, mask in masks.items()}
    found = {f"volume.{name}": float(volumes[name]) for name in inner}
    found |= {f"share.{name}": float(volumes[name] / volumes[whole]) if volumes[whole] else math.nan for name in inner}
    found |= {f"parts.{name}": components(masks[name], spacing) for name in inner[-1:]}
    brain = np.logical_or.reduce([image != 0 for image in images.values()])
    if HOLDING in inner:
        found[f"bare.{HOLDING}"] = bare_share(masks[HOLDING], masks[whole], brain, spacing)
    if {HOLDING, HELD} <= {*inner}:
        found["bare.necrotic tissue"] = bare_share(masks[HOLDING] & ~masks[HELD], masks[HELD], brain, spacing)
    units = {channel: _in_healthy_sds(image, labels > 0) for channel, image in images.items()}
    for name, mask in masks.items():
        found[f"edge.{name}"] = edge([*units.values()], mask, spacing)
    for channel, image in units.items():
        for name, number in names.items():
            inside = image[(labels == number) & ~np.isnan(image)]
            found[f"contrast.{channel}.{name}"] = float(inside.mean()) if inside.size else math.nan
    return found


def _in_healthy_sds(image: np.ndarray, tumour: np.ndarray) -> np.ndarray:
    """A channel in SDs of its healthy brain from the mean of that; NaN outside the brain, and all of it without any."""
    brain = image != 0
    values = np.full(image.shape, math.nan, np.float32)
    healthy = image[brain & ~tumour].astype(np.float64)
    if healthy.size and np.ptp(healthy):
        healthy = healthy.clip(*np.percentile(healthy, PERCENTILES))
        values[brain] = (image[brain] - healthy.mean()) / healthy.std()
    return values


def bare_share(inner: np.ndarray, cover: np.ndarray, brain: np.ndarray, spacing: Sequence[float]) -> float:
    """Share of the surface of a tissue that does not border what should cover it, in mm2 of voxel faces.

    Faces to what is no brain do not count.

    Args:
        inner, cover, brain: `[X, Y, Z]` bool; the cover may hold the tissue itself.
        spacing: of the axes, mm.

    Returns:
        0 (all covered) to 1 (bare); NaN where the tissue is missing or borders no brain.
    """
    if not inner.any():
        return math.nan
    box = _around(inner, [1, 1, 1])
    inner, cover, brain = (np.pad(mask[box], 1) for mask in (inner, cover, brain))
    bare = surface = 0.0
    for axis in range(3):
        face = math.prod(spacing) / spacing[axis]
        for step in (-1, 1):
            beyond, covered = (np.roll(mask, step, axis) for mask in (brain & ~inner, cover))
            surface += face * (inner & beyond).sum()
            bare += face * (inner & beyond & ~covered).sum()
    return float(bare / surface) if surface else math.nan


def edge(units: Sequence[np.ndarray], mask: np.ndarray, spacing: Sequence[float]) -> float:
    """How sharply a region shows: the mean of the 3 mm within its border minus that of the 3 mm beyond, either sign.

    Of a voxel's length where that is larger; the mean over the channels. A mask that does not fit its images has
    less than one that does.

    Args:
        units: of each channel `[X, Y, Z]` in one unit for all, NaN outside the brain.
        mask: `[X, Y, Z]` bool.
        spacing: of the axes, mm.

    Returns:
        0 or more; NaN where there is nothing on one side.
    """
    if not mask.any():
        return math.nan
    reach = max(RIM_MM, *spacing)
    box = _around(mask, [math.ceil(reach / s) for s in spacing])
    inside, outside = (ndimage.distance_transform_edt(side, spacing) for side in (mask[box], ~mask[box]))
    rims = [(depth > 0) & (depth <= reach) for depth in (inside, outside)]
    steps = []
    for image in units:
        within, beyond = (image[box][rim] for rim in rims)
        within, beyond = within[~np.isnan(within)], beyond[~np.isnan(beyond)]
        if within.size and beyond.size:
            steps.append(abs(within.mean() - beyond.mean()))
    return float(np.mean(steps)) if steps else math.nan


def _around(mask: np.ndarray, margin: Sequence[int]) -> tuple[slice, ...]:
    """The box of a mask with a margin of so many voxels, within the image."""
    box = ndimage.find_objects(mask.astype(np.uint8))[0]
    return tuple(slice(max(0, b.start - m), b.stop + m) for b, m in zip(box, margin, strict=True))
