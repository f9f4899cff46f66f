"""The terms of stage 1's loss; the perceptual one runs from a local file, without any download."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torchvision.models import vgg16

from sbldm.run.errors import InputError
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


def test_ssim_does_not_mind_brightness() -> None:
    """A slice that is 2 % brighter costs its L1 and next to nothing in SSIM, wherever on the scale it lies; blur does.

    SSIM's luminance term of two flat regions m and m + d is 1 - d^2 / (m^2 + (m + d)^2 + K1^2), here on [0, 1].
    """
    zero = torch.zeros(1, 1, 4, 4)
    loss = AutoencoderLoss()
    for level in (0.3, 0.5, 0.8):
        flat = torch.full((1, 1, 32, 32), 2 * level - 1)
        brighter = flat + 2 * 0.02
        expected = 0.04 + 0.02**2 / (level**2 + (level + 0.02) ** 2 + 0.01**2)
        assert loss((brighter, zero, zero), flat).item() == pytest.approx(expected, abs=1e-3)  # float32 variances
        assert loss((brighter, zero, zero), flat).item() < 0.043
    texture = torch.rand(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)) - 0.5
    blurred = torch.nn.functional.avg_pool2d(texture, 3, 1, 1)
    assert loss((blurred, zero, zero), texture).item() > 0.04 + (blurred - texture).abs().mean().item()
