"""Muon against PyTorch's own, against Adam, and against what a polar decomposition is."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from sbldm.networks import LatentUNet, StackVAE
from sbldm.training.optimizers import Muon, build_optimizer, orthogonalised


def matrix(*shape: int, seed: int = 0) -> torch.Tensor:
    """A matrix whose singular values span three orders of magnitude."""
    rows = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    u, _, v = torch.linalg.svd(rows, full_matrices=False)
    return u * torch.logspace(0, -3, min(shape)) @ v


@pytest.mark.parametrize("shape", [(16, 200), (200, 16), (48, 48)])
def test_orthogonalised(shape):
    """Singular vectors stay; singular values come to lie around 1, but those that began below a thousandth."""
    given = matrix(*shape)
    found = orthogonalised(given)
    u, values, v = torch.linalg.svd(given, full_matrices=False)
    rotated = u.T @ found @ v.T
    assert found.shape == given.shape
    torch.testing.assert_close(rotated, torch.diag(rotated.diagonal()), rtol=0, atol=0.02)
    here = rotated.diagonal()[values > 3e-3 * values.norm()]
    assert here.min() > 0.65 and here.max() < 1.25


def test_orthogonalised_of_nothing():
    """A kernel without a gradient so far, as behind a zero-initialised layer, is not moved."""
    assert not orthogonalised(torch.zeros(4, 12)).any()


def muon(kernels: list[nn.Parameter], others: list[nn.Parameter]) -> Muon:
    groups = [{"params": kernels, "orthogonal": True}, {"params": others, "orthogonal": False}]
    return Muon([group for group in groups if group["params"]], lr=0.1)


def stepped(optimizer: torch.optim.Optimizer, *parameters: nn.Parameter, begin: int = 0, end: int = 3) -> torch.Tensor:
    """The first parameter after steps along gradients that differ from step to step."""
    for i in range(begin, end):
        for p in parameters:
            p.grad = matrix(*p.shape, seed=i) if p.ndim > 1 else torch.sin(torch.arange(24.0) + i)
        optimizer.step()
    return parameters[0].detach()


def test_kernels_as_pytorch_s_muon_steps_them():
    """PyTorch's iterates in bfloat16, hence the tolerance: a tenth of a step."""
    ours, theirs = nn.Parameter(torch.zeros(16, 48)), nn.Parameter(torch.zeros(16, 48))
    reference = torch.optim.Muon([theirs], lr=0.1, weight_decay=0.0, momentum=0.95, adjust_lr_fn="match_rms_adamw")
    found, wanted = stepped(muon([ours], []), ours), stepped(reference, theirs)
    assert found.square().mean().sqrt() == pytest.approx(wanted.square().mean().sqrt().item(), rel=0.02)
    assert (found - wanted).square().mean().sqrt() < 0.1 * wanted.square().mean().sqrt()


def test_convolution_kernels_are_matrices_of_their_outputs():
    kernel = nn.Parameter(torch.zeros(4, 3, 2, 2, 2))
    flat = nn.Parameter(torch.zeros(4, 24))
    kernel.grad = matrix(4, 24).view_as(kernel)
    flat.grad = matrix(4, 24)
    muon([kernel, flat], []).step()
    torch.testing.assert_close(kernel.flatten(1), flat)


def test_the_rest_as_adam_steps_it():
    ours, theirs = nn.Parameter(torch.ones(24)), nn.Parameter(torch.ones(24))
    wanted = stepped(torch.optim.Adam([theirs], lr=0.1, betas=(0.9, 0.99)), theirs, end=5)
    torch.testing.assert_close(stepped(muon([], [ours]), ours, end=5), wanted)


def test_state_resumes():
    """Momentum, moments and their count are in the state: five steps are two and three."""
    first = [nn.Parameter(torch.zeros(8, 24)), nn.Parameter(torch.zeros(24))]
    optimizer = muon(first[:1], first[1:])
    stepped(optimizer, *first, end=2)
    second = [nn.Parameter(p.detach().clone()) for p in first]
    again = muon(second[:1], second[1:])
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    stepped(optimizer, *first, begin=2, end=5)
    stepped(again, *second, begin=2, end=5)
    for old, new in zip(first, second, strict=True):
        assert torch.equal(old, new) and old.abs().max() > 0.1


def test_which_parameters_are_whose():
    """Kernels inside the network are Muon's; first and last layer, norms, biases and the null condition Adam's."""
    network = LatentUNet(2, [8, 16], [2], num_res_blocks=1, embedding=16, groups=4)
    kernels, others = build_optimizer("muon", network, 1e-3).param_groups
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    inner = {names[id(p)] for p in kernels["params"]}
    rest = {names[id(p)] for p in others["params"]}
    assert inner | rest == set(names.values()) and not inner & rest
    assert {"stem.weight", "out.2.weight", "null_condition", "stem.bias"} <= rest
    assert {"down.0.weight", "up.0.weight", "condition.0.weight"} <= inner
    assert all(p.ndim > 1 for p in kernels["params"])
    assert kernels["lr"] == others["lr"] == 1e-3
    assert isinstance(build_optimizer("adamw", network, 1e-3), torch.optim.AdamW)


def test_groups_of_an_autoencoder():
    """Kernels, and the rest with the first and the last layers; all weights once."""
    network = StackVAE(2, [16, 32], patch=2, parts=2)
    groups = build_optimizer("muon", network, 1e-3).param_groups
    assert [group["orthogonal"] for group in groups] == [True, False]
    ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in network.parameters())
    kernels, named = {id(p) for p in groups[0]["params"]}, dict(network.named_parameters())
    for end in network.ends:
        layer = [id(p) for name, p in named.items() if name.startswith(f"{end}.")]
        assert layer and not kernels.intersection(layer), end
    assert id(named["encoder.0.conv1.weight"]) in kernels
