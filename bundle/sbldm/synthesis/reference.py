"""What a perfect model would draw: real cases on the way that pairs take, without and with the autoencoder.

Beside a score of pairs these say how much of its distance to the real cases no diffusion model could mend.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sbldm.cases.geometry import NativeGrid
from sbldm.cases.layouts import Case, Source, find_cases
from sbldm.cases.lists import read_lists
from sbldm.cases.prepare import load_prepared
from sbldm.run.device import choose_device
from sbldm.run.errors import StateError
from sbldm.run.files import clear_partial, make_folder, read_json, sha256, write_json, write_nifti
from sbldm.run.folder import Run
from sbldm.run.preset import Preset
from sbldm.run.progress import progress
from sbldm.synthesis.pairs import Pair, finish
from sbldm.training.cases import measure_cases
from sbldm.training.latents import load_autoencoder

__all__ = ["as_pair", "reference_cases"]

WAYS = {"path": "the path", "autoencoder": "path and autoencoder"}
VERSION = 2  # raise it when pairs are finished differently


def reference_cases(run: Run, names: Sequence[str], kind: str) -> list[Case]:
    """Prepared cases of a run as pairs: brought to their native grids as `finish_pair` brings what a model draws.

    They are kept in `RUN/reference/KIND` and made anew when cases or autoencoder have changed.

    Args:
        run: a prepared run.
        names: of cases to train on or held back.
        kind: of `WAYS`: "path", prepared volumes as they are, or "autoencoder", encoded (the posterior's mean)
            and decoded.

    Raises:
        StateError: a case is not prepared, or there is no trained autoencoder.
    """
    preset, folder = run.preset, run.reference / kind
    network, device = None, choose_device()
    made: dict[str, Any] = {"version": VERSION, "intensity": preset.intensity.state()}
    if kind == "autoencoder":
        network = load_autoencoder(run, device)
        made["autoencoder_sha256"] = sha256(run.checkpoint("autoencoder"))
    _begin(folder, made, preset)
    written = measure_cases(run, read_lists(run.folder))["written"]
    channels = preset.image_channels
    missing = [name for name in names if not _mask(folder, name).is_file()]
    for name in progress(missing, f"Cases through {WAYS[kind]}", unit="case"):
        volume, sidecar = load_prepared(run.prepared, name)
        if network is not None:
            with torch.no_grad():
                latents = torch.from_numpy(network.encode_volume(volume, device)[0]).to(device)
                volume = network.decode_volume(latents)
        pair, affine = as_pair(np.asarray(volume), sidecar, preset, written)
        for k in range(channels):
            write_nifti(folder / "imagesTr" / f"{name}_{k:04d}.nii.gz", pair.image[k], affine, scratch=folder)
        write_nifti(_mask(folder, name), pair.labels, affine, scratch=folder)  # last: it marks the case done
    source = replace(Source.from_config(**dict(preset.data)), scheme="auto")  # the labels are ours
    return find_cases(folder, source, list(names)) if names else []


def as_pair(
    volume: np.ndarray,
    sidecar: Mapping[str, Any],
    preset: Preset,
    written: Sequence[Sequence[float] | None],
) -> tuple[Pair, np.ndarray]:
    """A prepared volume `[C + L, X, Y, Z]` in [-1, 1] as `finish_pair` would leave it, on the case's own grid.

    Args:
        volume, sidecar: see `load_prepared`.
        preset: of the run.
        written: see `written_ranges`.

    Returns:
        the pair and its 4x4 affine.
    """
    native, working = (NativeGrid.from_state(sidecar[grid]) for grid in ("native", "working"))
    limits = [ends or own for own, ends in zip(sidecar["intensities"], written, strict=True)]
    return finish(volume, preset, native, working, limits), native.affine()


def _mask(folder: Path, name: str) -> Path:
    return folder / "labelsTr" / f"{name}.nii.gz"


def _begin(folder: Path, made: dict[str, Any], preset: Preset) -> None:
    """An nnU-Net raw dataset; what was made in another way is removed."""
    mark = folder / "made.json"
    try:
        same = read_json(mark) == made
    except StateError:
        same = False
    if not same:
        shutil.rmtree(folder, ignore_errors=True)
    for part in ("imagesTr", "labelsTr"):
        make_folder(folder / part)
    clear_partial(folder)
    write_json(folder / "dataset.json", Source.from_config(**dict(preset.data)).description(0))
    write_json(mark, made)
