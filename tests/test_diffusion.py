"""The diffusion process against closed forms: for Gaussians the best denoiser and its samples are known exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from monai.networks.schedulers import DDPMScheduler
from scipy.optimize import brentq
from scipy.special import ndtr

from sbldm.diffusion import (
    SAMPLERS,
    SOLVERS,
    SPACINGS,
    Schedule,
    ddim,
    ddpm,
    dpm_solver,
    guided,
    heun,
    solver_times,
    time_steps,
    unipc,
)
from sbldm.diffusion.schedule import KINDS, PREDICTIONS
from sbldm.run.errors import InputError
from sbldm.run.preset import NoiseLevels, Sampling
from sbldm.synthesis import PairSampler

MEAN, STD = 1.5, 0.4
SCHEDULE = Schedule()
SHORT = Schedule(steps=60, beta_start=0.02, beta_end=0.3)  # as noisy at its end as the long one
EVERY = [Schedule(kind=kind, prediction=prediction) for kind, prediction in product(KINDS, PREDICTIONS)]
MIXTURE = (np.array([0.3, 0.7]), np.array([-1.0, 0.8]), np.array([0.3, 0.5]))  # weights, means, standard deviations


def named(schedule: Schedule) -> str:
    return f"{schedule.kind}-{schedule.prediction}"


def denoiser(schedule: Schedule, weights: np.ndarray, means: np.ndarray, stds: np.ndarray) -> Callable:
    """The best network for a mixture of Gaussians: the conditional mean of what it predicts, given x_t `[B, ...]`."""

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (factor.to(x).view(-1, *[1] * x.ndim) for factor in schedule.alpha_sigma(t))
        w, m, s = (torch.as_tensor(values).to(x) for values in (weights, means, stds))
        variance, off = alpha**2 * s**2 + sigma**2, x[..., None] - alpha * m
        share = torch.softmax(w.log() - 0.5 * variance.log() - 0.5 * off**2 / variance, dim=-1)
        x_0 = (share * (m + alpha * s**2 / variance * off)).sum(-1)
        alpha, sigma = alpha[..., 0], sigma[..., 0]
        eps = (x - alpha * x_0) / sigma
        velocity = eps - x_0 if schedule.kind == "flow" else alpha * eps - sigma * x_0
        return {"epsilon": eps, "sample": x_0, "v_prediction": velocity}[schedule.prediction]

    return denoise


def gaussian_denoiser(schedule: Schedule, mean: float = MEAN, std: float = STD) -> Callable:
    """The best network for data N(mean, std^2)."""
    return denoiser(schedule, np.ones(1), np.array([mean]), np.array([std]))


def noise_of(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Callable[[int], torch.Tensor]:
    """Noise as a pure function of the seed and the step."""
    return lambda k: torch.randn(shape, generator=torch.Generator().manual_seed(10_007 * seed + k), dtype=dtype)


def law(alpha_bar: np.ndarray, times: list[int], eta: float) -> tuple[float, float]:
    """Mean and standard deviation of the samples for the Gaussian denoiser, step by step from N(0, 1).

    Written from equation 12 of Song et al. 2021: every step is affine in x_t, so a Gaussian stays one.
    """
    mean, variance = 0.0, 1.0
    for t, following in zip(times, [*times[1:], None], strict=True):
        a = alpha_bar[t]
        b = 1.0 if following is None else alpha_bar[following]
        total = a * STD**2 + 1 - a  # variance of x_t under the data
        x_0 = np.array([MEAN * (1 - a) / total, math.sqrt(a) * STD**2 / total])  # constant and slope in x_t
        eps = np.array([-math.sqrt(1 - a) * math.sqrt(a) * MEAN / total, math.sqrt(1 - a) / total])
        fresh = eta**2 * (1 - b) / (1 - a) * (1 - a / b)
        constant, slope = math.sqrt(b) * x_0 + math.sqrt(max(1 - b - fresh, 0)) * eps
        mean, variance = constant + slope * mean, slope**2 * variance + fresh
    return mean, math.sqrt(variance)


def numpy_alpha_bar(schedule: Schedule) -> np.ndarray:
    """Product of 1 - beta with beta linear in its square root, term by term."""
    roots = [
        math.sqrt(schedule.beta_start)
        + (math.sqrt(schedule.beta_end) - math.sqrt(schedule.beta_start)) * i / (schedule.steps - 1)
        for i in range(schedule.steps)
    ]
    return np.cumprod([1 - root * root for root in roots])


def chain(schedule: Schedule) -> tuple[torch.Tensor, torch.Tensor]:
    """alpha and sigma at each step of the chain, `[T]` float64."""
    return schedule.alpha_sigma(torch.arange(schedule.steps))


# The forward process


@pytest.mark.parametrize("schedule", [SCHEDULE, SHORT, Schedule(300, 1e-4, 0.05)])
def test_scaled_linear_is_monai_s(schedule):
    """The same shares of signal as MONAI's scheduler and as the formula."""
    alpha, sigma = chain(schedule)
    monai = DDPMScheduler(
        schedule.steps, "scaled_linear_beta", beta_start=schedule.beta_start, beta_end=schedule.beta_end
    )
    np.testing.assert_allclose(alpha**2, monai.alphas_cumprod, atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(alpha**2, numpy_alpha_bar(schedule), rtol=1e-12)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-12)


def test_cosine_is_monai_s_without_offset():
    """alpha is the cosine of the way in right angles; the last step stops at ln(alpha / sigma) = -8."""
    alpha, sigma = chain(Schedule(kind="cosine"))
    u = np.arange(1, 1000) / 1000
    np.testing.assert_allclose(alpha[:-1], np.cos(np.pi / 2 * u), rtol=1e-11)
    np.testing.assert_allclose(sigma[:-1], np.sin(np.pi / 2 * u), rtol=1e-11)
    assert math.log(alpha[-1] / sigma[-1]) == pytest.approx(-8, abs=1e-12)
    monai = DDPMScheduler(1000, "cosine", s=0.0)
    np.testing.assert_allclose(alpha**2, monai.alphas_cumprod, atol=2e-6)


def test_flow_is_a_straight_line():
    """sigma is the share of the way and alpha the rest of it; the last step stops at ln(alpha / sigma) = -8."""
    alpha, sigma = chain(Schedule(kind="flow"))
    np.testing.assert_allclose(sigma[:-1], np.arange(1, 1000) / 1000, rtol=1e-11)
    np.testing.assert_allclose(alpha + sigma, 1, rtol=1e-15)
    assert alpha[-1].item() == pytest.approx(1 / (1 + math.exp(8)), rel=1e-12)
    flow = pytest.importorskip("diffusers.schedulers.scheduling_flow_match_euler_discrete")
    sigmas = flow.FlowMatchEulerDiscreteScheduler(1000).sigmas
    np.testing.assert_allclose(sigma.flip(0), sigmas, atol=4e-4)  # at the first, where theirs is 1


def test_signal_left_at_both_ends():
    """With the paper's betas 99.8 % of the variance is signal after the first step and less than 1e-4 at the end."""
    alpha_bar = chain(SCHEDULE)[0] ** 2
    assert alpha_bar.dtype == torch.float64 and alpha_bar.shape == (1000,)
    assert alpha_bar[0].item() == pytest.approx(0.998, abs=1e-12)
    # log of the product: minus the sum of beta and of beta^2 / 2, both integrals of powers of a line
    first, last = math.sqrt(0.002), math.sqrt(0.02)
    powers = [(last**n - first**n) / (n * (last - first)) for n in (3, 5)]
    assert math.log(alpha_bar[-1]) == pytest.approx(-1000 * (powers[0] + powers[1] / 2), rel=2e-3)
    assert 5e-5 < alpha_bar[-1] < 1e-4


@pytest.mark.parametrize("schedule", [*EVERY[::3], SHORT, Schedule(steps=2, kind="flow")], ids=named)
def test_times_between_steps(schedule):
    """Between two steps the ratio of alpha and sigma is their geometric mean; `time_at` leads back; ends are ends."""
    half, t = schedule.half_log_snr(torch.arange(schedule.steps)), torch.arange(schedule.steps - 1) + 0.25
    assert (half.diff() < 0).all()
    torch.testing.assert_close(schedule.half_log_snr(t), 0.75 * half[:-1] + 0.25 * half[1:], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(schedule.time_at(schedule.half_log_snr(t).numpy()), t, rtol=1e-9)
    assert schedule.time_at(np.array([-99.0, 99.0])).tolist() == [schedule.steps - 1, 0]
    alpha, sigma = schedule.alpha_sigma(t)
    torch.testing.assert_close((alpha / sigma).log(), schedule.half_log_snr(t), rtol=1e-9, atol=1e-9)
    assert [value.shape for value in schedule.alpha_sigma(0.5)] == [torch.Size([])] * 2


def test_extreme_betas_stay_finite():
    """A chain that forgets everything in its first steps, and one that hardly begins."""
    for schedule in (Schedule(100_000, 0.5, 0.9), Schedule(1000, 1e-20, 1e-19)):
        half = schedule.half_log_snr(torch.arange(schedule.steps))
        assert half.isfinite().all() and (half.diff() <= 0).all() and half.min() >= -8


def test_training_noise_is_monai_s():
    """`noised` gives what MONAI's `add_noise` and `get_velocity` give."""
    schedule = replace(SCHEDULE, prediction="v_prediction")
    clean, eps, times = torch.randn(6, 2, 3), torch.randn(6, 2, 3), torch.tensor([0, 1, 250, 500, 900, 999])
    monai = DDPMScheduler(1000, "scaled_linear_beta", beta_start=0.002, beta_end=0.02)
    noisy, velocity = schedule.noised(clean, eps, times)
    assert noisy.dtype == velocity.dtype == torch.float32
    torch.testing.assert_close(noisy, monai.add_noise(clean, eps, times), atol=1e-4, rtol=0)
    torch.testing.assert_close(velocity, monai.get_velocity(clean, eps, times), atol=1e-4, rtol=0)


@pytest.mark.parametrize("schedule", EVERY, ids=named)
def test_noised_and_clean_and_noise_undo_each_other(schedule):
    """From x_t and the target both shares come back, at every noise level; x_t is what the schedule says."""
    clean, eps = (noise_of(seed, 5, 2, 3)(0) for seed in (1, 2))
    times = torch.tensor([0, 12.75, 500, 900.5, 999], dtype=torch.float64)
    noisy, target = schedule.noised(clean, eps, times)
    alpha, sigma = (factor.view(5, 1, 1) for factor in schedule.alpha_sigma(times))
    torch.testing.assert_close(noisy, alpha * clean + sigma * eps, rtol=1e-12, atol=1e-12)
    for found, wanted in zip(schedule.clean_and_noise(target, noisy, alpha, sigma), (clean, eps), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)
    if schedule.prediction == "v_prediction":  # the rate at which x_t changes, per u of a flow, per angle of the others
        wanted = eps - clean if schedule.kind == "flow" else alpha * eps - sigma * clean
        torch.testing.assert_close(target, wanted, rtol=1e-12, atol=1e-12)
    else:
        assert target is (eps if schedule.prediction == "epsilon" else clean)


def test_schedule_state_and_errors():
    """Plain values bring the schedule back; an unknown prediction or kind is refused."""
    for schedule in (SHORT, EVERY[-1]):
        assert Schedule(**schedule.state()) == schedule
    with pytest.raises(ValueError, match="prediction must be one of epsilon, v_prediction, sample, not noise"):
        Schedule(prediction="noise")
    with pytest.raises(ValueError, match="kind must be one of scaled_linear, cosine, flow, not linear"):
        Schedule(kind="linear")


# Times of the training


def test_uniform_training_times():
    """In a batch of four each quarter of the chain comes once; over many every place is uniform on 0, 1, .. 999."""
    torch.manual_seed(0)
    times = torch.stack([SCHEDULE.training_times(4) for _ in range(5000)])
    assert torch.equal(times.sort(dim=1).values // 250, torch.arange(4.0, dtype=torch.float64).expand(5000, 4))
    assert times.min() == 0 and times.max() == 999 and torch.equal(times, times.round())
    for place in range(4):
        counts = torch.bincount((times[:, place] // 100).long(), minlength=10)
        assert ((counts - 500).abs() < 5 * math.sqrt(450)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_normal_training_times(kind):
    """ln(sigma / alpha) is normal where the chain reaches: mean, deviation and quartiles, each batch stratified."""
    schedule, levels = Schedule(kind=kind), NoiseLevels(distribution="logit_normal", mean=0.4, std=0.7)
    torch.manual_seed(0)
    times = torch.stack([schedule.training_times(40, levels) for _ in range(400)])
    values = -schedule.half_log_snr(times)
    assert values.mean().item() == pytest.approx(0.4, abs=0.01)
    assert values.std().item() == pytest.approx(0.7, abs=0.01)
    assert (values < 0.4 - 0.6745 * 0.7).double().mean().item() == pytest.approx(0.25, abs=0.002)
    ranks = torch.from_numpy(ndtr((values.sort(dim=1).values.numpy() - 0.4) / 0.7))
    assert torch.equal((ranks * 40).floor(), torch.arange(40, dtype=torch.float64).expand(400, 40))


def test_training_times_beyond_the_chain():
    """A normal distribution that the chain cuts off leaves no heap of times at its ends, nor anything but numbers."""
    torch.manual_seed(0)
    levels = NoiseLevels(distribution="logit_normal", mean=-3.0, std=1.0)  # the cleanest step lies at -3.1
    times = torch.cat([SCHEDULE.training_times(64, levels) for _ in range(50)])
    assert (times == 0).sum() <= 1 and times.min() >= 0
    cut = (-SCHEDULE.half_log_snr(0.0).item() + 3.0) / 1.0
    median = brentq(lambda z: (ndtr(z) - ndtr(cut)) / (1 - ndtr(cut)) - 0.5, -5, 5)
    assert -SCHEDULE.half_log_snr(times).median().item() == pytest.approx(-3.0 + median, abs=0.02)
    for mean, end in ((-20.0, 0), (20.0, 999)):
        far = SCHEDULE.training_times(8, NoiseLevels(distribution="logit_normal", mean=mean, std=0.1))
        assert ((far - end).abs() < 0.5).all()


# Times of the samplers


@pytest.mark.parametrize(
    ("total", "steps", "expected"),
    [
        (1000, 1, [999]),
        (1000, 2, [999, 0]),
        (1000, 4, [999, 444, 111, 0]),
        (1000, 10, [999, 789, 604, 444, 308, 197, 111, 49, 12, 0]),
        (10, 10, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
        (10, 3, [9, 2, 0]),
    ],
)
def test_time_steps_known(total, steps, expected):
    """Quadratically spaced from T - 1 to 0."""
    assert time_steps(replace(SCHEDULE, steps=total), steps) == expected


def test_time_steps_of_every_length():
    """From T - 1 to 0, strictly falling, as many as asked for, gaps never growing beyond rounding."""
    for steps in range(2, 1001):
        times = time_steps(SCHEDULE, steps)
        gaps = -np.diff(times)
        assert len(times) == steps and times[0] == 999 and times[-1] == 0
        assert gaps.min() >= 1 and np.diff(gaps).max(initial=0) <= 1


@pytest.mark.parametrize("steps", [-1, 0, 1001])
def test_steps_out_of_range(steps):
    for listed in (time_steps, solver_times, partial(heun, None, None)):
        with pytest.raises(ValueError, match=f"1 to 1000 steps, not {steps}"):
            listed(SCHEDULE, steps)


@pytest.mark.parametrize("kind", KINDS)
def test_solver_times(kind):
    """sigma / alpha falls from 40 to 0.03 (of the paper's betas .045), evenly in its seventh root or logarithm."""
    schedule = Schedule(kind=kind)
    last = math.sqrt(0.002 / 0.998) if kind == "scaled_linear" else 0.03
    for spacing, straight in (("karras", lambda ratio: ratio ** (1 / 7)), ("logsnr", torch.log)):
        ratio = torch.exp(-schedule.half_log_snr(torch.tensor(solver_times(schedule, 6, spacing), dtype=torch.float64)))
        torch.testing.assert_close(ratio[[0, -1]], torch.tensor([40.0, last], dtype=torch.float64), rtol=1e-9, atol=0)
        gaps = straight(ratio).diff()
        torch.testing.assert_close(gaps, gaps.mean().expand(5), rtol=1e-9, atol=0)
        (single,) = solver_times(schedule, 1, spacing)
        assert -schedule.half_log_snr(single).item() == pytest.approx(math.log(40))
        lowest = -schedule.half_log_snr(torch.tensor(solver_times(schedule, 6, spacing, 0.5)[-1], dtype=torch.float64))
        assert lowest.item() == pytest.approx(math.log(0.5))
    with pytest.raises(ValueError, match="spacing must be one of karras, logsnr, not even"):
        solver_times(schedule, 6, "even")
    with pytest.raises(ValueError, match="sigma_min must lie between 0 and 40, not 0"):
        solver_times(schedule, 6, sigma_min=0)


def test_solver_times_of_a_chain_that_does_not_reach():
    """A chain that ends at less noise, and begins at more, is used from end to end."""
    times = solver_times(Schedule(100, beta_start=0.02, beta_end=0.05), 5)
    assert times[0] == pytest.approx(99, abs=1e-9) and times[-1] == pytest.approx(0, abs=1e-9)
    assert all(a > b for a, b in pairwise(times))


# The samplers against Gaussian data


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddpm_recovers_the_data(prediction):
    """1000 steps give mean and standard deviation of the data to 4 %, those of the closed recursion to statistics."""
    schedule, n = replace(SCHEDULE, prediction=prediction), 2500
    samples = ddpm(gaussian_denoiser(schedule), noise_of(1, n), schedule)
    mean, std = law(numpy_alpha_bar(schedule), list(range(999, -1, -1)), eta=1.0)
    assert samples.mean().item() == pytest.approx(mean, abs=4 * std / math.sqrt(n))
    assert samples.std().item() == pytest.approx(std, rel=4 / math.sqrt(2 * n))
    assert samples.mean().item() == pytest.approx(MEAN, rel=0.015)
    assert samples.std().item() == pytest.approx(STD, rel=0.04)


@pytest.mark.parametrize("kind", ["cosine", "flow"])
def test_fresh_noise_of_the_other_kinds(kind):
    """At eta 0.7 and 1 too the law of the data comes out, to 4 %: fresh noise is what its absence leaves room for."""
    schedule, n = Schedule(kind=kind, prediction="v_prediction"), 5000
    for eta in (0.7, 1.0):
        samples = ddim(gaussian_denoiser(schedule), noise_of(1, n), schedule, 200, eta)
        assert samples.mean().item() == pytest.approx(MEAN, rel=0.015)
        assert samples.std().item() == pytest.approx(STD, rel=0.04)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("steps", "off"), [(1, 1.0), (10, 0.16), (50, 0.04), (1000, 0.015)])
def test_ddim_propagates_the_noise_exactly(prediction, steps, off):
    """At eta 0 a sample is affine in its noise: constant and slope are those of the closed recursion to 1e-9.

    The slope is the standard deviation of the samples; it comes close to that of the data as steps are added.
    """
    schedule = replace(SCHEDULE, prediction=prediction)
    start = torch.tensor([0.0, 1.0, -2.0], dtype=torch.float64)
    low, high, other = ddim(gaussian_denoiser(schedule), lambda k: start, schedule, steps).tolist()
    root = np.linspace(1, 0, steps) if steps > 1 else np.ones(1)
    times = [max(steps - 1 - k, round(999 * r**2)) for k, r in enumerate(root)]
    mean, std = law(numpy_alpha_bar(schedule), times, eta=0.0)
    assert low == pytest.approx(mean, rel=1e-9)
    assert high - low == pytest.approx(std, rel=1e-9)
    assert other == pytest.approx(mean - 2 * std, rel=1e-9)
    assert mean == pytest.approx(MEAN, rel=0.02)
    assert std == pytest.approx(STD, rel=off)


@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_ddim_with_fresh_noise_has_the_exact_law(eta):
    """50 noisy steps: mean and standard deviation of the closed recursion, within the statistics of the draw."""
    n = 40_000
    samples = ddim(gaussian_denoiser(SCHEDULE), noise_of(2, n), SCHEDULE, 50, eta)
    mean, std = law(numpy_alpha_bar(SCHEDULE), time_steps(SCHEDULE, 50), eta)
    assert samples.mean().item() == pytest.approx(mean, abs=4 * std / math.sqrt(n))
    assert samples.std().item() == pytest.approx(std, rel=4 / math.sqrt(2 * n))


def test_ddpm_is_ho_s_ancestral_sampling():
    """Written from Ho et al. 2020, equations 6 and 7, with the same noise: the same samples."""
    denoise, noise = gaussian_denoiser(SHORT), noise_of(3, 500)
    alpha_bar = numpy_alpha_bar(SHORT)
    x = noise(0)
    for k, t in enumerate(range(59, -1, -1), start=1):
        before = alpha_bar[t - 1] if t else 1.0
        beta = 1 - alpha_bar[t] / before
        eps = denoise(x, torch.full((500,), t))
        x_0 = (x - math.sqrt(1 - alpha_bar[t]) * eps) / math.sqrt(alpha_bar[t])
        x = (math.sqrt(before) * beta * x_0 + math.sqrt(1 - beta) * (1 - before) * x) / (1 - alpha_bar[t])
        x = x + math.sqrt((1 - before) / (1 - alpha_bar[t]) * beta) * noise(k) if t else x
    torch.testing.assert_close(ddpm(denoise, noise, SHORT, 60), x, rtol=1e-9, atol=1e-9)


def ode_solution(schedule: Schedule, noise: torch.Tensor, first: float, last: float, mixture: tuple) -> torch.Tensor:
    """Where the probability-flow ODE leads `noise` from one time to another, then the denoiser's x_0 there.

    In one dimension paths do not cross, so that each keeps its quantile of the marginal distribution.
    """
    weights, means, stds = mixture

    def quantile(x: float, alpha: float, sigma: float) -> float:
        return float((weights * ndtr((x - alpha * means) / np.hypot(alpha * stds, sigma))).sum())

    ends = [[float(factor) for factor in schedule.alpha_sigma(t)] for t in (first, last)]
    begun = [quantile(x * math.hypot(*ends[0]), *ends[0]) for x in noise.tolist()]
    x = torch.tensor([brentq(lambda x, q=q: quantile(x, *ends[1]) - q, -9, 9, xtol=1e-13) for q in begun]).double()
    return schedule.clean_and_noise(denoiser(schedule, *mixture)(x, x.new_full((len(x),), last)), x, *ends[1])[0]


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("kind", KINDS)
def test_order_of_the_solvers(kind, spacing):
    """A step half as wide makes the error 4, 8 and 4 times smaller: orders 2, 3 (UniC adds one to UniP-2) and 2.

    Against the exact solution for a mixture of two Gaussians, whose denoiser is anything but a line.
    """
    schedule = Schedule(kind=kind, prediction="v_prediction")
    start, denoise = torch.tensor([-1.3, -0.2, 0.4, 1.1], dtype=torch.float64), denoiser(schedule, *MIXTURE)
    ends = solver_times(schedule, 2, spacing)
    exact = ode_solution(schedule, start, *ends, MIXTURE)
    for solver, order, most in ((dpm_solver, 2, 8e-3), (unipc, 3, 2e-3), (heun, 2, 7e-3)):
        counts = [65, 129] if solver is heun else [33, 65]  # evaluations: the intervals are halved
        errors = [(solver(denoise, lambda k: start, schedule, n, spacing) - exact).abs().max().item() for n in counts]
        assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.2), solver.__name__
        assert errors[0] < most, solver.__name__


@pytest.mark.parametrize("kind", KINDS)
def test_leap_to_the_mean(kind):
    """From `sigma_min` the solvers leap to the mean: of a Gaussian they lose what lies below that noise.

    The ODE draws x_0 = m + s z; with the x_t of that path at sigma / alpha = r the mean of x_0 is
    m + s z s / sqrt(s^2 + r^2).
    """
    schedule = Schedule(kind=kind, prediction="v_prediction")
    mean, std, ratio = 0.3, 0.8, 0.5
    z = torch.tensor([-1.5, -0.5, 0.5, 1.5], dtype=torch.float64)
    denoise = denoiser(schedule, [1.0], [mean], [std])
    alpha, sigma = schedule.alpha_sigma(torch.tensor(solver_times(schedule, 1), dtype=torch.float64))
    start = (alpha * mean + (alpha**2 * std**2 + sigma**2).sqrt() * z) / torch.hypot(alpha, sigma)
    wanted = mean + std * z * std / math.hypot(std, ratio)
    for solver in (dpm_solver, unipc, heun):
        drawn = solver(denoise, lambda k: start, schedule, 200, "logsnr", ratio)
        torch.testing.assert_close(drawn, wanted, rtol=0, atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_order_of_ddim(kind):
    """Half the step, half the error."""
    schedule = Schedule(steps=100_000 if kind != "scaled_linear" else 1000, kind=kind, prediction="v_prediction")
    start, denoise = torch.tensor([-1.3, -0.2, 0.4, 1.1], dtype=torch.float64), denoiser(schedule, *MIXTURE)
    exact = ode_solution(schedule, start, *time_steps(schedule, 2), MIXTURE)
    errors = [(ddim(denoise, lambda k: start, schedule, n) - exact).abs().max().item() for n in (17, 33, 65)]
    assert [math.log2(a / b) for a, b in pairwise(errors)] == pytest.approx([1, 1], abs=0.15)


@pytest.mark.parametrize("schedule", EVERY, ids=named)
@pytest.mark.parametrize(("solver", "off"), [(dpm_solver, 0.015), (unipc, 0.005), (heun, 0.06)])
def test_solvers_find_the_gaussian(solver, off, schedule):
    """For Gaussian data the exact solution is a formula; 40 evaluations come close to it, whatever is predicted."""
    start = torch.tensor([-1.5, 0.0, 2.0], dtype=torch.float64)
    samples = solver(gaussian_denoiser(schedule), lambda k: start, schedule, 40)
    (alpha, sigma), (alpha_end, sigma_end) = (
        [float(factor) for factor in schedule.alpha_sigma(t)] for t in solver_times(schedule, 2)
    )
    z = (start * math.hypot(alpha, sigma) - alpha * MEAN) / math.hypot(alpha * STD, sigma)  # kept along the way
    shrunk = alpha_end * STD / math.hypot(alpha_end * STD, sigma_end)  # by the last prediction of x_0
    torch.testing.assert_close(samples, MEAN + STD * shrunk * z, rtol=0, atol=off * STD)


def test_one_step_is_the_first_prediction():
    """Of latents of mean 0 and deviation 1 x_0 in the first instant is alpha x_t, for every solver alike."""
    schedule = Schedule(kind="flow", prediction="v_prediction")
    start = torch.tensor([-1.0, 2.0], dtype=torch.float64)
    alpha, sigma = 1 / 41, 40 / 41
    for solver in SOLVERS.values():
        sample = solver(gaussian_denoiser(schedule, 0, 1), lambda k: start, schedule, 1)
        torch.testing.assert_close(sample, start * alpha / math.hypot(alpha, sigma), rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("name", "steps", "eta"),
    [("ddim", 20, 0.0), ("ddim", 20, 0.7), ("ddpm", 60, 1.0), ("dpm_solver", 9, None), ("unipc", 9, None)],
)
def test_predictions_give_the_same_samples(name, steps, eta):
    """Three parametrisations of one denoiser, float32: equal samples to float tolerance."""
    own = () if eta is None else (eta,)
    first, *others = (
        SAMPLERS[name](gaussian_denoiser(s), noise_of(4, 500, dtype=torch.float32), s, steps, *own)
        for s in (replace(SHORT, prediction=prediction) for prediction in PREDICTIONS)
    )
    assert first.dtype == torch.float32
    for other in others:
        torch.testing.assert_close(first, other, atol=5e-5, rtol=0)


def test_ddpm_needs_the_whole_chain():
    """Fewer steps, or an eta, are refused and point to other samplers."""
    for steps in (1, 50, 999, 1001):
        with pytest.raises(ValueError, match=f"all 1000 steps; take another sampler for {steps}"):
            ddpm(gaussian_denoiser(SCHEDULE), noise_of(5, 2), SCHEDULE, steps)
    with pytest.raises(ValueError, match="no eta"):
        ddpm(gaussian_denoiser(SCHEDULE), noise_of(5, 2), SCHEDULE, 1000, eta=0.0)


# Every sampler


def rippled(x: torch.Tensor, t: torch.Tensor, offset: torch.Tensor | float = 0.0) -> torch.Tensor:
    """Some network: smooth, different at every time."""
    return torch.tanh(x + offset) * (t.view(-1, *[1] * (x.ndim - 1)) / 1000) + 0.5 * x


GOLDEN = {
    ("ddim", "scaled_linear"): [-0.044246, 0.420234, 0.111139],
    ("ddim", "flow"): [-0.065757, 0.662314, 0.166954],
    ("ddpm", "scaled_linear"): [1.285810, 0.005408, 0.388061],
    ("ddpm", "flow"): [0.328677, 0.136745, 0.130710],
    ("dpm_solver", "scaled_linear"): [-0.099288, 0.807006, 0.244199],
    ("dpm_solver", "flow"): [-0.096534, 0.814968, 0.238303],
    ("unipc", "scaled_linear"): [-0.095783, 0.797789, 0.236543],
    ("unipc", "flow"): [-0.094445, 0.810745, 0.233880],
    ("heun", "scaled_linear"): [-0.244185, 1.728781, 0.587312],
    ("heun", "flow"): [-0.149661, 1.072058, 0.360320],
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_golden_values(name):
    """What each draws with one network and one noise, on the paper's schedule and on a flow."""
    for schedule in (Schedule(prediction="v_prediction"), Schedule(kind="flow", prediction="v_prediction")):
        steps = 1000 if name == "ddpm" else 9
        sample = SAMPLERS[name](rippled, noise_of(8, 3, dtype=torch.float32), schedule, steps)
        assert sample.tolist() == pytest.approx(GOLDEN[name, schedule.kind], abs=5e-6)


CALLS = [
    ("ddim", 6, {}),
    ("ddim", 7, {"eta": 1.0}),
    ("ddpm", 60, {}),
    ("dpm_solver", 7, {}),
    ("unipc", 7, {"spacing": "logsnr"}),
    ("heun", 7, {"spacing": "logsnr"}),
    ("heun", 6, {}),
    *((name, 1, {}) for name in ("ddim", *SOLVERS)),
    ("heun", 2, {}),
]


@pytest.mark.parametrize(("name", "steps", "options"), CALLS)
def test_samplers_are_pure(name, steps, options):
    """The same noise gives the same bits; a row alone equals its row in a batch; the noise is left as it was."""
    rows = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    fixed = {k: noise_of(6, 5, 2, 3, dtype=torch.float32)(k) for k in range(steps + 1)}
    kept = {k: tensor.clone() for k, tensor in fixed.items()}

    def sample(rows_asked: slice) -> torch.Tensor:
        network = partial(rippled, offset=rows[rows_asked])
        return SAMPLERS[name](network, lambda k: fixed[k][rows_asked], SHORT, steps, **options)

    batch = sample(slice(None))
    assert batch.dtype == torch.float32 and torch.equal(batch, sample(slice(None)))
    for row in range(5):
        assert torch.equal(sample(slice(row, row + 1))[0], batch[row])
    assert all(torch.equal(fixed[k], kept[k]) for k in fixed)
    assert (batch[0] - batch[1]).abs().max() > 0.01


@pytest.mark.parametrize(("name", "steps", "options"), CALLS)
def test_calls_of_network_and_noise(name, steps, options):
    """As many network calls as steps, at the listed times for every row; no noise is drawn that is not used."""
    seen, drawn, noise, denoise = [], [], noise_of(7, 3), gaussian_denoiser(SHORT)

    def counted(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(t.tolist())
        return denoise(x, t)

    SAMPLERS[name](counted, lambda k: drawn.append(k) or noise(k), SHORT, steps, **options)
    if name == "heun":  # twice at every time but the first, and at that time once; an even number leaves out the next
        first, *others = solver_times(SHORT, steps // 2 + 1, **options)
        times = [first, *(t for t in others for _ in range(2))]
        if steps % 2 == 0:
            del times[1]
    else:
        times = solver_times(SHORT, steps, **options) if name in SOLVERS else time_steps(SHORT, steps)
    assert len(seen) == steps and seen == [[t] * 3 for t in times]
    assert drawn == (list(range(steps)) if name == "ddpm" or "eta" in options else [0])


@pytest.mark.parametrize("name", SAMPLERS)
def test_no_sampler_waits_for_the_device(name):
    """All steps run on tensors without content: no number is read back, and nothing is made on another device."""
    noise, steps = torch.empty(3, 2, device="meta"), 60 if name == "ddpm" else 7
    sample = SAMPLERS[name](rippled, lambda k: noise, SHORT, steps)
    assert sample.is_meta and sample.shape == (3, 2) and sample.dtype == torch.float32


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(
    ("solver", "kind"),
    [(solver, kind) for solver in SOLVERS for kind in ("scaled_linear", "flow") if (solver, kind) != ("heun", "flow")],
)
def test_solvers_are_those_of_diffusers(solver, kind):
    """DPM-Solver++(2M), UniPC-2 with B2(h) and Heun's method (which knows no flow there) of `diffusers` over the same
    noise levels.
    """
    schedule = Schedule(kind=kind, prediction="v_prediction")
    flow = kind == "flow"
    prediction = "flow_prediction" if flow else "v_prediction"
    steps, noise = 9, noise_of(9, 4, 1)
    times = solver_times(schedule, steps // 2 + 1 if solver == "heun" else steps)
    alpha, sigma = (factor.tolist() for factor in schedule.alpha_sigma(torch.tensor(times, dtype=torch.float64)))
    x = noise(0) * math.hypot(alpha[0], sigma[0])
    if solver == "heun":
        module = pytest.importorskip("diffusers.schedulers.scheduling_heun_discrete")
        theirs = module.HeunDiscreteScheduler(1000, prediction_type=prediction)
        theirs.set_timesteps(len(times))
        ratio = [s / a for a, s in zip(alpha, sigma, strict=True)]
        theirs.sigmas = torch.tensor([ratio[0], *np.repeat(ratio[1:], 2), 0.0], dtype=torch.float64)
        times, alpha = ([values[0], *np.repeat(values[1:], 2)] for values in (times, alpha))
        x = x / alpha[0]
        for k, label in enumerate(theirs.timesteps):
            output = rippled(x * alpha[k], torch.full((4,), times[k], dtype=torch.float64))
            x = theirs.step(output, label, x).prev_sample
    else:
        if solver == "unipc":
            module = pytest.importorskip("diffusers.schedulers.scheduling_unipc_multistep")
            make = partial(module.UniPCMultistepScheduler, solver_type="bh2")
        else:
            module = pytest.importorskip("diffusers.schedulers.scheduling_dpmsolver_multistep")
            make = partial(module.DPMSolverMultistepScheduler, algorithm_type="dpmsolver++")
        theirs = make(1000, solver_order=2, prediction_type=prediction, use_flow_sigmas=flow, final_sigmas_type="zero")
        theirs.set_timesteps(steps)
        levels = sigma if flow else [s / a for a, s in zip(alpha, sigma, strict=True)]
        theirs.sigmas = torch.tensor([*levels, 0.0], dtype=torch.float64)
        for t, label in zip(times, theirs.timesteps, strict=True):
            x = theirs.step(rippled(x, torch.full((4,), t, dtype=torch.float64)), label, x).prev_sample
    ours = SOLVERS[solver](rippled, noise, schedule, steps)
    torch.testing.assert_close(ours, x.double(), rtol=0, atol=2e-6)


# What the pairs are drawn with

PRESET = {"sampler": "ddim", "steps": 50, "eta": 0.0, "guidance": 1.0}
SOLVED = {"spacing": "karras", "sigma_min": 0.03}  # unless told


@pytest.mark.parametrize(
    ("preset", "asked", "settings"),
    [
        ({}, {}, {}),
        ({"eta": 0.5}, {"sampler": "unipc", "steps": "9"}, SOLVED | {"sampler": "unipc", "steps": 9}),
        (
            {"sampler": "heun"},
            {"spacing": "logsnr", "sigma_min": "0.5"},
            {"sampler": "heun", "spacing": "logsnr", "sigma_min": 0.5},
        ),
        ({"sampler": "heun", "sigma_min": 0.5}, {"sampler": "ddim"}, {}),
        ({"guide": "early"}, {}, {}),
        ({"guide": "early"}, {"guidance": 2, "guide": "unasked"}, {"guidance": 2.0, "guide": "unasked"}),
        ({"sampler": "dpm_solver", "spacing": "logsnr"}, {"sampler": "ddim", "eta": 0.2}, {"eta": 0.2}),
        ({"sampler": "unipc"}, {"sampler": "ddpm"}, {"sampler": "ddpm", "steps": 1000, "eta": 1.0}),
    ],
)
def test_settings_of_the_sampler(preset, asked, settings):
    """Overrides take the preset's place; what the preset says to a sampler that takes it is not said to another."""
    assert PairSampler(SCHEDULE, (1, 2, 2, 2), Sampling(**PRESET | preset), asked).settings == PRESET | settings


@pytest.mark.parametrize(
    ("preset", "asked", "message"),
    [
        ({}, {"sampler": "euler"}, "--sampler euler: unknown; choose one of ddim, ddpm, dpm_solver, unipc, heun."),
        *(
            ({}, {"sampler": name, "eta": 0.3}, f"--eta 0.3: sampler {name} draws no fresh noise; .* or take ddim.")
            for name in SOLVERS
        ),
        ({"sampler": "heun", "eta": 1.0}, {}, "--eta 1: sampler heun draws no fresh noise"),
        ({"sampler": "heun"}, {"eta": 2.0}, "--eta 2: sampler heun draws no fresh noise"),
        ({"sampler": "unipc"}, {"spacing": "even"}, "--spacing even: unknown; choose one of karras, logsnr."),
        ({}, {"spacing": "karras"}, "--spacing karras: only for the samplers dpm_solver, unipc, heun, not ddim."),
        ({}, {"sampler": "ddpm", "spacing": "logsnr"}, "--spacing logsnr: .* not ddpm."),
        ({}, {"sigma_min": 0.5}, "--sigma-min 0.5: only for the samplers dpm_solver, unipc, heun, not ddim."),
        ({"sampler": "heun"}, {"sigma_min": "low"}, "--sigma-min low: not a number."),
        ({}, {"guide": "late", "guidance": 2}, "--guide late: unknown; choose one of early, unasked."),
        ({}, {"guide": "early", "guidance": 2}, "--guide early: the checkpoint holds no early weights"),
        ({}, {"guide": "early"}, "--guide early: --guidance 1 leads away from nothing; ask for more."),
        ({"sampler": "heun"}, {"sigma_min": 40}, "--sigma-min 40: must lie between 0 and 40."),
        *(
            (
                {"sampler": name},
                {"steps": steps},
                f"--steps {steps}: a chain of 1000 steps is sampled in 1 to 1000 steps",
            )
            for name, steps in product(SOLVERS, (0, -3, 1001))
        ),
        ({"sampler": "unipc"}, {"steps": "many"}, "--steps many: "),
        ({"sampler": "unipc"}, {"steps": math.inf}, "--steps inf: "),
        ({}, {"sampler": "ddpm", "steps": 50}, "--steps 50: sampler ddpm needs all 1000 steps; take another sampler"),
        ({}, {"sampler": "unipc", "guidance": -1}, "--guidance -1: must be a finite number from 0 up"),
    ],
)
def test_what_a_sampler_cannot_take(preset, asked, message):
    """Refused in one line that names the variable, before anything is drawn."""
    with pytest.raises(InputError, match=f"^{message}") as caught:
        PairSampler(SCHEDULE, (1, 2, 2, 2), Sampling(**PRESET | preset), asked)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_a_preset_s_guide_without_early_weights() -> None:
    """The best weights of few cases can be older than early ones: the guide is the network unasked then."""
    preset = Sampling(**PRESET | {"guidance": 2.0, "guide": "early"})
    found = PairSampler(SCHEDULE, (4, 2, 2, 2), preset)
    assert found.settings["guide"] == "unasked" and found.settings["guidance"] == 2
    kept = PairSampler(SCHEDULE, (4, 2, 2, 2), preset, early=torch.nn.Identity())
    assert kept.settings["guide"] == "early"


@pytest.mark.parametrize("sampler", SOLVERS)
def test_pairs_are_drawn_with_the_settings(sampler):
    """The inferer runs the solver with its steps and spacing from each seed's own noise, a row as if it were alone."""
    times = []

    def network(x: torch.Tensor, t: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        times.append(t[0].item())
        return 0.5 * x + context.view(-1, 1, 1, 1, 1)

    draw = PairSampler(
        SCHEDULE, (1, 2, 2, 2), Sampling(**PRESET), {"sampler": sampler, "steps": 5, "spacing": "logsnr", "batch": 2}
    )
    both = draw(torch.tensor([[0.0], [1.0]]), network, seeds=[3, 4])
    wanted = solver_times(SCHEDULE, 3 if sampler == "heun" else 5, "logsnr")
    assert len(times) == 5 and sorted(set(times), reverse=True) == pytest.approx(wanted)
    assert torch.equal(draw(torch.tensor([[1.0]]), network, seeds=[4])[0], both[1])


# Guidance


class Recorder(torch.nn.Module):
    """Answers 10 + the first characteristic when asked for one, else 4, and counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[bool] = []

    def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        self.asked.append(context is not None)
        return torch.full_like(x, 4.0) if context is None else 10 + context[:, :1].expand_as(x)


@pytest.mark.parametrize(
    ("guidance", "expected", "asked"),
    [
        (1.0, [11.0, 12.0], [True]),
        (0.0, [4.0, 4.0], [True, False]),
        (0.5, [7.5, 8.0], [True, False]),
        (3.0, [25.0, 28.0], [True, False]),
    ],
)
def test_guidance_known_answer(guidance, expected, asked):
    """free + w (wanted - free), and at w = 1 the condition alone with one evaluation."""
    network = Recorder()
    output = guided(network, torch.tensor([[1.0], [2.0]]), guidance)(torch.zeros(2, 3), torch.tensor([5, 5]))
    torch.testing.assert_close(output, torch.tensor(expected).view(2, 1).expand(2, 3))
    assert network.asked == asked


def test_guidance_by_early_weights():
    """early + w (wanted - early), the latter asked for nothing; without guidance the early weights are not used."""
    network, asked = Recorder(), []
    condition, x, t = torch.tensor([[1.0], [2.0]]), torch.zeros(2, 3), torch.tensor([5, 5])

    def early(x: torch.Tensor, t: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
        asked.append(context)
        return torch.ones_like(x)

    output = guided(network, condition, 3.0, early)(x, t)  # 1 + 3 (11 - 1), 1 + 3 (12 - 1)
    torch.testing.assert_close(output, torch.tensor([[31.0], [34.0]]).expand(2, 3))
    assert network.asked == [True] and asked == [None]
    assert guided(network, condition, 1.0, early)(x, t)[:, 0].tolist() == [11.0, 12.0] and len(asked) == 1


def test_guidance_moves_gaussian_samples():
    """Conditional N(1, 1) against unconditional N(0, 1): guidance w shifts the samples to a mean of w (to 1 %)."""

    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
            return gaussian_denoiser(SCHEDULE, 0.0 if context is None else 1.0, 1.0)(x, t)

    start = torch.zeros(1, dtype=torch.float64)
    for guidance in (0.0, 1.0, 2.5):
        sample = ddim(guided(Two(), torch.ones(1, 1), guidance), lambda k: start, SCHEDULE, 200)
        assert sample.item() == pytest.approx(guidance, rel=0.02, abs=1e-9)


def test_guidance_away_from_what_is_unwanted():
    """unwanted + w (wanted - unwanted), both by the same network, in the place of any guide."""
    condition, unwanted, x, t = torch.tensor([[1.0]]), torch.tensor([[5.0]]), torch.zeros(1, 3), torch.tensor([5])
    output = guided(Recorder(), condition, 2.0, lambda *_: 1 / 0, unwanted=unwanted)(x, t)
    assert output[0].tolist() == [15 + 2 * (11 - 15)] * 3


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_within_a_region(guidance):
    """The network is shown the known latents without noise outside, and told the region, as often as it is asked."""
    region, known, seen = torch.tensor([[[1.0, 1.0, 0.0]]]), torch.tensor([[[7.0, 8.0, 9.0]]]), []

    def network(x: torch.Tensor, t: torch.Tensor, context: torch.Tensor | None, told: torch.Tensor) -> torch.Tensor:
        assert torch.equal(told, region)
        seen.append(x.flatten().tolist())
        return 0.5 * x * told

    denoise = guided(network, torch.zeros(1, 1), guidance, region=region, known=known)
    assert denoise(torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([5])).flatten().tolist() == [0.5, 1.0, 0.0]
    assert seen == [[1.0, 2.0, 9.0]] * int(guidance)
    settings = Sampling(**PRESET | {"guidance": guidance, "batch": 2})
    draw = PairSampler(SCHEDULE, (1, 3), settings)
    drawn = draw(torch.zeros(1, 1), lambda x, t, c, told: 0 * x, [3], region=region, known=known)
    assert drawn.shape == (1, 1, 3) and drawn[0, 0, 2] == 9 and not (drawn[0, 0, :2] == known[0, 0, :2]).any()
