"""Canvas: the tumour that was asked for, drawn into a real brain.

The canvas is encoded; its own tumour is healed, or kept; the asked one is drawn by the same network within a region
around its place, the latents elsewhere being the canvas's. What is written is the canvas plus the **difference** of the
two decoded volumes, with and without the tumour, that fades out towards the rim of the region: the autoencoder's
own error drops out, the canvas keeps its noise, and every voxel beyond the region is its own, bit for bit.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from sbldm.cases.export import native_labels
from sbldm.cases.geometry import NativeGrid, WorkingGrid, from_means, to_native
from sbldm.cases.intensity import BRIGHTEST, to_scanner
from sbldm.cases.layouts import Case, Source, content_hash, find_cases, read_arrays
from sbldm.cases.pipeline import original_cases
from sbldm.cases.preflight import scan_fault
from sbldm.cases.prepare import Gridded
from sbldm.errors import DataError, InputError
from sbldm.evaluation.tumours import tumour_contrast
from sbldm.evaluation.volumes import PERCENTILES
from sbldm.files import atomic_path, cached_npz, make_folder, user_path
from sbldm.networks.request_picture import MARGIN_MM, RequestPicture
from sbldm.run.limits import MOST_SEED
from sbldm.run.progress import Progress
from sbldm.runs import Run
from sbldm.synthesis.healing import rise
from sbldm.synthesis.model import Model, PairSampler
from sbldm.synthesis.pairs import LEAST_ML, OUTSIDE, Pair
from sbldm.tumour.characteristics import NAMES, measure, to_dict

__all__ = ["Canvas", "Canvases", "contrast_of", "draw_into", "read_canvas", "settled", "smaller", "varied"]

BLEND_MM = 8.0  # from the rim of a region inwards, over which what is drawn fades into the canvas
FADE_MM = 4.0  # around the canvas's own tumour, over which its detail goes
CALM = 0.9  # quantile of the healthy brain that no healed voxel exceeds
INSIDE = 0.9  # least share of the asked ellipsoid inside the brain
ALIKE_MM, ALIKE = 15.0, 1.5  # a request this near to the canvas's own tumour, and within this factor of its volume
STRENGTH = 0.2, 4.0  # of what is drawn, at least and at most, to reach a contrast
VARIED = 0.3  # SD of the logarithm of strength, without a contrast asked for
PUSHED = 0.5  # of a pushing tumour's volume takes the place of what it shifts, the rest that of what it replaces
SETTLED = 6.0, 0.7, 1.15  # farthest shift in mm, and least and largest drawn radius over that asked for, of a warp
SATELLITE_ML, NEAR_MM = (0.7, 10.0), (4.0, 16.0)  # volume, gap to the main tumour (10 of 100 BraTS cases have one)
PLACES = 40  # draws of what a request leaves open, for one canvas
TURNS = 20  # of a canvas that a request is held against; seeds can begin anywhere
CANVASES = 10  # that are tried for one request
STRIDE = 1_000_003  # between the seeds of two of these draws
VERSION = 4  # raise it when canvases are made differently


@dataclass(frozen=True)
class Canvas:
    """A real brain that a tumour is drawn into.

    Attributes:
        name: of the case.
        content: hash of its first image, for the lineage.
        image: `[C, X, Y, Z]` on its native grid, background exactly 0: int16 where its file holds such numbers, else
            float32.
        labels: `[X, Y, Z]` uint8, of the tumours that it holds.
        native, working: its grids.
        limits: `[C, 2]`, where the percentiles of its brain lie in its units.
        latents: `[Z, H, W, D]` float32, standardised, of the healed brain.
        volume: `[C + L, X, Y, Z]` in [-1, 1] on the working grid: these latents, decoded.
        own: characteristics `[9]` of the tumour that it came with; empty where it had none.
    """

    name: str
    content: str
    image: np.ndarray
    labels: np.ndarray
    native: NativeGrid
    working: NativeGrid
    limits: np.ndarray
    latents: np.ndarray
    volume: np.ndarray
    own: np.ndarray

    def save(self, path: Path) -> None:
        """Write one .npz of plain arrays, whole or not at all."""
        content = vars(self) | {name: json.dumps(asdict(getattr(self, name))) for name in ("native", "working")}
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            np.savez(file, **content)

    @classmethod
    def load(cls, path: Path) -> Canvas | None:
        """What `save` wrote; None where there is none, or a damaged one."""
        content = cached_npz(path)
        try:
            content = dict(content or {})
            grids = {name: NativeGrid.from_state(json.loads(str(content[name]))) for name in ("native", "working")}
            return cls(**content | grids | {name: str(content[name]) for name in ("name", "content")})
        except (KeyError, TypeError, ValueError):
            return None


def read_canvas(case: Case, model: Model, known: bool = False) -> Canvas:
    """Read, prepare and encode a case as it is, its tumour included.

    Args:
        case: the scan, with or without a mask.
        model: encodes.
        known: that pre-flight has let it pass before (or the user has), so its brain is not doubted again.

    Raises:
        DataError: it cannot be read, or what pre-flight finds wrong with it.
    """
    preset = model.preset
    source, grid = Source.from_config(**preset["data"]), WorkingGrid.from_config(**preset["grid"])
    image, labels, affine = read_arrays(case, source, mask_needed=False)
    if image.shape[1:] != labels.shape:
        raise DataError(f"{case.mask}: {labels.shape} voxels where the image has {image.shape[1:]}.")
    if not known and (fault := scan_fault(image, affine)):
        raise DataError(f"{case.images[0]}: {fault}.")
    content = content_hash(image[0])
    made = Gridded.of(image, labels, affine, len(source.labels), grid, preset["intensity"])
    latents = model.encode(2 * np.concatenate([made.image, made.occupancy / np.float32(255)]) - 1)
    return Canvas(
        name=case.name,
        content=content,
        image=image.astype(np.int16) if _is_whole(image) else image,
        labels=labels,
        native=made.native,
        working=made.working,
        limits=np.array(made.intensities),
        latents=latents.cpu().numpy(),
        volume=model.decode(latents),
        own=made.characteristics(labels, preset["intensity"]) if labels.any() else np.empty(0),
    )


def _is_whole(image: np.ndarray) -> bool:
    return bool((image == np.rint(image)).all() and np.abs(image).max() <= BRIGHTEST)


class Canvases:
    """The brains that tumours are drawn into, each read, healed and encoded once, and kept in `RUN/canvas`.

    Args:
        cases: where they come from.
        model: that draws within regions.
        sampler: heals them.
        folder: where they are kept; it holds real brains, as the run folder does.
        keep: leave each its own tumour in image and labels.
        push: let new tumours push aside what lies around them (`smaller`, `settled`).
        satellites: share of the pairs that get a second, smaller tumour near the first (`satellite`).
        known: see `read_canvas`.
    """

    def __init__(
        self,
        cases: Sequence[Case],
        model: Model,
        sampler: PairSampler,
        folder: Path,
        keep: bool = False,
        push: bool = False,
        satellites: float = 0.0,
        known: bool = False,
    ) -> None:
        self.cases = {case.name: case for case in cases}
        self.model, self.sampler, self.known = model, sampler, known
        self.keep, self.push, self.satellites = keep, push, satellites
        made = f"{VERSION} {model.sha256} {sampler.settings} {sampler.batch}"
        self.folder = folder / hashlib.sha256(made.encode()).hexdigest()[:16]

    @classmethod
    def of_run(
        cls,
        run_dir: str,
        where: str | None,
        model: Model,
        keep: Any = None,
        push: Any = None,
        satellites: Any = None,
    ) -> Canvases | None:
        """Those that `CANVAS=` asks for, or None.

        Args:
            run_dir: run folder.
            where: "train", or a folder of cases in any layout that `prepare` reads; None for whole synthesis.
            model: of the run.
            keep: "1" to leave each brain its own tumour.
            push: "1" to let new tumours push aside what lies around them.
            satellites: share of the pairs that get a second tumour, from 0 to 1.

        Raises:
            InputError: KEEP, PUSH or SATELLITES is wrong, or no such folder.
        """
        switches = {"KEEP": (keep, "leave each canvas its own tumour"), "PUSH": (push, "push the tissue around")}
        for name, (value, what) in switches.items():
            if value not in (None, "", "0", "1", 0, 1):
                raise InputError(f"{name}={value}: write 1 to {what}, or leave it out.")
            if not where and value not in (None, "", "0", 0):
                raise InputError(f"{name}=1: says to {what}; say CANVAS= as well.")
        try:
            share = float(satellites or 0)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            raise InputError(f"SATELLITES={satellites}: write the share of pairs with a second tumour, from 0 to 1.")
        if not where and share:
            raise InputError(f"SATELLITES={satellites}: second tumours are drawn on canvases; say CANVAS= as well.")
        if not where:
            return None
        run, source = Run.at(run_dir), Source.from_config(**model.preset["data"])
        cases = original_cases(run, "train") if where == "train" else find_cases(user_path(where), source)
        sampler = model.sampler({"guidance": model.preset["regions"]["healing"]})
        asked = str(keep) == "1", str(push) == "1", share
        return cls(cases, model, sampler, run.folder / "canvas", *asked, known=where == "train")

    @property
    def settings(self) -> dict[str, Any]:
        """What all pairs of a dataset have in common, for `synthesis.json`."""
        own = "kept" if self.keep else "healed"
        return {"own": own, "pushed": self.push, "satellites": self.satellites, "cases": len(self.cases)}

    def order(self, seed: int) -> list[str]:
        """The canvases in the order in which a seed tries them: all take their turn before one comes again.

        Raises:
            DataError: none is left that could be read.
        """
        if not self.cases:
            raise DataError("CANVAS: none of the scans can be read (see above); name other ones.")
        rounds, turn = divmod(seed, len(self.cases))
        order = self._round(rounds)
        return [*order[turn:], *order[:turn]][:CANVASES]

    def _round(self, number: int) -> list[str]:
        names = list(self.cases)
        return [names[i] for i in np.random.default_rng([number, 3]).permutation(len(names))]

    def get(self, name: str) -> Canvas:
        """A canvas, from the folder or made anew; healed unless its tumour is kept.

        Raises:
            DataError: its files cannot be read, or hold no brain.
        """
        if name in self.cases and (kept := Canvas.load(self._path(name))):
            return kept
        self.prepare([name] if name in self.cases else [])
        kept = Canvas.load(self._path(name)) if name in self.cases else None
        if kept is None:
            raise DataError(f"{name}: no canvas.")
        return kept

    def prepare(self, names: Sequence[str]) -> None:
        """Make what is not there yet, a batch at once; what cannot be read is said, and left out."""
        missing, waiting = [name for name in names if Canvas.load(self._path(name)) is None], []
        make_folder(self.folder)
        with Progress("Preparing canvases", len(missing), "canvas") as bar:
            for k, name in enumerate(missing):
                try:
                    waiting.append(read_canvas(self.cases[name], self.model, self.known))
                except DataError as error:
                    bar.write(f"Warning: {error} It is left out.")
                    del self.cases[name]
                if waiting and (len(waiting) == self.sampler.batch or k == len(missing) - 1):
                    for canvas in self._healed(waiting):
                        canvas.save(self._path(canvas.name))
                    waiting = []
                bar.update()

    def _path(self, name: str) -> Path:
        """Another file of the same name, or a changed one, is another canvas."""
        case = self.cases[name]
        files = [path for path in (*dict.fromkeys(case.images), case.mask) if path.is_file()]
        stamps = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
        mark = hashlib.sha256(f"{self.keep} {stamps}".encode()).hexdigest()[:16]
        return self.folder / f"{name}_{mark}.npz"

    def _healed(self, canvases: Sequence[Canvas]) -> list[Canvas]:
        """The canvases with healthy tissue, drawn by the model, in the place of their tumours.

        Where tumours are kept, what is drawn goes on from the healed brain all the same, as the network has learned
        that a brain has one tumour: beside another it draws none. Image and labels stay as they are then.
        """
        ill = [canvas for canvas in canvases if canvas.own.size]
        if not ill:
            return list(canvases)
        device = next(self.model.network.parameters()).device
        known = torch.from_numpy(np.stack([canvas.latents for canvas in ill])).to(device)
        region = torch.stack([self._covering(canvas) for canvas in ill]).to(device)
        nothing = torch.full((len(ill), len(NAMES)), torch.nan, device=device)
        seeds = [int(canvas.content[:8], 16) for canvas in ill]
        own = torch.from_numpy(np.stack([self.model.normaliser.encode(canvas.own) for canvas in ill])).to(device)
        drawn = self.sampler(nothing, self.model.network, seeds, region=region, known=known, unwanted=own)
        healed = {}
        for canvas, where, latents in zip(ill, region, drawn, strict=True):
            volume = self.model.decode(latents)
            image, _ = blended(canvas, volume, where, self.model, heal=True)
            kept = {"latents": latents.cpu().numpy(), "volume": volume}
            if not self.keep:
                kept |= {"image": image, "labels": np.zeros_like(canvas.labels)}
            healed[canvas.name] = replace(canvas, **kept)
        return [healed.get(canvas.name, canvas) for canvas in canvases]

    def _covering(self, canvas: Canvas) -> torch.Tensor:
        """The region of a canvas's own tumour, and every latent that its mask touches or that is next to one."""
        shape = canvas.latents.shape[1:]
        touched = _on_working(canvas.labels > 0, canvas)
        for axis, n in enumerate(shape):
            touched = np.add.reduceat(touched, np.arange(n) * (touched.shape[axis] // n), axis) > 0
        touched = ndimage.binary_dilation(touched, np.ones((3, 3, 3)))
        return torch.maximum(self.region(canvas, canvas.own), torch.from_numpy(touched)[None].float())

    def region(self, canvas: Canvas, request: np.ndarray) -> torch.Tensor:
        """Where a tumour is drawn, `[1, H, W, D]` of ones and zeros: its ellipsoid and the margin of the training."""
        condition = torch.from_numpy(self.model.normaliser.encode(request))[None]
        return self._picture.region(condition, torch.zeros(1, *canvas.latents.shape), MARGIN_MM)[0]

    def row(self, canvas: Canvas, request: np.ndarray, contrast: float | None = None) -> dict[str, Any]:
        """What `PairSampler` and `draw_into` need of a request `[9]` for a canvas; one that pushes is drawn smaller."""
        drawn = smaller(request) if self.push else request
        return {
            "image": torch.from_numpy(self.model.normaliser.encode(drawn)),
            "request": to_dict(request),
            "canvas": canvas,
            "region": self.region(canvas, request),
            "place": request,
            "contrast": contrast,
        }

    @cached_property
    def _picture(self) -> RequestPicture:
        return copy.deepcopy(self.model.network.picture).cpu()

    def place(self, asked: Mapping[str, float], seed: int, among: int = 1) -> tuple[str, np.ndarray] | None:
        """The name of a canvas and a request `[9]` that fits into its brain; None where no canvas takes it.

        What is left open is drawn from the joint model of the training tumours until nine tenths of the ellipsoid lie
        inside the brain, clear of a tumour that is kept, and it is not nearly the canvas's own tumour, from which the
        model may have learned; nor, where that can be had, nearly what an earlier turn of the canvas is asked for.
        `among`: see `TumourModel.complete`.
        """
        for name in self.order(seed):
            try:
                canvas = self.get(name)
            except DataError:
                continue
            free, earlier, fitting = self._free(canvas), self._earlier(name, asked, seed, among), None
            for attempt in range(PLACES):
                request = self.model.tumours.complete(asked, (seed + attempt * STRIDE) % MOST_SEED, among)
                if canvas.own.size and _alike(request, canvas.own):
                    continue
                if self._share(request, free) >= INSIDE:
                    if not any(_alike(request, other) for other in earlier):
                        return name, request
                    fitting = request if fitting is None else fitting
            if fitting is not None:
                return name, fitting
        return None

    def _earlier(self, name: str, asked: Mapping[str, float], seed: int, among: int) -> list[np.ndarray]:
        """What the last `TURNS` turns of a canvas would be asked for first: a function of the seed alone."""
        n = len(self.cases)
        seeds = [r * n + self._round(r).index(name) for r in range(max(0, seed // n - TURNS), seed // n)]
        return [self.model.tumours.complete(asked, earlier, among) for earlier in seeds]

    def roomiest(self, requests: Sequence[np.ndarray], seed: int) -> Canvas:
        """Of the canvases that a seed tries the one in which the least fortunate of these requests has the most room.

        Raises:
            DataError: none can be read.
        """
        found: dict[str, float] = {}
        for name in self.order(seed):
            with suppress(DataError):
                free = self._free(self.get(name))
                found[name] = min(self._share(request, free) for request in requests)
        return self.get(max(found, key=found.__getitem__) if found else self.order(seed)[0])

    def satellite(self, canvas: Canvas, pair: Pair, seed: int) -> tuple[Canvas, np.ndarray] | None:
        """A pair as the canvas of a second tumour, with a request `[9]` for it; None where a seed has none, or no room.

        It is smaller than the first, `NEAR_MM` from its edge, and clear of the canvas's own.
        """
        rng = np.random.default_rng([seed, 5])
        if rng.random() >= self.satellites:
            return None
        labels = np.where(pair.labels > 0, pair.labels, canvas.labels)
        canvas = replace(canvas, image=pair.image, labels=labels)
        gap = ndimage.distance_transform_edt(~_on_working(pair.labels > 0, canvas), canvas.working.spacing)
        free, frame = self._free(canvas), canvas.working.frame(canvas.working)
        most = min(SATELLITE_ML[1], pair.measured[0] / 2)
        for _ in range(PLACES):
            volume = float(np.exp(rng.uniform(*np.log([SATELLITE_ML[0], max(most, SATELLITE_ML[0])]))))
            radius = np.cbrt(volume * 750 / np.pi)
            middle = radius + rng.uniform(*NEAR_MM)  # of a ball, from the edge of the first
            there = np.argwhere(free & (np.abs(gap - middle) < max(canvas.working.spacing)))
            if not len(there):
                continue
            centre = frame[:3, :3] @ there[rng.integers(len(there))] + frame[:3, 3]
            extents = 2 * radius * rng.uniform(1.0, 1.3, 3)  # small ones are compact
            asked = {"volume_ml": volume} | dict(zip(NAMES[3:], (*centre, *extents), strict=True))
            request = self.model.tumours.complete(asked, int(rng.integers(MOST_SEED)))
            if self._share(request, free) >= INSIDE and not (canvas.own.size and _alike(request, canvas.own)):
                return canvas, request
        return None

    def _free(self, canvas: Canvas) -> np.ndarray:
        """Where a tumour may lie, `[X, Y, Z]` bool on the working grid: brain without a tumour that is kept."""
        floor = 2 * self.model.preset["intensity"]["floor"] - 1
        free = canvas.volume[: len(canvas.image)].max(axis=0) > floor
        return free & ~_on_working(canvas.labels > 0, canvas) if canvas.labels.any() else free

    def _share(self, request: np.ndarray, free: np.ndarray) -> float:
        """How much of a request's ellipsoid is free."""
        condition = torch.from_numpy(self.model.normaliser.encode(request))[None]
        ellipsoid = self._picture.region(condition, torch.zeros(1, 1, *free.shape), 0.0)[0, 0].numpy() > 0
        return float(free[ellipsoid].mean())


def _alike(request: np.ndarray, own: np.ndarray) -> bool:
    """Whether a request, or its left-right mirror image, is nearly another tumour, such as a brain came with."""
    mirrored = request[3:6] * [-1, 1, 1]
    near = min(np.linalg.norm(centre - own[3:6]) for centre in (request[3:6], mirrored)) < ALIKE_MM
    return bool(near and 1 / ALIKE < request[0] / own[0] < ALIKE)


def _on_working(mask: np.ndarray, canvas: Canvas) -> np.ndarray:
    """A native mask `[X, Y, Z]` on the working grid, bool: the voxels that it touches."""
    return to_native(mask, canvas.native, canvas.working, 0) > 0


def _weight(region: torch.Tensor, canvas: Canvas) -> np.ndarray:
    """Share of what is drawn, `[X, Y, Z]` on the native grid: 0 beyond the region and at its rim, 1 well inside."""
    inside, spacing = region[0].cpu().numpy() > 0, canvas.working.spacing
    for axis, n in enumerate(canvas.working.size):
        inside = np.repeat(inside, n // inside.shape[axis], axis)
    inside = np.pad(inside, 1, mode="edge")  # the edge of the field of view is no rim
    depth = ndimage.distance_transform_edt(inside, spacing)[1:-1, 1:-1, 1:-1] - max(spacing)
    return to_native(rise(depth / BLEND_MM), canvas.working, canvas.native, 0)


def _soft(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """1 in a mask, fading to 0 over `FADE_MM` around it."""
    points = np.argwhere(mask)
    reach = np.ceil(FADE_MM / np.asarray(spacing)).astype(int) + 1
    window = tuple(map(slice, (points.min(axis=0) - reach).clip(0), points.max(axis=0) + reach + 1))
    soft = np.zeros(mask.shape, np.float32)
    soft[window] = 1 - rise(ndimage.distance_transform_edt(~mask[window], spacing) / FADE_MM)
    return soft


def _mirrored(detail: np.ndarray, usable: np.ndarray, canvas: Canvas) -> np.ndarray:
    """What `[X, Y, Z]` lies across the middle of the brain's bounding box, 0 where that is not `usable`."""
    axis = int(np.abs(np.reshape(canvas.native.direction, (3, 3))[0]).argmax())
    ends = np.flatnonzero((canvas.image != 0).any(axis=(0, *({1, 2, 3} - {axis + 1}))))[[0, -1]]
    across = (ends.sum() - np.arange(detail.shape[axis])).clip(0, detail.shape[axis] - 1)
    return np.take(np.where(usable, detail, 0), across, axis)


def blended(
    canvas: Canvas,
    volume: np.ndarray,
    region: torch.Tensor,
    model: Model,
    heal: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """The canvas plus the weighted difference of a decoded volume and its own, inside its brain.

    With `heal` the detail that the autoencoder does not hold goes from the canvas's own tumour, where it would draw its
    outline anew; the detail from across the brain takes its place, where that is healthy. Nor does anything stay that
    is brighter than nearly all of the brain around.

    Returns:
        image `[C, X, Y, Z]`, and the weight `[X, Y, Z]` of what was drawn: where it is 0 the image is the canvas.
    """
    weight, image, intensity = _weight(region, canvas), canvas.image.copy(), model.preset["intensity"]
    brain, tumour = (image != 0).any(axis=0), canvas.labels > 0
    changed = (weight > 0) & brain
    lost = np.minimum(weight, _soft(tumour, canvas.native.spacing)) if heal else None
    for channel, new, old, limits in zip(image, volume, canvas.volume, canvas.limits, strict=False):
        new, old = (to_scanner((scaled.clip(-1, 1) + 1) / 2, limits, intensity) for scaled in (new, old))
        difference = weight * from_means(new - old, canvas.working, canvas.native)
        if heal:
            detail = np.where(brain, channel - from_means(old, canvas.working, canvas.native), 0)
            difference -= lost * (detail - _mirrored(detail, brain & (lost == 0), canvas))
        mixed = channel + difference
        if heal:
            mixed -= lost * (mixed - np.quantile(channel[brain & (lost == 0)], CALM)).clip(0)
        mixed = mixed.clip(channel[channel != 0].min(), BRIGHTEST)[changed]
        mixed = np.rint(mixed) if image.dtype == np.int16 else mixed
        channel[changed] = np.where(
            mixed == 0, 1e-3 if image.dtype != np.int16 else 1, mixed
        )  # brain is not background
    return image, weight


def draw_into(
    canvas: Canvas,
    latents: torch.Tensor,
    region: torch.Tensor,
    model: Model,
    request: np.ndarray,
    contrast: float | None = None,
    strength: float = 1.0,
) -> Pair:
    """The pair of a canvas and what was drawn into it; its labels are those of the drawn tumour alone.

    Args:
        canvas: healed, or with a tumour that it keeps.
        latents: `[Z, H, W, D]`, those of the canvas outside of the region.
        region: `[1, H, W, D]` of ones and zeros.
        model: decodes.
        request: `[9]`; what was drawn is brought to its volume and centre (`settled`).
        contrast: that the first channel is to have (`contrast_of`); None: as it was drawn.
        strength: of what was drawn, where no contrast is asked for (`varied`).
    """
    images, volume = len(canvas.image), model.decode(latents)
    if not np.isfinite(volume).all():
        return Pair(canvas.image, np.zeros_like(canvas.labels), None, "voxels that are no numbers")
    image, weight = blended(canvas, volume, region, model)
    brain = (image != 0).any(axis=0)
    shares = (volume[images:].clip(-1, 1) + 1) / 2
    drawn, outside = native_labels(shares, brain, canvas.working, canvas.native)
    drawn[weight < 0.5] = 0
    if (drawn > 0).sum() * np.prod(canvas.native.spacing) / 1000 < LEAST_ML:
        return Pair(image, np.zeros_like(drawn), None, "empty mask")
    fault = f"{100 * outside:.0f} % of the mask outside the brain" if outside > OUTSIDE else ""
    if contrast is None and strength != 1:
        image = _strengthened(image, canvas, strength)
    image, drawn = settled(image, drawn, canvas, request, weight)
    if contrast is not None:
        image, unmet = _with_contrast(contrast, image, drawn > 0, canvas)
        fault = fault or unmet
    measured = measure(drawn, canvas.native.frame(canvas.working))
    return Pair(image, drawn, measured, fault)


def _with_contrast(contrast: float, image: np.ndarray, tumour: np.ndarray, canvas: Canvas) -> tuple[np.ndarray, str]:
    """All that was changed of a canvas made weaker or stronger, until the tumour has a contrast; or why it cannot."""
    spacing = canvas.native.spacing
    without, drawn_as = (contrast_of(each[0], tumour, spacing) for each in (canvas.image, image))
    strength, found = 1.0, drawn_as
    for _ in range(2):  # the brightest voxels are cut, so once is not quite enough
        strength *= float(np.divide(contrast - without, found - without))
        if not STRENGTH[0] <= strength <= STRENGTH[1]:
            return image, f"contrast {drawn_as:.2g}, which cannot be made {contrast:.2g}"
        mixed = _strengthened(image, canvas, strength)
        found = contrast_of(mixed[0], tumour, spacing)
    return mixed, ""


def _strengthened(image: np.ndarray, canvas: Canvas, strength: float) -> np.ndarray:
    """All that was changed of a canvas made weaker or stronger, within what its brain and the files can hold."""
    mixed = canvas.image + strength * (image.astype(np.float32) - canvas.image)
    for channel, own in zip(mixed, canvas.image, strict=True):
        channel[own != 0] = channel[own != 0].clip(own[own != 0].min(), BRIGHTEST)
    return np.rint(mixed).astype(np.int16) if canvas.image.dtype == np.int16 else mixed


def varied(seed: int) -> float:
    """How strongly a seed's tumour shows: drawn ones vary less in contrast than real ones do (`VARIED`)."""
    return float(np.exp(VARIED * np.random.default_rng([seed, 7]).standard_normal()))


def contrast_of(channel: np.ndarray, tumour: np.ndarray, spacing: Sequence[float]) -> float:
    """`tumour_contrast` as the evaluation measures it, without a brain's darkest and brightest voxels."""
    ends = np.percentile(channel[channel != 0], PERCENTILES)
    return tumour_contrast(np.where(channel != 0, channel.clip(*ends), 0), tumour, spacing)


def smaller(request: np.ndarray) -> np.ndarray:
    """What is drawn of a request `[9]` whose tumour then pushes: the same shape without `PUSHED` of its volume."""
    scale = (1 - PUSHED) ** (1 / 3)
    return request * np.array([scale**3, scale**2, 1, 1, 1, 1, scale, scale, scale])


def settled(
    image: np.ndarray, labels: np.ndarray, canvas: Canvas, request: np.ndarray, weight: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Bring what was drawn to the volume and the centre asked for, by a smooth warp within the region.

    Along each ray from the centre the tumour swells or shrinks, and the shift of what lies around fades to nothing at
    `MARGIN_MM` from the ellipsoid asked for. A tumour that was drawn `smaller` pushes its surroundings aside in this
    way (mass effect). Tumours that the canvas keeps do not move, nor does the brain's outline. What is farther off than
    `SETTLED` is brought no nearer than that.

    Args:
        image: `[C, X, Y, Z]` as `draw_into` drew it.
        labels: `[X, Y, Z]` uint8 of the drawn tumour.
        canvas: gives grids, and the labels that it keeps.
        request: `[9]` that was asked for.
        weight: `[X, Y, Z]`; where it is 0 nothing moves.
    """
    window = ndimage.find_objects((weight > 0).astype(np.uint8))[0]
    frame, ml = canvas.native.frame(canvas.working), float(np.prod(canvas.native.spacing)) / 1000
    voxels = np.stack(np.meshgrid(*(np.arange(part.start, part.stop) for part in window), indexing="ij"))
    start = np.array([part.start for part in window])[:, None, None, None]
    brain, part = (image != 0).any(axis=0)[window], labels[window]
    still = rise(2 * weight[window])
    if canvas.labels.any():
        still *= 1 - _soft(canvas.labels > 0, canvas.native.spacing)[window]
    inverse, shares = np.linalg.inv(frame[:3, :3]), None
    kinds = [k for k in np.unique(part) if k]
    centre, volume = request[3:6].copy(), request[0]
    for _ in range(2):  # what lies outside the ellipsoid moves less, so once is not quite enough
        places = _sources(part > 0, voxels, frame, request, centre, volume, ml)
        places = voxels - start + still * np.tensordot(inverse, places, axes=1)
        shares = [ndimage.map_coordinates((part == k).astype(np.float32), places, order=1) for k in kinds]
        found = (np.sum(shares, axis=0) >= 0.5) & brain
        if not found.any():
            return image, labels
        middle = frame[:3, :3] @ (np.argwhere(found).mean(axis=0) + start.ravel()) + frame[:3, 3]
        volume, centre = volume * request[0] / (found.sum() * ml), centre + request[3:6] - middle
    moved = np.abs(places - (voxels - start)).max(axis=0) > 1e-3
    nearest = ndimage.distance_transform_edt(~brain, return_distances=False, return_indices=True)
    image, labels = image.copy(), labels.copy()
    for channel in image:
        filled = channel[window].astype(np.float32)[tuple(nearest)]  # no background may be drawn in
        shifted = ndimage.map_coordinates(filled, places, order=3, mode="nearest").clip(filled.min(), filled.max())
        shifted = np.rint(shifted) if image.dtype == np.int16 else shifted
        channel[window] = np.where(moved & brain, shifted, channel[window])
    labels[window] = np.where(found, np.array(kinds, np.uint8)[np.argmax(shares, axis=0)], 0)
    return image, labels


def _sources(
    tumour: np.ndarray,
    voxels: np.ndarray,
    frame: np.ndarray,
    request: np.ndarray,
    centre: np.ndarray,
    volume: float,
    ml: float,
) -> np.ndarray:
    """From where each voxel takes what it shows, `[3, X, Y, Z]` in mm from where it is.

    A tumour is brought to a centre and a volume; its surroundings give way within the margin of a request.
    """
    middle = frame[:3, :3] @ voxels[:, tumour].mean(axis=1) + frame[:3, 3]
    away, farthest = middle - centre, SETTLED[0]
    away *= min(1.0, farthest / max(float(np.linalg.norm(away)), 1e-6))
    edge = np.clip(np.cbrt(tumour.sum() * ml / volume), *SETTLED[1:])  # of what was drawn, in radii of the request
    radii = np.maximum(request[6:9], 1) / 2
    offset = np.tensordot(frame[:3, :3], voxels, axes=1) + (frame[:3, 3] - (middle - away))[:, None, None, None]
    radius = np.sqrt(np.square(offset / radii[:, None, None, None]).sum(axis=0))
    rim = 1 + MARGIN_MM / radii.max()
    before = np.linspace(0, rim, 500)
    fading = 1 - rise((before - edge) / (rim - edge))
    after = np.where(before < edge, before / edge, before + (1 - edge) * fading)
    came_from = np.interp(radius, after, before, right=rim)
    ratio = np.where(radius < rim, came_from / np.maximum(radius, 1e-6), 1.0)
    return (ratio - 1) * offset + np.interp(radius, before, fading, right=0) * away[:, None, None, None]
