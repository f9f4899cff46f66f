"""Deformed copies of training cases, against a ball of known size and place."""

from __future__ import annotations

import numpy as np
import pytest

from sbldm.run.folder import load_preset
from sbldm.training import deformation
from sbldm.training.deformation import copies_of_each, deformed, deformed_characteristics
from sbldm.tumour.characteristics import NAMES, measure, sphere_surface

SIZE, SPACING = np.array([60, 70, 50]), np.array([2.0, 2.0, 3.0])
FRAME = np.diag([-2.0, -2.0, 3.0, 1.0])  # voxels along L, P, S to mm along R, A, S from the middle of the grid
FRAME[:3, 3] = -FRAME[:3, :3] @ ((SIZE - 1) / 2)
CENTRE, RADIUS = np.array([12.0, -10.0, 8.0]), 14.0  # mm along L, P, S


@pytest.fixture(scope="module")
def head() -> np.ndarray:
    """A head with a radius of 45 mm, of waves 25 mm long, with a ball for a tumour."""
    mm = (np.indices(SIZE).T - (SIZE - 1) / 2) * SPACING
    image = np.where(np.linalg.norm(mm, axis=-1) < 45, 0.3 * np.sin(mm[..., 0] / 4), -1).T
    occupancy = np.clip(0.5 + (RADIUS - np.linalg.norm(mm - CENTRE, axis=-1)) / 2, 0, 1).T
    return np.stack([image, 2 * occupancy - 1]).astype(np.float32)


@pytest.mark.parametrize(
    ("asked", "cases", "copies"),
    [
        ({}, 10, 0),
        ({"deformed": 4}, 10, 4),
        ({"deformed": 4, "brains": 500}, 100, 4),
        ({"deformed": 4, "brains": 500}, 10, 49),
        ({"deformed": 4, "brains": 500}, 12, 41),
        ({"deformed": 4, "brains": 500}, 1000, 4),
        ({"brains": 500}, 1, 100),
    ],
)
def test_few_cases_have_more_copies(asked: dict[str, int], cases: int, copies: int) -> None:
    assert copies_of_each(load_preset("demo").diffusion.but(**asked), cases) == copies


def test_another_head(head: np.ndarray) -> None:
    """A function of the generator; its texture is as strong as before, and beside the head is nothing."""
    moved = deformed(head, SPACING, np.random.default_rng(3))
    assert moved.shape == head.shape and moved.dtype == np.float32 and abs(moved).max() <= 1
    np.testing.assert_array_equal(moved, deformed(head, SPACING, np.random.default_rng(3)))
    assert np.abs(moved - deformed(head, SPACING, np.random.default_rng(4))).mean() > 0.01
    inside, before = moved[0, 20:40, 25:45, 18:32], head[0, 20:40, 25:45, 18:32]
    assert inside.std() == pytest.approx(before.std(), rel=0.1) and np.abs(inside - before).mean() > 0.05
    corners = moved[:, [0, 0, -1, -1], [0, -1, 0, -1], [0, -1, 0, -1]]
    assert (corners == -1).all() and 0.8 < (moved[0] > -1).sum() / (head[0] > -1).sum() < 1.25


def test_nothing_asked_nothing_done(head: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without turn, scale and bend the case comes back, as splines pass through their knots."""
    for name in ("TURN", "SCALE", "BEND_MM"):
        monkeypatch.setattr(deformation, name, 0.0)
    np.testing.assert_allclose(deformed(head, SPACING, np.random.default_rng(0)), head, atol=1e-5)


def test_characteristics_of_a_scaled_tumour(head: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice as large in native voxels as on the working grid: what is known there grows and moves as the ball does."""
    for name in ("TURN", "BEND_MM"):
        monkeypatch.setattr(deformation, name, 0.0)
    monkeypatch.setattr(deformation, "SCALE", 0.15)
    rng = np.random.default_rng(5)
    rng.uniform(size=3)  # the turn
    factor = 1 / rng.uniform(0.85, 1.15, 3)
    moved = deformed(head, SPACING, np.random.default_rng(5))
    before = measure(head[1] > 0, FRAME)
    known = before * 1.1
    found = dict(zip(NAMES, deformed_characteristics(known, head[1] > 0, moved[1] > 0, FRAME), strict=True))
    assert found["volume_ml"] == pytest.approx(known[0] * factor.prod(), rel=0.02)
    centre = np.array([found[name] for name in ("x_mm", "y_mm", "z_mm")])
    shift = CENTRE * (factor - 1) * [-1, -1, 1]
    np.testing.assert_allclose(centre, known[3:6] + shift, atol=0.3)
    extents = np.array([found[name] for name in ("w_mm", "h_mm", "d_mm")])
    np.testing.assert_allclose(extents / known[6:], factor, atol=0.12)  # voxels counted whole
    least = sphere_surface(found["volume_ml"])
    assert found["sphericity"] == pytest.approx(least / found["surface_mm2"]) and found["sphericity"] <= 1


def test_a_tumour_that_the_grid_loses(head: np.ndarray) -> None:
    """Nothing is measured of it."""
    mask, none = head[1] > 0, np.zeros(SIZE, bool)
    values = measure(mask, FRAME)
    assert deformed_characteristics(values, mask, none, FRAME) is None
    assert deformed_characteristics(np.append(values, [40.0, 0.0]), mask, mask, FRAME)[9:].tolist() == [40, 0]
    assert deformed_characteristics(values, none, mask, FRAME) is None
