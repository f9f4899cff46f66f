"""Geometry and preparation: nothing moves, nothing is lost, every step knows the way back and can be run again."""

from __future__ import annotations

import gzip
import itertools
import json
import os
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import yaml
from scipy.spatial.transform import Rotation

from sbldm.cases.geometry import NativeGrid, WorkingGrid, brain_centre, from_image, from_means, to_image, to_native
from sbldm.cases.intensity import scale_intensity, to_scanner
from sbldm.cases.layouts import Source, find_cases
from sbldm.cases.lists import read_lists
from sbldm.cases.phantom import make_channels, write_phantoms
from sbldm.cases.pipeline import original_cases, prepare_run
from sbldm.cases.prepare import load_prepared, prepare_case, prepare_cases
from sbldm.run.errors import DataError, InputError, StateError
from sbldm.run.folder import Run, load_preset
from sbldm.run.preset import Data, Grid, Intensity, Preset
from sbldm.tumour.characteristics import NAMES

SHARED = Path(__file__).parents[2] / "shared/data"
COARSE = {"shape": (60, 60, 39), "spacing": 4.0}
FLAIR = {"channels": ["flair"], "labels": {"whole tumour": "all"}}
INTENSITY = Intensity(percentiles=[0.5, 99.8], floor=0.1)
HEAD = {"size": [48, 64, 40], "fov_mm": [168, 208, 160]}

# The body of the geometry tests, in mm along R, A, S of its own frame.
BRAIN, TUMOUR, RADIUS = np.array([28.0, 34.0, 24.0]), np.array([9.0, -7.0, 5.0]), 11.0
BODY = WorkingGrid((32, 36, 26), (64.0, 72.0, 52.0))

# Voxel axes as stored (columns point along R, A, S), spacing in mm, and a rotation of the scan in degrees.
LPS, RAS = np.diag([-1.0, -1.0, 1.0]), np.eye(3)
SAGITTAL = np.array([[0.0, 0.0, 1.0], [-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]])  # stored P, I, R
GRIDS = {
    "LPS 1 mm": (LPS, (1, 1, 1), (0, 0, 0)),
    "RAS 1 mm": (RAS, (1, 1, 1), (0, 0, 0)),
    "LPS 2 mm": (LPS, (2, 2, 2), (0, 0, 0)),
    "PIR 1 mm": (SAGITTAL, (1, 1, 1), (0, 0, 0)),
    "RAS 1 x 1 x 3 mm": (RAS, (1, 1, 3), (0, 0, 0)),
    "PIR 0.8 x 1.2 x 2 mm": (SAGITTAL, (0.8, 1.2, 2), (0, 0, 0)),
    "LPS oblique 1 mm": (LPS, (1, 1, 1), (12, -8, 17)),
    "PIR oblique 1.5 x 1 x 2 mm": (SAGITTAL, (1.5, 1, 2), (-10, 14, 6)),
}
grids = pytest.mark.parametrize(("axes", "spacing", "degrees"), GRIDS.values(), ids=GRIDS.keys())


def grid_of(axes: np.ndarray, spacing: tuple, degrees: tuple, half: np.ndarray = BRAIN + 8) -> tuple[tuple, np.ndarray]:
    """Shape and affine of a grid that covers `half` mm to each side of a point far from the origin."""
    turn = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    shape = tuple(int(n) for n in np.ceil(2 * np.abs(axes.T) @ half / spacing))
    affine = np.eye(4)
    affine[:3, :3] = turn @ axes @ np.diag(spacing)
    affine[:3, 3] = [31.7, -12.3, 84.1] - affine[:3, :3] @ ((np.array(shape) - 1) / 2 + [0.2, -0.3, 0.1])
    return shape, affine


def positions(shape: tuple, affine: np.ndarray, degrees: tuple) -> np.ndarray:
    """Millimetres `[X, Y, Z, 3]` of voxel centres from the middle of the body, along its R, A, S."""
    world = np.moveaxis(np.indices(shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3] - [31.7, -12.3, 84.1]
    return world @ Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()


def body(axes: np.ndarray, spacing: tuple, degrees: tuple) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A textured ellipsoid with a ball of tumour: image float32, labels uint8, affine."""
    shape, affine = grid_of(axes, spacing, degrees)
    p = positions(shape, affine, degrees)
    texture = 600 + 3 * p[..., 0] + 150 * np.sin(p[..., 1] / 9) + 100 * np.cos(p[..., 2] / 8)
    image = np.where(((p / BRAIN) ** 2).sum(-1) <= 1, texture, 0).astype(np.float32)
    return image, (((p - TUMOUR) ** 2).sum(-1) <= RADIUS**2).astype(np.uint8) * 2, affine


def write_case(root: Path, name: str, images: dict[str, np.ndarray], labels: np.ndarray, affine: np.ndarray) -> Path:
    """One case in the layout of BraTS 2018-2021; returns its folder."""
    (root / name).mkdir(parents=True, exist_ok=True)
    for part, array in (images | {"seg": labels}).items():
        nib.save(nib.Nifti1Image(array, affine), root / name / f"{name}_{part}.nii.gz")
    return root / name


def prepared(root: Path, grid: WorkingGrid = BODY, **case: Any) -> dict[str, Any]:
    """Write one case and prepare it."""
    write_case(root, "case", **case)
    source = Source.from_config(**FLAIR)
    return prepare_case(find_cases(root, source)[0], source, grid, INTENSITY)


def world_centre(weight: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Centre of mass in mm (RAS world)."""
    index = np.stack(np.nonzero(weight), axis=1)
    return affine[:3, :3] @ np.average(index, axis=0, weights=weight[tuple(index.T)].astype(float)) + affine[:3, 3]


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Modification time and bytes of every file."""
    return {
        str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in folder.rglob("*") if p.is_file()
    }


# Geometry


@grids
def test_image_and_array_and_affine(axes, spacing, degrees):
    """An array with its affine goes to SimpleITK and back; a voxel keeps its place in the world."""
    shape, affine = grid_of(axes, spacing, degrees)
    array = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    image = to_image(array, affine)
    back, back_affine = from_image(image)
    np.testing.assert_array_equal(back, array)
    np.testing.assert_allclose(back_affine, affine, atol=1e-9)
    lps = image.TransformIndexToPhysicalPoint((3, 5, 7))
    np.testing.assert_allclose(np.array(lps) * [-1, -1, 1], affine[:3] @ [3, 5, 7, 1], atol=1e-9)
    assert image.GetPixel(3, 5, 7) == array[3, 5, 7]
    native = NativeGrid.of(image)
    assert NativeGrid.from_state(json.loads(json.dumps(native.state()))) == native


@grids
def test_constant_and_linear_fields_survive(axes, spacing, degrees):
    """Inside the image a constant stays itself and a slope keeps its value at every place, to float32."""
    shape, affine = grid_of(axes, spacing, degrees)
    p = positions(shape, affine, degrees)
    slope = np.array([2.0, -3.0, 1.5])
    small = WorkingGrid((24, 27, 17), (50.0, 58.0, 38.0))  # not the spacing of any of the images
    for field in (np.full(shape, 7.25), 100 + p @ slope):
        image = sitk.DICOMOrient(to_image(field.astype(np.float32), affine), "LPS")
        centre = image.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in image.GetSize()])
        placed = small.placed(centre, image.GetDirection())
        at = positions(placed.size, placed.affine(), degrees)
        expected = np.full(small.size, 7.25) if field.flat[0] == field.flat[-1] == 7.25 else 100 + at @ slope
        np.testing.assert_allclose(small.resample(image, centre), expected, atol=2e-4)


def test_working_grid_is_centred():
    """The middle of the field of view lies on the centre, its voxels fill the field of view, axes run L, P, S."""
    grid = WorkingGrid.from_config([24, 32, 16], [168, 224, 152])
    assert grid.spacing == (7.0, 7.0, 9.5)
    placed = grid.placed([10.0, -20.0, 5.0], np.eye(3).ravel())
    lps = np.diag([-1, -1, 1]) @ placed.affine()[:3]
    np.testing.assert_allclose(lps @ [11.5, 15.5, 7.5, 1], [10, -20, 5])
    np.testing.assert_allclose(lps @ [-0.5, -0.5, -0.5, 1], [10 - 84, -20 - 112, 5 - 76])
    fine = grid.placed([10.0, -20.0, 5.0], np.eye(3).ravel(), (2, 1, 3))
    assert fine.size == (48, 32, 48)
    np.testing.assert_allclose(np.diag([-1, -1, 1]) @ fine.affine()[:3] @ [-0.5, -0.5, -0.5, 1], [-74, -132, -71])


def test_brain_centre_known():
    """Middle and extents of the box around the brain, in mm."""
    brain = np.zeros((20, 20, 20), bool)
    brain[3:9, 5, 10:12] = brain[4, 5:15, 10] = True
    centre, extents = brain_centre(brain, to_image(brain.astype(np.uint8), np.diag([-1.0, -2.0, 3.0, 1.0])))
    np.testing.assert_allclose(centre, [5.5, 19.0, 31.5])
    np.testing.assert_allclose(extents, [6, 20, 6])


@grids
def test_smooth_volume_goes_there_and_back(axes, spacing, degrees):
    """Native -> working -> native at 2 mm: waves of 50 mm and height 1 come back to 0.04 everywhere, at their place.

    Half a working voxel of shift would cost 0.12; the best match lies within 0.03 mm.
    """
    shape, affine = grid_of(axes, spacing, degrees)
    p = positions(shape, affine, degrees)

    def wave(at: np.ndarray) -> np.ndarray:
        return np.sin(at * (2 * np.pi / 50) + [0.3, 1.1, 2.0]).sum(-1)

    native = to_image(wave(p).astype(np.float32), affine)
    oriented = sitk.DICOMOrient(native, "LPS")
    centre = oriented.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in oriented.GetSize()])
    working = BODY.resample(oriented, centre)
    back = to_native(working, BODY.placed(centre, oriented.GetDirection()), NativeGrid.of(native), outside=-9.0)
    assert back.shape == shape
    inside = (np.abs(p) < np.array([64, 72, 52]) / 2 - 4).all(-1)
    assert np.abs(back - wave(p))[inside].max() < 0.04
    slopes = [(wave(p + shift) - wave(p - shift))[inside] / 0.2 for shift in 0.1 * np.eye(3)]
    shift = np.linalg.lstsq(np.stack(slopes, 1), (back - wave(p))[inside], rcond=None)[0]
    assert np.abs(shift).max() < 0.03
    far = (np.abs(p) > np.array([64, 72, 52]) / 2 + 2).any(-1)
    assert far.any() and (back[far] == -9.0).all()


@grids
def test_means_are_undone(axes, spacing, degrees):
    """Native -> working -> native by the smoothest volume with these means: waves of 30 mm come back to 0.02.

    Linear interpolation leaves 0.12 of them. What comes back has the means that it was made of, to 0.003.
    """
    shape, affine = grid_of(axes, spacing, degrees)
    p = positions(shape, affine, degrees)
    wave = np.sin(p * (2 * np.pi / 30) + [0.3, 1.1, 2.0]).sum(-1)
    native = to_image(wave.astype(np.float32), affine)
    oriented = sitk.DICOMOrient(native, "LPS")
    centre = oriented.TransformContinuousIndexToPhysicalPoint([(n - 1) / 2 for n in oriented.GetSize()])
    coarse = WorkingGrid((26, 29, 17), (65.0, 72.5, 51.0))  # 2.5 x 2.5 x 3 mm
    working, placed = coarse.resample(oriented, centre), coarse.placed(centre, oriented.GetDirection())
    back = from_means(working, placed, NativeGrid.of(native))
    assert back.shape == shape and back.dtype == np.float32
    inside = (np.abs(p) < np.array([65, 72.5, 51]) / 2 - 8).all(-1)
    assert np.abs(back - wave)[inside].max() < 0.02
    assert np.abs(to_native(working, placed, NativeGrid.of(native), 0) - wave)[inside].max() > 0.1
    again = coarse.resample(sitk.DICOMOrient(to_image(back, affine), "LPS"), centre)
    core = (slice(4, -4),) * 3
    assert np.abs(again - working)[core].max() < 0.003
    assert (back[(np.abs(p) > np.array([65, 72.5, 51]) / 2 + 2).any(-1)] == 0).all()


# One case


@grids
def test_tumour_keeps_volume_and_place(tmp_path, axes, spacing, degrees):
    """Summed occupancy is the volume of the native mask to 0.1 %, and its centre lies within 0.03 mm."""
    image, labels, affine = body(axes, spacing, degrees)
    result = prepared(tmp_path, images={"flair": image}, labels=labels, affine=affine)
    occupancy, working = result["occupancy"][0], NativeGrid.from_state(result["sidecar"]["working"])
    native_ml = np.count_nonzero(labels) * np.prod(spacing) / 1000
    assert occupancy.sum() / 255 * np.prod(working.spacing) / 1000 == pytest.approx(native_ml, rel=0.001)
    assert native_ml == pytest.approx(4 / 3 * np.pi * RADIUS**3 / 1000, rel=0.03)
    apart = world_centre(occupancy, working.affine()) - world_centre(labels, affine)
    assert np.linalg.norm(apart) < 0.03
    assert occupancy.max() == 255 and result["occupancy"].dtype == np.uint8


@grids
def test_sidecar_frame_and_characteristics(tmp_path, axes, spacing, degrees):
    """Characteristics are mm along R, A, S from the middle of the brain's box, whatever the order of the voxels."""
    image, labels, affine = body(axes, spacing, degrees)
    sidecar = prepared(tmp_path, images={"flair": image}, labels=labels, affine=affine)["sidecar"]
    index = np.nonzero(image)
    middle = affine[:3] @ [*((i.min() + i.max()) / 2 for i in index), 1]
    turn = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    expected = turn.T @ (world_centre(labels, affine) - middle)
    values = sidecar["characteristics"]
    assert tuple(values) == NAMES
    np.testing.assert_allclose([values[n] for n in ("x_mm", "y_mm", "z_mm")], expected, atol=0.08)
    np.testing.assert_allclose(expected, TUMOUR, atol=max(spacing) / 2)  # the body as it was meant
    np.testing.assert_allclose([values[n] for n in ("w_mm", "h_mm", "d_mm")], 2 * RADIUS, atol=max(spacing))
    assert values["volume_ml"] == pytest.approx(np.count_nonzero(labels) * np.prod(spacing) / 1000, rel=2e-3)
    extents = np.abs(axes) @ ([np.ptp(i) + 1 for i in index] * np.array(spacing))
    np.testing.assert_allclose(sidecar["brain_extents_mm"], extents, atol=2e-3)
    assert sidecar["cropped"] is False


@grids
def test_sidecar_restores_the_native_grid(tmp_path, axes, spacing, degrees):
    """Shape and affine of the file come back from the sidecar after JSON, and with them the image at its place."""
    image, labels, affine = body(axes, spacing, degrees)
    result = prepared(tmp_path, images={"flair": image}, labels=labels, affine=affine)
    sidecar = json.loads(json.dumps(result["sidecar"]))
    native, working = NativeGrid.from_state(sidecar["native"]), NativeGrid.from_state(sidecar["working"])
    stored = nib.load(tmp_path / "case/case_flair.nii.gz")
    assert native.size == stored.shape
    np.testing.assert_allclose(native.affine(), stored.affine, rtol=0, atol=1e-12)
    assert working.size == BODY.size and working.spacing == BODY.spacing

    low, high = sidecar["intensities"][0]
    units = to_scanner(from_means(result["image"][0], working, native), (low, high), INTENSITY)
    deep = ((positions(image.shape, affine, degrees) / (BRAIN - 5)) ** 2).sum(-1) <= 1
    assert np.abs(units - image)[deep].mean() < 0.005 * (high - low)
    mask = to_native(result["occupancy"][0] / 255, working, native, outside=0.0) > 0.5
    dice = 2 * np.count_nonzero(mask & (labels > 0)) / (np.count_nonzero(mask) + np.count_nonzero(labels))
    assert dice > 0.98


def test_bigger_than_the_field_of_view(tmp_path):
    """A brain that does not fit is said to be cropped."""
    image, labels, affine = body(*GRIDS["LPS 2 mm"])
    small = WorkingGrid((26, 36, 26), (52.0, 72.0, 52.0))
    assert (
        prepared(tmp_path, small, images={"flair": image}, labels=labels, affine=affine)["sidecar"]["cropped"] is True
    )


def test_background_is_exactly_zero(tmp_path):
    """A working voxel is 0 where no brain voxel lies within its reach and at least `floor` where all are brain."""
    image, labels, affine = body(*GRIDS["RAS 1 x 1 x 3 mm"])
    result = prepared(tmp_path, images={"flair": image}, labels=labels, affine=affine)
    working = NativeGrid.from_state(result["sidecar"]["working"])
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ working.affine()
    at = np.moveaxis(np.indices(working.size), 0, -1) @ lps[:3, :3].T + lps[:3, 3]
    at = at * [-1, -1, 1] - [31.7, -12.3, 84.1]
    reach = (np.array(working.spacing) + 2 * np.array([1, 1, 3])) / 2
    share = result["image"][0]
    outside = (((np.abs(at) - reach).clip(0) / (BRAIN + 0.01)) ** 2).sum(-1) > 1
    inside = (((np.abs(at) + reach) / BRAIN) ** 2).sum(-1) < 1
    assert outside.sum() > 5000 and inside.sum() > 1500
    assert (share[outside] == 0).all()
    assert share[inside].min() >= 0.1 - 1e-6 and share.max() <= 1 + 1e-6
    between = share[~outside & ~inside]
    assert ((between > 0) & (between < 0.1)).any()  # partial volume at the surface
    stored = share.astype(np.float16)  # as the file holds it
    assert (stored[outside] == 0).all()


def test_percentiles_become_floor_and_one():
    """Known answer on 1 ... 1001: both percentiles land on their ends, all between is linear, background is 0."""
    brain = np.ones((1001, 1, 1), bool)
    values = np.arange(1, 1002, dtype=np.float32)[:, None, None]
    scaled, limits = scale_intensity(values, brain, Intensity(percentiles=[10, 90], floor=0.1))
    assert limits == (101.0, 901.0)
    flat = scaled.ravel()
    np.testing.assert_allclose(flat[[0, 100, 500, 900, 1000]], [0.1, 0.1, 0.55, 1, 1], atol=1e-6)
    np.testing.assert_allclose(np.diff(flat[100:901]), 0.9 / 800, atol=1e-6)
    brain[500:] = False
    scaled, limits = scale_intensity(values, brain, Intensity(percentiles=[0, 100], floor=0.25))
    assert limits == (1.0, 500.0) and scaled.dtype == np.float32
    assert (scaled[500:] == 0).all() and scaled[0] == 0.25 and scaled[499] == 1


def test_absurd_voxel_changes_nothing(tmp_path):
    """One voxel of 612,366 moves the image by less than 0.01 away from it, and no intensity limit by more than 1 %."""
    image, labels, affine = body(*GRIDS["LPS 1 mm"])
    spoilt = image.copy()
    place = np.array(image.shape) // 2
    spoilt[tuple(place)] = 612_366
    clean, dirty = (
        prepared(tmp_path / name, images={"flair": array}, labels=labels, affine=affine)
        for name, array in (("clean", image), ("dirty", spoilt))
    )
    np.testing.assert_allclose(dirty["sidecar"]["intensities"], clean["sidecar"]["intensities"], rtol=0.01)
    assert dirty["image"].max() <= 1
    changed = np.abs(dirty["image"] - clean["image"])[0]
    assert np.count_nonzero(changed > 0.01) <= 8
    np.testing.assert_array_equal(dirty["occupancy"], clean["occupancy"])
    assert dirty["sidecar"]["characteristics"] == clean["sidecar"]["characteristics"]


def test_modalities_and_labels_through_data_alone(tmp_path):
    """Two channels and two labels are values of `data`: stacked in their order, each with its own tissue and limits."""
    images, labels, affine = make_channels([4, 1], **COARSE, channels=("flair", "t1ce"))
    write_case(tmp_path, "case", images, labels, affine)
    data = {"channels": ["t1ce", "flair"], "labels": {"core": ["necrotic", "enhancing"], "oedema": "oedema"}}
    grid = WorkingGrid.from_config(**HEAD)

    def prepare(values: dict[str, Any]) -> dict[str, Any]:
        source = Source.from_config(**values)
        return prepare_case(find_cases(tmp_path, source)[0], source, grid, INTENSITY)

    both, flair, t1ce = prepare(data), prepare(FLAIR), prepare(FLAIR | {"channels": ["t1ce"]})
    assert both["image"].shape == (2, *grid.size) and both["occupancy"].shape == (2, *grid.size)
    np.testing.assert_array_equal(both["image"], np.concatenate([t1ce["image"], flair["image"]]))
    assert both["sidecar"]["intensities"] == t1ce["sidecar"]["intensities"] + flair["sidecar"]["intensities"]
    voxels = both["occupancy"].sum((1, 2, 3)) / 255 * np.prod(grid.spacing) / 64
    np.testing.assert_allclose(voxels, [np.isin(labels, (1, 4)).sum(), (labels == 2).sum()], rtol=0.005)
    joined = both["occupancy"].astype(int).sum(0)
    assert np.abs(joined - flair["occupancy"][0]).max() <= 1  # labels share a voxel, they do not overlap
    core = both["sidecar"]["characteristics"].pop("core_percent")
    assert core == pytest.approx(100 * np.isin(labels, (1, 4)).sum() / (labels > 0).sum(), abs=1.5)
    assert both["sidecar"]["characteristics"] == flair["sidecar"]["characteristics"]


@pytest.mark.parametrize("seed", [1, 2])
def test_phantom_head(tmp_path, seed):
    """A head at 4 mm, like a real one: volume to 0.5 %, centre to 0.1 mm, the whole brain in the field of view."""
    images, labels, affine = make_channels([6, seed], **COARSE)
    grid = WorkingGrid.from_config(**HEAD)
    result = prepared(tmp_path, grid, images=images, labels=labels, affine=affine)
    working = NativeGrid.from_state(result["sidecar"]["working"])
    occupancy = result["occupancy"][0]
    assert occupancy.sum() / 255 * np.prod(grid.spacing) == pytest.approx(np.count_nonzero(labels) * 64, rel=0.005)
    assert np.linalg.norm(world_centre(occupancy, working.affine()) - world_centre(labels > 0, affine)) < 0.1
    assert not result["sidecar"]["cropped"]
    assert result["image"].min() == 0 and 0.9 < result["image"].max() <= 1


# Many cases


@pytest.fixture(scope="module")
def heads(tmp_path_factory) -> Path:
    """Six phantom heads at 4 mm in BraTS layout."""
    folder = tmp_path_factory.mktemp("heads")
    write_phantoms(folder, 6, seed=8, **COARSE, progress=False)
    return folder


def some(folder: Path, *numbers: int) -> list:
    cases = find_cases(folder, Source.from_config(**FLAIR))
    return [cases[number] for number in numbers]


def test_resumes_and_refuses_other_settings(heads, tmp_path):
    """Finished files are neither touched nor repeated; a lost volume comes back; other values are refused untouched."""
    folder = tmp_path / "prepared"
    first = prepare_cases(some(heads, 0), folder, Data(**FLAIR), Grid(**HEAD), INTENSITY, workers=1)
    before = contents(folder)
    assert sorted(before) == ["Phantom_000.json", "Phantom_000.npz", "characteristics.csv"]
    (folder / ".partial-123").mkdir()
    (folder / ".partial-123" / "Phantom_001.npz").write_bytes(b"half")
    second = prepare_cases(some(heads, 0, 1), folder, Data(**FLAIR), Grid(**HEAD), INTENSITY, workers=2)
    after = contents(folder)
    assert sorted(os.listdir(folder)) == sorted(
        ["characteristics.csv", *(f"Phantom_00{i}.{e}" for i, e in itertools.product((0, 1), ("json", "npz")))]
    )
    assert all(after[name] == before[name] for name in ("Phantom_000.json", "Phantom_000.npz"))
    assert second[:1] == first and [s["case"] for s in second] == ["Phantom_000", "Phantom_001"]
    table = (folder / "characteristics.csv").read_text().splitlines()
    assert table[0] == ",".join(("case", *NAMES)) and len(table) == 3
    assert table[2].split(",")[1:] == [str(v) for v in second[1]["characteristics"].values()]

    for other in ({"percentiles": [1, 99], "floor": 0.1}, {"percentiles": [0.5, 99.8], "floor": 0.2}):
        with pytest.raises(StateError, match=r"Phantom_000\.json: prepared with other settings"):
            prepare_cases(some(heads, 0, 1), folder, Data(**FLAIR), Grid(**HEAD), Intensity(**other), workers=1)
    with pytest.raises(StateError, match="other settings"):
        prepare_cases(
            some(heads, 0), folder, Data(**FLAIR), Grid(**HEAD | {"size": [32, 48, 20]}), INTENSITY, workers=1
        )
    assert contents(folder) == after

    (folder / "Phantom_001.npz").unlink()
    prepare_cases(some(heads, 0, 1), folder, Data(**FLAIR), Grid(**HEAD), INTENSITY, workers=1)
    with np.load(folder / "Phantom_001.npz") as arrays:
        assert arrays["image"].shape == (1, *HEAD["size"])
    assert contents(folder)["Phantom_000.npz"] == before["Phantom_000.npz"]

    volume, sidecar = load_prepared(folder, "Phantom_001")
    assert volume.shape == (2, *HEAD["size"]) and volume.dtype == np.float32
    assert volume.min() == -1 and volume[1].max() == 1 and volume[0].max() > 0.8
    assert sidecar == second[1]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"not an archive"),
        lambda path: path.write_bytes(path.read_bytes()[:-200]),
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(path.read_bytes()[:400] + bytes(64) + path.read_bytes()[464:]),
        lambda path: np.savez(path, image=np.zeros((1, 2, 2, 2))),
        lambda path: path.with_suffix(".json").write_text("{"),
        lambda path: path.with_suffix(".json").unlink(),
    ],
    ids=["gone", "empty", "text", "cut", "cut short", "flipped", "other arrays", "sidecar cut", "sidecar gone"],
)
def test_damaged_file(tmp_path, damage):
    """Every kind of damage is one sentence that names the file and what to do."""
    rng = np.random.default_rng(0)
    arrays = {"image": rng.normal(size=(1, 8, 8, 8)).astype(np.float16), "occupancy": np.zeros((1, 8, 8, 8), np.uint8)}
    np.savez_compressed(tmp_path / "case.npz", **arrays)
    grid = {"size": [8, 8, 8], "spacing": [1, 1, 1], "origin": [0, 0, 0], "direction": np.eye(3).ravel().tolist()}
    sidecar = {"case": "case", "content": "0", "native": grid, "working": grid, "intensities": [[0, 1]]}
    sidecar |= {"cropped": False, "characteristics": dict.fromkeys(NAMES, 1.0), "settings": {}}
    (tmp_path / "case.json").write_text(json.dumps(sidecar))
    assert load_prepared(tmp_path, "case")[0].shape == (2, 8, 8, 8)
    damage(tmp_path / "case.npz")
    with pytest.raises(StateError, match=r"case\.(npz|json): (is missing|damaged).*sbldm prepare") as caught:
        load_prepared(tmp_path, "case")
    assert "\n" not in str(caught.value)


# A whole run


@pytest.fixture
def tiny() -> Preset:
    """A preset on a coarse grid."""
    return load_preset("demo").but(name="tiny", grid=HEAD)


def test_run_end_to_end(heads, tmp_path, tiny, capsys):
    """Six good heads and a broken one: checked, split, prepared; a second call adds nothing; another preset cannot."""
    data = tmp_path / "data"
    data.mkdir()
    for folder in heads.iterdir():
        (data / folder.name).symlink_to(folder)
    (data / "Broken").mkdir()
    stored = (heads / "Phantom_000/Phantom_000_flair.nii.gz").read_bytes()
    (data / "Broken/Broken_flair.nii.gz").write_bytes(stored[: len(stored) // 2])
    (data / "Broken/Broken_seg.nii.gz").write_bytes(gzip.compress(b""))

    run = Run.at(tmp_path / "run")
    prepare_run(str(data), run, tiny, seed=3)
    assert "5 cases to train on, 1 held back" in capsys.readouterr().out
    lists = read_lists(run.folder)
    names = sorted(folder.name for folder in heads.iterdir())
    assert sorted(lists["train"] + lists["validation"]) == names and len(lists["validation"]) == 1
    assert json.loads((run.folder / "lists.json").read_text())["seed"] == 3
    rows = (run.folder / "preflight.csv").read_text().splitlines()
    assert rows[0] == "case,check,what,action,mend"
    assert len(rows) > 1 and all(row.startswith("Broken,unreadable,") and ",left out," in row for row in rows[1:])
    assert run.preset == tiny
    assert sorted(os.listdir(run.prepared)) == sorted(
        ["characteristics.csv", *(f"{name}.{ending}" for name in names for ending in ("json", "npz"))]
    )
    for name in names:
        sidecar = load_prepared(run.prepared, name)[1]
        mask = np.asanyarray(nib.load(heads / name / f"{name}_seg.nii.gz").dataobj) > 0
        assert sidecar["characteristics"]["volume_ml"] == pytest.approx(mask.sum() * 0.064, rel=5e-3)
        assert sidecar["settings"] == {part: getattr(tiny, part).state() for part in ("data", "grid", "intensity")}

    before = contents(run.folder)
    prepare_run(str(data), run, tiny, seed=3)
    after = contents(run.folder)
    assert {name: stored for name, (_, stored) in after.items()} == {
        name: stored for name, (_, stored) in before.items()
    }
    finished = [name for name in before if name.startswith("prepared/Phantom")]
    assert len(finished) == 12 and all(after[name] == before[name] for name in finished)

    with pytest.raises(StateError, match=r"preset\.yaml: prepared with the preset 'tiny'"):
        prepare_run(str(data), run, tiny.but(intensity={"percentiles": [1, 99], "floor": 0.1}), seed=3)
    with pytest.raises(DataError, match="--strict"):
        prepare_run(str(data), Run.at(tmp_path / "strict"), tiny, strict=True)
    assert not Run.at(tmp_path / "strict").prepared.exists()


def test_run_with_lists(heads, tmp_path, tiny):
    """CASES and VALIDATION_CASES decide; a name that is not there stops, one that stands in both is left out."""
    train, validation, wrong = tmp_path / "train.txt", tmp_path / "validation.txt", tmp_path / "wrong.txt"
    train.write_text("Phantom_003  # a comment\n\nPhantom_001\nPhantom_000\n")
    validation.write_text("Phantom_004\nPhantom_000\n")
    wrong.write_text("Phantom_001\nNobody\n")
    run = Run.at(tmp_path / "run")
    with pytest.raises(DataError, match="Nobody"):
        prepare_run(str(heads), run, tiny, cases=str(wrong))
    with pytest.raises(DataError, match="Nobody"):
        prepare_run(str(heads), run, tiny, cases=str(train), validation_cases=str(wrong))
    with pytest.raises(DataError, match="Nobody"):
        prepare_run(str(heads), run, tiny, validation_cases=str(wrong))
    with pytest.raises(InputError, match="--data is missing"):
        prepare_run("", run, tiny)
    assert not run.folder.exists()

    prepare_run(str(heads), run, tiny, cases=str(train), validation_cases=str(validation))
    lists = read_lists(run.folder)
    assert sorted(lists["train"]) == ["Phantom_001", "Phantom_003"] and lists["validation"] == ["Phantom_004"]
    rows = (run.folder / "preflight.csv").read_text().splitlines()
    assert (
        len(rows) == 2
        and rows[1].startswith("Phantom_000,two_lists,")
        and rows[1].endswith(",left out,name the case in one list alone")
    )
    assert {path.stem for path in run.prepared.glob("*.npz")} == {"Phantom_001", "Phantom_003", "Phantom_004"}
    with pytest.raises(StateError, match=r"lists\.json: this run holds other cases"):
        prepare_run(str(heads), run, tiny, cases=str(train))
    assert read_lists(run.folder) == lists


def test_changed_cases_are_prepared_anew(heads, tmp_path, tiny, capsys):
    """A corrected mask and another image are named and prepared anew, alone; not where a training used them."""
    data, moved = (Path(shutil.copytree(heads, tmp_path / name)) for name in ("data", "moved"))
    run = Run.at(tmp_path / "run")
    prepare_run(str(data), run, tiny)
    before, cases = contents(run.prepared), [original_cases(run, role) for role in ("train", "validation")]
    assert sum(map(len, cases)) == 6
    prepare_run(str(moved), run, tiny)  # equal files in another folder
    assert json.loads((run.folder / "lists.json").read_text())["data"] == str(moved)
    same = contents(run.prepared)
    assert all(same[name] == before[name] for name in before if name.startswith("Phantom"))

    (run.folder / "gate").mkdir()
    mask, image = moved / "Phantom_000/Phantom_000_seg.nii.gz", moved / "Phantom_001/Phantom_001_flair.nii.gz"
    for path, axis, number in ((mask, 2, np.uint8), (image, 0, np.float32)):
        stored = nib.load(path)
        nib.save(nib.Nifti1Image(np.roll(np.asarray(stored.dataobj), 1, axis).astype(number), stored.affine), path)
    role = "train" if "Phantom_000" in read_lists(run.folder)["train"] else "validation"
    with pytest.raises(DataError, match=r"Phantom_000_seg.* \(Phantom_000: mask\); put the old .*sbldm prepare"):
        original_cases(run, role)
    for used in ("autoencoder", "latents", "diffusion", "gan", "nnUNet_raw"):
        (run.folder / used).mkdir()
        said = rf"2 case\(s\) have changed .*000: mask, Phantom_001: image\), and .* \({used}/\); choose another --run"
        with pytest.raises(StateError, match=said):
            prepare_run(str(moved), run, tiny)
        (run.folder / used).rmdir()
    # A lost sidecar hides nothing from a run that was used: the last reading tells, and without it nothing does.
    (run.folder / "latents").mkdir()
    sidecar, last = run.prepared / "Phantom_000.json", run.folder / "files.json"
    known = sidecar.read_bytes(), last.read_bytes(), sidecar.stat()
    sidecar.unlink()
    with pytest.raises(StateError, match=r"2 case\(s\) have changed .*000: mask"):
        prepare_run(str(moved), run, tiny)
    last.unlink()
    with pytest.raises(StateError, match=r"Phantom_000\.json: nothing tells whether this case is still the one"):
        prepare_run(str(moved), run, tiny)
    sidecar.write_bytes(known[0])
    last.write_bytes(known[1])
    os.utime(sidecar, ns=(known[2].st_atime_ns, known[2].st_mtime_ns))
    (run.folder / "latents").rmdir()
    assert contents(run.prepared) == same
    capsys.readouterr()
    prepare_run(str(moved), run, tiny)
    assert "(Phantom_000: mask, Phantom_001: image): prepared anew." in capsys.readouterr().out
    after = contents(run.prepared)
    assert {name for name in same if after[name] != same[name]} == {
        "characteristics.csv",
        *(f"Phantom_00{k}.{ending}" for k in (0, 1) for ending in ("npz", "json")),
    }
    old, new = (json.loads(files["Phantom_000.json"][1]) for files in (same, after))
    assert new["characteristics"]["z_mm"] == pytest.approx(old["characteristics"]["z_mm"] + 4, abs=0.1)
    assert new["content"] == old["content"] and new["mask"] != old["mask"]
    assert not (run.folder / "gate").exists() and original_cases(run, role)
    shutil.copy(data / "Phantom_002/Phantom_002_seg.nii.gz", moved / "Phantom_002/Phantom_002_seg.nii.gz")
    assert original_cases(run, "train") and original_cases(run, "validation")  # written anew, but the same


def test_runs_of_an_older_version(heads, tmp_path, tiny, capsys):
    """Sidecars without a hash of the mask: prepared anew, or only compared by image where a training used them."""
    run = Run.at(tmp_path / "run")
    prepare_run(str(heads), run, tiny)
    for path in run.prepared.glob("*.json"):
        sidecar = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in sidecar.items() if k not in ("image", "mask", "place")}))
    before = contents(run.prepared)
    (run.folder / "gan").mkdir()
    prepare_run(str(heads), run, tiny)
    assert "6 case(s) were prepared by an older version" in (said := capsys.readouterr().out)
    assert "only their images were compared" in said
    assert {n for n, v in contents(run.prepared).items() if v != before[n]} == {"characteristics.csv"}
    (run.folder / "gan").rmdir()
    prepare_run(str(heads), run, tiny)
    assert "prepared anew" in capsys.readouterr().out
    assert all("mask" in json.loads(path.read_text()) for path in run.prepared.glob("*.json"))


def test_cases_from_before_there_were_shares(heads, tmp_path, tiny, capsys):
    """Of several labels, without their shares: prepared anew, or left with the nine where a training used them."""
    run = Run.at(tmp_path / "run")
    labels = {"necrotic": "necrotic", "oedema": "oedema", "enhancing": "enhancing"}
    preset = tiny.but(data=tiny.data.state() | {"labels": labels})
    prepare_run(str(heads), run, preset)
    measured = {path: json.loads(path.read_text()) for path in run.prepared.glob("*.json")}
    for path, sidecar in measured.items():
        shares = [sidecar["characteristics"].pop(name) for name in ("core_percent", "enhancing_percent")]
        assert 0 <= shares[1] <= shares[0] <= 100
        path.write_text(json.dumps(sidecar))
    (run.folder / "gan").mkdir()
    prepare_run(str(heads), run, preset)
    assert (
        "6 case(s) were prepared by an older version, which measured no shares of tissues: requests of this run know"
        in (capsys.readouterr().out)
    )
    assert "percent" not in (run.prepared / "characteristics.csv").read_text()
    (run.folder / "gan").rmdir()
    prepare_run(str(heads), run, preset)
    assert "no shares of tissues: prepared anew" in capsys.readouterr().out
    assert all("core_percent" in json.loads(path.read_text())["characteristics"] for path in measured)


def test_run_keeps_its_preset(tmp_path, tiny):
    """The kept preset reads back equal through YAML, and a changed number anywhere in it is noticed."""
    run = Run.at(tmp_path / "run")
    with pytest.raises(StateError, match="sbldm prepare"):
        _ = run.preset
    run.save_preset(tiny)
    assert run.preset == tiny and yaml.safe_load(run.preset_file.read_text())["preset"] == tiny.state()
    run.check_preset(Preset.of(tiny.state()))
    changed = tiny.state()
    changed["diffusion"]["schedule"]["steps"] += 1
    with pytest.raises(StateError, match="choose another --run"):
        run.check_preset(Preset.of(changed))


# Real cases


REAL = sorted(path.name for path in (SHARED / "brats_1mm").glob("BraTS*"))


@pytest.mark.skipif(not REAL, reason="the real 1 mm cases (shared/data/brats_1mm) are not here")
@pytest.mark.parametrize("number", [0, pytest.param(slice(1, None), marks=pytest.mark.slow)], ids=["one", "all"])
def test_real_native_case(number):
    """240x240x155 at 1 mm comes back from the sidecar; the mask keeps its volume to 0.2 % and its centre to 0.1 mm."""
    source, preset = Source.from_config(**FLAIR), load_preset("small")
    grid = WorkingGrid.from_config(**dict(preset.grid))
    for case in find_cases(SHARED / "brats_1mm", source, np.atleast_1d(REAL[number]).tolist()):
        result = prepare_case(case, source, grid, preset.intensity)
        native, working = (NativeGrid.from_state(result["sidecar"][key]) for key in ("native", "working"))
        stored = nib.load(case.mask)
        assert native.size == stored.shape == (240, 240, 155)
        np.testing.assert_allclose(native.affine(), stored.affine, rtol=0, atol=1e-9)
        np.testing.assert_allclose(native.spacing, 1, atol=1e-9)
        labels = np.asanyarray(stored.dataobj) > 0
        occupancy = result["occupancy"][0]
        volume = occupancy.sum() / 255 * np.prod(grid.spacing)
        assert volume == pytest.approx(np.count_nonzero(labels), rel=0.002)
        assert np.linalg.norm(world_centre(occupancy, working.affine()) - world_centre(labels, stored.affine)) < 0.1
        assert not result["sidecar"]["cropped"]
        assert to_native(occupancy / 255, working, native, 0.0).shape == stored.shape
