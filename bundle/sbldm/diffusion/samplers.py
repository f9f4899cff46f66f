"""The reverse process as pure functions.

    x_t            sample at time t                x_0   predicted clean sample
    alpha, sigma   its shares of x_0 and eps       eps   predicted noise

Every sampler walks down its own list of times, from T - 1 to the clean sample (alpha 1, sigma 0).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from sbldm.diffusion.schedule import Schedule

__all__ = ["SAMPLERS", "Noise", "ddim", "ddpm", "dpm_solver", "guided", "heun", "karras_times", "time_steps"]

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


def karras_times(schedule: Schedule, steps: int, sigma_min: float = 0.03, sigma_max: float = 40.0) -> list[float]:
    """`steps` times at which `sigma / alpha` falls from `sigma_max` to `sigma_min`, as densely as Karras et al. (2022,
    equation 5, rho 7) want it; both ends within the chain.
    """
    ends = np.exp(-schedule.half_log_snr(torch.tensor([0.0, schedule.steps - 1.0])).numpy())
    low, high = max(sigma_min, ends[0]), min(sigma_max, ends[1])
    ramp = np.linspace(1, 0, steps) if steps > 1 else np.ones(1)
    ratio = (low ** (1 / 7) + ramp * (high ** (1 / 7) - low ** (1 / 7))) ** 7
    return schedule.time_at(-np.log(ratio)).tolist()


def _predict(denoise: Denoiser, schedule: Schedule, x: torch.Tensor, t: float) -> tuple[torch.Tensor, ...]:
    """Predicted x_0 and eps at time t, and alpha and sigma there."""
    alpha, sigma = (factor.to(x) for factor in schedule.alpha_sigma(t))
    output = denoise(x, torch.full((len(x),), t, device=x.device))
    return *schedule.clean_and_noise(output, x, alpha, sigma), alpha, sigma


def ddim(denoise: Denoiser, noise: Noise, schedule: Schedule, steps: int = 50, eta: float = 0.0) -> torch.Tensor:
    """DDIM (Song et al. 2021, equation 12): deterministic at `eta=0`, as noisy as DDPM at `eta=1`.

    Args:
        denoise: network output for `x_t` `[B, ...]` and times `[B]`.
        noise: `noise(0)` is x_T, `noise(k)` the fresh noise of the k-th step, unit normal `[B, ...]`.
        schedule: forward process.
        steps: number of function evaluations (NFE).
        eta: share of fresh noise.

    Returns:
        The clean sample `[B, ...]`.
    """
    x, times = noise(0), time_steps(schedule, steps)
    for k, t in enumerate(times):
        x_0, eps, alpha, sigma = _predict(denoise, schedule, x, t)
        alpha_next, sigma_next = _at(schedule, times, k + 1, x)
        fresh = eta * sigma_next * (1 - (alpha * sigma_next / (alpha_next * sigma)) ** 2).sqrt()
        x = alpha_next * x_0 + (sigma_next**2 - fresh**2).clamp(min=0).sqrt() * eps
        if eta and k + 1 < steps:
            x = x + fresh * noise(k + 1)
    return x


def ddpm(denoise: Denoiser, noise: Noise, schedule: Schedule, steps: int = 1000, eta: float = 1.0) -> torch.Tensor:
    """DDPM (Ho et al. 2020, equations 6 and 7), the whole chain with the posterior variance; arguments as for `ddim`.

    Raises:
        ValueError: fewer steps than the chain was trained with (other samplers serve those), or `eta` other than 1.
    """
    if steps != schedule.steps:
        raise ValueError(f"DDPM needs all {schedule.steps} steps; take another sampler for {steps}.")
    if eta != 1.0:
        raise ValueError("DDPM has no eta; take sampler ddim.")
    return ddim(denoise, noise, schedule, steps, eta)


def dpm_solver(denoise: Denoiser, noise: Noise, schedule: Schedule, steps: int = 10, eta: float = 0.0) -> torch.Tensor:
    """DPM-Solver++ of second order with two points (Lu et al. 2023, algorithm 2), one evaluation a step.

    Arguments as for `ddim`; `karras_times` are its times.

    Raises:
        ValueError: `eta` other than 0.
    """
    _deterministic(eta)
    x, times, before, width = noise(0), karras_times(schedule, steps), None, 0.0
    x = _start(x, schedule, times[0])
    for k, t in enumerate(times):
        x_0, _, alpha, sigma = _predict(denoise, schedule, x, t)
        alpha_next, sigma_next = _at(schedule, times, k + 1, x)
        slope = x_0
        if k + 1 < steps:  # the last step, to no noise at all, is of first order
            h = float(schedule.half_log_snr(times[k + 1]) - schedule.half_log_snr(t))
            if before is not None:
                slope = x_0 + h / (2 * width) * (x_0 - before)
            before, width = x_0, h
        x = sigma_next / sigma * x + (alpha_next - alpha * sigma_next / sigma) * slope
    return x


def heun(denoise: Denoiser, noise: Noise, schedule: Schedule, steps: int = 10, eta: float = 0.0) -> torch.Tensor:
    """Heun's method over `x / alpha` (Karras et al. 2022, algorithm 1): two evaluations a step, one in the last.

    Arguments as for `ddim`; `steps` counts evaluations, of which an even number leaves one unused.

    Raises:
        ValueError: `eta` other than 0.
    """
    _deterministic(eta)
    times = karras_times(schedule, (steps + 1) // 2)
    x = _start(noise(0), schedule, times[0])
    for k, t in enumerate(times):
        x_0, eps, alpha, sigma = _predict(denoise, schedule, x, t)
        alpha_next, sigma_next = _at(schedule, times, k + 1, x)
        moved = alpha_next * x_0 + sigma_next * eps
        if k + 1 < len(times):
            _, eps_next, *_ = _predict(denoise, schedule, moved, times[k + 1])
            step = sigma_next / alpha_next - sigma / alpha
            moved = alpha_next * (x / alpha + step * (eps + eps_next) / 2)
        x = moved
    return x


def _start(noise: torch.Tensor, schedule: Schedule, t: float) -> torch.Tensor:
    """x at the first time; the latents' own share of it is small and left out."""
    _, sigma = schedule.alpha_sigma(t)
    return noise * sigma.to(noise)


def _at(schedule: Schedule, times: list, k: int, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha and sigma at the k-th time, and of the clean sample after the last."""
    if k < len(times):
        alpha, sigma = schedule.alpha_sigma(times[k])
        return alpha.to(x), sigma.to(x)
    return torch.ones((), dtype=x.dtype, device=x.device), torch.zeros((), dtype=x.dtype, device=x.device)


def _deterministic(eta: float) -> None:
    if eta:
        raise ValueError("only ddim and ddpm take fresh noise (eta); leave it out.")


SAMPLERS = {"ddim": ddim, "ddpm": ddpm, "dpm_solver": dpm_solver, "heun": heun}


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
