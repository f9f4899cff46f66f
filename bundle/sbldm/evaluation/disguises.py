"""Copies in disguise: what the audit for copies is tried on. Each makes another image of one and the same brain."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

__all__ = ["DISGUISES"]

DARKEST = 1e-3  # of what stays brain
SMOOTH_MM = 20.0  # SD of the Gaussian that white noise is smoothed with to make a warp

Disguise = Callable[[np.ndarray, Sequence[float], np.random.Generator], np.ndarray]


def _sampled(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    """An image `[X, Y, Z]` at places `[3, X, Y, Z]`, the background kept apart."""
    share = map_coordinates((image > 0).astype(np.float32), where, order=1)
    values = map_coordinates(image.astype(np.float32), where, order=1) / np.maximum(share, DARKEST)
    return np.where(share > 0.5, values.clip(DARKEST), 0).astype(np.float32)


def _changed(image: np.ndarray, spacing: Sequence[float], matrix: np.ndarray) -> np.ndarray:
    """Under a linear map of millimetres about the middle."""
    mm = np.reshape(spacing, (3, 1))
    middle = (np.reshape(image.shape, (3, 1)) - 1) / 2
    where = matrix @ ((np.indices(image.shape).reshape(3, -1) - middle) * mm) / mm + middle
    return _sampled(image, where.reshape(3, *image.shape))


def moved_and_noisy(image: np.ndarray, spacing: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """Mirrored, moved by two voxels, with noise of a tenth of the brain's SD."""
    image = np.roll(image[::-1], 2, axis=1)
    noise = 0.1 * image[image > 0].std() * rng.standard_normal(image.shape)
    return np.where(image > 0, (image + noise).clip(DARKEST), 0).astype(np.float32)


def turned(image: np.ndarray, spacing: Sequence[float], rng: np.random.Generator, degrees: float) -> np.ndarray:
    """About a random axis."""
    axis = rng.standard_normal(3)
    turn = Rotation.from_rotvec(degrees * axis / np.linalg.norm(axis), degrees=True)
    return _changed(image, spacing, turn.as_matrix())


def scaled(image: np.ndarray, spacing: Sequence[float], rng: np.random.Generator, share: float) -> np.ndarray:
    """Larger or smaller."""
    return _changed(image, spacing, np.eye(3) * (1 + share * rng.choice((-1, 1))))


def warped(image: np.ndarray, spacing: Sequence[float], rng: np.random.Generator, mm: float) -> np.ndarray:
    """By smooth displacements of this SD along each axis."""
    noise = rng.standard_normal((3, *image.shape))
    field = np.stack([gaussian_filter(part, SMOOTH_MM / np.array(spacing)) for part in noise])
    field *= mm / field.std(axis=(1, 2, 3), keepdims=True) / np.reshape(spacing, (3, 1, 1, 1))
    return _sampled(image, np.indices(image.shape) + field)


def shaded(image: np.ndarray, spacing: Sequence[float], rng: np.random.Generator) -> np.ndarray:
    """With a smooth bias field of 30 % (30 mm), and brightness squared or its root taken."""
    field = gaussian_filter(rng.standard_normal(image.shape), 30.0 / np.array(spacing))
    shade = np.exp(0.3 * field / field[image > 0].std())
    return np.where(image > 0, (image * shade).clip(DARKEST) ** rng.choice((0.5, 2.0)), 0).astype(np.float32)


DISGUISES: dict[str, Disguise] = {
    "mirrored, moved, noisy": moved_and_noisy,
    "turned by 10 degrees": partial(turned, degrees=10.0),
    "scaled by 10 %": partial(scaled, share=0.1),
    "warped by 3 mm": partial(warped, mm=3.0),
    "shaded": shaded,
}
