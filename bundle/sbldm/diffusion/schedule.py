"""The forward process `x_t = alpha x_0 + sigma eps`: what is noise at which time, and what the network predicts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from scipy.special import ndtri

__all__ = ["KINDS", "PREDICTIONS", "Schedule"]

KINDS = ("scaled_linear", "cosine", "flow")
PREDICTIONS = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class Schedule:
    """Noise schedule and what the network predicts. Times are counted in steps of the chain, 0 to T - 1, also between.

    Attributes:
        steps: T, the length of the chain.
        beta_start, beta_end: variances of the first and last step of `scaled_linear`.
        prediction: `epsilon` (the noise), `sample` (x_0), or `v_prediction`: `alpha eps - sigma x_0` (Salimans and Ho
            2022), of a flow `eps - x_0`, its velocity (Lipman et al. 2023).
        kind: `scaled_linear`: betas linear in their square root (paper, equation 1; Rombach et al. 2022); `cosine`
            (Nichol and Dhariwal 2021); `flow`: a straight line from x_0 to the noise.
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

    def state(self) -> dict[str, float | int | str]:
        """Plain values for the checkpoint."""
        return asdict(self)

    def alpha_bar(self) -> torch.Tensor:
        """Share of signal variance, alpha^2 over alpha^2 + sigma^2, at each step of the chain: `[T]` float64.

        The noisiest step of `cosine` and `flow` keeps a ten-millionth of it, so that x_0 can be told from the noise.
        """
        if self.kind == "scaled_linear":
            beta = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.steps, dtype=torch.float64) ** 2
            return torch.cumprod(1 - beta, dim=0)
        u = torch.arange(1, self.steps + 1, dtype=torch.float64) / self.steps
        if self.kind == "cosine":
            signal, noise = torch.cos(u * torch.pi / 2) ** 2, torch.sin(u * torch.pi / 2) ** 2
        else:
            signal, noise = (1 - u) ** 2, u**2
        return (signal / (signal + noise)).clamp(min=1e-7)

    @cached_property
    def _half_log_snr(self) -> np.ndarray:
        """`ln(alpha / sigma)` at each step of the chain, falling."""
        a = self.alpha_bar().numpy()
        return 0.5 * np.log(a / (1 - a))

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
            sigma = torch.sigmoid(-half)
            return 1 - sigma, sigma
        return torch.sigmoid(2 * half).sqrt(), torch.sigmoid(-2 * half).sqrt()

    def noised(self, x: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """`x_t` of clean samples `[B, ...]` at times `[B]`, and what the network is to predict of it."""
        alpha, sigma = (factor.to(x).view(-1, *[1] * (x.ndim - 1)) for factor in self.alpha_sigma(t))
        target = {"epsilon": lambda: noise, "sample": lambda: x, "v_prediction": lambda: self._velocity(x, noise, t)}
        return alpha * x + sigma * noise, target[self.prediction]()

    def _velocity(self, x: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        if self.kind == "flow":
            return noise - x
        alpha, sigma = (factor.to(x).view(-1, *[1] * (x.ndim - 1)) for factor in self.alpha_sigma(t))
        return alpha * noise - sigma * x

    def clean_and_noise(
        self, output: torch.Tensor, x: torch.Tensor, alpha: torch.Tensor, sigma: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Predicted x_0 and eps from the network's output for `x`."""
        if self.prediction == "epsilon":
            return (x - sigma * output) / alpha, output
        if self.prediction == "sample":
            return output, (x - alpha * output) / sigma
        if self.kind == "flow":
            return x - sigma * output, x + alpha * output
        return alpha * x - sigma * output, alpha * output + sigma * x

    def training_times(self, n: int, levels: dict[str, Any] | None = None) -> torch.Tensor:
        """Random times `[n]` for a batch, float64, stratified: one in each n-th of their distribution.

        Each is distributed as asked by itself, and the loss of small batches varies less.

        Args:
            n: size of the batch.
            levels: `distribution`: `uniform` over the chain, or `logit_normal` with `mean` and `std` of
                `ln(sigma / alpha)` (SD3, arXiv 2403.03206; EDM's log-normal, 2206.00364).
        """
        u = (torch.randperm(n).double() + torch.rand(1, dtype=torch.float64)) / n
        levels = levels or {"distribution": "uniform"}
        if levels["distribution"] == "uniform":
            return (u * self.steps).floor().clamp(max=self.steps - 1)
        normal = ndtri(u.clamp(1e-6, 1 - 1e-6).numpy())
        return torch.from_numpy(self.time_at(-(levels["mean"] + levels["std"] * normal)))
