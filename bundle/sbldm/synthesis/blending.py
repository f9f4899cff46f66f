"""How a tumour is drawn into a canvas, or its own is healed away.

What is written is the canvas plus the **difference** of the two decoded volumes, with and without the tumour, that
fades out towards the rim of the region: the autoencoder's own error drops out, the canvas keeps its noise, and every
voxel beyond the region is its own, bit for bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy import ndimage

from sbldm.cases.case import Source
from sbldm.cases.export import native_labels
from sbldm.cases.geometry import from_means, to_native
from sbldm.cases.intensity import BRIGHTEST, to_scanner
from sbldm.metrics.tumours import tumour_contrast
from sbldm.metrics.volumes import PERCENTILES
from sbldm.networks.request_picture import MARGIN_MM
from sbldm.synthesis.canvas import Canvas
from sbldm.synthesis.healing import rise
from sbldm.synthesis.model import Model
from sbldm.synthesis.pairs import LEAST_ML, OUTSIDE, Pair
from sbldm.synthesis.refine import Refine

__all__ = ["blended", "contrast_of", "draw_into", "settled", "smaller", "varied"]

BLEND_MM = 8.0  # from the rim of a region inwards, over which what is drawn fades into the canvas
FADE_MM = 4.0  # around the canvas's own tumour, over which its detail goes
CALM = 0.9  # quantile of the healthy brain that no healed voxel exceeds
STRENGTH = 0.2, 4.0  # of what is drawn, at least and at most, to reach a contrast
VARIED = 0.3  # SD of the logarithm of strength, without a contrast asked for
PUSHED = 0.5  # of a pushing tumour's volume takes the place of what it shifts, the rest that of what it replaces
SETTLED = 6.0, 0.7, 1.15  # farthest shift in mm, and least and largest drawn radius over that asked for, of a warp


def _weight(region: torch.Tensor, canvas: Canvas) -> np.ndarray:
    """Share of what is drawn, `[X, Y, Z]` on the native grid: 0 beyond the region and at its rim, 1 well inside."""
    inside, spacing = region[0].cpu().numpy() > 0, canvas.working.spacing
    for axis, n in enumerate(canvas.working.size):
        inside = np.repeat(inside, n // inside.shape[axis], axis)
    inside = np.pad(inside, 1, mode="edge")  # the edge of the field of view is no rim
    depth = ndimage.distance_transform_edt(inside, spacing)[1:-1, 1:-1, 1:-1] - max(spacing)
    return to_native(rise(depth / BLEND_MM), canvas.working, canvas.native, 0)


def _soft(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """1 in a mask, fading to 0 over `FADE_MM` around it."""
    points = np.argwhere(mask)
    reach = np.ceil(FADE_MM / np.asarray(spacing)).astype(int) + 1
    window = tuple(map(slice, (points.min(axis=0) - reach).clip(0), points.max(axis=0) + reach + 1))
    soft = np.zeros(mask.shape, np.float32)
    soft[window] = 1 - rise(ndimage.distance_transform_edt(~mask[window], spacing) / FADE_MM)
    return soft


def _mirrored(detail: np.ndarray, usable: np.ndarray, canvas: Canvas) -> np.ndarray:
    """What `[X, Y, Z]` lies across the middle of the brain's bounding box, 0 where that is not `usable`."""
    axis = int(np.abs(np.reshape(canvas.native.direction, (3, 3))[0]).argmax())
    ends = np.flatnonzero((canvas.image != 0).any(axis=(0, *({1, 2, 3} - {axis + 1}))))[[0, -1]]
    across = (ends.sum() - np.arange(detail.shape[axis])).clip(0, detail.shape[axis] - 1)
    return np.take(np.where(usable, detail, 0), across, axis)


def blended(
    canvas: Canvas,
    volume: np.ndarray,
    region: torch.Tensor,
    model: Model,
    heal: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The canvas plus the weighted difference of a decoded volume and its own, inside its brain.

    With `heal` the detail that the autoencoder does not hold goes from the canvas's own tumour, where it would draw its
    outline anew; the detail from across the brain takes its place, where that is healthy. Nor does anything stay that
    is brighter than nearly all of the brain around.

    Returns:
        image `[C, X, Y, Z]`, and the weight `[X, Y, Z]` of what was drawn: where it is 0 the image is the canvas.
    """
    weight, image, intensity = _weight(region, canvas), canvas.image.copy(), model.preset.intensity
    brain, tumour = (image != 0).any(axis=0), canvas.labels > 0
    changed = (weight > 0) & brain
    lost = np.minimum(weight, _soft(tumour, canvas.native.spacing)) if heal else None
    for channel, new, old, limits in zip(image, volume, canvas.volume, canvas.limits, strict=False):
        new, old = (to_scanner((scaled.clip(-1, 1) + 1) / 2, limits, intensity) for scaled in (new, old))
        difference = weight * from_means(new - old, canvas.working, canvas.native)
        if heal:
            detail = np.where(brain, channel - from_means(old, canvas.working, canvas.native), 0)
            difference -= lost * (detail - _mirrored(detail, brain & (lost == 0), canvas))
        mixed = channel + difference
        if heal:
            mixed -= lost * (mixed - np.quantile(channel[brain & (lost == 0)], CALM)).clip(0)
        channel[changed] = _of_brain(mixed[changed], channel)
    return image, weight


def _of_brain(values: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Values of brain voxels, within what a channel's brain and file can hold; none becomes background."""
    values = values.clip(own[own != 0].min(), max(BRIGHTEST, own.max()))
    whole = own.dtype == np.int16
    values = np.rint(values) if whole else values
    return np.where(values == 0, 1 if whole else 1e-3, values)


def draw_into(
    canvas: Canvas,
    latents: torch.Tensor,
    region: torch.Tensor,
    model: Model,
    request: np.ndarray,
    contrast: float | None = None,
    strength: float = 1.0,
    refine: Refine | None = None,
) -> Pair:
    """The pair of a canvas and what was drawn into it; its labels are those of the drawn tumour alone.

    Args:
        canvas: healed, or with a tumour that it keeps.
        latents: `[Z, H, W, D]`, those of the canvas outside of the region.
        region: `[1, H, W, D]` of ones and zeros.
        model: decodes.
        request: `[K]`; what was drawn is brought to its volume and centre (`settled`).
        contrast: that the first channel is to have (`contrast_of`); None: as it was drawn.
        strength: of what was drawn, where no contrast is asked for (`varied`).
        refine: sharpens what was drawn, and with the same noise what it is the difference from (`Refiner.of`).
    """
    images, volume, own = len(canvas.image), model.decode(latents), canvas.volume
    if not np.isfinite(volume).all():
        return Pair(canvas.image, np.zeros_like(canvas.labels), None, "voxels that are no numbers")
    if refine:
        volume, own = refine(volume, own)
    image, weight = blended(replace(canvas, volume=own), volume, region, model)
    brain = (image != 0).any(axis=0)
    shares = (volume[images:].clip(-1, 1) + 1) / 2
    drawn, outside = native_labels(shares, brain, canvas.working, canvas.native)
    drawn[weight < 0.5] = 0
    voxel_ml = np.prod(canvas.native.spacing) / 1000
    if (drawn > 0).sum() * voxel_ml < LEAST_ML:
        return Pair(image, np.zeros_like(drawn), None, "empty mask")
    fault = f"{100 * outside:.0f} % of the mask outside the brain" if outside > OUTSIDE else ""
    if contrast is None and strength != 1:
        image = _strengthened(image, canvas, strength)
    image, drawn = settled(image, drawn, canvas, request, weight)
    drawn[canvas.labels > 0] = 0  # what the canvas keeps keeps its labels
    if (drawn > 0).sum() * voxel_ml < LEAST_ML:
        return Pair(image, np.zeros_like(drawn), None, "empty mask")
    if contrast is not None:
        image, unmet = _with_contrast(contrast, image, drawn > 0, canvas)
        fault = fault or unmet
    measured = Source.from_config(**dict(model.preset.data)).measure(drawn, canvas.native.frame(canvas.working))
    return Pair(image, drawn, measured, fault)


def _with_contrast(contrast: float, image: np.ndarray, tumour: np.ndarray, canvas: Canvas) -> tuple[np.ndarray, str]:
    """All that was changed of a canvas made weaker or stronger, until the tumour has a contrast; or why it cannot."""
    spacing = canvas.native.spacing
    without, drawn_as = (contrast_of(each[0], tumour, spacing) for each in (canvas.image, image))
    strength, found = 1.0, drawn_as
    for _ in range(2):  # the brightest voxels are cut, so once is not quite enough
        strength *= float(np.divide(contrast - without, found - without))
        if not STRENGTH[0] <= strength <= STRENGTH[1]:
            return image, f"contrast {drawn_as:.2g}, which cannot be made {contrast:.2g}"
        mixed = _strengthened(image, canvas, strength)
        found = contrast_of(mixed[0], tumour, spacing)
    return mixed, ""


def _strengthened(image: np.ndarray, canvas: Canvas, strength: float) -> np.ndarray:
    """All that was changed of a canvas made weaker or stronger, within what its brain and the files can hold."""
    mixed = image.copy()
    for channel, own in zip(mixed, canvas.image, strict=True):
        changed = channel != own
        before = own[changed].astype(np.float32)
        channel[changed] = _of_brain(before + strength * (channel[changed] - before), own)
    return mixed


def varied(seed: int) -> float:
    """How strongly a seed's tumour shows: drawn ones vary less in contrast than real ones do (`VARIED`)."""
    return float(np.exp(VARIED * np.random.default_rng([seed, 7]).standard_normal()))


def contrast_of(channel: np.ndarray, tumour: np.ndarray, spacing: Sequence[float]) -> float:
    """`tumour_contrast` as the evaluation measures it, without a brain's darkest and brightest voxels."""
    ends = np.percentile(channel[channel != 0], PERCENTILES)
    return tumour_contrast(np.where(channel != 0, channel.clip(*ends), 0), tumour, spacing)


def smaller(request: np.ndarray) -> np.ndarray:
    """What is drawn of a request `[K]` whose tumour then pushes: the same shape without `PUSHED` of its volume."""
    scale = (1 - PUSHED) ** (1 / 3)
    return request * np.array([scale**3, scale**2, 1, 1, 1, 1, scale, scale, scale, *[1] * (len(request) - 9)])


def settled(
    image: np.ndarray, labels: np.ndarray, canvas: Canvas, request: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Bring what was drawn to the volume and the centre asked for, by a smooth warp within the region.

    Along each ray from the centre the tumour swells or shrinks, and the shift of what lies around fades to nothing at
    `MARGIN_MM` from the ellipsoid asked for. A tumour that was drawn `smaller` pushes its surroundings aside in this
    way (mass effect). Tumours that the canvas keeps do not move, nor does the brain's outline. What is farther off than
    `SETTLED` is brought no nearer than that.

    Args:
        image: `[C, X, Y, Z]` as `draw_into` drew it.
        labels: `[X, Y, Z]` uint8 of the drawn tumour.
        canvas: gives grids, and the labels that it keeps.
        request: `[K]` that was asked for.
        weight: `[X, Y, Z]`; where it is 0 nothing moves.
    """
    window = ndimage.find_objects((weight > 0).astype(np.uint8))[0]
    frame, ml = canvas.native.frame(canvas.working), float(np.prod(canvas.native.spacing)) / 1000
    voxels = np.stack(np.meshgrid(*(np.arange(part.start, part.stop) for part in window), indexing="ij"))
    start = np.array([part.start for part in window])[:, None, None, None]
    brain, part = (image != 0).any(axis=0)[window], labels[window]
    still = rise(2 * weight[window])
    if canvas.labels.any():
        still *= 1 - _soft(canvas.labels > 0, canvas.native.spacing)[window]
    inverse, shares = np.linalg.inv(frame[:3, :3]), None
    kinds = [k for k in np.unique(part) if k]
    centre, volume = request[3:6].copy(), request[0]
    for _ in range(2):  # what lies outside the ellipsoid moves less, so once is not quite enough
        places = _sources(part > 0, voxels, frame, request, centre, volume, ml)
        places = voxels - start + still * np.tensordot(inverse, places, axes=1)
        shares = [ndimage.map_coordinates((part == k).astype(np.float32), places, order=1) for k in kinds]
        found = (np.sum(shares, axis=0) >= 0.5) & brain
        if not found.any():
            return image, labels
        middle = frame[:3, :3] @ (np.argwhere(found).mean(axis=0) + start.ravel()) + frame[:3, 3]
        volume, centre = volume * request[0] / (found.sum() * ml), centre + request[3:6] - middle
    moved = np.abs(places - (voxels - start)).max(axis=0) > 1e-3
    nearest = ndimage.distance_transform_edt(~brain, return_distances=False, return_indices=True)
    image, labels = image.copy(), labels.copy()
    for channel in image:
        filled = channel[window].astype(np.float32)[tuple(nearest)]  # no background may be drawn in
        shifted = ndimage.map_coordinates(filled, places, order=3, mode="nearest").clip(filled.min(), filled.max())
        shifted = np.rint(shifted) if image.dtype == np.int16 else shifted
        channel[window] = np.where(moved & brain, shifted, channel[window])
    labels[window] = np.where(found, np.array(kinds, np.uint8)[np.argmax(shares, axis=0)], 0)
    return image, labels


def _sources(
    tumour: np.ndarray,
    voxels: np.ndarray,
    frame: np.ndarray,
    request: np.ndarray,
    centre: np.ndarray,
    volume: float,
    ml: float,
) -> np.ndarray:
    """From where each voxel takes what it shows, `[3, X, Y, Z]` in mm from where it is.

    A tumour is brought to a centre and a volume; its surroundings give way within the margin of a request.
    """
    middle = frame[:3, :3] @ voxels[:, tumour].mean(axis=1) + frame[:3, 3]
    away, farthest = middle - centre, SETTLED[0]
    away *= min(1.0, farthest / max(float(np.linalg.norm(away)), 1e-6))
    edge = np.clip(np.cbrt(tumour.sum() * ml / volume), *SETTLED[1:])  # of what was drawn, in radii of the request
    radii = np.maximum(request[6:9], 1) / 2
    offset = np.tensordot(frame[:3, :3], voxels, axes=1) + (frame[:3, 3] - (middle - away))[:, None, None, None]
    radius = np.sqrt(np.square(offset / radii[:, None, None, None]).sum(axis=0))
    rim = 1 + MARGIN_MM / radii.max()
    before = np.linspace(0, rim, 500)
    fading = 1 - rise((before - edge) / (rim - edge))
    after = np.where(before < edge, before / edge, before + (1 - edge) * fading)
    came_from = np.interp(radius, after, before, right=rim)
    ratio = np.where(radius < rim, came_from / np.maximum(radius, 1e-6), 1.0)
    return (ratio - 1) * offset + np.interp(radius, before, fading, right=0) * away[:, None, None, None]
