"""Figure 3 of the paper with numbers: tumour size swept at one place, place swept at one size, all else equal.

Every image starts from the same noise, so what differs between two of them follows from the request alone; the paper
draws fresh noise each time. Nothing is chosen or drawn again: a failed pair is shown, and said to be refused.
"""

from __future__ import annotations

import shlex
import textwrap
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sbldm.errors import StateError
from sbldm.files import atomic_path, clear_partial, read_json, read_nifti, write_json, write_nifti
from sbldm.models import refuse_requests
from sbldm.run.progress import progress
from sbldm.runs import Run
from sbldm.synthesis.model import Model
from sbldm.synthesis.pairs import Pair, finish_pair
from sbldm.tumour.characteristics import NAMES, sphere_surface, to_dict
from sbldm.tumour.requests import TumourModel

__all__ = ["draw_sweeps", "plan_sweeps", "read_sweeps", "sweep_figure"]

SIZES = 5
PLACES = ("left", "right", "anterior", "posterior", "superior")
PERCENTILES = (10, 90)  # of the training tumours: ends of the sweeps, so that no request is an extreme
DRAWS = 500  # tumours of the joint model that percentiles and the typical shape are taken from
CENTRE = ("x_mm", "y_mm", "z_mm")
SUMMARY = "sweeps.json"
PLACED = dict.fromkeys(NAMES, float)
STEP = {"name": str, "sweep": str, "requested": PLACED, "measured": dict | None, "fault": str, "frame": [[float]]}
SUMMARISED = {"channels": [str], "seed": int, "checkpoint_sha256": str, "steps": [STEP]}


def plan_sweeps(tumours: TumourModel) -> list[dict[str, Any]]:
    """What the ten images are asked for; a function of the training tumours alone (paper, Figure 3).

    "size": five volumes, equally spaced in their logarithm between the 10th and the 90th percentile, in the left
    hemisphere at the median distance from the midline and the median y and z. "place": the median volume there, on the
    other side, and at the 90th (10th) percentile of y and the 90th of z. Percentiles are those of 500 draws.

    One shape serves all: the median of 500 completions of the request for the median volume at the first place. Its
    sphericity is kept, its extents grow with the cube root of the volume, the surface follows from both.

    Returns:
        One dictionary an image: `name`, `sweep` ("size" or "place"), `requested` (nine characteristics by name, ml,
        mm2, mm) and `extrapolated` (in what the request lies beyond what training saw; empty when in nothing).
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
        requested = to_dict([volume, sphere_surface(volume) / sphericity, sphericity, *centre, *extents])
        beyond = "; ".join(tumours.outside(np.array(list(requested.values()))))
        plan.append({"name": name, "sweep": name.split("_")[0], "requested": requested, "extrapolated": beyond})
    return plan


def draw_sweeps(run: Run, device: torch.device, steps: int | None = None, seed: int = 0) -> Path:
    """Draw the ten images of `plan_sweeps` into `evaluation/sweeps` of a run.

    An image is what `synth` draws for the same request and seed at its first attempt. What is there from the same
    checkpoint, sampling and seed is not drawn again; sweeps of another checkpoint, sampling or seed are replaced.

    Args:
        run: with both stages trained.
        device: to draw on.
        steps: network evaluations an image; as the preset says when None.
        seed: of the noise, the same for every image.

    Returns:
        The folder: `NAME_0000.nii.gz` (an image channel, `[X, Y, Z]` int16), `NAME_labels.nii.gz` (uint8), and
        `sweeps.json` with the settings and, for each image, what was asked, what was measured (null without a tumour)
        and why `finish_pair` refuses it (`fault`, empty when it does not).

    Raises:
        InputError: the sampler cannot take `steps`, or the model takes no requests.
        StateError: a checkpoint is missing, or the two do not belong together.
        OutputError: the folder cannot be written.
    """
    model = Model.load(str(run.folder), device)
    if not model.conditional:
        refuse_requests(model.preset["model"], (), {"sweep": "asked for"})
    sampler = model.sampler({"steps": steps})
    folder, plan = run.folder / "evaluation" / "sweeps", plan_sweeps(model.tumours)
    settings = {
        "checkpoint_sha256": model.sha256,
        "sampling": sampler.settings,
        "seed": seed,
        "channels": list(model.preset["data"]["channels"]),
        "intensities": model.intensities,
    }
    clear_partial(folder)
    records = _finished(folder, settings, plan)
    missing = [step for step in plan if step["name"] not in records]
    if len(missing) < len(plan):
        print(f"{folder}: {len(plan) - len(missing)} of {len(plan)} images are already there.")

    def save() -> None:
        done = [records[step["name"]] for step in plan if step["name"] in records]
        write_json(folder / SUMMARY, settings | {"steps": done})

    if missing:
        save()  # from here on it names no file that is about to be replaced
    for step in progress(missing, "Drawing sweeps", unit="image"):
        condition = torch.from_numpy(model.normaliser.encode(np.array([list(step["requested"].values())])))
        latent = sampler(condition.to(device), model.network, seeds=[seed])[0]
        pair = finish_pair(model.decode(latent), model)
        for path, array in zip(_files(folder, step["name"], len(pair.image)), (pair.labels, *pair.image), strict=True):
            write_nifti(path, array, model.native.affine(), scratch=folder)
        records[step["name"]] = step | _outcome(pair, model)
        save()
    for step in plan:
        print(f"{step['name']}: {', '.join(_words(records[step['name']]))}")
    return folder


def _outcome(pair: Pair, model: Model) -> dict[str, Any]:
    """Measured values and fault of a pair, and the frame (voxels to mm) in which its place was measured."""
    frame = model.native.frame(model.working)
    if pair.measured is None:
        return {"measured": None, "fault": pair.fault, "frame": frame.tolist()}
    # Whatever point of the brain the place is measured from: there the tumour's centre of mass is as measured.
    middle = nib.affines.apply_affine(frame, np.argwhere(pair.labels).mean(axis=0))
    frame[:3, 3] += pair.measured[3:6] - middle
    return {"measured": to_dict(pair.measured), "fault": pair.fault, "frame": frame.tolist()}


def _words(step: dict[str, Any]) -> list[str]:
    """What was asked and drawn, in a few words each."""
    asked, drawn = step["requested"], step["measured"]
    words = [f"asked {asked['volume_ml']:.0f} ml"]
    if drawn:
        off = np.linalg.norm([drawn[name] - asked[name] for name in CENTRE])
        words += [f"drawn {drawn['volume_ml']:.0f} ml", f"centre {off:.0f} mm off"]
    else:
        words.append("drawn none")
    return words + [f"refused: {step['fault']}"] * bool(step["fault"])


def _files(folder: Path, name: str, channels: int) -> list[Path]:
    """The label file of an image and its channels."""
    return [folder / f"{name}_{part}.nii.gz" for part in ("labels", *(f"{k:04d}" for k in range(channels)))]


def _finished(folder: Path, settings: dict[str, Any], plan: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Records, by name, of the images that are there as planned and with the same settings."""
    try:
        held = _read_summary(folder)
    except StateError:
        return {}
    if {name: held.get(name) for name in settings} != settings:
        return {}
    records = {record["name"]: record for record in held["steps"]}
    return {
        step["name"]: records[step["name"]]
        for step in plan
        if step.items() <= records.get(step["name"], {}).items()
        and all(path.exists() for path in _files(folder, step["name"], len(settings["channels"])))
    }


def read_sweeps(folder: Path) -> list[dict[str, Any]]:
    """The images of a finished `draw_sweeps`, in its order.

    Returns:
        One dictionary an image: what `plan_sweeps` gives, `measured` (by name, or None without a tumour), `fault`,
        `frame` (`[4, 4]`, voxel indices to the mm in which its place is asked and measured), `seed`,
        `checkpoint_sha256`, and `load`, a function without arguments that reads the image `[C, X, Y, Z]` and the
        labels `[X, Y, Z]`.

    Raises:
        StateError: there are none, or not all (the command that draws them is named).
    """
    held = _read_summary(folder)
    files = [_files(folder, step["name"], len(held["channels"])) for step in held["steps"]]
    missing = SIZES + len(PLACES) - sum(all(path.exists() for path in paths) for paths in files)
    if missing:
        raise StateError(f"{folder}: {missing} image(s) of the sweeps are missing; {_again(folder)}.")
    shared = {name: held[name] for name in ("seed", "checkpoint_sha256")}
    return [
        step | shared | {"frame": np.array(step["frame"]), "load": partial(_load, paths)}
        for step, paths in zip(held["steps"], files, strict=True)
    ]


def _load(files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Image `[C, X, Y, Z]` and labels `[X, Y, Z]`."""
    again = _again(files[0].parent)
    labels, *image = (np.asarray(read_nifti(path, again).dataobj) for path in files)
    return np.stack(image), labels


def _read_summary(folder: Path) -> dict[str, Any]:
    """What `sweeps.json` says."""
    return read_json(folder / SUMMARY, SUMMARISED, _again(folder))


def _again(folder: Path) -> str:
    return f"run `make sweep RUN={shlex.quote(str(folder.parents[1]))}` again"


def sweep_figure(folder: Path, path: Path) -> None:
    """Draw the sweeps, one above the other, as axial and coronal cuts through the requested centre (a cross).

    The mask is outlined in the cut, the left of the brain is on the left; titles say what was asked and drawn, in red
    where the pair is refused. The picture has 935 x 946 pixels.

    Raises:
        StateError: the sweeps are missing or unfinished.
        OutputError: the picture cannot be written.
    """
    steps = read_sweeps(folder)
    figure = Figure(figsize=(8.5, 8.6), facecolor="black")
    panels, boxes = [], []
    for part, sweep in zip(figure.subfigures(2, 1, facecolor="black"), ("size", "place"), strict=True):
        row = [step for step in steps if step["sweep"] == sweep]
        axes = part.subplots(2, len(row), gridspec_kw={"height_ratios": [1.2, 1]})
        part.subplots_adjust(0.005, 0.005, 0.995, 0.88, 0.02, 0.02)
        for step, column in zip(row, axes.T, strict=True):
            boxes.append(_draw_cuts(step, *column))
            column[0].set_title(_title(step), color="#ff6b5b" if step["fault"] else "white", fontsize=7)
            panels.append(column)
    low, high = np.min([b[0] for b in boxes], axis=0), np.max([b[1] for b in boxes], axis=0)
    for axial, coronal in panels:  # one scale for all
        for panel, upward in ((axial, 1), (coronal, 2)):
            panel.set(xlim=(low[0], high[0]), ylim=(low[upward], high[upward]))
            panel.axis("off")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, facecolor="black")
    print(f"{path}: tumour size and place swept, all else equal")


def _title(step: dict[str, Any]) -> str:
    """Up to four lines: place, volumes, distance, and why it is refused."""
    place = [step["name"].split("_")[1]] if step["sweep"] == "place" else []
    asked, drawn, *rest = _words(step)
    return "\n".join([*place, f"{asked}, {drawn}", *(textwrap.fill(words, 32) for words in rest)])


def _draw_cuts(step: dict[str, Any], axial: Axes, coronal: Axes) -> tuple[np.ndarray, np.ndarray]:
    """Draw both cuts with axes in mm; return the lowest and highest corner `[3]` of the brain's box, mm."""
    image, labels = step["load"]()
    grid = nib.as_closest_canonical(nib.Nifti1Image(image[0], step["frame"]))
    mask = np.asarray(nib.as_closest_canonical(nib.Nifti1Image(labels, step["frame"])).dataobj) > 0
    image, spacing = np.asarray(grid.dataobj), np.array(grid.header.get_zooms())
    centre = np.array([step["requested"][name] for name in CENTRE])
    index = nib.affines.apply_affine(np.linalg.inv(grid.affine), centre)
    voxel = np.rint(index).astype(int).clip(0, np.array(image.shape) - 1)
    # The file's axes may be turned against those of the frame: a cut follows the file, in mm from the same centre.
    start = centre - (index + 0.5) * spacing
    stop = start + image.shape * spacing
    top = np.percentile(image[image > 0], 99.8) if image.any() else 1
    for panel, across, cut in (
        (axial, (0, 1), np.s_[:, :, voxel[2]]),
        (coronal, (0, 2), np.s_[:, voxel[1], :]),
    ):
        extent = [edge for a in across for edge in (start[a], stop[a])]
        panel.imshow(image[cut].T, cmap="gray", vmin=0, vmax=top, origin="lower", extent=extent)
        if mask[cut].any():
            panel.contour(mask[cut].T, levels=[0.5], colors="#ff9d3b", linewidths=0.8, origin="lower", extent=extent)
        panel.plot(*centre[list(across)], "+", color="#4fc3f7", markersize=5, markeredgewidth=0.8)
    if not image.any():
        return start, stop
    inside = np.stack(np.nonzero(image))
    return start + inside.min(axis=1) * spacing, start + (inside.max(axis=1) + 1) * spacing
