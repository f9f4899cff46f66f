"""Several processes that train one network together, as PyTorch's launcher (`torchrun`) starts them.

A batch is that of all processes, of which each takes its part. What is random is drawn as for the whole batch, by every
process alike, and each keeps its rows; what a loss or a network measures on a batch it measures on the whole. So a
training is the same with however many processes, but for rounding. One process is a group of its own, for which all of
this changes nothing.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist

from sbldm.run.device import choose_device
from sbldm.run.errors import LAUNCHED, InputError
from sbldm.run.preset import Stage

__all__ = [
    "by_first",
    "check_shared",
    "gathered",
    "is_first",
    "join",
    "launched",
    "local_size",
    "mean",
    "mine",
    "rand",
    "randn_like",
    "rank",
    "size",
]

Parameters = ParamSpec("Parameters")
Found = TypeVar("Found")

TIMEOUT = timedelta(minutes=10)  # without a word of another process
PATIENCE = timedelta(days=1)  # while the first one encodes cases

_waiting: dist.ProcessGroup | None = None  # the same processes, patient


def launched() -> int:
    """How many processes PyTorch's launcher has started this one with; 0 where it is no work of the launcher."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 0


def local_size() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if size() > 1 else 1


def is_first() -> bool:
    """Whether the launcher means this process to write and to speak; also before it has joined the others."""
    return not launched() or os.environ["RANK"] == "0"


def size() -> int:
    """How many processes have joined."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this one among them; the first, 0, alone writes."""
    return dist.get_rank() if size() > 1 else 0


def check_shared(settings: Stage, stage: str, count: int, asked: str) -> None:
    """Make sure that so many processes can share a training; a message begins with what was `asked` for.

    Raises:
        InputError: it is one against an adversary, or its batch cannot be divided.
    """
    if getattr(settings, "discriminator", None):
        raise InputError(
            f"{asked}: the {stage} of this model is trained against a discriminator, which several processes cannot "
            "share; train it in one."
        )
    if settings.batch_size % count:
        fitting = max(n for n in range(1, count) if settings.batch_size % n == 0)
        raise InputError(
            f"{asked}: so many cannot share a batch of {settings.batch_size} ({stage}.batch_size) evenly; "
            f"take {fitting}, or another batch_size in a preset of your own."
        )


def join(settings: Stage, stage: str) -> torch.device:
    """Meet the other processes (NCCL on CUDA, gloo on the CPU); return the device of this one. Only the first speaks.

    Raises:
        InputError: the training cannot be shared, there is no launcher, or no device for each process.
    """
    if not (count := launched()):
        raise InputError(
            "configs/multi_gpu.yaml: is for `torchrun --nproc_per_node=N -m monai.bundle run`; leave it out."
        )
    if not is_first() and LAUNCHED not in os.environ:
        _be_quiet()
    check_shared(settings, stage, count, f"{count} processes")
    device = _own_device()
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    global _waiting
    _waiting = dist.new_group(timeout=PATIENCE, backend="gloo")
    threads = f", torch threads of each: {torch.get_num_threads()}" if device.type == "cpu" else ""
    print(f"Processes: {count}, each with {settings.batch_size // count} of a batch of {settings.batch_size}{threads}")
    return device


def _own_device() -> torch.device:
    asked, own = os.environ.get("DEVICE", ""), int(os.environ["LOCAL_RANK"])
    if asked == "cpu" or not (asked or torch.cuda.is_available()):
        return choose_device("cpu")
    if asked not in ("", "cuda"):
        raise InputError(f"DEVICE={asked}: each process takes a GPU of its own; choose them by CUDA_VISIBLE_DEVICES.")
    if own >= (there := torch.cuda.device_count()):
        raise InputError(
            f"process {own + 1} has no GPU ({there} visible here); start {there or 'fewer'}, or DEVICE=cpu."
        )
    torch.cuda.set_device(own)
    return choose_device(f"cuda:{own}")


def _be_quiet() -> None:
    """What the first process says needs no echo; a bug's traceback does."""
    usual = sys.excepthook

    def aloud(*error: Any) -> None:
        sys.stderr = sys.__stderr__
        usual(*error)

    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - as long as the process
    sys.excepthook = aloud


def by_first(function: Callable[Parameters, Found]) -> Callable[Parameters, Found]:
    """Let the first process call it alone and the others afterwards, who then find its files, whole."""

    @wraps(function)
    def one_by_one(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Found:
        if size() == 1:
            return function(*args, **kwargs)
        if rank():
            dist.barrier(group=_waiting)
            return function(*args, **kwargs)
        found = function(*args, **kwargs)
        dist.barrier(group=_waiting)
        return found

    return one_by_one


def mine(x: torch.Tensor) -> torch.Tensor:
    """Of the items of a whole batch `[N, ...]` those of this process, `[N / size, ...]`."""
    return x.chunk(size())[rank()]


def randn_like(x: torch.Tensor) -> torch.Tensor:
    """Normal noise for the items of this process, as drawn for the whole batch: in its layout too, which orders it."""
    if size() == 1:
        return torch.randn_like(x)
    layout = torch.empty_like(x).stride()
    whole = torch.empty_strided((size() * len(x), *x.shape[1:]), layout, dtype=x.dtype, device=x.device)
    return mine(whole.normal_())


def rand(*shape: int, device: torch.device) -> torch.Tensor:
    """Uniform numbers for the items of this process, as drawn for the whole batch."""
    return mine(torch.rand(size() * shape[0], *shape[1:], device=device))


def mean(x: torch.Tensor) -> torch.Tensor:
    """The mean over the processes of what each has."""
    if size() == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total / size()


def gathered(x: torch.Tensor) -> torch.Tensor:
    """The whole batch, of the items of all processes, where something is learned; gradients flow back to one's own.

    Without gradients, as in validation, each process looks at batches of its own.
    """
    return _Gathered.apply(x) if size() > 1 and torch.is_grad_enabled() else x


class _Gathered(torch.autograd.Function):
    """Every process takes the same loss of the whole, and `DistributedDataParallel` the mean of their gradients."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous()
        parts = [torch.empty_like(x) for _ in range(size())]
        dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return size() * mine(gradient)
