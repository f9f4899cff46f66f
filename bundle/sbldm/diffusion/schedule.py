"""The forward process: betas linear in their square root (paper, equation 1; Rombach et al. 2022)."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from monai.networks.schedulers import DDPMScheduler

__all__ = ["Schedule"]


@dataclass(frozen=True)
class Schedule:
    """Noise schedule and what the network predicts.

    Attributes:
        steps: T, the length of the chain in training.
        beta_start, beta_end: variances of its first and last step.
        prediction: `epsilon` (the noise) or `v_prediction` (Salimans and Ho 2022).
    """

    steps: int = 1000
    beta_start: float = 0.002
    beta_end: float = 0.02
    prediction: str = "epsilon"

    def __post_init__(self) -> None:
        if self.prediction not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction must be epsilon or v_prediction, not {self.prediction}.")

    def state(self) -> dict[str, float | int | str]:
        """Plain values for the checkpoint."""
        return asdict(self)

    def monai(self) -> DDPMScheduler:
        """MONAI's scheduler with these values, for adding noise in training; latents are never clipped."""
        return DDPMScheduler(
            num_train_timesteps=self.steps,
            schedule="scaled_linear_beta",
            beta_start=self.beta_start,
            beta_end=self.beta_end,
            prediction_type=self.prediction,
            clip_sample=False,
        )

    def alpha_bar(self) -> torch.Tensor:
        """Cumulative product of 1 - beta, `[T]` float64: the share of signal variance left at each step."""
        beta = torch.linspace(self.beta_start**0.5, self.beta_end**0.5, self.steps, dtype=torch.float64) ** 2
        return torch.cumprod(1 - beta, dim=0)
