"""The refiner behind the decoder: what it may change, what it learns from, and that a seed decides."""

from __future__ import annotations

import pytest
import torch

from sbldm.networks import Refiner, StackVAE
from sbldm.networks.blocks import exchanged

DEPTH = 4


@pytest.fixture()
def refiner() -> Refiner:
    torch.manual_seed(0)
    return Refiner(1, 2, [8, 16], steps=8, embedding=16).eval()


@pytest.fixture()
def drawn() -> torch.Tensor:
    """Two stacks of slices of 16 x 24: an image whose middle is a brain of -.5, and an empty mask."""
    slices = torch.full((2 * DEPTH, 2, 16, 24), -1.0)
    slices[:, 0, 4:12, 6:18] = -0.5
    return slices


POSITION = torch.arange(DEPTH).repeat(2)


def test_neighbours_exchange_an_eighth_of_their_channels() -> None:
    """Channel 0 comes from the slice below, channel 1 from that above, within a stack; the ends keep their own."""
    slices = torch.arange(2 * DEPTH).float().view(-1, 1, 1, 1).expand(-1, 8, 2, 2)
    mixed = exchanged(slices, DEPTH)[:, :, 0, 0]
    assert mixed[:, 0].tolist() == [0, 0, 1, 2, 4, 4, 5, 6]
    assert mixed[:, 1].tolist() == [1, 2, 3, 3, 5, 6, 7, 7]
    assert torch.equal(mixed[:, 2:], slices[:, 2:, 0, 0])
    assert exchanged(slices, 1) is slices


def test_before_training_nothing_changes(refiner: Refiner, drawn: torch.Tensor) -> None:
    """It has seen no difference, so its scale is zero."""
    assert torch.equal(refiner.refine(drawn, POSITION, DEPTH, seed=1), drawn)


def test_a_velocity_of_zero_draws_white_texture(refiner: Refiner, drawn: torch.Tensor) -> None:
    """Zero is the optimal velocity of white noise of the scale: texture of that deviation, inside the brain alone."""
    refiner.scale.fill_(0.1)
    refined = refiner.refine(drawn, POSITION, DEPTH, seed=1)
    rest = refined - drawn
    brain = rest[:, 0, 4:12, 6:18]
    assert brain.std().item() == pytest.approx(0.1, rel=0.1)
    assert not rest[:, 1].any()  # the mask
    outside = torch.ones(16, 24, dtype=torch.bool)
    outside[3:13, 5:19] = False  # a pixel around the brain is its edge
    assert not rest[:, 0][:, outside].any()
    assert torch.equal(refined, refiner.refine(drawn, POSITION, DEPTH, seed=1))
    assert not torch.equal(refined, refiner.refine(drawn, POSITION, DEPTH, seed=2))


def test_a_stack_is_refined_by_itself(refiner: Refiner, drawn: torch.Tensor) -> None:
    """What happens in one stack does not reach the other."""
    refiner.scale.fill_(0.1)
    for parameter in refiner.out.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    x, times = torch.randn(2 * DEPTH, 1, 16, 24), torch.full((2 * DEPTH,), 300.0)
    both = refiner(x, times, drawn, POSITION, DEPTH)
    one = refiner(x[DEPTH:], times[DEPTH:], drawn[DEPTH:], POSITION[DEPTH:], DEPTH)
    torch.testing.assert_close(both[DEPTH:], one, atol=1e-5, rtol=0)


def test_lesson(refiner: Refiner, drawn: torch.Tensor) -> None:
    """The true velocity has unit variance once the scale is known, which training measures inside the brain."""
    torch.manual_seed(0)
    slices = drawn.clone()
    slices[:, :1] += 0.2 * torch.randn(len(drawn), 1, 16, 24)
    refiner.train()
    for _ in range(3):
        predicted, true = refiner.lesson(slices, drawn, POSITION, DEPTH)
    assert refiner.scale.item() == pytest.approx(0.2, rel=0.05)
    assert len(true) == 2 * DEPTH * 10 * 14
    assert true.var().item() == pytest.approx(1, abs=0.15) and not predicted.any()
    refiner.eval()
    state = torch.get_rng_state()
    first, again = (refiner.lesson(slices, drawn, POSITION, DEPTH)[1] for _ in range(2))
    assert torch.equal(first, again) and torch.equal(state, torch.get_rng_state())


def test_it_teaches_the_decoder_nothing(drawn: torch.Tensor) -> None:
    """Autoencoder and refiner train side by side: no gradient of the lesson reaches the decoder."""
    torch.manual_seed(0)
    network = StackVAE(2, [8, 12], 4, 8, aggregation=2, patch=2, refiner=Refiner(1, 2, [8], embedding=16))
    torch.nn.init.normal_(network.refiner.out[-1].weight, std=0.1)
    drawn[:, 0, 5] = 0.3
    predicted, true = network(drawn, POSITION, DEPTH)[3:]
    (predicted - true).square().mean().backward()
    learning = {name.split(".")[0] for name, p in network.named_parameters() if p.grad is not None and p.grad.any()}
    assert learning == {"refiner"}


def test_volumes_are_refined_from_a_seed() -> None:
    torch.manual_seed(0)
    network = StackVAE(2, [8, 12], 4, 8, aggregation=2, patch=2, refiner=Refiner(1, 2, [8], embedding=16))
    network.eval().refiner.scale.fill_(0.05)
    latents = torch.randn(4, 4, 6, 6)
    plain, one, other = (network.decode_volume(latents, seed) for seed in (None, 1, 2))
    assert (one[0] != plain[0]).any() and (one[0] != other[0]).any()
    assert (one[1] == plain[1]).all() and (one == network.decode_volume(latents, 1)).all()
