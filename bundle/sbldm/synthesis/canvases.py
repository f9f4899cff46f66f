"""Canvas: the tumour that was asked for, drawn into a real brain.

The canvas is encoded; its own tumour is healed, or kept; the asked one is drawn by the same network within a region
around its place, the latents elsewhere being the canvas's. Here brains are chosen and made ready, and places found;
`blending` makes the pairs.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from sbldm.cases.geometry import to_native
from sbldm.cases.layouts import Case, find_cases
from sbldm.cases.pipeline import original_cases
from sbldm.networks.request_picture import MARGIN_MM, RequestPicture
from sbldm.run.errors import DataError, InputError
from sbldm.run.files import make_folder, user_path
from sbldm.run.folder import Run
from sbldm.run.limits import MOST_SEED
from sbldm.run.progress import Progress
from sbldm.synthesis.blending import blended, smaller
from sbldm.synthesis.canvas import Canvas, read_canvas
from sbldm.synthesis.model import Model, PairSampler
from sbldm.synthesis.pairs import Pair
from sbldm.tumour.characteristics import NAMES, to_dict

__all__ = ["Canvases"]

INSIDE = 0.9  # least share of the asked ellipsoid inside the brain
ALIKE_MM, ALIKE = 15.0, 1.5  # a request this near to the canvas's own tumour, and within this factor of its volume
SATELLITE_ML, NEAR_MM = (0.7, 10.0), (4.0, 16.0)  # volume, gap to the main tumour (10 of 100 BraTS cases have one)
PLACES = 40  # draws of what a request leaves open, for one canvas
TURNS = 20  # of a canvas that a request is held against; seeds can begin anywhere
CANVASES = 10  # that are tried for one request
STRIDE = 1_000_003  # between the seeds of two of these draws
VERSION = 4  # raise it when canvases are made differently


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
        """Those that `--canvas` asks for, or None.

        Args:
            run_dir: run folder.
            where: "train", or a folder of cases in any layout that `prepare` reads; None for whole synthesis.
            model: of the run.
            keep: 1 (or True) to leave each brain its own tumour.
            push: 1 (or True) to let new tumours push aside what lies around them.
            satellites: share of the pairs that get a second tumour, from 0 to 1.

        Raises:
            InputError: `keep`, `push` or `satellites` is wrong, or no such folder.
        """
        switches = {"--keep": (keep, "leave each canvas its own tumour"), "--push": (push, "push the tissue around")}
        for name, (value, what) in switches.items():
            if value not in (None, "", "0", "1", 0, 1):
                raise InputError(f"{name} {value}: write 1 to {what}, or leave it out.")
            if not where and value not in (None, "", "0", 0):
                raise InputError(f"{name}: says to {what}; say --canvas as well.")
        try:
            share = float(satellites or 0)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:
            raise InputError(f"--satellites {satellites}: write the share of pairs with a second tumour, from 0 to 1.")
        if not where and share:
            raise InputError(f"--satellites {satellites}: second tumours are drawn on canvases; say --canvas as well.")
        if not where:
            return None
        run, source = Run.at(run_dir), model.source
        cases = original_cases(run, "train") if where == "train" else find_cases(user_path(where), source)
        sampler = model.sampler({"guidance": model.preset.regions.healing})
        asked = str(int(keep or 0)) == "1", str(int(push or 0)) == "1", share
        return cls(cases, model, sampler, run.canvas, *asked, known=where == "train")

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
            raise DataError("--canvas: none of the scans can be read (see above); name other ones.")
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
        seeds = [int(canvas.content[:8], 16) for canvas in ill]
        own = torch.from_numpy(np.stack([self.model.normaliser.encode(canvas.own) for canvas in ill])).to(device)
        nothing = torch.full_like(own, torch.nan)
        within = {"region": region, "known": known, "unwanted": own}
        drawn = self.sampler(nothing, self.model.network, seeds, **within, places=seeds)
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
        """What `PairSampler` and `draw_into` need of a request `[K]` for a canvas; one that pushes is drawn smaller."""
        drawn = smaller(request) if self.push else request
        return {
            "image": torch.from_numpy(self.model.normaliser.encode(drawn)),
            "request": to_dict(request, self.model.tumours.names),
            "canvas": canvas,
            "region": self.region(canvas, request),
            "place": request,
            "contrast": contrast,
        }

    @cached_property
    def _picture(self) -> RequestPicture:
        return copy.deepcopy(self.model.network.picture).cpu()

    def place(self, asked: Mapping[str, float], seed: int, among: int = 1) -> tuple[str, np.ndarray] | None:
        """The name of a canvas and a request `[K]` that fits into its brain; None where no canvas takes it.

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
        """A pair as the canvas of a second tumour, with a request `[K]` for it; None where a seed has none, or no room.

        It has half of the first's volume at most and lies `NEAR_MM` from its edge; nine tenths of its ellipsoid are
        free brain, as of any request.
        """
        rng = np.random.default_rng([seed, 5])
        if rng.random() >= self.satellites:
            return None
        labels = np.where(pair.labels > 0, pair.labels, canvas.labels)
        canvas = replace(canvas, image=pair.image, labels=labels)
        gap = ndimage.distance_transform_edt(~_on_working(pair.labels > 0, canvas), canvas.working.spacing)
        free, frame = self._free(canvas), canvas.working.frame(canvas.working)
        least, most = SATELLITE_ML[0], min(SATELLITE_ML[1], pair.measured[0] / 2)
        if most < least:
            return None
        for _ in range(PLACES):
            volume = float(np.exp(rng.uniform(*np.log([least, most]))))
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
        floor = 2 * self.model.preset.intensity.floor - 1
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
