"""What a worker does with one item, whether it may, and how what went wrong at it comes back."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import os
import pickle
import platform
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sbldm.run.errors import StateError, disk_is_full, mendable

__all__ = [
    "MANY_THREADS",
    "PASSED_ON",
    "Failed",
    "answer",
    "asleep",
    "checking",
    "failure",
    "shut",
    "task_of",
    "versions",
]

PASSED_ON = ("DEVICE", "PRECISION")  # variables of the environment that hold on other machines too
MANY_THREADS = "has {} threads, of which tasks would share one process; start it with --nthreads 1"
MATTER = ("torch", "monai", "numpy", "scipy", "SimpleITK", "nnunetv2")  # packages on which results depend


@cache
def versions() -> dict[str, str]:
    """What must be alike wherever work is done: this package, down to its code, Python, and what results depend on."""
    code = hashlib.sha256()
    for name in ("sbldm", "nnunet_integration"):
        with suppress(ImportError):
            root = Path(importlib.import_module(name).__path__[0])
            for path in sorted(root.rglob("*.py")):
                code.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    own = "not installed"
    with suppress(importlib.metadata.PackageNotFoundError):
        own = importlib.metadata.version("sbldm")
    found = {"sbldm": f"{own} (code {code.hexdigest()[:8]})", "python": platform.python_version()}
    for name in MATTER:
        with suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def checking(seen: Sequence[Path]) -> Callable[[], str]:
    """A function that says what speaks against the process that it runs in, or nothing.

    Dask sends it by value (as it is no name of a module): the package may be missing there.
    """
    wanted, needed = versions(), [str(path) for path in seen]

    def check() -> str:
        import os

        try:
            from sbldm.run.tasks import versions

            found = versions()
        except ImportError as error:
            return f"cannot load sbldm ({error}); install there what is here, sbldm {wanted['sbldm']}"
        if other := [name for name in wanted if found.get(name) != wanted[name]]:
            name = other[0]
            return f"has {name} {found.get(name, 'not at all')}, here it is {wanted[name]}; install the same there"
        if missing := [path for path in needed if not os.path.exists(path)]:
            path = os.path.dirname(missing[0]) if "/.seen_" in missing[0] else missing[0]
            return f"does not see {path}; put it on a disk that all machines share"
        return ""

    return check


def task_of(check: Callable[[], str] | None) -> Callable[[bytes, bytes], tuple[str, Any, str]]:
    """The task that workers run of an item (`answer`), with their address; by value too.

    One that may not is a second late, so that it does not take all tasks before the others are free.
    """
    many = MANY_THREADS

    def task(item: bytes, call: bytes) -> tuple[str, Any, str]:
        import time

        from distributed import get_worker

        worker = get_worker()
        why = check() if check is not None else ""
        if not why and worker.state.nthreads > 1:
            why = many.format(worker.state.nthreads)
        if not why:
            from sbldm.run.tasks import answer

            kind, content = answer(call, item)
            if kind != "refused":
                return kind, content, worker.address
            why = content
        time.sleep(1)
        return "refused", why, worker.address

    return task


@dataclass(frozen=True)
class Failed:
    """What stands in place of a result; an exception that is returned is a result like any other."""

    error: Exception


_begun: set[str] = set()  # tokens of the `Workers` that this process has begun for
_shut: dict[bytes, str] = {}  # calls that this process takes no more of, and why
_first = {name: os.environ.get(name) for name in PASSED_ON}  # before any command told otherwise


def shut(call: bytes, why: str) -> None:
    """Let this process take no more tasks of a call."""
    _shut[call] = why


def answer(call: bytes, item: bytes) -> tuple[str, Any]:
    """Run one task in a worker: `done` and the result, or `failed` (`full`: a disk) and the exception, both pickled;
    or `refused` and why.
    """
    if call in _shut:
        return "refused", _shut[call]
    try:
        token, begin, told, function = pickle.loads(call)
        if token not in _begun:
            for name, value in (_first | told).items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
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
