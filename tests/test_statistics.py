"""Statistics against hand-made numbers, normal theory, SciPy and slower implementations."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from nnunet_integration.statistics import (
    LEAST_TRAININGS,
    TRAINING_SD,
    detectable_difference,
    holm,
    mean_and_spreads,
    paired_difference,
    undecided,
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
    """With one training per arm: the mean, and Student's half-width; SciPy's bootstrap, which is a little narrower."""
    random = np.random.default_rng(1)
    baseline = random.normal(0.7, 0.12, (1, 100))
    scores = baseline + random.normal(0.02, 0.076, (1, 100))
    found = paired_difference(scores, baseline)
    differences = (scores - baseline)[0]
    half = stats.t.ppf(0.975, 99) * differences.std(ddof=1) / 10
    assert found["difference"] == pytest.approx(differences.mean())
    assert found["low"] == pytest.approx(differences.mean() - half, abs=0.06 * half)
    assert found["high"] == pytest.approx(differences.mean() + half, abs=0.06 * half)
    theirs = stats.bootstrap((differences,), np.mean, method="percentile", rng=2).confidence_interval
    assert (found["low"], found["high"]) == pytest.approx(tuple(theirs), abs=0.06 * half)


@pytest.mark.parametrize("level", [0.95, 0.8])
def test_trainings_add_their_own_spread(level):
    """Additive effects of trainings and cases: unbiased variances of the three means add up, as in Welch's test."""
    random = np.random.default_rng(2)
    u, v = random.normal(0, 0.05, 30), random.normal(0, 0.03, 20)
    case, gap = random.normal(0.7, 0.1, 50), random.normal(0.1, 0.06, 50)
    found = paired_difference(u[:, None] + case + gap, v[:, None] + case, level=level)
    parts = [(u.var(ddof=1) / 30, 29), (v.var(ddof=1) / 20, 19), (gap.var(ddof=1) / 50, 49)]
    variance = sum(part for part, _ in parts)
    freedom = variance**2 / sum(part**2 / own for part, own in parts)
    width = 2 * stats.t.ppf((1 + level) / 2, freedom) * math.sqrt(variance)
    assert found["high"] - found["low"] == pytest.approx(width, rel=0.05)
    assert found["difference"] == pytest.approx(u.mean() - v.mean() + gap.mean())


def test_the_same_as_drawing_one_by_one():
    """Cases and means of trainings drawn by hand, stretched, at the percentiles of Welch's degrees of freedom."""
    random = np.random.default_rng(3)
    scores, baseline = random.normal(0.72, 0.1, (3, 12)), random.normal(0.7, 0.1, (4, 12))
    spread = (scores.mean(0) - baseline.mean(0), scores.mean(1), baseline.mean(1))
    parts = [(values.var(ddof=1) / len(values), len(values) - 1) for values in spread]
    freedom = sum(part for part, _ in parts) ** 2 / sum(part**2 / own for part, own in parts)
    tail = stats.norm.cdf(stats.t.ppf(0.025, freedom))
    drawn = []
    for _ in range(4000):
        cases, one, other = (
            math.sqrt(n / (n - 1)) * (values[random.integers(n, size=n)].mean() - values.mean())
            for values in spread
            for n in [len(values)]
        )
        drawn.append(scores.mean() - baseline.mean() + cases + one - other)
    found = paired_difference(scores, baseline)
    low, high = np.quantile(drawn, [tail, 1 - tail])
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.08 * (high - low))


def test_what_trainings_do_to_single_cases_is_not_counted_thrice():
    """Scores of pure chance: their variance enters by cases and by trainings, and not by both at once as well."""
    random = np.random.default_rng(9)
    scores, baseline = random.normal(0.7, 0.1, (20, 200)), random.normal(0.7, 0.1, (20, 200))
    once = 2 * 1.96 * 0.1 * math.sqrt(2 / (20 * 200))
    found = paired_difference(scores, baseline)
    assert once < found["high"] - found["low"] < 1.55 * once  # twice the variance: 1.41; thrice: 1.73


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


@pytest.mark.parametrize(
    ("trainings", "covered", "wrong"), [(1, (0.79, 0.88), (0.10, 0.18)), (3, (0.93, 0.97), (0.03, 0.07))]
)
def test_no_difference_is_seldom_called_one(trainings, covered, wrong):
    """Arms without a difference, DSC of SD .10 over 30 cases (correlation .8), SD of trainings .008: from three
    trainings intervals hold 0 as often as they say; from one they do not, and every seventh verdict would be false."""
    random = np.random.default_rng(6)
    n, cases = 400, 30
    case = random.normal(0.8, 0.1 * math.sqrt(0.8), (n, 1, 1, cases))
    own = random.normal(0, 0.1 * math.sqrt(0.2), (n, 2, 1, cases))
    arms = case + own + random.normal(0, 0.008, (n, 2, trainings, 1))
    held, called = [], []
    for one, other in arms:
        found = paired_difference(one, other, draws=400)
        p = wilcoxon_p(one.mean(0) - other.mean(0))
        held.append(found["low"] <= 0 <= found["high"])
        called.append(verdict(*found.values(), p, LEAST_TRAININGS) != "within noise")
        assert verdict(*found.values(), p, trainings) == (
            "not decided: one training" if trainings == 1 else verdict(*found.values(), p, 3)
        )
    assert covered[0] <= np.mean(held) <= covered[1]
    assert wrong[0] <= np.mean(called) <= wrong[1]


def test_wilcoxon():
    assert wilcoxon_p(np.array([0.01, 0.02, 0.03, 0.04, 0.05, 0.06])) == pytest.approx(2 / 2**6)
    differences = np.random.default_rng(7).normal(0.02, 0.08, 60)
    assert wilcoxon_p(differences) == pytest.approx(stats.wilcoxon(differences).pvalue)
    assert wilcoxon_p(np.zeros(20)) == 1 and wilcoxon_p(np.full(20, 1e-17)) == 1
    few = np.array([0, 0, 0.1, -0.2, 0.3, 0.4, 0.5, 0.6, 1e-17])
    assert wilcoxon_p(few) == pytest.approx(stats.wilcoxon(np.r_[0, 0, few[2:8], 0]).pvalue) and wilcoxon_p(few) < 1


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}, 4) == pytest.approx(
        {"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02}
    )
    assert holm({"a": 0.6, "b": 0.7}, 2) == {"a": 1, "b": 1} and holm({}, 3) == {}
    found = holm({"x": math.nan, "b": 0.04, "a": 0.01}, 4)  # times 4 and 3: two of the family are missing
    assert list(found) == ["x", "b", "a"] and math.isnan(found["x"])
    assert (found["a"], found["b"]) == pytest.approx((0.04, 0.12))
    with pytest.raises(ValueError, match="2 tests in a family of 1"):
        holm({"a": 0.6, "b": 0.7}, 1)


def test_holm_is_closed_testing():
    """The largest Bonferroni p of all sets of tests that hold the one; those that were not made have a p of 1."""
    for seed in range(20):
        p = dict(enumerate(np.random.default_rng(seed).uniform(0, 0.3, 5)))
        sets = [s for n in range(1, 6) for s in itertools.combinations(p, n)]
        expected = {i: max(min(1, len(s) * min(p[j] for j in s)) for s in sets if i in s) for i in p}
        assert holm(p, 5) == pytest.approx(expected)
        made = {i: p[i] for i in range(3)}
        assert holm(made, 5) == pytest.approx({i: holm(made | {3: 1.0, 4: 1.0}, 5)[i] for i in made})
        assert all(holm(p, 5)[i] <= holm(made, 5)[i] for i in made)  # made later, the others never raise it


@pytest.mark.parametrize(("n", "expected"), [(20, 0.048), (50, 0.030), (100, 0.021), (200, 0.015)])
def test_detectable_difference_of_cases(n, expected):
    """DSC of SD 0.12 in both arms and correlation 0.8, of exactly this SD, if trainings were all alike."""
    differences = np.random.default_rng(n).normal(size=n)
    differences *= 0.12 * math.sqrt(2 * (1 - 0.8)) / differences.std(ddof=1)
    scores, baseline = differences[None] + 3, np.zeros((1, n))
    assert detectable_difference(scores, baseline, training_sd=0) == pytest.approx(expected, abs=0.0005)


def test_detectable_difference_of_trainings():
    """2.8016 times the root of SD_cases^2 / C + own variance / S1 + measured variance / S2, each given exactly."""

    def exact(n: int, sd: float) -> np.ndarray:
        values = np.random.default_rng(n).normal(size=n)
        return (values - values.mean()) * sd / values.std(ddof=1)

    case, gap = exact(30, 0.1), exact(30, 0.05)[::-1]
    five, two, one = exact(5, 0.012)[:, None], exact(2, 0.5)[:, None], np.zeros((1, 1))
    for arm, base, trainings in (
        (one, one, 2 * TRAINING_SD**2),
        (five, one, 0.012**2 / 5 + TRAINING_SD**2),
        (five, five, 2 * 0.012**2 / 5),
        (two, five, TRAINING_SD**2 / 2 + 0.012**2 / 5),  # two do not tell their SD
    ):
        found = detectable_difference(0.8 + case + gap + arm, 0.8 + case + base)
        assert found == pytest.approx(2.8016 * math.sqrt(0.05**2 / 30 + trainings), rel=1e-4)
    assert math.isnan(detectable_difference(np.ones((1, 1)), np.ones((1, 1))))


def test_detectable_difference_has_its_power():
    """Three trainings an arm, additive effects: a z test with the true variance shows it so often."""
    random = np.random.default_rng(8)
    cases, u, v = random.normal(0, 0.08, 100), random.normal(0, 0.01, 3), random.normal(0, 0.01, 3)
    found = detectable_difference(u[:, None] + cases, v[:, None] + 0 * cases, power=0.9)
    spread = cases.var(ddof=1) / 100 + u.var(ddof=1) / 3 + v.var(ddof=1) / 3
    trials = random.normal(found, math.sqrt(spread), 4000)
    assert (np.abs(trials) > 1.96 * math.sqrt(spread)).mean() == pytest.approx(0.9, abs=0.02)


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
    assert verdict((low + high) / 2, low, high, p, 3) == verdict((low + high) / 2, low, high, p, 9) == expected
    assert verdict((low + high) / 2, low, high, p, 1) == "not decided: one training"
    assert verdict((low + high) / 2, low, high, p, 2) == "not decided: two trainings"


def test_three_trainings_decide():
    assert [undecided(n) for n in (1, 2, 3, 4)] == ["not decided: one training", "not decided: two trainings", "", ""]


def test_verdict_at_another_level():
    assert verdict(0.02, 0.01, 0.03, 0.07, 3, alpha=0.1) == "better"
