"""Volumes on the evaluation grid: nothing moves, nothing is lost, whatever the orientation and spacing of the files."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from sbldm.cases.layouts import Source, find_cases
from sbldm.metrics.volumes import FOV_MM, common_spacing, evaluation_grid, read_volume, spacing_of, to_volume
from sbldm.run.errors import DataError

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def _brain(shape: tuple[int, ...], spacing: float, offset: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """An ellipsoid with a gradient along every axis, and a ball 20 mm to the left of its centre, axes L, P, S."""
    mm = [spacing * (np.arange(n) - (n - 1) / 2) - offset for n in shape]
    x, y, z = np.meshgrid(*mm, indexing="ij")
    brain = (x / 60) ** 2 + (y / 75) ** 2 + (z / 55) ** 2 < 1
    image = np.where(brain, 100 + x + 0.5 * y + 0.25 * z, 0)
    return image, (x - 20) ** 2 + y**2 + z**2 < 15**2


def _affine(spacing: float) -> np.ndarray:
    return LPS @ np.diag([spacing, spacing, spacing, 1.0])


def test_own_spacing_is_cut_out_without_interpolation():
    """Every voxel of the brain keeps its value, scaled by the percentiles inside the brain."""
    image, mask = _brain((80, 90, 70), 2.0)
    volume = to_volume("a", image, mask, _affine(2.0), evaluation_grid((2.0, 2.0, 2.0)))
    low, high = np.percentile(image[image > 0], [0.5, 99.8])
    expected = ((image[image > 0] - low) / (high - low)).clip(1e-3, 1)
    assert np.allclose(np.sort(volume.image[volume.brain]), np.sort(expected), atol=1e-6)
    assert volume.mask.sum() == mask.sum()
    assert volume.image.shape == tuple(round(f / 2) for f in FOV_MM)


def test_orientation_of_the_file_does_not_matter():
    """Flipped and permuted axes with the fitting affine give the same volume."""
    image, mask = _brain((80, 90, 70), 2.0)
    grid = evaluation_grid((2.0, 2.0, 2.0))
    straight = to_volume("a", image, mask, _affine(2.0), grid)
    affine = _affine(2.0) @ np.array([[-1, 0, 0, 79], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 1]], float)
    turned = to_volume("a", image[::-1].transpose(0, 2, 1), mask[::-1].transpose(0, 2, 1), affine, grid)
    assert np.array_equal(straight.image, turned.image) and np.array_equal(straight.mask, turned.mask)
    assert np.allclose(straight.characteristics, turned.characteristics)


def test_field_of_view_does_not_matter():
    """More background on one side moves nothing: the grid follows the brain."""
    image, mask = _brain((80, 90, 70), 2.0)
    grid = evaluation_grid((2.0, 2.0, 2.0))
    padded = [np.pad(v, ((9, 0), (0, 4), (5, 2))) for v in (image, mask)]
    plain, moved = to_volume("a", image, mask, _affine(2.0), grid), to_volume("a", *padded, _affine(2.0), grid)
    assert np.array_equal(plain.image, moved.image)
    assert np.allclose(plain.characteristics, moved.characteristics)


def test_other_spacings_are_resampled_onto_the_same_brain():
    """1 mm and 3 mm files on the 2 mm grid: the same image within 1 %, volume and place of the tumour kept."""
    grid = evaluation_grid((2.0, 2.0, 2.0))
    own = to_volume("a", *_brain((80, 90, 70), 2.0), _affine(2.0), grid)
    for spacing, shape in ((1.0, (160, 180, 140)), (3.0, (54, 60, 47))):
        other = to_volume("b", *_brain(shape, spacing), _affine(spacing), grid)
        both = own.brain & other.brain
        assert both.sum() > 0.97 * max(own.brain.sum(), other.brain.sum())
        assert np.abs(own.image - other.image)[both].mean() < 0.02
        assert np.allclose(own.characteristics[3:6], other.characteristics[3:6], atol=0.8)
        assert other.mask.sum() == pytest.approx(own.mask.sum(), rel=0.03)


def test_tumour_is_measured_in_the_frame_of_the_brain():
    """A ball of 15 mm, 20 mm to the left of the middle: -20 along R, 14.1 ml."""
    volume = to_volume("a", *_brain((160, 180, 140), 1.0), _affine(1.0), evaluation_grid((2.0, 2.0, 2.0)))
    assert volume.characteristics[3:6] == pytest.approx([-20, 0, 0], abs=0.1)
    assert volume.characteristics[0] == pytest.approx(4 / 3 * np.pi * 15**3 / 1000, rel=0.02)


def test_content_tells_image_and_mask_apart():
    """The key of the caches changes with a single voxel of either."""
    image, mask = _brain((80, 90, 70), 2.0)
    grid = evaluation_grid((2.0, 2.0, 2.0))

    def key(image, mask):
        return to_volume("a", image, mask, _affine(2.0), grid).content

    other, more = image.copy(), mask.copy()
    other[40, 45, 35] += 1
    more[40, 45, 35] ^= True
    assert len({key(image, mask), key(other, mask), key(image, more), key(image, None)}) == 4
    assert key(image, mask) == key(image.copy(), mask.copy())


def test_cases_of_a_folder(phantom_cases: Path, tmp_path: Path):
    """Spacing by majority; NaN, wrong shape, no brain: one sentence that names the file; no mask is no error."""
    source = Source()
    cases = find_cases(phantom_cases, source)
    assert common_spacing(cases) == (4.0, 4.0, 4.0) == spacing_of(cases[0])
    grid = evaluation_grid((4.0, 4.0, 4.0))
    good = read_volume(cases[0], source, grid)
    assert good.mask.any() and good.image.max() == 1

    folder = tmp_path / "Bad"
    folder.mkdir()
    image = nib.load(cases[0].images[0])
    voxels = np.asarray(image.dataobj, np.float32)

    def with_image(array: np.ndarray) -> None:
        nib.save(nib.Nifti1Image(array, image.affine), folder / "Bad_flair.nii.gz")
        read_volume(find_cases(tmp_path, source)[0], source, grid)

    with_image(voxels)  # without a mask
    broken = voxels.copy()
    broken[30, 30, 20] = np.nan
    for array, sentence in (
        (broken, "no numbers"),
        (np.zeros_like(voxels), "empty"),
        (voxels + 1, "skull-stripped"),
        (voxels[..., None].repeat(2, -1), "4 dimensions"),
    ):
        with pytest.raises(DataError, match=f"Bad_flair.nii.gz.*{sentence}"):
            with_image(array)
    nib.save(nib.Nifti1Image(np.zeros((5, 5, 5), np.uint8), image.affine), folder / "Bad_seg.nii.gz")
    with pytest.raises(DataError, match=r"Bad_seg.nii.gz.*shape"):
        with_image(voxels)
