"""Agreement of masks with predictions on boxes of known overlap, and of two samples with known tails and overlap."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from sbldm.cases.layouts import Source, find_cases
from sbldm.evaluation.fit import agreement, compare_fit, inner_regions
from sbldm.run.errors import DataError, StateError
from sbldm.run.files import write_nifti

AFFINE = np.diag([-1, -1, 2, 1.0])
SHAPE = (40, 40, 20)


def box(start: tuple[int, int, int], size: tuple[int, int, int], value: int = 1) -> np.ndarray:
    mask = np.zeros(SHAPE, np.uint8)
    mask[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = value
    return mask


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Cases a to d in BraTS layout (FLAIR and mask), and predictions of the first three, of other labels."""
    cube, other = ((5, 10, 5), (20, 20, 10)), ((9, 10, 5), (20, 20, 10))
    masks = {"a": box(*cube), "b": box(*cube, 4), "c": box((0, 0, 0), (0, 0, 0))}
    predictions = {"a": box(*cube, 3), "b": box(*other), "c": box((0, 0, 0), (0, 0, 0))}
    for name, mask in (masks | {"d": box(*cube)}).items():
        write_nifti(tmp_path / "cases" / name / f"{name}_flair.nii.gz", np.ones(SHAPE, np.int16), AFFINE)
        write_nifti(tmp_path / "cases" / name / f"{name}_seg.nii.gz", mask, AFFINE)
    for name, mask in predictions.items():
        write_nifti(tmp_path / "out" / f"{name}.nii.gz", mask, AFFINE + 1e-5)
    return tmp_path / "cases", tmp_path / "out"


def test_agreement_of_boxes(folders, capsys):
    """Equal bodies, one shifted by a fifth of its length (DSC .8, HD95 4 mm), a pair of empty ones, and one missing."""
    data, out = folders
    rows = agreement(out, find_cases(data, Source()), Source())
    assert [row["case"] for row in rows] == ["a", "b", "c"]
    assert "1 of 4 cases have no prediction" in capsys.readouterr().out
    equal, shifted, empty = ({key: value for key, value in row.items() if key != "case"} for row in rows)
    volume = 20 * 20 * 10 * 2 / 1000
    assert equal == {"dsc": 1, "nsd_1mm": 1, "hd95_mm": 0, "reference_ml": volume, "predicted_ml": volume}
    assert (shifted["dsc"], shifted["hd95_mm"]) == (pytest.approx(0.8), pytest.approx(4))
    assert shifted["nsd_1mm"] == pytest.approx(0.6, abs=0.05)  # two faces of 400 mm2 and 4 / 20 of four others are off
    assert (shifted["reference_ml"], shifted["predicted_ml"]) == (volume, volume)
    assert empty == {"dsc": 1, "nsd_1mm": 1, "hd95_mm": 0, "reference_ml": 0, "predicted_ml": 0}


def test_regions_have_a_dsc_of_their_own(folders):
    """Label 1 (core) and oedema: the core is half found, the whole tumour is; a single label has no regions."""
    data, out = folders
    source = Source.from_config(["flair"], {"core": ["necrotic", "enhancing"], "oedema": "oedema"})
    assert inner_regions(source) == {"tumour core": [1]} and inner_regions(Source()) == {}
    mask, predicted = box((5, 10, 5), (20, 20, 10), 2), box((5, 10, 5), (20, 20, 10), 2)
    mask[5:15, 10:30, 5:15], predicted[10:20, 10:30, 5:15] = 1, 1
    (case,) = find_cases(data, source, ["a"])
    write_nifti(case.mask, mask, AFFINE)
    write_nifti(out / "a.nii.gz", predicted, AFFINE)
    (row,) = agreement(out, [case], source)
    assert (row["dsc"], row["dsc tumour core"]) == (1, pytest.approx(0.5))
    write_nifti(case.mask, box((5, 10, 5), (20, 20, 10), 2), AFFINE)
    write_nifti(out / "a.nii.gz", box((5, 10, 5), (20, 20, 10), 2), AFFINE)
    assert agreement(out, [case], source)[0]["dsc tumour core"] == 1, "neither has any"


def test_faults_name_the_file(folders):
    """Another shape, another affine, a strange label, half a file, and no prediction at all."""
    data, out = folders
    cases = find_cases(data, Source(), ["a"])
    file = out / "a.nii.gz"
    for mask, affine, message in (
        (box((5, 5, 5), (4, 4, 4))[:-1], AFFINE, r"a\.nii\.gz: has shape \(39, 40, 20\)"),
        (box((5, 5, 5), (4, 4, 4)), np.diag([1, 1, 2, 1.0]), r"a\.nii\.gz: its affine"),
    ):
        write_nifti(file, mask, affine)
        with pytest.raises(DataError, match=message):
            agreement(out, cases, Source())
    file.write_bytes(file.read_bytes()[:60])
    with pytest.raises(DataError, match=r"out/a\.nii\.gz: cannot be read"):
        agreement(out, cases, Source())
    write_nifti(file, box((5, 5, 5), (4, 4, 4)), AFFINE)
    write_nifti(cases[0].mask, box((5, 5, 5), (4, 4, 4), 9), AFFINE)
    with pytest.raises(DataError, match=r"a_seg\.nii\.gz: unknown label 9"):
        agreement(out, cases, Source())
    with pytest.raises(StateError, match="prediction of none of the 1 cases"):
        agreement(out / "elsewhere", cases, Source())


def test_equal_samples():
    """Five of 100 lie beyond each percentile, everything overlaps, and both means are the same."""
    scores = np.random.default_rng(0).beta(8, 2, 100)
    found = compare_fit(scores, scores[::-1], seed=3)
    assert found["low_tail"].value == found["high_tail"].value == pytest.approx(0.05)
    assert found["overlap"].value == found["overlap"].high == 1
    assert found["synthetic_mean"].value == pytest.approx(found["heldout_mean"].value)
    assert all(low <= value <= high for value, low, high in found.values())


def test_perfect_pairs_are_too_easy():
    """Pairs above every real case: all in the high tail, at least .025^(1/100) of their like (Clopper & Pearson)."""
    real = np.random.default_rng(1).uniform(0.6, 0.95, 30)
    found = compare_fit([1.0] * 100, real)
    assert found["high_tail"] == (1, pytest.approx(0.025**0.01), 1)
    assert found["low_tail"] == (0, 0, pytest.approx(1 - 0.025**0.01))
    assert found["overlap"].value == 0 and found["synthetic_mean"] == (1, 1, 1)


def test_wrong_masks_are_the_low_tail():
    """Of 100 pairs 30 have masks of somewhere else: the low tail is their share and 5 % of the others, mirrored too."""
    random = np.random.default_rng(2)
    real, wrong, right = random.normal(0.8, 0.05, 2000), random.normal(0.2, 0.05, 300), random.normal(0.8, 0.05, 700)
    synthetic = np.concatenate([wrong, right])
    found, mirrored = compare_fit(synthetic, real), compare_fit(1 - synthetic, 1 - real)
    assert found["low_tail"].value == pytest.approx(0.3 + 0.7 * 0.05, abs=0.02)
    assert found["low_tail"].low < 0.335 < found["low_tail"].high and found["tail_floor"].high < 0.08
    assert found["high_tail"].value == pytest.approx(0.7 * 0.05, abs=0.02)
    assert mirrored["high_tail"].value == found["low_tail"].value
    assert mirrored["overlap"] == pytest.approx(found["overlap"])


@pytest.mark.parametrize("heldout", [19, 30])
def test_pairs_like_the_real_cases_reach_the_floors(heldout):
    """Their tails hold 5 % however few cases are held back, and 19 in 20 tails, overlaps and bands are as foretold."""
    random, tails, overlaps, bands = np.random.default_rng(heldout), [], [], []
    for _ in range(200):
        found = compare_fit(random.uniform(size=100), random.uniform(size=heldout))
        tails += [found["low_tail"].value, found["high_tail"].value]
        overlaps.append(found["overlap"].value)
        bands.append(found["overlap"].high == 1)
    tail, overlap = found["tail_floor"], found["overlap_floor"]
    assert tail.value == 0.05 and np.mean(tails) == pytest.approx(0.05, abs=0.006)
    assert np.mean([tail.low <= share <= tail.high for share in tails]) == pytest.approx(0.95, abs=0.03)
    assert np.mean(overlaps) == pytest.approx(overlap.value, abs=0.01)
    assert np.mean([overlap.low <= value <= overlap.high for value in overlaps]) == pytest.approx(0.95, abs=0.035)
    assert np.mean(bands) == pytest.approx(0.95, abs=0.035)


def test_the_least_of_few_is_not_their_5th_percentile():
    """Of five cases the least is taken, and a sixth of all pairs like them fall below it."""
    floor = compare_fit(np.linspace(0, 1, 50), [0.1, 0.3, 0.5, 0.7, 0.9])["tail_floor"]
    assert floor.value == pytest.approx(1 / 6)
    assert floor.high == pytest.approx(1 - 0.025**0.2, abs=0.04)  # the least of five uniform numbers


def test_overlap_of_shifted_normals():
    """1 - D = 2 Phi(-shift / 2); its band is Smirnov's 1.358 sqrt(1/N + 1/M)."""
    random = np.random.default_rng(4)
    found = compare_fit(random.normal(1, 1, 3000), random.normal(0, 1, 2000))["overlap"]
    expected = 2 * stats.norm.cdf(-0.5)
    assert found.value == pytest.approx(expected, abs=0.03)
    assert found.high - found.value == pytest.approx(1.3581 * (1 / 3000 + 1 / 2000) ** 0.5, rel=1e-4)
    assert found.low < expected < found.high


def test_nothing_to_compare():
    """Empty samples and scores that are no numbers."""
    for wrong in ([], [0.5, np.nan]):
        with pytest.raises(ValueError, match="finite"):
            compare_fit(wrong, [0.5])
        with pytest.raises(ValueError, match="finite"):
            compare_fit([0.5], wrong)
