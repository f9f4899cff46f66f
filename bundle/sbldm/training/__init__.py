"""The trainings: what the bundle's configs wire together around MONAI's engines."""

from __future__ import annotations

from sbldm.run.device import choose_device, choose_precision
from sbldm.run.group import is_first, join
from sbldm.training.adversarial import Adversary, GanLosses, VaeGanLoss, clip_before_steps
from sbldm.training.batches import DiffusionBatch, OwnPart, SliceBatch
from sbldm.training.cases import measure_cases
from sbldm.training.checkpoints import RunCheckpoint
from sbldm.training.data import Continuing, Dealt, LatentDataset, SliceDataset, SliceValidation, VolumeDataset
from sbldm.training.handlers import ClipGradient, FiniteLoss, MovingAverage, ProgressBar, Seeded, Together
from sbldm.training.latents import LatentStore
from sbldm.training.losses import AutoencoderLoss, DiffusionLoss
from sbldm.training.optimizers import build_optimizer
from sbldm.training.refiner import RefinerBatch, RefinerPairs
from sbldm.training.session import (
    MixedPrecision,
    continued,
    read_run_lists,
    run,
    validation_loss,
    warm_up_then_cosine,
)
from sbldm.training.weights import begin_with

__all__ = [
    "Adversary",
    "AutoencoderLoss",
    "ClipGradient",
    "Continuing",
    "Dealt",
    "DiffusionBatch",
    "DiffusionLoss",
    "FiniteLoss",
    "GanLosses",
    "LatentDataset",
    "LatentStore",
    "MixedPrecision",
    "MovingAverage",
    "OwnPart",
    "ProgressBar",
    "RefinerBatch",
    "RefinerPairs",
    "RunCheckpoint",
    "Seeded",
    "SliceBatch",
    "SliceDataset",
    "SliceValidation",
    "Together",
    "VaeGanLoss",
    "VolumeDataset",
    "begin_with",
    "build_optimizer",
    "choose_device",
    "choose_precision",
    "clip_before_steps",
    "continued",
    "is_first",
    "join",
    "measure_cases",
    "read_run_lists",
    "run",
    "validation_loss",
    "warm_up_then_cosine",
]
