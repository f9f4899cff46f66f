"""Tumour characteristics against analytic bodies, the normaliser, and the joint model of requests."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import ellipeinc, ellipkinc
from scipy.stats import beta, dirichlet, ks_2samp, multivariate_normal, spearmanr, wasserstein_distance

from sbldm.cases.layouts import Source
from sbldm.run.errors import InputError
from sbldm.tumour.asking import parse_request, read_requests
from sbldm.tumour.characteristics import NAMES, SHARES, measure, sphere_surface, to_dict
from sbldm.tumour.normaliser import Normaliser
from sbldm.tumour.requests import TumourModel, _functions
from sbldm.tumour.shares import CONCENTRATION, Shares

DATA = Path(__file__).parents[2] / "shared" / "data"
ISO = (1.0, 1.0, 1.0)


def affine_of(spacing, origin=(0, 0, 0)):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = origin
    return affine


def ellipsoid(axes, spacing=ISO, shape=(72, 72, 72), centre=(0, 0, 0)):
    """Mask and affine of an ellipsoid about `centre` (mm), the frame's origin near the grid's centre."""
    affine = affine_of(spacing, [-(n - 1) / 2 * s + 0.13 for n, s in zip(shape, spacing, strict=True)])
    position = np.moveaxis(np.indices(shape), 0, -1) * np.array(spacing) + affine[:3, 3] - centre
    return ((position / np.array(axes)) ** 2).sum(-1) <= 1, affine


def ellipsoid_surface(axes):
    """Legendre's formula in mm2."""
    c, b, a = sorted(axes)
    if a == c:
        return 4 * np.pi * a * a
    phi, m = np.arccos(c / a), a * a * (b * b - c * c) / (b * b * (a * a - c * c))
    elliptic = ellipeinc(phi, m) * np.sin(phi) ** 2 + ellipkinc(phi, m) * np.cos(phi) ** 2
    return 2 * np.pi * c * c + 2 * np.pi * a * b / np.sin(phi) * elliptic


@pytest.mark.parametrize(
    ("axes", "spacing", "tolerance"),
    [
        ((2, 2, 2), ISO, 0.03),
        ((3, 3, 3), ISO, 0.03),
        ((5, 5, 5), ISO, 0.01),
        ((12, 12, 12), ISO, 0.007),
        ((30, 30, 30), ISO, 0.012),
        ((10, 6, 4), ISO, 0.02),
        ((25, 15, 10), ISO, 0.01),
        ((20, 20, 5), ISO, 0.006),
        ((20, 20, 20), (1, 1, 3), 0.019),
        ((25, 15, 12), (1, 1.5, 2), 0.015),
        ((25, 15, 12), (2, 1, 1), 0.008),
        ((10, 6, 4), (1, 1, 2), 0.04),
        ((20, 20, 20), (2, 2, 2), 0.003),
    ],
)
def test_ellipsoids(axes, spacing, tolerance):
    centre = (2.0, -3.0, 1.0)
    found = dict(zip(NAMES, measure(*ellipsoid(axes, spacing, centre=centre)), strict=True))
    volume = 4 / 3 * np.pi * np.prod(axes) / 1000
    assert found["volume_ml"] == pytest.approx(volume, rel=0.05 if min(axes) < 6 else 0.01)
    assert found["surface_mm2"] == pytest.approx(ellipsoid_surface(axes), rel=tolerance)
    expected = sphere_surface(volume) / ellipsoid_surface(axes)
    assert found["sphericity"] == pytest.approx(expected, rel=tolerance) and found["sphericity"] <= 1
    np.testing.assert_allclose([found[n] for n in ("x_mm", "y_mm", "z_mm")], centre, atol=0.1 * max(spacing))
    extents = [found[n] for n in ("w_mm", "h_mm", "d_mm")]
    assert (np.abs(extents - 2 * np.array(axes)) <= 1.01 * np.array(spacing)).all()


def test_box():
    mask = np.zeros((40, 40, 40), dtype=np.uint8)
    mask[5:35, 8:28, 10:20] = 1
    found = measure(mask, affine_of(ISO, (-19.5, -19.5, -19.5)))
    np.testing.assert_allclose(found[[0, 3, 4, 5, 6, 7, 8]], [6, 0, -2, -5, 30, 20, 10])
    assert found[1] == pytest.approx(2200 * 0.934, rel=0.002)  # known bias: edges turn round


def test_thin_and_single_voxels_stay():
    mask = np.zeros((40, 40, 12), dtype=bool)
    for thickness, share in ((1, 0.914), (2, 0.923)):
        mask[5:35, 5:35, 4 : 4 + thickness] = True
        assert measure(mask, np.eye(4))[1] == pytest.approx(share * (1800 + 120 * thickness), rel=0.002)
    plate = measure(mask, np.eye(4))[1]
    mask[2, 2, 9] = True
    assert measure(mask, np.eye(4))[1] == pytest.approx(plate + 0.235, abs=0.01)


def test_surface_grows_with_the_radius():
    surfaces = [measure(*ellipsoid((r, r, r), (1, 1, 2), shape=(50, 50, 26)))[1] for r in np.arange(1.5, 20, 0.5)]
    assert (np.diff(surfaces) > 0).all()


def test_components_add_up_and_share_one_box():
    big, affine = ellipsoid((10, 14, 7), centre=(-15, 0, 0))
    small, _ = ellipsoid((5, 8, 4), centre=(20, 5, 0))
    both, a, b = (measure(mask, affine) for mask in (big | small, big, small))
    np.testing.assert_allclose(both[:2], a[:2] + b[:2], rtol=1e-5)
    np.testing.assert_allclose(both[3:6], (a[0] * a[3:6] + b[0] * b[3:6]) / both[0])
    assert both[6] == pytest.approx(50, abs=1.01) and both[2] < min(a[2], b[2])


def test_flips_permutations_and_crops_change_nothing():
    mask, affine = ellipsoid((14, 9, 6), (1, 1.5, 2), shape=(40, 30, 20), centre=(3, 2, -1))
    mask[4, 3, 2] = True
    reference = measure(mask, affine)
    flipped = affine @ np.array([[-1, 0, 0, 39], [0, -1, 0, 29], [0, 0, 1, 0], [0, 0, 0, 1]])
    np.testing.assert_allclose(measure(mask[::-1, ::-1], flipped), reference, rtol=1e-5)
    np.testing.assert_allclose(measure(mask.transpose(2, 0, 1), affine[:, [2, 0, 1, 3]]), reference, rtol=1e-5)
    padded = affine @ affine_of(ISO, (-7, -5, -3))
    np.testing.assert_allclose(measure(np.pad(mask, ((7, 0), (5, 1), (3, 9))), padded), reference, rtol=1e-9)


def test_smallest_empty_and_fast():
    mask = np.zeros((240, 240, 155), dtype=bool)
    with pytest.raises(ValueError, match="empty"):
        measure(mask, np.eye(4))
    with pytest.raises(ValueError, match="three"):
        measure(mask[0], np.eye(4))
    mask[3, 4, 5] = True
    single = measure(mask, np.eye(4))
    np.testing.assert_allclose(single, [0.001, sphere_surface(0.001), 1, 3, 4, 5, 1, 1, 1])
    mask[60:140, 60:140, 30:100] = True
    start = time.perf_counter()
    measure(mask, np.eye(4))
    assert time.perf_counter() - start < 2  # 0.1 s on an idle machine
    assert to_dict(single)["volume_ml"] == 0.001 and list(to_dict(single)) == list(NAMES)


# --- a planted population -------------------------------------------------------------------------------------------


def population(n, seed=0, bimodal=False, spread=0.6):
    """Characteristics [n, 9] whose logarithms are jointly Gaussian; x in two lobes on request."""
    rng = np.random.default_rng(seed)
    log_volume = rng.normal(10.8, spread, n)  # about 50 ml, in mm3
    roughness = 0.5 + 0.08 * (log_volume - 10.8) + rng.normal(0, 0.07, n)
    centre = rng.normal([0, -5, 10], [20, 15, 12], (n, 3))
    centre[:, 2] += 12 * (log_volume - 10.8)
    if bimodal:
        centre[:, 0] = rng.choice([-30, 30], n) + rng.normal(0, 6, n)
    diameter = (log_volume + np.log(6 / np.pi)) / 3
    extents = np.exp(diameter[:, None] + rng.normal([0.15, 0.35, 0.2], 0.07, (n, 3)))
    volume = np.exp(log_volume) / 1000
    sphericity = np.exp(-roughness)
    keep = sphericity < 1
    return np.column_stack([volume, sphere_surface(volume) / sphericity, sphericity, centre, extents])[keep]


@pytest.fixture(scope="module")
def planted():
    values = population(1500)
    return values, TumourModel.fit(values)


def assert_possible(values):
    volume, surface, sphericity = values[:, 0], values[:, 1], values[:, 2]
    assert np.isfinite(values).all() and (values[:, [0, 1, 2, 6, 7, 8]] > 0).all() and (sphericity <= 1).all()
    np.testing.assert_allclose(sphericity, sphere_surface(volume) / surface, rtol=1e-6)
    assert (values[:, 6:9].prod(1) >= 1000 * volume).all()


def test_normaliser_round_trip():
    values = population(50)
    values[:, 5] = 7.0  # no variance
    normaliser = Normaliser.fit(values)
    codes = normaliser.encode(values)
    assert codes.dtype == np.float32 and codes.shape == values.shape
    np.testing.assert_allclose(codes.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(np.delete(codes.std(0), 5), 1, atol=1e-4)
    np.testing.assert_allclose(normaliser.decode(codes), values, rtol=1e-5, atol=1e-4)
    again = Normaliser.from_state(json.loads(json.dumps(normaliser.state())))
    np.testing.assert_array_equal(again.encode(values[3]), codes[3])
    for bad in (np.full((2, 9), np.nan), np.zeros((2, 9)), np.ones((2, 8)), np.ones((0, 9))):
        with pytest.raises(ValueError):
            Normaliser.fit(bad)


def test_draws_follow_the_planted_population(planted):
    values, model = planted
    draws = model.sample(1000, 0)
    assert_possible(draws)
    assert not any(model.outside(row) for row in draws)
    for column in range(9):
        assert ks_2samp(draws[:, column], values[:, column]).statistic < 0.07  # 1 % critical value 0.067
    assert np.abs(spearmanr(draws).statistic - spearmanr(values).statistic).max() < 0.1


def test_left_and_right_stay_apart():
    values = population(100, bimodal=True)
    draws = TumourModel.fit(values).sample(400, 5)
    assert (np.abs(draws[:, 3]) < 10).mean() < 0.02 and 0.3 < (draws[:, 3] > 0).mean() < 0.7


def bootstrap_floor(values):
    """Mean Wasserstein-1 distance [9] of as many rows drawn with replacement from `values`."""
    rng = np.random.default_rng(0)
    rows = [values[rng.integers(len(values), size=len(values))] for _ in range(60)]
    return np.mean([distances(row, values) for row in rows], axis=0)


def distances(draws, values):
    return np.array([wasserstein_distance(draws[:, c], values[:, c]) for c in range(9)])


def test_draws_keep_mean_and_spread_of_a_cut_population():
    """Log-normal volumes with a hard limit, below which they crowd: a Gaussian's draws would lose the large ones."""
    values = population(600, seed=4, bimodal=True, spread=1.2)
    values = values[(values[:, 0] < 60) & (values[:, 0] > 5)][:100]
    assert len(values) == 100 and (values[:, 0] > 45).mean() > 0.15
    draws = TumourModel.fit(values).sample(2000, 0)
    error = draws.std(0) / np.sqrt(len(draws))
    assert draws[:, 0].mean() == pytest.approx(values[:, 0].mean(), rel=0.03)
    np.testing.assert_array_less(np.abs(draws.mean(0) - values.mean(0)), 0.12 * values.std(0) + 3 * error)
    np.testing.assert_allclose(draws.std(0), values.std(0), rtol=0.12)
    np.testing.assert_allclose(np.corrcoef(draws.T), np.corrcoef(values.T), atol=0.15)
    np.testing.assert_array_less(distances(draws, values), bootstrap_floor(values))


def test_no_draw_is_a_training_tumour():
    """Each is off by a tenth of a standard deviation or more in some of its nine values."""
    values = population(100, seed=5)
    draws = TumourModel.fit(values).sample(500, 0)
    apart = (np.abs(draws[:, None] - values) / values.std(0)).max(2).min(1)
    assert apart.min() > 0.1 and np.median(apart) > 0.4


@pytest.mark.parametrize("given", [{"volume_ml": 60.0}, {"x_mm": 20.0, "h_mm": 70.0}, {"sphericity": 0.6, "z_mm": 0.0}])
def test_completion_is_the_conditional_of_the_mixture(given):
    """Without limits: the textbook's mean of the other values, tumour by tumour, weighted by what each has of them."""
    model = TumourModel.fit(population(15, seed=2))
    model = replace(model, limits=np.array([[-1e9, 1e9]] * 10), floor=-np.inf)
    # t -> logarithms of the characteristics and positions, by the formulas of the module's docstring
    log_sphere, log_ball = np.log(sphere_surface(1e-3)), np.log(6 / np.pi) / 3

    def values_of(t):
        extents = t[..., 5:] + t[..., :1] / 3 + log_ball
        surface = log_sphere + 2 / 3 * t[..., :1] + t[..., 1:2]
        return np.concatenate([t[..., :1] - np.log(1000), surface, -t[..., 1:2], t[..., 2:5], extents], axis=-1)

    origin = values_of(np.zeros(8))
    matrix = (values_of(np.eye(8)) - origin).T
    means, covariance = values_of(model.means), matrix @ model.covariances[0] @ matrix.T
    j = [NAMES.index(name) for name in given]
    i = [k for k in range(9) if k not in j]
    target = np.array([v if n in NAMES[3:6] else np.log(v) for n, v in given.items()])
    inner = covariance[np.ix_(j, j)]
    shares = model.weights * [multivariate_normal.pdf(target, m[j], inner) for m in means]
    each = means[:, i] + (target - means[:, j]) @ np.linalg.solve(inner, covariance[np.ix_(j, i)])
    expected = shares @ each / shares.sum()
    draws = np.array([model.complete(given, seed) for seed in range(800)])
    logs = np.concatenate([np.log(draws[:, :3]), draws[:, 3:6], np.log(draws[:, 6:])], axis=1)[:, i]
    np.testing.assert_array_less(np.abs(logs.mean(0) - expected), 4 * logs.std(0) / np.sqrt(len(logs)))


def test_a_model_with_a_covariance_for_each_component_still_loads():
    """As older checkpoints hold it; equal covariances are the shared one, and unequal ones stay their component's."""
    model = TumourModel.fit(population(12))
    state = model.state()
    assert np.shape(state["covariances"]) == (1, 8, 8)
    old = TumourModel.from_state(state | {"covariances": state["covariances"] * 12})
    np.testing.assert_allclose(old.sample(20, 3), model.sample(20, 3), rtol=1e-9)
    for given in ({"volume_ml": 45.0}, {"x_mm": 3.0, "w_mm": 50.0}, {"volume_ml": 900.0}):
        np.testing.assert_allclose(old.complete(given, 4), model.complete(given, 4), rtol=1e-9)
    two = state | {
        "weights": [0.25, 0.75],
        "means": [[9.5, 0.4, -30, 0, 0, 0.2, 0.2, 0.2], [11.5, 0.4, 30, 0, 0, 0.2, 0.2, 0.2]],
        "covariances": [np.diag([0.01, 1e-4, 1, 1, 1, 1e-4, 1e-4, 1e-4]).tolist(), (0.01 * np.eye(8)).tolist()],
        "limits": [[-1e9, 1e9]] * 10,
        "floor": -1e9,
    }
    draws = TumourModel.from_state(two).sample(400, 0)
    small = draws[:, 0] < 30
    assert 0.18 < small.mean() < 0.32
    np.testing.assert_allclose(draws[small, 3].mean(), -30, atol=0.5)
    np.testing.assert_allclose([draws[small, 4].std(), draws[~small, 4].std()], [1, 0.1], rtol=0.2)


def test_a_draw_depends_on_state_and_seed_alone(planted):
    model = TumourModel.from_state(json.loads(json.dumps(planted[1].state())))
    batch = planted[1].sample(6, 40)
    for i, row in enumerate(batch):
        np.testing.assert_array_equal(model.sample(1, 40 + i)[0], row)
    assert len(np.unique(batch[:, 0])) == 6 and model.sample(0, 1).shape == (0, 9)
    np.testing.assert_array_equal(model.complete({"w_mm": 50}, 9), planted[1].complete({"w_mm": 50}, 9))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [1, 2, 4, 12])
@pytest.mark.parametrize("equal", [False, True])
def test_few_or_equal_tumours_suffice(n, equal):
    values = population(40)[[0] * n if equal else slice(n)]
    model = TumourModel.fit(values)
    draws = model.sample(50, 0)
    assert_possible(draws)
    assert not any(model.outside(row) for row in [*draws, *values])
    if equal:
        np.testing.assert_allclose(
            draws[:, [0, 1, 2, 6, 7, 8]], np.tile(values[0, [0, 1, 2, 6, 7, 8]], (50, 1)), rtol=0.1
        )


def test_impossible_training_values_are_refused():
    for bad in (np.zeros((4, 9)), np.full((4, 9), 2.0), np.full((4, 9), np.nan), np.ones((4, 3)), np.ones((0, 9))):
        with pytest.raises(ValueError):
            TumourModel.fit(bad)


@pytest.mark.parametrize(
    "given",
    [
        {"volume_ml": 90.0},
        {"w_mm": 70.0},
        {"volume_ml": 40.0, "x_mm": -20.0, "y_mm": 5.0, "z_mm": 20.0},
        {"surface_mm2": 9000.0, "h_mm": 66.0},
        {"sphericity": 0.66, "d_mm": 60.0},
    ],
)
def test_completion_is_the_analytic_conditional(planted, given):
    """Against Gaussian conditioning with the moments of the logarithms, a route of its own; within 4 se + 0.1 sd."""
    values, model = planted
    free = [n for n in NAMES if n not in given]
    logarithmic = [n not in NAMES[3:6] for n in NAMES]

    def logs(rows):
        return np.where(logarithmic, np.log(np.where(logarithmic, rows, 1)), rows)

    mean, covariance = logs(values).mean(0), np.cov(logs(values).T)
    i, j = [NAMES.index(n) for n in free], [NAMES.index(n) for n in given]
    gain = covariance[np.ix_(i, j)] @ np.linalg.inv(covariance[np.ix_(j, j)])
    target = logs(np.array([given.get(n, 1.0) for n in NAMES]))[j]
    expected = mean[i] + gain @ (target - mean[j])
    spread = np.sqrt(np.diag(covariance[np.ix_(i, i)] - gain @ covariance[np.ix_(j, i)]))
    draws = np.array([model.complete(given, seed) for seed in range(400)])
    assert_possible(draws)
    np.testing.assert_array_equal(draws[:, j], np.tile(list(given.values()), (400, 1)))
    found = logs(draws)[:, i]
    np.testing.assert_array_less(np.abs(found.mean(0) - expected), (4 / np.sqrt(400) + 0.1) * spread)
    np.testing.assert_allclose(found.std(0), spread, rtol=0.25)


def test_two_of_volume_surface_sphericity_fix_the_third(planted):
    model = planted[1]
    for given in (
        {"volume_ml": 30.0, "surface_mm2": 7000.0},
        {"volume_ml": 30.0, "sphericity": 0.7},
        {"surface_mm2": 7000.0, "sphericity": 0.7},
    ):
        assert_possible(model.complete(given, 1)[None])
    full = dict(zip(NAMES, planted[0][0], strict=True))
    np.testing.assert_array_equal(model.complete(full, 0), planted[0][0])
    for row in planted[0][:20]:  # what a table holds is a request
        np.testing.assert_array_equal(model.complete(to_dict(row), 0), list(to_dict(row).values()))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"volume_ml": 30, "surface_mm2": 7000, "sphericity": 0.2}, "sphericity=0.2 contradicts"),
        ({"volume_ml": 30, "surface_mm2": 100}, "surface_mm2=100 is less than a sphere"),
        ({"volume_ml": 30, "w_mm": 10, "h_mm": 10, "d_mm": 10}, "extents_mm make a box of 1 ml"),
        ({"surface_mm2": 7000, "sphericity": 0.7, "w_mm": 10, "h_mm": 10, "d_mm": 10}, "extents_mm"),
        ({"volume_ml": 0}, "volume_ml=0"),
        ({"volume_ml": float("nan")}, "volume_ml=nan"),
        ({"sphericity": 1.2}, "sphericity=1.2"),
        ({"w_mm": -3}, "extents_mm"),
        ({"x_mm": float("inf")}, "centre_mm"),
        ({"surface_mm2": 1e9}, "surface_mm2=1e"),
        ({"volume": 3}, "'volume' is no tumour characteristic"),
    ],
)
def test_impossible_requests_are_named(planted, given, words):
    with pytest.raises(InputError, match=words.replace("(", r"\(")):
        planted[1].complete(given, 0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "given",
    [
        {"volume_ml": 3000.0},
        {"volume_ml": 0.05},
        {"volume_ml": 1e-9},
        {"x_mm": 1e4},
        {"volume_ml": 100.0, "w_mm": 25.0, "h_mm": 25.0},
        {"surface_mm2": 1000.0, "w_mm": 100.0, "h_mm": 100.0, "d_mm": 100.0},
        {"surface_mm2": 1e6, "w_mm": 10.0, "h_mm": 10.0, "d_mm": 10.0},
        {"sphericity": 1.0},
    ],
)
def test_far_requests_are_extrapolated_and_said(planted, given):
    row = planted[1].complete(given, 2)
    assert_possible(row[None])
    said = planted[1].outside(row)
    assert said and any(entry.startswith(next(iter(given))) or "combination" in entry for entry in said)


def test_outside_names_value_and_range(planted):
    values, model = planted
    assert not any(model.outside(row) for row in values)
    far = model.complete({"volume_ml": 4000}, 0)
    assert model.outside(far)[0].startswith(f"volume_ml 4000 is above {model.ranges[0, 0]:.3g} to")
    twisted = values[np.argmin(np.abs(values[:, 0] - 50))].copy()
    twisted[[0, 1, 2]] = twisted[0], twisted[1], twisted[2] * 1.3
    assert any("impossible together: sphericity" in entry for entry in model.outside(twisted))
    box = np.array([50, sphere_surface(50) / 0.6, 0.6, 0, 0, 10, *[values[:, c].min() for c in (6, 7, 8)]])
    assert any("extents_mm make a box" in entry for entry in model.outside(box))
    apart = values[np.argmax(values[:, 0])].copy()  # a large tumour in the box of a smaller one, still possible
    apart[6:9] *= (1.02 * 1000 * apart[0] / apart[6:9].prod()) ** (1 / 3)
    assert any("combination" in entry for entry in model.outside(apart))


# --- shares of tissues ----------------------------------------------------------------------------------------------

ALL = (*NAMES, *SHARES.values())
THREE = {"necrotic": "necrotic", "oedema": "oedema", "enhancing": "enhancing"}


@pytest.mark.parametrize(
    ("labels", "shares"),
    [
        ({"whole tumour": "all"}, ()),
        (THREE, ("core_percent", "enhancing_percent")),
        ({"core": ["necrotic", "enhancing"], "oedema": "oedema"}, ("core_percent",)),
        ({"active": "enhancing", "rest": ["necrotic", "oedema"]}, ("enhancing_percent",)),
        ({"necrotic": "necrotic", "oedema": "oedema"}, ()),
    ],
)
def test_labels_decide_which_shares_are_known(labels, shares):
    assert Source.from_config(["flair"], labels).characteristics == (*NAMES, *shares)


def test_shares_of_nested_spheres():
    """Of radius 20, 14 and 9 mm: the cubes of the ratios, on an anisotropic grid too; the nine are as without them."""
    source = Source.from_config(["flair"], THREE)
    for spacing in (ISO, (1, 1.5, 2)):
        whole, affine = ellipsoid((20, 20, 20), spacing)
        core, enhancing = (ellipsoid((r, r, r), spacing)[0] for r in (14, 9))
        labels = np.where(enhancing, 3, np.where(core, 1, 2 * whole)).astype(np.uint8)
        values = source.measure(labels, affine)
        np.testing.assert_allclose(values[9:], [100 * 0.7**3, 100 * 0.45**3], rtol=0.03)
        np.testing.assert_array_equal(values[:9], measure(whole, affine))
        assert to_dict(values, ALL)["core_percent"] == round(values[9], 2) and list(to_dict(values, ALL)) == list(ALL)
        labels[labels == 3] = 1
        assert source.measure(labels, affine)[10] == 0
    assert np.isnan([*source.shares(np.zeros((3, 3, 3), np.uint8)).values()]).all()
    core = Source.from_config(["flair"], {"oedema": "oedema", "core": ["enhancing", "necrotic"]})
    assert core.shares(np.array([1, 1, 2, 0], np.uint8)) == {"core_percent": pytest.approx(100 / 3)}


def with_shares(n=60, seed=0):
    """A population whose larger tumours have less core; each fourth has no enhancing tissue."""
    values = population(n, seed)
    rng = np.random.default_rng(seed)
    core = np.clip(90 - 25 * np.log(values[:, 0] / 15) + rng.normal(0, 6, len(values)), 5, 95)
    enhancing = core * rng.uniform(0.2, 0.8, len(values)) * (np.arange(len(values)) % 4 > 0)
    return np.column_stack([values, core, enhancing])


def test_draws_with_shares():
    """Within what training saw, as many without enhancing tissue, alike in mean; size and place are what they were."""
    values = with_shares()
    model = TumourModel.fit(values, ALL)
    draws = model.sample(600, 0)
    assert model.names == ALL and not any(model.outside(row) for row in [*draws, *values])
    core, enhancing = draws[:, 9:].T
    assert (enhancing <= core).all() and enhancing.min() == 0 and core.min() > 0
    assert (enhancing == 0).mean() == pytest.approx((values[:, 10] == 0).mean(), abs=0.07)
    np.testing.assert_allclose(draws[:, 9:].mean(0), values[:, 9:].mean(0), atol=3)
    assert spearmanr(draws[:, 0], core).statistic < -0.3
    apart = np.abs(draws[:, None, 9:] - values[:, 9:]).max(2).min(1)
    assert np.median(apart) > 0.5, "no copies of the training tumours' shares"
    again = TumourModel.from_state(json.loads(json.dumps(model.state())))
    np.testing.assert_array_equal(again.sample(5, 3), model.sample(5, 3))
    nine = TumourModel.fit(values[:, :9])
    np.testing.assert_array_equal(nine.sample(50, 7), model.sample(50, 7)[:, :9])
    assert nine.state() == {k: v for k, v in model.state().items() if k != "shares"} and "shares" not in nine.state()


def test_draws_of_one_label_are_what_they_were():
    """Numbers as the version before there were shares drew them."""
    model = TumourModel.fit(population(40, seed=3))
    expected = [
        *(85.8385597291, 15017.2268267, 0.626636948398, 43.7175497329, 6.76992011929, 40.6654391555),
        *(60.7957369207, 77.0813600262, 65.1419609107),
        *(20.0, 5476.41795247, 0.650640165052, 14.556453591, 6.9177113791, -13.9822944015),
        *(41.168739554, 46.7135851451, 40.429023267),
    ]
    found = np.concatenate([model.complete({}, 5), model.complete({"volume_ml": 20.0}, 6, 4)])
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def two_kinds(shares):
    """A model of two equally frequent tumours, of about 5 and 150 ml, with these shares `[2, 2]`."""
    state = TumourModel.fit(population(12)).state() | {
        "weights": [0.5, 0.5],
        "means": [[8.5, 0.4, -30, 0, 0, 0.2, 0.2, 0.2], [11.9, 0.4, 30, 0, 0, 0.2, 0.2, 0.2]],
        "covariances": [np.diag([0.04, 1e-4, 1, 1, 1, 1e-4, 1e-4, 1e-4]).tolist()],
        "limits": [[-1e9, 1e9]] * 10,
        "floor": -1e9,
    }
    return TumourModel.from_state(state | {"shares": dict(zip(SHARES.values(), np.transpose(shares), strict=True))})


@pytest.mark.parametrize("asked", [{"core_percent": 45.0}, {"enhancing_percent": 25.0}, None])
def test_shares_choose_the_tumour(monkeypatch, asked):
    """The larger of two kinds is drawn as often as Bayes' rule says with the marginals of the two kernels; the share
    that is left open has the mean of their conditional."""
    core, enhancing = shares = np.array([[30.0, 20.0], [60.0, 30.0]]).T
    model = two_kinds(shares.T)
    tissues = np.stack([100 - core, core - enhancing, enhancing], axis=1) / 100
    kernels = CONCENTRATION * (2 / 100) ** (1 / 3) * tissues + 0.5
    asked = asked or {"core_percent": 45.0, "enhancing_percent": 25.0}
    wanted = np.array(list(asked.values())) / 100
    if len(asked) == 2:
        point = [1 - wanted[0], wanted[0] - wanted[1], wanted[1]]
        likely, other = np.array([dirichlet.pdf(point, a) for a in kernels]), np.array([0.0, 0.0])
    elif "core_percent" in asked:
        likely = beta.pdf(wanted[0], kernels[:, 1] + kernels[:, 2], kernels[:, 0])
        other = 100 * wanted[0] * kernels[:, 2] / (kernels[:, 1] + kernels[:, 2])
    else:
        likely = beta.pdf(wanted[0], kernels[:, 2], kernels[:, 0] + kernels[:, 1])
        other = 100 * (wanted[0] + (1 - wanted[0]) * kernels[:, 1] / (kernels[:, 0] + kernels[:, 1]))
    expected = likely[1] / likely.sum()
    monkeypatch.setattr(Shares, "_limits", property(lambda self: np.array([[-1e9, 1e9]] * 2)))
    draws = np.array([model.complete(asked, seed) for seed in range(800)])
    large = draws[:, 0] > 30
    assert large.mean() == pytest.approx(expected, abs=3.5 * np.sqrt(expected * (1 - expected) / 800))
    for name, value in asked.items():
        assert (draws[:, ALL.index(name)] == value).all()
    if len(asked) == 1:
        (column,) = {9, 10} - {ALL.index(next(iter(asked)))}
        for k, rows in enumerate((draws[~large], draws[large])):
            assert rows[:, column].mean() == pytest.approx(other[k], abs=4 * rows[:, column].std() / np.sqrt(len(rows)))


def test_what_a_tumour_lacks_its_draws_lack():
    """No enhancing tissue in the small kind: it is never drawn there, and whoever asks for some gets the other kind."""
    model = two_kinds([[40.0, 0.0], [60.0, 30.0]])
    draws = np.array([model.complete({}, seed) for seed in range(200)])
    assert ((draws[:, 10] == 0) == (draws[:, 0] < 30)).all() and 0.35 < (draws[:, 10] == 0).mean() < 0.65
    for asked, larger in ((1.0, True), (0.0, False)):
        draws = np.array([model.complete({"enhancing_percent": asked}, seed) for seed in range(50)])
        assert ((draws[:, 0] > 30) == larger).all() and (draws[:, 10] == asked).all() and (draws[:, 9] > 30).any()
    none = two_kinds([[40.0, 0.0], [60.0, 0.0]])  # nobody has any: as asked, and said
    request = none.complete({"enhancing_percent": 10.0, "core_percent": 50.0}, 0)
    assert request[9:].tolist() == [50, 10]
    assert [said for said in none.outside(request) if "percent" in said] == ["enhancing_percent 10 is above 0 to 0"]
    whole = two_kinds([[40.0, 10.0], [60.0, 30.0]]).complete({"core_percent": 100.0}, 0)  # none lacks the oedema
    assert whole[9] == 100 and 0 < whole[10] < 100
    equal = model.complete({"core_percent": 7.0, "enhancing_percent": 7.0}, 0)
    assert equal[9:].tolist() == [7, 7]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"core_percent": 101}, "core_percent=101 must lie from 0 to 100"),
        ({"enhancing_percent": -1}, "enhancing_percent=-1 must lie from 0 to 100"),
        ({"core_percent": 20, "enhancing_percent": 30}, "enhancing_percent=30 is more than core_percent=20"),
    ],
)
def test_impossible_shares_are_named(given, words):
    with pytest.raises(InputError, match=words):
        two_kinds([[40.0, 10.0], [60.0, 30.0]]).complete(given, 0)


def test_a_model_without_tissues_knows_no_shares(planted):
    with pytest.raises(InputError, match="core_percent: this model knows no such share: its labels"):
        planted[1].complete({"core_percent": 20}, 0)
    for bad in ([[30.0, 40.0]] * 4, [[101.0, 40.0]] * 4, [[30.0, -1.0]] * 4, [[np.nan, 1.0]] * 4):
        with pytest.raises(ValueError, match="Shares must lie"):
            TumourModel.fit(np.column_stack([population(8)[:4], bad]), ALL)


def test_normaliser_of_shares():
    """In the unit of their spread; of an older model, which knows none, the condition is as long as it was."""
    values = with_shares()
    normaliser = Normaliser.fit(values)
    codes = normaliser.encode(values)
    np.testing.assert_allclose([codes.mean(0), codes.std(0)], [[0] * 11, [1] * 11], atol=1e-4)
    np.testing.assert_allclose(normaliser.decode(codes), values, rtol=1e-5, atol=1e-4)
    older = Normaliser.fit(values[:, :9])
    np.testing.assert_array_equal(older.encode(values), codes[:, :9])


# --- reading --------------------------------------------------------------------------------------------------------


def test_csv_of_requests(tmp_path):
    path = tmp_path / "requests.csv"
    path.write_text("\ufeffz_mm, VOLUME_ML\r\n5,30\r\n\r\n,12.5\r\n,\r\n", encoding="utf-8")
    assert read_requests(path) == [{"z_mm": 5.0, "volume_ml": 30.0}, {"volume_ml": 12.5}, {}]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "holds no request"),
        ("volume_ml\n", "holds no request"),
        ("volume_ml,size\n3,4\n", "line 1: column 'size' is unknown"),
        ("volume_ml,volume_ml\n3,4\n", "line 1: column 'volume_ml' comes twice"),
        ("volume_ml\n3\nbig\n", "line 3, column volume_ml: volume_ml='big' is not a number"),
        ("x_mm,volume_ml\n3,-4\n", "line 2, column volume_ml"),
        ("x_mm,volume_ml\n3\n", "line 2: 1 cells under 2 columns"),
        ('x_mm\n"3\n', "cannot be read"),
    ],
)
def test_csv_errors_name_file_line_and_column(tmp_path, text, words):
    path = tmp_path / "requests.csv"
    path.write_text(text)
    with pytest.raises(InputError) as error:
        read_requests(path)
    assert str(path) in str(error.value) and words in str(error.value) and "sphericity" in str(error.value)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le"])
def test_csv_as_editors_write_it(tmp_path, encoding, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "asked.csv").write_bytes("volume_ml,x_mm\r\n20,-5\r\n".encode(encoding))
    assert read_requests(Path("~/asked.csv")) == [{"volume_ml": 20, "x_mm": -5}]


def test_csv_that_cannot_be_read(tmp_path):
    (tmp_path / "binary.csv").write_bytes(b"\xff\xff\x00\x81")
    for name in ("missing.csv", "binary.csv", "."):
        with pytest.raises(InputError, match=r"cannot be read|is missing"):
            read_requests(tmp_path / name)


def test_parts_of_a_request():
    assert parse_request(volume_ml=30.0, surface_mm2=None, centre_mm="-30, 10,5", extents_mm=[40, 35, 30]) == {
        "volume_ml": 30.0, "x_mm": -30.0, "y_mm": 10.0, "z_mm": 5.0, "w_mm": 40.0, "h_mm": 35.0, "d_mm": 30.0
    }  # fmt: skip
    assert parse_request() == parse_request(volume_ml="", contrast=None) == {}
    assert parse_request(core_percent=40, enhancing_percent="0") == {"core_percent": 40, "enhancing_percent": 0}
    for part, content in (
        ("volume_ml", "thirty"),
        ("volume_ml", "-1"),
        ("volume_ml", "1,2"),
        ("sphericity", "1.5"),
        ("centre_mm", "1,2"),
        ("centre_mm", "1,,2"),
        ("extents_mm", "1,2,0"),
        ("size", "3"),
    ):
        with pytest.raises(InputError, match=part):
            parse_request(**{part: content})


# --- real tumours, population-level numbers only --------------------------------------------------------------------


def test_real_tumours():
    nibabel = pytest.importorskip("nibabel")
    if not (DATA / "brats_2mm").is_dir():
        pytest.skip("the real cases are not on this machine")
    rows = []
    for case in (DATA / "splits" / "train100.txt").read_text().split()[:40]:
        flair, seg = (nibabel.load(DATA / "brats_2mm" / case / f"{case}_{k}.nii.gz") for k in ("flair", "seg"))
        brain = np.argwhere(np.asarray(flair.dataobj) > 0)
        affine = flair.affine.copy()
        affine[:3, 3] = -affine[:3, :3] @ (brain.min(0) + brain.max(0)) / 2
        rows.append(measure(np.asarray(seg.dataobj) > 0, affine))
    values = np.array(rows)
    median = np.median(values, axis=0)
    assert 50 < median[0] < 150 and 0.4 < median[2] < 0.8
    assert np.abs(median[3:6]).max() < 30 and (median[6:9] > 40).all() and (median[6:9] < 110).all()
    model = TumourModel.fit(values)
    draws = model.sample(2000, 0)
    assert_possible(draws)
    assert np.abs(spearmanr(draws).statistic - spearmanr(values).statistic).mean() < 0.1
    assert draws[:, 0].mean() == pytest.approx(values[:, 0].mean(), rel=0.03)
    np.testing.assert_array_less(distances(draws, values), bootstrap_floor(values))


def test_rare_requests(planted):
    """The rarest of eight lie farther from the training tumours in size and place, within their limits, and by seed."""
    _, model = planted
    usual, rare = (np.array([model.complete({}, seed, among) for seed in range(60)]) for among in (1, 8))
    rarity = [model._rarity(_functions(values)) for values in (usual, rare)]
    assert np.median(rarity[1]) > 1.3 * np.median(rarity[0])
    assert not [name for values in rare for name in model.outside(values) if "below" in name or "above" in name]
    assert np.array_equal(model.complete({}, 7, 8), rare[7]) and model.complete({"volume_ml": 9.0}, 3, 8)[0] == 9
