"""Bring cases onto the working grid, once, with the way back: `prepared/NAME.npz` and the sidecar `NAME.json`."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk

from sbldm.cases.export import body_of, native_brain, native_labels
from sbldm.cases.geometry import NativeGrid, WorkingGrid, brain_centre, from_image, to_image
from sbldm.cases.identity import Identity
from sbldm.cases.intensity import scale_intensity
from sbldm.cases.layouts import Case, Source, read_arrays
from sbldm.run.errors import StateError
from sbldm.run.files import atomic_path, clear_partial, read_json, read_npz, write_csv, write_json
from sbldm.run.preset import Data, Grid, Intensity
from sbldm.run.room import check_room
from sbldm.run.workers import map_in_processes
from sbldm.tumour.characteristics import NAMES, to_dict

__all__ = ["Gridded", "known_sidecar", "load_prepared", "prepare_case", "prepare_cases", "read_sidecar"]

VERSION = 2  # raise it when cases are prepared or measured differently: those of two versions do not mix
PACKED = 0.25  # a prepared case compressed, over its arrays: .10 to .24 on real cases and the presets
GRID = {"size": [int], "spacing": [float], "origin": [float], "direction": [float]}
SIDECAR = {
    "case": str,
    "content": str,
    "native": GRID,
    "working": GRID,
    "intensities": [[float]],
    "cropped": bool,
    "characteristics": dict.fromkeys(NAMES, float),
    "settings": dict,
}


@dataclass(frozen=True)
class Gridded:
    """A case on the working grid, and the way back.

    Attributes:
        image: float32 `[C, X, Y, Z]` in [0, 1].
        occupancy: uint8 `[L, X, Y, Z]`, 255 = the whole voxel is that label.
        native, working: grid of the files, and the working grid as it lies in it.
        intensities: `[C, 2]`, what undoes the scaling (`scale_intensity`).
        extents_mm: of the brain.
    """

    image: np.ndarray
    occupancy: np.ndarray
    native: NativeGrid
    working: NativeGrid
    intensities: list[tuple[float, float]]
    extents_mm: list[float]

    @classmethod
    def of(
        cls,
        image: np.ndarray,
        labels: np.ndarray,
        affine: np.ndarray,
        count: int,
        grid: WorkingGrid,
        intensity: Intensity,
    ) -> Gridded:
        """Bring image `[C, X, Y, Z]` and labels `[X, Y, Z]`, of which there are `count`, onto the working grid."""
        brain = (image != 0).any(axis=0)
        native = NativeGrid.of(to_image(labels, affine))
        oriented = sitk.DICOMOrient(to_image(labels, affine), "LPS")
        brain_lps, _ = from_image(sitk.DICOMOrient(to_image(brain.astype(np.uint8), affine), "LPS"))
        centre, extents = brain_centre(brain_lps > 0, oriented)
        channels, intensities = [], []
        for channel in image:
            scaled, limits = scale_intensity(channel, brain, intensity)
            channels.append(grid.resample(sitk.DICOMOrient(to_image(scaled, affine), "LPS"), centre))
            intensities.append(limits)
        shares = [
            grid.resample(sitk.Cast(oriented == number, sitk.sitkFloat32), centre) for number in range(1, 1 + count)
        ]
        occupancy = np.rint(np.stack(shares) * 255).clip(0, 255).astype(np.uint8)
        working = grid.placed(centre, oriented.GetDirection())
        return cls(np.stack(channels), occupancy, native, working, intensities, extents)

    def characteristics(self, labels: np.ndarray, source: Source, intensity: Intensity) -> np.ndarray:
        """Those `[K]` of the labels that the occupancy makes on the native grid (`native_labels`), in the frame of the
        working grid; of `labels` where nothing comes back of it.
        """
        outline = native_brain(body_of(self.image, intensity.floor), self.working, self.native)
        drawn, _ = native_labels(self.occupancy / np.float32(255), outline, self.working, self.native)
        return source.measure(drawn if drawn.any() else labels, self.native.frame(self.working))


def prepare_case(case: Case, source: Source, grid: WorkingGrid, intensity: Intensity) -> dict[str, Any]:
    """Bring one case onto the working grid.

    Returns:
        `image` and `occupancy` as in `Gridded`, and `sidecar`: what its files hold (`Identity`), native and working
        grid (the way back), intensities, brain extents and tumour characteristics.
    """
    image, labels, affine = read_arrays(case, source)
    made = Gridded.of(image, labels, affine, len(source.labels), grid, intensity)
    sidecar = {
        "case": case.name,
        "layout": case.layout,
        **Identity.of(image, labels, affine).state(),
        "native": made.native.state(),
        "working": made.working.state(),
        "intensities": made.intensities,
        "brain_extents_mm": [round(e, 3) for e in made.extents_mm],
        "cropped": bool(np.any(np.asarray(made.extents_mm) > grid.fov_mm)),
        "characteristics": to_dict(made.characteristics(labels, source, intensity), source.characteristics),
    }
    return {"image": made.image, "occupancy": made.occupancy, "sidecar": sidecar}


def _one_thread() -> None:
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def _prepare_to(folder: Path, settings: dict[str, Any], source: Source, grid: WorkingGrid, case: Case) -> None:
    prepared = prepare_case(case, source, grid, Intensity(**settings["intensity"]))
    with atomic_path(folder / f"{case.name}.npz") as temporary:
        np.savez_compressed(temporary, image=prepared["image"].astype(np.float16), occupancy=prepared["occupancy"])
    # Last, as it marks the case done.
    write_json(folder / f"{case.name}.json", prepared["sidecar"] | {"settings": settings, "version": VERSION})


def prepare_cases(
    cases: Sequence[Case],
    folder: Path,
    data: Data,
    grid: Grid,
    intensity: Intensity,
    workers: int,
    anew: Collection[str] = (),
) -> list[dict[str, Any]]:
    """Prepare all cases that are not in `folder` or have changed, several at a time, and return their sidecars.

    Args:
        cases: what pre-flight let through.
        folder: where `NAME.npz` and `NAME.json` go; finished cases are kept.
        data, grid, intensity: the parts of the preset of those names.
        workers: processes, each with one case in memory.
        anew: names of finished cases whose files have changed since.

    Raises:
        StateError: a case in `folder` was prepared with other values.
    """
    parts = {"data": data, "grid": grid, "intensity": intensity}
    settings = {key: part.state() for key, part in parts.items()}
    clear_partial(folder)
    held = {case.name: known_sidecar(folder, case.name) for case in cases}
    for name, sidecar in held.items():
        same = sidecar and all(part.equals(sidecar["settings"].get(key)) for key, part in parts.items())
        if sidecar and not (same and sidecar.get("version", 1) == VERSION):
            raise StateError(
                f"{folder / name}.json: prepared with other settings, or by another version; choose another --run or "
                f"remove {folder}."
            )
    missing = [
        case for case in cases if case.name in anew or not held[case.name] or not (folder / f"{case.name}.npz").exists()
    ]
    if missing:
        work = partial(
            _prepare_to, folder, settings, Source.from_config(**dict(data)), WorkingGrid.from_config(**dict(grid))
        )
        voxels = float(np.prod(grid.size))
        a_case = voxels * (2 * len(data.channels) + len(data.labels)) * PACKED
        check_room(folder, len(missing) * a_case, "choose another --run")
        try:
            map_in_processes(work, missing, workers, "Preparing cases", begin=_one_thread)
        finally:
            clear_partial(folder)  # a worker that had to go has no time for it on a busy machine
    sidecars = [read_sidecar(folder, case.name) for case in cases]
    columns = max((s["characteristics"] for s in sidecars), key=len, default=())  # an older version knew no shares
    rows = [{"case": s["case"]} | s["characteristics"] for s in sidecars]
    write_csv(folder / "characteristics.csv", rows, ["case", *columns])
    return sidecars


def known_sidecar(folder: Path, name: str) -> dict[str, Any] | None:
    """What is known of a prepared case; None when it is not prepared, or its sidecar is damaged."""
    try:
        return read_sidecar(folder, name)
    except StateError:
        return None


def load_prepared(folder: Path, name: str) -> tuple[np.ndarray, dict[str, Any]]:
    """One prepared case as the networks see it, and its sidecar.

    Images, then labels: `[C + L, X, Y, Z]` float32 in [-1, 1].

    Raises:
        StateError: the case has not been prepared, or its file is damaged.
    """
    again = _again(folder)
    arrays = read_npz(folder / f"{name}.npz", ("image", "occupancy"), again)
    image, occupancy = arrays["image"].astype(np.float32), arrays["occupancy"].astype(np.float32) / 255
    return 2 * np.concatenate([image, occupancy]) - 1, read_sidecar(folder, name)


def read_sidecar(folder: Path, name: str) -> dict[str, Any]:
    """What `prepare_case` measured of one case of `folder`.

    Raises:
        StateError: the case has not been prepared, or its file is damaged.
    """
    return read_json(folder / f"{name}.json", SIDECAR, _again(folder))


def _again(folder: Path) -> str:
    return f"run `sbldm prepare --data /path/to/cases --run {shlex.quote(str(folder.parent))}` again"
