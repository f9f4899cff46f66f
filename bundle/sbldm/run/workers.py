"""Processes that share work: tasks of Dask, on this machine or on the cluster that a command was given.

A task may be run twice, when the worker that was at it is lost: functions leave whole files or none.
"""

from __future__ import annotations

import os
import pickle
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from sbldm.run.progress import Progress
from sbldm.run.tasks import PASSED_ON, Failed

if TYPE_CHECKING:
    from sbldm.run.cluster import Cluster

__all__ = ["Workers", "at_most", "at_work", "map_in_processes", "on_cluster"]

Item = TypeVar("Item")
Result = TypeVar("Result")

A_CORE = 4  # processes on each core at most, whatever is asked for: more only take memory
LOOK = 5.0  # seconds


def at_most(asked: int, items: int) -> int:
    """As many processes as were asked for, but no more than there are items or than the cores can serve."""
    return max(1, min(asked, items, A_CORE * (os.cpu_count() or 1)))


@contextmanager
def at_work(cluster: str, folder: Path | None, *needs: Path | None) -> Iterator[None]:
    """Within it all `Workers` give their items to one cluster.

    Args:
        cluster: `tcp://HOST:PORT` of a Dask scheduler, a YAML file that describes a cluster, or nothing: processes of
            this machine, started when there is work.
        folder: of the run, which every worker must see; None: nothing is read or written.
        needs: other files and folders that every worker must see.

    Raises:
        ClusterError: it cannot be reached, or has no worker that can do the work.
        InputError: `cluster` is neither.
    """
    if not cluster:
        yield
        return
    from sbldm.run.cluster import connected

    with connected(cluster, folder, needs):
        yield


def on_cluster() -> bool:
    """Whether this command was given a cluster."""
    if "sbldm.run.cluster" not in sys.modules:
        return False
    from sbldm.run.cluster import Cluster

    return Cluster.current() is not None


class Workers:
    """Processes that call functions on items, started when there is work for them.

    With one worker, or one item, the work is done in this process; with a cluster (`at_work`) all is done there.
    Ctrl-C is heard by this process alone, which ends those it has started; they end when it does, however that is.

    Args:
        count: processes at most; no more are started than there are items.
        begin: called once in each process before its first item (also in this one, when it does the work; the
            numbers of threads of torch and SimpleITK are then brought back afterwards).
        device: items use the GPU, where there is one: one process for each (with `here` no more than that), and on a
            cluster the workers that say they have one (`--resources GPU=1`).
        here: whether this process may do the work.
    """

    def __init__(
        self, count: int, begin: Callable[[], Any] | None = None, device: bool = False, here: bool = True
    ) -> None:
        self.count, self.begin, self.device, self.here = count, begin, device, here
        self.cards: list[str] = []
        self._own: Cluster | None = None
        self._started = 0  # processes of it
        self._here_only = ExitStack()  # what is undone when this process has done the work
        self._token = ""  # of those that have begun

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def map(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        description: str,
        unit: str = "case",
        sizes: Sequence[int] | None = None,
    ) -> list[Result]:
        """`function(item)` for all items, in their order, with a `Progress`.

        Args:
            function: can be imported by name, with what is bound to it.
            items: small, as they are sent.
            description, unit: of the progress.
            sizes: how many units each item is, by default one.

        Raises:
            Exception: what went wrong first, see `outcomes`; the others are stopped.
        """
        if not items:
            return []
        results: dict[int, Result] = {}
        sizes = sizes or [1] * len(items)
        with Progress(description, sum(sizes), unit) as bar:
            for done in self.outcomes(function, items, description, bar.write):
                if done is None:
                    bar.update(0)  # long items are not silent in a log
                    continue
                index, result = done
                if isinstance(result, Failed):
                    self.close()
                    raise result.error
                results[index] = result
                bar.update(sizes[index])
        return [results[index] for index in range(len(items))]

    def outcomes(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        description: str,
        say: Callable[[str], None] = print,
        look: float = LOOK,
    ) -> Iterator[tuple[int, Result | Failed] | None]:
        """`(index, function(item))` of each item as soon as it is done, and None every `look` seconds.

        In place of the result stands `Failed` with what the function raised, whose traceback in the worker is its
        `__cause__` where nothing of it is mendable; a `StateError` where every worker at this item was killed or ran
        out of memory. A disk that is full on one machine of several is no such failure: the others go on, and it is
        said.

        Raises:
            ClusterError: the cluster has gone, or no worker of it can do the work.
        """
        count = self.processes(len(items))
        if count == 1 and self.here and self._cluster(0) is None:
            yield from self._in_this_process(function, items)
            return
        cluster = self._cluster(count)
        try:
            yield from cluster.outcomes(self._call(function), items, description, say, look, self.device)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End all processes that were started here, whatever they are at."""
        if self._own is not None:
            self._own.close()
        self._own, self._token = None, ""
        self._here_only.close()

    def processes(self, items: int) -> int:
        """How many would share so many items."""
        if on_cluster():
            return max(1, min(items, len(self._cluster(1).workers())))
        count = at_most(self.count, items)
        if self.device and (cards := self._cards()):
            self.cards = [cards[index % len(cards)] for index in range(count)]
            if self.here:  # more of them on a card would only take its memory
                count = min(count, len(cards))
        return count

    def _cluster(self, count: int) -> Cluster | None:
        """That of the command, else our own, which is started with so many processes; for 0 it is not, but None."""
        if on_cluster():
            from sbldm.run.cluster import Cluster

            return Cluster.current()
        if self._own is not None and count > self._started:
            self.close()
        if self._own is None and count:
            from sbldm.run.cluster import Cluster

            self._own, self._started = Cluster.local(count, self.cards[:count]), count
        return self._own

    def _cards(self) -> list[str]:
        """GPUs that this command may use, as `CUDA_VISIBLE_DEVICES` names them."""
        asked = os.environ.get("DEVICE", "")
        if asked == "cpu":
            return []
        import torch

        told = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        there = torch.cuda.device_count()
        names = told.split(",")[:there] if told else [str(index) for index in range(there)]
        index = asked.partition(":")[2]
        return names[int(index) : int(index) + 1] if index.isdecimal() else names

    def _in_this_process(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[int, Any]]:
        if self.begin is not None and not self._token:
            self._here_only.enter_context(_threads_kept())
            self.begin()
            self._token = "here"
        for index, item in enumerate(items):
            try:
                result = function(item)
            except Exception as error:
                result = Failed(error)
            yield index, result

    def _call(self, function: Callable[[Item], Result]) -> bytes:
        """What `answer` needs to know besides an item."""
        self._token = self._token or uuid.uuid4().hex
        told = {name: os.environ.get(name) for name in PASSED_ON}
        if self.cards:
            told["DEVICE"] = "cuda"  # each sees its own alone
        return pickle.dumps((self._token, self.begin, told, function))


def map_in_processes(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    description: str,
    unit: str = "case",
    begin: Callable[[], Any] | None = None,
    device: bool = False,
    sizes: Sequence[int] | None = None,
) -> list[Result]:
    """`function(item)` for all items in several processes; see `Workers`."""
    with Workers(workers, begin, device) as pool:
        return pool.map(function, items, description, unit, sizes)


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
