"""Losses of stage 1 (authors' configuration at paper time, reference table in the documentation) and of stage 2."""

from __future__ import annotations

from pathlib import Path

import torch
from monai.losses import DiceLoss, SSIMLoss
from torch import nn

from sbldm.networks.slice_vae import cell_means
from sbldm.run import group
from sbldm.run.errors import InputError
from sbldm.run.files import reading

__all__ = ["AutoencoderLoss", "DiffusionLoss"]


class AutoencoderLoss(nn.Module):
    """L1 + (1 - SSIM) on all channels + KL, and LPIPS on the image channels where local weights are given.

    SSIM is taken on [0, 1]: its luminance term compares with the mean's square, and around 0, the middle of [-1, 1],
    a brightness shift of 2 % would cost .076 of a real slice in place of .0014. KL is summed over the latents and
    divided by the batch; the other terms are means, but for Dice, which is that of the whole batch. The Dice term is
    ours: L1 alone is content with empty masks for the first thousands of slices, which short trainings cannot afford.

    Args:
        kl_weight: weight of the KL divergence.
        image_channels: how many of the first channels are images (for LPIPS), the others being labels (for Dice).
        dice_weight: weight of the soft Dice loss of the labels.
        perceptual_weights: local file with the state of torchvision's `vgg16`, or None; needs the package lpips.
        perceptual_weight: weight of that term.
        ssim: whether SSIM takes part; it does not for volumes, where its window would cost more than the network.
        bce_weight: weight of the binary cross-entropy of the labels, four times the output being the logit: the
            probability is .02 and .98 at -1 and 1, where the labels are.
        anchor_weight: weight of the squared distance of the anchored latents from the slices' means over their cells.
        parts: into how many parts a side of a cell is divided for these, as for `StackVAE`.

    Raises:
        InputError: `perceptual_weights` names no such file, or lpips is not installed.
    """

    def __init__(
        self,
        kl_weight: float = 1e-6,
        image_channels: int = 1,
        dice_weight: float = 0.0,
        perceptual_weights: str | None = None,
        perceptual_weight: float = 0.5,
        ssim: bool = True,
        bce_weight: float = 0.0,
        anchor_weight: float = 0.0,
        parts: int = 0,
    ) -> None:
        super().__init__()
        self.kl_weight, self.image_channels, self.perceptual_weight = kl_weight, image_channels, perceptual_weight
        self.dice_weight, self.dice, self.bce_weight = dice_weight, DiceLoss(batch=True), bce_weight
        self.anchor_weight, self.parts = anchor_weight, parts
        self.ssim = SSIMLoss(spatial_dims=2, data_range=1.0) if ssim else None
        self.perceptual = _perceptual(perceptual_weights) if perceptual_weights else None

    def forward(
        self, prediction: tuple[torch.Tensor, torch.Tensor, torch.Tensor], target: torch.Tensor
    ) -> torch.Tensor:
        """Loss of `(reconstruction, mean, log_variance)` against slices `[B, C + L, X, Y]` (or volumes)."""
        reconstruction, mean, log_variance = prediction
        kl = 0.5 * (mean**2 + log_variance.exp() - 1 - log_variance).sum() / len(mean)
        loss = (reconstruction - target).abs().mean() + self.kl_weight * kl
        if self.ssim is not None:
            loss = loss + self.ssim((reconstruction + 1) / 2, (target + 1) / 2)
        if self.dice_weight:
            labels = [(x[:, self.image_channels :].clamp(-1, 1) + 1) / 2 for x in (reconstruction, target)]
            loss = loss + self.dice_weight * self.dice(*map(group.gathered, labels))
        if self.bce_weight:
            logits, labels = 4 * reconstruction[:, self.image_channels :], (target[:, self.image_channels :] > 0)
            loss = loss + self.bce_weight * nn.functional.binary_cross_entropy_with_logits(logits, labels.to(logits))
        if self.anchor_weight:
            means = cell_means(target, mean.shape, self.parts)
            loss = loss + self.anchor_weight * nn.functional.mse_loss(mean[:, : means.shape[1]], means)
        if self.perceptual is not None:
            images = [x[:, : self.image_channels].flatten(0, 1).unsqueeze(1) for x in (reconstruction, target)]
            loss = loss + self.perceptual_weight * self.perceptual(*images).mean()
        return loss


class DiffusionLoss(nn.Module):
    """Mean squared error of what is predicted `[B, Z, H, W, D]`, within the region where there is one.

    Outside of it the target is 0, and the prediction too. A region of a hundredth of the volume would count a hundredth
    of a whole brain; it counts a tenth, the root of its share.
    """

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """The loss of a batch."""
        region = (target != 0).any(dim=1, keepdim=True).to(target)
        share = region.mean(dim=(1, 2, 3, 4), keepdim=True).clamp(min=1 / region[0].numel())
        return ((prediction - target).square() / share.sqrt()).mean()


def _perceptual(weights: str) -> nn.Module:
    """LPIPS with the heads that its package ships and a VGG-16 from a local file, so that nothing is downloaded."""
    if not Path(weights).is_file():
        raise InputError(f"perceptual_weights: {weights} is not a file; give the whole path of a local one, or null.")
    try:
        from lpips import LPIPS
    except ImportError:
        raise InputError("perceptual_weights: the package lpips is missing; pip install 'lpips>=0.1.4,<0.2'.") from None
    network = LPIPS(net="vgg", pnet_rand=True, verbose=False)
    with reading(weights, "perceptual_weights means the state of torchvision's vgg16", False, InputError):
        stored = torch.load(weights, map_location="cpu", weights_only=True)
        # lpips cuts torchvision's `features` into slices that keep the layers' numbers
        network.net.load_state_dict({k: stored[f"features.{k.split('.', 1)[1]}"] for k in network.net.state_dict()})
    return network.requires_grad_(False).eval()
