"""A trained generator into one file (`sbldm.weights`), cleared of everything that belongs to a single training case."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from sbldm.cases.geometry import NativeGrid, to_image
from sbldm.cases.identity import Seen
from sbldm.cases.prepare import read_sidecar
from sbldm.cases.volumes import load_image
from sbldm.errors import InputError, StateError
from sbldm.files import atomic_path, reading, sha256, user_path
from sbldm.runs import Run
from sbldm.synthesis.gate import Gate
from sbldm.training.checkpoints import load_checkpoint, unfinished
from sbldm.tumour.requests import TumourModel
from sbldm.weights import CONSTANTS, FORMAT

__all__ = ["export_weights"]

DRAWS = 1000  # of the joint model of tumours, to which the one in the file is fitted
DIGITS = 5  # of the numbers in the header


def export_weights(run: Run, out: Path, data: str, licence: str, like: str = "") -> Path:
    """Write the trained generator of a run into one file.

    Args:
        run: with both stages and regions trained, whole brains among them (`regions.whole`).
        out: the file.
        data, licence: what it was trained on, and on which terms it may be used, in words.
        like: image whose grid whole pairs are to have; empty: that of the training cases.

    Raises:
        InputError: the preset's regions hold no whole brains, or `like` cannot be read.
        StateError: a training is missing or unfinished, or the gate has not measured the run yet.
    """
    preset = run.preset
    if not (preset.get("regions") or {}).get("whole"):
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
    tumours = TumourModel.fit(TumourModel.from_state(constants["tumours"]).sample(DRAWS, seed=0)).state()
    header = {
        "format": FORMAT,
        "preset": preset,
        "constants": {key: constants[key] for key in CONSTANTS} | {"tumours": _rounded(tumours)},
        "ranges": _rounded(Gate.of_run(str(run.folder)).ranges),
        "about": {"data": data, "licence": licence, "cases": len(constants["content"])},
        "seen": Seen.of({name: read_sidecar(run.prepared, name) for name in constants["content"]}).state(),
    }
    if like:
        with reading(like, "LIKE must be a NIfTI image", remove=False, error=InputError):
            image = load_image(user_path(like))
            grid = NativeGrid.of(to_image(np.empty(image.shape[:3], np.uint8), image.affine))
        header["constants"] |= {"grids": constants["grids"] | {"native": grid.state()}}
    tensors = {"latent_mean": torch.tensor(constants["latent_mean"])}
    for part, stage in (("autoencoder", "autoencoder"), ("network", "regions")):
        tensors |= {f"{part}/{key}": value.half().contiguous() for key, value in stages[stage]["network"].items()}
    with atomic_path(out) as temporary:
        save_file(tensors, temporary, {"sbldm": json.dumps(header)})
    return out


def _rounded(values: Any) -> Any:
    """Nested lists and mappings of numbers with `DIGITS` significant digits."""
    if isinstance(values, dict):
        return {key: _rounded(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_rounded(value) for value in values]
    return float(f"{values:.{DIGITS}g}") if isinstance(values, float) else values
