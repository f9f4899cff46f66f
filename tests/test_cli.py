"""What users type: help, what is checked at the door, exit codes, the Makefile, nnU-Net's word on the datasets."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import nibabel as nib
import numpy as np
import pytest
import typer
from conftest import TINY, Cli, call, copy_run, one_line, partial_files, snapshot

from nnunet_integration.cli import app as nnunet
from nnunet_integration.jobs import FOLDS
from nnunet_integration.options import HIGHEST_FOLD
from sbldm.cli import app
from sbldm.commands import pairs
from sbldm.commands.launch import Training
from sbldm.diffusion import SAMPLERS, SPACINGS
from sbldm.run import options
from sbldm.run.models import SAMPLING
from sbldm.tumour.asking import PARTS

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text()


def make(*arguments: str) -> subprocess.CompletedProcess:
    """Run `make` where the Makefile lies."""
    return subprocess.run(["make", *arguments], capture_output=True, text=True, timeout=60, check=False, cwd=ROOT)


def program(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    """A fresh Python that runs code with these arguments."""
    return subprocess.run(
        [sys.executable, "-c", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | environment,
    )


def plain(text: str) -> str:
    """What a page of help says, without frames and line breaks."""
    return " ".join(re.sub("[─│╭╮╰╯]", " ", text).split())


# --- help -----------------------------------------------------------------------------------------------------------

COMMANDS = [
    *("prepare", "train", "synth", "copypaste", "controls", "weights", "sweep", "evaluate", "report", "table1"),
    *("ablation", "costs", "phantom", "download", "bench"),
    *(
        f"nnunet {name}"
        for name in ("arms", "export", "run", "table", "eval", "plateau", "verify", "predict", "filter")
    ),
]


def test_every_command_is_listed() -> None:
    """The whole of it, with the exit codes, and nothing that this file does not know."""
    text = plain(call("--help").stdout)
    assert "Usage: sbldm [OPTIONS] COMMAND" in text and "Exit codes: 0 done; 2 an option is wrong" in text
    assert "5 the output cannot be written" in text and "--install-completion" in text
    both = [name for name in typer.main.get_command(app).commands if name != "nnunet"]
    both += [f"nnunet {name}" for name in typer.main.get_command(nnunet).commands]
    assert sorted(both) == sorted(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    """Its usage, and a word on each of its options."""
    done = call(*command.split(), "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert plain(done.stdout).startswith(f"Usage: sbldm {command} [OPTIONS]")
    group = typer.main.get_command(app)
    for word in command.split():
        group = group.commands[word]
    assert group.help and all(param.help for param in group.params)


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("phantom", ["--out", "Number of cases, 1 to 1000000.", "default: 24"]),
        ("download", ["7.1 GB", "--out"]),
        ("prepare", ["[DATA]", "demo, small, fast, paper", "--strict", "--validation-cases", "--workers", "Cases"]),
        ("train", ["all|autoencoder|diffusion|gan|regions", "default: runs/default", "ldm3d_reduced", "--minutes"]),
        ("synth", ["--centre-mm R,A,S", "ddim|ddpm|dpm_solver|unipc|", "default: 501", "Request", "Real brains"]),
        ("nnunet verify", ["default: 501", "--run"]),
    ],
)
def test_help(command: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Types, ranges, choices and defaults are there."""
    monkeypatch.setenv("COLUMNS", "150")
    text = plain(call(*command.split(), "--help").stdout)
    assert [word for word in words if word not in text] == []


def test_help_needs_no_libraries() -> None:
    """As a process of its own, quickly: nothing heavy is imported for it."""
    heavy = ("torch", "monai", "numpy", "nnunetv2", "matplotlib")
    code = f"""
import sys
from sbldm.cli import main
assert [main([*words.split(), "--help"]) for words in ("", "synth", "evaluate", "nnunet", "nnunet eval")] == [0] * 5
print([name for name in {heavy} if name in sys.modules])
"""
    done = program(code)
    assert done.returncode == 0 and done.stdout.endswith("[]\n"), done.stdout + done.stderr


def test_choices_are_those_of_the_libraries() -> None:
    """They are written down twice, as help is not to load the libraries."""
    assert get_args(options.Sampler) == tuple(SAMPLERS) and get_args(options.Spacing) == tuple(SPACINGS)
    assert set(options.Drawing().sampling) == set(SAMPLING) and set(options.Drawing().request) == set(PARTS)
    assert HIGHEST_FOLD == FOLDS - 1


def test_the_shell_completes() -> None:
    """Commands and choices, as bash asks for them."""
    code = "from sbldm.cli import main; main()"
    for line, found in (("sbldm syn", "synth"), ("sbldm synth --sampler u", "unipc"), ("sbldm nnunet ver", "verify")):
        asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split()) - 1), "_SBLDM_COMPLETE": "complete_bash"}
        assert program(code, **asked).stdout.split() == [found]


# --- what is wrong, and exit codes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "sbldm: missing command; see `sbldm --help`."),
        ("draw", "sbldm: no such command 'draw'; see `sbldm --help`."),
        ("train everything", "stage everything: choose one of all, autoencoder, diffusion, gan, regions, refiner."),
        ("synth --number 3", "--number: no such option of `sbldm synth` (did you mean --name?)."),
        ("synth --volumeml 3", "--volumeml: no such option of `sbldm synth` (did you mean --volume-ml?)."),
        ("synth --zzz 3", "--zzz: no such option of `sbldm synth`; see `sbldm synth --help`."),
        ("sweep --n", "--n: its value is missing."),
        ("synth --keep=yes", "--keep: takes no value (with make: 1, as in KEEP=1)."),
        ("synth 3", "sbldm synth: got unexpected extra argument(s) (3); see `sbldm synth --help`."),
        ("synth --n 1.5", "--n 1.5: must be a whole number from 1 to 1000000."),
        ("synth --n 0", "--n 0: must be a whole number from 1 to 1000000."),
        ("synth --seed -1", "--seed -1: must be a whole number from 0 to 4294967295."),
        ("synth --eta 1.5", "--eta 1.5: must be a number from 0 to 1."),
        ("synth --guidance nan", "--guidance nan: must be a number from 0 to 1000000."),
        ("synth --volume-ml 0", "--volume-ml 0: must be a number above 0 to 1000000."),
        ("synth --centre-mm 1,,2", "--centre-mm 1,,2: write three numbers along R, A, S, as in 40,35,30."),
        (
            "synth --sampler dimd",
            "--sampler dimd: choose one of ddim, ddpm, dpm_solver, unipc, heun (did you mean ddim?).",
        ),
        ("synth --gate maybe", "--gate maybe: choose one of on, off."),
        ("synth --tol 20,10,5", "--tol 20,10,5: write per cent of the volume and mm of the centre, as in 20,10."),
        ("synth --tol -1", "--tol -1: write per cent of the volume and mm of the centre, as in 20,10."),
        (
            "evaluate --scores fit,looks",
            "--scores fit,looks: looks is none of similarity, distribution, channels, ",
        ),
        ("evaluate --fid 2", "--fid 2: choose one of 1, force."),
        ("nnunet eval --n-real 0,5", "--n-real 0,5: 0 is not from 1 to 1000000000."),
        ("nnunet eval --seeds a", "--seeds a: write numbers separated by commas."),
        ("nnunet plateau --amounts 1,-2", "--amounts 1,-2: -2 is not from 0 to 1000."),
        ("nnunet predict --model x", "--images is missing: "),
        ("nnunet tabel", "sbldm nnunet: no such command 'tabel'"),
        ("weights --out a", "--about is missing: "),
        ("prepare a --data b", "--data b: the folder of cases is given twice; leave one out."),
    ],
)
def test_what_is_typed_is_checked_at_the_door(line: str, said: str) -> None:
    """One line that names the option and what it can be, and the shell's usual code for wrong usage."""
    done = call(*line.split())
    assert one_line(done, 2).startswith(f"Error: {said}") and done.stderr.count("\n") == 1 and done.stdout == ""


def test_values_with_several_things_in_them(tmp_path: Path) -> None:
    """Libraries receive numbers and words, not text to be read."""
    spaced = tmp_path / "a b"
    spaced.mkdir()
    assert options.words("gan=/a 'x=/b c' y=\"/it's\"") == ("gan=/a", "x=/b c", "y=/it's")
    assert options.words(str(spaced)) == (str(spaced),) and options.words(f"gan={spaced}") == (f"gan={spaced}",)
    assert options.tolerance("20%, 10") == (20, 10) and options.tolerance("20") == (20, float("inf"))
    assert options.tolerance(",10") == (float("inf"), 10)
    for text in ("gan='x", 'gan="x', "a=/it's"):
        with pytest.raises(options.Wrong, match="a quotation mark has no counterpart"):
            options.words(text)


def test_values_reach_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Typed, and what is left out is as the command says."""
    taken: list[tuple] = []
    for name in ("synth", "train"):
        monkeypatch.setattr(pairs, name, lambda *values: taken.append(values))
    asked = [
        "--run",
        tmp_path,
        "--n",
        3,
        "--centre-mm",
        "-30,10,5",
        "--steps",
        7,
        "--guidance",
        2,
        "--tol",
        "20,",
        "--push",
    ]
    assert call("synth", *asked).returncode == 0
    ((drawing,),) = taken
    assert drawing == options.Drawing(
        run=tmp_path,
        n=3,
        centre_mm=(-30, 10, 5),
        steps=7,
        guidance=2,
        tol=(20, float("inf")),
        push=True,
        gate="off",
        workers=1,
    )
    assert drawing.request["centre_mm"] == [-30, 10, 5] and drawing.sampling["guidance"] == 2.0
    assert call("train", "diffusion", "--accept", "a 'b c':nan", "--strict", "--minutes", "1.5").returncode == 0
    assert taken[1] == (Training(accept=("a", "b c:nan"), strict=True, minutes=1.5), "diffusion")


def test_an_empty_option_is_as_if_left_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As scripts hand on what is not set; an empty path is not the folder that one is in."""
    taken: list[tuple] = []
    monkeypatch.setattr(pairs, "synth", lambda *values: taken.append(values))
    for empty in (("--data", ""), ("--canvas=", "--requests", "", "--tol="), ("--data", "", "--keep")):
        assert call("synth", "--run", tmp_path, *empty, "--n", 3).returncode == 0
    expected = [options.Drawing(run=tmp_path, n=3, keep=keep, gate="off", workers=1) for keep in (False, False, True)]
    assert [asked for (asked,) in taken] == expected
    assert "--data is missing: sbldm prepare --data" in one_line(call("prepare", "--run", tmp_path, "--data", ""), 2)
    assert "--keep: takes no value (with make: 1, as in KEEP=1)" in one_line(call("synth", "--keep=yes"), 2)


def test_canvas_that_is_not_there(tmp_path: Path) -> None:
    """Said by its own name, before a model is loaded."""
    done = call("synth", "--run", tmp_path, "--n", 1, "--canvas", "/nowhere")
    assert "--canvas /nowhere: no such folder" in one_line(done, 2)


def test_bench_knows_its_rows() -> None:
    """Nothing is measured: there is no such row."""
    done = call("bench", "nosuch")
    assert "nosuch: no row begins like that; choose from " in one_line(done, 2)


def test_prepare_refuses_wrong_options(tmp_path: Path, phantom_cases: Path) -> None:
    """Missing data, an unknown preset, a wrong seed: code 2, the option is named, no run folder appears."""
    run = tmp_path / "run"
    assert "--data is missing: sbldm prepare --data" in one_line(call("prepare", "--run", run), 2)
    message = one_line(call("prepare", phantom_cases, "--run", run, "--preset", "tall"), 2)
    assert "--preset tall: no such preset; choose one of demo, fast, multimodal" in message
    for option, value in (("seed", "-1"), ("seed", "x"), ("workers", "0"), ("workers", "two")):
        done = call("prepare", "--run", run, "--data", phantom_cases, f"--{option}={value}")
        assert f"--{option} {value}: " in one_line(done, 2)
    assert "--n 0" in one_line(call("phantom", "--out", tmp_path / "cases", "--n", 0), 2)
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
    """A folder without cases is wrong data (code 3), a folder that is not there a wrong option (code 2)."""
    (tmp_path / "empty").mkdir()
    for folder, code in (("empty", 3), ("none", 2)):
        done = call("prepare", "--run", tmp_path / "run", "--data", tmp_path / folder, "--preset", TINY)
        assert str(tmp_path / folder) in one_line(done, code)
    assert not (tmp_path / "run").exists()


def test_strict(tmp_path: Path, phantom_cases: Path) -> None:
    """With --strict one broken case stops everything; without, it is left out, said and written down."""
    cases = Path(shutil.copytree(phantom_cases, tmp_path / "cases"))
    mask = next(cases.rglob("Phantom_001*seg*"))
    mask.write_bytes(mask.read_bytes()[:200])
    arguments = ("prepare", "--data", cases, "--preset", TINY, "--workers", 1)
    done = call(*arguments, "--run", tmp_path / "strict", "--strict")
    assert done.returncode == 3 and "--strict" in one_line(done, 3)
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


INSTALLED = pytest.mark.skipif(not (ROOT / ".venv" / ".installed").exists(), reason="make would first set up .venv")


def typed(*arguments: str, **environment: str) -> list[str]:
    """The words behind `sbldm` that make would type, as the shell reads them."""
    done = subprocess.run(
        ["make", "-n", *arguments], capture_output=True, text=True, check=True, cwd=ROOT, env=os.environ | environment
    )
    return shlex.split(next(line for line in done.stdout.splitlines() if "-m sbldm" in line).partition("sbldm")[2])


def test_make_help() -> None:
    """Every target is named, and where options are explained."""
    done = make("help")
    assert done.returncode == 0 and make().stdout == done.stdout
    shown = re.findall(r"^  make (\S+)\s+(\S.*)$", done.stdout, re.MULTILINE)
    assert [name for name, _ in shown][:2] == ["help", "install"]
    for target in ("demo", "test", "test-slow", "lint", "bench", "data", *ALIASES):
        assert re.search(rf"\s{target}(\s|$)", done.stdout), target
    assert "sbldm COMMAND --help" in done.stdout and len(MAKEFILE.splitlines()) <= 70


ALIASES = {
    **{
        name: name
        for name in ("prepare", "train", "synth", "copypaste", "controls", "weights", "sweep", "table1", "phantom")
    },
    **{name: f"{name} --run=runs/default" for name in ("evaluate", "report")},
    **{f"train-{stage}": f"train {stage}" for stage in ("autoencoder", "diffusion", "regions", "refiner")},
    **{name: f"nnunet {name}" for name in ("plateau", "verify", "filter")},
    **{"nnunet-eval": "nnunet eval", "data": "download", "bench": "bench --history docs/bench.json"},
}


@INSTALLED
@pytest.mark.parametrize("target", ALIASES)
def test_make_is_an_alias(target: str) -> None:
    """Of a command that is there, with its own defaults."""
    words = typed(target)
    assert words == ALIASES[target].split()
    assert any(" ".join(words).startswith(command) for command in COMMANDS)


@INSTALLED
def test_make_passes_variables() -> None:
    """What is typed behind `make` becomes options, a leading minus and spaces included; switches have no value."""
    words = typed(
        "synth", "N=3", "RUN=runs/my run", "CENTRE_MM=-30,10,5", "KEEP=1", "PUSH=0", "NAME=", "GATE=off", "REFINE=1"
    )
    assert words == ["synth", "--centre-mm=-30,10,5", "--gate=off", "--keep", "--n=3", "--refine", "--run=runs/my run"]
    assert typed("synth", "KEEP=yes") == ["synth", "--keep=yes"]  # which is refused there
    assert typed("train-diffusion", "RUN=a", "SEED=3") == ["train", "diffusion", "--run=a", "--seed=3"]
    assert typed("prepare", "DATA=/x", "VALIDATION_CASES=h.txt", "STRICT=1") == [
        *("prepare", "--data=/x", "--strict", "--validation-cases=h.txt"),
    ]
    assert typed("table1", "RUNS=runs/a runs/b:502") == ["table1", "--runs=runs/a runs/b:502"]
    assert typed("report", "RUN=runs/x")[-1] == "--run=runs/x"  # the last one counts
    assert typed("phantom", "CASES_N=3") == ["phantom", "--cases-n=3"]
    assert typed("filter", "NNUNET=x", "TO=600") == ["nnunet", "filter", "--nnunet=x", "--to=600"]
    assert typed("synth", "DEVICE=cpu", "PRECISION=float32") == ["synth"]  # these travel in the environment


@INSTALLED
def test_a_misspelt_variable_is_refused() -> None:
    """By the command, in its words."""
    assert one_line(call(*typed("synth", "NN=3")), 2) == (
        "Error: --nn: no such option of `sbldm synth` (did you mean --n?)."
    )


ODD = """it's #1 $x $(touch ran) `touch ran` "quoted" \\ *"""


@INSTALLED
@pytest.mark.parametrize(
    ("target", "variable"),
    [
        *(("prepare", name) for name in ("RUN", "DATA", "CASES", "VALIDATION_CASES", "PRESET")),
        *(("synth", name) for name in ("RUN", "REQUESTS", "NAME")),
        *(("evaluate", name) for name in ("LICENCE", "OUT", "NNUNET", "FEATURES")),
        *(("nnunet-eval", name) for name in ("SYNTH", "TEST", "ARMS_FILE", "BUDGET")),
        ("table1", "RUNS"),
        ("weights", "LICENCE"),
    ],
)
def test_make_quotes_every_value(target: str, variable: str) -> None:
    """Whatever a value holds, the shell hands it on as one word and runs nothing of it."""
    assert f"--{variable.lower().replace('_', '-')}={ODD}" in typed(target, f"{variable}={ODD}")
    assert not (ROOT / "ran").exists()


@INSTALLED
def test_make_takes_nothing_from_the_environment() -> None:
    """Variables of a shell (NAME is often the machine's) do not leak in, and not through a command either."""
    leaks = {"NAME": "host", "N": "9", "DATA": "/elsewhere", "RUN": "x", "REQUESTS": "y", "GATE": "off", "KEEP": "1"}
    assert typed("synth", **leaks, DEVICE="cpu") == ["synth"]
    assert typed("synth", "N=3", **leaks) == ["synth", "--n=3"]


# --- nnU-Net --------------------------------------------------------------------------------------------------------


def test_verify_without_a_dataset(cli: Cli, trained_run: Path) -> None:
    """Code 4 and the command that draws one; a number that is none is code 2."""
    message = one_line(cli("nnunet", "verify", "--run", trained_run), 4)
    assert f"no dataset 501; draw one: sbldm synth --run {trained_run}" in message
    message = one_line(cli("nnunet", "verify", "--run", trained_run, "--dataset", "x"), 2)
    assert "--dataset x: must be a whole number from 1 to 999." in message
    assert not (trained_run / "nnUNet_preprocessed").exists()


@pytest.mark.slow
def test_nnunet_accepts_the_pairs(tmp_path: Path, cli: Cli, drawn_run: Path) -> None:
    """nnU-Net's integrity check, plan and preprocessing run through on what `synth` wrote."""
    run = copy_run(drawn_run, tmp_path)
    done = cli("nnunet", "verify", "--run", run)
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
    message = one_line(cli("nnunet", "verify", "--run", run), 3)
    assert "Dataset501_SBLDM: nnU-Net refuses it" in message and f"{run}/nnunet_verify.log" in message
    assert "Unexpected labels" in (run / "nnunet_verify.log").read_text()
