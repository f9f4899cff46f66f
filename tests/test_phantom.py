"""Phantom cases in numbers: reproducible, inside the brain, brighter than it, and the same head on every grid."""

from __future__ import annotations

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from sbldm.cases.phantom import (
    CHANNELS,
    HEAD_BOX,
    VOLUME_ML,
    _grow,
    _place,
    _Tumour,
    make_channels,
    make_phantom,
    write_phantoms,
)
from sbldm.metrics.slices import slice_measures
from sbldm.metrics.volumes import evaluation_grid, to_volume
from sbldm.run.errors import InputError, OutputError

COARSE = {"shape": (60, 60, 39), "spacing": 4.0}


@pytest.fixture(scope="module")
def cases():
    """Six cases at 2 mm."""
    return [make_phantom([3, i]) for i in range(6)]


def test_seed_decides():
    one, same, other = (make_phantom(seed, **COARSE) for seed in ([5, 0], [5, 0], [5, 1]))
    for a, b in zip(one, same, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (one[0] != other[0]).mean() > 0.1
    assert (one[1] != other[1]).any()


def test_types_orientation_and_background(cases):
    for image, labels, affine in cases:
        assert image.dtype == np.int16 and labels.dtype == np.uint8
        assert image.shape == labels.shape == (120, 120, 78)
        assert nib.aff2axcodes(affine) == ("L", "P", "S")
        np.testing.assert_array_equal(affine, [[-2, 0, 0, -0.5], [0, -2, 0, -0.5], [0, 0, 2, 0.5], [0, 0, 0, 1]])
        assert image.min() == 0 and image.max() < 5000
        assert (image[[0, -1]] == 0).all() and (image[:, [0, -1]] == 0).all() and (image[:, :, -1] == 0).all()


def test_head_size(cases):
    for image, _, _ in cases:
        brain = image > 0
        extent = [2 * (np.ptp(axis) + 1) for axis in np.nonzero(brain)]
        assert all(e <= b for e, b in zip(extent, HEAD_BOX, strict=True))
        assert extent[0] > 115 and extent[1] > 145 and extent[2] > 115
        assert 1000 < brain.sum() * 8e-3 < 1900  # ml


def test_tumour_inside_brain(cases):
    for image, labels, _ in cases:
        tumour = labels > 0
        assert set(np.unique(labels)) == {0, 1, 2, 4}
        assert VOLUME_ML[0] - 0.01 <= tumour.sum() * 8e-3 <= VOLUME_ML[1] + 0.01
        hull = ndimage.binary_fill_holes(image > 0)
        assert not (tumour & (image == 0)).any()
        assert not (tumour & ~ndimage.binary_erosion(hull)).any()
        parts, _ = ndimage.label(tumour)
        assert np.bincount(parts.ravel())[1:].max() > 0.8 * tumour.sum()


def test_contrast(cases):
    """Oedema is at least a quarter brighter than the brain, enhancing tissue a third; some of the brain is dark CSF."""
    for image, labels, _ in cases:
        brain = image[(image > 0) & (labels == 0)]
        assert image[labels > 0].mean() > 1.25 * brain.mean()
        assert image[labels == 2].mean() > 1.25 * brain.mean()
        assert image[labels == 4].mean() > 1.33 * brain.mean()
        assert 0.01 < (brain < 0.5 * np.median(brain)).mean() < 0.2


def test_ventricles_are_dark(cases):
    """More than 28 mm below the surface lies dark fluid, which the tumour avoids."""
    for image, labels, _ in cases:
        brain = ndimage.binary_fill_holes(image > 0)
        deep = ndimage.distance_transform_edt(brain, sampling=2.0) > 28
        dark = deep & (image < 0.5 * np.median(image[image > 0]))
        assert dark.sum() * 8e-3 > 0.5  # ml
        assert (labels[dark] > 0).mean() < 0.1


def test_as_smooth_as_scans(cases):
    """Neighbouring slices resemble each other as in real cases (SSIM .80 +- .06), and more than neighbours in plane."""
    found = []
    for image, labels, affine in cases:
        volume = to_volume("", image.astype(np.float32), labels > 0, affine, evaluation_grid((2.0, 2.0, 2.0)))
        found.append([slice_measures(volume)[name] for name in ("adjacent_ssim", "z_gradient_ratio")])
    ssim, ratio = np.mean(found, axis=0)
    assert 0.7 < ssim < 0.9 and 0.7 < ratio < 0.95


def test_lesions_beside_the_tumour():
    """Of 500 tumours 28 % have one or two, with at most a tenth of the volume each; they are drawn apart from it."""
    tumours = [_Tumour.draw(np.random.default_rng(seed)) for seed in range(500)]
    beside = np.array([len(tumour.satellites) for tumour in tumours])
    assert 0.22 < (beside > 0).mean() < 0.34 and beside.max() == 2  # three standard errors of 2 %
    assert all(0.01 <= share <= 0.1 for tumour in tumours for _, share in tumour.satellites)
    p = np.stack(np.meshgrid(*[np.arange(-80.0, 80, 2)] * 3, indexing="ij")).reshape(3, -1).astype(np.float32)
    open_brain = {name: np.zeros(p.shape[1], np.float32) for name in ("grey", "nuclei")}
    tumour = next(tumour for tumour in tumours if len(tumour.satellites) == 1 and tumour.satellites[0][1] > 0.05)
    labels = _grow(np.random.default_rng(0), tumour, p, open_brain | {"closed": open_brain["grey"] > 0}, 2.0)
    parts = np.bincount(ndimage.label((labels > 0).reshape([80] * 3), np.ones((3, 3, 3)))[0].ravel())[1:]
    shares = np.sort(parts / round(tumour.volume * 125))[::-1]
    np.testing.assert_allclose(shares[1], tumour.satellites[0][1], rtol=0.3)
    assert parts.sum() == round(tumour.volume * 125)


def test_heads_differ_in_size():
    """The length of 300 heads varies by 5 %, as among real ones; a voxel's step in the template is 1 / size."""
    steps = [_place(np.random.default_rng(seed), (30, 30, 20), 8.0)[1] for seed in range(300)]
    sizes = [8.0 / np.linalg.norm(p[:, 0, 1, 0] - p[:, 0, 0, 0]) for p in steps]
    assert 0.044 < np.std(sizes) / np.mean(sizes) < 0.06


def test_same_head_on_every_grid(cases):
    for index, fine in enumerate(cases[:4]):
        coarse = make_phantom([3, index], **COARSE)
        for a, b in ((fine[1] > 0, coarse[1] > 0), (fine[0] > 0, coarse[0] > 0)):
            assert b.sum() * 64e-3 == pytest.approx(a.sum() * 8e-3, rel=0.1)
        centre = [np.argwhere(case[1]).mean(0) * -np.diag(case[2])[:3] - case[2][:3, 3] for case in (fine, coarse)]
        assert np.abs(centre[0] - centre[1]).max() < 3  # mm


def test_volumes_and_sides_vary(cases):
    labels = [case[1] for case in cases] + [make_phantom([11, i])[1] for i in range(6)]
    volumes = np.array([(x > 0).sum() * 8e-3 for x in labels])
    left = [np.argwhere(x)[:, 0].mean() > 59.5 for x in labels]
    assert volumes.max() > 4 * volumes.min() and 15 < np.median(volumes) < 90
    assert 2 <= sum(left) <= 10


def test_channels_share_the_anatomy():
    images, labels, _ = make_channels([5, 2], channels=list(CHANNELS), **COARSE)
    flair, same, _ = make_phantom([5, 2], **COARSE)
    np.testing.assert_array_equal(images["flair"], flair)
    np.testing.assert_array_equal(labels, same)
    for image in images.values():
        np.testing.assert_array_equal(image > 0, flair > 0)
    ratio = {
        name: image[labels == 2].mean() / image[(flair > 0) & (labels == 0)].mean() for name, image in images.items()
    }
    assert ratio["t1"] < 0.8 * ratio["flair"] and ratio["t2"] > 1.1


def test_files(tmp_path):
    names = write_phantoms(tmp_path / "a", 2, seed=4, progress=False, **COARSE)
    assert names == ["Phantom_000", "Phantom_001"]
    write_phantoms(tmp_path / "b", 1, seed=4, progress=False, **COARSE)
    files = sorted(p.relative_to(tmp_path / "a").as_posix() for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert files == [f"{name}/{name}_{part}.nii.gz" for name in names for part in ("flair", "seg")]
    for part, dtype in (("flair", np.int16), ("seg", np.uint8)):
        path = f"Phantom_000/Phantom_000_{part}.nii.gz"
        image = nib.load(tmp_path / "a" / path)
        assert image.get_data_dtype() == dtype
        assert image.header["qform_code"] == image.header["sform_code"] == 1
        assert image.header.get_xyzt_units()[0] == "mm"
        np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-5)
        assert (tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes()


def test_resumes(tmp_path):
    write_phantoms(tmp_path, 1, progress=False, **COARSE)
    kept = tmp_path / "Phantom_000" / "Phantom_000_flair.nii.gz"
    before = kept.stat().st_mtime_ns
    write_phantoms(tmp_path, 2, progress=False, **COARSE)
    assert kept.stat().st_mtime_ns == before
    assert (tmp_path / "Phantom_001" / "Phantom_001_seg.nii.gz").exists()


def test_bad_input(tmp_path):
    with pytest.raises(InputError, match="swi"):
        make_channels(0, channels=["swi"])
    with pytest.raises(InputError, match="head"):
        make_phantom(0, (64, 64, 64), 1.0)
    with pytest.raises(InputError, match="seed=-2"):
        make_phantom(-2)
    with pytest.raises(InputError, match="-1"):
        write_phantoms(tmp_path, -1, progress=False)
    assert write_phantoms(tmp_path, 0, progress=False) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file"):
        write_phantoms(tmp_path / "file", 1, progress=False, **COARSE)
