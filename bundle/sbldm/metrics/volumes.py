"""What is compared: volumes of any folder, on one grid around the brain, scaled alike, one at a time."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import nibabel as nib
import numpy as np
import SimpleITK as sitk

from sbldm.cases.geometry import NativeGrid, WorkingGrid, brain_centre, from_image, to_image
from sbldm.cases.intensity import to_unit
from sbldm.cases.layouts import Case, Source, content_hash, to_labels
from sbldm.cases.volumes import load_image
from sbldm.run.errors import DataError
from sbldm.run.files import reading
from sbldm.tumour.characteristics import measure

__all__ = [
    "FOV_MM",
    "PERCENTILES",
    "Volume",
    "common_spacing",
    "evaluation_grid",
    "read_channel",
    "read_volume",
    "spacing_of",
    "to_volume",
]

FOV_MM = (192.0, 224.0, 176.0)  # along L, P, S: holds any adult brain
PERCENTILES = (0.5, 99.8)
DARKEST = 1e-3
MEND = "the case is left out; restore the file from a copy"


@dataclass(frozen=True)
class Volume:
    """One case on the evaluation grid, whose axes run L, P, S and whose centre is that of the brain's bounding box.

    Attributes:
        name: of the case.
        content: hash of its files, the key of every cache: 32 digits for the voxels of the image, then 16 for those of
            the mask and for where both lie.
        image: `[X, Y, Z]` float32; the 0.5 and 99.8 percentiles inside the brain are 0 and 1, values beyond are clipped
            to [0.001, 1], so that the brain is exactly where the image is above 0.
        mask: `[X, Y, Z]` bool, whole tumour, or None when there is no mask file.
        spacing: of the axes, mm.
        characteristics: `[9]` float64 of the tumour, measured on the file's own grid, positions from the centre of the
            brain's bounding box; None without a tumour.
        shares: those of its tissues on the file's own grid, in per cent; NaN without a tumour (`Source.shares`).
    """

    name: str
    content: str
    image: np.ndarray
    mask: np.ndarray | None
    spacing: tuple[float, float, float]
    characteristics: np.ndarray | None
    shares: Mapping[str, float] = field(default_factory=dict)

    @property
    def brain(self) -> np.ndarray:
        """`[X, Y, Z]` bool."""
        return self.image > 0


def evaluation_grid(spacing: Sequence[float]) -> WorkingGrid:
    """The grid of this spacing (mm along L, P, S) that covers `FOV_MM`."""
    size = [round(fov / s) for fov, s in zip(FOV_MM, spacing, strict=True)]
    return WorkingGrid.from_config(size, [n * s for n, s in zip(size, spacing, strict=True)])


def spacing_of(case: Case) -> tuple[float, float, float]:
    """Spacing of a case's first image along L, P, S, rounded to 0.001 mm.

    Raises:
        DataError: the file cannot be read.
    """
    with reading(case.images[0], MEND, remove=False, error=DataError):
        zooms = nib.as_closest_canonical(load_image(case.images[0])).header.get_zooms()
        return tuple(round(float(s), 3) for s in zooms)[:3]


def common_spacing(cases: Sequence[Case]) -> tuple[float, float, float]:
    """The spacing that most cases have; those that cannot be read have no say.

    Raises:
        DataError: none can be read; the first is named.
    """
    spacings, errors = [], []
    for case in cases:
        try:
            spacings.append(spacing_of(case))
        except DataError as error:
            errors.append(error)
    if not spacings:
        raise errors[0]
    return Counter(spacings).most_common(1)[0][0]


def read_volume(case: Case, source: Source, grid: WorkingGrid) -> Volume:
    """Read the first channel and the mask of one case and bring them onto the evaluation grid.

    Raises:
        DataError: a file cannot be read, holds NaN, no brain, or image and mask differ in shape; the file is named.
    """
    image, affine = read_channel(case, 0)
    if not np.isfinite(image).all():
        raise DataError(f"{case.images[0]}: holds voxels that are no numbers; left out.")
    brain = image != 0
    if brain.all() or not brain.any():
        raise DataError(f"{case.images[0]}: is empty or not skull-stripped with background 0; left out.")
    labels = _read_labels(case, source, image.shape, affine) if case.mask.is_file() else None
    axes = affine[:3, :3] / np.maximum(np.linalg.norm(affine[:3, :3], axis=0), 1e-9)
    if not np.isfinite(affine).all() or not np.allclose(axes.T @ axes, np.eye(3), atol=1e-2):
        raise DataError(f"{case.images[0]}: its affine has no three axes at right angles; left out.")
    volume = to_volume(case.name, image, None if labels is None else labels > 0, affine, grid)
    return replace(volume, shares=source.shares(np.zeros(1, np.uint8) if labels is None else labels))


def to_volume(name: str, image: np.ndarray, mask: np.ndarray | None, affine: np.ndarray, grid: WorkingGrid) -> Volume:
    """Bring an image and a mask `[X, Y, Z]` onto the evaluation grid.

    Voxels of the grid's own spacing are cut out without interpolation; others are area-averaged.

    Args:
        name: of the case.
        image: any units, background exactly 0, some of it brain.
        mask: bool, whole tumour, or None.
        affine: 4x4, voxel indices to mm R, A, S.
        grid: see `evaluation_grid`.
    """
    rest = [content_hash(mask)] if mask is not None else []
    place = hashlib.sha256(repr([*rest, np.round(affine, 4).tolist()]).encode()).hexdigest()
    content = content_hash(image)[:32] + place[:16]
    brain = image != 0
    low, high = np.percentile(image[brain], PERCENTILES)
    scaled = np.where(brain, to_unit(image, low, high).clip(DARKEST, 1), 0).astype(np.float32)
    oriented = sitk.DICOMOrient(to_image(scaled, affine), "LPS")
    array = sitk.GetArrayFromImage(oriented).T
    centre, _ = brain_centre(array > 0, oriented)
    characteristics = None
    if mask is not None:
        mask = from_image(sitk.DICOMOrient(to_image(mask.astype(np.uint8), affine), "LPS"))[0] > 0
        if mask.any():
            frame = NativeGrid.of(oriented).frame(grid.placed(centre, oriented.GetDirection()))
            characteristics = measure(mask, frame)
    if np.allclose(oriented.GetSpacing(), grid.spacing, rtol=1e-3):
        start = _start(array > 0, grid.size)
        array = _cut(array, start, grid.size)
        mask = None if mask is None else _cut(mask, start, grid.size)
    else:
        share = grid.resample(_like(array > 0, oriented), centre)
        array = grid.resample(oriented, centre) / np.maximum(share, 1e-3)
        array = np.where(share > 0.5, array.clip(DARKEST, 1), 0).astype(np.float32)
        mask = None if mask is None else grid.resample(_like(mask, oriented), centre) > 0.5
    return Volume(name, content, array, mask, grid.spacing, characteristics)


def read_channel(case: Case, channel: int) -> tuple[np.ndarray, np.ndarray]:
    """One image channel `[X, Y, Z]` float32 as stored, and its 4x4 affine.

    Raises:
        DataError: the file cannot be read, or holds no three axes.
    """
    path, index = case.images[channel], case.volume[channel]
    with reading(path, MEND, remove=False, error=DataError):
        file = load_image(path)
        voxels = np.asarray(file.dataobj if index is None else file.dataobj[..., index], np.float32)
    if voxels.ndim != 3:
        raise DataError(f"{path}: has {voxels.ndim} dimensions, not 3; left out.")
    return voxels, file.affine


def _read_labels(case: Case, source: Source, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    with reading(case.mask, MEND, remove=False, error=DataError):
        file = load_image(case.mask)
        stored = np.asanyarray(file.dataobj)
    if stored.shape != shape:
        raise DataError(f"{case.mask}: has shape {stored.shape}, its image {shape}; left out.")
    if not np.allclose(file.affine, affine, atol=0.01):
        raise DataError(f"{case.mask}: its affine is not that of its image; left out.")
    return to_labels(stored, case, source)


def _like(mask: np.ndarray, image: sitk.Image) -> sitk.Image:
    """A mask `[X, Y, Z]` on the grid of an image."""
    copy = sitk.GetImageFromArray(np.ascontiguousarray(mask.T.astype(np.float32)))
    copy.CopyInformation(image)
    return copy


def _start(brain: np.ndarray, size: Sequence[int]) -> list[int]:
    """First voxel of the window of this size around the brain's bounding box, below 0 where it reaches beyond."""
    bounds = [np.flatnonzero(brain.any(axis=tuple({0, 1, 2} - {axis})))[[0, -1]] for axis in range(3)]
    return [int(np.floor((low + high - n + 1) / 2)) for (low, high), n in zip(bounds, size, strict=True)]


def _cut(array: np.ndarray, start: Sequence[int], size: Sequence[int]) -> np.ndarray:
    """A window of an array `[X, Y, Z]`, 0 where it reaches beyond."""
    window = np.zeros(tuple(size), array.dtype)
    ends = [min(s + n, extent) for s, n, extent in zip(start, size, array.shape, strict=True)]
    here = tuple(slice(max(s, 0), e) for s, e in zip(start, ends, strict=True))
    there = tuple(slice(max(-s, 0), max(-s, 0) + h.stop - h.start) for s, h in zip(start, here, strict=True))
    window[there] = array[here]
    return window
