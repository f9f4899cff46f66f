"""What can go wrong, in one line that names the file or option and the mend.

Exit codes (also printed by `sbldm --help`): 0 done, 2 an option is wrong, 3 the data are wrong,
4 a step that must come first is missing, unfinished or of another preset, 5 the output cannot be written,
6 the cluster cannot be reached, or none of its workers can do the work.
"""

from __future__ import annotations

import errno
import json
import os
import shlex
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

from sbldm.run.progress import Progress

__all__ = [
    "DENIED",
    "LAUNCHED",
    "REFUSALS",
    "ClusterError",
    "DamagedError",
    "DataError",
    "InputError",
    "LostError",
    "OutputError",
    "SbldmError",
    "StateError",
    "disk_is_full",
    "finish",
    "loading",
    "mendable",
    "refused",
    "report",
    "say_in_one_line",
]

LAUNCHED = "SBLDM_LAUNCHED"  # in the environment of a process that `sbldm train --gpus` has started
STOPPED = "Stopped; the same command goes on from here."
ELSEWHERE = "choose another --run or --out"
DENIED = (errno.EACCES, errno.EPERM)
REFUSALS = {  # what the system says, in our words, and the mend
    errno.ENOSPC: ("No space left on device", f"free space or {ELSEWHERE}"),
    errno.EDQUOT: ("Disk quota exceeded", f"free space or {ELSEWHERE}"),
    errno.EROFS: ("Read-only file system", ELSEWHERE),
    errno.EMFILE: ("too many open files", "allow more (ulimit -n 4096) or use fewer --workers"),
    errno.ENFILE: ("too many open files on this machine", "close other programs or use fewer --workers"),
    errno.ENAMETOOLONG: ("its name is too long", "choose a shorter one"),
    errno.EEXIST: ("a file of this name is in its place", f"remove or rename that file, or {ELSEWHERE}"),
    errno.EISDIR: ("a folder of this name is in its place", "remove or rename that folder"),
    errno.ENOTDIR: (
        "a file stands where one of its folders should be",
        "rename that file, or name another path",
    ),
    errno.ELOOP: ("its links run in a circle", "remove or correct the link"),
    errno.EIO: ("the disk or the network failed", "check it, then try again"),
    errno.ESTALE: ("the disk or the network failed", "check it, then try again"),
}


class SbldmError(Exception):
    """Base of all errors that a user can mend; the command line prints the message alone and exits."""

    exit_code = 1


class InputError(SbldmError):
    """An option or request is missing or wrong."""

    exit_code = 2


class DataError(SbldmError):
    """The cases are wrong: none found, none usable, or `--strict` and at least one is not."""

    exit_code = 3


class StateError(SbldmError):
    """An earlier step has not been run, or what it left belongs to another preset, model or case list."""

    exit_code = 4


class DamagedError(StateError):
    """A file of an earlier step holds something else than that step wrote."""


class LostError(StateError):
    """Another process of a training has ended, or gives no answer; that one, or who started it, says why."""


class OutputError(SbldmError):
    """The output cannot be written: read-only, full, or in the way."""

    exit_code = 5


class ClusterError(SbldmError):
    """The cluster cannot be reached, or none of its workers can do the work."""

    exit_code = 6


def refused(path: str | Path, error: OSError, doing: str = "read or written") -> str:
    """One line for what the system refused: file, reason and mend.

    Args:
        path: the file or folder.
        error: what was raised.
        doing: "read" or "written", where it is known.
    """
    start = f"{path}: cannot be {doing}"
    if error.errno in DENIED:
        place = shlex.quote(str(_closed(Path(path)) or (path if doing == "read" else Path(path).parent)))
        rights = {"read": "u+rX", "written": "u+wX"}.get(doing, "u+rwX")
        other = "" if doing == "read" else f", or {ELSEWHERE}"
        return f"{start} (no permission); give yourself the right (its owner: chmod {rights} {place}){other}."
    if error.errno == errno.ENOENT:
        return f"{start} (No such file or directory); name one that is there."
    usual = "check the disk, then try again" if doing == "read" else f"free space or {ELSEWHERE}"
    reason, mend = REFUSALS.get(error.errno, (error.strerror or str(error) or type(error).__name__, usual))
    return f"{start} ({reason}); {mend}."


def _closed(path: Path) -> Path | None:
    """The first folder on the way to a file that may not be entered, if there is one."""
    above = reversed(Path(os.path.abspath(path)).parents)
    return next((folder for folder in above if folder.is_dir() and not os.access(folder, os.X_OK)), None)


def mendable(error: BaseException | None) -> SbldmError | None:
    """What a user can mend behind an exception that other libraries may have wrapped, if there is anything."""
    while error is not None and not isinstance(error, SbldmError):
        if _is_memory(error):
            what = (str(error) or type(error).__name__).splitlines()[0][:100]
            return StateError(f"memory has run out ({what}); try --batch 1, --workers 1, or a smaller --preset.")
        if _is_lost(error):
            return LostError("another process of this training has ended; the same command goes on from here.")
        if isinstance(error, OSError) and (error.errno in REFUSALS or error.errno in DENIED):
            known = error.filename and not isinstance(error.filename, int)
            return OutputError(refused(error.filename if known else "The files of this command", error))
        error = error.__cause__
    return error


def _is_memory(error: BaseException) -> bool:
    """Whether an exception is Python's, numpy's or torch's for want of memory, of the machine or of a card."""
    of_torch = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and of_torch)


def _is_lost(error: BaseException) -> bool:
    """Whether an exception is torch's for want of an answer of another process, by NCCL or gloo."""
    named = type(error).__name__ in ("DistBackendError", "DistNetworkError", "DistStoreError")
    return named or (isinstance(error, RuntimeError) and "gloo/" in str(error))


def _say(known: SbldmError) -> None:
    """Print an error. One of several processes leaves it to who has started them, and only the first prints it too."""
    group = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if group and isinstance(known, LostError):
        return
    if group:
        with suppress(OSError), open(group, "x") as file:
            json.dump({"message": str(known), "timestamp": int(time.time()), "exit_code": known.exit_code}, file)
    if not group or (LAUNCHED not in os.environ and os.environ.get("RANK") == "0"):
        print(f"Error: {known}", file=sys.stderr)


def report(error: Exception) -> int:
    """Print what a user can mend in one line and return its exit code; anything else is raised again."""
    known = mendable(error)
    if known is None:
        raise error
    _say(known)
    return known.exit_code


def disk_is_full(error: BaseException | None) -> bool:
    """Whether a disk without room is behind an exception."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def loading() -> Iterator[None]:
    """Within it Ctrl-C ends the process at once, as `finish` would: the modules of a command take seconds to load.

    An exception could be swallowed, or wrapped, by the module that is being loaded.
    """

    def stop(*_: object) -> None:
        print(STOPPED, file=sys.stderr, flush=True)
        os._exit(130)

    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:  # ignored, as in the background
        yield
        return
    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def finish(command: Callable[[], None]) -> int:
    """Run a command to its exit code: 0, that of a mendable error said in one line, or 130 after Ctrl-C."""
    try:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            command()
        finally:
            Progress.close_all()
    except KeyboardInterrupt:
        print(STOPPED, file=sys.stderr)
        return 130
    except Exception as error:
        return report(error)
    return 0


def say_in_one_line() -> None:
    """Let a mendable error that ends this process be printed as its message alone; the configs call this first."""
    usual = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        known = mendable(error)
        if known is None:
            usual(kind, error, trace)
        else:
            _say(known)

    sys.excepthook = hook
