"""A request as a picture: where in the latent grid the tumour is to lie, and how much of each cell it is to fill."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from sbldm.tumour.characteristics import NAMES
from sbldm.tumour.normaliser import Normaliser

__all__ = ["MARGIN_MM", "RequestPicture"]

MARGIN_MM = 15.0  # around a tumour: one latent and a half of `small`, within which it is drawn into a brain

EDGE = 0.15  # width of the soft edge, as a share of the ellipsoid's radius
SWOLLEN = 1 + (math.pi * EDGE) ** 2  # volume of the soft ellipsoid over that of a hard one


class RequestPicture(nn.Module):
    """Soft ellipsoid with the centre and the extents of a request, as full as its volume asks for.

    The constants of the condition vector are buffers, so that they travel with the weights; of shares it shows nothing.

    Args:
        fov_mm: field of view of the working grid along L, P, S, whose centre is the origin of the characteristics.
        normaliser: state of that of the condition vectors, for a training; a trained network has it in its weights.
    """

    def __init__(self, fov_mm: Sequence[float], normaliser: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.register_buffer("fov_mm", torch.tensor([float(f) for f in fov_mm]))
        self.register_buffer("mean", torch.zeros(len(NAMES)))
        self.register_buffer("std", torch.ones(len(NAMES)))
        if normaliser:
            known = Normaliser.from_state(normaliser)
            self.mean.copy_(torch.from_numpy(known.mean[: len(NAMES)]))
            self.std.copy_(torch.from_numpy(known.std[: len(NAMES)]))

    def coordinates(self, shape: Sequence[int]) -> torch.Tensor:
        """Centres of the cells of a latent grid `(H, W, D)`: `[3, H, W, D]` in mm along R, A, S."""
        axes = [(torch.arange(n, device=self.mean.device) + 0.5) / n - 0.5 for n in shape]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij")) * self.fov_mm.view(3, 1, 1, 1)
        return grid * grid.new_tensor([-1, -1, 1]).view(3, 1, 1, 1)

    def _ellipsoid(self, context: torch.Tensor, x: torch.Tensor, margin_mm: float = 0.0) -> tuple[torch.Tensor, ...]:
        """Distance from the centre in radii, `[B, 1, H, W, D]`, volume in ml `[B]`, extents in mm `[B, 3]`."""
        values = context[:, : len(NAMES)].float().nan_to_num() * self.std + self.mean
        volume, centre, extents = values.exp()[:, 0], values[:, 3:6], values[:, 6:9].clamp(min=1)
        offset = self.coordinates(x.shape[2:]) - centre.view(-1, 3, 1, 1, 1)
        radii = (extents / 2 + margin_mm).view(-1, 3, 1, 1, 1)
        return (offset / radii).square().sum(1, keepdim=True).sqrt(), volume, extents

    def region(self, context: torch.Tensor, x: torch.Tensor, margin_mm: float) -> torch.Tensor:
        """Cells within the ellipsoid of a request and so many mm around it, `[B, 1, H, W, D]` of ones and zeros.

        At least the cell of the centre, however small the tumour. Of no request: nothing.
        """
        radius, _, _ = self._ellipsoid(context, x, margin_mm)
        found = (radius <= 1) | (radius == radius.amin(dim=(2, 3, 4), keepdim=True))
        return found.masked_fill(context.isnan().any(dim=1).view(-1, 1, 1, 1, 1), False).to(x.dtype)

    def forward(self, context: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
        """The picture `[B, 1, H, W, D]` of condition vectors `[B, K]` for latents `[B, Z, H, W, D]`; empty for none."""
        if context is None:
            return x.new_zeros(len(x), 1, *x.shape[2:])
        absent = context.isnan().any(dim=1)
        radius, volume, extents = self._ellipsoid(context, x)
        filled = (volume * 6000 / torch.pi / extents.prod(1)).clamp(max=1).view(-1, 1, 1, 1, 1)
        picture = filled * torch.sigmoid((1 - SWOLLEN ** (1 / 3) * radius) / EDGE)
        return picture.masked_fill(absent.view(-1, 1, 1, 1, 1), 0).to(x.dtype)
