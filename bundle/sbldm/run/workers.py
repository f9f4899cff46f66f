"""One kind of processes that share work: quiet at Ctrl-C, gone with their parent, and named when they are killed."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from sbldm.run.errors import SbldmError, StateError, mendable
from sbldm.run.progress import Progress

__all__ = [
    "Workers",
    "at_most",
    "end_with_parent",
    "killed_with_parent",
    "map_in_processes",
    "run_tied",
    "start_quietly",
]

Item = TypeVar("Item")
Result = TypeVar("Result")

A_CORE = 4  # processes on each core at most, whatever is asked for: more only take memory
LOOK = 5.0  # seconds
GRACE = 1.0  # seconds in which a worker that is to end may clear away what it has half done
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def at_most(asked: int, items: int) -> int:
    """As many processes as were asked for, but no more than there are items or than the cores can serve."""
    return max(1, min(asked, items, A_CORE * (os.cpu_count() or 1)))


class Workers:
    """Processes that call functions on items, started anew (`spawn`) when there is work for them.

    With one worker, or one item, the work is done in this process. Ctrl-C is heard by this process alone, which ends
    the others; a worker ends when this process does, however that is.

    Args:
        count: processes at most; no more are started than there are items.
        begin: called once in each process before its first item (also in this one, when it does the work; the
            numbers of threads of torch and SimpleITK are then brought back afterwards).
    """

    def __init__(self, count: int, begin: Callable[[], Any] | None = None) -> None:
        self.count, self.begin = count, begin
        self._workers: list[_Worker] = []
        self._here_only = ExitStack()  # what is undone when this process has done the work
        self._begun = False

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def map(
        self, function: Callable[[Item], Result], items: Sequence[Item], description: str, unit: str = "case"
    ) -> list[Result]:
        """`function(item)` for all items, in their order, with a `Progress`.

        Raises:
            StateError: a worker was killed (the item it was at is named), or ran out of memory.
            Exception: what the function raised first; the others are stopped. Where nothing of it is mendable, the
                traceback in the worker is told too.
        """
        if not items:
            return []
        with Progress(description, len(items), unit) as bar:
            if (count := at_most(self.count, len(items))) == 1:
                return self._here(function, items, bar)
            while len(self._workers) < count:
                self._workers.append(_Worker(self.begin))
            try:
                return self._share(function, items, bar)
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        """End all processes, whatever they are at."""
        for worker in self._workers:
            worker.process.terminate()
        stop = time.monotonic() + GRACE
        for worker in self._workers:
            worker.process.join(max(0.0, stop - time.monotonic()))
            worker.process.kill()
            worker.process.join()
            worker.connection.close()
        self._workers, self._begun = [], False
        self._here_only.close()

    def _here(self, function: Callable[[Item], Result], items: Sequence[Item], bar: Progress) -> list[Result]:
        if self.begin is not None and not self._begun:
            self._here_only.enter_context(_threads_kept())
            self.begin()
            self._begun = True
        results = []
        for item in items:
            results.append(function(item))
            bar.update()
        return results

    def _share(self, function: Callable[[Item], Result], items: Sequence[Item], bar: Progress) -> list[Result]:
        results: dict[int, Result] = {}
        free, waiting = list(self._workers), iter(range(len(items)))
        busy: dict[Connection, _Worker] = {}
        while len(results) < len(items):
            while free and (index := next(waiting, None)) is not None:
                worker = free.pop()
                worker.give(index, function, items[index])
                busy[worker.connection] = worker
            for connection in wait(list(busy), LOOK):  # a worker that has gone has closed its end
                worker = busy.pop(connection)
                results[worker.index] = worker.take()
                free.append(worker)
                bar.update()
            bar.update(0)  # long items are not silent in a log
        return [results[index] for index in range(len(items))]


def map_in_processes(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    description: str,
    unit: str = "case",
    begin: Callable[[], Any] | None = None,
) -> list[Result]:
    """`function(item)` for all items in several processes; see `Workers`."""
    with Workers(workers, begin) as pool:
        return pool.map(function, items, description, unit)


class _Worker:
    """One process from the side of its parent."""

    def __init__(self, begin: Callable[[], Any] | None) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, begin), daemon=True)
        start_quietly(self.process)
        theirs.close()
        self.index, self.item = -1, None

    def give(self, index: int, function: Callable[[Item], Result], item: Item) -> None:
        self.index, self.item = index, item
        with suppress(BrokenPipeError, ConnectionResetError):  # it has gone, which `take` tells
            self.connection.send((function, item))

    def take(self) -> Any:
        try:
            result, error, trace = self.connection.recv()
        except (EOFError, ConnectionResetError):
            self.process.join(GRACE)
            raise StateError(
                f"{_name(self.item)}: a worker process was killed at it ({_ending(self.process.exitcode)}); memory may "
                "have run out; try --workers 1. What was finished before is kept."
            ) from None
        if isinstance(error, MemoryError):
            raise StateError(f"{_name(self.item)}: memory ran out in a worker process; try --workers 1.") from None
        if isinstance(error, SbldmError):
            raise error
        if error is not None:
            raise error from _InWorkerError(trace)
        return result


class _InWorkerError(Exception):
    """The traceback of an exception in a worker, as text."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def _name(item: Any) -> str:
    """What a person calls an item: a case by its name, a tuple of arguments by the first."""
    while isinstance(item, tuple) and item:
        item = item[0]
    return str(item if isinstance(item, str | Path) else getattr(item, "name", "one of the items"))


def _ending(code: int | None) -> str:
    if code is None or code >= 0:
        return f"exit code {code}"
    with suppress(ValueError):
        return signal.Signals(-code).name
    return f"signal {-code}"


def _serve(connection: Connection, begin: Callable[[], Any] | None) -> None:
    """What a worker does until there is no more to do."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())  # half-written files are cleared away on the way out
    end_with_parent()
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):  # the parent has gone
        while True:
            task = connection.recv_bytes()
            try:
                if begin is not None:
                    begin, once = None, begin
                    once()
                function, item = pickle.loads(task)
                answer = pickle.dumps((function(item), None, ""))
            except Exception as error:
                answer = _failure(error)
            connection.send_bytes(answer)


def _failure(error: Exception) -> bytes:
    """An exception on its way to the parent: what a user can mend of it, else all of it."""
    if not isinstance(error, MemoryError) and (known := mendable(error)) is not None:
        return pickle.dumps((None, known, ""))
    told = traceback.format_exc()
    with suppress(Exception):  # some cannot be made again from what they hold
        pickle.loads(packed := pickle.dumps((None, error, told)))
        return packed
    return pickle.dumps((None, RuntimeError(f"{type(error).__name__}: {error}"), told))


@contextmanager
def _threads_kept() -> Iterator[None]:
    """Numbers of threads as before, for libraries that are loaded already."""
    torch, sitk = sys.modules.get("torch"), sys.modules.get("SimpleITK")
    threads = torch and torch.get_num_threads()
    filters = sitk and sitk.ProcessObject.GetGlobalDefaultNumberOfThreads()
    try:
        yield
    finally:
        if torch:
            torch.set_num_threads(threads)
        if sitk:
            sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(filters)


def start_quietly(process: BaseProcess) -> None:
    """Start a process that Ctrl-C does not reach, not even while it loads; this process hears it."""
    resource_tracker.ensure_running()  # starting it lets the signal through again
    with _later():
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _later() -> Iterator[None]:
    """Heed Ctrl-C only afterwards: another thread may take the signal, and a process half started would complain."""
    usual = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(usual):
        yield
        return
    heard: list[tuple[Any, ...]] = []
    signal.signal(signal.SIGINT, lambda *signals: heard.append(signals))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, usual)
    if heard:
        usual(*heard[0])


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
    tied = f"from sbldm.run.workers import end_with_parent; end_with_parent({os.getpid()}); {code}"
    process = subprocess.Popen([sys.executable, "-c", tied, *arguments], start_new_session=True, **options)
    try:
        return process.wait()
    except BaseException:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        raise
