"""The queue at work: jobs that are not finished, several at once, each in a process of its own."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from nnunet_integration.jobs import BUSY, made_anew
from sbldm.run.errors import StateError
from sbldm.run.files import read_json, read_rows
from sbldm.run.progress import Progress
from sbldm.run.text import some
from sbldm.run.workers import start_quietly

__all__ = ["run_jobs"]


def run_jobs(folders: Sequence[Path], at_once: int, shard: tuple[int, int] = (1, 1)) -> None:
    """Run those jobs of this shard that are not finished, several at once, with one progress bar.

    Each job is a process of its own, forked from a server that has imported nnU-Net once. A job that another process is
    at is left to it, and waited for.

    Args:
        folders: all jobs, in the same order in every shard.
        at_once: jobs beside each other.
        shard: `(i, k)`: this is the i-th of k processes or machines.

    Raises:
        StateError: jobs failed (the others have been run); the last lines of their logs are printed.
    """
    own = [folder for index, folder in enumerate(folders) if index % shard[1] == shard[0] - 1]
    waiting = [folder for folder in own if not (folder / "done.json").exists()]
    if not waiting:
        print(f"All {len(own)} jobs are finished.")
        return
    print(f"{len(waiting)} of {len(own)} jobs to run, {at_once} at once; logs in {folders[0].parent}/JOB/log.txt")
    os.environ.setdefault("nnUNet_def_n_proc", "1")  # nnU-Net reads it when it is imported
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["nnunet_integration.job"])
    running: dict[Path, BaseProcess] = {}
    elsewhere: set[Path] = set()
    failed, total = [], sum(read_json(folder / "job.json")["budget"]["iterations"] for folder in waiting)
    with Progress("Jobs", total, "it", sum(map(_iterations, waiting))) as bar:
        queue = list(waiting)
        try:
            while queue or running:
                while queue and len(running) < at_once:
                    folder = queue.pop(0)
                    running[folder] = context.Process(target=_start, args=(str(folder),))
                    start_quietly(running[folder])
                time.sleep(0.5)
                for folder, process in list(running.items()):
                    if process.exitcode is None:
                        continue
                    del running[folder]
                    if (folder / "done.json").exists():
                        bar.write(f"{folder.name}: {_result(folder)}")
                    elif process.exitcode == BUSY:
                        if folder not in elsewhere:
                            bar.write(f"{folder.name}: another process is at it")
                        elsewhere.add(folder)
                        time.sleep(2)
                        queue.append(folder)
                    else:
                        failed.append(folder)
                        bar.write(f"{folder.name}: failed ({process.exitcode})\n{_last_lines(folder / 'log.txt')}")
                bar.describe(", ".join(folder.name for folder in running)[:60] or "Jobs")
                bar.update(sum(_iterations(folder) for folder in waiting) - bar.done)
        finally:
            for process in running.values():
                _kill(process)
    if failed:
        raise StateError(
            f"{len(failed)} of {len(own)} jobs failed: {some(f.name for f in failed)}; see {failed[0] / 'log.txt'}. "
            "The same command tries them again."
        )


def _kill(process: BaseProcess) -> None:
    """The job and what it has started; it leads a group of its own."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()


def _start(folder: str) -> None:
    from nnunet_integration.job import run_job

    run_job(Path(folder))


def _iterations(folder: Path) -> int:
    try:
        return int(read_rows(folder / "curve.csv", {"iterations": int})[-1]["iterations"])
    except (StateError, IndexError):
        return 0


def _result(folder: Path) -> str:
    path = folder / "scores.csv"
    dsc = np.array([float(row["dsc"]) for row in read_rows(path, {"dsc": float}, made_anew(path), remove=False)])
    return f"DSC {dsc.mean():.3f} +/- {dsc.std(ddof=min(1, len(dsc) - 1)):.3f} over {len(dsc)} test cases"


def _last_lines(log: Path, count: int = 8) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] if log.exists() else []
    return "\n".join(f"    {line}" for line in lines[-count:])
