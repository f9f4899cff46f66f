"""Where work is done: processes of this machine, a running Dask scheduler, or a cluster described in a file."""

from __future__ import annotations

import importlib
import logging
import os
import pickle
import platform
import queue
import re
import time
import uuid
from asyncio import CancelledError
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import dask
from distributed import Client, Future, KilledWorker, Nanny, Scheduler, SpecCluster
from distributed.client import FutureCancelledError
from distributed.security import Security

from sbldm.run.cluster_file import QUEUES, read_cluster
from sbldm.run.errors import ClusterError, InputError, StateError
from sbldm.run.files import make_folder, user_path
from sbldm.run.processes import cores, deaf_to_ctrl_c
from sbldm.run.tasks import MANY_THREADS, Failed, checking, failure, shut, task_of
from sbldm.run.text import some

__all__ = ["Cluster", "connected"]

HERE = "127.0.0.1"
REACHED = 10  # seconds in which a scheduler must answer
A_WEEK = 7 * 24 * 3600  # seconds
STARTED = 180  # seconds in which processes of this machine must be at work
JOINED = 60  # seconds in which a running scheduler must have a worker
AHEAD = 4096  # tasks that the scheduler is given before they are free
QUEUED = 12 * 3600  # seconds that a command waits for jobs of a queueing system
GONE = "the scheduler has gone, or dropped the tasks; the same command goes on from here when it is back."
LONG = 10  # seconds of work after which it is worth a look at the pages of Dask
TRIES = 5  # times that a task is begun whose worker is killed
LOCAL = {  # of a scheduler of our own, and of its workers
    "distributed.scheduler.allowed-failures": TRIES - 1,
    "distributed.scheduler.worker-saturation": 1.0,  # a task waits for the first free worker, not behind another one
    "distributed.scheduler.worker-ttl": None,  # a busy machine is no lost one; a dead worker is seen by its nanny
    "distributed.nanny.pre-spawn-environ": {},  # it would change the environment of this process
    "distributed.comm.timeouts.connect": "60s",
}


class Cluster:
    """A Dask scheduler with its workers, and which of them are trusted.

    Args:
        client: of the scheduler.
        own: the cluster, where it has been started for this command and ends with it.
        near: all its workers are processes of this machine, started by this process.
        seen: files and folders that each worker must see: a token in the run's folder, and the data.
    """

    _open: list[Cluster] = []  # noqa: RUF012 - those in use, the one that is asked last

    def __init__(self, client: Client, own: Any = None, near: bool = False, seen: Sequence[Path] = ()) -> None:
        self.client, self.own, self.near, self.seen = client, own, near, seen
        self.distrusted: dict[str, str] = {}  # address: why
        self.known = self.workers()
        self.told = not near  # the address of its pages

    @classmethod
    def local(cls, count: int, cards: Sequence[str] = ()) -> Cluster:
        """`count` processes of this machine, one task each; with `cards` one process for each of these GPUs."""
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores() // count)))
        shared = {name: threads for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
        quiet = {"silence_logs": logging.CRITICAL}
        security = Security.temporary()  # others on this machine reach the ports too, and could have code run
        private = {"host": HERE, "protocol": "tls", "security": security}
        workers = {}
        for index in range(len(cards) or count):
            card = {"CUDA_VISIBLE_DEVICES": cards[index]} if cards else {}
            options = {"nthreads": 1, "memory_limit": 0, "env": shared | card, **private, "dashboard": False}
            gpu = {"resources": {"GPU": 1}} if cards else {}
            workers[index] = {"cls": Nanny, "options": options | gpu | quiet}
        scheduler = {"cls": Scheduler, "options": private | {"port": 0, "dashboard_address": f"{HERE}:0"}}
        with dask.config.set(LOCAL), deaf_to_ctrl_c():
            try:
                own = SpecCluster(workers, scheduler, security=security, **quiet)
                client = Client(own, set_as_default=False)
                client.wait_for_workers(len(workers), STARTED)
            except (RuntimeError, TimeoutError) as error:
                raise ClusterError(
                    f"{len(workers)} processes of this machine could not be started ({error}); try --workers 1. (A "
                    "script of your own must begin its work below `if __name__ == '__main__'`.)"
                ) from error
        return cls(client, own, near=True)

    @classmethod
    def at(cls, address: str) -> Cluster:
        """A scheduler that runs already, such as `tcp://host:8786`.

        Raises:
            ClusterError: it does not answer, or has no worker.
        """
        with deaf_to_ctrl_c():
            try:
                client = Client(address, timeout=REACHED, set_as_default=False)
            except (OSError, ValueError, TimeoutError):
                raise ClusterError(
                    f"--cluster {address}: no scheduler answers there within {REACHED} s; start one with `dask "
                    "scheduler`, or leave --cluster out to work on this machine."
                ) from None
            except TypeError:
                raise ClusterError(
                    f"--cluster {address}: needs certificates; name them to Dask (distributed.comm.tls in a file below "
                    "~/.config/dask)."
                ) from None
        try:
            client.wait_for_workers(1, JOINED)
        except TimeoutError:
            client.close()
            raise ClusterError(
                f"--cluster {address}: has had no worker for {JOINED} s; start some with `dask worker {address} "
                "--nthreads 1`."
            ) from None
        return cls(client)

    @classmethod
    def described(cls, file: Path, folder: Path | None) -> Cluster:
        """A cluster as a YAML file describes it (bundle/docs/README.md, "Clusters").

        Certificates for its workers, made for this command, lie in `folder` meanwhile.

        Raises:
            InputError: the file is missing, wrong, or its kind is not known.
            ClusterError: its jobs cannot be queued.
        """
        kind, count, options = read_cluster(file)
        if kind == "local":
            return cls.local(count or cores(), [str(card) for card in options.get("cards", ())])
        try:
            jobqueue = importlib.import_module("dask_jobqueue")
        except ImportError:
            raise ClusterError(
                f"--cluster {file}: needs dask-jobqueue; `pip install dask-jobqueue` where this command runs."
            ) from None
        try:
            with deaf_to_ctrl_c():
                private = {"security": True, "shared_temp_directory": str(folder)} if folder else {}
                own = getattr(jobqueue, QUEUES[kind])(**private | options)
                own.scale(count)
                client = Client(own, set_as_default=False)
        except Exception as error:  # of its own many kinds
            raise ClusterError(f"--cluster {file}: {type(error).__name__}: {' '.join(str(error).split())}") from error
        print(f"{file}: {count} workers are queued; waiting for the first.", flush=True)
        try:
            client.wait_for_workers(1)
        except BaseException:
            client.close()
            own.close()
            raise
        return cls(client, own)

    @classmethod
    def current(cls) -> Cluster | None:
        """The one that this command was given, if any."""
        return cls._open[-1] if cls._open else None

    @property
    def dashboard(self) -> str:
        """Address of Dask's own pages about this cluster."""
        return self.client.dashboard_link

    def workers(self) -> dict[str, Mapping[str, Any]]:
        """What the scheduler knows of its workers, by address."""
        return dict(self.client.scheduler_info(n_workers=-1)["workers"])

    def trusted(self) -> list[str] | None:
        """Addresses that work may go to; None: all.

        Raises:
            ClusterError: there is none.
        """
        if not self.distrusted:
            return None
        found = [address for address in self.workers() if address not in self.distrusted]
        if not found:
            why = "; ".join(dict.fromkeys(self.distrusted.values()))
            raise ClusterError(f"no worker of the cluster can do this: {why}. What was finished before is kept.")
        return found

    def distrust(self, address: str, why: str, host: bool = False) -> str:
        """Give no more work to a worker, or to all of its host.

        Returns:
            The sentence that says so; empty when it was said before.
        """
        name = _host(address) if host else address
        new = [other for other in self.workers() if host and _host(other) == name]
        said = address in self.distrusted or why in self.distrusted.values()
        self.distrusted |= dict.fromkeys([address, *new], why)
        return "" if said else f"Warning: {name}: {why.rstrip('.')}; it is given no more work, the others go on."

    def losses(self) -> list[str]:
        """Sentences about workers that have gone since the last look."""
        try:
            now = self.workers()
        except (OSError, KeyError):
            return []
        gone, self.known = [address for address in self.known if address not in now], now
        self.distrusted = {address: why for address, why in self.distrusted.items() if address in now}
        if not gone:
            return []
        if self.near:
            return [f"Warning: {len(gone)} worker process(es) were killed; others take their place and their work."]
        return [f"Warning: lost {some(gone)}; what they were at goes to the {len(now)} others."]

    def cards(self) -> bool:
        """Whether workers say that they have a GPU (`--resources GPU=1`): tasks that want one go to these alone."""
        return any(worker.get("resources", {}).get("GPU") for worker in self.workers().values())

    def check(self) -> None:
        """Look at all workers that are there.

        Raises:
            ClusterError: none can do the work.
        """
        for address, known in self.client.get_versions()["workers"].items():  # others could not even read the check
            python = ".".join(known["host"]["python"].split(".")[:2])
            if python != (here := ".".join(platform.python_version_tuple()[:2])):
                self._tell(self.distrust(address, f"has Python {python}, here it is {here}; install the same"), print)
        trusted = self.trusted()
        for address, answer in self.client.run(checking(self.seen), workers=trusted, on_error="return").items():
            why = f"does not answer ({type(answer).__name__})" if isinstance(answer, BaseException) else answer
            if not why and (threads := self.known.get(address, {}).get("nthreads", 1)) > 1:
                why = MANY_THREADS.format(threads)
            if why:
                self._tell(self.distrust(address, why), print)
        self.trusted()

    def outcomes(
        self, call: bytes, items: Sequence[Any], label: str, say: Callable[[str], None], look: float, device: bool
    ) -> Iterator[tuple[int, Any] | None]:
        """See `Workers.outcomes`; `call` is what `tasks.answer` needs besides an item."""
        try:
            yield from self._outcomes(call, items, label, say, look, device)
        except (OSError, CancelledError, FutureCancelledError) as error:
            raise ClusterError(GONE) from error

    def _outcomes(
        self, call: bytes, items: Sequence[Any], label: str, say: Callable[[str], None], look: float, device: bool
    ) -> Iterator[tuple[int, Any] | None]:
        _silence()
        task, name = task_of(None if self.near else checking(self.seen)), re.sub(r"\W+", "-", label.lower())
        wants = {"resources": {"GPU": 1}} if device and self.cards() else {}
        flying: dict[Future, int] = {}
        landed: queue.SimpleQueue[Future] = queue.SimpleQueue()
        fresh, again, left = iter(range(len(items))), [], len(items)
        begun = looked = served = time.monotonic()
        try:
            while left:
                if again or len(flying) <= AHEAD // 2:
                    chosen = list(islice(fresh, max(0, AHEAD - len(flying) - len(again))))
                    submitted = self._submit(task, call, items, chosen, name, wants)
                    if again:  # rather to those that did not refuse; to others when these have gone
                        rather = {"workers": self.trusted(), "allow_other_workers": True}
                        submitted |= self._submit(task, call, items, again, name, wants | rather)
                    again = []
                    for future, index in submitted.items():
                        flying[future] = index
                        future.add_done_callback(landed.put)
                ready = self._landed(landed, look)
                for future, answer in zip(ready, self._answers(ready), strict=True):
                    index = flying.pop(future)
                    item = _name(items[index])
                    kind, content, address = answer
                    if kind == "refused":
                        again.append(index)
                        self._tell(self.distrust(address, content), say)
                    elif kind == "full" and not self.near and self._others(address):
                        again.append(index)
                        self._tell(self.distrust(address, str(failure(content, item)), host=True), say)
                        self._shut(address, call, str(failure(content, item)))
                    else:
                        left -= 1
                        yield index, self._result(kind, content, item)
                if time.monotonic() - looked >= look:
                    looked = time.monotonic()
                    if not self.told and looked - begun >= LONG:
                        self.told = True
                        say(f"Dashboard: {self.dashboard}")
                    for loss in self.losses():
                        say(loss)
                    served = looked if self._can_work(bool(wants)) else served
                    if looked - served > (patience := QUEUED if self.own and not self.near else STARTED):
                        raise ClusterError(f"no worker for {patience} s; the same command goes on when there are some.")
                    yield None
        finally:
            with suppress(Exception):
                self.client.cancel(list(flying), force=True)

    def _submit(
        self, task: Callable[..., Any], call: bytes, items: Sequence[Any], chosen: Sequence[int], name: str, wants: Any
    ) -> dict[Future, int]:
        if not chosen:
            return {}
        packed, keys = [pickle.dumps(items[i]) for i in chosen], [f"{name}-{uuid.uuid4().hex}" for _ in chosen]
        self.trusted()
        futures = self.client.map(task, packed, call=call, key=keys, pure=False, **wants)
        return dict(zip(futures, chosen, strict=True))

    def _landed(self, landed: queue.SimpleQueue[Future], look: float) -> list[Future]:
        """Tasks that are done, after waiting for the first of them, but not for longer than `look` seconds."""
        try:
            found = [landed.get(timeout=look)]
        except queue.Empty:
            found = []
        with suppress(queue.Empty):
            while len(found) < AHEAD:
                found.append(landed.get_nowait())
        if self.client.status != "running" or any(future.cancelled() for future in found):
            raise ClusterError(GONE)
        for future in (again := [future for future in found if not future.done()]):
            future.add_done_callback(landed.put)  # the worker that held its result is lost, and it is done anew
        return [future for future in found if future not in again]

    def _answers(self, futures: Sequence[Future]) -> list[tuple[str, Any, str]]:
        """What the tasks returned; `killed` in place of what those returned whose workers died."""
        failed = [future for future in futures if future.status == "error"]
        answers = {future: ("killed", future.exception(), "") for future in failed}
        done = [future for future in futures if future not in answers]
        try:
            answers |= dict(zip(done, self.client.gather(done), strict=True))
        except KilledWorker:  # a result was lost, and so was whoever made it anew
            answers |= {f: f.result() if f.exception() is None else ("killed", f.exception(), "") for f in done}
        return [answers[future] for future in futures]

    def _result(self, kind: str, content: Any, item: str) -> Any:
        if kind == "done":
            return pickle.loads(content)
        if kind != "killed":
            return Failed(failure(content, item))
        if isinstance(content, KilledWorker):
            content = StateError(
                f"{item}: {content.allowed_failures + 1} worker processes were killed at it; memory may have run out; "
                "try --workers 1. What was finished before is kept."
            )
        return Failed(content)

    def _others(self, address: str) -> bool:
        """Whether there are trusted workers on another host."""
        host = _host(address)
        return any(_host(other) != host for other in self.trusted() or self.workers())

    def _shut(self, address: str, call: bytes, why: str) -> None:
        """Let the workers of a host send back what they are still given of this work."""
        there = [other for other in self.workers() if _host(other) == _host(address)]
        self.client.run(shut, call, why, workers=there, on_error="ignore")

    def _can_work(self, with_card: bool) -> bool:
        """Whether there is a worker that is trusted, and has a GPU where one is wanted."""
        there = {address: worker for address, worker in self.workers().items() if address not in self.distrusted}
        return any(not with_card or worker.get("resources", {}).get("GPU") for worker in there.values())

    @staticmethod
    def _tell(sentence: str, say: Callable[[str], None]) -> None:
        if sentence:
            say(sentence)

    def close(self) -> None:
        """Let go of it; a cluster of our own ends, whatever its workers are at."""
        with suppress(Exception):
            self.client.close(2)
        if self.own is not None:
            with suppress(Exception):
                self.own.close(5)


def _silence() -> None:
    """What Dask would log of lost workers, we say; whoever sets up logging in between (MONAI does) undoes it."""
    for name in ("distributed", *(n for n in logging.root.manager.loggerDict if n.startswith("distributed."))):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _host(address: str) -> str:
    """Of a worker's address `tcp://host:port`."""
    return address.split("://")[-1].rpartition(":")[0]


def _name(item: Any) -> str:
    """What a person calls an item: a case by its name, a tuple of arguments by the first."""
    while isinstance(item, tuple) and item:
        item = item[0]
    return str(item if isinstance(item, str | Path) else getattr(item, "name", "one of the items"))


@contextmanager
def connected(where: str, folder: Path | None, needs: Sequence[Path | None]) -> Iterator[None]:
    """See `workers.at_work`."""
    token = None
    if folder is not None:
        folder = make_folder(Path(os.path.abspath(folder)))
        for left in folder.glob(".seen_*"):  # of commands that were killed
            if time.time() - left.stat().st_mtime > A_WEEK:
                left.unlink(missing_ok=True)
        token = folder / f".seen_{uuid.uuid4().hex}"
    if re.fullmatch(r"(tcp|tls|ws|wss)://.+:[0-9]+", where):
        found = Cluster.at(where)
    elif "://" in where:
        raise InputError(f"--cluster {where}: write the port too, as in tcp://HOST:8786.")
    elif (file := user_path(where)).suffix in (".yaml", ".yml"):
        found = Cluster.described(file, folder)
    else:
        raise InputError(
            f"--cluster {where}: neither the address of a scheduler (tcp://HOST:8786) nor a YAML file about one."
        )
    try:
        if token is not None:
            token.touch()
            found.seen = [] if found.near else [token, *(Path(os.path.abspath(need)) for need in needs if need)]
        print(f"Cluster: {len(found.known)} workers; dashboard: {found.dashboard}", flush=True)
        found.check()
        Cluster._open.append(found)
        yield
    finally:
        if token is not None:
            token.unlink(missing_ok=True)
        if found in Cluster._open:
            Cluster._open.remove(found)
        found.close()
