"""Files that are nearly where they should be: read when it is plain what they are, else refused with the mend."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from sbldm.cases.inspection import DOUBTS, inspect_case
from sbldm.cases.layouts import Source, find_cases, read_arrays
from sbldm.cases.volumes import load_image
from sbldm.run.errors import DataError, InputError

AFFINE = np.array([[-2.0, 0, 0, 40], [0, -1, 0, 30], [0, 0, 3, -20], [0, 0, 0, 1]])
SHAPE = (6, 5, 4)
FLAIR = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
SEG = (FLAIR % 3).astype(np.uint8)


def save(path: Path, array: np.ndarray = FLAIR, affine: np.ndarray = AFFINE) -> Path:
    """Write any kind of image file, through the library that owns it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if ".nii" in path.name.lower():
        nib.save(nib.Nifti1Image(array, affine), path)
        return path
    image = sitk.GetImageFromArray(array.T)
    image.SetSpacing(np.abs(np.diag(affine)[:3]).tolist())
    image.SetOrigin((affine[:3, 3] * (-1, -1, 1)).tolist())
    small = path.with_name(path.name.lower())
    sitk.WriteImage(image, str(small))
    return small.rename(path)


def names(root: Path) -> list[str]:
    """Names of the cases, each of which must hold `FLAIR` and `SEG` in their place."""
    cases = find_cases(root, Source())
    for case in cases:
        image, labels, affine = read_arrays(case, Source())
        np.testing.assert_array_equal(image[0], FLAIR)
        np.testing.assert_array_equal(labels, SEG > 0)
        np.testing.assert_allclose(affine, AFFINE)
    return [case.name for case in cases]


def dataset(root: Path, **content: object) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    labels = {"background": 0, "edema": 1, "enhancing tumor": 2}
    described = {"channel_names": {"0": "FLAIR"}, "labels": labels}
    (root / "dataset.json").write_text(json.dumps(described | content))
    return root


@pytest.mark.parametrize(
    ("flair", "seg"),
    [
        ("a_FLAIR.nii.gz", "a_SEG.nii.gz"),
        ("a_flair.NII.GZ", "a_seg.Nii"),
        ("A_Flair.nii", "A_Seg.nii"),
        ("a_fla.nii.gz", "a_segm.nii.gz"),
        ("a-flair.nii.gz", "a-seg.nii.gz"),
        ("a_t2-flair.nii.gz", "a_seg.nii.gz"),
        ("a_T2_FLAIR.nii.gz", "a_tumor_segmentation.nii.gz"),
        ("a-t2f.nii.gz", "a_seg.nii.gz"),
        ("a.flair.nii.gz", "a.label.nii.gz"),
        ("flair.nii.gz", "seg.nii.gz"),
        ("a_flair.mha", "a_seg.nrrd"),
        ("a_flair.MHA", "a_seg.NRRD"),
        ("BraTS20_Training_007_flair.nii.gz", "BraTS20_Training_007_seg.nii.gz"),  # a renamed folder
        ("a_flair.nii.gz", "W39_1998.09.19_Segm.nii"),  # as BraTS20_Training_355
    ],
)
def test_spellings(tmp_path, flair, seg):
    save(tmp_path / "a" / flair)
    save(tmp_path / "a" / seg, SEG)
    save(tmp_path / "a" / "a_t2.nii.gz", FLAIR + 1)
    save(tmp_path / "a" / "a_brain_mask.nii.gz", np.ones_like(SEG))
    assert names(tmp_path) == ["a"]


def test_kaggle_archive(tmp_path):
    inner = tmp_path / "archive/BraTS2020_TrainingData/MICCAI_BraTS2020_TrainingData"
    for number in (1, 2):
        name = f"BraTS20_Training_{number:03d}"
        for suffix in ("flair", "t1", "t1ce", "t2"):
            save(inner / name / f"{name}_{suffix}.nii", FLAIR if suffix == "flair" else FLAIR + 1)
        save(inner / name / f"{name}_seg.nii", SEG)
    (inner / "name_mapping.csv").write_text("x")
    (tmp_path / "archive/__MACOSX").mkdir()
    assert names(tmp_path / "archive") == names(inner) == ["BraTS20_Training_001", "BraTS20_Training_002"]


def test_flat_folders(tmp_path):
    for name in ("a", "b_t1", "c"):
        save(tmp_path / "HGG" / f"{name}_Flair.nii.gz")
        save(tmp_path / "HGG" / f"{name}_seg.nii.gz", SEG)
        save(tmp_path / "HGG" / f"{name}_brain_seg.nii.gz", SEG)
    assert names(tmp_path) == names(tmp_path / "HGG") == ["a", "b_t1", "c"]
    save(tmp_path / "one" / "d_flair.nii.gz")
    save(tmp_path / "one" / "d_seg.nii.gz", SEG)
    assert names(tmp_path / "one") == ["d"]
    save(tmp_path / "one" / "e_seg.nii.gz", SEG)  # another case, which lacks its image
    assert [case.name for case in find_cases(tmp_path / "one", Source())] == ["d", "e"]


@pytest.mark.parametrize("second", ["a_flair.nii", "a_FLAIR.nii.gz", "a_t2f.nii.gz", "a_flair.nrrd"])
def test_two_files_for_one(tmp_path, second):
    save(tmp_path / "a" / "a_flair.nii.gz")
    save(tmp_path / "a" / "a_seg.nii.gz", SEG)
    save(tmp_path / "a" / second)
    assert names(tmp_path) == ["a"]
    save(tmp_path / "a" / second, FLAIR + 1)
    both = r"a_(flair|FLAIR)\.nii\.gz and \S+ differ, and both could be its flair; remove or rename one"
    with pytest.raises(DataError, match=both):
        find_cases(tmp_path, Source())
    save(tmp_path / "b" / "b_flair.nii.gz")
    save(tmp_path / "b" / "b_seg.nii.gz", SEG)
    assert [case.name for case in find_cases(tmp_path, Source(), ["b"])] == ["b"]


def test_two_masks(tmp_path):
    save(tmp_path / "a" / "a_flair.nii.gz")
    save(tmp_path / "a" / "W39_Segm.nii", SEG)
    save(tmp_path / "a" / "other_seg.nii", SEG * 0)
    with pytest.raises(DataError, match=r"other_seg\.nii .*W39_Segm\.nii|W39_Segm\.nii .*other_seg\.nii"):
        find_cases(tmp_path, Source())
    save(tmp_path / "a" / "a_mask.nii.gz", SEG * 0)  # may be one of the brain: what is surely a mask goes before
    save(tmp_path / "a" / "a_seg.nii.gz", SEG)
    assert names(tmp_path) == ["a"]


def test_the_nearest_file_is_named(tmp_path):
    save(tmp_path / "a" / "a_flar.nii.gz")
    save(tmp_path / "a" / "a_seg.nii.gz", SEG)
    (case,) = find_cases(tmp_path, Source())
    (finding,) = inspect_case(case, Source()).findings
    mend = "the nearest file is a_flar.nii.gz: if it is the one, rename it to a_flair.nii.gz"
    assert finding.what == f"a_flair.nii.gz: is missing; {mend}"
    (tmp_path / "a/a_flar.nii.gz").rename(tmp_path / "a/a_flair.nii.gz")
    assert names(tmp_path) == ["a"]


def test_nothing_but_stray_files(tmp_path):
    save(tmp_path / "a" / "scan.nii.gz")
    with pytest.raises(DataError, match=r"no case found; there are 1 image file\(s\), as a/scan\.nii\.gz: rename"):
        find_cases(tmp_path, Source())
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(DataError, match="imagesTr and labelsTr are missing beside it"):
        find_cases(tmp_path, Source())
    dataset(tmp_path / "set")
    (tmp_path / "set/imagesTr").mkdir()
    with pytest.raises(DataError, match=rf"part of a data set, name its folder {tmp_path}/set"):
        find_cases(tmp_path / "set/imagesTr", Source())


@pytest.mark.parametrize("ending", [".nrrd", ".mha", ".mhd", ".nii", ".gipl"])
def test_nnunet_in_other_files(tmp_path, ending):
    dataset(tmp_path, file_ending=ending)
    save(tmp_path / f"imagesTr/x_0000{ending}")
    save(tmp_path / f"labelsTr/x{ending}", SEG)
    assert names(tmp_path) == ["x"]
    assert {finding.check for finding in inspect_case(find_cases(tmp_path, Source())[0], Source()).findings} <= set(
        DOUBTS
    )
    save(tmp_path / "imagesTr/x_0000.nii.gz", FLAIR + 1)  # nnU-Net does not look at it either
    assert names(tmp_path) == ["x"]


def test_nnunet_first_version(tmp_path):
    labels = {"0": "background", "1": "edema", "2": "enhancing tumor"}
    (tmp_path / "dataset.json").write_text(json.dumps({"modality": {"0": "T1", "1": "FLAIR"}, "labels": labels}))
    save(tmp_path / "imagesTr/x_0000.nii.gz", FLAIR + 1)
    save(tmp_path / "imagesTr/x_0001.nii.gz")
    save(tmp_path / "labelsTr/x.nii.gz", SEG)
    assert names(tmp_path) == ["x"]
    for path in [*tmp_path.glob("*Tr/*")]:
        path.unlink()
    save(tmp_path / "imagesTr/x_0000.nii.gz", np.stack([FLAIR + 1, FLAIR], -1))  # MSD, with a name that ends in digits
    save(tmp_path / "labelsTr/x_0000.nii.gz", SEG)
    assert names(tmp_path) == ["x_0000"]


def test_msd_images_with_a_new_description(tmp_path):
    dataset(tmp_path, channel_names={"0": "T1", "1": "FLAIR"})
    save(tmp_path / "imagesTr/x.nii.gz", np.stack([FLAIR + 1, FLAIR], -1))
    save(tmp_path / "labelsTr/x.nii.gz", SEG)
    assert names(tmp_path) == ["x"]


@pytest.mark.parametrize(("image", "label"), [("x_0000", "x_0000"), ("x", "x"), ("x_0000", "x")])
def test_one_channel(tmp_path, image, label):
    dataset(tmp_path)
    save(tmp_path / f"imagesTr/{image}.nii.gz")
    save(tmp_path / f"labelsTr/{label}.nii.gz", SEG)
    assert names(tmp_path) == ["x"]
    if label != "x":
        save(tmp_path / "labelsTr/x.nii.gz", SEG * 0)
        with pytest.raises(DataError, match=r"x: .*x.*\.nii\.gz and .* differ"):
            find_cases(tmp_path, Source())


def test_trailing_axis(tmp_path):
    save(tmp_path / "a" / "a_flair.nii.gz", FLAIR[..., None])
    save(tmp_path / "a" / "a_seg.nii.gz", SEG[..., None])
    assert names(tmp_path) == ["a"]
    assert {finding.check for finding in inspect_case(find_cases(tmp_path, Source())[0], Source()).findings} <= set(
        DOUBTS
    )


def test_a_data_set_without_pairs(tmp_path):
    dataset(tmp_path)
    (tmp_path / "imagesTr").mkdir()
    (tmp_path / "labelsTr").mkdir()
    (tmp_path / "labelsTr/notes.txt").touch()
    message = (
        r"holds no pair: imagesTr is empty and labelsTr holds no image file but notes\.txt\. What is missing: images"
    )
    with pytest.raises(DataError, match=message):
        find_cases(tmp_path, Source())
    (tmp_path / "synthesis.json").write_text("{}")
    with pytest.raises(DataError, match="none has been drawn yet; draw others"):
        find_cases(tmp_path, Source())
    (tmp_path / "records/given_up").mkdir(parents=True)
    (tmp_path / "records/given_up/x.json").touch()
    with pytest.raises(DataError, match=r"all 1 drawn were given up \(given_up\.csv says why\); draw others"):
        find_cases(tmp_path, Source())


def test_case_folders_beside_a_data_set(tmp_path):
    save(tmp_path / "a" / "a_flair.nii.gz")
    dataset(tmp_path / "set")
    save(tmp_path / "set/imagesTr/x_0000.nii.gz")
    with pytest.raises(InputError, match=r"several data sets \(set, case folders\)"):
        find_cases(tmp_path, Source())


def test_slopes_of_masks(tmp_path):
    """What saving a float mask as uint8 or int16 leaves of its labels; 2.5 is none."""
    save(tmp_path / "a" / "a_flair.nii.gz")
    for kind in (np.uint8, np.int16):
        image = nib.Nifti1Image(np.where(SEG == 2, 4.0, SEG), AFFINE)
        image.set_data_dtype(kind)
        nib.save(image, tmp_path / "a/a_seg.nii.gz")
        stored = np.unique(np.asarray(nib.load(tmp_path / "a/a_seg.nii.gz").dataobj))
        assert stored[1] != 1 and abs(stored[1] - 1) < 0.01
        assert names(tmp_path) == ["a"]
    nib.save(nib.Nifti1Image(np.where(SEG == 2, 2.5, SEG), AFFINE), tmp_path / "a/a_seg.nii.gz")
    with pytest.raises(DataError, match=r"a_seg\.nii\.gz: holds 2\.5, no whole number"):
        names(tmp_path)


@pytest.mark.parametrize("ending", [".mha", ".nrrd"])
def test_damaged_files_of_other_kinds(tmp_path, ending):
    path = save(tmp_path / "a" / f"a_flair{ending}")
    save(tmp_path / "a" / "a_seg.nii.gz", SEG)
    whole = path.read_bytes()
    for content in (b"", whole[:-20], whole[:30], b"no image"):
        path.write_bytes(content)
        (finding,) = inspect_case(find_cases(tmp_path, Source())[0], Source()).findings
        assert finding.check == "unreadable" and finding.what.startswith(f"{path.name}: cannot be read (")


def test_several_volumes_in_one_file(tmp_path):
    stack = sitk.Compose([sitk.GetImageFromArray(FLAIR.T), sitk.GetImageFromArray(FLAIR.T + 1)])
    sitk.WriteImage(stack, str(tmp_path / "vector.nrrd"))
    sitk.WriteImage(
        sitk.JoinSeries(sitk.GetImageFromArray(FLAIR.T), sitk.GetImageFromArray(FLAIR.T + 1)), tmp_path / "4d.mha"
    )
    for name in ("vector.nrrd", "4d.mha"):
        np.testing.assert_array_equal(np.asarray(load_image(tmp_path / name).dataobj), np.stack([FLAIR, FLAIR + 1], -1))


def test_folders_that_are_all_called_alike(tmp_path):
    """BIDS: the files tell the cases apart where their folders do not; what neither tells is refused."""
    for k in (1, 2):
        save(tmp_path / "bids" / f"sub-0{k}/anat/sub-0{k}_FLAIR.nii.gz", FLAIR + k)
        save(tmp_path / "bids" / f"sub-0{k}/anat/sub-0{k}_seg.nii.gz", SEG)
        save(tmp_path / "bare" / f"sub-0{k}/anat/flair.nii.gz", FLAIR + k)
        save(tmp_path / "bare" / f"sub-0{k}/anat/seg.nii.gz", SEG)
    cases = find_cases(tmp_path / "bids", Source())
    assert [(case.name, case.images[0].parent.parent.name) for case in cases] == [
        (f"sub-0{k}", f"sub-0{k}") for k in (1, 2)
    ]
    with pytest.raises(DataError, match="more than one case is called anat"):
        find_cases(tmp_path / "bare", Source())
