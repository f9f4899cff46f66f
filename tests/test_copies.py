"""The audit for copies: planted copies in disguise, the null of independent brains, and every number by another way."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import betabinom, mannwhitneyu

from sbldm.evaluation.disguises import DISGUISES as MADE_UP
from sbldm.evaluation.disguises import scaled, turned, warped
from sbldm.metrics.alignment import affine_fit, moved
from sbldm.metrics.copies import Memory, _fitted, _Look, _shifted, fingerprint, memories_of, nearest_of
from sbldm.metrics.feature_copies import authenticity, feature_ratio
from sbldm.metrics.nearness import copy_rate, excess_of
from sbldm.metrics.tumour_copies import TumourMemory, mask_print, nearest_mask, tumour_print
from sbldm.run.errors import DataError, StateError

SHAPE, SPACING = (64, 72, 56), (3.0, 3.0, 3.0)
N_TRAIN, N_HELDOUT, N_QUERIES = 30, 30, 40
PLANTED = 5


def positions(shape, spacing):
    """Of voxel centres in mm from the middle, an open grid."""
    return np.ogrid[tuple(slice(-(n - 1) / 2 * s, n / 2 * s, s) for n, s in zip(shape, spacing, strict=True))]


def waves(seed, grid):
    """Sum of 30 plane waves 24 to 60 mm long of unit variance, known at any point."""
    rng = np.random.default_rng(seed)
    directions = rng.standard_normal((30, 3))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True) * rng.uniform(24, 60, (30, 1)) / (2 * np.pi)
    x, y, z = (np.exp(1j * k[:, None] * p.ravel()) for k, p in zip(directions.T, grid, strict=True))
    x = x * np.exp(2j * np.pi * rng.random((30, 1))) / math.sqrt(15)
    planes = (x[:, :, None] * y[:, None, :]).reshape(30, -1).T.astype(np.complex64)
    return (planes @ z.astype(np.complex64)).real.reshape(x.shape[1], y.shape[1], z.shape[1])


def head(seed, shape=SHAPE, spacing=SPACING):
    """An ellipsoid of its own size, texture that all share, and texture of its own."""
    grid = positions(shape, spacing)
    axes = np.array([68, 84, 66]) + np.random.default_rng([1, seed]).uniform(-4, 4, 3)
    inside = sum((p / a) ** 2 for p, a in zip(grid, axes, strict=True)) <= 1
    return np.where(inside, (100 + 10 * waves(0, grid) + 10 * waves(seed, grid)).clip(1), 0).astype(np.float32)


def prints(first, n):
    """Fingerprints of heads by name."""
    return {f"case {k}": fingerprint(head(k), SPACING) for k in range(first, first + n)}


@pytest.fixture(scope="module")
def train():
    return prints(1, N_TRAIN)


@pytest.fixture(scope="module")
def heldout():
    return prints(500, N_HELDOUT)


@pytest.fixture(scope="module")
def memory(train, heldout):
    return Memory.build(train, heldout)


@pytest.fixture(scope="module")
def honest(memory):
    """What the memory finds for independent brains."""
    return [memory.nearest(query) for query in prints(2000, N_QUERIES).values()]


def noisy(image):
    """White noise of the SD of the brain."""
    brain = image > 0
    noise = np.random.default_rng(7).normal(0, image[brain].std(), image.shape)
    return np.where(brain, (image + noise).clip(1), 0)


def with_tumour(image):
    """A bright ball of 24 mm radius, 58 ml, beside the middle."""
    grid = positions(SHAPE, SPACING)
    ball = sum((p - c) ** 2 for p, c in zip(grid, (25, -10, 15), strict=True)) < 24**2
    return np.where(ball, 170, image)


def cut(image):
    """12 mm less at the top, which moves the centre of the box by 6 mm."""
    top = np.flatnonzero((image > 0).any(axis=(0, 1)))[-1]
    return np.where(np.arange(SHAPE[2]) > top - 4, 0, image)


def blurred(image):
    """Gaussian of 6 mm SD inside the brain."""
    brain = image > 0
    smooth = ndimage.gaussian_filter(image, 2) / np.maximum(ndimage.gaussian_filter(brain.astype(float), 2), 1e-3)
    return np.where(brain, smooth, 0)


DISGUISES = {
    "none": lambda image: image,
    "mirrored": lambda image: image[::-1],
    "moved by 6 mm": lambda image: np.roll(image, (2, -2, 2), (0, 1, 2)),
    "cut": cut,
    "noisy": noisy,
    "rescaled": lambda image: np.where(image > 0, 3.7 * image + 41, 0),
    "with a tumour": with_tumour,
    "blurred": blurred,
    "turned by 5 degrees": lambda image: turned(image, SPACING, np.random.default_rng(1), 5),
    "scaled by 5 %": lambda image: scaled(image, SPACING, np.random.default_rng(1), 0.05),
    "warped by 5 mm": lambda image: warped(image, SPACING, np.random.default_rng(1), 5),
    "mixed with another": lambda image: np.where(image > 0, image + np.where((other := head(29)) > 0, other, image), 0),
    **{kind: lambda image, make=make: make(image, SPACING, np.random.default_rng(2)) for kind, make in MADE_UP.items()},
    "all at once": lambda image: np.where((changed := noisy(with_tumour(cut(image))[::-1])) > 0, changed / 9 + 5, 0),
}


@pytest.mark.parametrize("disguise", DISGUISES)
def test_planted_copies(memory, honest, disguise):
    """0, 5 and 25 % of 20 queries are copies in disguise: counted exactly, and each original is named."""
    found = [memory.nearest(fingerprint(DISGUISES[disguise](head(1 + k)), SPACING)) for k in range(PLANTED)]
    assert [near.name for near in found] == [f"case {1 + k}" for k in range(PLANTED)]
    copies, others = ([near.excess for near in group] for group in (found, honest))
    for planted in (0, 1, 5):
        count, rate = copy_rate(np.array(copies[:planted] + others[planted:20]), memory.copy)
        assert count == planted and rate.value == planted / 20 and rate.low <= rate.value <= rate.high
    assert min(copies) > memory.copy + 0.05
    if disguise in ("none", "mirrored", "moved by 6 mm", "rescaled"):
        assert min(copies) > 0.999


def test_null(memory, honest):
    """Independent brains: 5 % beyond `near`, few beyond `copy`; queries and held-back cases are treated alike."""
    excess = np.array([near.excess for near in honest])
    # Beyond the 29.45th of 30 lies a share that is Beta(1.55, 29.45) distributed over audits: 5 % on average.
    low, high = betabinom(N_QUERIES, 1.55, 29.45).ppf([0.025, 0.975])
    assert low <= copy_rate(excess, memory.near)[0] <= high < N_QUERIES / 5
    assert memory.near < memory.copy and (excess > memory.copy).mean() < 0.02
    assert mannwhitneyu(excess, memory.heldout_excess).pvalue > 0.05
    pool, rng = np.concatenate([excess, memory.heldout_excess]), np.random.default_rng(0)
    rates = []
    for _ in range(2000):
        rng.shuffle(pool)
        rates.append((pool[30:] > np.quantile(pool[:30], 0.95, method="weibull")).mean())
    assert 0.04 < np.mean(rates) < 0.052


def test_unrelated_noise():
    """Noise brains without anything in common correlate near 0 in place, not as zeros around a brain would."""
    grid = positions(SHAPE, SPACING)
    ball = sum((p / a) ** 2 for p, a in zip(grid, (68, 84, 66), strict=True)) <= 1
    rng = np.random.default_rng(0)
    cells = [fingerprint(np.where(ball, rng.uniform(1, 2, SHAPE), 0), SPACING) for _ in range(12)]
    memory = Memory.build({str(k): c for k, c in enumerate(cells[:6])}, {str(k): c for k, c in enumerate(cells[6:])})
    look = memory.looks[0]
    in_place = look.rows(np.stack(cells[6:])) @ look.train.T
    assert abs(in_place.mean()) < 0.01 and np.abs(in_place).max() < 0.06
    assert memory.copy < 0.12


def test_nearest_by_brute_force(train, heldout):
    """One query, each case, flip and shift in turn, with numpy's correlation over the cells."""
    cases, query = dict(itertools.islice(train.items(), 4)), next(iter(heldout.values()))
    stack = np.stack(list(cases.values()))
    present = stack != 0
    mean = np.array(np.where(present, stack, np.nan))
    with np.errstate(all="ignore"):
        mean = np.nan_to_num(np.nansum(mean, axis=0) / present.sum(axis=0))
    common = present.mean(axis=0) >= 0.5
    best = {}
    for name, case in cases.items():
        for flip, *shift in itertools.product((1, -1), *[(-1, 0, 1)] * 3):
            rows = []
            for cells in (np.roll(query[::flip], shift, (0, 1, 2)), case):
                here = common & (cells != 0)
                residual = np.zeros(cells.shape)
                residual[here] = cells[here] - mean[here]
                residual[here] -= residual[here].mean()
                rows.append(residual[common])
            best[name] = max(best.get(name, -1), np.corrcoef(rows)[0, 1])
    memory = Memory.build(cases, {})
    np.testing.assert_allclose(memory.looks[0].correlations(_shifted(query)), list(best.values()), atol=1e-5)
    fitted = np.stack([moved(case, affine_fit(case, memory.template)) for case in stack])
    found = np.maximum(list(best.values()), _Look.at(fitted).correlations(_fitted(query, memory.template)))
    first, *others = np.sort(np.log((1 + found) / (1 - found)) / 2)[::-1]
    near = memory.nearest(query)
    assert near.name == list(cases)[found.argmax()] and near.correlation == pytest.approx(found.max(), abs=1e-5)
    assert near.excess == pytest.approx(np.tanh(first - np.mean(others)), abs=1e-5)


def test_excess():
    """After Fisher's z: (.9 - .5) / (1 - .45), whatever the order, and whatever lies beyond the next five."""
    assert excess_of(np.array([0.5, 0.5, 0.9, 0.5, 0.5, 0.5, 0.1, -0.2])) == pytest.approx(0.4 / 0.55)
    assert excess_of(np.array([0.5, 0.9])) == pytest.approx(0.4 / 0.55) and excess_of(np.full(9, 0.3)) == 0


def test_several_channels(train, heldout):
    """The nearest channel counts: for the limits, and for a copy in the second one alone under a first of its own."""
    few = [dict(itertools.islice(prints_.items(), 12)) for prints_ in (train, heldout)]
    others = [
        dict(zip(some, prints(first, 12).values(), strict=True)) for some, first in zip(few, (5001, 5501), strict=True)
    ]
    both = memories_of(*zip(few, others, strict=True))
    alone = [Memory.build(*some) for some in (few, others)]
    nearest = np.maximum(*(memory.heldout_excess for memory in alone))
    z = np.arctanh(nearest)
    for memory, own in zip(both, alone, strict=True):
        np.testing.assert_array_equal(memory.heldout_excess, nearest)
        assert memory.near == pytest.approx(np.quantile(nearest, 0.95, method="weibull"))
        assert memory.copy == pytest.approx(max(*nearest, np.tanh(z.mean() + 4.94 * z.std(ddof=1))), abs=1e-3)
        assert memory.nearest(fingerprint(head(2000), SPACING)) == own.nearest(fingerprint(head(2000), SPACING))
    first, second = (fingerprint(image, SPACING) for image in (head(2000), noisy(head(5003))))
    assert both[0].nearest(first).excess < both[0].copy < both[1].nearest(second).excess
    assert nearest_of(both, [first, second]) == (1, both[1].nearest(second))
    assert both[1].nearest(second).name == "case 3"
    left_out = memories_of([few[0], others[0]], [{}, {}])
    assert left_out[0].calibration == "12 training cases, each against the others"
    assert left_out[0].copy >= max(Memory.build(some, {}).near for some in (few[0], others[0]))


def test_heldout_cases_are_queries(memory, heldout):
    """A held-back case is no nearer to the training cases than measured for the limits."""
    for k, cells in enumerate(itertools.islice(heldout.values(), 5)):
        assert memory.nearest(cells).excess == pytest.approx(memory.heldout_excess[k], abs=1e-6)


def test_affine_fit():
    """Turned by 8 degrees, larger by 8 % along one axis, sheared and shifted by a cell: found to a tenth of a cell."""
    cells = ndimage.gaussian_filter(fingerprint(head(3), SPACING), 0.7) * (fingerprint(head(3), SPACING) != 0)
    known = np.array([[0.08 * 15, -0.14 * 15, 0, 1], [0.14 * 15, 0, 0, -0.5], [0, 0.05 * 15, 0, 0.7]])
    found = affine_fit(cells, moved(cells, known))
    assert np.abs(found - known).max() < 0.1
    np.testing.assert_allclose(affine_fit(cells, cells), 0, atol=1e-4)
    np.testing.assert_allclose(moved(cells, np.zeros((3, 4))), cells, atol=1e-5)
    np.testing.assert_array_equal(affine_fit(0 * cells, cells), 0)


def test_fit_undoes_what_is_affine(train, memory):
    """A turned and scaled copy comes to lie where its original does: the correlation is nearly back."""
    disguised = scaled(turned(head(2), SPACING, np.random.default_rng(0), 10), SPACING, np.random.default_rng(0), 0.1)
    cells = fingerprint(disguised, SPACING)
    look, fitted = memory.looks
    assert look.correlations(_shifted(cells))[1] < 0.5 < 0.75 < fitted.correlations(_fitted(cells, memory.template))[1]


def test_limits(memory):
    """Both limits from their definitions."""
    honest = np.sort(memory.heldout_excess)
    assert memory.calibration == "30 held-back cases"
    assert memory.near == pytest.approx(honest[28] + 0.45 * (honest[29] - honest[28]))  # the 0.95 * 31st of 30
    z = np.log((1 + honest) / (1 - honest)) / 2
    assert memory.copy == pytest.approx(max(honest[-1], np.tanh(z.mean() + 4.94 * np.std(z, ddof=1))))


def test_few_heldout(train, heldout):
    """Nine held-back cases are no yardstick: each training case is held back in turn, with a mean of the others."""
    cases = dict(itertools.islice(train.items(), 12))
    few = dict(itertools.islice(heldout.items(), 9))
    memory = Memory.build(cases, few)
    assert memory.calibration == "12 training cases, each against the others" and len(memory.heldout_excess) == 9
    in_turn, prints = [], np.stack(list(cases.values()))
    fitted = np.stack([moved(cells, affine_fit(cells, memory.template)) for cells in prints])
    for k, cells in enumerate(prints):
        look, other = (_Look.at(np.delete(brains, k, axis=0)) for brains in (prints, fitted))
        found = look.correlations(_shifted(cells)), other.correlations(_fitted(cells, memory.template))
        in_turn.append(excess_of(np.maximum(*found)))
    z = np.arctanh(in_turn)
    assert memory.near == pytest.approx(np.quantile(in_turn, 0.95, method="weibull"), abs=1e-6)
    assert memory.copy == pytest.approx(max(*in_turn, np.tanh(z.mean() + 4.94 * z.std(ddof=1))), abs=1e-6)


def test_one_person_twice(train, heldout, memory):
    """A training case among the held-back ones would allow copies: it is seen and sets no limit."""
    few = dict(itertools.islice(heldout.items(), 11)) | {"again": fingerprint(noisy(head(5)), SPACING)}
    found = Memory.build(train, few)
    assert found.heldout_excess[-1] > 0.7 and np.allclose(found.heldout_excess[:11], memory.heldout_excess[:11])
    assert found.calibration.startswith("11 held-back cases (1 more seem")
    assert found.copy == pytest.approx(memory.copy, abs=0.05) and found.near == pytest.approx(memory.near, abs=0.05)


def test_fingerprint_invariances():
    """Intensity scale and offset, the place in the image, a stray voxel: the same fingerprint; mean 0, SD 1."""
    image = head(3)
    cells = fingerprint(image, SPACING)
    inside = cells != 0
    assert cells.dtype == np.float32 and cells.shape == (30, 36, 30)
    assert cells[inside].mean() == pytest.approx(0, abs=1e-5) and cells[inside].std() == pytest.approx(1, abs=1e-5)
    assert inside.sum() * 0.216 == pytest.approx((image > 0).sum() * 0.027, rel=0.02)  # ml
    for changed in (
        np.where(image != 0, 2.5 * image - 1000, 0),
        np.pad(image, ((4, 0), (0, 9), (2, 3))),
        np.where(np.arange(image.size).reshape(image.shape) == 5, 80, image),
    ):
        np.testing.assert_allclose(fingerprint(changed, SPACING), cells, atol=2e-3)
    np.testing.assert_allclose(fingerprint(image[::-1], SPACING), cells[::-1], atol=1e-4)
    assert not fingerprint(np.where(image > 0, 3, 0), SPACING).any()
    with pytest.raises(DataError):
        fingerprint(np.zeros(SHAPE), SPACING)


@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (1.5, 2.0, 4.0)])
def test_resolution(spacing):
    """One analytic brain on other grids gives the same fingerprint."""
    cells = fingerprint(head(3), SPACING)
    shape = tuple(round(n * 3 / s) for n, s in zip(SHAPE, spacing, strict=True))
    assert np.corrcoef(cells.ravel(), fingerprint(head(3, shape, spacing), spacing).ravel())[0, 1] > 0.98


def test_save_and_load(tmp_path, memory, honest):
    """What was saved answers alike; what is missing, damaged, foreign or of another version is refused."""
    path = tmp_path / "memory.npz"
    memory.save(path)
    loaded = Memory.load(path)
    for name, value in vars(memory).items():
        assert type(getattr(loaded, name)) is type(value)
        if name != "looks":
            np.testing.assert_array_equal(getattr(loaded, name), value)
    for kept, given in zip(itertools.chain(*loaded.looks), itertools.chain(*memory.looks), strict=True):
        np.testing.assert_array_equal(kept, given)
    assert loaded.nearest(fingerprint(head(2000), SPACING)) == honest[0]
    with np.load(path) as stored:
        content = dict(stored)
    bad, whole = tmp_path / "bad.npz", path.read_bytes()
    half = len(whole) // 2
    for write in (
        lambda: bad.write_bytes(whole[:5000]),
        lambda: bad.write_bytes(whole[:half] + bytes([255 - whole[half]]) + whole[half + 1 :]),
        lambda: np.savez(bad, **content | {"version": 99}),
        lambda: np.savez(bad, **content | {"surplus": 1}),
        lambda: np.savez(bad, something=np.zeros(3)),
        lambda: bad.write_bytes(b""),
        bad.unlink,
    ):
        write()
        with pytest.raises(StateError, match=r"bad\.npz"):
            Memory.load(bad)
    with pytest.raises(DataError):
        Memory.build(prints(1, 2), {})


@pytest.mark.parametrize(
    ("count", "n", "low", "high"),
    [(0, 20, 0, 0.16843), (5, 100, 0.01643, 0.11283), (20, 20, 0.83157, 1), (10, 20, 0.27196, 0.72804)],
)
def test_copy_rate(count, n, low, high):
    """Clopper-Pearson intervals from published tables; a correlation at the limit is not beyond it."""
    correlations = np.array([0.9] * count + [0.5] * (n - count))
    found, rate = copy_rate(correlations, 0.5)
    assert found == count and rate == pytest.approx((count / n, low, high), abs=6e-6)


def box_mask(centre, size=32, spacing=(2.0, 2.0, 2.0), shape=(96, 108, 84)):
    """A cube in mm about a place in the brain, and its brain."""
    grid = positions(shape, spacing)
    brain = sum((p / a) ** 2 for p, a in zip(grid, (70, 86, 70), strict=True)) <= 1
    mask = np.broadcast_to(True, shape)
    for p, c in zip(grid, centre, strict=True):
        mask = mask & (np.abs(p - c) < size / 2)
    return mask, brain.astype(np.float32), spacing


def test_masks():
    """Cubes of 32 mm: known volume, Dice 1 with the mirror image, 3/4 after 8 mm; small and empty ones."""
    place = mask_print(*box_mask((24, 8, -4)))
    assert place.dtype == bool and place.sum() * 64 == 32**3
    train = {"mirrored": mask_print(*box_mask((-24, 8, -4))), "moved": mask_print(*box_mask((24, 16, -4)))}
    assert nearest_mask(place, train) == ("mirrored", 1.0)
    del train["mirrored"]
    assert nearest_mask(place, train) == ("moved", pytest.approx(0.75))
    mask, brain, spacing = box_mask((24, 8, -4))
    moved = [np.roll(array, (5, -4, 3), (0, 1, 2)) for array in (mask, brain)]
    np.testing.assert_array_equal(mask_print(*moved, spacing), place)
    fine = mask_print(*box_mask((24, 8, -4), spacing=(1.0, 1.0, 4.0), shape=(192, 216, 42)))
    np.testing.assert_array_equal(fine, place)
    assert mask_print(*box_mask((24, 8, -4), 3)).sum() == 8  # an eighth of each
    empty = mask_print(np.zeros_like(mask), brain, spacing)
    assert not empty.any() and nearest_mask(empty, {"empty": empty})[1] == 0
    with pytest.raises(DataError):
        mask_print(mask, np.zeros_like(brain), spacing)


def lumps(count, seed):
    """Masks that are unlike each other: a few random balls each, in an image of 2 mm."""
    rng, grid = np.random.default_rng(seed), positions((64, 64, 64), (2.0, 2.0, 2.0))
    masks = {}
    for k in range(count):
        balls = [(rng.uniform(-20, 20, 3), rng.uniform(6, 16)) for _ in range(4)]
        masks[f"{seed}-{k}"] = np.any(
            [sum((p - c) ** 2 for p, c in zip(grid, centre, strict=True)) < r**2 for centre, r in balls], axis=0
        )
    return masks


def test_copied_tumours(tmp_path):
    """A training tumour is found wherever it lies, mirrored too; others are not; what is kept is read again."""
    spacing = (2.0, 2.0, 2.0)
    train, heldout, others = lumps(20, 1), lumps(12, 2), lumps(20, 3)
    train["none"] = np.zeros_like(next(iter(train.values())))
    prints = [{name: tumour_print(mask, spacing) for name, mask in some.items()} for some in (train, heldout)]
    memory = TumourMemory.build(*prints)
    assert len(memory.names) == 20 and memory.honest == 12 and memory.near < memory.copy
    memory.save(tmp_path / "tumours.npz")
    for known in (memory, TumourMemory.load(tmp_path / "tumours.npz")):
        for name in memory.names:
            moved = np.roll(train[name], (6, -4, 2), (0, 1, 2))
            for copied in (moved, moved[::-1]):
                found = known.nearest(tumour_print(copied, spacing))
                assert found.name == name and found.correlation > 0.99 and found.excess > known.copy
        excess = [known.nearest(tumour_print(mask, spacing)).excess for mask in others.values()]
        assert max(excess) < known.copy and np.mean(np.array(excess) > known.near) < 0.25
    few = TumourMemory.build(prints[0], {})
    assert few.honest == 20 and few.copy == pytest.approx(memory.copy, abs=0.15)
    with pytest.raises(DataError, match="2 training cases that have one"):
        TumourMemory.build(dict(list(prints[0].items())[:2]), {})
    with pytest.raises(StateError, match="remove and rebuild"):
        TumourMemory.load(tmp_path / "other.npz")


@pytest.mark.parametrize(("n_train", "n_heldout"), [(100, 30), (30, 100), (50, 50)])
def test_feature_ratio(n_train, n_heldout):
    """Median near 1 for vectors of one distribution whatever the sizes; 0 for copies, and for no others."""
    medians = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        samples, train, heldout = (rng.standard_normal((n, 4)) for n in (200, n_train, n_heldout))
        medians.append(np.median(feature_ratio(samples, train, heldout)))
    assert np.mean(medians) == pytest.approx(1, abs=0.04)
    samples[:50] = np.resize(train, (50, 4))
    ratios = feature_ratio(samples, train, heldout)
    assert (ratios[:50] < 1e-9).all() and (ratios[50:] > 0.05).all() and np.median(ratios) > 0.7


def test_feature_ratio_correction():
    """The closed form over all subsets against 4000 random ones, and against no correction at all."""
    rng = np.random.default_rng(3)
    samples, train, heldout = (rng.standard_normal((n, 4)) for n in (20, 100, 30))
    distance = lambda a, b: np.linalg.norm(a[:, None] - b[None], axis=2).min(axis=1)  # noqa: E731
    subsets = [distance(heldout, train[rng.permutation(100)[:30]]).mean() for _ in range(4000)]
    growth = np.mean(subsets) / distance(heldout, train).mean()
    plain = distance(samples, train) / distance(samples, heldout)
    assert growth > 1.2
    np.testing.assert_allclose(feature_ratio(samples, train, heldout), plain * growth, rtol=0.004)


def test_authenticity():
    """A case by hand; about 0.6 for the same distribution; 0 for copies and for the overly smooth."""
    train = np.array([[0.0], [1.0], [3.0]])
    assert authenticity(np.array([[0.4], [5.0], [6.0]]), train).tolist() == [False, False, True]  # .4 < 1; 2 = 2; 3 > 2
    values = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        train = rng.standard_normal((100, 16))
        values.append(authenticity(rng.standard_normal((100, 16)), train).mean())
    assert 0.55 < np.mean(values) < 0.7
    assert not authenticity(train + 1e-3, train).any()
    assert authenticity(0.2 * rng.standard_normal((100, 16)), train).mean() < 0.15
