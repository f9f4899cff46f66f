"""Building blocks shared by the slice VAE (2-D) and the latent U-Net (3-D)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from monai.networks.layers.factories import Conv
from monai.networks.nets.diffusion_model_unet import get_timestep_embedding
from torch import nn
from torch.utils.checkpoint import checkpoint

from sbldm.run.errors import InputError

__all__ = [
    "Built",
    "ChannelNorm",
    "ResidualBlock",
    "SinusoidalEmbedding",
    "convolution",
    "in_pieces",
    "norm",
    "recomputed",
    "sparing",
    "zero_initialised",
]


class Built(nn.Module):
    """A network that remembers the values it was built with (`built`, plain), so that a checkpoint can say them."""

    built: dict[str, Any]
    pieces = 1  # see `sparing`

    def __new__(cls, *args: Any, **values: Any) -> Self:
        """Raises `InputError` for an argument that it does not have."""
        network, known = super().__new__(cls), inspect.signature(cls.__init__)
        names = [name for name in known.parameters if name != "self"]
        try:
            bound = known.bind(network, *args, **values)
        except TypeError as error:
            raise InputError(f"network_def: {cls.__name__} {error}; known are {', '.join(names)}.") from None
        bound.apply_defaults()
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in bound.arguments.items()}
        parts = {name: value is not None for name, value in plain.items() if isinstance(value, nn.Module | None)}
        network.__dict__["built"] = {name: parts.get(name, plain[name]) for name in names}
        return network


def sparing(network: nn.Module, pieces: int = 1, checkpointing: bool = False) -> nn.Module:
    """Let a network take less memory in training, for a third more work (both: two thirds); its results stay.

    What the backward pass needs is computed once more when it is needed, in place of being kept. These are no values of
    the network: no checkpoint knows them.

    Args:
        network: of this package.
        pieces: parts of a batch that go through one after the other; their gradients add up. At most as many as items.
        checkpointing: of each residual block only the input is kept; to the bit as without.

    Raises:
        InputError: it cannot do so.
    """
    if not isinstance(pieces, int) or isinstance(pieces, bool) or pieces < 1:
        raise InputError(f"--accumulate {pieces}: must be a whole number from 1.")
    if not isinstance(checkpointing, bool):
        raise InputError(f"--checkpointing {checkpointing}: must be True or False.")
    blocks = [module for module in network.modules() if isinstance(module, ResidualBlock)]
    if pieces > 1 and not getattr(network, "divisible", False):
        raise InputError(f"--accumulate {pieces}: {type(network).__name__} takes whole batches; leave it out.")
    if checkpointing and not blocks:
        raise InputError(f"--checkpointing: {type(network).__name__} has no blocks that could do so; leave it out.")
    if pieces > 1:
        network.pieces = pieces
    for block in blocks:
        block.checkpointing = checkpointing
    return network


def in_pieces(network: Built, function: Callable[..., Any], items: int, *inputs: torch.Tensor | None) -> Any:
    """What a function of a network gives for a batch, in training by as many parts as the network is to take.

    Args:
        network: whose `pieces` count.
        function: returns a tensor, or a tuple of them, of as many rows as each piece has.
        items: N of the batch.
        inputs: `[N * k, ...]`, each with a k of its own, or None.
    """
    if network.pieces == 1 or not (network.training and torch.is_grad_enabled()):
        return function(*inputs)
    size = -(-items // network.pieces)
    starts = range(0, items, size)
    cut = [[None] * len(starts) if x is None else x.split(size * (len(x) // items)) for x in inputs]
    found = [recomputed(function, *piece) for piece in zip(*cut, strict=True)]
    return tuple(map(torch.cat, zip(*found, strict=True))) if isinstance(found[0], tuple) else torch.cat(found)


def recomputed(function: Callable[..., Any], *inputs: torch.Tensor | None) -> Any:
    """What a function without anything random gives; of it only the inputs are kept, and it is computed again."""
    return checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)


def convolution(
    spatial_dims: int, c_in: int, c_out: int, kernel: int = 3, stride: int | Sequence[int] = 1
) -> nn.Module:
    """A convolution that keeps the grid at stride 1 (odd kernels only)."""
    return Conv[Conv.CONV, spatial_dims](c_in, c_out, kernel, stride=stride, padding=kernel // 2)


def zero_initialised(module: nn.Module) -> nn.Module:
    """Set every parameter to zero, so that a branch ending in `module` starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class SinusoidalEmbedding(nn.Module):
    """Sinusoid of a number (time step, slice index), then a two-layer perceptron.

    Args:
        width: size of the sinusoid.
        out: size of the embedding.
    """

    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.width = width
        self.mlp = nn.Sequential(nn.Linear(width, out), nn.SiLU(), nn.Linear(out, out))

    def forward(self, number: torch.Tensor) -> torch.Tensor:
        """Map `[B]` to `[B, out]`."""
        return self.mlp(get_timestep_embedding(number, self.width).to(self.mlp[0].weight.dtype))


class ResidualBlock(nn.Module):
    """Two 3-wide convolutions with norms and SiLU; the second starts at zero, so the block starts as its skip.

    An embedding, where there is one, scales and shifts the second norm: `h (1 + scale) + shift` (scale-shift norm, the
    paper's section 2.3).

    Args:
        spatial_dims: 2 or 3.
        c_in, c_out: channels; a 1-wide convolution matches the skip where they differ.
        embedding: size of the embedding, or 0 for none.
        groups: groups of the norms, lowered to a divisor of the channels; 0: `ChannelNorm`.
    """

    checkpointing = False  # see `sparing`

    def __init__(self, spatial_dims: int, c_in: int, c_out: int, embedding: int = 0, groups: int = 32) -> None:
        super().__init__()
        self.norm1 = norm(c_in, groups)
        self.conv1 = convolution(spatial_dims, c_in, c_out)
        self.norm2 = norm(c_out, groups)
        self.conv2 = zero_initialised(convolution(spatial_dims, c_out, c_out))
        self.scale_shift = nn.Linear(embedding, 2 * c_out) if embedding else None
        self.skip = convolution(spatial_dims, c_in, c_out, kernel=1) if c_in != c_out else nn.Identity()
        self.act = nn.SiLU(inplace=True)

    def forward(self, x: torch.Tensor, embedding: torch.Tensor | None = None) -> torch.Tensor:
        """Map `[B, c_in, ...]` and the embedding `[B, E]` to `[B, c_out, ...]`."""
        if self.checkpointing and self.training and torch.is_grad_enabled():
            return recomputed(self._forward, x, embedding)
        return self._forward(x, embedding)

    def _forward(self, x: torch.Tensor, embedding: torch.Tensor | None) -> torch.Tensor:
        h = self.norm2(self.conv1(self.act(self.norm1(x))))
        if self.scale_shift is not None and embedding is not None:
            scale_shift = self.scale_shift(embedding)
            scale, shift = scale_shift.reshape(*scale_shift.shape, *[1] * (x.ndim - 2)).chunk(2, dim=1)
            h = h * (1 + scale) + shift
        return self.skip(x) + self.conv2(self.act(h))


def norm(channels: int, groups: int) -> nn.Module:
    """Group norm with at most `groups` groups, lowered to a divisor of the channels; of no groups a `ChannelNorm`."""
    if not groups:
        return ChannelNorm(channels)
    groups = min(groups, channels)
    while channels % groups:
        groups -= 1
    return nn.GroupNorm(groups, channels)


class ChannelNorm(nn.Module):
    """Root mean square norm of each pixel's channels `[B, C, ...]` (Zhang and Sennrich, arXiv 1910.07467).

    It does not look at other pixels, so that a network which was trained on windows sees whole planes alike. Behind
    group norms, whose statistics are those of a window or of a plane with its background, they differed by 2.7 dB.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise; means in single precision, whatever that of `x` is."""
        scale = torch.rsqrt(x.square().mean(1, keepdim=True, dtype=torch.float32) + 1e-5)
        return x * scale.to(x.dtype) * self.weight.view(-1, *[1] * (x.ndim - 2)).to(x.dtype)
