"""Processes that end with the one that they work for, and that Ctrl-C does not reach."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

__all__ = ["cores", "deaf_to_ctrl_c", "end_with_parent", "killed_with_parent", "processes", "run_tied"]

A_PROCESS = 3 * 2**30  # bytes, with a native volume and a network
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processes() -> int:
    """How many this machine serves unless it is told: one a core, as far as its memory goes."""
    memory = float("inf")
    with suppress(ValueError, OSError, AttributeError):
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with suppress(ValueError, OSError):  # a job of a queueing system, or a container, has less
        own = Path("/proc/self/cgroup").read_text().strip().rpartition(":")[2].strip("/")
        memory = min(memory, int((Path("/sys/fs/cgroup") / own / "memory.max").read_text()))
    return int(max(1, min(cores(), memory // A_PROCESS)))


@contextmanager
def deaf_to_ctrl_c() -> Iterator[None]:
    """Threads and processes that are started within are not reached by Ctrl-C, nor are those that they start.

    What is heard meanwhile in the main thread is heeded at the end.
    """
    resource_tracker.ensure_running()  # starting it lets the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_with_parent(parent: int | None = None) -> None:
    """Let this process end, with the group that it leads, when the process that it works for has gone.

    Args:
        parent: number of that process, where `multiprocessing` does not know it.
    """
    known = multiprocessing.parent_process()
    threading.Thread(target=_end_after, args=(known and known.sentinel, parent), daemon=True).start()


def _end_after(sentinel: int | None, parent: int | None) -> None:
    if sentinel is not None:
        wait([sentinel])
    else:
        while os.getppid() == parent:
            time.sleep(0.3)
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def killed_with_parent() -> None:
    """For `preexec_fn` of a command that starts nothing itself: it is killed when this process ends (on Linux)."""
    if _LIBC is not None:
        _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def run_tied(code: str, arguments: Sequence[str], **options: Any) -> int:
    """Run Python code in a process with a group of its own, which ends with this process and at Ctrl-C.

    Args:
        code: what `python -c` runs.
        arguments: its own.
        options: of `subprocess.Popen`.

    Returns:
        Its exit code.
    """
    tied = f"from sbldm.run.processes import end_with_parent; end_with_parent({os.getpid()}); {code}"
    process = subprocess.Popen([sys.executable, "-c", tied, *arguments], start_new_session=True, **options)
    try:
        return process.wait()
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
