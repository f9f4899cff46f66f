"""Statistics against hand-made numbers, normal theory, SciPy and slower implementations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from nnunet_integration.statistics import (
    detectable_difference,
    holm,
    mean_and_spreads,
    paired_difference,
    verdict,
    wilcoxon_p,
)


def test_mean_and_spreads():
    found = mean_and_spreads(np.array([[1, 2, 3], [3, 4, 5.0]]))
    assert found == pytest.approx({"mean": 3, "sd_cases": 1, "sd_trainings": math.sqrt(2)})


@pytest.mark.filterwarnings("error")
def test_one_seed_or_case_has_no_spread():
    assert math.isnan(mean_and_spreads(np.array([[1, 2, 3.0]]))["sd_trainings"])
    found = mean_and_spreads(np.array([[1.0], [3.0]]))
    assert math.isnan(found["sd_cases"]) and found["sd_trainings"] == pytest.approx(math.sqrt(2))


def test_interval_of_gaussian_differences():
    """With one seed per arm: the mean, and the normal half-width 1.96 SD / sqrt(n); SciPy's bootstrap agrees."""
    random = np.random.default_rng(1)
    baseline = random.normal(0.7, 0.12, (1, 100))
    scores = baseline + random.normal(0.02, 0.076, (1, 100))
    found = paired_difference(scores, baseline)
    differences = (scores - baseline)[0]
    half = 1.96 * differences.std() / 10
    assert found["difference"] == pytest.approx(differences.mean())
    assert found["low"] == pytest.approx(differences.mean() - half, abs=0.06 * half)
    assert found["high"] == pytest.approx(differences.mean() + half, abs=0.06 * half)
    theirs = stats.bootstrap((differences,), np.mean, method="percentile", rng=2).confidence_interval
    assert (found["low"], found["high"]) == pytest.approx(tuple(theirs), abs=0.06 * half)


@pytest.mark.parametrize(("level", "z"), [(0.95, 1.96), (0.8, 1.2816)])
def test_seeds_add_their_own_spread(level, z):
    """Additive effects of seeds and cases: the variances of the three means add up."""
    random = np.random.default_rng(2)
    u, v = random.normal(0, 0.05, 30), random.normal(0, 0.03, 20)
    case, gap = random.normal(0.7, 0.1, 50), random.normal(0.1, 0.06, 50)
    found = paired_difference(u[:, None] + case + gap, v[:, None] + case, level=level)
    sd = math.sqrt(u.var() / 30 + v.var() / 20 + gap.var() / 50)
    assert found["high"] - found["low"] == pytest.approx(2 * z * sd, rel=0.05)
    assert found["difference"] == pytest.approx(u.mean() - v.mean() + gap.mean())


def test_the_same_as_drawing_one_by_one():
    random = np.random.default_rng(3)
    scores, baseline = random.normal(0.72, 0.1, (3, 12)), random.normal(0.7, 0.1, (4, 12))
    drawn = []
    for _ in range(4000):
        cases = random.integers(12, size=12)
        arms = (arm[random.integers(len(arm), size=len(arm))][:, cases] for arm in (scores, baseline))
        drawn.append(next(arms).mean() - next(arms).mean())
    found = paired_difference(scores, baseline)
    low, high = np.quantile(drawn, [0.025, 0.975])
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.08 * (high - low))


def test_pairs_and_repeats():
    """What both arms share cancels; the seed decides the draws; equal arms differ by nothing."""
    baseline = np.random.default_rng(4).uniform(0, 1, (2, 30))
    baseline[1] = baseline[0]
    found = paired_difference(baseline + 0.01, baseline)
    assert tuple(found.values()) == pytest.approx((0.01, 0.01, 0.01))
    assert tuple(paired_difference(baseline, baseline).values()) == pytest.approx((0, 0, 0), abs=1e-12)
    other = np.random.default_rng(5).uniform(0, 1, (3, 30))
    assert paired_difference(other, baseline, seed=1) == paired_difference(other, baseline, seed=1)
    assert paired_difference(other, baseline, seed=1) != paired_difference(other, baseline, seed=2)
    with pytest.raises(ValueError, match="Not the same cases: 30 and 1"):
        paired_difference(other, baseline[:, :1])


def test_coverage_without_a_difference():
    """95 % intervals of equal arms hold 0 about 95 % of the time."""
    random = np.random.default_rng(6)
    case = random.normal(0.7, 0.1, (300, 1, 25))
    arms = case + random.normal(0, 0.05, (300, 2, 25))
    found = [paired_difference(arm[:1], arm[1:], draws=400) for arm in arms]
    share = np.mean([f["low"] <= 0 <= f["high"] for f in found])
    assert 0.91 <= share <= 0.97


def test_wilcoxon():
    assert wilcoxon_p(np.array([0.01, 0.02, 0.03, 0.04, 0.05, 0.06])) == pytest.approx(2 / 2**6)
    differences = np.random.default_rng(7).normal(0.02, 0.08, 60)
    assert wilcoxon_p(differences) == pytest.approx(stats.wilcoxon(differences).pvalue)
    assert wilcoxon_p(np.zeros(20)) == 1 and wilcoxon_p(np.full(20, 1e-17)) == 1
    few = np.array([0, 0, 0.1, -0.2, 0.3, 0.4, 0.5, 0.6, 1e-17])
    assert wilcoxon_p(few) == pytest.approx(stats.wilcoxon(np.r_[0, 0, few[2:8], 0]).pvalue) and wilcoxon_p(few) < 1


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1, "b": 1} and holm({}) == {}
    found = holm({"x": math.nan, "b": 0.04, "a": 0.01})
    assert list(found) == ["x", "b", "a"] and math.isnan(found["x"])
    assert (found["a"], found["b"]) == pytest.approx((0.02, 0.04))


def test_holm_is_closed_testing():
    """The largest Bonferroni p of all sets of tests that hold the one."""
    for seed in range(20):
        p = dict(enumerate(np.random.default_rng(seed).uniform(0, 0.3, 5)))
        sets = [s for n in range(1, 6) for s in itertools.combinations(p, n)]
        expected = {i: max(min(1, len(s) * min(p[j] for j in s)) for s in sets if i in s) for i in p}
        assert holm(p) == pytest.approx(expected)


@pytest.mark.parametrize(("n", "expected"), [(20, 0.048), (50, 0.030), (100, 0.021), (200, 0.015)])
def test_detectable_difference(n, expected):
    """DSC of SD 0.12 in both arms and correlation 0.8, of exactly this SD."""
    differences = np.random.default_rng(n).normal(size=n)
    differences *= 0.12 * math.sqrt(2 * (1 - 0.8)) / differences.std(ddof=1)
    assert detectable_difference(differences) == pytest.approx(expected, abs=0.0005)
    assert detectable_difference(differences + 3) == pytest.approx(detectable_difference(differences))


def test_detectable_difference_has_its_power():
    random = np.random.default_rng(8)
    noise = random.normal(0, 0.08, 100)
    trials = detectable_difference(noise, power=0.9) + random.normal(0, noise.std(ddof=1), (4000, 100))
    assert (stats.ttest_1samp(trials, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize(
    ("low", "high", "p", "expected"),
    [
        (0.01, 0.03, 0.01, "better"),
        (-0.03, -0.01, 0.01, "worse"),
        (-0.01, 0.03, 0.01, "within noise"),
        (0.01, 0.03, 0.05, "within noise"),
        (-0.03, -0.01, 0.2, "within noise"),
        (0.0, 0.03, 0.01, "within noise"),
        (0.01, 0.03, math.nan, "within noise"),
        (math.nan, math.nan, 0.01, "within noise"),
    ],
)
def test_verdicts(low, high, p, expected):
    assert verdict((low + high) / 2, low, high, p) == expected


def test_verdict_at_another_level():
    assert verdict(0.02, 0.01, 0.03, 0.07, alpha=0.1) == "better"
