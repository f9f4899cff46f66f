"""Every score by the name of its protocol: no two protocols share a name, no number goes without one."""

from __future__ import annotations

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import yaml

from sbldm.run.limits import Channel

__all__ = ["PROTOCOLS", "REFERENCES", "REFERENCES_EXPLAINED", "Score", "Side", "protocol"]

Aim = Literal["floor", "low", "high"]

REFERENCES = {"path": "real through the path", "autoencoder": "real through path and autoencoder"}
"""Training cases, those of the floor, brought through what pairs are brought through: onto the working grid and back,
and on the way through the autoencoder too. What a perfect generator, and a perfect diffusion behind this autoencoder,
would score; the autoencoder has seen these cases."""
REFERENCES_EXPLAINED = (
    "Real through the path: the training cases of the floor, brought onto the working grid and back as pairs are. A "
    "perfect generator would score that. Real through path and autoencoder: encoded and decoded on the way by the "
    "generator's own autoencoder, which was trained on them. A perfect diffusion behind it would score that."
)

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
    "core": "share of tumour core",
    "enhancing": "share of enhancing tumour",
    "core_error": "share of tumour core, error in percentage points",
    "enhancing_error": "share of enhancing tumour, error in percentage points",
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
    "core_percent": "share of tumour core",
    "enhancing_percent": "share of enhancing tumour",
    "outside": "share outside the brain",
    "components": "number of components",
    "contrast": "contrast to the brain around",
    "z_gradient_ratio": "gradient across slices over that within",
    "adjacent_ssim": "SSIM of neighbouring slices",
    "banding": "banding of slices",
    "mask_flicker": "flicker of the mask",
    "mask_islands": "islands of one slice",
    "step": "step around the tumour",
    "noise": "grain around the tumour",
    "texture": "grain of the tumour",
    **{channel: channel.upper() for channel in get_args(Channel)},
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
    words = " and ".join(MEASURES.get(one, one.replace("_", " ")) for one in measure.split("-"))
    words += f" ({part})" if part else ""
    title = PROTOCOLS[known]["title"].format(words)
    return {"title": title[0].upper() + title[1:], "text": PROTOCOLS[known]["text"]}


@dataclass(frozen=True)
class Score:
    """One number beside its floor.

    Attributes:
        protocol: name in `PROTOCOLS`, for example "mmd-laplace.heldout".
        group: as in `written.GROUPS`.
        value, low, high: the synthetic pairs' score and its 95 % interval.
        n: how many synthetic and real cases went in.
        floor, floor_low, floor_high: the same score of real cases against real cases; NaN where there is none.
        floor_n: how many real cases on either side.
        path, path_low, path_high, path_n: the same of real cases through the path in place of the synthetic pairs (see
            `REFERENCES`); NaN where there are none, or where they would say nothing.
        autoencoder, autoencoder_low, autoencoder_high, autoencoder_n: of real cases through path and autoencoder.
        aim: "floor": best is equality with the floor; "low" or "high": the floor is what real cases reach, less (more)
            is worse; all are compared with the floor.
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
    path: float = math.nan
    path_low: float = math.nan
    path_high: float = math.nan
    path_n: tuple[int, int] = (0, 0)
    autoencoder: float = math.nan
    autoencoder_low: float = math.nan
    autoencoder_high: float = math.nan
    autoencoder_n: tuple[int, int] = (0, 0)

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
        """The inverse of `row`; of an older version, which knew no references, too."""
        values = {
            name: math.nan if value is None else tuple(value) if isinstance(value, list) else value
            for name, value in row.items()
        }
        return cls(**values)

    def side(self, name: str) -> Side:
        """Value, interval and numbers of "floor" or of one of `REFERENCES`; of the pairs where it is "synthetic"."""
        if name == "synthetic":
            return Side(self.value, self.low, self.high, self.n)
        return Side(*(getattr(self, f"{name}{part}") for part in ("", "_low", "_high", "_n")))

    @property
    def verdict(self) -> str:
        """How the score stands to its floor: "not told apart", "worse", "beyond real", "higher" or "lower".

        Not told apart are two scores whose intervals meet, which is a reading aid and no test. Empty without two
        intervals.
        """
        apart = self.side("synthetic").apart(self.side("floor"))
        if not apart:
            return "" if apart is None else "not told apart"
        if self.aim == "floor":
            return "higher" if apart > 0 else "lower"
        return "worse" if (apart > 0) == (self.aim == "low") else "beyond real"

    @property
    def no_worse_than(self) -> str:
        """The first of `REFERENCES` that stands as far from the floor as the score does, on the same side of it.

        Then what parts the score from its floor need not come from the generator. Empty where score or reference is not
        told apart from the floor, and where the score lies beyond the reference.
        """
        ours, floor = self.side("synthetic"), self.side("floor")
        if not (apart := ours.apart(floor)) or self.verdict == "beyond real":
            return ""
        for name in REFERENCES:
            reference = self.side(name)
            if reference.apart(floor) == apart and ours.apart(reference) != apart:
                return name
        return ""

    @property
    def reading(self) -> str:
        """The verdict in words, with the reference that explains it."""
        return self.verdict + NO_WORSE.get(self.no_worse_than, "")


NO_WORSE = {"path": ", as the path alone", "autoencoder": ", as path and autoencoder alone"}


class Side(NamedTuple):
    """One of the numbers that a score sets beside each other, with its interval and how many cases went in."""

    value: float
    low: float
    high: float
    n: tuple[int, int]

    def apart(self, other: Side) -> int | None:
        """1 above the other one, -1 below it, 0 where the intervals meet; None without two intervals."""
        if not all(map(math.isfinite, (self.low, self.high, other.low, other.high))):
            return None
        return int(self.low > other.high) - int(self.high < other.low)
