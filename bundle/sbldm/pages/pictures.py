"""The pictures of a report, inside its one file: plots, methods side by side, sweeps; and which may be shown."""

from __future__ import annotations

import base64
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from sbldm.evaluation.findings import (
    repeated_cases,
    without_folders,
)
from sbldm.evaluation.written import read_scores
from sbldm.pages.brains import animation, form_of, side_by_side
from sbldm.pages.figures import draw_figures
from sbldm.pages.style import OUTLINES
from sbldm.pages.sweeps import sweep_figure
from sbldm.run.errors import DataError, StateError
from sbldm.run.files import reading
from sbldm.run.folder import Run
from sbldm.run.manifest import Manifest
from sbldm.synthesis.sweep import SWEEPS, biases, drawn_words, read_sweeps

__all__ = []

DRAWN_ANEW = "run the same command again, which draws it anew or leaves it out"
FIGURES = {
    "slices": ("slices",),
    "seam": ("seam",),
    "tumours": ("tumours", "place"),
    "requests": ("requests",),
    "fit": ("fit",),
    "copies": ("copies", "worst"),
}


# --- pictures ---------------------------------------------------------------------------------------------------------


class _Picture(NamedTuple):
    """An inlined picture."""

    uri: str
    width: int
    height: int
    still: str = ""  # one frame of what moves, for print and for those who want no motion


def _uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def _inlined(path: Path) -> _Picture:
    """A picture as a data URI, plots and animations as they are; of an animation the middle frame too."""
    with reading(path, DRAWN_ANEW), Image.open(path) as image:
        still = ""
        if path.suffix == ".gif":
            image.seek(image.n_frames // 2)
            still = _encoded(image, "png")
        return _Picture(_uri(path.read_bytes(), path.suffix[1:]), *image.size, still)


def photograph(path: Path) -> _Picture:
    """A picture of brains as JPEG, which takes a fraction of its PNG."""
    with reading(path, DRAWN_ANEW), Image.open(path) as image:
        return _Picture(_encoded(image.convert("RGB"), "jpeg", quality=88, subsampling=0), *image.size)


def _encoded(image: Image.Image, kind: str, **settings: Any) -> str:
    buffer = io.BytesIO()
    image.save(buffer, kind, optimize=True, **settings)
    return _uri(buffer.getvalue(), kind)


def plots_of(out: Path, groups: Sequence[str]) -> dict[str, _Picture]:
    """The figures of these groups, drawn where one is missing."""
    names = [name for group in groups for name in FIGURES.get(group, ())]
    paths = {name: out / "figures" / f"{name}.png" for name in names}
    if not all(path.is_file() for path in paths.values()):
        draw_figures(out)
    return {name: _inlined(path) for name, path in paths.items() if path.is_file()}


def _shows_real(folder: Path, declared: bool) -> str:
    """Why pictures of a dataset could show a real case; empty when they cannot.

    Args:
        folder: nnU-Net raw dataset.
        declared: whether somebody has said that its pairs are synthetic, so that it needs no manifest.
    """
    manifest = Manifest(folder)
    if not manifest.file.is_file():
        return "" if declared else "no manifest says that its pairs are synthetic"
    if why := manifest.shows_real_brains:
        return why
    made = {f"{pair.name}.nii.gz" for pair in manifest.readable}
    if others := [path.name for path in (folder / "labelsTr").glob("*.nii.gz") if path.name not in made]:
        return f"its manifest does not name {sorted(others)[0]}, which may be a real case"
    return ""


def _older(path: Path, than: Path) -> bool:
    """Whether a picture is missing, or older than what it shows."""
    return not path.is_file() or path.stat().st_mtime_ns < than.stat().st_mtime_ns


def _methods(dataset: Path, run: Run | None, provenance: Mapping[str, Any]) -> tuple[dict[str, Path], list[str]]:
    """Datasets to show by name, that of the evaluation first, and a sentence for each that is not shown."""
    name = provenance.get("synthetic", dataset.name)
    if not (dataset / "labelsTr").is_dir():
        return {}, [f"{name}: no pictures, as the pairs are not there as an nnU-Net raw dataset any more."]
    if repeated_cases(provenance):
        return {}, [f"{name}: no pictures, as some of its pairs hold the voxels of a real case."]
    if why := _shows_real(dataset, declared=True):
        return {}, [f"{name}: no pictures, as {why}."]
    methods, notes = {dataset.name: dataset}, []
    for folder in run.datasets() if run else ():
        if folder.resolve() == dataset.resolve():
            continue
        if why := _shows_real(folder, declared=False):
            notes.append(f"{folder.name}: no pictures, as {why}.")
        else:
            methods.setdefault(folder.name, folder)
    return methods, notes


def pictures_of(out: Path, run: Run | None, provenance: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Animation, methods side by side and sweeps, drawn where they are missing; and what is not shown, and why."""
    dataset = out / provenance.get("dataset", "missing")
    methods, notes = _methods(dataset, run, provenance)
    if any(score.protocol == "copies.sure" and score.value > 0 for score in read_scores(out)):
        methods, notes = {}, [f"{dataset.name}: no pictures, as some of its pairs are copies of training cases."]
    shown: dict[str, Any] = {"methods": list(methods)}
    form = form_of(dataset)
    shown |= {"channels": form.channels, "outlined": list(zip(form.outlined, itertools.cycle(OUTLINES), strict=False))}
    folder = out / "figures"
    if methods:
        try:
            manifest = Manifest(dataset).file
            if _older(folder / "animation.gif", manifest if manifest.is_file() else dataset / "labelsTr"):
                animation(dataset, folder / "animation.gif")
            shown["animation"] = _inlined(folder / "animation.gif")
            side_by_side(methods, folder / "side_by_side.png")  # anew: the methods may be others than last time
            shown["side_by_side"] = photograph(folder / "side_by_side.png")
        except DataError as error:
            notes.append(f"Pictures of pairs are missing: {without_folders(str(error))}")
    shown["sweeps"] = _sweeps(out, run, dataset) if run is not None else []
    return shown, notes


def _sweeps(out: Path, run: Run, dataset: Path) -> list[dict[str, Any]]:
    """Figure 3, where its images have been drawn; of those in a real brain the numbers alone."""
    pairs, found = Manifest(dataset).readable, []
    pairs_by = {pair.checkpoint for pair in pairs}
    for name in SWEEPS:
        folder, path = run.evaluation / name, out / "figures" / f"{name}.png"
        try:
            steps = read_sweeps(folder)
        except StateError:
            continue
        sweep = {"steps": list(map(_swept, steps)), "biases": biases(steps)}
        whole = name == SWEEPS[0]
        alike = bool(pairs) and (not pairs[0].canvas) == whole  # else two networks by design
        sweep["other_checkpoint"] = alike and pairs_by != {steps[0]["checkpoint_sha256"]}
        if whole and _older(path, folder / "sweeps.json"):
            sweep_figure(folder, path)
        sweep["picture"] = photograph(path) if whole else None
        found.append(sweep)
    return found


def _swept(step: Mapping[str, Any]) -> dict[str, str]:
    """What was asked for and drawn in one image of the sweeps, and over all seeds of noise."""
    asked, drawn = step["requested"], step["measured"]
    words = {"name": step["name"].replace("_", " "), "asked": f"{asked['volume_ml']:.0f} ml", "fault": step["fault"]}
    words |= {"seeds": drawn_words(step)}
    if not drawn:
        return words | {"drawn": "no tumour", "off": "-"}
    off = math.dist(*([place[axis] for axis in ("x_mm", "y_mm", "z_mm")] for place in (asked, drawn)))
    return words | {"drawn": f"{drawn['volume_ml']:.0f} ml", "off": f"{off:.0f} mm"}
