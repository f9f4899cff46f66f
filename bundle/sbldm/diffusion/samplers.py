"""The reverse process as pure functions.

    here               Song et al. 2021 (DDIM)         Lu et al. 2023 (DPM++)   what it is
    x                  x_t                             x_t                      sample at time t
    x_0                f_theta (equation 9)            x_theta                  predicted clean sample
    eps                eps_theta                       eps_theta                predicted noise
    alpha, sigma       sqrt(a_t), sqrt(1 - a_t)        alpha_t, sigma_t         shares of x_0 and eps in x
    h                                                  h = lambda_s - lambda_t  by how much ln(alpha / sigma) rises
    fresh              sigma_t                                                  deviation of the noise added anew

Every sampler walks down its own list of times, and its last step leads to the clean sample (alpha 1, sigma 0). `ddim`
and `ddpm` begin at T - 1 and can add fresh noise (`eta`); the `SOLVERS` follow the probability-flow ODE at a higher
order, over times that `solver_times` spaces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch

from sbldm.diffusion.schedule import Schedule
from sbldm.run.limits import CLEANEST, NOISIEST

__all__ = [
    "SAMPLERS",
    "SOLVERS",
    "SPACINGS",
    "Noise",
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

Denoiser = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Noise = Callable[[int], torch.Tensor]

SPACINGS = {
    "karras": lambda first, last, n: np.linspace(first ** (1 / 7), last ** (1 / 7), n) ** 7,
    "logsnr": np.geomspace,
}


# Times


def time_steps(schedule: Schedule, steps: int) -> list[int]:
    """`steps` time steps from T - 1 down to 0, with quadratic gaps (Song et al. 2021, appendix D.2), all different.

    Short chains lose variance where the latents' spread is resolved, near 0: for a Gaussian of standard deviation 0.4,
    50 even steps keep 0.86 of it and 50 quadratic ones 0.96.

    Raises:
        ValueError: `steps` outside 1..T.
    """
    _check(schedule, steps)
    root = torch.linspace(1, 0, steps, dtype=torch.float64) if steps > 1 else torch.ones(1, dtype=torch.float64)
    spaced = ((schedule.steps - 1) * root**2).round().long()
    return torch.maximum(spaced, torch.arange(steps - 1, -1, -1)).tolist()


def solver_times(schedule: Schedule, steps: int, spacing: str = "karras", sigma_min: float = CLEANEST) -> list[float]:
    """`steps` times at which `sigma / alpha` falls from 40 to `sigma_min`, or as far as the chain reaches.

    Args:
        schedule: forward process.
        steps: how many.
        spacing: `karras`: even in the seventh root of `sigma / alpha` (Karras et al. 2022, equation 5); `logsnr`: even
            in `ln(alpha / sigma)` (Lu et al. 2022), with more of them at low noise.
        sigma_min: the last `sigma / alpha`, in units of the latents' deviation, whence the solver leaps to the mean of
            what the clean sample may be: detail below it is not drawn.

    Raises:
        ValueError: `steps` outside 1..T, an unknown spacing, or `sigma_min` outside 0..40.
    """
    _check(schedule, steps)
    if spacing not in SPACINGS:
        raise ValueError(f"spacing must be one of {', '.join(SPACINGS)}, not {spacing}")
    cleanest, noisiest = np.exp(-schedule.half_log_snr(torch.tensor([0, schedule.steps - 1])).numpy())
    if not 0 < sigma_min < NOISIEST:
        raise ValueError(f"sigma_min must lie between 0 and {NOISIEST:g}, not {sigma_min}")
    ratio = SPACINGS[spacing](min(NOISIEST, noisiest), max(sigma_min, cleanest), steps)
    return schedule.time_at(-np.log(ratio)).tolist()


def _check(schedule: Schedule, steps: int) -> None:
    if not 1 <= steps <= schedule.steps:
        raise ValueError(f"a chain of {schedule.steps} steps is sampled in 1 to {schedule.steps} steps, not {steps}")


# A step


class Step(NamedTuple):
    """From a time to the next one below, or to the clean sample: plain numbers, for which no device has to wait."""

    t: float
    alpha: float
    sigma: float
    alpha_next: float
    sigma_next: float

    @property
    def h(self) -> float:
        """By how much it raises `ln(alpha / sigma)`; without end for the last one."""
        return math.log(self.alpha_next / self.alpha * self.sigma / self.sigma_next) if self.sigma_next else math.inf


def _path(schedule: Schedule, times: Sequence[float]) -> list[Step]:
    alpha, sigma = schedule.alpha_sigma(torch.tensor(times, dtype=torch.float64))
    alpha, sigma = [*alpha.tolist(), 1.0], [*sigma.tolist(), 0.0]
    return [Step(t, *here) for t, *here in zip(times, alpha, sigma, alpha[1:], sigma[1:], strict=False)]


def _begin(noise: Noise, step: Step) -> torch.Tensor:
    """x_t at the first time, as noisy as latents of mean 0 and standard deviation 1 are there."""
    return noise(0) * math.hypot(step.alpha, step.sigma)


def _predict(denoise: Denoiser, schedule: Schedule, x: torch.Tensor, step: Step) -> tuple[torch.Tensor, torch.Tensor]:
    """Predicted x_0 and eps of `x` where a step begins."""
    output = denoise(x, x.new_full((len(x),), step.t))
    return schedule.clean_and_noise(output, x, step.alpha, step.sigma)


def _move(step: Step, x: torch.Tensor, x_0: torch.Tensor) -> torch.Tensor:
    """Go a step towards one x_0: DDIM without fresh noise, the exact solution if the network kept to it."""
    ratio = step.sigma_next / step.sigma
    return ratio * x + (step.alpha_next - step.alpha * ratio) * x_0


# The samplers


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

    Raises:
        ValueError: `steps` outside 1..T.
    """
    path = _path(schedule, time_steps(schedule, steps))
    x = _begin(noise, path[0])
    for k, step in enumerate(path, start=1):
        x_0, eps = _predict(denoise, schedule, x, step)  # 1. what is clean and what is noise
        # 2. how much of the noise at the next time is drawn anew: equation 16, times eta
        kept = step.alpha * step.sigma_next / (step.alpha_next * step.sigma)
        fresh = eta * step.sigma_next * math.sqrt(max(1 - kept**2, 0.0))
        # 3. the rest of it points to where x came from: equation 12
        x = step.alpha_next * x_0 + math.sqrt(max(step.sigma_next**2 - fresh**2, 0.0)) * eps
        if fresh:
            x = x + fresh * noise(k)
    return x


def ddpm(denoise: Denoiser, noise: Noise, schedule: Schedule, steps: int = 1000, eta: float = 1.0) -> torch.Tensor:
    """DDPM (Ho et al. 2020, equations 6 and 7): DDIM with `eta=1` over the whole chain has their posterior variance.

    Arguments as for `ddim`.

    Raises:
        ValueError: fewer steps than the chain was trained with (other samplers serve those), or `eta` other than 1.
    """
    if steps != schedule.steps:
        raise ValueError(f"DDPM needs all {schedule.steps} steps; take another sampler for {steps}.")
    if eta != 1.0:
        raise ValueError("DDPM has no eta; take sampler ddim.")
    return ddim(denoise, noise, schedule, steps, eta)


def dpm_solver(
    denoise: Denoiser,
    noise: Noise,
    schedule: Schedule,
    steps: int = 10,
    spacing: str = "karras",
    sigma_min: float = CLEANEST,
) -> torch.Tensor:
    """DPM-Solver++(2M) (Lu et al. 2023, algorithm 2): second order from two predictions, one evaluation a step.

    Args:
        denoise: network output for `x_t` `[B, ...]` and times `[B]`.
        noise: `noise(0)` is x_T, unit normal `[B, ...]`; no other noise is drawn.
        schedule: forward process.
        steps: number of function evaluations (NFE).
        spacing, sigma_min: of the times, as for `solver_times`.

    Returns:
        The clean sample `[B, ...]`.

    Raises:
        ValueError: as `solver_times`.
    """
    times = solver_times(schedule, steps, spacing, sigma_min)
    return along(denoise, _begin(noise, _path(schedule, times)[0]), schedule, times)


def along(denoise: Denoiser, x: torch.Tensor, schedule: Schedule, times: Sequence[float]) -> torch.Tensor:
    """The way of `dpm_solver` down a list of times, from `x` `[B, ...]`, which is as noisy as the first of them.

    With real samples that were noised to that time: SDEdit (Meng et al. 2022).
    """
    path, seen = _path(schedule, times), []
    for k, step in enumerate(path):
        seen = [*seen[-1:], _predict(denoise, schedule, x, step)[0]]  # 1. x_0 here, beside that of the step before
        x = _move(step, x, _extrapolated(path[: k + 1], seen))  # 2. a step towards x_0 on the line through both
    return x


def unipc(
    denoise: Denoiser,
    noise: Noise,
    schedule: Schedule,
    steps: int = 10,
    spacing: str = "karras",
    sigma_min: float = CLEANEST,
) -> torch.Tensor:
    """UniPC-2 of predicted x_0 with B2(h) (Zhao et al. 2023): third order, one evaluation a step.

    UniP-2 is the step of `dpm_solver`; where it ends the network is asked, and with that answer UniC-2 goes the step
    again. The answer serves the next step too. Arguments and errors as for `dpm_solver`.
    """
    path, seen = _path(schedule, solver_times(schedule, steps, spacing, sigma_min)), []
    x = start = _begin(noise, path[0])
    for k, step in enumerate(path):
        seen = [*seen[-2:], _predict(denoise, schedule, x, step)[0]]  # 1. x_0 where the last step has led
        if k:  # 2. the corrector goes the last step again, knowing both of its ends
            x = _move(path[k - 1], start, _interpolated(path[:k], seen))
        # 3. the predictor goes the next one
        start, x = x, _move(step, x, _extrapolated(path[: k + 1], seen))
    return x


def heun(
    denoise: Denoiser,
    noise: Noise,
    schedule: Schedule,
    steps: int = 10,
    spacing: str = "karras",
    sigma_min: float = CLEANEST,
) -> torch.Tensor:
    """Heun's method over `x / alpha` (Karras et al. 2022, algorithm 1): second order, two evaluations a step.

    The last step takes one, and of an even number of evaluations the first as well, where the way is straightest.
    Arguments and errors as for `dpm_solver`.
    """
    _check(schedule, steps)
    path = _path(schedule, solver_times(schedule, steps // 2 + 1, spacing, sigma_min))
    x = _begin(noise, path[0])
    for k, step in enumerate(path, start=1):
        x_0, eps = _predict(denoise, schedule, x, step)
        ahead = _move(step, x, x_0)  # 1. Euler's step
        if k < len(path) and (k > 1 or steps % 2):
            # 2. the slope at its end; 3. the step again, with the mean of both slopes
            _, eps_next = _predict(denoise, schedule, ahead, path[k])
            width = step.sigma_next / step.alpha_next - step.sigma / step.alpha
            ahead = step.alpha_next * (x / step.alpha + width * (eps + eps_next) / 2)
        x = ahead
    return x


def _extrapolated(path: Sequence[Step], seen: Sequence[torch.Tensor]) -> torch.Tensor:
    """x_0 in the middle of the last step of `path`, on the line through the last two seen, where there are two."""
    if len(path) < 2 or not path[-1].sigma_next:  # the leap to the clean sample is of first order
        return seen[-1]
    return seen[-1] + path[-1].h / (2 * path[-2].h) * (seen[-1] - seen[-2])


def _interpolated(path: Sequence[Step], seen: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean x_0 of the last step of `path`, at both ends of which it has been seen, weighted as the ODE weighs it.

    Of the parabola through the last three seen, over u from 0 to 1 within the step with weights `exp(h u)`: what UniC's
    equations come to for any B(h). In the first step the plain mean of both ends, as in UniC-1.
    """
    if len(path) < 2:
        return (seen[-2] + seen[-1]) / 2
    before, here, there = seen[-3:]
    h, r = path[-1].h, -path[-2].h / path[-1].h  # r: where `before` lies on the axis of u
    end = -1 / math.expm1(-h)  # weight of u = 1, over the sum of all
    linear = end - 1 / h  # weighted mean of u
    square = end - 2 * linear / h  # and of u^2
    backward = (linear - square) / (1 - r)
    return here + backward * (before - here) / r + (linear - backward) * (there - here)


SOLVERS = {"dpm_solver": dpm_solver, "unipc": unipc, "heun": heun}
SAMPLERS = {"ddim": ddim, "ddpm": ddpm} | SOLVERS


# Guidance


def guided(
    network: torch.nn.Module,
    condition: torch.Tensor,
    guidance: float = 1.0,
    early: torch.nn.Module | None = None,
    region: torch.Tensor | None = None,
    known: torch.Tensor | None = None,
    unwanted: torch.Tensor | None = None,
) -> Denoiser:
    """Bind a condition `[B, K]` to a network, and lead it away from a worse answer.

    That of the network without the condition (classifier-free guidance, Ho and Salimans 2022): it is followed more
    strictly. Or that of the same network early in its training and without the condition: what it has learned since is
    gone on with as well (autoguidance, Karras et al. 2024, arXiv 2406.02507, whose guide knows the condition).

    Args:
        network: the denoiser.
        condition: what is asked for.
        guidance: 1 asks for the condition alone; above 1 the worse answer counts as well, at twice the evaluations.
        early: the denoiser with its early weights, or None for classifier-free guidance.
        region: `[B, 1, ...]` of ones and zeros: where to draw; None for everywhere.
        unwanted: condition `[B, K]` whose answer by the same network is led away from, in the place of those two.
        known: clean sample `[B, ...]`, which the network is shown outside of the region, as in its training.
    """
    beside = () if region is None else (region,)

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if region is not None:
            x = torch.where(region > 0, x, known)
        wanted = network(x, t, condition, *beside)
        if guidance == 1.0:
            return wanted
        worse = (early or network)(x, t, None, *beside) if unwanted is None else network(x, t, unwanted, *beside)
        return worse + guidance * (wanted - worse)

    return denoise
