"""Table 2 end to end with real nnU-Net on coarse phantoms: scores, resume, one queue, failures."""

from __future__ import annotations

import csv
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml

from nnunet_integration.arms import HERE
from nnunet_integration.offline import augmented_copy
from nnunet_integration.results import Results
from sbldm.run.files import read_json
from tests.conftest import Cli, one_line, snapshot, wait_for

BUDGET = {
    "tiny": {
        "plan": {"spacing": [8, 8, 8], "patch_size": [16, 24, 16], "batch_size": 2, "features": [8, 16, 16]},
        "iterations": 200,
        "iterations_per_epoch": 10,
        "validation_iterations": 1,
        "snapshots": [100],
        "save_every": 1,
        "threads": 1,
        "augmentation_workers": 0,
    }
}
ARMS = "real real+aug real+sbldm+some"


@pytest.fixture(scope="module")
def question(drawn_run: Path, other_cases: Path, tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    """Options of all commands below, but for the folder."""
    folder = tmp_path_factory.mktemp("question")
    (folder / "budget.yaml").write_text(yaml.safe_dump(BUDGET))
    arms = yaml.safe_load((HERE / "arms.yaml").read_text())
    arms["arms"]["real+synth+some"] = {"train": ["real", "synth"], "augmentation": "none", "amount": 0.6}
    (folder / "arms.yaml").write_text(yaml.safe_dump(arms, sort_keys=False))
    own = ["--run", drawn_run, "--budget", folder / "budget.yaml", "--arms-file", folder / "arms.yaml"]
    own += ["--test", other_cases]
    return [*own, "--workers", "1", "--jobs", "2"]


@pytest.fixture(scope="module")
def exported(question: list[object], tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Path:
    """The pool, and a queue of three arms; copy it before running."""
    out = tmp_path_factory.mktemp("exported") / "table2"
    options = [option for option in question if option not in ("--jobs", "2")]
    done = cli("nnunet", "export", *options, "--arms", ARMS, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def evaluated(question: list[object], exported: Path, tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Path:
    """The same, run to the table by one process."""
    out = copy_evaluation(exported, tmp_path_factory.mktemp("evaluated"))
    done = cli("nnunet", "eval", *question, "--arms", ARMS, "--out", out)
    assert done.returncode == 0, done.stderr
    return out


def copy_evaluation(folder: Path, target: Path) -> Path:
    """A copy whose jobs start anew but whose pool is shared (hard links)."""
    return Path(shutil.copytree(folder, target / "table2", copy_function=os.link))


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def run(out: Path, *options: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "sbldm", "nnunet", "run", "--out", str(out), *map(str, options)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def weights(job: Path) -> dict[str, torch.Tensor]:
    (path,) = job.rglob("checkpoint_final.pth")
    return torch.load(path, map_location="cpu", weights_only=False)["network_weights"]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_plan_and_splits(exported, drawn_run):
    """The plan comes from the real training cases alone, and no split tests or validates on anything but test cases."""
    lists = read_json(drawn_run / "lists.json")
    planned = read_json(exported / "nnUNet_raw/Dataset701_RealTraining/dataset.json")
    assert set(planned["dataset"]) == {f"real__{name}" for name in lists["train"]}
    fingerprint = read_json(exported / "nnUNet_preprocessed/Dataset701_RealTraining/dataset_fingerprint.json")
    assert len(fingerprint["spacings"]) == len(lists["train"])
    pool = exported / "nnUNet_preprocessed/Dataset702_Pool"
    assert read_json(pool / "dataset_fingerprint.json") == fingerprint
    assert read_json(pool / "nnUNetPlans.json")["configurations"]["sbldm"]["patch_size"] == [16, 24, 16]
    splits = read_json(pool / "splits_final.json")
    assert len(splits) == 3
    for split in splits:
        assert split["val"] == ["test__Phantom_006", "test__Phantom_007", "test__Phantom_008"]
        assert not {case for case in split["train"] if case.startswith("test__")}
    assert [len(split["train"]) for split in splits] == [5, 5, 8]
    cases = {path.stem for path in (pool / "nnUNetPlans_sbldm").glob("*.pkl")}
    assert cases == set().union(*(split["train"] + split["val"] for split in splits))


def test_real_masks_reach_the_pool(exported, drawn_run, phantom_cases):
    """Every tumour label becomes 1, and voxels and geometry stay as they are."""
    for name in read_json(drawn_run / "lists.json")["train"]:
        expert = nib.load(phantom_cases / name / f"{name}_seg.nii.gz")
        label = nib.load(exported / f"nnUNet_raw/Dataset702_Pool/labelsTr/real__{name}.nii.gz")
        assert np.array_equal(np.asarray(label.dataobj), np.asarray(expert.dataobj) > 0)
        assert np.allclose(label.affine, expert.affine)


def test_scores_agree_with_nnunet(evaluated):
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder_simple

    references = evaluated / "nnUNet_raw/Dataset702_Pool/labelsTr"
    jobs = sorted((evaluated / "jobs").iterdir())
    assert len(jobs) == 3
    for job in jobs:
        summary = job / "predictions" / "summary.json"
        only = references.parent / f"only_{job.name}"
        only.mkdir()
        for row in rows(job / "scores.csv"):
            os.link(references / f"{row['case']}.nii.gz", only / f"{row['case']}.nii.gz")
        compute_metrics_on_folder_simple(str(only), str(job / "predictions"), [1], str(summary), num_processes=1)
        theirs = {Path(c["reference_file"]).name[:-7]: c["metrics"]["1"] for c in read_json(summary)["metric_per_case"]}
        ours = rows(job / "scores.csv")
        assert len(ours) == len(theirs) == 3 and max(float(row["dsc"]) for row in ours) > 0.2
        for row in ours:
            assert float(row["dsc"]) == pytest.approx(theirs[row["case"]]["Dice"], abs=1e-6)
            assert float(row["iou"]) == pytest.approx(theirs[row["case"]]["IoU"], abs=1e-6)


@pytest.mark.slow
def test_predict_repeats_what_the_job_predicted(question, evaluated, drawn_run, tmp_path, cli):
    """The evaluation stands for its job `real+aug`, whose test cases are predicted alike from their own files."""
    test, out = question[question.index("--test") + 1], tmp_path / "out"
    words = ("predict", "--images", test, "--out", out, "--model")
    done = cli("nnunet", *words, evaluated)
    assert done.returncode == 0, done.stderr
    assert len(list(out.glob("*.nii.gz"))) == 3
    for file in out.glob("*.nii.gz"):
        expected = nib.load(evaluated / "jobs/real+aug_n5_seed0/predictions" / f"test__{file.name}")
        found = nib.load(file)
        assert np.array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))
        assert np.allclose(found.affine, expected.affine)
    model = read_json(out / "model.json")
    assert (model["trainer"], model["arm"]) == ("SBLDMTrainer", "real+aug")
    assert sorted(model["train"]) == sorted(read_json(drawn_run / "lists.json")["train"])
    other = cli("nnunet", *words, evaluated / "jobs/real_n5_seed0")
    assert "holds predictions of another model" in one_line(other, 4)


def test_the_table(evaluated):
    table = {row["arm"]: row for row in rows(evaluated / "table2.csv")}
    assert list(table) == ["real", "real+aug", "real+sbldm+some"]
    for arm, row in table.items():
        scores = [float(r["dsc"]) for r in rows(evaluated / "jobs" / f"{arm}_n5_seed0" / "scores.csv")]
        assert float(row["dsc_mean"]) == pytest.approx(np.mean(scores), abs=1e-6)
        assert (row["n_real"], row["seeds"], row["trainings"], row["iterations"]) == ("5", "1", "1", "200")
        assert 0 < float(row["minutes"]) < 5 and 0.1 < float(row["peak_gb"]) < 8
    base = float(table["real+aug"]["dsc_mean"])
    assert float(table["real"]["difference"]) == pytest.approx(float(table["real"]["dsc_mean"]) - base, abs=2e-6)
    assert table["real+aug"]["difference"] == ""
    assert (table["real"]["verdict"], table["real"]["p"]) == ("not decided: one training", "")
    assert (table["real"]["paper_dsc"], table["real+sbldm+some"]["paper_dsc"]) == ("0.714", "")
    page = (evaluated / "table2.md").read_text()
    assert "5 real training cases" in page and "| real+sbldm+some | 5 real + 3 other | 1 |" in page
    curve = rows(evaluated / "jobs/real_n5_seed0/curve.csv")
    assert [int(row["iterations"]) for row in curve] == list(range(10, 201, 10))
    results = Results.load(evaluated)
    assert list(results.arms[5, "real"].snapshots) == [100, 200]
    assert (evaluated / "figures").is_dir() and any((evaluated / "figures").glob("*.png"))


@pytest.mark.slow
def test_a_finished_evaluation_is_never_run_again(question, evaluated, cli):
    before = snapshot(evaluated / "jobs", but="lock")
    done = cli("nnunet", "eval", *question, "--arms", ARMS, "--out", evaluated)
    assert done.returncode == 0 and "All 3 jobs are finished" in done.stdout
    assert snapshot(evaluated / "jobs", but="lock") == before


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_to_the_same_weights(evaluated, exported, tmp_path):
    out = copy_evaluation(exported, tmp_path)
    job = out / "jobs" / "real_n5_seed0"
    for other in ("real+aug_n5_seed0", "real+sbldm+some_n5_seed0"):
        shutil.rmtree(out / "jobs" / other)
    process = run(out, "--jobs", 1)
    wait_for(job / "curve.csv", process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (job / "done.json").exists() and len(rows(job / "curve.csv")) < 20
    second = run(out, "--jobs", 1)
    output, _ = second.communicate(timeout=300)
    assert second.returncode == 0, output
    assert "Training goes on" in (job / "log.txt").read_text()
    assert same(weights(job), weights(evaluated / "jobs" / "real_n5_seed0"))
    first, second = (rows(folder / "scores.csv") for folder in (job, evaluated / "jobs/real_n5_seed0"))
    assert [row | {"seconds": ""} for row in first] == [row | {"seconds": ""} for row in second]


@pytest.mark.slow
def test_two_commands_at_one_queue_give_the_same_table(evaluated, exported, tmp_path, cli):
    out = copy_evaluation(exported, tmp_path)
    for command in [run(out, "--jobs", 1) for _ in range(2)]:
        output, _ = command.communicate(timeout=300)
        assert command.returncode == 0, output
    assert cli("nnunet", "table", "--out", out).returncode == 0
    measured = ("minutes", "peak_gb")
    tables = [
        [{key: value for key, value in row.items() if key not in measured} for row in rows(folder / "table2.csv")]
        for folder in (out, evaluated)
    ]
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_a_failed_job_is_reported_and_the_others_go_on(exported, tmp_path, cli):
    out = copy_evaluation(exported, tmp_path)
    preprocessed = out / "nnUNet_preprocessed/Dataset702_Pool/nnUNetPlans_sbldm"
    for path in preprocessed.glob("sbldm__*"):  # only one arm needs them
        path.unlink()
    done = cli("nnunet", "run", "--out", out, "--jobs", 2)
    assert "1 of 3 jobs failed: real+sbldm+some_n5_seed0" in one_line_at_end(done, 4)
    assert "failed (1)" in done.stdout + done.stderr and "sbldm__" in done.stdout + done.stderr
    assert (out / "jobs/real+aug_n5_seed0/done.json").exists()
    assert not (out / "jobs/real+sbldm+some_n5_seed0/done.json").exists()


def one_line_at_end(done: subprocess.CompletedProcess, code: int) -> str:
    """As `one_line`, for commands whose log lines come before."""
    assert done.returncode == code, done.stderr
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    return last


def test_another_question_needs_another_folder(question, evaluated, cli):
    done = cli("nnunet", "eval", *question, "--arms", ARMS, "--out", evaluated, "--iterations", 90)
    assert "holds an evaluation with another budget; choose another --out" in one_line(done, 4)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--arms", "real+gan"], 2, "--arms real+gan: no such arm"),
        (["--n-real", "9"], 2, "--n-real 9"),
        (["--seeds", "a"], 2, "--seeds a: write numbers"),
        (["--folds", "5"], 2, "--folds 5: 5 is not from 0 to 4"),
        (["--test", "/nowhere"], 2, "/nowhere"),
        (["--synth", "gan=/nowhere"], 4, "--synth gan=/nowhere: holds no nnU-Net raw dataset"),
        (["--iterations", "61"], 2, "multiple of iterations_per_epoch"),
    ],
)
def test_wrong_options(question, tmp_path, cli, options, code, message):
    done = cli("nnunet", "eval", *question, "--out", tmp_path / "out", *options)
    assert message in one_line(done, code)
    assert not (tmp_path / "out").exists()


def test_augmented_copies_keep_background_and_tumour():
    """Each copy is another one, made from its seed, with background 0 and about the same tumour."""
    x, y, z = np.ogrid[-1:1:40j, -1:1:48j, -1:1:32j]
    brain = x**2 + y**2 + z**2 < 0.6
    labels = ((x - 0.2) ** 2 + y**2 + z**2 < 0.05).astype(np.uint8)
    image = np.where(brain, 300 + 40 * x + 100 * labels, 0).astype(np.float32)[None]
    copies = [augmented_copy(image, labels, 7, k) for k in range(1, 9)]
    for copied, mask in copies:
        assert copied.dtype == np.float32 and mask.dtype == np.uint8 and set(np.unique(mask)) == {0, 1}
        assert (copied[0, mask > 0] != 0).mean() > 0.99 and copied[0, 0, 0, 0] == 0
        assert 0.3 < mask.sum() / labels.sum() < 3  # scaling is .7 to 1.4 along each axis
        assert copied[0, mask > 0].mean() > copied[0, (copied[0] != 0) & (mask == 0)].mean()
    assert len({copied.tobytes() for copied, _ in copies}) == len(copies)
    assert np.array_equal(copies[2][0], augmented_copy(image, labels, 7, 3)[0])
