"""From a batch of the data sets to what MONAI's trainer feeds the network."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from einops import rearrange
from monai.engines import PrepareBatch

from sbldm.diffusion import Schedule
from sbldm.networks.request_picture import MARGIN_MM, RequestPicture
from sbldm.networks.slice_vae import as_regions
from sbldm.run import group
from sbldm.run.preset import NoiseLevels

__all__ = ["DiffusionBatch", "OwnPart", "SliceBatch"]


class OwnPart(PrepareBatch):
    """What one process takes of a batch that several share: all is drawn for the whole batch, then cut.

    Args:
        whole: one of those below.
    """

    def __init__(self, whole: PrepareBatch) -> None:
        self.whole = whole

    def __call__(
        self, batchdata: dict[str, torch.Tensor], device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[Any, ...], dict]:
        """Return what `whole` does, of the items of this process, on the device."""
        inputs, target, beside, more = self.whole(batchdata, torch.device("cpu"), **kwargs)

        def own(x: Any) -> Any:
            return group.mine(x).to(device, non_blocking=non_blocking) if isinstance(x, torch.Tensor) else x

        return own(inputs), own(target), tuple(map(own, beside)), more


class SliceBatch(PrepareBatch):
    """Slices (or volumes) are their own target; the position of a slice goes to the network beside it.

    Stacks `[B, C, X, Y, S]` become their slices `[B * S, C, X, Y]`, and S goes to the network too.

    Args:
        nested: labels that the network takes as nested regions, see `as_regions`.
    """

    def __init__(self, nested: Sequence[int] = ()) -> None:
        self.nested = nested

    def __call__(
        self, batchdata: dict[str, torch.Tensor], device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...], dict]:
        """Return `(slices, slices, (position,), {})` on the device."""
        slices = batchdata["image"].to(device, non_blocking=non_blocking, **kwargs)
        slices = as_regions(slices, self.nested)
        if "position" not in batchdata:
            return slices, slices, (), {}
        position = batchdata["position"].to(device, non_blocking=non_blocking)
        if position.ndim == 1:
            return slices, slices, (position,), {}
        slices = rearrange(slices, "b c x y s -> (b s) c x y")
        return slices, slices, (position.flatten(), position.shape[1]), {}


class DiffusionBatch(PrepareBatch):
    """Noised latents, what the network is to predict of them, and the times and requests that go to it beside them.

    With `tumour` it learns to draw within regions, and is told them; outside the latents are without noise and nothing
    is to be predicted:

    | region                                                   | share        | request           |
    |----------------------------------------------------------|--------------|-------------------|
    | around the tumour                                        | `tumour`     | that of the case  |
    | around another case's tumour, but not where its own lies | 1 - `tumour` | none              |

    There no request means that there is no tumour, so none is left out. A share `whole` of the regions is everywhere,
    as without regions, so that one network draws whole brains too.

    Args:
        schedule: forward process.
        levels: distribution of the times (`Schedule.training_times`), by default uniform.
        condition_dropout: share of requests replaced by NaN, the network's sign for its learned null condition.
        tumour: share of regions around the tumour; None: whole brains.
        whole: with `tumour`, share of whole brains.
        picture: knows where the tumour of a request lies; needed for regions.
    """

    def __init__(
        self,
        schedule: Schedule,
        levels: NoiseLevels | None = None,
        condition_dropout: float = 0.0,
        tumour: float | None = None,
        picture: RequestPicture | None = None,
        whole: float = 0.0,
    ) -> None:
        self.schedule, self.levels, self.condition_dropout = schedule, levels, condition_dropout
        self.tumour, self.whole = tumour, whole
        # where the batch is, wherever the network lies
        self.picture = None if tumour is None else copy.deepcopy(picture).cpu()

    def __call__(
        self, batchdata: dict[str, torch.Tensor], device: Any = None, non_blocking: bool = False, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, ...], dict]:
        """Return `(noised, target, (times, condition), {})` on the device, of regions `(times, condition, region)`."""
        latents, condition, regions = batchdata["image"], batchdata["condition"], ()
        times = self.schedule.training_times(len(latents), self.levels)
        noised, target = self.schedule.noised(latents, torch.randn_like(latents), times)
        if self.tumour is None:
            left_out = torch.rand(len(condition), 1) < self.condition_dropout
        else:
            region, left_out = self._regions(condition, latents)
            noised, target, regions = torch.where(region > 0, noised, latents), target * region, (region,)
        condition = condition.masked_fill(left_out, float("nan"))
        noised, target, *beside = (
            x.to(device, non_blocking=non_blocking, **kwargs)
            for x in (noised, target, times.float(), condition, *regions)
        )
        return noised, target, tuple(beside), {}

    def _regions(self, condition: torch.Tensor, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Region of each item `[B, 1, H, W, D]`, and whose request is left out `[B, 1]`; all on the CPU."""
        healthy = torch.rand(len(latents), 1) >= self.tumour
        tumour = self.picture.region(condition, latents, MARGIN_MM)
        elsewhere = self.picture.region(condition.roll(1, 0), latents, MARGIN_MM) * (1 - tumour)
        region, left_out = torch.where(healthy.view(-1, 1, 1, 1, 1), elsewhere, tumour), healthy
        if self.whole:
            whole, unasked = torch.rand(2, len(latents), 1)
            everywhere = whole < self.whole
            region = torch.where(everywhere.view(-1, 1, 1, 1, 1), torch.ones_like(region), region)
            left_out = torch.where(everywhere, unasked < self.condition_dropout, left_out)
        return region, left_out
