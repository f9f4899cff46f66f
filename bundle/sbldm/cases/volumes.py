"""One reader for image files of every kind that nnU-Net takes: NIfTI, and by SimpleITK NRRD, MetaImage and GIPL."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK as sitk
from nibabel.filebasedimages import ImageFileError

from sbldm.cases.geometry import LPS_FROM_RAS
from sbldm.run.errors import DataError
from sbldm.run.files import reading, whole_stream

__all__ = [
    "ENDINGS",
    "is_nifti",
    "load_image",
    "read_image",
    "same_volume",
    "split_ending",
    "squeezed",
    "whole_numbers",
]

RESTORE = "restore it from a copy, or leave the case out"
NIFTI = (".nii.gz", ".nii")
_ITK = {".nrrd": "NrrdImageIO", ".mha": "MetaImageIO", ".mhd": "MetaImageIO", ".gipl": "GiplImageIO"}
ENDINGS = (*NIFTI, *_ITK)

# A float mask saved as uint8 with a slope is off by up to 4 / 255 / 2 = 0.008 where labels go to 4, with int16 by 6e-5.
WHOLE = 0.01


def split_ending(name: str) -> tuple[str, str] | None:
    """Stem and ending of an image file's name, upper or lower case; None for hidden files and other kinds."""
    if name.startswith("."):
        return None
    ending = next((ending for ending in ENDINGS if name.lower().endswith(ending) and len(name) > len(ending)), None)
    return None if ending is None else (name[: -len(ending)], name[-len(ending) :])


def is_nifti(path: Path) -> bool:
    """Whether the file's name says NIfTI."""
    return path.name.lower().endswith(NIFTI)


def load_image(path: Path) -> nib.spatialimages.SpatialImage:
    """Open an image file; its trailing axes of one are gone, so `[X, Y, Z, 1]` is `[X, Y, Z]`.

    Returns:
        An image of nibabel: `dataobj` `[X, Y, Z]` or `[X, Y, Z, T]`, `affine` from voxel indices to mm (RAS+), and a
        header. NIfTI is read when its voxels are asked for, other kinds are in memory.

    Raises:
        FileNotFoundError: no such file.
        ImageFileError, OSError: it cannot be read.
    """
    path = Path(path)
    return squeezed(nib.load(path) if is_nifti(path) else _load_itk(path))


def read_image(path: Path, mend: str = RESTORE) -> nib.spatialimages.SpatialImage:
    """The same with all of its voxels in memory, so that a damaged end shows here and not later.

    Raises:
        DataError: it cannot be read; the file and the `mend` are named.
    """
    with reading(path, mend, remove=False, error=DataError):
        whole_stream(path)
        image = load_image(path)
        return type(image)(np.asanyarray(image.dataobj), image.affine, image.header)


def squeezed(image: nib.spatialimages.SpatialImage) -> nib.spatialimages.SpatialImage:
    """The image without trailing axes of one beyond the third."""
    return nib.funcs.squeeze_image(image) if image.ndim > 3 and image.shape[-1] == 1 else image


def _load_itk(path: Path) -> nib.Nifti1Image:
    if not path.is_file():
        raise FileNotFoundError(f"No such file: '{path}'")
    reader = sitk.ImageFileReader()
    _, ending = split_ending(path.name) or ("", "")
    if kind := _ITK.get(ending.lower()):
        reader.SetImageIO(kind)  # ITK itself knows endings in small letters alone
    reader.SetFileName(str(path))
    try:
        image = reader.Execute()
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].removeprefix("Reason: ")
        raise ImageFileError(f"SimpleITK cannot read it: {reason.strip()}") from None
    voxels = sitk.GetArrayFromImage(image)
    components = image.GetNumberOfComponentsPerPixel()
    voxels = np.moveaxis(voxels, -1, 0).T if components > 1 else voxels.T  # components become the last axis
    dimension = image.GetDimension()
    axes = min(3, dimension)
    lps = np.eye(4)
    direction = np.reshape(image.GetDirection(), (dimension, dimension))[:axes, :axes]
    lps[:axes, :axes] = direction * image.GetSpacing()[:axes]
    lps[:axes, 3] = image.GetOrigin()[:axes]
    affine = LPS_FROM_RAS @ lps
    wrapped = nib.Nifti1Image(voxels, affine, dtype=voxels.dtype)
    wrapped.set_sform(affine, code=1)
    return wrapped


def whole_numbers(voxels: np.ndarray) -> np.ndarray:
    """Voxels of a mask, where those within 0.01 of a whole number are that number (`scl_slope` rounds); others stay."""
    if voxels.dtype.kind in "iub":
        return voxels
    rounded = np.rint(voxels)
    return np.where(np.abs(voxels - rounded) <= WHOLE, rounded, voxels)


def same_volume(first: Path, second: Path) -> bool:
    """Whether two files hold the same voxels in the same place; False when one cannot be read."""
    try:
        ours, theirs = load_image(first), load_image(second)
        return (
            ours.shape == theirs.shape
            and np.allclose(ours.affine, theirs.affine, atol=1e-3)
            and np.array_equal(np.asanyarray(ours.dataobj), np.asanyarray(theirs.dataobj), equal_nan=True)
        )
    except Exception:  # nibabel, gzip and zlib each have their own
        return False
