"""Copy and paste: a tumour that keeps its size and contrast, no seam, nothing else touched, every pair reproducible."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from conftest import call, copy_run, one_line, snapshot
from scipy import ndimage

from sbldm.cases.layouts import Source, find_cases, read_arrays
from sbldm.run.folder import Run
from sbldm.synthesis import blocks, copypaste
from sbldm.synthesis.copypaste import BLEND_MM, CLEAR_MM, GAIN, OVERLAP, SCALE, _carve, _Training, paste_tumour
from sbldm.synthesis.healing import MARGIN_MM, heal

DATASET = Path("nnUNet_raw") / "Dataset502_COPYPASTE"
SHAPE, SPACING = (56, 64, 48), (2.0, 2.0, 2.5)

Case = tuple[np.ndarray, np.ndarray]


def ball(centre: tuple[float, ...], radii: tuple[float, ...], shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Ellipsoid in voxels."""
    grid = np.indices(shape)
    return sum(((g - c) / r) ** 2 for g, c, r in zip(grid, centre, radii, strict=True)) <= 1


BRAIN = ball((27, 31, 23), (23, 27, 19))


def head(level: float, tumour: np.ndarray | None, bright: float = 0, noise: float = 0, seed: int = 0) -> Case:
    """A brain of one level, with noise of exactly this mean and spread outside the tumour, and a tumour `bright` up."""
    labels = np.zeros(SHAPE, np.uint8) if tumour is None else tumour.astype(np.uint8)
    healthy = BRAIN & (labels == 0)
    texture = np.random.default_rng(seed).standard_normal(SHAPE)
    if noise:
        texture = noise * (texture - texture[healthy].mean()) / texture[healthy].std()
    image = np.where(healthy, level + texture * (noise > 0), np.where(BRAIN, level + bright, 0))
    return image[None].astype(np.float32), labels


LEFT, RIGHT = ball((16, 34, 24), (7, 8, 6)), ball((38, 28, 22), (6, 6, 6))


def paste(donor: Case, receiver: Case, seed: int) -> Case:
    """Paste with a seed; it must succeed."""
    pair = paste_tumour(*donor, *receiver, np.random.default_rng(seed), SPACING)
    assert pair is not None
    return pair


def far(mask: np.ndarray, mm: float) -> np.ndarray:
    """Voxels further than `mm` from a mask."""
    return ndimage.distance_transform_edt(~mask, SPACING) > mm


# --- one pair -------------------------------------------------------------------------------------------------------


def test_function_of_its_generator() -> None:
    """The same generator makes the same pair, another one another; the inputs are not touched."""
    donor, receiver = head(400, LEFT, 300, 20), head(200, RIGHT, 80, 10)
    before = [a.copy() for a in (*donor, *receiver)]
    first, again, other = (paste(donor, receiver, s) for s in (1, 1, 2))
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert (a != c).any()
    for a, b in zip(before, (*donor, *receiver), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("seed", range(6))
def test_only_the_paste_changes(seed: int) -> None:
    """Background stays 0, the receiver beyond the margin stays as it is, and so does its own tumour with its mask."""
    donor, (image, own) = head(400, LEFT, 300, 20), head(200, RIGHT, 80, 10)
    image = np.rint(image)
    drawn, labels = paste(donor, (image, own), seed)
    assert drawn.dtype == np.int16 and labels.dtype == np.uint8 and set(np.unique(labels)) == {0, 1}
    assert not drawn[0][~BRAIN].any() and drawn[0][BRAIN].min() >= 1
    assert (labels[own > 0] == 1).all() and not labels[~BRAIN].any()
    changed, pasted = (drawn != image)[0], (labels > 0) & (own == 0)
    assert changed.sum() > 0.8 * pasted.sum() > 0
    assert not changed[far(pasted, max(BLEND_MM))].any()
    gap = ndimage.distance_transform_edt(own == 0, SPACING)
    assert (gap[pasted] < CLEAR_MM).mean() <= OVERLAP
    assert not changed[(own > 0)].any() or gap[pasted].min() < CLEAR_MM


def test_size_and_place() -> None:
    """Volumes stay within the scaling, 97 % lies in the brain, near the donor's place or its mirror image."""
    donor, receiver = head(400, LEFT, 300), head(200, None)
    centres, sizes = [], []
    for seed in range(24):
        _, labels = paste(donor, receiver, seed)
        carved = _carve(*donor, BRAIN, np.random.default_rng(seed), np.array(SPACING))[2]
        assert labels.sum() >= 0.97 * carved.sum()
        sizes.append(labels.sum() / LEFT.sum())
        centres.append(ndimage.center_of_mass(labels) - np.array([27, 31, 23]))
    assert 0.9 * SCALE[0] ** 3 < min(sizes) < 0.75 and 1.3 < max(sizes) < 1.1 * SCALE[1] ** 3
    centres = np.array(centres)
    assert 4 < (centres[:, 0] > 0).sum() < 20  # mirrored about every second time
    assert np.abs(centres[:, 0]).mean() == pytest.approx(11, abs=2.5)
    assert centres[:, 1:].mean(axis=0) == pytest.approx([3, 1], abs=2.5)
    assert centres[:, 1:].std(axis=0).min() > 1


def test_contrast() -> None:
    """Donor at 400 +- 20, its tumour 300 up; receiver at 200 +- 10: the pasted one is 150 up, but for the gain."""
    gains = []
    for seed in range(12):
        image, labels = paste(head(400, LEFT, 300, 20), head(200, None, 0, 10), seed)
        core = ndimage.binary_erosion(labels)
        gains.append((np.median(image[0][core]) - 200) / 150)
    assert GAIN[0] - 0.01 < min(gains) < 1 < max(gains) < GAIN[1] + 0.01


def test_phantom_contrast(phantom_cases: Path) -> None:
    """On phantoms, whose tissues differ, the tumour stands out of healthy brain as it did in the donor."""
    cases = [read_arrays(case, Source())[:2] for case in find_cases(phantom_cases, Source())]
    ratios = []
    for seed, ((image, labels), (other, own)) in enumerate(pairwise(cases)):
        pair = paste_tumour(image, labels, other, own, np.random.default_rng(seed), (4, 4, 4))
        contrast = [
            (i[0][m].mean() - i[0][h].mean()) / i[0][h].std()
            for i, m, h in (
                (image, labels > 0, (image[0] > 0) & (labels == 0)),
                (pair[0], (pair[1] > 0) & (own == 0), (other[0] > 0) & (own == 0) & (pair[1] == 0)),
            )
        ]
        ratios.append(contrast[1] / contrast[0])
    assert len(ratios) == 5 and min(ratios) > 0.8 and max(ratios) < 1.25


# --- no seam --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tumour", [LEFT, ball((10, 31, 23), (9, 9, 8)) & BRAIN], ids=["inside", "at the skull"])
def test_constant_brains(tumour: np.ndarray) -> None:
    """Equal, constant brains: constant beyond the voxels that the outline cuts, nothing darker or brighter at it."""
    for seed in range(5):
        image, labels = paste(head(300, tumour, 200), head(300, None), seed)
        image, mask = image[0], labels > 0
        top = image.max()
        assert 300 + GAIN[0] * 200 - 1 < top < 300 + GAIN[1] * 200 + 1
        assert image[BRAIN].min() == 300
        assert (image[BRAIN & ~ndimage.binary_dilation(mask, np.ones((3, 3, 3)))] == 300).all()
        assert image[ndimage.binary_erosion(mask, np.ones((3, 3, 3)))].min() > 300 + 0.95 * (top - 300)


def test_margin_fades() -> None:
    """Where all around the tumour the donor is brighter than the receiver, a hard cut would leave a step; none is."""
    shape = (80, 80, 80)
    brain, labels = ball((40, 40, 40), (38, 38, 38), shape), ball((40, 22, 40), (6, 6, 6), shape)
    donor, receiver = (
        np.where(brain, np.where(ball((40, y, 40), (17, 17, 17), shape), 500, 300), 0)[None] for y in (22, 60)
    )
    for seed in range(4):
        image, mask = paste_tumour(donor, labels, receiver, 0 * labels, np.random.default_rng(seed), (1, 1, 1))
        added = np.where(ndimage.binary_erosion(brain), image[0] - receiver[0], 0)
        height = np.median(added[mask > 0])
        assert height == pytest.approx(200, abs=30)
        assert max(np.abs(np.diff(added, axis=axis)).max() for axis in range(3)) < 0.6 * height


# --- no place -------------------------------------------------------------------------------------------------------


def test_no_place() -> None:
    """No tumour, a brain too small for it, or one full of tumour: no pair."""
    donor, rng = head(400, LEFT, 300, 20), np.random.default_rng(0)
    small = np.where(ball((27, 31, 23), (5, 5, 4)), 200, 0)[None]
    assert paste_tumour(*head(400, None), *head(200, None), rng, SPACING) is None
    assert paste_tumour(*donor, small, np.zeros(SHAPE, np.uint8), rng, SPACING) is None
    assert paste_tumour(*donor, *head(200, ball((27, 31, 23), (20, 24, 17)), 80, 10), rng, SPACING) is None
    assert paste_tumour(*donor, *head(200, BRAIN), rng, SPACING) is None


# --- the receiver healed --------------------------------------------------------------------------------------------


def halves(tumour: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image with a tumour, labels, and the same brain without it: halves alike but for brightness that falls across."""
    texture = ndimage.gaussian_filter(np.random.default_rng(3).standard_normal(SHAPE), 2)
    texture = 300 + 400 * (texture + np.roll(texture[::-1], -1, axis=0))  # the middle is x = 27
    healthy = np.where(BRAIN, texture + 2 * (np.arange(SHAPE[0]) - 27)[:, None, None], 0).astype(np.float32)
    return np.where(tumour & BRAIN, 900, healthy)[None], (tumour & BRAIN).astype(np.uint8), healthy


@pytest.mark.parametrize("left_right", [0, 2])
def test_healed_as_if_never_ill(left_right: int) -> None:
    """The tumour of a brain with equal halves goes without a trace; beyond its margin nothing changes."""
    image, labels, healthy = halves(LEFT)
    turned = [np.swapaxes(a, left_right - 3, 0 - 3) for a in (image, labels, healthy)]
    before = turned[0].copy()
    spacing = np.array(SPACING)
    spacing[[0, left_right]] = spacing[[left_right, 0]]
    healed, none = heal(*turned[:2], spacing, left_right)
    np.testing.assert_array_equal(turned[0], before)
    assert healed.dtype == np.float32 and none.shape == turned[1].shape and not none.any()
    tumour = turned[1] > 0
    beyond = ndimage.distance_transform_edt(~tumour, spacing) >= MARGIN_MM
    np.testing.assert_array_equal(healed[0][beyond], turned[2][beyond])
    error = np.abs(healed[0] - turned[2])[tumour]
    assert error.mean() < 7 and error.max() < 25  # the halves differ by 44, the tumour by 600


def test_healed_without_another_half() -> None:
    """In the middle, and on both sides: filled with what lies around, never background; nothing healthy: left alone."""
    for tumour in (ball((27, 31, 23), (8, 8, 6)), LEFT | LEFT[::-1]):
        image, labels, healthy = halves(tumour)
        healed, none = heal(image, labels, SPACING)
        inside = labels > 0
        assert not none.any() and ((healed[0] > 0) == BRAIN).all()
        assert abs(healed[0][inside].mean() - healthy[inside].mean()) < healthy[inside].std()
        assert healed[0][inside].max() <= healthy.max() < 900
    image, labels, _ = halves(BRAIN)
    for given, found in zip((image, labels), heal(image, labels, SPACING), strict=True):
        np.testing.assert_array_equal(found, given)
    image, labels, healthy = halves(np.zeros(SHAPE, bool))
    np.testing.assert_array_equal(heal(image, labels, SPACING)[0][0], healthy)


def test_volume_of_pairs() -> None:
    """Healed receivers: the pair holds the pasted tumour alone, as it was carved; kept ones add theirs."""
    donor, receiver = head(400, LEFT, 300), head(200, RIGHT, 80, 10)
    healed = heal(*receiver, SPACING)
    for seed in range(6):
        alone, both = (paste(donor, r, seed)[1].sum() for r in (healed, receiver))
        carved = _carve(*donor, BRAIN, np.random.default_rng(seed), np.array(SPACING))[2].sum()
        assert 0.97 * carved <= alone <= carved
        assert 0.97 * carved + (1 - OVERLAP) * RIGHT.sum() <= both <= carved + RIGHT.sum()


# --- the dataset ----------------------------------------------------------------------------------------------------


def rows(run: Path, dataset: Path = DATASET) -> list[dict[str, str]]:
    """Rows of the manifest without the time."""
    with open(run / dataset / "manifest.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def voxels(run: Path, dataset: Path = DATASET) -> dict[str, np.ndarray]:
    """Images and masks by file name."""
    return {p.name: np.asarray(nib.load(p).dataobj) for p in (run / dataset).glob("*Tr/*.nii.gz")}


def train_names(run: Path) -> list[str]:
    """Names of the training cases."""
    return json.loads((run / "lists.json").read_text())["train"]


@pytest.fixture(scope="module")
def pasted_run(tmp_path_factory: pytest.TempPathFactory, prepared_run: Path) -> Path:
    """A prepared run with three pairs, seeds 0 to 2; copy it before changing it."""
    run = copy_run(prepared_run, tmp_path_factory.mktemp("pasted"))
    done = call("copypaste", "--run", run, "--n", 3)
    assert done.returncode == 0, done.stderr
    return run


def test_dataset(pasted_run: Path, phantom_cases: Path) -> None:
    """What nnU-Net reads, where each pair comes from, and a mask whose volume is the one in the manifest."""
    names, table, files = train_names(pasted_run), rows(pasted_run), voxels(pasted_run)
    content = json.loads((pasted_run / DATASET / "dataset.json").read_text())
    assert content["channel_names"] == {"0": "FLAIR"} and content["numTraining"] == 3
    lineage = json.loads((pasted_run / DATASET / "lineage.json").read_text())["cases"]
    assert lineage == {n: json.loads((pasted_run / "prepared" / f"{n}.json").read_text())["content"] for n in names}
    assert [row["seed"] for row in table] == ["0", "1", "2"] and len(files) == 6
    parents = [row["parents"].split(";") for row in table]
    assert all(donor != receiver and {donor, receiver} <= set(names) for donor, receiver in parents)
    assert len({receiver for _, receiver in parents}) == 3
    for row, (_, receiver) in zip(table, parents, strict=True):
        case = nib.load(phantom_cases / receiver / f"{receiver}_flair.nii.gz")
        own = np.asarray(nib.load(phantom_cases / receiver / f"{receiver}_seg.nii.gz").dataobj) > 0
        file = nib.load(pasted_run / DATASET / "labelsTr" / f"{row['pair']}.nii.gz")
        np.testing.assert_allclose(file.affine, case.affine, atol=1e-4)
        image, labels = files[f"{row['pair']}_0000.nii.gz"], files[f"{row['pair']}.nii.gz"]
        assert image.dtype == np.int16 and labels.dtype == np.uint8 and (labels[own] == 1).all()
        assert float(row["measured_volume_ml"]) == pytest.approx(labels.sum() * 0.064, abs=6e-4)
        scanned = np.asarray(case.dataobj)
        same = ndimage.distance_transform_edt((labels == 0) | own, 4.0) > max(BLEND_MM)
        np.testing.assert_array_equal(image[same], scanned[same])
        np.testing.assert_array_equal(image == 0, scanned == 0)
        assert (image != scanned).sum() > 20
    assert (pasted_run / "figures" / "Dataset502_COPYPASTE.png").read_bytes().startswith(b"\x89PNG")


def test_alone_and_again(tmp_path: Path, pasted_run: Path) -> None:
    """Seed 2 alone makes pair 2 of three; a second call adds what is missing and leaves the rest alone."""
    run = copy_run(pasted_run, tmp_path)
    together, other = voxels(run), Path("nnUNet_raw") / "Dataset503_ALONE"
    assert call("copypaste", "--run", run, "--n", 1, "--seed", 2, "--dataset", 503, "--name", "ALONE").returncode == 0
    for file, array in voxels(run, other).items():
        np.testing.assert_array_equal(array, together[file.replace("ALONE", "COPYPASTE")])
    assert {k: v for k, v in rows(run, other)[0].items() if k != "pair"}.items() <= rows(run)[2].items()

    (run / DATASET / "labelsTr" / "COPYPASTE_000001.nii.gz").unlink()
    before = snapshot(run / DATASET)
    done = call("copypaste", "--run", run, "--n", 4)
    assert done.returncode == 0 and "2 of 4 pairs are already there" in done.stdout
    after = snapshot(run / DATASET)
    kept = [k for k in before if "00000" in k and "000001" not in k]
    assert len(kept) == 6 and all(after[k] == before[k] for k in kept)
    again = voxels(run)
    assert len(again) == 8 and all((again[k] == together[k]).all() for k in together)


def test_in_blocks(tmp_path: Path, pasted_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In blocks, one of them given to two processes, and what is there already among them: the same files."""

    def twice(function: Any, blocks: list[Any], workers: int, *_: Any) -> list[Any]:
        assert [len(block.seeds) for block in blocks] == [8, 2] and workers == 2
        found = [function(block) for block in (*blocks, blocks[0])]
        return found[:2]

    whole, run = (copy_run(pasted_run, tmp_path / name) for name in "ab")
    assert call("copypaste", "--run", whole, "--n", 10).returncode == 0
    shutil.rmtree(run / DATASET)
    monkeypatch.setattr(blocks, "map_in_processes", twice)
    done = call("copypaste", "--run", run, "--n", 10, "--workers", 2)
    assert done.returncode == 0, done.stderr
    files = [{p.name: p.read_bytes() for p in (r / DATASET).glob("*Tr/*")} for r in (whole, run)]
    assert files[0] == files[1] and len(files[0]) == 20
    tables = [[row | {"seconds": ""} for row in rows(folder)] for folder in (whole, run)]
    assert tables[0] == tables[1]


def test_healed_dataset(tmp_path: Path, pasted_run: Path, phantom_cases: Path) -> None:
    """The control beside the rival: the same receivers, one tumour each, both parents, and it says so."""
    run, other = copy_run(pasted_run, tmp_path), Path("nnUNet_raw") / "Dataset503_COPYPASTE_HEALED"
    done = call("copypaste", "--run", run, "--n", 2, "--own", "healed")
    assert done.returncode == 0, done.stderr
    assert "own = kept, now it is healed" in one_line(
        call("copypaste", "--run", run, "--n", 2, "--own", "healed", "--dataset", 502, "--name", "COPYPASTE"), 4
    )
    table, files = rows(run, other), voxels(run, other)
    lineage = json.loads((run / other / "lineage.json").read_text())["cases"]
    assert json.loads((run / other / "synthesis.json").read_text())["own"] == "healed"
    assert "the receiver's own tumour healed" in (run / other / "datasheet.md").read_text()
    assert {row["own"] for row in table} == {"healed"} and {row["own"] for row in rows(run)} == {"kept"}
    for row, kept in zip(table, rows(run), strict=False):
        donor, receiver = row["parents"].split(";")
        assert receiver == kept["parents"].split(";")[1] and {donor, receiver} <= set(lineage)
        scanned, own, given = (
            np.asarray(nib.load(phantom_cases / case / f"{case}_{part}.nii.gz").dataobj)
            for case, part in ((receiver, "flair"), (receiver, "seg"), (donor, "seg"))
        )
        image, labels = files[f"{row['pair']}_0000.nii.gz"], files[f"{row['pair']}.nii.gz"]
        ratio = float(row["measured_volume_ml"]) / ((given > 0).sum() * 0.064)
        assert 0.9 * SCALE[0] ** 3 < ratio < 1.1 * SCALE[1] ** 3
        touched = (ndimage.distance_transform_edt(labels == 0, 4.0) <= max(BLEND_MM)) | (
            ndimage.distance_transform_edt(own == 0, 4.0) < MARGIN_MM
        )
        np.testing.assert_array_equal(image[~touched], scanned[~touched])
        np.testing.assert_array_equal(image == 0, scanned == 0)
        healed = (own > 0) & (ndimage.distance_transform_edt(labels == 0, 4.0) > max(BLEND_MM))
        assert not labels[healed].any() and (image != scanned)[healed].mean() > 0.9


def test_only_copypaste_heals(prepared_run: Path) -> None:
    """A generator has no receiver."""
    said = one_line(call("synth", "--run", prepared_run, "--n", 1, "--own", "healed"), 2)
    assert "--own healed: pairs of the model sbldm have no receiver" in said


def test_receivers_take_turns(prepared_run: Path) -> None:
    """Among five cases, ten seeds in a row from 0 let each receive twice; donors differ."""
    training = _Training(Run.at(prepared_run), "")
    parents = [training.draw(seed)[2]["parents"].split(";") for seed in range(10)]
    assert Counter(receiver for _, receiver in parents) == dict.fromkeys(train_names(prepared_run), 2)
    assert len({donor for donor, _ in parents}) > 2


def test_other_grid(tmp_path: Path, prepared_run: Path) -> None:
    """A case on another grid is left out, which is said."""
    run = copy_run(prepared_run, tmp_path)
    odd = train_names(run)[0]
    path = run / "prepared" / f"{odd}.json"
    sidecar = json.loads(path.read_text())
    sidecar["native"]["spacing"][2] = 5.0
    path.write_text(json.dumps(sidecar))
    done = call("copypaste", "--run", run, "--n", 4)
    assert done.returncode == 0 and f"Warning: 1 case(s) left out, not on the grid of most, e.g. {odd}" in done.stdout
    assert odd not in " ".join(row["parents"] for row in rows(run))
    assert odd not in (run / DATASET / "lineage.json").read_text()


# --- what a user can mend -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 2, "--n is missing"),
        (["--n", 0], 2, "--n 0"),
        (["--n", "x"], 2, "--n x"),
        (["--n", 1, "--seed", -1], 2, "--seed -1"),
        (["--n", 1, "--data", "/nowhere"], 2, "--data /nowhere"),
        (["--n", 1, "--dataset", 0], 2, "--dataset 0"),
        (["--n", 1, "--name", "a b"], 2, "--name a b"),
        (["--n", 1, "--own", "gone"], 2, "--own gone: choose one of kept, healed."),
        (["--n", 4, "--seed", 1], 4, "seed = 0, now it is 1"),
        (["--n", 1, "--name", "OTHER"], 4, "number 502 is taken"),
    ],
)
def test_arguments(pasted_run: Path, arguments: list[object], code: int, said: str) -> None:
    """Wrong arguments are named in one line, and nothing is changed."""
    before = snapshot(pasted_run)
    assert said in one_line(call("copypaste", "--run", pasted_run, *arguments), code)
    assert snapshot(pasted_run) == before


def test_not_prepared(tmp_path: Path, prepared_run: Path) -> None:
    """An empty run folder, or one without a sidecar."""
    assert "sbldm prepare" in one_line(call("copypaste", "--run", tmp_path / "none", "--n", 1), 4)
    run = copy_run(prepared_run, tmp_path)
    (run / "prepared" / f"{train_names(run)[0]}.json").unlink()
    assert "sbldm prepare" in one_line(call("copypaste", "--run", run, "--n", 1), 4)


def test_one_case(tmp_path: Path, prepared_run: Path) -> None:
    """One training case cannot be donor and receiver."""
    run = copy_run(prepared_run, tmp_path)
    lists = json.loads((run / "lists.json").read_text())
    (run / "lists.json").write_text(json.dumps(lists | {"train": lists["train"][:1]}))
    assert "1 training case(s) on one grid" in one_line(call("copypaste", "--run", run, "--n", 1), 3)


def test_changed_files(tmp_path: Path, prepared_run: Path, phantom_cases: Path) -> None:
    """Files that are not the ones prepared, or are damaged, would make the lineage lie."""
    names = train_names(prepared_run)
    data = tmp_path / "data"
    shutil.copytree(phantom_cases, data)
    run = copy_run(prepared_run, tmp_path)
    paths = [data / name / f"{name}_flair.nii.gz" for name in names]
    for path in paths:
        image = nib.load(path)
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj) + np.int16(1), image.affine), path)
    error = one_line(call("copypaste", "--run", run, "--n", 1, "--data", data), 3)
    assert "holds other voxels than when it was prepared" in error
    for path in paths:
        path.write_bytes(path.read_bytes()[:2000])
    assert "cannot be read" in one_line(call("copypaste", "--run", run, "--n", 1, "--data", data), 3)


def test_no_place_for_any(tmp_path: Path, prepared_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pairs that cannot be made are counted in the error."""
    monkeypatch.setattr(copypaste, "paste_tumour", lambda *_: None)
    run = copy_run(prepared_run, tmp_path)
    assert "2 pair(s) not made (COPYPASTE_000000)" in one_line(call("copypaste", "--run", run, "--n", 2), 3)
