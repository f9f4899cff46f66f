"""What is wrong with one case: files, geometry, intensities, brain and tumour, each with its limit."""

from __future__ import annotations

import gzip
import itertools
import logging
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from scipy import ndimage

from sbldm.cases.identity import Identity, brightness_hash
from sbldm.cases.layouts import Case, Source, content_hash, to_labels
from sbldm.cases.volumes import is_nifti, load_image, squeezed
from sbldm.run.errors import DataError, refused

__all__ = ["Finding", "Inspection", "inspect_case", "scan_fault"]

# Thresholds, with what 130 BraTS 2020 cases at 2 mm and 10 at 1 mm show at most.
MAX_DISPLACEMENT = 0.1  # voxels between two affines at a corner of the grid; seen 0
MAX_SKEW = 1e-3  # cosine between two voxel axes; SimpleITK, and with it nnU-Net, refuses more; seen 0
MAX_SPACING_ERROR = 0.01  # header spacing against the affine, relative; seen 0
OUTLIER_FACTOR = 20.0  # brightest voxel over the 99th percentile of the non-zero voxels; seen 3.1
MAX_OUTSIDE = 0.03  # share of the tumour on background; seen 0.0008
SAMPLE = 200_000  # voxels that percentiles are taken from

# Plausible sizes, with what the same cases show. What lies beyond may be right: `accept` says so, case by case.
SPACING_MM = (0.2, 10.0)  # from 7-tesla scans to thick clinical slices; seen 1 and 2
POSSIBLE_MM = (0.1, 30.0)  # no scan has finer or coarser voxels: the affine is in metres, micrometres or the like
MIN_SLICES = 10  # along each axis: what 100 mm of brain have at the thickest; seen 78
BRAIN_ML = (400.0, 2500.0)  # a newborn's, and more than the largest adult's; a head with its skull has 3000 to 5000
BRAIN_MM = (60.0, 220.0)  # a newborn's height, the longest adult's length and room for its stem; seen 118 to 188
MAX_CORNER = 0.01  # share of the outermost eighths of the brain's box, at its corners, that is not 0; seen 0
TUMOUR_ML = 0.03  # a ball of 4 mm; seen 9.1
TUMOUR_VOXELS = 8  # a shape needs two voxels along each axis; seen 1143
MAX_TUMOUR = 0.5  # of the brain; seen 0.19
MAX_PARTS = 500  # of the tumour, corners count as contact; seen 74
MIN_OVERLAP = 0.9  # DSC of what is not 0 in two channels; phantoms 6, 8 and 10 mm off have .92, .89 and .87
MIN_LEVELS = 8  # different values in a sample of the brain, fewer are a mask's; seen 207
MAX_VOXELS = 2**30  # of one volume, 4 GiB in memory; seen 9 million

# Check -> what to do about it. Those in the second table are doubts: `accept` can overrule them.
MENDS = {
    "missing": "put the file there",
    "unreadable": "copy or export the file again",
    "dimensions": "store one volume [X, Y, Z] in each file, or a 4-D image with one volume for each channel",
    "affine": "export the file again with a sound affine in millimetres",
    "qform_sform": "make qform and sform agree, or declare one of them alone",
    "units": "write the affine in millimetres",
    "shape": "bring image and mask onto one grid",
    "grid": "bring image and mask onto one grid",
    "nan": "replace NaN and Inf, in the background by 0",
    "constant": "export the image again",
    "labels": "bring the mask to the labels of its layout",
    "empty_mask": "draw the tumour, or take the case out",
    "duplicate": "remove one of the two",
    "two_lists": "name the case in one list alone",
}
DOUBTS = {
    "spacing": "write the affine in millimetres",
    "slices": "take a scan of the whole brain",
    "orientation": "declare the orientation (qform_code or sform_code) after a look at which side is which",
    "outlier": "nothing, the preparation clips it; or mend the voxel",
    "flat": "put the MRI in place of what looks like a mask",
    "channels": "put each channel's own image there",
    "registration": "register the channels to each other, and strip the skull from all alike (background 0)",
    "background": "skull-strip it and set what is no brain to 0",
    "brain_volume": "skull-strip it, or write the affine in millimetres",
    "brain_extent": "skull-strip it, set stray voxels to 0, or write the affine in millimetres",
    "tumour_size": "draw the tumour alone, or take the case out",
    "tumour_parts": "clean the mask of specks",
    "outside_brain": "bring image and mask onto one grid, or skull-strip less",
}

_UNREADABLE = (
    *(OSError, EOFError, ValueError, MemoryError, zlib.error),
    *(nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError),
)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with one case.

    Attributes:
        case: name of the case.
        check: short id of the check, a key of `MENDS` or `DOUBTS`.
        what: plain words that name the file.
        action: what is done about it; of what is accepted the user took the responsibility.
    """

    case: str
    check: str
    what: str
    action: Literal["left out", "kept", "accepted"] = "left out"

    @property
    def mend(self) -> str:
        """What to do about it."""
        doubtful = self.check in DOUBTS and self.action == "left out"
        return (MENDS | DOUBTS)[self.check] + (f"; or --accept {self.case}:{self.check}" if doubtful else "")


@dataclass(frozen=True)
class Inspection:
    """What one look at the files of a case tells.

    Attributes:
        findings: what is wrong.
        identity: hashes of what its files hold; None when they could not be compared.
        axes: where its voxel axes point, e.g. LPS; "" when not known.
    """

    findings: list[Finding]
    identity: Identity | None = None
    axes: str = ""


def _why(path: Path, error: Exception) -> str:
    """Why a file cannot be read, in words."""
    if isinstance(error, OSError) and error.errno:
        return refused(path, error, "read").removeprefix(f"{path}: ").rstrip(".")
    return f"cannot be read ({error or type(error).__name__})"


def _open(path: Path) -> nib.Nifti1Image:
    """Open an image file after reading all of it: a partial read would miss a lost end or a wrong checksum."""
    if not is_nifti(path):
        return load_image(path)
    with (gzip.open if path.suffix.lower() == ".gz" else open)(path, "rb") as file:
        stored = file.read(nib.Nifti2Header.sizeof_hdr)
        kind = next((k for k in (nib.Nifti1Image, nib.Nifti2Image) if k.header_class.may_contain_header(stored)), None)
        if kind is None:
            raise ValueError("this is no NIfTI file")
        _check_size(kind.header_class(stored[: kind.header_class.sizeof_hdr], check=False))
        stored += file.read()
    image = kind.from_bytes(stored)
    if image.get_data_dtype().kind not in "iuf":
        raise ValueError(f"its voxels are no plain numbers but {image.get_data_dtype()}")
    needed = image.dataobj.offset + math.prod(image.shape) * image.get_data_dtype().itemsize
    if len(stored) < needed:
        raise ValueError(f"truncated: {len(stored):,} of {needed:,} bytes")
    return squeezed(image)


def _check_size(header: nib.Nifti1Header) -> None:
    """Refuse what no memory can hold before it is unpacked."""
    shape = header.get_data_shape()
    if min(shape, default=0) < 0 or math.prod(shape[:3]) > MAX_VOXELS:
        raise ValueError(f"its header tells of {' x '.join(map(str, shape))} voxels, which no scan has")


def _displacement(first: np.ndarray, second: np.ndarray, shape: Sequence[int]) -> float:
    """Largest distance, in voxels of `first`, between where two affines put the corners of a grid."""
    corners = np.array([(*corner, 1) for corner in itertools.product(*((0, n - 1) for n in shape[:3]))]).T
    distance = np.linalg.norm(((first - second) @ corners)[:3], axis=0).max()
    return float(distance / np.linalg.norm(first[:3, :3], axis=0).min())


def _geometry(image: nib.Nifti1Image) -> Iterator[tuple[str, str]]:
    """What is wrong with the affine of one file, as (check, what), before any voxel is read."""
    header, affine = image.header, image.affine
    sform = header.get_sform() if header["sform_code"] > 0 else None
    if sform is not None and not sform[:3, :3].any():
        yield "qform_sform", "its sform is declared valid but is all zero"
        return
    if not np.isfinite(affine).all():
        yield "affine", "its affine holds NaN or Inf"
        return
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not spacing.all() or not abs(np.linalg.det(affine[:3, :3] / spacing)) >= 1e-3:
        yield "affine", "its affine is singular"
        return
    axes = affine[:3, :3] / spacing
    if (skew := np.abs(axes.T @ axes - np.eye(3)).max()) > MAX_SKEW:
        yield "affine", f"its voxel axes are not orthogonal (cosine {skew:.3g})"
    stated = np.array(header.get_zooms()[:3])
    if not (np.abs(stated / spacing - 1) <= MAX_SPACING_ERROR).all():
        yield "affine", f"its header says voxels of {_mm(stated)} but its affine {_mm(spacing)}"
    if sform is not None and header["qform_code"] > 0:
        try:
            qform = header.get_qform()
        except ValueError:
            yield "qform_sform", "its qform is declared valid but is no rotation"
            return
        if not (apart := _displacement(sform, qform, image.shape)) <= MAX_DISPLACEMENT:
            yield "qform_sform", f"its qform and sform disagree by {apart:.3g} voxels"
    if spacing.min() < POSSIBLE_MM[0] or spacing.max() > POSSIBLE_MM[1]:
        yield "units", f"has voxels of {_mm(spacing)}; its affine cannot be in millimetres"
    elif spacing.min() < SPACING_MM[0] or spacing.max() > SPACING_MM[1]:
        yield "spacing", f"has voxels of {_mm(spacing)}; {_range(SPACING_MM)} mm are plausible"


def _mm(spacing: np.ndarray) -> str:
    return " x ".join(f"{length:.3g}" for length in spacing) + " mm"


def _range(limits: tuple[float, float]) -> str:
    return f"{limits[0]:,g} to {limits[1]:,g}"


def _intensities(volume: np.ndarray) -> Iterator[tuple[str, str, Literal["left out", "kept"]]]:
    """What is wrong with the voxels of one channel, float32 [X, Y, Z], as (check, what, action)."""
    lowest, highest = float(volume.min()), float(volume.max())
    if not np.isfinite([lowest, highest]).all():
        yield "nan", f"{np.count_nonzero(~np.isfinite(volume)):,} voxels are NaN or Inf", "left out"
    elif lowest == highest:
        yield "constant", f"every voxel is {lowest:g}", "left out"
    else:
        voxels = volume.ravel("K")
        # An odd step does not fall in with the even edges of common grids.
        sample = voxels[:: (voxels.size // SAMPLE) | 1]
        sample = sample[sample != 0]
        high = np.percentile(np.abs(sample if sample.size else voxels[voxels != 0]), 99)
        peak = max(-lowest, highest)
        if peak > OUTLIER_FACTOR * high:
            what = f"a voxel of {peak:,.0f} where 99 % are below {high:,.0f}; the preparation clips it"
            yield "outlier", what, "kept"
        if (levels := len(np.unique(sample))) < MIN_LEVELS:
            yield "flat", f"its voxels take {max(levels, 1)} value(s) beside 0, as those of a mask do", "left out"


def _declared(image: nib.Nifti1Image) -> bool:
    """Whether the header says where the patient's sides are; else nibabel takes the voxel axes to run L, A, S."""
    return bool(image.header["qform_code"] > 0 or image.header["sform_code"] > 0)


def _bounds(mask: np.ndarray) -> tuple[slice, ...]:
    """The box of a mask `[X, Y, Z]` that is not empty."""
    ends = [np.flatnonzero(mask.any(axis=tuple({0, 1, 2} - {axis})))[[0, -1]] for axis in range(3)]
    return tuple(slice(int(first), int(last) + 1) for first, last in ends)


def _brain(brain: np.ndarray, spacing: np.ndarray) -> Iterator[tuple[str, str]]:
    """What is doubtful about what is not 0, bool `[X, Y, Z]`, as (check, what)."""
    box = brain[_bounds(brain)]
    corners = box
    for axis, length in enumerate(box.shape):
        outer = max(1, length // 8)
        corners = corners.take([*range(outer), *range(length - outer, length)], axis=axis)
    if corners.mean() > MAX_CORNER:
        yield "background", f"its background is not 0, but for {1 - corners.mean():.0%} of the corners around the brain"
        return  # what is not 0 is no brain, whatever its size
    volume = np.count_nonzero(brain) * spacing.prod() / 1000
    if not BRAIN_ML[0] <= volume <= BRAIN_ML[1]:
        yield "brain_volume", f"holds {volume:,.4g} ml that are not 0; a brain has {_range(BRAIN_ML)} ml"
    extents = np.array(box.shape) * spacing
    if extents.min() < BRAIN_MM[0] or extents.max() > BRAIN_MM[1]:
        yield "brain_extent", f"what is not 0 takes {_mm(extents)}; a brain has {_range(BRAIN_MM)} mm along each axis"


def scan_fault(image: np.ndarray, affine: np.ndarray) -> str:
    """What is first wrong with, or doubtful about, a scan `[C, X, Y, Z]`, and the mend; nothing where it is sound."""
    for channel in image:
        for check, what, action in _intensities(channel.astype(np.float32)):
            if action == "left out":
                return f"{what}; {(MENDS | DOUBTS)[check]}"
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return next((f"{what}; {DOUBTS[check]}" for check, what in _brain((image != 0).any(axis=0), spacing)), "")


def _tumour(tumour: np.ndarray, brain: np.ndarray, spacing: np.ndarray) -> Iterator[tuple[str, str]]:
    """What is doubtful about a tumour that is not empty, both bool `[X, Y, Z]`, as (check, what)."""
    voxels, inside = np.count_nonzero(tumour), np.count_nonzero(tumour & brain)
    if (outside := 1 - inside / voxels) > MAX_OUTSIDE:
        yield "outside_brain", f"{outside:.0%} of the tumour lies outside the brain"
    volume, share = voxels * spacing.prod() / 1000, inside / max(1, np.count_nonzero(brain))
    if voxels < TUMOUR_VOXELS or volume < TUMOUR_ML:
        least = f"{TUMOUR_VOXELS} voxels and {TUMOUR_ML:g} ml are the least that has a shape"
        yield "tumour_size", f"its tumour has {voxels} voxel(s), {volume:.2g} ml; {least}"
    elif share > MAX_TUMOUR:
        yield "tumour_size", f"its tumour is {share:.0%} of the brain ({volume:,.4g} ml); half is the most"
    _, parts = ndimage.label(tumour[_bounds(tumour)], np.ones((3, 3, 3)))
    if parts > MAX_PARTS:
        yield "tumour_parts", f"its tumour has {parts:,} parts; up to {MAX_PARTS} are plausible"


@np.errstate(all="ignore")  # absurd numbers are what it looks for
def inspect_case(case: Case, source: Source) -> Inspection:
    """Check one case, reading each of its files once.

    Checks that need sound files (then sound geometry) are made only when those before them found nothing but doubts.
    """
    # nibabel logs what it notices in headers; the findings say it better.
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    findings: list[Finding] = []

    def found(check: str, path: Path, what: str, action: Literal["left out", "kept"] = "left out") -> None:
        findings.append(Finding(case.name, check, f"{path.name}: {what}", action))

    def useless() -> bool:
        return any(finding.check in MENDS for finding in findings)

    opened: dict[Path, nib.Nifti1Image] = {}
    for path in dict.fromkeys((*case.images, case.mask)):
        if not path.is_file():
            found("missing", path, f"is missing{case.hints.get(path, '')}")
            continue
        try:
            opened[path] = _open(path)
        except _UNREADABLE as error:
            found("unreadable", path, _why(path, error))
    for path, image in opened.items():
        volumes = None if path == case.mask else case.n_volumes
        if image.ndim != (3 if volumes is None else 4):
            found("dimensions", path, f"is {image.ndim}-D where {3 if volumes is None else 4}-D is expected")
        elif min(image.shape) < 1 or (volumes is not None and image.shape[3] != volumes):
            found("dimensions", path, f"has shape {image.shape} where {volumes or 1} channels are expected")
    if useless():
        return Inspection(findings)

    for path, image in opened.items():
        for check, what in _geometry(image):
            found(check, path, what)
    if useless():
        return Inspection(findings)
    first = opened[case.images[0]]
    for path, image in opened.items():
        if image.shape[:3] != first.shape[:3]:
            found("shape", path, f"has shape {image.shape[:3]}, {case.images[0].name} {first.shape[:3]}")
        elif not (apart := _displacement(first.affine, image.affine, first.shape)) <= MAX_DISPLACEMENT:
            found("grid", path, f"lies {apart:.3g} voxels from {case.images[0].name} (affines differ)")
    if useless():
        return Inspection(findings)

    axes = "".join(nib.aff2axcodes(first.affine))
    if not _declared(first):
        what = f"declares no orientation (qform_code and sform_code are 0); its axes are taken to run {', '.join(axes)}"
        found("orientation", case.images[0], what)
    if (least := min(first.shape[:3])) < MIN_SLICES:
        found("slices", case.images[0], f"has {least} slice(s) along one axis; {MIN_SLICES} are the least")
    hashes: list[str] = []
    brightness = ""
    brain, alone = np.zeros(first.shape[:3], bool, order="F"), []
    for channel, path, index in zip(source.channels, case.images, case.volume, strict=True):
        stored = opened[path].dataobj
        volume = np.asfortranarray(stored if index is None else stored[..., index], np.float32)
        for check, what, action in _intensities(volume):
            found(check, path, what if index is None else f"{channel}: {what}", action)
        hashes.append(content_hash(volume))
        if hashes[-1] in hashes[:-1]:
            found("channels", path, f"{channel} holds the same voxels as {source.channels[hashes.index(hashes[-1])]}")
        brightness = brightness or brightness_hash(volume)
        alone.append(volume != 0)
        brain |= alone[-1]
        sizes = np.count_nonzero(alone[0]), np.count_nonzero(alone[-1])
        overlap = 2 * np.count_nonzero(alone[0] & alone[-1]) / max(1, sum(sizes))
        if min(sizes) and overlap < MIN_OVERLAP:
            what = f"{channel} overlaps {source.channels[0]} by a DSC of {overlap:.2f}; {MIN_OVERLAP:g} is the least"
            found("registration", path, what)
    if useless():
        return Inspection(findings, None, axes)
    spacing = np.linalg.norm(first.affine[:3, :3], axis=0)
    for check, what in _brain(brain, spacing):
        found(check, case.images[0], what)
    try:
        labels = to_labels(np.asanyarray(opened[case.mask].dataobj), case, source)
    except DataError as error:
        findings.append(Finding(case.name, "labels", str(error)))
        return Inspection(findings, None, axes)
    if not labels.any():
        found("empty_mask", case.mask, f"holds no voxel of {', '.join(source.labels)}")
    else:
        for check, what in _tumour(labels > 0, brain, spacing):
            found(check, case.mask, what)
    return Inspection(findings, Identity.build(hashes, brightness, labels, first.affine), axes)
