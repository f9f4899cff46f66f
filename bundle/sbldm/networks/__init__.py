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
from sbldm.run.errors import InputError
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
    "channels_of",
    "latent_shape",
]

AUTOENCODERS = {"slice": SliceVAE, "stack": StackVAE, "volume": VolumeVAE, "monai": MonaiVAE}
DENOISERS = {"stacked": LatentUNet, "tiled": TiledUNet, "volume": LatentUNet, "monai": MonaiUNet}


def channels_of(preset: dict[str, Any]) -> int:
    """Channels of a volume of a preset: its images and its labels."""
    return len(preset["data"]["channels"]) + len(preset["data"]["labels"])


def _kind(preset: dict[str, Any], stage: str, known: dict[str, type]) -> tuple[str, dict[str, Any]]:
    """The kind of network that a stage of a preset asks for, and the values of its `network`.

    Raises:
        InputError: there is no such kind.
    """
    kind = preset[stage].get("kind", next(iter(known)))
    if kind not in known:
        raise InputError(
            f"preset '{preset['name']}': {stage}.kind {kind} is unknown; choose one of {', '.join(known)}."
        )
    return kind, dict(preset[stage]["network"])


def build_autoencoder(preset: dict[str, Any]) -> SliceVAE | VolumeVAE:
    """Stage 1 as the preset describes it: one input channel per image channel and per label."""
    kind, values = _kind(preset, "autoencoder", AUTOENCODERS)
    return AUTOENCODERS[kind](in_channels=channels_of(preset), **values)


def build_denoiser(preset: dict[str, Any], constants: dict[str, Any] | None = None) -> nn.Module:
    """Stage 2 as the preset describes it, conditioned on the nine characteristics or on nothing.

    Its `forward(x, timesteps, context)` maps latents to latents; networks that take no requests ignore `context`.

    Args:
        preset: of the run.
        constants: of the latent store, for a network that is to be trained; a trained one has them in its state.
    """
    kind, values = _kind(preset, "diffusion", DENOISERS)
    if kind in ("stacked", "tiled"):
        values["condition_size"] = len(NAMES)
    elif kind == "volume":
        values["condition_size"] = 0
    if preset.get("init"):  # goes on from weights that know regions
        values["regions"] = True
    if values.pop("picture", False):
        values["picture"] = RequestPicture(preset["grid"]["fov_mm"])
        if constants:
            values["picture"].fit(Normaliser.from_state(constants["normaliser"]))
    return DENOISERS[kind](latent_channels=preset["autoencoder"]["network"]["latent_channels"], **values)


def build_generator(preset: dict[str, Any]) -> GanGenerator:
    """The generator of a GAN, onto the working grid."""
    return GanGenerator(channels_of(preset), preset["grid"]["size"], **preset["gan"]["network"])


def build_discriminator(preset: dict[str, Any], stage: str) -> PatchDiscriminator:
    """MONAI's discriminator of patches, for `gan` or for the `autoencoder` of a VAE-GAN.

    The sizes of the paper's rivals: 64 channels and four layers have the 44.6 M parameters that the authors committed
    for their GAN, 32 and four the 11.2 M that fit their paper, 74 and three the 14.7 M beside their 3-D autoencoder.
    """
    values = preset[stage]["discriminator"]
    return PatchDiscriminator(3, values["channels"], channels_of(preset), 1, num_layers_d=values["layers"])


def latent_shape(preset: dict[str, Any]) -> tuple[int, ...]:
    """`(Z, H, W, D)` of the latents of a volume: an autoencoder of slices leaves the third axis as it is."""
    network = preset["autoencoder"]["network"]
    x, y, z = preset["grid"]["size"]
    factor = network.get("patch", 1) * 2 ** (len(network["channels"]) - 1)
    along_z = {"slice": 1, "stack": network.get("aggregation")}.get(preset["autoencoder"].get("kind", "slice"), factor)
    return network["latent_channels"], x // factor, y // factor, z // along_z
