"""Least-squares adversaries (Mao et al. 2017): of the 3-D LSGAN, and of the VAE-GAN beneath the 3-D LDM."""

from __future__ import annotations

import torch
from ignite.engine import Engine, Events
from monai.engines.utils import IterationEvents
from torch import nn

__all__ = ["Adversary", "GanLosses", "VaeGanLoss", "clip_before_steps"]


class GanLosses:
    """Both losses of MONAI's `GanTrainer` with noisy targets, as the authors trained their 3D-LSGAN.

    Args:
        discriminator: MONAI's `PatchDiscriminator`; it scores each patch.
        target_noise: real pairs aim at `1 - target_noise |n|`, synthetic ones at `target_noise |n|`, n standard normal.
    """

    def __init__(self, discriminator: nn.Module, target_noise: float = 0.05) -> None:
        self.discriminator, self.target_noise = discriminator, target_noise

    def _distance(self, pairs: torch.Tensor, target: float) -> torch.Tensor:
        """Mean squared distance of its scores from `target`, moved a little towards the other one."""
        found = self.discriminator(pairs)[-1]
        noise = self.target_noise * torch.randn(len(found), *[1] * (found.ndim - 1), device=found.device).abs()
        return (found - (target - noise if target else noise)).square().mean()

    def discriminator_loss(self, fakes: torch.Tensor, reals: torch.Tensor) -> torch.Tensor:
        """Half the squared distance of real pairs from 1 and of synthetic ones from 0 (equation 9 of the paper)."""
        self.discriminator.requires_grad_(True)
        return 0.5 * (self._distance(reals, 1.0) + self._distance(fakes.detach(), 0.0))

    def generator_loss(self, fakes: torch.Tensor) -> torch.Tensor:
        """Half the squared distance of synthetic pairs from 1; the discriminator is left as it is."""
        self.discriminator.requires_grad_(False)
        return 0.5 * (self.discriminator(fakes)[-1] - 1).square().mean()


def clip_before_steps(optimizer: torch.optim.Optimizer, max_norm: float) -> torch.optim.Optimizer:
    """Clip the norm of the gradients before every step; `GanTrainer` has no event at which a handler could."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.register_step_pre_hook(lambda *_: nn.utils.clip_grad_norm_(parameters, max_norm) and None)
    return optimizer


class Adversary:
    """Handler that trains the discriminator of a VAE-GAN after each iteration of MONAI's `SupervisedTrainer`.

    MONAI's `AdversarialTrainer` gives the discriminator what the generator returns, for a VAE a tuple, and has no delay
    before it has a say.

    Args:
        discriminator: MONAI's `PatchDiscriminator`.
        optimizer: of its parameters.
        start: iterations before it has a say.
    """

    def __init__(self, discriminator: nn.Module, optimizer: torch.optim.Optimizer, start: int = 0) -> None:
        self.losses, self.optimizer, self.start = GanLosses(discriminator, 0.0), optimizer, start
        self.active = False

    def attach(self, engine: Engine) -> None:
        """Follow a trainer whose network returns `(reconstruction, mean, log_variance)`."""
        engine.add_event_handler(Events.ITERATION_STARTED, self._begin)
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)

    def _begin(self, engine: Engine) -> None:
        self.active = engine.state.iteration > self.start

    def __call__(self, engine: Engine) -> None:
        """One step of the discriminator."""
        self.optimizer.zero_grad()
        output = engine.state.output
        self.losses.discriminator_loss(output["pred"][0], output["image"]).backward()
        self.optimizer.step()


class VaeGanLoss(nn.Module):
    """The loss of the autoencoder, and once its adversary has a say, how unreal that finds the reconstruction.

    Args:
        reconstruction: `AutoencoderLoss`.
        adversary: its discriminator.
        weight: of the adversarial term.
    """

    def __init__(self, reconstruction: nn.Module, adversary: Adversary, weight: float = 0.05) -> None:
        super().__init__()
        self.reconstruction, self.adversary, self.weight = reconstruction, adversary, weight

    def forward(
        self, prediction: tuple[torch.Tensor, torch.Tensor, torch.Tensor], target: torch.Tensor
    ) -> torch.Tensor:
        """As `AutoencoderLoss`."""
        loss = self.reconstruction(prediction, target)
        if self.adversary.active:
            loss = loss + self.weight * self.adversary.losses.generator_loss(prediction[0])
        return loss
