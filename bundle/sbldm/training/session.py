"""Starting and resuming a training; the small functions that the configs call."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from ignite.metrics import Loss
from monai.engines import Trainer
from monai.inferers import SimpleInferer
from torch.optim.lr_scheduler import LambdaLR

from sbldm.cases.lists import read_lists
from sbldm.networks import as_built
from sbldm.run import group
from sbldm.run.device import fast_bfloat16
from sbldm.run.errors import InputError, StateError
from sbldm.run.folder import Run
from sbldm.run.preset import Preset
from sbldm.training.checkpoints import RunCheckpoint, load_checkpoint, require_same, unfinished
from sbldm.training.data import Continuing
from sbldm.training.memory import check_memory

__all__ = [
    "MixedPrecision",
    "continued",
    "read_run_lists",
    "run",
    "validation_loss",
    "warm_up_then_cosine",
]


def read_run_lists(folder: str, preset: Preset) -> dict[str, list[str]]:
    """The case lists of a run, after checking that no overlay has put another preset in place of the run's own.

    Raises:
        StateError: nothing is prepared there, or with another preset.
    """
    run_folder = Run.at(folder)
    if run_folder.preset != preset:
        raise StateError(
            f"{folder} was prepared with the preset '{run_folder.preset.name}' and other values than those given; "
            "leave the preset out of the command, the run has it."
        )
    return read_lists(run_folder.folder)


def continued(network: torch.nn.Module, run_dir: str) -> torch.nn.Module:
    """The denoiser of regions with the weights of a run's stage 2; inputs that are new to it begin with weight 0.

    Raises:
        InputError: it is another network than that of stage 2.
        StateError: stage 2 is not trained, not to its end, or with another preset.
    """
    run = Run.at(run_dir)
    path = run.checkpoint("diffusion")
    content = load_checkpoint(path, "diffusion")
    require_same(path, content, run.preset, ("data", "grid", "intensity", "mirror", "autoencoder", "diffusion"))
    if so_far := unfinished(run, "diffusion"):
        raise StateError(f"{path}: only {so_far} done; `sbldm train --run {run_dir}` goes on.")
    as_built(run.preset, "regions", network)
    state = network.state_dict()
    for name, weights in content["network"].items():
        if weights.shape == state[name].shape:
            state[name] = weights
        else:
            state[name] = torch.zeros_like(state[name])
            state[name][:, : weights.shape[1]] = weights
    network.load_state_dict(state)
    return network


class MixedPrecision(SimpleInferer):
    """Evaluates a network in bfloat16 where its weights lie on a device that is fast in it, else as it is.

    MONAI's trainers know mixed precision on CUDA alone. Weights, losses and gradients stay in single precision, and
    bfloat16 has its range, so nothing needs scaling.

    Args:
        switch: of `choose_precision`: "auto", or "float32" for single precision everywhere.
    """

    def __init__(self, switch: str = "auto") -> None:
        super().__init__()
        self.switch = switch

    def __call__(self, inputs: torch.Tensor, network: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Outputs of the network in single precision."""
        fast = self.switch == "auto" and fast_bfloat16(inputs.device)
        with torch.autocast(inputs.device.type, torch.bfloat16, enabled=fast):
            outputs = network(inputs, *args, **kwargs)
        return tuple(x.float() for x in outputs) if isinstance(outputs, tuple) else outputs.float()


def warm_up_then_cosine(optimizer: torch.optim.Optimizer, warm_up: int, iterations: int) -> LambdaLR:
    """Learning rate rising linearly over `warm_up` iterations, then falling to zero along half a cosine."""

    # Not MONAI's WarmupCosineSchedule: its warm-up is one step behind, from a rate of 0, and it rises again at the end.
    def factor(i: int) -> float:
        if i < warm_up:
            return (i + 1) / warm_up
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (i - warm_up) / max(1, iterations - warm_up))))

    return LambdaLR(optimizer, factor)


def validation_loss(loss: torch.nn.Module) -> Loss:
    """Ignite metric: the mean of a training loss over the held-back cases."""
    return Loss(loss, output_transform=lambda output: (output["pred"], output["label"]), batch_size=len)


def run(
    trainer: Trainer,
    checkpoint: RunCheckpoint,
    sampler: Continuing,
    batch_size: int,
    resume: bool = True,
    follow: Sequence[Any] = (),
) -> None:
    """Train, with `resume` from the last checkpoint where there is one; a finished training is then left as it is.

    Handlers that `follow` the trainer are attached before the checkpoint, which keeps what they have done.
    """
    if not isinstance(resume, bool):
        raise InputError(f"--resume {resume}: must be True or False.")
    for handler in (*follow, checkpoint):
        handler.attach(trainer)
    done, total = checkpoint.resume(trainer) if resume else 0, trainer.state.max_epochs * trainer.state.epoch_length
    if done >= total:
        print(f"{checkpoint.folder}: already trained ({total} iterations); nothing to do.")
        return
    if done:
        print(f"{checkpoint.folder}: going on after iteration {done} of {total}.")
    network = checkpoint.states["network"]
    device = next(network.parameters()).device
    mixed = getattr(getattr(trainer, "inferer", None), "switch", "") == "auto" and fast_bfloat16(device)
    check_memory(checkpoint.preset, checkpoint.stage, device, mixed, network)
    if not group.rank() and (held := Run.at(checkpoint.folder.parent)).preset != checkpoint.preset:
        held.save_preset(checkpoint.preset)  # with the network that was asked for, for all steps after this
    sampler.start = done * batch_size
    trainer.run()
    said = f"validation loss {checkpoint.best:.4f}" if math.isfinite(checkpoint.best) else "of the last epoch"
    print(f"{checkpoint.folder / 'best.pt'}: {said}")
