"""What the two trainings read: slices of prepared cases, and stacked latents.

Batch n of a training is a pure function of (seed, n), so a resumed training goes on exactly where it stopped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

from sbldm.cases.prepare import load_prepared
from sbldm.run import group
from sbldm.run.progress import progress

__all__ = ["Continuing", "Dealt", "LatentDataset", "Shuffled", "SliceDataset", "SliceValidation", "VolumeDataset"]


WHOLE = (slice(None), slice(None))  # of a plane


class Continuing(Sampler[int]):
    """Counts samples from `start` to `total`; a resumed training sets `start` to what it has already seen."""

    def __init__(self, total: int, start: int = 0) -> None:
        self.total, self.start = total, start

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.start, self.total))

    def __len__(self) -> int:
        return self.total - self.start


class Dealt(Sampler[int]):
    """Whole batches of a validation, dealt out to the processes of a training; each is that of one process alone.

    Of fewer batches than processes all are everybody's: their mean is the same.

    Args:
        length: of the data set.
        batch_size: of the data loader.
    """

    def __init__(self, length: int, batch_size: int) -> None:
        self.length, self.batch_size, count = length, batch_size, -(-length // batch_size)
        self.first, self.step = (group.rank(), group.size()) if count >= group.size() else (0, 1)

    def number(self, iteration: int) -> int:
        """Which batch of all, from 1, this process sees at an iteration."""
        return (iteration - 1) * self.step + self.first + 1

    def __iter__(self) -> Iterator[int]:
        stride = self.step * self.batch_size
        for start in range(self.first * self.batch_size, self.length, stride):
            yield from range(start, min(start + self.batch_size, self.length))

    def __len__(self) -> int:
        return sum(1 for _ in self)


class Shuffled(Dataset):
    """Sample number n of an endless sequence of reshuffled passes over `self.size` items."""

    size: int
    seed: int

    _pass: tuple[int, np.ndarray] = (-1, np.empty(0))

    def _item(self, n: int) -> tuple[int, np.random.Generator]:
        """The item of sample n, and a generator for its random choices."""
        number, place = divmod(n, self.size)
        if self._pass[0] != number:
            self._pass = number, np.random.default_rng([self.seed, number]).permutation(self.size)
        return int(self._pass[1][place]), np.random.default_rng([self.seed, 1, n])


def _load_volumes(folder: str | Path, names: Sequence[str]) -> np.ndarray:
    """Prepared cases in memory, half precision: `[N, C + L, X, Y, Z]` in [-1, 1]."""
    shown = progress(names, "Reading cases")
    return np.stack([load_prepared(Path(folder), name)[0].astype(np.float16) for name in shown])


def _slice(
    volumes: np.ndarray, case: int, z: int, mirror: bool = False, depth: int = 0, window: tuple[slice, slice] = WHOLE
) -> dict[str, Any]:
    """A slice and its index, or `depth` of them from there on; of the plane a window."""
    which = slice(z, z + depth) if depth else z
    plane = volumes[(case, slice(None), *window, which)].astype(np.float32)
    plane = plane[:, ::-1].copy() if mirror else plane
    return {"image": torch.from_numpy(plane), "position": torch.arange(volumes.shape[-1])[which]}


class SliceDataset(Shuffled):
    """Axial slices `image` `[C + L, X, Y]` in [-1, 1] and their index `position`, for stage 1.

    Of the slices without any brain, a random tenth takes part in each pass, as the authors did.

    With `depth` a slice brings its neighbours: `image` `[C + L, X, Y, depth]`, `position` `[depth]`, the slice
    somewhere in the stack. With `crop` only a window is shown, around a random voxel of the slice's brain: of whole
    slices more than half is background, from which nothing is learned.

    Args:
        folder: prepared cases.
        names: cases of the training list.
        seed: order of the passes.
        mirror: flip half of the slices left-right.
        empty_share: share of slices without brain in a pass.
        depth: slices of a stack, 0 for single slices.
        crop: voxels of the window along X and Y; None: whole slices.
    """

    def __init__(
        self,
        folder: str | Path,
        names: Sequence[str],
        seed: int = 0,
        mirror: bool = False,
        empty_share: float = 0.1,
        depth: int = 0,
        crop: Sequence[int] | None = None,
    ) -> None:
        self.volumes, self.seed, self.mirror, self.depth = _load_volumes(folder, names), seed, mirror, depth
        self.crop = crop
        content = (self.volumes[:, 0] > -1).any(axis=(1, 2))
        self.full, self.empty = np.argwhere(content), np.argwhere(~content)
        self.n_empty = round(empty_share * len(self.empty))
        self.size = len(self.full) + self.n_empty

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, n: int) -> dict[str, Any]:
        item, rng = self._item(n)
        case, z = self.full[item] if item < len(self.full) else self.empty[rng.integers(len(self.empty))]
        mirror = self.mirror and rng.random() < 0.5
        window = self._window(self.volumes[case, 0, ..., z] > -1, rng) if self.crop else WHOLE
        if self.depth:
            z = min(max(0, z - rng.integers(self.depth)), self.volumes.shape[-1] - self.depth)
        return _slice(self.volumes, case, z, mirror, self.depth, window)

    def _window(self, brain: np.ndarray, rng: np.random.Generator) -> tuple[slice, slice]:
        """A window around a random voxel of a brain `[X, Y]`, or of the plane where there is none, inside the plane."""
        inside = np.flatnonzero(brain)
        voxel = rng.choice(inside) if len(inside) else rng.integers(brain.size)
        centre = np.unravel_index(voxel, brain.shape)
        first = [min(max(0, c - w // 2), n - w) for c, w, n in zip(centre, self.crop, brain.shape, strict=True)]
        return tuple(slice(f, f + w) for f, w in zip(first, self.crop, strict=True))


class SliceValidation(Dataset):
    """Every `stride`-th slice with brain of the held-back cases, always the same; those with most tumour come last.

    With `depth` whole stacks one after the other, every second one.
    """

    def __init__(self, folder: str | Path, names: Sequence[str], stride: int = 4, depth: int = 0) -> None:
        self.volumes, self.depth = _load_volumes(folder, names), depth
        content = (self.volumes[:, 0] > -1).any(axis=(1, 2))
        if depth:
            starts = np.arange(0, content.shape[1] - depth + 1, 2 * depth)
            content = content[:, starts + depth // 2]
            slices = np.argwhere(content) * [1, 2 * depth]
        else:
            slices = np.argwhere(content)[::stride]
        tumour = [(self.volumes[case, -1, ..., z : z + max(1, depth)] > 0).sum() for case, z in slices]
        self.slices = slices[np.argsort(tumour, kind="stable")]

    def __len__(self) -> int:
        return len(self.slices)

    def __getitem__(self, n: int) -> dict[str, Any]:
        return _slice(self.volumes, *self.slices[n], depth=self.depth)


class VolumeDataset(Shuffled):
    """Whole cases `[C + L, X, Y, Z]` in [-1, 1], for the 3-D rivals.

    Args:
        folder: prepared cases.
        names: cases of a list.
        seed: order of the passes.
        mirror: flip half of the cases left-right.
        key: name of the volume in an item; MONAI's `GanTrainer` looks for `reals`.
    """

    def __init__(
        self, folder: str | Path, names: Sequence[str], seed: int = 0, mirror: bool = False, key: str = "image"
    ) -> None:
        self.volumes, self.seed, self.mirror, self.key = _load_volumes(folder, names), seed, mirror, key
        self.size = len(self.volumes)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, n: int) -> dict[str, Any]:
        item, rng = self._item(n)
        volume = self.volumes[item].astype(np.float32)
        volume = volume[:, ::-1].copy() if self.mirror and rng.random() < 0.5 else volume
        return {self.key: torch.from_numpy(volume)}


class LatentDataset(Shuffled):
    """Standardised latents `image` `[Z, H, W, D]` and condition vectors `condition` `[K]`, for stage 2.

    Args:
        latents: `[N, 2, Z, H, W, D]` mean and log-variance of each item, as the latent store holds them.
        conditions: `[N, K]` normalised characteristics.
        mean: `[Z, 1, 1, 1]`, or of every position `[Z, H, W, D]`.
        std: `[Z]`.
        seed: order of the passes.
        mode: `mean`, or `sample` for a fresh posterior sample each time.
    """

    def __init__(
        self,
        latents: np.ndarray,
        conditions: np.ndarray,
        mean: Sequence[float],
        std: Sequence[float],
        seed: int = 0,
        mode: str = "mean",
    ) -> None:
        if mode not in ("mean", "sample"):
            raise ValueError(f"diffusion.latent must be mean or sample, not {mode}.")
        self.latents, self.conditions, self.seed, self.mode = latents, conditions, seed, mode
        self.mean, self.std = np.asarray(mean, np.float32), np.asarray(std, np.float32).reshape(-1, 1, 1, 1)
        self.size = len(latents)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, n: int) -> dict[str, Any]:
        item, rng = self._item(n)
        mean, log_variance = self.latents[item].astype(np.float32)
        if self.mode == "sample":
            mean = mean + np.exp(log_variance / 2) * rng.standard_normal(mean.shape, np.float32)
        return {
            "image": torch.from_numpy((mean - self.mean) / self.std),
            "condition": torch.from_numpy(np.asarray(self.conditions[item], np.float32)),
        }
