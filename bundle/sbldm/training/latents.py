"""Latent store: every case is encoded once; mean and log-variance are kept, and what standardises them is measured."""

from __future__ import annotations

import os
import shlex
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from sbldm.cases.case import Source
from sbldm.cases.export import tumour_of
from sbldm.cases.geometry import NativeGrid
from sbldm.cases.prepare import load_prepared, read_sidecar
from sbldm.networks import SliceVAE, VolumeVAE, build_autoencoder
from sbldm.run.errors import StateError
from sbldm.run.files import atomic_path, clear_partial, read_json, read_npz, sha256, write_csv, write_json
from sbldm.run.folder import Run
from sbldm.run.group import by_first
from sbldm.run.preset import Preset
from sbldm.run.progress import progress
from sbldm.training.cases import measure_cases
from sbldm.training.checkpoints import load_checkpoint, reading_checkpoint, require_same, unfinished
from sbldm.training.data import LatentDataset
from sbldm.training.deformation import copies_of_each, deformed, deformed_characteristics
from sbldm.training.weights import initial_constants
from sbldm.tumour.characteristics import NAMES
from sbldm.tumour.normaliser import Normaliser
from sbldm.tumour.requests import TumourModel

__all__ = ["LatentStore", "load_autoencoder", "reconstruction_scores"]

CONSTANTS = {
    "autoencoder_sha256": str,
    "latent_mean": list,
    "latent_std": [float],
    "latent_shape": [int],
    "normaliser": dict,
    "tumours": dict,
    "lists": {str: [str]},
    "content": {str: str},
}
TEMPLATE_SIGMA = 0.7  # latents, of the Gaussian that smooths the mean brain


def load_autoencoder(run: Run, device: torch.device) -> SliceVAE | VolumeVAE:
    """The trained autoencoder of a run, ready for use.

    Raises:
        StateError: there is none, or it was trained with another preset.
    """
    path = run.checkpoint("autoencoder")
    content = load_checkpoint(path, "autoencoder")
    require_same(path, content, run.preset, ("data", "grid", "intensity", "autoencoder"))
    network = build_autoencoder(content["preset"])
    with reading_checkpoint(path):
        network.load_state_dict(content["network"])
    return network.to(device).eval().requires_grad_(False)


def reconstruction_scores(volume: np.ndarray, decoded: np.ndarray, image_channels: int) -> dict[str, float]:
    """PSNR inside the brain (dB, images in [0, 1], data range 1) and DSC of the joined labels, on the working grid."""
    brain = volume[:image_channels].max(axis=0) > -1
    error = (volume[:image_channels, brain] - decoded[:image_channels, brain]) / 2
    real, drawn = (tumour_of(v[image_channels:]) for v in (volume, decoded))
    overlap = 2 * (real & drawn).sum() / max(1, real.sum() + drawn.sum())
    return {"psnr_brain_db": float(-10 * np.log10(np.mean(error**2))), "mask_dsc": float(overlap)}


@dataclass(frozen=True)
class LatentStore:
    """The latents of a run's lists and the constants that go into the diffusion checkpoint.

    Attributes:
        run: where they lie.
        lists: training and validation names.
        mirror: whether training cases are stored mirrored as well.
        constants: latent statistics, condition normaliser, tumour model, grids, intensities, lists, hashes.
    """

    run: Run
    lists: dict[str, list[str]]
    mirror: bool
    constants: dict[str, Any]

    @classmethod
    @by_first
    def build(cls, folder: str, preset: Preset, lists: dict[str, list[str]], device: torch.device) -> LatentStore:
        """Encode what is missing, measure the constants, and score the reconstruction of the held-back cases.

        Raises:
            StateError: no autoencoder, a half-trained one, or the store belongs to another one.
        """
        run = Run.at(folder)
        network = load_autoencoder(run, device)
        if so_far := unfinished(run, "autoencoder"):
            more = f"`sbldm train autoencoder --run {run.typed}` goes on"
            raise StateError(f"{run.folder / 'autoencoder'}: only {so_far} done; {more}.")
        fingerprint = sha256(run.checkpoint("autoencoder"))
        made = {"autoencoder_sha256": fingerprint, "mirror": preset.mirror, "latent": preset.diffusion.latent}
        made["centred"] = preset.diffusion.centred
        made["deformed"] = copies_of_each(preset.diffusion, len(lists["train"]))
        mark, finished = run.latents / "autoencoder.json", run.latents / "constants.json"
        held = _read(run, mark.name, {"autoencoder_sha256": str}) if os.path.lexists(mark) else made
        if other := [key for key in held if held[key] != made.get(key)]:
            later = [folder for folder in (run.latents, run.folder / "diffusion") if folder.exists()]
            what = "another autoencoder" if "autoencoder_sha256" in other else f"another value of {other[0]}"
            raise StateError(
                f"{run.latents}: these latents come from {what}; remove "
                f"{' '.join(shlex.quote(str(folder)) for folder in later)} to encode and train anew."
            )
        if not os.path.lexists(finished):
            clear_partial(run.latents)
            write_json(mark, made)
            _encode_cases(run, preset, lists, network, device)
            write_json(finished, _measure_constants(run, preset, lists, fingerprint))
        return cls(run, lists, preset.mirror, _read(run, finished.name, CONSTANTS))

    def item(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Standardised latents `[Z, H, W, D]` and condition vector `[K]` of a case as it is."""
        latents, values = _load(self.run, name)
        mean, std = (np.asarray(self.constants[part], np.float32) for part in ("latent_mean", "latent_std"))
        condition = Normaliser.from_state(self.constants["normaliser"]).encode(values[0])
        standard = (latents[0, 0].astype(np.float32) - mean) / std.reshape(-1, 1, 1, 1)
        return torch.from_numpy(standard), torch.from_numpy(np.asarray(condition, np.float32))

    def dataset(self, role: str, seed: int, mode: str, repeats: int = 1) -> LatentDataset:
        """Latents of a role as a data set; mirrored and deformed brains only in training, each `repeats` times."""
        held = [_load(self.run, name) for name in self.lists[role]]
        latents, values = (np.concatenate(parts) for parts in zip(*held, strict=True))
        normaliser = Normaliser.from_state(self.constants["normaliser"])
        return LatentDataset(
            np.repeat(latents, repeats, axis=0),
            np.repeat(normaliser.encode(values), repeats, axis=0),
            self.constants["latent_mean"],
            self.constants["latent_std"],
            seed,
            mode,
        )


def _encode_cases(
    run: Run, preset: Preset, lists: dict[str, list[str]], network: SliceVAE | VolumeVAE, device: torch.device
) -> None:
    """Encode the cases that are missing; score the held-back ones and leave a table of that."""
    images, scores = preset.image_channels, []
    copies = copies_of_each(preset.diffusion, len(lists["train"]))
    measured = _characteristics(run, preset, lists)
    for name in progress(lists["train"] + lists["validation"], "Encoding cases"):
        held_back, path = name in lists["validation"], run.latents / f"{name}.npz"
        if path.exists() and not held_back:
            continue
        volume, sidecar = load_prepared(run.prepared, name)
        brains = [(volume, np.array([*measured[name].values()]))]
        if not held_back:
            brains += _deformed(preset, volume, sidecar, brains[0][1], copies)
            if preset.mirror:
                brains += [(brain[:, ::-1], _mirrored(values)) for brain, values in brains]
        encoded = np.stack([network.encode_volume(brain, device) for brain, _ in brains])
        with atomic_path(path) as temporary:
            np.savez(temporary, latents=encoded, characteristics=np.stack([values for _, values in brains]))
        if held_back:
            decoded = network.decode_volume(torch.from_numpy(encoded[0, 0]).to(device))
            scores.append({"case": name} | reconstruction_scores(volume, decoded, images))
    write_csv(run.latents / "reconstruction.csv", scores)
    for key, title in (("psnr_brain_db", "PSNR inside the brain (dB)"), ("mask_dsc", "mask DSC")):
        values = np.array([s[key] for s in scores])
        print(f"Autoencoder on {len(values)} held-back cases: {title} {values.mean():.3f} +/- {values.std():.3f}")


def _characteristics(run: Run, preset: Preset, lists: dict[str, list[str]]) -> dict[str, dict[str, float]]:
    """Case -> its characteristics by name: those that all have, as an older version measured no shares."""
    held = {name: read_sidecar(run.prepared, name)["characteristics"] for names in lists.values() for name in names}
    known = Source.from_config(**dict(preset.data)).characteristics
    common = [name for name in known if all(name in values for values in held.values())]
    return {case: {name: values[name] for name in common} for case, values in held.items()}


def _mirrored(values: np.ndarray) -> np.ndarray:
    """Characteristics `[K]` of a tumour across the midline."""
    return np.where(np.arange(len(values)) == NAMES.index("x_mm"), -values, values)


def _deformed(
    preset: Preset, volume: np.ndarray, sidecar: dict[str, Any], values: np.ndarray, count: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The deformed copies of a training case with their characteristics; none of a tumour that the grid loses."""
    grid, images, copies = NativeGrid.from_state(sidecar["working"]), preset.image_channels, []
    for number in range(count):
        rng = np.random.default_rng([zlib.crc32(sidecar["case"].encode()), number])
        copy = deformed(volume, grid.spacing, rng)
        masks = (tumour_of(v[images:]) for v in (volume, copy))
        if (its := deformed_characteristics(values, *masks, grid.frame(grid))) is not None:
            copies.append((copy, its))
    return copies


def _load(run: Run, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Latents `[N, 2, Z, H, W, D]` of a case and what was made of it, and characteristics `[N, K]`."""
    keys = ("latents", "characteristics")
    held = read_npz(run.latents / f"{name}.npz", keys, _encoded_anew(run), remove=False)
    return held["latents"], held["characteristics"]


def _read(run: Run, name: str, form: Any = dict) -> Any:
    return read_json(run.latents / name, form, _encoded_anew(run), remove=False)


def _encoded_anew(run: Run) -> str:
    """The way out when a file of the store is lost: it is made in one go."""
    folder, command = shlex.quote(str(run.latents)), f"sbldm train --run {shlex.quote(str(run.folder))}"
    return f"remove {folder} and run `{command}` again, which encodes the cases anew"


def _measure_constants(run: Run, preset: Preset, lists: dict[str, list[str]], fingerprint: str) -> dict[str, Any]:
    """Everything that synthesis needs beside the weights, measured on the training list, as plain values."""
    total, square, noise, count = 0.0, 0.0, 0.0, 0  # one case in memory at a time
    for name in lists["train"]:
        sides = _load(run, name)[0].astype(np.float64)
        total, square = total + sides[:, 0].sum(axis=0), square + (sides[:, 0] ** 2).sum(axis=0)
        noise, count = noise + np.exp(sides[:, 1]).mean(axis=(2, 3, 4)).sum(axis=0), count + len(sides)
    first, second, noise = total / count, square / count, noise / count
    mean = first.mean(axis=(1, 2, 3), keepdims=True)
    if preset.diffusion.centred == "position":
        mean = gaussian_filter(first, (0, *[TEMPLATE_SIGMA] * 3), mode="nearest")
    variance = (second - 2 * mean * first + mean**2).mean(axis=(1, 2, 3))
    share = noise / (variance + noise)
    print(
        f"Latents: posterior noise is {100 * share.mean():.1f} % of their variance (training uses the mean by default)."
    )
    if preset.diffusion.latent == "sample":
        variance = variance + noise
    measured = _characteristics(run, preset, lists)
    values = np.array([[*measured[name].values()] for name in lists["train"]])
    return {
        "autoencoder_sha256": fingerprint,
        "latent_mean": mean.astype(np.float32).tolist(),
        "latent_std": np.sqrt(variance).tolist(),
        "latent_shape": list(_load(run, lists["train"][0])[0].shape[2:]),
        "normaliser": Normaliser.fit(np.concatenate([_load(run, name)[1] for name in lists["train"]])).state(),
        "tumours": TumourModel.fit(values, tuple(measured[lists["train"][0]])).state(),
        **initial_constants(preset),
        **measure_cases(run, lists),
    }
