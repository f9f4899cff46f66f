"""The perceptual term runs from a local file, without any download."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models import vgg16

from sbldm.errors import InputError
from sbldm.training import AutoencoderLoss


@pytest.mark.slow
def test_lpips_from_a_local_file(tmp_path: Path) -> None:
    """With random VGG weights: zero for equal slices, and half the LPIPS distance on top of the other terms else."""
    torch.manual_seed(0)
    network = vgg16(weights=None)
    torch.save(network.state_dict(), tmp_path / "vgg16.pth")
    with_it, without = AutoencoderLoss(perceptual_weights=str(tmp_path / "vgg16.pth")), AutoencoderLoss()
    slices, zero = torch.rand(2, 2, 64, 64) * 2 - 1, torch.zeros(2, 1, 4, 4)
    posterior = (zero, zero)
    assert with_it((slices, *posterior), slices).item() == pytest.approx(without((slices, *posterior), slices).item())
    blurred = torch.nn.functional.avg_pool2d(slices, 5, 1, 2)
    image = [x[:, :1] for x in (blurred, slices)]
    own = with_it.perceptual
    torch.testing.assert_close(own.net.slice1[0].weight, network.features[0].weight)
    extra = with_it((blurred, *posterior), slices) - without((blurred, *posterior), slices)
    assert extra.item() == pytest.approx(0.5 * own(*image).mean().item(), rel=1e-3) and extra > 0


def test_perceptual_weights_that_are_not_there(tmp_path: Path) -> None:
    """A missing file, and one of another network, are named."""
    with pytest.raises(InputError, match=r"nowhere\.pth is not a file"):
        AutoencoderLoss(perceptual_weights=str(tmp_path / "nowhere.pth"))
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="perceptual_weights means the state of torchvision's vgg16"):
        AutoencoderLoss(perceptual_weights=str(tmp_path / "other.pth"))
