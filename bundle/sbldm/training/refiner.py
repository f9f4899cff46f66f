"""The training of the refiner: what it is shown, and what is to be put back.

The journal paper (Computerized Medical Imaging and Graphics 123:102532, 2025) sharpens the tumour patches that its
autoencoder has blurred by a 2-D DDPM of pixels. Ours differs: it is trained on what the generator makes, not on
reconstructions alone. Latents of a real case are noised to a level at which the brain still lies where it lay, and the
generator draws on from there with the case's own request (SDEdit), so that its own kind of error is what is to be
mended. It learns the difference from the real images, not the images; labels stay as decoded; a few steps suffice.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.engines import PrepareBatch

from sbldm.cases.export import tumour_of
from sbldm.cases.prepare import load_prepared
from sbldm.diffusion import SOLVERS, Schedule, along, guided, solver_times, time_steps
from sbldm.networks import build_denoiser
from sbldm.run.errors import StateError
from sbldm.run.files import atomic_path, cached_npz, clear_partial, make_folder, read_json, read_npz, sha256, write_json
from sbldm.run.folder import Run
from sbldm.run.group import by_first
from sbldm.run.preset import NoiseLevels, Preset, Refiner, Sampling
from sbldm.run.progress import Progress
from sbldm.training.checkpoints import load_checkpoint, reading_checkpoint, require_same, unfinished
from sbldm.training.data import Shuffled
from sbldm.training.latents import LatentStore, load_autoencoder

__all__ = [
    "SCHEDULE",
    "RefinerBatch",
    "RefinerDataset",
    "RefinerPairs",
    "around",
    "drawn_on",
    "require_generator",
]

SCHEDULE = Schedule(kind="cosine", prediction="sample")  # of what is lacking, in units of its deviation
Box = tuple[slice, slice, slice]


def around(labels: np.ndarray, values: Refiner, spacing: Sequence[float]) -> Box | None:
    """The patch around a tumour: its bounding box and the margin, at least a training patch in the plane.

    Args:
        labels: `[L, X, Y, Z]` in [-1, 1] on the working grid.
        values: margin, training patch, and what must divide the plane.
        spacing: mm.

    Returns:
        slices along X, Y, Z within the grid; None without a tumour.
    """
    tumour = tumour_of(labels)
    if not tumour.any():
        return None
    least, multiple = [*values.plane, 1], [values.network.shrink] * 2 + [1]
    box = []
    for axis, n in enumerate(tumour.shape):
        there = np.flatnonzero(tumour.any(axis=tuple({0, 1, 2} - {axis})))
        margin = math.ceil(values.margin_mm / spacing[axis])
        low, high = max(0, there[0] - margin), min(n, there[-1] + 1 + margin)
        size = math.ceil(max(high - low, least[axis]) / multiple[axis]) * multiple[axis]
        first = min(max(0, (low + high - size) // 2), n - size)
        box.append(slice(first, first + size))
    return tuple(box)


def drawn_on(
    denoiser: Any, latents: torch.Tensor, noise: torch.Tensor, schedule: Schedule, sampling: Sampling, level: float
) -> torch.Tensor:
    """Real latents `[B, Z, H, W, D]`, noised to `level` (sigma / alpha) and drawn on down the generator's own times."""
    if sampling.sampler in SOLVERS:
        times = solver_times(schedule, sampling.steps, sampling.spacing, sampling.sigma_min)
    else:
        times = time_steps(schedule, sampling.steps)
    start = float(schedule.time_at(np.array(-math.log(level))))
    noised, _ = schedule.noised(latents, noise, torch.full((len(latents),), start, dtype=torch.float64))
    return along(denoiser, noised, schedule, [start, *(t for t in times if t < 0.95 * start)])


@dataclass(frozen=True)
class RefinerPairs:
    """Patches as they are decoded beside the real ones, in `refiner/pairs` of a run, and what is measured on them.

    Attributes:
        run: where they lie.
        preset: with a `refiner`.
        lists: training and validation names.
        constants: `scale` `[C]` (the deviation of what the decoded images lack), the lists, and the hashes of the
            checkpoints that made them.
    """

    run: Run
    preset: Preset
    lists: dict[str, list[str]]
    constants: dict[str, Any]

    @classmethod
    @by_first
    def build(cls, folder: str, preset: Preset, lists: dict[str, list[str]], device: torch.device) -> RefinerPairs:
        """Draw the pairs that are missing, and measure.

        Raises:
            StateError: no stage 2, or a half-trained one.
        """
        run = Run.at(folder)
        path, store = run.checkpoint("diffusion"), run.folder / "refiner" / "pairs"
        content = load_checkpoint(path, "diffusion")
        require_same(path, content, run.preset, ("data", "grid", "intensity", "mirror", "autoencoder", "diffusion"))
        if so_far := unfinished(run, "diffusion"):
            raise StateError(f"{path}: only {so_far} done; `sbldm train --run {run.typed}` goes on.")
        hashes = _generator(run)
        require_generator(run)
        made = hashes | {name: getattr(preset.refiner, name) for name in ("plane", "margin_mm", "drawn", "noise")}
        made["shrink"] = preset.refiner.network.shrink
        mark, finished = store / "made.json", store / "constants.json"
        if not mark.is_file() or read_json(mark, dict) != made:  # of another generator, or to be drawn otherwise
            for old in store.glob("*"):
                old.unlink()
        make_folder(store)
        clear_partial(store)
        write_json(mark, made)
        _draw_pairs(run, preset, lists, content, device)
        if not finished.is_file():
            pairs = [_read(run, name) for name in lists["train"]]
            scale = _scale(pairs, preset)
            write_json(finished, {"scale": scale, "lists": lists, **hashes})
        return cls(run, preset, lists, read_json(finished, {"scale": [float], "lists": dict}))

    def dataset(self, role: str, seed: int = 0) -> RefinerDataset:
        """The pairs of a role."""
        pairs = [_read(self.run, name) for name in self.lists[role]]
        mirror = self.preset.mirror and role == "train"
        return RefinerDataset(pairs, self.preset, self.constants["scale"], seed, mirror, fixed=role != "train")


def _generator(run: Run) -> dict[str, str]:
    """The checkpoints whose pairs a refiner learns to mend."""
    return {f"{stage}_sha256": sha256(run.checkpoint(stage)) for stage in ("autoencoder", "diffusion")}


def require_generator(run: Run) -> None:
    """Make sure that the refiner of a run, if it has one, was trained on what the run's generator makes.

    Raises:
        StateError: it was trained on the pairs of another one.
    """
    for which in ("best", "last"):
        path = run.checkpoint("refiner", which)
        if not path.is_file():
            continue
        known, own = load_checkpoint(path, "refiner")["constants"], _generator(run)
        if any(known.get(name) != value for name, value in own.items()):
            raise StateError(
                f"{path}: trained on what another generator made; remove {path.parent} and run "
                f"`sbldm train refiner --run {run.typed}`."
            )


def _draw_pairs(
    run: Run, preset: Preset, lists: dict[str, list[str]], content: dict[str, Any], device: torch.device
) -> None:
    """Decode each case from its latents as they are, and as the generator draws them on from levels of noise.

    A batch of cases shares each level, drawn from the range of the preset; of held-back cases one is enough. What is
    there is kept.
    """
    constants, values, trained = content["constants"], preset.refiner, content["preset"]
    batches = [
        (lists[role][first : first + trained.sampling.batch], count)
        for role, count in (("train", values.drawn), ("validation", 1))
        for first in range(0, len(lists[role]), trained.sampling.batch)
    ]
    missing = [n for n, (names, _) in enumerate(batches) if not all(cached_npz(_path(run, name)) for name in names)]
    if not missing:
        return
    autoencoder, networks = load_autoencoder(run, device), _denoisers(run, content, device)
    mean, std = (torch.tensor(constants[name], device=device) for name in ("latent_mean", "latent_std"))
    std, schedule = std.view(-1, 1, 1, 1), Schedule.of_preset(trained)
    store = LatentStore(run, lists, preset.mirror, constants)
    with Progress("Drawing cases again", sum(len(batches[n][0]) for n in missing), "case") as bar:
        for number in missing:
            names, count = batches[number]
            generator = torch.Generator().manual_seed(number)
            x, condition = (torch.stack(parts).to(device) for parts in zip(*map(store.item, names), strict=True))
            denoise = guided(networks[0], condition, trained.sampling.guidance, *networks[1:])
            versions = [x]
            for share in (np.arange(count) + torch.rand(count, generator=generator).numpy()) / count:
                level = values.noise[0] * (values.noise[1] / values.noise[0]) ** float(share)
                noise = torch.randn(x.shape, generator=generator).to(device)
                with torch.no_grad():
                    versions.append(drawn_on(denoise, x, noise, schedule, trained.sampling, level))
            for k, name in enumerate(names):
                volume, _ = load_prepared(run.prepared, name)
                decoded = [autoencoder.decode_volume(version[k] * std + mean) for version in versions]
                _keep(run, name, preset, volume, np.stack(decoded))
                bar.update()


def _denoisers(run: Run, content: dict[str, Any], device: torch.device) -> list[torch.nn.Module]:
    """The generator, and its early weights where its guidance leads away from them."""
    sampling, networks = content["preset"].sampling, []
    guided_by_early = sampling.guidance != 1 and sampling.guide == "early" and content.get("early")
    for weights in [content["network"]] + [content["early"]] * bool(guided_by_early):
        network = build_denoiser(content["preset"], len(content["constants"]["normaliser"]["mean"]))
        with reading_checkpoint(run.checkpoint("diffusion")):
            network.load_state_dict(weights)
        networks.append(network.to(device).eval().requires_grad_(False))
    return networks


def _keep(run: Run, name: str, preset: Preset, volume: np.ndarray, decoded: np.ndarray) -> None:
    """Keep the patch around a case's tumour; the whole brain where the grid has lost it."""
    spacing = [fov / n for fov, n in zip(preset.grid.fov_mm, preset.grid.size, strict=True)]
    box = around(volume[preset.image_channels :], preset.refiner, spacing) or (slice(None),) * 3
    real = volume[: preset.image_channels, *box]
    with atomic_path(_path(run, name)) as temporary:
        np.savez(temporary, decoded=decoded[:, :, *box].astype(np.float16), real=real.astype(np.float16))


def _path(run: Run, name: str) -> Any:
    return run.folder / "refiner" / "pairs" / f"{name}.npz"


def _read(run: Run, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Decoded patches `[V, C + L, X, Y, Z]` and the real one `[C, X, Y, Z]`, half precision."""
    again = f"run `sbldm train refiner --run {run.typed}` again, which draws it anew"
    held = read_npz(_path(run, name), ("decoded", "real"), again)
    return held["decoded"], held["real"]


def _lacking(decoded: np.ndarray, real: np.ndarray, floor: float) -> np.ndarray:
    """What decoded images `[.., C, *]` lack of the real ones, where both are brain; 0 elsewhere."""
    decoded, real = decoded[:, : len(real)].astype(np.float32), real.astype(np.float32)
    edge = 2 * floor - 1
    brain = (decoded.max(axis=1, keepdims=True) > edge) & (real.max(axis=0) > edge)
    return np.where(brain, real - decoded, 0)


def _scale(pairs: Sequence[tuple[np.ndarray, np.ndarray]], preset: Preset) -> list[float]:
    """The deviation of what is lacking, of each image channel, over the brain in all training patches."""
    square, count = np.zeros(preset.image_channels), 0
    for decoded, real in pairs:
        lacking = _lacking(decoded, real, preset.intensity.floor)
        square += np.square(lacking, dtype=np.float64).sum(axis=(0, 2, 3, 4))
        count += int((lacking != 0).any(axis=1).sum())
    return np.sqrt(square / max(1, count)).clip(1e-3).tolist()


class RefinerDataset(Shuffled):
    """Patches of planes: `decoded` `[C + L, X, Y]`, and what their images lack, `lacking` `[C, X, Y]`, over its scale.

    Args:
        pairs: of each case decoded patches `[V, C + L, X, Y, Z]` and the real one `[C, X, Y, Z]`.
        preset: with a `refiner`.
        scale: `[C]`.
        seed: order of the passes, of which each shows one plane of each decoded patch.
        mirror: flip half of the planes left-right.
        fixed: every fourth plane of each, always the same and whole in its middle, to validate on.
    """

    def __init__(
        self,
        pairs: Sequence[tuple[np.ndarray, np.ndarray]],
        preset: Preset,
        scale: Sequence[float],
        seed: int = 0,
        mirror: bool = False,
        fixed: bool = False,
    ) -> None:
        self.decoded, self.seed, self.mirror, self.fixed = [decoded for decoded, _ in pairs], seed, mirror, fixed
        floor, self.plane = preset.intensity.floor, preset.refiner.plane
        scale = np.reshape(scale, (-1, 1, 1, 1))
        self.lacking = [(_lacking(d, r, floor) / scale).astype(np.float16) for d, r in pairs]
        self.items = [
            (case, version, z)
            for case, decoded in enumerate(self.decoded)
            for version in range(len(decoded))
            for z in (range(0, decoded.shape[-1], 4) if fixed else [0])
        ]
        self.size = len(self.items)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, n: int) -> dict[str, torch.Tensor]:
        if self.fixed:
            return self._plane(*self.items[n], (0.5, 0.5))
        item, rng = self._item(n)
        case, version, _ = self.items[item]
        where, mirror = rng.random(2), self.mirror and rng.random() < 0.5
        return self._plane(case, version, int(rng.integers(self.decoded[case].shape[-1])), where, mirror)

    def _plane(
        self, case: int, version: int, z: int, where: Sequence[float], mirror: bool = False
    ) -> dict[str, torch.Tensor]:
        """A window of a plane, so far along its free way in either direction."""
        parts = {"decoded": self.decoded[case], "lacking": self.lacking[case]}
        whole = parts["decoded"].shape[2:4]
        first = [round(share * (n - w)) for share, n, w in zip(where, whole, self.plane, strict=True)]
        window = tuple(slice(f, f + w) for f, w in zip(first, self.plane, strict=True))
        planes = {name: part[(version, slice(None), *window, z)].astype(np.float32) for name, part in parts.items()}
        return {
            name: torch.from_numpy(plane[:, ::-1].copy() if mirror else np.ascontiguousarray(plane))
            for name, plane in planes.items()
        }


class RefinerBatch(PrepareBatch):
    """What planes lack, noised, beside the planes; what is clean of it is to be predicted.

    Args:
        levels: which noise levels training sees.
    """

    def __init__(self, levels: NoiseLevels) -> None:
        self.levels = levels

    def __call__(
        self, batchdata: dict[str, torch.Tensor], device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...], dict]:
        """Return `(noised, lacking, (times, decoded), {})` on the device."""
        lacking, decoded = batchdata["lacking"], batchdata["decoded"]
        times = SCHEDULE.training_times(len(lacking), self.levels)
        noised, target = SCHEDULE.noised(lacking, torch.randn_like(lacking), times)
        parts = (part.to(device, non_blocking=non_blocking) for part in (noised, target, times.float(), decoded))
        noised, target, *beside = parts
        return noised, target, tuple(beside), {}
