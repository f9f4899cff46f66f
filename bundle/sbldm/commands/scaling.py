"""How much two workers of this machine save: `sbldm bench workers`.

Three commands, each with one worker on one core, with one worker (which writes one pair while it draws the next, and so
keeps more than a core busy), and with two, from nothing each time: drawing pairs with the shipped weights,
scoring pairs against phantoms, and training arms of Table 2 on phantoms. What the commands need is made before.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sbldm.run.errors import StateError

__all__ = ["shared_rows"]

PAIRS, CASES, HELD_BACK, ARMS = 64, 90, 30, 4


def shared_rows() -> Iterator[dict[str, Any]]:
    """Rows of `sbldm bench`: `name`; `seconds` with two workers, `one` with one, `core` with one on one core."""
    with tempfile.TemporaryDirectory(prefix="sbldm_bench_") as folder:
        root = Path(folder)
        draw = ["synth", "--n", PAIRS]
        yield _row("workers: drawing pairs", root, draw, "--run", "--workers")
        cases, pairs = root / "cases", root / "pairs"
        _call("phantom", "--out", cases, "--n", CASES)
        shutil.copytree(cases, pairs)
        listed = {"train": range(HELD_BACK, CASES), "heldout": range(HELD_BACK)}
        for role, numbers in listed.items():
            (root / f"{role}.txt").write_text("\n".join(f"Phantom_{k:03d}" for k in numbers) + "\n")
        score = ["evaluate", "--train", cases, "--heldout", cases, "--synthetic", pairs]
        score += ["--train-cases", root / "train.txt", "--heldout-cases", root / "heldout.txt"]
        yield _row("workers: scoring pairs", root, score, "--out", "--workers")
        _call("prepare", "--data", cases, "--run", root / "run", "--preset", "demo")
        arms = ["nnunet", "eval", "--run", root / "run", "--arms", "real real+aug", "--budget", "demo"]
        arms += ["--seeds", ",".join(map(str, range(ARMS // 2)))]
        yield _row("workers: arms of Table 2", root, arms, "--out", "--jobs")


def _row(name: str, root: Path, command: list[Any], out: str, workers: str) -> dict[str, Any]:
    """One command into new folders: with one worker on one core, with one, and with two."""
    taken = {}
    for key, count, on in (("core", 1, {min(os.sched_getaffinity(0))}), ("one", 1, None), ("seconds", 2, None)):
        begun = time.perf_counter()
        _call(*command, out, root / f"{command[0]}_{key}", workers, count, on=on)
        taken[key] = time.perf_counter() - begun
    return {"name": name} | taken | {"ratio": taken["one"] / taken["seconds"], "peak_bytes": 0}


def _call(*arguments: Any, on: set[int] | None = None) -> None:
    """Run `sbldm`, on some cores alone."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "sbldm", *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        preexec_fn=on and (lambda: os.sched_setaffinity(0, on)),
    )
    if done.returncode:
        raise StateError(f"sbldm {arguments[0]}: {(done.stderr.strip().splitlines() or ['killed'])[-1]}")
