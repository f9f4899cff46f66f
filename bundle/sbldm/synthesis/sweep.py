"""Figure 3 of the paper with numbers: tumour size swept at one place, place swept at one size, all else equal.

Every picture starts from the same noise, so what differs between two of them follows from the request alone; the paper
draws fresh noise each time. How far a drawing is off what was asked depends on the noise too, so every request is also
drawn from other noise, the same for all requests: means stand beside their spread over these seeds, and a bias is
spoken of only where its interval over seeds leaves out 0. Nothing is chosen or drawn again: a failed pair is shown, and
said to be refused.

With canvases all ten requests are drawn into one real brain.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple

import nibabel as nib
import numpy as np
import torch
from scipy.stats import t as student

from sbldm.cases.geometry import NativeGrid
from sbldm.run.errors import StateError
from sbldm.run.files import clear_partial, read_json, read_nifti, write_csv, write_json, write_nifti
from sbldm.run.folder import Run
from sbldm.run.models import refuse_requests
from sbldm.run.progress import Progress
from sbldm.synthesis.blending import VARIED, draw_into, varied
from sbldm.synthesis.canvas import Canvas
from sbldm.synthesis.canvases import Canvases
from sbldm.synthesis.model import Model
from sbldm.synthesis.pairs import Pair, finish_pair
from sbldm.tumour.characteristics import NAMES, sphere_surface, to_dict
from sbldm.tumour.requests import TumourModel

__all__ = ["SEEDS", "Spread", "biases", "draw_sweeps", "drawn_words", "over_seeds", "plan_sweeps", "read_sweeps"]

SEEDS = 5  # of noise for each request: fifty pairs, about eight minutes at preset `small` on two CPU cores one by one

SIZES = 5
PLACES = ("left", "right", "anterior", "posterior", "superior")
PERCENTILES = (10, 90)  # of the training tumours: ends of the sweeps, so that no request is an extreme
DRAWS = 500  # tumours of the joint model that percentiles and the typical shape are taken from
CENTRE = ("x_mm", "y_mm", "z_mm")
WAYS = {"x_mm": ("right", "left"), "y_mm": ("front", "back"), "z_mm": ("top", "bottom")}
SUMMARY, TABLE = "sweeps.json", "sweeps.csv"
SWEEPS = "sweeps", "sweeps_canvas"  # folders in RUN/evaluation: whole synthesis, and into one real brain
PLACED = dict.fromkeys(NAMES, float)
DRAW = {"seed": int, "measured": dict | None, "fault": str}
STEP = {"name": str, "sweep": str, "requested": PLACED, "frame": [[float]], "draws": [DRAW]}
SUMMARISED = {"channels": [str], "seed": int, "n": int, "checkpoint_sha256": str, "steps": [STEP]}


def plan_sweeps(tumours: TumourModel) -> list[dict[str, Any]]:
    """What the ten images are asked for; a function of the training tumours alone (paper, Figure 3).

    "size": five volumes, equally spaced in their logarithm between the 10th and the 90th percentile, in the left
    hemisphere at the median distance from the midline and the median y and z. "place": the median volume there, on the
    other side, and at the 90th (10th) percentile of y and the 90th of z. Percentiles are those of 500 draws.

    One shape serves all: the median of 500 completions of the request for the median volume at the first place. Its
    sphericity and shares of tissues are kept, its extents grow with the cube root of the volume, the surface follows
    from both.

    Returns:
        One dictionary an image: `name`, `sweep` ("size" or "place"), `requested` (characteristics by name, ml, mm2,
        mm, %) and `extrapolated` (in what the request lies beyond what training saw; empty when in nothing).
    """
    draws = tumours.sample(DRAWS, 0)
    low, high = np.percentile(draws, PERCENTILES, axis=0)
    usual = np.median(draws[:, 0])
    side, (y, z) = np.median(np.abs(draws[:, 3])), np.median(draws[:, 4:6], axis=0)
    # The median x of tumours on both sides would be the midline, where there are few.
    left = (-side, y, z)
    centres = (left, (side, y, z), (-side, high[4], z), (-side, low[4], z), (-side, y, high[5]))
    given = {"volume_ml": usual} | dict(zip(CENTRE, left, strict=True))
    shape = np.median([tumours.complete(given, seed) for seed in range(DRAWS)], axis=0)

    asked = {f"size_{k + 1}": (volume, left) for k, volume in enumerate(np.geomspace(low[0], high[0], SIZES))}
    asked |= {f"place_{name}": (usual, centre) for name, centre in zip(PLACES, centres, strict=True)}
    plan = []
    for name, (volume, centre) in asked.items():
        sphericity, extents = shape[2], shape[6:9] * np.cbrt(volume / usual)
        asked_of = [volume, sphere_surface(volume) / sphericity, sphericity, *centre, *extents, *shape[9:]]
        requested = to_dict(asked_of, tumours.names)
        beyond = "; ".join(tumours.outside(np.array(list(requested.values()))))
        plan.append({"name": name, "sweep": name.split("_")[0], "requested": requested, "extrapolated": beyond})
    return plan


def draw_sweeps(
    run: Run,
    device: torch.device,
    steps: int | None = None,
    seed: int = 0,
    n: int = SEEDS,
    batch: int | None = None,
    canvas: str | None = None,
    weights: str | None = None,
) -> Path:
    """Draw the ten requests of `plan_sweeps` from each of `n` seeds into `evaluation/sweeps` of a run.

    A drawing is what `synth` draws for the same request and seed at its first attempt. The images of the first seed are
    kept, those of the others are measured only. What is there from the same checkpoint, sampling and first seed is not
    drawn again, and a larger `n` adds to it; sweeps of another checkpoint, sampling or first seed are replaced.

    Args:
        run: with both stages trained; with `weights` any folder.
        device: to draw on.
        steps: network evaluations an image; as the preset says when None.
        seed: of the noise of the pictures, the same for every request.
        n: seeds for each request: `seed` to `seed + n - 1`.
        batch: drawn at once; as the preset says when None.
        canvas: "train" or a folder of cases, as for `synth`: all is drawn into one of these brains, in which the
            requests have room, and into `evaluation/sweeps_canvas`. The picture shows a real brain then.
        weights: file of a generator from elsewhere, or "shipped", in place of the run's own.

    Returns:
        The folder: `NAME_0000.nii.gz` (an image channel, `[X, Y, Z]` int16), `NAME_labels.nii.gz` (uint8),
        `sweeps.json` with the settings and, for each request, what was asked and its `draws`: seed, what was measured
        (null without a tumour) and why `finish_pair` refuses it (`fault`, empty when it does not); and `sweeps.csv`,
        see `over_seeds`.

    Raises:
        InputError: the sampler cannot take `steps`, or the model takes no requests.
        StateError: a checkpoint is missing, or the two do not belong together.
        OutputError: the folder cannot be written.
    """
    model = Model.load(str(run.folder), device, regions=canvas is not None, weights=weights)
    if not model.conditional:
        refuse_requests(model.preset.model, (), {"sweep": "asked for"})
    sampler = model.sampler({"steps": steps, "batch": batch})
    folder, plan = run.evaluation / SWEEPS[canvas is not None], plan_sweeps(model.tumours)
    canvases, brain = Canvases.of_run(str(run.folder), canvas, model), None
    if canvases:
        brain = canvases.roomiest([np.array(list(step["requested"].values())) for step in plan], seed)
    settings = {
        "checkpoint_sha256": model.sha256,
        "sampling": sampler.settings,
        "seed": seed,
        "channels": list(model.preset.data.channels),
        "intensities": model.intensities,
    }
    settings |= {"canvas": brain.name, "canvas_content": brain.content, "varied": VARIED} if brain else {}
    clear_partial(folder)
    records = _finished(folder, settings, plan)
    there = {(name, draw["seed"]) for name, record in records.items() for draw in record["draws"]}
    wanted = [(step, own) for own in range(seed, seed + n) for step in plan]  # the pictures first
    missing = [(step, own) for step, own in wanted if (step["name"], own) not in there]
    if len(missing) < len(wanted):
        print(f"{folder}: {len(wanted) - len(missing)} of {len(wanted)} images are already there.")
    changed = bool(missing) or not (folder / TABLE).exists() or _read_summary(folder)["n"] != n

    def save() -> None:
        done = [records[step["name"]] for step in plan if step["name"] in records]
        write_json(folder / SUMMARY, settings | {"n": n, "steps": done})

    if changed:
        save()  # from here on it names no file that is about to be replaced
        (folder / TABLE).unlink(missing_ok=True)
    with Progress("Drawing sweeps", len(missing), "image") as bar:
        for first in range(0, len(missing), sampler.batch):
            rows = missing[first : first + sampler.batch]
            asked = np.array([list(step["requested"].values()) for step, _ in rows])
            conditions = torch.from_numpy(model.normaliser.encode(asked)).to(device)
            more = {}
            if brain:
                region = torch.stack([canvases.region(brain, request) for request in asked]).to(device)
                known = torch.from_numpy(brain.latents).to(device)
                more = {"region": region, "known": known.expand(len(rows), *known.shape)}
            latents = sampler(conditions, model.network, seeds=[own for _, own in rows], **more)
            for k, ((step, own), latent) in enumerate(zip(rows, latents, strict=True)):
                if brain:
                    pair = draw_into(brain, latent, region[k], model, asked[k], strength=varied(own))
                    grids = brain
                else:
                    pair, grids = finish_pair(model.decode(latent), model), model
                draws = records.get(step["name"], {"draws": []})["draws"]
                if own == seed:
                    _write(folder, step["name"], pair, grids.native)
                    records[step["name"]] = step | {"frame": _frame(pair, grids), "draws": draws}
                measured = None if pair.measured is None else to_dict(pair.measured, model.source.characteristics)
                draws.append({"seed": own, "measured": measured, "fault": pair.fault})
                draws.sort(key=itemgetter("seed"))
            save()
            bar.update(len(rows))
    finished = read_sweeps(folder)
    if changed:
        write_csv(folder / TABLE, [_row(step) for step in finished])
    _say(finished)
    return folder


def _write(folder: Path, name: str, pair: Pair, native: NativeGrid) -> None:
    for path, array in zip(_files(folder, name, len(pair.image)), (pair.labels, *pair.image), strict=True):
        write_nifti(path, array, native.affine(), scratch=folder)


def _frame(pair: Pair, grids: Model | Canvas) -> list[list[float]]:
    """Voxels to mm, in the frame in which the place of a pair was measured."""
    frame = grids.native.frame(grids.working)
    if pair.measured is not None:
        # Whatever point of the brain the place is measured from: there the tumour's centre of mass is as measured.
        middle = nib.affines.apply_affine(frame, np.argwhere(pair.labels).mean(axis=0))
        frame[:3, 3] += pair.measured[3:6] - middle
    return frame.tolist()


# --- over seeds -------------------------------------------------------------------------------------------------------


class Spread(NamedTuple):
    """Mean of `n` values, their SD, and the 95 % interval of the mean after Student; NaN where there are too few."""

    mean: float
    sd: float
    low: float
    high: float
    n: int


def _spread(values: Sequence[float]) -> Spread:
    """Of those that are not NaN."""
    values = [value for value in values if not math.isnan(value)]
    n = len(values)
    mean, sd = (float(np.mean(values)) if n else math.nan), (float(np.std(values, ddof=1)) if n > 1 else math.nan)
    reach = float(student.ppf(0.975, n - 1)) * sd / math.sqrt(n) if n > 1 else math.nan
    return Spread(mean, sd, mean - reach, mean + reach, n)


def errors_of(step: dict[str, Any], draw: dict[str, Any]) -> dict[str, float]:
    """Of one drawing, see `over_seeds`; without a tumour its place is NaN."""
    asked, drawn = step["requested"], draw["measured"]
    volume = drawn["volume_ml"] if drawn else 0.0
    off = {name: drawn[name] - asked[name] if drawn else math.nan for name in CENTRE}
    errors = {"volume_ml": volume, "volume_error": volume / asked["volume_ml"] - 1, "off_mm": math.hypot(*off.values())}
    return errors | off


def over_seeds(step: dict[str, Any]) -> dict[str, Spread]:
    """How one request was drawn, over the seeds of noise.

    Returns:
        `volume_ml` drawn, 0 without a tumour; `volume_error`, drawn over asked less 1; and, over the seeds that drew
        a tumour, how far its centre lies off in mm: `off_mm`, and to the right, front and top `x_mm`, `y_mm`, `z_mm`.
    """
    errors = [errors_of(step, draw) for draw in step["draws"]]
    return {name: _spread([own[name] for own in errors]) for name in errors[0]}


def biases(steps: list[dict[str, Any]]) -> list[str]:
    """What the drawings are off on average, in sentences: of volume over the sizes, of the centre over the places.

    The unit is the seed, as requests of one seed share their noise: a mean over requests for each, and the interval
    over these. Only where it leaves out 0 a bias is spoken of; one seed says nothing.
    """
    seeds = sorted(set.intersection(*({draw["seed"] for draw in step["draws"]} for step in steps)))
    if len(seeds) < 2:
        return ["One seed of noise says nothing of bias: --n 5 draws five."]

    def mean(sweep: str, name: str) -> Spread:
        drawn = [(step, draw) for step in steps for draw in step["draws"] if step["sweep"] == sweep]
        each = [[errors_of(step, draw)[name] for step, draw in drawn if draw["seed"] == seed] for seed in seeds]
        return _spread([_spread(errors).mean for errors in each])

    words = ("larger than asked", "smaller than asked")
    said = [_bias("Volume over the sizes", mean("size", "volume_error"), 100, " %", words)]
    for name, ways in WAYS.items():
        words = tuple(f"to the {way}" for way in ways)
        said.append(_bias(f"Centre over the places, {ways[1]} to {ways[0]}", mean("place", name), 1, " mm", words))
    return said


def _bias(what: str, found: Spread, factor: float, unit: str, words: Sequence[str]) -> str:
    if found.n < 2:
        return f"{what}: drawn from too few seeds to say."
    mean, low, high = (factor * value for value in found[:1] + found[2:4])
    numbers = f"{mean:+.0f}{unit} [{low:+.0f}, {high:+.0f}] over {found.n} seeds"
    return f"{what}: {numbers}, {'no bias shown' if low <= 0 <= high else words[mean < 0]}."


def _row(step: dict[str, Any]) -> dict[str, Any]:
    """One request as a line of `sweeps.csv`: asked, seeds, and mean, SD and interval of each of `over_seeds`."""
    asked, draws = step["requested"], step["draws"]
    row = {"name": step["name"], "asked_ml": asked["volume_ml"]} | {f"asked_{name}": asked[name] for name in CENTRE}
    row |= {"seeds": len(draws), "empty": sum(draw["measured"] is None for draw in draws)}
    row |= {"refused": sum(bool(draw["fault"]) for draw in draws)}
    for name, found in over_seeds(step).items():
        for key in ("mean", "sd", "low", "high"):
            value = getattr(found, key)
            row[f"{name}_{key}"] = "" if math.isnan(value) else round(value, 4)
    return row


def _say(steps: list[dict[str, Any]]) -> None:
    """Print the table and the sentences."""
    for step in steps:
        faults = [draw["fault"] for draw in step["draws"] if draw["fault"]]
        words = [f"asked {step['requested']['volume_ml']:.0f} ml", f"drawn {drawn_words(step)}"]
        print(f"{step['name']}: {', '.join(words)}{_refused(faults)}")
    print("\n".join(biases(steps)))


def _refused(faults: list[str]) -> str:
    return f"; {len(faults)} refused: {', '.join(sorted(set(faults)))}" if faults else ""


def drawn_words(step: dict[str, Any]) -> str:
    """Volume and distance of one request over its seeds, mean and SD: `27 ± 3 ml, centre 11 ± 2 mm off (5 seeds)`."""
    found, n = over_seeds(step), len(step["draws"])
    off = f"centre {_mean_sd(found['off_mm'])} mm off" if found["off_mm"].n else "no tumour"
    return f"{_mean_sd(found['volume_ml'])} ml, {off} ({n} seed{'s' * (n > 1)})"


def _mean_sd(found: Spread) -> str:
    return f"{found.mean:.0f}" if math.isnan(found.sd) else f"{found.mean:.0f} ± {found.sd:.0f}"


# --- what is there ----------------------------------------------------------------------------------------------------


def _files(folder: Path, name: str, channels: int) -> list[Path]:
    """The label file of an image and its channels."""
    return [folder / f"{name}_{part}.nii.gz" for part in ("labels", *(f"{k:04d}" for k in range(channels)))]


def _finished(folder: Path, settings: dict[str, Any], plan: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Records, by name, of the requests that have drawings as planned and with the same settings.

    A picture whose files are not there counts as not drawn.
    """
    try:
        held = _read_summary(folder)
    except StateError:
        return {}
    if {name: held.get(name) for name in settings} != settings:
        return {}
    records = {record["name"]: record for record in held["steps"]}
    found = {}
    for step in plan:
        record = records.get(step["name"], {})
        if step.items() <= record.items():
            lost = _lost(folder, record, settings)
            draws = [draw for draw in record["draws"] if draw["seed"] != settings["seed"] or not lost]
            found[step["name"]] = record | {"draws": draws}
    return found


def _lost(folder: Path, step: dict[str, Any], held: dict[str, Any]) -> bool:
    """Whether a file of the picture is missing."""
    return not all(path.exists() for path in _files(folder, step["name"], len(held["channels"])))


def read_sweeps(folder: Path) -> list[dict[str, Any]]:
    """The requests of a finished `draw_sweeps`, in its order.

    Returns:
        One dictionary a request: what `plan_sweeps` gives, `draws` (of each seed: `seed`, `measured` by name, or None
        without a tumour, and `fault`), and of its picture `measured`, `fault`, `frame` (`[4, 4]`, voxel indices to the
        mm in which its place is asked and measured), `seed`, `checkpoint_sha256`, and `load`, a function without
        arguments that reads the image `[C, X, Y, Z]` and the labels `[X, Y, Z]`.

    Raises:
        StateError: there are none, or not all (the command that draws them is named).
    """
    held = _read_summary(folder)
    steps, wanted = held["steps"], range(held["seed"], held["seed"] + held["n"])
    there = {
        (step["name"], draw["seed"])
        for step in steps
        for draw in step["draws"]
        if draw["seed"] in wanted and not (draw["seed"] == held["seed"] and _lost(folder, step, held))
    }
    if missing := (SIZES + len(PLACES)) * held["n"] - len(there):
        raise StateError(f"{folder}: {missing} image(s) of the sweeps are missing; {_again(folder)}.")
    shared = {name: held[name] for name in ("seed", "checkpoint_sha256")}
    found = []
    for step in steps:
        picture = next(draw for draw in step["draws"] if draw["seed"] == held["seed"])
        load = partial(_load, _files(folder, step["name"], len(held["channels"])))
        found.append(step | picture | shared | {"frame": np.array(step["frame"]), "load": load})
    return found


def _load(files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Image `[C, X, Y, Z]` and labels `[X, Y, Z]`."""
    again = _again(files[0].parent)
    labels, *image = (np.asarray(read_nifti(path, again).dataobj) for path in files)
    return np.stack(image), labels


def _read_summary(folder: Path) -> dict[str, Any]:
    """What `sweeps.json` says."""
    return read_json(folder / SUMMARY, SUMMARISED, _again(folder))


def _again(folder: Path) -> str:
    more = " --canvas .." * (folder.name == SWEEPS[1])
    return f"run `sbldm sweep --run {shlex.quote(str(folder.parents[1]))}{more}` again"
