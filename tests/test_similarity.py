"""PSNR, SSIM and MS-SSIM against closed forms and against independent implementations."""

import numpy as np
import pytest
import torch
from monai.metrics import MultiScaleSSIMMetric, SSIMMetric
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from sbldm.metrics.similarity import PAPER_FOV_MM, ms_ssim, psnr, squared_errors, ssim

SHAPE, SPACING = (64, 76, 64), (3.0, 3.0, 3.0)


def _brains(count: int, seed: int = 0) -> np.ndarray:
    """Textured ellipsoids of different sizes `[N, X, Y, Z]` in (0, 1], background exactly 0."""
    rng = np.random.default_rng(seed)
    axes = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in SHAPE), indexing="ij"))
    brains = []
    for _ in range(count):
        texture = gaussian_filter(rng.standard_normal(SHAPE), 2)
        inside = (axes**2).sum(0) < rng.uniform(0.25, 0.4)
        brains.append(np.where(inside, (0.5 + texture).clip(0.001, 1), 0))
    return np.array(brains, np.float32)


def test_squared_errors_are_those_of_a_plain_loop():
    """Over the union of both brains, for memory maps of half precision too."""
    a, b = _brains(3, 0).astype(np.float16), _brains(4, 1).astype(np.float16)
    squares, voxels = squared_errors(a, b)
    for i, x in enumerate(a.astype(np.float64)):
        for j, y in enumerate(b.astype(np.float64)):
            union = (x > 0) | (y > 0)
            assert squares[i, j] == pytest.approx(((x - y)[union] ** 2).sum(), rel=1e-4)
            assert voxels[i, j] == union.sum()


def test_psnr_is_that_of_scikit_image():
    """And 20 dB for an error of a tenth everywhere."""
    a, b = _brains(2)
    squares, _ = squared_errors(a[None], b[None])
    assert psnr(squares[0, 0], a.size) == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1), abs=1e-3)
    assert psnr(np.array(0.01 * 1000), 1000) == pytest.approx(20)
    assert psnr(np.array(0.0), 10) == pytest.approx(100)


def test_ssim_is_that_of_scikit_image_and_of_monai():
    """Over the union of the brains, and over a field of view that MONAI sees as a whole."""
    a, b = _brains(2)
    inside, whole = ssim(a, b, SPACING)
    options = {"win_size": 11, "data_range": 1.0, "use_sample_covariance": False, "full": True}
    _, found = structural_similarity(a, b, **options)
    assert inside == pytest.approx(found[(a > 0) | (b > 0)].mean(), abs=1e-5)
    voxels = np.prod(PAPER_FOV_MM) / np.prod(SPACING)
    assert whole == pytest.approx(1 - (1 - found).sum() / voxels, abs=1e-5)
    # MONAI drops half a window at each border, which is background here: its sum of 1 - SSIM is the same.
    metric = SSIMMetric(spatial_dims=3, data_range=1.0, kernel_type="uniform", win_size=11)
    monai = float(metric(*(torch.from_numpy(v)[None, None] for v in (a, b))))
    seen = np.prod([n - 10 for n in SHAPE])
    assert (1 - monai) * seen == pytest.approx((1 - found).sum(), rel=1e-3)


def test_equal_images_and_images_at_the_border():
    """1 for equal images, also where the brain touches the border of the array."""
    full = np.random.default_rng(0).uniform(0.2, 1, (20, 20, 20)).astype(np.float32)
    assert ssim(full, full, SPACING) == pytest.approx((1, 1), abs=1e-6)
    with pytest.raises(ValueError, match="63"):
        ms_ssim(full, full)
    brain = _brains(1)[0]
    assert ms_ssim(brain, brain) == pytest.approx(1, abs=1e-6)


def test_background_inflates_ssim():
    """Independent noise in two brains: near 0 inside, high over the field of view."""
    rng = np.random.default_rng(0)
    inside = _brains(1)[0] > 0
    a, b = (np.where(inside, rng.uniform(0.001, 1, SHAPE), 0).astype(np.float32) for _ in range(2))
    brain, whole = ssim(a, b, SPACING)
    assert brain < 0.35 and whole > 0.88


def test_ms_ssim_falls_with_distance():
    """A copy with noise is nearer than another brain; the value is that of MONAI's metric with the stated scales."""
    a, b = _brains(2)
    noisy = np.where(a > 0, (a + 0.02 * np.random.default_rng(0).standard_normal(SHAPE)).clip(0.001, 1), 0)
    assert 1 > ms_ssim(a, noisy.astype(np.float32)) > ms_ssim(a, b)
    weights = np.array([0.0448, 0.2856, 0.3001, 0.2363])
    metric = MultiScaleSSIMMetric(3, 1.0, kernel_size=7, kernel_sigma=1.5, weights=(weights / weights.sum()).tolist())
    expected = float(metric(*(torch.from_numpy(v)[None, None] for v in (a, b))))
    assert ms_ssim(a, b) == pytest.approx(expected, abs=1e-6)
