"""Sharper images around a drawn tumour, between the decoder and all that makes a pair of what it has decoded.

A few steps of a 2-D diffusion of pixels (`training.refiner`) say what the patch lacks, plane by plane. The planes of a
patch share their noise along z, so that what is drawn anew does not flicker. Labels stay as they are decoded, and so
do the outline of the brain and every voxel beyond the patch, at whose border what is added fades in.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sbldm.cases.export import body_of
from sbldm.diffusion import dpm_solver
from sbldm.networks import RefinerUNet, build_refiner
from sbldm.run.device import same_sums
from sbldm.run.errors import InputError
from sbldm.run.files import sha256
from sbldm.run.folder import Run, with_refiner
from sbldm.run.preset import Preset
from sbldm.synthesis.healing import rise
from sbldm.synthesis.model import Model
from sbldm.training.checkpoints import load_checkpoint, reading_checkpoint, require_same, unfinished
from sbldm.training.refiner import SCHEDULE, around, require_generator

__all__ = ["Refine", "Refiner"]

Refine = Callable[..., list[np.ndarray]]  # volumes to refined ones, the noise being given

FADE_MM = 10.0  # from the border of a patch inwards, over which what is added rises
ABOVE = 1e-3  # by which a refined brain stays above the floor, of intensities in [0, 1]
CHUNK = 32  # planes at once; a plane is the same in any company, but for rounding


@dataclass(frozen=True)
class Refiner:
    """A trained refiner, ready to draw.

    Attributes:
        network: with averaged weights, on its device.
        preset: with a `refiner`.
        scale: `[C]`, the deviation of what decoded images lack.
        sha256: of its checkpoint.
    """

    network: RefinerUNet
    preset: Preset
    scale: Sequence[float]
    sha256: str

    @classmethod
    def of_run(cls, run_dir: str, asked: Any, model: Model, weights: str | Path | None = None) -> Refiner | None:
        """That of a run, for pairs that its own generator draws; None where `asked` is empty.

        Raises:
            InputError: pairs of another generator (`weights`), or of a model that has none, cannot be refined.
            StateError: none is trained, or it was trained on the pairs of another generator.
        """
        if asked in (None, "", "0", 0, False):
            return None
        if asked not in ("1", 1, True):
            raise InputError(f"--refine {asked}: write 1 to sharpen images around the tumour, or leave it out.")
        if weights:
            raise InputError(
                "--refine: a refiner knows the generator of its own run alone, and these pairs come from a file of "
                "weights; leave it out, or train both in a run."
            )
        run = Run.at(run_dir)
        preset = with_refiner(run.preset)
        path = run.checkpoint("refiner")
        content = load_checkpoint(path, "refiner")
        require_same(path, content, run.preset, ("data", "grid", "intensity"))
        require_generator(run)
        if so_far := unfinished(run, "refiner"):
            print(f"Warning: the refiner of {run.folder} is half-trained: {so_far}.")
        preset = content["preset"]
        network = build_refiner(preset)
        with reading_checkpoint(path):
            network.load_state_dict(content["network"])
        network = network.to(next(model.network.parameters()).device).eval().requires_grad_(False)
        return cls(network, preset, content["constants"]["scale"], sha256(path))

    @property
    def settings(self) -> dict[str, Any]:
        """What all pairs of a dataset have in common, for `synthesis.json`."""
        values = self.preset.refiner
        return {"sha256": self.sha256, "steps": values.steps, "sigma_min": values.sigma_min, "along_z": values.along_z}

    def of(self, seed: int, attempt: int = 0) -> Refine:
        """The same with the noise of a pair."""
        return partial(self, noise=self._noise(seed, attempt))

    def _noise(self, seed: int, attempt: int) -> torch.Tensor:
        """`[Z, C, X, Y]`, unit normal; neighbouring planes are correlated as the preset says."""
        state = np.random.SeedSequence((seed, attempt, 13)).generate_state(1, np.uint64)[0] >> np.uint64(1)
        generator, share = torch.Generator().manual_seed(int(state)), self.preset.refiner.along_z
        x, y, z = self.preset.grid.size
        planes = [torch.randn(self.preset.image_channels, x, y, generator=generator)]
        for _ in range(z - 1):
            fresh = torch.randn(planes[0].shape, generator=generator) if share < 1 else 0
            planes.append(share * planes[-1] + math.sqrt(1 - share**2) * fresh)
        return torch.stack(planes)

    def __call__(self, *volumes: np.ndarray, noise: torch.Tensor) -> list[np.ndarray]:
        """Volumes `[C + L, X, Y, Z]` in [-1, 1] with sharper images in the patch around the tumour of the first.

        All of them there, with the same noise, so that their difference is that of what was drawn. Without a tumour, or
        with voxels that are no numbers, they come back as they are.
        """
        channels, values = self.preset.image_channels, self.preset.refiner
        spacing = [fov / n for fov, n in zip(self.preset.grid.fov_mm, self.preset.grid.size, strict=True)]
        box = around(volumes[0][channels:], values, spacing)
        if box is None or not all(np.isfinite(volume).all() for volume in volumes):
            return list(volumes)
        weight = _window(box, volumes[0].shape[1:], spacing)
        refined = []
        for volume in volumes:
            lacking = self.lacking(volume[:, *box], noise[box[2], :, box[0], box[1]])
            brain = body_of((volume[:channels].clip(-1, 1) + 1) / 2, self.preset.intensity.floor)
            refined.append(volume.copy())
            changed = brain[box] & (weight > 0)
            for image, added in zip(refined[-1][:channels, *box], lacking, strict=True):
                image[changed] = self._of_brain(image + weight * added, image)[changed]
        return refined

    @torch.no_grad()
    def lacking(self, patch: np.ndarray, noise: torch.Tensor) -> np.ndarray:
        """What images of a decoded patch `[C + L, X, Y, Z]` lack, `[C, X, Y, Z]`, drawn from noise `[Z, C, X, Y]`."""
        values, device = self.preset.refiner, next(self.network.parameters()).device
        planes = torch.from_numpy(np.ascontiguousarray(np.moveaxis(patch, -1, 0), np.float32))
        drawn = []
        for decoded, own in zip(planes.split(CHUNK), noise.split(CHUNK), strict=True):
            denoise, start = partial(self.network, decoded=decoded.to(device)), own.to(device)
            with same_sums(device):
                latest = dpm_solver(denoise, {0: start}.get, SCHEDULE, values.steps, sigma_min=values.sigma_min)
            drawn.append(latest.cpu())
        scale = np.reshape(self.scale, (-1, 1, 1, 1)).astype(np.float32)
        return np.moveaxis(torch.cat(drawn).numpy(), 0, -1) * scale

    def _of_brain(self, refined: np.ndarray, decoded: np.ndarray) -> np.ndarray:
        """Refined intensities that leave the brain its outline: nothing of it falls below the floor that was above."""
        return refined.clip(np.minimum(decoded, 2 * (self.preset.intensity.floor + ABOVE) - 1), 1)


def _window(box: Sequence[slice], size: Sequence[int], spacing: Sequence[float]) -> np.ndarray:
    """Share of what is added in a patch: from 0 at its border to 1 `FADE_MM` inside; the grid's edge is no border."""
    weight = np.ones([part.stop - part.start for part in box], np.float32)
    for axis, (part, n, step) in enumerate(zip(box, size, spacing, strict=True)):
        at = np.arange(part.start, part.stop)
        depth = np.minimum(
            np.where(part.start == 0, np.inf, at - part.start), np.where(part.stop == n, np.inf, part.stop - 1 - at)
        )
        share = rise(depth * step / FADE_MM).astype(np.float32)
        weight *= share.reshape([-1 if i == axis else 1 for i in range(3)])
    return weight
