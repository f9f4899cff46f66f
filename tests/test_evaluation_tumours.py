"""Tumour distributions against SciPy, closed forms and phantoms of known measures."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sbldm.metrics.tumours import HEAT_CELLS, compare, heat_distance, heat_map, tumour_measures
from sbldm.metrics.volumes import Volume
from sbldm.tumour.characteristics import NAMES

NINE = np.arange(1.0, 10.0)


def _volume(image, mask, spacing=(1.0, 1.0, 1.0), characteristics=NINE):
    return Volume("case", "hash", np.asarray(image, np.float32), mask, spacing, characteristics)


def _cuboid(shape, low, high):
    mask = np.zeros(shape, bool)
    mask[tuple(slice(a, b) for a, b in zip(low, high, strict=True))] = True
    return mask


def test_contrast_of_an_analytic_phantom():
    """A cuboid on anisotropic voxels: brightness by the closed-form distance to it, exactly up to 10 mm counts."""
    spacing, shape, low, high = (1.0, 2.0, 2.5), (60, 40, 32), (24, 16, 12), (36, 22, 20)
    grid = np.meshgrid(*map(np.arange, shape), indexing="ij")
    beyond = [
        np.maximum(np.maximum(a - i, i - (b - 1)), 0) * s for i, a, b, s in zip(grid, low, high, spacing, strict=True)
    ]
    distance = np.sqrt(sum(b**2 for b in beyond))
    image = np.where(distance <= 10, 0.5, 0.3)
    mask = _cuboid(shape, low, high)
    assert np.array_equal(distance == 0, mask)
    image[mask] = 0.9
    near = ((distance > 0) & (distance <= 10)).sum() / (distance > 0).sum()
    expected = (0.9 - 0.5) / (0.2 * math.sqrt(near * (1 - near)))
    assert tumour_measures(_volume(image, mask, spacing))["contrast"] == pytest.approx(expected, rel=1e-5)


def test_what_lies_outside_the_brain_is_counted_and_darkens_nothing():
    """A quarter of the mask beyond the brain: that share, and the contrast of the three quarters inside."""
    image = np.zeros((40, 40, 40))
    image[:30] = 0.4
    image[:14] = 0.2  # further than 10 mm
    mask = _cuboid(image.shape, (24, 10, 10), (32, 18, 18))
    image[mask & (image > 0)] = 0.8
    found = tumour_measures(_volume(image, mask))
    assert found["outside"] == pytest.approx(0.25)
    healthy = image[(image > 0) & ~mask]
    assert found["contrast"] == pytest.approx((0.8 - 0.4) / healthy.std(), rel=1e-5)


def test_components_count_from_a_tenth_of_a_millilitre():
    """Voxels of 10 mm3: ten of them make a component, nine do not; corners connect."""
    mask = np.zeros((30, 20, 20), bool)
    mask[0, 0:10, 0] = True  # 0.1 ml
    mask[4, 0:9, 0] = True  # 0.09 ml
    mask[8:10, 0:3, 0] = mask[10:12, 3:6, 1] = True  # 0.06 ml each, joined by a corner
    found = tumour_measures(_volume(np.full(mask.shape, 0.5), mask, (1.0, 2.0, 5.0)))
    assert found["components"] == 2
    assert [found[name] for name in NAMES] == NINE.tolist()


def test_without_a_tumour_there_is_nothing_to_measure():
    """No mask or an empty one: zero components, NaN elsewhere; constant brains have no contrast but the rest."""
    image, empty = np.full((8, 8, 8), 0.5), np.zeros((8, 8, 8), bool)
    full = tumour_measures(_volume(image, _cuboid(image.shape, (2, 2, 2), (5, 5, 5))))
    assert math.isnan(full["contrast"]) and full["volume_ml"] == 1 and full["outside"] == 0
    for mask in (None, empty):
        found = tumour_measures(_volume(image, mask, characteristics=None))
        assert found.keys() == full.keys() and found.pop("components") == 0
        assert all(math.isnan(value) for value in found.values())


@pytest.mark.parametrize("digits", [0, 1, 12])
def test_distances_are_those_of_scipy(digits):
    """Unequal numbers, few or no ties."""
    random = np.random.default_rng(digits)
    samples, reference = random.normal(3, 2, 37).round(digits), random.normal(2, 3, 24).round(digits)
    wasserstein, smirnov = compare(samples, reference)
    expected = stats.wasserstein_distance(samples, reference) / reference.std(ddof=1)
    assert wasserstein.value == pytest.approx(expected, rel=1e-12)
    assert smirnov.value == pytest.approx(stats.ks_2samp(samples, reference).statistic, rel=1e-12)
    assert 0 <= wasserstein.low < wasserstein.value < wasserstein.high
    assert 0 <= smirnov.low < smirnov.value < smirnov.high <= 1


def test_shifted_normals():
    """Shift over SD, and 2 Phi(shift / 2) - 1, in whatever unit: both inside their intervals."""
    normal = stats.norm.ppf((np.arange(3000) + 0.5) / 3000)
    samples, reference = 7 + 5 * normal, 4 + 5 * normal
    wasserstein, smirnov = compare(samples, reference)
    expected = 0.6, 2 * stats.norm.cdf(0.3) - 1
    for found, truth in zip((wasserstein, smirnov), expected, strict=True):
        assert found.value == pytest.approx(truth, abs=0.002)
        assert found.low < truth < found.high and found.high - found.low < 0.12
    scaled = compare(samples / 1000 + 1, reference / 1000 + 1)
    assert np.array(scaled) == pytest.approx(np.array((wasserstein, smirnov)), rel=1e-6)


def test_order_and_seed():
    """A pure function of its arguments; the seed moves the interval, never the value."""
    samples, reference = np.random.default_rng(1).normal(size=(2, 30))
    first, again, other = (compare(samples, reference, seed=s) for s in (0, 0, 1))
    assert first == again != other
    assert [e.value for e in first] == [e.value for e in other]


def test_what_cannot_be_compared():
    """NaN is left out; a reference without spread has no scale; three values are too few."""
    reference = np.random.default_rng(2).normal(size=20)
    assert compare(np.append(reference[:9], np.nan), reference) == compare(reference[:9], reference)
    wasserstein, smirnov = compare(np.array([0, 0, 0.1, 0.2]), np.full(7, 0.0))
    assert np.isnan(wasserstein).all() and smirnov.value == pytest.approx(0.5)
    rare, _ = compare(reference, np.array([1.0] * 19 + [2.0]))  # most halves hold no spread
    assert rare.low < rare.value < rare.high
    with pytest.raises(ValueError, match="3 and 20 values; four"):
        compare(reference[:3], reference)


@pytest.mark.parametrize(("shift", "scale", "most"), [(0, 1, 1), (1, 1, 0.985), (0, 1.5, 0.995)])
def test_coverage_of_the_intervals(shift, scale, most):
    """They cover the mean distance of such samples: nearly always without, about 95 % with a difference."""
    random = np.random.default_rng(3)
    many = [(random.normal(shift, scale, 60), random.normal(0, 1, 40)) for _ in range(800)]
    truth = np.mean(
        [
            (stats.wasserstein_distance(a, b) / b.std(ddof=1), stats.ks_2samp(a, b, method="asymp").statistic)
            for a, b in many
        ],
        axis=0,
    )
    found = np.array([compare(*pair) for pair in many[:200]])  # [200, 2, 3]
    too_high, too_low = (found[..., 1] > truth).mean(axis=0), (found[..., 2] < truth).mean(axis=0)
    assert max(*too_high, *too_low) <= 0.06  # on either side: no upward bias
    assert (too_high + too_low >= 1 - most).all()


def test_heat_map_of_a_known_blob():
    """Half the box of one of two brains: one half in one half of the cells; other sizes and cuts fall in place."""
    brain = _cuboid((70, 90, 70), (3, 5, 2), (67, 81, 66))  # 64 x 76 x 64: two voxels a cell
    half = _cuboid(brain.shape, (3, 5, 2), (35, 81, 66))
    small = _cuboid((20, 20, 20), (2, 2, 2), (18, 12, 18))
    volumes = [_volume(0.5 * brain, half), _volume(0.5 * small, np.zeros(small.shape, bool), characteristics=None)]
    found = heat_map(iter(volumes))
    assert found.shape == HEAT_CELLS == (32, 38, 32)
    assert found[:16] == pytest.approx(0.5) and found[16:] == pytest.approx(0)
    part = heat_map([_volume(0.5 * brain, _cuboid(brain.shape, (13, 25, 12), (14, 26, 14)))])
    assert part[5, 10, 5] == pytest.approx(0.25) and part.sum() == pytest.approx(0.25)


def test_heat_map_keeps_the_tumours_share_of_the_box():
    """On a grid that no cell fits, the mean of the map is still the tumour's share of the box."""
    brain = _cuboid((80, 90, 60), (5, 4, 3), (72, 85, 56))
    mask = _cuboid(brain.shape, (11, 30, 20), (30, 51, 41))
    found = heat_map([_volume(0.5 * brain, mask)])
    assert found.mean() == pytest.approx(mask.sum() / brain.sum(), rel=1e-12)
    assert found.max() == pytest.approx(1)


def test_heat_map_counts_all_cases():
    """A case without a mask file counts as one without a tumour; no cases make no map."""
    whole = np.full((4, 4, 4), 0.5)
    volumes = [_volume(whole, whole > 0), _volume(whole, None, characteristics=None)]
    assert heat_map(volumes) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="No volumes"):
        heat_map([])


def test_heat_distance():
    """0 of equal shapes however high, 1 of maps apart, the share that would have to move between."""
    a, b = np.zeros(HEAT_CELLS), np.zeros(HEAT_CELLS)
    a[0, 0, :4], b[0, 0, 3:7] = 0.2, 0.9
    assert heat_distance(a, 3 * a) == pytest.approx(0)
    assert heat_distance(a, a[::-1]) == pytest.approx(1)
    assert heat_distance(a, b) == pytest.approx(0.75)
    with pytest.raises(ValueError, match="without any tumour"):
        heat_distance(a, 0 * b)
