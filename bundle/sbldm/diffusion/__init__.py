"""The diffusion process: forward schedule and samplers."""

from __future__ import annotations

from sbldm.diffusion.samplers import (
    SAMPLERS,
    SOLVERS,
    SPACINGS,
    Noise,
    along,
    ddim,
    ddpm,
    dpm_solver,
    guided,
    heun,
    solver_times,
    time_steps,
    unipc,
)
from sbldm.diffusion.schedule import Schedule

__all__ = [
    "SAMPLERS",
    "SOLVERS",
    "SPACINGS",
    "Noise",
    "Schedule",
    "along",
    "ddim",
    "ddpm",
    "dpm_solver",
    "guided",
    "heun",
    "solver_times",
    "time_steps",
    "unipc",
]
