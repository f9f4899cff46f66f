"""Table 1 of made-up runs: what goes into one table, and that the known numbers stand in the right cells."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from sbldm.cases.lists import write_lists
from sbldm.evaluation import comparison
from sbldm.evaluation.entries import Entry, check_same_cases, read_entries, update_evaluations
from sbldm.evaluation.evaluate import SCORING
from sbldm.evaluation.protocols import REFERENCES_EXPLAINED, Score
from sbldm.pages import brains, table1
from sbldm.pages.table1 import make_table1, report_rows, write_table1
from sbldm.run.errors import InputError, StateError
from sbldm.run.files import make_folder, read_json, write_csv, write_json
from sbldm.run.folder import Run, load_preset
from sbldm.run.preset import Preset

TRAIN, HELD = [f"case_{k:02d}" for k in range(6)], ["held_0", "held_1"]
DDIM = {"sampler": "ddim", "steps": 25, "eta": 0.0, "guidance": 1.0}
DDPM = {"sampler": "ddpm", "steps": 1000, "eta": 1.0, "guidance": 1.0}
FLOORS = {
    "psnr.random-pair.train": 19.2,
    "ssim.random-pair.train": 0.79,
    "mmd-laplace.heldout": 0.001,
    "copies.near": 0.05,
}


def score(name: str, value: float, floor: float, half: float = 0.1, n: tuple[int, int] = (4, 2), **more: Any) -> dict:
    """A row of `evaluation.json`; the floor's interval is half as wide."""
    group = {"mmd-laplace": "distribution", "copies": "copies", "request": "requests"}.get(
        name.split(".")[0], "similarity"
    )
    ends = (floor - half / 2, floor + half / 2)
    return Score(name, group, value, value - half, value + half, n, floor, *ends, (6, 2), **more).row()


def write_evaluation(
    folder: Path, psnr: float = 20.0, mmd: float = 0.2, near: float = 0.0, sure: float = 0.0, **provenance: Any
) -> None:
    """An evaluation with four scores, one of them of requests."""
    values = {
        "psnr.random-pair.train": psnr,
        "ssim.random-pair.train": 0.81,
        "mmd-laplace.heldout": mmd,
        "copies.near": near,
    }
    rows = [score(name, value, FLOORS[name]) for name, value in values.items()]
    rows[0]["unit"] = "dB"
    rows += [score("copies.sure", sure, 0.001), score("request.volume_error", 0.15, 0.65, n=(4, 4))]
    contents = {"synthetic": ["s" * 48], "train": ["t" * 48], "heldout": ["h" * 48]}
    known = {"features": "imagenet", "spacing_mm": [2.0, 2.0, 2.0], "first_channel": "flair", "contents": contents}
    known |= {"scoring": SCORING}
    known |= {"cases": {"synthetic": 4, "train": 6, "heldout": 2}} | provenance
    write_json(folder / "evaluation.json", {"scores": rows, "left_out": [], "remarks": [], "provenance": known})


def write_pairs(dataset: Path, rows: Sequence[dict[str, Any]], settings: dict[str, Any], images: bool = True) -> None:
    """A raw dataset; pair k has a tumour of (k + 1) x 0.064 ml in a brain of even grey."""
    write_csv(dataset / "manifest.csv", rows)
    write_json(dataset / "synthesis.json", settings)
    write_json(dataset / "lineage.json", {"cases": {name: f"hash of {name}" for name in TRAIN}})
    for k, row in enumerate(rows if images else ()):
        image, mask = np.zeros((14, 16, 12), np.int16), np.zeros((14, 16, 12), np.uint8)
        image[1:-1, 1:-1, 1:-1], mask[3:5, 3:7, 4 : 5 + k] = 300, 1
        for part, name, array in (("imagesTr", f"{row['pair']}_0000", image), ("labelsTr", row["pair"], mask)):
            path = make_folder(dataset / part) / f"{name}.nii.gz"
            nib.save(nib.Nifti1Image(array, np.diag([2.0, 2.0, 2.0, 1.0])), path)


def write_run(
    folder: Path,
    model: str = "sbldm",
    sampling: dict[str, Any] | None = DDIM,
    minutes: float | None = 30,
    **values: Any,
) -> Path:
    """A trained run with four pairs (three refused before) and its evaluation."""
    run = Run.at(folder)
    preset = load_preset("demo", model).but(**values)
    run.save_preset(preset)
    write_lists(folder, {"train": TRAIN, "validation": HELD}, 0, "/somewhere/private")
    stages = preset.stages
    for stage in stages:
        row = {"epoch": 1, "iteration": preset.stage(stage).iterations}
        timed = {} if minutes is None else {"seconds": 60 * minutes / len(stages)}
        write_csv(folder / stage / "history.csv", [row | {"iteration": 1} | {k: 1 for k in timed}, row | timed])
    dataset = folder / "nnUNet_raw" / f"Dataset501_{model.upper()}"
    rows = [{"pair": f"P_{k}", "redrawn": k % 2 + (k == 3), "seconds": 1 + k, "gate": "passed"} for k in range(4)]
    settings = {"model": model, "checkpoint_sha256": "abc", "seed": 0} | ({"sampling": sampling} if sampling else {})
    write_pairs(dataset, rows, settings)
    write_evaluation(folder / "evaluation" / dataset.name)
    return folder


def add_copypaste(run: Path) -> None:
    """Copy-paste pairs in a run of another model, and their evaluation."""
    dataset = run / "nnUNet_raw" / "Dataset502_COPYPASTE"
    rows = [
        {"pair": f"C_{k}", "parents": "case_00;case_01", "redrawn": 1, "seconds": s} for k, s in enumerate((1, 9, 2))
    ]
    write_pairs(dataset, rows, {"generator": "copypaste", "seed": 0}, images=False)
    write_evaluation(run / "evaluation" / dataset.name, psnr=19.3, near=1.0)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Costs that are known; the calls of what measures."""
    calls = []

    def measured(run: Run, device: str, sampling: dict[str, Any], **more: Any) -> dict[str, Any]:
        calls.append({"run": run.folder.name, "device": device, "sampling": sampling} | more)
        found = {"device": "Abacus", "threads": 2, "checkpoint_sha256": "abc", "seconds": 6.25, "best_seconds": 5.5}
        return found | {"best_batch": 4, "peak_bytes": 1_500_000_000, "added_bytes": 250_000_000}

    def model_costs(preset: Preset, sampling: dict[str, Any]) -> dict[str, Any]:
        steps = sampling.get("steps", getattr(preset.sampling, "steps", 1))
        sample = SimpleNamespace(parameters=3_000_000, counted=2_500_000, macs=2e9 * steps, flops=4e9 * steps)
        critic = SimpleNamespace(parameters=1_000_000, counted=750_000, macs=1.0, flops=2.0)
        return {"sample": sample} | ({} if preset.model == "sbldm" else {"discriminator": critic})

    monkeypatch.setattr(comparison, "measured", measured)
    monkeypatch.setattr(comparison, "model_costs", model_costs)
    return calls


def refuse(entry: Entry) -> None:
    raise AssertionError(f"{entry.label} is evaluated")


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def markdown(path: Path, heading: str, label: str) -> list[str]:
    """Cells of the row of a method in the tables below a heading, without the label."""
    part = path.read_text().split(f"{heading}\n", 1)[1].split("\n#", 1)[0]
    rows = [line.strip("| ").split(" | ") for line in part.splitlines() if line.startswith(f"| {label} |")]
    return [cell for row in rows for cell in row[1:]]


# --- what goes into one table -----------------------------------------------------------------------------------------


def test_entries_by_run_and_number(tmp_path: Path) -> None:
    """The model, its sampler and the run name a row; a number after a colon chooses the dataset."""
    mine, gan = write_run(tmp_path / "mine"), write_run(tmp_path / "gan", "lsgan", {"sampler": "gan", "steps": 1})
    add_copypaste(mine)
    entries = read_entries([str(mine), f"{mine}:502", f"{gan}:501"])
    assert [e.label for e in entries] == ["SBLDM (DDIM 25), mine", "copy-paste, mine:502", "3D-LSGAN, gan"]
    assert [e.model for e in entries] == ["sbldm", "copypaste", "lsgan"]
    assert entries[1].dataset == mine / "nnUNet_raw" / "Dataset502_COPYPASTE"
    assert [e.number for e in entries] == ["501", "502", "501"]
    assert entries[1].evaluation == mine / "evaluation" / "Dataset502_COPYPASTE" / "evaluation.json"


def test_pairs_from_before_there_were_models_are_of_sbldm(tmp_path: Path) -> None:
    """`synthesis.json` had no model then; eta and guidance stand in the title where they are not the usual ones."""
    run = write_run(tmp_path / "old")
    path = run / "nnUNet_raw" / "Dataset501_SBLDM" / "synthesis.json"
    write_json(path, {"checkpoint_sha256": "abc", "sampling": DDIM | {"eta": 1.0, "guidance": 1.5}})
    assert read_entries([str(run)])[0].title == "SBLDM (DDIM 25, eta 1, guidance 1.5)"


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    """By the folder they lie in."""
    runs = [write_run(tmp_path / place / "mine") for place in ("a", "b")]
    assert [entry.name for entry in read_entries([*map(str, runs)])] == ["a/mine", "b/mine"]


def test_what_is_no_entry(tmp_path: Path) -> None:
    """Each mistake has its own kind of error, which names the mend."""
    run = write_run(tmp_path / "mine")
    with pytest.raises(InputError, match=r"--runs is missing.*sbldm table1 runs/mine"):
        read_entries([])
    with pytest.raises(InputError, match=r"--runs.*mine:5x: 5x is not the number"):
        read_entries([f"{run}:5x"])
    with pytest.raises(InputError, match="mine:501: these pairs stand there twice"):
        read_entries([str(run), f"{run}:501"])
    with pytest.raises(StateError, match=r"nothing: is no run.*sbldm synth --run"):
        read_entries([str(tmp_path / "nothing")])
    with pytest.raises(StateError, match=r"no pairs in a dataset 777; .*sbldm synth --run.*--dataset 777"):
        read_entries([f"{run}:777"])
    write_json(run / "nnUNet_raw" / "Dataset501_SBLDM" / "synthesis.json", {"model": "lsgan"})
    with pytest.raises(StateError, match=r"synthesis\.json: does not say that this run drew these pairs"):
        read_entries([str(run)])


def test_other_cases_are_refused_with_the_difference(tmp_path: Path) -> None:
    """Both runs, how many cases differ, and the first names on either side; equal lists in another order pass."""
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    entries = read_entries([str(a), str(b)])
    write_lists(b, {"train": TRAIN[::-1], "validation": HELD[::-1]}, 1, "")
    check_same_cases(entries)
    (b / "nnUNet_raw" / "Dataset501_SBLDM" / "lineage.json").unlink()
    write_lists(b, {"train": [*TRAIN[4:], "new"], "validation": ["held_0"]}, 1, "")
    with pytest.raises(StateError) as error:
        check_same_cases(entries)
    assert str(error.value) == (
        f"{a} and {b} do not belong in one table: the first trains on 4 cases that the other does not (case_00, "
        "case_01, case_02 and 1 more), the second trains on 1 cases that the other does not (new), the first holds "
        "back 1 cases that the other does not (held_1); prepare and train both alike, or leave one of them out."
    )


def test_other_voxels_and_foreign_lineage_are_refused(tmp_path: Path) -> None:
    """Names alone do not make cases equal; pairs made from cases that the run does not train on are out too."""
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    entries = read_entries([str(a), str(b)])
    path = b / "nnUNet_raw" / "Dataset501_SBLDM" / "lineage.json"
    cases = read_json(path)["cases"]
    write_json(path, {"cases": cases | {"case_03": "other"}})
    with pytest.raises(StateError, match=r"1 training cases of one name have other voxels \(case_03\)"):
        check_same_cases(entries)
    write_json(path, {"cases": cases | {"held_0": "h"}})
    with pytest.raises(StateError, match=r"Dataset501_SBLDM: made from 1 cases that .*b does not train on \(held_0\)"):
        check_same_cases(entries)


def test_pairs_of_weights_from_elsewhere_are_refused(tmp_path: Path) -> None:
    """They were learned from other cases, and their networks are not the run's; those of a fine-tuned run may stand."""
    run = write_run(tmp_path / "a")
    dataset = run / "nnUNet_raw" / "Dataset501_SBLDM"
    drawn_by = read_json(dataset / "synthesis.json")["checkpoint_sha256"]
    for weights, refused in ((drawn_by, True), ("those that a training went on from", False)):
        origin = {"weights_sha256": weights, "data": "five phantoms", "licence": "", "cases": 5, "seen": []}
        write_json(dataset / "lineage.json", read_json(dataset / "lineage.json") | {"generator": origin})
        with pytest.raises(StateError, match="generator from elsewhere") if refused else nullcontext():
            read_entries([str(run)])


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("grid", "fov_mm", [160, 200, 168]),
        ("data", "channels", ["t1"]),
        ("data", "labels", {"core": "necrotic"}),
    ],
)
def test_other_grids_channels_and_labels_are_refused(tmp_path: Path, part: str, key: str, value: Any) -> None:
    """What differs is said."""
    usual = getattr(load_preset("demo"), part).state()
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", **{part: usual | {key: value}})]
    with pytest.raises(StateError) as error:
        check_same_cases(read_entries([*map(str, runs)]))
    assert f"{part}.{key} is {usual[key]} in the first and {value} in the second" in str(error.value)


def test_only_what_is_missing_or_older_is_evaluated(tmp_path: Path) -> None:
    """A fresh evaluation is left alone; one older than its pairs or of another version is made anew."""
    runs = [write_run(tmp_path / name) for name in "abcd"]
    entries = read_entries([*map(str, runs)])
    update_evaluations(entries, refuse)
    write_evaluation(entries[3].evaluation.parent, scoring=SCORING - 1)
    entries[0].evaluation.unlink()
    seconds = entries[1].evaluation.stat().st_mtime + 5
    os.utime(entries[1].dataset / "manifest.csv", (seconds, seconds))
    called: list[str] = []

    def evaluate(entry: Entry) -> None:
        called.append(entry.name)
        write_evaluation(entry.evaluation.parent)

    update_evaluations(entries, evaluate)
    assert called == ["a", "b", "d"]


def test_evaluations_must_be_made_alike(tmp_path: Path) -> None:
    """One made in another way than the newest is made anew; where that does not help, the table is refused."""
    entries = read_entries([str(write_run(tmp_path / name)) for name in "ab"])
    old = {"contents": {"synthetic": [], "train": ["older"], "heldout": ["h" * 48]}}
    write_evaluation(entries[0].evaluation.parent, **old)
    os.utime(entries[1].evaluation, (2e9, 2e9))
    called: list[str] = []
    update_evaluations(entries, lambda e: (called.append(e.name), write_evaluation(e.evaluation.parent)))
    assert called == ["a"]
    write_evaluation(entries[0].evaluation.parent, features="medicalnet")
    with pytest.raises(StateError, match=r"made with other features \(medicalnet, not imagenet\); remove the former"):
        update_evaluations(entries, lambda e: None)


# --- numbers ----------------------------------------------------------------------------------------------------------


def test_known_numbers_in_their_cells(tmp_path: Path, timed: list[dict[str, Any]]) -> None:
    """Ours, the paper's beside, the floor in a row of its own, and nothing where there is nothing to say."""
    mine, gan = write_run(tmp_path / "mine"), write_run(tmp_path / "gan", "lsgan", {"sampler": "gan", "steps": 1})
    add_copypaste(mine)
    paths = make_table1([str(gan), str(mine), f"{mine}:502"], refuse, tmp_path / "out", "cpu")
    assert [path.name for path in paths] == ["table1.json", "table1.csv", "table1.md", "methods.png"]

    psnr = "20.0 dB [19.9, 20.1], n = 4 / 2"
    ssim = "0.810 [0.710, 0.910], n = 4 / 2"
    page = paths[2]
    top = "# Table 1: the methods beside each other"
    assert markdown(page, top, "3D-LSGAN, gan") == [
        f"{psnr} (20.091)",
        f"{ssim} (.601)",
        "4.00 M / 3.25 M (71 M)",
        "6.25 s (0.002 s)",
    ]
    assert markdown(page, top, "SBLDM (DDIM 25), mine") == [
        f"{psnr} (21.701)",
        f"{ssim} (.726)",
        "3.00 M / 2.50 M (159 M)",
        "6.25 s (1.965 s)",
    ]
    pasted = ["19.3 dB [19.2, 19.4], n = 4 / 2", ssim, "none", "2.00 s as drawn"]
    assert markdown(page, top, "copy-paste, mine:502") == pasted
    floors = ["19.2 dB [19.1, 19.2], n = 6 / 2", "0.790 [0.740, 0.840], n = 6 / 2", "-", "-"]
    assert markdown(page, top, table1.REAL) == floors

    rest = markdown(page, "## What these columns leave out", "SBLDM (DDIM 25), mine")
    assert rest[:2] == ["0.200 [0.100, 0.300], n = 4 / 2", "-"]
    assert rest[-1] == "0.150 [0.0500, 0.250], n = 4; requests shuffled: 0.650"
    assert markdown(page, "## What these columns leave out", table1.REAL)[0].startswith("0.00100 [")
    assert markdown(page, "## What these columns leave out", table1.REAL)[-2:] == ["0.0500 [0, 0.100], n = 6 / 2", "-"]

    work = ["50.0", "0.100", "5.50 (batch 4)", "1.50 (0.250)", "30.0", "1000 + 800", "4", "3 of 7 drawn (43 %)"]
    assert markdown(page, "## Costs", "SBLDM (DDIM 25), mine") == ["demo", *work]
    nothing = ["-", "-", "-", "-", "0", "-", "3", "no gate"]
    assert markdown(page, "## Costs", "copy-paste, mine:502") == ["demo", *nothing]

    first, second, third = read_csv(paths[1])
    assert list(first)[:2] == ["method", "psnr"] and first["psnr_paper"] == "20.091" and third["psnr_paper"] == ""
    assert [second[k] for k in ("psnr", "psnr_low", "psnr_floor", "psnr_n")] == ["20.0", "19.9", "19.2", "4/2"]
    assert [second[k] for k in ("gmac", "tflop", "training_minutes", "iterations")] == ["50.0", "0.1", "30.0", "1800"]
    assert float(second["refused_share"]) == pytest.approx(3 / 7, rel=1e-5) and third["refused_share"] == ""
    assert [row["near_copies"] for row in (second, third)] == ["0.0", "1.0"]
    assert [call["device"] for call in timed] == ["cpu", "cpu"]  # nothing of copy-paste is timed


def test_models_without_requests_say_so(tmp_path: Path, timed: list[dict[str, Any]]) -> None:
    """An unconditional model has no error of the volume asked for; a conditional one without it has a dash."""
    runs = [write_run(tmp_path / "gan", "lsgan", {"sampler": "gan", "steps": 1}), write_run(tmp_path / "mine")]
    entries = read_entries([*map(str, runs)])
    for entry in entries:
        content = read_json(entry.evaluation)
        content["scores"] = content["scores"][:-1]
        write_json(entry.evaluation, content)
    write_table1(entries, tmp_path / "out")
    part = "## What these columns leave out"
    assert markdown(tmp_path / "out" / "table1.md", part, "3D-LSGAN, gan")[-1] == "takes no requests"
    assert markdown(tmp_path / "out" / "table1.md", part, "SBLDM (DDIM 25), mine")[-1] == "-"


def test_requests_given_up_count_as_refused(tmp_path: Path, timed: list[dict[str, Any]]) -> None:
    """3 refusals of pairs that came in the end, and 20 of one that did not: 23 of 27."""
    run = write_run(tmp_path / "mine")
    entries = read_entries([str(run)])
    write_csv(entries[0].dataset / "given_up.csv", [{"pair": "P_9", "seed": 9, "attempts": 20, "refused_because": "x"}])
    write_table1(entries, tmp_path / "out")
    row = read_json(tmp_path / "out" / "table1.json")["rows"][0]
    assert (row["pairs"], row["drawn"], row["refused"]) == (4, 27, 23)


def test_pairs_are_timed_as_they_were_drawn(tmp_path: Path, timed: list[dict[str, Any]]) -> None:
    """DDPM stands beside DDPM: its steps are counted and timed, once, and what is usual is not asked for."""
    runs = [write_run(tmp_path / "ddpm", sampling=DDPM), write_run(tmp_path / "ddim")]
    gan = write_run(tmp_path / "gan", "lsgan", {"sampler": "gan", "steps": 1})
    paths = write_table1(read_entries([*map(str, runs), str(gan)]), tmp_path / "out")
    assert timed[0] == {
        "run": "ddpm",
        "device": "",
        "sampling": {"sampler": "ddpm", "steps": 1000, "eta": 1.0},
        "repeats": 1,
        "batches": (1,),
    }
    assert timed[1:] == [{"run": name, "device": "", "sampling": {}} for name in ("ddim", "gan")]
    first, second, third = read_csv(paths[1])
    assert [row["gmac"] for row in (first, second, third)] == ["2000.0", "50.0", "2.0"]
    assert [first[k] for k in ("method", "psnr_paper", "seconds_paper")] == [
        "SBLDM (DDPM 1000), ddpm",
        "21.466",
        "30.900 s",
    ]


@pytest.mark.parametrize(
    ("minutes", "equal", "words"),
    [
        ((30, 34), True, "the longest took 13 % more time than the shortest, which counts as an equal budget"),
        ((30, 45), False, "the longest took 50 % more time than the shortest: the budgets are NOT equal (limit 15 %)"),
        ((30, None), None, "not known of 3D-LSGAN, gan, so the budgets cannot be compared"),
        ((None, None), None, "Training time (wall-clock): not known. Sampling was timed on Abacus (2 CPU threads)."),
    ],
)
def test_budgets(
    tmp_path: Path, timed: list[dict[str, Any]], minutes: tuple[float | None, ...], equal: bool | None, words: str
) -> None:
    """Equal within 15 %, or not, or not known, in one sentence; two datasets of a run and copy-paste count once."""
    mine = write_run(tmp_path / "mine", minutes=minutes[0])
    gan = write_run(tmp_path / "gan", "lsgan", {"sampler": "gan", "steps": 1}, minutes=minutes[1])
    add_copypaste(mine)
    write_table1(read_entries([str(mine), str(gan), f"{mine}:502"]), tmp_path / "out")
    content = read_json(tmp_path / "out" / "table1.json")
    assert content["budget"]["equal"] is equal
    assert words in content["budget"]["sentence"] and content["budget"]["sentence"] in content["notes"]
    assert content["budget"]["minutes"] == {
        "SBLDM (DDIM 25), mine": minutes[0],
        "3D-LSGAN, gan": minutes[1],
    }


def test_rows_of_real_cases_through_the_path(tmp_path: Path, timed: list[dict[str, Any]]) -> None:
    """One row where the path is the same for all, one for each autoencoder; dashes where a method has none."""
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b"), write_run(tmp_path / "gan", "lsgan", {"steps": 1})]
    entries = read_entries([*map(str, runs)])
    for entry, autoencoder in zip(entries, (0.1, 0.15, None), strict=True):
        content = read_json(entry.evaluation)
        for values, path in ((content["scores"][0], 19.3), (content["scores"][2], 0.02)):
            values |= {"path": path, "path_low": path - 0.01, "path_high": path + 0.01, "path_n": (4, 2)}
            if autoencoder:
                values |= {"autoencoder": path + autoencoder, "autoencoder_n": (4, 2)}
        write_json(entry.evaluation, content)
    paths = write_table1(entries, tmp_path / "out")
    page, content = paths[2], read_json(paths[0])
    path, *autoencoders = [row["method"] for row in content["references"]]
    assert path == comparison.THROUGH["path"] and len(autoencoders) == 2
    assert autoencoders[1] == "real cases through path and autoencoder of SBLDM (DDIM 25), b"
    assert [row["method"] for row in content["table"][-4:]] == [table1.REAL, path, *autoencoders]
    top, below = "# Table 1: the methods beside each other", "## What these columns leave out"
    assert markdown(page, top, path) == ["19.3 dB [19.3, 19.3], n = 4 / 2", "-", "-", "-"]
    assert markdown(page, below, path)[0] == "0.0200 [0.0100, 0.0300], n = 4 / 2"
    assert [markdown(page, below, label)[0] for label in autoencoders] == ["0.120, n = 4 / 2", "0.170, n = 4 / 2"]
    rows = read_csv(paths[1])
    assert [row["mmd_path"] for row in rows] == ["0.02"] * 3 and rows[2]["mmd_autoencoder"] == ""
    assert REFERENCES_EXPLAINED in page.read_text()


def test_budgets_on_a_shared_machine(tmp_path: Path, timed: list[dict[str, Any]]) -> None:
    """On a CPU the time of its processors counts: one training ran beside others and took twice as long."""
    mine = write_run(tmp_path / "mine", minutes=20)
    gan = write_run(tmp_path / "gan", "lsgan", {"sampler": "gan", "steps": 1}, minutes=40)
    for run, cpu in ((mine, 38), (gan, 40)):
        for path in run.glob("*/history.csv"):
            rows = read_csv(path)
            share = 60 * cpu / len(list(run.glob("*/history.csv")))
            write_csv(path, [row | {"cpu_seconds": share} for row in rows])
    write_table1(read_entries([str(mine), str(gan)]), tmp_path / "out")
    budget = read_json(tmp_path / "out" / "table1.json")["budget"]
    assert budget["equal"] is True and list(budget["cpu_minutes"].values()) == [38, 40]
    assert "SBLDM (DDIM 25), mine 20.0 min (38.0 of the processors, aim 5.30)" in budget["sentence"]
    assert "5 % more processor time" in budget["sentence"]


def test_remarks(tmp_path: Path, timed: list[dict[str, Any]]) -> None:
    """Half-trained, drawn by another checkpoint, without a gate, and beside another floor."""
    a, b = write_run(tmp_path / "a"), write_run(tmp_path / "b")
    write_csv(b / "diffusion" / "history.csv", [{"epoch": 1, "iteration": 50, "seconds": 3}])
    entries = read_entries([str(a), str(b)])
    write_json(entries[1].dataset / "synthesis.json", dict(entries[1].settings) | {"checkpoint_sha256": "older"})
    rows = read_csv(entries[1].dataset / "manifest.csv")
    write_csv(entries[1].dataset / "manifest.csv", [rows[0] | {"gate": "OVERRIDDEN: copy"}, *rows[1:]])
    content = read_json(entries[1].evaluation)
    content["scores"][2] |= {"floor": 0.003}
    content["scores"][0] |= {"floor": 19.2 + 1e-6}  # rounding
    write_json(entries[1].evaluation, content)
    write_table1(read_entries([str(a), str(b)]), tmp_path / "out")
    label = "SBLDM (DDIM 25), b"
    assert read_json(tmp_path / "out" / "table1.json")["remarks"] == [
        f"{label}: half-trained: 50 of 800 iterations of the diffusion.",
        f"{label}: another checkpoint than the one in the run drew these pairs; training and speed are of the latter.",
        f"{label}: the gate was overridden for 1 of 4 pairs.",
        f"{label}: its own floor of MMD is 0.00300 [-0.0490, 0.0510], n = 6 / 2.",
    ]


def test_methods_that_beat_real_cases_are_counted(tmp_path: Path, timed: list[dict[str, Any]]) -> None:
    """PSNR of random pairs, where the intervals do not meet: 20 +- .1 against 19.2 +- .05; SSIM meets."""
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b")]
    write_evaluation(runs[1] / "evaluation" / "Dataset501_SBLDM", psnr=19.3)
    write_table1(read_entries([*map(str, runs)]), tmp_path / "out")
    notes = " ".join(read_json(tmp_path / "out" / "table1.json")["notes"])
    assert "whose whole interval lies above that of real cases: in PSNR 1 of 2)" in notes


def test_nothing_of_the_machine_is_written(tmp_path: Path, timed: list[dict[str, Any]]) -> None:
    """No absolute path and no name of a case: the files may be passed on."""
    mine = write_run(tmp_path / "mine")
    add_copypaste(mine)
    for path in write_table1(read_entries([str(mine), f"{mine}:502"]), tmp_path / "out")[:3]:
        text = path.read_text()
        assert str(tmp_path) not in text and "private" not in text and not re.search(r'["| ,]/\w', text)
        assert "case_0" not in text and "held_0" not in text
    assert json.loads((tmp_path / "out" / "table1.json").read_text())["rows"][0]["run"] == "mine"


# --- pictures and report ----------------------------------------------------------------------------------------------


def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The pairs that are read for a picture."""
    names, read = [], brains._read_pair
    monkeypatch.setattr(brains, "_read_pair", lambda folder, name: (names.append(name), read(folder, name))[1])
    return names


def test_pictures_show_the_first_accepted_pairs(
    tmp_path: Path, timed: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of each method, none that the gate refused; of copy-paste a grey field."""
    mine = write_run(tmp_path / "mine")
    add_copypaste(mine)
    entries = read_entries([str(mine), f"{mine}:502"])
    rows = read_csv(entries[0].dataset / "manifest.csv")
    write_csv(entries[0].dataset / "manifest.csv", [rows[0] | {"gate": "OVERRIDDEN: copy"}, *rows[1:]])
    names = shown(monkeypatch)
    path = write_table1(entries, tmp_path / "out")[-1]
    assert names == ["P_1", "P_2"]
    picture = np.asarray(Image.open(path).convert("RGB")).astype(int)
    assert picture.shape[1] == 1350
    grey = (picture == 102).all(axis=2).mean(axis=1)
    assert (grey > 0.5).sum() == pytest.approx(0.45 * 270, abs=2) and grey[-1] > 0.9  # the last field, and no other
    white = (picture == 255).all(axis=2).mean(axis=1)
    assert (white > 0.6).any() and not (white[grey > 0.5] > 0.3).any()  # brains of one grey, drawn white
    assert (np.abs(picture - (255, 157, 59)).sum(axis=2) < 30).any()


@pytest.mark.parametrize("why", ["copies", "voxels", "canvas", "refused"])
def test_pictures_that_could_show_a_real_case_are_left_out(
    tmp_path: Path, timed: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, why: str
) -> None:
    """Where one pair is a copy or holds the voxels of a real case, where brains are real, where all were refused."""
    run = write_run(tmp_path / "mine")
    entries = read_entries([str(run)])
    if why == "copies":
        write_evaluation(entries[0].evaluation.parent, sure=0.25)
    elif why == "voxels":
        contents = {"synthetic": ["t" * 32 + "elsewhere"], "train": ["t" * 48], "heldout": ["h" * 48]}
        write_evaluation(entries[0].evaluation.parent, contents=contents)
    else:
        more = {"canvas": "case_0"} if why == "canvas" else {"gate": "OVERRIDDEN: copy"}
        rows = read_csv(entries[0].dataset / "manifest.csv")
        write_csv(entries[0].dataset / "manifest.csv", [row | more for row in rows])
    names = shown(monkeypatch)
    path = write_table1(entries, tmp_path / "out")[-1]
    picture = np.asarray(Image.open(path).convert("RGB"))
    assert names == [] and (picture == 102).all(axis=2).mean() > 0.5


def test_report_rows(tmp_path: Path, timed: list[dict[str, Any]]) -> None:
    """The paper's columns as cells of ours and the paper's, the floor last; nothing without a table."""
    mine = write_run(tmp_path / "mine")
    assert report_rows(Run.at(mine)) is None
    make_table1([str(mine)], refuse)
    found = report_rows(Run.at(mine))
    assert found["header"] == ["Methods", "PSNR", "SSIM", "#params", "Sampling time"]
    assert [row["method"] for row in found["rows"]] == ["SBLDM (DDIM 25), mine", table1.REAL]
    assert found["rows"][0]["cells"][3] == {"ours": "6.25 s", "paper": "1.965 s"}
    assert found["rows"][1]["cells"][0] == {"ours": "19.2 dB [19.1, 19.2], n = 6 / 2", "paper": ""}
    assert found["notes"][1].startswith("PSNR (psnr.random-pair.train) and SSIM")
    assert found["budget"].startswith("Training time (wall-clock): SBLDM (DDIM 25), mine 30.0 min (aim 5.30).")
    assert found["picture"] == mine / "table1" / "methods.png" and found["picture"].is_file()
    found["picture"].unlink()
    assert report_rows(Run.at(mine))["picture"] is None
