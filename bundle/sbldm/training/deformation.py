"""Training cases turned, scaled and bent, so that stage 2 sees more brains than the training list holds.

The changes are of the size by which healthy heads differ and in which cases are positioned; intensities stay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from sbldm.run.preset import Diffusion
from sbldm.tumour.characteristics import NAMES, measure, sphere_surface

__all__ = ["copies_of_each", "deformed", "deformed_characteristics"]

MOST_COPIES = 100

TURN = 6.0  # degrees about each axis, at most
SCALE = 0.06  # along each axis, at most, up or down
BEND_MM = 1.5  # standard deviation of the displacement along each axis
REACH_MM = 20.0  # of the Gaussian that smooths it: the field folds nowhere


def copies_of_each(diffusion: Diffusion, cases: int) -> int:
    """How many copies of each of so many training cases a preset asks for: `deformed`, and `brains` in all with them.

    With ten cases and four copies each stage 2 begins to learn them by heart after 400 iterations, with 49 it does not
    within 1,200 (docs/ablation.md).
    """
    least = math.ceil(diffusion.brains / max(cases, 1)) - 1
    return max(diffusion.deformed, min(least, MOST_COPIES))


def deformed(volume: np.ndarray, spacing: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """A case as another head might have it: turned, scaled and bent about the middle of its grid.

    Cubic splines keep its texture; what lies beside a channel's body stays background, without their ripples.

    Args:
        volume: `[C + L, X, Y, Z]` in [-1, 1], -1 the background.
        spacing: mm a voxel along X, Y, Z.
        rng: all that is random comes from here.

    Returns:
        The same in shape and range, float32.
    """
    spacing, size = np.asarray(spacing, float), np.array(volume.shape[1:])
    axes = Rotation.from_euler("xyz", rng.uniform(-TURN, TURN, 3), degrees=True).as_matrix()
    axes = axes * rng.uniform(1 - SCALE, 1 + SCALE, 3)
    middle = (size - 1) / 2
    mm = (np.indices(size) - middle[:, None, None, None]) * spacing[:, None, None, None]
    waves = np.stack([gaussian_filter(rng.standard_normal(size), REACH_MM / spacing, mode="wrap") for _ in range(3)])
    where = (np.tensordot(axes, mm + waves * (BEND_MM / waves.std()), axes=1).T / spacing + middle).T
    moved = np.full(volume.shape, -1, np.float32)
    for channel, out in zip(volume, moved, strict=True):
        body = map_coordinates((channel > -1).astype(np.float32), where, order=1) > 0
        values = map_coordinates(channel, where[:, body], order=3, mode="nearest")
        out[body] = values.clip(-1, 1)
    return moved


def deformed_characteristics(
    values: np.ndarray, before: np.ndarray, after: np.ndarray, frame: np.ndarray
) -> np.ndarray | None:
    """The characteristics `[K]` of a deformed tumour, whose own are known on the native grid.

    Volume, surface and extents grow, and the centre moves, as measured on the working grid; shares stay.

    Args:
        values: `[K]`, before.
        before, after: masks `[X, Y, Z]` on the working grid.
        frame: 4x4, from its voxels to mm, as for `measure`.

    Returns:
        `[K]`, or None where the working grid shows no tumour, before or after.
    """
    if not (before.any() and after.any()):
        return None
    old, new = measure(before, frame), measure(after, frame)
    result = values.copy()
    result[: len(NAMES)] *= new
    result[: len(NAMES)] /= old
    result[3:6] = values[3:6] + new[3:6] - old[3:6]  # the centre is a place
    volume, surface = NAMES.index("volume_ml"), NAMES.index("surface_mm2")
    least = sphere_surface(result[volume])
    result[surface] = max(result[surface], least)
    result[NAMES.index("sphericity")] = least / result[surface]
    return result
