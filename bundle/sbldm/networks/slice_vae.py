"""Stage 1: a variational autoencoder of axial slices that knows where a slice lies (paper, section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from sbldm.networks.blocks import ResidualBlock, SinusoidalEmbedding, convolution

__all__ = ["SliceVAE"]


class SliceVAE(nn.Module):
    """Attention-free 2-D VAE of image and mask slices with a slice position embedding.

    Encoder: a residual block, then per level a stride-2 convolution and a residual block. The decoder mirrors it with
    nearest-neighbour upsampling and convolution. No connection skips the latents. With `channels`
    [128, 256, 512, 512] and six latent channels this is the authors' network (27.1 M parameters, 98 GMAC a slice).

    Args:
        in_channels: image channels plus one mask channel per label.
        channels: width of each level; the plane shrinks by 2 between two levels.
        latent_channels: channels of a slice's latents.
        position_embedding: size of the slice position embedding, 0 for the ablation without it.
        groups: groups of the group norms.
    """

    def __init__(
        self,
        in_channels: int = 2,
        channels: Sequence[int] = (128, 256, 512, 512),
        latent_channels: int = 6,
        position_embedding: int = 32,
        groups: int = 32,
    ) -> None:
        super().__init__()
        self.in_channels, self.latent_channels, self.factor = in_channels, latent_channels, 2 ** (len(channels) - 1)
        e, first, last = position_embedding, channels[0], channels[-1]
        self.position = SinusoidalEmbedding(e, e) if e else None

        self.encoder_in = ResidualBlock(2, in_channels, first, e, groups)
        self.down = nn.ModuleList(convolution(2, a, b, stride=2) for a, b in pairwise(channels))
        self.encoder = nn.ModuleList(ResidualBlock(2, c, c, e, groups) for c in channels[1:])
        self.to_posterior = convolution(2, last, 2 * latent_channels)

        rising = list(channels[::-1])
        self.decoder_in = ResidualBlock(2, latent_channels, last, e, groups)
        self.up = nn.ModuleList(convolution(2, a, b) for a, b in pairwise(rising))
        self.decoder = nn.ModuleList(ResidualBlock(2, c, c, e, groups) for c in rising[1:])
        self.to_slice = convolution(2, first, in_channels)

    def _embed(self, position: torch.Tensor) -> torch.Tensor | None:
        return None if self.position is None else self.position(position)

    def encode(self, x: torch.Tensor, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode slices `[B, C, H, W]` at slice indices `[B]` to mean and log-variance `[B, Z, H/f, W/f]`."""
        e = self._embed(position)
        h = self.encoder_in(x, e)
        for down, block in zip(self.down, self.encoder, strict=True):
            h = block(down(h), e)
        mean, log_variance = self.to_posterior(h).chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)

    def decode(self, z: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        """Decode latents `[B, Z, H/f, W/f]` at slice indices `[B]` to slices `[B, C, H, W]` in about [-1, 1]."""
        e = self._embed(position)
        h = self.decoder_in(z, e)
        for up, block in zip(self.up, self.decoder, strict=True):
            h = block(up(nn.functional.interpolate(h, scale_factor=2.0, mode="nearest")), e)
        return self.to_slice(h)

    def forward(self, x: torch.Tensor, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Reconstruct slices: `(reconstruction, mean, log_variance)`; a posterior sample in training, else the mean."""
        mean, log_variance = self.encode(x, position)
        z = mean + torch.randn_like(mean) * (0.5 * log_variance).exp() if self.training else mean
        return self.decode(z, position), mean, log_variance
