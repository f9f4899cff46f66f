"""A run folder: where each step of one journey leaves its work, and the preset that all of them share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from sbldm.errors import InputError, StateError
from sbldm.files import atomic_path

__all__ = ["PRESETS", "Run", "load_preset"]

PRESETS = Path(__file__).parents[1] / "configs" / "presets"


def load_preset(name_or_path: str) -> dict[str, Any]:
    """Read a preset by its name (`small`) or file.

    Raises:
        InputError: no such preset (the known ones are listed), or a part of it is missing.
    """
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        path = PRESETS / f"{name_or_path}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in PRESETS.glob("*.yaml")))
        raise InputError(f"PRESET={name_or_path}: no such preset; choose one of {known}, or name a YAML file.")
    try:
        preset = (yaml.safe_load(path.read_text()) or {}).get("preset", {})
    except (yaml.YAMLError, AttributeError) as error:
        raise InputError(f"{path}: not a readable YAML preset ({' '.join(str(error).split())}).") from None
    known = yaml.safe_load((PRESETS / "small.yaml").read_text())["preset"]
    if missing := list(_missing(known, preset)):
        raise InputError(f"{path}: the preset lacks {', '.join(missing)}; see configs/presets/small.yaml.")
    _check_sizes(path, preset)
    return preset


def _missing(known: dict[str, Any], preset: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of the values that a complete preset has and this one lacks; label names are free."""
    for name, value in known.items():
        if not isinstance(preset, dict) or name not in preset:
            yield prefix + name
        elif isinstance(value, dict) and name != "labels":
            yield from _missing(value, preset[name], f"{prefix}{name}.")


def _check_sizes(path: Path, preset: dict[str, Any]) -> None:
    """The grid must survive all halvings of both networks, and each training last an epoch at least."""
    for stage in ("autoencoder", "diffusion"):
        if preset[stage]["iterations"] < preset[stage]["iterations_per_epoch"]:
            raise InputError(f"{path}: {stage}.iterations must not be below {stage}.iterations_per_epoch.")
    halvings = 2 ** (len(preset["autoencoder"]["network"]["channels"]) - 1)
    need = np.array([halvings, halvings, 1])
    for stride in preset["diffusion"]["network"]["strides"]:
        need = need * stride
    if np.any(np.array(preset["grid"]["size"]) % need):
        raise InputError(
            f"{path}: grid.size {preset['grid']['size']} must be divisible by {need.tolist()} (the networks halve it)."
        )


@dataclass(frozen=True)
class Run:
    """Paths of one run folder."""

    folder: Path

    @classmethod
    def at(cls, folder: str | Path) -> Run:
        """The run at a folder, which need not exist yet."""
        return cls(Path(os.path.abspath(Path(folder).expanduser())))

    @property
    def preset_file(self) -> Path:
        """The preset in force, an overlay for every training config."""
        return self.folder / "preset.yaml"

    @property
    def prepared(self) -> Path:
        """Prepared cases: `NAME.npz` and the sidecar `NAME.json`."""
        return self.folder / "prepared"

    @property
    def latents(self) -> Path:
        """Latent store: `NAME.npz`, `constants.json` and `reconstruction.csv`."""
        return self.folder / "latents"

    def checkpoint(self, stage: str, which: str = "best") -> Path:
        """Checkpoint of `autoencoder` or `diffusion`: `best` (weights and constants) or `last` (to resume)."""
        return self.folder / stage / f"{which}.pt"

    @property
    def preset(self) -> dict[str, Any]:
        """The preset this run was prepared with; a `StateError` says how to prepare one."""
        if not self.preset_file.is_file():
            raise StateError(
                f"{self.folder}: no prepared cases here; run `make prepare DATA=/path/to/cases RUN={self.folder}`."
            )
        return load_preset(str(self.preset_file))

    def check_preset(self, preset: dict[str, Any]) -> None:
        """Refuse another preset than the one this run was prepared with; a `StateError` names both."""
        if self.preset_file.exists() and self.preset != preset:
            raise StateError(
                f"{self.preset_file}: prepared with the preset '{self.preset['name']}' and other values than "
                f"'{preset['name']}'; choose another RUN or remove this folder."
            )

    def save_preset(self, preset: dict[str, Any]) -> None:
        """Keep the preset with the run."""
        with atomic_path(self.preset_file) as temporary:
            temporary.write_text(
                yaml.safe_dump({"preset": preset}, sort_keys=False, default_flow_style=None, width=120)
            )
