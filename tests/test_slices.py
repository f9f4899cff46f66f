"""Slice consistency against Gaussian random fields, plane geometry, scikit-image and plain loops."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage
from skimage.metrics import structural_similarity

from sbldm.metrics.slices import adjacent_curve, effect_size, slice_measures
from sbldm.metrics.volumes import Volume
from sbldm.run.errors import DataError

MEASURES = ["z_gradient_ratio", "adjacent_ssim", "banding", "mask_flicker", "mask_islands"]


def volume(image: np.ndarray, mask: np.ndarray | None = None, spacing=(1.0, 1.0, 1.0)) -> Volume:
    return Volume("case", "", image.astype(np.float32), mask, spacing, None)


def field(shape: tuple[int, ...], sigma: tuple[float, ...], seed: int) -> np.ndarray:
    """Stationary Gaussian field of mean 0 and SD 1 with correlation exp(-lag^2 / (4 sigma^2))."""
    noise = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    smooth = ndimage.gaussian_filter(noise, sigma, mode="wrap")
    return (smooth - smooth.mean()) / smooth.std()


def structure(lag: float, sigma: float) -> float:
    """SD of the difference of two points of that field."""
    return math.sqrt(2 * (1 - math.exp(-(lag**2) / (4 * sigma**2))))


def ellipsoid(shape: tuple[int, ...]) -> np.ndarray:
    grids = np.meshgrid(*(np.linspace(-1.05, 1.05, n) for n in shape), indexing="ij")
    return sum(g**2 for g in grids) < 1


def disc(size: int, radius: float, shift: float = 0) -> np.ndarray:
    x, y = np.mgrid[:size, :size] - (size - 1) / 2
    return (x - shift) ** 2 + y**2 < radius**2


def gradient_ratio(images: list[np.ndarray], spacing=(1.0, 1.0, 1.0)) -> float:
    return float(np.mean([slice_measures(volume(x, spacing=spacing))["z_gradient_ratio"] for x in images]))


def test_isotropic_field_has_gradient_ratio_one():
    """Also in a brain with an outline, whose edges are far stronger than the texture."""
    shape = (112, 112, 96)
    images = [0.5 + 0.08 * field(shape, (2, 2, 2), seed) for seed in range(3)]
    assert gradient_ratio(images) == pytest.approx(1, abs=0.03)
    assert gradient_ratio([x * ellipsoid(shape) for x in images]) == pytest.approx(1, abs=0.03)


def test_gradients_are_per_mm():
    """Isotropic in mm on slices 2 mm apart: 1, but for the longer lag along Z, whose part is known."""
    images = [0.5 + 0.08 * field((128, 128, 64), (4, 4, 2), seed) for seed in range(4)]
    found = gradient_ratio(images, (1, 1, 2))
    assert found == pytest.approx(1, abs=0.03)
    assert found == pytest.approx(structure(2, 4) / 2 / structure(1, 4), rel=0.02)
    assert gradient_ratio(images[:1]) == pytest.approx(2 * gradient_ratio(images[:1], (1, 1, 2)), rel=0.02)


@pytest.mark.parametrize("own", [0.3, 1.0])
def test_independent_slices_raise_the_gradient_ratio(own):
    """Share `own` of the variance is drawn anew in every slice: the SDs of the differences are known."""
    sigma, shape = 2.0, (96, 96, 80)
    together = field(shape, (sigma,) * 3, 1)
    alone = field(shape, (sigma, sigma, 0), 2)
    found = gradient_ratio([0.5 + 0.08 * (math.sqrt(1 - own) * together + math.sqrt(own) * alone)])
    along_z = math.sqrt((1 - own) * structure(1, sigma) ** 2 + 2 * own)
    assert found == pytest.approx(along_z / structure(1, sigma), rel=0.02)


def test_gradient_ratio_by_plain_slicing():
    """Another erosion, and the neighbours written out, on slices 2 mm apart: 3 voxels in-plane and 2 along Z."""
    brain = ellipsoid((40, 44, 32))
    image = np.where(brain, np.random.default_rng(3).uniform(0.1, 1, brain.shape), 0).astype(np.float32)
    inner = ndimage.binary_erosion(brain, np.ones((7, 7, 5)))
    x = np.abs(image[1:] - image[:-1])[inner[1:] & inner[:-1]].mean()
    y = np.abs(image[:, 1:] - image[:, :-1])[inner[:, 1:] & inner[:, :-1]].mean()
    z = np.abs(image[..., 1:] - image[..., :-1])[inner[..., 1:] & inner[..., :-1]].mean() / 2
    found = slice_measures(volume(image, spacing=(1, 1, 2)))["z_gradient_ratio"]
    assert found == pytest.approx(z / ((x + y) / 2), rel=1e-5)


def test_nothing_changes_along_z():
    """Slices all alike under a changing outline: no gradient, SSIM 1, no banding and no flicker, exactly."""
    image = np.repeat(0.5 + 0.08 * field((64, 64, 1), (3, 3, 0), 4), 40, axis=2) * ellipsoid((64, 64, 40))
    mask = np.repeat(disc(64, 9)[..., None], 40, axis=2) & (np.arange(40) > 9) & (np.arange(40) < 30)
    found = slice_measures(volume(image, mask))
    expected = {"z_gradient_ratio": 0, "adjacent_ssim": 1, "banding": 0, "mask_flicker": 0, "mask_islands": 0}
    assert list(found) == MEASURES and found == expected
    np.testing.assert_array_equal(adjacent_curve(volume(image)), np.ones(21))


def test_ssim_is_that_of_scikit_image():
    """Slices that are brain throughout: the mean over windows that do not cross the border."""
    image = 0.5 + 0.1 * field((41, 36, 9), (1.5, 1, 1), 5)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1}
    slices = np.moveaxis(image, 2, 0)
    theirs = [structural_similarity(a, b, **options) for a, b in pairwise(slices)]
    assert slice_measures(volume(image))["adjacent_ssim"] == pytest.approx(np.mean(theirs), abs=1e-6)
    assert np.ptp(theirs) > 0.005  # pairs differ, so the curve's order matters
    heights = adjacent_curve(volume(np.pad(image, ((0, 0), (0, 0), (3, 4)))), 17)
    np.testing.assert_allclose(heights[1::2], theirs, atol=1e-6)  # points half way between slices


def test_ssim_takes_no_background_in():
    """Only windows that are brain in both slices count: a plain loop over scikit-image's map."""
    brain = np.pad(ellipsoid((48, 44, 14)), ((2, 2), (2, 2), (1, 1)))
    image = np.where(brain, 0.5 + 0.1 * field(brain.shape, (1, 1, 1), 6), 0).astype(np.float32)
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1, "full": True}
    means = []
    for k in range(brain.shape[2] - 1):
        _, full = structural_similarity(image[..., k], image[..., k + 1], **options)
        both = brain[..., k] & brain[..., k + 1]
        whole = [full[i, j] for i, j in np.argwhere(both) if both[i - 5 : i + 6, j - 5 : j + 6].sum() == 121]
        means += [np.mean(whole)] if whole else []
    assert len(means) > 5
    assert slice_measures(volume(image))["adjacent_ssim"] == pytest.approx(np.mean(means), abs=1e-6)


def test_curve_runs_from_bottom_to_top():
    """Equal slices below, slices of white noise above, whose windows share nothing but their mean."""
    image = np.random.default_rng(7).normal(0.5, 0.1, (64, 64, 42))
    image[..., :21] = image[..., :1]
    curve = adjacent_curve(volume(np.pad(image, ((1, 1), (1, 1), (0, 9)))))
    assert curve.shape == (21,) and (curve[:10] == 1).all() and (curve[11:] < 0.15).all()
    assert adjacent_curve(volume(image[..., ::-1]))[:10].max() < 0.15


def bands(slices: np.ndarray) -> float:
    """Banding of slices of these intensities; three at either end are outline and do not count."""
    return slice_measures(volume(np.ones((20, 20, 1)) * np.pad(slices, 3, mode="edge")))["banding"]


def test_banding_is_the_share_of_fast_waves():
    """Cosines below and above half of the highest frequency share the power as their squared amplitudes do."""
    place = (np.arange(64) + 0.5) * math.pi / 64
    slow, fast = np.cos(18 * place), np.cos(50 * place)
    assert bands(0.5 + 0.1 * slow) < 0.01
    assert bands(0.5 + 0.1 * fast) > 0.99
    assert bands(0.5 + 0.1 * slow + 0.05 * fast) == pytest.approx(1 / 5, abs=0.01)
    assert bands(0.5 + 1e-3 * fast) == pytest.approx(1 / 3, abs=0.01)  # power 1/2 of it beside a ripple of 1


def test_banding_of_offsets_and_trends():
    """Independent offsets: half of the frequencies hold half of the power, 32 of the 60 left by a cubic; trends: 0."""
    random = np.random.default_rng(8)
    found = [bands(random.normal(0.5, 0.05, 64)) for _ in range(60)]
    assert np.mean(found) == pytest.approx(32 / 60, abs=0.03)
    assert bands(np.linspace(0.3, 0.7, 64) ** 3) < 1e-6


def test_stripes_show():
    """Every other slice 10 % brighter, in a brain that is isotropic otherwise."""
    clean = (0.5 + 0.08 * field((80, 80, 72), (4, 4, 4), 9)) * ellipsoid((80, 80, 72))
    striped = clean * np.where(np.arange(72) % 2, 1.1, 1)
    before, after = (slice_measures(volume(x)) for x in (clean, striped))
    assert before["banding"] < 0.01 and after["banding"] > 0.5
    assert after["adjacent_ssim"] < before["adjacent_ssim"] - 0.003
    assert after["z_gradient_ratio"] > 2 * before["z_gradient_ratio"]


def test_jumping_outline_is_no_banding():
    """Bright centre, dark rim: a rim that comes and goes moves the mean of whole slices, not the profile."""
    x, y = np.mgrid[:64, :64] - 31.5
    tissue = np.repeat((1 - np.hypot(x, y) / 60)[..., None], 48, axis=2)
    outline = np.stack([disc(64, 30 - 4 * (k % 2)) for k in range(48)], axis=2)
    image = tissue * outline
    means = image.sum((0, 1)) / outline.sum((0, 1))
    assert bands(means) > 0.9
    assert slice_measures(volume(image))["banding"] == 0


def test_banding_needs_slices_of_some_size():
    """Noise in a tip of less than a tenth of the largest slice is not looked at; under eight slices: NaN."""
    image = np.repeat(0.5 * disc(64, 30)[..., None], 48, axis=2)
    assert slice_measures(volume(image))["banding"] == 0
    image[..., 36:] = disc(64, 10)[..., None] * np.random.default_rng(13).uniform(0.1, 1, 12)
    assert slice_measures(volume(image))["banding"] == 0
    assert math.isnan(bands(np.full(7, 0.5))) and bands(np.full(8, 0.5)) == 0


def flicker(slices: list[np.ndarray]) -> float:
    mask = np.pad(np.stack(slices, axis=2), ((0, 0), (0, 0), (2, 3)))
    return slice_measures(volume(np.ones(mask.shape), mask))["mask_flicker"]


def test_flicker_of_discs():
    """Concentric discs that alternate: DSC 2 r^2 / (r^2 + R^2); discs that jump to and fro: area of the lens."""
    wide, narrow = disc(160, 60), disc(160, 40)
    assert flicker([wide, narrow] * 6) == pytest.approx(1 - 2 * 40**2 / (40**2 + 60**2), abs=0.002)
    left, right = disc(160, 50, -15), disc(160, 50, 15)
    lens = 2 / math.pi * (math.acos(0.3) - 0.3 * math.sqrt(1 - 0.3**2))  # centres 0.6 radii apart
    assert flicker([left, right] * 6) == pytest.approx(1 - lens, abs=0.003)


def test_flicker_ends_and_gaps():
    """The two end slices count only where fewer than four are there; a slice dropped inside counts twice."""
    full, half, none = np.ones((6, 6), bool), np.zeros((6, 6), bool), np.zeros((6, 6), bool)
    half[:3] = True
    assert flicker([half, full, full, half]) == 0
    assert flicker([half, full, half]) == pytest.approx(1 / 3)  # DSC 2 * 18 / (18 + 36) twice
    assert flicker([full, full, none, full, full, full]) == pytest.approx(2 / 3)
    assert math.isnan(flicker([full, none, none, none, full]))
    assert math.isnan(flicker([full]))


def test_islands_are_components_of_one_slice():
    """A diagonal neighbour joins; two in one slice are two; a component that lasts is none."""
    mask = np.zeros((30, 30, 12), bool)
    mask[3:8, 3:8, 2:9] = True
    image = np.ones(mask.shape)
    assert slice_measures(volume(image, mask))["mask_islands"] == 0
    mask[8:10, 8:10, 9] = True  # touches a corner of the block's last slice
    assert slice_measures(volume(image, mask))["mask_islands"] == 0
    mask[15:18, 15:18, 4] = mask[22:25, 15:18, 4] = mask[15:18, 15:18, 6] = True
    assert slice_measures(volume(image, mask))["mask_islands"] == 3


@pytest.mark.filterwarnings("error")
def test_nothing_to_measure():
    """NaN without tumour or room for a window; an error that names the case without a brain."""
    image = 0.5 + 0.08 * field((40, 40, 24), (3, 3, 3), 10)
    for mask in (None, np.zeros(image.shape, bool)):
        found = slice_measures(volume(image, mask))
        assert [key for key in MEASURES if math.isnan(found[key])] == ["mask_flicker", "mask_islands"]
    tiny = volume(np.pad(image[:4, :4, :4], 5))
    assert all(math.isnan(value) for value in slice_measures(tiny).values())
    assert np.isnan(adjacent_curve(tiny, 5)).all()
    assert math.isnan(slice_measures(volume(np.full((40, 40, 24), 0.5)))["z_gradient_ratio"])
    with pytest.raises(DataError, match=r"case: holds no brain\."):
        slice_measures(volume(np.zeros((8, 8, 8))))


def test_effect_size_of_normals():
    """A shift of 1.5 SD, scale and origin aside; the interval is as wide as large-sample theory says."""
    random = np.random.default_rng(11)
    reference, samples = random.normal(7, 2, 400), random.normal(10, 2, 300)
    found = effect_size(samples, reference, seed=1)
    delta = (samples.mean() - reference.mean()) / reference.std(ddof=1)
    assert found.value == pytest.approx(delta) and found.low < 1.5 < found.high
    half = 1.96 * math.sqrt(1 / 300 + 1 / 400 + delta**2 / (2 * 400))
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.08)
    assert effect_size(samples, reference, seed=1) == found != effect_size(samples, reference, seed=2)
    assert effect_size([math.nan, *samples], [*reference, math.nan], seed=1) == found
    assert effect_size(-3 * samples, -3 * reference, seed=1).value == pytest.approx(-delta)


def test_effect_size_interval_covers():
    """95 % intervals of 1000 experiments with 40 and 60 cases hold the true shift about as often as they should."""
    random = np.random.default_rng(12)
    found = [effect_size(random.normal(0.8, 1, 40), random.normal(0, 1, 60), seed, 400) for seed in range(1000)]
    assert 0.915 <= np.mean([low <= 0.8 <= high for _, low, high in found]) <= 0.97
    widths = [high - low for _, low, high in found]
    assert np.mean(widths) == pytest.approx(2 * 1.96 * math.sqrt(1 / 40 + 1 / 60 + 0.8**2 / 120), rel=0.1)


@pytest.mark.filterwarnings("error")
def test_effect_size_without_spread():
    """Undefined against a constant; unbounded where draws of the reference are often constant."""
    for samples, reference in (([], [1, 2]), ([1, 2], [0.1] * 7), ([1, 2], [3]), ([1], []), ([math.nan], [1, 2])):
        assert all(math.isnan(value) for value in effect_size(samples, reference))
    found = effect_size([2, 3, 4], [0, 0, 0, 0, 1])
    assert found.value == pytest.approx((3 - 0.2) / math.sqrt(0.2)) and found.high == math.inf and found.low > 0
    assert effect_size([0, 0], [0, 0, 0, 0, 1]).high == 0
