"""Is a tumour a copy of a training case's? At its place, and wherever it lies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sbldm.metrics.copies import cell_means, cell_windows
from sbldm.metrics.nearness import (
    LEAST_TRAIN,
    VERSION,
    Nearest,
    excess_of,
    limits_of,
    plain_values,
    read_memory,
    unreadable,
    yardstick_of,
)
from sbldm.run.errors import DataError
from sbldm.run.files import atomic_path

__all__ = ["TUMOUR_REACH", "TumourMemory", "mask_print", "nearest_mask", "tumour_print"]

MASK_CELL, MASK_GRID = 4.0, (44, 54, 44)
TUMOUR_REACH = (
    "Tumours are compared by their masks at 4 mm, wherever they lie. On BraTS at 2 mm, where one honest tumour in a "
    "thousand is taken for a copy, that finds all copies that are mirrored, moved, turned by 5 degrees or scaled by "
    "5 %, 97 % of those that went through the autoencoder of `small`, and most that are turned by 10 degrees, scaled "
    "by 10 % or warped by 3 mm (SD, smooth over 20 mm); it does not find most that are turned by 20 degrees or scaled "
    "by 15 %, nor those of the tissue inside behind another outline."
)


def mask_print(mask: np.ndarray, image: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """A mask at 4 mm on a grid centred on the brain's bounding box.

    Args:
        mask: `[X, Y, Z]` bool.
        image: `[X, Y, Z]`, background exactly 0, axes along L, P, S.
        spacing: of the axes, mm.

    Returns:
        `[44, 54, 44]` bool: cells filled by half or more; of a mask that fills none by half, the fullest.

    Raises:
        DataError: there is no brain in the image.
    """
    share = cell_means(mask, cell_windows(image != 0, spacing, MASK_CELL, MASK_GRID))
    return (share > 0) & (share >= min(0.5, share.max()))


def nearest_mask(mask: np.ndarray, train_masks: Mapping[str, np.ndarray]) -> tuple[str, float]:
    """The training mask with the largest Dice coefficient with a mask or its left-right mirror image, and that Dice.

    Args:
        mask: bool, of `mask_print`.
        train_masks: the same of one training case or more, by name.

    Returns:
        Name and Dice; 0 for empty masks, which are like no other.
    """
    dice = {name: max(_dice(mask, other), _dice(mask[::-1], other)) for name, other in train_masks.items()}
    name = max(dice, key=dice.__getitem__)
    return name, dice[name]


@dataclass(frozen=True, eq=False)
class TumourMemory:
    """Knows the shapes of the training tumours: is a tumour one of them, wherever in whichever brain it lies?

    Compared are masks on grids centred on their own bounding boxes (`mask_print` of a mask in place of a brain), by
    their Dice coefficients, mirror images allowed. As with whole brains (`Memory`) the excess over the next five is
    compared with limits of the same kind. What it finds, and what not, stands in docs/copies.md.

    Attributes:
        names: of the training cases with a tumour (N).
        prints: `[N, 44, 54, 44]` bool.
        near, copy, calibration, honest: as in `Memory`.
    """

    names: tuple[str, ...]
    prints: np.ndarray
    near: float
    copy: float
    calibration: str
    honest: int

    @classmethod
    def build(cls, train: Mapping[str, np.ndarray], heldout: Mapping[str, np.ndarray]) -> TumourMemory:
        """From prints by name; those without a tumour are left out.

        Raises:
            DataError: fewer than 3 training cases with a tumour.
        """
        train, heldout = ({name: mask for name, mask in some.items() if mask.any()} for some in (train, heldout))
        if len(train) < LEAST_TRAIN:
            raise DataError(
                f"Copies of tumours cannot be told with {len(train)} training cases that have one; "
                f"at least {LEAST_TRAIN} are needed."
            )
        prints = np.stack(list(train.values()))
        measured = np.array([excess_of(_all_dice(mask, prints)) for mask in heldout.values()], np.float64)

        def leave_one_out() -> np.ndarray:
            return np.array([excess_of(np.delete(_all_dice(mask, prints), k)) for k, mask in enumerate(prints)])

        honest, calibration = yardstick_of(measured, leave_one_out)
        return cls(tuple(train), prints, *limits_of(honest), calibration, len(honest))

    def nearest(self, mask: np.ndarray) -> Nearest:
        """The training tumour most like a print, with their Dice coefficient in the place of a correlation."""
        dice = _all_dice(mask, self.prints)
        best = int(dice.argmax())
        return Nearest(self.names[best], float(dice[best]), excess_of(dice))

    def save(self, path: Path) -> None:
        """Write one .npz of plain arrays, whole or not at all.

        Raises:
            OutputError: it cannot be written.
        """
        with atomic_path(Path(path)) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, version=VERSION, **vars(self))

    @classmethod
    def load(cls, path: Path) -> TumourMemory:
        """Read what `save` wrote.

        Raises:
            StateError: the file is missing, damaged or of another version.
        """
        content = read_memory(path)
        try:
            return cls(**content | {"names": tuple(content["names"].tolist())} | plain_values(content))
        except (KeyError, TypeError, ValueError) as error:
            raise unreadable(path, error) from None


def tumour_print(mask: np.ndarray, spacing: Sequence[float]) -> np.ndarray:
    """A tumour for `TumourMemory`, wherever it lies: `mask_print` of it alone; empty for an empty mask."""
    return mask_print(mask, mask, spacing) if mask.any() else np.zeros(MASK_GRID, bool)


def _all_dice(mask: np.ndarray, prints: np.ndarray) -> np.ndarray:
    """`[N]` Dice coefficients of a print with others, each the larger of it and its left-right mirror image."""
    common = np.maximum(*((prints & way).sum(axis=(1, 2, 3)) for way in (mask, mask[::-1])))
    return 2 * common / np.maximum(prints.sum(axis=(1, 2, 3)) + mask.sum(), 1)


def _dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2 * np.count_nonzero(a & b) / max(np.count_nonzero(a) + np.count_nonzero(b), 1)
