"""What every model takes from its training cases and keeps in its checkpoint: intensities, grids, names and hashes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from sbldm.cases.intensity import written_ranges
from sbldm.cases.prepare import read_sidecar
from sbldm.run.folder import Run

__all__ = ["measure_cases"]


def measure_cases(folder: str | Run, lists: dict[str, list[str]]) -> dict[str, Any]:
    """Median intensities and those to write (`written_ranges`), the grids to write in, both lists, and the content hash
    of each training case.
    """
    run = folder if isinstance(folder, Run) else Run.at(folder)
    sidecars = [read_sidecar(run.prepared, name) for name in lists["train"]]
    intensities = [s["intensities"] for s in sidecars]
    return {
        "intensities": np.median(intensities, axis=0).tolist(),
        "written": written_ranges(intensities),
        "grids": _template(sidecars),
        "lists": lists,
        "content": {s["case"]: s["content"] for s in sidecars},
    }


def _template(sidecars: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The most frequent native grid of the training cases, and where the working grid lies in it (their median)."""
    natives = [s["native"] for s in sidecars]
    shapes = [(tuple(n["size"]), tuple(np.round(n["spacing"], 4)), tuple(np.round(n["direction"], 4))) for n in natives]
    common = max(sorted(set(shapes)), key=shapes.count)
    chosen = [s for s, shape in zip(sidecars, shapes, strict=True) if shape == common]
    relative = [np.subtract(s["working"]["origin"], s["native"]["origin"]) for s in chosen]
    native = chosen[0]["native"]
    working = chosen[0]["working"] | {"origin": (np.median(relative, axis=0) + native["origin"]).tolist()}
    if len(chosen) < len(sidecars):
        print(
            f"Warning: {len(chosen)} of {len(sidecars)} training cases share the grid in which pairs will be written."
        )
    return {"native": native, "working": working}
