"""`sbldm train --gpus`: the same command in several processes, by PyTorch's own launcher, whose end is one sentence."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from sbldm.run.errors import LAUNCHED, InputError, LostError, SbldmError, StateError

__all__ = ["devices_for", "launch"]

AGAIN = "the same command goes on from the last epoch"
SIGNALS = ("SIGTERM", "SIGHUP", "SIGQUIT")  # that the launcher takes; Ctrl-C is ours


def devices_for(count: int) -> None:
    """Make sure that each process will have a device of its own.

    Raises:
        InputError: fewer are visible.
    """
    if count == 1:
        return
    import torch

    asked, there = os.environ.get("DEVICE", ""), torch.cuda.device_count()
    if asked == "cpu":
        return
    if asked not in ("", "cuda"):
        raise InputError(f"--gpus {count}: DEVICE={asked} is one alone; choose several by CUDA_VISIBLE_DEVICES=0,1.")
    if there < count:
        visible = f"{there} GPU{'' if there == 1 else 's'} visible here"
        fewer = f"take --gpus {there}, or " if there > 1 else "leave it out, or "
        raise InputError(f"--gpus {count}: {visible}; {fewer}train in {count} processes of the CPU: DEVICE=cpu.")


def launch(count: int, arguments: Sequence[Any]) -> None:
    """Run `sbldm ARGUMENTS` in so many processes of this machine, which share the work (`run.group`).

    Raises:
        SbldmError: with the sentence and the exit code of the process that failed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    for name in ("torch.distributed.elastic", "torch.distributed.run"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # what it would say, we say
    with TemporaryDirectory(prefix="sbldm-") as logs, _environment(count):
        quiet = ",".join(f"{number}:3" for number in range(1, count))
        options = ["--standalone", "--local-addr=127.0.0.1", f"--nproc-per-node={count}"]
        options += [f"--log-dir={logs}", f"--redirects={quiet}", f"--signals-to-handle={','.join(SIGNALS)}"]
        try:
            run(parse_args([*options, "-m", "--", "sbldm", *map(str, arguments)]))
        except ChildFailedError as error:
            raise _reason(error.failures, count, Path(logs)) from None
        except SignalException as stop:
            raise SystemExit(128 + stop.sigval) from None


@contextmanager
def _environment(count: int) -> Iterator[None]:
    """What the processes are told, and back to what it was."""
    told = {LAUNCHED: "1"}
    if os.environ.get("DEVICE") == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        told["OMP_NUM_THREADS"] = str(max(1, cores // count))
    before = {name: os.environ.get(name) for name in told}
    handlers = {name: signal.getsignal(getattr(signal, name)) for name in SIGNALS if hasattr(signal, name)}
    os.environ.update(told)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        for name, handler in handlers.items():
            signal.signal(getattr(signal, name), handler)


def _reason(failures: dict[int, Any], count: int, logs: Path) -> SbldmError:
    """Why a group of processes has ended: the first of what was said, of a signal, of an unknown end.

    That a process has lost another one is never the reason.
    """
    said = [f for f in failures.values() if f.exitcode > 0 and f.error_file_data.get("message", "<NONE>") != "<NONE>"]
    if said:
        first = min(said, key=lambda f: f.timestamp)
        error = SbldmError(first.message)
        error.exit_code = first.exitcode
        return error
    others = sorted(failures.items(), key=lambda item: (item[1].exitcode > 0, item[1].exitcode == LostError.exit_code))
    number, failure = others[0]
    who = f"process {number + 1} of {count}"
    if failure.exitcode < 0:
        memory = ", as the system does when memory runs out" if failure.exitcode == -signal.SIGKILL else ""
        return StateError(f"{who} was killed ({failure.signal_name()}{memory}); {AGAIN}.")
    if failure.exitcode == LostError.exit_code:
        return StateError(f"the {count} processes have lost each other; {AGAIN}.")
    log = next(iter(logs.glob(f"*/attempt_0/{number}/stderr.log")), None)
    last = log.read_text(errors="replace").strip().splitlines()[-1:] if log else []
    return StateError(f"{who} has ended ({''.join(last)[:200] or f'exit code {failure.exitcode}'}); {AGAIN}.")
