"""Bring cases onto the working grid, once, with the way back: `prepared/NAME.npz` and the sidecar `NAME.json`."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import zipfile
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
from rich.progress import track

from sbldm.cases.geometry import NativeGrid, WorkingGrid, brain_centre, from_image, to_image
from sbldm.cases.intensity import to_unit
from sbldm.cases.layouts import Case, Source, content_hash, read_arrays
from sbldm.errors import StateError
from sbldm.files import atomic_path, clear_partial, read_json, write_csv, write_json
from sbldm.tumour.characteristics import measure, to_dict

__all__ = ["load_prepared", "prepare_case", "prepare_cases", "scale_intensity"]


def scale_intensity(
    image: np.ndarray, brain: np.ndarray, percentiles: Sequence[float], floor: float
) -> tuple[np.ndarray, tuple[float, float]]:
    """Map the two percentiles inside the brain to `floor` and 1, clip to [floor, 1]; the background is exactly 0.

    The gap between 0 and `floor` keeps dark brain apart from background. Returns the scaled image `[X, Y, Z]` float32
    and the two intensities (scanner units) that undo it.
    """
    low, high = np.percentile(image[brain], percentiles)
    scaled = floor + (1 - floor) * to_unit(image, low, high).clip(0, 1)
    return np.where(brain, scaled, 0).astype(np.float32), (float(low), float(high))


def prepare_case(case: Case, source: Source, grid: WorkingGrid, intensity: dict[str, Any]) -> dict[str, Any]:
    """Bring one case onto the working grid.

    Returns:
        `image` float32 `[C, X, Y, Z]` in [0, 1], `occupancy` uint8 `[L, X, Y, Z]` (255 = the whole voxel is that label)
        and `sidecar`: native and working grid (the way back), intensities, brain extents and tumour characteristics,
        the latter measured on the native mask in the frame of the working grid.
    """
    image, labels, affine = read_arrays(case, source)
    brain = (image != 0).any(axis=0)
    native = NativeGrid.of(to_image(labels, affine))
    oriented = sitk.DICOMOrient(to_image(labels, affine), "LPS")
    brain_lps, _ = from_image(sitk.DICOMOrient(to_image(brain.astype(np.uint8), affine), "LPS"))
    centre, extents = brain_centre(brain_lps > 0, oriented)

    channels, intensities = [], []
    for channel in image:
        scaled, limits = scale_intensity(channel, brain, intensity["percentiles"], intensity["floor"])
        channels.append(grid.resample(sitk.DICOMOrient(to_image(scaled, affine), "LPS"), centre))
        intensities.append(limits)
    occupancy = [
        grid.resample(sitk.Cast(oriented == number, sitk.sitkFloat32), centre)
        for number in range(1, 1 + len(source.labels))
    ]

    placed = grid.placed(centre, oriented.GetDirection())
    sidecar = {
        "case": case.name,
        "layout": case.layout,
        "content": content_hash(image[0]),
        "native": native.state(),
        "working": placed.state(),
        "intensities": intensities,
        "brain_extents_mm": [round(e, 3) for e in extents],
        "cropped": bool(np.any(np.asarray(extents) > grid.fov_mm)),
        "characteristics": to_dict(measure(labels > 0, native.frame(placed))),
    }
    return {
        "image": np.stack(channels),
        "occupancy": np.rint(np.stack(occupancy) * 255).clip(0, 255).astype(np.uint8),
        "sidecar": sidecar,
    }


def _prepare_to(folder: Path, settings: dict[str, Any], source: Source, grid: WorkingGrid, case: Case) -> None:
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    prepared = prepare_case(case, source, grid, settings["intensity"])
    with atomic_path(folder / f"{case.name}.npz") as temporary:
        np.savez_compressed(temporary, image=prepared["image"].astype(np.float16), occupancy=prepared["occupancy"])
    # Last, as it marks the case done.
    write_json(folder / f"{case.name}.json", prepared["sidecar"] | {"settings": settings})


def prepare_cases(
    cases: Sequence[Case],
    folder: Path,
    data: dict[str, Any],
    grid: dict[str, Any],
    intensity: dict[str, Any],
    workers: int,
) -> list[dict[str, Any]]:
    """Prepare all cases that are not yet in `folder`, several at a time, and return their sidecars.

    Args:
        cases: what pre-flight let through.
        folder: where `NAME.npz` and `NAME.json` go; finished cases are kept.
        data, grid, intensity: the parts of the preset of those names.
        workers: processes, each with one case in memory.

    Raises:
        StateError: a case in `folder` was prepared with other values.
    """
    settings = {"data": data, "grid": grid, "intensity": intensity}
    clear_partial(folder)
    for case in cases:
        sidecar = folder / f"{case.name}.json"
        if sidecar.exists() and read_json(sidecar)["settings"] != settings:
            raise StateError(f"{sidecar}: prepared with other settings; choose another RUN or remove {folder}.")
    endings = (".npz", ".json")
    missing = [case for case in cases if not all((folder / f"{case.name}{ending}").exists() for ending in endings)]
    if missing:
        work = partial(_prepare_to, folder, settings, Source.from_config(**data), WorkingGrid.from_config(**grid))
        context = multiprocessing.get_context("spawn")
        with concurrent.futures.ProcessPoolExecutor(max(1, min(workers, len(missing))), mp_context=context) as pool:
            for _ in track(pool.map(work, missing), "Preparing cases", total=len(missing)):
                pass
    sidecars = [read_json(folder / f"{case.name}.json") for case in cases]
    write_csv(folder / "characteristics.csv", [{"case": s["case"]} | s["characteristics"] for s in sidecars])
    return sidecars


def load_prepared(folder: Path, name: str) -> tuple[np.ndarray, dict[str, Any]]:
    """One prepared case as the networks see it, and its sidecar.

    Images, then labels: `[C + L, X, Y, Z]` float32 in [-1, 1].

    Raises:
        StateError: the case has not been prepared, or its file is damaged.
    """
    try:
        with np.load(folder / f"{name}.npz") as arrays:
            image, occupancy = arrays["image"].astype(np.float32), arrays["occupancy"].astype(np.float32) / 255
        return 2 * np.concatenate([image, occupancy]) - 1, read_json(folder / f"{name}.json")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise StateError(
            f"{folder / name}.npz: missing or damaged ({error}); remove it and its .json and run `make prepare`."
        ) from None
