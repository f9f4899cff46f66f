"""The two networks of SBLDM and the one place where a preset becomes a network."""

from __future__ import annotations

from typing import Any

from sbldm.networks.latent_unet import LatentUNet
from sbldm.networks.slice_vae import SliceVAE
from sbldm.tumour.characteristics import NAMES

__all__ = ["LatentUNet", "SliceVAE", "build_autoencoder", "build_denoiser"]


def build_autoencoder(preset: dict[str, Any]) -> SliceVAE:
    """Stage 1 as the preset describes it: one input channel per image channel and per label."""
    channels = len(preset["data"]["channels"]) + len(preset["data"]["labels"])
    return SliceVAE(in_channels=channels, **preset["autoencoder"]["network"])


def build_denoiser(preset: dict[str, Any]) -> LatentUNet:
    """Stage 2 as the preset describes it: the latents of stage 1, conditioned on the nine characteristics."""
    latent_channels = preset["autoencoder"]["network"]["latent_channels"]
    return LatentUNet(latent_channels, condition_size=len(NAMES), **preset["diffusion"]["network"])
