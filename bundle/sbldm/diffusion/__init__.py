"""The diffusion process: forward schedule and samplers."""

from __future__ import annotations

from sbldm.diffusion.samplers import SAMPLERS, ddim, ddpm, guided, time_steps
from sbldm.diffusion.schedule import Schedule

__all__ = ["SAMPLERS", "Schedule", "ddim", "ddpm", "guided", "time_steps"]
