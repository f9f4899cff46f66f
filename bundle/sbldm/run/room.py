"""Whether what is asked for fits on the disk, and how long it takes, looked at before the work begins."""

from __future__ import annotations

import shutil
from pathlib import Path

from sbldm.run.errors import OutputError

__all__ = ["check_room", "free_bytes", "gigabytes", "lasting"]


def free_bytes(folder: Path) -> int:
    """Room on the disk of a folder, which need not exist yet."""
    folder = Path(folder).absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def gigabytes(count: float) -> str:
    """A number of bytes as a person reads it: `0.3 GB`, `12,400 GB`."""
    return f"{count / 1e9:,.1f} GB" if count < 1e11 else f"{count / 1e9:,.0f} GB"


def lasting(seconds: float) -> str:
    """A time, roughly: `40 s`, `12 min`, `3.1 h`, `317 days`."""
    for unit, size, most in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 48 * 3600)):
        if seconds < most:
            return f"{seconds / size:.{1 if unit == 'h' else 0}f} {unit}"
    return f"{seconds / 86400:,.0f} days"


def check_room(folder: Path, needed: float, mend: str) -> None:
    """An `OutputError` that names both numbers when the disk of `folder` has less room than `needed` bytes.

    Args:
        folder: where the work goes; it need not exist yet.
        needed: bytes, roughly.
        mend: what to do but freeing space.
    """
    free = free_bytes(folder)
    if free < needed:
        raise OutputError(
            f"{folder}: needs about {gigabytes(needed)}, {gigabytes(free)} are free; free space, or {mend}."
        )
