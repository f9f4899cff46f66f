"""Filtering by a network whose predictions are written by hand: what is dropped, kept, linked and descended from."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import call, one_line, partial_files, snapshot

from nnunet_integration import filter as filtering
from nnunet_integration.filter import acceptance, agreement, filter_pairs, trained_on
from nnunet_integration.predict import find_model
from sbldm.run.errors import DataError, InputError, StateError
from sbldm.run.files import read_json, read_rows, write_csv, write_json, write_nifti

AFFINE = np.diag([2.0, 2, 2, 1])
NAME = "Dataset504_SBLDM"
# Of a mask of 20 voxels: how many are found, how many others are predicted. DSC = 2 * found / (20 + found + others).
PREDICTED = {"A": (20, 0), "B": (1, 0), "C": (2, 98), "D": (0, 0), "E": (10, 10)}
DSC = {"A": 1.0, "B": 0.0952, "C": 0.0333, "D": 0.0, "E": 0.5}
ORIGIN = {
    "data": "elsewhere",
    "licence": "CC BY",
    "cases": 9,
    "seen": [{"salt": "00", "hashes": []}],
    "weights_sha256": "w",
}
FOUND = {"A": 1.0, "B": 0.05, "C": 0.1, "D": 0.0, "E": 0.5}


def volume(first: int, count: int, others: int = 0) -> np.ndarray:
    """Labels [8, 8, 8] with `count` voxels from the `first` on, and `others` from voxel 200 on."""
    labels = np.zeros(512, np.uint8)
    labels[first : first + count] = 1
    labels[200 : 200 + others] = 1
    return labels.reshape(8, 8, 8)


def write_dataset(run: Path, name: str = NAME, **columns: str) -> Path:
    """Five pairs with two channels, as `sbldm synth` leaves them; `columns` are further ones of the manifest."""
    folder = run / "nnUNet_raw" / name
    for pair in PREDICTED:
        for channel in range(2):
            image = np.random.default_rng(channel).integers(0, 99, (8, 8, 8), np.int16)
            write_nifti(folder / "imagesTr" / f"{pair}_{channel:04d}.nii.gz", image, AFFINE)
        write_nifti(folder / "labelsTr" / f"{pair}.nii.gz", volume(10, 20), AFFINE)
    rows = [{"pair": pair, "seed": k, "redrawn": 0, "seconds": 0.1} | columns for k, pair in enumerate(PREDICTED)]
    write_csv(folder / "manifest.csv", rows)
    write_json(folder / "lineage.json", {"cases": {"one": "h1"}})
    write_json(folder / "synthesis.json", {"seed": 0, "generator": "hand", "checkpoint_sha256": "w"})
    channels = {"0": "FLAIR", "1": "T1"}
    labels = {"background": 0, "tumour": 1}
    content = {"channel_names": channels, "labels": labels, "numTraining": 5, "file_ending": ".nii.gz"}
    write_json(folder / "dataset.json", content)
    return folder


def write_model(folder: Path) -> Path:
    """What makes a folder a trained model of nnU-Net."""
    folder = folder / "Dataset702_Pool" / "Trainer__nnUNetPlans__sbldm"
    for name in ("plans.json", "dataset.json"):
        write_json(folder / name, {})
    (folder / "fold_0").mkdir()
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(str(folder).encode())
    return folder


def write_job(out: Path, name: str, train: list[str]) -> Path:
    """A finished job of an evaluation that has predicted two real test cases."""
    job = out / "jobs" / name
    write_model(job / "nnUNet_results")
    content = {"arm": "real+aug", "n_real": 2, "seed": 0, "split": 0, "budget": {}, "train": train}
    write_json(job / "job.json", content)
    write_json(job / "done.json", {})
    write_json(out / "evaluation.json", {"real": {"one": "h1", "two": "h2", "three": "h3"}})
    for case, found in (("test__x", 20), ("test__y", 4)):
        write_nifti(out / "nnUNet_raw" / "Dataset702_Pool" / "labelsTr" / f"{case}.nii.gz", volume(10, 20), AFFINE)
        write_nifti(job / "predictions" / f"{case}.nii.gz", volume(10, found), AFFINE)
    return job


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with one dataset, and a finished job of real cases in its evaluation."""
    write_dataset(tmp_path / "run")
    write_job(tmp_path / "run" / "table2", "real+aug_n2_seed0", ["real__one", "real__two", "aug5__two_3"])
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def predicted(monkeypatch: pytest.MonkeyPatch) -> list[tuple]:
    """Predictions by hand in place of the network's; the calls."""
    calls: list[tuple] = []

    def predict(model: str | Path, images: Path, out: Path, names: list[str]) -> None:
        calls.append((Path(model), images, out, names))
        for name in names:
            found, others = PREDICTED[name]
            write_nifti(out / f"{name}.nii.gz", volume(10, found, others), AFFINE)

    monkeypatch.setattr(filtering, "predict_folder", predict)
    return calls


def test_agreement(tmp_path: Path) -> None:
    """DSC and share found in numbers; empty masks; another grid is an error that names the file."""
    paths = [tmp_path / "prediction.nii.gz", tmp_path / "mask.nii.gz"]

    def measured(prediction: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
        for path, labels in zip(paths, (prediction, mask), strict=True):
            write_nifti(path, labels, AFFINE)
        return agreement(*paths)

    for pair, (found, others) in PREDICTED.items():
        dsc, share = measured(volume(10, found, others), volume(10, 20))
        assert dsc == pytest.approx(DSC[pair], abs=5e-5) and share == FOUND[pair]
    assert measured(2 * volume(10, 20), volume(10, 20)) == (1, 1)  # any label is foreground
    assert measured(volume(0, 0), volume(0, 0)) == (1, 1)
    assert measured(volume(0, 3), volume(0, 0)) == (0, 1)
    for other in (np.zeros((8, 8, 7), np.uint8), volume(0, 3)):
        write_nifti(paths[0], other, AFFINE * [1, 1, 1.01, 1])
        with pytest.raises(DataError, match=r"prediction.nii.gz: lies on another grid"):
            agreement(*paths)


def test_acceptance() -> None:
    """Shares at every level, those between two and those on one: a pair that is found at LEAST is kept."""
    found = [0.0, 0.05, 0.1, 0.1, 0.5]
    levels, shares = acceptance(found)
    assert levels.tolist() == [0, 0.05, 0.1, 0.5, 1] and shares.tolist() == [1, 0.8, 0.6, 0.2, 0]
    for least in np.linspace(0, 1, 21):
        step = shares[np.searchsorted(levels, least)]  # the first level at or above it: "pre" steps
        assert step == np.mean(np.array(found) >= least)
    assert [part.tolist() for part in acceptance([1.0, 1.0])] == [[0, 1], [1, 1]]


def test_kept_pairs(run: Path, predicted: list[tuple], capsys: pytest.CaptureFixture) -> None:
    """Impossible pairs go, hard ones stay; links, manifest, settings and lineage are as they should be."""
    source = run / "nnUNet_raw" / NAME
    (source / "datasheet.md").write_text("# Datasheet\n\n## Licence note\n- CC BY 4.0\n")
    before = snapshot(source)
    target = filter_pairs(run, 504)
    assert target == run / "nnUNet_raw" / "Dataset505_SBLDM_KEPT" and snapshot(source) == before
    assert predicted[0][:2] == (run, source) and predicted[0][3] == list(PREDICTED)
    assert predicted[0][2].parent == run / "filter" / NAME / "predictions"

    files = {f"imagesTr/{pair}_000{k}.nii.gz" for pair in "ACE" for k in range(2)}
    files |= {f"labelsTr/{pair}.nii.gz" for pair in "ACE"}
    assert {str(path.relative_to(target)) for path in target.rglob("*.nii.gz")} == files
    assert all((target / file).samefile(source / file) for file in files)

    rows = read_rows(target / "manifest.csv", {"pair": str, "seed": int})
    assert {row["pair"]: float(row["agreement_dsc"]) for row in rows} == {pair: DSC[pair] for pair in "ACE"}
    assert {row["pair"]: float(row["agreement_found"]) for row in rows} == {pair: FOUND[pair] for pair in "ACE"}
    assert "parents" not in rows[0] and rows[1]["seed"] == "2"

    settings = read_json(target / "synthesis.json")
    chosen = settings.pop("filter")
    assert settings == {"seed": 0, "generator": "hand", "checkpoint_sha256": "w"}
    assert chosen["least"] == 0.1 and chosen["model"] == "real+aug_n2_seed0" and chosen["pairs"] == 5
    assert read_json(target / "lineage.json") == {"cases": {"one": "h1", "two": "h2"}}
    assert read_json(target / "dataset.json")["numTraining"] == 3
    sheet = (target / "datasheet.md").read_text()
    assert "CC BY 4.0" in sheet and "3 of the 5 pairs of Dataset504_SBLDM" in sheet
    assert not partial_files(run)

    said = capsys.readouterr().out
    figure = run / "figures" / "Dataset505_SBLDM_KEPT_acceptance.png"
    assert figure.is_file() and str(figure) in said and "Warning" not in said
    assert "kept 3 of 5 pairs (--least 0.1), median DSC 0.500 (of all 0.095)" in said
    assert f"--synth sbldm_kept={target}" in said


def test_again_and_otherwise(run: Path) -> None:
    """The same settings leave the dataset as it is; others ask for another number; more pairs are no less others."""
    target = filter_pairs(run, 504)
    before = snapshot(target)
    assert filter_pairs(run, 504) == filter_pairs(run, 504, to=505) == target and snapshot(target) == before
    with pytest.raises(StateError, match=r"number 505 is taken by other pairs than these; .* --to 506"):
        filter_pairs(run, 504, least=0.2)
    other = filter_pairs(run, 504, least=0.2, to=511)
    assert other.name == "Dataset511_SBLDM_KEPT" and filter_pairs(run, 504, least=0.2) == other
    assert snapshot(target) == before
    for name in ("", "OTHER", "SBLDM"):
        with pytest.raises(StateError, match="number 504 is taken"):
            filter_pairs(run, 504, name=name, to=504)
    rows = read_rows(run / "nnUNet_raw" / NAME / "manifest.csv")
    write_csv(run / "nnUNet_raw" / NAME / "manifest.csv", rows[:4])
    with pytest.raises(StateError, match="taken by other pairs"):
        filter_pairs(run, 504)
    again = filter_pairs(run, 505, name="TWICE")
    assert read_json(again / "synthesis.json")["filter"]["earlier"]["of"] == NAME
    assert not partial_files(run)


def test_stopped(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stop on the way leaves no dataset, and the next call makes it."""
    with monkeypatch.context() as patch:
        patch.setattr(filtering, "write_csv", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            filter_pairs(run, 504)
    assert [path.name for path in (run / "nnUNet_raw").iterdir()] == [NAME]
    assert (filter_pairs(run, 504) / "dataset.json").is_file()


def test_copies_where_links_cannot_be(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the same content."""

    def refuse(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr("nnunet_integration.pool.os.link", refuse)
    target, source = filter_pairs(run, 504), run / "nnUNet_raw" / NAME
    first, second = (folder / "labelsTr" / "A.nii.gz" for folder in (target, source))
    assert not first.samefile(second) and first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("columns", "lineage", "parents"),
    [
        ({"parents": "four;one"}, {"cases": {"one": "h1", "four": "h4"}}, "four;one;two"),
        ({"canvas": "four"}, {"cases": {"four": "h4"}}, None),  # these descend from all of the lineage
        ({"canvas": "four"}, {"cases": {"four": "h4"}, "generator": ORIGIN}, "four;two;one"),
    ],
)
def test_parents(run: Path, columns: dict, lineage: dict, parents: str | None) -> None:
    """Pairs with parents of their own, or a canvas and a generator from elsewhere, get the network's cases as well."""
    source = write_dataset(run, "Dataset502_OTHER", **columns)
    write_json(source / "lineage.json", lineage)
    target = filter_pairs(run, 502)
    rows = read_rows(target / "manifest.csv")
    assert {row.get("parents") for row in rows} == {parents and ";".join(sorted(parents.split(";")))}
    held = read_json(target / "lineage.json")
    assert held == lineage | {"cases": lineage["cases"] | {"one": "h1", "two": "h2"}}


def test_another_image_of_the_same_name(run: Path) -> None:
    """A lineage cannot hold both."""
    write_json(run / "nnUNet_raw" / NAME / "lineage.json", {"cases": {"two": "else"}})
    with pytest.raises(DataError, match=r"lineage.json: two: another image than the network was trained on"):
        filter_pairs(run, 504)


def test_networks(run: Path, tmp_path: Path, predicted: list[tuple], capsys: pytest.CaptureFixture) -> None:
    """Cases of a job; a warning for a foreign network; one trained on pairs, or on cases that are lost, is refused."""
    foreign = write_model(tmp_path / "foreign")
    target = filter_pairs(run, 504, str(foreign))
    assert "must not have seen a case" in capsys.readouterr().out
    assert read_json(target / "lineage.json") == {"cases": {"one": "h1"}}
    filter_pairs(run, 504, to=600)
    assert predicted[0][2] != predicted[1][2]  # one folder of predictions for each network

    pairs = write_job(tmp_path / "a", "synth", ["real__one", "sbldm__A"])
    with pytest.raises(InputError, match="trained on synthetic pairs too"):
        trained_on(find_model(pairs))
    lost = write_job(tmp_path / "b", "real", ["real__one", "real__nine"])
    with pytest.raises(StateError, match=r"evaluation.json: does not hold nine"):
        trained_on(find_model(lost))
    shutil.rmtree(lost / "predictions")
    assert filtering._real_found(find_model(lost)) == filtering._real_found(find_model(foreign)) == []
    assert filtering._real_found(find_model(pairs)) == [1.0, 0.2]


def test_figure(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both curves with their numbers, and LEAST."""
    drawn: list = []
    monkeypatch.setattr(filtering.Figure, "savefig", lambda figure, *_, **__: drawn.append(figure) or _touch(_[0]))
    filter_pairs(run, 504, least=0.3)
    pairs, real, least = drawn[0].axes[0].lines
    assert pairs.get_label() == "Dataset504_SBLDM: n = 5 pairs" and "n = 2 real cases" in real.get_label()
    assert "least share 0.3: 2 of 5" in least.get_label() and least.get_xdata()[0] == 0.3
    assert real.get_xdata().tolist() == [0, 0.2, 1] and real.get_ydata().tolist() == [1, 1, 0.5]
    assert pairs.get_drawstyle() == real.get_drawstyle() == "steps-pre"


def _touch(path: Path) -> None:
    path.touch()


def test_errors_in_one_line(run: Path, tmp_path: Path) -> None:
    """What is wrong and how to mend it, with nothing written."""

    def fails(code: int, *options: str) -> str:
        arguments = ("nnunet", "filter", "--run", run, "--dataset", "504", *options)
        return one_line(call(*arguments), code)

    for least in ("1.5", "-0.1", "nan", "0.1,0.2", "few"):
        assert f"--least {least}: " in fails(2, f"--least={least}")
    assert "nnUNet_raw: no dataset 777; draw one: sbldm synth --run" in fails(4, "--dataset", "777")
    assert "--dataset x: must be a whole number from 1 to 999" in fails(2, "--dataset", "x")
    assert "--to 0: must be a whole number from 1 to 999" in fails(2, "--to", "0")
    assert "--name a b: letters" in fails(2, "--name", "a b")
    assert "no such folder" in fails(2, "--model", str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    assert "no trained nnU-Net model here; train one: sbldm nnunet eval" in fails(4, "--model", str(tmp_path / "empty"))
    (run / "nnUNet_raw" / "Dataset511_X").mkdir()
    assert "Dataset511_X: number 511 is taken by other pairs than these" in fails(4, "--to", "511")
    with pytest.raises(InputError, match="--least 2: must be from 0 to 1"):
        filter_pairs(run, 504, least=2)
    assert sorted(path.name for path in (run / "nnUNet_raw").iterdir()) == [NAME, "Dataset511_X"]
    assert not (run / "filter").exists()


def test_nothing_kept(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The most that was found of a mask is said, the figure is there, and no dataset."""
    monkeypatch.setitem(PREDICTED, "A", (11, 0))
    done = call("nnunet", "filter", "--run", run, "--dataset=504", "--least=0.9")
    assert "no pair is kept, the network finds 0.550 of a mask at most; lower --least" in one_line(done, 3)
    assert [path.name for path in (run / "nnUNet_raw").iterdir()] == [NAME]
    assert (run / "figures" / "Dataset505_SBLDM_KEPT_acceptance.png").is_file()


def test_predictions_of_other_images(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `predict_folder` refuses is said with the mend for this command."""

    def refuse(*_: object) -> Callable:
        raise StateError("OUT: holds predictions of other images than these (A); choose another --out.")

    monkeypatch.setattr(filtering, "predict_folder", refuse)
    with pytest.raises(StateError, match=r"other images than these \(A\); remove it and filter again\."):
        filter_pairs(run, 504)
