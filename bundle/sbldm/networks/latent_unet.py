"""Stage 2: an attention-free U-Net over slice latents, stacked (3-D) or tiled (2-D), told time and tumour by
scale-shift norms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from monai.networks.layers.factories import Conv
from torch import nn

from sbldm.networks.blocks import (
    Built,
    ResidualBlock,
    SinusoidalEmbedding,
    convolution,
    in_pieces,
    norm,
    zero_initialised,
)
from sbldm.run.errors import InputError
from sbldm.tumour.characteristics import NAMES

__all__ = ["LatentUNet", "TiledUNet", "one_hot"]

# The journal paper's bits. Conditions are standardised, so the mean parts two bins, and three hold a third each of a
# normal distribution.
BINS = {"x_mm": (0.0,), "y_mm": (0.0,), "z_mm": (0.0,), "volume_ml": (-0.43, 0.43), "sphericity": (-0.43, 0.43)}


class LatentUNet(Built):
    """Denoiser of latents `[B, Z, H, W, D]` (paper, sections 2.2 and 2.3).

    Per level `num_res_blocks` residual blocks on the way down, as many on the way up, each of which takes one skip;
    two blocks in the middle; the output starts at zero. Time and condition embeddings are added and enter every block
    as a scale-shift norm. A learned null condition stands for "no request". With `channels` [64, 128, 256, 512],
    `strides` [1, 2, 2] and 24x24x96 latents of six channels this has the size of the authors' network (135 M
    parameters, 524 GMAC a step) to within one per cent.

    Args:
        latent_channels: channels of the latents.
        channels: width of each level.
        strides: between two levels 1, 2 or one stride per axis (H, W, D); their product must divide the latents.
        num_res_blocks: residual blocks per level and direction.
        condition_size: numbers in a condition vector, 0 for a network that takes no requests.
        embedding: size of the joint embedding of time and condition.
        groups: groups of the group norms.
        picture: draws the request into the latent grid, as an input channel; None for none.
        coordinates: three input channels say where in the field of view a latent lies, from -1 to 1.
        regions: an input channel says which latents are to be drawn; the others are known and stay as they are.
        one_hot: condition vectors are embedded as twelve bits (`one_hot`), as numbers otherwise.
    """

    divisible = True  # into `pieces`
    ends = ("stem", "out")  # first and last layers
    spatial_dims = 3

    def __init__(
        self,
        latent_channels: int = 6,
        channels: Sequence[int] = (64, 128, 256, 512),
        strides: Sequence[int | Sequence[int]] = (1, 2, 2),
        num_res_blocks: int = 2,
        condition_size: int = 9,
        embedding: int = 256,
        groups: int = 32,
        picture: nn.Module | None = None,
        coordinates: bool = False,
        regions: bool = False,
        one_hot: bool = False,
    ) -> None:
        super().__init__()
        spatial_dims = self.spatial_dims
        if len(strides) != len(channels) - 1:
            needed = len(channels) - 1
            raise InputError(f"network_def: {len(channels)} channels need {needed} strides, not {len(strides)}.")

        def block(c_in: int, c_out: int) -> ResidualBlock:
            return ResidualBlock(spatial_dims, c_in, c_out, embedding, groups)

        self.time = SinusoidalEmbedding(channels[0], embedding)
        self.condition = None
        if condition_size:
            size = sum(len(edges) + 1 for edges in BINS.values()) if one_hot else condition_size
            widths = nn.Linear(size, embedding), nn.Linear(embedding, embedding)
            self.condition = nn.Sequential(widths[0], nn.SiLU(), widths[1])
            self.null_condition = nn.Parameter(torch.zeros(embedding))
        self.picture, self.coordinates, self.regions, self.one_hot = picture, coordinates, regions, one_hot
        inputs = latent_channels + (picture is not None) + spatial_dims * coordinates + regions
        self.stem = convolution(spatial_dims, inputs, channels[0])

        self.encoder, self.down, self.decoder, self.up = (nn.ModuleList() for _ in range(4))
        c = channels[0]
        for level, width in enumerate(channels):
            self.encoder.append(nn.ModuleList(block(c if i == 0 else width, width) for i in range(num_res_blocks)))
            c = width
            if level < len(strides):
                self.down.append(_down(spatial_dims, c, strides[level]))
        self.middle = nn.ModuleList(block(c, c) for _ in range(2))
        for level, width in reversed(list(enumerate(channels))):
            self.decoder.append(nn.ModuleList(block(2 * width, width) for _ in range(num_res_blocks)))
            if level > 0:
                self.up.append(_up(spatial_dims, width, channels[level - 1], strides[level - 1]))
        self.out = nn.Sequential(
            norm(channels[0], groups),
            nn.SiLU(),
            zero_initialised(convolution(spatial_dims, channels[0], latent_channels)),
        )

    def embed(self, timesteps: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        """Joint embedding `[B, E]` of time steps `[B]` and condition vectors `[B, K]`.

        A row of `context` that holds a NaN, or `context=None`, means "no request": the learned null condition.
        """
        e = self.time(timesteps)
        if self.condition is None:
            return e
        if context is None:
            return e + self.null_condition
        context = context.reshape(context.shape[0], -1)
        absent = context.isnan().any(dim=1, keepdim=True)
        given = one_hot(context) if self.one_hot else context
        condition = self.condition(given.nan_to_num().to(e.dtype))
        return e + torch.where(absent, self.null_condition.to(condition.dtype), condition)

    def _with_maps(
        self, x: torch.Tensor, context: torch.Tensor | None, region: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Latents, and beside them picture of the request, coordinates and region, where the network has them."""
        maps = [x]
        if self.picture is not None:
            maps.append(self.picture(context, x))
        if self.coordinates:
            axes = [torch.linspace(-1, 1, n, dtype=x.dtype, device=x.device) for n in x.shape[2:]]
            grid = torch.stack(torch.meshgrid(*axes, indexing="ij"))
            maps.append(grid.expand(len(x), *grid.shape))
        if self.regions:
            maps.append(torch.ones_like(x[:, :1]) if region is None else region.to(x.dtype))
        return torch.cat(maps, dim=1) if len(maps) > 1 else x

    def forward(
        self,
        x: torch.Tensor,
        timesteps: torch.Tensor,
        context: torch.Tensor | None = None,
        region: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predict the noise in `x` `[B, Z, H, W, D]` at time steps `[B]` given condition vectors `[B, K]` or none.

        A region `[B, 1, H, W, D]` of ones and zeros says where to draw; elsewhere `x` holds latents without noise, and
        zero is predicted. None: everywhere.
        """
        return in_pieces(self, self._denoise, len(x), x, timesteps, context, region)

    def _denoise(
        self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor | None, region: torch.Tensor | None
    ) -> torch.Tensor:
        e = self.embed(timesteps, context)
        h = self.stem(self._with_maps(x, context, region))
        skips: list[torch.Tensor] = []
        for level, blocks in enumerate(self.encoder):
            for block in blocks:
                h = block(h, e)
                skips.append(h)
            if level < len(self.down):
                h = self.down[level](h)
        for block in self.middle:
            h = block(h, e)
        for level, blocks in enumerate(self.decoder):
            for block in blocks:
                h = block(torch.cat([h, skips.pop()], dim=1), e)
            if level < len(self.up):
                h = self.up[level](h)
        out = self.out(h)
        return out if region is None else out * region.to(out.dtype)


class TiledUNet(LatentUNet):
    """2-D diffusion over slice latents `[B, Z, H, W, D]` laid side by side on one plane (the authors' 2-D variant).

    The D slices fill a grid of tiles row by row, as nearly square as D allows; what lies between two tiles is up to the
    network. Arguments as for `LatentUNet`, whose strides are then those of the plane.
    """

    spatial_dims = 2

    def forward(self, x: torch.Tensor, timesteps: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """As `LatentUNet.forward`: `[B, Z, H, W, D]` to `[B, Z, H, W, D]`."""
        rows, columns = tiles(x.shape[2], x.shape[3], x.shape[4])
        plane = rearrange(x, "b z h w (r c) -> b z (r h) (c w)", r=rows)
        return rearrange(
            super().forward(plane, timesteps, context), "b z (r h) (c w) -> b z h w (r c)", r=rows, c=columns
        )


def one_hot(conditions: torch.Tensor) -> torch.Tensor:
    """Condition vectors `[B, K]` as bits `[B, 12]`: x, y, z in two bins each, volume and sphericity in three.

    The code of the journal paper (CMIG 123:102532, 2025) asks for tumours in this way, as numbers need more cases.
    """
    bits = []
    for name, edges in BINS.items():
        place = torch.bucketize(conditions[:, NAMES.index(name)].contiguous(), conditions.new_tensor(edges), right=True)
        bits.append(nn.functional.one_hot(place, len(edges) + 1))
    return torch.cat(bits, dim=1).to(conditions.dtype)


def tiles(height: int, width: int, depth: int) -> tuple[int, int]:
    """Rows and columns of `depth` tiles `height` x `width` that give the plane nearest to a square."""
    shapes = [(rows, depth // rows) for rows in range(1, depth + 1) if depth % rows == 0]
    return min(shapes, key=lambda shape: abs(math.log(shape[0] * height / (shape[1] * width))))


def _down(spatial_dims: int, c: int, stride: int | Sequence[int]) -> nn.Module:
    return nn.Identity() if stride == 1 else convolution(spatial_dims, c, c, stride=stride)


def _up(spatial_dims: int, c_in: int, c_out: int, stride: int | Sequence[int]) -> nn.Module:
    """Back to the finer grid: a transposed convolution, 4 wide along an axis that doubles, 3 along one that stays."""
    if stride == 1:
        return convolution(spatial_dims, c_in, c_out, kernel=1)
    steps = [stride] * spatial_dims if isinstance(stride, int) else list(stride)
    kernel = [4 if s == 2 else 3 for s in steps]
    return Conv[Conv.CONVTRANS, spatial_dims](c_in, c_out, kernel, stride=steps, padding=1)
