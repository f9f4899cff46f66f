"""Fidelity to requests: perfect, biased, displaced and shuffled pairs with known scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from sbldm.metrics.requests import fidelity, shuffled, spread
from sbldm.tumour.characteristics import NAMES

AXES = ("volume", "sphericity", "x", "y", "z", "w", "h", "d")


def _requests(n, seed=0):
    random = np.random.default_rng(seed)
    volume, centre = np.exp(random.normal(3.5, 0.8, n)), random.normal(0, 25, (n, 3))
    return np.column_stack(
        [volume, random.uniform(1e3, 2e4, n), random.uniform(0.5, 0.9, n), centre, random.uniform(20, 90, (n, 3))]
    )


def test_perfect_pairs():
    """Slopes and rank correlations 1, errors 0, boxes alike, intervals of no width."""
    requested = _requests(40)
    found = fidelity(requested, requested)
    expected = {f"{a}_{s}": 1 for a in AXES for s in ("slope", "spearman")} | {"box_iou": 1}
    expected |= dict.fromkeys(("volume_error", "volume_bias", "centre_mm", "extents_mm", "sphericity_error"), 0)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx((value, value, value), abs=1e-12), name


def test_known_biases():
    """Volumes too large by a factor, centres off by (3, 4, 0) mm, extents by 1, 2 and 6 mm, rounder by 0.05."""
    requested = _requests(30)
    measured = requested + np.array([0, 0, 0.05, 3, 4, 0, 1, -2, 6])
    measured[:, 0] *= 1.25
    found = {name: e.value for name, e in fidelity(requested, measured).items()}
    assert found["volume_error"] == pytest.approx(0.25)
    assert found["volume_bias"] == pytest.approx(math.log(1.25))
    assert found["centre_mm"] == pytest.approx(5)
    assert found["extents_mm"] == pytest.approx(3)
    assert found["sphericity_error"] == pytest.approx(0.05)
    assert [found[f"{a}_slope"] for a in AXES] == pytest.approx([1] * 8)


def test_shares_of_tissues():
    """Core off by 6 points either way, enhancing tissue in reverse order; the scores of the nine stay what they are."""
    random = np.random.default_rng(4)
    nine, names = _requests(30), (*NAMES, "core_percent", "enhancing_percent")
    requested = np.column_stack([nine, random.uniform(30, 70, 30), random.uniform(0, 20, 30)])
    measured = requested + np.array([0] * 9 + [6, 0])
    measured[::2, 9] -= 12
    measured[:, 10] = 20 - requested[:, 10]
    found, alone = fidelity(requested, measured, names), fidelity(nine, nine)
    assert found["core_error"].value == pytest.approx(6) and found["enhancing_spearman"].value == pytest.approx(-1)
    assert found["enhancing_error"].value == pytest.approx(np.median(np.abs(20 - 2 * requested[:, 10])))
    assert {name: found[name] for name in alone} == alone
    control = shuffled(requested, measured, names)
    assert control["core_error"] > 6 and abs(control["enhancing_slope"]) < 0.1


def test_slopes_and_ranks_against_scipy():
    """Noisy answers with ties: least squares (volume in logarithms) and Spearman's correlation of SciPy."""
    requested = _requests(50).round(1)
    measured = 0.6 * requested + np.random.default_rng(1).uniform(0, 0.3, requested.shape) * requested.std(axis=0)
    measured = np.maximum(measured.round(1), np.where(np.isin(np.arange(9), (3, 4, 5)), -1e3, 0.1))
    found = fidelity(requested, measured)
    for name, i in zip(AXES, (0, 2, 3, 4, 5, 6, 7, 8), strict=True):
        x, y = (np.log(v[:, i]) if i == 0 else v[:, i] for v in (requested, measured))
        assert found[f"{name}_slope"].value == pytest.approx(stats.linregress(x, y).slope), name
        assert found[f"{name}_spearman"].value == pytest.approx(stats.spearmanr(x, y).statistic), name
        assert found[f"{name}_slope"].low < found[f"{name}_slope"].value < found[f"{name}_slope"].high


@pytest.mark.parametrize(
    ("shift", "extents", "iou"),
    [
        ((0, 0, 0), (20, 30, 40), 1),
        ((10, 0, 0), (20, 30, 40), 1 / 3),
        ((10, 15, 20), (20, 30, 40), 1 / 15),
        ((0, 0, 0), (10, 15, 20), 1 / 8),
        ((20, 0, 0), (20, 30, 40), 0),
        ((50, 50, 0), (20, 30, 40), 0),
    ],
)
def test_box_iou(shift, extents, iou):
    """Boxes of 20 x 30 x 40 mm moved or shrunk."""
    requested = np.tile([10, 5e3, 0.7, 1, 2, 3, 20, 30, 40.0], (3, 1))
    measured = requested.copy()
    measured[:, 3:6] += shift
    measured[:, 6:9] = extents
    assert fidelity(requested, measured)["box_iou"].value == pytest.approx(iou)


def test_what_does_not_vary_has_no_slope():
    """Equal requests leave slope and rank correlation out, an equal answer the rank correlation alone (slope 0)."""
    requested, measured = _requests(7), _requests(7, seed=1)
    requested[:, 0], measured[:, 3] = 44.83, 0.1
    for found in (fidelity(requested, measured), shuffled(requested, measured)):
        assert not {"volume_slope", "volume_spearman", "x_spearman"} & found.keys()
        assert {"volume_error", "x_slope", "y_slope", "y_spearman"} <= found.keys()
        assert np.allclose(found["x_slope"], 0)


def test_intervals_cover(monkeypatch):
    """Answers that ignore the request but for d, of slope 0.7: about 95 % of intervals hold the truth."""
    names = [f"{axis}_{score}" for axis in AXES[:-1] for score in ("slope", "spearman")]
    ignored, followed = [], []
    monkeypatch.setattr("sbldm.metrics.requests.DRAWS", 250)
    for seed in range(40):
        requested, measured = _requests(50, seed), _requests(50, seed + 1000)
        measured[:, 8] += 0.7 * requested[:, 8]
        found = fidelity(requested, measured)
        ignored.append([found[name].low <= 0 <= found[name].high for name in names])
        followed.append(found["d_slope"].low <= 0.7 <= found["d_slope"].high)
    assert 0.9 <= np.mean(ignored) <= 0.98
    assert np.mean(followed) >= 0.87


def test_shuffled_is_the_control():
    """Requests that are met to the letter, exchanged: no slope, no correlation, errors of strangers."""
    requested = _requests(40)
    found = shuffled(requested, requested)
    assert found.keys() == fidelity(requested, requested).keys()
    for axis in AXES:
        assert abs(found[f"{axis}_slope"]) < 0.04 and abs(found[f"{axis}_spearman"]) < 0.04
    distances = np.linalg.norm(requested[:, None, 3:6] - requested[None, :, 3:6], axis=-1)
    assert found["centre_mm"] == pytest.approx(np.median(distances), rel=0.05)
    assert found["volume_bias"] == pytest.approx(0, abs=1e-12)
    assert found["box_iou"] < 0.3
    assert found == shuffled(requested, requested, seed=0) != shuffled(requested, requested, seed=1)


def test_shuffled_keeps_whole_requests():
    """With three pairs all six permutations can be counted by hand: the mean median of distances."""
    requested = np.tile([10, 5e3, 0.7, 0, 0, 0, 20, 30, 40.0], (3, 1))
    requested[:, 3] = 0, 1, 10
    # Unchanged: 0. Exchanged pairs: distances (1, 1, 0), (10, 0, 10), (0, 9, 9). Turned: (1, 9, 10) twice.
    expected = (0 + 1 + 10 + 9 + 9 + 9) / 6
    assert shuffled(requested, requested, draws=20_000)["centre_mm"] == pytest.approx(expected, abs=0.1)


def test_spread_of_equal_requests():
    """Two groups of three: SDs by hand, over that of all pairs; a pair by itself and a repeated one do not count."""
    requested = _requests(4)[[0, 0, 0, 1, 1, 1, 2, 3, 3]]
    measured = _requests(9, seed=5)
    measured[:3, 0], measured[3:6, 0] = np.exp([1, 2, 3]), np.exp([6, 6, 6])
    measured[:3, 3:6], measured[3:6, 3:6] = [[0, 0, 0], [3, 0, 0], [6, 0, 0]], [[0, 9, 0], [0, 13, 0], [0, 17, 0]]
    found = spread(requested, measured)
    assert (found["groups"], found["pairs"]) == (2, 6)
    assert found["volume_sd"] == pytest.approx(math.sqrt((2 + 0) / 4))
    assert found["centre_sd_mm"] == pytest.approx(math.sqrt((18 + 32) / 4))
    assert found["volume_share"] == pytest.approx(found["volume_sd"] / np.log(measured[:, 0]).std(ddof=1))
    total = math.sqrt(measured[:, 3:6].var(axis=0, ddof=1).sum())
    assert found["centre_share"] == pytest.approx(found["centre_sd_mm"] / total)
    order = np.random.default_rng(0).permutation(9)
    assert spread(requested[order], measured[order]) == pytest.approx(found)


def test_spread_at_its_ends():
    """Collapse gives 0, answers that ignore the request about 1, one tumour always NaN, no repetition None."""
    requested = np.repeat(_requests(20), 10, axis=0)
    assert spread(requested, requested)["volume_share"] == pytest.approx(0, abs=1e-9)
    ignorant = spread(requested, _requests(200, seed=7))
    assert [ignorant["volume_share"], ignorant["centre_share"]] == pytest.approx([1, 1], abs=0.05)
    alone = np.tile(_requests(1), (200, 1))
    assert math.isnan(spread(requested, alone)["volume_share"])
    assert spread(_requests(20), _requests(20)) is None
    assert spread(np.repeat(_requests(20), 2, axis=0), _requests(40)) is None


def test_what_is_refused():
    """Two pairs, unequal shapes, tumours that are missing."""
    requested = _requests(5)
    missing, empty = requested.copy(), requested.copy()
    missing[1, 4], empty[2, 0] = np.nan, 0
    for function in (fidelity, shuffled, spread):
        with pytest.raises(ValueError, match="three pairs are the least"):
            function(requested[:2], requested[:2])
        with pytest.raises(ValueError, match=r"Shapes \(5, 9\) and \(4, 9\)"):
            function(requested, requested[:4])
        for wrong in (missing, empty):
            with pytest.raises(ValueError, match="leave pairs without a tumour out"):
                function(requested, wrong)
