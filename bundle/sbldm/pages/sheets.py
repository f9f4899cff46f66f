"""What a user looks at after drawing: a contact sheet of the pairs, and how well requests were met."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from sbldm.pages.datasheet import write_datasheet
from sbldm.pages.style import OUTLINES
from sbldm.run.files import atomic_path, clear_partial, read_nifti
from sbldm.run.manifest import DRAWN_BY, MEASURED, REQUESTED, Manifest
from sbldm.tumour.characteristics import NAMES, SHARES

__all__ = ["contact_sheet", "request_plot", "show_pairs", "summarise"]


def show_pairs(dataset: Path) -> None:
    """Write what people look at when a raw dataset of a run is filled: datasheet, contact sheet, how requests were met.

    The figures go to `RUN/figures`.
    """
    figures, manifest = dataset.parents[1] / "figures", Manifest(dataset)
    clear_partial(figures)
    if manifest.pairs[0].requested:
        print(summarise(manifest))
        request_plot(manifest, figures / f"{dataset.name}_requests.png")
    write_datasheet(dataset)
    contact_sheet(dataset, figures / f"{dataset.name}.png")


def contact_sheet(dataset: Path, path: Path, most: int = 8) -> None:
    """Draw the first pairs of a raw dataset in three planes through the tumour's centre, the mask as an outline.

    Below them come the other image channels in the axial plane, and where there are several labels the outline of each
    (`OUTLINES`, in their order). A brain without a tumour is cut through its own centre.
    """
    manifest = Manifest(dataset)
    names, channels = [pair.name for pair in manifest.pairs[:most]], len(manifest.channels)
    planes = [(2, 0), (1, 0), (0, 0), *((2, k) for k in range(1, channels))]  # axis that is cut, channel
    figure = Figure(figsize=(1.7 * len(names), 1.8 * len(planes)), facecolor="black")
    axes = figure.subplots(len(planes), len(names), squeeze=False)
    for column, name in zip(axes.T, names, strict=True):
        files = [dataset / "imagesTr" / f"{name}_{k:04d}.nii.gz" for k in range(channels)]
        files = [nib.as_closest_canonical(read_nifti(file, DRAWN_BY)) for file in files]
        label = nib.as_closest_canonical(read_nifti(dataset / "labelsTr" / f"{name}.nii.gz", DRAWN_BY)).get_fdata()
        images, spacing = [file.get_fdata() for file in files], files[0].header.get_zooms()
        box = tuple(slice(b.min(), b.max() + 1) for b in np.nonzero(images[0]))
        shown = label > 0 if label.any() else images[0] > 0
        centre = np.rint(np.mean(np.nonzero(shown), axis=1)).astype(int)
        tops = [np.percentile(image[image > 0], 99.8) for image in images]
        for (axis, k), panel in zip(planes, column, strict=True):
            across = [a for a in range(3) if a != axis]
            cut = tuple(centre[axis] if a == axis else box[a] for a in range(3))
            aspect = spacing[across[1]] / spacing[across[0]]
            panel.imshow(images[k][cut].T, cmap="gray", vmin=0, vmax=tops[k], origin="lower", aspect=aspect)
            for number in np.unique(label[cut][label[cut] > 0]).astype(int):
                outline = {"levels": [0.5], "colors": OUTLINES[(number - 1) % len(OUTLINES)], "linewidths": 0.8}
                panel.contour((label[cut] == number).T, **outline)
            panel.axis("off")
        volume = (label > 0).sum() * np.prod(spacing) / 1000
        column[0].set_title(f"{name.rsplit('_', 1)[-1]}: {volume:.0f} ml", color="white", fontsize=8)
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.95, 0.02, 0.02)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, facecolor="black")
    print(f"{path}: the first {len(names)} pairs in three planes")


def request_plot(manifest: Manifest, path: Path) -> None:
    """Plot each measured characteristic against the one asked for, all pairs of a manifest."""
    names = [*NAMES, *manifest.followed(SHARES.values())]
    asked, drawn = (manifest.values(kind, names).T for kind in (REQUESTED, MEASURED))
    lines = -(-len(names) // 3)
    figure = Figure(figsize=(8, 8 / 3 * lines))
    panels = figure.subplots(lines, 3)
    for panel in panels.flat[len(names) :]:
        panel.axis("off")
    for k, (panel, name) in enumerate(zip(panels.flat, names, strict=False)):
        low, high = (f([f(asked[k]), f(drawn[k])]) for f in (np.min, np.max))
        panel.plot([low, high], [low, high], color="0.7", linewidth=1)
        panel.scatter(asked[k], drawn[k], s=10, color="#c2571a")
        panel.set_title(name, fontsize=9)
        panel.tick_params(labelsize=7)
    figure.supxlabel("requested", fontsize=10)
    figure.supylabel("measured", fontsize=10)
    figure.tight_layout()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)
    print(f"{path}: requested against measured")


def summarise(manifest: Manifest) -> str:
    """One line on how well the tumours drawn match the ones asked for, over all pairs of a manifest."""
    names = [*NAMES, *(shares := manifest.followed(SHARES.values()))]
    asked, drawn = (dict(zip(names, manifest.values(kind, names).T, strict=True)) for kind in (REQUESTED, MEASURED))
    manifest.need("seconds")
    seconds = [pair.seconds for pair in manifest.pairs]
    error = np.median(np.abs(drawn["volume_ml"] / asked["volume_ml"] - 1))
    distance = np.median(np.sqrt(sum((drawn[n] - asked[n]) ** 2 for n in ("x_mm", "y_mm", "z_mm"))))
    line = f"Requested against measured, n = {len(seconds)}: volume off by a median {100 * error:.0f} %"
    if len(seconds) > 2 and np.ptp(asked["volume_ml"]) > 0:
        line += f" (Spearman {spearmanr(asked['volume_ml'], drawn['volume_ml']).statistic:.2f})"
    line += f", centre by {distance:.1f} mm"
    for name in shares:
        error = np.median(np.abs(drawn[name] - asked[name]))
        line += f", {name.removesuffix('_percent')} share by {error:.0f} points"
    return f"{line}; {np.median(seconds):.1f} s a pair."
