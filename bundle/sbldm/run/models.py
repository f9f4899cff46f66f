"""The models that can be trained and drawn from: SBLDM and its rivals, each a preset of the same commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sbldm.run.errors import InputError
from sbldm.run.preset import Preset, Stage

__all__ = ["LATER", "MODELS", "SAMPLING", "ModelKind", "check_model", "configs_of", "refuse_requests", "settings_of"]

STAGE_1, STAGE_2 = ("common", "train_autoencoder"), ("common", "train_diffusion")
# What can be asked of a drawing in place of the preset.
SAMPLING = ("sampler", "steps", "spacing", "sigma_min", "eta", "guidance", "guide")
VOLUMES = ("overlays/adversary", "baselines/volumes")
OVERLAYS = {  # of a stage, by its kind
    ("autoencoder", "stack"): ("overlays/stacks",),
    ("autoencoder", "volume"): VOLUMES,
    ("autoencoder", "monai"): (*VOLUMES, "baselines/monai_autoencoder"),
    ("diffusion", "tiled"): ("overlays/tiles",),
    ("diffusion", "volume"): ("baselines/volume_denoiser",),
    ("diffusion", "monai"): ("baselines/monai_denoiser",),
}


LATER = {  # trainings behind stage 2, if the preset says how: for `--canvas`, and for `--refine`
    "regions": (*STAGE_2, "overlays/regions"),
    "refiner": (*STAGE_2, "overlays/refiner"),
}


@dataclass(frozen=True)
class ModelKind:
    """What a model is made of.

    Attributes:
        title: in the words of a table.
        stages: name of each training and the configs that wire it (see `configs_of`).
        conditional: whether it can be asked for a tumour.
    """

    title: str
    stages: dict[str, tuple[str, ...]]
    conditional: bool = False


MODELS = {
    "sbldm": ModelKind("SBLDM", {"autoencoder": STAGE_1, "diffusion": STAGE_2}, conditional=True),
    "sbldm_2d": ModelKind("SBLDM, 2-D diffusion", {"autoencoder": STAGE_1, "diffusion": STAGE_2}, conditional=True),
    "ldm3d": ModelKind("3D-LDM", {"autoencoder": STAGE_1, "diffusion": STAGE_2}),
    "ldm3d_reduced": ModelKind("3D-LDM, reduced", {"autoencoder": STAGE_1, "diffusion": STAGE_2}),
    "lsgan": ModelKind("3D-LSGAN", {"gan": ("common", "baselines/train_gan")}),
    "copypaste": ModelKind("copy-paste", {}),
}


def check_model(name: str) -> str:
    """The name of a model; SBLDM when empty.

    Raises:
        InputError: no such model (the known ones are listed).
    """
    if name and name not in MODELS:
        raise InputError(f"--model {name}: no such model; choose one of {', '.join(MODELS)}.")
    return name or "sbldm"


def configs_of(preset: Preset, stage: str) -> tuple[str, ...]:
    """The configs that wire a training of a preset, each laid over those before it."""
    if stage in LATER:
        return LATER[stage]
    kind = getattr(preset.stage(stage), "kind", "")
    return MODELS[preset.model].stages[stage] + OVERLAYS.get((stage, kind), ())


def settings_of(preset: Preset, stage: str, kind: str) -> Stage:
    """The values of a training, for configs that wire one `kind` of it.

    Raises:
        InputError: the preset has another kind; its configs are named.
    """
    settings = preset.stage(stage)
    if (own := getattr(settings, "kind", kind)) != kind:
        files = ",".join(f"'configs/{config}.yaml'" for config in configs_of(preset, stage))
        raise InputError(
            f"{stage}.kind of the preset '{preset.name}' is {own}, and these configs are for {kind}; take "
            f'--config_file "[{files}]", or call `sbldm train`.'
        )
    return settings


def refuse_requests(model: str, asked: Sequence[Mapping[str, float]], values: Mapping[str, Any] | None = None) -> None:
    """Make sure that a model which takes no requests is asked for nothing.

    Args:
        model: its name.
        asked: what the user fixes (`synthesis.read_asked`).
        values: further options that it cannot heed.

    Raises:
        InputError: names what it cannot do.
    """
    given = [f"--{key.replace('_', '-')}" for key, value in (values or {}).items() if value not in (None, "")]
    if asked or given:
        what = ", ".join(given) or "requests (--requests, --volume-ml, --centre-mm, ...)"
        raise InputError(f"{what}: the model {model} cannot heed this; leave it out, or take a run of the model sbldm.")
