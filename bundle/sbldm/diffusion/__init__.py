"""The diffusion process: forward schedule and samplers."""

from __future__ import annotations

from sbldm.diffusion.samplers import SAMPLERS, Noise, ddim, ddpm, dpm_solver, guided, heun, karras_times, time_steps
from sbldm.diffusion.schedule import Schedule

__all__ = [
    "SAMPLERS",
    "Noise",
    "Schedule",
    "ddim",
    "ddpm",
    "dpm_solver",
    "guided",
    "heun",
    "karras_times",
    "time_steps",
]
