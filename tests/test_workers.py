"""Processes that share work: results in order, one line when one is killed, none left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import TINY, partial_files, wait_for
from worker_tasks import act

from sbldm.run.errors import DataError, OutputError, StateError
from sbldm.run.processes import run_tied
from sbldm.run.workers import Workers, at_most, map_in_processes


def test_results_come_in_the_order_of_the_items():
    items = [(str(k), "slow" if k == 0 else "") for k in range(8)]
    assert map_in_processes(act, items, 3, "Working") == [str(k) for k in range(8)]


def test_a_pool_works_again_with_as_few_processes_as_there_are_items():
    with Workers(10**9) as pool:
        pids = pool.map(act, [("a", "pid"), ("b", "pid")], "Working")
        assert len(pool._own.workers()) == 2
        assert set(pool.map(act, [("c", "pid")] * 2, "Working")) <= set(pids) and os.getpid() not in pids
        assert pool.map(act, [], "Working") == []
    assert all(not Path(f"/proc/{pid}").exists() for pid in pids)


def test_no_more_processes_than_items_or_cores_can_serve():
    assert [at_most(*numbers) for numbers in ((1, 5), (2, 5), (9, 3), (3, 0))] == [1, 2, 3, 1]
    assert at_most(10**9, 10**6) == 4 * os.cpu_count()


@pytest.mark.parametrize("count", [1, 2])
def test_an_exception_may_be_a_result(count):
    found = map_in_processes(act, [("a", "returned"), ("b", "")], count, "Working")
    assert str(found[0]) == "a: left out." and found[1] == "b"


@pytest.mark.parametrize(("count", "items"), [(1, 3), (2, 1)])
def test_one_worker_or_one_item_is_done_here(count, items):
    assert map_in_processes(act, [("a", "pid")] * items, count, "Working") == [os.getpid()] * items


def two_threads() -> None:
    import torch

    torch.set_num_threads(2)


def threads(_: int) -> int:
    import torch

    return torch.get_num_threads()


def test_begin_is_called_once_and_undone_here():
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert map_in_processes(threads, [1, 2], 1, "Working", begin=two_threads) == [2, 2]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("what", "kind", "message"),
    [
        (
            "killed",
            StateError,
            r"^bad: 5 worker processes were killed at it; memory may have run out; try --workers 1\. What",
        ),
        (
            "exit",
            StateError,
            r"^bad: 5 worker processes were killed at it; memory .* try --workers 1\.",
        ),
        ("data", DataError, r"^bad: is wrong\.$"),
        ("full", OutputError, r"^bad: cannot be (read or )?written \(No space left on device\)"),
        ("memory", StateError, r"^bad: memory ran out in a worker process; try --workers 1\.$"),
        ("bug", ZeroDivisionError, "a bug of ours"),
        ("odd", RuntimeError, "OddError: one"),
        ("unpicklable", (AttributeError, RuntimeError), "lambda"),
    ],
)
def test_what_goes_wrong_in_a_worker(what, kind, message):
    with pytest.raises(kind, match=message) as raised:
        map_in_processes(act, [("bad", what), ("good", "slow")], 2, "Working")
    assert "\n" not in str(raised.value)
    if what == "bug":
        assert "line" in str(raised.value.__cause__) and "in act" in str(raised.value.__cause__)
    else:
        assert not isinstance(raised.value, StateError | DataError) or raised.value.__cause__ is None


def alive(pid: int) -> bool:
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


def left_of(pids: list[int]) -> list[int]:
    """Those of some processes that run still after two seconds."""
    stop = time.monotonic() + 2
    while any(map(alive, pids)) and time.monotonic() < stop:
        time.sleep(0.02)
    return [pid for pid in pids if alive(pid)]


def children(pid: int) -> list[int]:
    """Numbers of all processes below one."""
    found = []
    for thread in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # it has ended
            found += [int(word) for word in thread.read_text().split()]
    return found + [below for child in found for below in children(child)]


def started(code: str, tmp_path: Path, **options: object) -> subprocess.Popen:
    """A process that runs some code of this module, and leaves a file when its workers are at work."""
    script = tmp_path / "script.py"
    lines = [
        "from worker_tasks import touch",
        "from sbldm.run.processes import *",
        "from sbldm.run.workers import *",
        "if __name__ == '__main__':",
    ]
    script.write_text("\n".join([*lines, *(f"    {line}" for line in code.splitlines())]) + "\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    return subprocess.Popen([sys.executable, str(script)], env=environment, cwd=tmp_path, text=True, **options)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_workers_go_with_their_parent(tmp_path, how):
    process = started("map_in_processes(touch, ['a', 'b'], 2, 'Working')", tmp_path, stderr=subprocess.PIPE)
    wait_for(tmp_path / "a", process)
    wait_for(tmp_path / "b", process)
    below = children(process.pid)
    assert len(below) >= 2
    process.send_signal(how)
    assert process.wait(10) == -how
    assert left_of(below) == []
    said = process.stderr.read()  # multiprocessing clears away what a killed process could not
    assert re.sub(r".*resource_tracker.py:.*\n.*\n", "", said) == ""


NNUNET = "import subprocess, pathlib; p = subprocess.Popen(['sleep', '600']); pathlib.Path('a').touch(); p.wait()"
ALONE = [sys.executable, "-c", "import pathlib, time; pathlib.Path('a').touch(); time.sleep(600)"]


@pytest.mark.parametrize(
    ("code", "count"),
    [
        (f"run_tied({NNUNET!r}, [])", 2),
        (f"import subprocess\nsubprocess.run({ALONE!r}, preexec_fn=killed_with_parent)", 1),
    ],
)
def test_a_tied_process_and_its_own_go_with_their_parent(tmp_path, code, count):
    process = started(code, tmp_path)
    wait_for(tmp_path / "a", process)
    below = children(process.pid)
    assert len(below) == count
    process.kill()
    process.wait()
    assert left_of(below) == []


def test_a_tied_process_gives_its_exit_code(tmp_path):
    with open(tmp_path / "log", "w") as log:
        assert run_tied("import sys; print(sys.argv[1:]); sys.exit(3)", ["-x", "y"], stdout=log) == 3
    assert (tmp_path / "log").read_text() == "['-x', 'y']\n"


def heed_ctrl_c() -> None:
    """In a new process: where the suite runs in the background, Ctrl-C is ignored, and that is inherited."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("command", ["prepare", "synth", "evaluate", "costs --run x", "nnunet eval"])
def test_ctrl_c_while_modules_load_says_one_line_too(tmp_path, command):
    """A module that takes its time, and swallows what is raised, stands where numpy is looked for first."""
    slow = "import pathlib, time\nfor _ in range(600):\n    try:\n        pathlib.Path('a').touch(); time.sleep(1)\n"
    (tmp_path / "numpy.py").write_text(slow + "    except KeyboardInterrupt: pass\n")
    path = os.pathsep.join([str(tmp_path), *sys.path])
    process = subprocess.Popen(
        [sys.executable, "-m", "sbldm", *command.split()],
        env=os.environ | {"PYTHONPATH": path},
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    )
    wait_for(tmp_path / "a", process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "Stopped; the same command goes on from here.\n")


@pytest.mark.parametrize("when", ["loading", "preparing"])
def test_ctrl_c_says_one_line_and_the_same_command_goes_on(tmp_path, many_phantoms, when):
    """SIGINT to the whole group, as a terminal sends it."""
    run, data = tmp_path / "run", many_phantoms[0].parent
    command = [sys.executable, "-m", "sbldm", "prepare", "--data", str(data), "--run", str(run), "--preset", str(TINY)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=heed_ctrl_c,
    )
    stop = time.monotonic() + 60
    while not children(process.pid):
        assert time.monotonic() < stop and process.poll() is None
        time.sleep(0.01)
    if when == "preparing":
        while not list(run.glob("prepared/*.json")):
            assert time.monotonic() < stop and process.poll() is None
            time.sleep(0.01)
    below = children(process.pid)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (130, "Stopped; the same command goes on from here.\n")
    assert left_of(below) == [] and (not run.exists() or partial_files(run) == [])
