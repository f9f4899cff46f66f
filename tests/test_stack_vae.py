"""The slice VAE with aggregated latents: what its latents stand for, and what they reach."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sbldm.evaluation.costs import model_costs
from sbldm.networks import StackVAE
from sbldm.networks.blocks import ChannelNorm
from sbldm.run.errors import InputError
from sbldm.run.folder import load_preset
from sbldm.training import AutoencoderLoss

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network() -> StackVAE:
    torch.manual_seed(0)
    return StackVAE(2, [8, 12], 4, 8, aggregation=3, patch=2).eval()


@pytest.fixture(scope="module")
def volume() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (2, 16, 24, 18)).astype(np.float32)


def test_shapes(network: StackVAE, volume: np.ndarray) -> None:
    """The plane shrinks by patch and levels, slices by the aggregation, and all come back."""
    assert network.factor == 4
    latents = network.encode_volume(volume, CPU)
    assert latents.shape == (2, 4, 4, 6, 6)
    assert network.decode_volume(torch.from_numpy(latents[0])).shape == volume.shape


def test_a_stack_is_encoded_as_in_its_volume(network: StackVAE, volume: np.ndarray) -> None:
    """Slices 6 to 11 alone give the latents 2 and 3 of the whole volume: nothing looks beyond its three slices."""
    slices = torch.from_numpy(volume[..., 6:12]).permute(3, 0, 1, 2)
    mean, _ = network.encode(slices, torch.arange(6, 12), 6)
    np.testing.assert_allclose(mean[0].detach(), network.encode_volume(volume, CPU)[0][..., 2:4], atol=1e-5)


def test_single_slices_are_refused(network: StackVAE) -> None:
    """The configs of single slices, without the overlay of stacks, are answered with its name."""
    with pytest.raises(InputError, match="stacks of 1 slices: latents are shared by 3"):
        network(torch.zeros(6, 2, 16, 24), torch.arange(6))


def test_it_begins_as_the_slice_decoder(network: StackVAE) -> None:
    """The convolutions along z start at zero: a latent reaches its own three slices alone."""
    latents = torch.randn(4, 4, 6, 6)
    before = network.decode_volume(latents)
    latents[..., 2] += 1
    moved = np.abs(network.decode_volume(latents) - before).max(axis=(0, 1, 2)) > 1e-6
    assert moved.tolist() == [6 <= z < 9 for z in range(18)]


def test_neighbours_agree_after_training(volume: np.ndarray) -> None:
    """With weights along z a latent reaches its neighbours' slices: one latent, then a slice at each of two levels."""
    torch.manual_seed(0)
    network = StackVAE(2, [8, 12], 4, 8, aggregation=3, patch=2).eval()
    for layer in network.agree:
        torch.nn.init.normal_(layer.weight, std=0.3)
    latents = torch.randn(4, 4, 6, 6)
    before = network.decode_volume(latents)
    latents[..., 2] += 1
    moved = np.abs(network.decode_volume(latents) - before).max(axis=(0, 1, 2)) > 1e-6
    assert moved.tolist() == [6 - 3 - 2 <= z < 9 + 3 + 2 for z in range(18)]


def test_position_matters(volume: np.ndarray) -> None:
    torch.manual_seed(0)
    network = StackVAE(2, [8, 12], 4, 8, aggregation=3, patch=2).eval()
    for block in network.encoder:  # whose branch starts at zero
        torch.nn.init.normal_(block.conv2.weight, std=0.1)
    slices = torch.from_numpy(volume[..., :3]).permute(3, 0, 1, 2)
    here, _ = network.encode(slices, torch.arange(3), 3)
    there, _ = network.encode(slices, torch.arange(9, 12), 3)
    assert (here - there).abs().max() > 1e-3


def test_noise_is_for_training_alone(volume: np.ndarray) -> None:
    """In training the decoder gets noised latents, afterwards the posterior's mean; the posterior starts narrow."""
    torch.manual_seed(0)
    network = StackVAE(2, [8, 12], 4, 8, aggregation=3, latent_noise=1.0, patch=2)
    slices, position = torch.from_numpy(volume[..., :6]).permute(3, 0, 1, 2), torch.arange(6)
    first, _, log_variance = network(slices, position, 6)
    assert not torch.equal(first, network(slices, position, 6)[0])
    assert log_variance.mean().item() == pytest.approx(-4, abs=0.5)
    network.eval()
    again = network(slices, position, 6)
    torch.testing.assert_close(again[0], network.decode(again[1], position, 6))
    assert torch.equal(again[0], network(slices, position, 6)[0])


@pytest.mark.parametrize(("name", "factor"), [("small", 4), ("fast", 8)])
def test_costs_know_it(name: str, factor: int) -> None:
    """The cost table counts stacks."""
    preset = load_preset(name)
    assert preset.autoencoder.kind == "stack"
    z, h, w, d = preset.latent_shape
    size, network = preset.grid.size, preset.autoencoder.network
    assert (z, d) == (network.latent_channels, size[2] // network.aggregation)
    assert (h, w) == (size[0] // factor, size[1] // factor)
    costs = model_costs(preset)
    assert costs["decode"].macs < costs["encode"].macs * 2
    drawn = 2 * preset.sampling.steps * costs["step"].macs + costs["decode"].macs  # guidance: twice
    assert costs["sample"].macs == pytest.approx(drawn, rel=1e-9)


def test_windows_are_as_planes() -> None:
    """No norm looks beyond a pixel: far enough from the border a window is encoded and decoded as in its plane."""
    torch.manual_seed(0)
    network = StackVAE(2, [8, 12], 8, 8, aggregation=3, patch=2, parts=2).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    slices = torch.full((6, 2, 96, 144), -1.0)  # a brain with its background
    slices[:, :, 20:76, 28:116] = torch.rand(6, 2, 56, 88) * 2 - 1
    window, position = slices[:, :, 24:72, 32:112], torch.arange(6)
    whole, part = (network.encode(x, position, 6)[0] for x in (slices, window))
    torch.testing.assert_close(part[:, :, 5:-5, 5:-5], whole[:, :, 6:18, 8:28][:, :, 5:-5, 5:-5], atol=1e-4, rtol=1e-4)
    drawn, part = (network.decode(z, position, 6) for z in (whole, whole[:, :, 6:18, 8:28]))
    inner = slice(20, -20)
    wanted = drawn[:, :, 24:72, 32:112][:, :, inner, inner]
    assert wanted.std() > 0.1
    torch.testing.assert_close(part[:, :, inner, inner], wanted, atol=1e-4, rtol=1e-4)


def test_norm_of_channels() -> None:
    """(3, 4) has a root mean square of sqrt(12.5); in half precision the mean is not taken in it."""
    norm = ChannelNorm(2)
    torch.nn.init.constant_(norm.weight, 2.0)
    x = torch.tensor([3.0, 4.0]).view(1, 2, 1, 1)
    torch.testing.assert_close(norm(x).flatten(), torch.tensor([6.0, 8.0]) / 12.5**0.5)
    assert norm(x.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(norm(x.bfloat16()).float(), norm(x), rtol=0.01, atol=0)


def test_it_begins_as_a_small_brain() -> None:
    """Before any training the latents are the means over parts of 2 x 2 pixels of 3 slices, and put up again."""
    torch.manual_seed(0)
    network = StackVAE(2, [8, 12], 9, 8, aggregation=3, patch=2, parts=2).eval()
    slices = torch.rand(6, 2, 8, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, _ = network.encode(slices, torch.arange(6), 6)
    parts = slices.view(2, 3, 2, 4, 2, 6, 2).mean(dim=(1, 4, 6))  # [stacks, channels, 4, 6]
    for channel in range(2):
        for x, y in np.ndindex(2, 2):
            torch.testing.assert_close(mean[0, 4 * channel + 2 * x + y, ..., 0], parts[0, channel, x::2, y::2])
            torch.testing.assert_close(mean[0, 4 * channel + 2 * x + y, ..., 1], parts[1, channel, x::2, y::2])
    drawn = network.decode(mean, torch.arange(6), 6)
    flat = torch.nn.functional.interpolate(parts.movedim(0, -1)[None], (8, 12, 6), mode="trilinear")[0].movedim(-1, 0)
    torch.testing.assert_close(drawn, flat)


def test_anchored_latents() -> None:
    """The loss names how far the first latents are from the means over their cells: 3 slices of 4 x 4 pixels."""
    loss = AutoencoderLoss(kl_weight=0.0, ssim=False, anchor_weight=0.5, parts=1)
    slices = torch.rand(6, 2, 8, 12, generator=torch.Generator().manual_seed(0)) * 2 - 1
    cells = slices.view(2, 3, 2, 2, 4, 3, 4).mean(dim=(1, 4, 6)).unsqueeze(-1)  # [stacks, channels, 2, 3, 1]
    mean = torch.cat([cells, torch.randn(2, 2, 2, 3, 1)], dim=1)
    assert loss((slices, mean, 0 * mean), slices).item() == pytest.approx(0, abs=1e-7)
    mean[:, 1] += 0.2  # of the mask, half of what is anchored
    assert loss((slices, mean, 0 * mean), slices).item() == pytest.approx(0.5 * 0.2**2 / 2, rel=1e-5)
