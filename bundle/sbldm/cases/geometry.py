"""From a native grid to the working grid around the brain and back, in physical space.

The working grid has a fixed size and spacing and is centred on the bounding box of the brain; its axes run L, P, S like
those of BraTS. Positions that people see are millimetres from that centre along R, A, S.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import SimpleITK as sitk

__all__ = ["NativeGrid", "WorkingGrid", "brain_centre", "from_image", "from_means", "to_image", "to_native"]

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
STIFFNESS = 0.003  # of `from_means`, which has no solution without where native voxels are the wider (docs/path.md)
MAX_FACTOR = 8  # 512 samples make a good mean; a scan of 0.1 mm would ask for 40,000, and memory for 20 GB


def to_image(array: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """An array `[X, Y, Z]` with its nibabel (RAS) affine as a SimpleITK image in the same voxel order."""
    lps = LPS_FROM_RAS @ affine
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T))
    image.SetSpacing(spacing.tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    return image


def from_image(image: sitk.Image) -> tuple[np.ndarray, np.ndarray]:
    """The array `[X, Y, Z]` of a SimpleITK image and its nibabel (RAS) affine."""
    return sitk.GetArrayFromImage(image).T, NativeGrid.of(image).affine()


@dataclass(frozen=True)
class NativeGrid:
    """The grid of a file: voxels, spacing (mm), origin (mm, ITK's LPS) and direction cosines (row by row)."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    @classmethod
    def of(cls, image: sitk.Image) -> NativeGrid:
        """The grid of a SimpleITK image."""
        return cls(image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection())

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> NativeGrid:
        """The inverse of `state`."""
        return cls(**{name: tuple(values) for name, values in state.items()})

    def state(self) -> dict[str, Any]:
        """Plain values for JSON and checkpoints."""
        return {name: list(values) for name, values in asdict(self).items()}

    def affine(self) -> np.ndarray:
        """Voxel indices to millimetres in nibabel's RAS world."""
        lps = np.eye(4)
        lps[:3, :3] = np.reshape(self.direction, (3, 3)) * self.spacing
        lps[:3, 3] = self.origin
        return LPS_FROM_RAS @ lps

    @property
    def centre(self) -> np.ndarray:
        """Its middle (mm, LPS)."""
        half = np.asarray(self.spacing) * (np.asarray(self.size) - 1) / 2
        return self.origin + np.reshape(self.direction, (3, 3)) @ half

    def frame(self, working: NativeGrid) -> np.ndarray:
        """Voxel indices of this grid to millimetres from the centre of a working grid, along its R, A and S axes."""
        axes, centre = np.reshape(working.direction, (3, 3)), working.centre
        world = LPS_FROM_RAS @ self.affine()
        world[:3, 3] -= centre
        world[:3] = axes.T @ world[:3]
        return LPS_FROM_RAS @ world

    def image(self) -> sitk.Image:
        """An empty image on this grid, the reference of a resampling."""
        image = sitk.Image([int(n) for n in self.size], sitk.sitkUInt8)
        image.SetSpacing(self.spacing)
        image.SetOrigin(self.origin)
        image.SetDirection(self.direction)
        return image


@dataclass(frozen=True)
class WorkingGrid:
    """The grid of the networks: `size` voxels over a field of view of `fov_mm` millimetres, along L, P, S."""

    size: tuple[int, int, int]
    fov_mm: tuple[float, float, float]

    @classmethod
    def from_config(cls, size: Sequence[int], fov_mm: Sequence[float]) -> WorkingGrid:
        """Build it from the lists of a config."""
        return cls(tuple(int(n) for n in size), tuple(float(f) for f in fov_mm))

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimetres a voxel along L, P, S."""
        return tuple(f / n for f, n in zip(self.fov_mm, self.size, strict=True))

    def placed(
        self, centre: Sequence[float], direction: Sequence[float], factor: Sequence[int] = (1, 1, 1)
    ) -> NativeGrid:
        """This grid centred on a physical point (mm, LPS), its voxels divided by `factor` along each axis."""
        size = np.multiply(self.size, factor)
        spacing = np.divide(self.spacing, factor)
        origin = np.asarray(centre) - np.reshape(direction, (3, 3)) @ (spacing * (size - 1) / 2)
        return NativeGrid(
            tuple(int(n) for n in size), tuple(spacing.tolist()), tuple(origin.tolist()), tuple(map(float, direction))
        )

    def resample(self, image: sitk.Image, centre: Sequence[float]) -> np.ndarray:
        """Area-average a native image (oriented LPS) onto this grid: `[X, Y, Z]` float32, 0 outside the image.

        Linear interpolation on a grid at least as fine as the native one (up to `MAX_FACTOR` times the working one),
        then the mean over the fine voxels of each working voxel, so that nothing aliases and the sum of a mask keeps
        its volume.
        """
        factor = [_fineness(*steps) for steps in zip(self.spacing, image.GetSpacing(), strict=True)]
        fine = self.placed(centre, image.GetDirection(), factor)
        image = sitk.Resample(sitk.Cast(image, sitk.sitkFloat32), fine.image(), sitk.Transform(), sitk.sitkLinear, 0.0)
        return sitk.GetArrayFromImage(sitk.BinShrink(image, factor)).T


def brain_centre(brain: np.ndarray, image: sitk.Image) -> tuple[list[float], list[float]]:
    """Centre (mm, LPS) and extents (mm) of the bounding box of a brain mask `[X, Y, Z]` on the grid of `image`."""
    bounds = [np.flatnonzero(brain.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    low, high = (np.array([b[i] for b in bounds]) for i in (0, -1))
    centre = image.TransformContinuousIndexToPhysicalPoint(((low + high) / 2).tolist())
    return list(centre), ((high - low + 1) * image.GetSpacing()).tolist()


def to_native(array: np.ndarray, grid: NativeGrid, native: NativeGrid, outside: float) -> np.ndarray:
    """Interpolate a working volume `[X, Y, Z]` lying on `grid` linearly onto a native grid: `[X, Y, Z]` float32."""
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.T.astype(np.float32)))
    image.SetSpacing(grid.spacing)
    image.SetOrigin(grid.origin)
    image.SetDirection(grid.direction)
    resampled = sitk.Resample(image, native.image(), sitk.Transform(), sitk.sitkLinear, float(outside))
    return sitk.GetArrayFromImage(resampled).T


def from_means(array: np.ndarray, grid: NativeGrid, native: NativeGrid) -> np.ndarray:
    """The smoothest native volume whose means over the working voxels are `array`: what undoes `WorkingGrid.resample`.

    Interpolation takes a mean for a sample in the middle of its voxel and blurs it once more. Here, along each axis in
    turn, x minimises |E x - w|^2 + `STIFFNESS` |second differences of x|^2, with E the averaging of `resample`
    (histopolation; de Boor 2001, A Practical Guide to Splines, ch. VIII). It overshoots at edges, as any spline does.

    Args:
        array: `[X, Y, Z]` on `grid`.
        grid: a working grid, its axes along those of `native` in any order.

    Returns:
        `[X, Y, Z]` float32 on `native`; 0 beyond `grid`.
    """
    image = native.image()
    oriented = NativeGrid.of(sitk.DICOMOrient(image, "LPS"))
    apart = np.reshape(grid.direction, (3, 3)).T @ np.subtract(grid.origin, oriented.origin)
    volume = np.asarray(array, np.float32)
    for axis in range(3):
        step = oriented.spacing[axis]
        weights = _smoothest(
            array.shape[axis],
            round(grid.spacing[axis] / step, 6),
            oriented.size[axis],
            round(float(apart[axis]) / step, 4),
        )
        volume = np.moveaxis(np.tensordot(weights, volume, axes=(1, axis)), 0, axis)
    there = sitk.GetImageFromArray(np.ascontiguousarray(volume.T))
    there.SetSpacing(oriented.spacing)
    there.SetOrigin(oriented.origin)
    there.SetDirection(oriented.direction)
    letters = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(native.direction)
    return sitk.GetArrayFromImage(sitk.DICOMOrient(there, letters)).T


def _fineness(step: float, native_step: float) -> int:
    """Into how many samples `resample` divides a working voxel along an axis."""
    return int(np.clip(np.ceil(step / native_step - 1e-6), 1, MAX_FACTOR))


@lru_cache(maxsize=64)
def _smoothest(count: int, step: float, size: int, first: float) -> np.ndarray:
    """Weights `[size, count]` of `from_means` along an axis.

    Args:
        count, step: working voxels, and how many native ones each is wide.
        size: native voxels.
        first: centre of the first working voxel, in native voxels from the first native one.
    """
    fineness = _fineness(step, 1.0)
    samples = first - step / 2 + (np.arange(count * fineness) + 0.5) * step / fineness
    start = int(np.floor(samples[0])) - 1
    samples -= start
    whole = samples.astype(int)
    averages = np.zeros((len(samples), whole[-1] + 3))
    averages[np.arange(len(samples)), whole] = 1 - (samples - whole)
    averages[np.arange(len(samples)), whole + 1] = samples - whole
    averages = averages.reshape(count, fineness, -1).mean(axis=1)
    bending = np.diff(np.eye(averages.shape[1]), 2, axis=0)
    found = np.linalg.solve(averages.T @ averages + STIFFNESS * bending.T @ bending, averages.T)
    weights = np.zeros((size, count), np.float32)
    low, high = max(0, int(np.ceil(first - step / 2))), min(size, int(np.floor(first + (count - 0.5) * step)) + 1)
    weights[low:high] = found[low - start : high - start]
    return weights
