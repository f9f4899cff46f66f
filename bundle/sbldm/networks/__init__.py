"""All networks, and the one place where a preset becomes a network."""

from __future__ import annotations

from typing import Any

from monai.networks.nets import PatchDiscriminator
from torch import nn

from sbldm.networks.gan import GanGenerator
from sbldm.networks.latent_unet import LatentUNet, TiledUNet
from sbldm.networks.monai_networks import MonaiUNet, MonaiVAE
from sbldm.networks.request_picture import RequestPicture
from sbldm.networks.slice_vae import SliceVAE, StackVAE, VolumeVAE
from sbldm.run.preset import Preset
from sbldm.tumour.characteristics import NAMES
from sbldm.tumour.normaliser import Normaliser

__all__ = [
    "GanGenerator",
    "LatentUNet",
    "MonaiUNet",
    "MonaiVAE",
    "SliceVAE",
    "StackVAE",
    "TiledUNet",
    "VolumeVAE",
    "build_autoencoder",
    "build_denoiser",
    "build_discriminator",
    "build_generator",
]

AUTOENCODERS = {"slice": SliceVAE, "stack": StackVAE, "volume": VolumeVAE, "monai": MonaiVAE}
DENOISERS = {"stacked": LatentUNet, "tiled": TiledUNet, "volume": LatentUNet, "monai": MonaiUNet}


def build_autoencoder(preset: Preset) -> SliceVAE | VolumeVAE:
    """Stage 1 as the preset describes it: one input channel per image channel and per label."""
    stage = preset.autoencoder
    return AUTOENCODERS[stage.kind](in_channels=preset.all_channels, **dict(stage.network))


def build_denoiser(preset: Preset, constants: dict[str, Any] | None = None) -> nn.Module:
    """Stage 2 as the preset describes it, conditioned on the nine characteristics or on nothing.

    Its `forward(x, timesteps, context)` maps latents to latents; networks that take no requests ignore `context`.

    Args:
        preset: of the run.
        constants: of the latent store, for a network that is to be trained; a trained one has them in its state.
    """
    kind, values = preset.diffusion.kind, dict(preset.diffusion.network)
    if kind in ("stacked", "tiled"):
        values["condition_size"] = len(NAMES)
    elif kind == "volume":
        values["condition_size"] = 0
    if preset.begins_with:  # goes on from weights that know regions
        values["regions"] = True
    if values.pop("picture", False):
        values["picture"] = RequestPicture(preset.grid.fov_mm)
        if constants:
            values["picture"].fit(Normaliser.from_state(constants["normaliser"]))
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
