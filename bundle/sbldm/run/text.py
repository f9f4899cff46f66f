"""How numbers and lists of names are written for people."""

from __future__ import annotations

import math
from collections.abc import Iterable

__all__ = ["number", "some"]


def number(value: float, unit: str = "") -> str:
    """Three significant digits, never as a power of ten."""
    if not math.isfinite(value):
        return "-"
    digits = 0 if abs(value) < 1e-9 else min(6, max(0, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:.{digits}f}{' ' + unit if unit else ''}"


def some(names: Iterable[str], limit: int = 3) -> str:
    """The first names, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
