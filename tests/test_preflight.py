"""Each row of the pre-flight, with a file really written that way beside a good case that survives."""

from __future__ import annotations

import gzip
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sbldm.cases import preflight as module
from sbldm.cases.layouts import Source, find_cases
from sbldm.cases.preflight import Finding, inspect_case, preflight, print_table
from sbldm.errors import DataError

SHARED = Path(__file__).parents[2] / "shared/data"
SHAPE = (24, 24, 24)
AFFINE = np.array([[-6.0, 0, 0, 72], [0, -6, 0, 72], [0, 0, 6, -72], [0, 0, 0, 1]])
_seeds = itertools.count()


def brain() -> np.ndarray:
    """A ball of radius 10 (60 mm, 0.9 l) with a texture of its own each time, int16, background 0."""
    grid = np.indices(SHAPE) - 12
    texture = np.random.default_rng(next(_seeds)).integers(200, 600, SHAPE)
    return np.where((grid**2).sum(0) < 100, texture, 0).astype(np.int16)


def tumour() -> np.ndarray:
    """A box of oedema with an enhancing and a necrotic part, uint8."""
    array = np.zeros(SHAPE, np.uint8)
    array[9:15, 9:15, 9:15], array[10:13, 10:13, 10:13], array[11, 11, 11] = 2, 4, 1
    return array


def save(path: Path, array: np.ndarray, affine: np.ndarray = AFFINE, edit: Callable | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, affine)
    image.set_qform(affine, 1)
    image.set_sform(affine, 1)
    nib.save(image, path)
    if edit:  # in the stored bytes: saving through nibabel would mend the header
        stored = gzip.decompress(path.read_bytes())
        header = nib.Nifti1Header(stored[:348], check=False)
        edit(header)
        path.write_bytes(gzip.compress(header.binaryblock + stored[348:]))


@pytest.fixture
def data(tmp_path) -> Path:
    """Two good cases, `bad` (to be spoilt) and `good`."""
    for name in ("bad", "good"):
        save(tmp_path / name / f"{name}_flair.nii.gz", brain())
        save(tmp_path / name / f"{name}_seg.nii.gz", tumour())
    return tmp_path


def run(root: Path, source: Source | None = None, **options) -> tuple[list[str], list[tuple[str, str, str]]]:
    source = source or Source()
    cases, findings, identities = preflight(find_cases(root, source), source, workers=1, **options)
    assert list(identities) == [case.name for case in cases]
    return [case.name for case in cases], [(finding.case, finding.check, finding.action) for finding in findings]


def flair(root: Path, name: str = "bad") -> Path:
    return root / name / f"{name}_flair.nii.gz"


def seg(root: Path) -> Path:
    return root / "bad/bad_seg.nii.gz"


def assert_left_out(root: Path, check: str, source: Source | None = None) -> None:
    assert run(root, source) == (["good"], [("bad", check, "left out")])


def test_good_cases(data, capsys):
    assert run(data) == (["bad", "good"], [])
    assert capsys.readouterr().out == "Pre-flight: 2 of 2 cases used, nothing wrong.\n"


@pytest.mark.parametrize("which", [flair, seg])
def test_missing(data, which):
    which(data).unlink()
    assert_left_out(data, "missing")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def lose_checksum(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-6])


def flip_bits(path: Path) -> None:
    stored = bytearray(path.read_bytes())
    stored[-5] ^= 0xFF  # in the length and checksum: the voxels themselves still inflate
    path.write_bytes(stored)


def cut_inside(path: Path) -> None:
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())[:-1000]))


def no_nifti(path: Path) -> None:
    path.write_bytes(gzip.compress(b"something else" * 100))


@pytest.mark.parametrize(
    "spoil", [cut, lose_checksum, flip_bits, cut_inside, no_nifti, lambda path: path.write_bytes(b"")]
)
@pytest.mark.parametrize("which", [flair, seg])
def test_unreadable_or_truncated(data, which, spoil):
    spoil(which(data))
    assert_left_out(data, "unreadable")


def test_truncated_uncompressed(data):
    flair(data).unlink()
    path = data / "bad/bad_flair.nii"
    save(path, brain())
    cut(path)
    assert_left_out(data, "unreadable")


def test_colour_image(data):
    rgb = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    nib.save(nib.Nifti1Image(np.ones(SHAPE, rgb), AFFINE), flair(data))
    assert_left_out(data, "unreadable")


@pytest.mark.parametrize("shape", [(*SHAPE, 1), (*SHAPE, 2), SHAPE[:2]])
def test_not_3d(data, shape):
    save(flair(data), np.random.default_rng(0).integers(1, 9, shape).astype(np.int16))
    assert_left_out(data, "dimensions")


def test_mask_not_3d(data):
    save(seg(data), tumour()[..., None])
    assert_left_out(data, "dimensions")


@pytest.mark.parametrize("volumes", [None, 3, 5])
def test_not_4d_or_wrong_channel_number(tmp_path, volumes):
    modality = {"0": "FLAIR", "1": "T1w", "2": "t1gd", "3": "T2w"}
    labels = {"0": "background", "1": "edema", "2": "non-enhancing tumor", "3": "enhancing tumour"}
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": modality, "labels": labels}))
    mask = np.minimum(tumour(), 3)
    for name, number in (("bad", volumes), ("good", 4)):
        array = brain() if number is None else np.stack([brain() for _ in range(number)], -1)
        save(tmp_path / f"imagesTr/{name}.nii.gz", array)
        save(tmp_path / f"labelsTr/{name}.nii.gz", mask)
    assert_left_out(tmp_path, "dimensions", Source(("t1ce", "flair")))


def test_shape_mismatch(data):
    save(seg(data), tumour()[:-1])
    assert_left_out(data, "shape")


def test_affine_mismatch(data):
    moved = AFFINE.copy()
    moved[0, 3] += 3
    save(seg(data), tumour(), moved)
    assert_left_out(data, "grid")


def test_rounding_of_affines_is_no_mismatch(data):
    save(seg(data), tumour(), AFFINE + 1e-5 * np.eye(4)[:, [1, 2, 0, 3]] * [1, 1, 1, 0])
    assert run(data) == (["bad", "good"], [])


def test_mismatch_between_channels(data):
    moved = AFFINE.copy()
    moved[2, 3] += 18
    save(data / "bad/bad_t1.nii.gz", brain(), moved)
    save(data / "good/good_t1.nii.gz", brain())
    assert_left_out(data, "grid", Source(("flair", "t1")))


def nan_affine(header):
    header["srow_x"][3] = np.nan


def nan_qform(header):
    header["qoffset_x"] = np.nan


def singular(header):
    header["srow_y"] = header["srow_x"]


def zero_column(header):
    for row in ("srow_x", "srow_y", "srow_z"):
        header[row][1] = 0


def zero_sform(header):
    for row in ("srow_x", "srow_y", "srow_z"):
        header[row] = 0


def skewed(header):
    header["srow_x"][1] = 0.2


def wrong_spacing(header):
    header["pixdim"][1] = 2
    header["qform_code"] = 0


def turned_qform(header):
    header.set_qform(AFFINE @ np.diag([-1, 1, 1, 1]), 1)


def impossible_qform(header):
    header["quatern_b"] = 2


def unknown_type(header):
    header["datatype"] = 3


def moved_qform(header):
    header["qoffset_z"] += 2


@pytest.mark.parametrize(
    ("edit", "check"),
    [
        (nan_affine, "affine"),
        (nan_qform, "qform_sform"),
        (singular, "affine"),
        (zero_column, "affine"),
        (wrong_spacing, "affine"),
        (zero_sform, "qform_sform"),
        (turned_qform, "qform_sform"),
        (moved_qform, "qform_sform"),
        (impossible_qform, "qform_sform"),
        (unknown_type, "unreadable"),
    ],
)
@pytest.mark.parametrize("which", [flair, seg])
def test_header(data, which, edit, check):
    save(which(data), brain() if which is flair else tumour(), edit=edit)
    assert_left_out(data, check)


def test_skewed_axes(data):
    def edit(header):
        skewed(header)
        header["qform_code"] = 0

    for path, array in ((flair(data), brain()), (seg(data), tumour())):
        save(path, array, edit=edit)
    names, findings = run(data)
    assert names == ["good"] and set(findings) == {("bad", "affine", "left out")}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
def test_nan_or_inf_voxels(data, value):
    array = brain().astype(np.float64)
    array[12, 12, 12] = value
    save(flair(data), array)
    assert_left_out(data, "nan")


@pytest.mark.parametrize("value", [0, 300])
def test_constant_image(data, value):
    save(flair(data), np.full(SHAPE, value, np.int16))
    names, findings = run(data)
    assert names == ["good"] and findings[0] == ("bad", "constant", "left out")


@pytest.mark.parametrize("value", [612_366, -612_366])
def test_outlier_is_kept_and_said(data, value, capsys):
    array = brain().astype(np.int32)
    array[12, 12, 12] = value
    save(flair(data), array)
    assert run(data) == (["bad", "good"], [("bad", "outlier", "kept")])
    printed = capsys.readouterr().out
    assert "612,366" in printed and "2 of 2 cases used" in printed


def test_empty_mask(data):
    save(seg(data), 0 * tumour())
    assert_left_out(data, "empty_mask")


def test_mask_without_the_tissue_asked_for(data):
    save(seg(data), np.minimum(tumour(), 2))
    assert_left_out(data, "empty_mask", Source.from_config(["flair"], {"enhancing": ["enhancing"]}))


@pytest.mark.parametrize("value", [7, 1.5, -1, np.nan])
def test_unknown_or_non_integer_label(data, value):
    array = tumour().astype(np.float32)
    array[10, 10, 10] = value
    save(seg(data), array)
    assert_left_out(data, "labels")


def test_mask_outside_brain(data):
    save(seg(data), np.roll(tumour(), 8, axis=0))
    assert_left_out(data, "outside_brain")


def test_a_few_tumour_voxels_outside_are_accepted(data):
    array = brain()
    array[9, 9, 9:13] = 0
    save(flair(data), array)
    assert run(data) == (["bad", "good"], [])


def test_duplicate_by_content(data):
    """The first usable case stays, whatever the number type and file ending of the copy."""
    image = nib.load(flair(data))
    flair(data, "good").unlink()
    save(data / "good/good_flair.nii", np.asarray(image.dataobj).astype(np.float32))
    assert run(data) == (["bad"], [("good", "duplicate", "left out")])
    seg(data).unlink()
    assert run(data) == (["good"], [("bad", "missing", "left out")])


def test_same_case_in_two_lists(data):
    lists = {"train": ["good", "bad"], "validation": ["bad"]}
    assert run(data, lists=lists) == (["good"], [("bad", "two_lists", "left out")])


def test_strict(data, capsys):
    assert run(data, strict=True) == (["bad", "good"], [])
    seg(data).unlink()
    with pytest.raises(DataError, match="STRICT") as caught:
        run(data, strict=True)
    assert caught.value.exit_code == 3
    assert "1 of 2 cases used" in capsys.readouterr().out


def test_no_usable_case(data):
    seg(data).unlink()
    flair(data, "good").write_bytes(b"")
    with pytest.raises(DataError, match=r"none of the 2 cases .*bad_seg\.nii\.gz"):
        run(data)


def test_nothing_is_repaired(data):
    save(flair(data), brain(), edit=zero_sform)
    before = {path: path.read_bytes() for path in data.rglob("*.nii.gz")}
    run(data)
    assert {path: path.read_bytes() for path in data.rglob("*") if path.is_file()} == before


def test_table(capsys):
    print_table([Finding("a [b]", "outlier", "x", "kept"), Finding("c", "nan", "y"), Finding("c", "labels", "z")], 5)
    printed = capsys.readouterr().out
    assert all(
        words in printed for words in ("what is wrong", "what is done", "a [b]", "left out", "4 of 5 cases used")
    )


def test_processes_find_the_same(data):
    seg(data).unlink()
    cases = find_cases(data, Source())
    assert preflight(cases, Source(), workers=2) == preflight(cases, Source(), workers=1)


def test_large_grid_is_sampled(monkeypatch, data):
    """The percentile of a sample says the same as that of all voxels."""
    array = brain().astype(np.int32)
    array[12, 12, 12] = 612_366
    save(flair(data), array)
    monkeypatch.setattr(module, "SAMPLE", 500)
    found = inspect_case(find_cases(data, Source())[0], Source()).findings
    assert [finding.check for finding in found] == ["outlier"]


def test_real_cases_all_pass():
    root = SHARED / "brats_1mm"
    if not root.is_dir():
        pytest.skip("no real BraTS cases beside this repository (shared/data/brats_1mm)")
    usable, findings, _ = preflight(find_cases(root, Source()), Source())
    assert len(usable) == 10 and findings == []


def test_background_that_is_not_zero(data):
    """An image whose corners are all filled is not skull-stripped, or was normalised with its background."""
    save(flair(data), brain() + np.int16(7))
    assert run(data) == (["good"], [("bad", "background", "left out")])
