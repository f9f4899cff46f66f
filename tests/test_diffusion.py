"""The diffusion process against closed forms: for Gaussian data the best denoiser and its samples are known exactly."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from sbldm.diffusion import SAMPLERS, Schedule, ddim, ddpm, guided, time_steps

MEAN, STD = 1.5, 0.4
SCHEDULE = Schedule()
SHORT = Schedule(steps=60, beta_start=0.02, beta_end=0.3)  # as noisy at its end as the long one


def gaussian_denoiser(schedule: Schedule, mean: float = MEAN, std: float = STD) -> Callable:
    """The best network for data N(mean, std^2): the conditional mean of eps or v given x_t."""
    alpha_bar = schedule.alpha_bar()

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        a = alpha_bar.to(x)[t].view(-1, *[1] * (x.ndim - 1))
        x_0 = mean + a.sqrt() * std**2 / (a * std**2 + 1 - a) * (x - a.sqrt() * mean)
        eps = (x - a.sqrt() * x_0) / (1 - a).sqrt()
        return eps if schedule.prediction == "epsilon" else a.sqrt() * eps - (1 - a).sqrt() * x_0

    return denoise


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


# The forward process


@pytest.mark.parametrize("schedule", [SCHEDULE, SHORT, Schedule(300, 1e-4, 0.05)])
def test_schedule_is_monai_s(schedule):
    """The same shares of signal as MONAI's scheduler, which adds the noise in training, and as the formula."""
    np.testing.assert_allclose(schedule.alpha_bar(), schedule.monai().alphas_cumprod, atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(schedule.alpha_bar(), numpy_alpha_bar(schedule), rtol=1e-12)


def test_signal_left_at_both_ends():
    """With the paper's betas 99.8 % of the variance is signal after the first step and less than 1e-4 at the end."""
    alpha_bar = SCHEDULE.alpha_bar()
    assert alpha_bar.dtype == torch.float64 and alpha_bar.shape == (1000,)
    assert alpha_bar[0].item() == pytest.approx(0.998, abs=1e-12)
    # log of the product: minus the sum of beta and of beta^2 / 2, both integrals of powers of a line
    first, last = math.sqrt(0.002), math.sqrt(0.02)
    powers = [(last**n - first**n) / (n * (last - first)) for n in (3, 5)]
    assert math.log(alpha_bar[-1]) == pytest.approx(-1000 * (powers[0] + powers[1] / 2), rel=2e-3)
    assert 5e-5 < alpha_bar[-1] < 1e-4
    assert (alpha_bar.diff() < 0).all()


def test_training_noise_uses_the_same_values():
    """MONAI's `add_noise` and `get_velocity` agree with the schedule, and our samplers undo them at every step."""
    schedule = replace(SCHEDULE, prediction="v_prediction")
    clean, eps, times = torch.randn(6, 2, 3), torch.randn(6, 2, 3), torch.tensor([0, 1, 250, 500, 900, 999])
    monai, a = schedule.monai(), schedule.alpha_bar()[times].view(6, 1, 1).float()
    noisy, velocity = monai.add_noise(clean, eps, times), monai.get_velocity(clean, eps, times)
    torch.testing.assert_close(noisy, a.sqrt() * clean + (1 - a).sqrt() * eps, atol=1e-4, rtol=0)
    torch.testing.assert_close(velocity, a.sqrt() * eps - (1 - a).sqrt() * clean, atol=1e-4, rtol=0)
    assert monai.prediction_type == "v_prediction" and not monai.clip_sample


def test_schedule_state_and_errors():
    """Plain values bring the schedule back; an unknown prediction is refused."""
    assert Schedule(**SHORT.state()) == SHORT
    with pytest.raises(ValueError, match="prediction must be"):
        Schedule(prediction="sample")


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
def test_time_steps_out_of_range(steps):
    with pytest.raises(ValueError, match=f"1 to 1000 steps, not {steps}"):
        time_steps(SCHEDULE, steps)


# The samplers against Gaussian data


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_ddpm_recovers_the_data(prediction):
    """1000 steps give mean and standard deviation of the data to 4 %, those of the closed recursion to statistics."""
    schedule, n = replace(SCHEDULE, prediction=prediction), 40_000
    samples = ddpm(gaussian_denoiser(schedule), noise_of(1, n), schedule)
    mean, std = law(numpy_alpha_bar(schedule), list(range(999, -1, -1)), eta=1.0)
    assert samples.mean().item() == pytest.approx(mean, abs=4 * std / math.sqrt(n))
    assert samples.std().item() == pytest.approx(std, rel=4 / math.sqrt(2 * n))
    assert samples.mean().item() == pytest.approx(MEAN, rel=0.01)
    assert samples.std().item() == pytest.approx(STD, rel=0.04)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
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


@pytest.mark.parametrize("schedule", [SHORT, replace(SHORT, prediction="v_prediction")])
def test_ddim_at_eta_1_with_all_steps_is_ddpm(schedule):
    """The same noise even gives the same samples, which is more than the same law."""
    denoise, noise = gaussian_denoiser(schedule), noise_of(3, 500)
    torch.testing.assert_close(
        ddim(denoise, noise, schedule, schedule.steps, eta=1.0), ddpm(denoise, noise, schedule, schedule.steps)
    )


@pytest.mark.parametrize(("sampler", "steps", "eta"), [(ddim, 20, 0.0), (ddim, 20, 0.7), (ddpm, 60, 1.0)])
def test_epsilon_and_v_give_the_same_samples(sampler, steps, eta):
    """Two parametrisations of one denoiser, float32: equal samples to float tolerance."""
    first, second = (
        sampler(gaussian_denoiser(s), noise_of(4, 500, dtype=torch.float32), s, steps, eta)
        for s in (SHORT, replace(SHORT, prediction="v_prediction"))
    )
    assert first.dtype == torch.float32
    torch.testing.assert_close(first, second, atol=2e-5, rtol=0)


def test_ddpm_needs_the_whole_chain():
    """Fewer steps, or an eta, are refused and point to DDIM."""
    for steps in (1, 50, 999, 1001):
        with pytest.raises(ValueError, match=f"all 1000 steps; take sampler ddim for {steps}"):
            ddpm(gaussian_denoiser(SCHEDULE), noise_of(5, 2), SCHEDULE, steps)
    with pytest.raises(ValueError, match="no eta"):
        ddpm(gaussian_denoiser(SCHEDULE), noise_of(5, 2), SCHEDULE, 1000, eta=0.0)
    with pytest.raises(ValueError, match="1 to 1000 steps"):
        ddim(gaussian_denoiser(SCHEDULE), noise_of(5, 2), SCHEDULE, 1001)


@pytest.mark.parametrize(("name", "steps", "eta"), [("ddim", 7, 0.0), ("ddim", 7, 1.0), ("ddpm", 60, 1.0)])
def test_samplers_are_pure(name, steps, eta):
    """The same noise gives the same bits; a row alone equals its row in a batch; the noise is left as it was."""
    rows = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(0))
    fixed = {k: noise_of(6, 5, 2, 3, dtype=torch.float32)(k) for k in range(steps + 1)}
    kept = {k: tensor.clone() for k, tensor in fixed.items()}

    def denoise(x: torch.Tensor, t: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x + offset) * (t.view(-1, 1, 1) / SHORT.steps) + 0.5 * x

    def sample(rows_asked: slice) -> torch.Tensor:
        offset = rows[rows_asked]
        return SAMPLERS[name](lambda x, t: denoise(x, t, offset), lambda k: fixed[k][rows_asked], SHORT, steps, eta=eta)

    batch = sample(slice(None))
    assert torch.equal(batch, sample(slice(None)))
    for row in range(5):
        assert torch.equal(sample(slice(row, row + 1))[0], batch[row])
    assert all(torch.equal(fixed[k], kept[k]) for k in fixed)
    assert (batch[0] - batch[1]).abs().max() > 0.01


@pytest.mark.parametrize(("sampler", "steps", "eta"), [(ddim, 6, 0.0), (ddim, 6, 1.0), (ddpm, 60, 1.0)])
def test_calls_of_network_and_noise(sampler, steps, eta):
    """As many network calls as steps, at the listed times for every row; no noise is drawn that is not used."""
    seen, drawn, noise, denoise = [], [], noise_of(7, 3), gaussian_denoiser(SHORT)

    def counted(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        seen.append(t.tolist())
        return denoise(x, t)

    sampler(counted, lambda k: drawn.append(k) or noise(k), SHORT, steps, eta)
    assert seen == [[t] * 3 for t in time_steps(SHORT, steps)]
    assert drawn == (list(range(steps)) if eta else [0])


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


def test_guidance_moves_gaussian_samples():
    """Conditional N(1, 1) against unconditional N(0, 1): guidance w shifts the samples to a mean of w (to 1 %)."""

    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
            return gaussian_denoiser(SCHEDULE, 0.0 if context is None else 1.0, 1.0)(x, t)

    start = torch.zeros(1, dtype=torch.float64)
    for guidance in (0.0, 1.0, 2.5):
        sample = ddim(guided(Two(), torch.ones(1, 1), guidance), lambda k: start, SCHEDULE, 200)
        assert sample.item() == pytest.approx(guidance, rel=0.02, abs=1e-9)
