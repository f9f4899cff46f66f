"""The optimizers of both stages."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

__all__ = ["Muon", "build_optimizer", "orthogonalised"]

PLAIN = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic Newton-Schulz iteration (Jordan et al. 2024)


def orthogonalised(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Nearly the orthogonal factor of a polar decomposition: singular values come to lie around 1, .7 to 1.2.

    The iteration of Muon, `X <- a X + b (X X') X + c (X X')^2 X`, run on the Gram matrix `X X'` of the shorter side
    alone: of the long convolution kernels two products are left in place of ten.

    Args:
        matrix: `[M, N]`.
        steps: of the iteration.

    Returns:
        `[M, N]`, in single precision.
    """
    tall = matrix.shape[0] > matrix.shape[1]
    wide = (matrix.T if tall else matrix).float()
    norm = wide.norm() + 1e-7
    gram = wide @ wide.T / norm**2
    gram.diagonal().add_(1e-6)  # rounding must not make one of its eigenvalues negative: those would grow
    one = torch.eye(len(gram), device=gram.device)
    factor, (a, b, c) = one, COEFFICIENTS
    for _ in range(steps):
        step = a * one + b * gram + c * gram @ gram
        factor, gram = step @ factor, step @ gram @ step
        gram = (gram + gram.T) / 2
    found = (factor / norm) @ wide
    return found.T if tall else found


class Muon(torch.optim.Adam):
    """Muon (Jordan et al. 2024) for matrices and convolution kernels, PyTorch's Adam for all other parameters.

    The momentum of a kernel, `[out, in * k^3]`, is made orthogonal before it is stepped along, so that all directions
    are learned at one pace. Steps are as long as those of Adam usually are, .2 per weight (Liu et al. 2025, arXiv
    2502.16982), so that both take one learning rate. `torch.optim.Muon` takes matrices alone.

    Args:
        groups: of parameters; `orthogonal` says whether they are kernels, of two dimensions and more.
        lr: learning rate of all.
        momentum: of the kernels, Nesterov's.
        betas: of Adam.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        lr: float,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
    ) -> None:
        super().__init__([{"momentum": momentum} | group for group in groups], lr, betas)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all parameters that have a gradient; those of the kernels are used up."""
        with torch.enable_grad():
            loss = closure() if closure else None
        for group in self.param_groups:
            for kernel in group["params"] if group["orthogonal"] else ():
                if kernel.grad is not None:
                    self._orthogonal_step(kernel, group)
                    kernel.grad = None  # Adam passes over what has none
        super().step()
        return loss

    def _orthogonal_step(self, kernel: nn.Parameter, group: dict[str, Any]) -> None:
        state = self.state[kernel]
        if not state:
            state["step"], state["momentum"] = torch.zeros(()), torch.zeros_like(kernel)  # Adam looks for the first
        state["step"] += 1
        average = state["momentum"].lerp_(kernel.grad, 1 - group["momentum"])
        found = orthogonalised(kernel.grad.lerp(average, group["momentum"]).flatten(1))
        kernel.add_(found.view_as(kernel), alpha=-0.2 * math.sqrt(max(found.shape)) * group["lr"])


def build_optimizer(name: str, network: nn.Module, lr: float) -> torch.optim.Optimizer:
    """The optimizer of a network, by its name in a preset: `adam`, `adamw` or `muon`.

    With `muon` its groups are two: kernels, and the rest, to which its authors count the first and the last layers (a
    network's `ends`) as well.

    Raises:
        KeyError: an unknown name.
    """
    if name != "muon":
        return PLAIN[name](network.parameters(), lr)
    ends = tuple(f"{layer}." for layer in getattr(network, "ends", ()))
    halves: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for key, parameter in network.named_parameters():
        halves[parameter.ndim > 1 and not key.startswith(ends)].append(parameter)
    return Muon([{"params": half, "orthogonal": orthogonal} for orthogonal, half in halves.items() if half], lr)
