"""The two trainings: what the bundle's configs wire together around MONAI's engines."""

from __future__ import annotations

from sbldm.device import choose_device
from sbldm.training.batches import DiffusionBatch, SliceBatch
from sbldm.training.checkpoints import RunCheckpoint
from sbldm.training.data import Continuing, LatentDataset, SliceDataset, SliceValidation
from sbldm.training.handlers import ClipGradient, FiniteLoss, MovingAverage, ProgressBar, Seeded
from sbldm.training.latents import LatentStore
from sbldm.training.losses import AutoencoderLoss
from sbldm.training.session import read_run_lists, run, validation_loss, warm_up_then_cosine

__all__ = [
    "AutoencoderLoss",
    "ClipGradient",
    "Continuing",
    "DiffusionBatch",
    "FiniteLoss",
    "LatentDataset",
    "LatentStore",
    "MovingAverage",
    "ProgressBar",
    "RunCheckpoint",
    "Seeded",
    "SliceBatch",
    "SliceDataset",
    "SliceValidation",
    "choose_device",
    "read_run_lists",
    "run",
    "validation_loss",
    "warm_up_then_cosine",
]
