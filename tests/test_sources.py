"""What may train which arm: foreign datasets, lineage, subsets; nothing here trains."""

from __future__ import annotations

import csv
import itertools
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from nnunet_integration.arms import ArmBook, load_budget
from nnunet_integration.evaluation import Question, _with_amounts, export
from nnunet_integration.jobs import plan_jobs
from nnunet_integration.pool import Pool, _write_case
from nnunet_integration.sources import Pairs, RealCases, find_pairs, find_real, nested_subset, pairs_for
from sbldm.cases.identity import Seen
from sbldm.cases.layouts import content_hash, find_cases
from sbldm.run.errors import DamagedError, DataError, InputError, OutputError, StateError
from sbldm.run.files import read_json, write_csv, write_json
from sbldm.run.folder import Run
from sbldm.run.options import words
from tests.conftest import copy_run

BUDGET = load_budget("demo")


@pytest.fixture(scope="module")
def real(drawn_run: Path) -> RealCases:
    return find_real(Run.at(drawn_run))


def pairs_of(run: Path, real: RealCases, synth: str = "") -> list[Pairs]:
    return find_pairs(words(synth), Run.at(run), real)


def plan(arms, real, pairs, n_real=None, folds=(), strict=True):
    chosen = ArmBook.load().choose(arms, [p.generator for p in pairs])
    return plan_jobs(chosen, n_real or [len(real.train)], folds, [0], real, pairs, BUDGET, strict)


@pytest.fixture
def foreign(drawn_run: Path, tmp_path: Path) -> Path:
    """The pairs as somebody else's dataset: no lineage, no manifest."""
    folder = tmp_path / "Dataset042_Gan"
    source = next((drawn_run / "nnUNet_raw").glob("Dataset*"))
    keep = shutil.ignore_patterns("lineage.json", "manifest.csv", "records", "synthesis.json")
    return Path(shutil.copytree(source, folder, ignore=keep))


def test_real_cases_are_those_of_the_run(drawn_run, real):
    lists = read_json(drawn_run / "lists.json")
    assert list(real.train) == lists["train"] and list(real.test) == lists["validation"]
    assert real.source.description(9)["channel_names"] == {"0": "FLAIR"}
    assert real.source.description(9)["labels"] == {"background": 0, "whole tumour": 1}
    image = np.asarray(nib.load(real.train[lists["train"][0]].images[0]).dataobj, np.float32)
    assert real.content[lists["train"][0]] == content_hash(image)
    assert real.spacings == {(4.0, 4.0, 4.0)}


def test_pairs_carry_their_lineage(drawn_run, real):
    (pairs,) = pairs_of(drawn_run, real)
    assert pairs.generator == "sbldm" and pairs.only == "" and len(pairs.cases) == 3
    assert pairs.lineage == {name: real.content[name] for name in real.train}
    assert pairs.seen(real.train, real) == set(real.train)
    assert pairs.seen(real.test, real) == set()


def test_a_generator_from_elsewhere(drawn_run, real, tmp_path):
    """Its pairs may join any arm; a test case that it was trained on is refused, found by salted hashes."""
    run = Path(shutil.copytree(drawn_run, tmp_path / "run"))
    folder = next((run / "nnUNet_raw").glob("Dataset*"))
    first, *_, last = sorted(real.train)

    def trained_on(*marks: str) -> Pairs:
        seen = Seen.of([{"content": mark} for mark in marks]).state()
        generator = {"data": "other cases", "licence": "none", "cases": len(marks), "seen": seen}
        generator["weights_sha256"] = read_json(folder / "synthesis.json")["checkpoint_sha256"]
        write_json(folder / "lineage.json", {"cases": {}, "generator": generator})
        return pairs_of(run, real)[0]

    pairs = trained_on("Case 1", "Case 2")
    assert pairs.seen([*real.train, *real.test], real) == set()
    (job,) = plan(["real+sbldm"], real, [pairs], [2])
    assert job["lineage"] == "outside" and len(job["train"]) == 4
    tested = min(real.test)
    for mark in (real.content[tested], real.identities[tested].brightness, real.marks(tested)[-1]):
        pairs = trained_on("Case 1", mark)
        assert pairs.seen(real.test, real) == {tested}
        with pytest.raises(DataError, match=f"made from {tested}, which are tested on"):
            plan(["real+sbldm"], real, [pairs], [2])
    with open(folder / "manifest.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    trained_on("Case 1")
    content = {"canvas": first, "canvas_content": real.content[first]}
    write_csv(folder / "manifest.csv", [row | content for row in rows])
    described = read_json(folder / "lineage.json") | {"cases": {first: real.content[first]}}
    write_json(folder / "lineage.json", described)
    (pairs,) = pairs_of(run, real)  # drawn into a training case: for arms that have it
    assert len(pairs.usable({first: real.content[first]})) == 3 and not pairs.usable({last: real.content[last]})


def test_canvases_of_the_user_s_own_are_free(drawn_run, real, tmp_path):
    """Scans that are no case of the evaluation keep no pairs from an arm; training cases left out of it still do."""
    run = Path(shutil.copytree(drawn_run, tmp_path / "run"))
    folder = next((run / "nnUNet_raw").glob("Dataset*"))
    with open(folder / "manifest.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    first, *_, last = sorted(real.train)
    lineage = {"Scan 1": "c1", first: real.content[first]}
    write_json(folder / "lineage.json", {"cases": lineage})
    write_csv(folder / "manifest.csv", [row | {"canvas": "Scan 1", "canvas_content": "c1"} for row in rows])
    (pairs,) = pairs_of(run, real)
    assert pairs.scans == {"Scan 1"}
    assert pairs_for([pairs], "sbldm", [first], None, [first]) is pairs
    assert pairs_for([pairs], "sbldm", [last], None, [last]) is None
    for content in (real.content[last], real.content[min(real.test)]):  # known under another name
        write_json(folder / "lineage.json", {"cases": {"Scan 1": content}})
        write_csv(folder / "manifest.csv", [row | {"canvas": "Scan 1", "canvas_content": content} for row in rows])
        assert pairs_of(run, real)[0].scans == frozenset()


def test_test_cases_may_not_be_training_cases(drawn_run, real, tmp_path, phantom_cases):
    name = next(iter(real.train))
    shutil.copytree(phantom_cases / name, tmp_path / "a" / name)
    with pytest.raises(DataError, match=f"{name}: also among the training cases"):
        find_real(Run.at(drawn_run), test=str(tmp_path / "a"))
    other = tmp_path / "b" / "Other"
    other.mkdir(parents=True)
    for part in ("flair", "seg"):  # another name, another number type, another compression
        image = nib.load(phantom_cases / name / f"{name}_{part}.nii.gz")
        data = np.asarray(image.dataobj)
        nib.save(nib.Nifti1Image(data.astype(np.float32), image.affine), other / f"Other_{part}.nii.gz")
    with pytest.raises(DataError, match=f"Other holds the same image as the training case {name}"):
        find_real(Run.at(drawn_run), test=str(tmp_path / "b"))


@pytest.mark.parametrize("name", ["lineage.json", "manifest.csv"])
def test_a_damaged_dataset_stops_none_but_those_who_name_it(drawn_run, real, tmp_path, capsys, name):
    """One that only lies there is passed over with a warning; `--synth` and `--arms` name those that are needed."""
    run = copy_run(drawn_run, tmp_path)
    (sound,) = Run.at(run).datasets()
    damaged = Path(shutil.copytree(sound, sound.with_name("Dataset600_OTHER"))) / name
    damaged.write_text("{")
    arms = ["real+aug", "real+sbldm@2x"]
    assert [p.generator for p in find_pairs((), Run.at(run), real, arms)] == ["sbldm"]
    said = [line for line in capsys.readouterr().out.splitlines() if "left out" in line]
    assert len(said) == 1 and said[0].startswith(f"Warning: {damaged}: ")
    for synth, asked in ((f"other={damaged.parent}", arms), (f"other={run}", []), ("", ["real+sbldm+other@2x"])):
        with pytest.raises(DamagedError, match=str(damaged)):
            find_pairs(words(synth), Run.at(run), real, asked)


def test_cases_that_moved(drawn_run, tmp_path, phantom_cases):
    run = copy_run(drawn_run, tmp_path)
    lists = read_json(run / "lists.json")
    write_json(run / "lists.json", lists | {"data": "/nowhere"})
    with pytest.raises(InputError, match=r"--data /nowhere: .*say where by --data"):
        find_real(Run.at(run))
    assert len(find_real(Run.at(run), data=str(phantom_cases)).train) == len(lists["train"])


def test_subsets_are_nested():
    names = [f"c{i:02d}" for i in range(50)]
    subsets = [nested_subset(names, n) for n in (1, 10, 25, 50)]
    assert [len(s) for s in subsets] == [1, 10, 25, 50]
    assert all(set(a) < set(b) for a, b in itertools.pairwise(subsets))
    assert subsets[1] == nested_subset(reversed(names), 10) != names[:10]
    with pytest.raises(InputError, match="--n-real 51"):
        nested_subset(names, 51)


def test_jobs_hold_the_split(drawn_run, real):
    pairs = pairs_of(drawn_run, real)
    book = ArmBook.load()
    arms = [arm.times(0.6) if arm.generators else arm for arm in book.choose(["real+aug", "real+sbldm"], ["sbldm"])]
    jobs = plan_jobs(arms, [len(real.train)], [], [0, 1], real, pairs, BUDGET, True)
    assert [job["job"] for job in jobs] == [
        *("real+aug_n5_seed0", "real+aug_n5_seed1", "real+sbldm@0.6x_n5_seed0", "real+sbldm@0.6x_n5_seed1")
    ]
    assert jobs[0]["train"] == [f"real__{name}" for name in real.train]
    assert jobs[2]["train"] == jobs[0]["train"] + [f"sbldm__SBLDM_00000{i}" for i in range(3)]
    for job in jobs:
        assert job["validation"] == job["test"] == [f"test__{name}" for name in real.test]
        assert not {case for case in job["train"] if case.startswith("test__")}
    assert [job["trainer"] for job in jobs[::2]] == ["SBLDMTrainer", "SBLDMTrainerNoAugmentation"]


def test_folds_leave_a_fifth_out(real):
    jobs = plan(["real", "real+aug5"], real, [], folds=[0, 1])
    by_fold = [set(job["validation"]) for job in jobs[:2]]
    assert by_fold[0].isdisjoint(by_fold[1]) and all(len(v) == 1 for v in by_fold)
    for job in jobs:
        assert not set(job["train"]) & set(job["validation"])
        (left_out,) = job["validation"]  # its augmented copies are left out with it
        assert not [case for case in job["train"] if left_out.removeprefix("real__") in case]
    assert len(jobs[2]["train"]) == 5 * len(jobs[0]["train"])


def test_a_generator_that_saw_a_held_out_case_is_refused(drawn_run, real):
    (pairs,) = pairs_of(drawn_run, real)
    test_case = next(iter(real.test))
    spoilt = replace(pairs, lineage=pairs.lineage | {"renamed": real.content[test_case]})
    for synth in (
        spoilt,
        replace(spoilt, only="5"),
        replace(spoilt, parents={name: frozenset() for name in pairs.cases}),
    ):
        with pytest.raises(DataError, match=f"made from {test_case}, which are tested on"):
            plan(["real+sbldm"], real, [synth], strict=False)
    with pytest.raises(DataError, match="real cases that this arm does not train on"):
        plan(["real+sbldm"], real, [replace(pairs, only="5/0")], folds=[0])


def test_a_generator_that_saw_more_real_cases_than_the_arm(drawn_run, real):
    pairs = pairs_of(drawn_run, real)
    with pytest.raises(StateError, match=r"no pairs of sbldm .* its 3 real cases; train a generator on these"):
        plan(["real+sbldm"], real, pairs, n_real=[3])
    assert plan([], real, pairs, n_real=[3], strict=False)[-1]["arm"] == "real+aug5"  # standard arms: left out, said so
    with pytest.raises(DataError, match="real cases that this arm does not train on"):
        plan(["real+sbldm"], real, [replace(pairs[0], only="3")], n_real=[3])


def test_pairs_with_parents_of_their_own(drawn_run, real):
    """Copy-paste pairs join an arm as far as both parents are among its real cases."""
    (pairs,) = pairs_of(drawn_run, real)
    train = nested_subset(real.train, 5)
    small = nested_subset(real.train, 2)
    outside = next(name for name in train if name not in small)
    own = {name: frozenset(small) for name in list(pairs.cases)[:2]} | {list(pairs.cases)[2]: frozenset([outside])}
    copypaste = replace(pairs, parents=own)
    (job,) = plan(["real+sbldm"], real, [copypaste], n_real=[2])
    assert job["train"][2:] == [f"sbldm__{name}" for name in list(pairs.cases)[:2]]
    with pytest.raises(StateError, match=r"needs 5 pairs, .* has 3 that may join .*sbldm synth"):
        plan(["real+sbldm"], real, [copypaste])


def test_too_few_pairs_say_how_many(drawn_run, real):
    with pytest.raises(StateError, match=r"needs 5 pairs, .* has 3 .*sbldm synth --run.* --n"):
        plan(["real+sbldm"], real, pairs_of(drawn_run, real))


def test_foreign_datasets(drawn_run, real, foreign, capsys):
    (pairs,) = pairs_of(drawn_run, real, f"gan={foreign}")
    assert "does not say which real cases" in capsys.readouterr().out
    assert pairs.lineage is None and list(pairs.cases) == [f"SBLDM_00000{i}" for i in range(3)]
    (job,) = plan(["gan"], real, [pairs], n_real=[3])
    assert job["lineage"] == "unknown" and job["train"] == [f"gan__SBLDM_00000{i}" for i in range(3)]


def test_datasets_that_do_not_fit(drawn_run, real, foreign):
    path = foreign / "dataset.json"
    sound = json.loads(path.read_text())
    for change, message in (
        ({"channel_names": {"0": "T1"}}, "its channels are T1, those of the real cases FLAIR"),
        ({"labels": {"background": 0, "liver": 1}}, "its labels are .*liver"),
        ({"labels": {"background": 0, "whole tumour": 2}}, "its labels are"),
        ({"labels": None}, "cannot be read"),
    ):
        write_json(path, sound | change)
        with pytest.raises(DataError, match=message):
            pairs_of(drawn_run, real, f"gan={foreign}")
    write_json(path, sound | {"labels": {"background": 0, "Whole Tumor": 1}})  # the same in another spelling
    assert pairs_of(drawn_run, real, f"gan={foreign}")
    image = nib.load(foreign / "imagesTr" / "SBLDM_000001_0000.nii.gz")
    wider = nib.Nifti1Image(np.asarray(image.dataobj), image.affine @ np.diag([1.5, 1, 1, 1]))
    nib.save(wider, foreign / "imagesTr" / "SBLDM_000001_0000.nii.gz")
    with pytest.raises(
        DataError, match=r"SBLDM_000001_0000.nii.gz: its spacing \(6.0, 4.0, 4.0\) mm occurs in no real"
    ):
        pairs_of(drawn_run, real, f"gan={foreign}")
    (foreign / "labelsTr" / "SBLDM_000000.nii.gz").unlink()
    with pytest.raises(DataError, match=r"SBLDM_000000.nii.gz: is missing"):
        pairs_of(drawn_run, real, f"gan={foreign}")


def test_the_files_that_are_there_are_looked_at(drawn_run, tmp_path, phantom_cases):
    """A training case over a test case of the same size and time, another mask, and a turned copy as test case."""
    lists, data = read_json(drawn_run / "lists.json"), tmp_path / "data"
    run = Run.at(copy_run(drawn_run, tmp_path))
    shutil.copytree(phantom_cases, data)
    assert set(find_real(run, str(data)).test) == set(lists["validation"])
    trained, tested = (lists[role][0] for role in ("train", "validation"))
    for part, found in (("flair", "image"), ("seg", "mask")):
        path = data / tested / f"{tested}_{part}.nii.gz"
        sound, times = path.read_bytes(), path.stat()
        path.write_bytes((data / trained / f"{trained}_{part}.nii.gz").read_bytes())
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        with pytest.raises(DataError, match=rf"{path.name}: holds other voxels .* \({tested}: {found}\); put the old"):
            find_real(run, str(data))
        path.write_bytes(sound)
    assert find_real(run, str(data))
    other = tmp_path / "test" / "Other"
    other.mkdir(parents=True)
    for part in ("flair", "seg"):
        image = nib.load(phantom_cases / trained / f"{trained}_{part}.nii.gz")
        turn = nib.orientations.ornt_transform(*map(nib.orientations.axcodes2ornt, ("LPS", "RAS")))
        nib.save(image.as_reoriented(turn), other / f"Other_{part}.nii")
    with pytest.raises(DataError, match=f"Other holds the same image as the training case {trained}"):
        find_real(run, str(data), test=str(tmp_path / "test"))


@pytest.mark.parametrize("synth", ["sbldm", "a={0} a={0}", "sbldm@x={0}", "real={0}", "test={0}", "SBLDM={0}"])
def test_wrong_synth(drawn_run, real, foreign, synth):
    with pytest.raises(InputError, match="--synth"):
        pairs_of(drawn_run, real, synth.format(foreign))


def test_a_folder_with_blanks_and_datasets_that_may_not_be_called_so(drawn_run, real, foreign, tmp_path):
    spaced = foreign.rename(tmp_path / "my gan")
    assert pairs_of(drawn_run, real, f"gan='{spaced}'")[0].folder == spaced
    run = copy_run(drawn_run, tmp_path)
    shutil.copytree(spaced, run / "nnUNet_raw" / "Dataset600_Real")
    with pytest.raises(InputError, match="--synth real="):
        pairs_of(run, real)


def test_what_stands_in_the_pairs_is_looked_at(drawn_run, real, foreign):
    """A label that dataset.json does not have, a value that is no number, and the image of a test case."""
    label, image = foreign / "labelsTr/SBLDM_000001.nii.gz", foreign / "imagesTr/SBLDM_000001_0000.nii.gz"
    sound = {path: nib.load(path) for path in (label, image)}
    voxels = {path: np.asarray(held.dataobj) for path, held in sound.items()}

    def refused(path, values, message):
        nib.save(nib.Nifti1Image(values, sound[path].affine), path)
        with pytest.raises(DataError, match=message):
            pairs_of(drawn_run, real, f"gan={foreign}")
        nib.save(nib.Nifti1Image(voxels[path], sound[path].affine), path)

    refused(label, voxels[label] * np.uint8(255), "holds the label 255")
    refused(label, voxels[label] * np.float32(0.5), "holds the label 0.5")
    refused(image, np.where(voxels[image] > 0, np.nan, 0).astype(np.float32), "no numbers")
    refused(label, voxels[label][:-1], "has shape")
    case = next(iter(real.test.values()))
    tested = np.asarray(nib.load(case.images[0]).dataobj)
    refused(image, tested, f"SBLDM_000001_0000.nii.gz: holds the image of the test case {case.name}")


def test_only_what_the_manifest_lists_has_the_lineage(drawn_run, real, tmp_path):
    run = copy_run(drawn_run, tmp_path)
    folder = next((run / "nnUNet_raw").glob("Dataset*"))
    for part, end in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        shutil.copy(folder / part / f"SBLDM_000000{end}", folder / part / f"Added{end}")
    (pairs,) = pairs_of(run, real)
    assert list(pairs.cases) == [f"SBLDM_00000{i}" for i in range(3)]


def test_amount_nothing_is_the_arm_without_pairs():
    book = ArmBook.load()
    arms = _with_amounts(book.choose(["real+aug", "real+sbldm+aug"], ["sbldm"]), [0, 0.5, 1], book)
    assert [arm.name for arm in arms] == ["real+aug", "real+sbldm+aug@0.5x", "real+sbldm+aug"]
    arms = _with_amounts(book.choose(["real+sbldm", "sbldm"], ["sbldm"]), [0, 2], book)
    assert [arm.name for arm in arms] == ["real+sbldm@2x", "real", "sbldm@2x"]  # nothing is left of sbldm alone


def test_nothing_is_written_before_all_checks(drawn_run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    asked = Question(Run.at(drawn_run), None, None, (), ["real+gan"], [], None, [], [], [0], BUDGET)
    with pytest.raises(InputError, match=r"--arms real\+gan"):
        export(asked, out, 1)
    assert not out.exists()
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 1000))
    with pytest.raises(OutputError, match=r"needs about \d+\.\d GB, 0\.0 GB are free"):
        export(replace(asked, arms=["real"]), out, 1)
    assert not out.exists()


def test_missing_or_other_nnunet(drawn_run, tmp_path, monkeypatch):
    import importlib.metadata as metadata

    asked = Question(Run.at(drawn_run), None, None, (), ["real"], [], None, [], [], [0], BUDGET)
    monkeypatch.setattr(metadata, "version", lambda name: "2.7.1")
    with pytest.raises(StateError, match=r"nnU-Net 2\.7\.1 is installed"):
        export(asked, tmp_path / "out", 1)

    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(StateError, match="nnU-Net is not installed"):
        export(asked, tmp_path / "out", 1)


def test_room_grows_with_cases_and_jobs(real, tmp_path):
    pool = Pool(tmp_path, BUDGET)
    one = pool.needs(pool.work(real, [], copies=False), 1)
    five = pool.needs(pool.work(real, [], copies=True), 1)
    voxels = 60 * 60 * 39
    assert five - one == 4 * len(real.train) * voxels * (1 + 2 + 2 + 4)  # the spacing of the plan is theirs
    assert pool.needs([], 2) == 2 * pool.needs([], 1) > 0


def test_cases_are_turned_to_the_axes_of_the_pool(real, foreign, tmp_path):
    """A foreign pair stored with other axes comes into the pool voxel by voxel where the real cases have theirs."""
    name = "SBLDM_000000"
    sound = {}
    for part in (f"imagesTr/{name}_0000.nii.gz", f"labelsTr/{name}.nii.gz"):
        image = nib.load(foreign / part)
        sound[part] = np.asarray(image.dataobj)
        turned = image.as_reoriented(
            nib.orientations.ornt_transform(*map(nib.orientations.axcodes2ornt, ("LPS", "SRA")))
        )
        nib.save(turned, foreign / part)
        assert np.asarray(nib.load(foreign / part).dataobj).shape != sound[part].shape
    case = next(case for case in find_cases(foreign, real.source) if case.name == name)
    pool = Pool(tmp_path / "pool", BUDGET)
    _write_case(pool, real.source, ("L", "P", "S"), (f"gan__{name}", case, 0))
    for path, part in zip((*pool.images(f"gan__{name}", 1), pool.label(f"gan__{name}")), sound, strict=True):
        assert np.array_equal(np.asarray(nib.load(path).dataobj), sound[part])
        assert nib.aff2axcodes(nib.load(path).affine) == ("L", "P", "S")
    pool.check_pairs([(f"gan__{name}", case, 0)])  # the same pair, turned
    other = replace(case, mask=foreign / "labelsTr" / "SBLDM_000001.nii.gz")
    with pytest.raises(StateError, match="holds another pair"):
        pool.check_pairs([(f"gan__{name}", other, 0)])
    same = next(case for case in find_cases(foreign, real.source) if case.name == "SBLDM_000001")
    _write_case(pool, real.source, ("L", "P", "S"), ("gan__SBLDM_000001", same, 0))
    assert pool.label("gan__SBLDM_000001").samefile(same.mask)  # no copy where none is needed


def test_pairs_in_other_kinds_of_files(drawn_run, real, foreign, tmp_path):
    """An image as NRRD, and a mask whose slope leaves 0.99998: the pool holds the very voxels and whole labels."""
    name, pool = "SBLDM_000001", Pool(tmp_path / "pool", BUDGET)
    image, label = foreign / f"imagesTr/{name}_0000.nii.gz", foreign / f"labelsTr/{name}.nii.gz"
    voxels, mask = (np.asarray(nib.load(path).dataobj) for path in (image, label))
    sitk.WriteImage(sitk.ReadImage(image), image.with_name(f"{name}_0000.nrrd"))
    image.unlink()
    sloped = nib.Nifti1Image(mask.astype(np.float32), nib.load(label).affine)
    sloped.set_data_dtype(np.int16)
    nib.save(sloped, label)
    assert 0 < np.abs(np.asarray(nib.load(label).dataobj) - mask).max() < 1e-3
    case = pairs_of(drawn_run, real, f"gan={foreign}")[0].cases[name]
    assert case.images[0].suffix == ".nrrd"
    _write_case(pool, real.source, ("L", "P", "S"), (f"gan__{name}", case, 0))
    found, held = (
        np.asarray(nib.load(p).dataobj) for p in (*pool.images(f"gan__{name}", 1), pool.label(f"gan__{name}"))
    )
    assert np.array_equal(found, voxels) and np.array_equal(held, mask)
    pool.check_pairs([(f"gan__{name}", case, 0)])
