"""The forward process `x_t = alpha x_0 + sigma eps`: what is noise at which time, and what the network predicts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import torch
from scipy.special import logit
from scipy.stats import truncnorm

from sbldm.run.preset import NoiseLevels, Preset

__all__ = ["KINDS", "PREDICTIONS", "Schedule"]

KINDS = ("scaled_linear", "cosine", "flow")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
FAINTEST = -8.0  # ln(alpha / sigma), where `cosine` and `flow` would end in noise alone: x_0 can still be told from it


@dataclass(frozen=True)
class Schedule:
    """Noise schedule and what the network predicts. Times are counted in steps of the chain, 0 to T - 1, also between.

    With `u = (t + 1) / T`, the chain's i-th of T steps being t = i - 1:

    | kind            | alpha, sigma                                                | source                    |
    |-----------------|-------------------------------------------------------------|---------------------------|
    | `scaled_linear` | alpha^2 = product of 1 - beta, betas linear in their root   | paper, equation 1; LDM    |
    | `cosine`        | cos(u pi / 2), sin(u pi / 2)                                | Salimans and Ho 2022      |
    | `flow`          | 1 - u, u: a straight line from x_0 to the noise             | Lipman et al. 2023        |

    The first two keep the variance (`alpha^2 + sigma^2 = 1`). `cosine` leaves out the offset of Nichol and Dhariwal
    (2021, equation 17), which matters to pixels of 8 bits, not to latents.

    Attributes:
        steps: T, the length of the chain.
        beta_start, beta_end: variances of the first and last step of `scaled_linear`.
        prediction: `epsilon` (the noise), `sample` (x_0), or `v_prediction`: `alpha eps - sigma x_0` (Salimans and Ho
            2022), of a flow `eps - x_0`, its velocity (Lipman et al. 2023).
        kind: one of the above.
    """

    steps: int = 1000
    beta_start: float = 0.002
    beta_end: float = 0.02
    prediction: str = "epsilon"
    kind: str = "scaled_linear"

    def __post_init__(self) -> None:
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"prediction must be one of {', '.join(PREDICTIONS)}, not {self.prediction}.")
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, not {self.kind}.")

    @classmethod
    def of_preset(cls, preset: Preset) -> Schedule:
        """The process that a preset describes."""
        return cls(**dict(preset.diffusion.schedule), prediction=preset.diffusion.prediction)

    def state(self) -> dict[str, float | int | str]:
        """Plain values for the checkpoint."""
        return asdict(self)

    @cached_property
    def _half_log_snr(self) -> np.ndarray:
        """`ln(alpha / sigma)` at each step of the chain, falling, `[T]` float64."""
        u = np.arange(1, self.steps + 1) / self.steps
        if self.kind == "scaled_linear":
            beta = np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.steps) ** 2
            log_alpha_bar = np.cumsum(np.log1p(-beta))
            half = 0.5 * (log_alpha_bar - np.log(-np.expm1(log_alpha_bar)))
        elif self.kind == "cosine":
            half = -np.log(np.tan(u * np.pi / 2))
        else:
            half = -logit(u)
        return np.maximum(half, FAINTEST)

    def half_log_snr(self, t: torch.Tensor | float) -> torch.Tensor:
        """`ln(alpha / sigma)` at times `t`, between two steps on the line that joins theirs; float64."""
        t = torch.as_tensor(t, dtype=torch.float64)
        found = np.interp(t.cpu().numpy(), np.arange(self.steps), self._half_log_snr)
        return torch.as_tensor(found, dtype=torch.float64, device=t.device)

    def time_at(self, half_log_snr: np.ndarray) -> np.ndarray:
        """The times at which `ln(alpha / sigma)` has these values; those of the chain's ends beyond them."""
        return np.interp(half_log_snr, self._half_log_snr[::-1], np.arange(self.steps - 1, -1, -1))

    def alpha_sigma(self, t: torch.Tensor | float) -> tuple[torch.Tensor, torch.Tensor]:
        """Both factors of `x_t` at times `t` (`[B]`, or a number), float64."""
        half = self.half_log_snr(t)
        if self.kind == "flow":
            return torch.sigmoid(half), torch.sigmoid(-half)
        return torch.sigmoid(2 * half).sqrt(), torch.sigmoid(-2 * half).sqrt()

    def noised(self, x: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`x_t` of clean samples `[B, ...]` at times `[B]`, and what the network is to predict of it."""
        alpha, sigma = (factor.to(x).view(-1, *[1] * (x.ndim - 1)) for factor in self.alpha_sigma(t))
        noisy = alpha * x + sigma * noise
        if self.prediction == "epsilon":
            return noisy, noise
        if self.prediction == "sample":
            return noisy, x
        return noisy, noise - x if self.kind == "flow" else alpha * noise - sigma * x

    def clean_and_noise(
        self, output: torch.Tensor, x: torch.Tensor, alpha: torch.Tensor | float, sigma: torch.Tensor | float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predicted x_0 and eps from the network's output for `x`: `noised`, solved for both."""
        if self.prediction == "epsilon":
            return (x - sigma * output) / alpha, output
        if self.prediction == "sample":
            return output, (x - alpha * output) / sigma
        if self.kind == "flow":
            return x - sigma * output, x + alpha * output
        return alpha * x - sigma * output, alpha * output + sigma * x

    def training_times(self, n: int, levels: NoiseLevels | None = None) -> torch.Tensor:
        """Random times `[n]` for a batch, float64, stratified: one in each n-th of their distribution.

        Each is distributed as asked by itself, and the loss of small batches varies less.

        Args:
            n: size of the batch.
            levels: `distribution`: `uniform` over the steps of the chain, or `logit_normal`: `ln(sigma / alpha)` normal
                with `mean` and `std`, as far as the chain reaches (SD3, arXiv 2403.03206, whose logit of a flow's time
                it is; EDM's log-normal, arXiv 2206.00364).
        """
        u = (torch.randperm(n).double() + torch.rand(1, dtype=torch.float64)) / n
        if levels is None or levels.distribution == "uniform":
            return (u * self.steps).floor().clamp(max=self.steps - 1)
        mean, std = levels.mean, levels.std
        ends = (-self._half_log_snr[[0, -1]] - mean) / std  # cut off there, so that neither is a heap of times
        return torch.from_numpy(self.time_at(-mean - std * truncnorm.ppf(u.numpy(), *ends)))
