"""The last part of stage 1: a diffusion of pixels that gives the images the texture which the latents leave out."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from sbldm.diffusion import Schedule, dpm_solver
from sbldm.networks.blocks import ChannelNorm, ResidualBlock, SinusoidalEmbedding, convolution, zero_initialised

__all__ = ["Refiner"]

INSIDE = -0.9  # half-way between the background and the darkest of a brain, as cases are prepared
LEVELS = {"distribution": "logit_normal", "mean": 0.0, "std": 1.4}  # noise levels of the training
MOMENTUM = 0.01  # of the running scale


class Refiner(nn.Module):
    """Denoiser of what a decoder leaves out of its images: their difference from the real ones, inside the brain.

    A decoder with a loss of distances draws the mean of all that its latents may stand for, which has no texture
    (Blau and Michaeli, arXiv 1711.06077). Here a conditional diffusion model draws one of them, as the refining module
    of the journal paper does like super-resolution. The texture is local and everywhere alike, so that a small network
    over single slices learns it from few cases; neighbouring slices exchange channels (Lin et al., arXiv 1811.08383).
    Masks are left as they are.

    Args:
        images: image channels, the first ones of a slice.
        in_channels: all channels of a slice, the labels among them.
        channels: width of each level; the plane shrinks by 2 between two levels.
        steps: evaluations for a volume.
        patch: side of the squares of pixels that enter and leave as channels.
        embedding: size of the embedding of noise level and slice position.
    """

    def __init__(
        self,
        images: int = 1,
        in_channels: int = 2,
        channels: Sequence[int] = (48, 96),
        steps: int = 6,
        patch: int = 2,
        embedding: int = 96,
    ) -> None:
        super().__init__()
        self.images, self.steps, self.patch, first = images, steps, patch, channels[0]
        self.schedule = Schedule(kind="cosine", prediction="v_prediction")
        self.register_buffer("scale", torch.tensor(0.0))  # standard deviation of the difference, as it is in training
        self.time, self.position = (SinusoidalEmbedding(64, embedding) for _ in range(2))
        self.act = nn.SiLU()
        self.stem = convolution(2, (images + in_channels) * patch**2, first)
        self.encoder = nn.ModuleList(ResidualBlock(2, c, c, embedding, groups=0) for c in channels)
        self.down = nn.ModuleList(convolution(2, a, b, stride=2) for a, b in pairwise(channels))
        self.decoder = nn.ModuleList(ResidualBlock(2, 2 * c, c, embedding, groups=0) for c in channels[::-1])
        self.up = nn.ModuleList(convolution(2, a, b) for a, b in pairwise(channels[::-1]))
        self.out = nn.Sequential(
            ChannelNorm(first), nn.SiLU(), zero_initialised(convolution(2, first, images * patch**2))
        )

    @property
    def learns(self) -> bool:
        """Whether a training changes its weights now: with `settled` once those of the autoencoder are at rest."""
        return self.stem.weight.requires_grad

    def forward(
        self, x: torch.Tensor, times: torch.Tensor, drawn: torch.Tensor, position: torch.Tensor, depth: int
    ) -> torch.Tensor:
        """Velocity of noisy differences `[B * depth, images, H, W]` at times `[B * depth]`.

        Args:
            x: what is to be denoised.
            times: steps of the schedule's chain.
            drawn: what the decoder drew, `[B * depth, C, H, W]`.
            position: slice indices `[B * depth]`.
            depth: slices of a stack, of which neighbours exchange channels.
        """
        e = self.act(self.time(times) + self.position(position))
        h = self.stem(nn.functional.pixel_unshuffle(torch.cat([x, drawn], dim=1), self.patch))
        skips = []
        for level, block in enumerate(self.encoder):
            h = block(h, e, depth)
            skips.append(h)
            if level < len(self.down):
                h = self.down[level](h)
        for level, block in enumerate(self.decoder):
            h = block(torch.cat([h, skips.pop()], dim=1), e, depth)
            if level < len(self.up):
                h = nn.functional.interpolate(self.up[level](h), scale_factor=2.0, mode="nearest")
        return nn.functional.pixel_shuffle(self.out(h), self.patch)

    def lesson(
        self, slices: torch.Tensor, drawn: torch.Tensor, position: torch.Tensor, depth: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predicted and true velocity of each pixel inside the brain, `[n]`, of real slices and what was drawn of them.

        A training measures the scale of the difference as it goes. Otherwise noise and levels are always the same.
        """
        drawn, inside = drawn.detach(), self._inside(drawn.detach(), depth)
        rest = slices[:, : self.images] - drawn[:, : self.images]
        if self.training:
            here = rest.float()[inside.expand_as(rest) > 0].square().mean().sqrt()
            with torch.no_grad():
                self.scale.copy_(self.scale + MOMENTUM * (here - self.scale) if self.scale > 0 else here)
        with torch.random.fork_rng(enabled=not self.training, devices=[]):
            if not self.training:
                torch.manual_seed(0)
            times = self.schedule.training_times(len(slices) // depth, LEVELS).repeat_interleave(depth).to(slices)
            noise = torch.randn(rest.shape).to(rest)
        noisy, velocity = self.schedule.noised(rest / self.scale, noise, times)
        predicted = self(inside * noisy, times, drawn, position, depth)
        chosen = inside.expand_as(rest) > 0
        return predicted.float()[chosen], velocity.float()[chosen]

    @torch.no_grad()
    def refine(self, drawn: torch.Tensor, position: torch.Tensor, depth: int, seed: int) -> torch.Tensor:
        """What the decoder drew, `[B * depth, C, H, W]`, with a difference drawn for its images from a seed."""
        inside = self._inside(drawn, depth)
        noise = torch.randn((len(drawn), self.images, *drawn.shape[2:]), generator=torch.Generator().manual_seed(seed))
        noise = inside * noise.to(drawn)

        def denoise(x: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
            return inside * self(x, times, drawn, position, depth).to(x)

        # of few steps the spacing that keeps the variance of white noise: 1.00 of 6, where `karras` makes 1.06
        rest = self.scale * dpm_solver(denoise, lambda _: noise, self.schedule, self.steps, "logsnr")
        return torch.cat([drawn[:, : self.images] + rest, drawn[:, self.images :]], dim=1)

    def _inside(self, drawn: torch.Tensor, depth: int) -> torch.Tensor:
        """The brain and a pixel around it, `[B * depth, 1, H, W]`."""
        brain = (drawn[:, : self.images].amax(1, keepdim=True) > INSIDE).float()
        stacks = brain.unflatten(0, (-1, depth)).movedim(1, 2)
        grown = nn.functional.max_pool3d(stacks, 3, stride=1, padding=1)
        return grown.movedim(2, 1).flatten(0, 1).to(drawn.dtype)
