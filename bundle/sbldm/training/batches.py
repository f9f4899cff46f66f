"""From a batch of the data sets to what MONAI's trainer feeds the network."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from monai.engines import PrepareBatch

from sbldm.diffusion import Schedule

__all__ = ["DiffusionBatch", "SliceBatch"]


class SliceBatch(PrepareBatch):
    """Slices (or volumes) are their own target; the position of a slice goes to the network beside it.

    Stacks `[B, C, X, Y, S]` become their slices `[B * S, C, X, Y]`, and S goes to the network too.
    """

    def __call__(
        self, batchdata: dict[str, torch.Tensor], device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...], dict]:
        """Return `(slices, slices, (position,), {})` on the device."""
        slices = batchdata["image"].to(device, non_blocking=non_blocking, **kwargs)
        if "position" not in batchdata:
            return slices, slices, (), {}
        position = batchdata["position"].to(device, non_blocking=non_blocking)
        if position.ndim == 1:
            return slices, slices, (position,), {}
        slices = rearrange(slices, "b c x y s -> (b s) c x y")
        return slices, slices, (position.flatten(), position.shape[1]), {}


class DiffusionBatch(PrepareBatch):
    """Noised latents, what the network is to predict of them, and the times and requests that go to it beside them.

    Args:
        schedule: forward process.
        levels: distribution of the times (`Schedule.training_times`), by default uniform.
        condition_dropout: share of requests replaced by NaN, the network's sign for its learned null condition.
    """

    def __init__(
        self, schedule: Schedule, levels: dict[str, Any] | None = None, condition_dropout: float = 0.0
    ) -> None:
        self.schedule, self.levels, self.condition_dropout = schedule, levels, condition_dropout

    def __call__(
        self, batchdata: dict[str, torch.Tensor], device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor], dict]:
        """Return `(noised, target, (times, condition), {})` on the device; all randomness is the CPU's."""
        latents, condition = batchdata["image"], batchdata["condition"]
        times = self.schedule.training_times(len(latents), self.levels)
        noised, target = self.schedule.noised(latents, torch.randn_like(latents), times)
        left_out = torch.rand(len(condition), 1) < self.condition_dropout
        condition = condition.masked_fill(left_out, float("nan"))
        noised, target, times, condition = (
            x.to(device, non_blocking=non_blocking, **kwargs) for x in (noised, target, times.float(), condition)
        )
        return noised, target, (times, condition), {}
