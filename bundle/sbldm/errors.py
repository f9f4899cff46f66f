"""What can go wrong, in one line that names the file or variable and the mend.

Exit codes (also printed by ``make help``): 0 done, 2 a variable or argument is wrong, 3 the data are wrong,
4 a step that must come first is missing, unfinished or of another preset, 5 the output cannot be written.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable
from types import TracebackType

from sbldm.run.progress import Progress

UNWRITABLE = (errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EDQUOT)

__all__ = [
    "DataError",
    "InputError",
    "OutputError",
    "SbldmError",
    "StateError",
    "finish",
    "mendable",
    "report",
    "say_in_one_line",
]


class SbldmError(Exception):
    """Base of all errors that a user can mend; the command line prints the message alone and exits."""

    exit_code = 1


class InputError(SbldmError):
    """A variable, argument or request is missing or wrong."""

    exit_code = 2


class DataError(SbldmError):
    """The cases are wrong: none found, none usable, or `STRICT=1` and at least one is not."""

    exit_code = 3


class StateError(SbldmError):
    """An earlier step has not been run, or what it left belongs to another preset, model or case list."""

    exit_code = 4


class OutputError(SbldmError):
    """The output cannot be written: read-only, full, or in the way."""

    exit_code = 5


def mendable(error: BaseException | None) -> SbldmError | None:
    """What a user can mend behind an exception that other libraries may have wrapped, if there is anything."""
    while error is not None and not isinstance(error, SbldmError):
        if isinstance(error, OSError) and error.errno in UNWRITABLE:
            return OutputError(f"{error.filename or 'The output'}: cannot be written ({error.strerror}); free space.")
        if _is_memory(error):
            what = (str(error) or type(error).__name__).splitlines()[0][:100]
            return StateError(f"memory has run out ({what}); try BATCH=1, WORKERS=1, or a smaller PRESET in a new RUN.")
        error = error.__cause__
    return error


def _is_memory(error: BaseException) -> bool:
    """Whether an exception is Python's, numpy's or torch's for want of memory, of the machine or of a card."""
    of_torch = type(error).__name__ == "OutOfMemoryError" or "can't allocate memory" in str(error)
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and of_torch)


def report(error: Exception) -> int:
    """Print what a user can mend in one line and return its exit code; anything else is raised again."""
    known = mendable(error)
    if known is None:
        raise error
    print(f"Error: {known}", file=sys.stderr)
    return known.exit_code


def finish(command: Callable[[], None]) -> int:
    """Run a command to its exit code: 0, that of a mendable error said in one line, or 130 after Ctrl-C."""
    try:
        try:
            command()
        finally:
            Progress.close_all()
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from here.", file=sys.stderr)
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
            print(f"Error: {known}", file=sys.stderr)

    sys.excepthook = hook
