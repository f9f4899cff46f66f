"""A tiny trained run, made once per session through the same commands that users type."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

from sbldm.cases.phantom import write_phantoms
from sbldm.cli import main
from sbldm.metrics import features

TINY = Path(__file__).parent / "tiny.yaml"
BUNDLE = Path(__file__).parents[1] / "bundle"

os.environ["PRECISION"] = "float32"  # trained models are to be the same whatever the processor is fast in
THREADS, ENVIRONMENT = torch.get_num_threads(), dict(os.environ)

Cli = Callable[..., subprocess.CompletedProcess]


WITH_WORKERS = {"prepare", "synth", "copypaste", "evaluate"}


def as_tested(arguments: tuple[object, ...]) -> list[str]:
    """What a test does not ask for: no gate, as the tiny models draw brains that none lets pass, and one process, as
    others take seconds to start.
    """
    words, command = [str(argument) for argument in arguments], str(next(iter(arguments), ""))
    if command == "synth" and "--gate" not in words:
        words += ["--gate", "off"]
    if command in WITH_WORKERS and not any(word.startswith("--workers") for word in words):
        words += ["--workers", "1"]
    return words


def run_cli(*arguments: object) -> subprocess.CompletedProcess:
    """Run `sbldm ...` and capture what it prints."""
    return subprocess.run(
        [sys.executable, "-m", "sbldm", *as_tested(arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def call(*arguments: object) -> subprocess.CompletedProcess:
    """What `sbldm ...` does, in this process: without the seconds that a start costs."""
    out, err, words = io.StringIO(), io.StringIO(), as_tested(arguments)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main(words)
        except SystemExit as stop:
            code = stop.code
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


@pytest.fixture(autouse=True, scope="module")
def as_at_first() -> Iterator[None]:
    """No file changes the sums of later ones: torch's threads here, and those that the environment gives to others."""
    yield
    torch.set_num_threads(THREADS)
    for name in os.environ.keys() - ENVIRONMENT.keys() - {"PYTEST_CURRENT_TEST"}:
        del os.environ[name]
    os.environ.update(ENVIRONMENT)


def copy_run(run: Path, folder: Path, leave_out: str = "", **values: object) -> Path:
    """Copy a run folder without one of its parts; `values` replace parts of its preset."""
    ignore = shutil.ignore_patterns(*leave_out.split()) if leave_out else None
    copy = Path(shutil.copytree(run, folder / "run", ignore=ignore))
    if values:
        preset = yaml.safe_load((copy / "preset.yaml").read_text())
        preset["preset"] |= values
        (copy / "preset.yaml").write_text(yaml.safe_dump(preset, sort_keys=False))
    return copy


def snapshot(folder: Path, but: str = "tensorboard") -> dict[str, tuple[int, bytes]]:
    """Time of change and content of all files below a folder, hidden ones too, but for one subfolder."""
    files = (p for p in folder.rglob("*") if p.is_file() and but not in p.parts)
    return {str(p.relative_to(folder)): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


def partial_files(folder: Path) -> list[Path]:
    """Temporary folders that a killed process left behind."""
    return list(folder.rglob(".partial-*"))


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 120) -> None:
    """Wait until a running process has written a file."""
    stop = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None, f"it ended before it wrote {path}"
        assert time.monotonic() < stop, f"{path} did not appear"
        time.sleep(0.01)


def one_line(done: subprocess.CompletedProcess, code: int) -> str:
    """The error of a command that failed as documented: its exit code, one line, no traceback."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr and len(lines) == 1 and done.stderr.endswith(f"{lines[0]}\n")
    return lines[0]


@pytest.fixture(scope="session")
def cli() -> Cli:
    """The command line as a function."""
    return run_cli


@pytest.fixture(scope="module")
def four_slices() -> Iterator[None]:
    """Networks see four slices a plane in this process: where the way of scores is the point, not their values."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "SLICES", 4)
        yield


@pytest.fixture(scope="session")
def nine_phantoms(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Case folders of nine coarse phantoms; link or copy them, do not change them."""
    folder = tmp_path_factory.mktemp("nine")
    write_phantoms(folder, 9, seed=0, shape=(60, 60, 39), spacing=4.0, progress=False)
    return sorted(folder.iterdir())


@pytest.fixture(scope="session")
def phantom_cases(tmp_path_factory: pytest.TempPathFactory, nine_phantoms: list[Path]) -> Path:
    """Six of them in BraTS layout."""
    folder = tmp_path_factory.mktemp("cases")
    for case in nine_phantoms[:6]:
        shutil.copytree(case, folder / case.name)
    return folder


@pytest.fixture(scope="session")
def other_cases(tmp_path_factory: pytest.TempPathFactory, nine_phantoms: list[Path]) -> Path:
    """The other three, which no run here has seen."""
    folder = tmp_path_factory.mktemp("others")
    for case in nine_phantoms[6:]:
        shutil.copytree(case, folder / case.name)
    return folder


@pytest.fixture(scope="session")
def many_phantoms(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Case folders of 34 coarse phantoms, FLAIR and T1; link or copy them, do not change them."""
    folder = tmp_path_factory.mktemp("many")
    write_phantoms(folder, 34, 3, (60, 60, 39), 4.0, channels=("flair", "t1"), progress=False)
    return sorted(folder.iterdir())


@pytest.fixture(scope="session")
def prepared_run(tmp_path_factory: pytest.TempPathFactory, phantom_cases: Path) -> Path:
    """A run folder with prepared cases; copy it before changing it."""
    run = tmp_path_factory.mktemp("prepared") / "run"
    done = run_cli("prepare", "--data", phantom_cases, "--run", run, "--preset", TINY)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory, prepared_run: Path) -> Path:
    """A run folder with both stages trained; copy it before changing it."""
    run = tmp_path_factory.mktemp("trained") / "run"
    shutil.copytree(prepared_run, run)
    done = run_cli("train", "--run", run)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="session")
def drawn_run(tmp_path_factory: pytest.TempPathFactory, trained_run: Path) -> Path:
    """The trained run with three pairs drawn, seeds 0 to 2; copy it before changing it."""
    run = copy_run(trained_run, tmp_path_factory.mktemp("drawn"))
    done = run_cli("synth", "--run", run, "--n", 3)
    assert done.returncode == 0, done.stderr
    return run


@pytest.fixture(scope="session")
def taught_run(tmp_path_factory: pytest.TempPathFactory, phantom_cases: Path) -> Path:
    """A tiny run whose stage 2 went on within regions."""
    folder = tmp_path_factory.mktemp("taught")
    content = yaml.safe_load(Path(TINY).read_text())
    preset = content["preset"]
    preset["diffusion"]["network"]["picture"] = True
    few = {"iterations": 80, "iterations_per_epoch": 40}
    preset["regions"] = few | {
        "learning_rate": 2.0e-3,
        "warm_up": 5,
        "tumour": 0.65,
        "whole": 0.3,
        "guidance": 1.2,
        "healing": 1.5,
    }
    preset["diffusion"] |= few
    (folder / "preset.yaml").write_text(yaml.safe_dump(content))
    run = folder / "run"
    assert call("train", "--run", run, "--data", phantom_cases, "--preset", folder / "preset.yaml").returncode == 0
    asked = "synth", "--run", run, "--n", 1, "--dataset", 502, "--canvas", "train"
    assert f"no model of regions has been trained here; run `sbldm train regions --run {run}`" in one_line(
        call(*asked), 4
    )
    assert call("train", "regions", "--run", run).returncode == 0
    return run
