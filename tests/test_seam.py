"""Seams: a step and a blur around a tumour are seen, at any place and spacing, and nothing where there is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from sbldm.metrics.seam import _from_ellipsoid, seam_measures
from sbldm.metrics.volumes import Volume
from sbldm.tumour.characteristics import NAMES

CENTRE, SIZE = (-12.0, 9.0, 6.0), (36.0, 28.0, 24.0)  # R, A, S; mm


def volume(seed: int, spacing: float = 2.0) -> Volume:
    """A ball of smooth noise with an ellipsoid of a tumour, on a grid about its centre."""
    n, rng = int(180 / spacing), np.random.default_rng(seed)
    axes = np.meshgrid(*[(np.arange(n) - (n - 1) / 2) * spacing] * 3, indexing="ij")
    brain = sum(a**2 for a in axes) < 80**2
    image = ndimage.gaussian_filter(rng.standard_normal(brain.shape), 3 / spacing)
    image = 0.5 + 0.1 * image / image.std() + 0.02 * rng.standard_normal(brain.shape)
    place = [a - c for a, c in zip(axes, (-CENTRE[0], -CENTRE[1], CENTRE[2]), strict=True)]
    tumour = sum((2 * p / s) ** 2 for p, s in zip(place, SIZE, strict=True)) < 1
    values = dict.fromkeys(NAMES, 1.0) | dict(
        zip(("x_mm", "y_mm", "z_mm", "w_mm", "h_mm", "d_mm"), CENTRE + SIZE, strict=True)
    )
    image = np.where(brain, (image + 0.2 * tumour).clip(0.001, 1), 0).astype(np.float32)
    return Volume("", "", image, tumour, (spacing,) * 3, np.array([values[name] for name in NAMES]))


def within(found: Volume, reach: float) -> np.ndarray:
    return found.brain & (_from_ellipsoid(found.characteristics, found.image.shape, np.array(found.spacing))[0] < reach)


def test_distance() -> None:
    """Along the axes it is that to the face of the ellipsoid; the direction points outwards."""
    found = volume(0)
    distance, outward = _from_ellipsoid(found.characteristics, found.image.shape, np.array(found.spacing))
    middle = tuple(round(c / 2 + 44.5) for c in (-CENTRE[0], -CENTRE[1], CENTRE[2]))
    for axis, size in enumerate(SIZE):
        there = list(middle)
        there[axis] += 15
        offset = (there[axis] - 44.5) * 2 - (-CENTRE[0], -CENTRE[1], CENTRE[2])[axis]
        assert distance[tuple(there)] == pytest.approx(offset - size / 2, abs=0.3)
        assert outward[axis][tuple(there)] > 0.99
    assert (distance[found.mask] < 0).all() and (distance[~found.mask] >= 0).all()


@pytest.mark.parametrize("spacing", [2.0, 3.0])
def test_a_step_and_a_blur_are_seen(spacing: float) -> None:
    """A step of .3 SD fifteen millimetres around raises the first measure alone, a blur lowers the second."""
    found = volume(1, spacing)
    plain, region = seam_measures(found), within(found, 15)
    sd = found.image[found.brain & ~found.mask].std()
    step = seam_measures(replace(found, image=np.where(region, found.image + 0.3 * sd, found.image)))
    assert step["step"] > plain["step"] + 0.08 and step["noise"] == pytest.approx(plain["noise"], abs=0.1)
    blurred = np.where(region, ndimage.gaussian_filter(found.image, 0.6), found.image)
    blur = seam_measures(replace(found, image=blurred))
    assert blur["noise"] < plain["noise"] - 0.2 and blur["texture"] < plain["texture"] - 0.2
    assert abs(plain["noise"]) < 0.1 and abs(plain["texture"]) < 0.15


def test_nothing_to_measure() -> None:
    """No tumour, or too few voxels."""
    found = volume(2)
    assert np.isnan(list(seam_measures(replace(found, characteristics=None)).values())).all()
    assert np.isnan(list(seam_measures(replace(found, mask=np.zeros_like(found.mask))).values())).all()
    small = replace(found, mask=found.mask & within(found, -8))
    assert np.isnan(seam_measures(small)["texture"]) and np.isfinite(seam_measures(small)["noise"])
