"""The reverse process as pure functions.

    x_t   sample at step t          a_t   alpha_bar at t (1 after the last step)
    x_0   predicted clean sample    eps   predicted noise

Both samplers look the next step up in their own list of time steps, so that no stride can disagree with it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from sbldm.diffusion.schedule import Schedule

__all__ = ["SAMPLERS", "Noise", "ddim", "ddpm", "guided", "time_steps"]

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Noise = Callable[[int], torch.Tensor]


def time_steps(schedule: Schedule, steps: int) -> list[int]:
    """`steps` time steps from T - 1 down to 0, with quadratic gaps (Song et al. 2021, appendix D.2), all different.

    Short chains lose variance where the latents' spread is resolved, near 0: for a Gaussian of standard deviation 0.4,
    50 even steps keep 0.86 of it and 50 quadratic ones 0.96.

    Raises:
        ValueError: `steps` outside 1..T.
    """
    if not 1 <= steps <= schedule.steps:
        raise ValueError(f"a chain of {schedule.steps} steps is sampled in 1 to {schedule.steps} steps, not {steps}")
    root = torch.linspace(1, 0, steps, dtype=torch.float64) if steps > 1 else torch.ones(1, dtype=torch.float64)
    spaced = ((schedule.steps - 1) * root**2).round().long()
    return torch.maximum(spaced, torch.arange(steps - 1, -1, -1)).tolist()


def _clean_and_noise(
    schedule: Schedule, output: torch.Tensor, x: torch.Tensor, a: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted x_0 and eps from the network's output."""
    if schedule.prediction == "epsilon":
        return (x - (1 - a).sqrt() * output) / a.sqrt(), output
    return a.sqrt() * x - (1 - a).sqrt() * output, a.sqrt() * output + (1 - a).sqrt() * x


def ddim(denoise: Denoiser, noise: Noise, schedule: Schedule, steps: int = 50, eta: float = 0.0) -> torch.Tensor:
    """DDIM (Song et al. 2021, equation 12): deterministic at `eta=0`, as noisy as DDPM at `eta=1`.

    Args:
        denoise: network output for `x_t` `[B, ...]` and time steps `[B]`.
        noise: `noise(0)` is x_T, `noise(k)` the fresh noise of the k-th step, unit normal `[B, ...]`.
        schedule: forward process.
        steps: number of function evaluations (NFE).
        eta: share of fresh noise.

    Returns:
        The clean sample `[B, ...]`.
    """
    x, alpha_bar, times = noise(0), schedule.alpha_bar(), time_steps(schedule, steps)
    for k, t in enumerate(times):
        a = alpha_bar[t].to(x)
        a_next = (alpha_bar[times[k + 1]] if k + 1 < steps else torch.ones(())).to(x)
        x_0, eps = _clean_and_noise(schedule, denoise(x, torch.full((len(x),), t, device=x.device)), x, a)
        sigma = eta * ((1 - a_next) / (1 - a) * (1 - a / a_next)).sqrt()
        x = a_next.sqrt() * x_0 + (1 - a_next - sigma**2).clamp(min=0).sqrt() * eps
        if eta and k + 1 < steps:
            x = x + sigma * noise(k + 1)
    return x


def ddpm(denoise: Denoiser, noise: Noise, schedule: Schedule, steps: int = 1000, eta: float = 1.0) -> torch.Tensor:
    """DDPM (Ho et al. 2020, equations 6 and 7), the whole chain with the posterior variance; arguments as for `ddim`.

    Raises:
        ValueError: fewer steps than the chain was trained with (DDIM serves those), or `eta` other than 1.
    """
    if steps != schedule.steps:
        raise ValueError(f"DDPM needs all {schedule.steps} steps; take sampler ddim for {steps}.")
    if eta != 1.0:
        raise ValueError("DDPM has no eta; take sampler ddim.")
    x, alpha_bar = noise(0), schedule.alpha_bar()
    for k, t in enumerate(time_steps(schedule, steps)):
        a = alpha_bar[t].to(x)
        a_next = (alpha_bar[t - 1] if t else torch.ones(())).to(x)
        alpha = a / a_next
        x_0, _ = _clean_and_noise(schedule, denoise(x, torch.full((len(x),), t, device=x.device)), x, a)
        x = (a_next.sqrt() * (1 - alpha) * x_0 + alpha.sqrt() * (1 - a_next) * x) / (1 - a)
        if t:
            x = x + ((1 - a_next) / (1 - a) * (1 - alpha)).sqrt() * noise(k + 1)
    return x


SAMPLERS = {"ddim": ddim, "ddpm": ddpm}


def guided(network: torch.nn.Module, condition: torch.Tensor, guidance: float = 1.0) -> Denoiser:
    """Bind a condition `[B, K]` to a network, with classifier-free guidance (Ho and Salimans 2022).

    `guidance=1` asks for the condition alone; above 1 it is followed more strictly, at twice the evaluations.
    """

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        wanted = network(x, t, condition)
        if guidance == 1.0:
            return wanted
        free = network(x, t, None)
        return free + guidance * (wanted - free)

    return denoise
