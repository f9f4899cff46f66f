"""What a worker does with one item, and how what went wrong at it comes back."""

from __future__ import annotations

import os
import pickle
import time
import traceback
from contextlib import suppress

from sbldm.run.errors import StateError, disk_is_full, mendable

__all__ = ["answer", "asleep", "failure"]

_begun: set[str] = set()  # tokens of the `Workers` that this process has begun for


def answer(call: bytes, item: bytes) -> tuple[str, bytes]:
    """Run one task in a worker: `done` and the result, or `failed` (`full`: a disk) and the exception, both pickled."""
    try:
        token, begin, told, function = pickle.loads(call)
        if token not in _begun:
            os.environ.update(told)
            if begin is not None:
                begin()
            _begun.add(token)
        return "done", pickle.dumps(function(pickle.loads(item)))
    except Exception as error:
        return "full" if disk_is_full(error) else "failed", _failure(error)


def failure(packed: bytes, name: str) -> Exception:
    """What `answer` packed of an exception, at the item of this name."""
    error, trace = pickle.loads(packed)
    if isinstance(error, MemoryError):
        return StateError(f"{name}: memory ran out in a worker process; try --workers 1.")
    if trace:
        error.__cause__ = _InWorkerError(trace)
    return error


class _InWorkerError(Exception):
    """The traceback of an exception in a worker, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _failure(error: Exception) -> bytes:
    """An exception on its way to the parent: what a user can mend of it, else all of it."""
    if not isinstance(error, MemoryError) and (known := mendable(error)) is not None:
        return pickle.dumps((known, ""))
    told = traceback.format_exc()
    with suppress(Exception):  # some cannot be made again from what they hold
        pickle.loads(packed := pickle.dumps((error, told)))
        return packed
    return pickle.dumps((RuntimeError(f"{type(error).__name__}: {error}"), told))


def asleep(seconds: float) -> int:
    """Sleep, for a simulation of many tasks; the number of this process."""
    time.sleep(seconds)
    return os.getpid()
