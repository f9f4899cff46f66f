"""The networks in numbers: the authors' sizes, what conditions them, and known answers of the blocks and the loss."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sbldm.diffusion import Schedule
from sbldm.networks import LatentUNet, SliceVAE, build_autoencoder, build_denoiser
from sbldm.networks.blocks import ResidualBlock
from sbldm.networks.latent_unet import one_hot
from sbldm.networks.request_picture import RequestPicture
from sbldm.networks.slice_vae import StackVAE, as_labels, as_regions
from sbldm.run.errors import InputError
from sbldm.run.folder import load_preset, within_regions
from sbldm.run.preset import Preset
from sbldm.training.batches import MARGIN_MM, DiffusionBatch
from sbldm.training.losses import AutoencoderLoss, DiffusionLoss
from sbldm.tumour.characteristics import sphere_surface
from sbldm.tumour.normaliser import Normaliser

TINY_VAE = {"channels": [8, 16], "latent_channels": 3, "groups": 4}
TINY_UNET = {
    "latent_channels": 2,
    "channels": [8, 16],
    "strides": [2],
    "num_res_blocks": 1,
    "embedding": 16,
    "groups": 4,
}


def shaken(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network in eval mode with every parameter moved at random, the zero-initialised ones too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def macs(network: nn.Module, *inputs: torch.Tensor, call: str = "forward") -> float:
    """Multiply-adds of one call: half of what PyTorch's counter calls FLOPs, biases and norms left out."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        getattr(network, call)(*inputs)
    return counter.get_total_flops() / 2


@pytest.fixture(scope="module")
def paper() -> tuple[SliceVAE, LatentUNet]:
    """Both networks of the preset `paper`, without memory."""
    preset = load_preset("paper")
    with torch.device("meta"):
        return build_autoencoder(preset), build_denoiser(preset)


def test_counter_counts_linear_and_transposed_layers():
    """The counter behind the MAC figures gives the textbook numbers for every kind of layer in use."""
    with torch.device("meta"):
        assert macs(nn.Linear(9, 256), torch.empty(3, 9)) == 3 * 9 * 256
        assert macs(nn.Conv2d(4, 8, 3, stride=2, padding=1), torch.empty(1, 4, 10, 10)) == 4 * 8 * 9 * 5 * 5
        up = nn.ConvTranspose3d(4, 8, 4, stride=2, padding=1)
        assert macs(up, torch.empty(1, 4, 6, 6, 6)) == 4 * 8 * 4**3 * 6**3


def test_paper_autoencoder_has_the_authors_size(paper):
    """27.093 M parameters; 98.0 GMAC a 192x192 slice, 36.8 of them to encode and 61.2 to decode; 8x in-plane."""
    autoencoder, _ = paper
    slice_, latents, position = (
        torch.empty(shape, device="meta") for shape in ((1, 2, 192, 192), (1, 6, 24, 24), (1,))
    )
    assert parameters(autoencoder) == pytest.approx(27.093e6, rel=0.01)
    assert macs(autoencoder, slice_, position) == pytest.approx(98.0e9, rel=0.01)
    assert macs(autoencoder, slice_, position, call="encode") == pytest.approx(36.8e9, rel=0.01)
    assert macs(autoencoder, latents, position, call="decode") == pytest.approx(61.2e9, rel=0.01)
    assert autoencoder.encode(slice_, position)[0].shape == latents.shape
    assert autoencoder.factor == 8


def test_paper_denoiser_has_the_authors_size(paper):
    """135.18 M parameters and 523.735 GMAC for one step on 6x24x24x96 latents."""
    _, denoiser = paper
    latents, time, condition = (torch.empty(shape, device="meta") for shape in ((1, 6, 24, 24, 96), (1,), (1, 9)))
    assert parameters(denoiser) == pytest.approx(135.18e6, rel=0.01)
    assert macs(denoiser, latents, time, condition) == pytest.approx(523.735e9, rel=0.01)
    assert denoiser(latents, time, condition).shape == latents.shape


def test_channels_and_labels_come_from_the_preset_alone():
    """Two modalities and three labels instead of one of each change the first and last layer of stage 1 alone.

    In stage 2 the condition vector gains the shares of tissues that these labels tell apart.
    """
    preset = load_preset("demo")
    labels = {"oedema": "oedema", "core": "necrotic", "active": "enhancing"}
    more = preset.but(data={"channels": ["flair", "t1ce"], "labels": labels})
    with torch.device("meta"):
        one, many = (
            {name: tuple(p.shape) for name, p in build_autoencoder(values).named_parameters()}
            for values in (preset, more)
        )
        nine, eleven = (
            {n: tuple(p.shape) for n, p in build_denoiser(values).named_parameters()} for values in (preset, more)
        )
        width = nine["condition.0.weight"][0]
        assert nine | {"condition.0.weight": (width, 11)} == eleven and nine["condition.0.weight"] == (width, 9)
        assert build_denoiser(more, 9).built == build_denoiser(preset).built, "as before there were shares"
    assert one.keys() == many.keys()
    assert {name: (one[name], many[name]) for name in one if one[name] != many[name]} == {
        "encoder_in.norm1.weight": ((2,), (5,)),
        "encoder_in.norm1.bias": ((2,), (5,)),
        "encoder_in.conv1.weight": ((16, 2, 3, 3), (16, 5, 3, 3)),
        "encoder_in.skip.weight": ((16, 2, 1, 1), (16, 5, 1, 1)),
        "to_slice.weight": ((2, 16, 3, 3), (5, 16, 3, 3)),
        "to_slice.bias": ((2,), (5,)),
    }


def test_slice_position_reaches_encoder_and_decoder():
    """Another slice index alone changes the posterior and the decoded slice; equal indices do not."""
    network = shaken(SliceVAE(position_embedding=8, **TINY_VAE))
    slices, latents = normal(1, 2, 16, 16).repeat(3, 1, 1, 1), normal(1, 3, 8, 8).repeat(3, 1, 1, 1)
    position = torch.tensor([3.0, 3.0, 40.0])
    with torch.no_grad():
        for output in (*network.encode(slices, position), network.decode(latents, position)):
            torch.testing.assert_close(output[0], output[1])
            assert (output[0] - output[2]).abs().mean() > 0.05 * output[0].std()


def test_embeddings_reach_every_block():
    """Every residual block of both networks, on the way in and out, is told position, or time and tumour."""
    autoencoder, denoiser = shaken(SliceVAE(position_embedding=8, **TINY_VAE)), shaken(LatentUNet(**TINY_UNET))
    autoencoder(normal(2, 2, 16, 16), torch.tensor([3.0, 40.0]))[0].square().mean().backward()
    denoiser(normal(2, 2, 4, 4, 8), torch.tensor([500, 20]), normal(2, 9)).square().mean().backward()
    for network, blocks in ((autoencoder, 4), (denoiser, 6)):
        layers = [module.scale_shift for module in network.modules() if isinstance(module, ResidualBlock)]
        assert len(layers) == blocks
        assert all(layer.weight.grad is not None and layer.weight.grad.abs().max() > 0 for layer in layers)


def test_ablation_without_slice_position():
    """`position_embedding=0` has no such parameters, and the slice index changes nothing."""
    network = shaken(SliceVAE(position_embedding=0, **TINY_VAE))
    slices = normal(2, 2, 16, 16)
    with torch.no_grad():
        first, second = (network(slices, torch.full((2,), index)) for index in (3.0, 40.0))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not [name for name, _ in network.named_parameters() if "position" in name or "scale_shift" in name]


def test_autoencoder_in_eval_mode_decodes_the_mean():
    """Deterministic, and exactly the decoded posterior mean."""
    network, slices, position = shaken(SliceVAE(**TINY_VAE)), normal(2, 2, 16, 16), torch.tensor([3.0, 5.0])
    with torch.no_grad():
        first, second = network(slices, position), network(slices, position)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        assert torch.equal(first[0], network.decode(first[1], position))


def test_autoencoder_in_training_samples_the_posterior(monkeypatch):
    """What is decoded in training has the posterior's mean and standard deviation, element by element."""
    network = shaken(SliceVAE(**TINY_VAE)).train()
    decoded: list[torch.Tensor] = []
    monkeypatch.setattr(network, "decode", lambda z, position: decoded.append(z) or z)
    n = 20_000
    with torch.no_grad():
        torch.manual_seed(0)
        _, mean, log_variance = network(normal(1, 2, 4, 4).expand(n, -1, -1, -1), torch.full((n,), 7.0))
    std = (0.5 * log_variance[0]).exp()
    assert std.max() / std.min() > 1.2  # or one common number would pass
    error = (decoded[0].mean(0) - mean[0]) / std
    assert error.abs().max() < 5 / math.sqrt(n)
    torch.testing.assert_close(decoded[0].std(0), std, rtol=5 / math.sqrt(2 * n), atol=0)


def test_residual_block_starts_as_its_skip():
    """Before training a block is the identity, or its 1-wide convolution, whatever the embedding."""
    x, e = normal(2, 8, 5, 6, 7), normal(2, 16, seed=2)
    assert torch.equal(ResidualBlock(3, 8, 8, 16, 4)(x, e), x)
    widening = ResidualBlock(3, 8, 12, 16, 4)
    assert torch.equal(widening(x, e), widening.skip(x))


def test_scale_shift_known_answer():
    """The embedding enters as `h (1 + scale) + shift` behind the second norm, first half scale, second half shift."""
    block = ResidualBlock(2, 8, 8, embedding=3, groups=4)
    scale, shift = normal(8, seed=3), normal(8, seed=4)
    with torch.no_grad():
        block.scale_shift.weight.zero_()
        block.scale_shift.bias.copy_(torch.cat([scale, shift]))
        nn.init.dirac_(block.conv2.weight)  # makes the second convolution the identity
        x = normal(2, 8, 6, 6)
        h = nn.functional.group_norm(block.conv1(nn.functional.silu(nn.functional.group_norm(x, 4))), 4)
        expected = x + nn.functional.silu(h * (1 + scale.view(1, 8, 1, 1)) + shift.view(1, 8, 1, 1))
        torch.testing.assert_close(block(x, normal(2, 3)), expected)
        torch.testing.assert_close(block(x), x + nn.functional.silu(h))


def test_denoiser_starts_at_zero():
    """An untrained denoiser says 0 for every input."""
    network = LatentUNet(**TINY_UNET)
    output = network(normal(2, 2, 4, 4, 8), torch.tensor([3, 900]), normal(2, 9))
    assert output.shape == (2, 2, 4, 4, 8)
    assert not output.any()


def test_condition_and_time_change_the_denoiser():
    """Each of the nine characteristics and the time step change the output of an otherwise equal row."""
    network = shaken(LatentUNet(**TINY_UNET))
    x = normal(1, 2, 4, 4, 8)
    conditions = torch.cat([torch.zeros(2, 9), torch.eye(9)])
    time = torch.full((11,), 500)
    time[1] = 20
    with torch.no_grad():
        output = network(x.expand(11, -1, -1, -1, -1), time, conditions)
    assert (output[1:] - output[0]).abs().flatten(1).mean(1).min() > 1e-3 * output[0].std()


def test_no_request_is_the_null_condition_row_by_row():
    """A row with a NaN equals `context=None`, which is the learned null condition, and leaves the other rows alone."""
    network = shaken(LatentUNet(**TINY_UNET))
    x, time, asked = normal(4, 2, 4, 4, 8), torch.tensor([500, 20, 500, 20]), normal(4, 9)
    mixed = asked.clone()
    mixed[1], mixed[3, 5] = torch.nan, torch.nan
    with torch.no_grad():
        full, free, some = network(x, time, asked), network(x, time, None), network(x, time, mixed)
        torch.testing.assert_close(some[[0, 2]], full[[0, 2]], rtol=0, atol=1e-5)
        torch.testing.assert_close(some[[1, 3]], free[[1, 3]], rtol=0, atol=1e-5)
        assert (full - free).abs().flatten(1).mean(1).min() > 0.01 * free.std()
        for row in range(4):
            alone = network(x[[row]], time[[row]], mixed[[row]])
            torch.testing.assert_close(alone[0], some[row], rtol=0, atol=1e-5)
        torch.testing.assert_close(network.embed(time, None), network.time(time) + network.null_condition)
        network.null_condition += 1
        assert (network(x, time, None) - free).abs().max() > 0.01 * free.std()
        torch.testing.assert_close(network(x, time, asked), full)


def test_labels_as_nested_regions_known_answer():
    """Necrotic, oedema, enhancing as whole tumour, core, enhancing, and back; what reaches out of a region is cut."""
    shares = torch.tensor([0.2, 0.3, 0.4])
    slices = torch.cat([torch.full((1,), 0.7), 2 * shares - 1]).view(1, 4, 1, 1).expand(2, 4, 3, 3)
    regions = as_regions(slices, (2, 1, 3))
    assert regions[0, :, 0, 0].tolist() == pytest.approx([0.7, 2 * 0.9 - 1, 2 * 0.6 - 1, 2 * 0.4 - 1])
    assert torch.allclose(as_labels(regions, (2, 1, 3)), slices, atol=1e-6)
    assert as_regions(slices, ()) is slices and as_labels(slices, ()) is slices
    torn = as_labels(torch.tensor([0.7, -1, 1, 0.0]).view(1, 4, 1, 1), (2, 1, 3))
    assert torn.flatten().tolist() == pytest.approx([0.7, -1, -1, -1]), "no core outside of the tumour"
    drawn = as_labels(normal(50, 4, 3, 3).clamp(-1, 1), (2, 1, 3))
    assert ((drawn[:, 1:] + 1) / 2).sum(1).max() <= 1 + 1e-6, "labels share a voxel, they do not overlap"


@pytest.mark.parametrize("kind", [SliceVAE, StackVAE])
def test_volumes_hold_labels_whatever_the_network_takes(kind, monkeypatch):
    """A network of nested regions gets regions and gives labels; with an encoder and decoder that keep, the same."""
    values = {"in_channels": 4, "channels": [8, 16], "latent_channels": 4, "nested": [2, 1, 3]}
    network = kind(**values, **({"aggregation": 1} if kind is StackVAE else {"groups": 4})).eval()
    seen = []
    monkeypatch.setattr(network, "encode", lambda x, *_: (seen.append(x) or x.permute(0, 1, 2, 3), x))
    monkeypatch.setattr(network, "decode", lambda z, *_: seen[0])
    shares = np.random.default_rng(0).dirichlet(np.ones(4), (6, 6, 5))[..., :3].transpose(3, 0, 1, 2)
    volume = np.concatenate([np.zeros((1, 6, 6, 5)), 2 * shares - 1]).astype(np.float32)
    network.encode_volume(volume, torch.device("cpu"))
    assert seen[0][2, 1, 4, 3].item() == pytest.approx(2 * shares[:, 4, 3, 2].sum() - 1, abs=1e-6)
    assert network.decode_volume(torch.zeros(4, 3, 3, 5)) == pytest.approx(volume, abs=1e-5)


def test_one_hot_known_answer():
    """Twelve bits of nine numbers: x, y, z below or above the mean, volume and sphericity in thirds of a normal."""
    conditions = torch.zeros(2, 9)
    conditions[0, [0, 2, 3, 4, 5]] = torch.tensor([-1.0, 0.0, 0.5, -0.5, 2.0])
    conditions[1, [0, 2, 3, 4, 5]] = torch.tensor([1.0, -0.44, -0.5, 0.0, -3.0])
    bits = [[0, 1, 1, 0, 0, 1, 1, 0, 0, 0, 1, 0], [1, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0]]
    assert one_hot(conditions).tolist() == bits
    shares = one_hot(normal(3000, 9)).mean(0)
    assert shares == pytest.approx([1 / 2] * 6 + [1 / 3] * 6, abs=0.03)


def test_denoiser_of_bits_knows_bins_alone():
    """A request moves it when it changes the bin; no request is the null condition still."""
    network = shaken(LatentUNet(4, [8, 16], [2], 1, embedding=16, groups=4, one_hot=True)).eval()
    x, time, request = normal(1, 4, 8, 8, 8), torch.tensor([10]), torch.full((1, 9), 0.2)
    drawn = network(x, time, request)
    assert torch.equal(network(x, time, request + 0.1), drawn)
    assert not torch.equal(network(x, time, request + 0.3), drawn)
    assert torch.equal(network(x, time, request.fill_(torch.nan)), network(x, time))


def test_null_condition_learns_from_absent_rows_alone():
    """Its gradient comes from the rows without a request, and no NaN reaches any gradient."""
    network = shaken(LatentUNet(**TINY_UNET)).train()
    x, time, asked = normal(2, 2, 4, 4, 8), torch.tensor([500, 20]), normal(2, 9)
    network(x, time, asked).square().mean().backward()
    assert not network.null_condition.grad.any()
    asked[1] = torch.nan
    network(x, time, asked).square().mean().backward()
    assert network.null_condition.grad.abs().max() > 0
    assert all(parameter.grad.isfinite().all() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("channels", "strides", "coarsest"),
    [
        ([8, 16], [[2, 2, 1]], (4, 6, 8)),
        ([8, 16, 24], [[2, 2, 1], 2], (2, 3, 4)),
        ([8, 16, 24], [1, [1, 2, 2]], (8, 6, 4)),
        ([8, 16, 24], [[1, 1, 2], [2, 2, 1]], (4, 6, 4)),
    ],
)
def test_anisotropic_strides(channels, strides, coarsest):
    """A stride per axis shrinks those axes and comes back to the same grid."""
    network = LatentUNet(2, channels, strides, num_res_blocks=1, embedding=16, groups=4)
    seen: list[tuple[int, ...]] = []
    network.middle[0].register_forward_hook(lambda _, inputs, __: seen.append(tuple(inputs[0].shape)))
    assert network(normal(1, 2, 8, 12, 8), torch.tensor([5]), None).shape == (1, 2, 8, 12, 8)
    assert seen == [(1, channels[-1], *coarsest)]


def test_mismatched_strides():
    """One stride too few or too many is refused in plain words."""
    for strides in ([2], [2, 2, 2]):
        with pytest.raises(InputError, match=rf"3 channels need 2 strides, not {len(strides)}"):
            LatentUNet(2, [8, 16, 24], strides)


def test_loss_of_a_perfect_reconstruction_is_zero():
    """Equal slices and a standard normal posterior cost nothing."""
    slices, latents = normal(2, 2, 16, 16).clamp(-1, 1), torch.zeros(2, 3, 4, 4)
    assert AutoencoderLoss(kl_weight=1.0)((slices, latents, latents), slices).item() == pytest.approx(0, abs=1e-6)


def test_loss_kl_known_answer():
    """KL(N(m, s^2) || N(0, 1)) of PyTorch's distributions, summed over the latents and divided by the batch."""
    slices, mean, log_variance = normal(5, 2, 16, 16), normal(5, 3, 4, 4, seed=2), normal(5, 3, 4, 4, seed=3)
    posterior = torch.distributions.Normal(mean, (0.5 * log_variance).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum() / 5
    loss = AutoencoderLoss(kl_weight=0.25)((slices, mean, log_variance), slices)
    assert loss.item() == pytest.approx(0.25 * expected.item(), rel=1e-5)


@pytest.mark.parametrize(("wanted", "got"), [(0.5, -0.25), (-1.0, 1.0), (0.8, 0.7)])
def test_loss_l1_and_ssim_known_answer(wanted, got):
    """Flat slices of a and b, A and B on [0, 1]: |a - b| + 1 - (2AB + c) / (A^2 + B^2 + c), c = 0.01^2, on both."""
    latents = torch.zeros(1, 3, 4, 4)
    target, slices = torch.full((1, 2, 16, 16), wanted), torch.full((1, 2, 16, 16), got)
    a, b, c = (wanted + 1) / 2, (got + 1) / 2, 0.01**2
    cost = abs(wanted - got) + 1 - (2 * a * b + c) / (a**2 + b**2 + c)
    loss = AutoencoderLoss()
    assert loss((slices, latents, latents), target).item() == pytest.approx(cost, rel=1e-2)
    slices[:, 1] = wanted  # the mask channel now right: half the cost
    assert loss((slices, latents, latents), target).item() == pytest.approx(cost / 2, rel=1e-2)


def test_loss_dice_known_answer():
    """Soft Dice of the labels alone, over the whole batch: a mask of 8 voxels against 0.5 everywhere scores 8 / 264."""
    latents, target = torch.zeros(2, 3, 4, 4), torch.full((2, 2, 16, 16), -1.0)
    target[0, 1, :2, :4] = 1
    grey = target.clone()
    grey[:, 1] = 0.0
    with_dice, without = AutoencoderLoss(dice_weight=0.5), AutoencoderLoss()
    dice = with_dice((grey, latents, latents), target) - without((grey, latents, latents), target)
    assert dice.item() == pytest.approx(0.5 * (1 - 2 * 8 * 0.5 / (8 + 512 * 0.5)), abs=1e-5)
    assert with_dice((target, latents, latents), target).item() == pytest.approx(0, abs=1e-5)


# --- the picture of a request ---------------------------------------------------------------------------------------

FOV = (160.0, 200.0, 152.0)  # mm along L, P, S
NORMALISER = Normaliser(
    np.array([3.5, 9, 0.6, 5, -10, 8, 50, 60, 45]), np.array([0.9, 0.6, 0.1, 25, 30, 20, 18, 20, 15])
)


def request_picture() -> RequestPicture:
    """The picture with constants that no default could stand in for."""
    picture = RequestPicture(FOV, NORMALISER.state())
    return picture


def request(ml: float, centre: Sequence[float], extents: Sequence[float] | None = None) -> torch.Tensor:
    """Condition vector `[1, 9]` of a tumour, of a sphere without `extents`."""
    extents = extents or [(6000 * ml / math.pi) ** (1 / 3)] * 3
    return torch.from_numpy(NORMALISER.encode(np.array([[ml, sphere_surface(ml), 1.0, *centre, *extents]])))


def content(drawn: torch.Tensor) -> tuple[float, np.ndarray]:
    """Volume in ml and centre of mass in mm along R, A, S of one picture, from its index along L, P, S by hand."""
    density = drawn[0, 0].double().numpy()
    cell = [fov / n for fov, n in zip(FOV, density.shape, strict=True)]
    left, posterior, superior = (
        (density * ((np.arange(n).reshape(shape) + 0.5) * c - fov / 2)).sum() / density.sum()
        for n, shape, c, fov in zip(density.shape, ((-1, 1, 1), (1, -1, 1), (1, 1, -1)), cell, FOV, strict=True)
    )
    return density.sum() * np.prod(cell) / 1000, np.array([-left, -posterior, superior])


@pytest.mark.parametrize(
    ("ml", "centre", "extents", "shape"),
    [
        (1.0, (12.3, 31.0, -20.2), None, (80, 100, 76)),  # cells of 2 mm
        (20.0, (12.3, 31.0, -20.2), None, (16, 20, 48)),  # cells of 10 x 10 x 3.2 mm, as in the preset `small`
        (80.0, (-33.3, -41.0, 25.0), None, (16, 20, 48)),
        (30.0, (20.0, 5.0, -10.0), (50.0, 40.0, 60.0), (16, 20, 48)),  # fills 48 % of its ellipsoid
    ],
)
def test_picture_holds_the_volume_where_it_is_asked_for(ml, centre, extents, shape):
    """Its sum times a cell is the volume to 2 %, its centre of mass the centre to 1 mm; right is where L ends."""
    drawn = request_picture()(request(ml, centre, extents), torch.zeros(1, 4, *shape))
    volume, found = content(drawn)
    assert drawn.shape == (1, 1, *shape) and drawn.dtype == torch.float32
    assert volume == pytest.approx(ml, rel=0.02)
    assert np.linalg.norm(found - centre) < 1
    filled = 1.0 if extents is None else 6000 * ml / math.pi / math.prod(extents)
    assert drawn.max().item() == pytest.approx(filled, rel=0.02)


@pytest.mark.parametrize(("axis", "corner"), [(0, (0, 10, 24)), (1, (8, 0, 24)), (2, (8, 10, 47))])
def test_picture_s_axes(axis, corner):
    """A tumour far to the right, in front or above lies at the first, first and last index along L, P, S."""
    centre = [0.0, 0.0, 0.0]
    centre[axis] = FOV[axis] / 2 - FOV[axis] / (16, 20, 48)[axis] / 2
    drawn = request_picture()(request(30, centre), torch.zeros(1, 4, 16, 20, 48))[0, 0]
    assert drawn[corner] > 0.95
    assert drawn.sum(dim=[a for a in range(3) if a != axis]).argmax() == corner[axis]


def test_picture_s_extents_are_those_of_their_axes():
    """At half height a tumour is as wide, deep and high as asked for, to a soft edge's shift and a cell of 2 mm."""
    extents = (30.0, 60.0, 44.0)
    drawn = request_picture()(
        request(0.52 * math.prod(extents) / 1000, (0, 0, 0), extents), torch.zeros(1, 4, 80, 100, 76)
    )
    seen = (drawn[0, 0] > 0.5 * drawn.max()).nonzero()
    assert (2.0 * (np.ptp(seen.numpy(), axis=0) + 1)).tolist() == pytest.approx(extents, abs=4)


def test_picture_of_a_mirrored_request_is_mirrored():
    """x negated is the picture flipped along the first axis, whatever the middle of the training tumours is."""
    picture, x = request_picture(), torch.zeros(1, 4, 16, 20, 48)
    drawn, mirrored = (picture(request(25, (side * 27.0, 14.0, -9.0), (44.0, 30.0, 36.0)), x) for side in (1, -1))
    torch.testing.assert_close(mirrored, drawn.flip(2), rtol=0, atol=1e-5)
    assert (mirrored - drawn).abs().max() > 0.4


def test_no_request_no_picture():
    """None and rows with a NaN are empty, and leave the other rows alone; so do types of less precision."""
    picture, x = request_picture(), torch.zeros(3, 4, 16, 20, 48)
    asked = request(25, (27.0, 14.0, -9.0)).repeat(3, 1)
    full = picture(asked, x)
    asked[0], asked[2, 5] = torch.nan, torch.nan
    drawn = picture(asked, x)
    assert not drawn[[0, 2]].any() and torch.equal(drawn[1], full[1]) and full[0].sum() > 10
    assert torch.equal(picture(None, x), torch.zeros(3, 1, 16, 20, 48))
    with torch.autocast("cpu", torch.bfloat16):
        low = picture(asked.bfloat16(), x.bfloat16())
    assert low.dtype == torch.bfloat16 and not low[[0, 2]].any()
    assert low[1].float().sum().item() == pytest.approx(full[1].sum().item(), rel=0.05)


def test_picture_s_constants_travel_with_the_weights():
    """A denoiser that is built without constants and loaded from a state has those of the training, and draws alike."""
    values = load_preset("demo").state()
    values["diffusion"]["network"] |= {"picture": True, "coordinates": True}
    preset = Preset.of(values)
    trained = build_denoiser(preset)
    trained.picture = RequestPicture(preset.grid.fov_mm, NORMALISER.state())
    trained = shaken(trained)
    state = trained.state_dict()
    for name, wanted in (("mean", NORMALISER.mean), ("std", NORMALISER.std), ("fov_mm", preset.grid.fov_mm)):
        np.testing.assert_allclose(state[f"picture.{name}"], wanted, rtol=1e-6)
    assert state["stem.weight"].shape[1] == 4 + 1 + 3
    again = build_denoiser(preset).eval()
    assert not torch.equal(again.picture.mean, trained.picture.mean)
    again.load_state_dict(state)
    x, asked, time = normal(1, 4, 12, 16, 16), request(25, (27.0, 14.0, -9.0)), torch.tensor([500.0])
    with torch.no_grad():
        assert torch.equal(again(x, time, asked), trained(x, time, asked))
        elsewhere = trained.picture(request(25, (-27.0, 14.0, -9.0)), x)
        assert torch.equal(again.picture(request(25, (-27.0, 14.0, -9.0)), x), elsewhere)


# --- regions: what is to be drawn, and what is known ------------------------------------------------------------------


def test_region_of_a_request():
    """The cells whose centres lie within ellipsoid and margin; of a speck the centre's own; of no request none."""
    picture, x = request_picture(), torch.zeros(3, 4, 16, 20, 48)
    centre, extents = (27.0, 14.0, -9.0), (44.0, 30.0, 36.0)
    asked = torch.cat([request(25, centre, extents), request(0.1, centre, (1.0, 1.0, 1.0)), request(25, centre)])
    asked[2, 0] = torch.nan
    found = picture.region(asked, x, 12.0)
    offset = (picture.coordinates(x.shape[2:]) - torch.tensor(centre).view(3, 1, 1, 1)).numpy()
    radii = (np.array(extents) / 2 + 12).reshape(3, 1, 1, 1)
    inside = np.square(offset / radii).sum(axis=0) <= 1
    np.testing.assert_array_equal(found[0, 0].numpy() > 0, inside)
    assert 0 < picture.region(asked, x, 0.0)[1].sum() < 5 and not found[2].any()


def test_outside_of_a_region_nothing_is_predicted():
    """And the network sees which cells are known: the same latents with another region are something else to it."""
    values = load_preset("demo").state()
    values["diffusion"]["network"]["picture"] = True
    preset = within_regions(Preset.of(values | {"regions": load_preset("small").regions}))
    network = shaken(build_denoiser(preset))
    x, time, asked = normal(1, 4, 12, 16, 16), torch.tensor([500.0]), request(25, (27.0, 14.0, -9.0))
    region = torch.zeros(1, 1, 12, 16, 16)
    region[..., 3:9, 4:10, 5:11] = 1
    with torch.no_grad():
        whole, part = network(x, time, asked), network(x, time, asked, region)
        everywhere = network(x, time, asked, torch.ones_like(region))
    assert not (part * (1 - region)).any() and part.any()
    assert torch.equal(whole, everywhere) and not torch.allclose(part, whole * region)


def test_regions_of_a_batch():
    """Where each draws, what stays known, no request of healthy tissue, none left out, and the shares."""
    picture, schedule = request_picture(), Schedule(kind="flow", prediction="v_prediction")
    latents = normal(2, 4, 16, 20, 48)
    places = torch.cat([request(25, (side * 40.0, 14.0, -9.0), (30.0, 30.0, 30.0)) for side in (1, -1)])
    tumour = picture.region(places, latents, MARGIN_MM)
    assert not (tumour[0] * tumour[1]).any()
    for share, wanted in ((1.0, tumour), (0.0, tumour.flip(0))):  # around its own, or where the other one's lies
        batch = DiffusionBatch(schedule, condition_dropout=1.0, tumour=share, picture=picture)
        noised, target, (times, condition, region), _ = batch({"image": latents, "condition": places})
        assert torch.equal(region, wanted)
        known = region == 0
        assert torch.equal(torch.where(known, noised, 0), torch.where(known, latents, 0))
        assert not torch.where(known, target, 0).any()
        alpha, sigma = (f.float().view(-1, 1, 1, 1, 1) for f in schedule.alpha_sigma(times.double()))
        noise = (noised - alpha * latents) / sigma
        torch.testing.assert_close(target, (noise - latents) * region, atol=1e-3, rtol=1e-3)
        assert torch.equal(condition, places) if share else condition.isnan().all()
    torch.manual_seed(0)
    batch = DiffusionBatch(schedule, tumour=0.8, picture=picture)
    healthy = batch._regions(places.repeat(1000, 1), torch.zeros(2000, 1, 2, 2, 2))[1]
    assert healthy.float().mean().item() == pytest.approx(0.2, abs=0.03)
    mixed = DiffusionBatch(schedule, condition_dropout=0.5, tumour=0.8, picture=picture, whole=0.25)
    region, left_out = mixed._regions(places.repeat(1000, 1), torch.zeros(2000, 1, 2, 2, 2))
    everywhere = region.flatten(1).all(1)
    assert everywhere.float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert left_out[everywhere].float().mean().item() == pytest.approx(0.5, abs=0.07)  # whole brains without a request
    assert left_out[~everywhere].float().mean().item() == pytest.approx(0.2, abs=0.03)  # healthy tissue


def test_loss_within_regions():
    """A whole brain has the mean squared error; a region of a sixteenth has its sum over the volume, four times."""
    loss, target = DiffusionLoss(), normal(2, 3, 4, 4, 4)
    prediction = target + 0.5
    assert loss(prediction, target).item() == pytest.approx(0.25)
    region = torch.zeros(2, 1, 4, 4, 4)
    region[:, :, :2, :2, :1] = 1
    assert loss(prediction * region, target * region).item() == pytest.approx(0.25 / 16 * 4)
    assert loss(torch.zeros_like(target), torch.zeros_like(target)).item() == 0
