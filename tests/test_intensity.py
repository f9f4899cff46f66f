"""In what intensities pairs are written: the same picture from data in any units, whole numbers that hold it well."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest
from conftest import call, copy_run

from sbldm.cases.geometry import NativeGrid
from sbldm.cases.identity import Identity
from sbldm.cases.intensity import (
    SPREAD,
    describe_written,
    scale_intensity,
    to_scanner,
    to_unit,
    whole_numbers,
    written_by,
    written_ranges,
)
from sbldm.cases.lists import read_lists
from sbldm.cases.prepare import load_prepared
from sbldm.metrics.volumes import evaluation_grid, to_volume
from sbldm.run.folder import Run
from sbldm.run.preset import Intensity
from sbldm.synthesis import finish_pair
from sbldm.synthesis.copypaste import _Training
from sbldm.training.cases import measure_cases

PERCENTILES = (0.5, 99.8)
# Factor and offset of the phantoms' scanner units (percentiles about 100 and 450), and whether these are kept.
UNITS = {
    "scanner units": (1.5, 0, True),
    "e-9": (1e-9, 0, False),
    "e-3": (1e-3, 0, False),
    "e3": (1e3, 0, False),
    "e5": (1e5, 0, False),
    "z-scored": (1 / 120, -3.4021, False),
    "offset far below 0": (1, -5000, False),
    "to 255": (0.25, 0, False),
    "brighter, still good": (8, 0, True),
}


def in_units(image: np.ndarray, factor: float, offset: float) -> np.ndarray:
    """A scan in other units, background 0."""
    return np.where(image != 0, image * np.float64(factor) + offset, 0).astype(np.float32)


@pytest.fixture(scope="module", params=UNITS.values(), ids=UNITS)
def scanned(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, prepared_run: Path, phantom_cases: Path
) -> tuple[Run, Path, bool]:
    """The prepared phantoms as scanned in other units: the run, its cases, and whether their units are kept."""
    factor, offset, kept = request.param
    folder = tmp_path_factory.mktemp("units")
    run = copy_run(prepared_run, folder)
    for name in read_lists(run)["train"]:
        source, target = phantom_cases / name, folder / "cases" / name
        target.mkdir(parents=True)
        (target / f"{name}_seg.nii.gz").symlink_to(source / f"{name}_seg.nii.gz")
        file = nib.load(source / f"{name}_flair.nii.gz")
        image = in_units(np.asarray(file.dataobj), factor, offset)
        nib.save(nib.Nifti1Image(image, file.affine), target / f"{name}_flair.nii.gz")
        path = run / "prepared" / f"{name}.json"
        sidecar = json.loads(path.read_text())
        limits = np.percentile(image[image != 0], PERCENTILES).tolist()
        labels = np.asarray(nib.load(target / f"{name}_seg.nii.gz").dataobj) > 0
        identity = Identity.of(image[None], labels, file.affine)
        path.write_text(json.dumps(sidecar | {"intensities": [limits]} | identity.state()))
    return Run.at(run), folder / "cases", kept


def check_picture(image: np.ndarray, usual: np.ndarray) -> None:
    """The picture that data in usual units give, in whole numbers with enough grey levels, hardly any clipped."""
    brain = usual > 0
    assert image.dtype == np.int16 and np.array_equal(image > 0, brain) and not image[~brain].any()
    assert np.corrcoef(image[brain].astype(float), usual[brain].astype(float))[0, 1] > 0.999
    assert len(np.unique(image[brain])) > 200
    assert np.isin(image[brain], (1, np.iinfo(np.int16).max)).mean() < 0.005


def test_pairs_of_a_generator(scanned: tuple[Run, Path, bool], prepared_run: Path) -> None:
    """What a model decodes is the same picture, whatever its training cases were scanned in."""
    run, _, kept = scanned
    lists = read_lists(run.folder)
    volume, sidecar = load_prepared(run.prepared, lists["train"][0])
    native, working = (NativeGrid.from_state(sidecar[key]) for key in ("native", "working"))

    def finished(constants: dict) -> np.ndarray:
        model = SimpleNamespace(preset=run.preset, native=native, working=working, constants=constants)
        return finish_pair(volume, model).image[0]

    constants = measure_cases(run, lists)
    assert constants["written"] == [None if kept else list(SPREAD)]
    usual = finished(measure_cases(str(prepared_run), lists))
    check_picture(finished(constants), usual)
    old = {key: value for key, value in constants.items() if key != "written"}
    assert np.array_equal(finished(old), finished(constants))


def test_copy_paste(scanned: tuple[Run, Path, bool], prepared_run: Path) -> None:
    """The same for what is pasted, and with the receiver's percentiles where those of a generator's pairs lie."""
    run, cases, kept = scanned
    training, usual = _Training(run, str(cases)), _Training(Run.at(prepared_run), "")
    for seed in (0, 3):
        (image, labels, record), (same, others, like) = training.draw(seed), usual.draw(seed)
        assert record["parents"] == like["parents"] and np.array_equal(labels, others)
        check_picture(image[0], same[0])
        untouched, _ = training.read(record["parents"].split(";")[1])
        if not kept:
            found = np.percentile(untouched[untouched > 0], PERCENTILES)
            np.testing.assert_allclose(found, SPREAD, atol=1)


def test_preparation_and_evaluation(phantom_cases: Path) -> None:
    """Neither sees the units: prepared volumes, and those that are scored and judged."""
    file = nib.load(next(phantom_cases.glob("*/*_flair.nii.gz")))
    texture = np.random.default_rng(0).uniform(-0.5, 0.5, file.shape)  # the phantoms are whole numbers
    image = np.asarray(file.dataobj) + np.where(np.asarray(file.dataobj) > 0, texture, 0)
    grid = evaluation_grid((7.0, 7.0, 9.5))
    prepared, _ = scale_intensity(
        image.astype(np.float32), image > 0, Intensity(percentiles=list(PERCENTILES), floor=0.1)
    )
    scored = to_volume("", image.astype(np.float32), None, file.affine, grid).image
    assert np.unique(prepared).size > 200 and np.unique(scored).size > 200
    for factor, offset, _ in UNITS.values():
        other = in_units(image, factor, offset)
        found, limits = scale_intensity(other, image > 0, Intensity(percentiles=list(PERCENTILES), floor=0.1))
        np.testing.assert_allclose(found, prepared, atol=2e-3)
        assert np.ptp(limits) == pytest.approx(factor * np.ptp(np.percentile(image[image > 0], PERCENTILES)), rel=1e-2)
        np.testing.assert_allclose(to_volume("", other, None, file.affine, grid).image, scored, atol=2e-3)


def test_shoulder() -> None:
    """Linear up to the upper percentile, at the same slope beyond, below 1 always; undone up to 1.35 times as much."""
    intensity = Intensity(percentiles=[0, 80], floor=0.1, shoulder=0.1)
    values = np.r_[np.linspace(0, 1, 801), np.linspace(1, 3, 200)].reshape(-1, 1, 1)
    values = np.insert(values, 0, -0.0, axis=0)
    brain = np.ones(values.shape, bool)
    scaled, limits = scale_intensity(values, brain, intensity)
    low, high = limits
    assert low == 0 and high == pytest.approx(1, abs=2e-3)
    unit = values / high
    below = unit <= 1
    np.testing.assert_allclose(scaled[below], 0.1 + 0.8 * unit[below], atol=1e-6)
    over = unit[~below] - 1
    np.testing.assert_allclose(scaled[~below], 0.9 + 0.1 * over / (over + 0.125), atol=5e-6)  # over ends at 2
    assert scaled.max() < 0.995
    np.testing.assert_allclose(to_scanner(scaled, limits, intensity), values.clip(0, 1.35 * high), rtol=1e-4, atol=1e-6)
    # What no real case has: a decoder's 1 and more are as bright as usual, its 0 lies below the lower percentile.
    assert to_scanner(np.array([1.0, 7.0]), (100, 1000), intensity) == pytest.approx([100 + 900 * 1.35] * 2)
    assert to_scanner(np.array([0.0, 0.1, 0.9]), (100, 1000), intensity) == pytest.approx([-12.5, 100, 1000])
    clipped, limits = scale_intensity(values, brain, intensity.but(shoulder=0))
    assert clipped.max() == 1 and to_scanner(clipped, limits, intensity.but(shoulder=0)).max() == pytest.approx(high)


def test_decided_for_all_cases_channel_by_channel() -> None:
    """One case that scanner units do not hold decides for its channel, and for no other."""
    good, dark, bright = (30.0, 900.0), (0.4, 900.0), (30.0, 20000.0)
    assert written_ranges([[good, good]] * 3) == [None, None]
    assert written_ranges([[good, good], [good, dark], [good, good]]) == [None, list(SPREAD)]
    assert written_ranges([[bright, good], [good, good]]) == [list(SPREAD), None]
    assert written_ranges([[(1, 257)]]) == [None] and written_ranges([[(1, 256)]]) == [list(SPREAD)]
    assert written_ranges([[(1, 101)], [(1, 300)], [(1, 300)]]) == [None]
    assert written_ranges([[(1, 100)], [(1, 300)], [(1, 300)]]) == [list(SPREAD)]
    assert written_by({"intensities": [(-1.0, 3.0)]}) == [list(SPREAD)] == written_by({"written": [list(SPREAD)]})
    words = describe_written([None, list(SPREAD)], ["flair", "t1"])
    assert words["flair"] == "scanner units" and "100 and 1000" in words["t1"]


def test_whole_numbers() -> None:
    """Brain is 1 at least and fits, background is 0; a constant is scaled to 0."""
    image = np.array([[[-5.0, 0.2, 0.7, 3.5, 1e6, 9.0]]])
    brain = np.array([[[True, True, True, True, True, False]]])
    assert whole_numbers(image, brain).tolist() == [[[1, 1, 1, 4, 32767, 0]]]
    assert to_unit(np.array([2.0, 3.0, 4.0]), 2, 4).tolist() == [0, 0.5, 1]
    assert to_unit(np.full(3, 7.0), 7, 7).tolist() == [0, 0, 0]


def test_written_down(tmp_path: Path, prepared_run: Path) -> None:
    """In the settings of a dataset and in its datasheet."""
    run = copy_run(prepared_run, tmp_path)
    done = call("copypaste", "--run", run, "--n", 1)
    assert done.returncode == 0, done.stderr
    folder = run / "nnUNet_raw" / "Dataset502_COPYPASTE"
    assert json.loads((folder / "synthesis.json").read_text())["intensities"] == {"flair": "scanner units"}
    sheet = (folder / "datasheet.md").read_text()
    assert "- Intensities of FLAIR: scanner units." in sheet and "mean 0 and SD 1" in sheet
