"""What is wrong with the cases, found before any work and told in one table. Nothing is ever repaired."""

from __future__ import annotations

import gzip
import itertools
import logging
import math
import multiprocessing
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import nibabel as nib
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from sbldm.cases.layouts import Case, Source, content_hash, to_labels
from sbldm.errors import DataError, refused

__all__ = ["Finding", "inspect_case", "preflight", "print_table"]

# Thresholds, with what 130 BraTS 2020 cases at 2 mm and 10 at 1 mm show at most.
MAX_DISPLACEMENT = 0.1  # voxels between two affines at a corner of the grid; seen 0
MAX_SKEW = 1e-3  # cosine between two voxel axes; SimpleITK, and with it nnU-Net, refuses more; seen 0
MAX_SPACING_ERROR = 0.01  # header spacing against the affine, relative; seen 0
OUTLIER_FACTOR = 20.0  # brightest voxel over the 99th percentile of the non-zero voxels; seen 3.1
MAX_OUTSIDE = 0.03  # share of the tumour on background; seen 0.0008
SAMPLE = 200_000  # voxels that percentiles are taken from

_UNREADABLE = (
    *(OSError, EOFError, ValueError, MemoryError, zlib.error),
    *(nib.filebasedimages.ImageFileError, nib.spatialimages.HeaderDataError),
)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with one case.

    Attributes:
        case: name of the case.
        check: short id of the check: missing, unreadable, dimensions, affine, qform_sform, shape, grid, nan, constant,
            outlier, background, labels, empty_mask, outside_brain, duplicate, two_lists.
        what: plain words that name the file.
        action: what is done about it.
    """

    case: str
    check: str
    what: str
    action: Literal["left out", "kept"] = "left out"


def _why(path: Path, error: Exception) -> str:
    """Why a file cannot be read, in words."""
    if isinstance(error, OSError) and error.errno:
        return refused(path, error, "read").removeprefix(f"{path}: ").rstrip(".")
    return f"cannot be read ({error or type(error).__name__})"


def _open(path: Path) -> nib.Nifti1Image:
    """Open a NIfTI file after reading all of it: a partial read would miss a lost end or a wrong checksum."""
    stored = path.read_bytes()
    if path.suffix == ".gz":
        stored = gzip.decompress(stored)
    kind = next((k for k in (nib.Nifti1Image, nib.Nifti2Image) if k.header_class.may_contain_header(stored)), None)
    if kind is None:
        raise ValueError("this is no NIfTI file")
    image = kind.from_bytes(stored)
    if image.get_data_dtype().kind not in "iuf":
        raise ValueError(f"its voxels are no plain numbers but {image.get_data_dtype()}")
    needed = image.dataobj.offset + math.prod(image.shape) * image.get_data_dtype().itemsize
    if len(stored) < needed:
        raise ValueError(f"truncated: {len(stored):,} of {needed:,} bytes")
    return image


def _displacement(first: np.ndarray, second: np.ndarray, shape: Sequence[int]) -> float:
    """Largest distance, in voxels of `first`, between where two affines put the corners of a grid."""
    corners = np.array([(*corner, 1) for corner in itertools.product(*((0, n - 1) for n in shape[:3]))]).T
    distance = np.linalg.norm(((first - second) @ corners)[:3], axis=0).max()
    return float(distance / np.linalg.norm(first[:3, :3], axis=0).min())


def _geometry(image: nib.Nifti1Image) -> Iterator[tuple[str, str]]:
    """What is wrong with the affine of one file, as (check, what)."""
    header, affine = image.header, image.affine
    sform = header.get_sform() if header["sform_code"] > 0 else None
    if sform is not None and not sform[:3, :3].any():
        yield "qform_sform", "its sform is declared valid but is all zero"
        return
    if not np.isfinite(affine).all():
        yield "affine", "its affine holds NaN or Inf"
        return
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not spacing.all() or abs(np.linalg.det(affine[:3, :3] / spacing)) < 1e-3:
        yield "affine", "its affine is singular"
        return
    axes = affine[:3, :3] / spacing
    if (skew := np.abs(axes.T @ axes - np.eye(3)).max()) > MAX_SKEW:
        yield "affine", f"its voxel axes are not orthogonal (cosine {skew:.3g})"
    stated = np.array(header.get_zooms()[:3])
    if (np.abs(stated / spacing - 1) > MAX_SPACING_ERROR).any():
        yield "affine", f"its header says voxels of {_mm(stated)} but its affine {_mm(spacing)}"
    if sform is not None and header["qform_code"] > 0:
        try:
            qform = header.get_qform()
        except ValueError:
            yield "qform_sform", "its qform is declared valid but is no rotation"
            return
        if not (apart := _displacement(sform, qform, image.shape)) <= MAX_DISPLACEMENT:
            yield "qform_sform", f"its qform and sform disagree by {apart:.3g} voxels"


def _mm(spacing: np.ndarray) -> str:
    return " x ".join(f"{length:.3g}" for length in spacing) + " mm"


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


@np.errstate(all="ignore")  # absurd numbers are what it looks for
def inspect_case(case: Case, source: Source) -> tuple[list[Finding], str]:
    """Check one case, reading each of its files once.

    Checks that need sound files (then sound geometry) are made only when those before them found nothing.

    Returns:
        What is wrong, and a hash of the image's voxels ("" when they could not be compared).
    """
    # nibabel logs what it notices in headers; the findings say it better.
    logging.getLogger("nibabel.global").setLevel(logging.CRITICAL)
    findings: list[Finding] = []

    def found(check: str, path: Path, what: str, action: Literal["left out", "kept"] = "left out") -> None:
        findings.append(Finding(case.name, check, f"{path.name}: {what}", action))

    opened: dict[Path, nib.Nifti1Image] = {}
    for path in dict.fromkeys((*case.images, case.mask)):
        if not path.is_file():
            found("missing", path, "is missing")
            continue
        try:
            opened[path] = _open(path)
        except _UNREADABLE as error:
            found("unreadable", path, _why(path, error))
    for path, image in opened.items():
        volumes = None if path == case.mask else case.n_volumes
        if image.ndim != (3 if volumes is None else 4):
            found("dimensions", path, f"is {image.ndim}-D where {3 if volumes is None else 4}-D is expected")
        elif 0 in image.shape or (volumes is not None and image.shape[3] != volumes):
            found("dimensions", path, f"has shape {image.shape} where {volumes or 1} channels are expected")
    if findings:
        return findings, ""

    for path, image in opened.items():
        for check, what in _geometry(image):
            found(check, path, what)
    if findings:
        return findings, ""
    first = opened[case.images[0]]
    for path, image in opened.items():
        if image.shape[:3] != first.shape[:3]:
            found("shape", path, f"has shape {image.shape[:3]}, {case.images[0].name} {first.shape[:3]}")
        elif (apart := _displacement(first.affine, image.affine, first.shape)) > MAX_DISPLACEMENT:
            found("grid", path, f"lies {apart:.3g} voxels from {case.images[0].name} (affines differ)")
    if findings:
        return findings, ""

    content = ""
    brain = np.zeros(first.shape[:3], bool, order="F")
    for channel, path, index in zip(source.channels, case.images, case.volume, strict=True):
        stored = opened[path].dataobj
        volume = np.asfortranarray(stored if index is None else stored[..., index], np.float32)
        for check, what, action in _intensities(volume):
            found(check, path, what if index is None else f"{channel}: {what}", action)
        content += content_hash(volume)
        brain |= volume != 0
    if brain[:: max(1, brain.shape[0] - 1), :: max(1, brain.shape[1] - 1), :: max(1, brain.shape[2] - 1)].all():
        found("background", case.images[0], "its background is not 0; skull-strip it and set what is no brain to 0")
    try:
        tumour = to_labels(np.asanyarray(opened[case.mask].dataobj), case, source) > 0
    except DataError as error:
        findings.append(Finding(case.name, "labels", str(error)))
    else:
        n_tumour = np.count_nonzero(tumour)
        if n_tumour == 0:
            found("empty_mask", case.mask, f"holds no voxel of {', '.join(source.labels)}")
        elif (outside := np.count_nonzero(tumour & ~brain) / n_tumour) > MAX_OUTSIDE:
            found("outside_brain", case.mask, f"{outside:.0%} of the tumour lies outside the brain")
    return findings, content


def print_table(findings: Sequence[Finding], n_cases: int) -> None:
    """Print what is wrong with which case and what is done about it, and how many of `n_cases` are used."""
    console = Console()
    if findings:
        table = Table("case", "what is wrong", "what is done", title="Pre-flight")
        for finding in findings:
            table.add_row(*(Text(words) for words in (finding.case, finding.what, finding.action)))
        console.print(table)
    used = n_cases - len({finding.case for finding in findings if finding.action == "left out"})
    console.print(f"Pre-flight: {used} of {n_cases} cases used" + ("." if findings else ", nothing wrong."))


def _inspect_all(cases: Sequence[Case], source: Source, workers: int) -> list[tuple[list[Finding], str]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    inspect = partial(inspect_case, source=source)
    with Progress(*columns, console=Console(stderr=True)) as progress:
        if min(workers, len(cases)) <= 1:
            return list(progress.track(map(inspect, cases), len(cases), description="Pre-flight"))
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(workers, len(cases)), mp_context=context) as pool:
            return list(progress.track(pool.map(inspect, cases), len(cases), description="Pre-flight"))


def preflight(
    cases: Sequence[Case],
    source: Source,
    lists: Mapping[str, Sequence[str]] | None = None,
    workers: int = 2,
    strict: bool = False,
) -> tuple[list[Case], list[Finding]]:
    """Check all cases and print the table of what is wrong.

    Args:
        cases: cases found.
        source: channels and labels asked for.
        lists: names by role (train, validation), when the user gave them; a case in two is left out.
        workers: processes; one checks in this process.
        strict: stop at any finding.

    Returns:
        The usable cases in their order, and all findings. Of cases with the same image the first usable one is kept.

    Raises:
        DataError: no case is usable, or `strict` and anything is wrong.
    """
    results = _inspect_all(cases, source, workers)
    findings: list[Finding] = []
    usable: list[Case] = []
    first_with: dict[str, str] = {}
    for case, (of_case, content) in zip(cases, results, strict=True):
        roles = [role for role, names in (lists or {}).items() if case.name in names]
        if len(roles) > 1:
            of_case.append(Finding(case.name, "two_lists", f"stands in the lists {' and '.join(roles)}"))
        if all(finding.action == "kept" for finding in of_case):
            twin = first_with.setdefault(content, case.name)
            if twin == case.name:
                usable.append(case)
            else:
                what = f"{case.images[0].name}: the same image as case {twin}"
                of_case.append(Finding(case.name, "duplicate", what))
        findings += of_case
    print_table(findings, len(cases))
    if not usable:
        first = f" First: {findings[0].case}, {findings[0].what}." if findings else ""
        raise DataError(f"none of the {len(cases)} cases is usable.{first}")
    if strict and findings:
        raise DataError(f"STRICT=1: {len(findings)} findings in the table above; mend them or leave STRICT out.")
    return usable, findings
