"""One group of cases described: everything small that the scores need, case by case, cached by content."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch

from sbldm.cases.geometry import WorkingGrid
from sbldm.cases.layouts import Case, Source
from sbldm.metrics.copies import fingerprint
from sbldm.metrics.features import Extractor, features_of, load_extractor
from sbldm.metrics.seam import seam_measures
from sbldm.metrics.slices import adjacent_curve, slice_measures
from sbldm.metrics.tumour_copies import mask_print, tumour_print
from sbldm.metrics.tumours import heat_map, tumour_measures
from sbldm.metrics.volumes import Volume, read_volume, spacing_of
from sbldm.run.device import choose_device
from sbldm.run.errors import DataError
from sbldm.run.files import atomic_path, cached_npz
from sbldm.run.workers import Workers

__all__ = ["Cohort", "describe", "read_image", "workers"]

DESCRIPTION = 4  # raise it when anything below measures differently

A_CARD = 2  # processes at most that share a GPU


@dataclass
class Cohort:
    """Cases of one role, in the order of their names.

    Attributes:
        role: "synthetic", "train" or "heldout", or a reference, "path" or "autoencoder".
        names, contents: of the cases that could be read.
        spacing: of the evaluation grid, mm.
        file, rows: where the images lie, `[.., X, Y, Z]` float16 on the evaluation grid, and `[N]` which of them.
        tumours, slices, seams: measure by name, each `[N]`, NaN where a case has none.
        curves: `[N, 21]` SSIM of neighbouring slices from the bottom of the brain to its top.
        fingerprints: `[N, ...]` low-resolution brains.
        mask_prints, tumour_prints: `[N, ...]` bool low-resolution masks, in the brain and on grids of their own.
        heat: `[N, 32, 38, 32]` float16, how much of each cell of the brain's box is tumour.
        features: plane -> `[N, D]`.
        characteristics: `[N, 9]`, NaN without a tumour.
        has_mask: `[N]` bool.
        spacings: of each case's file, mm along L, P, S.
        problems: one sentence for each case that was left out.
    """

    role: str
    names: list[str]
    contents: list[str]
    spacing: tuple[float, float, float]
    file: Path
    rows: np.ndarray
    tumours: dict[str, np.ndarray]
    slices: dict[str, np.ndarray]
    seams: dict[str, np.ndarray]
    curves: np.ndarray
    fingerprints: np.ndarray
    mask_prints: np.ndarray
    tumour_prints: np.ndarray
    heat: np.ndarray
    features: dict[str, np.ndarray]
    characteristics: np.ndarray
    has_mask: np.ndarray
    spacings: list[tuple[float, float, float]]
    problems: list[str]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def identities(self) -> set[str]:
        """What tells the images apart, whatever their masks and affines."""
        return {content[:32] for content in self.contents}

    def place(self, index: int) -> tuple[str, int]:
        """File and row of one image, for another process."""
        return str(self.file), int(self.rows[index])

    def first(self, count: int) -> np.ndarray:
        """Indices of a seeded choice of so many cases."""
        return np.random.default_rng(0).permutation(len(self))[:count]


def workers(count: int, features: str) -> Workers:
    """Processes that describe cases and compare volumes, each with one thread and the feature network in memory."""
    cards = torch.cuda.device_count() if choose_device(say=False).type == "cuda" else 0
    return Workers(min(count, A_CARD * cards or count), partial(_begin, features))


def describe(
    role: str, cases: Sequence[Case], source: Source, grid: WorkingGrid, cache: Path, images: Path, pool: Workers
) -> Cohort:
    """Read every case once and describe it; a case that cannot be read is left out with a sentence.

    Args:
        role: of the cohort.
        cases: its files.
        source: what channels and labels mean.
        grid: the evaluation grid.
        cache: folder of what is kept between runs.
        images: folder for `ROLE.npy`, the images on the evaluation grid.
        pool: see `workers`; each process has one volume in memory.

    Raises:
        DataError: no case can be read.
    """
    if not cases:
        raise DataError(f"{role}: there are no cases; name a folder that holds some.")
    path = images / f"{role}.npy"
    shape = (len(cases), *grid.size)
    np.lib.format.open_memmap(path, "w+", np.float16, shape).flush()
    work = partial(_described, source=source, grid=grid, cache=cache, images=path)
    described = pool.map(work, [(case, k) for k, case in enumerate(cases)], f"Reading the {role} cases")
    found = {k: record for k, record in enumerate(described) if not isinstance(record, DataError)}
    problems = [str(record) for record in described if isinstance(record, DataError)]
    if not found:
        raise DataError(f"{role}: none of {len(cases)} cases can be read; the first: {problems[0]}")
    order = sorted(found)
    records = [found[k] for k in order]

    def stacked(key: str) -> dict[str, np.ndarray]:
        return {name: np.array([r[key][name] for r in records]) for name in records[0][key]}

    def column(key: str) -> np.ndarray:
        return np.stack([r[key] for r in records])

    return Cohort(
        role=role,
        names=[r["name"] for r in records],
        contents=[r["content"] for r in records],
        spacing=grid.spacing,
        file=path,
        rows=np.array(order),
        tumours=stacked("tumours"),
        slices=stacked("slices"),
        seams=stacked("seams"),
        curves=column("curve"),
        fingerprints=column("fingerprint"),
        mask_prints=column("mask_print"),
        tumour_prints=column("tumour_print"),
        heat=column("heat"),
        features=stacked("features"),
        characteristics=column("characteristics"),
        has_mask=column("has_mask"),
        spacings=[r["spacing"] for r in records],
        problems=sorted(problems),
    )


_worker: dict[str, Extractor] = {}


def _begin(features: str) -> None:
    """Once in each process."""
    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    _worker["extractor"] = load_extractor(features, choose_device(say=False))


def read_image(place: tuple[str, int]) -> np.ndarray:
    """One image of a cohort `[X, Y, Z]` float32, by its place."""
    file, row = place
    return np.asarray(np.load(file, mmap_mode="r")[row], np.float32)


def _described(numbered: tuple[Case, int], **options: Any) -> dict[str, Any] | DataError:
    """A case that cannot be read is no reason to stop."""
    try:
        return _describe(*numbered, **options)
    except DataError as error:
        return error


def _describe(case: Case, index: int, source: Source, grid: WorkingGrid, cache: Path, images: Path) -> dict[str, Any]:
    volume = read_volume(case, source, grid)
    np.load(images, mmap_mode="r+")[index] = volume.image
    record = _measured(volume, cache / "cases")
    record["tumours"] |= volume.shares  # not in the cache, whose key knows nothing of tissues
    record["features"] = features_of(volume, _worker["extractor"], cache / "features")
    return record | {"name": volume.name, "content": volume.content, "spacing": spacing_of(case)}


def _measured(volume: Volume, cache: Path) -> dict[str, Any]:
    """All but the features, from the cache or anew."""
    key = hashlib.sha256(f"{DESCRIPTION} {volume.image.shape} {volume.spacing}".encode()).hexdigest()[:12]
    path = cache / f"{volume.content}-{key}.npz"
    flat = cached_npz(path)
    if flat is None:
        flat = _measure(volume)
        with atomic_path(path) as temporary:
            np.savez_compressed(temporary, **flat)
    record: dict[str, Any] = {"tumours": {}, "slices": {}, "seams": {}}
    for name, value in flat.items():
        group, _, key = name.partition(".")
        if key:
            record[group][key] = float(value)
        else:
            record[name] = value
    return record


def _measure(volume: Volume) -> dict[str, Any]:
    mask = volume.mask if volume.mask is not None else np.zeros_like(volume.brain)
    nothing = np.full(9, np.nan)
    return {
        **{f"tumours.{name}": value for name, value in tumour_measures(volume).items()},
        **{f"slices.{name}": value for name, value in slice_measures(volume).items()},
        **{f"seams.{name}": value for name, value in seam_measures(volume).items()},
        "curve": adjacent_curve(volume),
        "fingerprint": fingerprint(volume.image, volume.spacing),
        "mask_print": mask_print(mask, volume.image, volume.spacing),
        "tumour_print": tumour_print(mask, volume.spacing),
        "heat": heat_map([volume]).astype(np.float16),
        "characteristics": nothing if volume.characteristics is None else volume.characteristics,
        "has_mask": np.array(volume.mask is not None),
    }
