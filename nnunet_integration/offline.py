"""Offline copies for the arm `real+aug5`: nnU-Net's own training transforms, drawn once and written down.

nnU-Net has no such factor (its augmentation is online), so this is one reading of the paper's "Augmented (x5)".
"""

from __future__ import annotations

import random

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

__all__ = ["augmented_copy"]

ROTATION = (-np.pi / 6, np.pi / 6)  # radians, as nnU-Net rotates 3-D patches


def augmented_copy(image: np.ndarray, labels: np.ndarray, seed: int, copy: int) -> tuple[np.ndarray, np.ndarray]:
    """One augmented copy of a whole case.

    Args:
        image: `[C, X, Y, Z]` with background 0, any intensities.
        labels: `[X, Y, Z]`, 0 background.
        seed: of the case.
        copy: number of the copy; each has random numbers of its own.

    Returns:
        Image float32 in the intensities of the original with background 0, and labels uint8.
    """
    state = int(np.random.SeedSequence([seed, copy]).generate_state(1)[0])
    random.seed(state)
    np.random.seed(state)  # noqa: NPY002 - the generator that these transforms draw from
    torch.manual_seed(state)
    brain = (image != 0).any(axis=0)
    mean = np.array([channel[brain].mean() for channel in image])[:, None, None, None]
    std = np.array([channel[brain].std() or 1 for channel in image])[:, None, None, None]
    normalised = np.where(brain, (image - mean) / std, 0).astype(np.float32)
    transforms = nnUNetTrainer.get_training_transforms(
        patch_size=labels.shape,
        rotation_for_DA=ROTATION,
        deep_supervision_scales=None,
        mirror_axes=(0, 1, 2),
        do_dummy_2d_data_aug=False,
    )
    # The brain travels as label 1, so that the background of the copy can be set to 0 again.
    segmentation = np.where(brain | (labels > 0), labels.astype(np.int16) + 1, 0)[None]
    result = transforms(image=torch.from_numpy(normalised), segmentation=torch.from_numpy(segmentation))
    moved = result["segmentation"].numpy()[0].clip(0)
    copied = np.where(moved > 0, result["image"].numpy() * std + mean, 0)
    return copied.astype(np.float32), (moved - 1).clip(0).astype(np.uint8)
