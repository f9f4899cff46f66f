"""What a raw dataset of pairs says about itself beside the images: one record, read by all who draw or use pairs.

`manifest.csv` has a line for each pair (`PairRecord`), `synthesis.json` says what all have in common, `lineage.json`
from which real cases they descend, `given_up.csv` which requests were refused every time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from sbldm.run.errors import DamagedError, StateError
from sbldm.run.files import Misfit, check, read_json, read_rows, reading

__all__ = ["ANEW", "DRAWN_BY", "GIVEN_UP", "MEASURED", "OVERRIDDEN", "RECORD", "REQUESTED", "Manifest", "PairRecord"]

DRAWN_BY = "run the command that drew these pairs again (sbldm synth or copypaste, the same --n and --seed)"
ANEW = f"{DRAWN_BY}: it keeps the pairs and writes this file anew"
RECORD = {"pair": str, "seed": int, "redrawn": int, "seconds": float}  # what `records/PAIR.json` holds at least
GIVEN_UP = {"pair": str, "attempts": int}
REQUESTED, MEASURED = "requested_", "measured_"  # before the name of a characteristic
OVERRIDDEN = "OVERRIDDEN"  # how the column `gate` begins of a pair that is used against its advice
ANYWHERE = ("x_mm", "y_mm", "z_mm", "contrast", "core_percent", "enhancing_percent")  # may be 0 or less; sizes not


@dataclass(frozen=True)
class PairRecord:
    """How one pair came to be: its line of `manifest.csv`. What other kinds of datasets do not say is None or "".

    Attributes:
        name: of its files.
        seed: of its noise.
        redrawn: how often it was refused and drawn again before.
        seconds: that it took.
        requested, measured: characteristics by name, in ml, mm2, 1, mm and %; empty where nothing was asked for.
        extrapolated: in what the request goes beyond the training cases.
        gate: what the gate said; None where there was none.
        near: whether it is nearer to a training case than 95 % of held-back cases; None where nobody looked.
        canvas, canvas_content: name and content hash of the real brain that its tumour was drawn into.
        satellite_ml: volume of a second tumour.
        parents: the real cases that this pair alone descends from; None: all of the dataset's lineage.
        checkpoint: SHA-256 of the weights that drew it.
        refiner: SHA-256 of the weights that sharpened it; empty where nothing did.
        cells: the line as it stands in the file.
    """

    name: str
    seed: int | None
    redrawn: int | None
    seconds: float | None
    requested: Mapping[str, float]
    measured: Mapping[str, float]
    extrapolated: str
    gate: str | None
    near: bool | None
    canvas: str
    canvas_content: str
    satellite_ml: float
    parents: frozenset[str] | None
    checkpoint: str
    refiner: str
    cells: Mapping[str, str]

    @classmethod
    def of(cls, cells: Mapping[str, str]) -> PairRecord:
        """One line; a `ValueError` says what is wrong with it."""

        def number(name: str, kind: type = float) -> Any:
            return kind(cells[name]) if cells.get(name) else None

        def characteristics(kind: str) -> dict[str, float]:
            return {k.removeprefix(kind): float(v) for k, v in cells.items() if k.startswith(kind) and v}

        requested, near = characteristics(REQUESTED), cells.get("near_copy", "")
        if any(not math.isfinite(v) or (v <= 0 and name not in ANYWHERE) for name, v in requested.items()):
            raise ValueError("holds an impossible request")
        return cls(
            name=cells["pair"],
            seed=number("seed", int),
            redrawn=number("redrawn", int),
            seconds=number("seconds"),
            requested=requested,
            measured=characteristics(MEASURED),
            extrapolated=cells.get("extrapolated", ""),
            gate=cells.get("gate") or None,
            near=near == "1" if near else None,
            canvas=cells.get("canvas", ""),
            canvas_content=cells.get("canvas_content", ""),
            satellite_ml=number("satellite_ml") or 0.0,
            parents=frozenset(cells["parents"].split(";")) if cells.get("parents") else None,
            checkpoint=cells.get("checkpoint_sha256", ""),
            refiner=cells.get("refiner_sha256", ""),
            cells=cells,
        )

    @property
    def overridden(self) -> bool:
        """Whether it is used although the gate refused it."""
        return (self.gate or "").startswith(OVERRIDDEN)

    def ancestors(self, elsewhere: bool) -> frozenset[str] | None:
        """The real cases here that it descends from; None: all of the lineage.

        Args:
            elsewhere: whether its generator is `from_elsewhere`, so that of the cases here it has its canvas alone.
        """
        return frozenset([self.canvas]) if self.parents is None and elsewhere and self.canvas else self.parents


@dataclass(frozen=True)
class Manifest:
    """What the raw dataset in the folder `dataset` says about itself; each file is read when it is first asked for.

    Raises:
        StateError: of every attribute whose file is missing or damaged.
    """

    dataset: Path

    @property
    def file(self) -> Path:
        """The table of pairs."""
        return self.dataset / "manifest.csv"

    @property
    def is_ours(self) -> bool:
        """Whether the dataset has all that one of ours has."""
        return self.file.is_file() and self.has_settings and self.has_lineage

    def check(self) -> None:
        """Make sure that all of it can be read."""
        self.pairs, self.settings, self.lineage, self.description, self.given_up  # noqa: B018

    @property
    def has_settings(self) -> bool:
        """Whether it says how its pairs were drawn."""
        return (self.dataset / "synthesis.json").is_file()

    @property
    def has_lineage(self) -> bool:
        """Whether it says which real cases its pairs descend from."""
        return (self.dataset / "lineage.json").is_file()

    @cached_property
    def pairs(self) -> tuple[PairRecord, ...]:
        """One record a pair, at least one."""
        rows = read_rows(self.file, {"pair": str}, ANEW, remove=False)
        if not rows:
            raise DamagedError(f"{self.file}: lists no pairs; {ANEW}.")
        found: dict[str, PairRecord] = {}
        with reading(self.file, ANEW, remove=False):
            for line, row in enumerate(rows, 2):
                try:
                    pair = PairRecord.of(row)
                except ValueError as error:
                    raise Misfit(f"line {line}: {error}") from None
                if found.setdefault(pair.name, pair) is not pair:
                    raise Misfit(f"line {line}: {pair.name} comes twice")
        return tuple(found.values())

    @property
    def readable(self) -> tuple[PairRecord, ...]:
        """The pairs; none where the table is missing or damaged."""
        try:
            return self.pairs
        except StateError:
            return ()

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What all pairs have in common."""
        path, again = self.dataset / "synthesis.json", DRAWN_BY
        content = read_json(path, dict, again)
        known = {"checkpoint_sha256": str, "sampling": dict, "gate": dict}
        with reading(path, again):
            check(content, {name: form for name, form in known.items() if name in content})
            check(content, {} if content else {"seed": int})
        return content

    @cached_property
    def _lineage(self) -> dict[str, Any]:
        path = self.dataset / "lineage.json"
        content = read_json(path, {"cases": {str: str}}, ANEW, remove=False)
        if content.get("generator") is not None:
            form = {"data": str, "licence": str, "cases": int, "seen": [{"salt": str, "hashes": [str]}]}
            with reading(path, ANEW, remove=False):
                check(content["generator"], form)
        return content

    @property
    def lineage(self) -> dict[str, str]:
        """Real cases that the pairs descend from, and the content hash of each."""
        return self._lineage["cases"]

    @property
    def origin(self) -> dict[str, Any] | None:
        """What the generator was trained on where it came from elsewhere (`Weights.origin`), else None."""
        return self._lineage.get("generator")

    @cached_property
    def description(self) -> dict[str, Any]:
        """`dataset.json`: channels, labels, number of pairs."""
        form = {"channel_names": {str: str}, "labels": dict, "numTraining": int}
        return read_json(self.dataset / "dataset.json", form, ANEW, remove=False)

    @property
    def channels(self) -> list[str]:
        """Names of the image channels, as nnU-Net shows them."""
        return list(self.description["channel_names"].values())

    @property
    def labels(self) -> list[str]:
        """Names of the labels from 1 on, or of the regions where it is region-based."""
        return [name for name in self.description["labels"] if name != "background"]

    @cached_property
    def given_up(self) -> list[int]:
        """Attempts of each pair that was refused every time; without that file there are none."""
        path = self.dataset / "given_up.csv"
        rows = read_rows(path, GIVEN_UP, ANEW, remove=False) if path.is_file() else []
        return [int(row["attempts"]) for row in rows]

    @property
    def drawn(self) -> int | None:
        """How many were drawn, with those that were refused; None where the table does not say so of every pair."""
        redrawn = [pair.redrawn for pair in self.pairs]
        return None if None in redrawn else len(redrawn) + sum(redrawn) + sum(self.given_up)

    def need(self, *names: str) -> None:
        """Make sure that every pair says these of itself, by the names of `PairRecord`."""
        with reading(self.file, ANEW, remove=False):
            for line, pair in enumerate(self.pairs, 2):
                if missing := [name for name in names if getattr(pair, name) in (None, "")]:
                    raise Misfit(f"line {line}: a cell of the column {missing[0]} is missing")

    @property
    def overridden(self) -> list[PairRecord]:
        """Those that are used although the gate refused them."""
        return [pair for pair in self.pairs if pair.overridden]

    @property
    def from_elsewhere(self) -> bool:
        """Whether weights from elsewhere drew them, so that they descend from none of a run's training cases.

        (Those of a training that went on from such weights descend from both.)
        """
        origin = self.origin if self.has_lineage else None
        return origin is not None and origin.get("weights_sha256") == self.settings.get("checkpoint_sha256")

    @property
    def is_copypaste(self) -> bool:
        """Whether each pair is made of two real cases."""
        return self.settings.get("generator") == "copypaste"

    @property
    def on_real_brains(self) -> bool:
        """Whether the brain of each pair is that of a real case."""
        return "canvases" in self.settings or self.is_copypaste

    @property
    def shows_real_brains(self) -> str:
        """Why each picture of a pair shows the brain of a real case; empty where none does, or there is no table."""
        pairs = self.readable
        if any(pair.parents is not None for pair in pairs):
            return "each pair repeats a real brain"
        return "each brain is a real one" if any(pair.canvas for pair in pairs) else ""

    def followed(self, names: Iterable[str]) -> list[str]:
        """Those of these characteristics that every pair was asked for and knows of itself."""
        return [name for name in names if all(name in p.requested and name in p.measured for p in self.pairs)]

    def values(self, kind: str, names: Sequence[str]) -> np.ndarray:
        """`[N, K]` characteristics of all pairs: `REQUESTED` or `MEASURED` ones of these names."""
        with reading(self.file, ANEW, remove=False):
            for line, pair in enumerate(self.pairs, 2):
                held = pair.requested if kind == REQUESTED else pair.measured
                if missing := [name for name in names if name not in held]:
                    raise Misfit(f"line {line}: the column {kind}{missing[0]} is missing")
        return np.array([[(p.requested if kind == REQUESTED else p.measured)[n] for n in names] for p in self.pairs])
