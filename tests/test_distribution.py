"""Distances between two samples of feature vectors against closed forms, plain loops and repeated draws."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
from scipy.linalg import sqrtm
from scipy.spatial.distance import pdist, squareform

from sbldm.metrics.distribution import Scale, _squared_mmd, frechet, kid, mmd, permutation_p, prdc
from sbldm.metrics.intervals import Estimate


def normal(seed: int, n: int, d: int, mean: float = 0.0, deviation: float = 1.0) -> np.ndarray:
    """`[n, d]` rows of N(mean, deviation^2 I)."""
    return mean + deviation * np.random.default_rng(seed).normal(size=(n, d))


def repeated(score, trials: int, n: int, d: int, **other: float) -> np.ndarray:
    """`[trials, 3]` estimates of standard normal rows against rows of other mean and deviation."""
    return np.array([score(normal(2 * t, n, d), normal(2 * t + 1, n, d, **other)) for t in range(trials)])


def covered(estimates: np.ndarray, truth: float | np.ndarray) -> np.ndarray:
    """Share of the intervals `[trials, ..., 3]` that hold the truth."""
    return np.mean((estimates[..., 1] <= truth + 1e-9) & (truth - 1e-9 <= estimates[..., 2]), axis=0)


def plain_mmd(x: np.ndarray, y: np.ndarray, kernel) -> float:
    """The unbiased estimate, one pair at a time."""
    within_x = [kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j]
    within_y = [kernel(y[i], y[j]) for i in range(len(y)) for j in range(len(y)) if i != j]
    between = [kernel(a, b) for a in x for b in y]
    return math.fsum(within_x) / len(within_x) + math.fsum(within_y) / len(within_y) - 2 * np.mean(between)


def true_kid(d: int, mean: float) -> float:
    """Of N(0, I) and N(mean, I), from the third moments of inner products of independent normal rows."""
    b = d * mean**2
    first, second = b / d, (d + 2 * b + b**2) / d**2
    third = (b**3 + 3 * b * b + 3 * b * (b + d + 2)) / d**3
    among_shifted = 1 + 3 * first + 3 * second + third
    among_centred = 1 + 3 / d
    between = 1 + 3 * (d + b) / d**2
    return among_shifted + among_centred - 2 * between


def true_gaussian_mmd(d: int, bandwidth: float, mean: float, deviation: float) -> float:
    """Of N(0, I) and N(mean, deviation^2 I): a Gaussian kernel integrates over normal rows in closed form."""

    def expected(variance: float, squared_distance: float) -> float:
        total = bandwidth**2 + variance
        return (bandwidth**2 / total) ** (d / 2) * math.exp(-squared_distance / (2 * total))

    return expected(2, 0) + expected(2 * deviation**2, 0) - 2 * expected(1 + deviation**2, d * mean**2)


def plain_prdc(x: np.ndarray, y: np.ndarray, k: int) -> tuple[float, float, float, float]:
    """Precision, recall, density, coverage, one ball at a time."""

    def balls(rows: np.ndarray) -> list[tuple[np.ndarray, float]]:
        others = [sorted(math.dist(rows[i], rows[j]) for j in range(len(rows)) if j != i) for i in range(len(rows))]
        return [(row, distances[k - 1]) for row, distances in zip(rows, others, strict=True)]

    holders = [sum(math.dist(row, centre) <= radius for centre, radius in balls(x)) for row in y]
    recalled = [any(math.dist(row, centre) <= radius for centre, radius in balls(y)) for row in x]
    filled = [any(math.dist(row, centre) <= radius for row in y) for centre, radius in balls(x)]
    inside = [count > 0 for count in holders]
    return np.mean(inside), np.mean(recalled), np.mean(holders) / k, np.mean(filled)


@pytest.mark.parametrize("d", [4, 64])
def test_kid_without_difference(d: int) -> None:
    """Zero on average within 3 standard errors; the interval holds 0, wider than need be as announced."""
    estimates = repeated(lambda x, y: kid(x, y, draws=200), 200, 40, d)
    values = estimates[:, 0]
    assert abs(values.mean()) < 3 * values.std() / math.sqrt(len(values))
    assert covered(estimates, 0.0) >= 0.95
    deviation_of_halves = np.mean(estimates[:, 2] - estimates[:, 1]) / 3.92
    assert 1.4 < deviation_of_halves / values.std() < 2.2


def test_kid_of_shifted_gaussians() -> None:
    """The closed form on average within 3 standard errors, and inside about 95 % of the intervals."""
    estimates = repeated(lambda x, y: kid(x, y, draws=200), 200, 60, 32, mean=0.5)
    truth = true_kid(32, 0.5)
    assert abs(estimates[:, 0].mean() - truth) < 3 * estimates[:, 0].std() / math.sqrt(len(estimates))
    assert 0.90 <= covered(estimates, truth) <= 0.99


def test_kid_is_the_plain_double_loop() -> None:
    """Pair by pair, unequal numbers of rows included."""
    x, y = normal(0, 13, 6), normal(1, 9, 6, mean=0.3)
    assert kid(x, y).value == pytest.approx(plain_mmd(x, y, lambda a, b: (a @ b / 6 + 1) ** 3), rel=1e-12)


def test_mmd_is_the_plain_double_loop() -> None:
    """Pair by pair, in the unit of other rows."""
    x, y, train = normal(0, 13, 6), normal(1, 9, 6, mean=0.3), normal(2, 17, 6)
    distances = [math.dist(train[i], train[j]) for i in range(17) for j in range(i)]
    unit = np.median(distances)
    likeness = np.mean([math.exp(-d / unit) for d in distances])
    expected = plain_mmd(x, y, lambda a, b: math.exp(-math.dist(a, b) / unit)) / (2 * likeness)
    assert mmd(x, y, Scale.of(train)).value == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 1.0), (0.7, 1.0), (0.0, 3.0), (0.4, 0.5)])
def test_gaussian_mmd_in_closed_form(mean: float, deviation: float) -> None:
    """At a fixed bandwidth, on average within 3 standard errors."""
    d, n, bandwidth = 5, 100, 2.5
    first = np.arange(2 * n)[None] < n

    def value(x: np.ndarray, y: np.ndarray) -> float:
        kernel = np.exp(-(squareform(pdist(np.concatenate([x, y]))) ** 2) / (2 * bandwidth**2))
        return float(_squared_mmd(kernel, first, ~first)[0])

    values = repeated(value, 60, n, d, mean=mean, deviation=deviation)
    error = values.std() / math.sqrt(len(values))
    assert abs(values.mean() - true_gaussian_mmd(d, bandwidth, mean, deviation)) < 3 * error


def test_mmd_without_difference() -> None:
    """Zero on average, inside the interval, and p-values that are spread evenly over 0 to 1."""
    scale = Scale.of(normal(1000, 60, 8))
    pairs = [(normal(2 * t, 30, 8), normal(2 * t + 1, 30, 8)) for t in range(200)]
    estimates = np.array([mmd(x, y, scale, draws=200) for x, y in pairs])
    p = np.array([permutation_p(x, y, scale, permutations=99) for x, y in pairs])
    assert abs(estimates[:, 0].mean()) < 3 * estimates[:, 0].std() / math.sqrt(len(p))
    assert covered(estimates, 0.0) >= 0.95
    assert 0.01 <= np.mean(p <= 0.05) <= 0.09
    assert 0.42 <= np.mean(p) <= 0.58
    assert 0.15 <= np.mean(p <= 0.25) <= 0.35


CENTRE = 0.43
SHIFT = 0.5  # in median distances


def brains(seed: int, n: int) -> np.ndarray:
    """Rows as features of brains are: close together far from 0, in so many dimensions that all lie as far apart."""
    return CENTRE + 0.13 * normal(seed, n, 2000)


def shrunk(rows: np.ndarray, factor: float) -> np.ndarray:
    """Drawn towards the centre."""
    return CENTRE + factor * (rows - CENTRE)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda x: shrunk(x, 0.1), (1 + math.exp(0.9) - 2 * math.exp(1 - math.sqrt(0.505))) / 2),
        (lambda x: shrunk(x, 0.5), (1 + math.exp(0.5) - 2 * math.exp(1 - math.sqrt(0.625))) / 2),
        (lambda x: np.repeat(x[:5], 6, axis=0), 5 / 29 * (math.e - 1) / 2),
        (lambda x: x + SHIFT * 0.13 * math.sqrt(2), 1 - math.exp(1 - math.sqrt(1 + SHIFT**2))),
        (lambda x: x + 10, 1),
        (lambda x: np.repeat(x[:1] + 10, 30, axis=0), (1 + math.e) / 2),
    ],
    ids=["a tenth of the spread", "half the spread", "five modes", "shifted", "apart", "one case, apart"],
)
def test_mmd_of_changed_brains(change, expected: float) -> None:
    """In many dimensions all distances are one, which gives the share in closed form; its interval excludes 0."""
    real, scale = brains(0, 30), Scale.of(brains(1, 60))
    found = mmd(real, change(brains(2, 30)), scale)
    assert found.value == pytest.approx(expected, rel=0.06)
    assert found.low > mmd(real, brains(3, 30), scale).high


def test_kid_does_not_see_what_mmd_sees() -> None:
    """Of the same rows: neither a tenth nor half the spread is told from the null, a shift of the mean is."""
    real = brains(0, 30)
    null = kid(real, brains(3, 30))
    for factor in (0.1, 0.5):
        assert kid(real, shrunk(brains(2, 30), factor)).low < null.high
    assert kid(real, brains(2, 30) + 0.1).low > null.high


def test_mmd_and_shares_know_distances_alone() -> None:
    """A shift, a turn and a factor that all rows share change nothing; the unit is not that of the samples."""
    real, drawn, train = normal(0, 30, 6), normal(1, 30, 6, mean=0.4), normal(2, 50, 6)
    turn = np.linalg.qr(normal(3, 6, 6))[0]
    for x, y, z in (
        (real + 100, drawn + 100, train + 100),
        (real @ turn, drawn @ turn, train @ turn),
        (0.01 * real, 0.01 * drawn, 0.01 * train),
    ):
        assert mmd(x, y, Scale.of(z)) == pytest.approx(mmd(real, drawn, Scale.of(train)), rel=1e-6)
        ours, theirs = prdc(x, y, draws=5), prdc(real, drawn, draws=5)
        assert [v.value for v in ours.values()] == [v.value for v in theirs.values()]
    assert kid(real + 100, drawn + 100).value > 10 * kid(real, drawn).value
    wide, narrow = (mmd(real, f * drawn, Scale.of(train)).value for f in (1, 0.1))
    assert narrow > wide > 0, "a unit taken from the samples would shrink with them"


@pytest.mark.parametrize("d", [1, 8])
def test_change_of_variance_is_seen(d: int) -> None:
    """N(0, 1) against N(0, 9), of which a linear kernel sees next to nothing."""
    x, y = normal(0, 100, d), normal(1, 100, d, deviation=3.0)
    scale = Scale.of(normal(2, 100, d))
    assert permutation_p(x, y, scale) == 1 / 501
    assert mmd(x, y, scale).low > 0.02
    assert abs(plain_mmd(x, y, lambda a, b: float(a @ b) / d)) < 0.1
    if d > 1:  # In one dimension the cubic kernel's sixth moments swamp KID at this N.
        assert kid(x, y).low > 0


def test_intervals_shrink_with_the_root_of_n() -> None:
    """Four times the rows, half the width; both sides count."""
    widths = {
        n: np.mean(repeated(lambda x, y: kid(x, y, draws=300), 20, n, 16, mean=1.0) @ [0, -1, 1]) for n in (50, 200)
    }
    assert widths[50] / widths[200] == pytest.approx(2, rel=0.15)


def test_prdc_is_the_plain_definition() -> None:
    """Ball by ball, with unequal numbers of rows, ties and a copied row."""
    x, y = normal(0, 31, 3), normal(1, 23, 3, mean=0.8)
    y[4] = x[7]
    integers = np.random.default_rng(2).integers(0, 3, size=(2, 20, 2)).astype(float)
    for real, drawn, k in ((x, y, 5), (x, y, 1), (*integers, 3)):
        ours = prdc(real, drawn, k=k, draws=5)
        values = [ours[name].value for name in ("precision", "recall", "density", "coverage")]
        assert values == pytest.approx(plain_prdc(real, drawn, k), abs=1e-12)


def test_prdc_without_difference() -> None:
    """At N = 100 the nulls lie near .92, .92, 1 and .97, inside most intervals."""
    estimates = np.array(
        [list(prdc(normal(2 * t, 100, 8), normal(2 * t + 1, 100, 8), draws=80).values()) for t in range(50)]
    )
    means = estimates[:, :, 0].mean(axis=0)
    np.testing.assert_allclose(means, [0.92, 0.92, 0.99, 0.97], atol=0.025)
    assert (covered(estimates, means) >= 0.88).all()


def test_prdc_intervals_count_the_radii() -> None:
    """Balls are shared, so that shares vary more than independent rows would; the intervals follow."""
    estimates = np.array(
        [list(prdc(normal(2 * t, 60, 4), normal(2 * t + 1, 60, 4, mean=0.75), draws=80).values()) for t in range(60)]
    )
    means, deviations = estimates[:, :, 0].mean(axis=0), estimates[:, :, 0].std(axis=0)
    independent = np.sqrt(means * (1 - means) / 60)
    assert (deviations > 1.25 * independent)[[0, 1, 3]].all()
    assert (covered(estimates, means) >= 0.85).all()


def test_prdc_sees_collapse() -> None:
    """Five modes: each is a good case, the rest is missing."""
    for seed in range(5):
        x, modes = normal(seed, 100, 16), normal(100 + seed, 5, 16)
        y = np.repeat(modes, 20, axis=0) + normal(200 + seed, 100, 16, deviation=0.02)
        found, null = prdc(x, y, draws=60), prdc(x, normal(300 + seed, 100, 16), draws=60)
        assert found["recall"].value <= 0.02
        assert found["coverage"].high < null["coverage"].low
        assert found["coverage"].value < 0.65
        assert found["recall"].high > 0, "0 of 100 does not prove that nothing is recalled"


def test_prdc_sees_blur() -> None:
    """Samples drawn towards their mean are all plausible, dense, and miss the outer cases."""
    x, y = normal(0, 100, 16), normal(1, 100, 16, deviation=0.4)
    found = prdc(x, y, draws=60)
    assert found["precision"].value == 1
    assert found["precision"].low > 0.9
    assert found["recall"].value < 0.05
    assert found["density"].low > 2
    assert found["coverage"].value == 1, "in many dimensions the balls of outer cases reach the centre: density tells"
    flat = prdc(normal(0, 100, 2), normal(1, 100, 2, deviation=0.2), draws=60)
    assert flat["precision"].value == 1
    assert max(flat["recall"].high, flat["coverage"].high) < 0.6


def test_prdc_of_a_sample_with_itself() -> None:
    """Every row lies in the ball of itself and of the k that have it within reach on average."""
    x = normal(0, 40, 6)
    found = prdc(x, x, k=5, draws=20)
    assert [found[name].value for name in ("precision", "recall", "coverage")] == [1, 1, 1]
    assert found["density"].value == pytest.approx(6 / 5)


def test_prdc_far_apart() -> None:
    """Nothing is shared; the upper limits are those of 0 in 60 independent rows (Wilson: z^2 / (n + z^2))."""
    found = prdc(normal(0, 60, 4), normal(1, 60, 4, mean=100.0), draws=20)
    for name in ("precision", "recall", "coverage"):
        assert found[name] == pytest.approx((0, 0, 1.96**2 / (60 + 1.96**2)), abs=1e-4)
    assert found["density"] == Estimate(0, 0, 0)


def test_frechet_of_diagonal_gaussians() -> None:
    """Many rows reach sum((m_r - m_s)^2 + (s_r - s_s)^2)."""
    rng = np.random.default_rng(0)
    means, deviations = rng.normal(size=(2, 6)), rng.uniform(0.5, 2, size=(2, 6))
    x, y = (m + s * rng.normal(size=(20000, 6)) for m, s in zip(means, deviations, strict=True))
    expected = np.sum((means[0] - means[1]) ** 2) + np.sum((deviations[0] - deviations[1]) ** 2)
    assert frechet(x, y) == pytest.approx(expected, rel=0.03)


def test_frechet_by_the_matrix_root() -> None:
    """The textbook formula, on correlated samples whose covariances can be inverted."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(80, 7)) @ rng.normal(size=(7, 7)), rng.normal(size=(60, 7)) @ rng.normal(size=(7, 7)) + 1
    a, b = np.cov(x.T), np.cov(y.T)
    expected = np.sum((x.mean(0) - y.mean(0)) ** 2) + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    assert frechet(x, y) == pytest.approx(expected, rel=1e-9)


def test_frechet_below_full_rank() -> None:
    """With more features than rows: 0 to itself, and as in the subspace that the rows span."""
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(2, 40, 5))
    turned = np.linalg.qr(rng.normal(size=(300, 5)))[0].T
    assert frechet(x @ turned, y @ turned) == pytest.approx(frechet(x, y), rel=1e-9)
    wide = normal(3, 30, 500)
    assert all(0 <= frechet(rows, rows) < 1e-6 for rows in (x, y, wide, *np.split(wide, 3)))
    assert frechet(wide, wide + 2) == pytest.approx(4 * 500, rel=1e-9)


def test_frechet_between_orthogonal_subspaces() -> None:
    """Covariances whose product is 0 leave both traces and the means."""
    x, y = np.zeros((2, 20, 100))
    x[:, :10], y[:, 10:] = normal(0, 20, 10), normal(1, 20, 90)
    expected = x.var(0, ddof=1).sum() + y.var(0, ddof=1).sum() + np.sum((x.mean(0) - y.mean(0)) ** 2)
    assert frechet(x, y) == pytest.approx(expected, rel=1e-12)


def test_order_of_rows_does_not_matter() -> None:
    """Values to rounding; intervals and p to the error of their draws."""
    x, y = normal(0, 60, 8), normal(1, 60, 8, mean=0.3)
    rng = np.random.default_rng(2)
    u, v = rng.permutation(x), rng.permutation(y)
    scale = Scale.of(x)
    for ours, theirs in [(mmd(x, y, scale), mmd(u, v, scale)), (kid(x, y), kid(u, v))]:
        assert theirs.value == pytest.approx(ours.value, rel=1e-9)
        assert theirs == pytest.approx(ours, abs=0.15 * (ours.high - ours.low))
    assert permutation_p(u, v, scale) == pytest.approx(permutation_p(x, y, scale), abs=0.03)
    again = prdc(u, v)
    for name, estimate in prdc(x, y).items():
        assert again[name].value == pytest.approx(estimate.value, rel=1e-12)
        assert again[name] == pytest.approx(estimate, abs=0.04)
    assert frechet(u, v) == pytest.approx(frechet(x, y), rel=1e-9)


def test_seed_decides() -> None:
    """The same seed gives the same numbers, another one does not."""
    x, y = normal(0, 20, 4).astype(np.float32), normal(1, 20, 4).astype(np.float32)
    for score in (kid, partial(mmd, scale=Scale.of(x)), prdc):
        assert score(x, y, seed=3) == score(x, y, seed=3) != score(x, y, seed=4)


def test_few_and_equal_rows() -> None:
    """Below 4 rows there is a value without an interval; rows that are all one differ in nothing."""
    scale = Scale.of(normal(2, 9, 2))
    for estimate in (kid(normal(0, 3, 2), normal(1, 9, 2)), mmd(normal(0, 2, 2), normal(1, 9, 2), scale)):
        assert np.isfinite(estimate.value) and np.isnan(estimate.low) and np.isnan(estimate.high)
    same = np.ones((8, 3))
    assert Scale.of(same) == (1, 1)
    assert mmd(same, same, Scale.of(same)) == Estimate(0, 0, 0)
    assert permutation_p(same, same, Scale.of(same)) == 1
    assert frechet(same, same) == 0
    assert prdc(normal(0, 7, 2), normal(1, 7, 2))["density"].high >= 0


@pytest.mark.parametrize("score", [kid, partial(mmd, scale=Scale(1.0, 1.0)), prdc, frechet])
def test_unusable_features_are_refused(score) -> None:
    """Too few rows, values that are not finite, other shapes: a sentence that says which."""
    good, least = normal(0, 12, 3), 7 if score is prdc else 2
    spoilt = good.copy()
    spoilt[3, 1] = np.inf
    with pytest.raises(ValueError, match=rf"At least {least} cases .* the samples has {least - 1}\."):
        score(good, good[: least - 1])
    with pytest.raises(ValueError, match="the reference hold values that are not finite"):
        score(spoilt, good)
    with pytest.raises(ValueError, match="3 and 2 features"):
        score(good, good[:, :2])
    with pytest.raises(ValueError, match=r"not \[12\]"):
        score(good[:, 0], good)
