"""All networks, and the one place where a preset becomes a network."""

from __future__ import annotations

import torch
from monai.networks.nets import PatchDiscriminator
from torch import nn

from sbldm.cases.case import Source
from sbldm.networks.blocks import sparing
from sbldm.networks.gan import GanGenerator
from sbldm.networks.latent_unet import LatentUNet, TiledUNet
from sbldm.networks.monai_networks import MonaiUNet, MonaiVAE
from sbldm.networks.refiner import RefinerUNet
from sbldm.networks.request_picture import RequestPicture
from sbldm.networks.slice_vae import SliceVAE, StackVAE, VolumeVAE
from sbldm.run.errors import InputError
from sbldm.run.folder import within_regions
from sbldm.run.preset import Preset
from sbldm.tumour.characteristics import NAMES

__all__ = [
    "GanGenerator",
    "LatentUNet",
    "MonaiUNet",
    "MonaiVAE",
    "RefinerUNet",
    "RequestPicture",
    "SliceVAE",
    "StackVAE",
    "TiledUNet",
    "VolumeVAE",
    "as_built",
    "build_autoencoder",
    "build_denoiser",
    "build_discriminator",
    "build_generator",
    "build_refiner",
    "nested_labels",
    "sparing",
]

AUTOENCODERS = {"slice": SliceVAE, "stack": StackVAE, "volume": VolumeVAE, "monai": MonaiVAE}
DENOISERS = {"stacked": LatentUNet, "tiled": TiledUNet, "volume": LatentUNet, "monai": MonaiUNet}


def build_autoencoder(preset: Preset) -> SliceVAE | VolumeVAE:
    """Stage 1 as the preset describes it: one input channel per image channel and per label."""
    stage = preset.autoencoder
    values = dict(stage.network)
    if stage.kind in ("slice", "stack"):
        values["nested"] = nested_labels(preset)
    return AUTOENCODERS[stage.kind](in_channels=preset.all_channels, **values)


def nested_labels(preset: Preset) -> list[int]:
    """The labels that the slice VAE takes as nested regions, from the outermost inwards; none without `nested`.

    Raises:
        InputError: the labels of the preset make up no nested regions.
    """
    asked = preset.autoencoder.nested and len(preset.data.labels) > 1
    return Source.from_config(**dict(preset.data)).nested_order if asked else []


def build_denoiser(preset: Preset, conditions: int | None = None) -> nn.Module:
    """Stage 2 as the preset describes it, conditioned on the characteristics of a tumour or on nothing.

    Its `forward(x, timesteps, context)` maps latents to latents; networks that take no requests ignore `context`. How
    requests are scaled lies in its weights, and for a training comes from the latent store (`RequestPicture`).

    Args:
        preset: as above.
        conditions: numbers in a condition vector; None: those that its labels tell (`Source.characteristics`).
    """
    kind, values = preset.diffusion.kind, dict(preset.diffusion.network)
    if kind in ("stacked", "tiled"):
        values["condition_size"] = conditions or len(Source.from_config(**dict(preset.data)).characteristics)
    elif kind == "volume":
        values["condition_size"] = 0
    if preset.begins_with:  # goes on from weights that know regions
        values["regions"] = True
    if values.pop("picture", False):
        values["picture"] = RequestPicture(preset.grid.fov_mm)
    return DENOISERS[kind](latent_channels=preset.autoencoder.network.latent_channels, **values)


def build_generator(preset: Preset) -> GanGenerator:
    """The generator of a GAN, onto the working grid."""
    return GanGenerator(preset.all_channels, preset.grid.size, **dict(preset.gan.network))


def build_discriminator(preset: Preset, stage: str) -> PatchDiscriminator:
    """MONAI's discriminator of patches, for `gan` or for the `autoencoder` of a VAE-GAN.

    The sizes of the paper's rivals: 64 channels and four layers have the 44.6 M parameters that the authors committed
    for their GAN, 32 and four the 11.2 M that fit their paper, 74 and three the 14.7 M beside their 3-D autoencoder.
    """
    values = preset.stage(stage).discriminator
    return PatchDiscriminator(3, values.channels, preset.all_channels, 1, num_layers_d=values.layers)


def build_refiner(preset: Preset) -> RefinerUNet:
    """What sharpens decoded planes around the tumour, as `refiner` of the preset describes it."""
    return RefinerUNet(preset.image_channels, len(preset.data.labels), **dict(preset.refiner.network))


BUILDERS = {
    "autoencoder": build_autoencoder,
    "diffusion": build_denoiser,
    "regions": lambda preset: build_denoiser(within_regions(preset)),
    "refiner": build_refiner,
    "gan": build_generator,
}


def as_built(preset: Preset, stage: str, network: nn.Module) -> Preset:
    """A preset with the values that the network of a training was built with, which are not its own (`--network_def`).

    Raises:
        InputError: no preset can say them: another class, an argument that follows from other values, no valid ones,
            or the training goes on with the network of another stage.
    """
    with torch.device("meta"):
        usual = BUILDERS[stage](preset)
    if type(network) is not type(usual):
        raise InputError(f"network_def: the run's preset asks for {type(usual).__name__}; leave _target_ as it is.")
    changed = {name: value for name, value in network.built.items() if value != usual.built[name]}
    if changed.get("condition_size") == len(NAMES):  # of a run from before there were shares
        del changed["condition_size"]
    if not changed:
        return preset
    values = preset.state()
    free = type(preset.stage(stage).network).model_fields if stage != "regions" else {}
    if fixed := [key for key in changed if key not in free]:
        known = ", ".join(free) or "nothing, as it goes on with the network of stage 2"
        raise InputError(
            f"network_def::{fixed[0]}: follows from the run, {usual.built[fixed[0]]}; leave it out (free are: {known})."
        )
    values[stage]["network"] |= changed
    return Preset.of(values, "network_def: ")
