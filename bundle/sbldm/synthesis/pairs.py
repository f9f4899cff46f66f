"""From decoded volumes to a finished pair in the native grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sbldm.cases.case import Source
from sbldm.cases.export import body_of, native_brain, native_image, native_labels
from sbldm.cases.geometry import NativeGrid, WorkingGrid, brain_centre
from sbldm.cases.intensity import whole_numbers, written_by
from sbldm.run.preset import Preset
from sbldm.synthesis.model import Model

__all__ = ["Pair", "finish", "finish_pair"]

OUTSIDE = 0.05  # share of the tumour outside the brain above which a pair is refused
LEAST_ML = 0.1  # a smaller mask counts as empty


@dataclass(frozen=True)
class Pair:
    """One synthetic pair in the native grid.

    Attributes:
        image: `[C, X, Y, Z]` int16, background exactly 0, brain 1 or more: in scanner units of the training data, or
            spread (see `cases.intensity`).
        labels: `[X, Y, Z]` uint8, 0 background, k the k-th label.
        measured: characteristics `[K]` (`Source.characteristics`), positions from the centre of the brain's bounding
            box; None without a tumour.
        fault: why it is no pair at all, or an empty string (more is looked at by `Gate`).
    """

    image: np.ndarray
    labels: np.ndarray
    measured: np.ndarray | None
    fault: str


def finish_pair(volume: np.ndarray, model: Model) -> Pair:
    """Bring a volume `[C + L, X, Y, Z]` in [-1, 1] that a model has decoded to the grid of its training cases."""
    usual = model.constants["intensities"]  # of the training cases, in scanner units
    limits = [written or own for own, written in zip(usual, written_by(model.constants), strict=True)]
    return finish(volume, model.preset, model.native, model.working, limits)


def finish(
    volume: np.ndarray,
    preset: Preset,
    native: NativeGrid,
    working: NativeGrid,
    limits: Sequence[Sequence[float]],
) -> Pair:
    """Bring a volume back to a native grid, cut it to the brain, measure it.

    Args:
        volume: `[C + L, X, Y, Z]` in [-1, 1], images, then labels, on `working`.
        preset: that it was prepared, or its model trained, with.
        native, working: the grid to write in, and where the working grid lies in it.
        limits: `[C, 2]`, where the percentiles of the preset lie in what is written.
    """
    channels, intensity = preset.image_channels, preset.intensity
    sound = bool(np.isfinite(volume).all())
    volume = ((np.nan_to_num(volume, nan=-1, posinf=-1, neginf=-1) + 1) / 2).clip(0, 1)
    brain = native_brain(body_of(volume[:channels], intensity.floor), working, native)
    labels, outside = native_labels(volume[channels:], brain, working, native)
    tumour = labels > 0

    images = [
        whole_numbers(native_image(scaled, working, native, intensity, ends), brain)
        for scaled, ends in zip(volume[:channels], limits, strict=True)
    ]

    volume_ml = tumour.sum() * np.prod(native.spacing) / 1000
    if not sound:
        fault = "voxels that are no numbers"
    elif volume_ml < LEAST_ML:
        fault = "empty mask"
    elif outside > OUTSIDE:
        fault = f"{100 * outside:.0f} % of the mask outside the brain"
    else:
        fault = ""
    measured = None
    if volume_ml >= LEAST_ML:  # in the frame of the training cases: millimetres from the centre of this brain's box
        centre, _ = brain_centre(brain, native.image())
        grid = WorkingGrid.from_config(working.size, np.multiply(working.size, working.spacing))
        source = Source.from_config(**dict(preset.data))
        measured = source.measure(labels, native.frame(grid.placed(centre, working.direction)))
    return Pair(np.stack(images), labels, measured, fault)
