"""The picture of the sweeps (paper, Figure 3): what was drawn, and how far off over all seeds of noise."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sbldm.run.files import atomic_path
from sbldm.synthesis.sweep import CENTRE, WAYS, errors_of, over_seeds, read_sweeps

__all__ = ["sweep_figure"]

COLOURS = ("#4fc3f7", "#ff9d3b", "#b9e769")  # of the three axes


def sweep_figure(folder: Path, path: Path) -> None:
    """Draw the sweeps, one above the other, as axial and coronal cuts through the requested centre (a cross).

    The mask is outlined in the cut, the left of the brain is on the left; titles say what was asked and drawn, in red
    where the pair is refused. Below stand the errors over all seeds: dots, and the mean with its 95 % interval. The
    picture has 935 x 1232 pixels.

    Raises:
        StateError: the sweeps are missing or unfinished.
        OutputError: the picture cannot be written.
    """
    steps = read_sweeps(folder)
    figure = Figure(figsize=(8.5, 11.2), facecolor="black")
    *parts, errors = figure.subfigures(3, 1, height_ratios=(4.3, 4.3, 2.6), facecolor="black")
    panels, boxes = [], []
    for part, sweep in zip(parts, ("size", "place"), strict=True):
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
    _draw_errors(steps, *errors.subplots(1, 2))
    errors.subplots_adjust(0.075, 0.14, 0.985, 0.86, 0.18)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, facecolor="black")
    print(f"{path}: tumour size and place swept, all else equal")


def _title(step: dict[str, Any]) -> str:
    """Up to four lines: place, volumes, distance, and why the picture is refused."""
    asked, drawn = step["requested"], step["measured"]
    lines = [step["name"].split("_")[1]] if step["sweep"] == "place" else []
    volume = f"{drawn['volume_ml']:.0f} ml" if drawn else "none"
    lines.append(f"asked {asked['volume_ml']:.0f} ml, drawn {volume}")
    if drawn:
        lines.append(f"centre {math.dist(*([place[name] for name in CENTRE] for place in (asked, drawn))):.0f} mm off")
    if step["fault"]:
        lines.append(textwrap.fill(f"refused: {step['fault']}", 32))
    return "\n".join(lines)


def _draw_errors(steps: list[dict[str, Any]], sizes: Axes, places: Axes) -> None:
    """Beside each other: the error of the volume by size asked for, and of the centre by place."""
    seeds = f"{len(steps[0]['draws'])} seed{'s' * (len(steps[0]['draws']) > 1)}"
    for panel, sweep, title, factor, colours in (
        (sizes, "size", "volume, drawn less asked, %", 100, {"volume_error": "#ff9d3b"}),
        (places, "place", "centre, drawn less asked, mm", 1, dict(zip(CENTRE, COLOURS, strict=True))),
    ):
        row = [step for step in steps if step["sweep"] == sweep]
        for k, (name, colour) in enumerate(colours.items()):
            for column, step in enumerate(row):
                place, found = column + 0.24 * (k - (len(colours) - 1) / 2), over_seeds(step)[name]
                each = [factor * errors_of(step, draw)[name] for draw in step["draws"]]
                panel.scatter([place - 0.05] * len(each), each, s=5, color=colour, alpha=0.6, linewidths=0)
                panel.vlines(place + 0.05, factor * found.low, factor * found.high, color=colour, linewidth=1.4)
                label = f"to the {WAYS[name][0]}" if name in WAYS and not column else None
                panel.scatter(place + 0.05, factor * found.mean, marker="_", s=40, color=colour, label=label)
        volumes = [f"{step['requested']['volume_ml']:.0f} ml" for step in row]
        panel.set_xticks(range(len(row)), volumes if sweep == "size" else [step["name"].split("_")[1] for step in row])
        panel.axhline(0, color="0.6", linewidth=0.8)
        panel.set_title(f"{title} ({seeds} of noise; mean, 95 % interval)", color="white", fontsize=7)
        panel.set_facecolor("black")
        panel.tick_params(colors="white", labelsize=7)
        panel.spines[["left", "bottom"]].set_color("0.6")
        panel.spines[["top", "right"]].set_visible(False)
    places.margins(y=0.2)  # room for the legend
    places.legend(loc="upper left", fontsize=6, labelcolor="white", facecolor="black", edgecolor="0.3", ncols=3)


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
