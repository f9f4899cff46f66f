"""A real brain that a tumour is drawn into, read and encoded once."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from sbldm.cases.geometry import NativeGrid, WorkingGrid
from sbldm.cases.inspection import scan_fault
from sbldm.cases.intensity import BRIGHTEST
from sbldm.cases.layouts import Case, Source, content_hash, read_arrays
from sbldm.cases.prepare import Gridded
from sbldm.run.errors import DataError
from sbldm.run.files import atomic_path, cached_npz
from sbldm.synthesis.model import Model

__all__ = ["Canvas", "read_canvas"]


@dataclass(frozen=True)
class Canvas:
    """A real brain that a tumour is drawn into.

    Attributes:
        name: of the case.
        content: hash of its first image, for the lineage.
        image: `[C, X, Y, Z]` on its native grid, background exactly 0: int16 where its file holds such numbers, else
            float32.
        labels: `[X, Y, Z]` uint8, of the tumours that it holds.
        native, working: its grids.
        limits: `[C, 2]`, where the percentiles of its brain lie in its units.
        latents: `[Z, H, W, D]` float32, standardised, of the healed brain.
        volume: `[C + L, X, Y, Z]` in [-1, 1] on the working grid: these latents, decoded.
        own: characteristics `[K]` of the tumour that it came with; empty where it had none.
    """

    name: str
    content: str
    image: np.ndarray
    labels: np.ndarray
    native: NativeGrid
    working: NativeGrid
    limits: np.ndarray
    latents: np.ndarray
    volume: np.ndarray
    own: np.ndarray

    def save(self, path: Path) -> None:
        """Write one .npz of plain arrays, whole or not at all."""
        content = vars(self) | {name: json.dumps(asdict(getattr(self, name))) for name in ("native", "working")}
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **content)

    @classmethod
    def load(cls, path: Path) -> Canvas | None:
        """What `save` wrote; None where there is none, or a damaged one."""
        content = cached_npz(path)
        try:
            content = dict(content or {})
            grids = {name: NativeGrid.from_state(json.loads(str(content[name]))) for name in ("native", "working")}
            return cls(**content | grids | {name: str(content[name]) for name in ("name", "content")})
        except (KeyError, TypeError, ValueError):
            return None


def read_canvas(case: Case, model: Model, known: bool = False) -> Canvas:
    """Read, prepare and encode a case as it is, its tumour included.

    Args:
        case: the scan, with or without a mask.
        model: encodes.
        known: that pre-flight has let it pass before (or the user has), so its brain is not doubted again.

    Raises:
        DataError: it cannot be read, or what pre-flight finds wrong with it.
    """
    preset = model.preset
    source, grid = Source.from_config(**dict(preset.data)), WorkingGrid.from_config(**dict(preset.grid))
    image, labels, affine = read_arrays(case, source, mask_needed=False)
    if image.shape[1:] != labels.shape:
        raise DataError(f"{case.mask}: {labels.shape} voxels where the image has {image.shape[1:]}.")
    if not known and (fault := scan_fault(image, affine)):
        raise DataError(f"{case.images[0]}: {fault}.")
    content = content_hash(image[0])
    made = Gridded.of(image, labels, affine, len(source.labels), grid, preset.intensity)
    latents = model.encode(2 * np.concatenate([made.image, made.occupancy / np.float32(255)]) - 1)
    return Canvas(
        name=case.name,
        content=content,
        image=image.astype(np.int16) if _is_whole(image) else image,
        labels=labels,
        native=made.native,
        working=made.working,
        limits=np.array(made.intensities),
        latents=latents.cpu().numpy(),
        volume=model.decode(latents),
        own=made.characteristics(labels, source, preset.intensity) if labels.any() else np.empty(0),
    )


def _is_whole(image: np.ndarray) -> bool:
    return bool((image == np.rint(image)).all() and np.abs(image).max() <= BRIGHTEST)
