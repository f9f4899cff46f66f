"""From tumour characteristics to the condition vector of the networks, and back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sbldm.tumour.characteristics import NAMES

__all__ = ["Normaliser"]

LOGARITHMIC = slice(0, 2)  # volume and surface


def _log(values: np.ndarray) -> np.ndarray:
    values = np.array(values, dtype=np.float64)
    values[..., LOGARITHMIC] = np.log(values[..., LOGARITHMIC])
    return values


@dataclass(frozen=True, eq=False)
class Normaliser:
    """Logarithm of volume and surface, then zero mean and unit variance over the training list.

    The paper (section "Tumour characteristics") divides by the grid and by maxima that it never stores; here the
    constants travel in the checkpoint (`state`).

    Attributes:
        mean: [K], ln(ml), ln(mm2), 1, then mm and per cent.
        std: [K], in the same units; 1 where the training list does not vary.
    """

    mean: np.ndarray
    std: np.ndarray

    @classmethod
    def fit(cls, values: np.ndarray) -> Normaliser:
        """Fit to training characteristics [N, K], N >= 1: the nine, and what shares there are.

        Raises:
            ValueError: the shape is wrong, a value is not finite, or a volume or surface is not positive.
        """
        values = np.asarray(values, dtype=np.float64)
        if values.ndim != 2 or values.shape[1] < len(NAMES) or not len(values):
            raise ValueError(f"Characteristics have shape {values.shape}; [N, {len(NAMES)}] with N >= 1 is needed.")
        if not np.isfinite(values).all() or (values[:, LOGARITHMIC] <= 0).any():
            raise ValueError("Characteristics must be finite, volumes and surfaces positive.")
        values = _log(values)
        std = values.std(axis=0)
        return cls(values.mean(axis=0), np.where(std > 1e-6, std, 1.0))

    def encode(self, values: np.ndarray) -> np.ndarray:
        """Characteristics [..., K] in ml, mm2, mm, % -> condition vectors [..., K] float32.

        Shares that it was not fitted to, as that of an older model, are left out.
        """
        return ((_log(values)[..., : len(self.mean)] - self.mean) / self.std).astype(np.float32)

    def decode(self, conditions: np.ndarray) -> np.ndarray:
        """Condition vectors [..., K] -> characteristics [..., K] float64 in ml, mm2, mm, %."""
        values = np.asarray(conditions, dtype=np.float64) * self.std + self.mean
        values[..., LOGARITHMIC] = np.exp(values[..., LOGARITHMIC])
        return values

    def state(self) -> dict[str, list[float]]:
        """The constants as plain lists, for a checkpoint or JSON."""
        return {"mean": self.mean.tolist(), "std": self.std.tolist()}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Normaliser:
        """Rebuild from `state()`."""
        return cls(*(np.asarray(state[key], dtype=np.float64) for key in ("mean", "std")))
