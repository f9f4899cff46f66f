"""A cluster: bad ones refused in a sentence, lost and odd workers, nothing lost when workers are killed."""

from __future__ import annotations

import os
import random
import re
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from distributed import Client, LocalCluster
from worker_tasks import act, append, fill_disk

from sbldm.run import cluster, tasks
from sbldm.run.cluster import Cluster
from sbldm.run.errors import ClusterError, InputError, OutputError, finish
from sbldm.run.tasks import checking, versions
from sbldm.run.workers import Workers, at_work, map_in_processes


@pytest.fixture(scope="module")
def running() -> Iterator[Cluster]:
    """A scheduler with two workers, as if it ran elsewhere."""
    with LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address=":0") as elsewhere:
        found = Cluster(Client(elsewhere, set_as_default=False))
        yield found
        found.close()


def address(running: Cluster) -> str:
    return running.client.scheduler.address


def test_all_work_goes_to_the_cluster(running, tmp_path, capsys):
    """Also one item, or work for one process."""
    pids = set(running.client.run(os.getpid).values())
    with at_work(address(running), tmp_path):
        found = map_in_processes(act, [("a", "pid")], 1, "Working")
        found += map_in_processes(act, [("a", "pid")] * 9, 4, "Working")
        assert len(list(tmp_path.iterdir())) == 1
    assert set(found) <= pids and os.getpid() not in pids
    assert re.match(r"Cluster: 2 workers; dashboard: http://127\.0\.0\.1:\d+/status\n$", capsys.readouterr().out)
    assert list(tmp_path.iterdir()) == []
    assert map_in_processes(act, [("a", "pid")], 1, "Working") == [os.getpid()]


def test_nothing_answers(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "REACHED", 0.5)
    message = r"^--cluster tcp://127\.0\.0\.1:9: no scheduler answers there within 0\.5 s; start one with `dask sch"
    with pytest.raises(ClusterError, match=message), at_work("tcp://127.0.0.1:9", tmp_path):
        pass


def test_exit_code_and_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cluster, "REACHED", 0.5)

    def command() -> None:
        with at_work("tcp://nowhere.invalid:8786", tmp_path):
            pass

    assert finish(command) == 6
    assert re.match(r"Error: --cluster tcp://nowhere\.invalid:8786: no scheduler answers.*\n$", capsys.readouterr().err)


def test_strangers_cannot_reach_the_processes_of_this_machine(tmp_path):
    """Whoever can talk to a scheduler can have code run."""
    with Workers(2) as pool:
        pool.map(act, [("a", ""), ("b", "")], "Working")
        scheduler = pool._own.client.scheduler.address
        assert scheduler.startswith("tls://127.0.0.1:")
        with pytest.raises(ClusterError, match="needs certificates"), at_work(scheduler, tmp_path):
            pass
        with pytest.raises(OSError):
            Client(scheduler.replace("tls", "tcp"), timeout=2)


def test_no_worker(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "JOINED", 0.5)
    with (
        LocalCluster(
            n_workers=0, processes=False, dashboard_address=None, scheduler_port=0, protocol="tcp://"
        ) as empty,
        pytest.raises(ClusterError, match=r"has had no worker for 0\.5 s; start some with `dask worker tcp://"),
        at_work(empty.scheduler_address, tmp_path),
    ):
        pass


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: slrum\nworkers: 2", "kind slrum is none of local, slurm, pbs"),
        ("kind: slurm\nworkers: 0", "workers 0 is no whole number above 0"),
        ("kind: slurm\nworker: 2", "worker is none of kind, workers, options"),
        ("kind: local\noptions: {gpus: 2}", "gpus is not cards"),
        ("kind: local\noptions: {cards: '0,1'}", "cards is no list of GPUs"),
        ("kind: local\nworkers: 4\noptions: {cards: [0]}", "workers and cards exclude each other"),
        ("kind: local\noptions: true", "options is no table"),
        ("- a", "is no table"),
        ("kind: [", "while parsing"),
    ],
)
def test_wrong_files(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(InputError, match=message), at_work(str(tmp_path / "mine.yaml"), tmp_path):
        pass


def test_neither_address_nor_file(tmp_path):
    with pytest.raises(InputError, match="neither the address of a scheduler"), at_work("head-node:8786", tmp_path):
        pass
    with pytest.raises(InputError, match="write the port too, as in tcp://HOST:8786"), at_work("tcp://head", tmp_path):
        pass
    with pytest.raises(InputError, match="there is no such file"), at_work(str(tmp_path / "a.yaml"), tmp_path):
        pass


def test_what_slurm_is_asked_for(tmp_path, monkeypatch):
    """The example of the documentation, up to the script that is queued."""
    import dask_jobqueue

    asked = {}

    class Queued(Exception):
        pass

    def scale(self: object, count: int) -> None:
        asked.update(count=count, script=self.job_script())
        raise Queued("no sbatch here")

    monkeypatch.setattr(dask_jobqueue.SLURMCluster, "scale", scale)
    example = Path(cluster.__file__).parents[2] / "configs" / "clusters" / "slurm.yaml"
    with pytest.raises(ClusterError, match="Queued: no sbatch here"), at_work(str(example), tmp_path):
        pass
    assert asked["count"] == 8
    script = asked["script"]
    assert (
        "#SBATCH --gres=gpu:1" in script
        and "--nthreads 1" in script
        and "--resources GPU=1" in script
        and "tls://" in script
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sbldm": "0.0.1 (code 0)"}, r"has sbldm 0\.1\.0 \(code [0-9a-f]{8}\), here it is 0\.0\.1 \(code 0\)"),
        ({"torch": "1.13"}, r"has torch \d.*, here it is 1\.13"),
    ],
)
def test_another_version_is_refused(running, tmp_path, monkeypatch, changed, message):
    monkeypatch.setattr(tasks, "versions", lambda: versions() | changed)
    whole = rf"no worker of the cluster can do this: {message}; install the same there"
    with pytest.raises(ClusterError, match=whole), at_work(address(running), tmp_path):
        pass


def test_without_the_package_or_the_folder(tmp_path, monkeypatch):
    import sys

    check = checking([tmp_path / ".seen_1", tmp_path / "data"])
    assert check() == f"does not see {tmp_path}; put it on a disk that all machines share"
    (tmp_path / ".seen_1").touch()
    assert check() == f"does not see {tmp_path / 'data'}; put it on a disk that all machines share"
    (tmp_path / "data").mkdir()
    assert check() == ""
    monkeypatch.setitem(sys.modules, "sbldm.run.tasks", None)
    assert check().startswith("cannot load sbldm (import of sbldm.run.tasks halted")


def test_a_worker_of_another_version_is_left_out(running, tmp_path, capsys):
    """It joined later, or was upgraded meanwhile: its first task is refused, and done elsewhere."""
    odd, fine = sorted(running.workers())
    with at_work(address(running), tmp_path):
        running.client.run(patch_versions, workers=[odd])
        try:
            found = map_in_processes(act, [(str(k), "slow") for k in range(6)], 2, "Working")
        finally:
            running.client.run(restore_versions, workers=[odd])
    assert found == [str(k) for k in range(6)]
    said = capsys.readouterr().out
    assert said.count("Warning: ") == 1 and f"Warning: {odd}: has torch 1.0" in said and fine not in said


def patch_versions() -> None:
    tasks.versions = lambda: versions() | {"torch": "1.0"}


def restore_versions() -> None:
    tasks.versions = versions


def test_a_full_disk_of_the_only_machine_is_an_error(running, tmp_path):
    with pytest.raises(OutputError, match="No space left on device"), at_work(address(running), tmp_path):
        map_in_processes(act, [("bad", "full"), ("good", "")], 2, "Working")


def test_a_full_disk_of_one_machine_of_two(running, tmp_path, capsys, monkeypatch):
    """Each worker stands for a machine; the disk of one is full."""
    full, _ = sorted(running.workers())
    monkeypatch.setattr(cluster, "_host", lambda address: address.split("://")[1])
    running.client.run(fill_disk, True, workers=[full])
    try:
        with at_work(address(running), tmp_path):
            found = map_in_processes(act, [(str(k), "full here") for k in range(6)], 2, "Working")
    finally:
        running.client.run(fill_disk, False, workers=[full])
    assert found == [str(k) for k in range(6)]
    said = capsys.readouterr().out
    assert said.count("Warning: ") == 1 and "No space left on device" in said and "it is given no more work" in said


def test_ten_random_kills_lose_nothing(tmp_path):
    """Each item leaves one whole file; some are done twice, none is left out, and what returns is right."""
    rng, stop, killed = random.Random(0), threading.Event(), []

    def kill(pool: Workers) -> None:
        while not stop.is_set() and len(killed) < 10:
            time.sleep(rng.uniform(0.2, 0.5))
            pids = [nanny.pid for nanny in pool._own.own.workers.values()] if pool._own else []
            if alive := [pid for pid in pids if pid and pid not in killed]:  # a busy nanny notices late
                os.kill(victim := rng.choice(alive), signal.SIGKILL)
                killed.append(victim)

    with Workers(4) as pool:
        hand = threading.Thread(target=kill, args=(pool,), daemon=True)
        hand.start()
        rounds = 0
        while len(killed) < 10 or not rounds:
            items = [(tmp_path / f"{rounds}_{k}", 0.05) for k in range(60)]
            assert pool.map(append, items, "Working") == [f"{rounds}_{k}" for k in range(60)]
            rounds += 1
        stop.set()
        hand.join()
    assert len(killed) == 10 and len(set(killed)) == 10
    whole = [path for path in tmp_path.iterdir() if not path.suffix]  # a killed worker may leave half of another
    assert Counter(path.read_text() for path in whole) == Counter(f"{r}_{k}" for r in range(rounds) for k in range(60))
