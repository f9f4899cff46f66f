"""The two trainers of the arms, found by nnU-Net through `nnUNet_extTrainer`; this folder must hold nothing else.

They change no method of training: a budget, a seed, checkpoints that survive a kill, snapshots for the learning curve,
and how often pairs are drawn, all read from the job file that `SBLDM_JOB` names. nnU-Net imports this file as a
top-level module.
"""

from __future__ import annotations

import csv
import json
import os
import random
from pathlib import Path

import numpy as np
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.training.nnUNetTrainer.variants.data_augmentation.nnUNetTrainerNoDA import nnUNetTrainerNoDA

CURVE = ("epoch", "iterations", "train_loss", "validation_loss", "validation_dsc", "seconds")


REAL = ("real__", "aug5__")  # what the pool calls real cases and their copies


def share_at(corners: list[list[float]], epoch: int, epochs: int) -> float:
    """Share of draws that are synthetic in one of `epochs` epochs, at its middle."""
    return float(np.interp((epoch + 0.5) / epochs, *np.transpose(corners)))


class _Job:
    """What both trainers add; the signature of `__init__` is nnU-Net's own, which it inspects."""

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.job_file = Path(os.environ["SBLDM_JOB"])
        self.job = json.loads(self.job_file.read_text())
        budget = self.job["budget"]
        self.num_iterations_per_epoch = budget["iterations_per_epoch"]
        self.num_val_iterations_per_epoch = budget["validation_iterations"]
        self.num_epochs = budget["iterations"] // budget["iterations_per_epoch"]
        self.save_every = budget["save_every"]
        self.logger.plot_progress_png = lambda *_: None  # a second an epoch; curve.csv says the same
        self._seed(-1)

    def _seed(self, epoch: int) -> None:
        """Every epoch has its own seed, so that a resumed training takes the way of an uninterrupted one."""
        seed = int(np.random.SeedSequence([self.job["seed"], epoch + 1]).generate_state(1)[0])
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - the generator that nnU-Net's data loader draws from
        torch.manual_seed(seed)

    def initialize(self):
        super().initialize()
        if self.device.type == "cpu":  # the same sums in another order of memory, a quarter faster
            self.network.to(memory_format=torch.channels_last_3d)

    def get_dataloaders(self):
        self.drawn = None
        return super().get_dataloaders()

    def on_epoch_start(self):
        self._seed(self.current_epoch)
        if self.job.get("share"):
            self._draw_pairs(share_at(self.job["share"], self.current_epoch, self.num_epochs))
        super().on_epoch_start()

    def _draw_pairs(self, share: float) -> None:
        """Let the loader of the training draw pairs with this probability in all, and real cases otherwise."""
        if share == self.drawn:
            return
        workers = isinstance(self.dataloader_train, NonDetMultiThreadedAugmenter)
        loader = self.dataloader_train.generator if workers else self.dataloader_train.data_loader
        pair = np.array([not name.startswith(REAL) for name in loader.indices])
        loader.sampling_probabilities = np.where(pair, share / pair.sum(), (1 - share) / (~pair).sum())
        if workers:
            self.dataloader_train._finish()  # its workers hold copies of the loader; the next batch starts new ones
        self.drawn = share

    def on_epoch_end(self):
        done = (self.current_epoch + 1) * self.num_iterations_per_epoch
        if done in self.job["budget"]["snapshots"]:  # before the checkpoint from which a resumed training goes on
            self.save_checkpoint(os.path.join(self.output_folder, f"checkpoint_{done:06d}.pth"))
        super().on_epoch_end()
        iterations, last = self.current_epoch * self.num_iterations_per_epoch, {}
        for name in ("train_losses", "val_losses", "mean_fg_dice", "epoch_start_timestamps", "epoch_end_timestamps"):
            last[name] = float(self.logger.get_value(name, step=-1))
        seconds = last["epoch_end_timestamps"] - last["epoch_start_timestamps"]
        values = (last["train_losses"], last["val_losses"], last["mean_fg_dice"], seconds)
        file = self.job_file.parent / "curve.csv"
        # A kill may have left rows of epochs that are done again; one between checkpoint and row loses that row.
        rows = [row for row in csv.reader(file.open()) if row[0].isdigit()] if file.exists() else []
        rows = [row for row in rows if int(row[0]) < self.current_epoch]
        rows.append([self.current_epoch, iterations, *(f"{value:.5g}" for value in values)])
        temporary = file.with_suffix(".tmp")
        with temporary.open("w", newline="") as stream:
            csv.writer(stream).writerows([CURVE, *rows])
        temporary.replace(file)

    def save_checkpoint(self, filename: str) -> None:
        """Whole or not at all: nnU-Net would resume from a half-written file."""
        super().save_checkpoint(f"{filename}.tmp")
        if os.path.exists(f"{filename}.tmp"):
            os.replace(f"{filename}.tmp", filename)

    def perform_actual_validation(self, save_probabilities: bool = False):
        """Left out: the score is that of the test cases, predicted afterwards from their raw files."""


class SBLDMTrainer(_Job, nnUNetTrainer):
    """nnU-Net with its standard online augmentation."""


class SBLDMTrainerNoAugmentation(_Job, nnUNetTrainerNoDA):
    """nnU-Net without any augmentation (crops alone)."""
