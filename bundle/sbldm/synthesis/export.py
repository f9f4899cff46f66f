"""A trained generator into one file (`training/weights.py`), cleared of all that belongs to a single case."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from sbldm.cases.geometry import NativeGrid, WorkingGrid, to_image
from sbldm.cases.identity import Seen
from sbldm.cases.prepare import read_sidecar
from sbldm.cases.volumes import load_image
from sbldm.run.errors import InputError, StateError
from sbldm.run.files import atomic_path, reading, sha256, user_path
from sbldm.run.folder import Run
from sbldm.synthesis.gate import Gate
from sbldm.training.checkpoints import load_checkpoint, unfinished
from sbldm.training.weights import CONSTANTS, FORMAT
from sbldm.tumour.requests import TumourModel

__all__ = ["export_weights"]

DRAWS = 1000  # of the joint model of tumours, to which the one in the file is fitted
DIGITS = 5  # of the numbers in the header
FEWEST = 5  # training cases
LEAST_STEP = 0.01  # of the gate's ranges


def export_weights(run: Run, out: Path, data: str, licence: str, like: str | Path | None = None) -> Path:
    """Write the trained generator of a run into one file.

    Args:
        run: with both stages and regions trained, whole brains among them (`regions.whole`).
        out: the file.
        data, licence: what it was trained on, and on which terms it may be used, in words.
        like: image whose grid whole pairs are to have; None: that of the training cases.

    Raises:
        InputError: the preset's regions hold no whole brains, or `like` cannot be read.
        StateError: a training is missing or unfinished, the gate has not measured the run yet, or so few cases were
            trained on that their means tell of each.
    """
    preset = run.preset
    if not (regions := getattr(preset, "regions", None)) or not regions.whole:
        raise InputError(
            f"{run.folder}: regions.whole of its preset is 0: the network of one file must draw whole brains too; "
            "prepare with a preset that says so, as small does."
        )
    stages = {stage: load_checkpoint(run.checkpoint(stage), stage) for stage in ("autoencoder", "regions")}
    for stage in stages:
        if so_far := unfinished(run, stage):
            raise StateError(f"{run.checkpoint(stage)}: only {so_far} done; train on.")
    constants = stages["regions"]["constants"]
    if sha256(run.checkpoint("autoencoder")) != constants["autoencoder_sha256"]:
        raise StateError(f"{run.checkpoint('regions')}: trained on the latents of another autoencoder; train again.")
    cases, before = constants["content"], constants.get("origin")
    if len(cases) < FEWEST:
        raise StateError(
            f"{run.folder}: was trained on {len(cases)} cases, and the mean brain of fewer than {FEWEST} shows "
            "those; do not hand it on."
        )
    own = TumourModel.from_state(constants["tumours"])
    tumours = TumourModel.fit(own.sample(DRAWS, seed=0), own.names).state()
    about = {"data": data, "licence": licence, "cases": len(cases)}
    seen = Seen.of(read_sidecar(run.prepared, name) for name in cases)
    if before:  # it went on from somebody's weights: their cases and terms stay with it
        about = {
            "data": f"{data}; before that on {before['data']}",
            "licence": f"{licence} {before['licence']}".strip(),
            "cases": len(cases) + before["cases"],
        }
        seen += Seen.from_state(before["seen"])
    header = {
        "format": FORMAT,
        "preset": {k: v for k, v in preset.state().items() if k != "init"},  # which names a file of this machine
        "constants": {key: constants[key] for key in CONSTANTS}
        | {"tumours": _rounded(tumours), "grids": _grids(constants["grids"], like)},
        "ranges": {name: _outward(*limits) for name, limits in Gate.of_run(str(run.folder)).ranges.items()},
        "about": about,
        "seen": seen.state(),
    }
    tensors = {"latent_mean": torch.tensor(constants["latent_mean"])}
    for part, stage in (("autoencoder", "autoencoder"), ("network", "regions")):
        tensors |= {f"{part}/{key}": value.half().contiguous() for key, value in stages[stage]["network"].items()}
    with atomic_path(out) as temporary:
        temporary.write_bytes(save(tensors, {"sbldm": json.dumps(header)}))  # as a file, only its owner could read it
    return out


def _grids(grids: dict[str, Any], like: str) -> dict[str, Any]:
    """The grid to write in and the working grid in it; from the corner of the former, not of somebody's scanner."""
    native, working = (NativeGrid.from_state(grids[name]) for name in ("native", "working"))
    shift = working.centre - native.centre
    if like:
        with reading(like, "--like must be a NIfTI image", remove=False, error=InputError):
            image = load_image(user_path(like))
            native = NativeGrid.of(to_image(np.empty(image.shape[:3], np.uint8), image.affine))
    native = replace(native, origin=(0.0, 0.0, 0.0))
    placed = WorkingGrid.from_config(working.size, np.multiply(working.size, working.spacing))
    return {
        "native": native.state(),
        "working": placed.placed(native.centre + shift, working.direction).state(),
    }


def _outward(low: float, high: float) -> list[float]:
    """Limits rounded outward, to steps of five to ten per cent: single cases, the outermost ones, may have set them."""
    units = [max(0.1 * 2 ** math.floor(math.log2(max(abs(value), 1e-9))), LEAST_STEP) for value in (low, high)]
    return _rounded([math.floor(low / units[0]) * units[0], math.ceil(high / units[1]) * units[1]])


def _rounded(values: Any) -> Any:
    """Nested lists and mappings of numbers with `DIGITS` significant digits."""
    if isinstance(values, dict):
        return {key: _rounded(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_rounded(value) for value in values]
    return float(f"{values:.{DIGITS}g}") if isinstance(values, float) else values
