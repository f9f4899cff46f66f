"""What a user looks at after drawing: a contact sheet of the pairs, and how well requests were met."""

from __future__ import annotations

import csv
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import nibabel as nib
import numpy as np
from scipy.stats import spearmanr

from sbldm.files import atomic_path

__all__ = ["contact_sheet", "summarise"]

matplotlib.use("Agg")


def contact_sheet(dataset: Path, path: Path, most: int = 8) -> None:
    """Draw the first pairs of a raw dataset in three planes through the tumour's centre, the mask as an outline."""
    labels = sorted((dataset / "labelsTr").glob("*.nii.gz"))[:most]
    if not labels:
        return
    figure, axes = plt.subplots(3, len(labels), figsize=(1.7 * len(labels), 5.4), facecolor="black", squeeze=False)
    for column, label in zip(axes.T, labels, strict=True):
        name = label.name.removesuffix(".nii.gz")
        file = nib.as_closest_canonical(nib.load(dataset / "imagesTr" / f"{name}_0000.nii.gz"))
        image, mask = file.get_fdata(), nib.as_closest_canonical(nib.load(label)).get_fdata() > 0
        box = tuple(slice(b.min(), b.max() + 1) for b in np.nonzero(image))
        centre = np.rint(np.mean(np.nonzero(mask), axis=1)).astype(int)
        top = np.percentile(image[image > 0], 99.8)
        spacing = file.header.get_zooms()
        for axis, panel in zip((2, 1, 0), column, strict=True):
            across = [a for a in range(3) if a != axis]
            cut = tuple(centre[axis] if a == axis else box[a] for a in range(3))
            aspect = spacing[across[1]] / spacing[across[0]]
            panel.imshow(image[cut].T, cmap="gray", vmin=0, vmax=top, origin="lower", aspect=aspect)
            if mask[cut].any():
                panel.contour(mask[cut].T, levels=[0.5], colors="#ff9d3b", linewidths=0.8)
            panel.axis("off")
        volume = mask.sum() * np.prod(spacing) / 1000
        column[0].set_title(f"{name.rsplit('_', 1)[-1]}: {volume:.0f} ml", color="white", fontsize=8)
    figure.subplots_adjust(0.005, 0.005, 0.995, 0.95, 0.02, 0.02)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110, facecolor="black")
    plt.close(figure)
    print(f"{path}: the first {len(labels)} pairs in three planes")


def summarise(manifest: Path) -> str:
    """One line on how well the tumours drawn match the ones asked for, over all pairs of a manifest."""
    if not manifest.is_file():
        return "No pairs yet."
    with open(manifest, newline="") as file:
        rows = list(csv.DictReader(file))
    asked, drawn = (
        {n: np.array([float(r[f"{kind}_{n}"]) for r in rows]) for n in ("volume_ml", "x_mm", "y_mm", "z_mm")}
        for kind in ("requested", "measured")
    )
    error = np.median(np.abs(drawn["volume_ml"] / asked["volume_ml"] - 1))
    distance = np.median(np.sqrt(sum((drawn[n] - asked[n]) ** 2 for n in ("x_mm", "y_mm", "z_mm"))))
    line = f"Requested against measured, n = {len(rows)}: volume off by a median {100 * error:.0f} %"
    if len(rows) > 2 and np.ptp(asked["volume_ml"]) > 0:
        line += f" (Spearman {spearmanr(asked['volume_ml'], drawn['volume_ml']).statistic:.2f})"
    seconds = np.median([float(r["seconds"]) for r in rows])
    return f"{line}, centre by {distance:.1f} mm; {seconds:.1f} s a pair."
