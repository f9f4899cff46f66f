"""Ignite handlers that the trainings need and MONAI lacks."""

from __future__ import annotations

import logging
import math
import os
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from monai.engines.utils import IterationEvents
from monai.utils.enums import GanKeys
from torch import nn

from sbldm.run import group
from sbldm.run.errors import StateError
from sbldm.run.progress import Progress
from sbldm.training.data import Dealt

__all__ = ["ClipGradient", "FiniteLoss", "MovingAverage", "ProgressBar", "Seeded", "Together", "losses_of"]


def losses_of(engine: Engine) -> dict[str, float]:
    """The losses of the last iteration: `loss`, for a GAN the generator's, and `discriminator` beside it."""
    output = engine.state.output
    if GanKeys.GLOSS in output:
        return {"loss": output[GanKeys.GLOSS], "discriminator": output[GanKeys.DLOSS]}
    return {"loss": output["loss"].item()}


class Seeded:
    """Seed torch before every iteration from (seed, iteration), so that a resumed run draws the same numbers."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def attach(self, engine: Engine) -> None:
        """Follow an engine."""
        engine.add_event_handler(Events.ITERATION_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seed one iteration."""
        dealt, number = getattr(engine.state.dataloader, "sampler", None), engine.state.iteration
        if isinstance(dealt, Dealt):
            number = dealt.number(number)
        state = np.random.SeedSequence([self.seed, number]).generate_state(1)  # torch heeds 32 bits
        torch.manual_seed(int(state[0]))


class Together:
    """Give every process of a training the mean loss of all, and end it with the launcher that started them."""

    def __init__(self) -> None:
        self.launcher = os.getppid()

    def attach(self, engine: Engine) -> None:
        """Follow a trainer, before all that looks at the loss."""
        engine.add_event_handler(IterationEvents.MODEL_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Take the mean of one iteration.

        Raises:
            StateError: the launcher has gone, and a new one may already be at work in the same folder.
        """
        engine.state.output["loss"] = group.mean(engine.state.output["loss"])
        if os.getppid() != self.launcher:
            raise StateError("the launcher of these processes has ended; start the same command again.")


class ClipGradient:
    """Clip the norm of the gradients between backward pass and optimizer step."""

    def __init__(self, max_norm: float = 1.0) -> None:
        self.max_norm = max_norm

    def attach(self, engine: Engine) -> None:
        """Follow a trainer."""
        engine.add_event_handler(IterationEvents.BACKWARD_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Clip once."""
        torch.nn.utils.clip_grad_norm_(engine.network.parameters(), self.max_norm)


class FiniteLoss:
    """End a training whose loss is no longer a number; the checkpoints of the epochs before are kept."""

    def attach(self, engine: Engine) -> None:
        """Follow a trainer."""
        engine.add_event_handler(Events.ITERATION_COMPLETED, self)

    def __call__(self, engine: Engine) -> None:
        """Check one loss.

        Raises:
            StateError: it is NaN or infinite.
        """
        if not all(math.isfinite(loss) for loss in losses_of(engine).values()):
            raise StateError(
                f"the loss is not finite at iteration {engine.state.iteration}; lower learning_rate in the preset and "
                "train in a new --run. The checkpoints of the epochs before are kept."
            )


class MovingAverage(EMAHandler):
    """Ignite's moving average of the weights, whose warm-up counts the iterations done, also before a resume.

    A momentum of 1, which ignite refuses, is no average: in single precision the weights of the network themselves.
    """

    def __init__(self, model: nn.Module, momentum: float, **options: Any) -> None:
        super().__init__(model, min(momentum, 1 - 1e-9), **options)

    def attach(self, engine: Engine, *args: Any, **kwargs: Any) -> None:
        """Follow a trainer."""
        super().attach(engine, *args, **kwargs)
        if getattr(self, "momentum_scheduler", None) is not None:  # ignite sets none without a warm-up
            engine.add_event_handler(Events.STARTED, self._catch_up)

    def _catch_up(self, engine: Engine) -> None:
        self.momentum_scheduler.event_index = engine.state.iteration


class ProgressBar:
    """One bar over all iterations of a training, with losses and time left; a resumed run starts where it stopped."""

    def __init__(self, description: str, evaluator: Engine | None = None) -> None:
        self.description, self.evaluator = description, evaluator
        self.losses: dict[str, float] = {}

    def attach(self, engine: Engine) -> None:
        """Follow a trainer."""
        engine.logger.setLevel(logging.CRITICAL)  # the command says what stopped it, and Ctrl-C is no error
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._step)
        engine.add_event_handler(Events.COMPLETED | Events.EXCEPTION_RAISED, self._close)

    def _start(self, engine: Engine) -> None:
        total = engine.state.max_epochs * engine.state.epoch_length
        self.bar = Progress(self.description, total, "it", engine.state.iteration)

    def _step(self, engine: Engine) -> None:
        for name, loss in losses_of(engine).items():
            self.losses[name] = 0.98 * self.losses.get(name, loss) + 0.02 * loss
        shown = {name: f"{loss:.4f}" for name, loss in self.losses.items()}
        if self.evaluator is not None and (validation := self.evaluator.state.metrics.get("loss")) is not None:
            shown["validation"] = f"{validation:.4f}"
        self.bar.note(**shown)
        self.bar.update()

    def _close(self, engine: Engine, error: Exception | None = None) -> None:
        self.bar.close()
        if error is not None:
            raise error
