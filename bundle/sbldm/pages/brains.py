"""Pairs as pictures: methods beside each other in three planes, and an animation through the slices."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont
from PIL import Image, ImageDraw, ImageFont
from scipy import ndimage

from sbldm.cases.intensity import to_unit
from sbldm.cases.volumes import load_image, whole_numbers
from sbldm.metrics.volumes import PERCENTILES
from sbldm.pages.style import DPI, OUTLINES, PLANES, WIDTH
from sbldm.run.errors import DataError, StateError
from sbldm.run.files import atomic_path, reading
from sbldm.run.manifest import DRAWN_BY, Manifest

__all__ = ["Form", "animation", "form_of", "side_by_side"]

FRAMES, FRAME_MS = 60, 80
MOST_BYTES = 3_000_000
MARGIN_MM, GAP_MM = 4, 8  # around brains and between methods
GREYS = (64, 32, 16)  # of an animation; fewer where more would make too large a file


# --- pairs ------------------------------------------------------------------------------------------------------------


class Form(NamedTuple):
    """What a dataset holds, by its `dataset.json`."""

    channels: list[str]
    outlined: dict[str, list[int]]  # name -> numbers of its labels; empty where all are one tumour


def form_of(dataset: Path) -> Form:
    """Channels and labels (regions, where it is region-based); one of each where the file does not say."""
    manifest = Manifest(Path(dataset))
    try:
        channels, labels = manifest.channels, manifest.description["labels"]
    except StateError:
        return Form([""], {})
    outlined = {name: np.atleast_1d(labels[name]).tolist() for name in manifest.labels}
    return Form(channels or [""], outlined if len(outlined) > 1 else {})


class _Pair(NamedTuple):
    """One pair, cropped to brain and mask, axes running to the right, anterior and superior."""

    images: list[np.ndarray]  # of each channel [X, Y, Z] float32, 0 to 1
    mask: np.ndarray  # [X, Y, Z] bool
    spacing: np.ndarray  # [3] mm
    outlined: list[np.ndarray]  # [X, Y, Z] bool, what is drawn in one of `OUTLINES` each
    channel: str = ""  # where it is one of several

    @property
    def fov(self) -> np.ndarray:
        """Extents in mm."""
        return self.mask.shape * self.spacing

    @property
    def title(self) -> str:
        """The volume of the tumour."""
        volume = f"{self.mask.sum() * self.spacing.prod() / 1000:.0f} ml"
        return f"{self.channel}: {volume}" if self.channel else volume


def _read_pairs(dataset: Path, count: int) -> list[_Pair]:
    """So many pairs, or all there are, evenly spread over the names in an nnU-Net raw dataset."""
    names = sorted(path.name.removesuffix(".nii.gz") for path in (Path(dataset) / "labelsTr").glob("*.nii.gz"))
    if not names:
        raise DataError(f"{dataset}: holds no pairs (labelsTr/NAME.nii.gz).")
    chosen = np.unique(np.linspace(0, len(names) - 1, count).round().astype(int))
    return [_read_pair(Path(dataset), names[k]) for k in chosen]


def _read_pair(dataset: Path, name: str) -> _Pair:
    form, images = form_of(dataset), []
    mask, _ = _read_canonical(dataset / "labelsTr" / f"{name}.nii.gz")
    for k in range(len(form.channels)):
        image, spacing = _read_canonical(dataset / "imagesTr" / f"{name}_{k:04d}.nii.gz")
        brain = image != 0
        if image.shape != mask.shape or not brain.any():
            raise DataError(f"{dataset}: the image of {name} is empty or has another shape than its mask.")
        if not images:
            box = ndimage.find_objects((brain | (mask > 0)).astype(np.uint8))[0]
        low, high = np.percentile(image[brain], PERCENTILES)  # of any data: where brain can be below 0, so is its black
        images.append(np.where(brain[box], to_unit(image[box], min(0.0, low), high).clip(0, 1), 0))
    labels = whole_numbers(mask[box])
    outlined = [np.isin(labels, numbers) for numbers in form.outlined.values()]
    return _Pair(images, labels > 0, spacing, outlined or [labels > 0])


def _read_canonical(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and spacing, axes running to the right, anterior and superior."""
    with reading(path, DRAWN_BY, error=DataError):
        file = nib.as_closest_canonical(load_image(path))
        return np.asarray(file.dataobj, np.float32), np.array(file.header.get_zooms()[:3], np.float64)


def side_by_side(methods: Mapping[str, Path], path: Path, rows: int = 3) -> Path:
    """Pairs of several methods beside each other, as in the paper's figure 2: three planes through the tumour's centre.

    All pictures have one scale, the patient's left on the left, and the mask as an outline, each of several tissues in
    a colour of its own. Pairs of one row have nothing to do with each other. Several channels stand beside each other,
    and then the planes of a pair below each other.

    Args:
        methods: heading -> folder of an nnU-Net raw dataset, axes of any orientation.
        path: PNG to write, 900 pixels wide.
        rows: pairs of each method, evenly spread over its sorted list; fewer where it has fewer.

    Raises:
        DataError: a folder holds no pairs, or a pair cannot be read.
        OutputError: the file cannot be written.
    """
    pairs = {textwrap.fill(name, 44 // len(methods)): _read_pairs(folder, rows) for name, folder in methods.items()}
    rows, channels = max(map(len, pairs.values())), max((form_of(d).channels for d in methods.values()), key=len)
    x, y, z = np.max([pair.fov for found in pairs.values() for pair in found], axis=0) + MARGIN_MM
    several = len(channels) > 1
    across = [max(x, y)] * len(channels) if several else [x, x, y]
    ups = [y, z, z] if several else [max(y, z)]
    widths = [*([*across, GAP_MM] * len(pairs))][:-1]
    inch = WIDTH / sum(widths)  # per mm
    caption = 0.17
    head = 0.1 + 0.17 * (max(name.count("\n") + 1 for name in pairs) + several)
    heights = [ups[0] + caption / inch, *ups[1:]]
    ends = [(-up / 2, -up / 2 + height) for up, height in zip(ups, heights, strict=True)]
    height = head + rows * sum(heights) * inch
    figure = Figure(figsize=(WIDTH, height), facecolor="black")
    edges = {"left": 0, "right": 1, "bottom": 0, "top": 1 - head / height, "wspace": 0, "hspace": 0}
    grid = {"width_ratios": widths} | ({"height_ratios": heights * rows} if several else {})
    panels = figure.add_gridspec(rows * len(ups), len(widths), **grid, **edges).subplots(squeeze=False)
    for panel in panels.flat:
        panel.axis("off")
    for k, (method, found) in enumerate(pairs.items()):
        group = panels[:, (len(across) + 1) * k :][:, : len(across)]
        middle = (group[0, 0].get_position().x0 + group[0, -1].get_position().x1) / 2
        text = {"color": "white", "ha": "center", "va": "top"}
        figure.text(middle, 1 - 0.06 / height, method, fontsize=10, fontweight="bold", **text)
        for panel, channel in zip(group[0], channels * several, strict=False):
            place = panel.get_position()
            figure.text((place.x0 + place.x1) / 2, place.y1 + 0.17 / height, channel, fontsize=8, **text)
        for row, pair in enumerate(found):
            block = group[len(ups) * row :][: len(ups)]
            for image, planes in zip(pair.images, block.T if several else block, strict=False):
                _draw_planes(planes, pair, image, across[:1] * 3 if several else across, ends * (1 if several else 3))
            figure.text(middle, block[0, 0].get_position().y1, pair.title, fontsize=8, **text)
    for letter, place, side in (("L", 0.03, "left"), ("R", 0.97, "right")):
        panels[0, 0].text(place, 0.02, letter, transform=panels[0, 0].transAxes, color="white", fontsize=8, ha=side)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=DPI, facecolor="black")
    return Path(path)


def _draw_planes(
    panels: Sequence[Axes],
    pair: _Pair,
    image: np.ndarray,
    wide: Sequence[float],
    tall: Sequence[tuple[float, float]],
) -> None:
    """Three planes of a channel through the centre of the tumour, or of the brain where there is none.

    In mm: the width of each field of view, and its lower and upper end from the centre of the picture.
    """
    inside = pair.mask if pair.mask.any() else pair.images[0] > 0
    centre = np.rint(np.mean(np.nonzero(inside), axis=1)).astype(int)
    edges = [np.array([-fov, fov]) / 2 for fov in pair.fov]
    places = [
        low + (np.arange(-1, n + 1) + 0.5) * s
        for (low, _), n, s in zip(edges, pair.mask.shape, pair.spacing, strict=True)
    ]
    for panel, axis, width, ends in zip(panels, PLANES.values(), wide, tall, strict=True):
        across, up = (a for a in range(3) if a != axis)
        cut, *masks = (np.take(v, centre[axis], axis).T for v in (image, *pair.outlined))
        panel.imshow(cut, cmap="gray", vmin=0, vmax=1, origin="lower", extent=(*edges[across], *edges[up]))
        for mask, colour in zip(masks, itertools.cycle(OUTLINES), strict=False):
            if mask.any():  # a margin closes the outline of a mask that reaches the edge
                panel.contour(places[across], places[up], np.pad(mask, 1), [0.5], colors=colour, linewidths=0.8)
        panel.set(xlim=(-width / 2, width / 2), ylim=ends)


# --- animation --------------------------------------------------------------------------------------------------------


def animation(dataset: Path, path: Path, pairs: int = 4, width: int = 640) -> Path:
    """A looping GIF through the axial slices of some pairs side by side, from the bottom of each brain to its top.

    One scale for all, the patient's left on the left, the mask as an outline, a bar for the height. At most 60 frames
    of 80 ms; the number of grey levels falls until the file is no larger than 3 MB (16 are the least). Of several
    channels each is beside the others, of so many fewer pairs.

    Args:
        dataset: folder of an nnU-Net raw dataset, axes of any orientation.
        path: GIF to write.
        pairs: how many, evenly spread over the sorted list.
        width: of the picture, pixels.

    Raises:
        DataError: the folder holds no pairs, or a pair cannot be read.
        OutputError: the file cannot be written.
    """
    channels = form_of(dataset).channels
    found = _read_pairs(dataset, max(1, pairs // len(channels)))
    count = min(FRAMES, max(pair.mask.shape[2] for pair in found))
    if len(channels) > 1:
        found = [
            pair._replace(images=[image], channel=channel)
            for pair in found
            for image, channel in zip(pair.images, channels, strict=True)
        ]
    with atomic_path(path) as temporary:
        for greys in GREYS:
            frames = [_frame(found, (k + 0.5) / count, width, greys) for k in range(count)]
            frames[0].save(temporary, save_all=True, append_images=frames[1:], duration=FRAME_MS, loop=0)
            if temporary.stat().st_size <= MOST_BYTES:
                break
    return Path(path)


def _frame(pairs: Sequence[_Pair], height: float, width: int, greys: int) -> Image.Image:
    """All pairs at one relative height, 0 to 1, in a palette of greys and the colours of the outlines."""
    across = width // len(pairs)
    x, y = np.max([pair.fov[:2] for pair in pairs], axis=0) + MARGIN_MM
    scale = across / x
    head, foot = 20, 7
    tall = round(y * scale)
    canvas = np.zeros((head + tall + foot, width), np.uint8)
    for k, pair in enumerate(pairs):
        cells = _slice(pair, height, scale, greys)
        top, left = head + (tall - cells.shape[0]) // 2, k * across + (across - cells.shape[1]) // 2
        canvas[top : top + cells.shape[0], left : left + cells.shape[1]] = cells
    canvas[-3:, : round(height * width)] = greys // 2
    frame = Image.fromarray(canvas)
    draw = ImageDraw.Draw(frame)
    font = ImageFont.truetype(findfont("DejaVu Sans"), 13)
    for k, pair in enumerate(pairs):
        draw.text(((k + 0.5) * across, 2), pair.title, fill=greys - 1, font=font, anchor="ma")
    for letter, place, anchor in (("L", 3, "ld"), ("R", across - 3, "rd")):
        draw.text((place, head + tall), letter, fill=greys - 1, font=font, anchor=anchor)
    levels = np.linspace(0, 255, greys).round().astype(np.uint8).repeat(3)
    colours = [OUTLINES[k % len(OUTLINES)][1:] for k in range(max(len(pair.outlined) for pair in pairs))]
    frame.putpalette(levels.tobytes() + bytes.fromhex("".join(colours)))
    return frame


def _slice(pair: _Pair, height: float, scale: float, greys: int) -> np.ndarray:
    """One axial slice as indices of the palette, anterior up; `scale` in pixels per mm."""
    k = int(height * pair.mask.shape[2])
    size = tuple(np.rint(pair.fov[:2] * scale).astype(int))
    image, *masks = (
        np.asarray(Image.fromarray(v[:, ::-1, k].T.astype(np.float32)).resize(size, Image.Resampling.BILINEAR))
        for v in (pair.images[0], *pair.outlined)
    )
    cells = np.rint(image * (greys - 1))
    for colour, mask in enumerate(masks, start=greys):
        inside = mask > 0.5
        cells = np.where(ndimage.binary_dilation(inside) & ~ndimage.binary_erosion(inside), colour, cells)
    return cells.astype(np.uint8)
