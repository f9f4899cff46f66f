"""The queue at work: jobs that are not finished, each in a process of its own that a worker starts and waits for."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from nnunet_integration.jobs import BUSY, made_anew
from sbldm.run.errors import StateError
from sbldm.run.files import read_json, read_rows
from sbldm.run.processes import run_tied
from sbldm.run.progress import Progress
from sbldm.run.tasks import Failed
from sbldm.run.text import some
from sbldm.run.workers import Workers

__all__ = ["run_jobs"]

LOOK = 1.0  # seconds between two looks at how far the jobs are
JOB = "import sys; from pathlib import Path; from nnunet_integration.job import run_job; run_job(Path(sys.argv[1]))"


def run_jobs(folders: Sequence[Path], at_once: int) -> None:
    """Run those jobs that are not finished, with one progress bar.

    The queue is what lies on the disk: a job whose worker is lost goes on at another one from its checkpoint, and one
    that another process is at is left to it, and waited for.

    Args:
        folders: all jobs.
        at_once: jobs beside each other on this machine; on a cluster as many as it has workers.

    Raises:
        StateError: jobs failed (the others have been run); the last lines of their logs are printed.
        ClusterError: see `Workers.outcomes`.
    """
    waiting = [folder for folder in folders if not (folder / "done.json").exists()]
    if not waiting:
        print(f"All {len(folders)} jobs are finished.")
        return
    print(f"{len(waiting)} of {len(folders)} jobs to run; logs in {folders[0].parent}/JOB/log.txt", flush=True)
    begun, failed, elsewhere = list(waiting), [], set()
    total = sum(read_json(folder / "job.json")["budget"]["iterations"] for folder in begun)
    with (
        Progress("Jobs", total, "it", sum(map(_iterations, begun))) as bar,
        Workers(at_once, None, True, False) as pool,
    ):
        while waiting:
            busy = []
            for done in pool.outcomes(_run, waiting, "nnU-Net job", bar.write, LOOK):
                bar.update(sum(map(_iterations, begun)) - bar.done)
                if done is None:
                    continue
                folder, code = waiting[done[0]], done[1]
                if code == BUSY:
                    busy.append(folder)
                    if folder not in elsewhere:
                        bar.write(f"{folder.name}: another process is at it")
                    elsewhere.add(folder)
                elif code == 0:
                    bar.write(f"{folder.name}: {_result(folder)}")
                else:
                    failed.append(folder)
                    code = code.error if isinstance(code, Failed) else code
                    bar.write(f"{folder.name}: failed ({code})\n{_last_lines(folder / 'log.txt')}")
            if waiting := busy:
                time.sleep(2)
    if failed:
        raise StateError(
            f"{len(failed)} of {len(folders)} jobs failed: {some(f.name for f in failed)}; see "
            f"{failed[0] / 'log.txt'}. The same command tries them again."
        )


def _run(folder: Path) -> int:
    """One job, in a process that ends with this one; its exit code."""
    with open(folder / "lock", "w") as lock:  # that process looks too, but takes seconds to load
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return BUSY
    with open(folder / "log.txt", "a") as log:
        return run_tied(JOB, [str(folder)], stdout=log, stderr=log)


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
