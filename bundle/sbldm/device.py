"""Where the computing is done."""

from __future__ import annotations

import os

import torch

from sbldm.errors import InputError

__all__ = ["choose_device"]


def choose_device(name: str = "") -> torch.device:
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
    print(f"Device: {torch.cuda.get_device_name(device) if device.type == 'cuda' else device}")
    return device
