"""Generator of the 3-D LSGAN (Mao et al. 2017) in the manner of DCGAN (Radford et al. 2016)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from torch import nn

from sbldm.networks.blocks import Built, convolution

__all__ = ["GanGenerator"]


class GanGenerator(Built):
    """From a noise vector to image and mask at once; it takes no requests.

    A linear layer to the coarsest grid, then per level [nearest x2, 3-wide convolution, batch norm, ReLU], the last one
    to the output with tanh. On 192x192x96 with 2048 noise numbers this is the authors' committed generator (118.0 M
    parameters), with 1000 it fits the size they print (60.06 M, 71.2 M with a discriminator of 11.2 M).

    Args:
        out_channels: image channels plus one mask channel per label.
        size: grid of the output, divisible by 2 to the number of levels.
        noise: length of the noise vector.
        channels: width of each level, the coarsest first.
    """

    def __init__(
        self,
        out_channels: int = 2,
        size: Sequence[int] = (192, 192, 96),
        noise: int = 2048,
        channels: Sequence[int] = (512, 256, 128, 64, 32),
    ) -> None:
        super().__init__()
        self.noise, self.coarse = noise, (channels[0], *(n // 2 ** len(channels) for n in size))
        self.stem = nn.Linear(noise, int(np.prod(self.coarse)))
        self.levels = nn.Sequential(*(_level(a, b) for a, b in pairwise(channels)))
        self.out = nn.Sequential(nn.Upsample(scale_factor=2.0), convolution(3, channels[-1], out_channels), nn.Tanh())

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Map noise `[B, noise]` to pairs `[B, C + L, X, Y, Z]` in [-1, 1]."""
        return self.out(self.levels(self.stem(z).reshape(len(z), *self.coarse)))


def _level(c_in: int, c_out: int) -> nn.Module:
    return nn.Sequential(
        nn.Upsample(scale_factor=2.0), convolution(3, c_in, c_out), nn.BatchNorm3d(c_out), nn.ReLU(inplace=True)
    )
