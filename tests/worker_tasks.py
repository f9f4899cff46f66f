"""What the tests of processes let a worker do; it loads nothing, so that a worker starts at once."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from sbldm.run.errors import DataError


class OddError(Exception):
    """Cannot be made again from what it holds."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(first)


def act(task: tuple[str, str]) -> str | int | DataError:
    """What the tests let a worker do, by the name of the item."""
    name, what = task
    if what == "slow":
        time.sleep(0.3)
    elif what == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "exit":
        os._exit(7)
    elif what == "data":
        raise DataError(f"{name}: is wrong.")
    elif what == "returned":
        return DataError(f"{name}: left out.")
    elif what == "full" or (what == "full here" and os.environ.get("FULL")):
        try:
            raise OSError(28, "No space left on device", name)
        except OSError as error:
            raise RuntimeError("wrapped by a library") from error
    elif what == "memory":
        raise MemoryError
    elif what == "bug":
        raise ZeroDivisionError("a bug of ours")
    elif what == "odd":
        raise OddError("one", "two")
    elif what == "unpicklable":
        return lambda: None
    elif what == "forever":
        time.sleep(600)
    return os.getpid() if what == "pid" else name


def touch(path: str) -> None:
    """Say that this worker is at work, and stay at it."""
    Path(path).touch()
    time.sleep(600)


def fill_disk(full: bool) -> None:
    """Whether the disk of this worker is full from now on."""
    os.environ["FULL"] = "1" if full else ""


def append(item: tuple[Path, float]) -> str:
    """Write the name of a file into it, as a whole, after some seconds."""
    path, seconds = item
    time.sleep(seconds)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    beside.write_text(path.name)
    beside.rename(path)
    return path.name
