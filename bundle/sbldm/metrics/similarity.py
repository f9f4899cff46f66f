"""PSNR, SSIM and MS-SSIM between volumes that have nothing to do with each other, each under a protocol of its own.

Such numbers say little: the mean image beats every real brain in PSNR, and background fills most of a field of view.
They are here because the paper reports them (`random-pair`, its Table 1), beside forms that look at the brain alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics import MultiScaleSSIMMetric
from skimage.metrics import structural_similarity

__all__ = ["LEAST_SIDE", "PAPER_FOV_MM", "ms_ssim", "psnr", "squared_errors", "ssim"]

PAPER_FOV_MM = (240.0, 240.0, 155.0)  # of BraTS, which the paper's 192x192x96 voxels cover
WINDOW = 11  # voxels, uniform
SCALES = (0.0448, 0.2856, 0.3001, 0.2363)  # the first four of Wang et al. 2003
LEAST_SIDE = 63  # voxels, for so many scales
CHUNK = 200_000  # voxels


def squared_errors(
    images: np.ndarray, others: np.ndarray, rows: Sequence[int] | None = None, columns: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Sum of squared differences and number of voxels in the union of both brains, for all pairs.

    Args:
        images: `[N, X, Y, Z]`, background exactly 0; may be a memory map, it is read in pieces.
        others: `[M, X, Y, Z]`.
        rows, columns: which of the two to take; all unless given.

    Returns:
        two arrays `[N, M]` float64. Background adds nothing, so the sum over the union is that over all voxels.
    """
    a, b = (x.reshape(len(x), -1) for x in (images, others))
    rows, columns = (range(len(v)) if which is None else which for v, which in ((a, rows), (b, columns)))
    dot, common = np.zeros((2, len(rows), len(columns)))
    own_a, own_b = np.zeros((2, len(rows))), np.zeros((2, len(columns)))
    for start in range(0, a.shape[1], CHUNK):
        x, y = (
            np.asarray(v[:, start : start + CHUNK][list(which)], np.float32) for v, which in ((a, rows), (b, columns))
        )
        brain_x, brain_y = (np.asarray(v > 0, np.float32) for v in (x, y))
        dot += x @ y.T
        common += brain_x @ brain_y.T
        for own, values, brain in ((own_a, x, brain_x), (own_b, y, brain_y)):
            own += np.einsum("nv,nv->n", values, values, dtype=np.float64), brain.sum(1, dtype=np.float64)
    squares = own_a[0][:, None] + own_b[0] - 2 * dot
    return squares.clip(min=0), own_a[1][:, None] + own_b[1] - common


def psnr(squares: np.ndarray, voxels: np.ndarray | float) -> np.ndarray:
    """10 log10(1 / MSE) in dB for data range 1; equal images, whose MSE is 0, are given 100 dB."""
    return 10 * np.log10(1 / np.maximum(squares / voxels, 1e-10))


def ssim(image: np.ndarray, other: np.ndarray, spacing: Sequence[float]) -> tuple[float, float]:
    """SSIM of two volumes `[X, Y, Z]` in [0, 1]: 3-D, uniform window of 11 voxels, K1 .01, K2 .03, data range 1.

    Returns:
        the mean over the union of both brains, and the mean over a field of view as large as the paper's, in which
        everything outside is background in both and counts as 1 (the paper's way, method of its Table 1).
    """
    union = (image > 0) | (other > 0)
    bounds = [np.flatnonzero(union.any(axis=tuple({0, 1, 2} - {axis})))[[0, -1]] for axis in range(3)]
    # With a window's width of margin the box holds every voxel that is not 1.
    pad = [
        (max(WINDOW - low, 0), max(high + WINDOW + 1 - n, 0))
        for (low, high), n in zip(bounds, union.shape, strict=True)
    ]
    box = tuple(
        slice(low - WINDOW + before, high + WINDOW + 1 + before)
        for (low, high), (before, _) in zip(bounds, pad, strict=True)
    )
    x, y, inside = (np.pad(v, pad)[box] for v in (image.astype(np.float32), other.astype(np.float32), union))
    options = {"win_size": WINDOW, "data_range": 1.0, "use_sample_covariance": False, "full": True}
    _, found = structural_similarity(x, y, **options)
    voxels = np.prod(PAPER_FOV_MM) / np.prod(spacing)
    return float(found[inside].mean()), float(1 - (1 - found).sum() / voxels)


def ms_ssim(image: np.ndarray, other: np.ndarray) -> float:
    """Multi-scale SSIM (Wang et al. 2003) of two volumes `[X, Y, Z]`: four scales, Gaussian window of 7 voxels.

    Raises:
        ValueError: a side has fewer than 63 voxels (five scales, as usual, would need 112).
    """
    if min(image.shape) < LEAST_SIDE:
        raise ValueError(f"a side of {min(image.shape)} voxels; MS-SSIM needs {LEAST_SIDE}")
    weights = np.array(SCALES) / sum(SCALES)
    metric = MultiScaleSSIMMetric(
        spatial_dims=3, data_range=1.0, kernel_size=7, kernel_sigma=1.5, weights=weights.tolist()
    )
    x, y = (torch.from_numpy(np.ascontiguousarray(v, dtype=np.float32))[None, None] for v in (image, other))
    return float(metric(x, y).item())
