"""What users type: help, exit codes, the Makefile, and nnU-Net's own word on the datasets."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import TINY, Cli, call, copy_run, one_line, partial_files, snapshot

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()


def make(*arguments: str) -> subprocess.CompletedProcess:
    """Run `make` where the Makefile lies."""
    return subprocess.run(["make", *arguments], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)


# --- help -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ((), ["phantom", "download", "prepare", "train", "synth", "Exit codes: 0 done; 2", "5 the output cannot"]),
        (("phantom",), ["--out", "--n", "default: 24"]),
        (("download",), ["7.1 GB", "--out"]),
        (
            ("prepare",),
            ["--data", "--preset", "demo, small, fast, paper", "--strict", "--validation-cases", "--workers"],
        ),
        (("train",), ["all,autoencoder,diffusion,gan", "default: runs/default", "ldm3d_reduced, lsgan", "--minutes"]),
        (
            ("synth",),
            ["--n", "--requests", "--centre-mm", "dpm_solver, unipc or heun", "default: 501", "SEED + i"],
        ),
    ],
)
def test_help(command: tuple[str, ...], words: list[str], capsys: pytest.CaptureFixture) -> None:
    """Every command explains its options."""
    done = call(*command, "--help")
    assert done.returncode == 0 and done.stdout.startswith(" ".join(["usage: python -m sbldm", *command]))
    text = " ".join(done.stdout.split())
    assert [word for word in words if word not in text] == []


def test_help_of_both_programs(cli: Cli) -> None:
    """As processes of their own, quickly: nothing heavy is imported for it."""
    assert "COMMAND" in cli("--help").stdout
    done = cli("--help", module="nnunet_integration")
    assert done.returncode == 0 and "verify" in done.stdout
    done = cli("verify", "--help", module="nnunet_integration")
    assert done.returncode == 0 and "default: 501" in done.stdout and "--run" in done.stdout


# --- exit codes -----------------------------------------------------------------------------------------------------


def test_no_command_or_a_wrong_one() -> None:
    """The shell's usual code for wrong usage."""
    for arguments in ((), ("draw",), ("train", "everything"), ("synth", "--number", "3")):
        done = call(*arguments)
        assert done.returncode == 2 and "usage: python -m sbldm" in done.stderr


def test_prepare_refuses_wrong_variables(tmp_path: Path, phantom_cases: Path) -> None:
    """Missing DATA, an unknown preset, a wrong seed: code 2, the variable is named, no run folder appears."""
    run = tmp_path / "run"
    assert "DATA is missing: make prepare DATA=" in one_line(call("prepare", "--run", run), 2)
    message = one_line(call("prepare", "--run", run, "--data", phantom_cases, "--preset", "tall"), 2)
    assert "PRESET=tall: no such preset; choose one of demo, fast, paper, small" in message
    for option, value in (("seed", "-1"), ("seed", "x"), ("workers", "0"), ("workers", "two")):
        done = call("prepare", "--run", run, "--data", phantom_cases, f"--{option}={value}")
        assert f"{option.upper()}={value}: " in one_line(done, 2)
    assert "CASES_N=0" in one_line(call("phantom", "--out", tmp_path / "cases", "--n", 0), 2)
    assert list(tmp_path.iterdir()) == []


def test_unreadable_preset(tmp_path: Path, phantom_cases: Path) -> None:
    """A YAML file that is none, or that lacks a part, is named with what it lacks."""
    broken = {
        "a: [": "is not readable as YAML",
        "preset: {name: x, data: {}}": "lacks data.channels (and 7 more)",
    }
    for text, words in broken.items():
        (tmp_path / "p.yaml").write_text(text)
        done = call("prepare", "--run", tmp_path / "run", "--data", phantom_cases, "--preset", tmp_path / "p.yaml")
        assert f"{tmp_path}/p.yaml: " in one_line(done, 2) and words in done.stderr
    assert not (tmp_path / "run").exists()


def test_no_cases(tmp_path: Path) -> None:
    """A folder without cases is wrong data (code 3), a folder that is not there a wrong variable (code 2)."""
    (tmp_path / "empty").mkdir()
    for folder, code in (("empty", 3), ("none", 2)):
        done = call("prepare", "--run", tmp_path / "run", "--data", tmp_path / folder, "--preset", TINY)
        assert str(tmp_path / folder) in one_line(done, code)
    assert not (tmp_path / "run").exists()


def test_strict(tmp_path: Path, phantom_cases: Path) -> None:
    """With STRICT=1 one broken case stops everything; without, it is left out, said and written down."""
    cases = Path(shutil.copytree(phantom_cases, tmp_path / "cases"))
    mask = next(cases.rglob("Phantom_001*seg*"))
    mask.write_bytes(mask.read_bytes()[:200])
    arguments = ("prepare", "--data", cases, "--preset", TINY, "--workers", 1)
    done = call(*arguments, "--run", tmp_path / "strict", "--strict", 1)
    assert done.returncode == 3 and "STRICT=1" in one_line(done, 3)
    assert not (tmp_path / "strict" / "prepared").exists()
    done = call(*arguments, "--run", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "4 cases to train on, 1 held back" in done.stdout and "Phantom_001" in done.stdout
    rows = (tmp_path / "run" / "preflight.csv").read_text().splitlines()
    assert rows[0] == "case,check,what,action,mend" and [row.split(",")[0] for row in rows[1:]] == ["Phantom_001"]


def test_prepare_twice(tmp_path: Path, prepared_run: Path, phantom_cases: Path) -> None:
    """The same again changes no prepared case; another preset or another seed into the same run is refused."""
    run = copy_run(prepared_run, tmp_path)
    before = snapshot(run / "prepared")
    arguments = ("prepare", "--data", phantom_cases, "--run", run)
    assert call(*arguments, "--preset", TINY).returncode == 0
    after = snapshot(run / "prepared")
    assert {k: v for k, v in after.items() if not k.endswith(".csv")} == {
        k: v for k, v in before.items() if not k.endswith(".csv")
    }
    assert "prepared with the preset 'tiny'" in one_line(call(*arguments, "--preset", "demo"), 4)
    assert "this run holds other cases" in one_line(call(*arguments, "--preset", TINY, "--seed", 3), 4)
    assert snapshot(run / "prepared") == after and not partial_files(run)


# --- make -----------------------------------------------------------------------------------------------------------


def test_make_help() -> None:
    """One line for every target that has a comment; variables with their defaults; exit codes."""
    done = make("help")
    assert done.returncode == 0
    targets = re.findall(r"^([a-z0-9-]+):.*## ", MAKEFILE, re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE).group(1).split()
    assert sorted(targets) == sorted(phony)
    shown = re.findall(r"^  make (\S+)\s+(\S.*)$", done.stdout, re.MULTILINE)
    assert [name for name, _ in shown] == targets
    assert "RUN=runs/default  PRESET=small" in done.stdout and "N=pairs" in done.stdout
    assert "2 a variable is wrong" in done.stdout


@pytest.mark.skipif(not (ROOT / ".venv" / ".installed").exists(), reason="make would first install a .venv")
def test_make_passes_variables() -> None:
    """What is typed behind `make` reaches the command line, a leading minus and spaces included."""
    shown = make("-n", "synth", "N=3", "RUN=runs/my run", "CENTRE_MM=-30,10,5", "STEPS=7", "DATASET=777").stdout
    for part in ("--run='runs/my run'", "--n='3'", "--centre-mm='-30,10,5'", "--steps='7'", "--dataset='777'"):
        assert part in shown
    assert "--name=''" in shown and "--seed='0'" in shown and "--batch=''" in shown
    shown = make("-n", "prepare", "DATA=/x", "CASES=list.txt", "PRESET=demo", "STRICT=1", "WORKERS=4").stdout
    for part in ("--data='/x'", "--cases='list.txt'", "--preset='demo'", "--strict='1'", "--workers='4'"):
        assert part in shown
    assert "train diffusion --data='' --run='runs/default'" in make("-n", "train-diffusion").stdout
    shown = make("-n", "train", "MODEL=lsgan", "MINUTES=20", "DATA=/x", "VALIDATION_CASES=held.txt").stdout
    for part in ("train --data='/x'", "--model='lsgan'", "--minutes='20'", "--validation-cases='held.txt'"):
        assert part in shown
    shown = make("-n", "table1", "RUNS=runs/a runs/b:502", "NNUNET=runs/a").stdout
    assert "table1 --runs='runs/a runs/b:502' --run" in shown and "--nnunet='runs/a'" in shown
    assert "verify --run='runs/default' --dataset='502'" in make("-n", "verify", "DATASET=502").stdout
    assert "--tol='20,10' --gate='off'" in make("-n", "synth", "TOL=20,10", "GATE=off").stdout
    for step in ("evaluate", "report"):
        shown = make("-n", step, "RUN=runs/x", "DATASET=502", "FEATURES=imagenet", "LICENCE=CC BY 4.0").stdout
        assert f"sbldm.evaluation {step} --run='runs/x' --dataset='502'" in shown and "--licence='CC BY 4.0'" in shown


ODD = """it's #1 $x $(touch ran) `touch ran` "quoted" \\ *"""


@pytest.mark.skipif(not (ROOT / ".venv" / ".installed").exists(), reason="make would first install a .venv")
@pytest.mark.parametrize(
    ("target", "variable"),
    [
        *(("prepare", name) for name in ("RUN", "DATA", "CASES", "VALIDATION_CASES", "PRESET")),
        *(("synth", name) for name in ("RUN", "REQUESTS", "NAME")),
        *(("evaluate", name) for name in ("LICENCE", "OUT", "NNUNET", "FEATURES")),
        *(("nnunet-eval", name) for name in ("SYNTH", "TEST", "ARMS_FILE", "BUDGET")),
        ("table1", "RUNS"),
    ],
)
def test_make_quotes_every_value(target: str, variable: str) -> None:
    """Whatever a value holds, the shell hands it on as one word and runs nothing of it."""
    lines = make("-n", target, f"{variable}={ODD}").stdout.splitlines()
    words = shlex.split(next(line for line in lines if "-m " in line))
    assert f"--{variable.lower().replace('_', '-')}={ODD}" in words


@pytest.mark.skipif(not (ROOT / ".venv" / ".installed").exists(), reason="make would first install a .venv")
def test_make_takes_nothing_from_the_environment() -> None:
    """Variables of a shell (NAME is often the machine's) do not leak in; DEVICE is documented to."""
    leaks = {
        "NAME": "host",
        "N": "9",
        "DATA": "/elsewhere",
        "RUN": "x",
        "REQUESTS": "y",
        "GATE": "off",
        "DEVICE": "cpu",
    }
    shown = subprocess.run(
        ["make", "-n", "synth"], capture_output=True, text=True, check=True, cwd=ROOT, env=os.environ | leaks
    ).stdout
    for part in ("--name=''", "--n=''", "--data=''", "--run='runs/default'", "--requests=''", "--gate='on'"):
        assert part in shown


# --- nnU-Net --------------------------------------------------------------------------------------------------------


def test_verify_without_a_dataset(cli: Cli, trained_run: Path) -> None:
    """Code 4 and the command that draws one; a number that is none is code 2."""
    message = one_line(cli("verify", "--run", trained_run, module="nnunet_integration"), 4)
    assert f"no dataset 501; draw pairs first: make synth RUN={trained_run}" in message
    message = one_line(cli("verify", "--run", trained_run, "--dataset", "x", module="nnunet_integration"), 2)
    assert "DATASET=x" in message
    assert not (trained_run / "nnUNet_preprocessed").exists()


@pytest.mark.slow
def test_nnunet_accepts_the_pairs(tmp_path: Path, cli: Cli, drawn_run: Path) -> None:
    """nnU-Net's integrity check, plan and preprocessing run through on what `synth` wrote."""
    run = copy_run(drawn_run, tmp_path)
    done = cli("verify", "--run", run, module="nnunet_integration")
    assert done.returncode == 0, done.stderr + (run / "nnunet_verify.log").read_text()
    assert "planned and preprocessed (spacing [4.0, 4.0, 4.0]" in done.stdout
    folder = run / "nnUNet_preprocessed" / "Dataset501_SBLDM"
    cases = {path.name.split(".")[0] for path in (folder / "nnUNetPlans_3d_fullres").glob("SBLDM_*.pkl")}
    assert cases == {"SBLDM_000000", "SBLDM_000001", "SBLDM_000002"}


@pytest.mark.slow
def test_nnunet_refuses_a_damaged_dataset(tmp_path: Path, cli: Cli, drawn_run: Path) -> None:
    """A label that dataset.json does not know: code 3, one line that names dataset and log."""
    run = copy_run(drawn_run, tmp_path)
    path = run / "nnUNet_raw" / "Dataset501_SBLDM" / "labelsTr" / "SBLDM_000001.nii.gz"
    file = nib.load(path)
    labels = np.asarray(file.dataobj).copy()
    labels[labels > 0] = 7
    nib.save(nib.Nifti1Image(labels, file.affine, file.header), path)
    message = one_line(cli("verify", "--run", run, module="nnunet_integration"), 3)
    assert "Dataset501_SBLDM: nnU-Net refuses it" in message and f"{run}/nnunet_verify.log" in message
    assert "Unexpected labels" in (run / "nnunet_verify.log").read_text()
