"""A generator in one file: the one that comes with this package, or one that a lab hands on.

`NAME.safetensors` holds both networks in half precision; in its header lies all else that drawing needs, as JSON:
preset, constants, what the gate holds plausible, words about the data. Nothing in it belongs to a single training case:
which these were is known by salted hashes of their voxels alone (`Seen`), the joint model of tumours is fitted to draws
of the one that was fitted to cases, and the gate's ranges are rounded outward.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn

from sbldm.cases.identity import Seen
from sbldm.networks import as_built
from sbldm.run.errors import InputError, StateError
from sbldm.run.files import BUNDLE, check, reading, sha256, user_path
from sbldm.run.preset import Preset

__all__ = ["CONSTANTS", "FORMAT", "SHIPPED", "Weights", "begin_with", "initial_constants"]

SHIPPED = BUNDLE / "models" / "sbldm_brats.safetensors"
FORMAT = 1
CONSTANTS = {  # of a checkpoint, those that belong to no single case
    "autoencoder_sha256": str,
    "latent_std": [float],
    "latent_shape": [int],
    "normaliser": {"mean": [float], "std": [float]},
    "intensities": list,
    "written": list,
    "grids": {"native": dict, "working": dict},
}
ABOUT = {"data": str, "licence": str, "cases": int}
HEADER = {
    "format": int,
    "preset": dict,
    "constants": CONSTANTS | {"tumours": dict},
    "ranges": {str: [float]},
    "about": ABOUT,
    "seen": [{"salt": str, "hashes": [str]}],
}
FINE_TUNING = {  # what `--init` changes in the preset of the weights: short trainings at a quarter of the rate
    "autoencoder": {"iterations": 800, "iterations_per_epoch": 200},
    "diffusion": {"iterations": 400, "iterations_per_epoch": 100},
    "regions": {"iterations": 400, "iterations_per_epoch": 100},
}
SLOWER = 0.25


@dataclass(frozen=True)
class Weights:
    """What such a file holds.

    Attributes:
        path: of the file.
        sha256: of it.
        preset: that the networks were trained with, as a run's; stage 2 is the training within regions.
        constants: as in a checkpoint (see `LatentStore` and `measure_cases`), without names.
        ranges: limits of what is plausible, as `Gate.ranges`.
        about: what it was trained on, in words (`data`, `licence`), and the number of `cases`.
        seen: which cases those were, as salted hashes.
        states: `autoencoder` and `network`, single precision.
    """

    path: Path
    sha256: str
    preset: Preset
    constants: dict[str, Any]
    ranges: dict[str, tuple[float, float]]
    about: dict[str, Any]
    seen: Seen
    states: dict[str, dict[str, torch.Tensor]]

    @classmethod
    def read(cls, name: str | Path, option: str = "--weights") -> Weights:
        """Read a file of weights; `shipped` is that of the package. `option` is what a message names.

        Raises:
            InputError: it is not there, or is no such file.
        """
        path = SHIPPED if str(name) == "shipped" else user_path(name)
        if not path.is_file():
            raise InputError(f"{option} {name}: no such file; write shipped, or the path of a .safetensors file.")
        with reading(path, "it must be a file that `sbldm weights` wrote", remove=False, error=InputError):
            with safe_open(path, "pt") as file:
                header = json.loads((file.metadata() or {})["sbldm"])
                tensors = {key: file.get_tensor(key).float() for key in file.keys()}  # noqa: SIM118 - no mapping
            check(header, HEADER)
            if header["format"] != FORMAT:
                raise ValueError(f"of format {header['format']}, this program reads {FORMAT}")
            states = {
                part: {k.partition("/")[2]: v for k, v in tensors.items() if k.startswith(f"{part}/")}
                for part in ("autoencoder", "network")
            }
            constants = header["constants"] | {"latent_mean": tensors["latent_mean"].tolist(), "content": {}}
        preset = Preset.of(header["preset"], f"{path}: ")
        ranges = {name: tuple(limits) for name, limits in header["ranges"].items()}
        seen = Seen.from_state(header["seen"])
        return cls(path, sha256(path), preset, constants, ranges, header["about"], seen, states)

    @property
    def fine_tuning(self) -> Preset:
        """The preset of a run that goes on from these weights on cases of its own."""
        stages = {name: self.preset.stage(name) for name in FINE_TUNING}
        changed = {
            name: stage.but(**FINE_TUNING[name], learning_rate=SLOWER * stage.learning_rate, warm_up=20)
            for name, stage in stages.items()
        }
        init = {"weights": "shipped" if self.path == SHIPPED else str(self.path.absolute()), "sha256": self.sha256}
        return self.preset.but(**changed, minutes=None, init=init)

    @property
    def origin(self) -> dict[str, Any]:
        """What pairs of it carry along in `lineage.json`: the words, and the hashes."""
        return self.about | {"weights_sha256": self.sha256, "seen": self.seen.state()}


def _initial(preset: Preset) -> Weights | None:
    """The weights that a preset's trainings begin with.

    Raises:
        StateError: they are not those any more with which the run was prepared.
    """
    if not (init := preset.begins_with):
        return None
    try:
        held = Weights.read(init.weights)
    except InputError as error:
        raise StateError(
            f"{init.weights}: the weights that this run goes on from are not there any more, or damaged "
            f"({error}) Put the file back."
        ) from None
    if held.sha256 != init.sha256:
        raise StateError(
            f"{held.path}: is another file than when this run was prepared with --init; put the old one back, or "
            "prepare a new run."
        )
    return held


def begin_with(network: nn.Module, preset: Preset, stage: str) -> nn.Module:
    """A new network of a training, with the weights of the preset's `init` if any.

    Raises:
        InputError: it is another network than theirs.
    """
    if held := _initial(preset):
        if as_built(preset, stage, network) != preset:
            raise InputError(f"network_def: the run goes on from {held.path}, whose network it is; leave it out.")
        network.load_state_dict(held.states["autoencoder" if stage == "autoencoder" else "network"])
    return network


def initial_constants(preset: Preset) -> dict[str, Any]:
    """What a training that goes on from weights keeps of them.

    How latents and requests are scaled, as the network has learned it, the tumours that can be asked for, and which
    cases it has seen before, which goes on into the lineage of all pairs.
    """
    held = _initial(preset)
    names = ("latent_mean", "latent_std", "normaliser", "tumours")
    return {name: held.constants[name] for name in names} | {"origin": held.origin} if held else {}
