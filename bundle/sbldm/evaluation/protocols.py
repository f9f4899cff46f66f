"""Every score by the name of its protocol: no two protocols share a name, no number goes without one."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import yaml

__all__ = ["PROTOCOLS", "Estimate", "Score", "mean_estimate", "protocol"]

Aim = Literal["floor", "low", "high"]

# Names of measures in the words of a table.
MEASURES = {
    "x": "centre, left to right",
    "y": "centre, back to front",
    "z": "centre, bottom to top",
    "w": "width, left to right",
    "h": "length, back to front",
    "d": "height, bottom to top",
    "centre_mm": "centre, distance in mm",
    "extents_mm": "extents, error in mm",
    "box_iou": "bounding box, IoU",
    "volume_error": "volume, relative error",
    "volume_bias": "volume, mean logarithm of the ratio",
    "sphericity_error": "sphericity, error",
    "volume_share": "volume",
    "centre_share": "centre",
    "volume_ml": "volume",
    "surface_mm2": "surface",
    "sphericity": "sphericity",
    "x_mm": "centre, left to right",
    "y_mm": "centre, back to front",
    "z_mm": "centre, bottom to top",
    "w_mm": "width, left to right",
    "h_mm": "length, back to front",
    "d_mm": "height, bottom to top",
    "outside": "share outside the brain",
    "components": "number of components",
    "contrast": "contrast to the brain around",
    "z_gradient_ratio": "gradient across slices over that within",
    "adjacent_ssim": "SSIM of neighbouring slices",
    "banding": "banding of slices",
    "mask_flicker": "flicker of the mask",
    "mask_islands": "islands of one slice",
}

PROTOCOLS: dict[str, dict[str, str]] = yaml.safe_load((Path(__file__).parent / "protocols.yaml").read_text())
"""Name -> title and text; a star in the name stands for a plane, measure or quantile."""


def protocol(name: str) -> dict[str, str]:
    """Title and text of the protocol of a score.

    Raises:
        KeyError: no protocol, or more than one, fits this name.
    """
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    patterns = {p: re.escape(p).replace(r"\*", "(.+)") for p in PROTOCOLS if "*" in p}
    fitting = [(p, match[1]) for p, pattern in patterns.items() if (match := re.fullmatch(pattern, name))]
    if len(fitting) != 1:
        raise KeyError(f"{name}: {len(fitting)} protocols fit this name")
    known, measure = fitting[0]
    measure, _, part = measure.partition(".")
    words = MEASURES.get(measure, measure.replace("_", " ")) + (f" ({part})" if part else "")
    title = PROTOCOLS[known]["title"].format(words)
    return {"title": title[0].upper() + title[1:], "text": PROTOCOLS[known]["text"]}


@dataclass(frozen=True)
class Score:
    """One number beside its floor.

    Attributes:
        protocol: name in `PROTOCOLS`, for example "kid.heldout".
        group: "similarity", "distribution", "tumours", "slices", "requests", "copies" or "fit".
        value, low, high: the synthetic pairs' score and its 95 % interval.
        n: how many synthetic and real cases went in.
        floor, floor_low, floor_high: the same score of real cases against real cases; NaN where there is none.
        floor_n: how many real cases on either side.
        aim: "floor": best is equality with the floor; "low" or "high": the floor is what real cases reach, less (more)
            is worse; all are judged against the floor.
        unit: "mm", "ml", "dB", or empty.
        note: one sentence where something must be known to read the number; else empty.
    """

    protocol: str
    group: str
    value: float
    low: float
    high: float
    n: tuple[int, int]
    floor: float = math.nan
    floor_low: float = math.nan
    floor_high: float = math.nan
    floor_n: tuple[int, int] = (0, 0)
    aim: Aim = "floor"
    unit: str = ""
    note: str = ""

    def __post_init__(self) -> None:
        protocol(self.protocol)

    def row(self) -> dict[str, Any]:
        """As plain values for JSON and CSV; what there is not is None."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Score:
        """The inverse of `row`."""
        numbers = ("value", "low", "high", "floor", "floor_low", "floor_high")
        values = row | {name: math.nan if row[name] is None else row[name] for name in numbers}
        return cls(**values | {"n": tuple(row["n"]), "floor_n": tuple(row["floor_n"])})

    @property
    def verdict(self) -> str:
        """How the score stands to its floor: "not told apart", "worse", "beyond real", "higher" or "lower".

        Not told apart are two scores whose intervals meet, which is a reading aid and no test. Empty without two
        intervals.
        """
        numbers = (self.low, self.high, self.floor_low, self.floor_high)
        if not all(map(math.isfinite, numbers)):
            return ""
        if self.low <= self.floor_high and self.high >= self.floor_low:
            return "not told apart"
        above = self.low > self.floor_high
        if self.aim == "floor":
            return "higher" if above else "lower"
        return "worse" if above == (self.aim == "low") else "beyond real"


class Estimate(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def mean_estimate(values: np.ndarray, seed: int = 0, draws: int = 2000) -> Estimate:
    """Mean of `[N]`, N >= 1, with the percentile interval of a bootstrap over its entries (Efron & Tibshirani 1993)."""
    values = np.asarray(values, dtype=np.float64)
    index = np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(values[index].mean(axis=1), [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high))
