"""What `sbldm train` is asked for, and with `--gpus` the same command in several processes.

They are started by PyTorch's own launcher, whose end is one sentence here.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import typer

from sbldm.run.errors import LAUNCHED, InputError, LostError, SbldmError, StateError
from sbldm.run.limits import MOST_BATCH, MOST_PROCESSES
from sbldm.run.options import Preparation, whole
from sbldm.run.processes import cores

__all__ = ["Training", "devices_for", "launch"]

AGAIN = "the same command goes on from the last epoch"
MEANS = "Means"
SIGNALS = ("SIGTERM", "SIGHUP", "SIGQUIT")  # that the launcher takes; Ctrl-C is ours


@dataclass(frozen=True)
class Training(Preparation):
    """What `train` is asked for."""

    gpus: Annotated[
        int, whole(1, MOST_PROCESSES, help="Share each batch among so many GPUs of this machine", rich_help_panel=MEANS)
    ] = 1
    accumulate: Annotated[
        int,
        whole(
            1, MOST_BATCH, help="Parts of a batch, one after the other: less memory, more time", rich_help_panel=MEANS
        ),
    ] = 1
    checkpointing: Annotated[
        bool,
        typer.Option(
            "--checkpointing",
            help="Compute again what gradients need in place of keeping it: less memory, more time.",
            rich_help_panel=MEANS,
        ),
    ] = False


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
        visible = f"{there or 'no'} GPU{'s are' if there > 1 else ' is'} visible here"
        fewer = f"take --gpus {there}" if there > 1 else "leave it out"
        raise InputError(f"--gpus {count}: {visible}; {fewer}, or train in {count} processes of the CPU: DEVICE=cpu.")


def launch(count: int, arguments: Sequence[Any]) -> None:
    """Run `sbldm ARGUMENTS` in so many processes of this machine, which share the work (`run.group`).

    Raises:
        SbldmError: with the sentence and the exit code of the process that failed.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

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
        told["OMP_NUM_THREADS"] = str(max(1, cores() // count))
    before = {name: os.environ.get(name) for name in told}
    handlers = {name: signal.getsignal(getattr(signal, name)) for name in SIGNALS if hasattr(signal, name)}
    os.environ.update(told)
    logging.disable(logging.CRITICAL)  # what the launcher would say, we say
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
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
    if said := [f for f in failures.values() if "exit_code" in f.error_file_data]:
        first = min(said, key=lambda f: f.timestamp)
        error = SbldmError(first.message)
        error.exit_code = first.error_file_data["exit_code"]
        return error

    def later(code: int) -> tuple[bool, bool, bool]:
        """The launcher ends those that are left by SIGTERM."""
        return code == -signal.SIGTERM, code > 0, code == LostError.exit_code

    number, failure = min(failures.items(), key=lambda item: later(item[1].exitcode))
    who = f"process {number + 1} of {count}"
    if failure.exitcode < 0:
        memory = ", as the system does when memory runs out" if failure.exitcode == -signal.SIGKILL else ""
        return StateError(f"{who} was killed ({failure.signal_name()}{memory}); {AGAIN}.")
    if failure.exitcode == LostError.exit_code:
        return StateError(f"the {count} processes have lost each other; {AGAIN}.")
    log = next(iter(logs.glob(f"*/attempt_0/{number}/stderr.log")), None)
    last = log.read_text(errors="replace").strip().splitlines()[-1:] if log else []
    return StateError(f"{who} has ended ({''.join(last)[:200] or f'exit code {failure.exitcode}'}); {AGAIN}.")
