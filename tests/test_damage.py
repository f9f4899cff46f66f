"""Damaged files of a finished run: every command ends well or in one line, and what the line advises works."""

from __future__ import annotations

import csv
import os
import random
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import TINY, call, copy_run, one_line, run_cli

from sbldm.run.errors import DamagedError
from sbldm.run.files import write_json
from sbldm.synthesis.raw_dataset import _alike

DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "brace": lambda content: b"{",
    "list": lambda content: b"[]",
    "random": lambda content: random.Random(0).randbytes(len(content)),
    "removed": lambda content: None,
}
RUN, PREPARED, PAIRS, PASTED = (
    ("preset.yaml", "lists.json"),
    "prepared/Phantom_*",
    "nnUNet_raw/*501*",
    "nnUNet_raw/*502*",
)
STAGES = ("autoencoder/*.pt", "diffusion/*.pt")
DATASET = ("*.json", "*.csv", "*.md", "records/*", "imagesTr/*", "labelsTr/*")
JOBS = "table2/jobs/real+aug_*"
READ = {  # what each command reads, or may read, in a run; of files that are alike the first stands for all
    "prepare": (*RUN, "preflight.csv", f"{PREPARED}.json", f"{PREPARED}.npz", "prepared/*.csv"),
    "train": (*RUN, f"{PREPARED}.json", f"{PREPARED}.npz", *STAGES, "*/history.csv", "latents/*"),
    "synth": (*RUN, f"{PREPARED}.json", *STAGES, "gate/*", *(f"{PAIRS}/{part}" for part in DATASET), "figures/*"),
    "copypaste": (*RUN, f"{PREPARED}.json", *(f"{PASTED}/{part}" for part in DATASET)),
    "sweep": (*RUN, *STAGES, "evaluation/sweeps/*.json", "evaluation/sweeps/*.nii.gz"),
    "report": (
        *(*RUN, *STAGES, "*/history.csv", "*/tensorboard/*", "evaluation/sweeps/*.json", "evaluation/sweeps/*.nii.gz"),
        *(*(f"{PAIRS}/{part}" for part in DATASET), "evaluation/*501*/*", "evaluation/*501*/figures/*.png"),
        *("evaluation/*501*/figures/*.gif", "table1/*.json", "table1/*.png", "table2/*.md"),
    ),
    "table1": (*RUN, *STAGES, "*/history.csv", "costs.json", *(f"{PAIRS}/{part}" for part in DATASET), "table1/*"),
    "verify": tuple(f"{PAIRS}/{part}" for part in ("*.json", "imagesTr/*", "labelsTr/*")),
    "export": (
        *(*RUN, f"{PREPARED}.json", *(f"{PAIRS}/{part}" for part in DATASET)),
        *("table2/*.json", "table2/*.yaml", "table2/subsets/*", f"{JOBS}/job.json", "table2/nnUNet_*/*/*.json"),
    ),
    "table": ("table2/*.yaml", f"{JOBS}/*.json", f"{JOBS}/*.csv", f"{JOBS}/predictions/*.nii.gz"),
    "run": (f"{JOBS}/job.json",),
    "predict": (
        *(f"{JOBS}/*.json", f"{JOBS}/nnUNet_results/*/*/*.json", f"{JOBS}/nnUNet_results/*/*/*/checkpoint_final.pth"),
        *("predicted/model.json", "predicted/*.nii.gz"),
    ),
}
KEPT = ("nnUNet_raw/*/manifest.csv", "table2/table2.csv", "evaluation/*/scores.csv")  # no success may change these


def commands(run: Path, cases: Path) -> dict[str, Callable[[], subprocess.CompletedProcess]]:
    """All commands that read a run, as somebody would type them again."""
    queue = ["--run", run, "--budget", run / "budget.yaml", "--test", run / "test", "--workers", 1]
    return {
        "prepare": lambda: call("prepare", "--data", cases, "--run", run, "--preset", TINY),
        "train": lambda: call("train", "--run", run),
        "synth": lambda: call("synth", "--run", run, "--n", 3),
        "copypaste": lambda: call("copypaste", "--run", run, "--n", 2),
        "sweep": lambda: call("sweep", "--run", run, "--steps", 2, "--n", 1),
        "report": lambda: call("report", "--run", run),
        "table1": lambda: call("table1", "--runs", run),
        "verify": lambda: call("nnunet", "verify", "--run", run),
        "export": lambda: call("nnunet", "export", *queue, "--arms", "real+aug"),
        "run": lambda: call("nnunet", "run", "--run", run),
        "table": lambda: call("nnunet", "table", "--run", run),
        "nnunet-eval": lambda: call("nnunet", "eval", *queue, "--arms", "real+aug"),
        "predict": lambda: call(
            "nnunet", "predict", "--model", run, "--images", run / "test", "--out", run / "predicted"
        ),
    }


def linked(run: Path, folder: Path) -> Path:
    """A copy that shares its files, which are replaced and never changed in place."""
    return Path(shutil.copytree(run, folder / "run", copy_function=os.link))


def damage(path: Path, how: str) -> None:
    """Damage one file; its time stays, so that nothing is made anew for that reason."""
    content, times = path.read_bytes(), path.stat()
    path.unlink()  # the other copies keep theirs
    if (left := DAMAGES[how](content)) is not None:
        path.write_bytes(left)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def kinds(run: Path, patterns: tuple[str, ...]) -> list[str]:
    """The first file of each kind, below the run."""
    found: dict[str, str] = {}
    for path in sorted(path for pattern in patterns for path in run.glob(pattern) if path.is_file()):
        name = str(path.relative_to(run))
        kind = re.sub(r"\d+", "#", name) if not name.startswith("evaluation/sweeps") else Path(name).suffix
        found.setdefault(kind, name)
    return list(found.values())


def results(run: Path) -> dict[str, list[dict[str, str]]]:
    """Rows of the tables that damage elsewhere must not change; clocks aside."""
    found = {}
    for path in (path for pattern in KEPT for path in run.glob(pattern)):
        with open(path, newline="", errors="replace") as file:  # one of them may be what was damaged
            rows = [{k: v for k, v in row.items() if k and "second" not in k} for row in csv.DictReader(file)]
        found[str(path.relative_to(run))] = rows
    return found


def ends_well(done: subprocess.CompletedProcess, run: Path, before: dict[str, list[dict[str, str]]]) -> str:
    """The one line of a command that failed as documented; empty after a right result."""
    assert "Traceback" not in done.stderr + done.stdout, done.stderr + done.stdout
    if done.returncode == 0:
        assert results(run) == before
        return ""
    message = one_line(done, done.returncode)
    assert done.returncode in (2, 3, 4, 5)
    assert "weights_only" not in message and "pickle" not in message and "[Errno" not in message
    return message


def follow(message: str, run: Path, cases: Path) -> None:
    """Do what a line advises."""
    named = message.removeprefix("Error: ").split(": ")[0]
    if match := re.search(r"\bremove ((?:it|/\S+)(?: /\S+)*?)(?=:| and)", message):
        for path in [Path(named) if word == "it" else Path(word) for word in match[1].split()]:
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for name, known in {
        "prepare": ("prepare",),
        "train --run": ("train",),
        "synth or copypaste": ("synth", "copypaste"),
        "sweep": ("sweep",),
        "nnunet eval": ("nnunet-eval",),
    }.items():
        if f"sbldm {name}" in message and not (name == "train --run" and "last.pt" in named):
            for command in known:
                commands(run, cases)[command]()


# --- a few of each kind -----------------------------------------------------------------------------------------------

SOME = [
    ("prepare", "lists.json", "list"),
    ("prepare", "prepared/Phantom_000.json", "empty"),
    ("copypaste", "prepared/Phantom_000.json", "cut"),
    ("train", "latents/constants.json", "empty"),
    ("train", "latents/Phantom_000.npz", "cut"),
    ("train", "diffusion/last.pt", "list"),
    ("synth", "preset.yaml", "empty"),
    ("synth", "diffusion/best.pt", "random"),
    ("synth", "diffusion/last.pt", "empty"),
    ("synth", "nnUNet_raw/Dataset501_SBLDM/records/SBLDM_000001.json", "list"),
    ("synth", "nnUNet_raw/Dataset501_SBLDM/imagesTr/SBLDM_000001_0000.nii.gz", "cut"),
    ("synth", "nnUNet_raw/Dataset501_SBLDM/synthesis.json", "list"),
    ("synth", "nnUNet_raw/Dataset501_SBLDM/manifest.csv", "random"),
    ("copypaste", "lists.json", "brace"),
]


@pytest.mark.parametrize(("command", "name", "how"), SOME)
def test_one_line(drawn_run, phantom_cases, tmp_path, command, name, how):
    """A right result, or one line that names the file and no advice that is unsafe."""
    run = linked(drawn_run, tmp_path)
    before = results(run)
    damage(run / name, how)
    message = ends_well(
        commands(run, phantom_cases)[command](), run, before if "manifest" not in name else results(run)
    )
    healed = "records" in name or "manifest" in name or (command == "prepare" and "prepared" in name)
    assert healed != bool(message) and (healed or str(run / name) in message)


@pytest.mark.parametrize(
    ("command", "name", "how"),
    [
        ("prepare", "lists.json", "empty"),
        ("copypaste", "prepared/Phantom_000.json", "list"),
        ("synth", "diffusion/last.pt", "cut"),
        ("synth", "nnUNet_raw/Dataset501_SBLDM/labelsTr/SBLDM_000000.nii.gz", "empty"),
        ("synth", "nnUNet_raw/Dataset501_SBLDM/synthesis.json", "cut"),
        ("train", "latents/constants.json", "list"),
    ],
)
def test_advice(drawn_run, phantom_cases, tmp_path, command, name, how):
    """Doing what the line says ends in the result that there was."""
    run = linked(drawn_run, tmp_path)
    before = results(run)
    damage(run / name, how)
    again = commands(run, phantom_cases)[command]
    follow(one_line(again(), 4), run, phantom_cases)
    done = again()
    assert done.returncode == 0, done.stderr
    assert (
        results(run)["nnUNet_raw/Dataset501_SBLDM/manifest.csv"] == before["nnUNet_raw/Dataset501_SBLDM/manifest.csv"]
    )


def test_odd_record(tmp_path):
    """A record of an older version has fewer entries, and empty cells; one with an entry of its own is named."""
    records = ({"pair": "a", "seed": 0}, {"pair": "b"}, {"pair": "c", "sead": 2})
    for k, record in enumerate(records):
        write_json(tmp_path / f"{k}.json", record)
    paths = sorted(tmp_path.iterdir())
    assert _alike(paths[:2], {"pair": str}) == [{"pair": "a", "seed": 0}, {"pair": "b", "seed": ""}]
    assert _alike([], {"pair": str}) == []
    with pytest.raises(DamagedError, match=r"2\.json: damaged \(sead is not in all records\); remove the odd one"):
        _alike(paths, {"pair": str})


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished_run(drawn_run: Path, other_cases: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with everything in it that a command can leave there."""
    from test_nnunet_eval import BUDGET

    run = copy_run(drawn_run, tmp_path_factory.mktemp("finished"))
    budget = {"tiny": BUDGET["tiny"] | {"iterations": 20, "snapshots": [10]}}
    (run / "budget.yaml").write_text(yaml.safe_dump(budget))
    shutil.copytree(other_cases, run / "test")
    queue = ["--run", run, "--budget", run / "budget.yaml", "--test", run / "test", "--workers", 1]
    for arguments in (
        ("copypaste", "--run", run, "--n", 2),
        ("sweep", "--run", run, "--steps", 2, "--n", 1),
        ("nnunet", "eval", *queue, "--arms", "real+aug"),
        ("nnunet", "predict", "--model", run, "--images", run / "test", "--out", run / "predicted"),
        ("table1", "--runs", run),
        ("report", "--run", run),
    ):
        done = run_cli(*arguments)
        assert done.returncode == 0, done.stderr
    return run


@pytest.mark.slow
@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("command", READ)
def test_every_file(finished_run, phantom_cases, tmp_path, command, how):
    """Every kind of file that a command reads, damaged in every way; all faults are named together."""
    faults, before = [], results(finished_run)
    for number, name in enumerate(kinds(finished_run, READ[command])):
        run = linked(finished_run, tmp_path / str(number))
        damage(run / name, how)
        held = {path: rows for path, rows in before.items() if path != name}
        try:
            done = commands(run, phantom_cases)[command]()
            if name in before:
                held[name] = results(run).get(name)
            ends_well(done, run, {path: rows for path, rows in held.items() if rows is not None})
        except Exception as fault:
            faults.append(f"{name}: {' '.join(str(fault).split())[-400:] or type(fault).__name__}")
        except AssertionError as fault:
            faults.append(f"{name}: {' '.join(str(fault).split())[-400:]}")
        shutil.rmtree(run)
    assert not faults, "\n".join(faults)
