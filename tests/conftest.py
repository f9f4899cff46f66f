"""A tiny trained run, made once per session through the same commands that users type."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from sbldm.cases.phantom import write_phantoms

TINY = Path(__file__).parent / "tiny.yaml"
BUNDLE = Path(__file__).parents[1] / "bundle"
SHARED_DATA = Path(__file__).parents[2] / "shared" / "data"

Cli = Callable[..., subprocess.CompletedProcess]


def run_cli(*arguments: object, module: str = "sbldm") -> subprocess.CompletedProcess:
    """Run `python -m sbldm ...` and capture what it prints."""
    return subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)], capture_output=True, text=True, timeout=600, check=False
    )


@pytest.fixture(scope="session")
def cli() -> Cli:
    """The command line as a function."""
    return run_cli


@pytest.fixture(scope="session")
def phantom_cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six coarse phantom cases in BraTS layout."""
    folder = tmp_path_factory.mktemp("cases")
    write_phantoms(folder, 6, seed=0, shape=(60, 60, 39), spacing=4.0, progress=False)
    return folder


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
