"""Whether what was drawn fits into its brain: the edge of the region, and the grain on either side of it.

A tumour that is drawn into a real brain (`synthesis.blending`) is drawn with a margin around it, and fades into what
is real. A seam would show as a step there, as blur or as another noise within. None of the numbers has a good
value of its own: real tumours push and swell what lies around them too, so each is read beside that of real tumours at
the same distances, as an effect size. On 60 BraTS cases a step of .15 SD of the brain 15 mm around each tumour raises
the first by 2.7 SD of the real cases, a blur of half a voxel there lowers the second by 4.5. (The ratio of slopes along
to slopes across the outward direction was no use: .2.)
"""

from __future__ import annotations

import math

import numpy as np
from scipy import ndimage

from sbldm.metrics.volumes import Volume
from sbldm.networks.request_picture import MARGIN_MM
from sbldm.tumour.characteristics import NAMES

__all__ = ["seam_measures"]

SHELL_MM = (2.0, 24.0)  # from the tumour's ellipsoid outwards: holds every edge of a region, which latents make coarse
BEYOND_MM = (24.0, 40.0)
LAYER_MM = 2.0
APART_MM = 3.0  # from the mask and from the brain's outline, whose own edges would count
FEWEST = 200  # voxels of a shell
CENTRE, EXTENTS = (slice(NAMES.index(first), NAMES.index(first) + 3) for first in ("x_mm", "w_mm"))
assert SHELL_MM[0] < MARGIN_MM < SHELL_MM[1]


def seam_measures(volume: Volume) -> dict[str, float]:
    """How the surroundings of a tumour differ from the brain beyond them.

    The shell is the brain from 2 to 24 mm outside of the ellipsoid with the tumour's centre and extents, where each
    edge of the region lies; 24 to 40 mm lie beyond. The mask and 3 mm around it, and 3 mm at the brain's outline, are
    left out.

    Returns:
        - `step`: largest change of the mean outward slope from one thin layer of the shell to the next (2 mm, or a
          voxel where that is more), in SDs of the healthy brain a layer. A step all around the tumour raises it, gyri
          cancel out.
        - `noise`: ln of the ratio of the grain in the shell to that beyond. The grain is the median absolute
          second difference of neighbouring voxels, averaged over the axes, which edges of tissue hardly touch.
        - `texture`: the same of the tumour, 3 mm inside its outline, to the brain beyond.

        NaN where there is no tumour, or fewer than 200 voxels on one side.
    """
    names = ("step", "noise", "texture")
    if volume.characteristics is None or volume.mask is None or not volume.mask.any():
        return dict.fromkeys(names, math.nan)
    spacing, healthy = np.asarray(volume.spacing), volume.image[volume.brain & ~volume.mask]
    distance, outward = _from_ellipsoid(volume.characteristics, volume.image.shape, spacing)
    box = ndimage.find_objects((volume.brain & (distance < BEYOND_MM[1])).astype(np.uint8))
    if not box or not healthy.size or not np.ptp(healthy):
        return dict.fromkeys(names, math.nan)
    cut = tuple(slice(max(0, s.start - 2), s.stop + 2) for s in box[0])  # slopes need neighbours
    image, mask = volume.image[cut].astype(np.float32), volume.mask[cut]
    distance, outward = distance[cut], outward[:, *cut]
    inner = _depth(image > 0, spacing) > APART_MM
    clear = inner & (ndimage.distance_transform_edt(~mask, spacing) > APART_MM) if mask.any() else inner
    beyond = clear & (distance >= BEYOND_MM[0]) & (distance < BEYOND_MM[1])
    shell = clear & (distance >= SHELL_MM[0]) & (distance < SHELL_MM[1])

    layer = max(LAYER_MM, float(spacing.max()))
    along = layer * (np.stack(np.gradient(image, *spacing)) * outward).sum(axis=0)
    number = ((distance[shell] - SHELL_MM[0]) // layer).astype(int)
    voxels = np.bincount(number, minlength=1)
    slopes = np.bincount(number, along[shell], minlength=1)[voxels >= FEWEST] / voxels[voxels >= FEWEST]
    step = np.abs(np.diff(slopes)).max() / healthy.std() if len(slopes) > 1 else math.nan

    grain = [np.abs(ndimage.correlate1d(image, [1.0, -2.0, 1.0], axis)) for axis in range(3)]

    def level(where: np.ndarray) -> float:
        return float(np.mean([np.median(differences[where]) for differences in grain]))

    def ratio(part: np.ndarray) -> float:
        if min(part.sum(), beyond.sum()) < FEWEST or min(here := level(part), there := level(beyond)) <= 0:
            return math.nan
        return math.log(here / there)

    tumour = inner & (_depth(mask, spacing) > APART_MM)
    return dict(zip(names, (float(step), ratio(shell), ratio(tumour)), strict=True))


def _depth(mask: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Distance in mm to what lies outside of a mask, the surroundings of the array among it."""
    return ndimage.distance_transform_edt(np.pad(mask, 1), spacing)[1:-1, 1:-1, 1:-1]


def _from_ellipsoid(
    characteristics: np.ndarray, shape: tuple[int, ...], spacing: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Distance in mm from the ellipsoid of a tumour, negative inside, and the outward direction `[3, X, Y, Z]`.

    The distance is that along the ray from the centre.
    """
    centre = characteristics[CENTRE] * [-1, -1, 1]  # R, A, S to L, P, S, from the middle of the grid
    axes = [(np.arange(n) - (n - 1) / 2) * s - c for n, s, c in zip(shape, spacing, centre, strict=True)]
    offset = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    radii = (np.maximum(characteristics[EXTENTS], 1) / 2).astype(np.float32)[:, None, None, None]
    length = np.sqrt(np.square(offset).sum(axis=0))
    scaled = np.sqrt(np.square(offset / radii).sum(axis=0))
    normal = offset / radii**2
    normal /= np.maximum(np.sqrt(np.square(normal).sum(axis=0)), 1e-9)
    return length * (1 - 1 / np.maximum(scaled, 1e-6)), normal
