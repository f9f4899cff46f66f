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

from sbldm.cases import inspection
from sbldm.cases.identity import Identity
from sbldm.cases.inspection import Finding, inspect_case
from sbldm.cases.layouts import Source, find_cases, read_arrays
from sbldm.cases.preflight import preflight, print_table
from sbldm.run.errors import DataError, InputError

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


@pytest.mark.parametrize("shape", [(*SHAPE, 1, 2), (*SHAPE, 2), SHAPE[:2]])
def test_not_3d(data, shape):
    save(flair(data), np.random.default_rng(0).integers(1, 9, shape).astype(np.int16))
    assert_left_out(data, "dimensions")


def test_mask_not_3d(data):
    save(seg(data), np.stack([tumour()] * 2, -1))
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
    with pytest.raises(DataError, match="--strict") as caught:
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
    monkeypatch.setattr(inspection, "SAMPLE", 500)
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


# --- plausible sizes ------------------------------------------------------------------------------------------------


def both(root: Path, array: np.ndarray, mask: np.ndarray, scale: float = 1.0, edit: Callable | None = None) -> None:
    """Replace image and mask of the bad case, its affine scaled."""
    affine = AFFINE @ np.diag([scale, scale, scale, 1])
    save(flair(root), array, affine, edit)
    save(seg(root), mask, affine, edit)


def noise_air(root: Path) -> None:
    noise = np.random.default_rng(1).integers(0, 9, SHAPE)
    noise[:4] = 0  # filled up with zeros on one side, as after a registration
    save(flair(root), np.where(brain() > 0, brain(), noise).astype(np.int16))


def constant_air(value: float) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        array = brain().astype(np.float32)
        array[array == 0] = value
        save(flair(root), array)

    return spoil


def whole_head(root: Path) -> None:
    """A ball of 99 mm, 4.1 l, as with skull and neck."""
    grid = np.indices((40, 40, 40)) - 19.5
    texture = np.random.default_rng(2).integers(200, 600, (40, 40, 40))
    mask = np.zeros((40, 40, 40), np.uint8)
    mask[18:23, 18:23, 18:23] = 2
    both(root, np.where((grid**2).sum(0) < 16.5**2, texture, 0).astype(np.int16), mask)


def stray_voxel(root: Path) -> None:
    array = np.zeros((24, 24, 60), np.int16)
    array[..., :24], array[0, 0, 59] = brain(), 300
    mask = np.zeros(array.shape, np.uint8)
    mask[..., :24] = tumour()
    both(root, array, mask)


def mask_of(array: np.ndarray) -> Callable[[Path], None]:
    return lambda root: save(seg(root), array)


def one_voxel() -> np.ndarray:
    array = np.zeros(SHAPE, np.uint8)
    array[12, 12, 12] = 2
    return array


def specks(root: Path) -> None:
    """A fine grid, a speck in every eighth voxel."""
    grid = np.indices((60, 60, 60)) - 30
    inside = (grid**2).sum(0) < 25**2
    texture = np.random.default_rng(3).integers(200, 600, inside.shape)
    mask = np.zeros(inside.shape, np.uint8)
    mask[::2, ::2, ::2] = 2
    both(root, (inside * texture).astype(np.int16), mask * inside, 0.4)


def few_slices(count: int, thick: float) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        first = 12 - count // 2
        part = np.s_[..., first : first + count]
        affine = AFFINE @ np.diag([1, 1, thick / 6, 1])
        save(flair(root), brain()[part], affine)
        save(seg(root), tumour()[part], affine)

    return spoil


def undeclared(header):
    header["qform_code"] = header["sform_code"] = 0


@pytest.mark.parametrize(
    ("spoil", "checks", "words"),
    [
        (noise_air, ["background"], "its background is not 0"),
        (constant_air(-1), ["background"], "its background is not 0, but for 0% of the corners"),
        (constant_air(1e-3), ["background"], "its background is not 0"),
        (whole_head, ["brain_volume"], "holds 4,030 ml that are not 0; a brain has 400 to 2,500 ml"),
        (lambda root: both(root, brain(), tumour(), 0.7), ["brain_volume"], "holds 306.7 ml"),
        (stray_voxel, ["brain_extent"], "takes 132 x 132 x 342 mm; a brain has 60 to 220 mm"),
        (lambda root: both(root, brain(), tumour(), 10), ["units"], "has voxels of 60 x 60 x 60 mm"),
        (lambda root: both(root, brain(), tumour(), 1000), ["units"], "has voxels of 6e+03 x 6e+03 x 6e+03 mm"),
        (lambda root: both(root, brain(), tumour(), 1e-3), ["units"], "has voxels of 0.006 x 0.006 x 0.006 mm"),
        (
            lambda root: both(root, brain(), tumour(), 2),
            ["spacing", "brain_volume", "brain_extent"],
            "has voxels of 12 x 12 x 12 mm; 0.2 to 10 mm are plausible",
        ),
        (few_slices(9, 10.0), ["slices"], "has 9 slice(s) along one axis; 10 are the least"),
        (few_slices(20, 5.0), [], ""),
        (mask_of((brain() > 0) * np.uint8(2)), ["tumour_size"], "its tumour is 100% of the brain (894 ml)"),
        (mask_of(one_voxel()), ["tumour_size"], "its tumour has 1 voxel(s), 0.22 ml; 8 voxels"),
        (specks, ["tumour_parts"], "parts; up to 500 are plausible"),
        (lambda root: save(flair(root), (brain() > 0).astype(np.int16)), ["flat"], "take 1 value(s) beside 0"),
        (
            lambda root: save(flair(root), np.int16(300) * (brain() > 0) + tumour()),
            ["flat"],
            "take 4 value(s) beside 0",
        ),
    ],
)
def test_plausible_sizes(data, spoil, checks, words):
    """Each is a finding of its own, left out by default; what the user says is plausible is used."""
    spoil(data)
    cases = find_cases(data, Source())
    _, findings, _ = preflight([*cases], Source(), workers=1, accept=())
    bad = [finding for finding in findings if finding.check in ("units", *checks)]
    assert sorted({finding.check for finding in findings}) == sorted(checks) and len(bad) == len(findings)
    assert all(finding.action == "left out" and finding.case == "bad" for finding in findings)
    if checks:
        assert words in findings[0].what and findings[0].what.startswith("bad_")
    doubtful = set(checks) <= set(inspection.DOUBTS)
    if doubtful:
        assert all(finding.mend.endswith(f"; or --accept bad:{finding.check}") for finding in findings)
        usable, findings, _ = preflight(cases, Source(), workers=1, strict=True, accept=["bad"])
        assert [case.name for case in usable] == ["bad", "good"]
        assert {finding.action for finding in findings} <= {"accepted"}
    else:
        with pytest.raises(
            InputError, match=r"^--accept bad: bad_flair\.nii\.gz: .*this cannot be accepted: write the"
        ):
            preflight(cases, Source(), workers=1, accept=["bad"])


def test_sizes_in_a_header_are_looked_at_first(data):
    """Dimensions that no memory can hold, or below 0, are told before anything is unpacked."""

    def huge(header):
        header["dim"][1:4] = 32767

    def negative(header):
        header["dim"][1] = -24

    for edit, words in ((huge, "32767 x 32767 x 32767 voxels"), (negative, "-24 x 24 x 24 voxels")):
        save(flair(data), brain(), edit=edit)
        found = inspect_case(find_cases(data, Source())[0], Source()).findings
        assert [finding.check for finding in found] == ["unreadable"] and words in found[0].what


def test_channels_that_are_not_registered(data):
    """One grid, but the brain lies elsewhere in the second channel: a doubt, which can be overruled."""
    for name, shift in (("bad", 6), ("good", 0)):
        save(data / name / f"{name}_t1.nii.gz", np.roll(brain(), shift, axis=1))
    source = Source(("flair", "t1"))
    assert run(data, source) == (["good"], [("bad", "registration", "left out")])
    found = inspect_case(find_cases(data, source)[0], source).findings
    assert "t1 overlaps flair by a DSC of" in found[0].what and "--accept bad:registration" in found[0].mend


def test_two_channels_that_are_one(data):
    for name in ("bad", "good"):
        save(data / name / f"{name}_t1.nii.gz", brain())
    (data / "bad/bad_t1.nii.gz").write_bytes(flair(data).read_bytes())
    source = Source(("flair", "t1"))
    assert run(data, source) == (["good"], [("bad", "channels", "left out")])
    assert run(data, source, accept=["bad:channels"])[0] == ["bad", "good"]


def test_orientation_that_is_not_declared(data):
    """Front and back may be swapped where others say which is which; where none does, what is assumed is told."""
    both(data, brain(), tumour(), edit=undeclared)
    cases, findings, _ = preflight(find_cases(data, Source()), Source(), workers=1)
    assert [case.name for case in cases] == ["good"] and [f.check for f in findings] == ["orientation"]
    assert "taken to run L, A, S, where other cases declare L, P, S" in findings[0].what
    assert run(data, accept=["all:orientation"]) == (["bad", "good"], [("bad", "orientation", "accepted")])
    for path, array in ((flair(data, "good"), brain()), (data / "good/good_seg.nii.gz", tumour())):
        save(path, array, edit=undeclared)
    assert run(data) == (["bad", "good"], [(name, "orientation", "kept") for name in ("bad", "good")])
    las = AFFINE * [[1], [-1], [1], [1]]
    for path, array in ((flair(data, "good"), brain()), (data / "good/good_seg.nii.gz", tumour())):
        save(path, array, las)
    assert run(data) == (["bad", "good"], [("bad", "orientation", "kept")])


@pytest.mark.parametrize(
    ("accept", "message"),
    [
        ("bed", "--accept bed: no such case; the nearest is bad"),
        ("bad:tumor_size", "--accept bad:tumor_size: no such check; the nearest is tumour_size"),
        ("bad:", "--accept bad:: no such check"),
        ("all", "--accept all: no such case; for one check in all cases write all:CHECK"),
        ("bad:nan", "--accept bad:nan: a case with nan cannot be used, so not accepted; replace NaN"),
    ],
)
def test_accept_names_what_there_is(data, accept, message):
    with pytest.raises(InputError, match=message):
        run(data, accept=[accept])


def test_accept_one_check_or_case(data, capsys):
    """Another doubt about an accepted case counts on; the table says how to mend or accept what was left out."""
    both(data, np.int16(300) * (brain() > 0), one_voxel())
    found = [("bad", "flat", "left out"), ("bad", "tumour_size", "accepted")]
    capsys.readouterr()
    assert run(data, accept=["good", "bad:tumour_size"]) == (["good"], found)
    printed = capsys.readouterr().out
    assert "flat: put the MRI in place of what looks like a mask; or --accept bad:flat." in " ".join(printed.split())
    assert "tumour_size:" not in printed
    assert run(data, accept=["bad:flat", "bad:tumour_size"])[0] == ["bad", "good"]


def test_same_brain_in_another_orientation(data):
    """The first usable case stays, whatever the axes in which the copy is stored, or the border around it."""
    image = nib.load(flair(data))
    turned = image.as_reoriented(nib.orientations.ornt_transform(*map(nib.orientations.axcodes2ornt, ("LPS", "SRA"))))
    array = np.pad(np.asarray(turned.dataobj), 3)
    mask = np.pad(np.asarray(nib.load(seg(data)).dataobj), 3)
    save(flair(data, "good"), array, turned.affine)
    save(data / "good/good_seg.nii.gz", mask, turned.affine)
    assert run(data) == (["bad"], [("good", "duplicate", "left out")])


def test_identity_of_a_case(data):
    """What is prepared and what is checked have one identity; a change of each part is told apart."""
    source, case = Source(), find_cases(data, Source())[0]

    def identity() -> Identity:
        return inspect_case(case, source).identity

    before = identity()
    assert before == Identity.of(*read_arrays(case, source)) and before.changes(before.state()) == []
    save(flair(data), np.asarray(nib.load(flair(data)).dataobj).astype(np.float32))  # another number type
    assert identity() == before
    save(seg(data), np.where(tumour() == 1, 2, tumour()))  # other tissues of the same whole tumour
    assert identity() == before
    save(seg(data), np.roll(tumour(), 1, axis=0))
    assert identity().changes(before.state()) == ["mask"] and identity().content == before.content
    moved = AFFINE.copy()
    moved[:3, 3] += 1
    save(seg(data), tumour(), moved)
    save(flair(data), np.asarray(nib.load(flair(data)).dataobj), moved)
    assert identity().changes(before.state()) == ["affine"]
    save(flair(data), brain(), moved)
    assert identity().changes(before.state()) == ["image", "affine"]
    assert identity().changes({"content": before.content}) == ["image"]  # from before there were masks in it
    assert before.changes({"content": before.content}) == before.changes({}) == []
