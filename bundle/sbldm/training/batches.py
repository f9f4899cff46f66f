"""From a batch of the data sets to what MONAI's trainer feeds the network."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from monai.engines import DiffusionPrepareBatch, PrepareBatch
from monai.networks.schedulers import Scheduler

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


class DiffusionBatch(DiffusionPrepareBatch):
    """MONAI's diffusion batch with the target that the scheduler predicts and a share of requests left out.

    Time steps are spread evenly over the chain within a batch, with a random offset: each is uniform by itself, and
    the loss of small batches varies less.

    Args:
        scheduler: MONAI scheduler; its `prediction_type` decides between noise and velocity as target.
        condition_dropout: share of requests replaced by NaN, the network's sign for its learned null condition.
    """

    def __init__(self, scheduler: Scheduler, condition_dropout: float = 0.0) -> None:
        super().__init__(scheduler.num_train_timesteps, condition_name="condition")
        self.scheduler, self.condition_dropout = scheduler, condition_dropout

    def get_timesteps(self, images: torch.Tensor) -> torch.Tensor:
        """Stratified time steps `[B]`."""
        n = len(images)
        u = (torch.randperm(n) + torch.rand(1)) / n
        return (u * self.num_train_timesteps).long().clamp(max=self.num_train_timesteps - 1).to(images.device)

    def get_target(self, images: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        """Noise, or velocity `sqrt(a) noise - sqrt(1 - a) x_0` where that is what the scheduler predicts."""
        if self.scheduler.prediction_type == "v_prediction":
            return self.scheduler.get_velocity(images, noise, timesteps)
        return noise

    def __call__(self, batchdata: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> tuple:
        """See MONAI's class; the condition vector becomes NaN where it is left out."""
        images, target, extra, keywords = super().__call__(batchdata, *args, **kwargs)
        condition = keywords["condition"]
        left_out = torch.rand(len(condition), 1, device=condition.device) < self.condition_dropout
        keywords["condition"] = condition.masked_fill(left_out, float("nan"))
        return images, target, extra, keywords
