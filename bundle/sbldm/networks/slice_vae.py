"""Stage 1: a variational autoencoder of axial slices that knows where a slice lies (paper, section 2.2), and the same
network over whole volumes, which is what the authors compared it with.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np
import torch
from einops import rearrange
from torch import nn

from sbldm.networks.blocks import Built, ResidualBlock, SinusoidalEmbedding, convolution, in_pieces, zero_initialised
from sbldm.run import group
from sbldm.run.errors import InputError

__all__ = ["SliceVAE", "StackVAE", "VolumeVAE", "as_labels", "as_regions", "cell_means"]


class _VAE(Built):
    """The network of both classes below, in two or three dimensions."""

    divisible = True  # into `pieces`
    ends: tuple[str, ...] = ("encoder_in.conv1", "encoder_in.skip", "to_posterior", "to_slice")  # first and last layers

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int,
        channels: Sequence[int],
        latent_channels: int,
        position_embedding: int,
        groups: int,
    ) -> None:
        super().__init__()
        self.in_channels, self.latent_channels, self.factor = in_channels, latent_channels, 2 ** (len(channels) - 1)
        n, e, first, last = spatial_dims, position_embedding, channels[0], channels[-1]
        self.position = SinusoidalEmbedding(e, e) if e else None

        self.encoder_in = ResidualBlock(n, in_channels, first, e, groups)
        self.down = nn.ModuleList(convolution(n, a, b, stride=2) for a, b in pairwise(channels))
        self.encoder = nn.ModuleList(ResidualBlock(n, c, c, e, groups) for c in channels[1:])
        self.to_posterior = convolution(n, last, 2 * latent_channels)

        rising = list(channels[::-1])
        self.decoder_in = ResidualBlock(n, latent_channels, last, e, groups)
        self.up = nn.ModuleList(convolution(n, a, b) for a, b in pairwise(rising))
        self.decoder = nn.ModuleList(ResidualBlock(n, c, c, e, groups) for c in rising[1:])
        self.to_slice = convolution(n, first, in_channels)

    def _embed(self, position: torch.Tensor | None) -> torch.Tensor | None:
        return None if self.position is None else self.position(position)

    def encode(self, x: torch.Tensor, position: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode `[B, C, H, W, ...]` (slices at indices `[B]`) to mean and log-variance `[B, Z, H/f, W/f, ...]`."""
        e = self._embed(position)
        h = self.encoder_in(x, e)
        for down, block in zip(self.down, self.encoder, strict=True):
            h = block(down(h), e)
        mean, log_variance = self.to_posterior(h).chunk(2, dim=1)
        return mean, log_variance.clamp(-30, 20)

    def decode(self, z: torch.Tensor, position: torch.Tensor | None = None) -> torch.Tensor:
        """Decode latents (of slices at indices `[B]`) to `[B, C, H, W, ...]` in about [-1, 1]."""
        e = self._embed(position)
        h = self.decoder_in(z, e)
        for up, block in zip(self.up, self.decoder, strict=True):
            h = block(up(nn.functional.interpolate(h, scale_factor=2.0, mode="nearest")), e)
        return self.to_slice(h)

    def forward(
        self, x: torch.Tensor, position: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Reconstruct: `(reconstruction, mean, log_variance)`; a posterior sample in training, else the mean."""
        mean, log_variance = in_pieces(self, self.encode, len(x), x, position)
        z = mean + group.randn_like(mean) * (0.5 * log_variance).exp() if self.training else mean
        return in_pieces(self, self.decode, len(x), z, position), mean, log_variance


class SliceVAE(_VAE):
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
        nested: labels from the outermost inwards that enter and leave as nested regions, see `as_regions`; volumes hold
            labels still.
    """

    def __init__(
        self,
        in_channels: int = 2,
        channels: Sequence[int] = (128, 256, 512, 512),
        latent_channels: int = 6,
        position_embedding: int = 32,
        groups: int = 32,
        nested: Sequence[int] = (),
    ) -> None:
        super().__init__(2, in_channels, channels, latent_channels, position_embedding, groups)
        self.nested = tuple(nested)

    @torch.no_grad()
    def encode_volume(self, volume: np.ndarray, device: torch.device, chunk: int = 16) -> np.ndarray:
        """Encode `[C + L, X, Y, Z]` in chunks of slices: mean and log-variance, `[2, latent, X/f, Y/f, Z]`."""
        slices = as_regions(torch.from_numpy(np.ascontiguousarray(volume.transpose(3, 0, 1, 2))), self.nested)
        parts = [
            torch.stack(self.encode(part.to(device), _positions(i * chunk, part, device))).cpu()
            for i, part in enumerate(slices.split(chunk))
        ]
        return torch.cat(parts, dim=1).permute(0, 2, 3, 4, 1).numpy()

    @torch.no_grad()
    def decode_volume(self, latents: torch.Tensor, chunk: int = 16) -> np.ndarray:
        """Decode latents `[latent, X/f, Y/f, Z]` in chunks of slices: `[C + L, X, Y, Z]` in [-1, 1]."""
        slices = latents.permute(3, 0, 1, 2)
        parts = [
            self.decode(part, _positions(i * chunk, part, part.device)).float().clamp(-1, 1).cpu()
            for i, part in enumerate(slices.split(chunk))
        ]
        return as_labels(torch.cat(parts), self.nested).permute(1, 2, 3, 0).numpy()


class StackVAE(SliceVAE):
    """Slice VAE whose latents stand for `aggregation` neighbouring slices each (latent aggregation, journal paper).

    Slices are encoded one by one, with their positions; a convolution with a stride along z at the end of the encoder
    joins neighbours. The decoder spreads the latents along z after its first block, then decodes slice by slice;
    convolutions along z that start at zero let neighbours agree. Norms look at one pixel at a time: a window of a stack
    of a few slices and a whole volume are encoded and decoded alike, but for ends and borders.

    The first latents are anchored: they are the slices' means over parts of a latent's cell (`cell_means`) and what the
    encoder adds, and the decoder draws what is beside these means, put up again. Both begin at nothing, so the network
    begins as a small brain of the cells' means, and the latents stay one (`AutoencoderLoss`). Left to itself an
    autoencoder stores anatomy as white noise of low amplitude, which diffusion learns last.

    Args:
        in_channels, channels, latent_channels, position_embedding, nested: as for `SliceVAE`.
        aggregation: slices that share latents; it must divide the slices of a volume.
        parts: into how many parts a side of a cell is divided for the anchored latents, `in_channels * parts**2` of
            them; 0: no latents are anchored.
        patch: side of the squares of pixels that enter and leave the network as channels; without a level of their own
            (1: none). The plane shrinks by this factor too.
        latent_noise: in training the decoder gets `(1 - s) z + s n`, s uniform between 0 and this for each stack, n
            normal with the standard deviation of the latents (l-DeTok, arXiv 2507.15856).
    """

    def __init__(
        self,
        in_channels: int = 2,
        channels: Sequence[int] = (16, 48, 96),
        latent_channels: int = 8,
        position_embedding: int = 32,
        aggregation: int = 3,
        latent_noise: float = 0.0,
        patch: int = 1,
        parts: int = 0,
        nested: Sequence[int] = (),
    ) -> None:
        super().__init__(in_channels * patch**2, channels, latent_channels, position_embedding, 0, nested)
        self.in_channels, self.patch, self.factor = in_channels, patch, self.factor * patch
        last, along_z = channels[-1], (1, 1, aggregation)
        self.aggregation, self.latent_noise = aggregation, latent_noise
        self.to_posterior = nn.Conv3d(last, 2 * latent_channels, (3, 3, aggregation), along_z, (1, 1, 0))
        with torch.no_grad():  # a narrow posterior to start with, or the first hundreds of iterations drown in noise
            self.to_posterior.bias[latent_channels:] -= 4
        self.parts, self.anchored = parts, in_channels * parts**2
        if parts:
            zero_initialised(self.to_slice)
            with torch.no_grad():
                self.to_posterior.weight[: self.anchored] = 0
                self.to_posterior.bias[: self.anchored] = 0
        self.spread = nn.ConvTranspose3d(last, last, along_z, along_z)
        widths = [last, last, *channels[-2::-1]]
        self.agree = nn.ModuleList(
            zero_initialised(nn.Conv3d(c, c, (1, 1, 3), padding=(0, 0, 1), padding_mode="replicate")) for c in widths
        )

    def encode(
        self, x: torch.Tensor, position: torch.Tensor | None = None, depth: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode stacks of `depth` slices `[B * depth, C, H, W]`: mean and log-variance `[B, Z, H/f, W/f, depth/a]`.

        Raises:
            InputError: slices cannot share latents by the aggregation.
        """
        if depth % self.aggregation:
            raise InputError(
                f"stacks of {depth} slices: latents are shared by {self.aggregation} neighbouring ones; let depth be a "
                "multiple."
            )
        e = self._embed(position)
        h = self.encoder_in(nn.functional.pixel_unshuffle(x, self.patch), e)
        for down, block in zip(self.down, self.encoder, strict=True):
            h = block(down(h), e)
        mean, log_variance = self.to_posterior(_stacked(h, depth)).chunk(2, dim=1)
        if self.parts:
            means = cell_means(x, mean.shape, self.parts)
            mean = torch.cat([mean[:, : self.anchored] + means, mean[:, self.anchored :]], dim=1)
        return mean, log_variance.clamp(-30, 20)

    def decode(self, z: torch.Tensor, position: torch.Tensor | None = None, depth: int = 1) -> torch.Tensor:
        """Decode latents `[B, Z, H/f, W/f, depth/a]` to slices `[B * depth, C, H, W]` in about [-1, 1]."""
        e = self._embed(position)
        joined = None if e is None else e.unflatten(0, (-1, self.aggregation)).mean(1)
        h = _stacked(self.decoder_in(_slices(z), joined), z.shape[-1])
        h = self.spread(h + self.agree[0](h))
        h = _slices(h + self.agree[1](h))
        for up, block, agree in zip(self.up, self.decoder, self.agree[2:], strict=True):
            h = block(up(nn.functional.interpolate(h, scale_factor=2.0, mode="nearest")), e)
            h = h + _slices(agree(_stacked(h, depth)))
        drawn = nn.functional.pixel_shuffle(self.to_slice(h), self.patch)
        if not self.parts:
            return drawn
        means = _stacked(nn.functional.pixel_shuffle(_slices(z[:, : self.anchored]), self.parts), z.shape[-1])
        size = (*drawn.shape[2:], depth)
        return drawn + _slices(nn.functional.interpolate(means, size, mode="trilinear"))

    def forward(
        self, x: torch.Tensor, position: torch.Tensor | None = None, depth: int = 1
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Reconstruct slices: `(reconstruction, mean, log_variance)`; posterior sample and noise in training alone."""
        encode, decode = (partial(half, depth=depth) for half in (self.encode, self.decode))
        mean, log_variance = in_pieces(self, encode, len(x) // depth, x, position)
        z = mean
        if self.training:
            z = z + group.randn_like(z) * (0.5 * log_variance).exp()
            if self.latent_noise:
                share = self.latent_noise * group.rand(len(z), 1, 1, 1, 1, device=z.device)
                scale = group.gathered(mean.detach()).std(dim=(0, 2, 3, 4), keepdim=True)
                z = (1 - share) * z + share * scale * group.randn_like(z)
        return in_pieces(self, decode, len(z), z, position), mean, log_variance

    @torch.no_grad()
    def encode_volume(self, volume: np.ndarray, device: torch.device) -> np.ndarray:
        """Encode `[C + L, X, Y, Z]`, all slices at once: mean and log-variance, `[2, latent, X/f, Y/f, Z/a]`."""
        slices = torch.from_numpy(np.ascontiguousarray(volume.transpose(3, 0, 1, 2))).to(device)
        slices = as_regions(slices, self.nested)
        return torch.cat(self.encode(slices, _positions(0, slices, device), len(slices))).cpu().numpy()

    @torch.no_grad()
    def decode_volume(self, latents: torch.Tensor) -> np.ndarray:
        """Decode latents `[latent, X/f, Y/f, Z/a]`, all slices at once: `[C + L, X, Y, Z]` in [-1, 1]."""
        depth = latents.shape[-1] * self.aggregation
        position = torch.arange(depth, device=latents.device)
        drawn = self.decode(latents[None], position, depth).float().clamp(-1, 1).cpu()
        return as_labels(drawn, self.nested).permute(1, 2, 3, 0).numpy()


def as_regions(slices: torch.Tensor, nested: Sequence[int]) -> torch.Tensor:
    """Slices `[B, C + L, ...]` in [-1, 1] with their L labels as nested regions, the largest first.

    Each region is a label and all that lie further inward: with `nested` (2, 1, 3) of necrotic, oedema and enhancing
    tissue (labels 1, 2, 3) the whole tumour, the tumour core, the enhancing tumour. With none: the slices as they are.
    """
    if not nested:
        return slices
    images, labels = slices.tensor_split([-len(nested)], dim=1)
    inwards = (labels[:, [k - 1 for k in nested]] + 1) / 2
    regions = inwards.flip(1).cumsum(1).flip(1).clamp(max=1)
    return torch.cat([images, 2 * regions - 1], dim=1)


def as_labels(slices: torch.Tensor, nested: Sequence[int]) -> torch.Tensor:
    """The way back from `as_regions`: what a region holds beyond the next smaller one; no two labels overlap."""
    if not nested:
        return slices
    images, regions = slices.tensor_split([-len(nested)], dim=1)
    regions = ((regions + 1) / 2).cummin(dim=1).values  # none reaches out of the larger one
    inwards = regions - torch.cat([regions[:, 1:], torch.zeros_like(regions[:, :1])], dim=1)
    labels = inwards[:, [nested.index(k) for k in range(1, 1 + len(nested))]]
    return torch.cat([images, 2 * labels - 1], dim=1)


def cell_means(slices: torch.Tensor, shape: Sequence[int], parts: int) -> torch.Tensor:
    """Means of slices `[B * depth, C, X, Y]` over the cells of latents of a shape `(B, Z, H, W, D)`.

    A cell is divided into `parts` x `parts` in the plane; `[B, C * parts**2, H, W, D]`, the parts of a channel beside
    each other.
    """
    n, _, h, w, d = shape
    means = nn.functional.adaptive_avg_pool3d(_stacked(slices, len(slices) // n), (h * parts, w * parts, d))
    return _stacked(nn.functional.pixel_unshuffle(_slices(means), parts), d)


def _stacked(slices: torch.Tensor, depth: int) -> torch.Tensor:
    return rearrange(slices, "(b s) c h w -> b c h w s", s=depth)


def _slices(stacks: torch.Tensor) -> torch.Tensor:
    return rearrange(stacks, "b c h w s -> (b s) c h w")


def _positions(start: int, slices: torch.Tensor, device: torch.device) -> torch.Tensor:
    return torch.arange(start, start + len(slices), device=device)


class VolumeVAE(_VAE):
    """The blocks of `SliceVAE` over whole volumes `[B, C, X, Y, Z]`, every axis shrunk alike, without positions.

    With `channels` [64, 128, 256, 512] and six latent channels this is the authors' 3-D autoencoder (39.97 M
    parameters); with [128, 256, 512, 512] and one transformer it has the 85.95 M and 15.3 TMAC of their notes.

    Args:
        in_channels, channels, latent_channels, groups: as for `SliceVAE`.
    """

    def __init__(
        self,
        in_channels: int = 2,
        channels: Sequence[int] = (64, 128, 256, 512),
        latent_channels: int = 6,
        groups: int = 32,
    ) -> None:
        super().__init__(3, in_channels, channels, latent_channels, 0, groups)

    @torch.no_grad()
    def encode_volume(self, volume: np.ndarray, device: torch.device) -> np.ndarray:
        """Encode `[C + L, X, Y, Z]`: mean and log-variance, `[2, latent, X/f, Y/f, Z/f]`."""
        whole = torch.from_numpy(np.ascontiguousarray(volume))[None].to(device)
        return torch.cat(self.encode(whole)).cpu().numpy()

    @torch.no_grad()
    def decode_volume(self, latents: torch.Tensor) -> np.ndarray:
        """Decode latents `[latent, X/f, Y/f, Z/f]`: `[C + L, X, Y, Z]` in [-1, 1]."""
        return self.decode(latents[None])[0].float().clamp(-1, 1).cpu().numpy()
