"""What one process of a group does, or a process alone: for `test_group.py`, which starts them."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel

from sbldm.diffusion import Schedule
from sbldm.networks import LatentUNet, SliceVAE, StackVAE, sparing
from sbldm.run import group
from sbldm.run.folder import load_preset
from sbldm.training import AutoencoderLoss, DiffusionBatch, DiffusionLoss, OwnPart, SliceBatch, build_optimizer
from sbldm.training.data import Dealt

BATCH, STEPS = 4, 5


def slices() -> tuple[Any, ...]:
    """Network, loss, prepared batches and optimizer of single slices."""
    network = SliceVAE(2, [8, 12], 3, 8, groups=4)
    return network, AutoencoderLoss(dice_weight=0.5), SliceBatch(), "adam"


def stacks() -> tuple[Any, ...]:
    """The same of stacks: noise in the latents is scaled by the batch's deviation, Dice is that of the batch."""
    network = StackVAE(2, [8, 12], 8, 8, aggregation=2, latent_noise=0.5, parts=2)
    return network, AutoencoderLoss(dice_weight=0.5, bce_weight=0.1, anchor_weight=1.0, parts=2), SliceBatch(), "muon"


def latents() -> tuple[Any, ...]:
    """The same of the latent diffusion."""
    network = LatentUNet(3, [8, 12], [2], 1, 9, 16, 4)
    return network, DiffusionLoss(), DiffusionBatch(Schedule(), condition_dropout=0.3), "muon"


TRAININGS = {"slices": slices, "stacks": stacks, "latents": latents}


def batch(name: str, number: int) -> dict[str, torch.Tensor]:
    """A whole batch, the same in every process."""
    draw = torch.Generator().manual_seed(number)
    if name == "latents":
        shapes = {"image": (BATCH, 3, 4, 4, 4), "condition": (BATCH, 9)}
        return {key: torch.randn(shape, generator=draw, dtype=torch.float64) for key, shape in shapes.items()}
    depth = () if name == "slices" else (4,)
    image = torch.rand(BATCH, 2, 16, 16, *depth, generator=draw, dtype=torch.float64) * 2 - 1
    position = torch.randint(0, 8, (BATCH, *depth), generator=draw)
    return {"image": image, "position": position}


def train(name: str, pieces: int = 1, checkpointing: bool = False, device: str = "cpu") -> dict[str, Any]:
    """Some steps in double precision, but for SSIM and norms over channels: losses and weights."""
    torch.manual_seed(0)
    network, loss_of, prepare, optimizer_name = TRAININGS[name]()
    network, loss_of = network.double().to(device), loss_of.double().to(device)
    network = sparing(network, pieces, checkpointing).train()
    optimizer = build_optimizer(optimizer_name, network, 1e-3)
    shared, prepare_own = network, prepare
    if group.size() > 1:
        shared, prepare_own = DistributedDataParallel(network, gradient_as_bucket_view=True), OwnPart(prepare)
    losses = []
    for number in range(STEPS):
        torch.manual_seed(number)
        inputs, target, beside, _ = prepare_own(batch(name, number), device)
        beside = [x.double() if torch.is_tensor(x) and x.is_floating_point() else x for x in beside]
        optimizer.zero_grad(set_to_none=False)
        loss = loss_of(shared(inputs.double(), *beside), target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(shared.parameters(), 1.0)
        optimizer.step()
        losses.append(float(group.mean(loss.detach())))
    return {"losses": losses, "weights": network.state_dict()}


def draws() -> dict[str, Any]:
    """Noise of this process, of tensors in two layouts; gradients through what is gathered; what the first does."""
    torch.manual_seed(3)
    found: dict[str, Any] = {}
    own = torch.zeros(8 // group.size(), 6, 10)
    found["plain"] = group.randn_like(own)
    found["permuted"] = group.randn_like(own.transpose(1, 2).contiguous().transpose(1, 2))
    found["uniform"] = group.rand(len(own), 1, device=torch.device("cpu"))
    x = group.mine(torch.arange(8.0)).clone().requires_grad_()
    group.gathered(x).square().sum().sqrt().backward()
    found["gradient"] = x.grad / group.size()  # as DDP has it
    with torch.no_grad():
        found["validated"] = len(group.gathered(x))
    found["mean"] = group.mean(torch.tensor(2.0 * group.rank()))
    found["dealt"] = list(Dealt(10, 3)), [Dealt(10, 3).number(i) for i in (1, 2)], list(Dealt(2, 3))
    return found


def in_turn(folder: Path) -> str:
    """The first process works alone, and the other comes when it is done."""

    @group.by_first
    def work() -> str:
        file = folder / "work"
        found = "found" if file.exists() else "made"
        time.sleep(0 if file.exists() else 0.3)
        file.touch()
        return found

    return work()


def main(out: Path) -> None:
    """Everything in a group, written to a file a process."""
    device = group.join(load_preset("demo").autoencoder, "autoencoder")
    found = {name: train(name, device=str(device)) for name in TRAININGS}
    found["pieces"] = train("stacks", 2, True, str(device))
    if device.type == "cpu":
        found |= {"draws": draws()}
    found["work"] = in_turn(out)
    torch.save(found, out / f"{os.environ['RANK']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
