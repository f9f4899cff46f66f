"""The gate: what a pair must pass before it is written. No copies, no empty masks, nothing unlike all real cases.

The yardstick is the run's own prepared cases. It is measured once and kept in `RUN/gate/`. Size and shape of a tumour
are measured on the pair's own grid, where nothing is lost; its contrast and the brain on the coarse grid on which real
cases are measured. A copy is looked for in every image channel, all else in the first. What cannot be measured is
refused: a pair passes by its numbers alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t as student

from sbldm.cases.geometry import WorkingGrid
from sbldm.cases.lists import read_lists
from sbldm.cases.prepare import load_prepared, read_sidecar
from sbldm.metrics.copies import Memory, fingerprint, memories_of, nearest_of
from sbldm.metrics.tumour_copies import TumourMemory, tumour_print
from sbldm.metrics.tumours import shape_measures, tumour_contrast, tumour_measures
from sbldm.metrics.volumes import Volume, evaluation_grid, to_volume
from sbldm.run.errors import DataError, InputError, StateError
from sbldm.run.files import read_json, write_json
from sbldm.run.folder import Run
from sbldm.run.manifest import OVERRIDDEN
from sbldm.run.models import MODELS, refuse_requests
from sbldm.run.progress import progress
from sbldm.synthesis.pairs import OUTSIDE, Pair
from sbldm.synthesis.reference import as_pair
from sbldm.training.cases import measure_cases
from sbldm.training.weights import Weights

__all__ = ["Gate", "Tolerance", "Verdict"]

LEAST_CASES = 3  # that a range is learnt from
SLACK = 0.1  # by which real ranges are wider at least: in logarithms of sizes, in SD of the brain for the contrast
UNLIKELY = 0.01  # share of honest pairs that a measure may refuse, were its (logarithmic) values normal
SIZES = ("volume_ml", "sphericity", "w_mm", "h_mm", "d_mm", "brain_ml", "brain_l_mm", "brain_p_mm", "brain_s_mm")
VERSION = 9  # raise it when the gate measures differently
FORMS = ("largest", "thickness", "depth")  # of the mask (`shape_measures`), in logarithms as sizes
SHARES = ("specks", "hollow")
MEASURES = ("volume_ml", *SHARES, *FORMS, *SIZES[1:], "contrast")  # the first that is wrong is named
MULTIFOCAL = 2.0  # equal lesions that each one of the training cases may be: the largest is that much less of them all
UNLIKE = {
    "specks": "the mask is made of specks",
    "largest": "the mask lies scattered in pieces",
    "thickness": "the mask is a sheet or a shell",
    "depth": "the mask is thin or ragged",
    "hollow": "the mask is hollow",
}
MOST = 0.5  # share of the brain that no tumour fills, whatever is asked for (BraTS 2020: .27 at most)
FACTOR = 3.0  # off the volume asked for; after an hour's training on real cases pairs are off by 16 % in the middle
AWAY = 0.5  # off the place asked for, as a share of the brain's extents
ACROSS = 1 / 3  # the same from left to right, for a tumour drawn on the other side
ASKED = 1.25  # a request allows its own value and this factor of it, however few real tumours are like it


@dataclass(frozen=True)
class Tolerance:
    """How far a pair may be from its request: relative error of the volume, distance of the centres in mm."""

    volume: float = np.inf
    centre_mm: float = np.inf

    @classmethod
    def parse(cls, limits: str | float | Sequence[float]) -> Tolerance:
        """From per cent of the volume and mm of the centre: numbers, or as in `20,10`, of which either may be empty.

        Raises:
            InputError: it has another form, or a number that is not above 0.
        """
        given = (limits,) if isinstance(limits, int | float) else limits  # as MONAI's command line reads `20`
        text = given if isinstance(given, str) else ",".join(f"{limit}" for limit in given or ())
        parts = [part.strip().removesuffix("%") for part in text.split(",")]
        try:
            volume, centre = (float(part) if part else np.inf for part in [*parts, ""][:2])
            if len(parts) > 2 or not (volume > 0 and centre > 0):
                raise ValueError
        except ValueError:
            raise InputError(f"--tol {text}: write per cent of the volume and mm of the centre, as in 20,10.") from None
        return cls(volume / 100, centre)

    def fault(self, measured: np.ndarray, request: Mapping[str, float]) -> str:
        """What is beyond the tolerance, or nothing."""
        error = abs(measured[0] / request["volume_ml"] - 1)
        distance = float(np.linalg.norm(measured[3:6] - [request[name] for name in ("x_mm", "y_mm", "z_mm")]))
        if error > self.volume:
            return f"volume {100 * error:.0f} % off the request"
        return f"centre {distance:.0f} mm off the request" if distance > self.centre_mm else ""


@dataclass(frozen=True)
class Verdict:
    """What the gate says of one pair.

    Attributes:
        fault: what is wrong with it, or an empty string.
        refused: whether it must be drawn again.
        correlation, excess: with the nearest training case, and over the next ones (see `Memory`), of the nearest
            channel; NaN where copies are not looked for.
        near: nearer to a training case than 95 % of the held-back cases are; on a canvas, whose brain is real by
            design, the tumour to a training tumour.
        tumour_dsc, tumour_excess: the same two numbers of the tumour alone (see `TumourMemory`).
        real_brain: of a canvas.
        channel: which of several is the nearest; empty of one.
    """

    fault: str
    refused: bool
    correlation: float = np.nan
    excess: float = np.nan
    near: bool = False
    tumour_dsc: float = np.nan
    tumour_excess: float = np.nan
    real_brain: bool = False
    channel: str = ""

    def record(self) -> dict[str, Any]:
        """What the manifest keeps."""
        numbers = {
            "nearest_correlation": self.correlation,
            "nearest_excess": self.excess,
            "tumour_dsc": self.tumour_dsc,
            "tumour_excess": self.tumour_excess,
        }
        unseen = np.isnan(self.tumour_excess if self.real_brain else self.excess)
        passed = "copies not looked for" if unseen else "passed"
        return {
            "gate": f"{OVERRIDDEN}: {self.fault}" if self.fault else passed,
            **{name: "" if np.isnan(value) else round(value, 4) for name, value in numbers.items()},
            **({"nearest_channel": self.channel} if self.channel else {}),
            "near_copy": "" if unseen else int(self.near),
        }


@dataclass(frozen=True)
class Gate:
    """What a pair must pass.

    Attributes:
        memories: of each image channel by name, know the training cases; empty where there are none to compare with, so
            copies pass unseen.
        tumours: knows their tumours; None where fewer than three have one.
        ranges: measure -> limits of what is plausible beside the real cases of the run (`_limits`).
        grid: on which pairs are looked at.
        enforced: False lets copies and implausible pairs pass, and writes down what was wrong with them.
        tolerance: against the request.
    """

    memories: Mapping[str, Memory]
    tumours: TumourMemory | None
    ranges: dict[str, tuple[float, float]]
    grid: WorkingGrid
    enforced: bool = True
    tolerance: Tolerance = Tolerance()

    @classmethod
    def of_run(
        cls,
        run_dir: str,
        switch: str = "on",
        tolerance: str | Sequence[float] = "",
        weights: str | Path | None = None,
    ) -> Gate:
        """The gate of a run, measured on its prepared cases the first time.

        Args:
            run_dir: run folder.
            switch: "on" or "off".
            tolerance: see `Tolerance.parse`.
            weights: of a generator from elsewhere (see `Weights`): the ranges are those of its training cases, which
                are not here to look for copies of.

        Raises:
            InputError: another switch, or a tolerance of another form.
            StateError: the prepared cases are not there, and the gate is on.
        """
        if switch not in ("on", "off"):
            raise InputError(f"--gate {switch}: write on or off.")
        run, within = Run.at(run_dir), Tolerance.parse(tolerance)
        if weights:
            held = Weights.read(weights)
            if switch == "off":
                print("Warning: --gate off: implausible pairs will be written.")
            grid = evaluation_grid(WorkingGrid.from_config(**dict(held.preset.grid)).spacing)
            return cls({}, None, held.ranges, grid, switch == "on", within)
        if not MODELS[run.preset.model].conditional:
            refuse_requests(run.preset.model, (), {"tol": tolerance or None})
        grid = evaluation_grid(WorkingGrid.from_config(**dict(run.preset.grid)).spacing)
        try:
            memories, tumours, ranges = _yardstick(run, grid)
        except (StateError, DataError) as error:
            if switch == "on":
                raise StateError(f"The gate has no yardstick: {error} --gate off draws without it.") from None
            if isinstance(error, StateError) and run.prepared.is_dir():  # they are there, and one is damaged
                raise
            memories, tumours, ranges = {}, None, {}
        if switch == "off":
            unseen = "" if memories else " Nobody looks whether they are copies."
            print(f"Warning: --gate off: copies of training cases and implausible pairs will be written.{unseen}")
        return cls(memories, tumours, ranges, grid, switch == "on", within)

    @property
    def memory(self) -> Memory | None:
        """Of the first channel; all have the same limits."""
        return next(iter(self.memories.values()), None)

    @property
    def settings(self) -> dict[str, Any]:
        """What all pairs of a dataset have in common, for `synthesis.json`."""
        limits = {}
        for prefix, memory in (("", self.memory), ("tumour_", self.tumours)):
            if memory:
                limits |= {f"{prefix}near": round(memory.near, 4), f"{prefix}copy": round(memory.copy, 4)}
        tolerance = {"volume": self.tolerance.volume, "centre_mm": self.tolerance.centre_mm}
        return {
            "switch": "on" if self.enforced else "off",
            "honest_cases": memory.honest if (memory := self.memory or self.tumours) else 0,
            "limits": limits,
            "tolerance": {name: value for name, value in tolerance.items() if np.isfinite(value)},
        }

    def verdict_of(
        self, pair: Pair, affine: np.ndarray, request: Mapping[str, float], real_brain: bool = False
    ) -> Verdict:
        """Look at one finished pair; the first fault found is named.

        Args:
            pair: as `finish_pair` leaves it.
            affine: of its voxels.
            request: what was asked for, by characteristic.
            real_brain: the brain is a canvas's, so it is no copy.
        """
        if pair.fault or pair.measured is None:
            return Verdict(pair.fault, True)
        if fault := _broken(pair):
            return Verdict(fault, True)
        if request and (fault := self.tolerance.fault(pair.measured, request)):
            return Verdict(fault, True)
        volume = to_volume("", pair.image[0], pair.labels > 0, affine, self.grid)
        brain = tumour = None
        channel = ""
        if self.memories and not real_brain:
            k, brain = nearest_of([*self.memories.values()], _prints(volume, pair, affine, self.grid))
            channel = [*self.memories][k].upper() if len(self.memories) > 1 else ""
        if self.tumours and volume.mask.any():
            tumour = self.tumours.nearest(tumour_print(volume.mask, volume.spacing))
        if brain and brain.excess > self.memory.copy:
            numbers = f"correlation {brain.correlation:.2f}, {brain.excess:.2f} beyond the next"
            fault = f"copy of a training case ({f'{channel}: ' if channel else ''}{numbers})"
        elif tumour and tumour.excess > self.tumours.copy:
            fault = f"copy of a training tumour (DSC {tumour.correlation:.2f}, {tumour.excess:.2f} beyond the next)"
        else:
            measured = _measures(volume, pair, affine)
            fault = self._implausible(measured, request, real_brain) or _unlike_request(measured, request)
        near = tumour and tumour.excess > self.tumours.near if real_brain else brain and brain.excess > self.memory.near
        numbers = [value for found in (brain, tumour) for value in (found[1:] if found else (np.nan, np.nan))]
        return Verdict(
            fault, bool(fault) and self.enforced, *numbers[:2], bool(near), *numbers[2:], real_brain, channel
        )

    def _implausible(self, found: Mapping[str, float], request: Mapping[str, float], real_brain: bool = False) -> str:
        """The first measure that is missing or beyond its real range, if any; nothing without a yardstick."""
        if not self.ranges:
            return ""
        for name in MEASURES:
            if real_brain and name.startswith("brain_"):
                continue
            value = found[name]
            if not np.isfinite(value):
                return f"implausible: {name} cannot be measured"
            low, high = self.ranges.get(name, (-np.inf, np.inf))
            if name in request:
                ends = request[name] / ASKED, request[name] * ASKED
                low, high = min(low, *ends), max(high, *ends)
            if not low <= value <= high:
                limits = f"{name} {value:.3g} is not within {low:.3g} to {high:.3g}"
                return f"implausible: {UNLIKE[name]}: {limits}" if name in UNLIKE else f"implausible: {limits}"
        share = found["volume_ml"] / found["brain_ml"]
        return f"implausible: the tumour fills {100 * share:.0f} % of the brain" if share > MOST else ""


def _broken(pair: Pair) -> str:
    """Why nothing can be measured on a pair, or it is none."""
    image, tumour = np.asarray(pair.image), pair.labels > 0
    brain = (image != 0).any(axis=0)
    if not np.isfinite(image).all():
        return "voxels that are no numbers"
    if not brain.any():
        return "empty image"
    if not tumour.any():
        return "empty mask"
    for k, channel in enumerate(image):
        if not np.ptp(channel[brain]):
            return f"channel {k} is the same all over the brain"
    outside = (tumour & ~brain).sum() / tumour.sum()
    return f"{100 * outside:.0f} % of the mask outside the brain" if outside > OUTSIDE else ""


def _unlike_request(found: Mapping[str, float], request: Mapping[str, float]) -> str:
    """Why a pair is not at all what was asked for, with no tolerance given."""
    if not request:
        return ""
    volume, asked = found["volume_ml"], request["volume_ml"]
    if not asked / FACTOR <= volume <= asked * FACTOR:
        return f"not what was asked for: {volume:.3g} ml instead of {asked:.3g} ml"
    centre, wanted = (np.array([values[name] for name in ("x_mm", "y_mm", "z_mm")]) for values in (found, request))
    extents = np.array([found[f"brain_{axis}_mm"] for axis in "lps"])
    across = abs(centre[0] - wanted[0]) > ACROSS * extents[0]
    if centre[0] * wanted[0] < 0 and across:
        return f"not what was asked for: on the other side (x {centre[0]:.0f} mm instead of {wanted[0]:.0f} mm)"
    if np.linalg.norm((centre - wanted) / extents) > AWAY:
        return f"not what was asked for: {np.linalg.norm(centre - wanted):.0f} mm from its place"
    return ""


def _brain_measures(volume: Volume) -> dict[str, float]:
    """Volume and extents of the brain on the evaluation grid."""
    brain, spacing = volume.brain, np.array(volume.spacing)
    bounds = [np.flatnonzero(brain.any(axis=tuple({0, 1, 2} - {axis})))[[0, -1]] for axis in range(3)]
    extents = (np.ptp(bounds, axis=1) + 1) * spacing
    found = {f"brain_{axis}_mm": float(extent) for axis, extent in zip("lps", extents, strict=True)}
    return found | {"brain_ml": float(brain.sum() * spacing.prod() / 1000)}


def _measures(volume: Volume, pair: Pair, affine: np.ndarray) -> dict[str, float]:
    """Size, place and shape of a pair's tumour on its own grid, its contrast on the evaluation grid if it is there."""
    mask, spacing = pair.labels > 0, np.linalg.norm(affine[:3, :3], axis=0)
    found = _brain_measures(volume) | tumour_measures(volume) | shape_measures(mask, spacing)
    if not np.isfinite(found["contrast"]):  # too small for that grid
        found["contrast"] = tumour_contrast(pair.image[0], mask, spacing)
    return found


def _prints(first: Volume, pair: Pair, affine: np.ndarray, grid: WorkingGrid) -> list[np.ndarray]:
    """A fingerprint of each channel of a pair, whose first one is on the evaluation grid."""
    others = (to_volume(first.name, channel, None, affine, grid) for channel in pair.image[1:])
    return [fingerprint(volume.image, volume.spacing) for volume in (first, *others)]


def _yardstick(
    run: Run, grid: WorkingGrid
) -> tuple[dict[str, Memory], TumourMemory | None, dict[str, tuple[float, float]]]:
    """What the gate compares pairs with, from `RUN/gate/`, or measured anew on the prepared cases.

    Raises:
        StateError, DataError: these are not all there, or fewer than three to train on.
    """
    cases = {role: _prepared(run, names) for role, names in read_lists(run.folder).items()}
    folder = run.gate
    contents = json.dumps({role: sorted(found.values()) for role, found in cases.items()})
    several = f" {list(paths)}" if len(paths := _memory_files(run)) > 1 else ""
    key = hashlib.sha256(f"{VERSION} {grid} {contents}{several}".encode()).hexdigest()
    try:
        kept = read_json(folder / "ranges.json", {"key": str, "tumours": bool, "ranges": {str: [float]}})
        if kept["key"] != key:
            raise ValueError
        memories = {channel: Memory.load(path) for channel, path in paths.items()}
        tumours = TumourMemory.load(folder / "tumours.npz") if kept["tumours"] else None
    except (StateError, ValueError):  # not there, damaged, or of other cases
        kept, memories, tumours = _measure(run, cases, grid, folder, key)
    return memories, tumours, {name: tuple(limits) for name, limits in kept["ranges"].items()}


def _memory_files(run: Run) -> dict[str, Path]:
    """Where the memory of each image channel is kept."""
    first, *others = run.preset.data.channels
    return {first: run.gate / "memory.npz"} | {name: run.gate / f"memory_{name}.npz" for name in others}


def _prepared(run: Run, names: list[str]) -> dict[str, str]:
    """Content hash of each prepared case."""
    return {name: read_sidecar(run.prepared, name)["content"] for name in names}


def _measure(
    run: Run, cases: dict[str, dict[str, str]], grid: WorkingGrid, folder: Path, key: str
) -> tuple[dict[str, Any], dict[str, Memory], TumourMemory | None]:
    """Fingerprints of all prepared cases as pairs, and the ranges of those to train on (the rest is for tests)."""
    preset, written = run.preset, measure_cases(run, read_lists(run.folder))["written"]
    prints = {role: [{} for _ in range(preset.image_channels)] for role in cases}
    shapes: dict[str, dict[str, np.ndarray]] = {role: {} for role in cases}
    measured: list[dict[str, Any]] = []
    for role, names in cases.items():
        for name in progress(names, f"The gate looks at the {role} cases"):
            volume, sidecar = load_prepared(run.prepared, name)
            pair, affine = as_pair(volume, sidecar, preset, written)
            found = to_volume(name, pair.image[0], pair.labels > 0, affine, grid)
            for of_channel, cells in zip(prints[role], _prints(found, pair, affine, grid), strict=True):
                of_channel[name] = cells
            shapes[role][name] = tumour_print(found.mask, found.spacing)
            if role == "train":
                tumour = pair.labels.any()
                measured.append(_measures(found, pair, affine) if tumour else _brain_measures(found))
    ranges = {}
    for name in MEASURES:
        values = np.array([found[name] for found in measured if np.isfinite(found.get(name, np.nan))])
        if len(values) < LEAST_CASES:
            continue  # the real cases say nothing about it
        logarithmic = name in (*SIZES, *FORMS)
        ranges[name] = np.exp(_limits(np.log(values))).tolist() if logarithmic else _limits(values)
    for name, factor in {"largest": MULTIFOCAL, "thickness": np.cbrt(MULTIFOCAL), "depth": np.cbrt(MULTIFOCAL)}.items():
        if name in ranges:
            ranges[name][0] /= float(factor)
    paths = _memory_files(run)
    memories = dict(zip(paths, memories_of(prints["train"], prints["validation"]), strict=True))
    for channel, memory in memories.items():
        memory.save(paths[channel])
    tumours = None
    if sum(mask.any() for mask in shapes["train"].values()) >= LEAST_CASES:
        tumours = TumourMemory.build(shapes["train"], shapes["validation"])
        tumours.save(folder / "tumours.npz")
    kept = {"key": key, "tumours": tumours is not None, "ranges": ranges}
    write_json(folder / "ranges.json", kept)
    return kept, memories, tumours


def _limits(values: np.ndarray) -> list[float]:
    """Range of values `[N]`, widened a little, and to where a next one lies with 99 % (Student's prediction interval):
    few cases say little about the range of all.
    """
    n = len(values)
    reach = float(student.ppf(1 - UNLIKELY / 2, n - 1) * values.std(ddof=1) * np.sqrt(1 + 1 / n))
    return [
        float(min(values.min() - SLACK, values.mean() - reach)),
        float(max(values.max() + SLACK, values.mean() + reach)),
    ]
