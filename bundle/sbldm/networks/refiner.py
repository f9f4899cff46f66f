"""What makes decoded planes sharp again: a small 2-D U-Net that denoises what the decoder has left out of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from sbldm.networks.blocks import convolution
from sbldm.networks.latent_unet import LatentUNet

__all__ = ["RefinerUNet"]


class RefinerUNet(LatentUNet):
    """Denoiser of what a decoded plane lacks, shown the plane: images and labels, `[B, C + L, X, Y]`.

    `LatentUNet` in the plane, which takes no requests, with the plane beside its input. Squares of pixels enter as
    channels, and its norms look at one pixel alone, so that planes of any size are seen as training patches are. With
    its output at zero, as it starts, nothing is lacking.

    Args:
        images: image channels C.
        labels: L.
        channels: width of each level, each half as fine as the one before.
        num_res_blocks: residual blocks per level and direction.
        embedding: size of the embedding of the time.
        patch: side of the squares; with the halvings it must divide the plane.
    """

    spatial_dims = 2

    def __init__(
        self,
        images: int = 1,
        labels: int = 1,
        channels: Sequence[int] = (48, 96),
        num_res_blocks: int = 1,
        embedding: int = 128,
        patch: int = 2,
    ) -> None:
        super().__init__(images * patch**2, channels, [2] * (len(channels) - 1), num_res_blocks, 0, embedding, groups=0)
        self.images, self.patch = images, patch
        self.stem = convolution(2, (2 * images + labels) * patch**2, channels[0])

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, decoded: torch.Tensor) -> torch.Tensor:
        """What is clean in `x` `[B, C, X, Y]` at time steps `[B]`, for the planes `decoded` `[B, C + L, X, Y]`."""
        planes = nn.functional.pixel_unshuffle(torch.cat([x, decoded], dim=1), self.patch)
        return nn.functional.pixel_shuffle(super().forward(planes, timesteps), self.patch)
