"""MONAI's own 3-D networks behind the interfaces of this package: the parts of the 3-D LDM."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.networks.nets import AutoencoderKL, DiffusionModelUNet
from torch import nn

from sbldm.networks.blocks import Built, in_pieces
from sbldm.networks.slice_vae import VolumeVAE

__all__ = ["MonaiUNet", "MonaiVAE"]


class MonaiVAE(VolumeVAE):
    """`AutoencoderKL` in 3-D, the generator of a VAE-GAN (Rombach et al. 2022).

    Args:
        in_channels: image channels plus one mask channel per label.
        channels: width of each level; every axis shrinks by 2 between two levels.
        latent_channels: channels of the latents.
        num_res_blocks: residual blocks per level.
        attention: attention on the last level.
        groups: groups of the group norms.
    """

    def __init__(
        self,
        in_channels: int = 2,
        channels: Sequence[int] = (128, 256, 512, 512),
        latent_channels: int = 6,
        num_res_blocks: int = 1,
        attention: bool = True,
        groups: int = 32,
    ) -> None:
        nn.Module.__init__(self)
        self.in_channels, self.latent_channels, self.factor = in_channels, latent_channels, 2 ** (len(channels) - 1)
        self.network = AutoencoderKL(
            spatial_dims=3,
            in_channels=in_channels,
            out_channels=in_channels,
            num_res_blocks=[num_res_blocks] * len(channels),
            channels=channels,
            attention_levels=[False] * (len(channels) - 1) + [attention],
            latent_channels=latent_channels,
            norm_num_groups=groups,
            with_encoder_nonlocal_attn=False,
            with_decoder_nonlocal_attn=False,
        )

    def encode(self, x: torch.Tensor, position: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode `[B, C, X, Y, Z]` to mean and log-variance `[B, latent, X/f, Y/f, Z/f]`; `position` is not used."""
        mean, std = self.network.encode(x)
        return mean, 2 * std.log()

    def decode(self, z: torch.Tensor, position: torch.Tensor | None = None) -> torch.Tensor:
        """Decode latents to `[B, C, X, Y, Z]` in about [-1, 1]; `position` is not used."""
        return self.network.decode(z)


class MonaiUNet(Built):
    """`DiffusionModelUNet` in 3-D, with attention on its last level; it takes no requests.

    Args:
        latent_channels: channels of the latents.
        channels: width of each level; every axis is halved between two levels (latents that cannot be are padded).
        num_res_blocks: residual blocks per level.
        head_channels: channels of one attention head.
        groups: groups of the group norms.
    """

    divisible = True  # into `pieces`

    def __init__(
        self,
        latent_channels: int = 6,
        channels: Sequence[int] = (128, 256, 512, 1024),
        num_res_blocks: int = 2,
        head_channels: int = 32,
        groups: int = 32,
    ) -> None:
        super().__init__()
        self.multiple = 2 ** (len(channels) - 1)
        self.network = DiffusionModelUNet(
            spatial_dims=3,
            in_channels=latent_channels,
            out_channels=latent_channels,
            num_res_blocks=num_res_blocks,
            channels=channels,
            attention_levels=[False] * (len(channels) - 1) + [True],
            num_head_channels=head_channels,
            norm_num_groups=groups,
        )

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """Predict the noise in `x` `[B, Z, X, Y, Z]` at time steps `[B]`; `context` is not used."""
        return in_pieces(self, self._denoise, len(x), x, timesteps)

    def _denoise(self, x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        short = [-n % self.multiple for n in x.shape[2:]]
        padded = nn.functional.pad(x, [side for n in reversed(short) for side in (0, n)])
        return self.network(padded, timesteps)[..., : x.shape[2], : x.shape[3], : x.shape[4]]
