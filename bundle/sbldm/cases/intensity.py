"""In what intensities a data set is written: one rule for all that writes images, decided on the training cases.

Pairs are whole numbers (int16) with the background exactly 0 and the brain from 1 up. Scanner units are kept, channel
by channel, where they hold *every* training case well; else each image is spread so that the two percentiles of its
brain lie at `SPREAD`. Real cases may come in other units than the pairs beside them: nnU-Net brings every image to mean
0 and SD 1 on its own, and everything that is measured here is scaled to the brain's percentiles first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sbldm.run.preset import Intensity

__all__ = [
    "BRIGHTEST",
    "SPREAD",
    "describe_written",
    "scale_intensity",
    "to_scanner",
    "to_unit",
    "whole_numbers",
    "written_by",
    "written_ranges",
]

BRIGHTEST = int(np.iinfo(np.int16).max)
LEVELS, LEAST_LEVELS = 256.0, 100.0  # grey levels that whole numbers must leave the usual brain, and every one
HEADROOM = 2.5  # brightest voxel over the upper percentile; 130 BraTS 2020 cases: 1.35 in the middle, 2.45 at most
SPREAD = (100.0, 1000.0)  # room below for what is darker than the lower percentile, and above for 32 times the upper
REACH = 2.0  # what the shoulder holds above the upper percentile, in distances of the two percentiles
BRIGHT = 0.35  # what is given back of that: as much as usual (see `HEADROOM`), since more makes sparks of noise

Range = tuple[float, float]


def scale_intensity(
    image: np.ndarray, brain: np.ndarray, intensity: Intensity
) -> tuple[np.ndarray, tuple[float, float]]:
    """Map the two percentiles inside the brain to `floor` and 1 - `shoulder`, lower values to `floor`; background to 0.

    The gap between 0 and `floor` keeps dark brain apart from background. Above the upper percentile a hyperbola that
    goes on at the same slope and never reaches 1 keeps the few brightest voxels apart; without a shoulder they are
    clipped.

    Args:
        image: `[X, Y, Z]`.
        brain: `[X, Y, Z]` bool.
        intensity: of a preset.

    Returns:
        the scaled image `[X, Y, Z]` float32 and the two intensities (scanner units) that undo it (`to_scanner`).
    """
    low, high = np.percentile(image[brain], intensity.percentiles)
    floor, top, bend = _scale(intensity)
    unit = to_unit(image, low, high).clip(0, 1 + REACH)
    over = (unit - 1).clip(0)
    scaled = floor + (top - floor) * unit.clip(0, 1) + (1 - top) * over / (over + bend)
    return np.where(brain, scaled, 0).astype(np.float32), (float(low), float(high))


def to_scanner(scaled: np.ndarray, limits: Sequence[float], intensity: Intensity) -> np.ndarray:
    """The inverse of `scale_intensity`: `floor` becomes the first of `limits`, 1 - `shoulder` the second.

    The shoulder is undone up to `BRIGHT` alone: it is steep there, and the noise of a model would turn into sparks.
    """
    floor, top, bend = _scale(intensity)
    unit = (scaled - floor) / (top - floor)
    if top < 1:
        share = ((scaled - top) / (1 - top)).clip(0, BRIGHT / (BRIGHT + bend))
        unit = np.minimum(unit, 1) + bend * share / (1 - share)
    low, high = limits
    return low + unit * (high - low)


def _scale(intensity: Intensity) -> tuple[float, float, float]:
    """Floor, what the upper percentile becomes, and the excess at which the shoulder is half used up."""
    floor, shoulder = intensity.floor, intensity.shoulder
    top = 1 - shoulder
    return floor, top, shoulder / (top - floor) or 1.0


def written_ranges(intensities: Sequence[Sequence[Sequence[float]]] | np.ndarray) -> list[list[float] | None]:
    """Where the percentiles of a brain lie in what is written, by channel; None where scanner units are kept.

    Args:
        intensities: `[N, C, 2]`, the two percentiles of each training case (see `scale_intensity`).
    """
    low, high = np.moveaxis(np.asarray(intensities, dtype=float), -1, 0)
    levels = high - low
    kept = ((low >= 1) & (levels >= LEAST_LEVELS) & (high * HEADROOM <= BRIGHTEST)).all(axis=0)
    kept &= np.median(levels, axis=0) >= LEVELS
    return [None if fits else list(SPREAD) for fits in kept]


def written_by(constants: Mapping[str, Any]) -> list[list[float] | None]:
    """`written_ranges` of a checkpoint; in older ones without it they follow from the median of its training cases."""
    return constants["written"] if "written" in constants else written_ranges([constants["intensities"]])


def describe_written(written: Sequence[Sequence[float] | None], channels: Sequence[str]) -> dict[str, str]:
    """The same in words, by channel, for the records of a dataset."""
    spread = "spread: the percentiles of each brain lie at {:g} and {:g}"
    return {
        channel: "scanner units" if limits is None else spread.format(*limits)
        for channel, limits in zip(channels, written, strict=True)
    }


def to_unit(image: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scale so that `low` and `high` come out as 0 and 1, whatever the units; all 0 where there is nothing between."""
    image = np.asarray(image)
    return (image - low) / (high - low) if high > low else np.zeros_like(image, dtype=np.result_type(image, np.float32))


def whole_numbers(image: np.ndarray, brain: np.ndarray) -> np.ndarray:
    """An image `[X, Y, Z]` as int16: 1 or more in the brain, exactly 0 elsewhere."""
    return np.where(brain, np.rint(image).clip(1, BRIGHTEST), 0).astype(np.int16)
