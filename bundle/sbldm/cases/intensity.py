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

__all__ = ["BRIGHTEST", "SPREAD", "describe_written", "to_unit", "whole_numbers", "written_by", "written_ranges"]

BRIGHTEST = int(np.iinfo(np.int16).max)
LEVELS, LEAST_LEVELS = 256.0, 100.0  # grey levels that whole numbers must leave the usual brain, and every one
HEADROOM = 2.5  # brightest voxel over the upper percentile; 130 BraTS 2020 cases: 1.35 in the middle, 2.45 at most
SPREAD = (100.0, 1000.0)  # room below for what is darker than the lower percentile, and above for 32 times the upper

Range = tuple[float, float]


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
    """`written_ranges` of a checkpoint; older ones without it are judged by the median of their training cases."""
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
