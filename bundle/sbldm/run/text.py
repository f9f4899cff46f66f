"""How numbers and lists of names are written for people."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

__all__ = ["number", "sizes", "some"]


def number(value: float, unit: str = "") -> str:
    """Three significant digits, never as a power of ten."""
    if not math.isfinite(value):
        return "-"
    digits = 0 if abs(value) < 1e-9 else min(6, max(0, 2 - math.floor(math.log10(abs(value)))))
    return f"{value:.{digits}f}{' ' + unit if unit else ''}"


def sizes(n: Sequence[int]) -> str:
    """How many cases are on either side: one number where both are as many."""
    return f"{n[0]}" if n[0] == n[1] else f"{n[0]} / {n[1]}"


def some(names: Iterable[str], limit: int = 3) -> str:
    """The first names, and how many more there are."""
    names = sorted(names)
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")
