"""Scores of predictions against bodies whose scores are known, nnU-Net, SimpleITK and SciPy."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from monai.metrics import compute_hausdorff_distance
from nnunetv2.evaluation.evaluate_predictions import compute_metrics
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO
from scipy import ndimage
from torch import from_numpy

from sbldm.metrics.segmentation import score_case, score_folder, size_bin
from sbldm.run.errors import DataError, StateError
from sbldm.run.files import write_nifti

ISO = (1.0, 1.0, 1.0)


def box(start, size, shape=(40, 40, 40)):
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(slice(a, a + n) for a, n in zip(start, size, strict=True))] = True
    return mask


def ball(radius, spacing=ISO, shape=(56, 56, 56), centre=(0, 0, 0)):
    position = np.moveaxis(np.indices(shape), 0, -1) - (np.array(shape) - 1) / 2
    return ((position * spacing - centre) ** 2).sum(-1) <= radius**2


def blobs(seed, shape=(30, 26, 22)):
    """Two overlapping irregular masks of several parts that touch the border of the image."""
    noise = np.random.default_rng(seed).normal(size=(2, *shape))
    a, b = (ndimage.gaussian_filter(n, 2.5) for n in noise)
    return a > 0.02, a + 0.4 * b > 0.02


def hd95_by_distance_maps(a, b, spacing):
    edges = [np.pad(m, 1) & ~ndimage.binary_erosion(np.pad(m, 1)) for m in (a, b)]
    maps = [ndimage.distance_transform_edt(~edge, sampling=spacing) for edge in edges]
    return max(np.percentile(maps[0][edges[1]], 95), np.percentile(maps[1][edges[0]], 95))


def test_shifted_cubes():
    scores, lesions = score_case(box((5, 10, 10), (20, 20, 20)), box((9, 10, 10), (20, 20, 20)), ISO)
    assert scores["dsc"] == pytest.approx(16 / 20) and scores["iou"] == pytest.approx(16 / 24)
    assert scores["hd95_mm"] == pytest.approx(4)
    assert scores["reference_ml"] == scores["predicted_ml"] == pytest.approx(8)
    assert lesions == [{"volume_ml": 8.0, "found": 1}]
    assert (scores["lesions"], scores["lesions_found"], scores["false_lesions"]) == (1, 1, 0)
    assert list(scores)[:4] == ["dsc", "iou", "hd95_mm", "nsd_1mm"]


@pytest.mark.parametrize(("axis", "voxels", "hd95"), [(0, 1, 1), (0, 3, 3), (1, 2, 1), (1, 6, 3), (2, 2, 6)])
def test_anisotropic_shifts(axis, voxels, hd95):
    """Along each axis at 1 x 0.5 x 3 mm; the NSD is that of the boxes' faces in mm2.

    More than 1 mm off are, of each box, the end that sticks out, the rest of its sides, and the end inside the other
    box without its rim. MONAI's default, which counts voxels alike, is off by 0.2 and more along y and z.
    """
    size, spacing = np.array((24, 48, 20)), np.array((1.0, 0.5, 3.0))
    start = np.array((6, 8, 6))
    moved = start + voxels * np.eye(3, dtype=int)[axis]
    scores, _ = score_case(box(start, size, (40, 80, 40)), box(moved, size, (40, 80, 40)), spacing)
    assert scores["dsc"] == pytest.approx(1 - voxels / size[axis]) and scores["hd95_mm"] == pytest.approx(hd95)
    extent = size * spacing
    assert scores["reference_ml"] == pytest.approx(extent.prod() / 1000)
    sides = np.delete(extent, axis)
    off = sides.prod() + 2 * sides.sum() * (hd95 - 1) + (sides - 2).prod() if hd95 > 1 else 0
    assert scores["nsd_1mm"] == pytest.approx(1 - off / (2 * extent.prod() / extent).sum(), abs=0.025)


@pytest.mark.parametrize("spacing", [ISO, (1.0, 1.0, 2.0)])
@pytest.mark.parametrize("gap", [3, 5])
def test_concentric_balls(gap, spacing):
    """HD95 is their distance to within half the longest side of a voxel; nothing is within 1 mm."""
    scores, _ = score_case(ball(16, spacing), ball(16 + gap, spacing), spacing)
    assert scores["hd95_mm"] == pytest.approx(gap, abs=0.5 * max(spacing))
    assert scores["dsc"] == pytest.approx(2 * 16**3 / (16**3 + (16 + gap) ** 3), abs=0.01)
    assert scores["nsd_1mm"] == 0


def test_nsd_around_the_tolerance():
    """At 0.5 mm: 0.5 mm apart everything is near enough, 2 mm apart nothing; identical masks score 1."""
    half = (0.5,) * 3
    near, far = (score_case(ball(10, half), ball(radius, half), half)[0] for radius in (10.5, 12))
    assert near["nsd_1mm"] == pytest.approx(1, abs=1e-6) and far["nsd_1mm"] == 0
    same, _ = score_case(ball(10, half), ball(10, half), half)
    assert (same["dsc"], same["iou"], same["hd95_mm"], same["nsd_1mm"]) == (1, 1, 0, 1)


@pytest.mark.parametrize("spacing", [(1.0000001,) * 3, (0.9999999,) * 3])
def test_float32_noise_of_affines_decides_nothing(spacing):
    """A shift of 1 mm is within 1 mm and 100 voxels of 1 mm3 are 0.1 ml."""
    scores, _ = score_case(box((5, 5, 5), (5, 5, 4)), box((6, 5, 5), (5, 5, 4)), spacing)
    assert scores["nsd_1mm"] == 1 and scores["lesions"] == 1


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("spacing", [ISO, (0.9, 1.3, 3.0)])
def test_other_implementations(seed, spacing, tmp_path):
    reference, prediction = blobs(seed)
    scores, _ = score_case(reference, prediction, spacing)
    assert scores["hd95_mm"] == pytest.approx(hd95_by_distance_maps(reference, prediction, spacing), abs=1e-4)
    overlap = sitk.LabelOverlapMeasuresImageFilter()
    overlap.Execute(*(sitk.GetImageFromArray(mask.astype(np.uint8)) for mask in (reference, prediction)))
    assert scores["dsc"] == pytest.approx(overlap.GetDiceCoefficient(), abs=1e-9)
    assert scores["iou"] == pytest.approx(overlap.GetJaccardCoefficient(), abs=1e-9)
    files = [str(tmp_path / "a.nii.gz"), str(tmp_path / "b.nii.gz")]
    for file, mask in zip(files, (reference, prediction), strict=True):
        write_nifti(file, mask.astype(np.uint8), np.diag([*spacing, 1]))
    found = compute_metrics(*files, NibabelIO(), [1])["metrics"][1]
    assert scores["dsc"] == pytest.approx(found["Dice"], abs=1e-6)
    assert scores["iou"] == pytest.approx(found["IoU"], abs=1e-6)


@pytest.mark.filterwarnings("ignore:.*always_return_as_numpy:FutureWarning")
@pytest.mark.parametrize("seed", [0, 1])
def test_the_crop_changes_nothing(seed):
    """Neither for masks that touch the image's border, nor far from it; MONAI on the whole image says the same."""
    reference, prediction = blobs(seed)
    assert reference[0].any() and reference[-1].any() and prediction[:, :, -1].any()
    spacing = [1.0, 1.5, 2.0]
    scores, lesions = score_case(reference, prediction, spacing)
    large = [np.pad(mask, ((9, 3), (0, 7), (11, 1))) for mask in (reference, prediction)]
    assert score_case(*large, spacing) == (scores, lesions)
    tensors = [from_numpy(mask)[None, None] for mask in large]
    expected = compute_hausdorff_distance(*tensors, include_background=True, percentile=95, spacing=spacing)
    assert scores["hd95_mm"] == expected.item()


def test_the_roles_of_the_masks():
    """Overlap and surfaces are symmetric, volumes and lesions change places."""
    reference, prediction = blobs(3)
    one, _ = score_case(reference, prediction, ISO)
    other, _ = score_case(prediction, reference, ISO)
    assert [one[k] for k in ("dsc", "iou", "hd95_mm")] == [other[k] for k in ("dsc", "iou", "hd95_mm")]
    assert one["nsd_1mm"] == pytest.approx(other["nsd_1mm"], abs=1e-6)
    assert (one["reference_ml"], one["predicted_ml"]) == (other["predicted_ml"], other["reference_ml"])


def test_empty_masks():
    empty, full = np.zeros((20, 20, 20), dtype=bool), box((5, 5, 5), (5, 5, 5), (20, 20, 20))
    names = ("dsc", "iou", "nsd_1mm", "hd95_mm", "lesions", "lesions_found", "false_lesions")
    cases = {
        (0, 0): (1, 1, 1, 0, 0, 0, 0),
        (1, 0): (0, 0, 0, 374, 1, 0, 0),
        (0, 1): (0, 0, 0, 374, 0, 0, 1),
    }
    for (a, b), expected in cases.items():
        scores, lesions = score_case((empty, full)[a], (empty, full)[b], ISO)
        assert tuple(scores[name] for name in names) == expected
        assert lesions == [{"volume_ml": 0.125, "found": 0}] * a


def test_lesions_by_size_and_share():
    """Found from 10 % of the voxels on, a lesion from 0.1 ml on; corners connect."""
    big, small, tiny = box((2, 2, 2), (10, 10, 10)), box((20, 2, 2), (5, 5, 4)), box((30, 2, 2), (11, 3, 3))
    reference = big | small | tiny
    assert tiny.sum() < 100
    prediction = box((2, 2, 2), (1, 10, 10)) | box((20, 2, 2), (3, 3, 1))
    scores, lesions = score_case(reference, prediction, ISO)
    assert lesions == [{"volume_ml": 1.0, "found": 1}, {"volume_ml": 0.1, "found": 0}]
    assert (scores["lesions"], scores["lesions_found"], scores["false_lesions"]) == (2, 1, 0)
    _, lesions = score_case(reference, prediction & ~box((2, 2, 2), (1, 1, 1)) | box((20, 5, 2), (1, 1, 1)), ISO)
    assert [lesion["found"] for lesion in lesions] == [0, 1]  # 99 of 1000 and 10 of 100 voxels
    corner, _ = score_case(big | box((12, 12, 12), (5, 5, 5)), big, ISO)
    assert corner["lesions"] == 1


@pytest.mark.parametrize(
    ("start", "size", "false"),
    [
        ((30, 30, 30), (5, 5, 4), 1),
        ((30, 30, 30), (11, 3, 3), 0),
        ((12, 2, 2), (5, 5, 5), 1),
        ((11, 2, 2), (5, 5, 5), 0),
    ],
)
def test_false_lesions(start, size, false):
    """Far away, too small, a neighbour that shares no voxel, and one that shares a layer."""
    reference = box((2, 2, 2), (10, 10, 10))
    assert score_case(reference, box(start, size), ISO)[0]["false_lesions"] == false
    two = box(start, size) | box((20, 20, 2), (6, 6, 6))
    assert score_case(reference, two, ISO)[0]["false_lesions"] == false + 1


def test_small_reference_lesions_are_no_false_ones():
    speck = box((20, 20, 20), (2, 2, 2))
    scores, lesions = score_case(speck, box((19, 19, 19), (5, 5, 5)), ISO)
    assert (scores["lesions"], scores["false_lesions"], lesions) == (0, 0, [])


def test_size_bins():
    volumes = (0.1, 0.999, 1, 9.99, 10, 49.9, 50, 300)
    expected = ["<1 ml"] * 2 + ["1-10 ml"] * 2 + ["10-50 ml"] * 2 + [">=50 ml"] * 2
    assert [size_bin(v) for v in volumes] == expected


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match="shapes differ"):
        score_case(box((1, 1, 1), (2, 2, 2)), box((1, 1, 1), (2, 2, 2), (40, 40, 1)), ISO)


@pytest.fixture
def folders(tmp_path):
    """One case at 1 x 1 x 2 mm, its labels 1 and 3; the affine of the prediction is rounded differently."""
    affine = np.diag([-1, 1, 2, 1.0])
    reference = box((5, 5, 5), (10, 10, 10)).astype(np.uint8)
    reference[8, 8, 8] = 3
    write_nifti(tmp_path / "labels" / "a.nii.gz", reference, affine)
    write_nifti(tmp_path / "out" / "a.nii.gz", box((5, 5, 6), (10, 10, 10)).astype(np.uint8), affine + 1e-5)
    return tmp_path / "out", tmp_path / "labels"


def test_folders(folders):
    cases, lesions = score_folder(*folders, ["a"])
    (case,) = cases
    assert next(iter(case)) == next(iter(lesions[0])) == "case" and case["case"] == "a"
    assert case["dsc"] == pytest.approx(0.9) and case["hd95_mm"] == pytest.approx(2, abs=1e-4)
    assert lesions == [{"case": "a", "volume_ml": pytest.approx(2, rel=1e-4), "found": 1}]
    assert case["reference_ml"] == pytest.approx(2, rel=1e-4)


def test_regions(folders):
    """Each is a foreground of its own: label 3 alone is one voxel that nothing predicts."""
    (case,), _ = score_folder(*folders, ["a"], {"tumour core": [1, 3], "enhancing tumour": [3]})
    names = ("dsc", "iou", "hd95_mm", "nsd_1mm")
    assert [case[f"{name} tumour core"] for name in names] == [case[name] for name in names]
    assert [case[f"{name} enhancing tumour"] for name in names] == [0, 0, 374, 0]
    (other,), _ = score_folder(*folders, ["a"], {"label 1": [1]})
    assert other["dsc label 1"] == pytest.approx(2 * 899 / (999 + 1000))


def test_folders_with_faults(folders):
    out, labels = folders
    mask = box((5, 5, 5), (10, 10, 10)).astype(np.uint8)
    affine = np.diag([-1, 1, 2, 1.0])
    with pytest.raises(StateError, match=r"out/b\.nii\.gz: this prediction is missing"):
        score_folder(out, labels, ["a", "b"])
    write_nifti(out / "b.nii.gz", mask, affine)
    with pytest.raises(StateError, match=r"labels/b\.nii\.gz: this reference is missing"):
        score_folder(out, labels, ["b"])
    for other, message in (
        ((mask, affine + 0.01 * np.eye(4)), "affine"),
        ((mask[:-1], affine), r"shape \(39, 40, 40\)"),
    ):
        write_nifti(out / "a.nii.gz", *other)
        with pytest.raises(DataError, match=rf"out/a\.nii\.gz: .*{message}"):
            score_folder(out, labels, ["a"])
    whole = (labels / "a.nii.gz").read_bytes()
    (out / "a.nii.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"out/a\.nii\.gz: cannot be read"):
        score_folder(out, labels, ["a"])
