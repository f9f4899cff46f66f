"""Where the computing is done."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sbldm.run.errors import InputError

__all__ = ["choose_device", "choose_precision", "fast_bfloat16", "same_sums"]


def choose_device(name: str = "", say: bool = True) -> torch.device:
    """The device asked for, else `DEVICE` of the environment, else CUDA if there is one, else the CPU; it is printed.

    Raises:
        InputError: no such device here.
    """
    name = name or os.environ.get("DEVICE", "") or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"DEVICE={name}: not available here ({str(error).splitlines()[0]}); try DEVICE=cpu.") from None
    if say:
        print(f"Device: {torch.cuda.get_device_name(device) if device.type == 'cuda' else device}")
    return device


def choose_precision(name: str = "") -> str:
    """The precision asked for, else `PRECISION` of the environment, else `auto`: bfloat16 where a device is fast in it.

    Raises:
        InputError: neither `auto` nor `float32`.
    """
    name = name or os.environ.get("PRECISION", "") or "auto"
    if name not in ("auto", "float32"):
        raise InputError(f"PRECISION={name}: must be auto or float32.")
    return name


def fast_bfloat16(device: torch.device) -> bool:
    """Whether convolutions in bfloat16 are faster than in single precision: CUDA from Ampere on, CPUs with AVX512_BF16.

    Measured on two AVX512_BF16 cores: stage 1 is 1.7 times, stage 2 1.6 to 1.8 times as fast.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    able = torch.cpu.get_capabilities() if device.type == "cpu" else {}
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


@contextmanager
def same_sums(device: torch.device) -> Iterator[None]:
    """Within it torch rounds alike however many cores and processes there are: a CPU computes on one thread.

    Its convolutions of one voxel choose their sums by the number of threads (measured: latents differ by 1e-5).
    """
    before = torch.get_num_threads()
    if device.type != "cpu" or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
